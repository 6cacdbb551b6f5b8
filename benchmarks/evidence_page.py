"""Statistics over seeds, and docs/evidence.md from benchmarks/evidence.json: `evidence.py --page` and `--check`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evidence.md"

# (the anti-aliased arm, the aliased arm that it is compared with, how both were trained)
PAIRS = (("antialiased", "aliased", "from scratch"), ("finetuned", "control", "fine-tuned"))
ARMS = {
    "aliased": "aliased",
    "antialiased": "anti-aliased from scratch",
    "control": "aliased, trained longer",
    "finetuned": "converted and fine-tuned",
}
BASE = ("aliased", "antialiased")  # what alternatives to the default are compared with
# Trained from scratch as the anti-aliased arm is, by other recipes.
ALTERNATIVES = {
    "taps3": "3 taps",
    "flat": "flat",
    "flc": "FLC",
    "circular": "3 taps, circular",
    "aps": "APS",
}
# (arm, arm that it is compared with, what that shows), where the padding is to be told from the phase.
CONTROLS = (
    ("aps", "circular", "the phase: APS less its control"),
    ("circular", "taps3", "the padding: the control less 3 taps"),
)
# Name in the data -> (name in a table, whether more is better).
FIGURES = {
    "accuracy": ("accuracy", True),
    "consistency": ("consistency", True),
    "pixel_flips": ("one-pixel flips", False),
    "pixel_change": ("one-pixel change", False),
    "flip_rate": ("flip rate", False),
    "corruption_accuracy": ("corrupted accuracy", True),
    "worst_accuracy": ("worst case", True),
    "worst_steady": ("steady", True),
}
CIRCULAR = {"circular_consistency": ("consistency", True), "circular_change": ("one-pixel change", False)}

HEAD = """\
# The claim, reproduced

