"""A model under measurement: pictures in 0..1 in, answers out, on whatever device the model is."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.graph.structure import tensors_in
from blurify.metrics import outputs
from blurify.metrics.boxes import Boxes
from blurify.metrics.origins import origins
from blurify.metrics.results import Output

Watch = Callable[[str, int, int], None]
"""Told (what is measured, batches done, batches in all) as a metric proceeds."""
_DETECTORS = "torchvision.models.detection"  # whose models take a list of pictures
_LEAST_DEVIATION = 1e-7  # of a signal's window that is standardised


@dataclass(frozen=True)
class Signal:
    """How a signal becomes a model's input.

    Attributes:
        layout: of the input, 'N,C,T' | 'N,T' | 'N,C,T,1' | 'N,C,1,T'.
        rate: samples a second; None where nobody says.
        standardised: each window has its own mean taken off and is divided by its own standard deviation, as
            torchcrepe's and wav2vec 2's are.
    """

    layout: str = "N,C,T"
    rate: int | None = None
    standardised: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input; or a signal, which is a picture (N, C, 1, T) to all metrics.

    Attributes:
        crop: (height, width) of the model's input.
        canvas: (height, width) that a picture is brought to before crops are taken from it; at least the crop.
        channels: 1 (grey) or 3.
        mean, std: of each channel, for pictures in 0..1.
        interpolation: 'bilinear' | 'bicubic' | ..., as torchvision names them.
        signal: of signals, what else is to be known; None of pictures.
    """

    crop: tuple[int, int]
    canvas: tuple[int, int]
    channels: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    signal: Signal | None = None


@dataclass(frozen=True)
class Batch:
    """Some pictures.

    Attributes:
        indices: (N,) int64, which pictures of the whole set; random choices are seeded by them, so that they do not
            depend on the batch size.
        canvases: (N, C, H, W) float32 in 0..1, of the canvas' size.
        labels: (N,) int64, -1 where unknown.
    """

    indices: Tensor
    canvases: Tensor
    labels: Tensor


class Pictures(Protocol):
    """A set of pictures that can be gone through again and again."""

    @property
    def name(self) -> str:
        """What to call them."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether any of them has a label."""
        ...

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Batch]:
        """All pictures in order, `size` at a time."""
        ...


@dataclass(frozen=True)
class TensorPictures:
    """Pictures that are in memory already.

    Attributes:
        canvases: (N, C, H, W) floats in 0..1.
        labels: (N,) int64, -1 where unknown; None where there are none.

    Raises:
        BlurifyError: the canvases are something else.
    """

    canvases: Tensor
    labels: Tensor | None = None
    name: str = "tensors"

    def __post_init__(self) -> None:
        canvases = self.canvases
        if canvases.ndim != 4 or not canvases.is_floating_point():
            shape = "x".join(map(str, canvases.shape))
            raise BlurifyError(f"pictures are floats (N, C, H, W) in 0..1, not {shape} of {canvases.dtype}")
        if canvases.numel() and bool(((canvases < 0) | (canvases > 1)).any()):
            low, high = canvases.aminmax()
            raise BlurifyError(
                f"pictures have values in 0..1, not {low:g} to {high:g}: divide by 255, and leave mean and standard "
                "deviation to the preprocessing"
            )

    @property
    def labelled(self) -> bool:
        """Whether any picture has a label."""
        return self.labels is not None and bool((self.labels >= 0).any())

    @property
    def fingerprint(self) -> str:
        """Differs where the pictures do."""
        data = self.canvases.detach().cpu().contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(repr(self.canvases.shape).encode() + data.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.canvases)

    def batches(self, size: int) -> Iterator[Batch]:
        """All pictures in order, `size` at a time."""
        labels = self.labels if self.labels is not None else torch.full((len(self),), -1)
        for part in torch.arange(len(self)).split(size):
            yield Batch(part, self.canvases[part], labels[part])


