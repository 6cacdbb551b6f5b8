"""Layers of other kinds of filter, and causal ones, against slow definitions."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from blurify.errors import BlurifyError
from blurify.nn import BlurPool1d, BlurPool2d, FourierPool1d, FourierPool2d, FourierPool3d, blurpool
from blurify.nn.fourier import fourierpool
from blurify.spec.methods import Area, Flat, Fourier, Sinc, Wavelet

TAPPED = [Flat(6), Flat(7), Sinc(), Wavelet("db2"), Wavelet("cdf9/7"), Area()]
few = settings(deadline=None, max_examples=40)


def dft(n: int) -> Tensor:
    """The matrix of the discrete Fourier transform."""
    t = torch.arange(n, dtype=torch.float64)
    return torch.exp(-2j * math.pi * torch.outer(t, t) / n)


def ideal(signal: Tensor, stride: int, factor: int, shift: int, padding: str, window: str, count: int) -> Tensor:
    """The definition: a period of the signal, its DFT, what is above the new Nyquist frequency set to 0, and back."""
    n = signal.numel()
    if padding == "zeros":
        signal = torch.cat([signal, torch.zeros_like(signal)])
    elif padding == "reflect" and n > 1:
        signal = torch.cat([signal, signal[1:-1].flip(0)])
    period = signal.numel()
    k = torch.arange(period, dtype=torch.float64)
    frequency = torch.minimum(k, period - k) * 2 * factor / period  # in units of the new Nyquist frequency
    kept = torch.where(frequency < 1 - 1e-9, 1.0, torch.where(frequency < 1 + 1e-9, 0.5, 0.0)).double()
    if window == "hamming":
        kept = kept * (0.54 + 0.46 * torch.cos(math.pi * frequency))
    filtered = (dft(period).conj() @ (kept * (dft(period) @ signal.to(torch.complex128)))).real / period
    return torch.stack([filtered[(stride * j + shift) % period] for j in range(count)])


@few
@given(st.data(), st.integers(1, 3), st.sampled_from(["reflect", "circular", "zeros"]), st.booleans(), st.booleans())
def test_the_ideal_filter_is_its_definition(data, ndim, padding, tapered, by_fft):
    def several(least: int, most: int) -> list[int]:
        return data.draw(st.lists(st.integers(least, most), min_size=ndim, max_size=ndim))

    n, stride, factor, shift = several(1, (14, 8, 5)[ndim - 1]), several(1, 4), several(1, 5), several(-2, 2)
    count = [math.ceil(m / s) for m, s in zip(n, stride, strict=True)]
    size = data.draw(st.one_of(st.none(), st.just([max(1, c + e) for c, e in zip(count, several(-1, 2), strict=True)])))
    window = "hamming" if tapered else "none"
    layer = fourierpool(ndim)(stride, window=window, padding=padding, factor=factor, shift=shift)
    x = torch.rand(1, 2, *n, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        if by_fft:
            patch.setattr(sys.modules[FourierPool1d.__module__], "LONGEST_MATRIX", 0)
        actual = layer(x, size)
    expected = x
    for dim in range(ndim):
        wanted = (size or count)[dim]
        rows = expected.movedim(dim + 2, -1)
        out = rows.new_empty(*rows.shape[:-1], wanted)
        for where in itertools.product(*map(range, rows.shape[:-1])):
            if factor[dim] > 1:
                out[where] = ideal(rows[where], stride[dim], factor[dim], shift[dim], padding, window, wanted)
            else:  # only subsampled: what lies outside is that of a blur
                plain = BlurPool1d(stride[dim], 1, padding=padding, shift=shift[dim])
                out[where] = plain(rows[where][None, None], [wanted])[0, 0]
        expected = out.movedim(-1, dim + 2)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_cutting_the_middle_out_of_the_spectrum_is_the_same_where_the_stride_divides_the_size():
    x = torch.randn(16, dtype=torch.float64)
    spectrum = dft(16) @ x.to(torch.complex128)
    middle = torch.cat([spectrum[:4], spectrum[-4:]])  # frequencies 0..3 and -4..-1, as published
    published = (dft(8).conj() @ middle).real / 16
    torch.testing.assert_close(FourierPool1d(2, padding="circular")(x[None, None])[0, 0], published)


def test_nothing_aliases():
    n = 24
    t = torch.arange(n, dtype=torch.float64)
    for stride in (2, 3, 4):
        layer = FourierPool1d(stride, padding="circular")
        for k in range(n // 2 + 1):
            wave = torch.cos(2 * math.pi * k * t / n + 0.3).view(1, 1, n)
            if 2 * stride * k < n:
                torch.testing.assert_close(layer(wave), wave[..., ::stride], rtol=1e-9, atol=1e-9)
            elif 2 * stride * k > n:
                assert layer(wave).abs().max() < 1e-9


def test_long_signals_are_transformed_and_do_not_make_a_matrix(monkeypatch):
    monkeypatch.setattr(FourierPool1d, "_matrix", None)
    x = torch.randn(1, 1, 1500)
    assert FourierPool1d(3)(x).shape == (1, 1, 500)
    assert FourierPool1d(3)(x.half()).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_precisions_of_the_ideal_filter(dtype):
    x = torch.randn(2, 3, 9, 12)
    expected, actual = FourierPool2d(2)(x), FourierPool2d(2)(x.to(dtype))
    assert actual.dtype == dtype
    actual = actual.real if dtype.is_complex else actual
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=2e-2)


def test_gradients_layouts_and_copies_of_the_ideal_filter():
    layer = FourierPool2d((1, 2), window="hamming")
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    y = layer(torch.randn(2, 3, 6, 8).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(torch.randn(2, 3, 6, 8)).is_contiguous()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.half().float()):
        assert torch.equal(other(x), layer(x))
    assert layer.state_dict() == {}
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 2, 4, 5)).dtype == BlurPool2d(2)(torch.randn(1, 2, 4, 5)).dtype
    assert FourierPool3d(2, factor=1)(torch.randn(1, 1, 3, 3, 3)).shape == (1, 1, 2, 2, 2)


def exported() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), FourierPool2d(2), FourierPool2d(3, window="hamming")).eval()


def test_the_ideal_filter_exports_with_open_sizes():
    net, x, other = exported(), torch.randn(1, 1, 20, 24), torch.randn(1, 1, 31, 17)
    program = torch.export.export(net, (x,), dynamic_shapes=({2: Dim("h", min=8), 3: Dim("w", min=8)},))
    torch.testing.assert_close(program.module()(other), net(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(net, x)(other), net(other))


def test_the_ideal_filter_runs_as_onnx_with_open_sizes():
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x, other = exported(), torch.randn(1, 1, 20, 24), torch.randn(1, 1, 31, 17)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), file, input_names=["x"], dynamic_axes={"x": {2: "h", 3: "w"}}, dynamo=False)
    found = onnxruntime.InferenceSession(file.getvalue()).run(None, {"x": other.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), net(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["causal", "replicate", "mirror"])
def test_paddings_without_a_period_are_refused(padding):
    with pytest.raises(BlurifyError, match="padding can't be"):
        FourierPool1d(2, padding=padding)


# Designed taps.


@pytest.mark.parametrize("method", TAPPED, ids=repr)
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_designed_taps_lie_where_they_should(method, stride):
    taps, origin = method.filter(stride), method.origin(stride)
    x = torch.rand(1, 1, 12 * stride + len(taps), dtype=torch.float64)
    y = BlurPool1d(stride, filter=method, padding="zeros")(x)
    for j in range(y.shape[-1]):
        start = stride * j - origin
        expected = sum(tap * x[0, 0, start + k].item() for k, tap in enumerate(taps) if 0 <= start + k < x.shape[-1])
        assert y[0, 0, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", TAPPED, ids=repr)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_designed_layers_keep_sizes_on_tiny_maps_and_copy(method, ndim):
    for n in (1, 2, 3, 5):
        x = torch.rand(1, 2, *[n] * ndim)
        layer = blurpool(ndim)(2, filter=method)
        assert layer(x).shape[2:] == (math.ceil(n / 2),) * ndim
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        assert torch.equal(pickle.loads(pickle.dumps(layer)).double().float()(x), layer(x))
        torch.testing.assert_close(layer(torch.ones_like(x)), torch.ones_like(layer(x)))
    assert repr(method) in repr(layer)


def test_an_ideal_filter_is_no_convolution():
    with pytest.raises(BlurifyError, match="FourierPool"):
        BlurPool2d(2, filter=Fourier())


# Causal.


@pytest.mark.parametrize("filter_size", [2, 3, 4, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("ndim", [1, 2])
def test_a_causal_blur_depends_on_nothing_later(filter_size, stride, ndim):
    layer = blurpool(ndim)(stride, filter_size, padding="causal", factor=max(2, stride)).double()
    n = 17
    x = torch.rand(1, 1, *[5] * (ndim - 1), n, dtype=torch.float64)
    before = layer(x)
    for place in range(n):
        changed = x.clone()
        changed[..., place] += 1
        moved = (layer(changed) - before).abs().amax(tuple(range(x.dim() - 1))) > 1e-12
        first = math.ceil(place / stride)  # the first output whose own sample is not before it
        assert not moved[:first].any(), "it looked ahead"
        length = len(layer._filters[-1])
        reach = [stride * j - length < place for j in range(len(moved))]
        expected = [j >= first and reach[j] for j in range(len(moved))]
        if place:  # the first sample is also what was before
            assert moved.tolist() == expected


def test_a_causal_blur_is_the_delayed_one_away_from_the_beginning():
    x = torch.rand(1, 1, 40, dtype=torch.float64)
    plain, causal = BlurPool1d(1, 4, factor=2).double(), BlurPool1d(1, 4, factor=2, padding="causal").double()
    torch.testing.assert_close(causal(x)[..., 6:], plain(x)[..., 4:-2], rtol=0, atol=1e-12)
    constant = torch.full((1, 1, 9), 3.0)
    torch.testing.assert_close(BlurPool1d(2, padding="causal")(constant), torch.full((1, 1, 5), 3.0))
