"""The layers against slow, obvious references, PyTorch's own pools and the published BlurPool."""

from __future__ import annotations

import copy
import io
import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import antialiased_cnns
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from blurify import nn as layers
from blurify.errors import BlurifyError
from blurify.nn import AvgBlurPool2d, BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool2d, blurpool, dense_max_pool
from blurify.nn.padding import PADDINGS as PADDINGS_
from blurify.spec.filters import compose_taps

MAX_POOLS = (layers.MaxBlurPool1d, layers.MaxBlurPool2d, layers.MaxBlurPool3d)
AVG_POOLS = (layers.AvgBlurPool1d, layers.AvgBlurPool2d, layers.AvgBlurPool3d)
F_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
F_AVG = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
PADDINGS = st.sampled_from(PADDINGS_)
few = settings(deadline=None, max_examples=80)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sample(signal: list[float], i: int, padding: str) -> float:
    """Sample i of a signal that goes on forever."""
    n = len(signal)
    if padding == "zeros":
        return signal[i] if 0 <= i < n else 0.0
    if padding == "replicate":
        return signal[min(max(i, 0), n - 1)]
    if padding == "circular":
        return signal[i % n]
    while not 0 <= i < n:  # reflect, again and again; a lone sample reflects onto itself
        i = 0 if n == 1 else -i if i < 0 else 2 * (n - 1) - i
    return signal[i]


def slow_blur(
    x: Tensor, stride: list[int], filters: list[tuple[float, ...]], shift: list[int], padding: str, size: list[int]
) -> Tensor:
    """The definition, one dimension and one output at a time."""
    for dim in range(x.dim() - 2):
        taps, rows = filters[dim], x.movedim(dim + 2, -1)
        origin, beyond = (len(taps) - 1) // 2, padding
        if padding == "causal":  # the last dimension is time: a window ends at its own sample
            ends = dim == x.dim() - 3
            origin, beyond = (len(taps) - 1, "replicate") if ends else (origin, "reflect")
        out = rows.new_empty(*rows.shape[:-1], size[dim])
        for where in itertools.product(*map(range, rows.shape[:-1])):
            signal = rows[where].tolist()
            for j in range(size[dim]):
                start = stride[dim] * j - (origin - shift[dim])
                out[(*where, j)] = sum(tap * sample(signal, start + k, beyond) for k, tap in enumerate(taps))
        x = out.movedim(-1, dim + 2)
    return x


def per_dim(draw: Any, ndim: int, least: int, most: int) -> list[int]:
    return draw(st.lists(st.integers(least, most), min_size=ndim, max_size=ndim))


@few
@given(st.data(), st.integers(1, 3), PADDINGS)
def test_blur_is_its_definition(data: st.DataObject, ndim: int, padding: str) -> None:
    n = per_dim(data.draw, ndim, 1, (9, 6, 4)[ndim - 1])
    stride, factor = (per_dim(data.draw, ndim, 1, 4) for _ in range(2))
    shift = per_dim(data.draw, ndim, -3, 3)
    taps = data.draw(st.lists(st.floats(0.1, 1), min_size=1, max_size=5))
    size = data.draw(st.one_of(st.none(), st.just(per_dim(data.draw, ndim, 1, 4))))
    layer = blurpool(ndim)(stride, taps=taps, factor=factor, shift=shift, padding=padding)
    x = torch.rand(1, 2, *n, dtype=torch.float64)
    filters = [compose_taps(layer.taps, f) for f in factor]
    expected = [math.ceil(m / s) for m, s in zip(n, stride, strict=True)] if size is None else size
    reference = slow_blur(x, stride, filters, shift, padding, expected)
    torch.testing.assert_close(layer(x, size), reference, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x[0], size), layer(x, size)[0])


