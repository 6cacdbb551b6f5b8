"""Consistency: against a slow loop over the windows that the model saw, and known answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics.consistency import compared, consistency, step_of
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

CROP, CANVAS = (12, 10), (17, 13)
PLAIN = Preprocessing(CROP, CANVAS, 3, (0.0,) * 3, (1.0,) * 3)


def noise(count: int, size: tuple[int, int] = CANVAS, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def coordinates(count: int, size: tuple[int, int] = CANVAS) -> Tensor:
    """Canvases whose pixels say where they are: (y, x, which picture) / 10000."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack([torch.stack([y, x, torch.full_like(y, index)]) for index in range(count)]) / 10000.0


class Recorder(nn.Module):
    """Keeps what it sees; answers by the last pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x[:, :, -1, -1]


def windows(count: int, *, seed: int = 0, circular: bool = False, geometry: Preprocessing = PLAIN) -> Tensor:
    """Where the three windows of each picture lie, by what the model sees of the coordinates: (3, count, 2)."""
    recorder = Recorder()
    pictures = TensorPictures(coordinates(count, geometry.canvas))
    consistency(Subject(recorder, geometry), pictures, seed=seed, batch_size=count, circular=circular)
    assert len(recorder.seen) == 3
    return torch.stack([(seen[:, :2, 0, 0] * 10000).round().long() for seen in recorder.seen])


class Strided(nn.Sequential):
    """A small aliased classifier, or dense model."""

    def __init__(self, *, dense: bool = False, classes: int = 4, padding_mode: str = "zeros", stride: int = 2) -> None:
        torch.manual_seed(3)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=stride, padding=1, padding_mode=padding_mode),
            nn.ReLU(),
            nn.Conv2d(8, classes, 3, padding=1, padding_mode=padding_mode),
        )
        if not dense:
            self.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        nn.init.normal_(self[0].weight, std=2.0)
        nn.init.normal_(self[2].weight, std=2.0)
        nn.init.zeros_(self[2].bias)


def test_the_windows_are_where_they_may_be() -> None:
    """Anywhere on the canvas, each corner as likely; the third one pixel beside the first, in each direction."""
    count = 4000
    first, second, beside = windows(count)
    spare = torch.tensor([5, 3])
    for place in (first, second, beside):
        assert bool((place >= 0).all()) and bool((place <= spare).all())
    for place in (first, second):
        counts = torch.bincount(place[:, 0] * 4 + place[:, 1], minlength=24)
        assert len(counts) == 24 and counts.min() > 0.6 * count / 24 and counts.max() < 1.4 * count / 24
    assert 0.6 / 24 < (first == second).all(1).double().mean() < 1.4 / 24  # independent of each other
    steps = beside - first
    assert bool((steps.abs().sum(1) == 1).all())
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        assert 0.2 < (steps == torch.tensor(step)).all(1).double().mean() < 0.3


@pytest.mark.parametrize("circular", [False, True])
def test_a_window_is_that_part_of_the_canvas(circular: bool) -> None:
    """Every pixel of every window, by a loop."""
    recorder, canvases = Recorder(), coordinates(5)
    consistency(Subject(recorder, PLAIN), TensorPictures(canvases), circular=circular)
    for seen in recorder.seen:
        for picture in range(5):
            y, x = (seen[picture, :2, 0, 0] * 10000).round().long().tolist()
            for row in range(CROP[0]):
                for column in range(CROP[1]):
                    at = (y + row, x + column)
                    if circular:  # the centre crop starts at (2, 1)
                        at = 2 + (y - 2 + row) % CROP[0], 1 + (x - 1 + column) % CROP[1]
                    assert torch.equal(seen[picture, :, row, column], canvases[picture, :, at[0], at[1]])


def test_circular_windows_are_any_shift() -> None:
    first, second, beside = windows(3000, circular=True) - torch.tensor([2, 1])
    for place in (first, second):
        assert torch.bincount(place[:, 0] * 10 + place[:, 1], minlength=120).min() > 0
    steps = (beside - first + torch.tensor([6, 5])) % torch.tensor(CROP) - torch.tensor([6, 5])
    assert bool((steps.abs().sum(1) == 1).all())


def test_one_direction_where_there_is_room_in_one_only() -> None:
    first, _, beside = windows(200, geometry=Preprocessing((12, 10), (12, 12), 3, (0.0,) * 3, (1.0,) * 3))
    assert bool(((beside - first)[:, 0] == 0).all()) and bool(((beside - first)[:, 1].abs() == 1).all())


def test_each_picture_has_windows_of_its_own_seed_and_place() -> None:
    many = windows(50)
    assert torch.equal(many, windows(50)) and torch.equal(many[:, :7], windows(7))
    assert not torch.equal(many, windows(50, seed=1))


def test_the_figures_are_what_a_slow_loop_finds() -> None:
    count, canvases = 40, noise(40)
    labels = torch.arange(count) % 4
    labels[::5] = -1
    model = Strided().eval()
    found = consistency(Subject(model, PLAIN), TensorPictures(canvases, labels), batch_size=7)
    same, change, flips, right = [], [], [], []
    first, second, beside = windows(count).tolist()
    for index in range(count):

        def answer(place: list[int], index: int = index) -> Tensor:
            y, x = place
            with torch.no_grad():
                return model(canvases[index : index + 1, :, y : y + 12, x : x + 10]).softmax(1)[0]

        top = int(answer(first[index]).argmax())
        same.append(top == int(answer(second[index]).argmax()))
        flips.append(top != int(answer(beside[index]).argmax()))
        change.append(abs(float(answer(first[index])[top] - answer(beside[index])[top])))
        if labels[index] >= 0:
            right.append(int(answer([2, 1]).argmax()) == int(labels[index]))
    assert 0 < sum(same) < count and 0 < sum(flips) < count  # or else this shows nothing
    assert found.agreement.value == sum(same) / count and found.agreement.count == count
    assert found.pixel_flips.value == sum(flips) / count
    assert found.pixel_change.value == pytest.approx(sum(change) / count, abs=1e-6)
    assert found.accuracy is not None and found.accuracy.count == len(right) == 32
    assert found.accuracy.value == sum(right) / 32
    assert not found.dense and not found.circular
    with torch.no_grad():
        tops = {
            int(model(canvases[i : i + 1, :, y : y + 12, x : x + 10]).argmax()) for i, (y, x) in enumerate(first)
        }  # fmt: skip
    assert found.answers == len(tops) > 1 and not found.always_the_same


def test_a_model_with_one_answer_for_everything_is_said_to_be_that() -> None:
    """Labels alike are classes alike; one picture alone is no sign."""
    model = Strided()
    one = consistency(Subject(model, PLAIN), TensorPictures(noise(1)))
    assert one.answers == 1 and not one.always_the_same
    model[2].bias.data[1] += 1000
    found = consistency(Subject(model, PLAIN), TensorPictures(noise(9)), batch_size=4)
    assert found.agreement.value == 1 and found.answers == 1 and found.always_the_same
    maps = consistency(Subject(nn.Conv2d(3, 2, 1), PLAIN), TensorPictures(torch.full((1, 3, *CANVAS), 0.3)))
    assert maps.dense and maps.always_the_same


def test_the_pictures_are_normalised() -> None:
    recorder = Recorder()
    geometry = Preprocessing(CROP, CANVAS, 3, (0.5, 0.25, 0.0), (0.5, 2.0, 1.0))
    consistency(Subject(recorder, geometry), TensorPictures(torch.full((1, 3, *CANVAS), 0.75)))
    assert recorder.seen[0][0, :, 4, 4].tolist() == [0.5, 0.25, 0.75]


class Corner(nn.Module):
    """Reads one pixel: class 1 where it is white."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 3, 4]
        return torch.stack([1 - value, value], 1) * 100


