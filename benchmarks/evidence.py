"""The paper's claim on small networks: `make evidence`, or `python benchmarks/evidence.py -j 2`.

VGG, ResNet, DenseNet and MobileNetV2 in small (`training/families.py`) learn scikit-learn's digits at random places of
a canvas, with several seeds, in five arms:

    aliased       the network as it is
    antialiased   converted by blurify (default recipe) before training: same initial weights, same pictures and order
    control       the first, trained for some more epochs
    finetuned     the first, converted, trained for as many more epochs on the same pictures
    adapted       the first, converted, taught by the first (blurify.adapt) on pictures without labels; half the seeds

and, for half the seeds, each converted before training as `antialiased` is, in alternatives to the default recipe:

    taps3         3 taps, [1 2 1], in place of 4
    flat          the recipe flat: 7 taps that keep what lies below the new Nyquist frequency
    flc           the recipe flc: the ideal low-pass, in the Fourier domain
    aps           the recipe aps: 3 taps, then the phase with the largest norm; all convolutions pad circularly
    circular      the control of that: as aps, but subsampled at the first sample

What each does on held-out digits is measured with blurify.metrics. Trained weights, and one JSON line for each network
measured, are kept in .cache/evidence, under a hash of the settings, torch's version, training/ and the metrics' files:
a run that was stopped goes on where it was, and a change of the metrics trains nothing again. After any other change
(of the conversion, of this file) use --fresh. Writes benchmarks/evidence.json and docs/evidence.md.

    python benchmarks/evidence.py --page     only the page, from the JSON
    python benchmarks/evidence.py --check    exit code 1 where the page is not what the JSON says
    python benchmarks/evidence.py --pilot    how the settings were found: aliased networks only, seeds of their own
    python benchmarks/evidence.py --adapted  only what is adapted, with its originals; the JSON keeps what else it holds
    python benchmarks/evidence.py --alternatives    only the alternatives, with what they are compared with; likewise
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import multiprocessing
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blurify
from benchmarks import evidence_page
from blurify import metrics
from blurify.metrics.circular import circular_padding
from blurify.metrics.consistency import consistency
from blurify.metrics.stability import stability
from blurify.metrics.worst_case import worst_case
from blurify.spec.recipes import load_recipe
from blurify.tuning.examples import Augmentation
from training import digits
from training.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache" / "evidence"
DATA = ROOT / "benchmarks" / "evidence.json"
SEEDS = tuple(range(10))
PILOT_SEEDS = (1000, 1001)
ADAPTED_SEEDS = SEEDS[:5]
ALTERNATIVE_SEEDS = SEEDS[:5]
PACKAGES = ("torch", "torchvision", "scikit-learn", "numpy")

SETTINGS: dict[str, Any] = {
    "data": {
        "split_seed": 0,
        "held_out_per_digit": 40,
        "crop": 32,
        "canvas": 44,  # of held-out pictures; crops at all places show the digit
        "digit": 20,
        "contrast": [0.4, 1.0],
        "noise": 0.3,
    },
    "training": {
        "epochs": 12,
        "learning_rate": 1e-2,
        "batch_size": 64,
        "weight_decay": 1e-2,
        "label_smoothing": 0.1,
        "scale": [0.9, 1.1],
        "rotation": 0.15,
        "translation": 6.0,
    },
    "finetuning": {"epochs": 4, "learning_rate": 3e-3},
    "adapting": {
        "share": 0.25,  # of the steps that the original was trained for
        "pictures": 3000,
        "stages": ["recalibrate", "reconstruct", "distil"],  # refine would get two fifths of the steps
        "learning_rate": 1e-2,
        "decay": 0.0,  # so few steps are no more than a moving average forgets
        "calibrate": 512,
        "views": 6,
        "shift": 12,
    },
    "measuring": {
        "crop_seeds": 5,  # pairs of crops a picture
        "every": 4,  # stability and worst case take every fourth picture, for time
        "frames": 9,
        "severities": [3],
        "rotations": [-10, 0, 10],
    },
}

# What `--pilot` tries: changes of SETTINGS. See evidence_page.PILOT for what it gave.
PILOT: tuple[dict[str, dict[str, Any]], ...] = (
    {"training": {"learning_rate": 3e-3}},
    {"training": {"learning_rate": 3e-3}, "data": {"noise": 0.6}},
    {},
    {"training": {"epochs": 16}, "data": {"noise": 0.2}},
)


@dataclass(frozen=True)
class Arm:
    """How the networks of an arm come about.

    Attributes:
        recipe: what blurify converts it by: a name, or a mapping as `blurify.convert` takes it; None: not converted.
        after: the arm whose trained weights it starts from; None: it is trained from its initial weights.
        circular: every convolution pads with the other side of the map, from the first step of training on.
    """

    recipe: str | Mapping[str, Any] | None = None
    after: str | None = None
    circular: bool = False


DEFAULT = "zhang2019"
ARMS: dict[str, Arm] = {
    "aliased": Arm(),
    "antialiased": Arm(DEFAULT),
    "control": Arm(after="aliased"),
    "finetuned": Arm(DEFAULT, after="aliased"),
    "adapted": Arm(DEFAULT, after="aliased"),
    "taps3": Arm({"filter": {"size": 3}}),
    "flat": Arm("flat"),
    "flc": Arm("flc"),
    # The recipe aps but for [sampling]: what the choice of the phase does, and what the padding does.
    "circular": Arm({"filter": {"size": 3, "padding": "circular"}, "conv": {"stem": "convert"}}, circular=True),
    "aps": Arm("aps", circular=True),
}
BASE = evidence_page.BASE
ALTERNATIVES = tuple(evidence_page.ALTERNATIVES)

Run = dict[str, Any]


def sites_of(plan: blurify.Plan) -> list[dict[str, Any]]:
    """What is written down of a network's sites."""
    return [
        {"name": site.name, "kind": site.kind, "stride": list(site.stride), "action": site.action}
        for site in plan.sites
    ]


