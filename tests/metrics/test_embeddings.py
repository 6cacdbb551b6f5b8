"""Embeddings and maps of real numbers under shifts: against slow loops over what the model saw, and known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import measure
from blurify.metrics.dense import dense_drift, square_error
from blurify.metrics.embeddings import embedding_drift, nearest_is_own
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

CROP, CANVAS = (12, 10), (17, 13)
PLAIN = Preprocessing(CROP, CANVAS, 3, (0.0,) * 3, (1.0,) * 3)


def noise(count: int) -> Tensor:
    return torch.rand(count, 3, *CANVAS, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A function of what it sees, which it keeps: (what it saw, what it gave)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        found = self.function(x)
        self.seen.append((x, found))
        return found


def run(
    metric: Callable[..., object], kind: str, function: Callable[[Tensor], Tensor], pictures: Tensor, **more: object
) -> tuple[object, list[tuple[Tensor, Tensor]]]:
    """What a metric finds of a function, and what that saw and gave: of each batch three times."""
    net = Net(function)
    subject = Subject(net, PLAIN, output=kind)
    subject.decide()
    net.seen.clear()
    return metric(subject, TensorPictures(pictures), **more), net.seen


def strided(x: Tensor) -> Tensor:
    """(N, 12) that aliases."""
    return (x[:, :, ::3, ::3] - 0.5).flatten(2)[:, :, ::4].flatten(1)


def distance(one: Tensor, other: Tensor) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    return 1 - dot / math.sqrt(sum(float(a) ** 2 for a in one) * sum(float(b) ** 2 for b in other))


class TestEmbeddings:
    def test_the_figures_are_what_a_slow_loop_finds(self) -> None:
        count = 9
        found, seen = run(embedding_drift, "embedding", strided, noise(count), batch_size=4)
        first, second, beside = (torch.cat([given for _, given in seen[place::3]]) for place in range(3))
        assert len(first) == count
        for name, other in (("crops", second), ("pixel", beside)):
            drift = [distance(a, b) for a, b in zip(first, other, strict=True)]
            estimate = getattr(found, name)
            assert estimate.value == pytest.approx(sum(drift) / count, abs=1e-6) and estimate.count == count
            assert estimate.values == pytest.approx(drift, abs=1e-6) and estimate.value > 0.1
            kept = []
            for index, query in enumerate(other):
                distances = [distance(query, one) for one in first]
                kept.append(float(all(distances[index] < far for place, far in enumerate(distances) if place != index)))
            nearest = getattr(found, f"{name}_nearest")
            assert nearest.values == tuple(kept)
        assert 0 < found.crops_nearest.value + found.pixel_nearest.value < 2  # or else this shows nothing
        far = [
            sum(distance(one, other) for place, other in enumerate(first) if place != index) / (count - 1)
            for index, one in enumerate(first)
        ]
        assert found.apart.values == pytest.approx(far, abs=1e-6)

    def test_what_moves_by_one_pixel_is_the_crop_moved_by_one(self) -> None:
        _, seen = run(embedding_drift, "embedding", strided, noise(20))
        (first, _), _, (beside, _) = seen
        for one, other in zip(first, beside, strict=True):
            moved = [
                (dy, dx)
                for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))
                if torch.equal(
                    one[:, max(dy, 0) : 12 + min(dy, 0), max(dx, 0) : 10 + min(dx, 0)],
                    other[:, max(-dy, 0) : 12 + min(-dy, 0), max(-dx, 0) : 10 + min(-dx, 0)],
                )
            ]
            assert len(moved) == 1

    def test_nothing_moves_where_shifts_are_circular_and_all_is_averaged(self) -> None:
        found, _ = run(embedding_drift, "embedding", lambda x: x.double().mean((2, 3)).float(), noise(6), circular=True)
        assert found.circular and found.crops.value < 1e-12 and found.pixel.value < 1e-12 < found.apart.value
        assert found.crops_nearest.value == found.pixel_nearest.value == 1

    def test_one_answer_for_all_pictures_is_no_neighbour_of_its_own(self) -> None:
        """A tie is a loss: a network that collapsed has no drift, and tells nothing apart either."""
        found, _ = run(embedding_drift, "embedding", lambda x: torch.ones(len(x), 5), noise(6))
        assert (found.crops.value, found.crops_nearest.value) == (0, 0)
        assert found.apart.value == pytest.approx(0, abs=1e-12)

    def test_known_distances(self) -> None:
        """Right angles 1, opposite 2, and zeros 1 from everything."""
        vectors = {0: [1.0, 0.0], 1: [0.0, 3.0], 2: [-2.0, 0.0], 3: [0.0, 0.0]}
        for other, wanted in ((0, 0.0), (1, 1.0), (2, 2.0), (3, 1.0)):
            given = iter([vectors[0], vectors[other], vectors[0]])
            net = Net(lambda x: torch.zeros(len(x), 2))
            subject = Subject(net, PLAIN, output="embedding")
            subject.decide()
            net.function = lambda x, given=given: torch.tensor([next(given)])  # type: ignore[misc]
            found = embedding_drift(subject, TensorPictures(noise(1)))
            assert found.crops.value == wanted and found.pixel.value == 0
            assert found.crops_nearest is None and found.apart is None  # of one picture there are no others

    def test_neighbours_of_many(self) -> None:
        """More than are compared at a time."""
        vectors = nn.functional.normalize(torch.randn(2500, 6, dtype=torch.float64))
        assert sum(nearest_is_own(vectors, vectors)) == 2500
        assert sum(nearest_is_own(vectors.roll(1, 0), vectors)) == 0

    def test_not_finite(self) -> None:
        with pytest.raises(BlurifyError, match="not finite"):
            run(embedding_drift, "embedding", lambda x: x.flatten(1) * math.nan, noise(2))


def slow_error(one: Tensor, other: Tensor, shift: tuple[int, int], stride: int) -> float:
    """Position by position: the other's value at the same place of the picture, between its four neighbours."""
    total, count = 0.0, 0
    rows, columns = one.shape[1:]
    for channel in range(len(one)):
        for row in range(rows):
            for column in range(columns):
                y, x = row - shift[0] / stride, column - shift[1] / stride
                if not (0 <= y <= rows - 1 and 0 <= x <= columns - 1):
                    continue
                top, left = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
                value = 0.0
                for down in (0, 1):
                    for right in (0, 1):
                        weight = (1 - abs(y - top - down)) * (1 - abs(x - left - right))
                        if weight > 0:
                            value += weight * float(other[channel, top + down, left + right])
                total += (float(one[channel, row, column]) - value) ** 2
                count += 1
    return total / count if count else math.nan


