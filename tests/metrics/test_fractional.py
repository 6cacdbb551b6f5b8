"""Shifts by parts of a pixel: against waves shifted on paper, Dirichlet's kernel, and networks that see one pixel."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import Preprocessing, Subject, TensorPictures, measure
from blurify.metrics.fractional import fractional
from blurify.metrics.resampling import seen_shifted, shift_matrix, shifted


def waves(height: int, width: int, dy: float = 0, dx: float = 0, seed: int = 0) -> Tensor:
    """(2, 3, height, width) float64 in 0..1: sums of waves below the Nyquist frequency, moved by (dy, dx)."""
    draws = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y, x = (torch.arange(n, dtype=torch.float64) - shift for n, shift in ((height, dy), (width, dx)))
    total = torch.full((2, 3, height, width), 0.5, dtype=torch.float64)
    for n, c, k in itertools.product(range(2), range(3), range(8)):
        v, h, phase, size = draws[n, c, k].tolist()
        down, right = (math.floor(part * ((whole - 1) // 2 + 1)) for part, whole in ((v, height), (h, width)))
        angle = 2 * math.pi * (down * y[:, None] / height + right * x / width + phase)
        total[n, c] += size / 16 * torch.cos(angle)
    return total


# --- the resampler


@pytest.mark.parametrize(("height", "width"), [(12, 9), (7, 16)])
@pytest.mark.parametrize(("dy", "dx"), [(0.5, 0), (0, 0.25), (0.125, -0.75), (3.3, 100.7)])
def test_waves_are_where_they_would_be(height: int, width: int, dy: float, dx: float) -> None:
    found = shifted(waves(height, width), dy, dx)
    assert torch.allclose(found, waves(height, width, dy, dx), atol=1e-12)
    assert shifted(waves(height, width).float(), dy, dx).dtype == torch.float32


def test_whole_pixels_are_rolled_bit_for_bit() -> None:
    noise = torch.rand(2, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    for dy, dx in ((1, 0), (-2, 3), (0, 0), (9, -7)):
        assert torch.equal(shifted(noise, dy, dx), torch.roll(noise, (dy, dx), (2, 3)))


@pytest.mark.parametrize("count", [7, 8])
@pytest.mark.parametrize("shift", [0.5, 0.25, -1.3])
def test_the_kernel_is_dirichlets(count: int, shift: float) -> None:
    """In closed form: sin(pi u) / (n sin(pi u / n)), of an even n sin(pi u) / (n tan(pi u / n))."""
    matrix = shift_matrix(count, shift)
    for i, j in itertools.product(range(count), repeat=2):
        u = math.pi * (i - j - shift)
        base = math.tan(u / count) if count % 2 == 0 else math.sin(u / count)
        assert matrix[i, j].item() == pytest.approx(math.sin(u) / (count * base), abs=1e-12)


def test_two_halves_are_one_but_for_the_nyquist_frequency() -> None:
    """At an odd size for any picture; at an even one what changes sign from pixel to pixel vanishes."""
    noise = torch.rand(1, 1, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    twice = shifted(shifted(noise, 0.5, 0.5), 0.5, 0.5)
    assert torch.allclose(twice, torch.roll(noise, (1, 1), (2, 3)), atol=1e-12)
    alternating = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64).expand(1, 1, 8, 8)
    assert shifted(alternating, 0, 0.5).abs().max() < 1e-12
    assert torch.allclose(shifted(alternating, 0, 0.25), alternating * math.cos(math.pi / 4), atol=1e-12)


def test_a_window_of_the_canvas_by_whole_pixels_is_the_window_beside() -> None:
    canvas = torch.rand(2, 3, 20, 17, generator=torch.Generator().manual_seed(0))
    found = seen_shifted(canvas, (12, 10), 2, -1)
    assert torch.equal(found, canvas[:, :, 2:14, 4:14])  # the middle begins at (4, 3)


def test_a_window_of_the_canvas_is_the_mirrored_canvas_moved() -> None:
    canvas = torch.rand(1, 2, 10, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mirrored = torch.cat([torch.cat([canvas, canvas.flip(3)], 3), torch.cat([canvas, canvas.flip(3)], 3).flip(2)], 2)
    whole = torch.fft.fft2(mirrored)
    fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (20, 18))
    phase = torch.exp(-2j * math.pi * (fy[:, None] * 0.3 + fx * -0.6))
    phase[10] = math.cos(math.pi * 0.3) * torch.exp(-2j * math.pi * fx * -0.6)
    phase[:, 9] = math.cos(math.pi * -0.6) * torch.exp(-2j * math.pi * fy * 0.3)
    phase[10, 9] = math.cos(math.pi * 0.3) * math.cos(math.pi * -0.6)
    wanted = torch.fft.ifft2(whole * phase).real[..., 2:8, 2:7]
    assert torch.allclose(seen_shifted(canvas, (6, 5), 0.3, -0.6), wanted, atol=1e-12)


def test_a_smooth_canvas_is_moved_though_its_ends_do_not_meet() -> None:
    """A ramp, which circular shifts tear at the border: in the middle of the canvas hardly anything of that is left."""

    def ramp(by: float) -> Tensor:
        return (torch.arange(64, dtype=torch.float64) - by).expand(1, 1, 64, 64) / 64

    middle = slice(8, 56)
    found = seen_shifted(ramp(0), (48, 48), 0, 0.5)
    assert (found - ramp(0.5)[..., middle, middle]).abs().max() < 1e-3
    torn = shifted(ramp(0), 0, 0.5)
    assert (torn - ramp(0.5))[..., middle, middle].abs().max() > 1e-2


# --- the metric

CROP, CANVAS = 12, 20


class Place(nn.Module):
    """Says whether the first wave along x is above a bound at one pixel: where the picture is, to parts of a pixel."""

    def __init__(self, bound: float = 0.5, gain: float = 20.0) -> None:
        super().__init__()
        self.bound, self.gain = bound, gain
        self.at = nn.Parameter(torch.zeros(()))  # so that it has a precision

    def forward(self, x: Tensor) -> Tensor:
        value = (x[:, 0, 5, 5] - self.bound) * self.gain
        return torch.stack([value, -value], 1)


def geometry(canvas: int = CANVAS) -> Preprocessing:
    return Preprocessing((CROP, CROP), (canvas, canvas), 3, (0.0,) * 3, (1.0,) * 3)


def slow(subject: Subject, crops: Tensor, parts: int) -> dict[str, list[float]]:
    """By the definition, a picture and a place at a time, with waves written down anew at each place.

    crops: not used by value; pictures are `waves` of the seed.
    """
    places = [(y / parts, x / parts) for y in range(parts) for x in range(parts)]
    answers = {place: subject.model(waves(CROP, CROP, *place).float()).double().softmax(1).tolist() for place in places}
    found: dict[str, list[float]] = {}
    for n in range(len(crops)):
        first = answers[0, 0][n]
        top = first.index(max(first))
        same = {place: float(max(range(2), key=given[n].__getitem__) == top) for place, given in answers.items()}
        change = {place: abs(given[n][top] - first[top]) for place, given in answers.items()}
        others = places[1:]
        for name, by in (("half", 0.5), ("quarter", 0.25)):
            three = [(by, 0.0), (0.0, by), (by, by)]
            found.setdefault(name, []).append(sum(same[place] for place in three) / 3)
            found.setdefault(f"{name}_change", []).append(sum(change[place] for place in three) / 3)
        found.setdefault("grid", []).append(sum(same[place] for place in others) / len(others))
        found.setdefault("worst", []).append(min(same[place] for place in others))
        found.setdefault("worst_change", []).append(max(change[place] for place in others))
        found.setdefault("confidence", []).append(max(first))
    return found


@pytest.mark.parametrize("parts", [4, 8])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_against_the_definition(parts: int, batch_size: int) -> None:
    """Of waves, whose shifted selves are known, around a circle; the worst place against all of them."""
    subject = Subject(Place(), geometry(CROP))
    pictures = TensorPictures(waves(CROP, CROP).float())
    found = fractional(subject, pictures, parts=parts, batch_size=batch_size, circular=True)
    wanted = slow(subject, pictures.canvases, parts)
    assert 0 < sum(wanted["grid"]) < 2  # else the test would not tell
    for name, values in wanted.items():
        assert getattr(found, name).values == pytest.approx(values, abs=2e-5), name
    assert found.parts == parts and found.circular and not found.dense


def test_what_does_not_move_does_not_change() -> None:
    flat = TensorPictures(torch.rand(3, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(3, 3, 20, 20))
    found = fractional(Subject(Place(0.45), geometry()), flat)
    assert found.worst.value == found.half.value == found.grid.value == 1
    assert found.worst_change.value < 1e-5


def test_an_answer_can_be_steady_at_whole_pixels_and_not_between() -> None:
    """Stripes one pixel wide have the same contrast from every pixel; half a pixel on they look flat."""
    stripes = torch.tensor([0.0, 1.0]).repeat(10).expand(3, 3, 20, 20)

    class Contrast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            value = 10 * (x.std((1, 2, 3)) - 0.25)
            return torch.stack([value, -value], 1)

    subject = Subject(Contrast(), geometry(), output="0:classes")
    found = measure(subject, TensorPictures(stripes), ["consistency", "fractional"])
    assert found.consistency and found.consistency.agreement.value == 1 and found.consistency.pixel_flips.value == 0
    assert found.fractional and found.fractional.half.value == pytest.approx(1 / 3)  # along y alone nothing changes
    assert found.fractional.worst.value == 0 and found.fractional.worst_change.value > 0.7
    assert type(found).from_dict(found.to_dict()) == found


class Colours(nn.Module):
    """A label map that moves with the picture; subsampled by `stride`."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :: self.stride, :: self.stride]


