"""How a blur filters: a tagged union, plain data. Another kind of filter is another class in `METHODS`.

What a method needs elsewhere hangs on its class: the layer that runs it (`blurify.nn.build`), the method under which a
conversion must compute the original (`identity`), its frequency response, and its cost.
"""

from __future__ import annotations

import cmath
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from blurify.errors import BlurifyError
from blurify.spec.designs import (
    FLAT_SIZES,
    SINC_SIZES,
    WAVELETS,
    WINDOWS,
    area_taps,
    flat_split,
    flat_taps,
    sinc_taps,
    wavelet_taps,
)
from blurify.spec.filters import MAX_TAPS, centred_taps, compose_taps, is_box, offset_of
from blurify.spec.reading import read_fields, require
from blurify.spec.words import nearest


class _Separable:
    """A filter of a few taps, the same in every dimension that is filtered."""

    kind: ClassVar[str]

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`, summing to 1; (1.0,) for factor 1."""
        raise NotImplementedError

    @property
    def is_identity(self) -> bool:
        """Whether nothing is filtered."""
        return False

    def identity(self) -> Method:
        """The method that filters nothing, under which a conversion must compute the original: one tap."""
        return Taps((1.0,))

    def origin(self, factor: int) -> int:
        """The tap that weighs sample stride * j of window j: nearest to the filter's delay, of two the earlier one."""
        taps = self.filter(factor)
        return math.ceil(round(offset_of(taps, 0), 9) - 0.5)

    def offset(self, factor: int) -> float:
        """Where the filter looks, in samples to the right of its origin: 0 for odd symmetric ones, 0.5 for even."""
        return round(offset_of(self.filter(factor), self.origin(factor)), 9)

    def macs(self, factor: tuple[int, ...], centre: tuple[float, ...] = ()) -> int:
        """Multiply-adds for one output value, where the filter guards against `factor` (one a dimension).

        A plain average has none, as the pools of a network have none: it runs as an average pool.
        """
        filters = [self.filter(one) for one in factor]
        if centre:  # part of a sample costs a tap
            moved = zip(filters, centre, map(self.origin, factor), strict=True)
            filters = [centred_taps(*one)[0] for one in moved]
        filters = [taps for taps in filters if len(taps) > 1]
        return 0 if not filters or all(map(is_box, filters)) else math.prod(map(len, filters))

    def cost(
        self,
        shape: Sequence[int],
        stride: tuple[int, ...],
        factor: tuple[int, ...],
        centre: tuple[float, ...] = (),
    ) -> int:
        """Multiply-adds for an output of this shape."""
        return math.prod(shape) * self.macs(factor, centre)

    def smoothing(self, factor: int) -> float:
        """The variance that is left of white noise in one dimension: the sum of the squared taps (1: none is lost)."""
        return sum(tap * tap for tap in self.filter(factor))

    def gain(self, factor: int, frequency: float) -> float:
        """What the size of a wave is multiplied by; `frequency` in units of the new Nyquist frequency pi / factor."""
        turn = math.pi * frequency / factor
        return abs(sum(tap * cmath.exp(-1j * turn * k) for k, tap in enumerate(self.filter(factor))))

    def words(self) -> str:
        """The filter for people, in a few words."""
        raise NotImplementedError


@dataclass(frozen=True)
class Taps(_Separable):
    """Binomial or own taps, separable, the same in every dimension that is filtered.

    Attributes:
        taps: designed for a subsampling by 2, summing to 1; for other factors they are composed (`compose_taps`).
    """

    taps: tuple[float, ...]
    kind: ClassVar[str] = "taps"

    @property
    def is_identity(self) -> bool:
        """Whether nothing is filtered."""
        return len(self.taps) == 1

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`."""
        return compose_taps(self.taps, factor)

    def origin(self, factor: int) -> int:
        """The tap that weighs sample stride * j: the middle one, of two the first, as in the published models."""
        return (len(self.filter(factor)) - 1) // 2

    def words(self) -> str:
        """The taps, to four digits."""
        return f"[{' '.join(f'{tap:.4g}' for tap in self.taps)}]"


@dataclass(frozen=True)
class Flat(_Separable):
    """The maximally flat filter: leaves low frequencies as they are and cuts off half-way (`designs.flat_taps`).

    Attributes:
        size: taps for a subsampling by 2, 6 to 31 (fewer are not enough for larger strides). 7, 11, 15, ... are
            half-band filters: gain 1/2 at the new Nyquist frequency. Even ones look half a sample to the right, as
            [1, 3, 3, 1] does.
    """

    size: int = 7
    kind: ClassVar[str] = "flat"

    def __post_init__(self) -> None:
        _whole("size", self.size, *FLAT_SIZES, "flat")

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`."""
        return flat_taps(*flat_split(self.size), factor)

    def words(self) -> str:
        """The filter in a few words."""
        return f"flat, {self.size} taps"


