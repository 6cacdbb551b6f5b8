from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics.circular import circular_padding
from blurify.metrics.equivariance import equivariance
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures


def _subject(model: nn.Module, size: tuple[int, int] = (16, 16), channels: int = 3) -> Subject:
    return Subject(model, Preprocessing(size, size, channels, mean=(0.5,), std=(0.5,)))


def _pictures(size: tuple[int, int] = (16, 16), count: int = 3, channels: int = 3) -> TensorPictures:
    return TensorPictures(torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(3)))


def _slow(subject: Subject, layer: str, x: Tensor, dy: int, dx: int, circular: bool) -> float:
    """The definition: both maps at the picture's resolution, vector by vector."""

    def upsampled(picture: Tensor) -> Tensor:
        kept: list[Tensor] = []
        module = subject.model.get_submodule(layer)
        handle = module.register_forward_hook(lambda module, args, out: kept.append(out.double().clone()))
        if circular:
            with circular_padding(subject.model):
                subject.run(picture)
        else:
            subject.run(picture)
        handle.remove()
        out = kept[0]
        y, x = (whole // part for whole, part in zip(picture.shape[2:], out.shape[2:], strict=True))
        return out.repeat_interleave(y, 2).repeat_interleave(x, 3)

    left = torch.roll(upsampled(x), (dy, dx), (2, 3))
    right = upsampled(torch.roll(x, (dy, dx), (2, 3)))
    total = 0.0
    for a, b in zip(
        left.permute(0, 2, 3, 1).reshape(-1, left.shape[1]), right.permute(0, 2, 3, 1).flatten(0, 2), strict=True
    ):
        lengths = a.norm().item(), b.norm().item()
        total += 1 - (a @ b).item() / (lengths[0] * lengths[1]) if all(lengths) else float(any(lengths))
    return total / (len(left) * left.shape[2] * left.shape[3])


class Rectangular(nn.Module):
    """Strides that differ by dimension, and positions at which all features are zero."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1)
        self.pool = nn.MaxPool2d(3, 3)
        self.act = nn.Threshold(0.3, 0.0)

    def forward(self, x):
        return self.act(self.pool(self.wide(x)))


@pytest.mark.parametrize("circular", [True, False])
def test_agrees_with_the_definition(circular):
    torch.manual_seed(0)
    subject, pictures = _subject(Rectangular(), (12, 12)), _pictures((12, 12), 2)
    found = equivariance(subject, pictures, circular=circular)
    assert [(layer.name, layer.stride, layer.shape) for layer in found.layers] == [
        ("wide", (1, 2), (4, 12, 6)), ("pool", (3, 6), (4, 4, 2)), ("act", (3, 6), (4, 4, 2)),
    ]  # fmt: skip
    assert (found.images, found.input_shape, found.largest_shift) == (2, (3, 12, 12), 5)
    for layer in found.layers:
        assert (len(layer.distances), len(layer.distances[0])) == layer.stride
        for dy, row in enumerate(layer.distances):
            for dx, distance in enumerate(row):
                slow = _slow(subject, layer.name, pictures.canvases, dy, dx, circular)
                assert distance == pytest.approx(slow, abs=2e-6), (layer.name, dy, dx)
    assert found.layers[2].mean > 0.01


def test_circular_convolutions_and_global_pooling_have_distance_0():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2, padding_mode="circular"), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    found = equivariance(_subject(model), _pictures(), largest_shift=5)
    assert [layer.name for layer in found.layers] == ["0", "1", "2", "3"]
    for layer in found.layers:
        assert len(layer.distances) == 6
        assert max(max(row) for row in layer.distances) < 1e-10
    # Zero padding shows at once.
    padded = equivariance(_subject(model), _pictures(), largest_shift=5, circular=False)
    assert padded.layers[0].mean > 1e-4 and not padded.circular


@pytest.mark.parametrize(
    "layer", [nn.MaxPool2d(4), nn.Conv2d(3, 8, 3, 4, 1), nn.AvgPool2d(4)], ids=["max", "conv", "avg"]
)
def test_a_subsampling_layer_has_exactly_its_period(layer):
    torch.manual_seed(0)
    (found,) = equivariance(_subject(nn.Sequential(layer)), _pictures(), largest_shift=8).layers
    assert found.stride == (4, 4) and len(found.distances) == len(found.distances[0]) == 9
    for dy, row in enumerate(found.distances):
        for dx, distance in enumerate(row):
            if dy % 4 == 0 and dx % 4 == 0:
                assert distance < 1e-10
            else:
                assert distance > 1e-3
            assert distance == pytest.approx(found.distances[dy % 4][dx % 4], abs=1e-6)


def test_conversion_brings_layers_closer_to_equivariance():
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    converted = blurify.convert(model, example_inputs=torch.zeros(1, 3, 64, 64), verify=False)
    options = {"layers": ["maxpool", "layer?.1"], "step": 7, "images": 2}
    pictures = _pictures((64, 64), 2)
    before, after = (equivariance(_subject(m, (64, 64)), pictures, **options) for m in (model, converted))
    assert [layer.name for layer in before.layers] == ["maxpool", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert [layer.stride for layer in before.layers] == [layer.stride for layer in after.layers]
    for a, b in zip(before.layers[2:], after.layers[2:], strict=True):
        assert b.mean < 0.6 * a.mean


def test_neither_batches_nor_other_layers_change_a_figure():
    torch.manual_seed(0)
    subject, pictures = _subject(Rectangular(), (12, 12)), _pictures((12, 12), 5)
    told = []
    whole = equivariance(subject, pictures, watch=lambda *news: told.append(news))
    parts = equivariance(subject, pictures, batch_size=2, layers=["act"])
    assert told[-1] == ("equivariance", 3 * 6, 3 * 6) and len(told) == 18
    for a, b in zip(whole.layers[2].distances, parts.layers[0].distances, strict=True):
        assert a == pytest.approx(b, abs=1e-6)
    stepped = equivariance(subject, pictures, step=2)
    for whole_row, row in zip(whole.layers[2].distances[::2], stepped.layers[2].distances, strict=True):
        assert whole_row[::2] == pytest.approx(row, abs=1e-6)
    assert equivariance(subject, pictures, images=2, seed=1) == equivariance(subject, pictures, images=2, seed=1)
    assert equivariance(subject, pictures, images=2).images == 2
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_maps_that_are_overwritten_later_are_seen_as_they_were():
    torch.manual_seed(0)

    def build(inplace: bool) -> Subject:
        torch.manual_seed(0)
        return _subject(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(inplace), nn.Conv2d(4, 4, 3, 1, 1)))

    assert equivariance(build(True), _pictures()) == equivariance(build(False), _pictures())


# --- which layers


class Mixed(nn.Module):
    """Things that look like maps, and are none."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.shared = nn.ReLU()
        self.last = nn.LayerNorm(8)  # (N, H, W, C)
        self.fixed = nn.AdaptiveAvgPool2d(2)
        self.unpadded = nn.Conv2d(8, 8, 3, 2)

    def forward(self, x):
        x = self.stem(x)
        x = self.shared(self.shared(x * self.gate(x)))
        self.last(x.permute(0, 2, 3, 1))
        return self.fixed(x).mean((2, 3)) + self.unpadded(x).mean((2, 3))


def test_only_maps_that_shift_with_the_picture_count():
    found = equivariance(_subject(Mixed().eval()), _pictures(), largest_shift=0)
    assert [layer.name for layer in found.layers] == ["stem.0", "stem.2"]
    named = equivariance(_subject(Mixed().eval()), _pictures(), largest_shift=0, layers=["stem", "stem.1"])
    assert [layer.name for layer in named.layers] == ["stem.1", "stem"]
    for name in ("shared", "last", "gate*", "unpadded", "fixed", "nothing"):
        with pytest.raises(BlurifyError, match="no layer with maps is called"):
            equivariance(_subject(Mixed().eval()), _pictures(), layers=["stem", name])


def test_deep_networks_show_a_choice_of_layers():
    widths = (2, 2, "M", 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M")  # a thin VGG-16
    model = nn.Sequential(OrderedDict(features=torchvision.models.vgg.make_layers(list(widths))))
    found = equivariance(_subject(model, (32, 32)), _pictures((32, 32), 1), largest_shift=0)
    names = [layer.name for layer in found.layers]
    assert len(names) == 24 and {f"features.{pool}" for pool in (4, 9, 16, 23, 30)} <= set(names)
    assert names == sorted(names, key=lambda name: int(name.removeprefix("features.")))


def test_the_picture_is_cut_to_a_multiple_of_the_stride():
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    found = equivariance(_subject(model, (75, 70)), _pictures((80, 80), 1), largest_shift=0)
    assert found.input_shape == (3, 64, 64)
    # Total strides beyond the picture's size are left out.
    found = equivariance(_subject(model, (24, 24)), _pictures((24, 24), 1), largest_shift=0)
    assert max(layer.stride for layer in found.layers) == (16, 16) and found.input_shape == (3, 16, 16)


def test_errors_say_what_is_wrong():
    pooled = _subject(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1)))
    with pytest.raises(BlurifyError, match="smaller than the model's input of 16x16"):
        equivariance(pooled, _pictures((8, 8)))
    with pytest.raises(BlurifyError, match="no layer of this model gives maps"):
        equivariance(_subject(nn.Sequential(nn.Flatten(), nn.Linear(768, 4))), _pictures())
    with pytest.raises(BlurifyError, match="not finite"):
        equivariance(pooled, TensorPictures(torch.full((1, 3, 16, 16), torch.nan)))
    with pytest.raises(BlurifyError, match="at least 1"):
        equivariance(pooled, _pictures(), images=0)


