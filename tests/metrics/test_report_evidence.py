"""Evidence as plain data: it reads as it was written, and what is no picture never gets onto a page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics import measure
from blurify.metrics.class_names import class_names, read_class_names
from blurify.metrics.evidence import Evidence, Grid
from blurify.metrics.files import Context, read_all, write_measurements
from blurify.metrics.gathering import gather, worst_site
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures
from blurify.metrics.thumbnails import address
from tests.report_data import evidence, measurement, plan


def test_it_reads_as_it_was_written(tmp_path: Path) -> None:
    found = evidence(3)
    assert Evidence.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert found.models == {3} and Evidence().models == set()
    write_measurements(tmp_path / "m.json", [measurement()], context=Context(plan(), evidence=evidence(1)))
    assert read_all(tmp_path / "m.json")[1].evidence == evidence(1)
    write_measurements(tmp_path / "old.json", [measurement()], context=Context(plan()))
    assert "evidence" not in json.loads((tmp_path / "old.json").read_text())
    assert read_all(tmp_path / "old.json")[1].evidence is None


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("flips", "shown", 0, "shown", 0), "https://example.org/x.png"),
        (("flips", "shown", 0, "shown", 0), "data:image/svg+xml;base64,AAAA"),
        (("curves", 0, "shown"), 'data:image/png;base64,AA" onerror="alert(1)'),
        (("curves", 0, "probabilities", 0), [0.5]),
        (("spectra", "edges"), [0.0, 1.0]),
        (("missing",), {"flips": 3}),
        (("format",), 9),
        (("latency", "models"), 3),
    ],
)
def test_what_is_something_else_is_refused(where: tuple[str | int, ...], value: object) -> None:
    data = json.loads(json.dumps(evidence().to_dict()))
    at = data
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    with pytest.raises(BlurifyError, match="measure again"):
        Evidence.from_dict(data)


def test_grids_keep_256_steps() -> None:
    values = [[-1.0, 0.0, 1.0], [0.5, 2.0, -3.0]]
    found = Grid.of(values, -1.0, 1.0)
    assert found.shares == [[0, pytest.approx(128 / 255), 1], [pytest.approx(191 / 255), 1, 0]]
    for wrong in ({"rows": 3}, {"packed": "?"}, {"rows": 1 << 20, "columns": 1 << 20}, {"rows": -2, "columns": -3}):
        with pytest.raises(BlurifyError, match="no map"):
            dataclasses.replace(found, **wrong).shares  # noqa: B018


def test_class_names(tmp_path: Path) -> None:
    assert class_names(1000)[:2] == ("tench", "goldfish") and len(class_names(1000)) == 1000
    assert class_names(3, ["a", "b", "c"]) == ("a", "b", "c") and class_names(3) == () == class_names(3, ["a"])
    for text in ("a\n b \nc\n", '["a", "b", "c"]', '{"1": "b", "0": "a", "2": "c"}'):
        (tmp_path / "names").write_text(text)
        assert read_class_names(tmp_path / "names") == ("a", "b", "c")
    for text, says in (('{"a": 0}', "no list of names"), ("[1]", "no list of names"), ("[", "no JSON")):
        (tmp_path / "names").write_text(text)
        with pytest.raises(BlurifyError, match=says):
            read_class_names(tmp_path / "names")
    with pytest.raises(BlurifyError, match="can't be read"):
        read_class_names(tmp_path / "none")


def test_thumbnails_are_jpegs_of_at_most_224_pixels() -> None:
    import base64
    import io

    from PIL import Image

    for channels in (1, 3):
        data = base64.b64decode(address(torch.rand(channels, 300, 448)).partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (224, 150) and data.startswith(b"\xff\xd8")


def test_the_worst_site_is_the_one_that_aliases_most_of_those_that_are_blurred() -> None:
    before = measurement()
    assert worst_site([before], plan()) == "layer2.0.conv1"  # 31.3%, of 24.1, 31.3 and 28.0
    assert worst_site([before], None) == "layer2.0.conv1"
    bare = dataclasses.replace(before, aliasing=None)
    assert worst_site([bare], plan()) == "maxpool" and worst_site([bare], None) is None and worst_site([], None) is None


GEOMETRY = Preprocessing((16, 16), (20, 20), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def test_everything_is_gathered_of_a_model_and_its_conversion() -> None:
    pictures = TensorPictures(torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(4)))
    net = network()
    converted = blurify.convert(net, example_inputs=torch.zeros(1, 3, 16, 16))
    subjects = [Subject(model, GEOMETRY) for model in (net, converted)]
    measured = [measure(subject, pictures, ["aliasing"]) for subject in subjects]
    found = gather(
        subjects, pictures, measurements=measured, plan=blurify.plan_of(converted), images=4, classes=list("abcd")
    )
    assert found.missing == {} and found.models == {2}
    assert found.flips and found.flips.images == 4 and found.flips.steps == 4
    assert found.spectra and found.features and found.spectra.site == found.features.site == "2"
    assert found.agreements[0].images == 5 and found.curves[0].answers[0].words in "abcd"
    shares = [next(site for site in one.aliasing.sites if site.site == "2").share.value for one in measured]  # type: ignore[union-attr]
    assert [part.above for part in found.spectra.models if part] == pytest.approx(shares, rel=0.3)
    bare = gather(subjects, pictures, measurements=measured, images=2, shown=False, timed=False)
    assert bare.latency is None and "data:image" not in json.dumps(bare.to_dict())


def test_what_a_model_does_not_allow_is_left_out_with_the_reason() -> None:
    class Maps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :2] * 2

    pictures = TensorPictures(torch.rand(2, 3, 20, 20))
    found = gather([Subject(Maps(), GEOMETRY)], pictures, timed=False)
    assert found.flips is None and found.curves == () and "label map" in found.missing["flips"]
    assert found.missing["spectra"] == found.missing["features"] == "no site was measured"
    tight = Preprocessing((20, 20), (20, 20), channels=3)
    found = gather([Subject(network(), tight)], pictures, timed=False)
    assert "no room to shift" in found.missing["curves"]


def test_signals_are_not_shown_as_pictures() -> None:
    """A signal is a picture of one row."""
    net = nn.Sequential(
        nn.Conv2d(1, 4, (1, 9), padding=(0, 4)), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.AdaptiveAvgPool2d(1)
    )
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(4, 3)).eval()
    geometry = Preprocessing((1, 64), (1, 80), channels=1, mean=(0.0,), std=(1.0,))
    found = gather([Subject(net, geometry)], TensorPictures(torch.rand(3, 1, 1, 80)), timed=False)
    assert found.curves and found.curves[0].axis == "x" and "data:image" not in json.dumps(found.to_dict())
