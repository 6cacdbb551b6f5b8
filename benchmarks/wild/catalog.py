"""What a catalogue of models is, and the list of all libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Model:
    """One model of a library.

    Attributes:
        name: unique in its library.
        build: makes it with random weights.
        inputs: makes what it is called with: a tensor, a tuple of arguments or a dict of keywords; None where it is to
            be found out.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Library:
    """A library, what has to be installed for it, and its models.

    Attributes:
        name: how its models are listed.
        packages: what `pip install --no-deps` needs, for the library and what it imports. Without its dependencies:
            many want other versions of torch, and all of them run with this one or say so.
        models: lists them; called once the packages are there.
    """

    name: str
    packages: tuple[str, ...]
    models: Callable[[], Iterator[Model]] = field(repr=False)


def libraries() -> list[Library]:
    """All of them, in the order in which they are gone through."""
    found: list[Library] = []
    for group in ("hugging_face", "pictures", "sounds", "volumes", "detectors"):
        found += importlib.import_module(f"benchmarks.wild.{group}").LIBRARIES
    return found


def noise(*shape: int) -> Callable[[], torch.Tensor]:
    """An input of this shape."""
    return lambda: torch.randn(*shape)


def image(side: int = 64, channels: int = 3) -> Callable[[], torch.Tensor]:
    """A picture."""
    return noise(1, channels, side, side)


def part(build: Callable[[], Any], attribute: str) -> Callable[[], Any]:
    """A builder of one part of what another builds."""
    return lambda: _get(build(), attribute)


def _get(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner
