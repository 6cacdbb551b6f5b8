"""Detections under shifts: toy detectors of known answers, matching against brute force, and other people's forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import Measurement, measure
from blurify.metrics.boxes import Boxes, matched, of_queries, sorted_boxes, within
from blurify.metrics.consistency import places_of
from blurify.metrics.detections import compared, detection_shifts
from blurify.metrics.preprocessing import preprocessing_of
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

CROP = (32, 32)
PLAIN = Preprocessing(CROP, (40, 40), 3, (0.0,) * 3, (1.0,) * 3)


class Finder(nn.Module):
    """Finds the one bright rectangle of each colour, exactly, or rounded down to steps; its score is its brightness."""

    def __init__(self, step: int = 1) -> None:
        super().__init__()
        self.step = step

    def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for picture in pictures:
            boxes, scores, labels = [], [], []
            for colour, plane in enumerate(picture):
                if plane.max() > 0:
                    rows, columns = (plane > 0).nonzero().unbind(1)
                    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    boxes.append([float(corner // self.step * self.step) for corner in corners])
                    scores.append(float(plane.max()))
                    labels.append(colour)
            found.append(
                {
                    "boxes": torch.tensor(boxes).reshape(-1, 4),
                    "scores": torch.tensor(scores),
                    "labels": torch.tensor(labels, dtype=torch.int64),
                }
            )
        return found


def scenes(count: int) -> TensorPictures:
    """A red and a green rectangle in the middle of every canvas, which every crop shows whole."""
    canvases = torch.zeros(count, 3, 40, 40)
    canvases[:, 0, 12:24, 10:18] = 0.9
    canvases[:, 1, 20:28, 20:30] = 0.7
    return TensorPictures(canvases)


def test_a_detector_that_follows_every_shift() -> None:
    found = measure(Subject(Finder(), PLAIN), scenes(8), ["consistency"])
    assert found.output is not None and found.output.kind == "detections" and found.consistency is None
    shifts = found.detections
    assert shifts is not None and shifts.boxes.value == 2
    for where in ("pixel", "crops"):
        values = [
            getattr(shifts, f"{where}_{name}").value for name in ("matched", "overlap", "score_change", "count_change")
        ]
        assert values == pytest.approx([1, 1, 0, 0])
    assert Measurement.from_dict(found.to_dict()) == found


def test_a_detector_of_steps_jitters_by_what_it_rounds() -> None:
    """Corners on a grid of 2 pixels: after one pixel both boxes are as far off as the rounding of each tells."""
    count = 16
    subject = Subject(Finder(2), PLAIN)
    shifts = detection_shifts(subject, scenes(count))
    assert shifts.pixel_overlap is not None and 0.5 < shifts.pixel_overlap.value < 1
    assert shifts.pixel_score_change is not None and shifts.pixel_score_change.value == 0

    places = places_of(count, PLAIN, 0, circular=False)
    wanted = []
    for first, beside in zip(places.first.tolist(), places.beside.tolist(), strict=True):
        overlaps = []
        for y0, x0, y1, x1 in ((12, 10, 24, 18), (20, 20, 28, 30)):
            seen = []
            for top, left in (first, beside):
                corners = [(x0 - left) // 2 * 2, (y0 - top) // 2 * 2, (x1 - left) // 2 * 2, (y1 - top) // 2 * 2]
                seen.append([corner + (left, top)[place % 2] for place, corner in enumerate(corners)])
            overlaps.append(union_share(*seen))
        wanted.append(sum(overlaps) / 2 if min(overlaps) >= 0.5 else math.nan)
    assert not any(map(math.isnan, wanted))
    assert shifts.pixel_overlap.value == pytest.approx(sum(wanted) / count, abs=1e-6)


def union_share(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def random_boxes(count: int, seed: int) -> Boxes:
    draws = torch.Generator().manual_seed(seed)
    corner = 12 * torch.rand(count, 2, generator=draws)
    size = 6 + 10 * torch.rand(count, 2, generator=draws)
    labels = torch.randint(2, (count,), generator=draws)
    return sorted_boxes(torch.cat([corner, corner + size], 1), torch.rand(count, generator=draws), labels)


@pytest.mark.parametrize("seed", range(12))
def test_the_matching_is_what_loops_find(seed: int) -> None:
    """Greedy by score; and never more pairs than the best assignment of all, found by trying each."""
    one, other = random_boxes(5, seed), random_boxes(4, seed + 100)
    free, pairs = set(range(4)), []
    for index in range(5):
        best, best_at = -1.0, -1
        for place in sorted(free):
            share = union_share(one.corners[index].tolist(), other.corners[place].tolist())
            if one.labels[index] == other.labels[place] and share > best:
                best, best_at = share, place
        if best >= 0.3:
            pairs.append((index, best_at))
            free.remove(best_at)
    found = matched(one, other, 0.3)
    assert [(a, b) for a, b, _ in found] == pairs
    for a, b, share in found:
        assert share == pytest.approx(union_share(one.corners[a].tolist(), other.corners[b].tolist()))
    most = max(
        sum(
            bool(one.labels[a] == other.labels[b])
            and union_share(one.corners[a].tolist(), other.corners[b].tolist()) >= 0.3
            for b, a in enumerate(order)
        )
        for order in itertools.permutations(range(5), 4)
    )
    assert most / 2 <= len(found) <= most
    assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)


def boxes(*rows: tuple[float, float, float, float, float, int]) -> Boxes:
    corners, scores, labels = zip(*((row[:4], row[4], row[5]) for row in rows), strict=True)
    return sorted_boxes(torch.tensor(corners), torch.tensor(scores), torch.tensor(labels))


def test_known_figures_of_one_picture() -> None:
    """Shifted back by (3, 2): one box as it was, one 2 wider, one of another label; one there alone."""
    one = boxes((4, 6, 14, 16, 0.9, 1), (16, 6, 24, 14, 0.8, 2), (4, 20, 10, 26, 0.6, 3))
    other = boxes(
        (2, 3, 12, 13, 0.7, 1), (14, 3, 24, 11, 0.9, 2), (2, 17, 8, 23, 0.6, 4), (15, 15, 21, 21, 0.5, 1)
    )  # fmt: skip
    share, overlap, change, count = compared(one, other, (3, 2), CROP, 0.5)
    assert share == pytest.approx(2 * 2 / 7) and overlap == pytest.approx((1 + 8 / 10) / 2)
    assert change == pytest.approx((0.2 + 0.1) / 2) and count == 1
    none = Boxes(torch.zeros(0, 4).double(), torch.zeros(0).double(), torch.zeros(0, dtype=torch.int64))
    assert compared(one, none, (0, 0), CROP, 0.5)[::3] == (0, 3)
    assert all(map(math.isnan, compared(none, none, (1, 0), CROP, 0.5)[:3]))


def test_only_what_both_see_counts() -> None:
    """The other crop starts 10 pixels to the right: boxes are cut there, and left out where little of them is left."""
    one = boxes((0, 4, 8, 12, 0.9, 1), (6, 4, 16, 12, 0.8, 1), (8, 20, 18, 28, 0.7, 1))
    other = boxes((0, 4, 6, 12, 0.8, 1), (0, 20, 8, 28, 0.7, 1))
    share, overlap, *_ = compared(one, other, (0, 10), CROP, 0.5)
    assert (share, overlap) == (1, 1)
    cut = within(one, (10, 0, 32, 32))
    assert cut.corners.tolist() == [[10, 4, 16, 12], [10, 20, 18, 28]] and len(within(one, (10, 0, 32, 32), 0.9)) == 0


def test_low_scores_do_not_count_and_none_is_an_error() -> None:
    subject, pictures = Subject(Finder(), PLAIN), scenes(3)
    assert measure(subject, pictures, ["consistency"], least_score=0.8).detections.boxes.value == 1  # type: ignore[union-attr]
    with pytest.raises(BlurifyError, match=r"no box of a score of 0\.95 or more .* lower --least-score"):
        measure(subject, pictures, ["consistency"], least_score=0.95)
    with pytest.raises(BlurifyError, match="circular"):
        measure(subject, pictures, ["consistency"], circular=True)
    with pytest.raises(BlurifyError, match="from 0 to 1"):
        detection_shifts(subject, pictures, least_score=2)
    for name in ("stability", "worst-case", "half-patch"):
        with pytest.raises(BlurifyError, match=f"gives detections: leave {name} out"):
            measure(subject, pictures, [name])


def test_pictures_without_boxes_are_left_out_of_the_share_and_not_paired() -> None:
    canvases = scenes(6).canvases.clone()
    canvases[2] = 0
    shifts = detection_shifts(Subject(Finder(), PLAIN), TensorPictures(canvases))
    assert (shifts.pixel_matched.count, shifts.pixel_count_change.count, shifts.boxes.value) == (5, 6, 2 * 5 / 6)
    assert shifts.pixel_matched.values == () and len(shifts.pixel_count_change.values) == 6


def test_detr_gives_what_transformers_makes_of_it() -> None:
    """Against their own post-processing, for a softmax with 'no object'."""
    from transformers import DetrImageProcessor
    from transformers.models.detr.modeling_detr import DetrObjectDetectionOutput

    torch.manual_seed(0)
    output = DetrObjectDetectionOutput(logits=3 * torch.randn(2, 7, 5), pred_boxes=torch.rand(2, 7, 4) / 2 + 0.2)
    found = of_queries(output, (48, 64), 4)
    theirs = DetrImageProcessor().post_process_object_detection(output, threshold=0.0, target_sizes=[(48, 64)] * 2)
    for one, other in zip(found, theirs, strict=True):
        order = other["scores"].argsort(descending=True)
        assert torch.allclose(one.scores.float(), other["scores"][order], atol=1e-6)
        assert torch.allclose(one.corners.float(), other["boxes"][order], atol=1e-4)
        assert torch.equal(one.labels, other["labels"][order])
    each = of_queries(output, (48, 64), 5)[0]  # a sigmoid of each label's own
    assert torch.allclose(each.scores.float(), output.logits[0].sigmoid().amax(1).sort(descending=True).values)


@pytest.mark.parametrize("name", ["yolov8n", "yolov8n-seg"])
def test_ultralytics_gives_what_its_own_suppression_leaves(name: str) -> None:
    """Also of a model of masks, whose coefficients are no labels."""
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel
    from ultralytics.utils.nms import non_max_suppression

    torch.manual_seed(0)
    kind = SegmentationModel if name.endswith("seg") else DetectionModel
    model = kind(f"{name}.yaml", ch=3, nc=3, verbose=False).eval()
    for branch in model.model[-1].cv3:
        nn.init.normal_(branch[-1].weight, std=3.0)
        nn.init.zeros_(branch[-1].bias)
    used = preprocessing_of(model, size=(64, 64))
    assert (used.mean, used.std) == ((0,) * 3, (1,) * 3)
    subject, pictures = Subject(model, used), torch.rand(2, 3, 64, 64)
    assert subject.output.layout == "ultralytics"
    with torch.no_grad():
        output = model(pictures)
    while isinstance(output, tuple):  # the predictions come first
        output = output[0]
    theirs = non_max_suppression(output, conf_thres=0.4, iou_thres=0.7, nc=3)
    for one, other in zip(subject.boxes(pictures), theirs, strict=True):
        one = one.some(one.scores > 0.4)
        assert len(one) == len(other) > 0
        assert torch.allclose(one.scores.float(), other[:, 4].sort(descending=True).values, atol=1e-5)


def test_aliasing_of_a_detector_that_slices_as_many_boxes_as_it_finds() -> None:
    """What is sliced is no site, and of another size for every picture."""

    class Slicer(Finder):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 2, 3, 2, 1)

        def forward(self, pictures: Tensor) -> list[dict[str, Tensor]]:
            maps, found = self.first(pictures), super().forward(pictures)
            for one in found:
                bright = (pictures.sum((1, 2, 3)) / 100).long()
                many = torch.zeros(int(bright.sum()) + 1, 4) + maps.mean()
                one["boxes"] = one["boxes"] + 0 * many[:, 0::2].sum()
            return found

    found = measure(Subject(Slicer(), PLAIN), scenes(3), ["consistency", "aliasing"])
    assert found.aliasing is not None and [site.site for site in found.aliasing.sites] == ["first"]


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvisions_detectors(name: str) -> None:
    """They get lists of pictures in 0..1, normalise by themselves, and are measured with their sites."""
    torch.manual_seed(0)
    small = {"min_size": 64, "box_score_thresh": 0.0} if name.startswith("faster") else {"score_thresh": 0.0}
    model = getattr(torchvision.models.detection, name)(
        weights=None, weights_backbone=None, num_classes=3, **small
    ).eval()
    used = preprocessing_of(model, size=(64, 64))
    assert (used.mean, used.std) == ((0,) * 3, (1,) * 3)
    assert preprocessing_of(model).crop == ((64, 64) if name.startswith("faster") else (320, 320))
    subject, pictures = Subject(model, used, "it"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        direct = model(list(pictures))
    for one, other in zip(subject.boxes(pictures), direct, strict=True):
        assert torch.allclose(one.scores.float(), other["scores"].sort(descending=True).values)
    if not name.startswith("faster"):
        return
    canvases = torch.rand(2, 3, *used.canvas, generator=torch.Generator().manual_seed(1))
    found = measure(subject, TensorPictures(canvases), ["consistency", "aliasing"], least_score=0.0)
    assert found.detections is not None and found.detections.boxes.value > 0
    assert found.aliasing is not None and len(found.aliasing.sites) > 3