def test_half_precision_is_compared_in_single():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))
    single = equivariance(_subject(model), _pictures())
    half = equivariance(_subject(model.bfloat16()), _pictures())
    assert half.layers[0].mean == pytest.approx(single.layers[0].mean, rel=0.02)
    assert half.layers[0].distances[0][0] == 0


def test_functional_calls_in_a_forward_count_too():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.after = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.after(F.max_pool2d(self.conv(x), 2))

    torch.manual_seed(0)
    found = equivariance(_subject(Model()), _pictures())
    assert [layer.stride for layer in found.layers] == [(1, 1), (2, 2)]
    assert found.layers[1].distances[1][1] > 1e-4


class Unpadded(nn.Module):
    """A stem and pools as AlexNet's, whose maps don't divide the picture: 48 -> 11 -> 5."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 11, stride=4, padding=2)
        self.pool = nn.MaxPool2d(3, 2)
        self.conv = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(self.pool(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("converted", [False, True], ids=["original", "converted"])
def test_networks_that_pad_too_little_have_maps_of_whole_periods(converted):
    torch.manual_seed(0)
    model = Unpadded().double().eval()
    example = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    assert model.stem(example).shape[2:] == (15, 15)  # not 16: nothing divides
    if converted:
        model = blurify.convert(model, example_inputs=example, verify=False)
    subject = Subject(model, Preprocessing((64, 64), (64, 64), 1, (0.0,), (1.0,)))
    found = equivariance(subject, TensorPictures(torch.rand(2, 1, 64, 64)), largest_shift=8)
    maps = {layer.name: layer for layer in found.layers}
    assert {name: (layer.stride, layer.shape) for name, layer in maps.items()} == {
        "stem": ((4, 4), (4, 16, 16)),
        "pool": ((8, 8), (4, 8, 8)),
        "conv": ((8, 8), (4, 8, 8)),
    }
    for layer in maps.values():
        period = layer.stride[0]
        for dy in range(9):
            expected = dy % period == 0
            assert (layer.distances[dy][0] < 1e-20) == expected, (layer.name, dy)


def test_identities_have_no_row():
    """timm's batch norms hold one, called drop: it hands on what the norm gives."""
    norm = nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(4), drop=nn.Identity(), act=nn.ReLU()))
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, 2, 1), bn1=norm, last=nn.Identity())).eval()
    found = equivariance(_subject(net), _pictures(), images=1)
    assert [layer.name for layer in found.layers] == ["conv", "bn1.act"]
    named = equivariance(_subject(net), _pictures(), images=1, layers=["bn1.drop"])
    assert [layer.name for layer in named.layers] == ["bn1.drop"]
