"""`make evidence`: the statistics, what is trained on what, resuming, and that the page says what the data say."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import blurify
from blurify import metrics

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import evidence, evidence_page
from blurify.nn.aps import ApsPool
from blurify.nn.blurpool import BlurPool
from blurify.nn.fourier import FourierPool2d
from blurify.spec.recipes import load_recipe
from training import digits, families

# Two-sided 95% points of Student's t, from a printed table, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("freedom", T_TABLE)
def test_intervals_are_students(freedom: int) -> None:
    values = [math.sin(7.3 * k) for k in range(freedom + 1)]
    mean = sum(values) / len(values)
    half = T_TABLE[freedom] * statistics.stdev(values) / len(values) ** 0.5
    found = evidence_page.interval(values)
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=5e-4 * half)


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    """Of 4,000 intervals from 5 normal values each, 95% hold the true mean (with 1.96 for t, it would be 88%)."""
    draws = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    held = [found.low <= 0 <= found.high for found in map(evidence_page.interval, draws)]
    assert 0.935 < sum(held) / len(held) < 0.965


SITES = {
    "VGG": {("maxpool", (2, 2)): 3},
    "ResNet": {("maxpool", (2, 2)): 1, ("conv", (2, 2)): 4},  # two 3x3, two shortcuts
    "DenseNet": {("maxpool", (2, 2)): 1, ("avgpool", (2, 2)): 2},
    "MobileNetV2": {("conv", (2, 2)): 3},
}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_families_subsample_as_theirs_do(family: str) -> None:
    model = families.FAMILIES[family]()
    x = torch.zeros(1, 1, 32, 32)
    report = blurify.inspect(model, (x,))
    assert Counter((site.kind, tuple(site.stride)) for site in report.sites) == SITES[family]
    assert all(site.action == "blur" for site in report.sites), "a site in a stem would be left alone"
    assert 10_000 < sum(parameter.numel() for parameter in model.parameters()) < 60_000
    assert model.features(x).shape[2:] == (4, 4) and model(x).shape == (1, 10)
    strided = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d) and module.stride != (1, 1)]
    if family == "MobileNetV2":
        assert all(conv.groups == conv.in_channels == conv.out_channels > 1 for conv in strided), "depthwise"
    if family == "ResNet":
        assert sorted((conv.kernel_size, conv.groups) for conv in strided) == [((1, 1), 1)] * 2 + [((3, 3), 1)] * 2


def test_no_sample_is_in_both_parts() -> None:
    images, labels = digits.load()
    data = evidence.SETTINGS["data"]
    training, held = digits.split(labels, data["held_out_per_digit"], data["split_seed"])
    assert not set(training.tolist()) & set(held.tolist())
    assert sorted([*training.tolist(), *held.tolist()]) == list(range(1797))
    assert labels[held].bincount().tolist() == [data["held_out_per_digit"]] * 10
    pictures = {tuple(image.flatten().tolist()) for image in images[training]}
    assert not any(tuple(image.flatten().tolist()) in pictures for image in images[held])
    # What is trained and measured on is those parts.
    trained_on, known = evidence.training_data(evidence.SETTINGS)
    assert torch.equal(trained_on, images[training]) and torch.equal(known, labels[training])
    assert torch.equal(evidence.held_out(evidence.SETTINGS).labels, labels[held])


def test_every_crop_shows_the_held_out_digit() -> None:
    """All of it but the rim, where the interpolation fades to black: less than 5% of its light."""
    settings = copy.deepcopy(evidence.SETTINGS)
    settings["data"].update(noise=0.0, contrast=[1.0, 1.0])
    canvases = evidence.held_out(settings).canvases[:, 0]
    everything = canvases.sum((1, 2))
    assert bool((everything > 10).all())
    for y in (0, 12):
        for x in (0, 12):
            assert bool((canvases[:, y : y + 32, x : x + 32].sum((1, 2)) > 0.95 * everything).all())


def test_held_out_pictures_are_the_same_every_time_and_training_ones_are_not() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (evidence.held_out(evidence.SETTINGS).canvases for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.random.get_rng_state(), before)
    images = digits.load()[0][:2]
    one, other = (evidence.training_pictures(images, evidence.SETTINGS) for _ in range(2))
    assert one.shape == (2, 1, 32, 32) and one.min() >= 0 and one.max() <= 1 and not torch.equal(one, other)


def test_all_arms_start_alike_and_see_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared differs by the conversion alone: same weights to begin with, same pictures, same settings."""
    seen: dict[str, Any] = {}

    def spy(make: Callable[[], Any], seed: int, images: Any, labels: Any, *, picture: Any, **options: Any) -> Any:
        torch.manual_seed(seed)
        model = make()
        order = torch.randperm(len(labels))
        seen[arm] = (model, picture(images[order[:8]]), options)
        return model

    monkeypatch.setattr(digits, "train", spy)
    start = families.FAMILIES["ResNet"]().state_dict()
    for arm, description in evidence.ARMS.items():
        if arm == "adapted":  # not by this function
            continue
        evidence.train("ResNet", 3, arm, evidence.SETTINGS, start if description.after else None)
    scratch = [(arm, "aliased") for arm in ("antialiased", *evidence.ALTERNATIVES)]
    for arm, other in (*scratch, ("finetuned", "control")):
        (new, pictures, options), (old, same_pictures, same_options) = seen[arm], seen[other]
        assert torch.equal(pictures, same_pictures) and options == same_options
        mine, theirs = new.state_dict(), old.state_dict()
        assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert blurify.plan_of(new).count("action")["blur"] == 5 and blurify.plan_of(old) is None
    assert all(torch.equal(start[name], tensor) for name, tensor in seen["finetuned"][0].state_dict().items())
    assert seen["aliased"][2]["epochs"] == evidence.SETTINGS["training"]["epochs"]
    assert seen["control"][2]["epochs"] == evidence.SETTINGS["finetuning"]["epochs"]