def networks(settings: Mapping[str, Any], families: Sequence[str]) -> dict[str, Any]:
    """What is trained: parameters and sites of each family, as blurify finds and converts them."""
    found = {}
    for family in families:
        model = FAMILIES[family]()
        report = blurify.inspect(model, example_inputs(settings))
        found[family] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "sites": sites_of(report),
        }
    return found


def example_inputs(settings: Mapping[str, Any]) -> tuple[Tensor]:
    return (torch.zeros(1, 1, settings["data"]["crop"], settings["data"]["crop"]),)


def training_data(settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Images (N, 8, 8) uint8 and labels (N,) of the samples to train on."""
    images, labels = digits.load()
    chosen, _ = digits.split(labels, settings["data"]["held_out_per_digit"], settings["data"]["split_seed"])
    return images[chosen], labels[chosen]


def held_out(settings: Mapping[str, Any]) -> metrics.TensorPictures:
    """The held-out digits in the middle of canvases; contrast and noise are the same for every network."""
    data = settings["data"]
    images, labels = digits.load()
    _, held = digits.split(labels, data["held_out_per_digit"], data["split_seed"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(data["split_seed"])
        still = digits.scattered(
            images[held], canvas=data["canvas"], digit=data["digit"], scale=(1, 1), rotation=0, translation=0
        )
        canvases = shaded(still, settings)
    return metrics.TensorPictures(canvases, labels[held], "digits")


def training_pictures(images: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """Digits (N, 8, 8) uint8 -> (N, 1, crop, crop) in 0..1: any place, some scale, rotation, contrast and noise."""
    data = settings["data"]
    where = {key: settings["training"][key] for key in ("scale", "rotation", "translation")}
    return shaded(digits.scattered(images, canvas=data["crop"], digit=data["digit"], **where), settings)


def shaded(canvases: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The canvases with random contrast and noise, in 0..1."""
    data = settings["data"]
    return digits.noisy(canvases, contrast=data["contrast"], noise=data["noise"]).clamp(0, 1)


def train(
    family: str, seed: int, arm: str, settings: Mapping[str, Any], start: Mapping[str, Tensor] | None
) -> nn.Module:
    """One network of one arm. All arms of a seed see the same pictures in the same order.

    Args:
        start: the weights to go on from; None: train from scratch.
    """

    def make() -> nn.Module:
        model = network(family, arm, settings, start)
        torch.manual_seed(seed)  # whatever making it has drawn
        return model

    how = settings["training"] | (settings["finetuning"] if start is not None else {})
    names = ("epochs", "learning_rate", "batch_size", "weight_decay", "label_smoothing")
    return digits.train(
        make,
        seed,
        *training_data(settings),
        picture=lambda images: training_pictures(images, settings),
        **{name: how[name] for name in names},
    )


def unlabelled(seed: int, settings: Mapping[str, Any]) -> metrics.TensorPictures:
    """Pictures of the samples to train on, drawn as in training, without labels: to adapt on.

    They are canvases of the held-out pictures' size; a crop at a random place shows the digit where a picture of the
    training may have it.
    """
    images, _ = training_data(settings)
    count = settings["adapting"]["pictures"]
    data, training = settings["data"], settings["training"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = torch.cat([torch.randperm(len(images)) for _ in range(-(-count // len(images)))])[:count]
        where = {key: training[key] for key in ("scale", "rotation")}
        beyond = training["translation"] - (data["canvas"] - data["crop"]) / 2  # the crops' places do the rest
        moved = max(beyond, 0.5)  # half a pixel: not in whole pixels
        canvases = shaded(
            digits.scattered(images[chosen], canvas=data["canvas"], digit=data["digit"], translation=moved, **where),
            settings,
        )
    return metrics.TensorPictures(canvases, None, "training digits")


def steps_to_adapt(settings: Mapping[str, Any]) -> int:
    """The share of the original's steps that adapting may take, all stages together."""
    training = settings["training"]
    steps = training["epochs"] * (len(training_data(settings)[0]) // training["batch_size"])
    return max(1, math.floor(settings["adapting"]["share"] * steps))


def adapt(family: str, seed: int, settings: Mapping[str, Any], start: Mapping[str, Tensor]) -> nn.Module:
    """The network with the weights `start`, converted, and taught by itself as it was; in eval mode."""
    how = settings["adapting"]
    original = network(family, "aliased", settings, start).eval()
    converted = network(family, "adapted", settings, start).eval()
    return blurify.adapt(
        original,
        converted,
        unlabelled(seed, settings),
        preprocessing=geometry(settings),
        stages=how["stages"],
        steps=steps_to_adapt(settings),
        batch_size=settings["training"]["batch_size"],
        learning_rate=how["learning_rate"],
        decay=how["decay"],
        crops=how["pictures"],
        calibrate=how["calibrate"],
        augmentation=Augmentation(shift=how["shift"], views=how["views"], flip=False, colour=0.0, mix=0.0),
        outputs="classes",
        labels=False,
        seed=seed,
        device="cpu",
    )


def network(family: str, arm: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> nn.Module:
    """A network as an arm has it: converted or not, padded circularly or not."""
    model = FAMILIES[family]()
    if ARMS[arm].circular:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "circular"
    if weights is not None:
        model.load_state_dict(weights)
    if ARMS[arm].recipe is not None:
        model = blurify.convert(model, ARMS[arm].recipe, example_inputs=example_inputs(settings))
    return model.to(memory_format=torch.channels_last)  # quicker on a CPU


def geometry(settings: Mapping[str, Any]) -> metrics.Preprocessing:
    """How a canvas becomes an input."""
    data = settings["data"]
    return metrics.Preprocessing(
        crop=(data["crop"],) * 2, canvas=(data["canvas"],) * 2, channels=1, mean=(0.0,), std=(1.0,)
    )


def measure(model: nn.Module, pictures: metrics.TensorPictures, settings: Mapping[str, Any]) -> dict[str, float]:
    """All figures of one network, as shares."""
    how = settings["measuring"]
    subject = metrics.Subject(model, geometry(settings))
    crops = [consistency(subject, pictures, seed=seed) for seed in range(how["crop_seeds"])]
    some = metrics.TensorPictures(pictures.canvases[:: how["every"]], pictures.labels[:: how["every"]], pictures.name)
    steady = stability(subject, some, frames=how["frames"], severities=how["severities"])
    worst = worst_case(subject, some, rotations=how["rotations"])
    with circular_padding(model):
        rolls = [consistency(subject, pictures, seed=seed, circular=True) for seed in range(how["crop_seeds"])]
    mean = statistics.fmean
    figures = {
        "accuracy": crops[0].accuracy.value,
        "consistency": mean(found.agreement.value for found in crops),
        "pixel_flips": mean(found.pixel_flips.value for found in crops),
        "pixel_change": mean(found.pixel_change.value for found in crops),
        "flip_rate": mean(found.rate.value for found in steady.flip_rates),
        "corruption_accuracy": mean(one.value for found in steady.corruptions for one in found.accuracy),
        "worst_accuracy": worst.worst.value,
        "worst_steady": worst.steady.value,
        "circular_consistency": mean(found.agreement.value for found in rolls),
        "circular_change": mean(found.pixel_change.value for found in rolls),
        **{f"flip_rate {found.perturbation}": found.rate.value for found in steady.flip_rates},
        **{f"accuracy {found.corruption}": mean(one.value for one in found.accuracy) for found in steady.corruptions},
    }
    return {name: round(value, 6) for name, value in figures.items()}


def by_picture(model: nn.Module, pictures: metrics.TensorPictures, settings: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy and consistency picture by picture: a digit each, of 1 and of the pairs of crops."""
    subject = metrics.Subject(model, geometry(settings))
    crops = [consistency(subject, pictures, seed=seed) for seed in range(settings["measuring"]["crop_seeds"])]
    parts = {"accuracy": [crops[0].accuracy.values], "consistency": [found.agreement.values for found in crops]}
    return {
        name: "".join(str(round(sum(values))) for values in zip(*several, strict=True))
        for name, several in parts.items()
    }


def hashed(*parts: Any) -> str:
    """A name for all that something depends on: JSON data, and files by their bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def keys(settings: Mapping[str, Any]) -> tuple[str, str]:
    """(of the trained weights, of what is measured on them)."""
    files = [ROOT / "training" / name for name in ("digits.py", "families.py")]
    trained = hashed({name: settings[name] for name in ("data", "training", "finetuning")}, version("torch"), *files)
    names = ("circular", "consistency", "corruptions", "effects", "perturbations", "stability", "subject", "worst_case")
    package = Path(metrics.__file__).parent
    return trained, hashed(trained, settings["measuring"], *(package / f"{name}.py" for name in names))


def journal(work: Path, key: str) -> list[Run]:
    """What has been measured. Empty lines, and one that was cut off by the end of a run, do not count."""
    path = work / f"{key}.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def recorded(work: Path, key: str, settings: Mapping[str, Any]) -> dict[tuple[str, int, str], Run]:
    """What has been measured, by (family, seed, arm); but for what was adapted otherwise."""
    mine = hashed(settings["adapting"])
    return {_name(run): run for run in journal(work, key) if run.get("adapting", mine) == mine}


def _name(run: Run) -> tuple[str, int, str]:
    return run["family"], run["seed"], run["arm"]


def work_on(
    family: str, seed: int, arms: Sequence[str], settings: Mapping[str, Any], work: Path, names: tuple[str, str]
) -> list[Run]:
    """Train and measure the arms of one family and seed that are not in the journal yet; returns what it added.

    Args:
        names: the `keys`, taken once: a file that is edited during the run must not divide it.
    """
    torch.set_num_threads(1)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return _work_on(family, seed, arms, settings, work, names)
    finally:
        torch.use_deterministic_algorithms(before)


def _work_on(
    family: str, seed: int, arms: Sequence[str], settings: Mapping[str, Any], work: Path, names: tuple[str, str]
) -> list[Run]:
    trained, measured = names
    folder = work / trained
    folder.mkdir(parents=True, exist_ok=True)
    done = recorded(work, measured, settings)
    pictures = held_out(settings)
    added = []
    for arm in arms:
        if (family, seed, arm) in done:
            continue
        weights, training = weights_of(family, seed, arm, settings, folder)
        begin = time.process_time()
        found: dict[str, Any]
        if arm == "adapted":
            start, _ = weights_of(family, seed, "aliased", settings, folder)
            both = {
                "original": network(family, "aliased", settings, start),
                arm: network(family, arm, settings, weights),
            }
            found = {name: by_picture(model.eval(), pictures, settings) for name, model in both.items()}
            found["adapting"] = hashed(settings["adapting"])
        else:
            found = {"figures": measure(network(family, arm, settings, weights).eval(), pictures, settings)}
        # Of the processor: others may keep it busy.
        seconds = {"train": training, "measure": round(time.process_time() - begin, 1)}
        run = {"family": family, "seed": seed, "arm": arm, **found, "seconds": seconds}
        with open(work / f"{measured}.jsonl", "a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(run)}\n")  # the line before may have been cut off
        added.append(run)
    return added


def weights_of(
    family: str, seed: int, arm: str, settings: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Tensor], float]:
    """The trained weights of one network, kept ones or trained now and kept; and the seconds that training took."""
    how = f"-{hashed(settings['adapting'])}" if arm == "adapted" else ""
    path = folder / f"{family}-{seed}-{arm}{how}.safetensors"
    if not path.is_file():
        before = ARMS[arm].after
        start = weights_of(family, seed, before, settings, folder)[0] if before else None
        begin = time.process_time()
        trained = (
            adapt(family, seed, settings, start) if arm == "adapted" else train(family, seed, arm, settings, start)
        )
        state = trained.state_dict()
        seconds = str(round(time.process_time() - begin, 1))
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(
            save({name: tensor.contiguous() for name, tensor in state.items()}, {"seconds": seconds})
        )
        unfinished.replace(path)
    with safe_open(path, "pt") as file:
        return load_file(path), float(file.metadata()["seconds"])


def run_all(
    settings: Mapping[str, Any],
    work: Path,
    *,
    families: Sequence[str] = tuple(FAMILIES),
    seeds: Sequence[int] = SEEDS,
    arms: Sequence[str] = tuple(ARMS),
    jobs: int = 1,
) -> list[Run]:
    """Every family, seed and arm, in that order; what an earlier run did is not done again.

    Of the reported seeds only `ADAPTED_SEEDS` are adapted, and only `ALTERNATIVE_SEEDS` are trained with alternatives.
    """
    todo = [(family, seed, arms_of(seed, arms)) for seed in seeds for family in families]
    names = keys(settings)
    for count, added in enumerate(finished(todo, jobs, settings, work, names), 1):
        for run in added:
            seconds = run["seconds"]
            print(
                f"[{count}/{len(todo)}] {run['family']} seed {run['seed']} {run['arm']}: {_words(run, settings)} "
                f"(train {seconds['train']:.0f} s, measure {seconds['measure']:.0f} s)",
                flush=True,
            )
    found = recorded(work, names[1], settings)
    return [found[family, seed, arm] for family in families for seed in seeds for arm in arms_of(seed, arms)]


def _words(run: Run, settings: Mapping[str, Any]) -> str:
    if run["arm"] != "adapted":
        return f"accuracy {run['figures']['accuracy']:.3f}, consistency {run['figures']['consistency']:.3f}"
    pairs = settings["measuring"]["crop_seeds"]
    found = []
    for figure in ("accuracy", "consistency"):
        old, new = (
            statistics.fmean(evidence_page.shares(run, name, figure, pairs)) for name in ("original", "adapted")
        )
        found.append(f"{figure} {old:.3f} -> {new:.3f}")
    return ", ".join(found)


def arms_of(seed: int, arms: Sequence[str]) -> list[str]:
    """Those of a seed."""
    fewer = {"adapted": ADAPTED_SEEDS, **dict.fromkeys(ALTERNATIVES, ALTERNATIVE_SEEDS)}
    return [arm for arm in arms if seed not in SEEDS or seed in fewer.get(arm, SEEDS)]


def finished(todo: Sequence[tuple[str, int, list[str]]], jobs: int, *common: Any) -> Iterator[list[Run]]:
    """What `work_on(family, seed, arms, *common)` gives for each of `todo`, as they end."""
    if jobs == 1:
        for one in todo:
            yield work_on(*one, *common)
        return
    # A forked child of a process with torch's threads may hang.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(work_on, *one, *common) for one in todo]):
            yield future.result()


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    return {
        "blurify": blurify.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def record(settings: Mapping[str, Any], runs: Sequence[Run], command: str) -> dict[str, Any]:
    """What is written down."""
    mine = [run for run in runs if run["arm"] != "adapted" and run["arm"] not in ALTERNATIVES]
    families = list(dict.fromkeys(run["family"] for run in runs))
    training, _ = training_data(settings)
    parts = {}
    if any(run["arm"] == "adapted" for run in runs):
        parts["adapting"] = adapted_part(settings, runs, command)
    if any(run["arm"] in ALTERNATIVES for run in runs):
        parts["alternatives"] = alternatives_part(runs, command)
    return {
        "command": command,
        "versions": versions(),
        "settings": {part: values for part, values in settings.items() if part != "adapting"},
        "training_samples": len(training),
        "held_out_samples": len(held_out(settings)),
        "networks": networks(settings, families),
        "seeds": sorted({run["seed"] for run in runs}),
        "seconds": seconds_of(mine),
        "runs": mine,
        **parts,
    }


def seconds_of(runs: Sequence[Run]) -> dict[str, int]:
    return {what: round(sum(run["seconds"][what] for run in runs)) for what in ("train", "measure")}


def alternatives_part(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """What is written down of the alternatives to the default, with the networks that they are compared with.

    It stands by itself, as what is adapted does: an arm is only compared with those of the same run.
    """
    seeds = {run["seed"] for run in runs if run["arm"] in ALTERNATIVES}
    mine = [run for run in runs if run["seed"] in seeds and run["arm"] in (*BASE, *ALTERNATIVES)]
    return {
        "command": command,
        "versions": versions(),
        "recipes": {arm: load_recipe(ARMS[arm].recipe).to_dict() for arm in (BASE[1], *ALTERNATIVES)},
        "seeds": sorted(seeds),
        "seconds": seconds_of(mine),
        "runs": mine,
    }


def adapted_part(settings: Mapping[str, Any], runs: Sequence[Run], command: str) -> dict[str, Any]:
    """What is written down of adapting, each adapted network with its original.

    It stands by itself: another processor trains other networks, so that these are not to be paired with others.
    """
    mine = [run for run in runs if run["arm"] == "adapted"]
    training = settings["training"]
    steps = training["epochs"] * (len(training_data(settings)[0]) // training["batch_size"])
    return {
        "command": command,
        "versions": versions(),
        "settings": dict(settings["adapting"]),
        "steps": {"original": steps, "adapted": steps_to_adapt(settings)},
        "seeds": sorted({run["seed"] for run in mine}),
        "runs": mine,
    }


PARTS = ("adapting", "alternatives")  # of the data, each with runs of its own


def text_of(data: Mapping[str, Any]) -> str:
    """JSON with a line for each network measured."""
    head = json.dumps({key: value for key, value in data.items() if key not in ("runs", *PARTS)}, indent=1)
    lines = ",\n".join(f"  {json.dumps(run)}" for run in data["runs"])
    text = f'{head[:-2]},\n "runs": [\n{lines}\n ]'
    for name in PARTS:
        if name in data:
            text += f',\n "{name}": {text_of(data[name]).rstrip()}'
    return f"{text}\n}}\n"


def pilot(settings: Mapping[str, Any], work: Path, jobs: int) -> None:
    """The aliased networks alone, with seeds of their own, under each of the settings that were tried."""
    for change in PILOT:
        changed = copy.deepcopy(dict(settings))
        for part, values in change.items():
            changed[part].update(values)
        runs = run_all(changed, work, seeds=PILOT_SEEDS, arms=("aliased",), jobs=jobs)
        print(f"{change or 'as in SETTINGS'}:")
        for family in FAMILIES:
            mine = [run for run in runs if run["family"] == family]
            shown = {
                name: "  ".join(f"{100 * run['figures'][name]:.1f}" for run in mine)
                for name in ("accuracy", "consistency")
            }
            seconds = statistics.fmean(run["seconds"]["train"] for run in mine)
            print(f"  {family}: accuracy {shown['accuracy']}, consistency {shown['consistency']}, {seconds:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes, of one thread each (default 2)")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs trained and measured")
    parser.add_argument("--page", action="store_true", help="only write the page, from the data")
    parser.add_argument("--check", action="store_true", help="only compare the page with the data")
    parser.add_argument("--pilot", action="store_true", help="show how the settings were found; writes no result")
    parser.add_argument("--adapted", action="store_true", help="only what is adapted, beside the data that are there")
    parser.add_argument(
        "--alternatives", action="store_true", help="only the alternatives to the default, beside what is there"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where unfinished work is (default .cache/evidence)")
    parser.add_argument("--data", type=Path, default=DATA, help="the JSON (default benchmarks/evidence.json)")
    parser.add_argument("--doc", type=Path, default=evidence_page.PAGE, help="the page (default docs/evidence.md)")
    options = parser.parse_args(arguments)
    if options.check or options.page:
        return evidence_page.write(options.data, options.doc, check=options.check)
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.pilot:
        pilot(SETTINGS, options.work, options.jobs)
        return 0
    begin = time.perf_counter()
    command = "python benchmarks/evidence.py"
    if options.adapted:
        runs = run_all(SETTINGS, options.work, seeds=ADAPTED_SEEDS, arms=("adapted",), jobs=options.jobs)
        data = json.loads(options.data.read_text(encoding="utf-8"))
        data["adapting"] = adapted_part(SETTINGS, runs, f"{command} --adapted")
    elif options.alternatives:
        arms = (*BASE, *ALTERNATIVES)
        runs = run_all(SETTINGS, options.work, seeds=ALTERNATIVE_SEEDS, arms=arms, jobs=options.jobs)
        data = json.loads(options.data.read_text(encoding="utf-8"))
        data["alternatives"] = alternatives_part(runs, f"{command} --alternatives")
    else:
        runs = run_all(SETTINGS, options.work, jobs=options.jobs)
        data = record(SETTINGS, runs, command)
    options.data.write_text(text_of(data), encoding="utf-8")
    evidence_page.write(options.data, options.doc)
    print(f"{time.perf_counter() - begin:.0f} s; wrote {options.data} and {options.doc}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
