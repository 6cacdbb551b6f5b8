"""Find the sites: the places in a traced graph where the network subsamples."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from blurify.graph.patches import Cut, find_cuts, phases
from blurify.graph.recorder import Call, Trace, unseen
from blurify.nn.arguments import CONV_PARAMETERS, POOL_PARAMETERS, given_per_dim

PARAMETERS: dict[str, tuple[str, ...]] = {
    **{f"conv{n}d": CONV_PARAMETERS for n in (1, 2, 3)},
    **{
        f"{pool}_pool{n}d{end}": names
        for pool, names in POOL_PARAMETERS.items()
        for n in (1, 2, 3)
        for end in ("", "_with_indices")
    },
}
"""The positional parameters of the torch functions that can subsample."""

OURS = ("blurify.nn.aps", "blurify.nn.blurpool", "blurify.nn.fourier", "blurify.nn.pools", "blurify.nn.calls")
"""Where the modules are defined that run anti-aliased what they stand for."""


@dataclass(frozen=True)
class Op:
    """One strided call, its arguments by name and one entry a spatial dimension."""

    node: Node
    kind: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    ceil_mode: bool
    returns_indices: bool
    source: Node
    weight: Node | None
    dims: tuple[int, ...] = ()  # of a slice that a blur can replace, of patches: the spatial dimensions of the source
    readers: tuple[Node, ...] = ()  # of patches: all ops that read the source for them

    @property
    def rank(self) -> int:
        """The number of spatial dimensions."""
        return len(self.stride)

    @property
    def call(self) -> Call | None:
        """The innermost module call that it ran in."""
        return self.node.meta["call"]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of what it reads."""
        return self.source.meta["shape"]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of what it returns (of the values, where it returns indices too)."""
        shape = self.node.meta["shape"]
        if self.kind == "patches":  # of the tokens, as if a convolution had made them in the same layout
            given = dict(zip(self.dims, zip(self.kernel_size, self.stride, strict=True), strict=True))
            sizes = [(n - given[d][0]) // given[d][1] + 1 if d in given else n for d, n in enumerate(self.input_shape)]
            sizes[1 if self.dims[0] > 1 else -1] *= math.prod(self.kernel_size)
            return tuple(sizes)
        return shape if shape is not None else next(iter(self.node.users)).meta["shape"]

    @property
    def channels(self) -> int:
        """The number of channels that it reads."""
        if self.kind == "patches":
            return math.prod(n for dim, n in enumerate(self.input_shape) if dim and dim not in self.dims)
        return self.input_shape[-self.rank - 1]

    @property
    def of_floats(self) -> bool:
        """Whether it reads a signal, and not whole numbers or a mask."""
        return self.source.meta["dtype"].is_floating_point or self.source.meta["dtype"].is_complex

    @property
    def macs(self) -> int:
        """Multiply-adds of the op as it is (0 for a pool)."""
        if self.kind != "conv" or self.weight is None:
            return 0
        return math.prod(self.output_shape) * math.prod(self.weight.meta["shape"][1:])


@dataclass(frozen=True)
class Found:
    """One site as found: the same op of one module, once for every call of that module.

    Attributes:
        name: what it is called.
        ops: its runs, in all traces.
        key: what it is, the same in every trace of the model: (module, function, which of these calls in it).
    """

    name: str
    ops: tuple[Op, ...]
    key: tuple[Any, ...] = ()

    @property
    def op(self) -> Op:
        """Its first run, which stands for all of them."""
        return self.ops[0]


def function_name(node: Node) -> str:
    """The bare name of a call's function: 'add' for `torch.add`, `Tensor.__iadd__`, `Tensor.add_` ..."""
    return bare_name(node.target) if node.op == "call_function" else ""


def bare_name(function: Any) -> str:
    """The name of a torch function, whatever form it is called in."""
    name: str = getattr(function, "__name__", "")
    if name == "__get__" and getattr(function, "__self__", None) in (Tensor.real, Tensor.imag):
        return str(function.__self__.__name__)
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name in _IN_PLACE or name in _REFLECTED:
            name = name[1:]
    return name.rstrip("_")


_IN_PLACE = frozenset("iadd isub imul itruediv ipow".split())
_REFLECTED = frozenset("radd rsub rmul rtruediv rpow rdiv".split())