# What stands behind a stride of 2 in each: (filter, padding of the filter, phase, padding of the convolutions).
RECIPES = {
    "antialiased": ((1, 3, 3, 1), "reflect", None, "zeros"),
    "taps3": ((1, 2, 1), "reflect", None, "zeros"),
    "flat": ((-1, 0, 9, 16, 9, 0, -1), "reflect", None, "zeros"),
    "flc": (None, "reflect", None, "zeros"),
    "circular": ((1, 2, 1), "circular", None, "circular"),
    "aps": ((1, 2, 1), "circular", "aps", "circular"),
}


@pytest.mark.parametrize("arm", RECIPES)
def test_alternatives_are_what_they_are_called(arm: str) -> None:
    taps, padding, phase, convolutions = RECIPES[arm]
    model = evidence.network("MobileNetV2", arm, evidence.SETTINGS, None)
    assert {layer.padding_mode for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)} == {convolutions}
    blurs = [layer for layer in model.modules() if isinstance(layer, BlurPool) and max(layer.stride) > 1]
    assert len(blurs) == 3
    for blur in blurs:
        assert (phase == "aps") == isinstance(blur, ApsPool)
        lowpass = blur.lowpass if isinstance(blur, ApsPool) else blur
        assert lowpass.padding == padding
        # A filter's answer to an impulse far from all borders, along one dimension, read at every sample.
        lowpass = copy.deepcopy(lowpass)
        assert isinstance(lowpass, FourierPool2d) == (taps is None)
        if taps is not None:
            lowpass.stride = (1, 1)
            answer = lowpass(torch.eye(31)[15].expand(1, 1, 31, 31).contiguous())[0, 0, 15]
            wanted = torch.tensor(taps) / sum(taps)
            assert torch.allclose(answer[answer.abs() > 1e-7], wanted[wanted != 0], atol=1e-6)


def test_the_control_of_adaptive_sampling_differs_from_it_in_the_phase_alone() -> None:
    aps, control = (load_recipe(evidence.ARMS[arm].recipe) for arm in ("aps", "circular"))
    assert aps.sampling == "aps" and control.sampling is None
    alike = {"sampling": None, "norm": None, "name": "", "description": ""}
    assert dataclasses.replace(aps, **alike) == dataclasses.replace(control, **alike)


def few_digits(patch: pytest.MonkeyPatch) -> None:
    """Only the first 300 samples, for time."""
    images, labels = digits.load()
    patch.setattr(digits, "load", lambda: (images[:300], labels[:300]))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_digits(monkeypatch)


