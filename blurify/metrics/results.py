"""What the metrics return: plain data that reads and writes as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from blurify.errors import BlurifyError
from blurify.metrics.packing import pack, unpack

FORMAT = 1
_Z = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures, and its 95% confidence interval.

    Attributes:
        value: the mean.
        low, high: the interval.
        count: how many pictures (or other independent things) it is a mean over.
        packed: the value of each of them, as `packing.pack` has it; '' where they are not known, as in files of before.
    """

    value: float
    low: float
    high: float
    count: int
    packed: str = field(default="", repr=False)

    @property
    def values(self) -> tuple[float, ...]:
        """One value a picture, in order; () where they are not known. Raises BlurifyError where a file is damaged."""
        return unpack(self.packed, self.count) if self.packed else ()

    @classmethod
    def of(cls, values: Sequence[float], *, bounded: bool = True, yes_or_no: bool = True) -> Estimate:
        """The mean of one value a picture. The kind of interval depends on what is measured, never on what came out.

        Args:
            values: at least one.
            bounded: the values are shares, so that the interval stays within 0..1.
            yes_or_no: each value is an answer (0 or 1), or the share of a few answers about one picture: the interval
                is Wilson's score interval (Wilson 1927) over pictures, which holds near 0 and 1 too. For shares it is
                wider than need be, as their variance is below that of single answers. False: the normal
                approximation.
        """
        count, packed = len(values), pack(values)
        mean = math.fsum(values) / count
        if yes_or_no:
            middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
            half = _Z * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
            # Rounding must not push the mean out of its own interval.
            return cls(mean, max(min(middle - half, mean), 0.0), min(max(middle + half, mean), 1.0), count, packed)
        if count == 1 and bounded:  # one picture tells nothing of others
            return cls(mean, 0.0, 1.0, count, packed)
        variance = math.fsum((value - mean) ** 2 for value in values) / max(count - 1, 1)
        half = _Z * math.sqrt(variance / count)
        low, high = mean - half, mean + half
        if bounded:
            low, high = max(low, 0.0), min(high, 1.0)
        return cls(mean, low, high, count, packed)


@dataclass(frozen=True)
class Consistency:
    """How steady the answer is when the picture shifts.

    Attributes:
        agreement: how often two random crops of a picture get the same top-1 (Zhang 2019, section 4.2). For a dense
            model: the share of pixels that get the same label in both crops, where they overlap.
        pixel_change: mean absolute change of the top-1's probability under a shift of one pixel (Azulay and Weiss
            2018). For a dense model the same, averaged over its pixels.
        pixel_flips: how often a shift of one pixel changes the top-1.
        accuracy: top-1 of the centre crop; None where there are no labels.
        circular: pictures were shifted around (what leaves on one side comes in on the other), not cropped elsewhere.
        dense: the model gives a label map.
    """

    agreement: Estimate
    pixel_change: Estimate
    pixel_flips: Estimate
    accuracy: Estimate | None = None
    circular: bool = False
    dense: bool = False


@dataclass(frozen=True)
class LayerMap:
    """How far one layer is from shift-equivariance, for each shift of the picture.

    Attributes:
        name: the module's path.
        kind: its class.
        stride: (y, x), the layer's total stride: pixels of the picture for one step on the feature map.
        shape: of the feature map, (C, H, W).
        distances: rows are dy = 0, step, 2 step, ... and columns dx likewise, up to the stride less one or, where it
            was given, the largest shift; 0 is perfect equivariance.
        over_pictures: the mean over all shifts, of each picture; None in files of before.
    """

    name: str
    kind: str
    stride: tuple[int, int]
    shape: tuple[int, ...]
    distances: tuple[tuple[float, ...], ...]
    over_pictures: Estimate | None = None

    @property
    def mean(self) -> float:
        """The mean distance over all shifts."""
        values = [value for row in self.distances for value in row]
        return math.fsum(values) / len(values)


@dataclass(frozen=True)
class Equivariance:
    """The maps of all layers, in the order in which they run.

    Attributes:
        layers: one entry a layer.
        images: how many pictures the distances are means over.
        input_shape: (C, H, W) of the pictures.
        largest_shift: shifts of up to this many pixels were tried; a layer of a larger stride has only that corner.
        step: only every step-th shift was tried (1: all).
        circular: the model's padding was made circular, so that borders play no part.
    """

    layers: tuple[LayerMap, ...]
    images: int
    input_shape: tuple[int, ...]
    largest_shift: int
    step: int = 1
    circular: bool = True


@dataclass(frozen=True)
class SiteAliasing:
    """How much one site aliases.

    Attributes:
        site: its name in the plan of the original model.
        kind: 'conv' | 'maxpool' | 'avgpool' | 'slice'.
        stride: one entry a spatial dimension.
        blurred: whether the measured model filters there, by blurify or by a fixed filter of its own.
        share: of the energy just before the subsampling, how much lies above the new Nyquist frequency.
    """

    site: str
    kind: str
    stride: tuple[int, ...]
    blurred: bool
    share: Estimate


@dataclass(frozen=True)
class Aliasing:
    """All sites, in the order in which they run."""

    sites: tuple[SiteAliasing, ...]
    images: int


@dataclass(frozen=True)
class FlipRate:
    """How often the answer changes from frame to frame of one kind of perturbation (Hendrycks and Dietterich 2019).

    Attributes:
        perturbation: 'gaussian-noise', 'brightness', ...
        frames: frames of a sequence.
        rate: the share of comparisons in which the top-1 changes.
    """

    perturbation: str
    frames: int
    rate: Estimate


