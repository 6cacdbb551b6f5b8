"""Find where a network cuts a map into patches without a strided op: patch embeddings, token merging, space to depth.

A strided convolution whose windows do not overlap can also be written as a rearrangement and a linear layer: the map is
cut into patches of s x s samples, whose s * s * C values become the channels of one token. Vision transformers do so to
read the image (Dosovitskiy 2021) and to merge tokens (Swin, Liu 2021). Nothing is thrown away there, but what the
linear layer makes of it is subsampled all the same: token j sees the samples s*j, ..., s*j + s - 1 and no others.

What makes it one is that all samples of a patch become channels of one token. Windows that are cut for attention
(Swin's blocks, Vaswani 2021's overlapping ones) are the same views up to there, but their samples stay tokens.
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
        if not all(source.meta.get("shape") or (0,)) or not all(node.meta.get("shape") or (0,)):
            continue  # several outputs, or nothing in it: boxes, where none were found
        if name in _SPLITS or name == "unfold":
            cut = _cut_from(node, source, name_of)
            if cut is not None:
                yield cut


def windows_of(node: Node, name_of: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The windows that an `unfold` cuts, and those that are chained to it: (dimensions, sizes, steps).

    Returns:
        None where it is itself chained to another one, or is called in a form of its own.
    """
    if node.target is F.unfold:
        given = _given(node)
        kernel, stride = (_pair(given.get(key, 1)) for key in ("kernel_size", "stride"))
        return ((2, 3), kernel, stride) if len(given["input"].meta["shape"]) == 4 else None
    if _is_windowing(node.args[0], name_of):
        return None
    steps: dict[int, tuple[int, int]] = {}
    current: Any = node
    while _is_windowing(current, name_of):
        window = _window(current)
        if window is None:
            return None
        dim, size, step = window
        steps[dim] = (size, step)
        current = next(iter(current.users)) if len(current.users) == 1 else None
    dims = tuple(sorted(steps))
    return dims, tuple(steps[dim][0] for dim in dims), tuple(steps[dim][1] for dim in dims)


def _given(node: Node) -> dict[str, Any]:
    """The arguments of `F.unfold` by name."""
    names = ("input", "kernel_size", "dilation", "padding", "stride")
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _is_windowing(node: Any, name_of: Any) -> bool:
    """Whether an op is `Tensor.unfold`, which cuts windows along one dimension."""
    return isinstance(node, Node) and name_of(node) == "unfold" and node.target is not F.unfold


def _window(node: Node) -> tuple[int, int, int] | None:
    """(dimension, size, step) of `Tensor.unfold`."""
    given = dict(zip(("input", "dimension", "size", "step"), node.args, strict=False)) | dict(node.kwargs)
    dim, size, step = (given.get(key) for key in ("dimension", "size", "step"))
    if not (isinstance(dim, int) and isinstance(size, int) and isinstance(step, int)):
        return None
    return dim % (len(node.meta["shape"]) - 1), size, step


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


# --- following the samples of a map through views


@dataclass(frozen=True)
class _Run:
    """Samples of one dimension of the source: `size` of them, `step` apart."""

    dim: int
    size: int
    step: int = 1


_View = list[list[_Run]]
"""Of each dimension of a view, the runs of samples that it goes through, the slowest first; those of one left out."""

_SPLITS = frozenset("reshape view unflatten".split())
_RESHAPES = _SPLITS | frozenset("flatten squeeze unsqueeze reshape_as view_as _unsafe_view".split())
_MOVES = frozenset("permute transpose swapaxes swapdims movedim moveaxis".split())
_SAME = frozenset("contiguous clone to type_as float half bfloat16".split())


def _cut_from(node: Node, source: Node, name_of: Any) -> Cut | None:
    shape = source.meta["shape"]
    if name_of(node) == "unfold":
        windows = windows_of(node, name_of)
        # The frames of a signal are another matter, and so are windows that are folded back onto the map (VOLO).
        if windows is None or len(shape) < 4 or max(windows[2]) == 1 or _is_folded(node, name_of):
            return None
        view = _windowed(shape, windows[0], node) if node.target is F.unfold else _windowed_along(shape, node)
    else:
        windows, view = None, _regrouped([[_Run(dim, n)] for dim, n in enumerate(shape)], node.meta["shape"])
        if view is None or sum(map(len, view)) == sum(n != 1 for n in shape):
            return None  # it parts no dimension
        if any(len({run.dim for run in group}) > 1 for group in view):
            return None  # it joins dimensions too: heads of tokens, for example
    if view is None:
        return None
    for ended in _ends(node, view, name_of):
        for dims, channel in _layouts(len(shape)):
            kernel = _patch(ended, shape, dims, channel)
            if kernel is not None:
                return Cut(node, source, (node,), kernel, kernel if windows is None else windows[2], dims)
    return None