def test_joint_and_separable_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 9, 8, 7, dtype=torch.float64)
    joint = BlurPool3d((2, 3, 1), 3)
    monkeypatch.setattr(sys.modules[BlurPool3d.__module__], "_JOINT_TAPS", 0)
    separable = BlurPool3d((2, 3, 1), 3)
    assert (len(list(joint.buffers())), len(list(separable.buffers()))) == (1, 2)
    torch.testing.assert_close(joint.double()(x), separable.double()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize(("padding", "theirs"), [("reflect", "reflect"), ("replicate", "replicate"), ("zeros", "zero")])
def test_equals_the_published_blurpool(size: int, padding: str, theirs: str) -> None:
    for n, stride in itertools.product((12, 13), (1, 2)):
        x = torch.randn(2, 3, n, n + 3)
        published = antialiased_cnns.BlurPool(3, theirs, filt_size=size, stride=stride)
        ours = BlurPool2d(stride, size, factor=2, padding=padding)
        torch.testing.assert_close(ours(x), published(x), rtol=1e-6, atol=1e-6)
        published = antialiased_cnns.BlurPool1D(3, theirs, filt_size=size, stride=stride)
        ours1d = BlurPool1d(stride, size, factor=2, padding=padding)
        torch.testing.assert_close(ours1d(x[..., 0, :]), published(x[..., 0, :]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_aliases_of_a_constant_are_gone(factor: int) -> None:
    n = 12 * factor
    for k in range(1, factor):
        wave = torch.cos(2 * math.pi * k / factor * torch.arange(n, dtype=torch.float64)).view(1, 1, n)
        assert wave[..., ::factor].abs().min() > 0.99, "the wave must look like a constant when subsampled"
        assert BlurPool1d(factor, padding="circular")(wave).abs().max() < 1e-9
    constant = torch.ones(1, 1, n, dtype=torch.float64)
    torch.testing.assert_close(BlurPool1d(factor)(constant), constant[..., ::factor], rtol=1e-12, atol=0)


def test_identity_only_indexes() -> None:
    x = torch.randn(2, 3, 7, 8)
    assert BlurPool2d(1, 1)(x) is x
    assert BlurPool2d(1)(x) is x  # factor 1 needs no filter
    y = BlurPool2d((2, 3), 1)(x)
    assert torch.equal(y, x[..., ::2, ::3])
    assert y.is_contiguous(), "as a convolution's output is, so that .view() of it works"
    assert BlurPool2d((2, 3), 1)(x.to(memory_format=torch.channels_last)).is_contiguous(
        memory_format=torch.channels_last
    )
    assert BlurPool2d(2, 1).is_identity
    assert not BlurPool2d(2).is_identity
    assert not BlurPool2d(2, 1, shift=1).is_identity


def test_filters_only_the_dimensions_that_are_subsampled() -> None:
    layer = BlurPool2d((1, 2))
    assert [tuple(kernel.shape) for kernel in layer.buffers()] == [(1, 1, 1, 4)]
    x = torch.randn(2, 3, 5, 8)
    torch.testing.assert_close(layer(x)[:, :, 2], BlurPool1d(2)(x[:, :, 2]))


# Types, layouts and tools


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("padding", PADDINGS_)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_layouts(ndim: int, padding: str, dtype: torch.dtype) -> None:
    x = torch.rand(2, 3, *(7, 6, 5)[:ndim], dtype=torch.float64).to(dtype)
    layer = blurpool(ndim)(padding=padding)
    y = layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), layer(x.double()), rtol=8 * torch.finfo(dtype).eps, atol=1e-15)
    assert layer(x[:0]).shape == (0, *y.shape[1:])
    if ndim > 1:
        layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
        last = layer(x.to(memory_format=layout))
        assert last.is_contiguous(memory_format=layout)
        torch.testing.assert_close(last, y)


@pytest.mark.parametrize("cast", [lambda m: m, lambda m: m.double(), lambda m: m.half().double()])
def test_float64_keeps_every_digit(cast: Any) -> None:
    layer = cast(BlurPool1d(3, 2))  # taps of 1/3: no binary fraction
    y = layer(torch.tensor([[[3.0, 5.0, 7.0]]], dtype=torch.float64))
    assert y.item() == pytest.approx((5 + 3 + 5) / 3, abs=1e-14)


def test_survives_the_meta_device() -> None:
    x = torch.randn(1, 2, 8, 8)
    with torch.device("meta"):
        layer = BlurPool2d()
    layer.to_empty(device="cpu")
    assert torch.equal(layer(x), BlurPool2d()(x))


def test_state_dict_is_empty_and_copies_work() -> None:
    x = torch.randn(1, 2, 9, 8)
    for layer in (BlurPool2d(2), MaxBlurPool2d(3, 2, 1), AvgBlurPool2d(2)):
        assert not layer.state_dict()
        assert not list(layer.parameters())
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
            assert torch.equal(twin(x), layer(x))


def test_autocast_and_its_backward() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), BlurPool2d(2), MaxBlurPool2d(3, 2, 1))
    x = torch.randn(1, 2, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert BlurPool2d()(x.requires_grad_()).shape == (1, 2, 6, 6)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)
    (low,) = torch.autograd.grad(y.float().sum(), model[0].weight)
    (full,) = torch.autograd.grad(model(x).sum(), model[0].weight)
    torch.testing.assert_close(low, full, rtol=0.1, atol=0.3)