@dataclass(frozen=True)
class Sinc(_Separable):
    """The ideal low-pass, cut to a few taps by a window (`designs.sinc_taps`).

    Attributes:
        size: taps for a subsampling by 2, 3 to 63.
        cutoff: in units of the new Nyquist frequency, above 0 and at most 2.
        window: 'kaiser' | 'hann' | 'hamming' | 'blackman'.
        beta: of Kaiser's window, 0 to 20.
    """

    size: int = 8
    cutoff: float = 1.0
    window: str = "kaiser"
    beta: float = 3.0
    kind: ClassVar[str] = "sinc"

    def __post_init__(self) -> None:
        _whole("size", self.size, *SINC_SIZES, "sinc")
        object.__setattr__(self, "cutoff", _number("cutoff", self.cutoff, 0.05, 2.0, "sinc"))
        object.__setattr__(self, "beta", _number("beta", self.beta, 0.0, 20.0, "sinc"))
        _choice("window", self.window, WINDOWS, "sinc")
        if self.window != "kaiser" and self.beta != Sinc.beta:
            raise BlurifyError(f"a sinc filter with a {self.window} window has no 'beta': leave it out")
        self.filter(2)  # refuses one that passes nothing

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`."""
        return sinc_taps(self.size, self.cutoff, self.window, self.beta, factor)

    def words(self) -> str:
        """The filter in a few words."""
        window = f"kaiser {self.beta:g}" if self.window == "kaiser" else self.window
        return f"sinc, {self.size} taps, cut-off {self.cutoff:g}, {window}"


@dataclass(frozen=True)
class Wavelet(_Separable):
    """The low band of a wavelet transform (`designs.wavelet_taps`).

    Attributes:
        wavelet: 'haar' | 'db2' | 'db3' | 'db4' | 'cdf5/3' | 'cdf9/7'.
    """

    wavelet: str = "cdf9/7"
    kind: ClassVar[str] = "wavelet"

    def __post_init__(self) -> None:
        _choice("wavelet", self.wavelet, WAVELETS, "wavelet")

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`."""
        return wavelet_taps(self.wavelet, factor)

    def words(self) -> str:
        """The filter in a few words."""
        return f"wavelet {self.wavelet}"


@dataclass(frozen=True)
class Area(_Separable):
    """The mean of as many samples as the stride takes together (`designs.area_taps`)."""

    kind: ClassVar[str] = "area"

    def filter(self, factor: int) -> tuple[float, ...]:
        """The taps against a subsampling by `factor`."""
        return area_taps(factor)

    def words(self) -> str:
        """The filter in a few words."""
        return "area"


FOURIER_PADDINGS = ("reflect", "zeros", "circular")
LONGEST_MATRIX = 1024
"""Up to this many samples the Fourier filter of a dimension is a matrix; beyond, it is computed by the FFT."""


@dataclass(frozen=True)
class Fourier:
    """The ideal low-pass, in the Fourier domain: what lies above the new Nyquist frequency is set to 0 (`nn.fourier`).

    Attributes:
        window: 'none' (FLC: Grabinski et al., ECCV 2022), or 'hamming' over the frequencies that are kept, against
            ringing (ASAP: Grabinski et al., 2023).
    """

    window: Literal["none", "hamming"] = "none"
    kind: ClassVar[str] = "fourier"

    def __post_init__(self) -> None:
        _choice("window", self.window, ("none", "hamming"), "fourier")

    @property
    def is_identity(self) -> bool:
        """Whether nothing is filtered."""
        return False

    def identity(self) -> Method:
        """The method that filters nothing, under which a conversion must compute the original: one tap."""
        return Taps((1.0,))

    def offset(self, factor: int) -> float:
        """Where the filter looks, in samples to the right of sample stride * j."""
        return 0.0

    def cost(
        self,
        shape: Sequence[int],
        stride: tuple[int, ...],
        factor: tuple[int, ...],
        centre: tuple[float, ...] = (),
    ) -> int:
        """Multiply-adds for an output of this shape, of an input `stride` times as large: one matrix a dimension.

        Beyond LONGEST_MATRIX samples, two Fourier transforms a line, each 2.5 n log2(n).
        """
        rank, total = len(stride), 0
        sizes = [m if f > 1 else 0 for m, f in zip(shape[-rank:], factor, strict=True)]
        lines = math.prod(shape[:-rank])
        inner = [m * s if f > 1 else m for m, s, f in zip(shape[-rank:], stride, factor, strict=True)]
        for dim, m in enumerate(sizes):
            if not m:
                continue
            n = inner[dim]
            rest = lines * math.prod(inner[:dim]) * math.prod(inner[dim + 1 :])
            total += rest * (m * n if n <= LONGEST_MATRIX else int(5 * n * math.log2(n)))
            inner[dim] = m
        return total

    def smoothing(self, factor: int) -> float:
        """The variance that is left of white noise in one dimension: the mean of the squared gain."""
        if self.window == "none":
            return 1 / factor
        return (0.54**2 + 0.46**2 / 2) / factor

    def gain(self, factor: int, frequency: float) -> float:
        """What a wave of `frequency`, in units of the new Nyquist frequency, is multiplied by."""
        if factor == 1:
            return 1.0
        folded = abs((frequency + factor) % (2 * factor) - factor)
        if folded > 1 + 1e-12:
            return 0.0
        window = 1.0 if self.window == "none" else 0.54 + 0.46 * math.cos(math.pi * folded)
        return window / 2 if folded > 1 - 1e-12 else window

    def words(self) -> str:
        """The filter in a few words."""
        return "ideal (Fourier)" + (", hamming window" if self.window == "hamming" else "")


Method: TypeAlias = Taps | Flat | Sinc | Wavelet | Area | Fourier
METHODS: dict[str, type[Method]] = {cls.kind: cls for cls in (Taps, Flat, Sinc, Wavelet, Area, Fourier)}
"""The kinds of filter, by the tag that stands in files."""
DESIGNED = tuple(kind for kind in METHODS if kind != Taps.kind)
"""The kinds that a recipe names by their tag."""


def method_to_dict(method: Method) -> dict[str, Any]:
    """The method as plain data for JSON, with its tag."""
    if isinstance(method, Taps):
        return {"kind": method.kind, "taps": list(method.taps)}
    return {"kind": method.kind, **dataclasses.asdict(method)}


def method_from_dict(data: Mapping[str, Any]) -> Method:
    """Read what `method_to_dict` wrote. Raises BlurifyError for a kind that this blurify does not know."""
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in METHODS:
        raise BlurifyError(f"unknown kind of filter {str(kind)[:80]!r}: this blurify knows {', '.join(METHODS)}")
    if kind == Taps.kind:
        return taps_from(data["taps"])
    return read_fields(METHODS[kind], {key: value for key, value in data.items() if key != "kind"})


def taps_from(values: Any) -> Taps:
    """Taps that a file says. Raises ValueError where they are none."""
    taps = tuple(float(tap) for tap in values)
    require(1 <= len(taps) <= MAX_TAPS and all(map(math.isfinite, taps)), "taps that are no filter")
    return Taps(taps)


def method_of_settings(kind: str, settings: Mapping[str, Any], where: str) -> Method:
    """The filter of a recipe's table: its kind, and what else stands there.

    Args:
        kind: one of DESIGNED.
        settings: the other keys, without the padding.
        where: how errors call the table, for example "[filter] of recipe file 'my.toml'".

    Raises:
        BlurifyError: for a key that this kind does not have, or a value that it can't have.
    """
    cls: Any = METHODS[kind]
    known = [field.name for field in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            close = nearest(str(key).lower(), known, count=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            has = f"has {', '.join(map(repr, known))}" if known else "has no settings"
            raise BlurifyError(f"unknown key {key!r} in {where}: {guess}a filter of kind {kind!r} {has}")
    try:
        method: Method = cls(**settings)
    except BlurifyError as error:
        raise BlurifyError(f"{where}: {error}") from error
    return method


def check_goes_with(method: Method, padding: str) -> None:
    """Raise BlurifyError where a filter can't go on beyond the edge like that."""
    if isinstance(method, Fourier) and padding not in FOURIER_PADDINGS:
        why = "looks at the whole signal, ahead too" if padding == "causal" else "has a period"
        raise BlurifyError(
            f"a filter of kind 'fourier' {why}, so its padding can't be {padding!r}: use "
            f"{', '.join(map(repr, FOURIER_PADDINGS[:-1]))} or {FOURIER_PADDINGS[-1]!r}, or another kind of filter"
        )


def _whole(name: str, value: Any, low: int, high: int, kind: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BlurifyError(f"{name!r} of a {kind} filter must be an integer from {low} to {high}; got {value!r}")


def _number(name: str, value: Any, low: float, high: float, kind: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BlurifyError(f"{name!r} of a {kind} filter must be a number from {low:g} to {high:g}; got {value!r}")
    return float(value)


def _choice(name: str, value: Any, allowed: Sequence[str], kind: str) -> None:
    if not isinstance(value, str) or value not in allowed:
        close = nearest(str(value).lower(), allowed, count=1)
        guess = f"did you mean {close[0]!r}? " if close else ""
        raise BlurifyError(
            f"{name!r} of a {kind} filter cannot be {str(value)[:80]!r}: {guess}use {', '.join(map(repr, allowed))}"
        )
