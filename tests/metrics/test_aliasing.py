from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import blurify
from blurify import cli
from blurify.errors import BlurifyError
from blurify.metrics.aliasing import aliasing, energy_above
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures


def _shares(signal: Tensor, stride: tuple[int, ...]) -> list[float]:
    above, total = energy_above(signal, stride)
    return (above / total).tolist()


def _numpy_share(signal: Tensor, stride: tuple[int, ...]) -> float:
    """The definition for one picture (C, *spatial), with numpy's full transform and one frequency at a time."""
    array = signal.detach().double().numpy()
    energy = (np.abs(np.fft.fftn(array, axes=tuple(range(1, array.ndim)))) ** 2).sum(0)
    below = 0.0
    for index in np.ndindex(energy.shape):
        part = 1.0
        for k, n, s in zip(index, energy.shape, stride, strict=True):
            frequency = min(k, n - k)
            if s > 1:
                part *= 1.0 if frequency < n / (2 * s) else 0.5 if frequency == n / (2 * s) else 0.0
        below += part * energy[index]
    return 1 - below / energy.sum()


# --- the energy


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [
        ((256,), (2,), 1 / 2), ((32, 32), (2, 2), 3 / 4), ((16, 16, 16), (2, 2, 2), 7 / 8),
        ((32, 32), (1, 2), 1 / 2), ((32, 48), (4, 4), 15 / 16), ((24, 24), (3, 3), 8 / 9), ((32, 32), (1, 1), 0),
    ],
)  # fmt: skip
def test_white_noise(size, stride, expected):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 64, *size, generator=generator)
    found = _shares(noise, stride)
    # The share of a picture has a standard deviation of about sqrt(2 p (1 - p) / samples).
    spread = math.sqrt(2 * expected * (1 - expected) / (64 * math.prod(size)))
    assert all(abs(share - expected) <= 5 * spread + 1e-12 for share in found)


@pytest.mark.parametrize("shape", [(2, 3, 15), (2, 3, 16), (1, 2, 6, 9), (1, 2, 8, 4), (1, 1, 4, 5, 6)])
@pytest.mark.parametrize("step", [2, 3])
def test_agrees_with_a_sum_of_cosines(shape, step):
    signal = torch.randn(shape, dtype=torch.float64)
    sizes = shape[2:]
    stride = (step,) * len(sizes)
    for picture, found in zip(signal, energy_above(signal, stride).T.tolist(), strict=True):
        above = total = 0.0
        for k in itertools.product(*map(range, sizes)):
            real = imaginary = torch.zeros(shape[1], dtype=torch.float64)
            for where in itertools.product(*map(range, sizes)):
                angle = 2 * math.pi * sum(a * b / n for a, b, n in zip(k, where, sizes, strict=True))
                value = picture[(slice(None), *where)]
                real, imaginary = real + value * math.cos(angle), imaginary - value * math.sin(angle)
            energy = float((real**2 + imaginary**2).sum()) / math.prod(sizes)
            below = 1.0
            for f, n in zip(k, sizes, strict=True):
                edge = n / (2 * step)
                below *= 1.0 if min(f, n - f) < edge else 0.5 if min(f, n - f) == edge else 0.0
            above, total = above + (1 - below) * energy, total + energy
        assert found == pytest.approx([above, total], rel=1e-10, abs=1e-12)
        assert total == pytest.approx(float(picture.square().sum()))  # Parseval


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 31)])
def test_a_band_limited_picture_does_not_alias(height, width):
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    picture = (
        3 + torch.cos(2 * torch.pi * (5 * y / height - 7 * x / width) + 1) + torch.sin(2 * torch.pi * 7 * y / height)
    )
    assert _shares(picture[None, None], (2, 2))[0] < 1e-10
    assert _shares(torch.randn(1, 1, height, width).double(), (2, 2))[0] > 0.5