# Of the alternatives only one, for time: the one that is most unlike the default.
SMALL_ARMS = (*evidence_page.ARMS, "adapted", "aps")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, list[dict[str, Any]]]:
    """(settings, folder, runs) of a run with one family, two seeds, 200 samples to train on, one epoch."""
    settings = copy.deepcopy(evidence.SETTINGS)
    settings["training"]["epochs"] = settings["finetuning"]["epochs"] = 1
    settings["data"]["held_out_per_digit"] = 10
    settings["adapting"].update(pictures=150, calibrate=32, views=2)
    settings["measuring"].update(every=10, crop_seeds=1, frames=2, rotations=[0])
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        few_digits(patch)
        return settings, work, evidence.run_all(settings, work, families=("ResNet",), seeds=(0, 1), arms=SMALL_ARMS)


@pytest.mark.usefixtures("few")
def test_a_small_run_writes_data_and_page(small: Any, tmp_path: Path) -> None:
    settings, _, runs = small
    assert [(run["seed"], run["arm"]) for run in runs] == [(seed, arm) for seed in (0, 1) for arm in SMALL_ARMS]
    data, doc = tmp_path / "evidence.json", tmp_path / "docs" / "evidence.md"
    data.write_text(evidence.text_of(evidence.record(settings, runs, "a command")))
    record = json.loads(data.read_text())
    assert record["runs"] == [run for run in runs if run["arm"] in evidence_page.ARMS]
    assert record["adapting"]["runs"] == [run for run in runs if run["arm"] == "adapted"]
    assert record["adapting"]["steps"] == {"original": 3, "adapted": 1}  # one at least
    compared = (*evidence.BASE, "aps")
    assert record["alternatives"]["runs"] == [run for run in runs if run["arm"] in compared]
    assert all(record[part]["seeds"] == [0, 1] for part in ("adapting", "alternatives"))
    assert record["seeds"] == [0, 1] and record["held_out_samples"] == 100
    assert record["training_samples"] == 200 and record["networks"]["ResNet"]["parameters"] == 19810
    assert all(0 <= value <= 1 for run in record["runs"] for value in run["figures"].values())

    arguments = ["--data", str(data), "--doc", str(doc)]
    assert evidence.main(["--check", *arguments]) == 1
    assert evidence.main(["--page", *arguments]) == 0
    assert evidence.main(["--check", *arguments]) == 0
    assert "| ResNet | from scratch |" in doc.read_text() and "| ResNet | APS | 2 |" in doc.read_text()
    assert "The 4 aliased and default ones are those of the tables above" in doc.read_text()
    record["runs"][0]["figures"]["consistency"] += 0.01
    data.write_text(evidence.text_of(record))
    assert evidence.main(["--check", *arguments]) == 1


@pytest.mark.parametrize("arm", ["aliased", "circular", "aps"])
def test_only_adaptive_sampling_is_measured_to_be_exact_under_circular_shifts(arm: str) -> None:
    """Untrained weights, with the statistics of the pictures in batch norm, so that answers differ."""
    settings = copy.deepcopy(evidence.SETTINGS)
    settings["measuring"].update(every=20, crop_seeds=1, frames=2, rotations=[0])
    pictures = evidence.held_out(settings)
    pictures = metrics.TensorPictures(pictures.canvases[::10], pictures.labels[::10], "some digits")
    torch.manual_seed(0)
    model = evidence.network("MobileNetV2", arm, settings, None).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(pictures.canvases[:, :, 6:38, 6:38])
    found = evidence.measure(model.eval(), pictures, settings)
    if arm == "aps":
        assert found["circular_consistency"] == 1 and found["circular_change"] <= 1e-6
        assert found["pixel_change"] > 1e-3, "new content comes in: no exactness is to be seen here"
    else:
        assert found["circular_consistency"] < 1 and found["circular_change"] > 1e-3