Zhang (ICML 2019) found that anti-aliased networks answer more consistently when the picture shifts, and no less
accurately. This page repeats that in small: VGG-, ResNet-, DenseNet- and MobileNetV2-style networks on scikit-learn's
digits, {seeds} seeds, aliased and anti-aliased with blurify's default recipe (4 taps); and, with fewer seeds, with
other filters and with adaptive polyphase sampling. Whatever came out is written here: the page is made from
[evidence.json](../benchmarks/evidence.json) by a program (`benchmarks/evidence_page.py`), and `make evidence` makes
both anew.
"""

READING = """\
All figures are in percent: the mean over {seeds} seeds and its 95% confidence interval (Student's t). The difference is
that of the two networks of the same seed, anti-aliased less aliased, in points, with the interval of the paired
differences; it is **bold** where that leaves out 0, whether for the better or for the worse. "Apart" asks more: that
the anti-aliased network's interval lies wholly above the aliased one's.
"""

COLUMNS = """\
- **accuracy**: of the centre crop of {held} held-out digits.
- **consistency**: how often two random crops of a picture get the same answer (Zhang 2019), {crop_seeds} pairs a
  picture.
- **one-pixel flips**, **one-pixel change**: how often a shift of one pixel changes the answer, and by how much it moves
  the probability of the answer (Azulay and Weiss 2018). Less is better.
- **flip rate**: how often the answer changes from frame to frame (noise: from the clean picture), mean of the
  {perturbations} perturbations below (Hendrycks and Dietterich 2019), {frames} frames each. Less is better.
- **corrupted accuracy**: mean of the {corruptions} corruptions below at severity {severities}.
- **worst case**: digits that are right at every point of a grid of translations and rotations (Engstrom et al. 2018);
  **steady**: those with one answer all over the grid.
"""

OTHERS = """\
The default recipe puts 4 taps, `[1 3 3 1]`, at every site. Here other recipes are in its place, each as blurify ships
it. Every network is trained as the "anti-aliased from scratch" one of its seed is: converted before training, the same
initial weights, the same pictures in the same order, the same settings, of which none was chosen for any recipe.

- **3 taps**: `[1 2 1]`, the default otherwise (`--filter-size 3`).
- **flat**: 7 taps that keep more of what lies below the new Nyquist frequency ([filters.md](filters.md)).
- **FLC**: the ideal low-pass in the Fourier domain, the recipe `flc` (Grabinski et al. 2022).
- **APS**: adaptive polyphase sampling behind 3 taps, the recipe `aps` (Chaman and Dokmanic 2021;
  [certificate.md](certificate.md)). It wants circular padding, so all convolutions of this network pad circularly, in
  training too: it differs from the aliased network and from the default by its padding as well.
- **3 taps, circular**: the control of that. The padding and the filter of APS, subsampled at the first sample.

The table has the mean over the seeds that its row rests on, and the paired differences, in points: over the same seeds,
less the aliased network of the seed, and less the one of the default recipe. Bold is what leaves out 0. As everywhere
here, one of twenty intervals leaves out a 0 that is true.
"""

OTHERS_CIRCULAR = """\
What APS is for are circular shifts, where what leaves at one border comes back at the other. Here the centre crop is
shifted so: consistency is how often two random shifts get the same answer ({crop_seeds} pairs a picture), one-pixel
change how much the probability of the answer moves when it is shifted by one pixel. Whatever a network pads is made
circular for this measurement (`blurify.metrics.circular`), also where it was trained with zeros, so that borders play
no part. Differences are less the default's.
"""

OTHERS_CONTROLS = """\
APS differs from the default in three things: in its filter (what 3 taps do, the table above has), its padding, and its
phase. The differences that the last two make, in points:
"""

OTHERS_RERUN = """\
All networks of this section, the aliased and the default ones too, are from one run, `{command}` (blurify {blurify},
torch {torch}; {train} s of training and {measure} s of measuring, summed over processes of one thread).

{same}
"""

ADAPTING = """\
Here nothing is trained with labels after the conversion: `blurify.adapt` lets the aliased network teach its converted
copy on {pictures} pictures of the training samples, without labels, in {adapted} steps of the optimiser in all, of
batches no larger than in training: the aliased network was trained for {original}. The aim, set beforehand: an accuracy
of at least the original's (the paired interval does not lie below 0), and a higher consistency (it lies above 0). Both
intervals are of the paired difference: over {seeds} seeds (Student's t), and over the {held} held-out pictures, each
with its mean over the seeds. Met is what holds by both.
"""

ADAPTED_RERUN = """\
Both networks of each pair are from one run, `{command}` (torch {torch}), which stands by itself: other processors
train other networks, so its aliased ones need not be those of the tables above. Settings: {settings}.
"""

SETUP = """\
The {total} samples are split by sample, once for all seeds: {held} held out ({held_out_per_digit} of each digit),
{training} to train on. Digits of 8x8 pixels are enlarged to {digit}x{digit} and put at random places on a black canvas
of {crop}x{crop}, with random contrast, and white noise of a strength up to {noise}; in training also with a little
scale and rotation. Held-out digits are in the middle of {canvas}x{canvas}: every crop of {crop}x{crop} shows all of
them but a dim rim. Contrast and noise of a held-out picture, and the crops and perturbations that it is measured under,
are the same for every network. Stability and worst case take {some} of the held-out pictures, for time; the grid has
5x5 translations up to 24/224 of the crop, and rotations by {rotations} degrees.

Four networks a family and seed:

- **aliased**: as it is; {epochs} epochs of AdamW with one cycle up to {learning_rate}, batches of {batch_size}.
- **anti-aliased from scratch**: `blurify.convert`ed before training, the same initial weights, the same pictures in the
  same order, the same settings.
- **aliased, trained longer**: the first one, {more} more epochs with one cycle up to {more_rate}: the control.
- **converted and fine-tuned**: the first one, converted with its weights, the same {more} epochs on the same pictures.
"""

PILOT = """\
Ten seeds were set beforehand. A first run was ended by the clock of its machine after eight of them, with its figures
in sight; then all ten were run anew, from nothing and with the same settings, on another machine: those are the figures
here. What was adapted and the alternatives to the default came later, from other machines, each with aliased networks
of its own run to be compared with; which alternatives, and with how many seeds, was set before any of their figures was
seen. The noise, the learning rate and the length of training were set in a pilot with two seeds of its own
(1000 and 1001) that trained **aliased networks only**, and looked at their accuracy and consistency on the held-out
digits: no setting was chosen by what anti-aliasing does to it. What was wanted were networks that have learnt (accuracy
above 90%) and whose consistency leaves room to rise. Tried were, in this order:

| learning rate | epochs | noise up to | |
| --- | --- | --- | --- |
| 0.003 | 12 | 0.3 | MobileNetV2 had not learnt |
| 0.003 | 12 | 0.6 | too hard |
| 0.01 | 12 | 0.3 | taken |
| 0.01 | 16 | 0.2 | little room to rise |

The settings of the fine-tuning (a third of the epochs and of the learning rate) were not tried out at all. The worst
case's rotations were reduced from the published 30 degrees to 10 when the first two aliased networks of seed 0 were
right all over that grid for only 7% and 15% of the digits: training turns digits by less than 9 degrees. After that
nothing was changed; the program was started again some times for its bookkeeping, with figures of seed 0 in sight.
"""

LIMITS = """\
The intervals are over initialisations and orders of the data, with the held-out pictures fixed: they say nothing of
other pictures. There are {comparisons} comparisons of each figure, hundreds in all, and no correction for their number:
some of those in bold are chance. The networks are tiny, their
pictures artificial, and in training they see digits at all places, which teaches some consistency by itself (the
paper's networks do too). All end in a global average pool; none was tuned for being anti-aliased. Around a digit there
is nothing but noise, so that a real shift is nearly a circular one: that suits APS, and circular padding, better than
photographs would.
"""

RERUN = """\
`{command}` (blurify {blurify}, Python {python}, torch {torch}, scikit-learn {scikit-learn}) took {train} s of training
and {measure} s of measuring, summed over processes of one thread. Other versions and processors round otherwise, and so
train other networks: expect figures mostly within the intervals, not the same digits. The pilot runs again by
`benchmarks/evidence.py --pilot`.
"""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% confidence interval."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values, at least two, and Student's 95% interval: `t(n-1) * s / sqrt(n)` either way."""
    from scipy.stats import t

    count = len(values)
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Interval(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count))


class Results:
    """The figures of all networks, by family, arm and seed."""

    def __init__(self, families: Iterable[str], runs: Iterable[Mapping[str, Any]]) -> None:
        self.families = list(families)
        self._runs = {(run["family"], run["arm"], run["seed"]): run["figures"] for run in runs}

    def seeds(self, family: str, *arms: str) -> list[int]:
        """Those that all of the arms were trained with."""
        every = [{seed for name, one, seed in self._runs if (name, one) == (family, arm)} for arm in arms]
        return sorted(set.intersection(*every))

    def values(self, family: str, arm: str, figure: str) -> list[float]:
        """One a seed."""
        return [self._runs[family, arm, seed][figure] for seed in self.seeds(family, arm)]

    def arm(self, family: str, arm: str, figure: str) -> Interval:
        return interval(self.values(family, arm, figure))

    def difference(self, family: str, arm: str, other: str, figure: str) -> Interval:
        """Of the two networks of the same seed, over the seeds that both have."""
        return interval(
            [
                self._runs[family, arm, seed][figure] - self._runs[family, other, seed][figure]
                for seed in self.seeds(family, arm, other)
            ]
        )

    def detailed(self, prefix: str) -> list[str]:
        """The figures of single perturbations or corruptions."""
        return [name for name in next(iter(self._runs.values())) if name.startswith(prefix)]


def page(data: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    results = Results(data["networks"], data["runs"])
    others = Results(data["networks"], data.get("alternatives", {"runs": []})["runs"])
    seeds = len(data["seeds"])
    settings = data["settings"]
    measuring, training = settings["measuring"], settings["training"]
    perturbations, corruptions = results.detailed("flip_rate "), results.detailed("accuracy ")
    columns = COLUMNS.format(
        held=data["held_out_samples"], crop_seeds=measuring["crop_seeds"], frames=measuring["frames"],
        perturbations=len(perturbations), corruptions=len(corruptions),
        severities=", ".join(map(str, measuring["severities"])),
    )  # fmt: skip
    setup = SETUP.format(
        **settings["data"], **training, total=data["training_samples"] + data["held_out_samples"],
        held=data["held_out_samples"], training=data["training_samples"],
        some=math.ceil(data["held_out_samples"] / measuring["every"]),
        rotations=", ".join(map(str, measuring["rotations"])), more=settings["finetuning"]["epochs"],
        more_rate=settings["finetuning"]["learning_rate"],
    )  # fmt: skip
    parts = [
        HEAD.format(seeds=seeds),
        "## Consistency\n\n" + READING.format(seeds=seeds) + "\n" + _consistency(results) + "\n" + _verdict(results),
        "## Accuracy\n\n" + _accuracy(results),
        "## Alternatives to the default\n\n" + _alternatives(data, others),
        "## Adapted without labels\n\n" + _adapted(data),
        "## Everything measured\n\n"
        + columns
        + "\n"
        + _losses(results)
        + "\n"
        + "\n".join(_family(results, others, name) for name in results.families),
        "## By perturbation\n\nThe flip rate by perturbation: the paired difference, in points; below 0 is better.\n\n"
        + _details(results, perturbations)
        + "\nAccuracy by corruption: the paired difference, in points; above 0 is better. A level "
        "near chance (10%) leaves nothing to tell apart.\n\n" + _details(results, corruptions),
        "## How it was done\n\n" + setup + "\n" + _networks(data),
        "## How the settings were found\n\n" + PILOT.format(seeds=seeds),
        "## What this does not show\n\n" + LIMITS.format(comparisons=_comparisons(results, others)),
        "## Again\n\n" + RERUN.format(command=data["command"], **data["versions"], **data["seconds"]),
    ]
    return "\n".join(parts)


def compared(results: Results) -> list[tuple[str, str, Interval, Interval, Interval]]:
    """(family, how trained, aliased, anti-aliased, paired difference) of the consistency, for every comparison."""
    return [
        (
            family, how, results.arm(family, other, "consistency"), results.arm(family, arm, "consistency"),
            results.difference(family, arm, other, "consistency"),
        )
        for family in results.families for arm, other, how in PAIRS
    ]  # fmt: skip


def _consistency(results: Results) -> str:
    rows = [
        (family, how, shown(old), shown(new), signed(difference), "yes" if new.low > old.high else "**no**")
        for family, how, old, new, difference in compared(results)
    ]
    return table(("family", "trained", "aliased", "anti-aliased", "difference", "apart"), rows)


def _verdict(results: Results) -> str:
    """What the table says, and where the claim does not hold."""
    rows = compared(results)
    apart = [row for row in rows if row[3].low > row[2].high]
    lines = [
        f"In {len(apart)} of {len(rows)} comparisons the consistency of the anti-aliased network lies above that of "
        f"the aliased one with intervals that do not overlap{'.' if len(apart) == len(rows) else '. Not so:'}"
    ]
    for family, how, old, new, difference in rows:
        if new.low > old.high:
            continue
        if new.high < old.low:
            what = "it lies **below**, and the intervals do not overlap"
        elif difference.low > 0:
            what = "the intervals overlap, though it is higher by the paired difference"
        elif difference.high < 0:
            what = "it is **lower** by the paired difference"
        else:
            what = "no difference can be told: the interval of the paired difference holds 0"
        lines.append(f"- {family}, {how}: {what}.")
    return "\n\n".join((lines[0], "\n".join(lines[1:]))).rstrip() + "\n"


def _accuracy(results: Results) -> str:
    rows = []
    for family in results.families:
        for arm, other, how in PAIRS:
            difference = results.difference(family, arm, other, "accuracy")
            what = "higher" if difference.low > 0 else "lower" if difference.high < 0 else "no difference can be told"
            old, new = results.arm(family, other, "accuracy"), results.arm(family, arm, "accuracy")
            rows.append((family, how, shown(old), shown(new), signed(difference), what))
    note = "\nThe last column is by the interval of the paired difference.\n"
    return table(("family", "trained", "aliased", "anti-aliased", "difference", "anti-aliased is"), rows) + note


@dataclass(frozen=True)
class Adapted:
    """What adapting did to one figure of a family.

    Attributes:
        old, new: of the aliased and of the adapted networks, over seeds.
        seeds, pictures: the paired difference, over seeds and over pictures.
    """

    old: Interval
    new: Interval
    seeds: Interval
    pictures: Interval


def adapted_families(data: Mapping[str, Any]) -> dict[str, dict[str, Adapted]]:
    """Accuracy and consistency of each family that was adapted with at least two seeds."""
    pairs = data["settings"]["measuring"]["crop_seeds"]
    found: dict[str, dict[str, Adapted]] = {}
    for family in data["networks"]:
        runs = [run for run in data.get("adapting", {"runs": []})["runs"] if run["family"] == family]
        if len(runs) < 2:
            continue
        found[family] = {}
        for figure in ("accuracy", "consistency"):
            old, new = ([shares(run, which, figure, pairs) for run in runs] for which in ("original", "adapted"))
            changes = [
                [two - one for one, two in zip(*pair, strict=True)] for pair in zip(old, new, strict=True)
            ]  # a seed, a picture
            found[family][figure] = Adapted(
                *(interval([_mean(each) for each in every]) for every in (old, new, changes)),
                interval([_mean(each) for each in zip(*changes, strict=True)]),
            )
    return found


def shares(run: Mapping[str, Any], which: str, figure: str, pairs: int) -> list[float]:
    """What was measured of each picture, of the original or the adapted network of a run; in `pairs` pairs of crops."""
    most = 1 if figure == "accuracy" else pairs
    return [int(count) / most for count in run[which][figure]]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def target_met(found: Mapping[str, Adapted]) -> bool:
    """Accuracy not below the original's, consistency above it, over seeds and over pictures."""
    accuracy, consistency = found["accuracy"], found["consistency"]
    return (
        min(accuracy.seeds.high, accuracy.pictures.high) >= 0
        and min(consistency.seeds.low, consistency.pictures.low) > 0
    )


def _adapted(data: Mapping[str, Any]) -> str:
    found = adapted_families(data)
    if not found:
        return "Not measured yet: `python benchmarks/evidence.py --adapted` does it.\n"
    part = data["adapting"]
    rows = [
        (
            family, name, shown(of.old), shown(of.new), signed(of.seeds), signed(of.pictures),
            ("yes" if target_met(figures) else "**no**") if name == "accuracy" else "",
        )
        for family, figures in found.items() for name, of in figures.items()
    ]  # fmt: skip
    missed = [family for family, figures in found.items() if not target_met(figures)]
    verdict = f"The target was met in {len(found) - len(missed)} of {len(found)} families"
    verdict += f"; **not** by {', '.join(missed)}.\n" if missed else ".\n"
    absent = [family for family in data["networks"] if family not in found]
    verdict += f"Not measured: {', '.join(absent)}.\n" if absent else ""
    text = ADAPTING.format(
        pictures=part["settings"]["pictures"], held=data["held_out_samples"], seeds=len(part["seeds"]), **part["steps"]
    )
    heads = ("family", "figure", "aliased", "adapted", "difference, over seeds", "over pictures", "met")
    values = {name: " ".join(map(str, of)) if isinstance(of, list) else of for name, of in part["settings"].items()}
    settings = ", ".join(f"{name} {value}" for name, value in values.items())
    again = ADAPTED_RERUN.format(command=part["command"], torch=part["versions"]["torch"], settings=settings)
    return "\n".join((text, table(heads, rows), verdict, again))


def alternatives(others: Results, family: str) -> list[str]:
    """Those that were trained with at least two seeds beside what they are compared with."""
    return [arm for arm in ALTERNATIVES if len(others.seeds(family, arm, *BASE)) > 1]


def _comparisons(results: Results, others: Results) -> int:
    return sum(len(PAIRS) + 2 * len(alternatives(others, family)) for family in results.families)


def _alternatives(data: Mapping[str, Any], others: Results) -> str:
    if not any(alternatives(others, family) for family in others.families):
        return "Not measured yet: `python benchmarks/evidence.py --alternatives` does it.\n"
    part = data["alternatives"]
    rows, rolled, controls = [], [], []
    for family in others.families:
        trained = alternatives(others, family)
        for arm in (*BASE, *trained) if trained else ():
            label = {"aliased": "*aliased*", "antialiased": "*default, 4 taps*"}.get(arm) or ALTERNATIVES[arm]
            seeds = str(len(others.seeds(family, arm)))
            cells = []
            for figure in ("consistency", "accuracy"):
                cells.append(shown(others.arm(family, arm, figure)))
                cells += [signed(others.difference(family, arm, it, figure)) if it != arm else "" for it in BASE]
            if arm == "aliased":
                cells[2] = cells[5] = ""  # it is in the row below, the other way round
            rows.append((family, label, seeds, *cells))
            cells = []
            for figure in CIRCULAR:
                cells.append(shown(others.arm(family, arm, figure)))
                cells.append(signed(others.difference(family, arm, BASE[1], figure)) if arm != BASE[1] else "")
            rolled.append((family, label, seeds, *cells))
        for arm, other, what in CONTROLS:
            if {arm, other} <= set(trained):
                figures = ("accuracy", "consistency", "pixel_flips", *CIRCULAR)
                found = [signed(others.difference(family, arm, other, figure)) for figure in figures]
                controls.append((family, what, str(len(others.seeds(family, arm, other))), *found))
    heads = ("family", "network", "seeds")
    each = ("less aliased", "less default")
    parts = [
        OTHERS,
        table((*heads, "consistency ↑", *each, "accuracy ↑", *each), rows),
        _against_default(others),
        OTHERS_CIRCULAR.format(crop_seeds=data["settings"]["measuring"]["crop_seeds"]),
        table((*heads, "consistency ↑", "less default", "one-pixel change ↓", "less default"), rolled),
    ]
    if controls:
        columns = ("accuracy ↑", "consistency ↑", "one-pixel flips ↓", "circular consistency ↑", "circular change ↓")
        parts += [OTHERS_CONTROLS, table(("family", "what differs", "seeds", *columns), controls)]
    parts.append(OTHERS_RERUN.format(**part, **part["versions"], **part["seconds"], same=_same(data)))
    return "\n".join(parts)


def _against_default(others: Results) -> str:
    """For each alternative, what differs from the default's figures, and consistency and accuracy from the aliased."""
    lines = [
        "What the intervals of the paired differences tell: consistency and accuracy against both, then whatever else "
        'is better or worse than the default\'s (all of it is in the tables of "Everything measured").\n'
    ]
    for arm, label in ALTERNATIVES.items():
        families = [family for family in others.families if arm in alternatives(others, family)]
        told = []
        for other, name in ((BASE[1], "the default"), (BASE[0], "the aliased network")):
            for figure in ("consistency", "accuracy"):
                found = {family: others.difference(family, arm, other, figure) for family in families}
                for way in ("higher", "lower"):
                    mine = [f"{family} {signed(one).strip('*')}" for family, one in found.items() if _way(one) == way]
                    if mine:
                        where = f"in {len(mine)} of {len(families)} ({', '.join(mine)})"
                        told.append(f"{figure} {way} than {name}'s {where}")
        rest = [figure for figure in FIGURES if figure not in ("consistency", "accuracy")]
        for verdict in ("better", "worse"):
            mine = []
            for figure in rest:
                name, more = FIGURES[figure]
                for family in families:
                    difference = others.difference(family, arm, BASE[1], figure)
                    if _way(difference) == ("higher" if more == (verdict == "better") else "lower"):
                        mine.append(f"{family}'s {name} {signed(difference).strip('*')}")
            if mine:
                told.append(f"{verdict} than the default: {', '.join(mine)}")
        if families:
            lines.append(f"- **{label}**: {'; '.join(told) or 'no difference from either can be told'}.")
    return "\n".join(lines) + "\n"


def _way(difference: Interval) -> str | None:
    return "higher" if difference.low > 0 else "lower" if difference.high < 0 else None


def _same(data: Mapping[str, Any]) -> str:
    """Whether this section's aliased and default networks are those of the tables above."""
    above = {(run["family"], run["arm"], run["seed"]): run["figures"] for run in data["runs"]}
    mine = [run for run in data["alternatives"]["runs"] if run["arm"] in BASE]
    same = sum(above.get((run["family"], run["arm"], run["seed"])) == run["figures"] for run in mine)
    if same == len(mine):
        return f"The {same} aliased and default ones are those of the tables above, of the same seeds."
    return (
        f"Of its {len(mine)} aliased and default ones {same} have the figures of those above: other processors train "
        "other networks, and only those of one run are compared."
    )


def _losses(results: Results) -> str:
    """Where anti-aliasing made a figure worse, in words."""
    found = []
    for family in results.families:
        for arm, other, how in PAIRS:
            for figure, (label, more) in FIGURES.items():
                difference = results.difference(family, arm, other, figure)
                if (difference.high < 0) if more else (difference.low > 0):
                    found.append(f"{family}, {how}: {label} {signed(difference)}")
    if not found:
        return "No figure of any family is worse for anti-aliasing by the interval of the paired difference.\n"
    return "Worse for anti-aliasing, by the interval of the paired difference: " + "; ".join(found) + ".\n"


def _family(results: Results, others: Results, family: str) -> str:
    """All figures of a family: a row an arm, and a row for each paired difference; then those of the alternatives."""
    heads = [name + (" ↑" if more else " ↓") for name, more in FIGURES.values()]
    rows = [(label, *(shown(results.arm(family, arm, figure)) for figure in FIGURES)) for arm, label in ARMS.items()]
    for arm, other, how in PAIRS:
        found = [results.difference(family, arm, other, figure) for figure in FIGURES]
        rows.append((f"*difference, {how}*", *map(signed, found)))
    text = f"### {family}\n\n" + table(("network", *heads), rows)
    trained = alternatives(others, family)
    if not trained:
        return text
    rows = []
    for arm in (*BASE, *trained):
        seeds = str(len(others.seeds(family, arm)))
        label = ALTERNATIVES.get(arm) or ARMS[arm]
        rows.append((label, seeds, *(shown(others.arm(family, arm, figure)) for figure in FIGURES)))
    for other, name in ((BASE[0], "aliased"), (BASE[1], "default")):
        for arm in trained:
            found = [others.difference(family, arm, other, figure) for figure in FIGURES]
            seeds = str(len(others.seeds(family, arm, other)))
            rows.append((f"*{ALTERNATIVES[arm]}, less {name}*", seeds, *map(signed, found)))
    return f"{text}\nThe alternatives to the default, all from scratch:\n\n" + table(("network", "seeds", *heads), rows)


def _details(results: Results, figures: Sequence[str]) -> str:
    rows = [
        (family, how, *(signed(results.difference(family, arm, other, figure)) for figure in figures))
        for family in results.families for arm, other, how in PAIRS
    ]  # fmt: skip
    rows += [
        (family, "*level, aliased*", *(shown(results.arm(family, "aliased", figure)) for figure in figures))
        for family in results.families
    ]
    return table(("family", "trained", *(figure.partition(" ")[2] for figure in figures)), rows)


def _networks(data: Mapping[str, Any]) -> str:
    rows = []
    for family, found in data["networks"].items():
        kinds = [site["kind"] for site in found["sites"]]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        blurred = sum(site["action"] == "blur" for site in found["sites"])
        rows.append((family, f"{found['parameters']:,}", counts, str(blurred)))
    return table(("family", "parameters", "sites", "blurred"), rows)


def shown(found: Interval) -> str:
    """In percent."""
    return f"{100 * found.mean:.2f} ± {100 * found.half:.2f}"


def signed(found: Interval) -> str:
    """A difference, in points; bold where its interval leaves out 0."""
    mean = f"{100 * found.mean:+.2f}"
    text = f"{'0.00' if float(mean) == 0 else mean} ± {100 * found.half:.2f}"
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write(data: Path, doc: Path, *, check: bool = False) -> int:
    """Write the page, or only compare it with the data; returns the exit code."""
    text = page(json.loads(data.read_text(encoding="utf-8")))
    if check:
        same = doc.is_file() and doc.read_text(encoding="utf-8") == text
        print(f"{doc} is {'what the data say' if same else 'out of date: run python benchmarks/evidence.py --page'}")
        return 0 if same else 1
    doc.parent.mkdir(parents=True, exist_ok=True)
    doc.write_text(text, encoding="utf-8")
    return 0