GRADIENTS = [
    BlurPool2d(),
    BlurPool2d((1, 2), padding="zeros"),
    BlurPool2d(3, padding="circular"),
    BlurPool1d(4, padding="replicate"),
    BlurPool3d(2, 3),
    MaxBlurPool2d(3, 2, 1, ceil_mode=True),
    MaxBlurPool2d(3, 2, 1, dense_kernel_size=2),
    AvgBlurPool2d(2),
]


@pytest.mark.parametrize("layer", GRADIENTS, ids=str)
def test_derivatives(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double()
    shape = {BlurPool1d: (5,), BlurPool3d: (3, 2, 3)}.get(type(layer), (4, 5))
    x = torch.randn(1, 2, *shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, x)
    batch = torch.stack([x.detach(), 2 * x.detach()])
    each = torch.func.vmap(torch.func.grad(lambda a: layer(a).square().sum()))(batch)
    loop = [torch.autograd.grad(layer(a).square().sum(), a)[0] for a in batch.unbind() if a.requires_grad_() is a]
    torch.testing.assert_close(each, torch.stack(loop))


def kept_for_backward(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the layer, besides x itself."""
    storages: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(x)
    storages.pop(x.untyped_storage().data_ptr(), None)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_nothing_is_kept_for_backward() -> None:
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    for layer in (BlurPool2d(), MaxBlurPool2d(3, 2, 1), AvgBlurPool2d(2)):
        assert kept_for_backward(layer, x) == 0, layer
    assert kept_for_backward(nn.MaxPool2d(3, 2, 1), x) > 0, "the measure must see something"


class Everything(nn.Module):
    """One of each kind, with and without gradients inside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            [
                MaxBlurPool2d(3, 2, 1, dense_kernel_size=2),
                MaxBlurPool2d(3, 2, ceil_mode=True),
                AvgBlurPool2d(2),
                AvgBlurPool2d(3, 2, 1, ceil_mode=True),
                BlurPool2d((1, 2)),
                BlurPool2d(3, padding="zeros"),
                BlurPool2d(2, 3, padding="circular"),
                BlurPool2d(2, 5, padding="replicate", shift=1),
                BlurPool2d(2, 1),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x).relu()
        return [layer(x) for layer in self.layers]


SIZES = [(2, 3, 33, 34), (1, 3, 40, 41), (3, 3, 9, 8)]


def dynamic() -> tuple[dict[int, Any], ...]:
    dim = torch.export.Dim
    return ({0: dim("batch", max=64), 2: dim("height", min=8, max=4096), 3: dim("width", min=8, max=4096)},)


def assert_same(got: Any, expected: Any) -> None:
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(left), right.detach(), rtol=1e-4, atol=1e-5)


def test_compile_without_graph_breaks_forward_and_backward() -> None:
    torch._dynamo.reset()
    model = Everything()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SIZES[:2]:
        x = torch.randn(shape)
        assert_same([y.detach() for y in compiled(x)], model(x))
        (got,) = torch.autograd.grad(sum(y.square().mean() for y in compiled(x)), model.conv.weight)
        (expected,) = torch.autograd.grad(sum(y.square().mean() for y in model(x)), model.conv.weight)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(strict: bool) -> None:
    model = Everything().eval()
    program = torch.export.export(model, (torch.randn(SIZES[0]),), dynamic_shapes=dynamic(), strict=strict).module()
    for shape in SIZES:
        x = torch.randn(shape)
        assert_same([y.detach() for y in program(x)], model(x))


def test_onnx_with_dynamic_sizes() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = Everything().eval()
    exported = torch.onnx.export(model, (torch.randn(SIZES[0]),), dynamo=True, dynamic_shapes=dynamic(), verbose=False)
    assert exported is not None
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    for shape in SIZES:
        x = torch.randn(shape)
        assert_same(session.run(None, {session.get_inputs()[0].name: x.numpy()}), model(x))


# Pools


def draw_pool(data: st.DataObject, ndim: int, dilated: bool) -> tuple[list[int], ...]:
    """kernel, stride, padding, dilation that PyTorch accepts, and a size that holds a window or more."""
    kernel = per_dim(data.draw, ndim, 1, 4)
    stride = per_dim(data.draw, ndim, 1, 4)
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = per_dim(data.draw, ndim, 1, 2) if dilated else [1] * ndim
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return kernel, stride, padding, dilation, [data.draw(st.integers(m, m + 6)) for m in least]


@few
@given(st.data(), st.integers(1, 3), st.booleans(), PADDINGS)
def test_max_pool_by_identity_is_the_original_and_blurred_has_its_size(
    data: st.DataObject, ndim: int, ceil_mode: bool, padding_mode: str
) -> None:
    kernel, stride, padding, dilation, n = draw_pool(data, ndim, dilated=True)
    x = torch.randn(2, 2, *n)
    arguments = [tuple(a) for a in (kernel, stride, padding, dilation)]
    original = F_MAX[ndim - 1](x, *arguments, ceil_mode=ceil_mode)  # type: ignore[arg-type]
    pool, size = MAX_POOLS[ndim - 1], data.draw(st.integers(2, 5))
    for batch, expected in ((x, original), (x[0], original[0])):
        same = pool(*arguments, ceil_mode=ceil_mode, filter_size=1)
        assert torch.equal(same(batch), expected)
        blurred = pool(*arguments, ceil_mode=ceil_mode, filter_size=size, padding_mode=padding_mode)
        assert blurred(batch).shape == expected.shape
        other = pool(*arguments, ceil_mode=ceil_mode, filter_size=size, dense_kernel_size=2)
        assert other(batch).shape == expected.shape
        if max(dilation) == 1:  # (between the samples of a dilated window there may be nothing but padding: -inf)
            assert blurred(batch).isfinite().all()
            assert other(batch).isfinite().all()


@few
@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), PADDINGS)
def test_avg_pool_by_identity_is_the_original_and_blurred_has_its_size(
    data: st.DataObject, ndim: int, ceil_mode: bool, count: bool, padding_mode: str
) -> None:
    kernel, stride, padding, _, n = draw_pool(data, ndim, dilated=False)
    n = list(map(max, n, kernel))  # avg_pool3d refuses less
    x = torch.randn(2, 2, *n)
    arguments: Any = (tuple(kernel), tuple(stride), tuple(padding), ceil_mode, count)
    original = F_AVG[ndim - 1](x, *arguments)
    pool = AVG_POOLS[ndim - 1]
    assert torch.equal(pool(*arguments, filter_size=1)(x), original)
    blurred = pool(*arguments, filter_size=data.draw(st.integers(2, 5)), padding_mode=padding_mode)
    assert blurred(x).shape == original.shape
    assert blurred(x[0]).shape == original[0].shape
    sizes = [layers.pool_output_size(*a, 1, ceil_mode) for a in zip(n, kernel, stride, padding, strict=True)]
    assert (*sizes,) == original.shape[2:]