def test_known_frequencies():
    x = torch.arange(32.0).double()
    for k, expected in ((7, 0), (8, 0.5), (9, 1), (16, 1)):  # 8 is exactly at the new Nyquist frequency
        assert _shares(torch.cos(2 * torch.pi * k * x / 32)[None, None], (2,))[0] == pytest.approx(expected, abs=1e-10)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    assert _shares(board[None, None].float(), (2, 2))[0] == pytest.approx(0.5)  # half mean, half highest frequency
    assert energy_above(torch.zeros(2, 3, 8, 8), (2, 2)).tolist() == [[0, 0], [0, 0]]
    assert _shares(torch.randn(2, 3, 1, 1), (2, 2)) == [0, 0]


# --- the sites of models


def _pictures(size: int = 32, count: int = 3) -> TensorPictures:
    return TensorPictures(torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)))


def _measured(model: nn.Module, pictures: TensorPictures, **options):
    size = tuple(pictures.canvases.shape[2:])
    subject = Subject(model, Preprocessing(size, size, 3, mean=(0.5,), std=(0.25,)))
    return aliasing(subject, pictures, **options)


class Calls(nn.Module):
    """Pools, convolutions and slices in the middle of a forward."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(8, 8, 1, 1) / 3)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.twice = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(x, 3, 2, padding=1)
        x = F.conv2d(x, self.weight, stride=1)
        x = torch.tanh(self.mix(x))[:, :, ::2, ::2]
        x = torch.sigmoid(self.mix(self.twice(x)))
        x = F.avg_pool2d(self.twice(x), 3, 2, 1, ceil_mode=True)
        return F.max_pool2d(F.conv2d(x, self.weight, stride=(1, 2)), (2, 1)).mean((2, 3))


MODELS = {
    "resnet18": lambda: torchvision.models.resnet18(),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16),
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.25),
    "tf-same": lambda: timm.create_model("tf_efficientnet_b0"),
    "calls": Calls,
}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *itertools.product(MODELS, ["zhang2019"]),
        *itertools.product(["resnet18", "calls"], ["full", "light", "pool-only"]),
    ],
)
def test_every_site_has_a_row_before_and_after(name, recipe):
    torch.manual_seed(0)
    model, pictures = MODELS[name]().eval(), _pictures()
    converted = blurify.convert(model, recipe, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    plan = blurify.plan_of(converted)
    before, after = _measured(model, pictures), _measured(converted, pictures)
    rows = [(site.name, site.kind, site.stride) for site in plan.sites]
    assert [(site.site, site.kind, site.stride) for site in before.sites] == rows
    assert [(site.site, site.kind, site.stride) for site in after.sites] == rows
    assert [site.blurred for site in after.sites] == [site.action == "blur" for site in plan.sites]
    assert not any(site.blurred for site in before.sites)
    assert before.images == after.images == 3
    for a, b, planned in zip(before.sites, after.sites, plan.sites, strict=True):
        assert a.share.count == b.share.count == 3 and 0 <= a.share.low <= a.share.value <= a.share.high <= 1
        if planned.kind == "maxpool" and planned.action == "blur" and min(planned.output_shape[2:]) > 2:
            assert b.share.value < 0.3 * a.share.value
    assert not any(module._forward_hooks for module in model.modules())


def _of(found, site: str) -> list[float]:
    return [row.share.value for row in found.sites if row.site == site]


def _taps(x: Tensor) -> Tensor:
    """[1, 3, 3, 1] / 8 in both directions, reflected at the borders: what the default recipe filters with."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, (1, 2, 1, 2), mode="reflect"), kernel, groups=x.shape[1])


