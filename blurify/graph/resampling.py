"""Find what else resamples: upsampling of every kind, and subsampling without a strided convolution, pool or slice.

Each kind of call that is known to resample is read by its name and arguments. What is written by hand out of views
(depth-to-space, nearest upsampling by `expand`, zeros put in between) is seen by its net effect. And any call that is
not known at all, but whose spatial size is another than that of all that it reads, is listed as 'resample': nothing is
passed over because its name is new.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from blurify.graph.constants import constant_value, is_constant
from blurify.graph.filters import MOST_ALIASED, aliased_share, is_low_pass, low_passed, response
from blurify.graph.patches import find_cuts, windows_of
from blurify.graph.recorder import Trace, unseen
from blurify.graph.sites import (
    PARAMETERS,
    Found,
    Op,
    function_name,
    in_our_layers,
    key_of,
    read_op,
    steps_of,
)
from blurify.nn.arguments import given_per_dim
from blurify.spec.kinds import UPSAMPLING

_LEAST = 1.5  # times: a call that nobody knows and that crops or pads a little does not resample


@dataclass(frozen=True)
class Resampler(Op):
    """One call that resamples; `stride` is the factor of each spatial dimension, 1 where it stays.

    Attributes:
        rule: why it is never filtered (a key of `planning.reasons`), '' where it can be.
        detail: what it does, in words.
    """

    rule: str = ""
    detail: str = ""

    @property
    def is_upsampling(self) -> bool:
        """Whether it makes the signal larger."""
        return self.kind in UPSAMPLING


def find_resampling(trace: Trace) -> list[Found]:
    """Every call of a trace that resamples and is no site of `find_sites`, in running order, one entry a module."""
    groups: dict[tuple[Any, ...], list[Op]] = defaultdict(list)
    for op in _resamplers(trace.graph):
        if any(isinstance(call.module, torch.jit.ScriptModule) for call in (op.call.stack() if op.call else ())):
            continue  # listed as a whole
        groups[key_of(op)].append(op)
    taken: dict[str, int] = defaultdict(int)
    found = []
    for key, ops in groups.items():
        call, function = ops[0].call, str(key[1]).partition(".")[0]
        path = (call.path if call else "") or ""
        # A module of a library that is nothing but this call has its own name; within a forward there may be others.
        own = call is not None and not call.has_calls and type(call.module).__module__.startswith(_LAYERS)
        name = path if own and path else f"{path}:{function}"
        taken[name] += 1
        found.append(Found(f"{name}#{taken[name]}" if taken[name] > 1 else name, tuple(ops), key))
    return found


_LAYERS = ("torch.nn.modules.", "torchvision.ops.")


def is_smoothed(site: Found, traces: Sequence[Trace], model: nn.Module) -> bool:
    """Whether a low-pass filter is at work already: behind what upsamples, before what subsamples, or in it."""
    op = site.op
    assert isinstance(op, Resampler)
    if not op.is_upsampling:
        by_graph = {seen.graph: seen for seen in traces}
        return any(low_passed(other, by_graph[other.node.graph], model) for other in site.ops)
    if op.kind == "convtranspose" and op.weight is not None and is_constant(op.weight, model):
        kernel = constant_value(op.weight, model)
        if op.groups == op.input_shape[-op.rank - 1] and (
            kernel is None or aliased_share(response(kernel), op.stride) < MOST_ALIASED
        ):
            return True
    return all(_is_read_by_filter(other.node, op.stride, model) for other in site.ops)


def _is_read_by_filter(node: Node, stride: tuple[int, ...], model: nn.Module) -> bool:
    """Whether all that is made of an upsampled signal first goes through a fixed filter or one of our own layers."""
    if not node.users:
        return False
    for user in node.users:
        name = function_name(user)
        if in_our_layers(user):
            continue
        if name in PARAMETERS and name.startswith("conv"):
            filtering = read_op(user, name)
            # A separable filter comes in several steps, each along one dimension.
            along = tuple(s if k > 1 else 1 for s, k in zip(stride, filtering.kernel_size, strict=False))
            if filtering.source is not node or max(along) == 1 or not is_low_pass(filtering, along, model):
                return False
        elif name not in _MOVES or not _is_read_by_filter(user, stride, model):
            return False
    return True


# --- calls that are known


def _resamplers(graph: Graph) -> Iterator[Resampler]:
    derived = _derived(graph)
    assigned = _assignments(graph, derived)
    names: dict[Any, str] = {}  # most nodes are of a few functions, and few of them resample
    for node in graph.nodes:
        if node.op != "call_function" or node not in derived:
            continue
        if node.target not in names:
            names[node.target] = function_name(node).partition(".")[0]
        name = names[node.target]
        reader = _READERS.get(name)
        if reader is None and name != "setitem" and (name in _NEVER or _keeps_size(node)):
            continue
        if in_our_layers(node):
            continue
        if name.lstrip("_").startswith("upsample_"):
            op = _upsample_kernel(node, name)
        elif reader is not None:
            try:
                op = reader(node)
            except (KeyError, IndexError, TypeError, ValueError):  # called in a form of its own
                op = _unknown(node, derived)
        elif name in _MERGES:
            op = _by_hand(node)
        elif name == "setitem":
            op = assigned.get(node)
        elif name in _INDEXES:
            op = _indexed(node, name)
        else:
            op = _unknown(node, derived)
        if op is not None and op.source in derived:
            yield op


def _keeps_size(node: Node) -> bool:
    """Whether a call's output has all sizes of its first operand but the channels: most calls, most quickly seen."""
    if not node.args or not isinstance(node.args[0], Node):
        return False
    before, after = _shape(node.args[0]), _shape(node)
    return bool(before and after) and len(before) == len(after) and before[2:] == after[2:] and before[0] == after[0]


