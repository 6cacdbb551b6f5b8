"""Agreement: how far one model answers as another does, on pictures without labels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.graph.structure import tensors_in
from blurify.metrics.consistency import Places, amounts, compared, confidence, estimate, places_of, seen_at
from blurify.metrics.keeping import subject_identity
from blurify.metrics.kept import Kept, check_kept, steps_for
from blurify.metrics.outputs import as_scores, entry_in, in_order
from blurify.metrics.results import Agreement, Estimate
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import (
    Batch,
    Pictures,
    Preprocessing,
    Subject,
    Watch,
    logits_of,
    middle,
    no_answer,
    not_finite,
)

SURE = 0.5  # the probability of a top-1 above which the original is sure of it
FIRST = 5  # classes: the top-5


def agreement(
    original: Subject,
    other: Subject,
    pictures: Pictures,
    *,
    shifted: bool = False,
    seed: int = 0,
    circular: bool = False,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Agreement:
    """How far another model answers as the original does: what a conversion costs a trained one, and what mends it.

    Both see the same centre crops. Of classifiers (outputs of (N, classes), see `subject.logits_of`) each picture tells
    whether both have the same top-1, how much of the first five classes both have, and KL(original || other) of their
    probabilities in nats (Kullback and Leibler, 1951), as distillation measures it (Hinton et al., arXiv:1503.02531),
    the cosine of their logits, and how sure each is. Of models that give anything else (label maps, features, any
    structure of tensors) all tensors of floats are compared: for each, the squared distance of the two over all
    pictures, over that of the original's from its own mean picture, and the cosine. What is of whole numbers is left
    out. Of label maps (N, classes, h, w) also the share of positions with the same top-1.

    With `shifted`, both are also compared across a shift: how often the other, shown a second crop of a picture,
    answers what the original answers on the first one (`consistent_and_same`), beside how often the original itself
    does so (`consistent`). The crops are those of `consistency`, by the same seed, so that the latter is the original's
    consistency. A network that always gives the same answer has a consistency of 1, but keeps no more than its share.

    Args:
        original: the model as it was.
        other: the model to be compared with it, of the same outputs.
        pictures: at least one; at least two for models that are no classifiers.
        shifted: compare across a shift too, of outputs that are classes, label maps, or all of them embeddings (N, D).
            It takes two more forwards of the original and one of the other, and a canvas larger than the model's input
            unless `circular`.
        seed: of the crops.
        circular: shift the centre crop around instead of cropping elsewhere.
        batch_size: pictures a forward.
        watch: told of each batch.
        kept: of one of the models: where the figures of each batch are written down (see `kept`), or, of outputs that
            are no classes, the sums over all so far.

    Raises:
        BlurifyError: there are too few pictures, the outputs differ in their shapes, or are not finite; or the canvas
            leaves no room to shift.
    """
    return agreements(
        original,
        [other],
        pictures,
        shifted=shifted,
        seed=seed,
        circular=circular,
        batch_size=batch_size,
        watch=watch,
        kept=kept,
    )[0]


def agreements(
    original: Subject,
    others: Sequence[Subject],
    pictures: Pictures,
    *,
    shifted: bool = False,
    seed: int = 0,
    circular: bool = False,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> list[Agreement]:
    """`agreement` with each of several models, for one run of the original and one decoding of the pictures."""
    if len(pictures) < 1:
        raise BlurifyError("there are no pictures to compare the models on: give at least one")
    batches = math.ceil(len(pictures) / batch_size)
    models = [] if kept is None else [subject_identity(one) for one in (original, *others)]
    steps = steps_for(
        kept, "agreement", batches, batch_size=batch_size, models=models, shifted=shifted, seed=seed, circular=circular
    )
    shifts = _Shifts.of(original, len(pictures), seed, circular=circular) if shifted else None
    outputs: list[_Outputs] = []
    moved: list[_Shares | None] = []  # of what is no classes, a batch
    before = steps.stored()
    if before is not None:
        outputs = [_Outputs(original, other, ()) for other in others]
        moved = _restored(outputs, before[1], before[2])
    for number, batch in steps.batches(pictures, batch_size):
        seen = middle(batch.canvases, original.preprocessing.crop)
        first = original.run(seen)
        _check_side_by_side(original, first, len(seen))
        if not outputs and (number > 0 or _has_classes(original, first, len(seen))):
            found = [_Classes(original, other) for other in others]
            for other, comparison in zip(others, found, strict=True):
                comparison.add(first, other.run(seen), len(seen))
            of_shifts = None if shifts is None else shifts.shares(original, others, batch)
            steps.done(number, {"centre": [comparison.values for comparison in found], "shifts": of_shifts})
        else:
            if not outputs:
                # Anchors may happen to be as many as the pictures of a batch; they are never one.
                whole = [
                    len(seen) > 1 and not _is_one(tensor) for tensor in _floats(original, original.run(seen[:1]), 1)
                ]
                outputs = [_Outputs(original, other, whole) for other in others]
            for other, of_outputs in zip(others, outputs, strict=True):
                of_outputs.add(first, other.run(seen), len(seen))
            if shifts is not None and None not in moved:
                moved.append(shifts.shares(original, others, batch))
            tensors = {
                f"{place} {name}": one for place, sums in enumerate(outputs) for name, one in sums.tensors.items()
            }
            steps.store(number, tensors, {"outputs": [one.data for one in outputs], "shifts": moved})
        if watch is not None:
            watch("agreement", number + 1, batches)
    comparisons: Sequence[_Outputs | _Classes] = outputs
    if not outputs:
        classes = [_Classes(original, other) for other in others]
        for step in steps.results:
            for comparison, values in zip(classes, step["centre"], strict=True):
                comparison.extend(values)
        comparisons, moved = classes, [step["shifts"] for step in steps.results]
    results = [dataclasses.replace(comparison.result(), original=original.name) for comparison in comparisons]
    return _with_shifts(results, moved, yes_or_no=not outputs) if shifted else results


def _restored(outputs: Sequence[_Outputs], tensors: Mapping[str, Tensor], data: Any) -> list[_Shares | None]:
    """Fill comparisons with what was stored of them; the shares across shifts."""
    check_kept(isinstance(data, dict) and len(data["outputs"]) == len(outputs))
    for place, (one, values) in enumerate(zip(outputs, data["outputs"], strict=True)):
        own = {name.partition(" ")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{place} ")}
        one.restore(own, values)
    shares: list[_Shares | None] = data["shifts"]
    return shares


_Shares = list[list[float]]
"""Of each model, the original first, a share a picture."""


def _with_shifts(results: Sequence[Agreement], moved: Sequence[_Shares | None], *, yes_or_no: bool) -> list[Agreement]:
    """The results, with what was found across the shifts of each batch; without, where outputs can't be moved back."""
    if any(shares is None for shares in moved):
        return list(results)
    each = [[value for shares in moved if shares for value in shares[model]] for model in range(1 + len(results))]
    consistent, *others = (estimate(same, yes_or_no=yes_or_no) for same in each)
    return [
        dataclasses.replace(result, consistent=consistent, consistent_and_same=other)
        for result, other in zip(results, others, strict=True)
    ]


