"""The names and shapes of an architecture's tensors, without its data."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from blurify.files.sources import build
from blurify.graph.copies import without_data

Shapes = Mapping[str, tuple[int, ...]]
"""What a state_dict is made of, for the question whether it fits: shapes by name."""


@functools.lru_cache(maxsize=64)
def shapes_of(spec: str) -> Shapes:
    """The shapes in the state_dict of an architecture.

    Args:
        spec: a factory spec of timm or torchvision.

    Returns:
        By name, in order; what is no tensor (extra state) has the shape `()`.

    Raises:
        BlurifyError: there is no such architecture, or it doesn't take these options.
    """
    try:
        with without_data():
            model, _ = build(spec, pretrained=False)
    except Exception:  # it reads values while it is made, or takes no such options: then this says so
        model, _ = build(spec, pretrained=False)
    return {name: tuple(getattr(value, "shape", ())) for name, value in model.state_dict().items()}
