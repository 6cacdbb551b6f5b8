"""The worst of a grid: against a loop over its points, and classifiers whose answers are known."""

import itertools
import math

import pytest
import slow_pictures as slow
import torch
import torch.nn.functional as F
from torch import nn

from blurify.errors import BlurifyError
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures
from blurify.metrics.worst_case import PUBLISHED_ROTATIONS, worst_case


def subject(model, crop, canvas=None):
    return Subject(model, Preprocessing(crop, canvas or crop, 1, mean=(0.0,), std=(1.0,)))


def pictures(count, size, seed=0):
    """Noise, from hardly any to strong."""
    noise = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))
    return noise * torch.linspace(0.05, 1, count).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def model():
    """Answers 1 to pictures of little contrast, whatever is done to them; else by differences between places."""
    found = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    found[2].bias.data = torch.tensor([0.0, 0.3, 0.0])
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    found[2].weight.data = weight - weight.mean(1, keepdim=True)
    return found


class Brightest(nn.Module):
    """Whether the brightest value of the picture is above one half: the same wherever it is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.conv.weight.data = torch.tensor([[[[0.0]]], [[[1.0]]]])
        self.conv.bias.data = torch.tensor([0.5, 0.0])

    def forward(self, x):
        return self.conv(x).amax((2, 3))


def test_all_figures_against_a_loop_over_the_grid(model):
    canvases, shifts, turns = pictures(10, 13), (-1.5, 0.0, 2.0), (-20.0, 0.0, 30.0)
    labels = model(canvases[..., 2:10, 2:10]).argmax(1)
    labels[1::4] = (labels[1::4] + 1) % 3  # some wrong from the start
    labels[2::6] = -1
    found = worst_case(
        subject(model, (8, 8), (13, 13)), TensorPictures(canvases, labels), translations=shifts, rotations=turns
    )
    unmoved, mean, worst, steady = [], [], [], []
    for canvas, label in zip(canvases[:, 0].numpy(), labels.tolist(), strict=True):
        answers = {}
        for dy, dx, degrees in itertools.product(shifts, shifts, turns):
            shown = slow.moved(canvas, (8, 8), dy=dy, dx=dx, degrees=degrees)
            answers[dy, dx, degrees] = model(torch.from_numpy(shown).float()[None, None]).argmax().item()
        steady.append(len(set(answers.values())) == 1)
        if label >= 0:
            unmoved.append(answers[0, 0, 0] == label)
            mean.append(sum(answer == label for answer in answers.values()) / 27)
            worst.append(all(answer == label for answer in answers.values()))
    assert 0 < sum(worst) < sum(unmoved) < 8  # the case tells them apart
    assert 0 < sum(steady) < 10
    for estimate, values in (
        (found.unmoved, unmoved),
        (found.mean, mean),
        (found.worst, worst),
        (found.steady, steady),
    ):
        assert estimate.count == len(values)
        assert estimate.value == pytest.approx(sum(values) / len(values))
    assert (found.translations, found.rotations) == (shifts, turns)


def test_a_translation_invariant_classifier_is_as_good_at_worst_as_unmoved():
    canvases = F.pad(pictures(12, 6), (4, 4, 4, 4))
    labels = (torch.arange(12) >= 4).long()
    found = worst_case(
        subject(Brightest(), (14, 14)),
        TensorPictures(canvases, labels),
        translations=(-4, -2, -1, 0, 1, 2, 4),
        rotations=(0,),
    )
    assert 0 < found.unmoved.value < 1
    assert found.worst.value == found.mean.value == found.unmoved.value
    assert found.steady.value == 1
    # One pixel more, and what is brightest leaves some of the pictures: the black border was what kept them in.
    out = worst_case(
        subject(Brightest(), (14, 14)), TensorPictures(canvases, labels), translations=(-9, 9), rotations=(0,)
    )
    assert out.steady.value < 1


def test_borders_come_from_the_canvas_and_beyond_it_is_black():
    white = torch.ones(1, 1, 12, 12)
    darkest = nn.Sequential(nn.Flatten(), _AnyDark())
    inside = {"translations": (-2, 2), "rotations": (0,)}
    assert worst_case(subject(darkest, (8, 8)), TensorPictures(white), **inside).steady.value == 1
    assert worst_case(subject(darkest, (12, 12)), TensorPictures(white), **inside).steady.value == 0
    assert (
        worst_case(subject(darkest, (8, 8)), TensorPictures(white), translations=(3,), rotations=(0,)).steady.value == 0
    )


class _AnyDark(nn.Module):
    def forward(self, x):
        dark = (x < 0.5).any(1).float()
        return torch.stack([1 - dark, dark], 1)


def test_a_constant_classifier_is_steady(model):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    constant[1].weight.data.zero_()
    constant[1].bias.data = torch.tensor([0.0, 1.0, 0.0])
    found = worst_case(
        subject(constant, (8, 8)), TensorPictures(pictures(4, 8), torch.tensor([1, 1, 2, -1])), rotations=(-30, 30)
    )
    assert found.steady.value == 1
    assert [found.unmoved.value, found.mean.value, found.worst.value] == [pytest.approx(2 / 3)] * 3
    assert found.worst.count == 3


def test_the_default_grid_scales_with_the_crop_and_the_published_one_has_775_points():
    class Counting(nn.Module):
        forwards = 0

        def forward(self, x):
            self.forwards += 1
            return torch.zeros(len(x), 2)

    for crop, far in (((224, 224), 24), ((28, 56), 3)):
        model = Counting()
        found = worst_case(subject(model, crop), TensorPictures(torch.zeros(1, 1, *crop)), batch_size=1)
        assert found.translations == pytest.approx((-far, -far / 2, 0, far / 2, far))
        assert found.rotations == (-30, -20, -10, 0, 10, 20, 30)
        assert model.forwards == 175
    model = Counting()
    found = worst_case(subject(model, (8, 8)), TensorPictures(torch.zeros(1, 1, 8, 8)), rotations=PUBLISHED_ROTATIONS)
    assert (len(found.rotations), min(found.rotations), max(found.rotations)) == (31, -30, 30)
    assert model.forwards == 775


def test_the_middle_is_always_part_of_the_grid(model):
    canvases = pictures(9, 10)
    labels = torch.arange(9) % 3
    found = worst_case(
        subject(model, (8, 8), (10, 10)), TensorPictures(canvases, labels), translations=(1, 1), rotations=(5,)
    )
    assert (found.translations, found.rotations) == ((0.0, 1.0), (0.0, 5.0))
    answers = model(canvases[..., 1:9, 1:9]).argmax(1)
    assert found.unmoved.value == pytest.approx((answers == labels).double().mean().item())
    assert found.worst.value <= found.mean.value


def test_batch_size_and_seed_change_nothing(model):
    data, grid = TensorPictures(pictures(9, 10), torch.arange(9) % 3), {"translations": (-1, 1), "rotations": (-20, 20)}
    found = worst_case(subject(model, (8, 8), (10, 10)), data, **grid)
    for other in ({"batch_size": 1}, {"batch_size": 3}, {"seed": 9}):
        assert worst_case(subject(model, (8, 8), (10, 10)), data, **grid, **other) == found


def test_pictures_without_labels_are_left_once_they_are_unsteady(model):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return model(x)

    canvases, labels = pictures(8, 10), torch.arange(8) % 3
    labelled = worst_case(subject(Watched(), (8, 8), (10, 10)), TensorPictures(canvases, labels))
    assert seen == [8] * 175  # the mean needs every point
    assert 0 < labelled.steady.value < 1
    seen.clear()
    told = []
    plain = worst_case(
        subject(Watched(), (8, 8), (10, 10)),
        TensorPictures(canvases),
        batch_size=4,
        watch=lambda *progress: told.append(progress),
    )
    assert plain.steady == labelled.steady
    assert (plain.unmoved, plain.mean, plain.worst) == (None, None, None)
    assert sum(seen) < 8 * 175
    assert told == [("worst case", done, 350) for done in range(1, 351)]


def test_what_cannot_be_measured_is_one_clear_line(model):
    data = TensorPictures(pictures(2, 8))
    with pytest.raises(BlurifyError, match="the worst case is measured on classifiers only, Conv2d gives a label map"):
        worst_case(subject(nn.Conv2d(1, 3, 1), (8, 8)), data)
    with pytest.raises(BlurifyError, match="the grid cannot hold nan: give translations in pixels"):
        worst_case(subject(model, (8, 8)), data, rotations=(math.nan,))
