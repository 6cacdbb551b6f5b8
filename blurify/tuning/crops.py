"""Crops of a folder's pictures to adapt on: cut once, kept as bytes, seen through other windows at every step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from blurify.errors import BlurifyError, one_line
from blurify.metrics.pictures import FolderPictures, in_mode, spread_choice
from blurify.metrics.subject import Preprocessing

SMALLEST = 0.2
"""Share of a picture's shorter side that a crop has at least (but as many pixels as a model's input has, if it can)."""

_WORKERS = 16


@dataclass(frozen=True)
class Crops:
    """Square pieces of pictures, brought to the canvas that windows of the model's size are taken from.

    Attributes:
        canvases: (N, C, H, W) uint8.
        pictures: (N,) int64, which picture each is of.
        labels: (N,) int64, -1 where unknown.
        left_out: the pictures that could not be read, each with the reason.
    """

    canvases: Tensor
    pictures: Tensor
    labels: Tensor
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.canvases)

    def of(self, chosen: Tensor) -> Crops:
        """Some of them, by index."""
        return Crops(self.canvases[chosen], self.pictures[chosen], self.labels[chosen], self.left_out)


def cut(folder: FolderPictures, count: int, *, seed: int = 0, watch: Callable[[int, int], None] | None = None) -> Crops:
    """Cut `count` crops out of a folder's pictures, as many out of each (one out of some, where there are more).

    The first crop of a picture is its middle, as large as it gets, as it is evaluated; the others are squares of random
    size at random places. The choice depends on the seed and on nothing else.

    Args:
        folder: the pictures; its preprocessing says canvas, channels and interpolation.
        count: how many crops.
        seed: of the choice.
        watch: told (pictures read, pictures in all).

    Raises:
        BlurifyError: none of the pictures can be read.
    """
    chosen = spread_choice(len(folder), count, seed) if len(folder) > count else list(range(len(folder)))
    each = [count // len(chosen) + (place < count % len(chosen)) for place in range(len(chosen))]
    geometry = folder.preprocessing

    def one(place: int) -> list[Tensor] | str:
        index = chosen[place]
        return _cut_one(folder.files[index].path, geometry, each[place], np.random.default_rng((seed, index)))

    canvases: list[Tensor] = []
    origins: list[int] = []
    labels: list[int] = []
    left_out: list[str] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS), thread_name_prefix="decode") as pool:
        for place, found in enumerate(_in_order(pool, one, range(len(chosen)))):
            if isinstance(found, str):
                left_out.append(found)
            else:
                canvases += found
                origins += [chosen[place]] * len(found)
                labels += [folder.classes.get(folder.files[chosen[place]].folder, -1)] * len(found)
            if watch is not None:
                watch(place + 1, len(chosen))
    if not canvases:
        raise BlurifyError(f"none of the pictures in {folder.name} can be read ({left_out[0]}): give another --data")
    return Crops(torch.stack(canvases), torch.tensor(origins), torch.tensor(labels), tuple(left_out))


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], list[Tensor] | str], items: Sequence[int]
) -> Iterator[list[Tensor] | str]:
    """As `pool.map`, with only a few results waiting: pictures are large."""
    remaining = iter(items)
    waiting = [pool.submit(work, item) for item in itertools.islice(remaining, 2 * _WORKERS)]
    while waiting:
        yield waiting.pop(0).result()
        waiting += [pool.submit(work, item) for item in itertools.islice(remaining, 1)]


def _cut_one(path: Path, geometry: Preprocessing, count: int, random: np.random.Generator) -> list[Tensor] | str:
    """The crops of one picture; or why it can't be read."""
    try:
        with Image.open(path) as opened:
            picture, largest = in_mode(ImageOps.exif_transpose(opened), geometry.channels)
        boxes = [_box(picture.size, geometry, random, middle=number == 0) for number in range(count)]
        height, width = geometry.canvas
        resample = Image.Resampling[geometry.interpolation.upper()]
        arrays = [np.asarray(picture.resize((width, height), resample, box)) for box in boxes]
    except Exception as error:  # decoders raise all sorts of things at damaged files
        return f"{path} ({one_line(error, 80)})"
    bytes_ = [np.clip(array * (255 / largest), 0, 255).round().astype(np.uint8) for array in arrays]
    planes = [one[None] if one.ndim == 2 else one.transpose(2, 0, 1) for one in bytes_]
    # Pictures of more than 8 bits are grey.
    return [torch.from_numpy(one.copy()).expand(geometry.channels, -1, -1) for one in planes]


def _box(
    size: tuple[int, int], geometry: Preprocessing, random: np.random.Generator, *, middle: bool
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a piece with the canvas' proportions."""
    height, width = geometry.canvas
    whole = min(size[0] / width, size[1] / height)
    least = min(whole, max(SMALLEST * whole, min(0.6, whole)))
    scale = whole if middle else float(np.sqrt(random.uniform(least**2, whole**2)))
    wide, tall = width * scale, height * scale
    x, y = (0.5, 0.5) if middle else random.uniform(size=2)
    left, top = x * max(size[0] - wide, 0), y * max(size[1] - tall, 0)
    return left, top, min(left + wide, size[0]), min(top + tall, size[1])


def hold_back(crops: Crops, share: float = 0.1, most: int = 64, least_pictures: int = 10) -> tuple[Crops, Crops]:
    """Crops to adapt on and crops to check on, of other pictures; the same ones twice where pictures are too few.

    Args:
        crops: all of them.
        share: of the pictures that are held back.
        most: crops to check on.
        least_pictures: with fewer pictures none is held back.
    """
    pictures = crops.pictures.unique()
    if len(pictures) < least_pictures:
        return crops, crops.of(torch.tensor(spread_choice(len(crops), min(most, len(crops)), 0)))
    count = max(1, round(len(pictures) * share))
    held = pictures[torch.tensor(spread_choice(len(pictures), count, 1))]
    mask = torch.isin(crops.pictures, held)
    checked = mask.nonzero().flatten()
    checked = checked[torch.tensor(spread_choice(len(checked), min(most, len(checked)), 0))]
    return crops.of((~mask).nonzero().flatten()), crops.of(checked)