class TestDense:
    @pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -1), (2, -4), (3, 1), (-5, 2), (12, 0)])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_error_is_what_a_slow_loop_finds(self, shift: tuple[int, int], stride: int) -> None:
        one, other = torch.randn(2, 3, 12 // stride, 10 // stride)
        found, wanted = square_error(one, other, shift, CROP), slow_error(one, other, shift, stride)
        assert found == pytest.approx(wanted, rel=1e-5, nan_ok=True) and math.isnan(found) == (shift[0] == 12)

    def test_the_figures(self) -> None:
        """Errors over the variance of the maps that were seen, from the windows' places as the pixels tell them."""
        count = 6
        y, x = torch.meshgrid(torch.arange(17), torch.arange(13), indexing="ij")
        canvases = noise(count)
        canvases[:, 0], canvases[:, 1] = y / 100, x / 100

        def net(seen: Tensor) -> Tensor:
            return torch.stack([seen[:, 2, ::2, ::2], 3 * seen[:, 2, 1::2, ::2]], 1)

        found, seen = run(dense_drift, "dense", net, canvases, batch_size=4)
        views, maps = (
            [torch.cat([item[part] for item in seen[place::3]]) for place in range(3)] for part in range(2)
        )  # fmt: skip
        places = [(100 * view[:, :2, 0, 0]).round().int().tolist() for view in views]
        both = torch.cat(maps[:2]).double()
        variance = float(both.transpose(0, 1).flatten(1).var(1, correction=0).mean())
        for name, other in (("crops", 1), ("pixel", 2)):
            errors = []
            for index in range(count):
                shift = tuple(b - a for a, b in zip(places[0][index], places[other][index], strict=True))
                errors.append(slow_error(maps[0][index], maps[other][index], shift, 2) / variance)  # type: ignore[arg-type]
            assert getattr(found, name).values == pytest.approx(errors, rel=1e-4)
            assert getattr(found, name).value > 0.1
        assert found.shape == (2, 6, 5)

    def test_what_moves_with_the_picture_is_exact(self) -> None:
        for circular in (False, True):
            found, _ = run(dense_drift, "dense", lambda x: torch.sin(9 * x), noise(5), circular=circular)
            assert found.crops.value == found.pixel.value == 0 and found.circular == circular

    def test_what_stays_in_place_and_what_is_constant(self) -> None:
        """Another map for every sight: twice the variance; one everywhere: no error."""
        torch.manual_seed(0)
        found, _ = run(dense_drift, "dense", lambda x: torch.randn(len(x), 4, 12, 10), noise(40))
        assert found.crops.value == pytest.approx(2, abs=0.05) and found.pixel.value == pytest.approx(2, abs=0.05)
        still, _ = run(dense_drift, "dense", lambda x: torch.ones(len(x), 4, 12, 10), noise(4))
        assert still.crops.value == still.pixel.value == 0

    def test_a_stride_aliases_and_whole_strides_do_not(self) -> None:
        one = torch.rand(1, 3, 16, 16)
        moved = one.roll((2, 4), (2, 3))
        subsampled, there = one[0, :, ::2, ::2], moved[0, :, ::2, ::2]
        assert square_error(subsampled, there, (-2, -4), (16, 16), circular=True) == 0
        odd = one.roll((1, 0), (2, 3))[0, :, ::2, ::2]
        assert square_error(subsampled, odd, (-1, 0), (16, 16), circular=True) > 0.01

    def test_a_valid_convolution_is_known_by_the_nearest_whole_stride(self) -> None:
        """13 of 32 pixels: a stride of 2 without padding, as in P-net."""
        signal = torch.rand(1, 3, 34, 34)
        net = nn.Conv2d(3, 2, 7, 2)
        with torch.no_grad():
            one, other = net(signal[:, :, :32, :32])[0], net(signal[:, :, 2:34, 2:34])[0]
        assert one.shape == (2, 13, 13)
        assert square_error(one, other, (2, 2), (32, 32)) < 1e-10

    def test_numbers_without_places(self) -> None:
        found, seen = run(dense_drift, "dense", lambda x: x.mean((1, 2, 3)), noise(8))
        first, second, _ = (given.double() for _, given in seen)
        variance = float(torch.cat([first, second]).var(correction=0))
        assert found.crops.values == pytest.approx(((first - second).square() / variance).tolist(), rel=1e-4)

    def test_no_room_and_no_numbers(self) -> None:
        with pytest.raises(BlurifyError, match="not finite"):
            run(dense_drift, "dense", lambda x: x * math.nan, noise(2))
        subject = Subject(Net(torch.sin), Preprocessing(CROP, CROP, 3, (0.0,) * 3, (1.0,) * 3), output="dense")
        with pytest.raises(BlurifyError, match="no room to shift"):
            dense_drift(subject, TensorPictures(torch.rand(2, 3, *CROP)))


def test_two_models_are_paired_picture_by_picture() -> None:
    from blurify.metrics.differences import differences

    pictures = TensorPictures(noise(12))
    for kind, one, other, name in (
        ("embedding", strided, lambda x: x.mean((2, 3)), "embedding.pixel"),
        ("dense", lambda x: x[:, :, ::2, ::2], lambda x: x, "dense.pixel"),
    ):
        pair = [measure(Subject(Net(net), PLAIN, output=kind), pictures, ["consistency"]) for net in (one, other)]
        found = differences(*pair)[name]
        assert found.paired and found.value < 0 and found.clear
