"""Agreement: how far one model answers as another does, on pictures without labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.graph.structure import tensors_in
from blurify.metrics.keeping import identity_of
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.results import Agreement, Estimate
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Pictures, Subject, Watch, logits_of, middle, no_answer

SURE = 0.5  # the probability of a top-1 above which the original is sure of it


def agreement(
    original: Subject,
    other: Subject,
    pictures: Pictures,
    *,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Agreement:
    """How far another model answers as the original does: what a conversion costs a trained one, and what mends it.

    Both see the same centre crops. Of classifiers (outputs of (N, classes), see `subject.logits_of`) each picture tells
    whether both have the same top-1, and KL(original || other) of their probabilities in nats (Kullback and Leibler,
    1951), as distillation measures it (Hinton et al., arXiv:1503.02531). Of models that give anything else (label
    maps, features, any structure of tensors) all tensors of floats are compared: for each, the squared distance of the
    two over all pictures, over that of the original's from its own mean picture. What is of whole numbers is left out.
    Of label maps (N, classes, h, w) also the share of positions with the same top-1.

    Args:
        original: the model as it was.
        other: the model to be compared with it, of the same outputs.
        pictures: at least one; at least two for models that are no classifiers.
        batch_size: pictures a forward.
        watch: told of each batch.
        kept: of the original: where the figures of each batch are written down (see `kept`). Of classifiers only: of
            other outputs, sums over whole outputs would have to be kept.

    Raises:
        BlurifyError: there are too few pictures, the outputs differ in their shapes, or are not finite.
    """
    return agreements(original, [other], pictures, batch_size=batch_size, watch=watch, kept=kept)[0]


def agreements(
    original: Subject,
    others: Sequence[Subject],
    pictures: Pictures,
    *,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> list[Agreement]:
    """`agreement` with each of several models, for one run of the original and one decoding of the pictures."""
    if len(pictures) < 1:
        raise BlurifyError("there are no pictures to compare the models on: give at least one")
    batches = math.ceil(len(pictures) / batch_size)
    models = [] if kept is None else [[identity_of(one.model), asdict(one.preprocessing)] for one in others]
    steps = steps_for(kept, "agreement", batches, batch_size=batch_size, others=models)
    outputs: list[_Outputs] = []
    for number, batch in steps.batches(pictures, batch_size):
        seen = middle(batch.canvases, original.preprocessing.crop)
        first = original.run(seen)
        if not outputs and (number > 0 or _has_classes(first, len(seen))):
            found = [_Classes(original.name, other.name) for other in others]
            for other, comparison in zip(others, found, strict=True):
                comparison.add(first, other.run(seen), len(seen))
            steps.done(number, [comparison.values for comparison in found])
        else:
            if not outputs:
                # Anchors may happen to be as many as the pictures of a batch; they are never one.
                whole = [len(seen) > 1 and not _is_one(tensor) for tensor in _floats(original.run(seen[:1]))]
                outputs = [_Outputs(original.name, other.name, whole) for other in others]
            for other, of_outputs in zip(others, outputs, strict=True):
                of_outputs.add(first, other.run(seen), len(seen))
        if watch is not None:
            watch("agreement", number + 1, batches)
    if outputs:
        return [comparison.result() for comparison in outputs]
    classes = [_Classes(original.name, other.name) for other in others]
    for step in steps.results:
        for comparison, values in zip(classes, step, strict=True):
            comparison.extend(values)
    return [comparison.result() for comparison in classes]


def _has_classes(output: Any, count: int) -> bool:
    try:
        return logits_of(output, count).ndim == 2
    except BlurifyError:
        return False


def _floats(output: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]


def _is_one(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and len(tensor) == 1


class _Classes:
    """Compares the answers of two classifiers, batch by batch."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.values: dict[str, list[float]] = {
            name: [] for name in ("same", "divergence", "sure", "confidence", "confidence_other")
        }

    def add(self, first: Any, second: Any, count: int) -> None:
        """Take the outputs of both for `count` pictures."""
        one, other = (logits_of(output, count).cpu().double() for output in (first, second))
        _check_shapes([one], [other], self._names)
        for name, logits in zip(self._names, (one, other), strict=True):
            if bool(no_answer(logits)):
                raise _not_finite(name)
        log_one, log_other = one.log_softmax(1), other.log_softmax(1)
        (sure, top), (sure_other, top_other) = log_one.exp().max(1), log_other.exp().max(1)
        same = (top == top_other).double()
        # Rounding must not make a distance negative.
        apart = F.kl_div(log_other, log_one, log_target=True, reduction="none").sum(1).clamp(min=0)
        for values, part in zip(self.values.values(), (same, apart, same[sure > SURE], sure, sure_other), strict=True):
            values += part.tolist()

    def extend(self, values: Mapping[str, Sequence[float]]) -> None:
        """Take the values of more pictures, as `values` has them."""
        for name, more in values.items():
            self.values[name] += more

    def result(self) -> Agreement:
        """The figures of all pictures so far."""
        same, divergence, sure, confidence, confidence_other = self.values.values()
        return Agreement(
            len(same),
            same=Estimate.of(same),
            divergence=Estimate.of(divergence, bounded=False, yes_or_no=False),
            sure=Estimate.of(sure) if sure else None,
            confidence=Estimate.of(confidence, yes_or_no=False),
            confidence_other=Estimate.of(confidence_other, yes_or_no=False),
        )