class Subject:
    """A model under measurement.

    Args:
        model: on its device; it is run in eval mode, without gradients, and left in the mode that it had.
        preprocessing: how pictures become its input.
        name: what to call it.
        output: which entry of what the model returns is meant, and as what it is taken: 'NAME', 'INDEX' or
            'NAME:KIND', with the kinds of `outputs.KINDS`; None: as `outputs.decide` tells.

    Calling it with (N, C, h, w) pictures in 0..1 gives float32 logits (N, K) on the model's device, or (N, K, h', w')
    of a model that gives label maps. `values` gives any kind of tensor, `boxes` detections.
    """

    def __init__(
        self, model: nn.Module, preprocessing: Preprocessing, name: str = "", *, output: str | None = None
    ) -> None:
        if output is not None:
            outputs.parse_choice(output)
        self._wanted = output
        self._taken: Output | None = None
        self._listed = any(kind.__module__.startswith(_DETECTORS) for kind in type(model).__mro__)
        self.model = model
        self.preprocessing = preprocessing
        self.name = name or type(model).__name__
        like = next((t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = like.device, like.dtype
        shape = (preprocessing.channels, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=self.device).expand(preprocessing.channels).reshape(shape)
        self._std = torch.tensor(preprocessing.std, device=self.device).expand(preprocessing.channels).reshape(shape)

    def prepared(self, pictures: Tensor) -> Tensor:
        """Pictures (N, C, h, w) in 0..1, normalised, on the model's device and in its precision."""
        moved = pictures.to(self.device, non_blocking=True)
        if self.preprocessing.signal is not None and self.preprocessing.signal.standardised:
            moved = moved - moved.mean((1, 2, 3), keepdim=True)
            moved = moved / moved.std((1, 2, 3), correction=0, keepdim=True).clamp_min(_LEAST_DEVIATION)
        return ((moved - self._mean) / self._std).to(self.dtype)

    def shaped(self, pictures: Tensor) -> Any:
        """Prepared pictures (N, C, h, w), as the model takes them: signals in their layout, detectors' as a list."""
        signal = self.preprocessing.signal
        if signal is not None:
            flat = pictures[:, :, 0]
            return {"N,T": flat[:, 0], "N,C,T": flat, "N,C,T,1": flat[..., None]}.get(signal.layout, pictures)
        return list(pictures) if self._listed else pictures

    def example(self, count: int = 1) -> Any:
        """What `count` pictures of zeros are to the model: on the CPU, in its precision."""
        geometry = self.preprocessing
        return self.shaped(torch.zeros(count, geometry.channels, *geometry.crop, dtype=self.dtype))

    @property
    def output(self) -> Output:
        """What the model's output is taken for (see `decide`)."""
        return self._taken if self._taken is not None else self.decide()

    @property
    def decided(self) -> Output | None:
        """The same, where it was decided; None before, and for who takes anything for classes that may be."""
        return self._taken if self._taken is not None or self._wanted is None else self.decide()

    def decide(self, *, folders: int | None = None, labelled: bool = False) -> Output:
        """Decide what the model's output is taken for, by one picture of noise, once and for all.

        Args:
            folders: how many class folders the pictures lie in; where it is as many as the values of an output, these
                are classes.
            labelled: the pictures have labels, so that an output that may be classes is.

        Raises:
            BlurifyError: that can't be told, the chosen entry is not there, or the model refuses such pictures.
        """
        if self._taken is not None:
            return self._taken
        geometry = self.preprocessing
        noise = torch.rand(1, geometry.channels, *geometry.crop, generator=torch.Generator().manual_seed(0))
        found, longer = self.run(noise), None
        if geometry.signal is not None:
            length = geometry.crop[1] + max(geometry.crop[1] // 2, 1)
            with contextlib.suppress(BlurifyError):  # models of frames take no others
                longer = self.run(noise.repeat(1, 1, 1, 2)[..., :length])
        known = outputs.Known(
            geometry.crop, geometry.channels, geometry.signal is not None, outputs.says_classes(self.model), folders
        )  # fmt: skip
        more: dict[str, Any] = {"longer": longer, "wanted": self._wanted, "name": self.name}
        try:
            self._taken = outputs.decide(self.model, found, known, **more)
        except BlurifyError:  # what it does last may tell
            if not tensors_in(found):
                raise
            known = dataclasses.replace(known, labelled=labelled)
            before = origins(self.model, (self.example(),))
            self._taken = outputs.decide(self.model, found, known, found_in=before, **more)
        return self._taken

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w) in 0..1 -> logits (N, K) or (N, K, h', w'), float32.

        Raises:
            BlurifyError: the model gives neither classes nor a label map, or refuses the pictures.
        """
        if self._taken is None and self._wanted is None:  # whoever calls it so says that it gives classes
            with torch.no_grad():
                return logits_of(self.run(pictures), len(pictures)).float()
        taken = self.output
        if taken.kind not in ("classes", "label-map"):
            raise BlurifyError(f"{self.name} gives no classes ({taken}): leave out what is measured on classes")
        return outputs.as_scores(self.values(pictures), taken)

    @torch.no_grad()
    def values(self, pictures: Tensor) -> Tensor:
        """(N, C, h, w) in 0..1 -> the output that was taken, in order: (N, K), or (N, K, h', w') of maps.

        Raises:
            BlurifyError: the model gives detections, or the entry is not there.
        """
        taken = self.output
        if taken.kind == "detections":
            raise BlurifyError(f"{self.name} gives detections, no tensor: see `boxes`")
        entry = outputs.entry_in(self.run(pictures), taken, len(pictures))
        return outputs.in_order(entry, taken, (pictures.shape[2], pictures.shape[3]))

    @torch.no_grad()
    def boxes(self, pictures: Tensor) -> list[Boxes]:
        """(N, C, h, w) in 0..1 -> the boxes that a detector finds in each. Raises BlurifyError where it is none."""
        if self.output.kind != "detections":
            raise BlurifyError(f"{self.name} gives no detections ({self.output})")
        size = pictures.shape[2], pictures.shape[3]
        return outputs.boxes_in(self.run(pictures), self.output, self.model, size)

    # Not inference_mode: what a model makes in its forward and keeps could never be trained with.
    @torch.no_grad()
    def run(self, pictures: Tensor) -> Any:
        """(N, C, h, w) in 0..1 -> whatever the model returns.

        Raises:
            BlurifyError: the model refuses them; the message has its own reason.
        """
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            return self.model(self.shaped(self.prepared(pictures)))
        except (BlurifyError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the model's own code raises
            if "can't allocate memory" in str(error):
                raise
            count, *size = pictures.shape
            size_text = "x".join(map(str, size))
            what = f"{'a picture' if count == 1 else f'{count} pictures at once'} of {size_text}"
            cause = f"{type(error).__name__}: {one_line(error, 120)}"
            remedy = "give a --size (and channels) that it takes" if count == 1 else "give --batch-size 1, or mend it"
            raise BlurifyError(f"{self.name} refuses {what} ({cause}): {remedy}") from error
        finally:
            for module, mode in training.items():
                module.training = mode


def middle(canvases: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle (N, C, h, w) of canvases. Raises BlurifyError where they are smaller."""
    (top, left) = ((there - wanted) // 2 for there, wanted in zip(canvases.shape[2:], size, strict=True))
    if min(top, left) < 0:
        raise BlurifyError(
            f"the pictures are {canvases.shape[2]}x{canvases.shape[3]}, smaller than the model's input of "
            f"{size[0]}x{size[1]}: give a larger --canvas"
        )
    return canvases[:, :, top : top + size[0], left : left + size[1]]


def not_finite(what: str) -> BlurifyError:
    """To be raised where what a model computes is no number; `what`: 'the model's output is', ..."""
    return BlurifyError(
        f"{what} not finite (nan or infinite): give pictures and --mean and --std that suit it, or measure it in "
        "float32"
    )


def no_answer(logits: Tensor) -> Tensor:
    """Whether any of the logits (N, K, ...) say nothing, as their largest is nan or infinite: a scalar."""
    return ~logits.amax(1).isfinite().all()


def top1(subject: Subject, pictures: Tensor, metric: str) -> Tensor:
    """A classifier's answers: (N, C, h, w) pictures in 0..1 -> (N,) int64 classes, on the CPU.

    Args:
        metric: what is measured, for the message.

    Raises:
        BlurifyError: the model gives a label map, for which this metric is not defined, or no numbers.
    """
    logits = subject(pictures)
    if logits.ndim != 2:
        raise BlurifyError(
            f"{metric} is measured on classifiers only, {subject.name} gives a label map: leave {metric} out"
        )
    if bool(no_answer(logits)):
        raise BlurifyError(
            f"the output of {subject.name} is not finite (nan): give pictures and --mean and --std that suit it, or "
            "measure it in float32"
        )
    return logits.argmax(1).cpu()


def logits_of(output: Any, count: int) -> Tensor:
    """The class scores in what a model returned, taken for classes whatever they are (`Subject.output` tells).

    A tensor, the 'out' or 'logits' of a mapping or object; of a tuple the entry whose values sum to 1, where there is
    just one such, else the first. Probabilities become their logarithms, whose softmax they are.

    Raises:
        BlurifyError: it is none of (N, K) and (N, K, h, w) with at least two classes.
    """
    found = output
    if isinstance(found, Mapping):
        found = next((found[key] for key in ("out", "logits") if key in found), None)
    elif hasattr(found, "logits"):  # inception's and googlenet's named tuples, transformers' outputs
        found = found.logits
    elif isinstance(found, tuple | list) and found:
        sure = [item for item in found if _scores(item, count) and outputs.are_probabilities(item)]
        # Several maps are features of several layers, unless they are of the same size and classes.
        maps = {tuple(item.shape) for item in found if isinstance(item, Tensor) and item.ndim == 4}
        found = sure[0] if len(sure) == 1 else found[0] if len(maps) < 2 else found
    if not _scores(found, count):
        what = (
            f"a tensor of shape {'x'.join(map(str, found.shape))}"
            if isinstance(found, Tensor)
            else type(output).__name__
        )
        raise BlurifyError(
            f"the model's output is not classes ({what} for {count} pictures): give a classifier (N x classes), a "
            "segmentation model (N x classes x height x width), or say which entry of its output is meant"
        )
    return outputs.logarithms(found) if outputs.are_probabilities(found) else found


def _scores(found: Any, count: int) -> bool:
    """Whether something may be class scores of `count` pictures."""
    return (
        isinstance(found, Tensor)
        and found.ndim in (2, 4)
        and len(found) == count
        and found.shape[1] >= 2
        and found.is_floating_point()
    )
