"""What `evidence_real.py` shows its networks: crops of photographs, little squares for face detectors, frames of sound.

All choices are seeded by Python's own generator: the same files give the same inputs everywhere. Each input comes with
the number of the photograph or recording that it was cut from.
"""

from __future__ import annotations

import io
import math
import random
import struct
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RATE = 16_000
FRAME = 1024
FACTOR = 0.709  # from one size of a face to the next, as MTCNN has it

Square = tuple[float, float, float]
"""Left, top and side, in pixels of the picture."""


@dataclass(frozen=True)
class Inputs:
    """What networks are shown.

    Attributes:
        values: (N, ...) uint8 pixels or float samples.
        source: (N,) int64, the number of what each was cut from.
        names: of the photographs or recordings.
    """

    values: Tensor
    source: Tensor
    names: tuple[str, ...]


# Photographs


def photographs(paths: Sequence[Path], *, smallest: int = 180, flattest: float = 18, largest: int = 1600) -> dict:
    """Pictures as RGB by name, none larger than `largest`. Those of no use are left out, and named.

    Args:
        smallest: the least height and width.
        flattest: the least standard deviation, in grey levels of 255, of a thumbnail.
    """
    found = {}
    left_out: list[str] = []
    for path, picture in _read(paths):
        if max(picture.size) > largest:
            picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
        if min(picture.size) < smallest or np.asarray(picture.resize((64, 64))).std() < flattest:
            left_out.append(path.name)
            continue
        found[_name(path, found)] = picture
    if left_out:
        print(f"{len(left_out)} pictures are left out, too small or of one colour: {', '.join(left_out[:5])}")
    return found


