"""What was measured is written down at once: a run that was ended goes on behind it, and says the same in the end."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import blurify
from blurify.metrics import Preprocessing, Subject, TensorPictures, agreement, keeping, measuring, open_folder
from blurify.metrics import pictures as pictures_module
from blurify.metrics.expected import expected
from blurify.metrics.journal import OLD, open_journal
from blurify.metrics.kept import Kept
from blurify.metrics.measuring import METRICS, measure
from blurify.metrics.signals import open_signals
from blurify.metrics.subject import Signal
from blurify.tuning.pareto import pareto_table

USED = Preprocessing((24, 28), (36, 40))
EXPECTED_LOST = {"consistency": 3, "lie-derivative": 5}  # forwards of a batch that is not done; of the others one


class Net(nn.Sequential):
    """Counts its forwards, and is ended in the middle of one where it is to be."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
        )  # fmt: skip
        self.forwards = 0
        self.last = -1

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            if self.forwards == self.last:
                raise KeyboardInterrupt
            self.forwards += 1
        return super().forward(x)


def shown(count: int = 5, seed: int = 0) -> TensorPictures:
    source = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, -1, 0])[:count]
    return TensorPictures(torch.rand(count, 3, *USED.canvas, generator=source), labels)


def subject(seed: int = 0) -> Subject:
    return Subject(Net(seed).eval(), USED, "net")


def kept_in(folder: Path, one: Subject, pictures: Any, **options: Any) -> Kept:
    found = keeping.keep(one, pictures, folder=folder, **options)
    assert found is not None
    return found


def of_metric(name: str) -> Callable[[Subject, Any, Kept | None], Any]:
    if name == "agreement":
        other = Subject(Net(1).eval(), USED, "other")
        return lambda one, pictures, kept: agreement.agreement(one, other, pictures, batch_size=2, kept=kept)
    return lambda one, pictures, kept: measure(one, pictures, [name], batch_size=2, most_shift=2, kept=kept)


@pytest.mark.parametrize("name", [*METRICS, "agreement"])
def test_a_run_that_was_ended_three_times_says_exactly_what_an_undisturbed_one_says(tmp_path: Path, name: str) -> None:
    run, pictures, choice = of_metric(name), shown(), random.Random(name)
    undisturbed = subject()
    wanted = run(undisturbed, pictures, None)
    forwards = undisturbed.model.forwards
    total = 0
    for end in (*sorted(choice.choices(range(1, forwards), k=3)), None):
        one = subject()
        kept = kept_in(tmp_path, one, pictures)
        one.model.forwards = 0  # the picture of noise was no measuring
        # Each run ends that much later than the one before would have.
        one.model.last = -1 if end is None else max(end - total, 2)
        try:
            found = run(one, pictures, kept)
        except KeyboardInterrupt:
            assert end is not None
        kept.close(done=False)
        total += one.model.forwards
    assert found == wanted
    # A run begins with a look at noise (all but agreement), and one of the unshifted pictures (three metrics).
    unshifted = name in ("equivariance", "half-patch", "fractional")
    again = 3 * ((name != "agreement") + unshifted + EXPECTED_LOST.get(name, 1))
    assert forwards <= total <= forwards + again


