"""Kinds of filter against what defines them: zeros, flatness, orthogonality, the DFT of a window."""

from __future__ import annotations

import cmath
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blurify.errors import BlurifyError
from blurify.spec.designs import WAVELETS, flat_taps
from blurify.spec.filters import MAX_TAPS, binomial_taps, compose_taps
from blurify.spec.methods import (
    METHODS,
    Area,
    Flat,
    Fourier,
    Sinc,
    Taps,
    Wavelet,
    method_from_dict,
    method_to_dict,
)

TAPPED = [Flat(6), Flat(9), Flat(7), Flat(11), Sinc(), Sinc(7, 0.8, "hann"), Area(), *map(Wavelet, WAVELETS)]
ALL = [Taps((0.25, 0.5, 0.25)), *TAPPED, Fourier(), Fourier("hamming")]
FACTORS = (2, 3, 4, 5, 6, 8, 9)


def response(taps: tuple[float, ...], frequency: float) -> complex:
    return sum(tap * cmath.exp(-1j * frequency * k) for k, tap in enumerate(taps))


def moments(taps: tuple[float, ...], frequency: float, order: int) -> list[float]:
    """The derivatives of the response at a frequency, up to a sign and a scale: sums of k**p taps exp(...)."""
    centre = (len(taps) - 1) / 2
    return [
        abs(sum((k - centre) ** p * tap * cmath.exp(-1j * frequency * k) for k, tap in enumerate(taps)))
        for p in range(order)
    ]


@pytest.mark.parametrize("method", ALL, ids=repr)
@pytest.mark.parametrize("factor", FACTORS)
def test_every_kind_keeps_constants_and_cuts_off_at_pi_over_the_factor(method, factor):
    assert method.gain(factor, 0) == pytest.approx(1, abs=1e-12)
    if method == Wavelet("cdf5/3"):  # which lets through what is just above: that is how it is
        assert method.gain(factor, 1.75) < 0.25
        return
    # Half of the pass band passes, and what would fold onto its lower part does not.
    assert method.gain(factor, 0.4) > 0.65
    assert method.gain(factor, 1.9) < 0.12
    assert method.gain(factor, 1) < 0.9
    assert method.gain(factor, 0.5) > 1.1 * method.gain(factor, 1)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_a_factor_of_1_needs_no_filter(method):
    assert method.gain(1, 0.7) == 1
    if not isinstance(method, Fourier):
        assert method.filter(1) == (1.0,)
    assert method.cost((2, 3, 5), (1,), (1,)) in (30, 0)


@pytest.mark.parametrize("method", [Taps((0.25, 0.5, 0.25)), *TAPPED], ids=repr)
@pytest.mark.parametrize("factor", FACTORS)
def test_smoothing_and_gain_are_of_the_same_taps(method, factor):
    # Parseval: the mean of the squared gain over all frequencies is the sum of the squared taps.
    count = 4 * len(method.filter(factor))
    mean = math.fsum(method.gain(factor, 2 * factor * k / count) ** 2 for k in range(count)) / count
    assert method.smoothing(factor) == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("window", ["none", "hamming"])
@pytest.mark.parametrize("factor", FACTORS)
def test_the_ideal_filters_smoothing_is_the_mean_of_its_squared_gain(window, factor):
    count = 40000
    gains = [Fourier(window).gain(factor, 2 * factor * (k + 0.5) / count) ** 2 for k in range(count)]
    assert Fourier(window).smoothing(factor) == pytest.approx(math.fsum(gains) / count, rel=1e-3)


# Maximally flat.


def test_flat_filters_are_the_known_ones():
    assert Flat(7).filter(2) == pytest.approx([tap / 32 for tap in (-1, 0, 9, 16, 9, 0, -1)], abs=1e-15)
    assert Flat(6).filter(2) == pytest.approx([tap / 64 for tap in (-3, 5, 30, 30, 5, -3)], abs=1e-15)
    assert flat_taps(1, 2, 2) == pytest.approx([tap / 16 for tap in (-1, 9, 9, -1)], abs=1e-15)
    assert Flat(11).filter(2) == pytest.approx(
        [tap / 512 for tap in (3, 0, -25, 0, 150, 256, 150, 0, -25, 0, 3)], abs=1e-15
    )
    assert flat_taps(3, 1, 2) == pytest.approx(binomial_taps(4)), "without correction it is the binomial filter"
    assert flat_taps(2, 1, 5) == pytest.approx(compose_taps(binomial_taps(3), 5))