def _read(paths: Sequence[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """The pictures of files, on black where they are transparent; those in a bundle of Qt's resources one by one."""
    for path in paths:
        if path.suffix == ".rcc":
            yield from ((path.with_name(f"{path.stem}_{index}.jpg"), one) for index, one in enumerate(_bundled(path)))
            continue
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGBA" if opened.has_transparency_data else "RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            print(f"{path.name} is left out, it can't be read: {error}")
            continue
        if picture.mode == "RGBA":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
        yield path, picture


def _bundled(path: Path) -> Iterator[Image.Image]:
    """The JPEG and WebP files that lie uncompressed in a bundle, found by their first bytes."""
    content = path.read_bytes()
    for start in (b"\xff\xd8\xff", b"RIFF"):
        at = content.find(start)
        while at >= 0:
            try:
                with Image.open(io.BytesIO(content[at : at + 4_000_000])) as opened:
                    yield opened.convert("RGB")
                at += 1000
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                at += 3  # these bytes stood there by chance
            at = content.find(start, at)


def _name(path: Path, taken: dict) -> str:
    """A short name: of the file, with its folders where it says nothing or is taken."""
    generic = path.stem[:1].isdigit()
    name = "/".join(part for part in path.parts[-4:] if part not in ("contents", "images")) if generic else path.name
    return name if name not in taken else "/".join(path.parts[-3:])


def crops(pictures: dict, count: int, side: int, part: tuple[float, float], seed: int) -> Inputs:
    """Random squares of photographs in turn, brought to one size: uint8 (count, 3, side, side).

    Args:
        part: a square's side as a part of the picture's smaller side; its area is uniform between the two.
    """
    rng = random.Random(seed)
    images = list(pictures.values())
    chosen = [number % len(images) for number in range(count)]
    found = [_crop(images[number], side, part, rng) for number in chosen]
    return Inputs(_stacked(found), torch.tensor(chosen), tuple(pictures))


def joined(one: Inputs, other: Inputs) -> Inputs:
    """The inputs of two sets."""
    return Inputs(
        torch.cat([one.values, other.values]),
        torch.cat([one.source, other.source + len(one.names)]),
        (*one.names, *other.names),
    )


def _crop(image: Image.Image, side: int, part: tuple[float, float], rng: random.Random) -> Image.Image:
    least = min(image.size)
    square = max(int(least * math.sqrt(rng.uniform(part[0] ** 2, part[1] ** 2))), min(150, least))
    left, top = rng.randint(0, image.width - square), rng.randint(0, image.height - square)
    box = (left, top, left + square, top + square)
    return image.crop(box).resize((side, side), Image.Resampling.BICUBIC)


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    """uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


# Faces


def squares(image: Image.Image, count: int, detect: Callable[[Tensor], Tensor], rng: random.Random) -> list[Square]:
    """Places to look for a face: half of them where a detector says so, the others at random, of all sizes.

    Args:
        detect: (1, 3, H, W) float pixels -> (h, w) probabilities of a face in squares of 12 pixels, 2 apart.
    """
    proposed = list(_proposed(image, detect))
    found = rng.sample(proposed, min(count // 2, len(proposed)))
    while len(found) < count:
        side = 24 * (min(image.size) / 24) ** rng.random() * 0.9
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        found.append((left, top, side))
    return found


def _proposed(image: Image.Image, detect: Callable[[Tensor], Tensor], threshold: float = 0.6) -> Iterator[Square]:
    scale = min(0.5, 500 / max(image.size))
    while min(image.size) * scale >= 12:
        size = (round(image.width * scale), round(image.height * scale))
        pixels = _stacked([image.resize(size, Image.Resampling.BILINEAR)]).float()
        for row, column in (detect(pixels) > threshold).nonzero().tolist():
            yield 2 * column / scale, 2 * row / scale, 12 / scale
        scale *= FACTOR


def cut(image: Image.Image, square: Square, side: int) -> Image.Image:
    """A square of a picture at `side` pixels, and one pixel more all around (the edge's again where there is none)."""
    left, top, length = square
    cell = length / side
    box = (left - cell, top - cell, left + length + cell, top + length + cell)
    room = (0, 0, image.width, image.height)
    fits = all(low <= value <= high for value, low, high in zip(box, room[:2] * 2, room[2:] * 2, strict=True))
    if not fits:  # move it in, and make it smaller if need be
        length = min(box[2] - box[0], *image.size)
        left = min(max(box[0], 0), image.width - length)
        top = min(max(box[1], 0), image.height - length)
        box = (left, top, left + length, top + length)
    return image.resize((side + 2, side + 2), Image.Resampling.BILINEAR, box)


def face_squares(
    pictures: dict, count: int, side: int, detect: Callable[[Tensor], Tensor], seed: int
) -> Inputs:  # fmt: skip
    """About `count` squares of all pictures, the same number of each: uint8 (N, 3, side + 2, side + 2).

    The squares do not depend on `side`.
    """
    each = -(-count // len(pictures))
    found, source = [], []
    for number, image in enumerate(pictures.values()):
        rng = random.Random(f"{seed} {number}")
        found += [cut(image, square, side) for square in squares(image, each, detect, rng)]
        source += [number] * each
    return Inputs(_stacked(found), torch.tensor(source), tuple(pictures))


# Sound


def recordings(paths: Sequence[Path], *, voices: int, instruments: int, least: float = 0.4, seed: int = 0) -> dict:
    """Recordings by name, at 16 kHz: a seeded choice of so many of a voice (wav), and of instruments (sf2, pat).

    Args:
        least: seconds; shorter ones are left out.
    """
    read = {".wav": _wav, ".sf2": _soundfont, ".pat": _patch}
    found: dict[bool, dict[str, np.ndarray]] = {True: {}, False: {}}
    for path in paths:
        of = found[path.suffix == ".wav"]
        for name, rate, samples in read[path.suffix](path):
            if len(samples) >= least * rate and samples.std() > 1e-3:
                of[name] = _resampled(samples, rate)
    rng = random.Random(seed)
    chosen = {}
    for of, wanted in ((found[True], voices), (found[False], instruments)):
        names = sorted(rng.sample(sorted(of), min(wanted, len(of))))
        chosen |= {name: of[name] for name in names}
    return chosen


def frames(sounds: dict, count: int, seed: int) -> Inputs:
    """Random stretches of recordings in turn, not the quiet ones: floats (count, 1025), a frame and one sample more."""
    rng = random.Random(seed)
    waves = list(sounds.values())
    chosen = [number % len(waves) for number in range(count)]
    found = [_frame(waves[number], rng) for number in chosen]
    return Inputs(torch.from_numpy(np.stack(found)).float(), torch.tensor(chosen), tuple(sounds))


def _frame(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """The first of some stretches that is not much quieter than the whole."""
    for _ in range(20):
        start = rng.randint(0, len(samples) - FRAME - 1)
        found = samples[start : start + FRAME + 1]
        if found.std() > 0.3 * samples.std():
            break
    return found


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly

    common = math.gcd(RATE, rate)
    up, down = RATE // common, rate // common
    if up > 1000:  # a rate that shares no factor with ours: the next one of hundreds of Hz is near enough
        return _resampled(samples, max(round(rate / 100), 1) * 100)
    return resample_poly(samples, up, down).astype(np.float32)


Recorded = Iterator[tuple[str, int, np.ndarray]]
"""(name, samples a second, the samples as floats from -1 to 1)"""


def _wav(path: Path) -> Recorded:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        yield path.stem, file.getframerate(), samples[:: file.getnchannels()] / 32768


def _soundfont(path: Path) -> Recorded:
    """The samples of a SoundFont 2: one long row of 16-bit numbers, and a list of what starts and ends where."""
    content = path.read_bytes()

    def chunk(name: bytes) -> bytes:
        start = content.index(name)
        (size,) = struct.unpack_from("<I", content, start + 4)
        return content[start + 8 : start + 8 + size]

    row = np.frombuffer(chunk(b"smpl"), "<i2")
    for name, start, end, _, _, rate, _, _, _, _ in struct.iter_unpack("<20sIIIIIBbHH", chunk(b"shdr")):
        label = name.split(b"\0")[0].decode("latin-1")
        if label != "EOS" and rate:
            yield label, rate, row[start:end] / 32768


def _patch(path: Path) -> Recorded:
    """The samples of a Gravis Ultrasound patch: after three heads each has a head of its own."""
    content = path.read_bytes()
    count, at = content[198], 239
    for number in range(count):
        size, rate, mode = (
            struct.unpack_from("<I", content, at + 8)[0],
            struct.unpack_from("<H", content, at + 20)[0],
            content[at + 55],
        )
        data = content[at + 96 : at + 96 + size]
        samples = np.frombuffer(data, "<i2" if mode & 1 else "i1").astype(np.int32)
        width = 32768 if mode & 1 else 128
        if mode & 2:  # unsigned
            samples = samples % (2 * width) - width
        yield f"{path.stem} {number}", rate, samples / width
        at += 96 + size
