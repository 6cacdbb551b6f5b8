"""Pictures small enough to be embedded, and what to call them."""

from __future__ import annotations

import base64
import io

from torch import Tensor

from blurify.metrics.pictures import FolderPictures
from blurify.metrics.signals import Signals
from blurify.metrics.subject import Pictures

_LARGEST = 224  # pixels of the longer side
_QUALITY = 82


def address(picture: Tensor) -> str:
    """A picture (C, h, w) in 0..1, as the `data:` address of a JPEG; large ones are made smaller."""
    from PIL import Image

    pixels = (picture.detach().cpu().clamp(0, 1) * 255).round().byte()
    made = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels[:3].permute(1, 2, 0).numpy())
    made.thumbnail((_LARGEST, _LARGEST))
    file = io.BytesIO()
    made.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def name_of(pictures: Pictures, index: int) -> str:
    """What a picture or signal is called: its file's name, with its class folder, else its number."""
    if isinstance(pictures, FolderPictures):
        file = pictures.files[index]
        return f"{file.folder}/{file.path.name}" if file.folder else file.path.name
    if isinstance(pictures, Signals):
        recording, start = pictures.stretches[index]
        name = f"{recording.folder}/{recording.path.name}" if recording.folder else recording.path.name
        row = "" if recording.row is None else f", row {recording.row}"
        return f"{name}{row}, from sample {start}" if start else f"{name}{row}"
    return f"picture {index + 1}"