@pytest.mark.usefixtures("few")
def test_only_the_alternatives_are_measured_and_the_data_keep_the_rest(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, work, runs = small
    monkeypatch.setattr(evidence, "SETTINGS", settings)
    monkeypatch.setattr(evidence, "ALTERNATIVE_SEEDS", (0, 1))
    asked: dict[str, Any] = {}

    def ran(settings: Any, work: Path, **options: Any) -> list[dict[str, Any]]:
        asked.update(options)
        return [run for run in runs if run["arm"] in options["arms"]]

    monkeypatch.setattr(evidence, "run_all", ran)
    data, doc = tmp_path / "evidence.json", tmp_path / "evidence.md"
    before = invented(small, {arm: [0.9, 0.95] for arm in evidence_page.ARMS})
    data.write_text(evidence.text_of(before))
    assert "evidence.py --alternatives` does it" in evidence_page.page(before)
    monkeypatch.setattr(evidence, "versions", lambda: {**before["versions"], "blurify": "9"})
    arguments = ["--alternatives", "--work", str(work), "--data", str(data), "--doc", str(doc)]
    assert evidence.main(arguments) == 0
    after = json.loads(data.read_text())
    part = after.pop("alternatives")
    assert after == before and part["versions"]["blurify"] == "9"
    assert {run["arm"] for run in part["runs"]} == {*evidence.BASE, "aps"}
    assert set(asked["arms"]) == {*evidence.BASE, *evidence.ALTERNATIVES}
    assert asked["seeds"] == (0, 1) and "Of its 4 aliased and default ones 0 have the figures" in doc.read_text()


@pytest.mark.usefixtures("few")
def test_a_run_goes_on_where_it_was(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, work, runs = small

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this had been done")

    monkeypatch.setattr(digits, "train", never)
    (lines,) = work.glob("*.jsonl")
    whole = lines.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "measure", never)
        assert evidence.run_all(settings, work, families=("ResNet",), seeds=(0, 1), arms=SMALL_ARMS) == runs
    # The machine went down in the middle of a line: that network is measured again, with the same result.
    lines.write_text(whole.rstrip()[:-20])
    again = evidence.run_all(settings, work, families=("ResNet",), seeds=(0, 1), arms=SMALL_ARMS)
    assert [run.get("figures", run.get("adapted")) for run in again] == [
        run.get("figures", run.get("adapted")) for run in runs
    ]
    # Measured otherwise: nothing is trained again either.
    other = copy.deepcopy(settings)
    other["measuring"]["crop_seeds"] = 2
    evidence.run_all(other, work, families=("ResNet",), seeds=(0,), arms=("aliased",))
    # Trained otherwise: it is.
    other["training"]["learning_rate"] = 0.5
    with pytest.raises(AssertionError, match="this had been done"):
        evidence.run_all(other, work, families=("ResNet",), seeds=(0,), arms=("aliased",))


def invented(small: Any, consistency: dict[str, list[float]]) -> dict[str, Any]:
    """The data of the small run, with other figures of consistency by arm."""
    settings, _, runs = small
    runs = [copy.deepcopy(run) for run in runs if run["arm"] in consistency]
    for run in runs:
        run["figures"]["consistency"] = consistency[run["arm"]][run["seed"]]
    return json.loads(evidence.text_of(evidence.record(settings, runs, "a command")))


def test_the_page_says_where_the_claim_does_not_hold(small: Any) -> None:
    aliased = {"aliased": [0.9, 0.901], "control": [0.9, 0.901]}
    apart = evidence_page.page(invented(small, {**aliased, "antialiased": [0.95, 0.951], "finetuned": [0.97, 0.97]}))
    assert "In 2 of 2 comparisons" in apart and "**no**" not in apart and "- ResNet," not in apart
    # Half-widths of two values that differ by 0.001: 12.706 * 0.000707 / sqrt(2) = 0.00635.
    assert "| ResNet | from scratch | 90.05 ± 0.64 | 95.05 ± 0.64 | **+5.00 ± 0.00** | yes |" in apart

    mixed = evidence_page.page(invented(small, {**aliased, "antialiased": [0.902, 0.903], "finetuned": [0.8, 0.801]}))
    assert "In 0 of 2 comparisons" in mixed
    assert "| ResNet | from scratch | 90.05 ± 0.64 | 90.25 ± 0.64 | **+0.20 ± 0.00** | **no** |" in mixed
    assert "- ResNet, from scratch: the intervals overlap, though it is higher by the paired difference." in mixed
    assert "- ResNet, fine-tuned: it lies **below**, and the intervals do not overlap." in mixed

    neither = evidence_page.page(invented(small, {**aliased, "antialiased": [0.9, 0.91], "finetuned": [0.899, 0.9]}))
    assert "- ResNet, from scratch: no difference can be told" in neither
    assert "- ResNet, fine-tuned: it is **lower** by the paired difference." in neither


@pytest.mark.usefixtures("few")
def test_what_is_adapted_is_taught_without_labels(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _, _ = small
    given: dict[str, Any] = {}

    def spy(original: Any, converted: Any, data: Any, **options: Any) -> Any:
        given.update(original=original, converted=converted, data=data, **options)
        return converted

    monkeypatch.setattr(blurify, "adapt", spy)
    monkeypatch.setattr(evidence, "training_data", lambda settings: (digits.load()[0][:200], torch.full((200,), -7)))
    start = families.FAMILIES["ResNet"]().state_dict()
    evidence.adapt("ResNet", 3, settings, start)
    pictures = given["data"]
    assert pictures.labels is None and given["labels"] is False
    assert pictures.canvases.shape == (150, 1, 44, 44) and given["crops"] == 150
    assert torch.equal(pictures.canvases, evidence.unlabelled(3, settings).canvases)
    assert not torch.equal(pictures.canvases, evidence.unlabelled(4, settings).canvases)
    assert blurify.plan_of(given["original"]) is None and blurify.plan_of(given["converted"]) is not None
    for model in (given["original"], given["converted"]):
        assert all(torch.equal(start[name], tensor) for name, tensor in model.state_dict().items())


def test_adapting_takes_a_quarter_of_the_steps() -> None:
    settings = evidence.SETTINGS
    steps = settings["training"]["epochs"] * (1397 // settings["training"]["batch_size"])
    assert evidence.steps_to_adapt(settings) * 4 <= steps and evidence.steps_to_adapt(settings) == 63


def test_adapted_otherwise_is_not_adapted_yet(small: Any) -> None:
    settings, work, runs = small
    found = {path: evidence.recorded(work, path.stem, settings) for path in work.glob("*.jsonl")}
    lines = max(found, key=lambda path: len(found[path]))  # other tests measure with other settings
    assert sorted(found[lines]) == sorted(map(evidence._name, runs))
    other = copy.deepcopy(settings)
    other["adapting"]["learning_rate"] = 0.1
    assert {arm for _, _, arm in evidence.recorded(work, lines.stem, other)} == set(SMALL_ARMS) - {"adapted"}


@pytest.mark.parametrize("arm", ["adapted", *evidence.ALTERNATIVES])
def test_only_five_of_the_reported_seeds_have_every_arm(arm: str) -> None:
    seeds = [seed for seed in (*evidence.SEEDS, *evidence.PILOT_SEEDS) if evidence.arms_of(seed, [arm])]
    assert seeds == [0, 1, 2, 3, 4, *evidence.PILOT_SEEDS]
    assert all(evidence.arms_of(seed, evidence.BASE) == list(evidence.BASE) for seed in evidence.SEEDS)


def figures(**given: float) -> dict[str, float]:
    return {**dict.fromkeys((*evidence_page.FIGURES, *evidence_page.CIRCULAR), 0.5), **given}


def test_alternatives_are_paired_with_both_over_the_seeds_that_they_have() -> None:
    """Half-widths of two values: 12.706 * |difference| / 2."""
    consistency = {"aliased": [0.80, 0.90, 0.10], "antialiased": [0.90, 0.99, 0.20], "aps": [0.91, 1.00]}
    accuracy = {"aliased": [0.80, 0.90, 0.10], "antialiased": [0.90, 0.99, 0.20], "aps": [0.70, 0.80]}
    rolled = {"aliased": [0.5, 0.5, 0.5], "antialiased": [0.6, 0.7, 0.6], "aps": [1.0, 1.0]}
    runs = [
        {
            "family": "VGG", "seed": seed, "arm": arm,
            "figures": figures(
                consistency=value, accuracy=accuracy[arm][seed], circular_consistency=rolled[arm][seed],
                flip_rate=0.6 if arm == "aps" else 0.5, worst_steady=0.6 if arm == "aps" else 0.5,
            ),
        }
        for arm, values in consistency.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    part = {
        "runs": runs, "command": "a command", "versions": {"blurify": "3", "torch": "2"},
        "seconds": {"train": 1, "measure": 2},
    }  # fmt: skip
    data = {
        "networks": {"VGG": {}, "ResNet": {}}, "alternatives": part, "runs": runs[:1],
        "settings": {"measuring": {"crop_seeds": 5}},
    }  # fmt: skip
    others = evidence_page.Results(data["networks"], runs)
    assert others.seeds("VGG", "antialiased") == [0, 1, 2] and evidence_page.alternatives(others, "VGG") == ["aps"]
    text = evidence_page._alternatives(data, others)
    # Differences: 0.11 and 0.10 from the aliased, 0.01 twice from the default; accuracy -0.1 twice, -0.2 and -0.19.
    assert (
        "| VGG | APS | 2 | 95.50 ± 57.18 | **+10.50 ± 6.35** | **+1.00 ± 0.00** "
        "| 75.00 ± 63.53 | **-10.00 ± 0.00** | **-19.50 ± 6.35** |"
    ) in text
    assert "| VGG | *default, 4 taps* | 3 | " in text and "| VGG | 3 taps |" not in text and "| ResNet |" not in text
    assert "| VGG | APS | 2 | 100.00 ± 0.00 | +35.00 ± 63.53 | 50.00 ± 0.00 | 0.00 ± 0.00 |" in text
    assert (
        "- **APS**: consistency higher than the default's in 1 of 1 (VGG +1.00 ± 0.00); accuracy lower than the "
        "default's in 1 of 1 (VGG -19.50 ± 6.35); consistency higher than the aliased network's in 1 of 1 (VGG +10.50 "
        "± 6.35); accuracy lower than the aliased network's in 1 of 1 (VGG -10.00 ± 0.00); better "
        "than the default: VGG's steady +10.00 ± 0.00; worse than the default: VGG's flip rate +10.00 ± 0.00."
    ) in text
    assert "Of its 6 aliased and default ones 1 have the figures of those above" in text
    assert "(blurify 3,\ntorch 2; 1 s of training" in text and "what differs" not in text  # no control was trained


def pairs(right: list[tuple[str, str]], agreeing: list[tuple[str, str]]) -> dict[str, Any]:
    """Data of adapted networks: of each seed, what (original, adapted) answered picture by picture."""
    runs = [
        {
            "family": "ResNet", "seed": seed, "arm": "adapted",
            "original": {"accuracy": one[0], "consistency": two[0]},
            "adapted": {"accuracy": one[1], "consistency": two[1]},
        }
        for seed, (one, two) in enumerate(zip(right, agreeing, strict=True))
    ]  # fmt: skip
    part = {
        "runs": runs, "seeds": list(range(len(runs))), "command": "a command", "versions": {"torch": "2"},
        "settings": {"pictures": 9}, "steps": {"original": 8, "adapted": 2},
    }  # fmt: skip
    return {
        "networks": {"ResNet": {}, "VGG": {}}, "adapting": part, "held_out_samples": 4,
        "settings": {"measuring": {"crop_seeds": 5}},
    }  # fmt: skip


def test_the_target_of_adapting_is_told_by_seeds_and_by_pictures() -> None:
    better = [("2222", "4444"), ("2322", "4544")]
    met = pairs([("1100", "1100"), ("1010", "1010")], better)
    (found,) = evidence_page.adapted_families(met).values()
    assert found["accuracy"].seeds.mean == 0 and found["consistency"].old.mean == pytest.approx((0.4 + 0.45) / 2)
    assert found["consistency"].seeds.mean == found["consistency"].pictures.mean == pytest.approx(0.4)
    text = evidence_page._adapted(met)
    assert "The target was met in 1 of 1 families.\nNot measured: VGG." in text and "| +40.00" not in text
    assert "| ResNet | accuracy | 50.00 ± 0.00 | 50.00 ± 0.00 | 0.00 ± 0.00 | 0.00 ± 0.00 | yes |" in text
    # Less accurate with every seed, or not more consistent on pictures in general: not met.
    lower = pairs([("1111", "0111"), ("1111", "1110")], better)
    assert "**not** by ResNet" in evidence_page._adapted(lower)
    one = pairs([("1100", "1100"), ("1010", "1010")], [("2222", "5222"), ("2222", "5222")])
    (found,) = evidence_page.adapted_families(one).values()
    assert found["consistency"].seeds.low > 0 > found["consistency"].pictures.low
    assert "**not** by ResNet" in evidence_page._adapted(one)
    assert evidence_page._adapted({"networks": {"VGG": {}}, "settings": met["settings"]}).startswith("Not measured yet")


def test_the_committed_page_is_what_the_committed_data_say() -> None:
    assert evidence_page.write(evidence.DATA, evidence_page.PAGE, check=True) == 0


def test_the_committed_data_leave_nothing_out() -> None:
    data = json.loads(evidence.DATA.read_text())
    settings = json.loads(json.dumps(evidence.SETTINGS))
    adapting = settings.pop("adapting")
    arms = list(evidence_page.ARMS)
    assert data["settings"] == settings and data["seeds"] == list(evidence.SEEDS)
    assert not set(evidence.SEEDS) & set(evidence.PILOT_SEEDS)
    wanted = {(family, seed, arm) for family in families.FAMILIES for seed in evidence.SEEDS for arm in arms}
    assert Counter((run["family"], run["seed"], run["arm"]) for run in data["runs"]) == Counter(wanted)
    assert data["networks"] == evidence.networks(evidence.SETTINGS, tuple(families.FAMILIES))
    part = data["alternatives"]
    arms = [*evidence.BASE, *evidence.ALTERNATIVES]
    wanted = {
        (family, seed, arm) for family in families.FAMILIES for seed in evidence.ALTERNATIVE_SEEDS for arm in arms
    }
    assert Counter(map(evidence._name, part["runs"])) == Counter(wanted)
    assert part["seeds"] == list(evidence.ALTERNATIVE_SEEDS)
    assert part["recipes"] == {arm: load_recipe(evidence.ARMS[arm].recipe).to_dict() for arm in arms[1:]}
    if data["adapting"]:  # measured by itself: evidence.py --adapted
        part = data["adapting"]
        assert part["settings"] == adapting and part["seeds"] == list(evidence.ADAPTED_SEEDS)
        assert part["steps"]["adapted"] * 4 <= part["steps"]["original"]
        wanted = {(family, seed, "adapted") for family in families.FAMILIES for seed in evidence.ADAPTED_SEEDS}
        assert Counter(map(evidence._name, part["runs"])) == Counter(wanted)


def test_the_committed_page_has_the_means_of_the_committed_data() -> None:
    """Worked out here again, by hand."""
    data, text = json.loads(evidence.DATA.read_text()), evidence_page.PAGE.read_text()
    assert len(data["seeds"]) == 10
    for family in families.FAMILIES:
        for new, old, how in (("antialiased", "aliased", "from scratch"), ("finetuned", "control", "fine-tuned")):
            cells = []
            for arm in (old, new):
                values = [
                    100 * run["figures"]["consistency"]
                    for run in data["runs"]
                    if run["family"] == family and run["arm"] == arm
                ]
                half = 2.262157 * statistics.stdev(values) / 10**0.5  # t(9) at 97.5%
                cells.append((statistics.mean(values), half))
            row = next(line for line in text.splitlines() if line.startswith(f"| {family} | {how} |"))
            shown = [tuple(map(float, cell.split("±"))) for cell in row.split("|")[3:5]]
            assert shown == [pytest.approx(cell, abs=0.0051) for cell in cells]
            above = cells[1][0] - cells[1][1] > cells[0][0] + cells[0][1]
            assert row.rstrip().endswith("| yes |" if above else "| **no** |")


def test_the_committed_page_has_the_differences_of_the_committed_alternatives() -> None:
    """Worked out here again, by hand."""
    data, text = json.loads(evidence.DATA.read_text())["alternatives"], evidence_page.PAGE.read_text()
    section = text.partition("## Alternatives to the default")[2].partition("\n## ")[0]
    found = {evidence._name(run): 100 * run["figures"]["consistency"] for run in data["runs"]}
    seeds = data["seeds"]
    points = {2: 12.7062, 3: 4.30265, 4: 3.18245, 5: 2.77645}[len(seeds)]  # t(n - 1) at 97.5%
    for family in families.FAMILIES:
        for arm, label in evidence_page.ALTERNATIVES.items():
            row = next(line for line in section.splitlines() if line.startswith(f"| {family} | {label} |"))
            cells = [cell.strip(" *") for cell in row.split("|")[3:]]
            assert cells[0] == str(len(seeds))
            for cell, other in zip(cells[2:4], evidence.BASE, strict=True):
                values = [found[family, seed, arm] - found[family, seed, other] for seed in seeds]
                half = points * statistics.stdev(values) / len(seeds) ** 0.5
                shown = tuple(map(float, cell.split("±")))
                assert shown == pytest.approx((statistics.mean(values), half), abs=0.0051)
