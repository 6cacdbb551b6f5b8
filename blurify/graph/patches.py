"""Find where a network cuts a map into patches without a strided op: patch embeddings and token merging.

A strided convolution whose windows do not overlap can also be written as a rearrangement and a linear layer: the map is
cut into patches of s x s samples, whose s * s * C values become the channels of one token. Vision transformers do so to
read the image (Dosovitskiy 2021) and to merge tokens (Swin, Liu 2021). Nothing is thrown away there, but what the
linear layer makes of it is subsampled all the same: token j sees the samples s*j, ..., s*j + s - 1 and no others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch.fx import Node


@dataclass(frozen=True)
class Cut:
    """One place where a map is cut into patches.

    Attributes:
        node: the op that begins it, which stands for it.
        source: what it cuts.
        readers: all ops that read the source for it: `node` alone, or the slices of each phase.
        kernel_size, stride: of the patches, one entry a spatial dimension.
        dims: the spatial dimensions of the source.
    """

    node: Node
    source: Node
    readers: tuple[Node, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dims: tuple[int, ...]


def find_cuts(nodes: Sequence[Node], name_of: Any) -> Iterator[Cut]:
    """The places where maps are cut into patches by other means than a strided op or strided slices, in running order.

    Args:
        nodes: of a traced graph.
        name_of: gives the bare name of a node's function.
    """
    for node in nodes:
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            continue
        source, name = node.args[0], name_of(node)
        shape = source.meta.get("shape")
        if shape is None or node.meta.get("shape") is None:
            continue
        if name in ("reshape", "view", "unflatten"):
            yield from _by_reshape(node, source, name_of)
        elif name == "unfold":
            yield from _by_unfold(node, source, name_of)


def _by_unfold(node: Node, source: Node, name_of: Any) -> Iterator[Cut]:
    shape = source.meta["shape"]
    if node.target is F.unfold:  # im2col: (N, C, H, W) -> (N, C * k * k, L)
        names = ("input", "kernel_size", "dilation", "padding", "stride")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        kernel, stride = (_pair(given.get(key, 1)) for key in ("kernel_size", "stride"))
        # Windows that are folded back onto the map are a local attention (VOLO): no token is dropped or merged.
        if len(shape) == 4 and max(stride) > 1 and not _is_folded(node, name_of):
            yield Cut(node, source, (node,), kernel, stride, (2, 3))
        return
    if name_of(source) == "unfold" or len(shape) < 4:  # further dimensions of a cut; frames of a signal
        return
    steps: dict[int, tuple[int, int]] = {}
    current, taken = node, 0
    while name_of(current) == "unfold" and current.target is not F.unfold:
        given = dict(zip(("input", "dimension", "size", "step"), current.args, strict=False)) | dict(current.kwargs)
        dim, size, step = (given.get(key) for key in ("dimension", "size", "step"))
        if not (isinstance(dim, int) and isinstance(size, int) and isinstance(step, int)):
            return
        steps[dim % (len(shape) + taken)] = (size, step)
        taken += 1
        if len(current.users) != 1:
            break
        current = next(iter(current.users))
    dims = tuple(sorted(steps))
    if max(step for _, step in steps.values()) > 1 and _layout(dims, len(shape)):
        yield Cut(
            node, source, (node,), tuple(steps[d][0] for d in dims), tuple(steps[d][1] for d in dims), dims
        )  # fmt: skip


def _is_folded(node: Node, name_of: Any) -> bool:
    """Whether the module that cuts, or the one around it, folds windows back."""
    call = node.meta.get("call")
    around = (call, call.parent) if call is not None else ()
    return any(name_of(other) == "fold" for one in around if one is not None for other in one.nodes)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _layout(dims: Sequence[int], rank: int) -> str:
    """'first' | 'last': where the channels of a tensor are whose spatial dimensions these are; '' if it has not such.

    With one spatial dimension the tensor may as well be (N, L, C) or (N, C, L): both have their names by `dims`.
    """
    if not 1 <= len(dims) <= 3 or len(dims) != rank - 2:
        return ""
    if tuple(dims) == tuple(range(2, rank)):
        return "first"
    return "last" if tuple(dims) == tuple(range(1, rank - 1)) else ""


# --- a reshape that splits the spatial dimensions, a permutation, and a reshape that joins patches and channels


def _by_reshape(node: Node, source: Node, name_of: Any) -> Iterator[Cut]:
    before, after = source.meta["shape"], node.meta["shape"]
    for split in _splits(before, after):
        layout = _layout(split, len(before))
        if not layout:
            continue
        labels: list[tuple[str, int]] = []
        for dim in range(len(before)):
            labels += [("outer", dim), ("inner", dim)] if dim in split else [("kept", dim)]
        channel = 1 if layout == "first" else len(before) - 1
        if _joins_channels(node, labels, split, channel, name_of):
            stride = tuple(after[labels.index(("inner", dim))] for dim in split)
            yield Cut(node, source, (node,), stride, stride, split)
            return


def _splits(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The dimensions that a reshape splits in two each, where it does nothing else: all ways to read it so."""
    more = len(after) - len(before)
    if not 1 <= more <= 3:
        return

    def walk(i: int, j: int, split: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if i == len(before):
            if j == len(after) and len(split) == more:
                yield split
            return
        if j + 1 < len(after) and after[j + 1] > 1 and after[j] * after[j + 1] == before[i] and len(split) < more:
            yield from walk(i + 1, j + 2, (*split, i))
        if j < len(after) and after[j] == before[i]:
            yield from walk(i + 1, j + 1, split)

    yield from walk(0, 0, ())


def _joins_channels(
    node: Node, labels: list[tuple[str, int]], split: Sequence[int], channel: int, name_of: Any
) -> bool:
    """Whether what follows makes one dimension of all samples of a patch and the channels, and of nothing else."""
    current = node
    while len(current.users) == 1:
        current = next(iter(current.users))
        name, shape = name_of(current), current.meta.get("shape")
        if shape is None:
            return False
        if name in ("permute", "transpose", "swapaxes", "moveaxis", "movedim"):
            moved = _moved(current, name, labels)
            if moved is None:
                return False
            labels = moved
        elif name in ("reshape", "view", "flatten"):
            sizes = dict(zip(labels, current.args[0].meta["shape"], strict=True))  # type: ignore[union-attr]
            groups = _groups(labels, sizes, shape)
            wanted = {("inner", dim) for dim in split} | {("kept", channel)}
            return groups is not None and any(set(group) == wanted for group in groups)
        elif name not in ("contiguous", "clone", "to", "type_as"):
            return False
    return False


def _moved(node: Node, name: str, labels: list[tuple[str, int]]) -> list[tuple[str, int]] | None:
    rank = len(labels)
    rest: list[Any] = list(node.args[1:]) or list(node.kwargs.values())
    if name == "permute":
        order = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        if sorted(dim % rank for dim in order) != list(range(rank)):
            return None
        return [labels[dim % rank] for dim in order]
    if name in ("transpose", "swapaxes") and len(rest) == 2:
        first, second = (dim % rank for dim in rest)
        moved = list(labels)
        moved[first], moved[second] = labels[second], labels[first]
        return moved
    return None


def _groups(
    labels: list[tuple[str, int]], sizes: dict[tuple[str, int], int], shape: Sequence[int]
) -> list[list[tuple[str, int]]] | None:
    """Which dimensions a reshape joins to each of the new ones; None where it is no joining."""
    groups: list[list[tuple[str, int]]] = []
    left = list(labels)
    for size in shape:
        group: list[tuple[str, int]] = []
        while left and (not group or math.prod(sizes[one] for one in group) < size):
            group.append(left.pop(0))
        if math.prod(sizes[one] for one in group) != size:
            return None
        groups.append(group)
    while left and groups and sizes[left[0]] == 1:  # of one channel
        groups[-1].append(left.pop(0))
    return groups if not left else None


def phases(slices: dict[Any, list[tuple[Node, tuple[int, ...]]]], name_of: Any) -> Iterator[Cut]:
    """The cuts that are written as slices of every phase, which are then concatenated.

    Args:
        slices: the strided slices of a graph, by (source, ((dimension, step), ...)), each with the phases it begins at.
        name_of: gives the bare name of a node's function.
    """
    joined: dict[tuple[Node, Any], dict[Node, list[Node]]] = defaultdict(lambda: defaultdict(list))
    for (source, steps), taken in slices.items():
        for node, _ in taken:
            for user in node.users:
                if name_of(user) in ("cat", "concat", "concatenate"):
                    joined[source, steps][user].append(node)
    for (source, steps), taken in slices.items():
        readers = tuple(node for node, _ in taken)
        dims = tuple(dim for dim, _ in steps)
        starts = {start for _, start in taken}
        whole = math.prod(step for _, step in steps)
        if len(starts) < whole or any(-1 in start for start in starts) or not _layout(dims, len(source.meta["shape"])):
            continue
        if any(set(found) == set(readers) for found in joined[source, steps].values()):
            stride = tuple(step for _, step in steps)
            yield Cut(readers[0], source, readers, stride, stride, dims)
