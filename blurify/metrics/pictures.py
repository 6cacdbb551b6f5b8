"""Pictures to measure with: a folder of image files, or the embedded digits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

from blurify import demo
from blurify.demo.shifts import CANVAS, DIGIT
from blurify.errors import BlurifyError, PictureError, one_line
from blurify.metrics.labels import class_labels
from blurify.metrics.subject import Batch, Pictures, Preprocessing, TensorPictures

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .tga .jp2 .avif".split()
)
DIGIT_CLASSES = 10
_AHEAD = 1  # batches that are decoded while one is measured
_WORKERS = 16


@dataclass(frozen=True)
class PictureFile:
    """One file, and the class folder that it lies in ('' where it lies in none)."""

    path: Path
    folder: str


@dataclass(frozen=True)
class FolderPictures:
    """Image files, decoded by threads while the batch before is measured. At most three batches are in memory.

    A picture is turned as its EXIF orientation says, enlarged or reduced (antialiased) until it covers the canvas, and
    cut to the canvas around its middle; so small pictures are enlarged. Transparency becomes black, of an animation the
    first frame counts, 16-bit files keep their depth, and colours become grey where the model takes one channel.

    Attributes:
        files: in order.
        preprocessing: canvas, channels and interpolation count here.
        name: what to call them.
        classes: the model's class for each class folder; folders that it lacks have no label.
        note: how the labels were found, or why there are none.
    """

    files: tuple[PictureFile, ...]
    preprocessing: Preprocessing
    name: str = "pictures"
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def labelled(self) -> bool:
        """Whether any picture has a label."""
        return any(file.folder in self.classes for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Differs where the pictures do: of the files' names and sizes, as reading them all would take too long."""
        files = [(file.folder, file.path.name, file.path.stat().st_size) for file in self.files]
        return hashlib.sha256(repr(files).encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def only(self, chosen: Sequence[int]) -> FolderPictures:
        """Those of some numbers."""
        return dataclasses.replace(self, files=tuple(self.files[index] for index in chosen))

    def batches(self, size: int) -> Iterator[Batch]:
        """All pictures in order, `size` at a time. Raises BlurifyError at a file that can't be read."""
        return self.batches_from(size, 0)

    def batches_from(self, size: int, first: int) -> Iterator[Batch]:
        """The same from batch number `first` on; files of earlier ones are not read."""
        starts = range(first * size, len(self), size)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, _WORKERS), thread_name_prefix="decode") as pool:
            waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
            try:
                for start in starts:
                    waiting.append(self._begin(pool, start, min(start + size, len(self))))
                    if len(waiting) > _AHEAD:
                        yield _finished(*waiting.popleft())
                while waiting:
                    yield _finished(*waiting.popleft())
            finally:  # nobody waits for what is left, after an error or when the reader stops early
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, start: int, end: int) -> tuple[Batch, list[Future[None]]]:
        """A batch whose pictures are still being decoded into it."""
        chosen = self.files[start:end]
        canvases = torch.empty(len(chosen), self.preprocessing.channels, *self.preprocessing.canvas)
        labels = torch.tensor([self.classes.get(file.folder, -1) for file in chosen])
        rows = canvases.numpy()
        futures = [
            pool.submit(_decode, file.path, self.preprocessing, row) for file, row in zip(chosen, rows, strict=True)
        ]
        return Batch(torch.arange(start, end), canvases, labels), futures