def test_a_net_that_reads_one_pixel() -> None:
    """On a board of single pixels, every shift by one changes the answer; on stripes, every vertical one."""
    board = torch.arange(CANVAS[0])[:, None] + torch.arange(CANVAS[1])
    stripes = torch.arange(CANVAS[0])[:, None].expand(CANVAS)
    first, second, beside = windows(300)
    for pattern in (board, stripes):
        canvases = (pattern % 2).float().expand(300, 3, -1, -1)
        found = consistency(Subject(Corner(), PLAIN), TensorPictures(canvases))
        colour = [[int(pattern[y + 3, x + 4] % 2) for y, x in place.tolist()] for place in (first, second, beside)]
        changed = [one != other for one, other in zip(colour[0], colour[2], strict=True)]
        assert found.pixel_flips.value == found.pixel_change.value == sum(changed) / 300
        equal = [one == other for one, other in zip(colour[0], colour[1], strict=True)]
        assert found.agreement.value == sum(equal) / 300
        assert all(changed) is (pattern is board)
        assert 0.4 < found.agreement.value < 0.6 and found.agreement.low < 0.5 < found.agreement.high


def test_plain_canvases_are_always_the_same() -> None:
    """Borders are the same in every crop."""
    found = consistency(Subject(Strided(), PLAIN), TensorPictures(torch.full((6, 3, *CANVAS), 0.4)))
    assert (found.agreement.value, found.pixel_flips.value, found.pixel_change.value) == (1, 0, 0)


