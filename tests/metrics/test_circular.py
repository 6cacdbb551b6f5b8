from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.metrics.circular import circular_padding, wrapped


def _run(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, out: kept.append(out.clone()))
    with torch.inference_mode(), circular_padding(model):
        model(x)
    handle.remove()
    return kept[-1]


def _double(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():  # statistics that make each channel matter
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.running_mean.shape, generator=generator)
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
    return model.double().eval()


MODELS = {
    # name: (factory, layer, its total stride, input size)
    "resnet18": (lambda: torchvision.models.resnet18(), "layer3", 16, 64),
    "vgg": (
        lambda: nn.Sequential(torchvision.models.vgg.make_layers([8, "M", 8, "M", 16, 16, "M", 16, "M"])),
        "0", 16, 32,
    ),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), "features.10", 16, 32),
    "densenet": (
        lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16),
        "features.denseblock3", 16, 48,
    ),
    "tf-same": (lambda: timm.create_model("tf_efficientnet_b0", pretrained=False), "blocks.2", 8, 32),
    "functional": (lambda: Functional(), "last", 8, 24),
}  # fmt: skip


class Functional(nn.Module):
    """Pools, slices and pads in the middle of a forward."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, padding="same", padding_mode="zeros")
        self.second = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(8, 8, 3, padding=2, dilation=2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 3, 2, padding=1, ceil_mode=False)
        x = F.relu(self.second(x))[:, :, ::2, ::2]
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
        return self.last(F.pad(x, (1, 0, 0, 1), mode="replicate")[:, :, :-1, 1:])


@pytest.mark.parametrize("converted", [False, True], ids=["original", "converted"])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_with_circular_padding_is_periodic(name, converted):
    torch.manual_seed(0)
    build, layer, stride, size = MODELS[name]
    model = _double(build())
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.inference_mode():
        outside = model(x)
    if converted:
        model = blurify.convert(model, "full", example_inputs=x[:1], verify=False)
    before = _run(model, layer, x)
    assert before.shape[-1] == size // stride
    after = _run(model, layer, torch.roll(x, (stride, -stride), (2, 3)))
    scale = before.abs().max()
    assert (torch.roll(before, (1, -1), (2, 3)) - after).abs().max() <= 1e-12 * scale
    # That says something: other shifts do change the map, and without the circular padding this one does too.
    other = _run(model, layer, torch.roll(x, (1, 0), (2, 3)))
    assert (before - other).abs().max() > 1e-7 * scale
    if not converted:
        with torch.inference_mode():
            assert torch.equal(model(x), outside), "the model is not as it was"


class Unnamed(nn.Module):
    """A pad of its own before what subsamples."""

    def __init__(self, pad, op):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.pad, self.op = pad, op
        self.last = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        return self.last(F.relu(self.op(self.pad(F.relu(self.first(x))))))


PADDED = {
    "conv": (nn.ZeroPad2d(1), lambda: nn.Conv2d(6, 6, 3, 2)),
    "conv, one side": (nn.ZeroPad2d((0, 1, 0, 1)), lambda: nn.Conv2d(6, 6, 3, 2)),
    "large conv": (nn.ReflectionPad2d(2), lambda: nn.Conv2d(6, 6, 5, 2)),
    "padded twice": (nn.ZeroPad2d(1), lambda: nn.Conv2d(6, 6, 5, 2, padding=1)),
    "max pool": (nn.ZeroPad2d((0, 1, 0, 1)), lambda: nn.MaxPool2d(3, 2)),
    "max pool, both sides": (nn.ReplicationPad2d(1), lambda: nn.MaxPool2d(3, 2)),
}


@pytest.mark.parametrize("recipe", ["zhang2019", "light"])
@pytest.mark.parametrize("name", PADDED)
def test_a_pad_before_what_a_conversion_blurs(name, recipe):
    torch.manual_seed(0)
    pad, op = PADDED[name]
    model = _double(Unnamed(pad, op()))
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    converted = blurify.convert(model, recipe, example_inputs=x)
    before, after = _run(converted, "last", x), _run(converted, "last", torch.roll(x, (2, -4), (2, 3)))
    scale = before.abs().max().item()
    torch.testing.assert_close(torch.roll(before, (1, -2), (2, 3)), after, rtol=0, atol=1e-12 * scale)
    assert (before - _run(converted, "last", torch.roll(x, (1, 0), (2, 3)))).abs().max() > 1e-7 * scale
    # Away from the border nothing is different from what the model computes.
    inner = (..., slice(4, 10), slice(4, 10))
    with torch.no_grad():
        torch.testing.assert_close(before[inner], converted(x)[inner], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("filter_size", [2, 7])
@pytest.mark.parametrize("recipe", ["zhang2019", "light", "published/resnet"])
def test_every_filter_and_recipe_stays_periodic(recipe, filter_size):
    torch.manual_seed(0)
    model = _double(torchvision.models.resnet18())
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)  # layer4's maps are smaller than the filters
    model = blurify.convert(model, recipe, filter_size=filter_size, example_inputs=x, verify=False)
    before, after = _run(model, "layer4", x), _run(model, "layer4", torch.roll(x, (32, 32), (2, 3)))
    torch.testing.assert_close(
        torch.roll(before, (1, 1), (2, 3)), after, rtol=0, atol=1e-12 * before.abs().max().item()
    )


def test_the_model_is_as_it_was_even_after_an_error():
    model = blurify.convert(torchvision.models.resnet18(), example_inputs=torch.zeros(1, 3, 64, 64), verify=False)
    state = {name: (dict(vars(m)), len(m._forward_hooks)) for name, m in model.named_modules()}
    with pytest.raises(ZeroDivisionError), circular_padding(model):
        raise ZeroDivisionError
    for name, module in model.named_modules():
        now = dict(vars(module))
        assert {key: id(value) for key, value in now.items()} == {k: id(v) for k, v in state[name][0].items()}
        assert len(module._forward_hooks) == state[name][1]


# --- single calls, against a canvas of copies


def _tiled(function, x: Tensor, stride: int, out: int, lead: int) -> Tensor:
    """The slow way: run the unpadded function on five copies of the picture side by side, and cut the middle out."""
    n = x.shape[-1]
    start = 2 * n - lead
    y = function(x.repeat(1, 1, 5, 5)[:, :, start:, start:])
    return y[:, :, :out, :out]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (4, 2, 1), (3, 2, 2), (7, 3, 1), (2, 0, 1)])
def test_convolution(kernel, padding, dilation, stride):
    x, weight = torch.randn(2, 3, 12, 12), torch.randn(4, 3, kernel, kernel)
    size = F.conv2d(x, weight, None, stride, padding, dilation).shape[-1]
    with circular_padding(nn.Identity()):
        found = F.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
    expected = _tiled(lambda y: F.conv2d(y, weight, None, stride, 0, dilation), x, stride, size, padding)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [9, 12, 13])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 2, 0), (5, 3, 2), (4, 4, 1)])
@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_pools(pool, kernel, stride, padding, size, ceil_mode):
    x = torch.randn(2, 3, size, size)
    out = pool(x, kernel, stride, padding, ceil_mode=ceil_mode).shape[-1]
    with circular_padding(nn.Identity()):
        found = pool(x, kernel, stride, padding, ceil_mode=ceil_mode)
    torch.testing.assert_close(found, _tiled(lambda y: pool(y, kernel, stride), x, stride, out, padding))


@pytest.mark.parametrize("kernel", [2, 4, 5])
def test_same_padding_and_a_pad_before(kernel):
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(2, 3, kernel, kernel)
    with circular_padding(nn.Identity()):
        same = F.conv2d(x, weight, padding="same")
        twice = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, padding=2)
    torch.testing.assert_close(same, _tiled(lambda y: F.conv2d(y, weight), x, 1, 8, (kernel - 1) // 2))
    torch.testing.assert_close(twice, _tiled(lambda y: F.conv2d(y, weight), x, 1, 8 + 6 - kernel + 1, 3))


def test_pads_larger_than_the_map_wrap_again():
    x = torch.arange(3.0).reshape(1, 1, 1, 3)
    with circular_padding(nn.Identity()):
        found = F.pad(x, (5, 4, 0, 0))
    assert found.flatten().tolist() == [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert wrapped(x, [(-1, 2)]).flatten().tolist() == [1, 2, 0, 1]


def test_what_is_no_feature_map_is_left_alone():
    tokens, features = torch.randn(2, 5, 7), torch.randn(2, 3, 4, 4)
    table, whole = nn.Parameter(torch.randn(1, 3, 4, 4)), torch.ones(1, 1, 4, 4, dtype=torch.long)
    calls = [
        lambda: F.pad(tokens, (0, 1)),
        lambda: F.pad(features, (0, 0, 0, 0, 2, 2)),  # channels, as in a ResNet shortcut without weights
        lambda: F.pad(features, (0, 0, 0, 1, 0, 1)),  # (N, H, W, C)
        lambda: F.pad(table, (1, 1, 1, 1)),
        lambda: F.pad(whole, (1, 1, 1, 1)),
        lambda: F.pad(features, (-1, 0, 0, -1)),
        lambda: F.max_pool2d(features, 3, 2, 1, return_indices=True)[1],
    ]
    for call in calls:
        expected = call()
        with circular_padding(nn.Identity()):
            assert torch.equal(call(), expected)
