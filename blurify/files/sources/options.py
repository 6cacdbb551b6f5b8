"""The options of a factory, as in `timm/resnet18?num_classes=10&in_chans=1`."""

from __future__ import annotations

from typing import Any

from blurify.errors import BlurifyError


def parse_options(spec: str, query: str) -> dict[str, Any]:
    """`num_classes=10&in_chans=1` as keyword arguments: ints, floats, true / false / none, else strings.

    Raises:
        BlurifyError: something in the query is no option, or one that is chosen elsewhere.
    """
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise BlurifyError(f"{item!r} in {spec!r} is no option: write ?num_classes=10&in_chans=1")
        if key in ("pretrained", "checkpoint_path", "weights", "weights_backbone", "cache_dir"):
            raise BlurifyError(
                f"{key} in {spec!r} can't be set there: weights are chosen by the name, --random, or a file"
            )
        options[key] = _value(text)
    return options


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
