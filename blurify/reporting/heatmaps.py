"""The colour scale of the equivariance maps, and maps as small PNGs, one pixel a cell.

The scale is a curve in OKLab (Ottosson 2020, "A perceptual color space for image processing") from a dark blue through
red to a light yellow, walked at an even pace. In that space distance is perceived difference, so that equal steps of
the value look equal. Lightness rises all the way: the order of the values shows to the colour-blind too, and in grey
print.
"""

from __future__ import annotations

import base64
import bisect
import itertools
import math
import struct
import zlib
from collections.abc import Sequence

Colour = tuple[int, int, int]

# OKLab: lightness, green to red, blue to yellow. A quadratic Bezier curve; the second point only bends it.
_CURVE = ((0.24, 0.010, -0.105), (0.59, 0.235, 0.030), (0.92, -0.022, 0.150))
UNKNOWN: Colour = (128, 128, 128)
STEPS = 256


def colour(share: float) -> Colour:
    """The colour (sRGB, 0..255) of a value that is `share` of the way from the lowest to the highest; grey for nan."""
    if not math.isfinite(share):
        return UNKNOWN
    return SCALE[round(min(max(share, 0.0), 1.0) * (STEPS - 1))]


def picture(values: Sequence[Sequence[float]], highest: float) -> str:
    """A map as a `data:` address of a PNG, one pixel a cell.

    Args:
        values: rows of the same length.
        highest: what has the colour at the end of the scale; 0 has the one at its start.
    """
    return address([[colour(value / highest if highest > 0 else 0.0) for value in row] for row in values])


def address(rows: Sequence[Sequence[Colour]]) -> str:
    """Pixels as a `data:` address of a PNG (W3C PNG specification: 8 bits a sample, RGB, no filter)."""
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    pixels = b"".join(b"\0" + bytes(sample for pixel in row for sample in pixel) for row in rows)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _srgb(lightness: float, a: float, b: float) -> Colour:
    """OKLab to sRGB: Ottosson's two matrices, then the transfer curve of IEC 61966-2-1."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (_transfer(min(max(value, 0.0), 1.0)) for value in linear)
    return red, green, blue


def _transfer(value: float) -> int:
    curved = 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
    return round(255 * curved)


def _walk(steps: int) -> list[tuple[float, float, float]]:
    """Points of the curve at equal distances along it."""
    fine = 16 * steps
    curve: list[tuple[float, float, float]] = []
    for index in range(fine + 1):
        t = index / fine
        weights = ((1 - t) ** 2, 2 * t * (1 - t), t**2)
        lightness, a, b = (math.fsum(w * p[axis] for w, p in zip(weights, _CURVE, strict=True)) for axis in range(3))
        curve.append((lightness, a, b))
    along = [0.0, *itertools.accumulate(math.dist(one, two) for one, two in itertools.pairwise(curve))]
    return [curve[bisect.bisect_left(along, along[-1] * index / (steps - 1), hi=fine)] for index in range(steps)]


SCALE: tuple[Colour, ...] = tuple(_srgb(*point) for point in _walk(STEPS))
