"""Boxes that a detector gives, in whatever form it gives them, and how two sets of them match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_OVERLAP = 0.7  # boxes of one label that overlap by more are one box: ultralytics' default
_LEAST = 0.001  # scores below are never looked at
_ENDED = 6  # numbers of a box where the model itself leaves out overlapping ones


@dataclass(frozen=True)
class Boxes:
    """What a detector finds in one picture.

    Attributes:
        corners: (n, 4) float64, x and y of the upper left and of the lower right corner, in pixels of the input.
        scores: (n,) float64, the highest first.
        labels: (n,) int64.
    """

    corners: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def cut(self, size: tuple[int, int]) -> Boxes:
        """The same, cut to a picture of (height, width)."""
        from torchvision.ops import clip_boxes_to_image

        return Boxes(clip_boxes_to_image(self.corners, size), self.scores, self.labels)

    def some(self, which: Tensor) -> Boxes:
        """Those of a mask or of places."""
        return Boxes(self.corners[which], self.scores[which], self.labels[which])


def sorted_boxes(corners: Tensor, scores: Tensor, labels: Tensor) -> Boxes:
    """Boxes on the CPU, the highest score first; equal scores keep their order."""
    order = scores.detach().cpu().double().argsort(descending=True, stable=True)
    return Boxes(
        corners.detach().cpu().double()[order], scores.detach().cpu().double()[order], labels.detach().cpu()[order]
    )


def is_listed(output: Any) -> bool:
    """Whether an output is torchvision's: a list of dicts with 'boxes', 'scores' and 'labels', one a picture."""
    return (
        isinstance(output, list | tuple)
        and len(output) > 0
        and all(isinstance(one, Mapping) and {"boxes", "scores", "labels"} <= set(one) for one in output)
    )


def has_queries(output: Any) -> bool:
    """Whether an output is DETR's: 'logits' (N, queries, labels) beside 'pred_boxes' (N, queries, 4)."""
    logits, boxes = (_part(output, name) for name in ("logits", "pred_boxes"))
    return (
        isinstance(logits, Tensor)
        and isinstance(boxes, Tensor)
        and logits.ndim == boxes.ndim == 3
        and boxes.shape[-1] == 4
        and logits.shape[:2] == boxes.shape[:2]
    )


def is_ultralytics(model: nn.Module, output: Any) -> bool:
    """Whether an output is that of ultralytics' models of upright boxes: (N, 4 + labels, places), or (N, n, 6)."""
    first = _first(output)
    theirs = [kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("ultralytics.")]
    if "DetectionModel" not in theirs or not isinstance(first, Tensor) or first.ndim != 3:
        return False
    if {"OBBModel", "RTDETRDetectionModel"} & set(theirs):  # turned boxes; shares of the picture
        return False
    return first.shape[1] >= 4 + labels_of(model) or first.shape[2] == _ENDED


def labels_of(model: nn.Module) -> int:
    """How many labels an ultralytics detection model has."""
    layers: Any = next(model.children())
    return int(layers[-1].nc)


def _first(output: Any) -> Any:
    """What stands first in a tuple of tuples."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output


def _part(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def listed(output: Sequence[Mapping[str, Tensor]]) -> list[Boxes]:
    """The boxes in torchvision's form."""
    return [sorted_boxes(one["boxes"], one["scores"], one["labels"]) for one in output]


def of_queries(output: Any, size: tuple[int, int], labels: int | None) -> list[Boxes]:
    """The boxes in DETR's form (Carion et al. 2020): of each query one, of its most probable label.

    Args:
        output: has 'logits' and 'pred_boxes', the latter (centre x, centre y, width, height) as shares of the picture.
        size: (height, width) of the picture.
        labels: how many the model has. With one more in the logits, the last is 'no object' and the scores are a
            softmax over all (DETR, YOLOS, Conditional DETR); else each label's is a sigmoid of its own (Deformable
            and RT-DETR).
    """
    from torchvision.ops import box_convert

    # On the CPU from here on: not every device has double precision.
    logits, shares = (_part(output, name).detach().cpu().double() for name in ("logits", "pred_boxes"))
    found = logits.sigmoid() if labels is not None and logits.shape[-1] == labels else logits.softmax(-1)[..., :-1]
    scores, names = found.max(-1)
    height, width = size
    corners = box_convert(shares, "cxcywh", "xyxy") * shares.new_tensor([width, height, width, height])
    return [sorted_boxes(*one) for one in zip(corners, scores, names, strict=True)]


def of_ultralytics(output: Any, labels: int) -> list[Boxes]:
    """The boxes that ultralytics' detection models give in eval mode; overlapping ones of a label are one box.

    Args:
        output: (centre x, centre y, width, height), a score for each label, and what masks or poses need besides; or
            corners, score and label.
        labels: how many there are.
    """
    from torchvision.ops import batched_nms, box_convert

    found = []
    for one in _first(output):
        if one.shape[-1] == _ENDED and one.shape[0] != 4 + labels:
            found.append(sorted_boxes(one[:, :4], one[:, 4], one[:, 5].long()))
            continue
        corners = box_convert(one[:4].T, "cxcywh", "xyxy")
        scores, names = one[4 : 4 + labels].max(0)
        some = scores > _LEAST
        corners, scores, names = corners[some].float(), scores[some].float(), names[some]
        kept = batched_nms(corners, scores, names, _OVERLAP)
        found.append(sorted_boxes(corners[kept], scores[kept], names[kept]))
    return found


def matched(one: Boxes, other: Boxes, least: float) -> list[tuple[int, int, float]]:
    """Which box of the one is which of the other, as COCO's evaluation matches them (Lin et al. 2014).

    Greedy: each of the one's boxes, the highest score first, takes the free box of its own label in the other that it
    overlaps most, where their intersection over union is at least `least`.

    Returns:
        (index in one, index in other, intersection over union) of each pair.
    """
    from torchvision.ops import box_iou

    if not len(one) or not len(other):
        return []
    overlaps = box_iou(one.corners, other.corners)
    overlaps[one.labels[:, None] != other.labels[None]] = -1
    pairs = []
    for index in range(len(one)):
        best, place = overlaps[index].max(0)
        if float(best) >= least:
            pairs.append((index, int(place), float(best)))
            overlaps[:, place] = -1
    return pairs


def within(boxes: Boxes, window: tuple[float, float, float, float], least: float = 0.5) -> Boxes:
    """Boxes cut to a window (left, top, right, bottom), where at least a share of their area lies in it."""
    low, high = boxes.corners.new_tensor(window[:2]).repeat(2), boxes.corners.new_tensor(window[2:]).repeat(2)
    cut = torch.minimum(torch.maximum(boxes.corners, low), high)

    def area(corners: Tensor) -> Tensor:
        return (corners[:, 2] - corners[:, 0]).clamp(min=0) * (corners[:, 3] - corners[:, 1]).clamp(min=0)

    whole = area(boxes.corners)
    kept = (whole > 0) & (area(cut) >= least * whole)
    return Boxes(cut[kept], boxes.scores[kept], boxes.labels[kept])
