"""Designs of low-pass filters against a subsampling by s, as plain numbers: each cuts off at pi/s by its own formula.

Taps are in the order of the samples that they weigh (what a convolution layer calls its kernel), and sum to 1.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

from blurify.errors import BlurifyError, FilterTooLongError
from blurify.spec.filters import MAX_TAPS, prime_factors

LARGEST_SIZE = 63
WINDOWS = ("kaiser", "hann", "hamming", "blackman")
FLAT_SIZES = (6, 31)
SINC_SIZES = (3, LARGEST_SIZE)

_ROOT_3, _ROOT_10 = math.sqrt(3), math.sqrt(10)
_ROOT_OF_DB3 = math.sqrt(5 + 2 * _ROOT_10)
_DB4 = (
    *(0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385),
    *(-0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278),
)
_CDF97 = (0.026748757411, -0.016864118443, -0.078223266529, 0.266864118443, 0.602949018236)
_WAVELETS: dict[str, tuple[tuple[float, ...], int, int]] = {
    "haar": ((1, 1), 1, 1),
    "db2": ((1 + _ROOT_3, 3 + _ROOT_3, 3 - _ROOT_3, 1 - _ROOT_3), 2, 2),
    "db3": (
        (
            *(1 + _ROOT_10 + _ROOT_OF_DB3, 5 + _ROOT_10 + 3 * _ROOT_OF_DB3, 10 - 2 * _ROOT_10 + 2 * _ROOT_OF_DB3),
            *(10 - 2 * _ROOT_10 - 2 * _ROOT_OF_DB3, 5 + _ROOT_10 - 3 * _ROOT_OF_DB3, 1 + _ROOT_10 - _ROOT_OF_DB3),
        ),
        3,
        3,
    ),
    "db4": (_DB4, 4, 4),
    "cdf5/3": ((-1, 2, 6, 2, -1), 2, 1),
    "cdf9/7": ((*_CDF97, *_CDF97[-2::-1]), 4, 2),
}
"""Of each wavelet: the taps of its analysis low-pass (to be divided by their sum), how many zeros that has at pi, and
the terms of the maximally flat filter that stands in for it where a stride has an odd prime factor."""
WAVELETS = tuple(_WAVELETS)


def flat_split(size: int) -> tuple[int, int]:
    """The zeros at pi and the terms of the maximally flat filter of `size` taps that is nearest to a half-band filter.

    Its gain at pi / 2 is a half for 7, 11, 15, ... taps, and as near as can be for others.
    """
    terms = max(2, (size + 2) // 4)
    return size + 1 - 2 * terms, terms


@lru_cache(maxsize=512)
def flat_taps(zeros: int, terms: int, factor: int) -> tuple[float, ...]:
    """The maximally flat low-pass against a subsampling by `factor`.

    The box of `factor` samples, `zeros` times (so it has zeros of that order at all multiples of 2 pi / factor, which
    fold onto frequency 0), times the polynomial of degree terms - 1 in y = sin(w / 2)**2 that makes it as flat at
    frequency 0 as can be: the beginning of the power series of box**-zeros. For factor 2 that is
    cos(w / 2)**zeros * sum over l < terms of C(zeros / 2 + l - 1, l) y**l. With zeros = 2 terms it is Lagrange's
    interpolator, a filter of Nyquist's kind: gain 1/2 at pi / factor, up to what little it lets through elsewhere.

    Args:
        zeros: order of the zeros, at least 1.
        terms: of the polynomial, at least 1; 1 is the binomial filter.
        factor: the subsampling; 1 gives (1.0,).

    Returns:
        zeros * (factor - 1) + 2 * (terms - 1) + 1 taps, symmetric.

    Raises:
        FilterTooLongError: there would be more than MAX_TAPS.

    Sources: Herrmann, "On the approximation problem in nonrecursive digital filter design", IEEE Trans. Circuit Theory,
    1971 (factor 2); Schafer and Rabiner, "A digital signal processing approach to interpolation", Proc. IEEE, 1973.
    """
    if factor == 1:
        return (1.0,)
    _check_length(zeros * (factor - 1) + 2 * (terms - 1) + 1, factor)
    # box**2 has the taps (s - |k|) / s**2, and cos(k w) = sum_j (-k)_j (k)_j / ((1/2)_j j!) y**j.
    squared = [0.0] * terms
    for k in range(1 - factor, factor):
        coefficient = (factor - abs(k)) / factor**2
        for j in range(terms):
            squared[j] += coefficient
            coefficient *= (j - k) * (j + k) / ((0.5 + j) * (1 + j))
    # (box**2)**(-zeros / 2), by Euler's recurrence for powers of a series that begins with 1.
    power, correction = -zeros / 2, [1.0]
    for j in range(1, terms):
        total = math.fsum((power * i - (j - i)) * squared[i] * correction[j - i] for i in range(1, j + 1))
        correction.append(total / j)
    series = [0.0] * (2 * terms - 1)
    y_to_the_j = [1.0]
    for j, weight in enumerate(correction):
        for k, tap in enumerate(y_to_the_j):
            series[terms - 1 - j + k] += weight * tap
        y_to_the_j = _convolved(y_to_the_j, [-0.25, 0.5, -0.25])
    taps = series
    for _ in range(zeros):
        taps = _box_filtered(taps, factor)
    return _normalised(taps)


@lru_cache(maxsize=512)
def sinc_taps(size: int, cutoff: float, window: str, beta: float, factor: int) -> tuple[float, ...]:
    """The ideal low-pass, cut to a few taps by a window: sinc(2 f t) w(t) with f = cutoff / (2 factor) cycles a sample.

    Args:
        size: taps for factor 2; for others the filter is as much longer or shorter as its cut-off is lower or higher,
            with as even or odd a length.
        cutoff: where the ideal filter would cut off, in units of the new Nyquist frequency pi / factor.
        window: 'kaiser' | 'hann' | 'hamming' | 'blackman'.
        beta: of Kaiser's window: 0 is none, more removes more and has a wider transition.
        factor: the subsampling; 1 gives (1.0,).

    Raises:
        FilterTooLongError: there would be more than MAX_TAPS.

    Source: Kaiser, "Nonrecursive digital filter design using the I0-sinh window function", ISCAS 1974; Harris, "On the
    use of windows for harmonic analysis with the discrete Fourier transform", Proc. IEEE, 1978.
    """
    if factor == 1:
        return (1.0,)
    length = size
    if factor != 2:
        span = (size - 1) * factor / 4  # from the centre to the last tap
        length = 2 * math.floor(span + 0.5) + 1 if size % 2 else 2 * math.floor(span) + 2
    _check_length(length, factor)
    centre, per_sample = (length - 1) / 2, cutoff / factor
    taps = []
    for k in range(length):
        t = k - centre
        # Kaiser's window ends on the last taps; the others are 0 at their ends, and so end one tap further out.
        place = t / centre if window == "kaiser" else t / (centre + 1)
        taps.append(_sinc(per_sample * t) * _window(window, beta, place))
    if not math.fsum(taps) > 1e-3 * math.fsum(map(abs, taps)):
        raise BlurifyError(f"a sinc filter of {size} taps cut off at {cutoff:g} passes nothing: give more taps")
    return _normalised(taps)


@lru_cache(maxsize=512)
def wavelet_taps(wavelet: str, factor: int) -> tuple[float, ...]:
    """The low band of a wavelet transform, without its factor of sqrt(2) a level.

    A wavelet halves: for a power of two the low bands of the levels are composed, h(z) h(z**2) ... . For an odd prime p
    there is no low band of that wavelet, so that the maximally flat filter of p takes that stage, with as many zeros at
    the multiples of 2 pi / p as the wavelet's has at pi.

    Args:
        wavelet: one of WAVELETS. 'haar', 'db2' to 'db4': Daubechies' orthogonal ones of 2 to 8 taps, of least delay
            (not symmetric but for haar). 'cdf5/3', 'cdf9/7': the symmetric biorthogonal ones of JPEG 2000.
        factor: the subsampling; 1 gives (1.0,).

    Raises:
        FilterTooLongError: there would be more than MAX_TAPS.

    Sources: Daubechies, "Orthonormal bases of compactly supported wavelets", CPAM 1988, table 1; Le Gall and Tabatabai,
    ICASSP 1988 (5/3); Antonini, Barlaud, Mathieu and Daubechies, "Image coding using wavelet transform", IEEE Trans.
    Image Processing, 1992, table II (9/7); as a pooling: Williams and Li, "Wavelet pooling for CNNs", ICLR 2018, and Li
    et al., "Wavelet integrated CNNs for noise-robust image classification", CVPR 2020 (the low band alone).
    """
    given, zeros, terms = _WAVELETS[wavelet]
    halving = list(_normalised(given))
    taps, done = [1.0], 1
    for prime in prime_factors(factor):
        stage = halving if prime == 2 else list(flat_taps(zeros, terms, prime))
        length = len(taps) + (len(stage) - 1) * done
        _check_length(length, factor)
        upsampled = [0.0] * ((len(stage) - 1) * done + 1)
        upsampled[::done] = stage
        taps = _convolved(taps, upsampled)
        done *= prime
    return _normalised(taps)


def area_taps(factor: int) -> tuple[float, ...]:
    """The mean of `factor` samples: what `interpolate(mode='area')` and a plain average pool of that stride compute."""
    if factor > 1:
        _check_length(factor, factor)
    return (1 / factor,) * factor


def _check_length(length: int, factor: int) -> None:
    if length > MAX_TAPS:
        raise FilterTooLongError(
            f"against a subsampling by {factor} this filter would have more than {MAX_TAPS} taps: use a shorter one"
        )


def _normalised(taps: tuple[float, ...] | list[float]) -> tuple[float, ...]:
    total = math.fsum(taps)
    return tuple(tap / total for tap in taps)


def _convolved(left: list[float], right: list[float]) -> list[float]:
    result = [0.0] * (len(left) + len(right) - 1)
    for j, b in enumerate(right):
        if b:
            for i, a in enumerate(left):
                result[i + j] += a * b
    return result


def _box_filtered(taps: list[float], width: int) -> list[float]:
    """The taps convolved with the mean of `width` samples."""
    sums = [*([0.0] * width), *itertools.accumulate([*taps, *([0.0] * (width - 1))])]
    return [(sums[i + width] - sums[i]) / width for i in range(len(taps) + width - 1)]


def _sinc(t: float) -> float:
    return math.sin(math.pi * t) / (math.pi * t) if t else 1.0


def _window(window: str, beta: float, place: float) -> float:
    """A window at a place from -1 to 1."""
    if window == "kaiser":
        return _bessel(beta * math.sqrt(max(1 - place * place, 0.0))) / _bessel(beta)
    turn = math.pi * place
    if window == "hann":
        return 0.5 + 0.5 * math.cos(turn)
    if window == "hamming":
        return 0.54 + 0.46 * math.cos(turn)
    return 0.42 + 0.5 * math.cos(turn) + 0.08 * math.cos(2 * turn)


def _bessel(x: float) -> float:
    """The modified Bessel function of the first kind and order 0, by its power series."""
    total = term = 1.0
    k = 0
    while term > 1e-17 * total:
        k += 1
        term *= (x / 2 / k) ** 2
        total += term
    return total
