"""What a plan costs in bytes, before it is carried out: what a forward writes, and what it keeps for its backward.

The original is counted call by call on a copy without data (`graph.memory`). The plan's edits are then entered into
these books one site after the other: storages between a dense op and its blur point grow, calls that are replaced drop
out, and each blur is asked for its own costs by running it alone. So a site's costs are what it adds to those before
it, and together they are the model's.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from blurify.graph.memory import LayerBytes, Memory, Place, Stored, bytes_of_layer, memory_of
from blurify.graph.recorder import Call, Frame, Key
from blurify.graph.resampling import Resampler
from blurify.graph.sites import Op
from blurify.nn.aps import ApsPool
from blurify.nn.blurpool import blurpool, clamp_of
from blurify.nn.build import build
from blurify.nn.joining import may_stay, runs_in_pairs
from blurify.nn.pools import avg_blur_pool, max_blur_pool
from blurify.nn.rewriting import takes_one
from blurify.nn.source import expression_at, function_tree
from blurify.planning.placement import conv_size
from blurify.planning.planner import Decided
from blurify.spec.edits import Blur, BlurPooling, Edit, InsertBlur, Rewrite
from blurify.spec.plan import Plan, Site

_AFTER = ("after-activation", "split")
_POOLS = ("maxpool", "avgpool", "slice")


def with_memory(model: nn.Module, decided: Decided) -> Plan:
    """The plan with the bytes that it costs (`Plan.written`, `Plan.kept` and those of its sites).

    Args:
        model: the original, on which it was decided.
        decided: the plan.
    """
    try:
        return _priced(model, decided)
    except Exception:  # a plan is worth having without its costs, which then are None
        return decided.plan


def _priced(model: nn.Module, decided: Decided) -> Plan:
    seen = decided.traces[0]
    inference = memory_of(model, seen.inputs, training=False, kept=False, real=seen.real)
    training = _kept(model, decided)
    books = _Books(inference, training or Memory())
    before = last = books.total()
    sites = []
    for site in decided.plan.sites:
        if site.action == "blur":
            _enter(books, site, decided)
        now = books.total()
        written, kept = now[0] - last[0], now[1] - last[1]
        sites.append(dataclasses.replace(site, extra_written=written, extra_kept=kept if training else None))
        last = now
    return dataclasses.replace(
        decided.plan, sites=tuple(sites), written=before[0], kept=before[1] if training else None
    )


def _kept(model: nn.Module, decided: Decided) -> Memory | None:
    """What a training step keeps; None for a model that has none on these inputs."""
    seen = decided.traces[0]
    for training in (True, False):  # in train mode a batch of one or missing targets may be too little
        try:
            return memory_of(model, seen.inputs, training=training, kept=True, real=seen.real)
        except Exception:
            continue
    return None


class _Books:
    """The storages of a forward in inference and of one in training, which edits are entered into."""

    def __init__(self, inference: Memory, training: Memory) -> None:
        self._both = (inference, training)
        self._made: list[dict[Place | None, list[Stored]]] = [{}, {}]
        for made, memory in zip(self._made, self._both, strict=True):
            for one in memory.stored:
                made.setdefault(one.made_by, []).append(one)
        self._layers: dict[Any, LayerBytes] = {}
        self._dense: set[Key] = set()
        self.blurred: set[Key] = set()
        self.inputs: dict[tuple[Place, str | None], list[Stored | None]] = {}

    def total(self) -> tuple[int, int]:
        """Bytes that are written in inference, and kept in training."""
        return self._both[0].written, self._both[1].kept

    def grow(self, keys: Iterable[Key], before: tuple[int, ...], after: tuple[int, ...]) -> None:
        """What these calls made has other spatial sizes now."""
        old, new = math.prod(before), math.prod(after)
        for key in set(keys) - self._dense:
            self._dense.add(key)
            for made in self._made:
                for one in made.get(key, ()):
                    if one.bytes % old == 0:  # else a statistic or the like
                        one.bytes = one.bytes // old * new

    def drop(self, key: Key) -> None:
        """A call is gone: what it made comes of somewhere else, what it kept is not kept by it."""
        for made in self._made:
            for one in made.get(key, ()):
                one.written = False
        self.let_go(key)

    def let_go(self, place: Place) -> None:
        """A call keeps nothing any more for the backward: the layer behind it does."""
        for memory in self._both:
            for one in memory.stored:
                one.kept_by.discard(place)  # type: ignore[arg-type]

    def layer(self, place: Place, cost: LayerBytes) -> None:
        """A layer reads what came of a place."""
        for memory in self._both:
            memory.stored.append(Stored(cost.written, written=True))
            memory.stored.append(Stored(cost.kept, kept_by={None}))
            if cost.keeps_input and place in memory.values:
                memory.values[place].kept_by.add(None)

    def put_between(
        self, place: Place, readers: Callable[[set[Key | None]], set[Key | None]], cost: LayerBytes, *, all_of_it: bool
    ) -> list[Stored | None]:
        """A layer stands between what came of a place and some of those that kept it, who now keep its output.

        Args:
            place: what the layer reads.
            readers: of the calls that kept it, those that read the layer now.
            cost: of the layer.
            all_of_it: who reads that place later, reads the layer too.

        Returns:
            the storages of its output, in inference and in training.
        """
        self.layer(place, cost)
        made: list[Stored | None] = []
        for memory in self._both:
            after = None
            if place in memory.values:
                before = memory.values[place]
                moved = readers(before.kept_by) - {None}
                before.kept_by -= moved
                after = Stored(cost.output, kept_by=moved | ({None} if cost.keeps_output else set()))
                memory.stored.append(after)
                if all_of_it:
                    memory.values[place] = after
            made.append(after)
        return made

    def read_too(self, place: Place, readers: set[Key], made: list[Stored | None]) -> None:
        """More of those that kept a place read a layer that is there already."""
        for memory, after in zip(self._both, made, strict=True):
            if after is not None:
                before = memory.values[place]
                after.kept_by |= before.kept_by & readers
                before.kept_by -= readers

    def ask(self, key: Any, layer: Callable[[], LayerBytes]) -> LayerBytes:
        """What a layer costs, asked once."""
        if key not in self._layers:
            self._layers[key] = layer()
        return self._layers[key]


def _enter(books: _Books, site: Site, decided: Decided) -> None:
    """Enter a site's edits."""
    edit = next(edit for edit in site.edits if edit.blur is not None)
    assert edit.blur is not None
    points = decided.points.get(site.name, ())
    graph = decided.traces[0].graph
    if site.name not in decided.found:  # a map that is moved back to where its samples were taken
        for point in points:
            if point.graph is graph:
                _after(books, None, point, edit.blur)
        return
    for number, op in enumerate(decided.found[site.name].ops):
        if op.node.graph is not graph:
            continue
        if site.rule in _AFTER:
            _after(books, op, points[number], edit.blur, _joined(edit, decided.plan, points[number], None))
        elif op.kind in _POOLS and not isinstance(op, Resampler):
            if site.blur_paths <= decided.plan.idle_blurs:
                continue
            _pooled(books, op, edit, _joined(edit, decided.plan, op.source, op))
        elif isinstance(op, Resampler) and op.is_upsampling:
            _after(books, None, op.node, edit.blur)
        else:
            _before(books, op, edit.blur, edit.blur_path)


