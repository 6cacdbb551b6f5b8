"""Follow the positions of feature maps through a traced graph: how far a conversion moves them, in input pixels.

Every op that both models run takes features that are moved by d input pixels to features that are moved by d: whatever
its stride, it reads the same neighbours. So a feature map drifts only where the conversion's filter has its centre
elsewhere than what it stands for: by that many samples of the grid that is filtered, times the distance of those
samples in input pixels (the product of the strides so far). The offsets that the original has of its own (a max pool of
2 looks between two samples) are no drift.

The walk knows, of every tensor, which of its dimensions are spatial, how far apart their samples are, and where its
features lie: from the least to the most, as branches may be apart. What is averaged over the whole map has no position
any more and agrees with everything.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch.fx import Node

from blurify.graph.recorder import Trace, unseen
from blurify.graph.sites import PARAMETERS, Found, Op, function_name, read_op, sliced
from blurify.nn.arguments import given_per_dim
from blurify.planning.rules import window_centres, window_moves
from blurify.spec.alignment import Alignment, Drift, Meeting, largest
from blurify.spec.plan import Site

_DIGITS = 6
_APART = 10.0**-_DIGITS  # input pixels: below that, features are at the same place

# What meets position by position. Attention (a product of matrices) brings all positions together and asks for none.
_ELEMENTWISE = frozenset(
    "add sub mul div true_divide rsub maximum minimum lerp addcmul addcdiv where pow atan2".split()
)
_JOINS = frozenset("cat concat concatenate stack hstack vstack dstack column_stack".split())
# What has positions of its first argument alone; the others are weights, indices or shapes.
_OF_THE_FIRST = frozenset(
    "linear batch_norm layer_norm group_norm instance_norm rms_norm prelu interpolate embedding _getitem getitem "
    "type_as to expand_as view_as reshape_as pad index_select gather".split()
)
_RESIZES = frozenset(
    "interpolate upsample upsample_nearest upsample_bilinear upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d pixel_shuffle pixel_unshuffle "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices".split()
)
_REDUCTIONS = frozenset("mean sum amax amin max min std var logsumexp norm vector_norm prod median nanmean".split())
_TRANSPOSED = {f"conv_transpose{rank}d": rank for rank in (1, 2, 3)}


@dataclass(frozen=True)
class _Grid:
    """The positions of one tensor's features; one entry a spatial dimension of the input.

    Attributes:
        sizes: of the input that they are positions in.
        step: from sample to sample, in input pixels.
        drift: see `Drift`.
        axes: which dimension of the tensor it is; None where the tensor was reshaped so that it is none.
    """

    sizes: tuple[int, ...]
    step: tuple[float, ...]
    drift: Drift
    axes: tuple[int | None, ...]


_Nowhere: TypeAlias = Literal["constant", "everywhere", "unknown"]
_Place: TypeAlias = "_Grid | _Nowhere"
"""A grid; or 'constant' (made of weights), 'everywhere' (averaged over the map), 'unknown' (no grid of the input's)."""


@dataclass(frozen=True)
class _Move:
    """What a blur does to positions: by how many samples of the grid that it filters, and its subsampling."""

    samples: tuple[float, ...]
    stride: tuple[int, ...]


def with_drifts(
    seen: Trace, found: Sequence[Found], sites: Sequence[Site], points: Mapping[str, Sequence[Node]]
) -> tuple[list[Site], Alignment]:
    """Say of each site, and of the outputs, how far the conversion moves features.

    Args:
        seen: the model's forward in eval mode.
        found: its sites as found, in the order of the plan.
        sites: the same as planned, and after them those that did not run.
        points: the blur points of the sites that are blurred after their nonlinearity.

    Returns:
        the sites with their `drift` (of the value that a site hands on), and the whole model's alignment.
    """
    walk = _Walk(seen, found, sites, points)
    walk.run()
    named = {}
    for site, one in zip(sites, found, strict=False):
        nodes = points[site.name] if site.name in points and site.action == "blur" else [op.node for op in one.ops]
        grids = [grid for node in nodes if isinstance(grid := walk.places.get(node), _Grid)]
        named[site.name] = _hull([grid.drift for grid in grids]) if grids else ()
    drifted = [dataclasses.replace(site, drift=named.get(site.name, ())) for site in sites]
    everywhere = [grid.drift for grid in walk.places.values() if isinstance(grid, _Grid)]
    return drifted, Alignment(walk.outputs(), tuple(walk.meetings), round(largest(everywhere), _DIGITS))


def moved_by(site: Site, op: Op) -> _Move | None:
    """How a converted site's blur moves features; None where it does not.

    Args:
        site: as planned.
        op: what is there in the original.
    """
    edit: Any = next((edit for edit in site.edits if edit.blur is not None), None)
    if edit is None or site.action != "blur":
        return None
    blur = edit.blur
    kernel = getattr(edit, "kernel_size", None)
    shift = blur.shift or (0,) * len(blur.stride)
    at = [
        blur.centre[dim] if blur.centre and factor > 1 else shift[dim] + blur.method.offset(factor)
        for dim, factor in enumerate(blur.factor)
    ]
    if blur.method.is_identity:
        at = [0.0] * len(at)
    if site.kind == "maxpool" and kernel is not None:
        at = [one + move for one, move in zip(at, window_moves(op, kernel), strict=True)]
    if site.kind == "avgpool" and not blur.method.is_identity:
        kept = kernel or (1,) * op.rank
        at = [
            one if own > 1 else one - looked for one, own, looked in zip(at, kept, window_centres(op), strict=True)
        ]  # where its own average is kept, only the blur behind that can move anything
    after = site.rule in ("after-activation", "split")
    return _Move(tuple(at), blur.stride if after else op.stride) if any(at) else None


class _Walk:
    """One walk through a graph."""

    def __init__(
        self, seen: Trace, found: Sequence[Found], sites: Sequence[Site], points: Mapping[str, Sequence[Node]]
    ) -> None:
        self.graph = seen.graph
        self.places: dict[Node, _Place] = {}
        self.meetings: list[Meeting] = []
        self.ops: dict[Node, Op] = {op.node: op for one in found for op in one.ops}
        self.moves: dict[Node, _Move] = {}
        ranks = {
            int(name.removesuffix("_with_indices")[-2])
            for node in self.graph.nodes
            if (name := function_name(node)) in PARAMETERS
        }
        self.rank = max(ranks, default=2)
        for site, one in zip(sites, found, strict=False):
            move = moved_by(site, one.op)
            if move is not None:
                after = site.rule in ("after-activation", "split")
                self.moves |= dict.fromkeys(points[site.name] if after else [op.node for op in one.ops], move)

    def run(self) -> None:
        """Find the place of every node."""
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.places[node] = self._of_input(node)
            elif node.op == "call_function":
                place = self._of_call(node)
                shape = node.meta["shape"]
                if isinstance(place, _Grid) and shape is not None:  # whatever an op did that is not known here
                    axes = tuple(None if axis is not None and axis >= len(shape) else axis for axis in place.axes)
                    place = dataclasses.replace(place, axes=axes)
                if node in self.moves and isinstance(place, _Grid):
                    place = _moved(place, self.moves[node])
                self.places[node] = place
            else:
                self.places[node] = "constant"

    def outputs(self) -> tuple[Drift, ...]:
        """The drifts of those outputs that have positions."""
        found = []
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        for node in output.args[0]:  # type: ignore[union-attr]
            place = self.places.get(node)  # type: ignore[arg-type]
            if isinstance(place, _Grid) and _has_positions(node, place):  # type: ignore[arg-type]
                found.append(place.drift)
        return tuple(found)

    def _of_input(self, node: Node) -> _Place:
        shape = node.meta["shape"]
        if len(shape) <= self.rank:  # a time step, a vector, tokens: it has other dimensions than pictures have
            return "unknown"
        return _fresh(shape, self.rank, self.rank)

    def _of_call(self, node: Node) -> _Place:
        name = function_name(node)
        operands = node.all_input_nodes
        if node.target is unseen:
            operands = operands[-1:]
        elif name in PARAMETERS or name in _TRANSPOSED or name in _OF_THE_FIRST or name in _RESIZES:
            operands = operands[:1]
        grids = {one: grid for one in operands if isinstance(grid := self.places[one], _Grid)}
        if not grids:
            nowhere = {self.places[one] for one in operands}
            place: _Place = next((w for w in ("unknown", "everywhere") if w in nowhere), "constant")  # type: ignore[misc]
            source = operands[0].meta["shape"] if operands else None
            if name in PARAMETERS and place == "unknown" and source is not None:
                rank = read_op(node, name).rank
                if any(size > 1 for size in source[-rank:]):  # a spectrogram, say: positions in that are what is known
                    return self._strided(node, name, operands[0], _fresh(source, rank, self.rank))
            return place
        if name in _ELEMENTWISE or name in _JOINS:
            grids = self._met(node, name, grids)
        first, grid = next(iter(grids.items()))
        if len(grids) > 1:
            like = [one for one in grids if one.meta["shape"] == node.meta["shape"]]
            first = like[0] if like else first
            grid = dataclasses.replace(grids[first], drift=_hull([one.drift for one in grids.values()]))
        if name in PARAMETERS:
            return self._strided(node, name, first, grid)
        return self._reached(node, name, first, grid)

    def _met(self, node: Node, name: str, grids: dict[Node, _Grid]) -> dict[Node, _Grid]:
        """Branches meet: note it where they are apart. What is the same at all positions is at none."""
        if name in _ELEMENTWISE:
            spread = {one: grid for one, grid in grids.items() if not _is_flat(one, grid)}
            grids = spread or grids
        drifts = list(dict.fromkeys(grid.drift for grid in grids.values()))
        if len(drifts) > 1:
            call = node.meta.get("call")
            path = (call.path if call else "") or ""
            count = node.meta["key"][-1] if "key" in node.meta else 1
            meeting = Meeting(f"{path}:{name}" + (f"#{count}" if count > 1 else ""), tuple(sorted(drifts)))
            if meeting not in self.meetings:
                self.meetings.append(meeting)
        return grids

    def _strided(self, node: Node, name: str, source: Node, grid: _Grid) -> _Place:
        """A convolution or pool."""
        op = read_op(node, name)
        shape = source.meta["shape"]
        if op.kind != "conv" and _covers(op):
            return "everywhere"
        grid = _regained(grid, shape, op.rank)
        return _at_the_end(_scaled(grid, op.stride), node, op.rank)

    def _reached(self, node: Node, name: str, source: Node, grid: _Grid) -> _Place:
        """Any other op on one grid."""
        before, after = source.meta["shape"], node.meta["shape"]
        if after is None:  # several outputs
            return grid
        if before is None:  # one of them
            return dataclasses.replace(grid, axes=_axes_of_part(source, after, grid.axes))
        if name in _TRANSPOSED:
            rank = _TRANSPOSED[name]
            stride = given_per_dim(_argument(node, 3, "stride", 1), rank)
            grid = _scaled(_regained(grid, before, rank), tuple(1 / s for s in stride))
            return _at_the_end(grid, node, rank)
        if name in _RESIZES:
            rank = min(max(len(before) - 2, 1), self.rank)
            ends = list(zip(before[-rank:], after[-rank:], strict=True))
            if name.startswith("adaptive") and all(m == 1 for _, m in ends) and any(n > 1 for n, _ in ends):
                return "everywhere"
            grid = _scaled(_regained(grid, before, rank), tuple(n / max(m, 1) for n, m in ends))
            return _at_the_end(grid, node, rank)
        if name in _REDUCTIONS:
            return _reduced(node, before, grid)
        if name == "getitem":
            return self._item(node, before, grid)
        return dataclasses.replace(grid, axes=_axes_after(node, name, before, after, grid))

    def _item(self, node: Node, before: Sequence[int], grid: _Grid) -> _Place:
        """An index or slice: a step of s puts samples s times as far apart."""
        steps = dict(sliced(node)[0])
        op = self.ops.get(node)
        axes = grid.axes
        if any(axis is None for axis in axes) and op is not None and len(op.dims) == len(axes):
            axes = op.dims
        step = tuple(s * steps.get(axis, 1) if axis is not None else s for s, axis in zip(grid.step, axes, strict=True))
        same = len(node.meta["shape"]) == len(before)
        return dataclasses.replace(grid, step=step, axes=axes if same else (None,) * len(axes))


# --- grids


def _fresh(shape: Sequence[int], rank: int, of: int) -> _Grid:
    """A grid that begins here: `rank` last dimensions of a tensor, of the `of` that the model has."""
    lead = of - rank
    sizes = (*(1 for _ in range(lead)), *shape[-rank:])
    axes: tuple[int | None, ...] = (*(None for _ in range(lead)), *range(len(shape) - rank, len(shape)))
    return _Grid(sizes, (1.0,) * of, ((0.0, 0.0),) * of, axes)


def _moved(grid: _Grid, move: _Move) -> _Grid:
    """The grid behind a blur, as that of the original's op is `grid`."""
    lead = len(grid.step) - len(move.samples)
    drift = list(grid.drift)
    for dim, (samples, stride) in enumerate(zip(move.samples, move.stride, strict=True), start=lead):
        pixels = samples * grid.step[dim] / stride
        low, high = drift[dim]
        drift[dim] = (round(low + pixels, _DIGITS), round(high + pixels, _DIGITS))
    return dataclasses.replace(grid, drift=tuple(drift))


def _hull(drifts: Sequence[Drift]) -> Drift:
    """From the least to the most of several."""
    dimensions = zip(*drifts, strict=True)
    return tuple((min(low for low, _ in one), max(high for _, high in one)) for one in dimensions)


def _scaled(grid: _Grid, factors: Sequence[float]) -> _Grid:
    """Other distances between the samples of the last dimensions."""
    lead = len(grid.step) - len(factors)
    step = tuple(s * factors[dim - lead] if dim >= lead else s for dim, s in enumerate(grid.step))
    return dataclasses.replace(grid, step=step)


def _regained(grid: _Grid, shape: Sequence[int], rank: int) -> _Grid:
    """The grid of a tensor whose last dimensions are spatial for sure.

    Where it was reshaped on the way, patches may have been merged (by a view that no stride tells of): then the
    distances are those that the sizes tell.
    """
    lead = len(grid.step) - rank
    step = list(grid.step)
    for dim in range(max(lead, 0), len(step)):
        if grid.axes[dim] is None:
            size = max(shape[len(shape) - len(step) + dim], 1)
            if not 0.75 <= step[dim] * size / max(grid.sizes[dim], 1) <= 1.34:
                told = grid.sizes[dim] / size
                step[dim] = float(round(told)) if told >= 1 else told
    return dataclasses.replace(grid, step=tuple(step))


def _at_the_end(grid: _Grid, node: Node, rank: int) -> _Grid:
    """The grid of an op whose result has its spatial dimensions last."""
    shape = node.meta["shape"]
    if shape is None:  # its values, and something else
        shape = next((user.meta["shape"] for user in node.users if user.meta["shape"] is not None), None)
    lead = len(grid.axes) - rank
    ends: list[int | None] = [None] * rank if shape is None else list(range(len(shape) - rank, len(shape)))
    axes = (
        *(
            axis if shape is not None and axis is not None and axis < len(shape) - rank else None
            for axis in grid.axes[:lead]
        ),
        *ends,
    )
    return dataclasses.replace(grid, axes=axes)


def _covers(op: Op) -> bool:
    space = op.input_shape[-op.rank :]
    return all(k >= n for k, n in zip(op.kernel_size, space, strict=True)) and any(n > 1 for n in space)


def _is_flat(node: Node, grid: _Grid) -> bool:
    """Whether a tensor is the same at all positions: of size 1 in every spatial dimension, of more than one pixel."""
    shape = node.meta["shape"]
    if shape is None or all(step >= size for step, size in zip(grid.step, grid.sizes, strict=True)):
        return False
    if None in grid.axes:
        return all(size == 1 for size in shape[-len(grid.axes) :])
    return all(shape[axis] == 1 for axis in grid.axes)  # type: ignore[index]


def _has_positions(node: Node, grid: _Grid) -> bool:
    """Whether an output's entries belong to places of the input: not scores of classes, nor features of the whole."""
    shape = node.meta["shape"]
    if shape is None or _is_flat(node, grid):
        return False
    if len(shape) > 2:
        return any(size > 1 for size in shape[1:-1]) or shape[-1] > 1
    return len(grid.axes) == 1 and grid.axes[0] is not None  # a signal without channels


def _reduced(node: Node, before: Sequence[int], grid: _Grid) -> _Place:
    """A mean, sum or maximum over some dimensions."""
    dims = _argument(node, 1, "dim", _argument(node, 1, "axis", None))
    if dims is None:
        every = not any(isinstance(one, Node) for one in node.args[1:])  # torch.max of two tensors is elementwise
        return "everywhere" if every else grid
    dims = dims if isinstance(dims, tuple | list) else (dims,)
    if not all(isinstance(dim, int) for dim in dims):
        return grid
    gone = {dim % len(before) for dim in dims}
    if all(axis in gone for axis in grid.axes):
        return "everywhere"
    after = node.meta["shape"]
    if len(after) == len(before):
        return dataclasses.replace(grid, axes=tuple(None if axis in gone else axis for axis in grid.axes))
    kept = [dim for dim in range(len(before)) if dim not in gone]
    axes = tuple(kept.index(axis) if axis in kept else None for axis in grid.axes)  # type: ignore[arg-type]
    return dataclasses.replace(grid, axes=axes)


def _axes_after(
    node: Node, name: str, before: Sequence[int], after: Sequence[int], grid: _Grid
) -> tuple[int | None, ...]:
    """Which dimensions of an op's result are spatial, where the op gives its operand another shape."""
    axes, rank = grid.axes, len(before)
    order = _order(node, name, rank)
    if order is not None:
        return tuple(None if axis is None else order.index(axis) for axis in axes)
    if name == "unsqueeze":
        at = _argument(node, 1, "dim", 0) % (rank + 1)
        return tuple(axis if axis is None or axis < at else axis + 1 for axis in axes)
    if len(before) == len(after) and all(
        axis is None or before[axis] == after[axis] or name not in ("view", "reshape") for axis in axes
    ):
        return axes
    if math.prod(before) == math.prod(after):
        return _reshaped(axes, before, after)
    if name == "expand" and len(after) > rank:
        return tuple(None if axis is None else axis + len(after) - rank for axis in axes)
    return (None,) * len(axes)


def _axes_of_part(several: Node, after: Sequence[int], axes: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """Which dimensions of one of an op's several outputs are spatial, where `axes` are those of what it read."""
    before = several.all_input_nodes[0].meta["shape"] if several.all_input_nodes else None
    if before is None:
        return (None,) * len(axes)
    if len(before) == len(after):  # chunk, split, a pool's values
        return axes
    if function_name(several) == "unbind":
        gone = _argument(several, 1, "dim", 0) % len(before)
        return tuple(None if axis is None or axis == gone else axis - (axis > gone) for axis in axes)
    return (None,) * len(axes)


def _order(node: Node, name: str, rank: int) -> list[int] | None:
    """The order in which an op that permutes dimensions has those of its operand; None for any other op."""
    if name == "permute":
        given = _argument(node, 1, "dims", None)
        dims = given if isinstance(given, tuple | list) else node.args[1:]
        whole = [dim % rank for dim in dims if isinstance(dim, int)]
        return whole if len(whole) == rank else None
    if name in ("transpose", "swapaxes", "swapdims"):
        pair = (_argument(node, 1, "dim0", None), _argument(node, 2, "dim1", None))
    elif name == "movedim":
        pair = (_argument(node, 1, "source", None), _argument(node, 2, "destination", None))
    else:
        return None
    if not all(isinstance(dim, int) for dim in pair):
        return None
    first, second = (dim % rank for dim in pair)  # type: ignore[operator]
    order = list(range(rank))
    if name == "movedim":
        order.insert(second, order.pop(first))
    else:
        order[first], order[second] = order[second], order[first]
    return order


def _reshaped(axes: tuple[int | None, ...], before: Sequence[int], after: Sequence[int]) -> tuple[int | None, ...]:
    """Where dimensions are after a view: dimensions whose sizes multiply to the same number belong together."""
    result: list[int | None] = [None] * len(axes)
    for left, right in _blocks(before, after):
        mine = [index for index, axis in enumerate(axes) if axis in left]
        large = [dim for dim in right if after[dim] != 1] or right[:1]
        if len(large) == 1:
            for index in mine:  # one dimension, or several in one (as tokens)
                result[index] = large[0]
        elif len(mine) == len(large):  # tokens that become a map again
            for index, dim in zip(mine, large, strict=True):
                result[index] = dim
    return tuple(result)


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of two shapes that hold the same number of elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [i], [j]
        size, other = before[i], after[j]
        i, j = i + 1, j + 1
        while size != other:
            if size < other and i < len(before):
                size *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                other *= after[j]
                right.append(j)
                j += 1
            else:
                return blocks
        blocks.append((left, right))
    return blocks


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