class _Shifts:
    """Compares models across a shift of the pictures, batch by batch.

    Each picture is seen through the two random crops of `consistency`; the original's output on the first is what its
    own and the others' on the second are compared with.
    """

    def __init__(self, places: Places, geometry: Preprocessing, *, circular: bool) -> None:
        self._places, self._geometry, self._circular = places, geometry, circular

    @classmethod
    def of(cls, original: Subject, count: int, seed: int, *, circular: bool) -> _Shifts:
        """For `count` pictures. Raises BlurifyError where the canvas leaves no room."""
        geometry = original.preprocessing
        return cls(places_of(count, geometry, seed, circular=circular), geometry, circular=circular)

    def shares(self, original: Subject, others: Sequence[Subject], batch: Batch) -> _Shares | None:
        """How alike the outputs are, for the pictures of a batch; None where their kind can't be moved back."""
        canvases = batch.canvases.to(original.device)
        first, second = (
            seen_at(canvases, place[batch.indices], self._geometry, circular=self._circular)
            for place in (self._places.first, self._places.second)
        )
        moves = (self._places.second - self._places.first)[batch.indices]
        wanted = original.run(first)
        found: _Shares = []
        for model in (original, *others):
            same = self._alike((original, model), (wanted, model.run(second)), moves)
            if same is None:
                return None
            found.append(same.tolist())
        return found

    def _alike(self, models: tuple[Subject, Subject], outputs: tuple[Any, Any], moves: Tensor) -> Tensor | None:
        """(N,): how alike two outputs are, the second's pictures moved; None where the kind can't be moved back."""
        count = len(moves)
        here, there = (_scores(model, output, count) for model, output in zip(models, outputs, strict=True))
        if here is not None and there is not None:
            return compared(here, there, moves, self._geometry, circular=self._circular)[0]
        pairs = list(zip(*(_floats(*pair, count) for pair in zip(models, outputs, strict=True)), strict=True))
        if not pairs or not all(a.ndim == 2 and a.shape == b.shape and len(a) == count for a, b in pairs):
            return None
        return torch.stack([_cosines(_precise(a), _precise(b)) for a, b in pairs]).mean(0)


