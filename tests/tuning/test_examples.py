"""Batches are pure functions of seed and step, so that runs go on exactly and processes share one batch."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from blurify.errors import BlurifyError
from blurify.metrics.pictures import open_folder
from blurify.metrics.subject import Preprocessing
from blurify.tuning.crops import Crops, cut, hold_back
from blurify.tuning.examples import Augmentation, Batches, Pictures, Tensors, examples_from, held_out

GEOMETRY = Preprocessing((16, 16), (24, 24))


def _pictures(count: int = 12, **how: object) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    canvases = torch.randint(0, 256, (count, 3, 24, 24), generator=generator, dtype=torch.uint8)
    return Pictures(
        Crops(canvases, torch.arange(count), torch.arange(count) % 3),
        GEOMETRY,
        Augmentation(**how),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_the_parts_of_several_processes_are_the_batch_of_one(mix):
    examples = _pictures(mix=mix)
    whole = examples.draw(7, 3, 8)
    halves = [examples.draw(7, 3, 8, (which, 2)) for which in range(2)]
    for index in range(len(whole.taught)):
        together = torch.cat([half.taught[index][0][0] for half in halves])
        assert torch.equal(together, whole.taught[index][0][0])
    assert torch.equal(whole.seen[0][0], whole.taught[0][0][0])
    if not mix:
        assert torch.equal(torch.cat([half.labels for half in halves]), whole.labels)


def test_a_step_is_the_same_whenever_it_is_asked_for_and_others_differ():
    examples = _pictures()
    first = examples.draw(7, 5, 4).seen[0][0]
    torch.manual_seed(99)
    assert torch.equal(_pictures().draw(7, 5, 4).seen[0][0], first)
    assert not torch.equal(examples.draw(7, 6, 4).seen[0][0], first)
    assert not torch.equal(examples.draw(8, 5, 4).seen[0][0], first)


def test_an_epoch_shows_each_example_once():
    inputs = torch.arange(12.0)[:, None]
    examples = Tensors(inputs, shift=0, views=1)
    for epoch in range(2):
        seen = torch.cat([examples.draw(0, 3 * epoch + step, 4).seen[0][0] for step in range(3)])
        assert sorted(seen.flatten().tolist()) == inputs.flatten().tolist()


def test_the_teachers_views_are_windows_within_the_shift():
    """A picture whose values are its positions tells where a window was."""
    rows = torch.arange(24, dtype=torch.uint8)[:, None].expand(24, 24)
    canvas = torch.stack([rows * 10, rows.T * 10, torch.zeros_like(rows)])[None].expand(6, -1, -1, -1)
    crops = Crops(canvas.contiguous(), torch.arange(6), torch.full((6,), -1))
    plain = Preprocessing((16, 16), (24, 24), mean=(0.0,), std=(1.0,))
    examples = Pictures(crops, plain, Augmentation(shift=2, views=3, flip=False, colour=0, mix=0))
    moved = set()
    for step in range(20):
        drawn = examples.draw(0, step, 6)
        corners = [(view[0][0][:, :2, 0, 0] * 25.5).round() for view in drawn.taught]
        for other in corners[1:]:
            away = (other - corners[0]).flatten().tolist()
            moved |= set(away)
            assert max(map(abs, away)) <= 2
    assert moved == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_tensors_move_by_samples_and_repeat_the_edge():
    signal = torch.arange(1.0, 9.0)[None, None]
    seen = {
        tuple(Tensors(signal, shift=1, views=1).draw(0, step, 1).seen[0][0].flatten().tolist()) for step in range(40)
    }
    assert seen == {
        (1, 2, 3, 4, 5, 6, 7, 8), (1, 1, 2, 3, 4, 5, 6, 7), (2, 3, 4, 5, 6, 7, 8, 8),
    }  # fmt: skip


def test_data_loaders_labels_and_keywords():
    loader = [(torch.randn(4, 3, 8, 8), torch.arange(4)) for _ in range(3)]
    found = examples_from(loader, 100, 1)
    assert isinstance(found, Tensors)
    assert torch.equal(found.inputs, torch.cat([batch for batch, _ in loader]))
    by_name = examples_from([{"x": torch.randn(2, 3)}, {"x": torch.randn(2, 3)}], 100, 1)
    assert isinstance(by_name, Batches)
    assert by_name.draw(0, 0, 2).seen[1].keys() == {"x"}
    assert len(examples_from(torch.randn(50, 3), 10, 1)) == 10
    for wrong in (3, {"x": torch.zeros(1)}, []):
        with pytest.raises(BlurifyError, match="give"):
            examples_from(wrong, 10, 1)


def test_what_is_checked_on_is_not_adapted_on():
    train, check = held_out(Tensors(torch.arange(40.0)[:, None]))
    assert not set(train.inputs.flatten().tolist()) & set(check.inputs.flatten().tolist())
    assert len(train) + len(check) == 40
    crops = _pictures(30).crops
    train, check = hold_back(crops)
    assert not set(train.pictures.tolist()) & set(check.pictures.tolist())
    assert len(check) == 3


def test_pictures_are_cut_and_damaged_ones_named(tmp_path):
    for index in range(3):
        ramp = torch.arange(64 * 48 * 3).reshape(48, 64, 3) * (index + 1) % 256
        Image.fromarray(ramp.to(torch.uint8).numpy()).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture at all")
    Image.new("L", (3, 200), 128).save(tmp_path / "narrow.png")
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    found = cut(open_folder(tmp_path, GEOMETRY), 24, seed=1)
    assert len(found) == 20  # four for each of six, less those of the damaged one
    assert [note.split(" ")[0].endswith("bad.png") for note in found.left_out] == [True]
    assert found.canvases.shape[1:] == (3, 24, 24)
    again = cut(open_folder(tmp_path, GEOMETRY), 24, seed=1)
    assert torch.equal(found.canvases, again.canvases)
    assert not torch.equal(found.canvases, cut(open_folder(tmp_path, GEOMETRY), 24, seed=2).canvases)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bad.png").write_bytes(b"nothing")
    with pytest.raises(BlurifyError, match="none of the pictures"):
        cut(open_folder(tmp_path / "only", GEOMETRY), 4)


def test_a_batch_that_does_not_divide_among_processes_is_refused():
    with pytest.raises(BlurifyError, match="multiple of 2"):
        _pictures().draw(0, 0, 3, (0, 2))