def _after(books: _Books, op: Op | None, point: Node, blur: Blur, joined: Any = None) -> None:
    """The blur of what comes of a point, up to which all is dense from an op on, if there is one.

    Args:
        joined: the activation that runs in one pass with the blur, if it does.
    """
    key, shape = point.meta["key"], tuple(point.meta["shape"])
    keys = {key}
    if op is not None:
        keys = {node.meta["key"] for node in _between(op.node, point)}
        keep = tuple(o // b for o, b in zip(op.stride, blur.stride, strict=True))
        dense = conv_size(op, keep)
        books.grow(keys, op.output_shape[-op.rank :], dense)
        shape = (*shape[: -op.rank], *dense)
    if key in books.blurred:  # branches that are added share their blur
        return
    books.blurred.add(key)

    def run(x: Tensor, layer: Any) -> Any:  # a tracer that counts what is written sees one after the other
        return layer.after(joined, x) if joined is not None and torch.is_grad_enabled() else layer(x)

    cost = _asked(books, blur, shape, point, run, joined and str(joined))
    if joined is not None:
        books.let_go(key)
    books.put_between(key, lambda kept_by: kept_by - keys, cost, all_of_it=True)


def _pooled(books: _Books, op: Op, edit: Any, joined: Any = None) -> None:
    """A pool, or a slice, that another layer takes the place of, with the activation before it that it runs with."""

    def run(x: Tensor, layer: Any) -> Any:
        if op.kind == "slice":
            return layer(x)
        given = (x, op.kernel_size, op.stride, op.padding)
        if op.kind == "maxpool":
            before = joined if torch.is_grad_enabled() else None
            return max_blur_pool(*given, op.dilation, op.ceil_mode, layer, edit.kernel_size, before)  # type: ignore[arg-type]
        more = {"dense_kernel_size": edit.kernel_size, "unless_global": edit.unless_global}
        return avg_blur_pool(*given, op.ceil_mode, layer, **more)  # type: ignore[arg-type]

    key = op.node.meta["key"]
    pool = (op.kind, op.kernel_size, op.stride, op.padding, op.dilation, op.ceil_mode, edit.kernel_size, str(joined))
    cost = _asked(books, edit.blur, op.input_shape, op.source, run, pool, op.dims)
    if op.kind == "slice":  # a view, of which others keep the whole
        readers = {user.meta.get("key") for user in op.node.users}
        books.put_between(_place(op.source), lambda kept_by: kept_by & readers, cost, all_of_it=False)
        return
    books.drop(key)
    if joined is not None:
        books.let_go(_place(op.source))
    books.layer(_place(op.source), cost)


def _before(books: _Books, op: Op, blur: Blur, path: str | None) -> None:
    """The blur of what an op reads, which others may read too."""
    place = _place(op.source)
    keys = {node.meta["key"] for node in (op.node, *op.readers)}
    if (place, path) in books.inputs:
        books.read_too(place, keys, books.inputs[place, path])
        return
    cost = _asked(books, blur, op.input_shape, op.source)
    books.inputs[place, path] = books.put_between(place, lambda kept_by: kept_by & keys, cost, all_of_it=False)


def _asked(
    books: _Books,
    blur: Blur,
    shape: tuple[int, ...],
    node: Node,
    run: Callable[[Tensor, Any], Any] | None = None,
    what: Any = None,
    dims: tuple[int, ...] = (),
) -> LayerBytes:
    """What the layer of a blur costs on a map of this shape."""
    dtype = node.meta["dtype"]
    last = blur.channels_last or (dims and dims[0] == 1)
    channel = len(shape) - 1 if last else max(len(shape) - len(blur.stride) - 1, 0)

    def ask() -> LayerBytes:
        layer = build(blur)

        def whole(x: Tensor) -> Any:
            if isinstance(layer, ApsPool):
                layer.preset(x.shape[0])
            return layer(x) if run is None else run(x, layer)

        return bytes_of_layer(layer, whole, shape, dtype, channel)

    return books.ask((blur, shape, dtype, what), ask)


def _joined(edit: Edit, plan: Plan, made: Node, op: Op | None) -> Any:
    """The activation that runs in one pass with the blur of an edit (see `nn.joining`), None where there is none.

    Args:
        edit: of the plan.
        made: what the blur, or the pool that it belongs to, reads.
        op: the pool, where there is one.
    """
    call = made.meta.get("call")
    if call is None or edit.blur is None or type(build(edit.blur)) is not blurpool(len(edit.blur.stride)):
        return None
    called = clamp_of(call.module) is not None
    activation = call.module if called else made.target
    if clamp_of(activation) is None:
        return None
    if isinstance(edit, Rewrite):
        owner = call.parent if called else call
        frames = call.frames if called else made.meta["frames"]
        joins = edit.op == "wrap" and owner is not None and owner.path == edit.module and _is_at(edit, frames)
    else:
        joins = called and _is_paired(edit, plan, call, op)
    if not joins:
        return None
    activation = copy.copy(activation)
    if hasattr(activation, "inplace"):
        activation.inplace = False  # of a tensor that is somebody else's
    return activation


def _is_at(edit: Rewrite, frames: list[Frame]) -> bool:
    """Whether the expression of an edit is the call itself that frames lead to, with one argument."""
    code, position, _ = frames[-1]
    found = expression_at(function_tree(code), position)
    return edit.path[-1][0] == code.co_name and edit.path[-1][1] == ast.unparse(found) and takes_one(found)


def _is_paired(edit: Edit, plan: Plan, call: Call, op: Op | None) -> bool:
    """Whether a Sequential runs an activation and then the blur or the max pool of an edit."""
    around = call.parent
    if around is None or not runs_in_pairs(around.module):
        return False
    names, members = zip(*around.module._modules.items(), strict=True)
    at = members.index(call.module)
    between = {(one.module, one.member) for one in plan.edits if isinstance(one, InsertBlur) and one is not edit}
    if isinstance(edit, InsertBlur):
        follows = edit.module == around.path and edit.after and edit.member == names[at]
    elif op is None or op.kind != "maxpool" or not isinstance(edit, BlurPooling):
        return False
    else:
        pool = op.node.meta["call"]
        follows = pool.parent is around and at + 1 < len(members) and members[at + 1] is pool.module
        follows = follows and (around.path, names[at + 1]) not in between
    return bool(
        follows and (around.path, names[at]) not in between and may_stay(members[at - 1] if at else None, call.module)
    )


def _between(first: Node, last: Node) -> list[Node]:
    """The calls from one to another that everything passes through, both included."""
    found, todo = {first: None}, [first]
    while todo:
        node = todo.pop()
        for user in node.users if node is not last else ():
            if user not in found and user.op == "call_function":
                found[user] = None
                todo.append(user)
    return list(found)


def _place(node: Node) -> Place:
    return node.name if node.op == "placeholder" else node.meta.get("key", "")