def _layouts(rank: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """(spatial dimensions, that of the channels): after the batch come the channels, or they come last."""
    if 3 <= rank <= 5:
        yield tuple(range(2, rank)), 1
        yield tuple(range(1, rank - 1)), rank - 1


def _is_folded(node: Node, name_of: Any) -> bool:
    """Whether the module that cuts, or the one around it, folds windows back."""
    call = node.meta.get("call")
    around = (call, call.parent) if call is not None else ()
    return any(name_of(other) == "fold" for one in around if one is not None for other in one.nodes)


def _windowed(shape: Sequence[int], dims: Sequence[int], node: Node) -> _View:
    """What `F.unfold` gives: the windows of (N, C, H, W) as (N, C * k * k, L)."""
    named = _given(node)
    defaults = {"kernel_size": 1, "dilation": 1, "padding": 0, "stride": 1}
    given = zip(dims, *(_pair(named.get(key, one)) for key, one in defaults.items()), strict=True)
    inside, outside = [], []
    for dim, k, d, p, s in given:
        inside.append(_Run(dim, k))
        outside.append(_Run(dim, (shape[dim] + 2 * p - d * (k - 1) - 1) // s + 1, s))
    return [[_Run(0, shape[0])], [_Run(1, shape[1]), *inside], outside]


def _windowed_along(shape: Sequence[int], node: Node) -> _View | None:
    """What `Tensor.unfold` gives: the samples of a window in a new last dimension."""
    return _with_windows([[_Run(dim, n)] for dim, n in enumerate(shape)], node)


def _with_windows(view: _View, node: Node) -> _View | None:
    window = _window(node)
    if window is None:
        return None
    dim, size, step = window
    if len(view[dim]) != 1 or view[dim][0].step != 1:
        return None
    (run,) = view[dim]
    outside = [_Run(run.dim, (run.size - size) // step + 1, step)]
    return [*view[:dim], outside, *view[dim + 1 :], [_Run(run.dim, size)]]


def _ends(node: Node, view: _View, name_of: Any) -> Iterator[_View]:
    """How the samples lie where something reads them that is no view."""
    todo = [(node, view)]
    while todo:
        current, seen = todo.pop()
        for user in current.users:
            name = name_of(user)
            if name in _RESHAPES or name in _MOVES or name in _SAME or _is_windowing(user, name_of):
                after = _viewed(user, name, seen)
                if after is not None:
                    todo.append((user, after))
            else:
                yield seen


def _viewed(node: Node, name: str, view: _View) -> _View | None:
    """The view that an op makes of another one; None where that can't be told."""
    shape = node.meta.get("shape")
    if shape is None:
        return None
    if name in _SAME:
        return view
    if name == "unfold":
        return _with_windows(view, node)
    if name in _RESHAPES:
        return _regrouped(view, shape)
    order = _order(node, name, len(view))
    return None if order is None else [view[dim] for dim in order]


def _order(node: Node, name: str, rank: int) -> list[int] | None:
    rest: list[Any] = list(node.args[1:]) or [value for key, value in node.kwargs.items() if key != "input"]
    if name == "permute":
        given = rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        order = [dim % rank for dim in given]
        return order if sorted(order) == list(range(rank)) else None
    if len(rest) != 2 or not all(isinstance(dim, int) for dim in rest):
        return None
    first, second = (dim % rank for dim in rest)
    order = list(range(rank))
    if name in ("movedim", "moveaxis"):
        order.insert(second, order.pop(first))
    else:
        order[first], order[second] = order[second], order[first]
    return order


def _regrouped(view: _View, shape: Sequence[int]) -> _View | None:
    """The view that a reshape makes of another one: the same runs in the same order, parted and joined anew."""
    if 0 in shape:
        return None
    runs = [run for group in view for run in group if run.size != 1]
    groups: _View = []
    for size in shape:
        group: list[_Run] = []
        left = size
        while left > 1:
            if not runs:
                return None
            run = runs.pop(0)
            if left % run.size == 0:
                group.append(run)
                left //= run.size
            elif run.size % left == 0:  # its slow part here, its quick part in the next dimension
                quick = run.size // left
                group.append(_Run(run.dim, left, run.step * quick))
                runs.insert(0, _Run(run.dim, quick, run.step))
                left = 1
            else:
                return None
        groups.append(group)
    return groups if not runs else None


def _patch(view: _View, shape: Sequence[int], dims: Sequence[int], channel: int) -> tuple[int, ...] | None:
    """The size of the patches whose samples, with all channels and nothing else, are in one dimension of a view."""
    for group in view:
        if math.prod(run.size for run in group if run.dim == channel) != shape[channel]:
            continue
        if any(run.dim not in (*dims, channel) for run in group) or len({run.dim for run in group}) < 2:
            continue  # something else too, or nothing was joined: of one channel, heads of one token look like that
        sizes = tuple(_neighbours(group, dim) for dim in dims)
        if all(1 < size < shape[dim] for size, dim in zip(sizes, dims, strict=True)):
            return sizes
    return None


def _neighbours(group: Sequence[_Run], dim: int) -> int:
    """How many samples side by side of a dimension are in a group; 0 where they are not side by side."""
    size = 1
    for run in sorted((run for run in group if run.dim == dim), key=lambda run: run.step):
        if run.step != size:
            return 0
        size *= run.size
    return size


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
        if len(starts) < whole or any(-1 in start for start in starts):
            continue
        if dims not in {spatial for spatial, _ in _layouts(len(source.meta["shape"]))}:
            continue
        if any(set(found) == set(readers) for found in joined[source, steps].values()):
            stride = tuple(step for _, step in steps)
            yield Cut(readers[0], source, readers, stride, stride, dims)