def _has_classes(subject: Subject, output: Any, count: int) -> bool:
    scores = _scores(subject, output, count)
    return scores is not None and scores.ndim == 2


def _scores(subject: Subject, output: Any, count: int) -> Tensor | None:
    """The class scores (N, K) or (N, K, h, w), float32 or better, in what a model returned; None where there are none.

    Args:
        subject: the model, which says what its output is.
        output: what it returned.
        count: for how many pictures.
    """
    taken = subject.decided
    if taken is not None and taken.kind not in ("classes", "label-map"):
        return None
    try:
        found = logits_of(output, count) if taken is None else as_scores(_told(subject, output, count), taken)
    except BlurifyError:
        return None
    return found if found.dtype == torch.float64 else found.float()


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """(N, ...) twice -> (N,) float64: of each picture, the cosine of the two as vectors; of two zero vectors 1.

    By the distance of the two unit vectors, which loses no digits near 1.
    """
    a, b = (found.reshape(len(found), -1).double() for found in (one, other))
    norms = [found.norm(dim=1, keepdim=True) for found in (a, b)]
    units = [found / norm.masked_fill(norm == 0, 1) for found, norm in zip((a, b), norms, strict=True)]
    cosine = 1 - (units[0] - units[1]).square().sum(1) / 2
    empty = [(norm == 0).squeeze(1) for norm in norms]
    return torch.where(empty[0] | empty[1], (empty[0] & empty[1]).double(), cosine)


def _told(subject: Subject, output: Any, count: int) -> Any:
    """What of an output is compared: the entry that was taken, in its order; where none was, and of detections, all."""
    taken = subject.decided
    if taken is None or taken.kind == "detections":
        return output
    return in_order(entry_in(output, taken, count), taken, subject.preprocessing.crop)


def _floats(subject: Subject, output: Any, count: int) -> list[Tensor]:
    return [tensor for tensor in tensors_in(_told(subject, output, count)) if tensor.is_floating_point()]


def _is_one(tensor: Tensor) -> bool:
    return tensor.ndim > 0 and len(tensor) == 1


_FIRSTS = ("top5", "top1_in_top5")