def test_only_circular_convolutions_and_a_global_pool() -> None:
    """Nothing changes under circular shifts, to rounding; with a stride it does, and at borders it does."""
    pictures = TensorPictures(noise(30))
    net = Strided(padding_mode="circular", stride=1)
    found = consistency(Subject(net, PLAIN), pictures, circular=True)
    assert found.agreement.value == 1 and found.pixel_flips.value == 0 and found.circular
    assert found.pixel_change.value < 1e-4
    for other in (Strided(padding_mode="circular"), Strided(stride=1)):
        assert consistency(Subject(other, PLAIN), pictures, circular=True).pixel_change.value > 1e-3


@pytest.mark.parametrize("circular", [False, True])
def test_a_classifier_of_pixels_is_perfect(circular: bool) -> None:
    net = nn.Conv2d(3, 5, 1)
    found = consistency(Subject(net, PLAIN), TensorPictures(noise(9), torch.zeros(9).long()), circular=circular)
    assert found.dense and found.agreement.value == 1 and found.pixel_flips.value == 0
    assert found.pixel_change.value < 1e-6 and found.accuracy is None


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_label_maps_are_compared_point_by_point(circular: bool, stride: int) -> None:
    """For each point of the scene that both windows show: has it the same label? By a loop over points."""
    count, canvases = 6, noise(6)
    model = Strided(dense=True, stride=stride).eval()
    found = consistency(Subject(model, PLAIN), TensorPictures(canvases), batch_size=4, circular=circular)
    centre = canvases[:, :, 2:14, 1:11]
    agreement, flips, change = [], [], []
    first, second, beside = windows(count, circular=circular).tolist()
    for index in range(count):

        def points(place: list[int], index: int = index) -> dict[tuple[int, int], Tensor]:
            """The class probabilities at each point of the canvas."""
            y, x = place
            if circular:
                y, x = y - 2, x - 1
                image = torch.roll(centre[index : index + 1], (-y, -x), (2, 3))
            else:
                image = canvases[index : index + 1, :, y : y + 12, x : x + 10]
            with torch.no_grad():
                logits = model(image)
            logits = F.interpolate(logits, CROP, mode="bilinear") if stride > 1 else logits
            scores = logits.softmax(1)[0]
            wrap = CROP if circular else (1000, 1000)
            return {
                ((y + row) % wrap[0], (x + column) % wrap[1]): scores[:, row, column]
                for row in range(CROP[0])
                for column in range(CROP[1])
            }

        one, two, three = points(first[index]), points(second[index]), points(beside[index])
        both = [at for at in one if at in two]
        assert circular == (len(both) == 120) or first[index] == second[index]
        agreement.append(sum(int(one[at].argmax()) == int(two[at].argmax()) for at in both) / len(both))
        near = [at for at in one if at in three]
        flips.append(sum(int(one[at].argmax()) != int(three[at].argmax()) for at in near) / len(near))
        moves = [float((one[at].max() - three[at][one[at].argmax()]).abs()) for at in near]
        change.append(sum(moves) / len(near))
    assert 0 < sum(agreement) < count and found.dense
    assert found.agreement.value == pytest.approx(sum(agreement) / count, abs=1e-9)
    assert found.pixel_flips.value == pytest.approx(sum(flips) / count, abs=1e-9)
    assert found.pixel_change.value == pytest.approx(sum(change) / count, abs=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("circular", [False, True])
def test_the_batch_size_changes_nothing(dense: bool, circular: bool) -> None:
    subject = Subject(Strided(dense=dense), PLAIN)
    pictures = TensorPictures(noise(11), torch.arange(11) % 4)
    results = [consistency(subject, pictures, batch_size=size, circular=circular) for size in (1, 4, 64)]
    for other in results[1:]:
        assert other.agreement == results[0].agreement and other.accuracy == results[0].accuracy
        assert other.pixel_flips == results[0].pixel_flips
        assert other.pixel_change.value == pytest.approx(results[0].pixel_change.value, abs=1e-6)


def test_the_same_seed_gives_the_same() -> None:
    subject, pictures = Subject(Strided(), PLAIN), TensorPictures(noise(20))
    assert consistency(subject, pictures, seed=4) == consistency(subject, pictures, seed=4)
    assert consistency(subject, pictures, seed=4) != consistency(subject, pictures, seed=5)


def test_the_model_is_left_as_it_was_and_half_precision_works() -> None:
    model = Strided().bfloat16().train()
    model[1].eval()
    found = consistency(Subject(model, PLAIN), TensorPictures(noise(5)))
    assert math.isfinite(found.pixel_change.value)
    assert model.training and model[0].training and not model[1].training


def test_the_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    consistency(
        Subject(Strided(), PLAIN), TensorPictures(noise(5)), batch_size=2, watch=lambda *words: told.append(words)
    )
    assert told == [("consistency", 1, 3), ("consistency", 2, 3), ("consistency", 3, 3)]


class NotFinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 3), torch.inf)


