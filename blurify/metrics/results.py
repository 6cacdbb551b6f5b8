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
        confidence: mean probability of the top-1 of the first crop, of which `pixel_change` is the change; None in
            files of before.
        answers: how many different answers there are to the first crops of all pictures, or labels in all their maps:
            where it is 1 nothing that is the same says anything of shifts. None in files of before.
    """

    agreement: Estimate
    pixel_change: Estimate
    pixel_flips: Estimate
    accuracy: Estimate | None = None
    circular: bool = False
    dense: bool = False
    confidence: Estimate | None = None
    answers: int | None = None

    @property
    def always_the_same(self) -> bool:
        """Whether several pictures, or all positions of one, have a single answer."""
        return self.answers == 1 and (self.agreement.count > 1 or self.dense)


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
    """Perturbations and corruptions.

    Attributes:
        flip_rates: one entry a perturbation.
        corruptions: one entry a corruption.
        reference: the model whose rates are the unit of `mfr` and `mce`; '' where there was none.
        mfr: mean flip rate (Hendrycks and Dietterich 2019): the mean over perturbations of the flip rate over the
            reference's, 1 for the reference itself; None where there is no reference.
        mce: mean corruption error: the mean over corruptions of the error over the reference's; None where there is no
            reference, or no labels.
        left_out: perturbations and corruptions on which the reference never fails, so that nothing can be a multiple of
            that.
    """

    flip_rates: tuple[FlipRate, ...]
    corruptions: tuple[CorruptionResult, ...]
    reference: str = ""
    mfr: Estimate | None = None
    mce: Estimate | None = None
    left_out: tuple[str, ...] = ()


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
        confidence: mean probability of the first answer; None in files of before.
    """

    patch: tuple[int, int]
    half: Estimate
    half_change: Estimate
    grid: Estimate
    whole: Estimate
    circular: bool = False
    confidence: Estimate | None = None


@dataclass(frozen=True)
class Fractional:
    """How steady the answer is when the picture moves by less than a pixel, by an ideal resampler.

    Attributes:
        parts: a pixel is divided into so many along each axis: the grid has `parts` x `parts` places.
        half: how often the answer is the same half a pixel further, along y, x and both; of a dense model, the share of
            pixels.
        half_change: by how much that moves the probability of the first answer, in the mean.
        quarter, quarter_change: the same of a quarter of a pixel.
        grid: how often the answer is the same at the other places of the grid.
        worst: how often it is the same at all of them; of a dense model, the share of pixels at the worst place.
        worst_change: by how much the probability of the first answer moves at the place where it moves most.
        confidence: mean probability of the first answer.
        circular: pictures were shifted around, not cropped elsewhere.
        dense: the model gives a label map.
    """

    parts: int
    half: Estimate
    half_change: Estimate
    quarter: Estimate
    quarter_change: Estimate
    grid: Estimate
    worst: Estimate
    worst_change: Estimate
    confidence: Estimate
    circular: bool = False
    dense: bool = False


@dataclass(frozen=True)
class LayerError:
    """How far one layer's map is from moving as the picture moves, for a shift that goes to 0.

    Attributes:
        name: the module's path.
        kind: its class.
        stride: (y, x), the layer's total stride: pixels of the picture for one step on the feature map.
        shape: of the feature map, (C, H, W).
        error: relative error per pixel of shift: of the Lie derivative, over the map itself; 0 is perfect equivariance.
    """

    name: str
    kind: str
    stride: tuple[int, int]
    shape: tuple[int, ...]
    error: Estimate


@dataclass(frozen=True)
class LieDerivative:
    """The local equivariance error of all layers, in the order in which they run (Gruver et al. 2023).

    Attributes:
        layers: one entry a layer.
        images: how many pictures the errors are means over.
        input_shape: (C, H, W) of the pictures.
        step: pixels, half of what the finite difference spans.
        circular: the model's padding was made circular, so that borders play no part.
    """

    layers: tuple[LayerError, ...]
    images: int
    input_shape: tuple[int, ...]
    step: float
    circular: bool = True


KIND_WORDS = {
    "classes": "classes",
    "label-map": "a label map",
    "embedding": "an embedding",
    "dense": "a map of real numbers",
    "detections": "detections",
}
"""The kinds of output, in words."""


@dataclass(frozen=True)
class Output:
    """What a model's output was taken for.

    Attributes:
        kind: 'classes' (N, K) | 'label-map' (scores of K classes at each position) | 'embedding' (N, D) | 'dense' (a
            map of real numbers: depth, flow, features) | 'detections' (boxes with scores and labels).
        name: which entry of what the model returns, such as '1', 'logits' or 'a.0.b'; '' where it returns that alone.
        shape: of the entry, for one picture; () of detections.
        why: how that was told, in words.
        layout: what the entry's dimensions are: 'N,K' | 'N,K,h,w' | 'N,h,w' | 'N,h,w,K' | 'N,T,K' | ...
        values: of classes and label maps: 'scores' | 'probabilities' (whose logarithms are the scores).
        others: the entries that are not looked at, with their shapes.
    """

    kind: str
    name: str = ""
    shape: tuple[int, ...] = ()
    why: str = ""
    layout: str = ""
    values: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        """'output 1 (2) taken for classes: each picture's values sum to 1; left aside: 0 (4)'."""
        shape = f" ({'x'.join(map(str, self.shape))})" if self.shape else ""
        where = f" {self.name}" if self.name else ""
        aside = f"; left aside: {', '.join(self.others)}" if self.others else ""
        return f"output{where}{shape} taken for {KIND_WORDS.get(self.kind, self.kind)}: {self.why}{aside}"


