"""Sums and maxima of slices against a convolution and PyTorch's own pool; who looks on sees what he did before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blurify.nn import BlurPool2d, MaxBlurPool2d, blocks, blurpool
from blurify.nn.autograd import Input
from blurify.nn.blocks import Max, filtered, spread
from blurify.nn.lines import lines_of, steps
from blurify.nn.padding import PADDINGS, extend_by, fold_by
from blurify.nn.pools import _DenseMax

LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}


def drawn_layer(draw: random.Random) -> tuple[Any, list[int], tuple[int, ...]]:
    ndim = draw.choice([1, 2, 3])
    stride, factor = ([draw.randint(1, 4) for _ in range(ndim)] for _ in range(2))
    taps = draw.choice([(1, 3, 3, 1), (1, 2, 1), (1, 0.5, 3), (0, 1, 0), (1, 2, 2, 1), (2, 2), (1, -0.1, 2)])
    layer = blurpool(ndim)(stride, taps=taps, factor=factor, padding=draw.choice(PADDINGS))
    sizes = [draw.randint(1, (12, 9, 5)[ndim - 1]) for _ in range(ndim)]
    return layer, sizes, tuple(draw.randint(-1, 3) for _ in range(ndim))


def drawn_pool(draw: random.Random, sizes: list[int]) -> _DenseMax:
    kernel = [draw.randint(1, min(4, n)) for n in sizes]
    padding = [draw.randint(0, k // 2) for k in kernel]
    dilation = [draw.choice([1, 2]) if 2 * k - 1 <= n else 1 for k, n in zip(kernel, sizes, strict=True)]
    return _DenseMax(kernel, padding, dilation, [draw.choice([0, 0, 1]) for _ in sizes])


@pytest.mark.parametrize("seed", range(60))
def test_forward_and_backward_are_those_of_a_convolution(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    monkeypatch.setattr(blocks, "BLOCK", draw.choice([1, 50, 1 << 18]))  # of one map, of some, of all
    layer, sizes, extend = drawn_layer(draw)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64).relu().requires_grad_()  # ties between zeros
    given = x.detach()
    last = len(sizes) > 1 and draw.random() < 0.5
    given = given.contiguous(memory_format=LAYOUTS[len(sizes)]) if last else given
    pool = drawn_pool(draw, sizes) if draw.random() < 0.6 else None
    dense = x if pool is None else pool.plain(x)
    lines = lines_of(layer._filters, layer.stride, layer._pads(extend), layer.padding)
    ends = zip(lines, dense.shape[2:], strict=True)
    if not dense.isfinite().all() or any(
        one.size(n) < 1 or n + min(one.left, 0) + min(one.right, 0) < 1 for one, n in ends
    ):
        pytest.skip("nothing is left to filter, or a window of nothing but padding")
    expected = layer._blur(dense, extend)
    stages = None if pool is None else pool.stages
    torch.testing.assert_close(filtered(given, lines, stages, last), expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    found = spread(grad, lines, stages, sizes, given if pool else None, last)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_transpose_by_autograds_operators(seed: int) -> None:
    layer, sizes, _ = drawn_layer(random.Random(seed))
    if not layer._groups:
        pytest.skip("filters nothing")
    x = torch.randn(2, 3, *sizes, dtype=torch.float64, requires_grad=True)
    y = layer._blur(x, (0,) * len(sizes))
    grad = torch.randn_like(y)
    (wanted,) = torch.autograd.grad(y, x, grad)
    found = layer._spread(grad, Input(x.shape, False, None), layer._lines(x, (0,) * len(sizes)))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("pads", [((2, 3), (0, 1)), ((-1, 2), (3, -2)), ((9, 7), (0, 11))])
def test_folding_is_the_transpose_of_extending(padding: str, pads: Any) -> None:
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    y = extend_by(x, pads, padding)
    grad = torch.randn_like(y)
    torch.testing.assert_close(fold_by(grad, pads, padding), torch.autograd.grad(y, x, grad)[0])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_without_a_padded_copy(size: int, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules[BlurPool2d.__module__], "_WIDE", 0)
    layer = BlurPool2d(2, size, padding=padding)
    for n in ((8, 8), (9, 12), (4, 7)):
        x = torch.randn(2, 3, *n).to(memory_format=torch.channels_last)
        found = layer(x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, layer._blur(x, (0, 0)))


def test_sums_start_with_equal_weights_and_are_exact_for_binomials() -> None:
    assert steps((1.0, 3.0, 3.0, 1.0), 1.0) == ((0, 3, 1.0, 4), (1, 2, 1.0, 5), (4, 5, 3.0, 4))
    assert steps((2.0, 4.0, 2.0), 2.0) == ((0, 2, 1.0, 3), (3, 1, 2.0, 3))
    assert steps((1.0,), 1.0) == ((0, -1, 1.0, 1),)


def counted(layer: BlurPool2d, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = type(layer)._filtered

    def counting(self: BlurPool2d, *args: Any) -> Tensor:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(blurpool(2).__mro__[1], "_filtered", counting)
    return calls


@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(3, 2, 1)], ids=str)
def test_the_backward_does_not_run_the_forward_again(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    y = layer(x)
    calls = counted(getattr(layer, "blurpool", layer), monkeypatch)
    y.sum().backward()
    assert not calls
    torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    assert calls, "the measure must see something"


def test_taps_that_were_changed_are_what_runs() -> None:
    x = torch.randn(1, 2, 8, 8)
    for layer, blur in ((one := BlurPool2d(), one), (two := MaxBlurPool2d(2, 2), two.blurpool)):
        before = layer(x)
        blur.kernel0.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), 2 * before)


def test_a_hook_on_the_blur_is_given_what_the_pool_made() -> None:
    pool, x, seen = MaxBlurPool2d(3, 2, 1), torch.randn(1, 2, 8, 8), []
    alone = pool(x)
    pool.blurpool.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.testing.assert_close(pool(x), alone)
    assert torch.equal(seen[0], nn.MaxPool2d(3, 1, 1)(x))


def test_modes_that_count_or_record_see_a_convolution() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        BlurPool2d()(torch.randn(1, 2, 8, 8))
    assert counter.get_total_flops() == 2 * 2 * 4 * 4 * 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, 9, 8).to(dtype).requires_grad_()
    pool = MaxBlurPool2d(3, 2, 1)
    y = pool(x)
    assert torch.equal(y, pool(x.detach().float()).to(dtype))
    y.sum().backward()
    assert x.grad.dtype == dtype


def test_the_first_of_equal_samples_gets_the_gradient() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    wanted = torch.autograd.grad(nn.MaxPool2d(3, 1, 1)(x).sum(), x)[0]
    found = spread(torch.ones(1, 1, 4, 4), (), Max((3, 3), (1, 1), (1, 1), (0, 0)), (4, 4), x.detach(), False)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(3, 2, 1)], ids=str)
def test_many_gradients_at_once(layer: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 2, 9, 10, requires_grad=True)
    y = layer(x)
    many = torch.randn(3, *y.shape)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in many]
    torch.testing.assert_close(together, torch.stack(alone))