def find_sites(trace: Trace) -> list[Found]:
    """Every strided convolution and pooling op of a trace, in running order, calls of the same module together."""
    groups: dict[tuple[Any, ...], list[Op]] = defaultdict(list)
    for op in _strided_ops(trace):
        groups[key_of(op)].append(op)
    return _named(groups)


def key_of(op: Op) -> tuple[Any, ...]:
    """What an op is, the same in every trace of the model: (module, function, which of these calls in it)."""
    call, name = op.call, function_name(op.node)
    within = [node for node in call.nodes if function_name(node) == name] if call else []
    return _who(call), name, within.index(op.node) if call else id(op.node)


def _who(call: Call | None) -> Any:
    """Which module a call is of, the same in every trace of a model."""
    if call is None:
        return None
    return call.path if call.path is not None else id(call.module)


def _named(groups: dict[tuple[Any, ...], list[Op]]) -> list[Found]:
    taken: dict[str, int] = defaultdict(int)
    found = []
    for key, ops in groups.items():
        function = key[1]
        call = ops[0].call
        name = (call.path if call else "") or ""
        # A convolution with parametrized weights has children, and still is that one site.
        one = call is not None and (
            isinstance(call.module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
            or not (call.has_calls or any(call.module.children()))
        )
        if not one or not name or ops[0].kind in ("slice", "patches"):
            name = f"{name}:{ops[0].kind if ops[0].kind in ('slice', 'patches') else function}"
        taken[name] += 1
        found.append(Found(f"{name}#{taken[name]}" if taken[name] > 1 else name, tuple(ops), key))
    return found


def _strided_ops(trace: Trace) -> Iterator[Op]:
    slices: dict[tuple[Node, tuple[tuple[int, int], ...]], list[tuple[Node, tuple[int, ...]]]] = defaultdict(list)
    for node in trace.graph.nodes:
        if in_our_layers(node):
            continue
        name = function_name(node)
        if name in PARAMETERS:
            op = read_op(node, name)
            if any(stride > 1 for stride in op.stride):
                yield op
        elif name == "getitem" and node.meta["shape"] is not None:
            steps, starts = sliced(node)
            if steps:
                slices[node.args[0], steps].append((node, starts))  # type: ignore[index]
    yield from _subsampling_slices(slices)
    nodes = [node for node in trace.graph.nodes if not in_our_layers(node)]
    for cut in (*find_cuts(nodes, function_name), *phases(slices, function_name)):
        if _from_features(cut.source):
            yield _patches(cut)


def _patches(cut: Cut) -> Op:
    rank = len(cut.dims)
    return Op(
        cut.node, "patches", cut.kernel_size, cut.stride, (0,) * rank, (1,) * rank, 1, False, False, cut.source, None,
        dims=cut.dims, readers=cut.readers,
    )  # fmt: skip


def read_op(node: Node, name: str) -> Op:
    """The arguments of a convolution or pooling call, by name and with one entry a spatial dimension."""
    given: dict[str, Any] = dict(zip(PARAMETERS[name], node.args, strict=False)) | dict(node.kwargs)
    rank = int(name.removesuffix("_with_indices")[-2])
    source, weight = given["input"], given.get("weight")
    if weight is not None:
        kind, kernel = "conv", weight.meta["shape"][2:]
        stride = given.get("stride", 1)
    else:
        kind = name.split("_pool")[0].replace("_", "") + "pool"
        kernel = given["kernel_size"]
        stride = given.get("stride")
        stride = kernel if stride is None or stride == () or stride == [] else stride
        if kind == "fractionalmaxpool":
            stride = _ratio(source, node, rank)
    padding = given.get("padding", 0)
    return Op(
        node=node,
        kind=kind,
        kernel_size=given_per_dim(kernel, rank),
        stride=given_per_dim(stride, rank),
        padding=padding if isinstance(padding, str) else given_per_dim(padding, rank),
        dilation=given_per_dim(given.get("dilation", 1), rank),
        groups=given.get("groups", 1),
        ceil_mode=bool(given.get("ceil_mode", False)),
        returns_indices=bool(given.get("return_indices", False)) or name.endswith("_with_indices"),
        source=source,
        weight=weight,
    )


def _ratio(source: Node, node: Node, rank: int) -> tuple[int, ...]:
    shape = node.meta["shape"] or next(iter(node.users)).meta["shape"]
    return tuple(-(-i // o) for i, o in zip(source.meta["shape"][-rank:], shape[-rank:], strict=True))


def sliced(node: Node) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """The (dimension, step) pairs of a strided slice, and the phase of each (-1: it is also cropped)."""
    source, index = node.args[0], node.args[1]
    if not isinstance(source, Node) or source.meta["shape"] is None:
        return (), ()
    return steps_of(index, len(source.meta["shape"]))


def steps_of(index: Any, rank: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """What `sliced` says of a tensor's index; a tensor in it makes it no slice."""
    items = index if isinstance(index, tuple) else (index,)
    if any(not isinstance(item, slice | int | type(None) | type(Ellipsis)) for item in items):
        return (), ()
    steps, starts, dim = [], [], 0
    for item in items:
        if item is Ellipsis:
            dim = rank - sum(1 for rest in items[items.index(Ellipsis) + 1 :] if rest is not None)
            continue
        if item is None:
            continue
        if isinstance(item, slice) and isinstance(item.step, int) and item.step > 1:
            steps.append((dim, item.step))
            start = item.start or 0
            starts.append(start if item.stop is None and 0 <= start < item.step else -1)
        dim += 1
    return tuple(steps), tuple(starts)


def _subsampling_slices(slices: dict[Any, list[tuple[Node, tuple[int, ...]]]]) -> Iterator[Op]:
    """Strided slices that throw the other phases away. Space-to-depth keeps all of them, and does not alias."""
    for (source, steps), taken in slices.items():
        phases = set(itertools.product(*(range(step) for _, step in steps)))
        shape = source.meta["shape"]
        if {starts for _, starts in taken} >= phases or len(shape) < 3 or not _from_features(source):
            continue
        if all(dim < 2 for dim, _ in steps):  # may as well be channels or tokens
            continue
        rank = len(shape) - 2
        first = 1 if steps[0][0] == 1 and steps[-1][0] < len(shape) - 1 else 2  # channels last, or after the batch
        dims = tuple(range(first, first + rank))
        given = dict(steps)
        stride = tuple(given.get(dim, 1) for dim in dims)
        # A blur takes the place of slices that begin at the first sample of every spatial dimension, where no other
        # phase is used. With fewer dimensions (or in 3-d tensors) these may as well be tokens or heads.
        alone = {starts for _, starts in taken} == {(0,) * len(steps)} and set(given) == set(dims) and len(shape) > 3
        for node, _ in taken:
            yield Op(
                *(node, "slice", (1,) * rank, stride, (0,) * rank, (1,) * rank, 1, False, False, source, None),
                dims=dims if alone else (),
            )


def _from_features(node: Node) -> bool:
    """Whether a tensor comes from the input (tables such as position encodings are not signals)."""
    seen, todo = set(), [node]
    while todo:
        current = todo.pop()
        if current.op == "placeholder":
            return True
        if current not in seen:
            seen.add(current)
            todo.extend(current.all_input_nodes)
    return False


# --- what a site is like


def in_our_layers(node: Node) -> bool:
    """Whether an op belongs to one of blurify's own anti-aliased layers."""
    call = node.meta.get("call")
    return call is not None and any(type(c.module).__module__ in OURS for c in call.stack())


def is_mask(op: Op) -> bool:
    """Whether what an op reads holds no signal: numbers made of whole numbers, comparisons and constants alone.

    An input that holds nothing but zeros and ones, and both, counts as such too.
    """
    seen, todo = set(), [op.source]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        dtype = node.meta.get("dtype")
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            continue
        if node.op == "placeholder":
            if not node.meta.get("zeros_and_ones"):
                return False
        elif node.meta.get("origin") in ("parameter", "buffer", "constant", "unknown") or node.target is unseen:
            return False
        elif function_name(node) in _LIKE:
            todo.extend(node.all_input_nodes[:1])
        elif function_name(node) not in _FILLED:
            todo.extend(node.all_input_nodes)
    return True


# What takes only the dtype, shape or device of its second tensor; what takes those of its first, and no values.
_LIKE = frozenset("type_as to expand_as view_as reshape_as".split())
_FILLED = frozenset("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty".split())


def scripted_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Scripted parts that subsample or upsample: tracing cannot look into them, surgery cannot change them."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and not any(
            name.startswith(f"{outer}.") for outer, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)
        ):
            text = str(getattr(module, "inlined_graph", ""))
            if any(word in text for word in ("conv", "pool", "upsample", "interpolate", "shuffle")):
                yield name, module
