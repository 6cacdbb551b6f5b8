"""Signals to measure with: recordings as .wav, arrays as .npy; and how a model of signals wants them.

To every metric a signal is a picture of one row, (N, C, 1, T): it is cut into canvases, out of which windows are taken,
as crops are out of the canvases of pictures; a shift by one pixel is one by one sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, PictureError, one_line, without_remedy
from blurify.graph.inputs import traced
from blurify.metrics.labels import class_labels
from blurify.metrics.pictures import SUFFIXES as PICTURES
from blurify.metrics.pictures import spread_choice
from blurify.metrics.preprocessing import statistic
from blurify.metrics.subject import Batch, Preprocessing, Signal
from blurify.metrics.waves import read_wave, wave_head
from blurify.surgery.carrying import plan_of

SUFFIXES = frozenset((".wav", ".npy"))
_LAYOUTS = ("N,C,T", "N,T", "N,C,T,1", "N,C,1,T")
_CREPE = (1024, Signal("N,T", 16000, standardised=True))  # torchcrepe's frames: its core.py cuts and standardises them


@dataclass(frozen=True)
class Recording:
    """One signal in a file.

    Attributes:
        path: the file.
        folder: the class folder that it lies in, '' where it lies in none.
        samples: how many.
        channels: of a .wav; of an array, those that the model takes, or 1.
        rate: samples a second; None of an array.
        row: which of the signals in an array; None where it holds one, or of a .wav.
    """

    path: Path
    folder: str
    samples: int
    channels: int
    rate: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class Signals:
    """Stretches of recordings, each a canvas long, one after the other; what is left at the end is not used.

    Attributes:
        stretches: (which recording, first sample), in order.
        recordings: they are from.
        preprocessing: canvas and channels count here.
        name: what to call them.
        classes: the model's class for each class folder.
        note: how the labels were found, or why there are none.
        remark: what is to be known of the rate.
    """

    stretches: tuple[tuple[Recording, int], ...]
    preprocessing: Preprocessing
    name: str = "signals"
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""
    remark: str = ""

    @property
    def labelled(self) -> bool:
        """Whether any signal has a label."""
        return any(recording.folder in self.classes for recording, _ in self.stretches)

    @property
    def files(self) -> tuple[Recording, ...]:
        """The recordings that stretches are taken from, each once."""
        return tuple({(one.path, one.row): one for one, _ in self.stretches}.values())

    @property
    def fingerprint(self) -> str:
        """Differs where the signals do: of the files' names and sizes, and of where the stretches begin."""
        found = [(one.folder, one.path.name, one.path.stat().st_size, one.row, start) for one, start in self.stretches]
        return hashlib.sha256(repr(found).encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.stretches)

    def only(self, chosen: Sequence[int]) -> Signals:
        """Those of some numbers."""
        return dataclasses.replace(self, stretches=tuple(self.stretches[index] for index in chosen))

    def batches(self, size: int) -> Iterator[Batch]:
        """All stretches in order, `size` at a time. Raises PictureError at a file that can't be read."""
        return self.batches_from(size, 0)

    def batches_from(self, size: int, first: int) -> Iterator[Batch]:
        """The same from batch number `first` on; those of earlier ones are not read."""
        length = self.preprocessing.canvas[1]
        for start in range(first * size, len(self), size):
            chosen = self.stretches[start : start + size]
            canvases = torch.stack([_read(one, at, length, self.preprocessing.channels) for one, at in chosen])
            labels = torch.tensor([self.classes.get(one.folder, -1) for one, _ in chosen])
            yield Batch(torch.arange(start, start + len(chosen)), canvases[:, :, None], labels)