class _Classes:
    """Compares the answers of two classifiers, batch by batch."""

    def __init__(self, *models: Subject) -> None:
        self._models = models
        self.values: dict[str, list[float]] = {
            name: [] for name in ("same", "divergence", "sure", "confidence", "confidence_other", "cosine", *_FIRSTS)
        }

    def add(self, first: Any, second: Any, count: int) -> None:
        """Take the outputs of both for `count` pictures."""
        found = [_scores(model, output, count) for model, output in zip(self._models, (first, second), strict=True)]
        if any(scores is None for scores in found):
            raise _other_outputs(self._models, first, second)
        one, other = (scores.cpu().double() for scores in found if scores is not None)
        _check_shapes([one], [other], self._models)
        for model, logits in zip(self._models, (one, other), strict=True):
            if bool(no_answer(logits)):
                raise not_finite(f"the output of {model.name} is")
        log_one, log_other = one.log_softmax(1), other.log_softmax(1)
        (sure, top), (sure_other, top_other) = log_one.exp().max(1), log_other.exp().max(1)
        same = (top == top_other).double()
        # Rounding must not make a distance negative.
        apart = F.kl_div(log_other, log_one, log_target=True, reduction="none").sum(1).clamp(min=0)
        cosine = _cosines(*(logits - logits.mean(1, keepdim=True) for logits in (one, other)))
        parts = (same, apart, same[sure > SURE], sure, sure_other, cosine)
        for values, part in zip(self.values.values(), parts, strict=False):
            values += part.tolist()
        if one.shape[1] > FIRST:
            five, five_other = one.topk(FIRST, 1).indices, other.topk(FIRST, 1).indices
            both = (five[:, :, None] == five_other[:, None, :]).sum((1, 2)).double() / FIRST
            self.values["top5"] += both.tolist()
            self.values["top1_in_top5"] += (five_other == top[:, None]).any(1).double().tolist()

    def extend(self, values: Mapping[str, Sequence[float]]) -> None:
        """Take the values of more pictures, as `values` has them."""
        for name, more in values.items():
            self.values[name] += more

    def result(self) -> Agreement:
        """The figures of all pictures so far."""
        same, divergence, sure, here, there, cosine, top5, top1_in_top5 = self.values.values()
        return Agreement(
            len(same),
            same=Estimate.of(same),
            divergence=amounts(divergence),
            sure=Estimate.of(sure) if sure else None,
            confidence=Estimate.of(here, yes_or_no=False),
            confidence_other=Estimate.of(there, yes_or_no=False),
            top5=Estimate.of(top5, yes_or_no=False) if top5 else None,
            top1_in_top5=Estimate.of(top1_in_top5) if top1_in_top5 else None,
            cosine=_cosine_estimate(cosine),
        )


