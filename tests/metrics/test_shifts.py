"""Answers while a picture shifts, and those that flip: known networks, counted by hand."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics.flips import flips
from blurify.metrics.shift_curves import Path, path_for, shift_curves, walk
from blurify.metrics.subject import Preprocessing, Subject

GEOMETRY = Preprocessing((8, 8), (12, 14), channels=1, mean=(0.0,), std=(1.0,))


class Parity(nn.Module):
    """Answers 0 where the light is in an even column of what it sees, 1 where it is in an odd one; `sure` of it."""

    def __init__(self, sure: float, *, blind: bool = False) -> None:
        super().__init__()
        self.sure, self.blind = sure, blind

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x[..., 0::2].sum((1, 2, 3)), x[..., 1::2].sum((1, 2, 3))
        if self.blind:
            even, odd = even + odd, torch.zeros_like(odd)
        return self.sure * torch.stack([even, odd], 1)


def light(*columns: int) -> Tensor:
    """Canvases with one light each, in the row in the middle."""
    canvases = torch.zeros(len(columns), 1, 12, 14)
    for canvas, column in zip(canvases, columns, strict=True):
        canvas[0, 6, column] = 1
    return canvases


def test_the_path_goes_through_the_middle_as_far_as_there_is_room() -> None:
    assert path_for(GEOMETRY) == Path("x", (-3, -2, -1, 0, 1, 2, 3))
    assert path_for(GEOMETRY, most=1).shifts == (-1, 0, 1)
    tall = Preprocessing((8, 8), (13, 8), channels=1)
    assert path_for(tall) == Path("y", (-2, -1, 0, 1, 2, 3))
    with pytest.raises(BlurifyError, match="no room to shift"):
        path_for(Preprocessing((8, 8), (8, 8)))
    assert path_for(Preprocessing((8, 8), (8, 8)), circular=True, most=2) == Path("x", (-2, -1, 0, 1, 2), circular=True)


def test_a_window_moved_right_shows_what_is_further_right() -> None:
    canvases = torch.arange(12 * 14.0).reshape(1, 1, 12, 14) / 200
    path = path_for(GEOMETRY)
    for shift in path.shifts:
        assert torch.equal(path.seen(canvases, GEOMETRY, shift), canvases[..., 2:10, 3 + shift : 11 + shift])
    around = path_for(GEOMETRY, circular=True)
    seen = around.seen(canvases, GEOMETRY, 1)
    assert torch.equal(seen[..., :7], canvases[..., 2:10, 4:11]) and torch.equal(seen[..., 7], canvases[..., 2:10, 3])


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_walk_gives_answers_and_probabilities(batch_size: int) -> None:
    path, sure = path_for(GEOMETRY), 2.0
    found = walk(Subject(Parity(sure), GEOMETRY), light(7, 6), path, batch_size=batch_size)
    # The light at column c is seen at c - 3 - shift.
    wanted = [[(column - 3 - shift) % 2 for shift in path.shifts] for column in (7, 6)]
    assert found.tops.tolist() == wanted
    p = torch.e**sure / (torch.e**sure + 1)
    assert found.sure.flatten().tolist() == pytest.approx([p] * 14)
    middle = [row[3] for row in wanted]
    steady = [p if top == middle[index] else 1 - p for index, row in enumerate(wanted) for top in row]
    assert found.steady.flatten().tolist() == pytest.approx(steady)


def test_what_is_no_classifier_is_refused() -> None:
    class Maps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.expand(-1, 3, -1, -1)

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), torch.nan)

    for net, says in ((Maps(), "label map"), (Nothing(), "not finite")):
        with pytest.raises(BlurifyError, match=says):
            walk(Subject(net, GEOMETRY), light(7), path_for(GEOMETRY))


def test_flips_are_counted_and_the_surest_comes_first() -> None:
    path, canvases = path_for(GEOMETRY), light(7, 8, 7)
    canvases[1] /= 4  # a faint light: the network is less sure
    walks = [walk(Subject(net, GEOMETRY), canvases, path) for net in (Parity(3.0), Parity(3.0, blind=True))]
    found = flips(walks, canvases, path, GEOMETRY, ["a", "b", "c"], ["even", "odd"])
    assert (found.images, found.steps, found.changed) == (3, 6, (3, 0))
    assert [flip.picture for flip in found.shown] == ["a", "c", "b"]
    first = found.shown[0]
    assert first.places[1][1] - first.places[0][1] == 1 and first.places[0][0] == first.places[1][0] == 0
    (one, other), (blind, still) = first.answers
    assert {one.words, other.words} == {"even", "odd"} and blind.label == still.label == 0
    one_seen, other_seen = (pixels(address) for address in first.shown)
    assert (one_seen.argmax() - other_seen.argmax()) % 2 == 1, "the light is one column further left"
    bare = flips(walks, canvases, path, GEOMETRY, ["a", "b", "c"], most=1, pictures=False)
    assert len(bare.shown) == 1 and bare.shown[0].shown == () and bare.shown[0].answers[0][0].words.startswith("class ")


def test_a_model_that_flips_less_surely_is_shown_too() -> None:
    """Else a conversion would look steady for being unsure of everything."""
    path, canvases = path_for(GEOMETRY), light(7, 7, 7, 8)
    canvases[3] = 0
    canvases[3, 0, 6, 8] = 0.2
    shy = Parity(3.0)
    walks = [walk(Subject(net, GEOMETRY), canvases, path) for net in (Parity(3.0), shy)]
    walks[1].tops[:3] = 0  # the second flips on the last picture alone
    found = flips(walks, canvases, path, GEOMETRY, list("abcd"), most=2)
    assert found.changed == (4, 1) and "d" in {flip.picture for flip in found.shown}


def test_none_flips_where_none_does() -> None:
    path = path_for(GEOMETRY)
    walks = [walk(Subject(Parity(3.0, blind=True), GEOMETRY), light(7, 8), path)]
    assert flips(walks, light(7, 8), path, GEOMETRY, ["a", "b"]).shown == ()


def test_curves_are_of_the_least_steady_picture_and_of_two_others() -> None:
    path = path_for(GEOMETRY)
    strengths = (0.1, 0.8, 0.4, 1.0)
    canvases = light(7, 7, 7, 7) * torch.tensor(strengths)[:, None, None, None]
    found = shift_curves(
        [walk(Subject(Parity(4.0), GEOMETRY), canvases, path)], canvases, path, GEOMETRY, list("abcd"), ["even", "odd"]
    )
    assert [curve.picture for curve in found] == ["d", "b", "c"]
    for curve, strength in zip(found, (1.0, 0.8, 0.4), strict=True):
        high = 1 / (1 + torch.e ** (-4 * strength))
        wanted = [high if (4 - shift) % 2 == 0 else 1 - high for shift in path.shifts]
        assert curve.probabilities[0] == pytest.approx(wanted, abs=1e-5)
        assert curve.answers[0].words == "even" and curve.answers[0].probability == pytest.approx(high, abs=1e-5)
    (alone,) = shift_curves(
        [walk(Subject(Parity(4.0), GEOMETRY), canvases[:1], path)], canvases[:1], path, GEOMETRY, ["a"], pictures=False
    )
    assert alone.shown == ""


def pixels(address: str) -> Tensor:
    from PIL import Image

    opened = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return torch.tensor(
        list(
            opened.convert("L").get_flattened_data()
            if hasattr(opened, "get_flattened_data")
            else opened.convert("L").getdata()
        )
    )