@dataclass(frozen=True)
class EmbeddingDrift:
    """How far an embedding moves when the picture shifts.

    Attributes:
        crops: cosine distance (0 to 2) between the embeddings of two random crops of a picture.
        pixel: the same between a crop and the same moved by one pixel.
        crops_nearest: how often, of all pictures' first crops, that of its own picture is the nearest to the second
            crop's embedding; None of a single picture.
        pixel_nearest: the same of the crop that was moved by one pixel.
        apart: cosine distance to the other pictures, in the mean: what the drift is to be seen against; None of a
            single picture.
        circular: pictures were shifted around, not cropped elsewhere.
    """

    crops: Estimate
    pixel: Estimate
    crops_nearest: Estimate | None = None
    pixel_nearest: Estimate | None = None
    apart: Estimate | None = None
    circular: bool = False


@dataclass(frozen=True)
class DenseDrift:
    """How far a map of real numbers is from moving with the picture.

    Attributes:
        crops: mean square of the difference between the maps of two random crops, shifted back onto each other, where
            both see the same part of the picture; over the variance of the maps (over positions and pictures, averaged
            over channels): 0 is the same, 1 no better than the mean everywhere, less 1 of maps that have nothing in
            common.
        pixel: the same after a shift by one pixel.
        shape: of the map, (C, h, w).
        circular: pictures were shifted around, not cropped elsewhere.
    """

    crops: Estimate
    pixel: Estimate
    shape: tuple[int, ...] = ()
    circular: bool = False


@dataclass(frozen=True)
class DetectionShifts:
    """How steady detections are when the picture shifts; boxes are shifted back, and cut to what both crops see.

    Attributes:
        pixel_matched: after a shift by one pixel, the share of boxes that are matched, 2 m / (n1 + n2), of pictures
            with any: same label, intersection over union of at least `least_overlap`.
        pixel_overlap: intersection over union of the matched ones; None where nothing is matched.
        pixel_score_change: mean absolute change of their scores.
        pixel_count_change: by how many the number of boxes changes.
        crops_matched, crops_overlap, crops_score_change, crops_count_change: the same of two random crops.
        boxes: how many the first crop has.
        least_score: boxes of a lower score don't count.
        least_overlap: of two boxes that match.
    """

    pixel_matched: Estimate
    pixel_count_change: Estimate
    crops_matched: Estimate
    crops_count_change: Estimate
    boxes: Estimate
    pixel_overlap: Estimate | None = None
    pixel_score_change: Estimate | None = None
    crops_overlap: Estimate | None = None
    crops_score_change: Estimate | None = None
    least_score: float = 0.5
    least_overlap: float = 0.5


@dataclass(frozen=True)
class Agreement:
    """How far a second model answers as the first, the original, does on the same pictures.

    Of classifiers there are the figures about answers, of other models the relative error; the others are None.

    Attributes:
        images: how many pictures.
        same: how often both have the same top-1.
        top5: the share of the original's first five classes that are among the other's first five; None where there
            are no more than five classes.
        top1_in_top5: how often the original's top-1 is among the other's first five; None likewise.
        divergence: Kullback-Leibler, KL(original || other) of their probabilities, in nats; 0 is the same.
        sure: how often both have the same top-1, of the pictures on which the original gives its top-1 a probability
            above 1/2; None where there is no such picture.
        cosine: of the outputs, each picture's as one vector; of classes, of the logits less their mean over the classes
            (to add a number to all of them changes no probability). Of several tensors, the mean of theirs. 1 is the
            same but for a factor. None where an output has not one row a picture.
        confidence: the mean probability of the original's top-1, and
        confidence_other: that of the other's; of label maps, over positions.
        consistent: how often the original, shown another crop of a picture, answers what it answers on the first one:
            how steady it is itself; of label maps, the share of positions; of embeddings (N, D), the cosine of the two.
            None where nothing was shifted.
        consistent_and_same: how often the other, shown that other crop, answers what the original answers on the first
            one. Who always answers the same is steady, but not so.
        relative_error: squared distance of the outputs over the squared distance of the original's from their mean
            over the pictures: 0 is the same, 1 no better than to answer every picture with that mean. Of several
            output tensors, the mean of theirs.
        same_labels: of label maps (N, K, h, w), the share of positions at which both have the same top-1.
        original: what the original is called; '' where it is not known.
    """

    images: int
    same: Estimate | None = None
    divergence: Estimate | None = None
    sure: Estimate | None = None
    confidence: Estimate | None = None
    confidence_other: Estimate | None = None
    relative_error: float | None = None
    same_labels: Estimate | None = None
    top5: Estimate | None = None
    top1_in_top5: Estimate | None = None
    cosine: Estimate | None = None
    consistent: Estimate | None = None
    consistent_and_same: Estimate | None = None
    original: str = ""

    @property
    def answers(self) -> Estimate | None:
        """The share of equal answers: top-1 of a classifier, labels by position of a label map; None of others."""
        return self.same if self.same is not None else self.same_labels

    @property
    def kept(self) -> float:
        """What is left of the original's answers, in 0..1: the share of equal ones, or 1 less the relative error."""
        if self.answers is not None:
            return self.answers.value
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
        output: what the model's output was taken for; None in files of before.
        embedding, dense, detections: what 'consistency' is of models that give these.
        agreement: with the model that it is compared with; None for that one, and for a model alone.
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
    output: Output | None = None
    embedding: EmbeddingDrift | None = None
    dense: DenseDrift | None = None
    detections: DetectionShifts | None = None
    agreement: Agreement | None = None
    fractional: Fractional | None = None
    lie_derivative: LieDerivative | None = None

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
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is no record")
        return {key: read_as(arguments[1], item) for key, item in value.items()}
    if kind in (float, int, str, bool) and not isinstance(value, (float, int) if kind is float else kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
