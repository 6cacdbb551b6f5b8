"""What the classes of a model are called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from blurify.errors import BlurifyError

IMAGENET = 1000


def class_names(classes: int, categories: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of a model's classes, in order; () where they are not known.

    Args:
        classes: how many it has.
        categories: what the model says itself; ImageNet's names for 1000 classes where it says nothing, as timm ships
            them (the first of a class' synonyms).
    """
    if len(categories) == classes:
        return tuple(map(str, categories))
    if classes != IMAGENET:
        return ()
    from timm.data import ImageNetInfo

    return tuple(text.partition(",")[0] for text in ImageNetInfo().label_descriptions())


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The names in a file: one a line, or a JSON list; JSON may also give names by number, {"0": "tench"}.

    Raises:
        BlurifyError: there is no such file, or it is no list of names.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BlurifyError(f"the class names {path} can't be read ({reason}): give a file with one a line") from error
    found: object
    if text[:1] in ("[", "{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BlurifyError(f"{path} is no JSON ({error}): give a list of names, or one a line") from error
        if isinstance(found, dict):
            found = [found.get(str(number)) for number in range(len(found))]
    else:
        found = [line.strip() for line in text.splitlines()]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BlurifyError(f"{path} is no list of names: give one a line, in the order of the classes")
    return tuple(found)
