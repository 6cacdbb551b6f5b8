"""What a report shows besides figures: pictures, curves, feature maps, spectra and times. Plain data, reads as JSON."""

from __future__ import annotations

import base64
import dataclasses
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blurify.errors import BlurifyError
from blurify.metrics.results import Agreement, read_as

FORMAT = 1
_ADDRESS = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_LARGEST = 1 << 20  # cells of a grid


@dataclass(frozen=True)
class Answer:
    """What a classifier answers.

    Attributes:
        label: the class' number.
        probability: that it gives it.
        name: of the class; '' where it has none.
    """

    label: int
    probability: float
    name: str = ""

    @property
    def words(self) -> str:
        """The name, or 'class 3'."""
        return self.name or f"class {self.label}"


@dataclass(frozen=True)
class Flip:
    """A picture at two neighbouring places, where a model gives two answers.

    Attributes:
        picture: what it is called.
        places: (y, x) each, in pixels from the middle: where the window on the picture lies.
        answers: one entry a model, in it one an place.
        shown: what the models see at each place, as `data:` addresses; () where pictures are not to be shown.
    """

    picture: str
    places: tuple[tuple[int, int], tuple[int, int]]
    answers: tuple[tuple[Answer, Answer], ...]
    shown: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_addresses(self.shown)


@dataclass(frozen=True)
class Flips:
    """Pictures whose answer flips under a shift of one pixel.

    Attributes:
        images: how many pictures were walked over.
        steps: of one pixel each, for each picture.
        changed: one entry a model: the pictures whose answer changes at one step at least.
        shown: some of them, the most telling first.
    """

    images: int
    steps: int
    changed: tuple[int, ...]
    shown: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class ShiftCurve:
    """How sure each model is of its answer while one picture shifts (Azulay and Weiss 2018).

    Attributes:
        picture: what it is called.
        axis: 'y' | 'x'.
        shifts: of the window, in pixels from the middle.
        answers: one entry a model: its answer in the middle.
        probabilities: one entry a model, in it one a shift: of that answer.
        shown: the picture, as a `data:` address; '' where pictures are not to be shown.
    """

    picture: str
    axis: str
    shifts: tuple[int, ...]
    answers: tuple[Answer, ...]
    probabilities: tuple[tuple[float, ...], ...]
    shown: str = ""

    def __post_init__(self) -> None:
        check_addresses([self.shown] if self.shown else [])
        if any(len(part) != len(self.shifts) for part in self.probabilities) or not self.shifts:
            raise ValueError(f"{len(self.shifts)} shifts with other than as many probabilities each")


@dataclass(frozen=True)
class Grid:
    """A small map of numbers in 256 steps.

    Attributes:
        rows, columns: its size.
        low, high: the values of the lowest step and of the highest.
        packed: a byte each, compressed, as text.
    """

    rows: int
    columns: int
    low: float
    high: float
    packed: str = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[Sequence[float]], low: float, high: float) -> Grid:
        """The map of values from `low` to `high`; what is beyond has the value at that end."""
        span = high - low if high > low else 1.0
        steps = bytes(round(255 * min(max((value - low) / span, 0.0), 1.0)) for row in values for value in row)
        return cls(len(values), len(values[0]), low, high, base64.b64encode(zlib.compress(steps, 9)).decode())

    @property
    def shares(self) -> list[list[float]]:
        """How far each value is from the low end to the high one, 0..1. Raises BlurifyError where it is damaged."""
        count = self.rows * self.columns
        try:
            if not 0 < count <= _LARGEST or min(self.rows, self.columns) < 1:
                raise ValueError(f"{self.rows} by {self.columns} values")
            data = zlib.decompressobj().decompress(base64.b64decode(self.packed, validate=True), count + 1)
            if len(data) != count:
                raise ValueError(f"{len(data)} values for {self.rows} by {self.columns}")
        except (ValueError, zlib.error) as error:
            raise BlurifyError(f"this is no map that blurify wrote ({error}): measure again") from error
        return [[step / 255 for step in data[at : at + self.columns]] for at in range(0, count, self.columns)]


@dataclass(frozen=True)
class SiteMaps:
    """One channel of the features that one model keeps of one picture at a site, and what a shift makes of them.

    Attributes:
        still: as they are.
        back: of the shifted picture, shifted back.
        apart: the distance of the two, at each place.
        error: of all channels, the length of the difference over that of the features: 0 for perfect equivariance.
    """

    still: Grid
    back: Grid
    apart: Grid
    error: float