@dataclass(frozen=True)
class CorruptionResult:
    """What one kind of corruption does, by severity.

    Attributes:
        corruption: 'gaussian-noise', 'defocus-blur', ...
        accuracy: one entry a severity, 1 the mildest; empty where there are no labels.
        agreement: how often the answer is that for the clean picture; one entry a severity.
    """

    corruption: str
    accuracy: tuple[Estimate, ...]
    agreement: tuple[Estimate, ...]


@dataclass(frozen=True)
class Stability:
    """Perturbations and corruptions."""

    flip_rates: tuple[FlipRate, ...]
    corruptions: tuple[CorruptionResult, ...]


@dataclass(frozen=True)
class WorstCase:
    """The worst of a grid of translations and rotations (Engstrom et al. 2018).

    Attributes:
        translations: pixels, along each axis.
        rotations: degrees.
        unmoved: accuracy in the middle of the grid; None where there are no labels.
        mean: accuracy over the whole grid; None where there are no labels.
        worst: share of pictures that are right at every point of the grid; None where there are no labels.
        steady: share of pictures with the same answer at every point of the grid.
    """

    translations: tuple[float, ...]
    rotations: tuple[float, ...]
    steady: Estimate
    unmoved: Estimate | None = None
    mean: Estimate | None = None
    worst: Estimate | None = None


@dataclass(frozen=True)
class HalfPatch:
    """How steady the answer is when the picture moves by parts of a patch.

    Attributes:
        patch: (y, x) pixels: the model's total stride.
        half: how often the answer is the same half a patch further, along y, x and both; of a dense model, the share of
            pixels.
        half_change: by how much that moves the probability of the first answer, in the mean.
        grid: how often it is the same at the places of a grid of quarters of a patch.
        whole: how often it is the same a whole patch further, where the patches show the same parts again: what is left
            there is due to positions and borders, not to aliasing.
        circular: pictures were shifted around, not cropped elsewhere.
    """

    patch: tuple[int, int]
    half: Estimate
    half_change: Estimate
    grid: Estimate
    whole: Estimate
    circular: bool = False


@dataclass(frozen=True)
class Agreement:
    """How far a second model answers as the first, the original, does on the same pictures.

    Of classifiers there are the figures about answers, of other models the relative error; the others are None.

    Attributes:
        images: how many pictures.
        same: how often both have the same top-1.
        divergence: Kullback-Leibler, KL(original || other) of their probabilities, in nats; 0 is the same.
        sure: how often both have the same top-1, of the pictures on which the original gives its top-1 a probability
            above 1/2; None where there is no such picture.
        confidence: the mean probability of the original's top-1, and
        confidence_other: that of the other's.
        relative_error: squared distance of the outputs over the squared distance of the original's from their mean
            over the pictures: 0 is the same, 1 no better than to answer every picture with that mean. Of several
            output tensors, the mean of theirs.
        same_labels: of label maps (N, K, h, w), the share of positions at which both have the same top-1.
    """

    images: int
    same: Estimate | None = None
    divergence: Estimate | None = None
    sure: Estimate | None = None
    confidence: Estimate | None = None
    confidence_other: Estimate | None = None
    relative_error: float | None = None
    same_labels: Estimate | None = None

    @property
    def kept(self) -> float:
        """What is left of the original's answers, in 0..1: the share of equal top-1, or 1 less the relative error."""
        if self.same is not None:
            return self.same.value
        return max(1.0 - (self.relative_error or 0.0), 0.0)

    @property
    def lost(self) -> float:
        """How far the answers are off, from 0 up: the divergence, or the relative error."""
        return self.divergence.value if self.divergence is not None else self.relative_error or 0.0


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured on one model. What was not asked for is None.

    Attributes:
        model: what the user called it.
        data: which pictures.
        images: how many of them.
        settings: what else is needed to measure the same again: seed, crop, canvas, ...
        converted: the model carries blurify's plan.
        skipped: of 'all' metrics, those that this model can't be measured by, and why.
    """

    model: str
    data: str
    images: int
    settings: dict[str, Any] = field(default_factory=dict)
    converted: bool = False
    consistency: Consistency | None = None
    equivariance: Equivariance | None = None
    aliasing: Aliasing | None = None
    stability: Stability | None = None
    worst_case: WorstCase | None = None
    half_patch: HalfPatch | None = None
    skipped: dict[str, str] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        """The figures as a notebook shows them."""
        from blurify.metrics.notebook import measurement_table  # which reads this module

        return measurement_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"this measurement has format {data.get('format')!r}, this blurify reads format {FORMAT}: measure again"
            )
        try:
            found: Measurement = read_as(cls, {key: value for key, value in data.items() if key != "format"})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is not a measurement that blurify wrote ({error}): measure again") from error
        return found


def read_as(kind: Any, value: Any) -> Any:
    """JSON's dicts and lists back to what the annotation says. Raises TypeError or ValueError where they are not it."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{key: read_as(hints[key], item) for key, item in value.items()})  # type: ignore[operator]
    arguments = get_args(kind)
    if type(None) in arguments:
        return None if value is None else read_as(next(item for item in arguments if item is not type(None)), value)
    if get_origin(kind) is tuple:
        kinds = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(read_as(item, part) for item, part in zip(kinds, value, strict=True))
    if kind in (float, int, str, bool) and not isinstance(value, (float, int) if kind is float else kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
