"""A fused model computes what the converted model does, by what is said to be fused and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError, VerificationError
from blurify.nn.fused import BlurredConvolution
from blurify.surgery import fusing

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BLURS: dict[int, Any] = {1: blurify.BlurPool1d, 2: blurify.BlurPool2d, 3: blurify.BlurPool3d}


def random_norms(model: nn.Module) -> nn.Module:
    """Norms that do something."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def compare(one: nn.Module, two: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted, found = one.eval()(x), two(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("padding", ["reflect", "replicate", "zeros", "circular"])
@pytest.mark.parametrize(
    "conv", [(3, 2, 1, 1), (2, 2, 0, 1), (5, 1, 2, 1), (3, 2, 2, 2), (4, 3, 3, 1), (1, 2, 0, 1)], ids=str
)
def test_a_merged_convolution_is_both_on_the_whole_map(ndim: int, padding: str, conv: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kernel, stride, zeros, dilation = conv
    for filter_size, step in ((4, 1), (3, 2), (5, 2)):
        blur = BLURS[ndim](step, filter_size, padding=padding, factor=2)
        own = CONVS[ndim](4, 4, kernel, stride, zeros, dilation=dilation, groups=4).double()
        merged = BlurredConvolution(blur, own)
        for size in (9, 12, 13, 21):
            space = (size, size + 3, size + 1)[:ndim]
            if dilation * (kernel - 1) + 1 > (size // step) + 2 * zeros:
                continue
            x = torch.randn(2, 4, *space, dtype=torch.float64)
            with torch.no_grad():
                torch.testing.assert_close(merged(x), own(blur(x)), rtol=1e-10, atol=1e-12)


def test_a_merged_convolution_without_its_strips_would_be_wrong_at_the_borders() -> None:
    torch.manual_seed(0)
    blur, conv = blurify.BlurPool2d(1, 4, factor=2), nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False).double()
    merged, x = BlurredConvolution(blur, conv), torch.randn(1, 4, 16, 16, dtype=torch.float64)
    # what lies one sample outside of the blurred map is no zero to it
    outside = torch.nn.functional.pad(x, (2, 3, 2, 3), mode="reflect")
    plain = torch.nn.functional.conv2d(outside, merged.weight, None, 2, 0, 1, 4)
    wrong = (plain - conv(blur(x))).abs().amax((0, 1)) > 1e-9
    assert wrong[0].all() and wrong[:, 0].all() and not wrong[1:, 1:].any()


def test_a_dense_convolution_is_not_merged() -> None:
    """Its merged kernel would take more multiply-adds: 36 for 9 and the blur's share."""
    apart, merged = BlurredConvolution.multiply_adds(blurify.BlurPool2d(1, 4, factor=2), nn.Conv2d(64, 64, 3, 2, 1))
    assert apart == 64 * 9 + 16 * 4 and merged == 64 * 36
    apart, merged = BlurredConvolution.multiply_adds(
        blurify.BlurPool2d(1, 4, factor=2), nn.Conv2d(64, 64, 3, 2, 1, groups=64)
    )
    assert apart == 9 + 64 and merged == 36


class Transition(nn.Module):
    """A 1x1 convolution, an average pool, a strided depthwise convolution without a nonlinearity, each with norms."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.reduce = nn.Conv2d(8, 4, 1, bias=bias)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(2)
        self.depthwise = nn.Conv2d(4, 4, 3, 2, 1, groups=4)
        self.head = nn.Conv2d(4, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.depthwise(self.pool(self.norm(self.reduce(self.stem(x))))))


X = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("size", [(32, 32), (31, 45), (8, 9)])
def test_all_of_it_at_any_size(size: tuple[int, int]) -> None:
    converted = blurify.convert(random_norms(Transition()), example_inputs=X)
    fused, done = fusing.fused(converted, merge=True)
    assert done.norms == ["stem.0", "reduce"] and done.moved == ["reduce"] and done.merged == ["depthwise"]
    assert isinstance(fused.depthwise, BlurredConvolution) and isinstance(fused.pool, nn.Identity)
    assert done.macs[1] < done.macs[0] and done.error < 1e-5
    compare(converted, fused, torch.randn(2, 3, *size))


def test_merging_is_asked_for() -> None:
    converted = blurify.convert(random_norms(Transition()), example_inputs=X)
    _, done = fusing.fused(converted)
    assert not done.merged and done.moved


def test_zeros_outside_and_a_bias_do_not_commute() -> None:
    recipe = {"filter": {"padding": "zeros"}}
    for bias in (True, False):
        net = Transition(bias=bias)
        net.norm = nn.Identity()  # type: ignore[assignment]  # whose shift would be a bias
        converted = blurify.convert(random_norms(net), recipe, example_inputs=X)
        fused, done = fusing.fused(converted)
        assert done.moved == ([] if bias else ["reduce"])
        compare(converted, fused, torch.randn(2, 3, 32, 32))


def test_densenet_costs_less_than_its_original() -> None:
    net = random_norms(torchvision.models.densenet121(weights=None))
    x = torch.zeros(1, 3, 64, 64)
    converted = blurify.convert(net, example_inputs=x, verify=False)
    fused, done = fusing.fused(converted)
    assert len(done.moved) == 3
    plan = blurify.plan_of(converted)
    assert plan is not None and done.macs[1] < plan.macs < done.macs[0]
    compare(converted, fused, torch.randn(2, 3, 75, 64))


def test_the_model_is_left_as_it_was_and_the_copy_carries_no_plan() -> None:
    converted = blurify.convert(random_norms(Transition()), example_inputs=X).train()
    before = {name: value.clone() for name, value in converted.state_dict().items()}
    fused = blurify.fuse(converted)
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items())
    assert converted.training and not fused.training and blurify.check(converted)
    assert type(fused).__name__ == "Transition" and blurify.plan_of(fused) is None
    with pytest.raises(BlurifyError, match="not converted"):
        blurify.fuse(fused)


class Shared(nn.Module):
    """What can't be fused: weights used twice, a convolution that two read, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.read, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied, self.norm2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x)))
        y = self.read(x)
        x = self.norm(y) + y
        x = self.norm2(self.tied(x)) * self.tied.weight.sum()
        return self.pool(x)


def test_what_others_read_is_left_alone() -> None:
    converted = blurify.convert(random_norms(Shared()), example_inputs=X)
    fused, done = fusing.fused(converted)
    assert not (done.norms or done.moved or done.merged)
    compare(converted, fused, torch.randn(2, 3, 32, 32))


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = blurify.convert(random_norms(Transition()), example_inputs=X)
    right = fusing.fuse_conv_bn_eval

    def wrong(conv: nn.Conv2d, norm: Any) -> nn.Module:
        made = right(conv, norm)
        with torch.no_grad():
            made.weight[0, 0] *= 1.5
        return made

    monkeypatch.setattr(fusing, "fuse_conv_bn_eval", wrong)
    with pytest.raises(VerificationError, match=r"'stem\.0' and 'stem\.1' can't be fused"):
        blurify.fuse(converted)
    monkeypatch.setattr(fusing, "_check", lambda *_: None)
    with pytest.raises(VerificationError, match="another function"):
        blurify.fuse(converted)
