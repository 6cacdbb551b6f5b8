"""Low-pass filters as plain numbers: the binomial taps, and how a filter for factor 2 becomes one for factor s."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from blurify.errors import BlurifyError, FilterTooLongError

MAX_FILTER_SIZE = 7
PADDINGS = ("reflect", "replicate", "zeros", "circular", "causal")
"""What lies beyond the edge. 'causal' is also an alignment: along the last dimension (time) a window ends where it
would begin to look ahead, and what was before the first sample is that sample; other dimensions are reflected."""
MAX_TAPS = 4097
"""Of a composed filter: longer ones are a mistake, or somebody's attempt to keep the machine busy."""


def binomial_taps(size: int) -> tuple[float, ...]:
    """The binomial filter `C(size - 1, k) / 2**(size - 1)`: (1,), (1, 1)/2, (1, 2, 1)/4, (1, 3, 3, 1)/8, ...

    Args:
        size: number of taps, 1 (the identity) to 7.

    Raises:
        BlurifyError: for any other size.

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 4.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_FILTER_SIZE:
        raise BlurifyError(f"filter size {size!r}: give a whole number from 1 to {MAX_FILTER_SIZE}, or your own taps")
    return tuple(math.comb(size - 1, k) / 2 ** (size - 1) for k in range(size))


def resolve_taps(filter_size: int | None, taps: Sequence[float] | None) -> tuple[float, ...]:
    """The user's own `taps`, normalised to sum 1, or else the binomial filter of `filter_size` taps.

    Raises:
        BlurifyError: where neither is given, or the taps are not finite numbers with a positive sum.
    """
    if taps is None:
        if filter_size is None:
            raise BlurifyError("no filter: give a filter size from 1 to 7, or your own taps")
        return binomial_taps(filter_size)
    try:
        values = [float(tap) for tap in taps]
    except (TypeError, ValueError):
        values = []
    total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
    if not total > 1e-6 * sum(map(abs, values)):  # also false for nan and for no taps at all
        raise BlurifyError(f"taps {taps!r}: give a list of finite numbers with a positive sum, for example 1, 2, 1")
    return tuple(value / total for value in values)


def compose_taps(taps: Sequence[float], factor: int) -> tuple[float, ...]:
    """The filter that guards a subsampling by `factor`, that is, cuts off at pi/factor.

    Subsampling by a composite factor is subsampling by its primes in turn, so the filter is the cascade of one filter
    a prime, each upsampled by the primes before it: `taps` for 2, and for an odd prime p the box of p samples
    convolved with itself len(taps) - 1 times (what the binomial is for p = 2). It has
    (len(taps) - 1) * (factor - 1) + 1 taps, sums to 1 and, if binomial, is zero at the multiples of 2 pi / factor.

    Args:
        taps: the filter for factor 2, summing to 1; one tap (the identity) stays the identity.
        factor: the subsampling to guard against; 1 needs no filter and gives (1.0,).

    Raises:
        BlurifyError: where factor is not a whole number of at least 1.
        FilterTooLongError: the filter would be longer than MAX_TAPS.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise BlurifyError(f"factor {factor!r}: give a whole number of at least 1")
    if len(taps) == 1:
        return (1.0,)
    if (len(taps) - 1) * (factor - 1) + 1 > MAX_TAPS:
        raise FilterTooLongError(
            f"{len(taps)} taps against a subsampling by {factor} make a filter of more than {MAX_TAPS} taps: use fewer"
        )
    return _composed(tuple(taps), factor)


@functools.lru_cache(maxsize=256)  # long ones take a while, and are asked for at each step of a conversion
def _composed(taps: tuple[float, ...], factor: int) -> tuple[float, ...]:
    composed, done = [1.0], 1
    for prime in prime_factors(factor):
        stage = list(taps)
        if prime != 2:
            stage = [1.0]
            for _ in range(len(taps) - 1):
                stage = _convolve(stage, [1 / prime] * prime)
        composed = _convolve(composed, _upsample(stage, done))
        done *= prime
    return tuple(composed)


def offset_of(taps: Sequence[float], origin: int | None = None) -> float:
    """How far to the right of sample s*j the j-th window of a filter has its centre of mass, in samples.

    0 for a symmetric filter of an odd number of taps, 0.5 for an even one: its extra sample is at the end.

    Args:
        taps: the filter.
        origin: its tap that weighs sample s*j; None: the middle one, of two the first.
    """
    origin = (len(taps) - 1) // 2 if origin is None else origin
    return math.fsum(place * tap for place, tap in enumerate(taps)) / math.fsum(taps) - origin


def centred_taps(taps: Sequence[float], centre: float, origin: int | None = None) -> tuple[tuple[float, ...], int]:
    """A filter moved so that its centre of mass lies `centre` samples to the right of sample s*j.

    Whole samples move the window. A part f of a sample is linear interpolation, the filter convolved with [1 - f, f]:
    one tap more, and for f = 1/2 one more zero at the highest frequency ([1 2 1] becomes [1 3 3 1]).

    Args:
        taps: the filter; one tap alone (the identity) stays where it is, as it stands for no filter at all.
        centre: in samples of what is filtered.
        origin: see `offset_of`.

    Returns:
        the taps, and by how many samples their window begins further to the right.
    """
    if len(taps) == 1:
        return tuple(taps), 0
    move = centre - offset_of(taps, origin)
    whole = math.floor(move + _ROUNDING)
    part = move - whole
    if part <= _ROUNDING:
        return tuple(taps), whole
    return tuple(_convolve(list(taps), [1 - part, part])), whole


_ROUNDING = 1e-9  # of a sample: no part of one


def is_box(taps: Sequence[float]) -> bool:
    """Whether a (composed) filter is a plain average: its layer runs it as an average pool, without multiply-adds."""
    return len(taps) > 1 and min(taps) == max(taps)


def leakage(taps: Sequence[float]) -> float:
    """The share of white noise beyond the new Nyquist frequency that a filter for factor 2 lets through: 0 to 1 or so.

    The mean of |H|^2 over the frequencies from pi/2 to pi, the trapezoidal rule on 64 intervals.
    """
    count, total = 64, 0.0
    for step in range(count + 1):
        omega = math.pi / 2 * (1 + step / count)
        real = math.fsum(tap * math.cos(omega * k) for k, tap in enumerate(taps))
        imaginary = math.fsum(tap * math.sin(omega * k) for k, tap in enumerate(taps))
        total += (real * real + imaginary * imaginary) * (0.5 if step in (0, count) else 1.0)
    return total / count


def prime_factors(number: int) -> list[int]:
    """The primes of a number from 1 on, the smallest first: 12 is [2, 2, 3]."""
    primes, prime = [], 2
    while number > 1:
        if number % prime:
            prime += 1
        else:
            primes.append(prime)
            number //= prime
    return primes


def _upsample(taps: list[float], factor: int) -> list[float]:
    result = [0.0] * ((len(taps) - 1) * factor + 1)
    result[::factor] = taps
    return result


def _convolve(left: list[float], right: list[float]) -> list[float]:
    result = [0.0] * (len(left) + len(right) - 1)
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            result[i + j] += a * b
    return result