class _Outputs:
    """Compares the tensors that two models return, batch by batch, without keeping them."""

    def __init__(self, original: Subject, other: Subject, whole: Sequence[bool]) -> None:
        self._models = original, other
        self._images = 0
        self._sums = [_Sums(one) for one in whole]
        self._maps: dict[str, list[float]] | None = {"same_labels": [], "confidence": [], "confidence_other": []}
        self._rows = [place for place, one in enumerate(whole) if not one]  # those of one row a picture
        self._cosines: list[float] = []

    def add(self, first: Any, second: Any, count: int) -> None:
        """Take the outputs of both for `count` pictures."""
        one, other = (_floats(*pair, count) for pair in zip(self._models, (first, second), strict=True))
        if not one:
            raise BlurifyError(f"{self._models[0].name} returns no tensor of floats, so that nothing can be compared")
        _check_shapes(one, other, self._models)
        if len(one) != len(self._sums):
            raise BlurifyError(
                f"{self._models[0].name} returns {len(one)} tensors for some pictures and {len(self._sums)} for "
                "others: they can't be compared picture by picture"
            )
        for model, tensors in zip(self._models, (one, other), strict=True):
            if not all(bool(tensor.isfinite().all()) for tensor in tensors):
                raise not_finite(f"the output of {model.name} is")
        for sums, here, there in zip(self._sums, one, other, strict=True):
            sums.add(_precise(here), _precise(there), count)
        self._images += count
        if any(one[place].ndim == 0 or len(one[place]) != count for place in self._rows):
            self._rows = []
        if self._rows:
            each = [_cosines(_precise(one[place]), _precise(other[place])) for place in self._rows]
            self._cosines += torch.stack(each).mean(0).tolist()
        if self._maps is not None:
            found = _of_maps(*(_scores(*pair, count) for pair in zip(self._models, (first, second), strict=True)))
            self._maps = found and {name: values + found[name] for name, values in self._maps.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs of all pictures so far, beside `data`."""
        return {f"{place} {name}": one for place, sums in enumerate(self._sums) for name, one in sums.tensors.items()}

    @property
    def data(self) -> dict[str, Any]:
        """What `restore` needs besides: plain data."""
        return {
            "images": self._images, "sums": [sums.data for sums in self._sums], "maps": self._maps, "rows": self._rows,
            "cosines": self._cosines,
        }  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Be what another one was when it had these."""
        self._images, self._maps, self._rows, self._cosines = (
            data[name] for name in ("images", "maps", "rows", "cosines")
        )
        self._sums = []
        for place, values in enumerate(data["sums"]):
            sums = _Sums(values["whole"])
            sums.restore(tensors[f"{place} offset"], tensors[f"{place} sum"], values)
            self._sums.append(sums)

    def result(self) -> Agreement:
        """The figures of all pictures so far."""
        if self._images < 2:
            raise BlurifyError(
                f"{self._models[0].name} is no classifier: its outputs are compared by how they differ from picture to "
                "picture, so give at least 2 pictures"
            )
        # What is the same for every picture and in both models says nothing.
        told = [sums for sums in self._sums if sums.error > 0 or sums.spread > 0]
        error = math.fsum(sums.relative for sums in told) / len(told) if told else 0.0
        maps = {name: Estimate.of(values, yes_or_no=False) for name, values in (self._maps or {}).items()}
        return Agreement(
            self._images,
            relative_error=error,
            same_labels=maps.get("same_labels"),
            cosine=_cosine_estimate(self._cosines) if self._rows else None,
            confidence=maps.get("confidence"),
            confidence_other=maps.get("confidence_other"),
        )


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
    def tensors(self) -> dict[str, Tensor]:
        """What `restore` needs, beside `data`."""
        return {"offset": self._offset, "sum": self._sum}

    @property
    def data(self) -> dict[str, Any]:
        """What `restore` needs besides: plain data."""
        return {"whole": self._whole, "error": self.error, "count": self._count, "squares": self._squares}

    def restore(self, offset: Tensor, total: Tensor, data: Mapping[str, Any]) -> None:
        """Be what another one was when it had these."""
        self.error, self._count, self._squares = data["error"], data["count"], data["squares"]
        self._offset, self._sum = offset, total

    @property
    def spread(self) -> float:
        """Sum of squared distances from the mean over the pictures."""
        return max(self._squares - float(self._sum.square().sum()) / self._count, 0.0)

    @property
    def relative(self) -> float:
        """The error over the spread; 1 where there is an error and no spread."""
        return self.error / self.spread if self.spread > 0 else 1.0


def _of_maps(one: Tensor | None, other: Tensor | None) -> dict[str, list[float]] | None:
    """Of each picture's label map: the share of positions with the same top-1, and how sure each model is of its own.

    None where there are no maps.
    """
    if one is None or other is None or one.ndim != 4 or one.shape != other.shape:
        return None
    return {
        "same_labels": (one.argmax(1) == other.argmax(1)).float().mean((1, 2)).tolist(),
        "confidence": confidence(one).tolist(),
        "confidence_other": confidence(other).tolist(),
    }


def _cosine_estimate(values: Sequence[float]) -> Estimate:
    return Estimate.of(values, bounded=False, yes_or_no=False)


def _precise(tensor: Tensor) -> Tensor:
    """On the CPU, not every device has double precision, and never in half."""
    tensor = tensor.detach().cpu()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_side_by_side(model: Subject, output: Any, count: int) -> None:
    """Raise BlurifyError for a list of boxes a picture, as torchvision's detectors give: they have no order."""
    taken = model.decided
    if taken is None or taken.kind != "detections" or not isinstance(output, list | tuple) or len(output) != count:
        return
    if all(isinstance(one, Mapping) for one in output):
        raise BlurifyError(
            f"{model.name} returns a list of boxes for each picture, of which none says to which of another model's it "
            "belongs"
        )


def _check_shapes(one: Sequence[Tensor], other: Sequence[Tensor], models: Sequence[Subject]) -> None:
    if [tensor.shape for tensor in one] != [tensor.shape for tensor in other]:
        raise _other_outputs(models, one, other)


def _other_outputs(models: Sequence[Subject], first: Any, second: Any) -> BlurifyError:
    found = ([one for one in tensors_in(output) if one.is_floating_point()] for output in (first, second))
    here, there = (" and ".join(str(tuple(tensor.shape)) for tensor in tensors) for tensors in found)
    return BlurifyError(
        f"{models[0].name} returns {here} and {models[1].name} {there}: give two models with the same outputs, such "
        "as one and its conversion"
    )
