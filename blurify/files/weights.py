"""Put tensors into a model: under its names, in their own dtypes, one at a time."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files.prefixes import OwnNames, own_names


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, arch: str, prefix: str | None = None
) -> OwnNames:
    """Load tensors into a model, bit by bit and in their own dtypes.

    Args:
        model: gets them; shared parameters stay shared.
        tensors: by name; what a wrapper or a training program put before the names is taken off. Each is looked up
            when its turn comes, and not kept.
        where, arch: what both are called in messages.
        prefix: what stands before the names, where the user says it.

    Returns:
        Which names the tensors have in the file.

    Raises:
        BlurifyError: names or shapes don't fit; it says which.
    """
    names = own_names(model.state_dict().keys(), tensors, where=where, prefix=prefix)
    tensors = Renamed(tensors, names.stored)
    check_fit(model, tensors, where, arch)
    try:
        with torch.no_grad():
            model.load_state_dict(_in_place(model, tensors), strict=True)
    except RuntimeError as error:
        raise BlurifyError(f"the weights in {where} don't fit {arch}: {one_line(error)}") from error
    return names


def fill_lazily(
    model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, arch: str, prefix: str | None = None
) -> OwnNames:
    """`fill` for a model whose parameters have no data: they get the dtypes, and the buffers their values.

    Args:
        model, tensors, where, arch, prefix: as for `fill`; the tensors are of a file of safetensors.

    Returns:
        Which names the tensors have in the file, and the tensors by the names of the model.

    Raises:
        BlurifyError: names or shapes don't fit; it says which.
    """
    names = own_names(model.state_dict().keys(), tensors, where=where, prefix=prefix)
    renamed = Renamed(tensors, names.stored)
    check_fit(model, renamed, where, arch)
    values: dict[str, Any] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if value.is_meta:
            dtype = renamed.stored(name).dtype
            if value.dtype != dtype:
                value.data = torch.empty_like(value, dtype=dtype)
            values[name] = value
        else:
            values[name] = renamed[name]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that to copy what has no data does nothing
        model.load_state_dict(_in_place(model, values), strict=True)
    return dataclasses.replace(names, tensors=renamed)


def _in_place(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The model's own tensors with the values of the others, to be loaded as if they were those.

    `load_state_dict` wants all values at once, so a whole model would be in memory twice. Here it has nothing left to
    copy, and what modules do when they are loaded (hooks, versions, extra state) is done as ever.
    """
    own = model.state_dict(keep_vars=True)
    values: dict[str, Any] = {}
    for name in tensors:
        mine, tensor = own[name], tensors[name]
        plain = isinstance(mine, Tensor) and isinstance(tensor, Tensor)
        if not plain or mine.is_meta or name.endswith("_extra_state"):
            values[name] = tensor
            continue
        if mine.dtype != tensor.dtype:
            mine.data = torch.empty_like(mine, dtype=tensor.dtype)
        mine.copy_(tensor)
        values[name] = mine
    return values


class Renamed(Mapping[str, Tensor]):
    """Tensors under other names.

    Args:
        tensors: as they are stored.
        names: of every name, under which it is stored.
    """

    def __init__(self, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return shape_in(self._tensors, self._names[name])

    def stored(self, name: str) -> Any:
        """Where a tensor lies in its file of safetensors; see `tensors.StoredTensors.stored`."""
        kept: Any = self._tensors
        return kept.stored(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, arch: str) -> None:
    """Ask whether tensors have the model's names and shapes.

    Args:
        model, tensors: the two.
        where, arch: what both are called in messages.

    Raises:
        BlurifyError: they have not; it says which, and what to add where that would help.
    """
    own = {name: tuple(value.shape) if hasattr(value, "shape") else () for name, value in model.state_dict().items()}
    theirs = {name: shape_in(tensors, name) for name in tensors}
    missing = [name for name in own if name not in theirs]
    unexpected = [name for name in theirs if name not in own]
    other = [name for name in own if name in theirs and own[name] != theirs[name]]
    if not (missing or unexpected or other):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} are missing in the file ({_few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not in the architecture ({_few(unexpected)})")
    if other:
        shapes = [f"{name} {theirs[name]} in the file, {own[name]} in the architecture" for name in other]
        parts.append(f"{len(other)} have other shapes ({_few(shapes, 2)})")
    raise BlurifyError(f"the weights in {where} don't fit {arch}: {'; '.join(parts)}")


def shapes_in(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tensors, which are not read for it where their file says them."""
    return {name: shape_in(tensors, name) for name in tensors}


def shape_in(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of one of some tensors."""
    if hasattr(tensors, "shape"):  # of a file that says shapes without being read
        found: tuple[int, ...] = tensors.shape(name)
        return found
    return tuple(getattr(tensors[name], "shape", ()))


def _few(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