def test_the_signals_are_those_before_the_subsampling():
    """Each kind of site, the signal written out by hand."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    converted = blurify.convert(model, example_inputs=torch.zeros(1, 3, 64, 64), verify=False)
    pictures = _pictures(64, 1)
    x = (pictures.canvases - 0.5) / 0.25
    before, after = _measured(model, pictures), _measured(converted, pictures)

    def expect(found, site: str, signal: Tensor) -> None:
        assert _of(found, site) == [pytest.approx(_numpy_share(signal[0], (2, 2)), abs=1e-5)], site

    with torch.inference_mode():
        image = F.conv2d(x, model.conv1.weight, padding=3)
        expect(before, "conv1", image)
        expect(after, "conv1", image)
        x = F.max_pool2d(model.relu(model.bn1(model.conv1(x))), 3, 1, 1)
        expect(before, "maxpool", x)
        expect(after, "maxpool", _taps(x))
        block = model.layer2[0]
        for pooled, found, blurred in ((x, before, False), (_taps(x), after, True)):
            features = model.layer1(pooled[:, :, ::2, ::2])
            dense = F.conv2d(features, block.conv1.weight, padding=1)
            expect(found, "layer2.0.conv1", _taps(F.relu(block.bn1(dense))) if blurred else dense)
            shortcut = F.conv2d(_taps(features) if blurred else features, block.downsample[0].weight)
            expect(found, "layer2.0.downsample.0", shortcut)


def test_the_signals_of_calls_in_a_forward():
    torch.manual_seed(0)
    model = Calls().eval()
    converted = blurify.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    pictures = _pictures(32, 1)
    x = (pictures.canvases - 0.5) / 0.25
    before, after = _measured(model, pictures), _measured(converted, pictures)
    with torch.inference_mode():
        x = F.max_pool2d(model.stem(x), 3, 1, 1)
        assert _of(before, ":max_pool2d") == [pytest.approx(_numpy_share(x[0], (2, 2)), abs=1e-5)]
        assert _of(after, ":max_pool2d") == [pytest.approx(_numpy_share(_taps(x)[0], (2, 2)), abs=1e-5)]
        x = torch.tanh(model.mix(F.conv2d(x[:, :, ::2, ::2], model.weight)))
        assert _of(before, ":slice") == [pytest.approx(_numpy_share(x[0], (2, 2)), abs=1e-5)]
        # A module that is called twice: the energies of both calls together.
        first = F.max_pool2d(x[:, :, ::2, ::2], 2, 1)
        second = F.max_pool2d(torch.sigmoid(model.mix(first[:, :, ::2, ::2])), 2, 1)
        energies = energy_above(first, (2, 2)) + energy_above(second, (2, 2))
        assert _of(before, "twice") == [pytest.approx(float(energies[0] / energies[1]), abs=1e-6)]
        x = second[:, :, ::2, ::2]
        average = F.avg_pool2d(x, 3, 1, 1)
        assert _of(before, ":avg_pool2d") == [pytest.approx(_numpy_share(average[0], (2, 2)), abs=1e-5)]


def test_blurred_input_is_measured_behind_its_convolution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.Flatten()).eval()
    converted = blurify.convert(model, example_inputs=torch.zeros(1, 3, 16, 16), verify=False)
    assert blurify.plan_of(converted).sites[0].rule == "blurred-input"
    pictures = _pictures(16, 1)
    with torch.inference_mode():
        features = model[1](model[0]((pictures.canvases - 0.5) / 0.25))
        for measured, x in ((model, features), (converted, _taps(features))):
            dense = F.conv2d(x, model[2].weight, model[2].bias, padding=1)
            found = _measured(measured, pictures)
            assert _of(found, "2") == [pytest.approx(_numpy_share(dense[0], (2, 2)), abs=1e-5)]


def test_the_batch_size_changes_nothing():
    torch.manual_seed(0)
    model, pictures = Calls().eval(), _pictures(32, 5)
    whole, told = _measured(model, pictures), []
    parts = _measured(model, pictures, batch_size=2, watch=lambda *news: told.append(news))
    for a, b in zip(whole.sites, parts.sites, strict=True):
        assert a.share.value == pytest.approx(b.share.value, abs=1e-6)
        assert a.share.high == pytest.approx(b.share.high, abs=1e-6)
    assert told == [("aliasing", 1, 3), ("aliasing", 2, 3), ("aliasing", 3, 3)]
    some = _measured(model, pictures, images=2, seed=4)
    again = _measured(model, pictures, images=2, seed=4, batch_size=1)
    assert some.images == 2 and [site.share.count for site in some.sites] == [2] * len(some.sites)
    assert [site.share.value for site in some.sites] == pytest.approx([site.share.value for site in again.sites])


def test_a_filter_that_was_there_counts_as_one():
    class Filtered(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.register_buffer("taps", torch.ones(4, 1, 2, 2) / 4)

        def forward(self, x):
            return F.conv2d(torch.relu(self.conv(x)), self.taps, stride=2, groups=4)

    (row,) = _measured(Filtered().eval(), _pictures()).sites
    assert row.blurred and row.kind == "conv"


def test_a_model_that_runs_otherwise_is_refused():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(self.pool(x)) if x.sum().item() == 0 else self.pool(self.conv(x))

    with pytest.raises(BlurifyError, match="runs otherwise on these pictures than when it was traced"):
        _measured(Fickle().eval(), _pictures())
    model = blurify.convert(Calls().eval(), example_inputs=torch.zeros(1, 3, 32, 32), verify=False)
    model.stem.stride = (2, 2)
    with pytest.raises(BlurifyError, match="by its plan"):
        _measured(model, _pictures(64))


def test_features_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).eval()
    with pytest.raises(BlurifyError, match="not finite"):
        _measured(model, TensorPictures(torch.full((1, 3, 16, 16), torch.nan)))


def test_a_model_without_sites_has_no_rows():
    assert _measured(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), _pictures()).sites == ()


# --- `blurify inspect --data`


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(5):
        picture = generator.integers(0, 256, (40, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    return tmp_path


INSPECT = ["inspect", "torchvision/squeezenet1_1", "--random", "--input-shape", "1,3,40,40"]


def test_inspect_ranks_sites_by_their_aliasing(folder, capsys):
    assert cli.main([*INSPECT, "--data", str(folder), "--images", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["site", "aliasing", "action"]
    assert lines.pop().startswith("next: blurify convert")
    assert "4 pictures" in lines.pop()
    lines = [line for line in lines if not line.startswith(("drift: ", "a forward writes "))]
    sites = [line.split() for line in lines[2:-2] if line.startswith("features.")]
    shares = [float(cells[1].removesuffix("%")) for cells in sites]
    assert len(shares) == 4 and shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    assert "4 sites" in lines[-2] and "4 images" in lines[-1] and "Nyquist" in lines[-1]


def test_inspect_gives_the_shares_as_json(folder, capsys):
    torch.manual_seed(0)
    assert cli.main([*INSPECT, "--data", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] == {"name": str(folder), "images": 5}
    for site in found["sites"]:
        share = site["aliasing"]
        assert 0 < share["low"] <= share["value"] <= share["high"] <= 1 and share["count"] == 5
    assert [site["name"] for site in found["sites"]] == ["features.0", "features.2", "features.5", "features.8"]
    assert cli.main([*INSPECT, "--json"]) == 0
    assert "aliasing" not in json.loads(capsys.readouterr().out)["sites"][0]


def test_inspect_of_a_converted_model_shows_what_is_left(folder, tmp_path_factory, capsys):
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_1().eval()
    file = tmp_path_factory.mktemp("models") / "model.pt"
    blurify.save(blurify.convert(model, example_inputs=torch.zeros(1, 3, 40, 40), verify=False), file)
    assert cli.main(["inspect", str(file), "--data", str(folder), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert [site["action"] for site in after["sites"]] == ["skip", "blur", "blur", "blur"]
    assert after["sites"][0]["aliasing"]["value"] > 0.3 > 0.1 > after["sites"][1]["aliasing"]["value"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--data", "no/such/folder"], "there is no folder"),
        (["--images", "0"], "--images 0"),
        (["--data", ".", "--device", "abacus"], "--device abacus"),
        (["--data", ".", "--input-shape", "1,3,8,8"], "one --input-shape"),
    ],
)
def test_inspect_errors_are_one_line(more, says, folder, capsys):
    more = [str(folder) if word == "." else word for word in more]
    assert cli.main([*INSPECT, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err


def test_sites_that_never_alias_have_no_width():
    """Shares are no answers of yes or no: Wilson's interval has no place here."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2)).eval()
    flat = TensorPictures(torch.full((3, 1, 16, 16), 0.5))
    found = aliasing(Subject(model, Preprocessing((16, 16), (16, 16), 1, (0.0,), (1.0,))), flat)
    share = found.sites[0].share
    assert (share.value, share.low, share.high) == pytest.approx((0, 0, 0), abs=1e-12) and share.count == 3