def test_what_cannot_be_measured() -> None:
    tight = Preprocessing(CROP, CROP, 3, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(BlurifyError, match=r"no larger than the model's input \(12x10\).*--canvas"):
        consistency(Subject(Strided(), tight), TensorPictures(noise(2, CROP)))
    consistency(Subject(Strided(), tight), TensorPictures(noise(2, CROP)), circular=True)  # there it needs no room
    with pytest.raises(BlurifyError, match="the pictures are 12x10, the canvas 17x13"):
        consistency(Subject(Strided(), PLAIN), TensorPictures(noise(2, CROP)))
    with pytest.raises(BlurifyError, match="label 4, the model only 4 classes"):
        consistency(Subject(Strided(), PLAIN), TensorPictures(noise(2), torch.tensor([1, 4])))
    with pytest.raises(BlurifyError, match="not finite"):
        consistency(Subject(NotFinite(), PLAIN), TensorPictures(noise(2)))
    with pytest.raises(BlurifyError, match="output is not classes"):
        consistency(Subject(nn.Flatten(0), PLAIN), TensorPictures(noise(2)))


def test_label_maps_without_a_common_point_do_not_count() -> None:
    wide = Preprocessing((4, 4), (4, 40), 3, (0.0,) * 3, (1.0,) * 3)
    found = consistency(Subject(nn.Conv2d(3, 2, 1), wide), TensorPictures(noise(60, (4, 40))))
    first, second, _ = windows(60, geometry=wide)
    overlapping = int(((first - second).abs() < 4).all(1).sum())
    assert found.agreement.count == overlapping < 60 and found.pixel_flips.count == 60 and found.agreement.value == 1
    far = Preprocessing((2, 2), (2, 4000), 3, (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(BlurifyError, match="no two crops of a picture overlap"):
        consistency(Subject(nn.Conv2d(3, 2, 1), far), TensorPictures(noise(2, (2, 4000))))


@pytest.mark.parametrize(
    ("pixels", "steps", "stride"),
    [
        (224, 7, 32), (224, 112, 2), (225, 113, 2), (225, 29, 8), (33, 5, 8), (33, 17, 2), (10, 4, 3),  # padded
        (225, 28, 8), (17, 8, 2),  # padded, and the rest left out
        (64, 27, 2), (224, 107, 2), (32, 13, 2),  # cut by convolutions without padding
    ],
)  # fmt: skip
def test_how_many_pixels_a_step_is(pixels: int, steps: int, stride: int) -> None:
    assert step_of(pixels, steps) == stride


def test_a_label_map_without_padding_moves_with_the_picture() -> None:
    """A stride of 2 and a kernel of 7 leave 13 of 32 pixels: after 2 pixels all labels are one step further."""
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 7, 2)
    picture = torch.rand(1, 3, 34, 34)
    with torch.no_grad():
        one, other = net(picture[:, :, :32, :32]), net(picture[:, :, 2:, 2:])
    geometry = Preprocessing((32, 32), (40, 40), 3, (0.0,) * 3, (1.0,) * 3)
    shift = torch.tensor([[2, 2]])
    (same,), (change,) = compared(one, other, shift, geometry, circular=False)
    # Between the outermost steps and the map's border there is nothing to interpolate with.
    assert float(same) > 0.98 and float(change) < 0.005
    assert len(one.argmax(1).unique()) > 1