def lagrange(points: int, factor: int) -> list[float]:
    """Interpolation of `points` samples by a polynomial, at the multiples of 1 / factor: its impulse response."""
    reach = points // 2
    taps = []
    for k in range(1 - reach * factor, reach * factor):
        t = k / factor  # how far from its sample a polynomial is asked for; the nodes around are whole numbers away
        base = math.floor(-t)
        nodes = [base + j for j in range(1 - reach, reach + 1)]
        weight = 1.0
        for node in nodes:
            if node != 0:
                weight *= (-t - node) / (0 - node)
        taps.append(weight / factor if 0 in nodes else 0.0)
    return taps


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [7, 11, 15])
def test_half_band_flat_filters_are_lagranges_interpolators_at_every_factor(size, factor):
    assert Flat(size).filter(factor) == pytest.approx(lagrange((size + 1) // 2, factor), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(6, 15), factor=st.integers(2, 9))
def test_flat_filters_are_flat_at_0_and_have_their_zeros(size, factor):
    taps = Flat(size).filter(factor)
    terms = max(2, (size + 2) // 4)
    zeros = size + 1 - 2 * terms
    assert taps == pytest.approx(taps[::-1], abs=1e-13)
    scale = [len(taps) ** p for p in range(2 * terms)]
    flat = moments(taps, 0, 2 * terms)
    assert [m / s for m, s in zip(flat[1:], scale[1:], strict=True)] == pytest.approx([0] * (2 * terms - 1), abs=1e-9)
    for k in range(1, factor):
        gone = moments(taps, 2 * math.pi * k / factor, zeros)
        assert [m / len(taps) ** p for p, m in enumerate(gone)] == pytest.approx([0] * zeros, abs=1e-9)


def test_no_other_split_of_flat_filters_is_nearer_to_half_band():
    for size in range(6, 32):
        chosen = abs(Flat(size).gain(2, 1) - 0.5)
        for terms in range(2, (size + 1) // 2):
            other = flat_taps(size + 1 - 2 * terms, terms, 2)
            assert chosen <= abs(abs(response(other, math.pi / 2)) - 0.5) + 1e-9


# Windowed sinc.


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("size", [8, 12, 15])
def test_sinc_filters_pass_half_at_their_cut_off_and_keep_their_parity(size, factor):
    for cutoff in (0.7, 1.0):
        method = Sinc(size, cutoff)
        taps = method.filter(factor)
        assert len(taps) % 2 == size % 2
        assert abs(len(taps) - 1 - (size - 1) * factor / 2) <= 1
        assert taps == pytest.approx(taps[::-1], abs=1e-15)
        assert method.gain(factor, cutoff) == pytest.approx(0.5, abs=0.06)


def test_kaisers_window_is_its_definition():
    # I0 as the mean of exp(x cos t), which is its integral; box.
    def bessel(x: float) -> float:
        return math.fsum(math.exp(x * math.cos(math.pi * (k + 0.5) / 2000)) for k in range(2000)) / 2000

    taps = Sinc(8, 0.9, beta=4.5).filter(2)
    raw = []
    for k in range(8):
        t = k - 3.5
        window = bessel(4.5 * math.sqrt(1 - (t / 3.5) ** 2)) / bessel(4.5)
        raw.append(math.sin(math.pi * 0.45 * t) / (math.pi * 0.45 * t) * window)
    assert taps == pytest.approx([one / sum(raw) for one in raw], rel=1e-9)


def test_a_larger_beta_stops_more_far_above_the_cut_off():
    worst = [max(Sinc(15, beta=beta).gain(2, 1.7 + k / 100) for k in range(31)) for beta in (0, 3, 6)]
    assert worst[2] < worst[1] < worst[0]
    assert Sinc(15, beta=8).gain(2, 0.8) < Sinc(15, beta=4).gain(2, 0.8)


# Wavelets.


@pytest.mark.parametrize(("name", "order"), [("haar", 1), ("db2", 2), ("db3", 3), ("db4", 4)])
def test_daubechies_low_bands_are_orthogonal_with_their_zeros(name, order):
    taps = Wavelet(name).filter(2)
    assert len(taps) == 2 * order
    for shift in range(0, len(taps), 2):
        product = sum(a * b for a, b in zip(taps, taps[shift:], strict=False))
        assert product == pytest.approx(0.5 if shift == 0 else 0, abs=1e-12)
    assert moments(taps, math.pi, order) == pytest.approx([0] * order, abs=1e-9)


def test_biorthogonal_low_bands_are_those_of_jpeg_2000():
    assert Wavelet("cdf5/3").filter(2) == pytest.approx([tap / 8 for tap in (-1, 2, 6, 2, -1)])
    taps = Wavelet("cdf9/7").filter(2)
    assert len(taps) == 9
    assert taps == pytest.approx(taps[::-1])
    assert moments(taps, math.pi, 4) == pytest.approx([0] * 4, abs=1e-8)
    # Biorthogonal to the 7 taps of the synthesis: the sum at even shifts is 1 at none and 0 at others.
    dual = [-0.091271763114, -0.057543526229, 0.591271763114, 1.115087052457]
    dual = [*dual, *dual[2::-1]]
    for shift in (-6, -4, -2, 0, 2, 4, 6):
        product = sum(taps[k + 4] * dual[k + shift + 3] for k in range(-4, 5) if 0 <= k + shift + 3 < 7)
        assert product == pytest.approx(1 if shift == 0 else 0, abs=1e-9)


@pytest.mark.parametrize("name", WAVELETS)
def test_two_levels_of_a_wavelet_are_its_filter_for_4(name):
    once, twice = Wavelet(name).filter(2), Wavelet(name).filter(4)
    for frequency in (0.1, 0.5, 1, 2, 3):
        product = abs(response(once, frequency) * response(once, 2 * frequency))
        assert abs(response(twice, frequency)) == pytest.approx(product, abs=1e-12)


def test_area_is_the_mean():
    assert Area().filter(5) == (0.2,) * 5
    assert Wavelet("haar").filter(6) == pytest.approx((1 / 6,) * 6), "and so is haar"


# Alignment.


@pytest.mark.parametrize("method", TAPPED, ids=repr)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_filter_looks_where_it_says(method, factor):
    taps, origin = method.filter(factor), method.origin(factor)
    centre = sum(k * tap for k, tap in enumerate(taps))
    assert centre - origin == pytest.approx(method.offset(factor), abs=1e-8)
    assert -0.5 < method.offset(factor) <= 0.5
    if taps == pytest.approx(taps[::-1]):
        assert (origin, method.offset(factor)) == ((len(taps) - 1) // 2, 0.5 * (len(taps) % 2 == 0))


# As data.


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_methods_read_back_as_they_were(method):
    assert method_from_dict(method_to_dict(method)) == method
    assert method.identity() == Taps((1.0,))
    assert method.identity().is_identity
    assert not method.is_identity
    assert method.words()


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "flat", "size": 5},
        {"kind": "flat", "size": 10**9},
        {"kind": "flat", "size": 7.5},
        {"kind": "flat", "taps": [1]},
        {"kind": "sinc", "cutoff": math.nan},
        {"kind": "sinc", "beta": 1e300},
        {"kind": "sinc", "size": True},
        {"kind": "wavelet", "wavelet": "db99"},
        {"kind": "wavelet", "wavelet": ["haar"]},
        {"kind": "fourier", "window": "box"},
        {"kind": "area", "size": 2},
        {"kind": ["taps"], "taps": [1]},
        {"kind": "median"},
        {},
    ],
)
def test_what_is_no_method_is_refused(data):
    with pytest.raises((BlurifyError, ValueError, TypeError)):
        method_from_dict(data)


@pytest.mark.parametrize("method", TAPPED, ids=repr)
def test_filters_that_are_too_long_are_refused(method):
    with pytest.raises(BlurifyError, match="taps"):
        method.filter(2 * MAX_TAPS)


def test_every_kind_is_known_by_its_tag():
    assert {type(method) for method in ALL} == set(METHODS.values())