def holds_signals(path: str | Path) -> bool:
    """Whether a path is a file of signals, or a folder with such files in it.

    Raises:
        BlurifyError: the folder holds pictures as well.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return root.suffix.lower() in SUFFIXES
    found = {Path(name).suffix.lower() for _, _, names in os.walk(root, followlinks=True) for name in names}
    if found & SUFFIXES and found & PICTURES:
        raise BlurifyError(f"{root} holds pictures and signals (wav, npy): give --data a folder of one kind")
    return bool(found & SUFFIXES)


def open_signals(
    path: str | Path,
    preprocessing: Preprocessing,
    *,
    count: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    categories: Sequence[str] = (),
) -> Signals:
    """The .wav and .npy files of a folder and of the folders in it, sorted; or one such file.

    An array of numbers is one signal (T,), several (N, T), or, for a model of as many channels as it has rows, one of
    several channels (C, T); or several of several channels (N, C, T). Whole numbers are scaled to -1..1 as in a .wav.
    Of a .wav of several channels a model of one gets the mean.

    Args:
        path: the folder or file.
        preprocessing: as `signal_preprocessing` has it.
        count: only so many stretches, a seeded choice spread evenly over all.
        seed: of that choice.
        classes: how many the model has; None: labels are not wanted.
        categories: their names, where they are known.

    Raises:
        BlurifyError: there is no such file, none is long enough, or one has another rate than the model or the others.
    """
    root = Path(path).expanduser()
    signal = preprocessing.signal
    assert signal is not None
    files = _files(root)
    recordings = [one for file in files for one in _recordings(file, root, preprocessing.channels)]
    remark = _rates(recordings, signal.rate)
    length = preprocessing.canvas[1]
    stretches = [(one, start) for one in recordings for start in range(0, one.samples - length + 1, length)]
    if not stretches:
        most = max((one.samples for one in recordings), default=0)
        raise BlurifyError(
            f"no signal in {root} is as long as the canvas of {length} samples (the longest has {most}): give a "
            "smaller --canvas or --size, or longer signals"
        )
    mapping: Mapping[str, int] | None = None
    note = ""
    if classes is not None:
        folders = sorted({one.folder for one in recordings} - {""})
        nested = any(one.folder and one.path.parent != root / one.folder for one in recordings)
        mapping, note = class_labels(folders, classes, categories, nested=nested)
    chosen = tuple(stretches[index] for index in spread_choice(len(stretches), count, seed))
    return Signals(chosen, preprocessing, str(path), mapping or {}, note, remark)


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.exists():
        raise BlurifyError(f"there is no folder or file {root}: give --data a folder of .wav or .npy files")
    found = sorted(
        Path(directory, name)
        for directory, _, names in os.walk(root, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not found:
        raise BlurifyError(f"there are no signals in {root} (wav, npy): give another --data")
    return found


def _recordings(path: Path, root: Path, channels: int) -> list[Recording]:
    """The signals in a file, by its head alone. Raises PictureError where it can't be read."""
    parts = path.relative_to(root).parts if path != root else ()
    folder = parts[0] if len(parts) > 1 else ""
    if path.suffix.lower() == ".wav":
        head = wave_head(path)
        if channels not in (1, head.channels):
            raise BlurifyError(f"{path} has {head.channels} channels, the model {channels}: give signals with as many")
        return [Recording(path, folder, head.samples, head.channels, head.rate)]
    array = _array(path)
    if array.ndim == 1:
        return [Recording(path, folder, len(array), 1)]
    if array.ndim == 2 and channels > 1 and array.shape[0] == channels:
        return [Recording(path, folder, array.shape[1], channels)]
    wanted = (array.ndim == 2 and channels == 1) or (array.ndim == 3 and array.shape[1] == channels)
    if not wanted:
        shape = "x".join(map(str, array.shape))
        raise BlurifyError(
            f"{path} is {shape}, the model has {channels} channel{'s' * (channels > 1)}: give an array (samples), "
            "(channels, samples) or (signals, channels, samples)"
        )
    return [Recording(path, folder, array.shape[-1], channels, row=row) for row in range(len(array))]


def _rates(recordings: Sequence[Recording], wanted: int | None) -> str:
    """Check that all have the rate of the model, or one rate. Returns what the user is to know."""
    known = [one for one in recordings if one.rate is not None]
    for one in known:
        if wanted is not None and one.rate != wanted:
            raise BlurifyError(
                f"{one.path} has {one.rate} samples a second, the model takes {wanted}: resample it, or say --rate "
                f"{one.rate} if the model takes that"
            )
        if one.rate != known[0].rate:
            raise BlurifyError(
                f"{one.path} has {one.rate} samples a second and {known[0].path} {known[0].rate}: resample them to "
                "one rate, that of the model"
            )
    if known and wanted is None:
        return f"the signals have {known[0].rate} samples a second; nobody says what the model takes (--rate checks it)"
    return ""