@few
@given(st.data(), st.integers(1, 3))
def test_dense_max_pool_is_bit_equal_on_every_path(data: st.DataObject, ndim: int) -> None:
    kernel = per_dim(data.draw, ndim, 1, 6)
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = per_dim(data.draw, ndim, 1, 3)
    x = torch.randn(
        1, 2, *[d * (k - 1) + 1 + data.draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    )
    x[torch.rand(x.shape) < 0.03] = math.nan
    x[torch.rand(x.shape) < 0.1] = -math.inf
    expected = F_MAX[ndim - 1](x, tuple(kernel), 1, tuple(padding), tuple(dilation))  # type: ignore[arg-type]
    strided = torch.stack([x, x], -1)[..., 0]  # not contiguous: PyTorch's own pool
    for form in (x, x[0], strided, x.clone().requires_grad_()):
        out = dense_max_pool(form, kernel, padding, dilation).detach()
        torch.testing.assert_close(out.reshape(expected.shape), expected, rtol=0, atol=0, equal_nan=True)


def test_max_pool_of_the_published_resnets() -> None:
    for n in (14, 15):
        x = torch.randn(1, 3, n, n)
        ours = MaxBlurPool2d(3, 2, 1, dense_kernel_size=2)(x)
        theirs = nn.Sequential(nn.MaxPool2d(2, 1), antialiased_cnns.BlurPool(3, filt_size=4, stride=2))(x)
        assert ours.shape == nn.MaxPool2d(3, 2, 1)(x).shape
        # At odd sizes theirs is smaller than the original pool's output; ours goes on for one more sample.
        torch.testing.assert_close(ours[..., :7, :7], theirs, rtol=1e-6, atol=1e-6)


def test_avg_pool_of_the_published_densenets() -> None:
    x = torch.randn(1, 3, 14, 14)
    torch.testing.assert_close(AvgBlurPool2d(2)(x), antialiased_cnns.BlurPool(3, filt_size=4, stride=2)(x))


def test_a_module_becomes_anti_aliased_in_place() -> None:
    pool: Any = nn.MaxPool2d(3, 2, 1)
    pool.__class__ = MaxBlurPool2d
    pool.blurpool = BlurPool2d(2, 4)
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(pool(x), MaxBlurPool2d(3, 2, 1)(x))
    pool.dense_kernel_size = (2, 2)
    assert torch.equal(pool(x), MaxBlurPool2d(3, 2, 1, dense_kernel_size=2)(x))
    average: Any = nn.AvgPool2d(2, divisor_override=3)
    expected = average(x)
    average.__class__ = AvgBlurPool2d
    average.blurpool = BlurPool2d(2, 1)
    assert torch.equal(average(x), expected)


@pytest.mark.parametrize("pool", [*MAX_POOLS, *AVG_POOLS])
def test_one_by_one_maps(pool: Any) -> None:
    ndim = 1 + (*MAX_POOLS, *AVG_POOLS).index(pool) % 3
    x = torch.randn(1, 2, *(1,) * ndim)
    for layer in (pool(3, 2, 1), pool(1, 2), pool(3, 2, 1, padding_mode="circular")):
        torch.testing.assert_close(layer(x), x)


# What is said and what is refused


def test_repr_is_short() -> None:
    assert repr(BlurPool2d()) == "BlurPool2d(stride=2, filter_size=4)"
    assert repr(BlurPool2d((1, 2), taps=[1, 3])) == "BlurPool2d(stride=(1, 2), taps=(0.25, 0.75))"
    full = BlurPool1d(1, 3, factor=2, shift=-1, padding="zeros")
    assert repr(full) == "BlurPool1d(stride=1, filter_size=3, padding='zeros', factor=2, shift=-1)"
    assert "dense_kernel_size=2" in repr(MaxBlurPool2d(3, 2, 1, dense_kernel_size=2))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"stride": 0}, "stride 0: give a whole number of at least 1, or 2 of them"),
        ({"stride": (1, 2, 3)}, "stride"),
        ({"stride": 1.5}, "stride 1.5"),
        ({"stride": "22"}, "stride '22'"),
        ({"factor": (2, -1)}, "factor"),
        ({"shift": 0.5}, "shift 0.5: give a whole number, or 2 of them"),
        ({"filter_size": 8}, "from 1 to 7"),
        ({"taps": [1, -1]}, "positive sum"),
        ({"padding": "mirror"}, "reflect, replicate, zeros, circular"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BlurifyError, match=says) as caught:
        BlurPool2d(**arguments)
    assert "\n" not in str(caught.value)