class _Outputs:
    """Compares the tensors that two models return, batch by batch, without keeping them."""

    def __init__(self, name: str, other: str, whole: Sequence[bool]) -> None:
        self._names = name, other
        self._images = 0
        self._sums = [_Sums(one) for one in whole]
        self._same_labels: list[float] | None = []  # a share a picture; None where there are no label maps

    def add(self, first: Any, second: Any, count: int) -> None:
        """Take the outputs of both for `count` pictures."""
        one, other = _floats(first), _floats(second)
        if not one:
            raise BlurifyError(f"{self._names[0]} returns no tensor of floats, so that nothing can be compared")
        _check_shapes(one, other, self._names)
        for name, tensors in zip(self._names, (one, other), strict=True):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise _not_finite(name)
        for sums, here, there in zip(self._sums, one, other, strict=True):
            sums.add(_precise(here), _precise(there), count)
        self._images += count
        if self._same_labels is not None:
            shares = _same_labels(first, second, count)
            self._same_labels = None if shares is None else self._same_labels + shares

    def result(self) -> Agreement:
        """The figures of all pictures so far."""
        if self._images < 2:
            raise BlurifyError(
                f"{self._names[0]} is no classifier: its outputs are compared by how they differ from picture to "
                "picture, so give at least 2 pictures"
            )
        # What is the same for every picture and in both models says nothing.
        told = [sums for sums in self._sums if sums.error > 0 or sums.spread > 0]
        error = math.fsum(sums.relative for sums in told) / len(told) if told else 0.0
        labels = Estimate.of(self._same_labels, yes_or_no=False) if self._same_labels else None
        return Agreement(self._images, relative_error=error, same_labels=labels)


class _Sums:
    """The sums over pictures that one output tensor's relative error takes; `whole`: it is not one row a picture."""

    def __init__(self, whole: bool) -> None:
        self._whole = whole
        self.error = 0.0
        self._count = 0
        self._offset = torch.zeros(())  # the first batch's mean: sums of squares about it lose no digits
        self._sum = torch.zeros((), dtype=torch.float64)
        self._squares = 0.0

    def add(self, one: Tensor, other: Tensor, pictures: int) -> None:
        if self._whole or one.ndim == 0 or len(one) != pictures:  # then the batch counts as one
            one, other = one[None], other[None]
        if self._count == 0:
            self._offset = one.mean(0)
        elif one.shape[1:] != self._offset.shape:
            raise BlurifyError(
                f"an output of the model has {dimensions(tuple(one.shape[1:]))} values for some pictures and "
                f"{dimensions(tuple(self._offset.shape))} for others: it can't be compared picture by picture"
            )
        apart = one - self._offset
        self.error += float((one - other).square().sum(dtype=torch.float64))
        self._sum = self._sum + apart.sum(0, dtype=torch.float64)
        self._squares += float(apart.square().sum(dtype=torch.float64))
        self._count += len(one)

    @property
    def spread(self) -> float:
        """Sum of squared distances from the mean over the pictures."""
        return max(self._squares - float(self._sum.square().sum()) / self._count, 0.0)

    @property
    def relative(self) -> float:
        """The error over the spread; 1 where there is an error and no spread."""
        return self.error / self.spread if self.spread > 0 else 1.0


def _same_labels(first: Any, second: Any, count: int) -> list[float] | None:
    """Of each picture's label map, the share of positions with the same top-1; None where there are no maps."""
    try:
        one, other = (logits_of(output, count) for output in (first, second))
    except BlurifyError:
        return None
    if one.ndim != 4:
        return None
    shares: list[float] = (one.argmax(1) == other.argmax(1)).float().mean((1, 2)).tolist()
    return shares


def _precise(tensor: Tensor) -> Tensor:
    """On the CPU, not every device has double precision, and never in half."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_shapes(one: Sequence[Tensor], other: Sequence[Tensor], names: Sequence[str]) -> None:
    shapes, others = ([tuple(tensor.shape) for tensor in tensors] for tensors in (one, other))
    if shapes != others:
        here, there = (" and ".join(map(str, found)) for found in (shapes, others))
        raise BlurifyError(
            f"{names[0]} returns {here} and {names[1]} {there}: give two models with the same outputs, such as one and "
            "its conversion"
        )


def _not_finite(name: str) -> BlurifyError:
    return BlurifyError(
        f"the output of {name} is not finite (nan or infinite): give pictures and --mean and --std that suit it, or "
        "measure it in float32"
    )
