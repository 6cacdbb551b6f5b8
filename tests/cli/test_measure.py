"""`measure` and `blurify measure`: tables, JSON and files, side by side, and what can't be measured."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
import torch
from PIL import Image
from torch import Tensor, nn

import blurify
from blurify import cli, metrics
from blurify.cli import console, measurements
from blurify.cli.devices import find_device
from blurify.cli.measuring import parse_numbers, parse_size
from blurify.errors import BlurifyError
from blurify.files import opening, sources
from blurify.metrics import files, measuring, results
from blurify.metrics.agreement import agreement
from blurify.metrics.normalised import normalised
from blurify.metrics.results import Consistency, Estimate, Measurement

TRAINED, TUNED = "python:blurify.demo:trained_network", "python:blurify.demo:finetuned_network"
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class Colour(nn.Module):
    """Which of red, green and blue a picture has most of; without a weight."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.mean((2, 3))


class Net(nn.Sequential):
    """Aliased, of three classes."""

    def __init__(self, classes: int = 3) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
        )  # fmt: skip


class Fussy(nn.Module):
    """Takes 32x32 pictures and no others, when it really runs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (32, 32) and not x.is_meta:
            raise AssertionError("I want 32x32")
        return x.mean((2, 3))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


class Features(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3), keepdim=True)


def tuned() -> nn.Module:
    """Converted, and other weights since."""
    net = Net()
    with torch.no_grad():
        net[-1].bias += 0.1
    return blurify.convert(net.eval(), example_inputs=torch.zeros(1, 3, 24, 28))


class Blind(nn.Module):
    """Always the last class."""

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x + torch.arange(float(x.shape[1]))


def dense(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 1)


class OneByOne(Colour):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 and not x.is_meta:
            raise AssertionError("only one")
        return super().forward(x)


class Pyramid(nn.Module):
    """Features of several layers, as a backbone gives them: no label map."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, x[:, :, ::2, ::2]]


MAKERS = {
    "one-by-one": OneByOne, "pyramid": Pyramid,
    "grey": lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "colour": Colour, "net": Net, "five": lambda: Net(5), "fussy": Fussy, "features": Features,
    "colour-net": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "broken": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Broken()),
    "tuned": lambda: tuned(), "net-broken": lambda: nn.Sequential(Net(), Broken()),
    "blind": lambda: nn.Sequential(Net(), Blind()), "dense-2": lambda: dense(1),
    "dense": lambda: dense(), "sound": lambda: nn.Conv1d(1, 4, 3),
}  # fmt: skip


@pytest.fixture(autouse=True)
def models_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL 'colour', 'net', ... instead of a real one: loading has its own tests."""
    real = opening.open_model

    def open_model(spec: str, **more: object) -> sources.LoadedModel:
        if spec in MAKERS:
            return sources.LoadedModel(MAKERS[spec]().eval(), sources.ModelSource(spec, "module"))
        return real(spec, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "open_model", open_model)
    monkeypatch.delenv(console.TRACEBACK, raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine pictures of one colour each, in folders; one red one lies in the wrong folder."""
    folder = tmp_path / "photos"
    for index, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            shown = COLOURS["red"] if (index, number) == (0, 1) else colour
            Image.new("RGB", (50 + 7 * number, 44), shown).save(folder / name / f"{number}.png")
    return folder