def _finished(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch


def open_folder(
    path: str | Path,
    preprocessing: Preprocessing,
    *,
    images: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    categories: Sequence[str] = (),
) -> FolderPictures:
    """The image files of a folder and of the folders in it, sorted. Hidden files and folders are left out.

    The folders right inside it are class folders, where they hold images.

    Args:
        path: the folder.
        preprocessing: the canvas that pictures are brought to.
        images: only so many, a seeded choice spread evenly over all of them (and so over the classes).
        seed: of that choice.
        classes: how many the model has; None: labels are not wanted.
        categories: their names, where they are known (see `class_labels`).

    Raises:
        BlurifyError: there is no such folder, or no image in it.
    """
    root = Path(path).expanduser()
    files = _image_files(root)
    folders = sorted({file.folder for file in files} - {""})
    nested = any(file.folder and file.path.parent != root / file.folder for file in files)
    mapping, note = class_labels(folders, classes, categories, nested=nested) if classes is not None else (None, "")
    chosen = tuple(files[index] for index in spread_choice(len(files), images, seed))
    return FolderPictures(chosen, preprocessing, str(path), mapping or {}, note)


def count_folders(path: str | Path) -> int | None:
    """How many class folders there are: folders right inside it, with images in them. None where there are none."""
    return len({file.folder for file in _image_files(Path(path).expanduser())} - {""}) or None


def _image_files(root: Path) -> list[PictureFile]:
    if not root.exists():
        raise BlurifyError(f"there is no folder {root}: give --data a folder of images")
    if not root.is_dir():
        raise BlurifyError(f"{root} is a file: give --data the folder that holds the images")
    found: list[PictureFile] = []
    seen: set[str] = set()  # links may lead back

    def unreadable(error: OSError) -> None:
        raise BlurifyError(f"the folder {error.filename} can't be read: {error.strerror}") from error

    for directory, below, names in os.walk(root, followlinks=True, onerror=unreadable):
        real = os.path.realpath(directory)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        parts = Path(directory).relative_to(root).parts
        found += [
            PictureFile(Path(directory, name), parts[0] if parts else "")
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not found:
        raise BlurifyError(f"there are no images in {root} (png, jpg, webp, bmp, tif, gif, ...): give another --data")
    return found


def spread_choice(count: int, wanted: int | None, seed: int) -> list[int]:
    """Which of `count` things to take: one at random out of each of `wanted` equal stretches, in order.

    All of them where no fewer are wanted.
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    draws = torch.rand(wanted, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    edges = [part * count // wanted for part in range(wanted + 1)]
    return [low + int(draw * (high - low)) for low, high, draw in zip(edges, edges[1:], draws, strict=False)]


def some_of(pictures: Pictures, images: int | None, seed: int) -> Pictures:
    """Only so many pictures of a set: a seeded choice spread evenly over it (see `spread_choice`)."""
    chosen = spread_choice(len(pictures), images, seed)
    if len(chosen) == len(pictures):
        return pictures
    only = getattr(pictures, "only", None)
    if only is not None:  # no others are decoded
        return cast(Pictures, only(chosen))
    batches = list(pictures.batches(max(len(pictures), 1)))
    canvases, labels = (torch.cat([getattr(b, part) for b in batches])[chosen] for part in ("canvases", "labels"))
    return TensorPictures(canvases, labels, pictures.name)


def _decode(path: Path, preprocessing: Preprocessing, row: Any) -> None:
    """Read a file into an array (C, H, W) float32. PIL and numpy let other threads run meanwhile; torch would not."""
    import numpy as np
    from PIL import Image, ImageOps

    height, width = preprocessing.canvas
    resample = Image.Resampling[preprocessing.interpolation.upper()]
    try:
        with Image.open(path) as opened:
            picture, largest = in_mode(ImageOps.exif_transpose(opened), preprocessing.channels)
        array = np.asarray(picture.resize((width, height), resample, _covering(picture.size, (width, height))))
    except (Image.UnidentifiedImageError, ImportError) as error:  # ultralytics then looks for a decoder to import
        raise PictureError(f"{path} is not an image: take it out of the folder, or mend it") from error
    except Exception as error:  # decoders raise all sorts of things at damaged files
        raise PictureError(
            f"{path} can't be read ({one_line(error)}): take it out of the folder, or mend it"
        ) from error
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    np.divide(planes, np.float32(largest), out=row)
    if largest != 255:  # bicubic overshoots; 8-bit pictures are cut off by PIL
        np.clip(row, 0, 1, out=row)


def in_mode(picture: Image.Image, channels: int) -> tuple[Image.Image, float]:
    """A picture as RGB or grey of 8 bits, or in floats where it has more bits; and the value that is white."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):
        values = picture.convert("F")
        low, high = cast(tuple[float, float], values.getextrema())
        largest = 65535.0 if picture.mode.startswith("I") else 1.0
        if low < 0 or high > largest:
            raise ValueError(f"values from {low:g} to {high:g}, where 0 to {largest:g} are known")
        return values, largest
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, (0, 0, 0, 255)), layered)
    return picture.convert("L" if channels == 1 else "RGB"), 255.0


def _covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box (left, top, right, bottom) in the middle of a picture that has the target's proportions."""
    scale = min(size[0] / target[0], size[1] / target[1])
    width, height = target[0] * scale, target[1] * scale
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    if scale == 1:  # cut only: half a pixel would mix neighbours
        left, top = left // 1, top // 1
    return max(left, 0.0), max(top, 0.0), min(left + width, size[0]), min(top + height, size[1])


def digit_preprocessing() -> Preprocessing:
    """How the embedded digits become the input of a model that says nothing about it: as `blurify demo` shows them."""
    room = round(CANVAS * 8 / 7)
    return Preprocessing((CANVAS, CANVAS), (room, room), channels=1, mean=(0.0,), std=(1.0,))


def digits(preprocessing: Preprocessing, *, images: int | None = None, seed: int = 0) -> TensorPictures:
    """The digits that are shipped, held out from the training of the embedded network.

    A digit takes 28/40 of the model's input, as in `blurify demo`, in the middle of a black canvas that is larger than
    the input; so crops shift the digit, and lose nothing of it where the canvas has 8/7 of the input's size.

    Args:
        preprocessing: crop, canvas and channels count here.
        images, seed: only so many of them (see `open_folder`).
    """
    held = demo.held_out()
    chosen = spread_choice(len(held.labels), images, seed)
    side = round(min(preprocessing.crop) * DIGIT / CANVAS)
    large = F.interpolate(held.images[chosen, None].float() / 16, size=(side, side), mode="bilinear")
    height, width = preprocessing.canvas
    left, top = (width - side) // 2, (height - side) // 2
    canvases = F.pad(large, (left, width - side - left, top, height - side - top))
    return TensorPictures(
        canvases.expand(-1, preprocessing.channels, -1, -1).contiguous(), held.labels[chosen], "embedded digits"
    )
