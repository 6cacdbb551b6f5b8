"""What a file of torch.save has of a model's weights, tensor by tensor, to be compared with what was meant.

Nothing but tensors is made of it, so that any model of any class can be read back, without its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.archive import open_archive
from blurify.files.pickled.building import Builder, RefusedError
from blurify.files.pickled.names import Names
from blurify.files.pickled.tree import UnreadableError, entry


def stored_tensors(path: Path, place: Sequence[str] = ()) -> Iterator[tuple[str, Tensor | None]]:
    """The tensors of a state_dict or a module (parameters and buffers) by name, each read when its turn comes.

    Args:
        path: a file in torch's zip format.
        place: the keys that lead to them.

    Yields:
        The name and the tensor; None where it is of a kind that is not read.

    Raises:
        BlurifyError: the file is damaged.
    """
    try:
        archive = open_archive(path)
    except (UnreadableError, OSError) as error:
        raise BlurifyError(f"{path} is damaged ({one_line(error)})") from error
    try:
        builder = Builder(archive, Names(()))
        value = archive.tree.root
        for key in place:
            value = entry(builder.items(value), key)
        for name, node in _tensors(builder, value, ""):
            try:
                tensor = builder.value(node)
            except RefusedError:
                tensor = None
            except (UnreadableError, OSError) as error:
                raise BlurifyError(f"{path} is damaged ({one_line(error)})") from error
            builder.forget(0)
            yield name, tensor
            tensor = None
    finally:
        archive.close()


def _tensors(builder: Builder, value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    items = builder.items(value)
    if items is not None:
        yield from ((prefix + key, node) for key, node in items if type(key) is str and builder.is_tensor(node))
        return
    state = getattr(value, "state", ())
    held = builder.items(state[0]) if state else None
    for group in ("_parameters", "_buffers"):
        yield from _tensors(builder, entry(held, group), prefix)
    for name, module in builder.items(entry(held, "_modules")) or ():
        yield from _tensors(builder, module, f"{prefix}{name}.")