def test_bad_inputs() -> None:
    with pytest.raises(BlurifyError, match=r"shape \(4, 4\).*2 spatial dimensions"):
        BlurPool2d()(torch.randn(4, 4))
    for pool in (MaxBlurPool2d(3, 2), AvgBlurPool2d(3, 2)):
        with pytest.raises(BlurifyError, match="too small"):
            pool(torch.randn(1, 1, 2, 2))
    with pytest.raises(BlurifyError, match="return_indices"):
        MaxBlurPool2d(2, return_indices=True)
    pool = MaxBlurPool2d(2)
    pool.return_indices = True
    with pytest.raises(BlurifyError, match="return_indices"):
        pool(torch.randn(1, 1, 4, 4))


def test_taps_survive_who_fills_the_meta_device_with_empty_memory():
    """transformers 5 builds on the meta device and sets buffers that no checkpoint has to uninitialised memory."""
    with torch.device("meta"):
        pool = BlurPool2d(stride=2, filter_size=4)
    assert pool.kernel0.is_meta
    pool.kernel0 = torch.full(pool.kernel0.shape, 1e30)
    assert torch.equal(pool.kernel0, BlurPool2d(stride=2, filter_size=4).kernel0)
    ours = torch.zeros_like(pool.kernel0)
    pool.kernel0 = ours  # whoever sets taps of a layer that has memory means it
    assert torch.equal(pool.kernel0, ours)
