"""One value a picture, as a short text that a JSON file can hold: doubles, bit for bit."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

from blurify.errors import BlurifyError


def pack(values: Sequence[float]) -> str:
    """The values as text. Answers of yes or no take some two bits each, other numbers up to eleven characters."""
    return base64.b64encode(zlib.compress(struct.pack(f"<{len(values)}d", *values), 9)).decode()


def unpack(text: str, count: int) -> tuple[float, ...]:
    """The `count` values that `pack` made a text of. Raises BlurifyError where it is something else."""
    try:
        # Never more than was promised: a short text can stand for gigabytes.
        data = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 8 * count + 1)
        return struct.unpack(f"<{count}d", data)
    except (ValueError, zlib.error, struct.error) as error:
        raise BlurifyError(f"this is no list of {count} values that blurify wrote ({error}): measure again") from error