def _array(path: Path) -> Any:
    """A .npy file, mapped into memory."""
    import numpy as np

    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise PictureError(
            f"{path} can't be read ({one_line(error)}): give an array of numbers, as numpy.save writes it"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.ndim not in (1, 2, 3):
        raise PictureError(f"{path} holds no signals of real numbers: give an array (samples) or (signals, samples)")
    return array


def _read(recording: Recording, start: int, length: int, channels: int) -> Tensor:
    """A stretch as (C, length) float32."""
    if recording.path.suffix.lower() == ".wav":
        found = read_wave(recording.path, start, length)
    else:
        found = _read_array(recording, start, length)
    if not bool(found.isfinite().all()):
        raise PictureError(f"{recording.path} holds values that are not finite: take it out, or mend it")
    return found.mean(0, keepdim=True) if channels == 1 else found


def _read_array(recording: Recording, start: int, length: int) -> Tensor:
    import numpy as np

    array = _array(recording.path)
    if recording.row is not None:
        array = array[recording.row]
    found = np.array(array[..., start : start + length])
    scale = 1.0
    if found.dtype.kind in "iu":
        scale = 1 / (np.iinfo(found.dtype).max + 1)
    return torch.from_numpy(np.atleast_2d(found.astype(np.float64) * scale).astype(np.float32))


# --- the model


def signal_preprocessing(
    model: nn.Module,
    *,
    size: int | None = None,
    canvas: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    rate: int | None = None,
    standardised: bool | None = None,
) -> Preprocessing:
    """How signals become a model's input.

    Args:
        model: takes (N, C, T), (N, T), or either as a picture of one row or column.
        size: samples of its input; None: as many as it can be run with.
        canvas: samples that windows are taken from; 8/7 of the size where left out.
        mean, std: one number, or one a channel; 0 and 1 where left out.
        rate: samples a second; None: what the model says (`sampling_rate` or `sample_rate`, its own or its
            configuration's).
        standardised: see `Signal`; None: of torchcrepe's network, whose frames are.

    Raises:
        BlurifyError: the model takes no signals, or none of that size.
    """
    crepe = any(kind.__name__ == "Crepe" and kind.__module__.startswith("torchcrepe") for kind in type(model).__mro__)
    if crepe:
        size = size or _CREPE[0]
    layout, channels, size = _input_of(model, size)
    canvas = canvas or max(round(size * 8 / 7), size + 1)
    if canvas < size:
        raise BlurifyError(
            f"the canvas of {canvas} samples is smaller than the model's input of {size}: give a larger --canvas or a "
            "smaller --size"
        )
    return Preprocessing(
        (1, size),
        (1, canvas),
        channels,
        statistic("mean", mean, (0.0,), channels),
        statistic("std", std, (1.0,), channels),
        signal=Signal(
            layout,
            rate or (_CREPE[1].rate if crepe else _rate_of(model)),
            crepe if standardised is None else standardised,
        ),
    )


def _rate_of(model: nn.Module) -> int | None:
    for holder in (model, getattr(model, "config", None)):
        for name in ("sampling_rate", "sample_rate"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _input_of(model: nn.Module, size: int | None) -> tuple[str, int, int]:
    """(layout, channels, samples) of the first input that a model takes."""
    if size is None:
        size = _samples_of(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    first = next((module for module in model.modules() if isinstance(module, nn.Conv1d)), None)
    counts = dict.fromkeys((first.in_channels if first is not None else 1, 1))
    problem: BlurifyError | None = None
    for channels in counts:
        for layout in _LAYOUTS:
            if layout == "N,T" and channels != 1:
                continue
            shape = {"N,C,T": (channels, size), "N,T": (size,), "N,C,T,1": (channels, size, 1)}.get(
                layout, (channels, 1, size)
            )
            try:
                traced(model, torch.zeros(2, *shape, dtype=like.dtype))  # of one alone the batch may pass for channels
            except BlurifyError as error:
                problem = problem or error
            else:
                return layout, channels, size
    raise BlurifyError(
        f"the model takes no signals of {size} samples ({problem}): give another --size, or a model of signals"
    ) from problem


def _samples_of(model: nn.Module) -> int:
    """As many samples as a model can be run with."""
    plan = plan_of(model)
    try:
        shapes = list(plan.input_shapes) if plan is not None else []
        if not shapes:
            args, kwargs = traced(model).inputs
            shapes = [tuple(getattr(value, "shape", ())) for value in (*args, *kwargs.values())]
    except BlurifyError as error:
        raise BlurifyError(
            f"how many samples the model takes can't be found ({without_remedy(error)}): give --size"
        ) from error
    if len(shapes) != 1 or len(shapes[0]) not in (2, 3, 4) or (len(shapes[0]) == 4 and 1 not in shapes[0][2:]):
        found = " and ".join("x".join(map(str, shape)) or "something else" for shape in shapes)
        raise BlurifyError(f"the model takes {found}, not signals: give --data a folder of images, or say --size")
    return math.prod(shapes[0][2:]) if len(shapes[0]) == 4 else int(shapes[0][-1])