SMALL = ["--size", "24,28", "--batch-size", "4", "--device", "cpu"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `blurify measure` prints, which must end well and quietly."""
    assert cli.main(["measure", *map(str, arguments)]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert captured.err == "" and "\x1b" not in captured.out
    return captured.out


def measured(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[Measurement]:
    data = json.loads(run(capsys, *arguments, "--json"))
    return [Measurement.from_dict(entry) for entry in data["measurements"]]


def error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that must end with exit code 2."""
    code = cli.main(["measure", *map(str, arguments)])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert len(captured.err) < 400
    return captured.err


class TestCommand:
    def test_a_folder_with_known_labels(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Folders in sorted order are blue, green, red, the model's classes red, green, blue: numbers say it right."""
        options = (*SMALL, "--mean", "0", "--std", "1", "--metrics", "consistency")
        (found,) = measured(capsys, "colour", "--data", photos, *options)
        assert found.consistency is not None and found.consistency.accuracy is not None
        assert found.consistency.accuracy.value == 4 / 9  # the green ones, and by luck the one in the wrong folder
        for name, number in (("blue", 2), ("green", 1), ("red", 0)):
            (photos / name).rename(photos / str(number))
        (found,) = measured(capsys, "colour", "--data", photos, *options)
        assert found.consistency is not None and found.consistency.accuracy is not None
        assert found.consistency.accuracy.value == 8 / 9
        assert (found.consistency.agreement.value, found.consistency.pixel_flips.value) == (1, 0)
        assert found.images == 9 and found.settings["crop"] == [24, 28] and found.settings["canvas"] == [27, 32]
        assert "numbers" in found.settings["labels"]
        (found,) = measured(capsys, "colour", "--data", photos, *options, "--no-labels")
        assert found.consistency is not None and found.consistency.accuracy is None

    def test_the_table_in_a_pipe(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run(capsys, "colour", "--data", photos, *SMALL, "--images", 6, "--metrics", "consistency").splitlines()
        assert lines[0] == "class folders in sorted order"
        assert lines[1].startswith("6 pictures (") and "24x28 from 27x32, seed 0" in lines[1]
        assert lines[2] == "output (3) taken for classes: there are 3 classes of pictures"
        assert lines[3].split() == ["figure", "colour"]
        assert len(lines) == 4 + 5
        assert re.fullmatch(r"consistency: same answer in two random crops +100\.00% \(60\.97\.\.100\.00\)", lines[5])

    def test_side_by_side_with_its_own_conversion(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = run(capsys, TRAINED, "--convert", "--images", 24, "--device", "cpu")
        remark, _, taken, *rows = out.splitlines()
        assert taken.startswith("output (10) taken for classes: ")
        assert remark.startswith(f"{TRAINED} converted has exactly the weights of {TRAINED}")
        headings = [row.split() for row in rows if row.startswith(("agreement ", "figure "))]
        models = [TRAINED, TRAINED, "converted", "difference"]
        assert headings == [["agreement", "with", TRAINED], ["agreement", *models], ["figure", *models]]
        assert re.search(r"block2\.conv1 +conv +2x2 .* blurred +-\d\.\d\d points \(-\d\.\d\d\.\.-\d\.\d\d\) \*", out)
        assert rows[-1].startswith("* the 95% interval of the difference, picture by picture, leaves out 0")
        assert "unpaired" not in out
        assert all(len(row.split()) >= 4 for row in rows if row.startswith(("consistency", "shift", "accuracy")))

    def test_the_demo_networks_see_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The fine-tuned network beside the trained one; each alone has the same figures."""
        options = ("--metrics", "consistency", "--images", "30", "--device", "cpu", "--seed", "3")
        both = measured(capsys, TRAINED, TUNED, "--convert", *options)
        assert [one.converted for one in both] == [False, True]
        assert [one.model for one in both] == [TRAINED, f"{TUNED} converted"]
        (alone,) = measured(capsys, TRAINED, *options)
        assert alone == both[0]
        again = measured(capsys, TRAINED, TRAINED, *options)
        assert again[0] == dataclasses.replace(again[1], agreement=None) == alone
        assert again[1].agreement is not None and again[1].agreement.kept == 1
        assert both[1].consistency is not None and both[0].consistency is not None
        assert both[1].consistency != both[0].consistency
        accuracy = both[1].consistency.accuracy
        assert accuracy is not None and accuracy.value > 0.8

    def test_a_converted_file_beside_its_source(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "net_aa.pt"
        blurify.save(blurify.convert(Net(), example_inputs=torch.zeros(1, 3, 24, 28)), path)
        allow = ("--allow", f"{Net.__module__}.Net")
        pair = measured(capsys, "net", path, "--data", photos, *SMALL, *allow)
        (alone,) = measured(capsys, "net", "--convert", "--data", photos, *SMALL)[1:]
        assert [one.converted for one in pair] == [False, True]
        assert (pair[1].consistency, pair[1].aliasing) == (alone.consistency, alone.aliasing)
        line = error(capsys, path, "--convert", "--data", photos, *SMALL, *allow)
        assert "is converted already: leave --convert out" in line

    def test_every_metric(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--images", "3", "--metrics", "all")
        (found,) = measured(capsys, "net", *options)
        assert all(
            getattr(found, name) for name in ("consistency", "aliasing", "equivariance", "stability", "worst_case")
        )
        out = run(capsys, "net", "--convert", *options)
        for word in ("flip rate: brightness", "accuracy under jpeg", "worst of", "aliasing:", "equivariance:"):
            assert word in out

    def test_one_picture_tells_nothing_of_others(self) -> None:
        found = Estimate.of([0.25], yes_or_no=False)
        assert (found.value, found.low, found.high, found.count) == (0.25, 0, 1, 1)

    @pytest.mark.parametrize(("right", "count"), [(0, 60), (1, 60), (47, 60), (60, 60), (1, 1)])
    def test_the_score_interval_is_scipys(self, right: int, count: int) -> None:
        found = Estimate.of([1.0] * right + [0.0] * (count - right))
        wanted = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)

    def test_one_flip_is_not_surer_than_none(self) -> None:
        """The kind of interval depends on what is measured, not on what came out."""
        none, one, two = (Estimate.of([0.0] * (60 - flips) + [1 / 8] * flips) for flips in (0, 1, 2))
        assert none.high < one.high < two.high and none.low <= one.low <= two.low

    def test_shares_of_answers_are_within_their_interval_often_enough(self) -> None:
        """Flip rates, whose eight answers a picture depend on each other: at least 95 of 100 intervals hold."""
        generator = torch.Generator().manual_seed(0)
        rates = 0.1 * torch.rand(400, 50, generator=generator, dtype=torch.float64) ** 2
        draws = (torch.rand(400, 50, 8, generator=generator) < rates[:, :, None]).double().mean(2)
        true = 0.1 / 3
        held = [found.low <= true <= found.high for found in map(Estimate.of, draws.tolist())]
        assert sum(held) >= 0.95 * len(held)

    def test_the_same_layers_of_both_models(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Those of the same stride in both: the second convolution's blur comes after its activation."""
        pair = measured(capsys, "net", "--convert", "--data", photos, *SMALL, "--metrics", "equivariance")
        layers = [[(layer.name, layer.stride) for layer in one.equivariance.layers] for one in pair if one.equivariance]
        assert layers[0] == layers[1] == [("0", (1, 1)), ("1", (1, 1)), ("2", (2, 2)), ("4", (4, 4))]

    def test_a_conversion_alone_is_said_to_be_no_more(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kept = tmp_path / "found.json"
        out = run(capsys, "net", "--convert", "--data", photos, *SMALL, "-o", kept)
        assert "net converted has exactly the weights of net: it was not fine-tuned" in out
        assert files.read_all(kept)[1].same_weights
        for other in ("net", "tuned"):
            run(capsys, "net", other, "--data", photos, *SMALL, "-o", kept, "--force")
            assert not files.read_all(kept)[1].same_weights
        out = run(capsys, TRAINED, TUNED, "--images", "4", "-o", kept, "--force")
        assert "not fine-tuned" not in out and not files.read_all(kept)[1].same_weights

    def test_layers_of_another_network_are_its_own(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pair = measured(capsys, "net", "colour-net", "--data", photos, *SMALL, "--metrics", "equivariance")
        names = [[layer.name for layer in one.equivariance.layers] for one in pair if one.equivariance]
        assert names == [["0", "1", "2", "3", "4"], ["0"]]

    def test_all_does_not_hide_a_picture_that_cannot_be_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"no picture")
        assert "b.png is not an image" in error(capsys, "net", "--data", tmp_path, *SMALL, "--metrics", "all")

    def test_an_output_without_numbers_is_no_answer(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for metric in ("consistency", "stability", "worst-case"):
            line = error(capsys, "broken", "--data", photos, *SMALL, "--images", "1", "--metrics", metric)
            assert "not finite" in line

    def test_all_leaves_out_what_cannot_be_measured_and_says_why(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = ("dense", "--data", photos, *SMALL, "--images", "2", "--metrics", "all")
        (found,) = measured(capsys, *options)
        assert found.consistency is not None and found.stability is None and found.worst_case is None
        assert set(found.skipped) == {"equivariance", "stability", "worst-case", "half-patch", "lie-derivative"}
        assert "no layer" in found.skipped["equivariance"] and "label map" in found.skipped["stability"]
        assert "stability of dense is not measured: " in run(capsys, *options, "-o", tmp_path / "found.json")
        assert files.read_measurements(tmp_path / "found.json") == (found,)

    def test_a_label_map(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (found,) = measured(capsys, "dense", "--data", photos, *SMALL, "--metrics", "consistency")
        assert found.consistency is not None and found.consistency.dense and found.consistency.agreement.value == 1
        assert "same labels in two random crops" in run(
            capsys, "dense", "--data", photos, *SMALL, "--metrics", "consistency"
        )
        assert "label map" in error(capsys, "dense", "--data", photos, *SMALL, "--metrics", "stability")

    def test_the_file_is_read_back_equal(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "measured.json"
        text = run(capsys, "net", "--convert", "--data", photos, *SMALL, "-o", out)
        assert text.splitlines()[-1] == f"wrote {out}"
        both = measured(capsys, "net", "--convert", "--data", photos, *SMALL)
        assert list(metrics.read_measurements(out)) == both
        assert f"{out} exists: add --force" in error(capsys, "net", "--data", photos, *SMALL, "-o", out)
        run(capsys, "net", "--data", photos, *SMALL, "-o", out, "--force")
        assert list(metrics.read_measurements(out)) == both[:1]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["measured.json", "photos"]  # nothing half-written

    def test_circular_and_the_seed(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = (TRAINED, "--metrics", "consistency", "--images", "20", "--device", "cpu")
        (crops,), (around,), (other,) = (
            measured(capsys, *options, *more) for more in ((), ("--circular",), ("--seed", "1"))
        )
        assert crops.consistency is not None and around.consistency is not None and other.consistency is not None
        assert around.consistency.circular and not crops.consistency.circular
        assert crops.consistency.pixel_change != other.consistency.pixel_change
        assert around.settings["circular"] is True and other.settings["seed"] == 1

    def test_a_model_without_sites_says_so(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = run(capsys, "colour", "--data", photos, *SMALL, "--metrics", "aliasing")
        assert "colour has no sites" in out

    def test_a_smaller_limit_of_shifts(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("net", "--data", photos, *SMALL, "--metrics", "equivariance")
        (whole,), (corner,) = measured(capsys, *options), measured(capsys, *options, "--most-shift", "1")
        assert whole.equivariance and corner.equivariance
        for one, other in zip(whole.equivariance.layers, corner.equivariance.layers, strict=True):
            assert other.distances == tuple(row[:2] for row in one.distances[:2])
        assert (whole.equivariance.largest_shift, corner.equivariance.largest_shift) == (3, 1)

    def test_help_needs_no_torch(self) -> None:
        code = (
            "import sys; from blurify import cli; cli.main(['measure', '--help']); "
            "sys.exit(any(name in sys.modules for name in ('torch', 'PIL', 'numpy')))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0 and "--canvas" in done.stdout


class TestAgreement:
    def test_it_comes_first_and_unasked(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics", "consistency")
        lines = run(capsys, "net", "tuned", *options).splitlines()
        start = lines.index("agreement with net")
        assert lines[start + 1].split() == ["agreement", "net", "tuned", "difference"]
        assert lines[start + 2].startswith("same answer ") and start < lines.index("steadiness")
        first, second = measured(capsys, "net", "tuned", *options)
        assert first.agreement is None and second.agreement is not None and second.agreement.original == "net"
        geometry = metrics.Preprocessing((24, 28), (27, 32))
        net, other = (metrics.Subject(MAKERS[name]().eval(), geometry, name) for name in ("net", "tuned"))
        alone = agreement(net, other, metrics.open_folder(photos, geometry), shifted=True, batch_size=4)
        assert second.agreement == alone
        assert second.agreement.consistent == first.consistency.agreement  # the same crops
        assert f"{second.agreement.same.value:.2%}" in lines[start + 2]

    def test_alone(self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics", "agreement")
        found = measured(capsys, "net", "--convert", *options)
        assert [one.consistency for one in found] == [None, None] and found[1].agreement is not None
        out = run(capsys, "net", "--convert", *options, "-o", tmp_path / "found.json")
        assert "same answer" in out and "shift by one pixel" not in out
        assert files.read_measurements(tmp_path / "found.json") == tuple(found)
        assert "agreement is of two models: give MODEL2, or --convert" in error(capsys, "net", *options)

    def test_the_difference_to_the_firsts_own_consistency(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(capsys, "net", "blind", "--data", photos, *SMALL, "--no-labels", "-o", tmp_path / "found.json")
        data = json.loads((tmp_path / "found.json").read_text())
        found = data["measurements"][1]["agreement"]
        told = data["difference"]["agreement.consistent"]
        assert told["value"] == found["consistent_and_same"]["value"] - found["consistent"]["value"]
        assert told["method"].startswith("paired") and told["n"] == 9

    def test_label_maps_and_other_outputs(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = run(capsys, "dense", "dense-2", "--data", photos, *SMALL, "--metrics", "consistency")
        assert re.search(r"^relative error of the outputs \(1: all is lost\) +- +\d\.\d{4} ", out, re.MULTILINE)
        assert "same label, share of positions" in out and "consistent and same labels: two random crops" in out
        assert "first five" not in out

    def test_three_models(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Original, converted, and one with other weights: the others against the first."""
        options = ("--data", photos, *SMALL, "--metrics", "consistency")
        data = json.loads(run(capsys, "net", "tuned", "blind", *options, "--json"))
        found = [Measurement.from_dict(entry) for entry in data["measurements"]]
        assert [one.agreement and one.agreement.original for one in found] == [None, "net", "net"]
        for other, told in zip(("tuned", "blind"), data["differences"], strict=True):
            pair = json.loads(run(capsys, "net", other, *options, "--json"))
            assert pair["measurements"] == [data["measurements"][0], data["measurements"][1 + (other == "blind")]]
            assert pair["difference"] == told
        lines = run(capsys, "net", "tuned", "blind", *options).splitlines()
        assert [f"{letter}: {name}" for letter, name in zip("ABC", ("net", "tuned", "blind"), strict=True)] == lines[
            3:6
        ]
        (heading,) = (line for line in lines if line.startswith("figure "))
        assert heading.split() == ["figure", "net", "tuned", "blind", "B", "-", "A", "C", "-", "A"]
        (row,) = (line for line in lines if line.startswith("consistent and same"))
        assert row.count("points (") == 2 and row.count("%") == 3

    def test_what_it_lacks_is_said(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics", "aliasing")
        out = run(capsys, "net", "tuned", *options, "--canvas", "24,28")
        assert "agreement under shifts of tuned is not measured: the canvas is no larger" in out
        assert "same answer" in out and "consistent and same" not in out
        assert "consistent and same: two circular shifts" in run(
            capsys, "net", "tuned", *options, "--canvas", "24,28", "--circular"
        )
        out = run(capsys, "net", "net-broken", *options)
        assert "agreement of net-broken is not measured: the output of net-broken is not finite" in out

    def test_lost_confidence_is_not_called_better(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = run(capsys, TRAINED, "--convert", "--images", 60, "--device", "cpu", "--metrics", "consistency")
        (row,) = (line for line in out.splitlines() if line.startswith("shift by one pixel: change"))
        assert row.endswith("less sure") and "*" not in row
        assert "\nless sure: the other model's top probability is lower by more than a tenth" in out


class TestRates:
    """mFR and mCE, as multiples of the first model's or of --reference's."""

    def test_of_two_models_the_first_is_the_unit(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics", "stability", "--images", 6, "--labels")
        first, second = measured(capsys, "colour", "net", *options)
        (alone,) = measured(capsys, "net", *options)
        (by,) = measured(capsys, "colour", *options)
        assert first.stability.mce.value == pytest.approx(1) and alone.stability.mce is None
        assert second.stability == normalised(alone.stability, by.stability, "colour")
        assert "mCE: mean corruption error, over that of colour" in run(capsys, "colour", "net", *options)

    def test_a_reference(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics", "stability", "--images", 4, "--labels")
        (found,) = measured(capsys, "net", *options, "--reference", "colour")
        (by,) = measured(capsys, "colour", *options)
        assert found.stability.reference == "colour"
        assert found.stability == normalised(found.stability, by.stability, "colour")
        pair = measured(capsys, "net", "tuned", *options, "--reference", "tuned")
        assert [one.stability.reference for one in pair] == ["tuned", "tuned"]
        assert pair[1].stability.mce is None or pair[1].stability.mce.value == pytest.approx(1)

    def test_bad_ones(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--data", photos, *SMALL, "--metrics")
        assert "add --metrics stability" in error(capsys, "net", *options, "consistency", "--reference", "colour")
        line = error(capsys, "net", *options, "stability", "--reference", "five")
        assert "net tells 3 classes apart and five 5" in line
        assert "there is no file nothing" in error(capsys, "net", *options, "stability", "--reference", "nothing")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["net", "--metrics", "consistency,speed"], "no metric 'speed': choose from consistency, aliasing"),
            (["net", "--metrics", ","], "no metric is chosen"),
            (["net", "--images", "0"], "--images 0"),
            (["net", "--seed", "-1"], "the seed -1 is none"),
            (["net", "--seed", "99999999999999999999999"], "is none: give a whole number from 0"),
            (["net", "--most-shift", "-1"], "--most-shift -1"),
            (["net", "one-by-one"], "one-by-one refuses 9 pictures at once of 3x24x28 (AssertionError: only one)"),
            (["net", "grey"], "grey refuses a picture of 3x24x28"),
            (
                ["pyramid"],
                "pyramid gives 0 (3x24x28: label-map or dense), 1 (3x12x14: label-map or dense); say which entry",
            ),
            (["net", "--batch-size", "0"], "--batch-size 0"),
            (["net", "--size", "0"], "--size '0' is no size"),
            (["net", "--size", "a,b"], "--size 'a,b' is no size"),
            (["net", "--canvas", "1,2,3"], "--canvas '1,2,3' is no size"),
            (["net", "--mean", "dark"], "--mean 'dark' is no list of numbers"),
            (["net", "--std", "nan"], "--std 'nan' is no list of numbers"),
            (["net", "--std", "0"], "--std must be above 0"),
            (["net", "--mean", "0,0"], "--mean has 2 numbers"),
            (["net", "--size", "30", "--canvas", "29"], "canvas of 29x29 is smaller than the model's input of 30x30"),
            (["net", "--canvas", "24,28"], "no room to shift: give a larger --canvas, or --circular"),
            (["net", "--recipe", "light"], "add --convert"),
            (["net", "--convert", "--recipe", "lite"], "lite"),
            (["net", "--device", "tpu9"], "--device tpu9 can't be used"),
            (["net", "--device", "meta"], "--device meta can't be used"),
            (["net", "--device", "cuda:99"], "--device cuda:99 can't be used"),
            (["net", "-o", "nowhere/x.json"], "nowhere doesn't exist"),
            (["fussy", "--size", "24"], "fussy refuses a picture of 3x24x24 (AssertionError: I want 32x32)"),
            (["features"], "the model's output is not classes"),
            (["sound"], "takes no pictures of 24x28"),
            (["net", "five"], "net tells 3 classes apart and five 5"),
            (["net", "dense"], "measure them one by one"),
            (["dense", "--labels"], "gives a label map, for which folders have no labels"),
            (["five", "--labels"], "--labels can't be had: the 3 class folders (blue, green, red)"),
            (["nothing"], "there is no file nothing"),
            (["net"] * 4, "unexpected extra argument"),
            (["net", "net", "net", "--convert"], "leave it out where three are given"),
        ],
    )
    def test_options(
        self,
        arguments: list[str],
        message: str,
        photos: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(photos.parent)
        shape = [] if "--size" in arguments else ["--size", "24,28"]
        place = [] if "--device" in arguments else ["--device", "cpu"]
        assert message in error(capsys, *arguments, *shape, *place, "--data", photos)

    def test_pictures(self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert "there are no images in" in error(capsys, "net", *SMALL, "--data", tmp_path / "empty")
        assert "there is no folder" in error(capsys, "net", *SMALL, "--data", tmp_path / "none")
        file = photos / "red" / "0.png"
        assert "is a file" in error(capsys, "net", *SMALL, "--data", file)
        file.write_bytes(file.read_bytes()[:60])
        assert "red/0.png" in error(capsys, "net", *SMALL, "--data", photos)
        file.write_text("text")
        assert "red/0.png is not an image" in error(capsys, "net", *SMALL, "--data", photos)

    def test_the_digits_are_for_models_of_digits(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "net gives 3 classes, and the embedded digits" in error(capsys, "net", *SMALL)
        assert "dense gives a label map" in error(capsys, "dense", *SMALL)

    def test_two_models_that_want_other_pictures(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pair = ("timm/resnet10t?num_classes=3", "timm/mobilevit_xxs?num_classes=3", "--random", "--data", photos)
        line = error(capsys, *pair)
        assert "wants other pictures" in line and "--size 256,256, not 176,176" in line and "--mean" in line

    def test_memory(self, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def full(self: nn.Module, x: Tensor) -> Tensor:
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
            return x.mean((2, 3))

        monkeypatch.setattr(Colour, "forward", full)
        assert "smaller --batch-size" in error(capsys, "colour", *SMALL, "--data", photos, "--metrics", "consistency")


class TestLibrary:
    def test_only_what_was_asked_for(self) -> None:
        geometry = metrics.Preprocessing((8, 8), (12, 12), 3, (0.0,) * 3, (1.0,) * 3)
        subject = metrics.Subject(Net(), geometry, "mine")
        pictures = metrics.TensorPictures(torch.rand(5, 3, 12, 12), name="noise")
        found = metrics.measure(subject, pictures, ("aliasing",))
        assert found.consistency is None and found.stability is None and found.aliasing is not None
        assert (found.model, found.data, found.images, found.converted) == ("mine", "noise", 5, False)
        with pytest.raises(BlurifyError, match="there are no pictures"):
            metrics.measure(subject, metrics.TensorPictures(torch.rand(0, 3, 12, 12)))
        with pytest.raises(BlurifyError, match="a batch of 0"):
            metrics.measure(subject, pictures, batch_size=0)

    def test_the_progress_names_each_metric(self) -> None:
        geometry = metrics.Preprocessing((8, 8), (12, 12), 3, (0.0,) * 3, (1.0,) * 3)
        told: list[tuple[str, int, int]] = []
        pictures = metrics.TensorPictures(torch.rand(5, 3, 12, 12))
        measuring.measure(
            metrics.Subject(Net(), geometry), pictures, measuring.METRICS, watch=lambda *words: told.append(words)
        )
        last = {what: (done, total) for what, done, total in told}
        assert len(last) >= len(measuring.METRICS) and all(done == total for done, total in last.values())

    def test_the_public_names_are_there(self) -> None:
        assert all(getattr(metrics, name) is not None for name in metrics.__all__)
        assert callable(metrics.measure) and set(metrics.__all__) <= set(dir(metrics))

    def test_a_measured_model_can_still_be_trained(self) -> None:
        """What it makes in a forward and keeps is no tensor of inference mode."""

        class Keeps(Net):
            def forward(self, x: Tensor) -> Tensor:
                if not hasattr(self, "ramp"):
                    self.ramp = torch.linspace(0, 1, x.shape[-1])
                return super().forward(x * self.ramp)

        model = Keeps().train()
        geometry = metrics.Preprocessing((8, 8), (12, 12), 3, (0.0,) * 3, (1.0,) * 3)
        metrics.measure(metrics.Subject(model, geometry), metrics.TensorPictures(torch.rand(3, 3, 12, 12)))
        assert model.training
        model(torch.rand(2, 3, 8, 8)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize(
        "canvases",
        [255 * torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8) - 0.5, torch.ones(2, 3, 8, 8, dtype=torch.uint8)],
    )
    def test_pictures_of_another_scale_are_none(self, canvases: Tensor) -> None:
        with pytest.raises(BlurifyError, match=r"in 0\.\.1, not"):
            metrics.TensorPictures(canvases)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        with pytest.raises(BlurifyError, match=r"no file .*blurify measure MODEL -o x\.json"):
            metrics.read_measurements(path)
        good = Measurement("m", "d", 3).to_dict()
        for content, message in (
            ("", "holds no measurements"),
            ("[]", "holds no measurements"),
            ('{"measurements": []}', "holds no measurements"),
            ('{"measurements": [{}]}', "format None"),
            (json.dumps({"measurements": [{**good, "format": 99}]}), "format 99"),
            (json.dumps({"measurements": [{**good, "images": 3, "speed": 1}]}), "not a measurement"),
            (json.dumps({"measurements": [7]}), "holds no measurements"),
        ):
            path.write_text(content)
            with pytest.raises(BlurifyError, match=message):
                metrics.read_measurements(path)
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(BlurifyError, match="holds no measurements"):
            metrics.read_measurements(path)

    def test_a_file_holds_no_nan(self, tmp_path: Path) -> None:
        """Which other readers of JSON would refuse."""
        wrong = Estimate(float("nan"), 0.0, 1.0, 3)
        broken = Measurement("m", "d", 3, consistency=Consistency(wrong, wrong, wrong))
        with pytest.raises(ValueError, match="not JSON compliant"):
            metrics.write_measurements(tmp_path / "x.json", [broken])
        assert list(tmp_path.iterdir()) == []


def test_differences(capsys: pytest.CaptureFixture[str]) -> None:
    """Of files without values of single pictures: a star where the intervals do not overlap, and only there."""

    def one(low: float, value: float, high: float) -> Measurement:
        estimate = Estimate(value, low, high, 10)
        settings = {"crop": [1, 1], "canvas": [2, 2], "seed": 0}
        return Measurement("m", "d", 10, settings, consistency=Consistency(estimate, estimate, estimate))

    measurements.print_measurements([one(0.1, 0.2, 0.3), one(0.31, 0.4, 0.5)])
    out = capsys.readouterr().out
    assert out.count("+20.00 points (+1.00..+40.00) *") == 3
    assert out.splitlines()[-1].startswith("* the two intervals do not overlap (unpaired: ")
    measurements.print_measurements([one(0.1, 0.2, 0.3), one(0.05, 0.1, 0.15)])
    out = capsys.readouterr().out
    assert out.count("-10.00 points (-25.00..+5.00)\n") == 3 and "*" not in out


def test_a_caveat_stands_where_a_star_would(capsys: pytest.CaptureFixture[str]) -> None:
    """And nowhere else: what is within chance needs no excuse."""

    def one(change: Estimate, confidence: float) -> Measurement:
        same, sure = Estimate(0.5, 0.4, 0.6, 10), Estimate(confidence, confidence - 0.01, confidence + 0.01, 10)
        settings = {"crop": [1, 1], "canvas": [2, 2], "seed": 0}
        return Measurement("m", "d", 10, settings, consistency=Consistency(same, change, same, confidence=sure))

    before = one(Estimate(0.1, 0.09, 0.11, 10), 0.8)
    for change, shown in ((Estimate(0.05, 0.04, 0.06, 10), True), (Estimate(0.09, 0.08, 0.1, 10), False)):
        measurements.print_measurements([before, one(change, 0.4)])
        out = capsys.readouterr().out
        (row,) = (line for line in out.splitlines() if line.startswith("shift by one pixel: change"))
        assert row.endswith(") less sure") == shown and row.endswith(")") != shown
        assert ("less sure: " in out) == shown


def test_one_answer_for_everything_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """100% says nothing where nothing is told apart."""
    same, none = Estimate(1.0, 0.9, 1.0, 10), Estimate(0.0, 0.0, 0.1, 10)
    for answers, shown in ((1, True), (2, False), (None, False)):
        found = Consistency(same, none, none, answers=answers)
        settings = {"crop": [1, 1], "canvas": [2, 2], "seed": 0}
        measurements.print_measurements([Measurement("m", "d", 10, settings, consistency=found)])
        assert ("m gives every picture the same answer" in capsys.readouterr().out) == shown


def test_a_size_that_cannot_be_found_has_one_remedy(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--input-shape is none of this command's options."""
    text = error(capsys, "python:tests.cli.test_measure:of_one_size", "--data", photos)
    assert text.rstrip().endswith(": give --size") and "--input-shape" not in text and "example_inputs" not in text


def of_one_size() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 19 * 19, 3))


def test_sizes_numbers_and_devices() -> None:
    assert parse_size("--size", "224") == (224, 224) and parse_size("--size", "24, 32") == (24, 32)
    assert parse_size("--size", "24x32") == (24, 32) and parse_size("--size", None) is None
    assert parse_numbers("--mean", "0.5,.25") == (0.5, 0.25) and parse_numbers("--mean", None) is None
    wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    assert find_device("auto").type == wanted and find_device("cpu").type == "cpu"


def test_a_file_of_before_is_read() -> None:
    """Without what is new: no agreement, no confidence, no fractional shifts, no reference."""
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    found = Measurement(
        "m", "d", 10, consistency=Consistency(estimate, estimate, estimate), stability=results.Stability((), ())
    )
    data = found.to_dict()
    for name in ("agreement", "fractional", "lie_derivative"):
        del data[name]
    del data["consistency"]["confidence"]
    for name in ("reference", "mfr", "mce", "left_out"):
        del data["stability"][name]
    assert Measurement.from_dict(data) == found


def test_of_three_models_each_differs_from_the_first() -> None:
    def one(value: float) -> Measurement:
        estimate = Estimate(value, value - 0.01, value + 0.01, 10)
        return Measurement("m", "d", 10, consistency=Consistency(estimate, estimate, estimate))

    data = files.as_json([one(0.2), one(0.4), one(0.7)])
    assert [found["consistency.agreement"]["value"] for found in data["differences"]] == pytest.approx([0.2, 0.5])
    assert "difference" not in data


def test_results_need_no_torch() -> None:
    """So that a report of measurements made elsewhere starts at once."""
    code = "import sys; import blurify.metrics, blurify.metrics.results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert results.FORMAT == 1


def test_a_site_whose_stride_is_its_input_has_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A global pool's stride is that of the size of the plan, which may not be the size that is measured."""
    share = Estimate(0.0, 0.0, 0.0, 10)
    settings = {"crop": [1, 1], "canvas": [2, 2], "seed": 0}
    both = [
        Measurement(
            "m",
            "d",
            10,
            settings,
            aliasing=results.Aliasing((results.SiteAliasing("pool", "avgpool", (size, size), False, share),), 10),
        )
        for size in (5, 28)
    ]
    measurements.print_measurements(both)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("pool")]
    assert len(rows) == 1 and rows[0][:3] == ["pool", "avgpool", "5x5"] and "points" in rows[0]