def _derived(graph: Graph) -> set[Node]:
    """The nodes that come from the input: a resized table (position encodings) is no signal."""
    found: set[Node] = set()
    for node in graph.nodes:
        name = function_name(node)
        # 'empty' is memory that somebody is about to fill, perhaps by code that does not show.
        first = node.op == "placeholder" or name == "empty"
        if first or (name not in _ONLY_LIKE and any(arg in found for arg in node.all_input_nodes)):
            found.add(node)
            # What is written into a view is in the whole tensor afterwards.
            target = node.args[0] if node.args and _writes(node) else None
            while isinstance(target, Node) and target not in found:
                found.add(target)
                target = target.args[0] if target.args and function_name(target) in _VIEWS else None
    return found


_VIEWS = frozenset("getitem narrow select view reshape transpose permute unsqueeze squeeze flatten".split())


_IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")


def _writes(node: Node) -> bool:
    """Whether a call writes to its first argument."""
    name: str = getattr(node.target, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE


_ONLY_LIKE = frozenset("zeros_like ones_like full_like new_zeros new_ones new_full".split())


def _given(node: Node, *names: str) -> dict[str, Any]:
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _input(node: Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _shape(node: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] | None = node.meta.get("shape") if isinstance(node, Node) else None
    return shape or ()


def _out_shape(node: Node) -> tuple[int, ...]:
    """The shape of what a call returns; of the first of several."""
    if _shape(node):
        return _shape(node)
    return next((_shape(user) for user in node.users if function_name(user) == "_getitem" and user.args[1] == 0), ())


def _made(
    node: Node, kind: str, source: Any, stride: Sequence[int], kernel: Sequence[int] = (), **more: Any
) -> Resampler:
    rank = len(stride)
    rest: dict[str, Any] = {"weight": None, "groups": 1, "returns_indices": not _shape(node), **more}
    return Resampler(
        node=node, kind=kind, kernel_size=tuple(kernel) or (1,) * rank, stride=tuple(stride), padding=(0,) * rank,
        dilation=(1,) * rank, ceil_mode=False, source=source, **rest,
    )  # fmt: skip


def _factors(source: Any, node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], bool, bool] | None:
    """By how much each spatial dimension grows, by how much it shrinks (rounded), and whether any does either."""
    before, after = _shape(source)[-rank:], _out_shape(node)[-rank:]
    if len(before) != rank or len(after) != rank or not all(before) or not all(after):
        return None
    up = tuple(max(int(a / b + 0.5), 1) for b, a in zip(before, after, strict=True))
    down = tuple(max(int(b / a + 0.5), 1) for b, a in zip(before, after, strict=True))
    grows = any(a > b for b, a in zip(before, after, strict=True))
    shrinks = any(a < b for b, a in zip(before, after, strict=True))
    return up, down, grows, shrinks


def _spreads(before: Sequence[int], factors: Sequence[int]) -> bool:
    """Whether only dimensions of one sample grow."""
    grown = [n for n, factor in zip(before, factors, strict=True) if factor > 1]
    return bool(grown) and all(n == 1 for n in grown)


def _transposed(node: Node) -> Resampler | None:
    given = _given(node, "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    rank = len(_shape(given["weight"])) - 2
    stride = given_per_dim(given.get("stride", 1), rank)
    if max(stride) == 1:
        return None
    kernel = _shape(given["weight"])[2:]
    return _made(
        node, "convtranspose", given["input"], stride, kernel, weight=given["weight"], groups=given.get("groups", 1)
    )


def _interpolate(node: Node) -> Resampler | None:
    given = _given(
        node, "input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"
    )
    return _resized(node, given["input"], str(given.get("mode", "nearest")), bool(given.get("antialias", False)))


def _upsample_kernel(node: Node, name: str) -> Resampler | None:
    """Torch's own kernels, as exported programs and `torch._C._nn` call them."""
    match = re.fullmatch(r"_?upsample_(\w+?)([123])d(_aa)?", name)
    if match is None or not node.args:
        return None
    return _resized(node, node.args[0], match[1].replace("_", "-"), match[3] is not None)


def _resized(node: Node, source: Any, mode: str, antialias: bool) -> Resampler | None:
    rank = len(_shape(source)) - 2
    found = _factors(source, node, rank) if rank >= 1 else None
    if found is None or not (found[2] or found[3]):
        return None
    up, down, grows, _ = found
    if grows:
        if _spreads(_shape(source)[-rank:], up):
            rule, detail = "spread", ""
        elif not mode.startswith("nearest") and mode != "area":
            rule, detail = "interpolates", mode
        else:
            rule, detail = ("", f"{mode} upsampling") if max(up) > 1 else ("little", "")
        return _made(node, "upsample", source, up, rule=rule, detail=detail)
    rule = "antialiased" if antialias else "little" if max(down) == 1 else ""
    return _made(node, "downsample", source, down, rule=rule, detail=f"{mode} resizing without antialias")


def _pixel_shuffle(node: Node) -> Resampler | None:
    rank = len(_shape(node)) - 2 if len(_shape(node)) == 4 else 2
    found = _factors(_input(node), node, rank)
    return _made(node, "pixelshuffle", _input(node), found[0]) if found and found[2] else None


def _pixel_unshuffle(node: Node) -> Resampler | None:
    found = _factors(_input(node), node, 2)
    words = "moves each phase to channels of its own"
    return _made(node, "pixelunshuffle", _input(node), found[1], detail=words) if found and found[3] else None


def _adaptive(node: Node) -> Resampler | None:
    name = function_name(node)
    rank = int(re.sub(r"\D", "", name.partition(".")[0])[0])
    source = _input(node)
    found, after = _factors(source, node, rank), _out_shape(node)[-rank:]
    if found is None or not (found[2] or found[3]):
        return None
    if all(size == 1 for size in after):  # a global pool leaves nothing to alias
        return None
    if found[2]:
        rule = "spread" if _spreads(_shape(source)[-rank:], found[0]) else "little" if max(found[0]) == 1 else ""
        return _made(node, "upsample", source, found[0], rule=rule, detail="upsampling by an adaptive pool")
    if "max" in name:
        words = "an adaptive max pool, whose windows differ from place to place"
        return _made(node, "adaptivemaxpool", source, found[1], rule="other-resampling", detail=words)
    rule = "little" if max(found[1]) == 1 else ""
    return _made(node, "adaptiveavgpool", source, found[1], rule=rule, detail="averages its windows, a weak filter")


def _deformable(node: Node) -> Resampler | None:
    given = _given(node, "input", "weight", "offset", "mask", "bias", "stride_h", "stride_w")
    stride = (int(given.get("stride_h", 1)), int(given.get("stride_w", 1)))
    if max(stride) == 1:
        return None
    kernel, words = _shape(given["weight"])[2:], "a deformable convolution with a stride"
    return _made(node, "deformconv", given["input"], stride, kernel, weight=given["weight"], detail=words)


def _unfold(node: Node) -> Resampler | None:
    """Windows whose samples stay apart: of attention, of a median, frames of a signal. Others are patches."""
    source = _input(node)
    shape, windows = _shape(source), windows_of(node, function_name)
    if windows is None or len(shape) < 3 or 0 in windows[0] or next(find_cuts([node], function_name), None):
        return None
    dims, sizes, steps = windows
    if max(steps) == 1:
        return None
    rank = len(shape) - 2
    first = 1 if dims[0] == 1 else 2  # channels last, or after the batch
    given = dict(zip(dims, zip(sizes, steps, strict=True), strict=True))
    kernel, stride = zip(*(given.get(dim, (1, 1)) for dim in range(first, first + rank)), strict=True)
    words = "cuts windows, whose samples stay apart"
    return _made(node, "unfold", source, stride, kernel, rule="other-resampling", detail=words)


def _listed(kind: str, words: str) -> Callable[[Node], Resampler | None]:
    """A reader of what is only listed: where it resamples is data, or not a matter of a low-pass."""

    def read(node: Node) -> Resampler | None:
        source = _input(node)
        rank = len(_shape(source)) - 2
        found = _factors(source, node, rank) if rank >= 1 else None
        if kind in ("gridsample", "maxunpool") and (found is None or not (found[2] or found[3])):
            return None
        if kind == "gridsample" and found is not None and found[2]:
            return _made(node, "upsample", source, found[0], rule="interpolates", detail="grid_sample")
        if kind in ("stft", "istft"):
            given = _given(node, "input", "n_fft", "hop_length")
            step = int(given.get("hop_length") or given["n_fft"] // 4)
            return None if step <= 1 else _made(node, kind, source, (step,), rule="other-resampling", detail=words)
        if found is None:
            rank = max(rank, 1)
            return _made(node, kind, source, (1,) * rank, rule="other-resampling", detail=words)
        stride = found[0] if kind in UPSAMPLING else found[1]
        return _made(node, kind, source, stride, rule="other-resampling", detail=words)

    return read


def _fold(node: Node) -> Resampler | None:
    given = _given(node, "input", "output_size", "kernel_size", "dilation", "padding", "stride")
    stride = given_per_dim(given.get("stride", 1), 2)
    if max(stride) == 1:
        return None
    kernel = given_per_dim(given["kernel_size"], 2)
    words = "adds up windows, each of which was computed"
    return _made(node, "fold", given["input"], stride, kernel, rule="other-resampling", detail=words)


def _repeated(node: Node) -> Resampler | None:
    """`repeat_interleave` and `kron` with ones: every sample several times."""
    source = _input(node)
    before, after = _shape(source), _shape(node)
    if len(before) != len(after) or len(before) < 3 or not all(before):
        return None
    rank = len(before) - 2
    stride = tuple(a // b for b, a in zip(before[2:], after[2:], strict=True))
    if before[:2] != after[:2] or max(stride) == 1 or any(a % b for b, a in zip(before, after, strict=True)):
        return None
    rule = "spread" if _spreads(before[2:], stride) else ""
    if len(before) == 3 and function_name(node) != "repeat_interleave":
        return None
    return _made(node, "repeat", source, (*stride,)[:rank], rule=rule, detail="repeats every sample")


_READERS: Mapping[str, Callable[[Node], Resampler | None]] = {
    "interpolate": _interpolate,
    **{f"conv_transpose{n}d": _transposed for n in (1, 2, 3)},
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    **{
        f"{start}adaptive_{pool}_pool{n}d{end}": _adaptive
        for start in ("", "_")
        for pool in ("avg", "max")
        for n in (1, 2, 3)
        for end in ("", "_with_indices")
    },
    "deform_conv2d": _deformable,
    "unfold": _unfold,
    "im2col": _unfold,
    "fold": _fold,
    "col2im": _fold,
    "repeat_interleave": _repeated,
    "kron": _repeated,
    **{
        f"max_unpool{n}d": _listed("maxunpool", "puts values back where the pool found them, as its indices say")
        for n in (1, 2, 3)
    },
    **{
        name: _listed("gridsample", "samples at places that are computed, which no fixed filter fits")
        for name in ("grid_sample", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
    },
    **{
        name: _listed("roi", "samples boxes of any size, which no fixed filter fits")
        for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
    },
    "stft": _listed("stft", "cuts frames, each under a window: choose a hop of at most half the window"),
    "istft": _listed("istft", "adds up frames, each under a window"),
}


# --- written by hand


_MERGES = frozenset("view reshape flatten reshape_as view_as _unsafe_view".split())
_MOVES = _MERGES | frozenset(
    "unflatten permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze expand expand_as broadcast_to "
    "repeat tile pad constant_pad_nd stack contiguous clone getitem mT mH T H t adjoint".split()
)


def _by_hand(node: Node) -> Resampler | None:
    """Views that come back to the rank that they began with, with more or fewer samples in a spatial dimension.

    Depth-to-space, space-to-depth, `x[..., None].expand(...).reshape(...)`, zeros padded in between: all of them part
    or add a dimension, and merge it with a spatial one in the end.
    """
    after = _shape(node)
    rank = len(after)
    if rank < 3:
        return None
    source, widest, grew, mixed = node.args[0] if node.args else None, 0, False, False
    while isinstance(source, Node):
        shape = _shape(source)
        if len(shape) == rank and widest > rank:
            break
        widest = max(widest, len(shape))
        name = function_name(source)
        if name not in _MOVES or len(shape) < rank:
            return None
        if name == "getitem" and not _is_plain_index(source.args[1]):
            return None
        grew = grew or name in ("pad", "constant_pad_nd")
        first = source.args[0] if source.args else None
        if name == "stack" and isinstance(first, tuple | list):
            others = [other for other in first if other is not first[0]]
            zeros = [function_name(other) in ("zeros_like", "new_zeros", "zeros") for other in others]
            grew, mixed = grew or any(zeros), mixed or not all(zeros)
            first = first[0]
        source = first
    if not isinstance(source, Node) or (mixed and rank < 4):
        return None
    before = _shape(source)
    if before[0] != after[0] or before == after or not all(before) or not all(after):
        return None
    if mixed:  # several signals in turn
        return _other(node, "resample", source, before, after, "interleaves signals by hand")
    return _net_effect(node, source, before, after, zeros=grew)


def _is_plain_index(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is Ellipsis or item == slice(None) for item in items)


def _net_effect(
    node: Node, source: Node, before: tuple[int, ...], after: tuple[int, ...], *, zeros: bool
) -> Resampler | None:
    ups = {d: a // b for d, (b, a) in enumerate(zip(before, after, strict=True)) if a > b and a % b == 0}
    downs = {d: b // a for d, (b, a) in enumerate(zip(before, after, strict=True)) if a < b and b % a == 0}
    changed = {d for d, (b, a) in enumerate(zip(before, after, strict=True)) if a != b}
    if changed != {*ups, *downs}:
        return None
    for kept, space in ((1, slice(2, None)), (len(before) - 1, slice(1, -1))):
        if before[kept] == after[kept] and math.prod(before[space]) == math.prod(after[space]):
            return None  # positions in another order, in patches for example
    rank = len(before) - 2
    words = "written by hand with views"
    if not downs:
        if ups.keys() & {0, 1} or not ups:  # more channels, or channels last: which of them can't be told
            listed = 1 in ups and len(before) > 3 and len(before) - 1 not in ups
            return _other(node, "resample", source, before, after, words) if listed else None
        stride = tuple(ups.get(d + 2, 1) for d in range(rank))
        if zeros:
            return _made(node, "zerostuff", source, stride, rule="other-resampling", detail="puts zeros in between")
        rule = "spread" if _spreads(before[2:], stride) else ""
        return _made(node, "repeat", source, stride, rule=rule, detail="repeats every sample")
    if not ups:
        return None
    times = 1
    for factor in ups.values():
        times *= factor
    for factor in downs.values():
        times //= factor
    if times != 1 or len(before) == 3:  # along one dimension it may as well be tokens and channels
        return _other(node, "resample", source, before, after, words) if times == 1 else None
    if len(ups) > 1 and set(downs) == {1}:
        return _made(node, "pixelshuffle", source, tuple(ups.get(d + 2, 1) for d in range(rank)), detail=words)
    last = len(before) - 1
    if len(ups) > 1 and set(downs) == {last}:
        stride = tuple(ups.get(d + 1, 1) for d in range(rank))
        return _made(node, "pixelshuffle", source, stride, rule="other-resampling", detail=f"{words}, channels last")
    if next(find_cuts(list(source.users), function_name), None) is not None:
        return None  # samples that become channels: patches
    return _other(node, "resample", source, before, after, words)


def _other(node: Node, kind: str, source: Any, before: Sequence[int], after: Sequence[int], words: str) -> Resampler:
    """What changes sizes in a way of which no more is known: the factors are those of the sizes, up or down."""
    sizes = zip(before[2:], after[2:], strict=True)
    stride = tuple(max(int(max(a / b, b / a) + 0.5), 1) if a and b else 1 for b, a in sizes)
    return _made(node, kind, source, stride or (1,), rule="other-resampling", detail=words)


def _assignments(graph: Graph, derived: set[Node]) -> dict[Node, Resampler]:
    """Signals written into every so many samples of a larger tensor: `out[:, :, ::2, ::2] = x`."""
    written: dict[Any, list[tuple[Node, tuple[int, ...], Node]]] = defaultdict(list)
    roots: dict[Node, Node] = {}
    for node in graph.nodes:
        if function_name(node) != "setitem" or len(node.args) < 3:
            continue
        target, index, value = node.args[:3]
        shape = _shape(target)
        if not isinstance(target, Node) or not isinstance(value, Node) or value not in derived or len(shape) < 3:
            continue
        root = roots[node] = roots.get(target, target)
        steps, starts = steps_of(index, len(shape))
        if steps and any(dim > 0 for dim, _ in steps):
            written[root, steps].append((node, starts, value))
    found = {}
    for (root, steps), taken in written.items():
        shape = _shape(root)
        every = set(itertools.product(*(range(step) for _, step in steps)))
        all_phases = {starts for _, starts, _ in taken} >= every
        rank, given = len(shape) - 2, dict(steps)
        first = 2 if max(given) == len(shape) - 1 or 1 not in given else 1
        stride = tuple(given.get(dim, 1) for dim in range(first, first + rank))
        words = "writes each phase in its turn" if all_phases else "puts samples into a larger map"
        kind = "pixelshuffle" if all_phases else "zerostuff"
        node, _, value = taken[-1] if all_phases else taken[0]
        found[node] = _made(node, kind, value, stride, rule="other-resampling", detail=words)
    return found


_INDEXES = frozenset("getitem index_select gather take_along_dim index".split())


def _indexed(node: Node, name: str) -> Resampler | None:
    """Samples chosen by computed indices along the dimensions of an image or a video."""
    source = _input(node)
    before, after = _shape(source), _shape(node)
    if len(before) != len(after) or len(before) < 4 or before[0] != after[0] or not all((*before, *after)):
        return None
    if name == "getitem":
        index = node.args[1]
        items = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(item, Node) for item in items):
            return None
    if not _changes(before[2:], after[2:]):
        return None
    return _other(node, "resample", source, before, after, "picks samples by an index")


def _changes(before: Sequence[int], after: Sequence[int]) -> bool:
    return any(max(a / b, b / a) >= _LEAST for b, a in zip(before, after, strict=True) if a and b)


# --- calls that are not known

_SHAPES = (
    _MOVES
    | _ONLY_LIKE
    | frozenset(
        "empty _getitem cat concat concatenate hstack vstack dstack chunk split split_with_sizes tensor_split "
        "unbind narrow select roll flip rot90 matmul bmm mm mv dot addmm baddbmm addbmm linear bilinear einsum "
        "tensordot outer cdist scaled_dot_product_attention multi_head_attention_forward lstm gru rnn_tanh "
        "rnn_relu embedding embedding_bag mean sum max min amax amin aminmax var std var_mean std_mean norm "
        "vector_norm logsumexp argmax argmin any all prod median mode quantile count_nonzero topk sort argsort "
        "cumsum nonzero masked_select take unique index_put scatter index_add scatter_add diagonal diag diag_embed "
        "tril triu meshgrid one_hot nms batched_nms affine_grid cosine_similarity pairwise_distance rfft irfft "
        "rfft2 irfft2 rfftn irfftn fft ifft fft2 ifft2 fftn ifftn view_as_real view_as_complex as_strided "
        "broadcast_tensors cartesian_prod block_diag searchsorted bucketize histc bincount pad_sequence "
        "pack_padded_sequence ctc_loss cross_entropy".split()
    )
)
"""Calls whose sizes are a matter of layout, of a sum over positions, or of a product with a matrix."""


_NEVER = frozenset(PARAMETERS) | (_SHAPES - _MERGES - _INDEXES)


def _unknown(node: Node, derived: set[Node]) -> Resampler | None:
    """A call of no known name whose output is larger or smaller than all signals of its rank that it reads."""
    after = _shape(node)
    if len(after) < 3 or 0 in after:
        return None
    signals = [arg for arg in node.all_input_nodes if arg in derived and len(_shape(arg)) == len(after)]
    if node.target is unseen:  # of all that may be in it, what came last is most likely what it read
        signals = [arg for arg in reversed(signals) if arg.meta.get("dtype") is not None]
    if not signals:
        return None
    sizes = [_shape(arg) for arg in signals]
    if after[0] not in {shape[0] for shape in sizes}:
        return None
    if all(after[d] in {shape[d] for shape in sizes} for d in range(2, len(after))):
        return None
    before = sizes[0]
    if not _changes(before[2:], after[2:]):
        return None
    hidden = node.target is unseen or function_name(node) in ("new_empty", "empty_like")
    if hidden and any(function_name(user) in ("setitem", "copy") for user in node.users):
        return None  # filled in the open
    words = "code that can't be looked into" if hidden else f"{function_name(node)}, a call not known"
    return _other(node, "resample", signals[0], before, after, words)