@dataclass(frozen=True)
class SiteFeatures:
    """Feature maps side by side, under a shift (Zhang 2019, figure 1 and section 3.1).

    Attributes:
        site: its name.
        picture: what it is called.
        shift: of the picture, in pixels to the right: half a step of what is kept, for a stride of 2.
        channel: which is shown: the one that the shift changes most in the first model.
        maps: one entry a model; None for one that has no such site.
        shown: the picture, as a `data:` address; '' where pictures are not to be shown.
    """

    site: str
    picture: str
    shift: int
    channel: int
    maps: tuple[SiteMaps | None, ...]
    shown: str = ""

    def __post_init__(self) -> None:
        check_addresses([self.shown] if self.shown else [])


@dataclass(frozen=True)
class Spectrum:
    """The power of one model's signal just before it is subsampled, ring by ring (see `spectra.spectrum`).

    Attributes:
        power: mean power of a frequency of each ring, of a signal of power 1; the mean of the signal left out.
        above: the share of energy above the new Nyquist frequency, which folds back.
    """

    power: tuple[float, ...]
    above: float


@dataclass(frozen=True)
class SiteSpectra:
    """Spectra at one site.

    Attributes:
        site: its name.
        stride: one entry a spatial dimension.
        edges: of the rings, in units of the new Nyquist frequency: one more than there are rings.
        images: how many pictures they are means over.
        models: one entry a model; None for one that has no such site.
    """

    site: str
    stride: tuple[int, ...]
    edges: tuple[float, ...]
    images: int
    models: tuple[Spectrum | None, ...]

    def __post_init__(self) -> None:
        if any(found is not None and len(found.power) != len(self.edges) - 1 for found in self.models):
            raise ValueError("rings without an edge")


@dataclass(frozen=True)
class Timing:
    """How long one model takes for one picture, in seconds.

    Attributes:
        wall: the median over the runs, by the clock.
        low, high: the quartiles.
        cpu: the median of the processor's time; of all threads together.
        ratio: the median over the rounds of this model's time over the first's; 1 for the first.
        ratio_low, ratio_high: the quartiles of that.
    """

    wall: float
    low: float
    high: float
    cpu: float
    ratio: float = 1.0
    ratio_low: float = 1.0
    ratio_high: float = 1.0


@dataclass(frozen=True)
class Latency:
    """Times of several models that took turns on one machine.

    Attributes:
        models: one entry a model.
        rounds: in each of which every model ran once.
        batch: pictures a run.
        shape: of one picture, (C, H, W).
        device: 'cpu' | 'cuda' | ...
        machine: what it is called; '' where it says nothing.
        threads: that torch used on the processor.
        dtype: of the weights.
    """

    models: tuple[Timing, ...]
    rounds: int
    batch: int
    shape: tuple[int, ...]
    device: str
    machine: str = ""
    threads: int = 1
    dtype: str = "float32"


@dataclass(frozen=True)
class Evidence:
    """All that. What could not be had is None, and `missing` says why.

    Attributes:
        agreements: of each of the others with the first, the original.
        missing: by the name of a field, why it is not there.
    """

    flips: Flips | None = None
    curves: tuple[ShiftCurve, ...] = ()
    features: SiteFeatures | None = None
    spectra: SiteSpectra | None = None
    latency: Latency | None = None
    agreements: tuple[Agreement, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def models(self) -> set[int]:
        """Of how many models the parts are: one number, unless something is wrong."""
        counts = {len(curve.answers) for curve in self.curves} | {len(curve.probabilities) for curve in self.curves}
        if self.flips is not None:
            counts |= {len(self.flips.changed), *(len(flip.answers) for flip in self.flips.shown)}
        if self.features is not None:
            counts.add(len(self.features.maps))
        if self.spectra is not None:
            counts.add(len(self.spectra.models))
        if self.latency is not None:
            counts.add(len(self.latency.models))
        return counts | ({len(self.agreements) + 1} if self.agreements else set())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evidence:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"this evidence has format {data.get('format')!r}, this blurify reads format {FORMAT}: measure again"
            )
        try:
            found: Evidence = read_as(cls, {key: value for key, value in data.items() if key != "format"})
            if not all(isinstance(text, str) for text in found.missing.values()):
                raise TypeError("a reason that is no text")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is no evidence that blurify wrote ({error}): measure again") from error
        return found


def check_addresses(addresses: Sequence[str]) -> None:
    """Raise ValueError for what is not the `data:` address of a PNG or JPEG: a page must fetch nothing."""
    for address in addresses:
        if not _ADDRESS.fullmatch(address):
            raise ValueError(f"{address[:40]!r} is no embedded picture")