class Maps(Net):
    """A label map, a map of features or an embedding, and something of whole numbers beside it."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        super().__init__(seed)
        self.kind = kind
        if kind == "embedding":
            del self[7]
        else:
            del self[5:]

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return {"labels": y, "embedding": y, "structure": {"features": y, "count": y.new_ones(1), "sum": y.sum()}}[
            self.kind
        ]


def maps(kind: str, seed: int = 0) -> Subject:
    found = Subject(Maps(kind, seed).eval(), USED, "net")
    if kind == "embedding":
        assert found.output.kind == "embedding"  # and no classes from now on
    return found


@pytest.mark.parametrize("kind", ["labels", "embedding", "structure"])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_agreement_of_other_outputs_that_was_ended_is_gone_on_with(
    tmp_path: Path, kind: str, shifted: bool
) -> None:
    pictures, other = shown(), maps(kind, 1)

    def run(one: Subject, kept: Kept | None) -> Any:
        return agreement.agreement(one, other, pictures, batch_size=1, shifted=shifted, kept=kept)

    undisturbed = maps(kind)
    undisturbed.model.forwards = 0
    wanted = run(undisturbed, None)
    assert wanted.relative_error is not None and wanted.relative_error > 0
    forwards, total = undisturbed.model.forwards, 0
    for end in (forwards // 2, 3 * forwards // 4, None):
        one = maps(kind)
        kept = kept_in(tmp_path, one, pictures)
        one.model.forwards = 0
        one.model.last = -1 if end is None else end - total
        try:
            found = run(one, kept)
        except KeyboardInterrupt:
            assert end is not None
        assert 0 < kept.share("agreement") <= 1
        kept.close(done=False)
        total += one.model.forwards
    assert found == wanted
    assert total <= forwards + 2 * (1 + 2 * shifted)  # of the batches in which it was ended
    assert len(list(tmp_path.iterdir())) == 2
    again = maps(kind)
    kept = kept_in(tmp_path, again, pictures)
    again.model.forwards = 0
    assert run(again, kept) == wanted and again.model.forwards == 0
    store = next(path for path in tmp_path.iterdir() if path.suffix == ".safetensors")
    for damage in (b"", b"no tensors", store.read_bytes()[:-3]):  # all is measured again
        store.write_bytes(damage)
        again.model.forwards = 0
        assert run(again, kept_in(tmp_path, again, pictures)) == wanted and again.model.forwards >= forwards
    store.unlink()
    again.model.forwards = 0
    assert run(again, kept_in(tmp_path, again, pictures)) == wanted and again.model.forwards >= forwards
    assert store.is_file()
    kept.close(done=True)


def test_what_was_stored_goes_with_its_lines(tmp_path: Path) -> None:
    pictures, one, other = shown(), *(maps("embedding", seed) for seed in (0, 1))
    kept = kept_in(tmp_path, one, pictures)
    agreement.agreement(one, other, pictures, batch_size=2, kept=kept)
    kept.close(done=True)
    assert list(tmp_path.iterdir()) == []
    kept = kept_in(tmp_path, one, pictures)
    agreement.agreement(one, other, pictures, batch_size=2, kept=kept)
    kept.close(done=False)
    assert len(list(tmp_path.iterdir())) == 2
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - OLD - 1,) * 2)
    kept_in(tmp_path, maps("embedding", 3), pictures).close(done=True)
    assert list(tmp_path.iterdir()) == []


def test_a_pareto_table_that_was_ended_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, calls = shown(), [0, -1]
    real = Subject.run

    def run(self: Subject, seen: Tensor) -> Any:
        if calls[0] == calls[1]:
            raise KeyboardInterrupt
        calls[0] += 1
        return real(self, seen)

    def table(one: Subject, kept: Kept | None) -> Any:
        return pareto_table(
            one.model, "zhang2019", subject=one, pictures=pictures, most=4, batch_size=2, kept=kept,
            present=blurify.convert(Net(1).eval(), example_inputs=torch.zeros(1, 3, 24, 28)),
        )  # fmt: skip

    monkeypatch.setattr(Subject, "run", run)
    wanted = table(subject(), None)
    forwards = calls[0]
    total = 0
    for end in (forwards // 4, forwards // 2, None):
        one = subject()
        calls[:] = [0, -1]
        kept = kept_in(tmp_path, one, pictures)
        calls[:] = [0, -1 if end is None else end - total]
        try:
            found = table(one, kept)
        except KeyboardInterrupt:
            assert end is not None
        kept.close(done=False)
        total += calls[0]
    assert found == wanted
    a_batch = 1 + len(wanted.points)  # of agreement, in which the original and all points answer
    assert forwards <= total <= forwards + 2 * a_batch


def test_what_is_done_is_not_even_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    pictures = open_folder(tmp_path, USED)
    one = subject()
    kept = kept_in(tmp_path / "kept", one, pictures)
    one.model.last = one.model.forwards + 3 * 2 + 2  # a black picture, and two batches of three
    with pytest.raises(KeyboardInterrupt):
        measure(one, pictures, ["consistency"], batch_size=2, kept=kept)
    read: list[str] = []
    real = pictures_module._decode
    monkeypatch.setattr(pictures_module, "_decode", lambda path, *rest: (read.append(path.name), real(path, *rest)))
    again = subject()
    found = measure(again, pictures, ["consistency"], batch_size=2, kept=kept)
    assert sorted(read) == ["4.png", "5.png"]
    assert found == measure(subject(), pictures, ["consistency"], batch_size=2)


def test_a_set_of_the_users_own_is_gone_through_behind_what_is_done(tmp_path: Path) -> None:
    class Own:
        name, labelled, fingerprint = "own", True, "mine"

        def __len__(self) -> int:
            return 5

        def batches(self, size: int) -> Any:
            return shown().batches(size)

    one = subject()
    kept = kept_in(tmp_path, one, Own())
    one.model.last = one.model.forwards + 6
    with pytest.raises(KeyboardInterrupt):
        measure(one, Own(), ["consistency"], batch_size=2, kept=kept)
    found = measure(subject(), Own(), ["consistency"], batch_size=2, kept=kept)
    assert found == dataclasses.replace(measure(subject(), Own(), ["consistency"], batch_size=2))
    assert keeping.keep(subject(), type("Nameless", (Own,), {"fingerprint": ""})(), folder=tmp_path) is None


# Whether it is the same


def photo(folder: Path, value: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "one.ppm"
    path.write_bytes(b"P6 44 40 255\n" + bytes([value]) * (44 * 40 * 3))
    return path


def test_the_same_model_and_pictures_have_the_same_name(tmp_path: Path) -> None:
    photo(tmp_path)
    names = {keeping.name_of(subject(), open_folder(tmp_path, USED)) for _ in range(2)}
    assert len(names) == 1


@pytest.mark.parametrize(
    "change", ["weights", "plan", "constant", "pixels", "path", "labels", "values", "crop", "mean", "version", "code"]
)
def test_another_model_other_pictures_or_versions_have_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = photo(tmp_path / "photos")
    files = open_folder(path.parent, USED)
    tensors = shown()
    before = [keeping.name_of(subject(), pictures) for pictures in (files, tensors)]
    one, two = subject(), subject()
    pictures: list[Any] = [files, tensors]
    if change == "weights":
        with torch.no_grad():
            one.model[7].bias[0] = two.model[7].bias[0] = 1e-9
    elif change == "plan":
        one, two = (
            Subject(blurify.convert(s.model, example_inputs=torch.zeros(1, 3, 24, 28)), USED) for s in (one, two)
        )
    elif change == "constant":
        one.model[2].stride = two.model[2].stride = 1
    elif change == "pixels":  # a file of the same size, with the times of before
        times = path.stat()
        photo(path.parent, 1)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        pictures, before = [files], before[:1]
    elif change == "path":
        pictures, before = [open_folder(photo(tmp_path / "others").parent, USED)], before[:1]
    elif change == "labels":
        pictures, before = [dataclasses.replace(tensors, labels=torch.zeros(5, dtype=torch.int64))], before[1:]
    elif change == "values":
        pictures, before = [shown(seed=1)], before[1:]
    elif change in ("crop", "mean"):
        other = dataclasses.replace(USED, **{change: {"crop": (20, 28), "mean": (0.0, 0.0, 0.0)}[change]})
        one, two = Subject(one.model, other), Subject(two.model, other)
    elif change == "version":
        monkeypatch.setattr(keeping, "version_of", lambda name: "0")
    elif change == "code":
        monkeypatch.setattr(keeping, "_own_code", lambda: "other")
    after = [keeping.name_of(s, p) for s, p in zip((one, two), pictures, strict=False)]
    assert not set(before) & set(after)


@pytest.mark.parametrize("change", ["samples", "path", "stretches"])
def test_other_signals_have_another_name(tmp_path: Path, change: str) -> None:
    used = Preprocessing((1, 8), (1, 16), 1, (0.0,), (1.0,), signal=Signal("N,C,T"))
    one = Subject(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).eval(), used)

    def named(folder: Path, count: int = 4) -> str | None:
        return keeping.name_of(one, open_signals(folder, used, count=count))

    def write(folder: Path, value: float) -> Path:
        folder.mkdir(exist_ok=True)
        np.save(folder / "one.npy", np.full((64,), value, np.float32))
        return folder / "one.npy"

    path = write(tmp_path / "waves", 0.0)
    times = path.stat()
    before = named(path.parent)
    assert named(path.parent) == before
    if change == "samples":  # a file of the same size, with the times of before
        write(path.parent, 0.5)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    where = write(tmp_path / "others", 0.0).parent if change == "path" else path.parent
    assert named(where, 3 if change == "stretches" else 4) != before


def test_code_of_the_models_class_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nclass Mine(torch.nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3)){}\n"
    file = tmp_path / "mine_that_changes.py"
    file.write_text(text.format(""))
    import mine_that_changes  # type: ignore[import-not-found]

    one = keeping.identity_of(mine_that_changes.Mine())
    assert keeping.identity_of(mine_that_changes.Mine()) == one
    file.write_text(text.format(" * 2"))
    two = keeping.identity_of(mine_that_changes.Mine())
    assert two != one
    # What it calls elsewhere, too.
    other = tmp_path / "mine_that_is_called.py"
    other.write_text("SCALE = 1.0\n")
    import mine_that_is_called  # type: ignore[import-not-found] # noqa: F401

    three = keeping.identity_of(mine_that_changes.Mine())
    other.write_text("SCALE = 1.001\n")
    assert len({two, three, keeping.identity_of(mine_that_changes.Mine())}) == 3
    monkeypatch.setattr(mine_that_changes, "__version__", "2", raising=False)
    assert keeping.identity_of(mine_that_changes.Mine()) not in (one, two, three)


def test_floats_that_no_repr_shows_count() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float, mean: tuple[float, ...] = (0.5, 1)) -> None:
            super().__init__()
            self.scale, self.mean, self.calls = scale, mean, 0

    one, other = Scaled(1.0), Scaled(1.001)
    assert repr(one) == repr(other)
    assert len({keeping.identity_of(found) for found in (one, other, Scaled(1.0, (0.6, 1)))}) == 3
    before = keeping.identity_of(one)
    one.calls += 1
    assert keeping.identity_of(one) == before


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"batch_size": 3}, {"circular": True}, {"most_shift": 1}, {"layers": ["0"]}]
)
def test_other_settings_are_measured_by_themselves(tmp_path: Path, other: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"batch_size": 2, "most_shift": 2}
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    wanted = ["consistency", "equivariance", "half-patch"]
    measure(one, pictures, wanted, **usual, kept=kept)
    assert measure(one, pictures, wanted, **{**usual, **other}, kept=kept) == measure(
        subject(), pictures, wanted, **{**usual, **other}
    )


def test_a_model_that_answers_otherwise_is_measured_anew(tmp_path: Path) -> None:
    """Whatever the reason: a random forward, or code that no file tells of."""
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    measure(one, pictures, batch_size=2, kept=kept)
    kept.close(done=False)
    again = subject()
    again.model.register_forward_hook(lambda module, given, out: out + 1)
    anew = kept_in(tmp_path, again, pictures)
    assert anew.journal.path == kept.journal.path and anew.journal.before == 0
    anew.journal.close(done=False)
    assert kept_in(tmp_path, again, pictures, fresh=False).journal.before == 1  # that of the other answer
    assert kept_in(tmp_path / "other", one, pictures, fresh=True).journal.before == 0


# The file


def test_torn_and_damaged_lines_are_measured_again(tmp_path: Path) -> None:
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    wanted = measure(one, pictures, batch_size=2, kept=kept)
    kept.close(done=False)
    path = kept.journal.path
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 + 3  # the head, and a line for each batch of two metrics
    digit = lines[2].index(b'"change":[') + 12
    flipped = lines[2][:digit] + (b"7" if lines[2][digit : digit + 1] != b"7" else b"8") + lines[2][digit + 1 :]
    path.write_bytes(lines[0] + lines[1] + flipped + b"\x00\xff not ours\n[1, 2]\n" + b"".join(lines[3:])[:-7])
    again = kept_in(tmp_path, one, pictures)
    assert again.journal.before == 5
    assert measure(one, pictures, batch_size=2, kept=again) == wanted
    again.journal.close(done=False)
    assert kept_in(tmp_path, one, pictures).journal.before == 7  # what was torn did not tear the next line


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1, 1 / 3, 5e-324, -0.0, float("inf"), 1.7976931348623157e308]
    journal = open_journal(tmp_path / "one.jsonl")
    journal.append("key", "", values)
    journal.append("key", "nan", [float("nan")])
    found = open_journal(tmp_path / "one.jsonl").entries["key"][""]
    assert np.array(found).tobytes() == np.array(values).tobytes()


def test_parts_are_forgotten_once_the_whole_is_there(tmp_path: Path) -> None:
    steps = Kept(open_journal(tmp_path / "one.jsonl")).steps("metric", 2, seed=0)
    calls: list[int] = []
    for _ in range(2):
        assert steps.part(1, "a", lambda: calls.append(1) or len(calls)) == 1  # type: ignore[func-returns-value]
    assert 1 not in steps
    steps.done(1, {"value": 1})
    again = Kept(open_journal(tmp_path / "one.jsonl")).steps("metric", 2, seed=0)
    assert 1 in again and 0 not in again
    assert [list(known) for known in open_journal(tmp_path / "one.jsonl").entries.values()] == [[""]]
    assert 1 not in Kept(open_journal(tmp_path / "one.jsonl")).steps("metric", 2, seed=1)
    assert 1 not in Kept(open_journal(tmp_path / "one.jsonl")).under(other="x").steps("metric", 2, seed=0)


def test_the_share_that_is_done_is_known(tmp_path: Path) -> None:
    kept = Kept(open_journal(tmp_path / "one.jsonl"))
    assert kept.share("metric") == 0
    for seed, done in ((0, 1), (1, 3)):
        steps = kept.steps("metric", 4, seed=seed)
        for number in range(done):
            steps.done(number, 0)
    kept.steps("metric of another name", 2).done(0, 0)
    kept.under(model="other").steps("metric", 1).done(0, 0)
    kept.steps("metric", 4, seed=1).part(3, "a part", lambda: 0)
    assert kept.share("metric") == 3 / 4
    assert kept.knows(["others", "metric"]) and not kept.knows(["others", "a part"])
    # As the command line asks, of what `measure` has written down.
    one, pictures = subject(), shown()
    whole = kept_in(tmp_path, one, pictures)
    measure(one, pictures, ["consistency"], batch_size=2, kept=whole)
    of_it = keeping.of_output(whole, one)
    assert [of_it.share(name) for name in keeping.steps_of(["consistency", "aliasing"], one)] == [0, 1, 0]


@pytest.mark.parametrize("how", ["full", "short"])
def test_a_full_disk_costs_the_keeping_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    real = os.write

    def write(file: int, data: bytes) -> int:
        if how == "short":
            return real(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        found = measure(one, pictures, batch_size=2, kept=kept)
    assert found == measure(subject(), pictures, batch_size=2)
    assert kept.journal.trouble in ("No space left on device", "the disk is full")
    assert kept_in(tmp_path, one, pictures).journal.before == 1


def entries(path: Path) -> dict[str, Any]:
    journal = open_journal(path)
    journal.close(done=False)
    return journal.entries


def test_the_last_one_who_uses_a_journal_removes_it(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "one.jsonl"
    first, second = open_journal(path), open_journal(path)
    first.append("a", "", 1)
    second.append("b", "", 2)
    assert not second.forget()
    first.close(done=True)
    assert entries(path) == {"a": {"": 1}, "b": {"": 2}}
    second.append("c", "", 3)
    assert set(entries(path)) == {"a", "b", "c"}
    second.close(done=True)
    assert not path.exists()


def test_what_nobody_went_on_with_is_removed_after_a_while(tmp_path: Path) -> None:
    old, young, used = (tmp_path / f"{digit * 32}.jsonl" for digit in "01a")
    others = [tmp_path / name for name in ("of-somebody-else.txt", "data.jsonl", f"{'0' * 31}.jsonl")]
    for path in (old, young, used, *others):
        path.touch()
    for path in (old, used, *others):
        os.utime(path, (time.time() - OLD - 60,) * 2)
    held = open_journal(used)
    kept_in(tmp_path, subject(), shown()).journal.close(done=True)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, used.name, *(path.name for path in others)}
    held.close(done=False)


def test_the_cache_folder_is_where_one_looks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BLURIFY_CACHE", str(tmp_path))
    assert keeping.cache_folder() == tmp_path / "measured"
    monkeypatch.delenv("BLURIFY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert keeping.cache_folder() == tmp_path / "blurify" / "measured"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert keeping.cache_folder() == Path.home() / ".cache" / "blurify" / "measured"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # nor does the system know of one
    with pytest.raises(OSError, match="no home folder: name one by BLURIFY_CACHE"):
        keeping.cache_folder()


def test_what_another_command_was_stopped_in_stays_when_one_is_done(tmp_path: Path) -> None:
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    wanted = measure(one, pictures, ["equivariance"], batch_size=2, most_shift=2, kept=kept)
    kept.journal.append(f"{list(kept.journal.entries)[-1].rpartition('/')[0]}/9", "a part", [1.5])
    kept.close(done=False)
    other = kept_in(tmp_path, subject(), pictures)
    for name in ("consistency", "half-patch"):
        measure(subject(), pictures, [name], batch_size=2, kept=other)
    other.close(done=True)
    again, last = subject(), subject()
    left = kept_in(tmp_path, again, pictures)
    assert {key.split("/")[-4] for key in left.journal.entries if "/" in key} == {"equivariance"}
    assert [known for known in left.journal.entries.values() if "a part" in known] == [{"a part": [1.5]}]
    again.model.last = again.model.forwards + 1  # the noise that tells what the output is
    assert measure(again, pictures, ["equivariance"], batch_size=2, most_shift=2, kept=left) == wanted
    left.close(done=True)
    assert not kept_in(tmp_path, last, pictures).journal.before


HOSTILE = (
    None, 7, "text", [], {}, [[]], [[1e400]], {"agree": 3}, [None] * 9, "9" * 4000, [[[10**30, 10**30], "eA=="]] * 3,
    [[0, 1], "====", {}], 10**400, {"missing": 3}, True, [["nan"]],
)  # fmt: skip


@pytest.mark.parametrize("name", [*METRICS, "agreement"])
def test_lines_that_nobody_could_have_written_are_measured_again(tmp_path: Path, name: str) -> None:
    pictures, other = shown(2), Subject(Net(1).eval(), USED, "other")

    def run(one: Subject, pictures: Any, kept: Kept | None) -> Any:
        original = other if name == "agreement" else None
        return measure(one, pictures, [name], batch_size=1, most_shift=2, original=original, kept=kept)

    wanted = run(subject(), pictures, None)
    one = subject()
    kept = kept_in(tmp_path, one, pictures)
    assert run(one, pictures, kept) == wanted
    kept.close(done=False)
    key = [key for key in kept.journal.entries if "/" in key][1]
    before = kept.journal.path.read_bytes()
    for data in HOSTILE[:: 6 if name in ("stability", "worst-case") else 1]:  # they take their time
        for hostile in ([key, "", data], [key, "0 1", data]):
            text = json.dumps(hostile).encode()
            lines = b"" if hostile[1] else before
            kept.journal.path.write_bytes(before.splitlines(keepends=True)[0] + lines + line(text))
            again = kept_in(tmp_path, subject(), pictures)
            assert again.journal.before > 1
            assert run(subject(), pictures, again) == wanted, hostile
            again.close(done=False)


def line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


@pytest.mark.parametrize(
    "text",
    [
        "[5, 0, {}]", '["a", null, 1]', '{"a": 1}', '[["a"], "", 1]', '["model", "", 5]',
        '["model", "", {"answer": 7}]',
        '["model", "", {"answer": [["a"]]}]', '["model", "", {"answer": [[]]}]',
        '["model", "", {"answer": [[1e999]]}]',
        "[" * 100_000, '["consistency/0/0123456789abcdef/0", "", 1]', '["consistency/x/y/0", "", 1]', "7" * 5000,
        '["consistency/3/0123456789abcdef/0/1/2", "", 1]', '["/", "", 1]', '["", "", 1]',
    ],
)  # fmt: skip
def test_hostile_lines_break_nothing(tmp_path: Path, text: str) -> None:
    pictures, one = shown(), subject()
    kept = kept_in(tmp_path, one, pictures)
    kept.close(done=False)
    with open(kept.journal.path, "ab") as file:
        file.write(line(text.encode()))
    again = kept_in(tmp_path, one, pictures)
    assert again.share("consistency") == 0
    assert measure(one, pictures, ["consistency"], kept=again) == measure(one, pictures, ["consistency"])
    again.close(done=True)


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_a_journal_is_a_file_of_its_own(tmp_path: Path, what: str) -> None:
    """A link that somebody laid there must not have another file written to, or emptied; a pipe is waited for."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    name = keeping.name_of(subject(), shown())
    path = tmp_path / "kept" / f"{name}.jsonl"
    path.parent.mkdir()
    make = {"link": lambda: path.symlink_to(precious), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    make[what]()
    with pytest.raises(OSError):
        keeping.keep(subject(), shown(), folder=path.parent)
    assert precious.read_text() == "mine"


def test_an_answer_that_is_no_number_is_known_again(tmp_path: Path) -> None:
    pictures, one = shown(), subject()
    with torch.no_grad():
        one.model[7].bias[0] = float("nan")
    kept = kept_in(tmp_path, one, pictures)
    kept.steps("metric", 1).done(0, 1)
    kept.close(done=False)
    assert kept_in(tmp_path, one, pictures).share("metric") == 1


# What it is told, and what it will take


def test_each_metric_is_told_of_as_soon_as_it_is_done() -> None:
    told: list[measuring.Measurement] = []
    found = measure(subject(), shown(), ["consistency", "aliasing"], batch_size=2, told=told.append)
    assert [(one.consistency is not None, one.aliasing is not None) for one in told] == [(True, False), (True, True)]
    assert told[-1] == found and json.dumps(told[0].to_dict())


def test_the_forwards_that_are_expected_are_those_that_are_run() -> None:
    """Counted by the pictures that a net is shown, but for the noise of before the work."""
    one = subject()
    pictures = TensorPictures(shown(4).canvases, torch.zeros(4, dtype=torch.int64))
    expectations = expected(one, pictures, ["all"], batch_size=3, most_shift=2)
    assert [item.metric for item in expectations] == list(METRICS)
    rows: list[int] = []
    one.model.register_forward_pre_hook(lambda module, given: rows.append(0 if given[0].is_meta else len(given[0])))
    for item in expectations:
        rows.clear()
        measure(one, pictures, [item.metric], batch_size=3, most_shift=2)
        assert sum(rows) == item.forwards, item.metric
        assert item.seconds > 0 and not item.at_most
    # The worst case leaves pictures without a label aside, by their answers.
    unlabelled = expected(one, TensorPictures(pictures.canvases), ["consistency", "worst-case"])
    assert [item.at_most for item in unlabelled] == [False, True]
    rows.clear()
    measure(one, TensorPictures(pictures.canvases), ["worst-case"], batch_size=3)
    assert 0 < sum(rows) < unlabelled[1].forwards


def test_metrics_that_a_model_cannot_be_measured_by_are_not_expected() -> None:
    """No room for a shift by a patch; and no layer with maps."""
    flat = Subject(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval(), Preprocessing((8, 8), (9, 9)))
    pictures = TensorPictures(torch.rand(2, 3, 9, 9))
    names = [item.metric for item in expected(flat, pictures, ["all"])]
    assert names == ["consistency", "aliasing", "stability", "worst-case", "fractional"]