@pytest.mark.parametrize("circular", [True, False])
def test_label_maps_are_moved_back(circular: bool) -> None:
    y, x = torch.arange(40)[:, None], torch.arange(40)
    colours = [torch.cos(2 * math.pi * ((y + c * x) / 20 + c / 3 + 0.03)) for c in range(3)]
    smooth = (0.5 + torch.stack(colours) / 4)[None].repeat(2, 1, 1, 1)
    wanted = Preprocessing((40, 40) if circular else (32, 32), (40, 40), 3, (0.0,) * 3, (1.0,) * 3)
    exact = fractional(Subject(Colours(), wanted), TensorPictures(smooth), circular=circular)
    coarse = fractional(Subject(Colours(4), wanted), TensorPictures(smooth), circular=circular)
    # What is beyond the crop's border is made up as in a mirror, and shows a little in the middle.
    assert exact.dense and exact.worst.value > (0.99 if circular else 0.95)
    assert exact.worst_change.value < (1e-4 if circular else 0.01)
    assert coarse.half.value < exact.half.value - 0.02 and coarse.half_change.value > 5 * exact.half_change.value


def test_bad_input() -> None:
    subject, pictures = Subject(Place(), geometry(CROP)), TensorPictures(waves(CROP, CROP).float())
    with pytest.raises(BlurifyError, match="no room to shift: give a larger --canvas, or --circular"):
        fractional(subject, pictures)
    for parts in (0, 2, 6):
        with pytest.raises(BlurifyError, match="give a multiple of 4"):
            fractional(subject, pictures, parts=parts, circular=True)
    broken = Subject(Place(float("nan")), geometry(CROP))
    with pytest.raises(BlurifyError, match="not finite"):
        fractional(broken, pictures, circular=True)


def test_progress() -> None:
    told = []
    pictures = TensorPictures(waves(CROP, CROP).float())
    fractional(
        Subject(Place(), geometry(CROP)), pictures, circular=True, batch_size=1, watch=lambda *said: told.append(said)
    )
    assert told == [("fractional shifts", number, 32) for number in range(1, 33)]
