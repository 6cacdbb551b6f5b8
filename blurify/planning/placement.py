"""Where the edits go: forms that the tools people run next see, and that stay when parts of the model are swapped.

A blur belongs to the smallest module that holds both what became dense and the place where it is blurred: an
expression of its forward, or a member of its `nn.Sequential`. So batch norms, activations and convolutions may be
replaced, fused or converted without losing it. Only where that can't be written, a single module gets it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from blurify.graph.recorder import Call, Frame, Trace, frames_of, trace
from blurify.graph.sites import PARAMETERS, Found, Op, function_name, read_op, sliced
from blurify.nn.arguments import set_stride
from blurify.nn.edited import original_class
from blurify.nn.rewriting import Path
from blurify.nn.sequential import after as after_name
from blurify.nn.sequential import before as before_name
from blurify.nn.source import CannotRewriteError
from blurify.planning import expressions, other_ways
from blurify.spec.edits import Blur, BlurInput, BlurOutput, BlurPooling, Edit, InsertBlur, Rewrite, SetStride, below

POOL_CLASSES: dict[type[nn.Module], str] = {
    nn.MaxPool1d: "maxpool", nn.MaxPool2d: "maxpool", nn.MaxPool3d: "maxpool",
    nn.AvgPool1d: "avgpool", nn.AvgPool2d: "avgpool", nn.AvgPool3d: "avgpool",
}  # fmt: skip
CONV_CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_CHILD = {
    "wrap": "blur", "wrap-input": "blur", "maxpool": "blur_max_pool", "avgpool": "blur_avg_pool", "slice": "blur_slice",
    "member-wrap": "blur_members", "member-dense": "blur_members",
}  # fmt: skip

Placed = tuple[str, tuple[Edit, ...]]
"""Where a blur goes, in words, and the edits that put it there."""


RESAMPLERS = ("resamplers",)
"""Among the wishes: all calls whose input is blurred and that are no convolutions."""


def wish(blur: Blur) -> tuple[Any, ...]:
    """What nodes that want their value blurred alike have in common: the subsampling, or a filter that only filters."""
    return ("wrap", blur.stride) if blur.stride == blur.factor else ("wrap", blur.stride, blur.factor)


class NoWay(Exception):
    """This way of editing the model does not fit; another may."""


@dataclass(frozen=True)
class _Spot:
    """An expression in a module's forward."""

    module: str
    path: Path


class Placer:
    """Finds the edits for one model, in all of its traces at once (in eval and in train mode).

    Args:
        model: it is not changed.
        traces: of the model.
        local: the sites whose edits must not reach beyond one module (see `Planner`).
    """

    def __init__(self, model: nn.Module, traces: Sequence[Trace], local: frozenset[str] = frozenset()) -> None:
        self.model = model
        self.traces = traces
        self.local = local
        self.read_strides = frozenset().union(*(seen.strides_read for seen in traces))
        self.calls_of: dict[str | None, list[Call]] = defaultdict(list)
        self._nodes: list[Node] = []
        self._inner_calls: dict[Call, list[Call]] = defaultdict(list)
        for seen in traces:
            self._nodes += seen.graph.nodes
            for call in seen.calls:
                self.calls_of[call.path].append(call)
                if call.parent is not None:
                    self._inner_calls[call.parent].append(call)
        self._spots: dict[tuple[Any, ...], _Spot | CannotRewriteError] = {}
        self._ops_at: dict[tuple[Any, ...], list[Node]] = defaultdict(list)
        self._calls_at: dict[tuple[Any, ...], list[Call]] = defaultdict(list)
        for node in self._nodes:
            if node.meta.get("frames"):
                self._ops_at[node.meta["frames"][-1][:2]].append(node)
        for call in (call for seen in traces for call in seen.calls if call.frames):
            self._calls_at[call.frames[-1][:2]].append(call)
        self.begin({}, {})

    def begin(
        self,
        together: dict[tuple[Any, ...], set[Node]],
        dense_of: dict[Node, list[Node]],
        needs: dict[Node, Any] | None = None,
    ) -> None:
        """Start anew with these wishes.

        Args:
            together: the nodes that want the same edit: one expression or module may serve them all.
            dense_of: the dense ops that each blur point is for.
            needs: what is wanted at ops and blur points; those of other needs are not served together.
        """
        self.together = together
        self._cuts = {node for key, nodes in together.items() if key[0] == "patches" for node in nodes}
        self._resamplers = together.get(RESAMPLERS, set())
        self.dense_of = dense_of
        self._needs = needs or {}
        self._children: dict[str, set[str]] = defaultdict(set)
        self._rewrites: dict[Rewrite, Rewrite] = {}
        self._used: dict[tuple[Any, ...], Rewrite] = {}
        self._after: dict[tuple[frozenset[Node], Blur], Placed] = {}

    def _alike(self, key: tuple[Any, ...], node: Node) -> set[Node]:
        """The nodes that may be served together with this one."""
        wanted = self._needs.get(node)
        return {other for other in self.together[key] if self._needs.get(other) == wanted}

    # --- behind a nonlinearity

    def after(self, points: Sequence[Node], blur: Blur, *, local: bool = False) -> Placed:
        """Edits that blur the value of these nodes (the same place in every run). Raises NoWay."""
        key = (frozenset(points), blur)
        if key not in self._after:
            self._after[key] = self._placed_after(tuple(dict.fromkeys(points)), blur, local)
        return self._after[key]

    def _placed_after(self, points: tuple[Node, ...], blur: Blur, local: bool) -> Placed:
        first = points[0]
        alike = self._alike(wish(blur), first)
        calls = list(first.meta["call"].stack()) if first.meta["call"] else []
        if not calls:
            raise NoWay("it does not run in any module")
        reach = next((level for level, call in enumerate(calls) if call.output is not first), len(calls))
        owner = next((level for level, call in enumerate(calls) if self._holds(call, first)), len(calls) - 1)
        levels = sorted(range(min(reach + 1, len(calls))), key=lambda level: (level < owner, abs(level - owner)))
        problem = NoWay("it stands where nothing can be changed")
        attempts: list[Callable[[], Placed]] = []
        if not local:
            attempts += [lambda level=level: self._at_level(points, alike, level, blur) for level in levels]  # type: ignore[misc]
            attempts += [lambda level=level: self._iterated(calls[level], points, alike, blur) for level in levels]  # type: ignore[misc]
            attempts.append(lambda: self._in_loop(points, alike, blur))
        outputs = [level for level in levels if level < reach]
        attempts += [lambda call=calls[level]: self._behind(call, points, alike, blur) for level in outputs]  # type: ignore[misc]
        for attempt in attempts:
            try:
                return attempt()
            except (NoWay, CannotRewriteError) as error:
                problem = problem if str(problem) != "it stands where nothing can be changed" else NoWay(str(error))
        raise problem

    def _holds(self, call: Call, point: Node) -> bool:
        """Whether the dense ops of a blur point run in a call too."""
        return all(node.meta["call"] and call in node.meta["call"].stack() for node in self.dense_of.get(point, ()))

    def _at_level(self, points: Sequence[Node], alike: set[Node], level: int, blur: Blur) -> Placed:
        """A blur in the forward of the module that is `level` calls out from the op."""
        where: list[str] = []
        edits: list[Edit] = []
        left = list(points)
        while left:
            node = left[0]
            calls = list(node.meta["call"].stack()) if node.meta["call"] else []
            if level >= len(calls) or (level and calls[level - 1].output is not node):
                raise NoWay("it is not made alike in every run")
            if self._is_stock_sequential(calls[level]):
                served, place, edit = self._member(calls, level, alike, blur)
            else:
                served, place, edit = self._expression(node, level, alike, "wrap", blur)
            if not served:
                raise NoWay("it can't be told apart")
            left = [other for other in left if other not in served]
            where.append(place)
            edits += edit
        return ", ".join(dict.fromkeys(where)), tuple(edits)

    def _member(
        self, calls: list[Call], level: int, alike: set[Node], blur: Blur
    ) -> tuple[set[Node | None], str, list[Edit]]:
        container = calls[level].path
        if not level or container is None:
            raise NoWay("it is no member of its container")
        name = self._member_name(calls[level], calls[level - 1])
        made = {c.output for outer in self.calls_of[container] for c in self._members(outer).get(name, ())}
        if not made <= alike:
            raise NoWay("the same module runs several times with different needs")
        if any(node is not None and node.meta.get("stale") for node in made):
            raise NoWay("its activation writes in place and the result is used by its old name")
        self._check_numbering(container, [node for node in made if node is not None])
        edit = InsertBlur(container, name, True, self._free(container, after_name(name)), blur)
        return made, f"after {below(container, name)}", [edit]

    def _members(self, outer: Call) -> dict[str, list[Call]]:
        """The calls that an `nn.Sequential` made, by its members' names: it runs them in their order, each once."""
        inner = self._inner_calls.get(outer, [])
        names = list(self.model.get_submodule(str(outer.path))._modules)
        if len(inner) != len(names):
            return {}
        return {name: [call] for name, call in zip(names, inner, strict=True)}

    def _member_name(self, outer: Call, inner: Call) -> str:
        for name, calls in self._members(outer).items():
            if inner in calls:
                return name
        raise NoWay("it is no member of its container")

    def _iterated(self, call: Call, points: Sequence[Node], alike: set[Node], blur: Blur) -> Placed:
        """A blur behind a member of an `nn.Sequential` that somebody else's loop runs (`for layer in self.layers`)."""
        container, _, name = str(call.path).rpartition(".")
        owner = self.model.get_submodule(container) if container else self.model
        if call.path is None or not isinstance(owner, nn.Sequential) or isinstance(owner, GraphModule):
            raise NoWay("it is no member of a container")
        made = {c.output for c in self.calls_of[call.path]}
        if self.calls_of.get(container) or call.output not in points or not (set(points) <= made <= alike):
            raise NoWay("the same module runs several times with different needs")
        if any(node.meta.get("stale") for node in points):
            raise NoWay("its activation writes in place and the result is used by its old name")
        # A loop that does more than run its members one after the other would do that for the blur too.
        names = container.rpartition(".")[2]
        if not all(expressions.is_plain_loop(self.model, c.frames, names) for c in self.calls_of[call.path]):
            raise NoWay("the loop that runs it does more than that")
        edit = InsertBlur(container, name, True, self._free(container, after_name(name)), blur)
        return f"after {call.path}", (edit,)

    def _behind(self, call: Call, points: Sequence[Node], alike: set[Node], blur: Blur) -> Placed:
        """A blur of what one module returns, in a subclass of its class."""
        if not self._can_attach(call):
            raise NoWay("its module can't be changed")
        made = {c.output for c in self.calls_of[call.path]}
        if not (set(points) <= made <= alike):
            raise NoWay("the same module runs several times with different needs")
        if any(node.meta.get("stale") for node in points):
            raise NoWay("its activation writes in place and the result is used by its old name")
        for point in points:
            for at in frames_of(point):
                if at[0].path == call.path and at[1]:
                    self._check_ways(point, at)
        inside = [n for point in points for n in self.dense_of.get(point, ())]
        for name, _, _ in self._other_entries(str(call.path), inside, points):
            if not name.startswith("forward"):  # one that is set as the forward keeps the blur around it
                raise NoWay(f"its method {name} uses the same convolution")
        assert call.path is not None
        return f"after {call.path or type(self.model).__name__}", (BlurOutput(call.path, blur),)

    # --- in front of an op

    def before(self, site: Found, blur: Blur, stride: tuple[int, ...]) -> Placed:
        """Edits that blur what a convolution reads, and give it this stride. Raises NoWay."""
        op, call = site.op, site.op.call
        if call is not None and call.path is not None and not isinstance(call.module, _CONTAINERS):
            indices = {_input_index(other) for other in site.ops}
            if len(indices) == 1 and None not in indices:
                index: int = indices.pop()  # type: ignore[assignment]
                dense: tuple[Edit, ...] = ()
                if stride != op.stride:
                    if not self.obeys_stride(site, stride):
                        return self.stand_in(site, "conv-blurred", blur, stride=stride)
                    dense = (SetStride(call.path, stride, stride_of(call.module)),)
                where, edits = self.in_front(site, call, index, blur)
                return where, (*dense, *edits)
        if op.kind != "conv":
            return self._before_call(site, blur)
        return self.stand_in(site, "conv-blurred", blur, stride=stride)

    def _before_call(self, site: Found, blur: Blur) -> Placed:
        """A blur of the first argument of a torch call in a forward: `F.interpolate(self.blur(x), ...)`."""
        ops, left = {op.node for op in site.ops}, [op.node for op in site.ops]
        if any(op.node.args[:1] != (op.source,) for op in site.ops):
            raise NoWay("its input is not given as an argument of its own")
        where: list[str] = []
        edits: list[Edit] = []
        while left:
            served, place, new = self._expression(left[0], 0, ops, "wrap-input", blur, index=0)
            left = [other for other in left if other not in served]
            where.append(place)
            edits += new
        return ", ".join(dict.fromkeys(where)), tuple(edits)

    def in_front(self, site: Found, call: Call, index: int, blur: Blur) -> Placed:
        """Edits that blur the positional argument `index` of a module call. Raises NoWay."""
        assert call.path is not None
        if site.name not in self.local:
            try:
                return f"before {call.path}", self._argument(site, call, index, blur)
            except (NoWay, CannotRewriteError):
                pass
        if not self._can_attach(call):
            raise NoWay("its module can't be changed")
        child = self._free(call.path, "blur_input")
        return f"before {call.path}", (BlurInput(call.path, blur, index, child),)

    def _argument(self, site: Found, call: Call, index: int, blur: Blur) -> tuple[Edit, ...]:
        """Edits that blur the argument wherever the module is called."""
        ops = {op.node for op in site.ops}
        edits: list[Edit] = []
        left = [op.node for op in site.ops]
        while left:
            node = left[0]
            calls = list(node.meta["call"].stack())
            level = next((at for at, c in enumerate(calls) if c.path == call.path), None)
            if level is None or level + 1 >= len(calls) or calls[level + 1].path is None:
                raise NoWay("it is called from outside of the model")
            outer = calls[level + 1]
            if self._is_stock_sequential(outer):
                name = self._member_name(outer, calls[level])
                if index:
                    raise NoWay("it is no member of its container")
                members = [c for o in self.calls_of[outer.path] for c in self._members(o).get(name, ())]
                served: set[Any] = {n for n in ops if any(in_call(n, c) for c in members)}
                child = self._free(str(outer.path), before_name(name))
                edits.append(InsertBlur(str(outer.path), name, False, child, blur))
            else:
                served, _, new = self._expression(node, level + 1, ops, "wrap-input", blur, index=index)
                edits += new
            left = [other for other in left if other not in served]
        return tuple(edits)

    def shared_input(self, sites: Sequence[Found], blur: Blur) -> Placed:
        """Edits that blur a module's input once for several convolutions in it, which alone read it. Raises NoWay."""
        ops = {op.node for site in sites for op in site.ops}
        first = sites[0].op
        for call in first.call.stack() if first.call is not None else ():
            if first.source not in call.inputs or not all(in_call(site.op.node, call) for site in sites):
                continue
            index = call.inputs.index(first.source)
            served = [self._alone_reading(other, index, ops) for other in self.calls_of[call.path]]
            if not self._can_attach(call) or any(len(nodes) != len(sites) for nodes in served):
                continue
            if set().union(*served) != ops or any(True for _ in self._other_entries(str(call.path), ops, ())):
                continue
            child = self._free(str(call.path), "blur_input")
            return f"before {call.path or type(self.model).__name__}", (BlurInput(str(call.path), blur, index, child),)
        raise NoWay("no module has them alone read its input")

    @staticmethod
    def _alone_reading(call: Call, index: int, ops: set[Node]) -> set[Node]:
        """The ops that read a positional argument in one call; none where others read it too."""
        source = call.inputs[index] if index < len(call.inputs) else None
        users = {user for user in source.users if in_call(user, call)} if source is not None else set()
        return users if users <= ops else set()

    # --- in place of an op

    def pooling(self, site: Found, blur: Blur, kernel: tuple[int, ...] | None, unless_global: bool = False) -> Placed:
        """Edits that make a pool anti-aliased. Raises NoWay."""
        op, call = site.op, site.op.call
        if call is not None and call.path is not None and type(call.module) in POOL_CLASSES and not op.returns_indices:
            return f"in {call.path}", (BlurPooling(call.path, blur, kernel, unless_global),)
        return self.stand_in(site, op.kind, blur, kernel=kernel, unless_global=unless_global)

    def stand_in(
        self,
        site: Found,
        op: Any,
        blur: Blur | None,
        *,
        stride: tuple[int, ...] = (),
        kernel: tuple[int, ...] | None = None,
        dims: tuple[int, ...] = (),
        unless_global: bool = False,
    ) -> Placed:
        """Edits that route a site's own call through a stand-in, wherever it stands. Raises NoWay."""
        kind = op.removesuffix("-dense").removesuffix("-blurred")
        alike = self._alike((kind, site.op.stride), site.op.node) or {o.node for o in site.ops}
        where: list[str] = []
        edits: list[Edit] = []
        left = [o.node for o in site.ops]
        more = {"stride": stride, "kernel_size": kernel, "dims": dims, "unless_global": unless_global}
        while left:
            served, place, new = self._expression(left[0], 0, alike, op, blur, **more)
            left = [node for node in left if node not in served]
            where.append(place)
            edits += new
        return ", ".join(dict.fromkeys(where)), tuple(edits)

    def strided(self, site: Found, stride: tuple[int, ...]) -> tuple[Edit, ...]:
        """Edits that give a convolution another stride and leave its padding as the original stride made it."""
        call = site.op.call
        # A convolution with parametrized weights (spectral_norm) has calls in it, and still is one convolution.
        alone = call is not None and (not call.has_calls or isinstance(call.module, CONV_CLASSES))
        if call is not None and alone and call.path is not None and self.obeys_stride(site, stride):
            return (SetStride(call.path, stride, stride_of(call.module)),)
        return self.stand_in(site, "conv-dense", None, stride=stride)[1]

    def obeys_stride(self, site: Found, stride: tuple[int, ...]) -> bool:
        """Whether setting a module's `stride` changes its convolution's stride and nothing else: tried on the copy."""
        call = site.op.call
        assert call is not None
        module = call.module
        if not hasattr(module, "stride") or call.path in self.read_strides or self._stride_is_read(str(call.path)):
            return False
        if type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward) and (
            type(module)._conv_forward  # type: ignore[attr-defined]
            in (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
        ):
            return True
        if self.traces[0].real:
            return False
        before = module.stride
        try:
            set_stride(module, stride)
            again = trace(module, (call.args, call.kwargs))
        except Exception:
            return False
        finally:
            module.stride = before
        convs = [node for node in again.graph.nodes if function_name(node) == function_name(site.op.node)]
        old = [node for node in call.nodes if function_name(node) == function_name(site.op.node)]
        if len(convs) != len(old):
            return False
        new = convs[old.index(site.op.node)]
        expected = conv_size(site.op, stride)
        source = new.args[0] if new.args else new.kwargs["input"]
        return source.meta["shape"] == site.op.input_shape and new.meta["shape"][-site.op.rank :] == expected

    def _stride_is_read(self, path: str) -> bool:
        """Whether a method of a module around a convolution reads its stride, whether or not a trace went there."""
        outer, _, name = path.rpartition(".")
        while name:
            part = path.removeprefix(f"{outer}." if outer else "")
            for wanted in {part, re.sub(r"(\.\d+)+$", "", part)}:
                methods = other_ways.methods_of(self.model.get_submodule(outer))
                if any(other_ways.reads_stride(function.__code__, wanted) for _, function in methods):
                    return True
            if not outer:
                break
            outer, _, name = outer.rpartition(".")
        return False

    # --- expressions

    def _expression(
        self, node: Node, level: int, alike: set[Node], op: Any, blur: Blur | None, **more: Any
    ) -> tuple[set[Node | None], str, list[Edit]]:
        """An edit of the expression that makes a node, `level` module calls out from it.

        Returns:
            the nodes that the expression makes, where it stands in words, and the edits.
        """
        frames = frames_of(node)
        if level >= len(frames) or not frames[level][1]:
            raise NoWay("it does not run in any module")
        spot = self._spot(frames[level][1])
        self._check_owner(spot, op)
        made = self._made(node, level, spot, op)
        if not made <= alike:
            raise NoWay("the same expression runs several times with different needs")
        stale = op == "wrap" and any(one is not None and one.meta.get("stale") for one in made)
        if stale and not expressions.is_statement(self.model, spot.module, spot.path):
            raise NoWay("its activation writes in place and the result is used by its old name")
        if op == "wrap-input" and not expressions.takes_argument(self._tree(frames[level][1]), more["index"]):
            raise NoWay("its input is not given as an argument of its own")
        others: list[Path] = []
        if op == "wrap":
            self._check_ways(node, frames[level])
        if op == "conv-dense" and expressions.argument_of_forward(self.model, spot.module, spot.path, ("stride",)):
            raise NoWay("its stride is an argument of the forward")
        if op in ("wrap", "wrap-input"):
            dense = [n for point in made if point is not None for n in self.dense_of.get(point, [node])]
            for name, function, attribute in self._other_entries(
                spot.module, dense, [n for n in made if n is not None]
            ):
                count = expressions.count_equal(self.model, spot.module, spot.path)
                other = None
                if len(spot.path) == 1 and attribute:
                    tree = self._tree(frames[level][1])
                    other = expressions.same_expression(function, spot.path[0], count, name, tree, attribute)
                if other is None:
                    raise NoWay(f"the method {name} uses the same convolution in another way")
                others.append(other)
        first = self._rewrite(Rewrite(spot.module, spot.path, op, "", blur, **more))
        edits: list[Edit] = [first]
        for path in others:
            edits.append(self._rewrite(Rewrite(spot.module, path, op, "", blur, **more), child=first.child))
        return made, f"in {spot.module or type(self.model).__name__}.{spot.path[-1][0]}", edits

    def _check_ways(self, point: Node, at: tuple[Call, list[Frame]]) -> None:
        """Raise NoWay where the forward may take another way between what becomes dense and its blur."""
        call, frames = at
        code, position, _ = expressions.without_nested(frames)[-1]
        for dense in self.dense_of.get(point, ()):
            for other, way in frames_of(dense):
                if other is not call or not way:
                    continue
                inner, begin, _ = expressions.without_nested(way)[-1]
                if inner is code and other_ways.may_pass_by(code, begin, position):
                    raise NoWay("its forward has other ways from there on, by what it is given")

    def _in_loop(self, points: tuple[Node, ...], alike: set[Node], blur: Blur) -> Placed:
        """An expression that runs for several modules, of which only some became dense: it asks which one ran."""
        first = points[0]
        for level, (call, frames) in enumerate(frames_of(first)):
            if (level and _inner(first, level - 1).output is not first) or not frames:
                break
            try:
                spot = self._spot(frames)
                self._check_owner(spot, "wrap")
            except (NoWay, CannotRewriteError):
                continue
            served = {n for n in self._made(first, level, spot, "wrap") if n in alike}
            if call.path != spot.module or not set(points) <= served:
                continue
            if self._made(first, level, spot, "wrap") <= alike:
                raise NoWay("it needs no dispatch")
            dense_ops = [dense for node in served for dense in self.dense_of.get(node, ())]  # type: ignore[arg-type]
            if any(True for _ in self._other_entries(spot.module, dense_ops, [n for n in served if n is not None])):
                raise NoWay("another method uses the same convolution")
            members: dict[str, None] = {}
            spots: dict[_Spot, None] = {}
            for node in sorted(served, key=lambda n: self._nodes.index(n)):  # type: ignore[arg-type]
                for dense in self.dense_of.get(node, ()):
                    member, at = self._member_call(dense, node, level)
                    members[member], spots[at] = None, None
            # The value of the very call that becomes dense is no value behind a nonlinearity.
            if any(at.path[:-1] != spot.path[:-1] or at == spot for at in spots) or not members:
                raise NoWay("the same expression runs several times with different needs")
            if any(n.meta.get("stale") for n in served) and not expressions.is_statement(  # type: ignore[union-attr]
                self.model, spot.module, spot.path
            ):
                raise NoWay("its activation writes in place and the result is used by its old name")
            self._check_ways(first, (call, frames))
            names = tuple(members)
            wrap = self._rewrite(Rewrite(spot.module, spot.path, "member-wrap", "", blur, members=names))
            dense_edits = [
                self._rewrite(Rewrite(at.module, at.path, "member-dense", "", members=names), child=wrap.child)
                for at in spots
            ]
            return f"in {spot.module or type(self.model).__name__}.{spot.path[-1][0]}", (*dense_edits, wrap)
        raise NoWay("the same expression runs several times with different needs")

    def _member_call(self, dense: Node, point: Node, level: int) -> tuple[str, _Spot]:
        """The part of the point's module in which a dense op ran, and the expression that calls that part."""
        owner = _inner(point, level)
        calls = list(dense.meta["call"].stack())
        if owner not in calls or calls.index(owner) == 0:
            raise NoWay("what becomes dense is not called from there")
        depth = calls.index(owner)
        path, base = calls[depth - 1].path, str(owner.path)
        if path is None or not path.startswith(f"{base}." if base else ""):
            raise NoWay("what becomes dense is no part of that module")
        spot = self._spot(frames_of(dense)[depth][1])
        if spot.module != owner.path:
            raise NoWay("what becomes dense is called from another module")
        return path.removeprefix(f"{base}." if base else ""), spot

    def _spot(self, frames: list[Frame]) -> _Spot:
        key = tuple(frames)
        if key not in self._spots:
            try:
                module, path, _ = expressions.path_of(self.traces[0].model, frames)
                self._spots[key] = _Spot(module, path)
            except CannotRewriteError as error:
                self._spots[key] = error
        found = self._spots[key]
        if isinstance(found, CannotRewriteError):
            raise found
        return found

    def _tree(self, frames: list[Frame]) -> Any:
        return expressions.path_of(self.traces[0].model, frames)[2]

    def _check_owner(self, spot: _Spot, op: str) -> None:
        owner = self.model.get_submodule(spot.module)
        if isinstance(owner, GraphModule):
            raise NoWay("torch.fx writes its forward anew with every copy: convert the model before it is traced")
        if isinstance(owner, torch.jit.ScriptModule):
            raise NoWay("it is scripted")
        if isinstance(owner, _CONTAINERS):  # whose children are what it runs
            raise NoWay("it stands in a container's forward")
        if op in ("wrap", "wrap-input") and original_class(owner).__module__.startswith("torch.nn."):
            raise NoWay("it stands in torch's own forward")

    def _made(self, node: Node, level: int, spot: _Spot, op: str) -> set[Node | None]:
        """What an expression makes, in all of its runs; None stands for what can't be served."""
        last = frames_of(node)[level][1][-1][:2]
        ops = [other for other in self._ops_at.get(last, ()) if self._is_at(other.meta["frames"], spot)]
        calls = [call for call in self._calls_at.get(last, ()) if self._is_at(call.frames, spot)]
        if op == "wrap":
            return {*ops, *(call.output for call in calls)}
        if op == "wrap-input" and not level:
            return set(ops)
        if op == "wrap-input":
            path = _inner(node, level - 1).path
            if ops or any(call.path != path for call in calls):
                return {None}
            if node in self._resamplers:
                return {n for call in calls for n in self._resamplers if in_call(n, call)}
            return {
                n for call in calls for n in self._nodes
                if (function_name(n).startswith("conv") or n in self._cuts) and in_call(n, call)
            }  # fmt: skip
        return {other for other in ops if _subsamples(other)}  # the stand-ins pass on calls that do not subsample

    def _is_at(self, frames: list[Frame], spot: _Spot) -> bool:
        try:
            return self._spot(frames) == spot
        except CannotRewriteError:
            return False

    def _other_entries(
        self, module: str, dense: Iterable[Node], points: Iterable[Node]
    ) -> Iterator[tuple[str, Any, str]]:
        """Methods of a module that no trace went through, each with the part that becomes dense and that it calls."""
        known: set[Any] = set()
        names: set[str] = set()
        for node in (*dense, *points):
            for _, frames in frames_of(node):
                known.update(code for code, _, _ in frames)
        for node in dense:
            for call in node.meta["call"].stack() if node.meta["call"] else ():
                prefix = f"{module}." if module else ""
                if call.path and call.path.startswith(prefix) and call.path != module:
                    part = call.path.removeprefix(prefix)
                    names |= {part, re.sub(r"(\.\d+)+$", "", part)}  # `self.convs[1](x)` is a call of `self.convs` too
        for part in sorted(names):
            for name, function in other_ways.entries_that_call(self.model.get_submodule(module), part, known):
                yield name, function, part.rpartition(".")[2]
            # Methods of the modules around it, which reach into it.
            outer, _, own = module.rpartition(".")
            while own:
                path = below(module, part).removeprefix(f"{outer}." if outer else "")
                for name, function in other_ways.entries_that_call(self.model.get_submodule(outer), path, known):
                    yield f"{type(self.model.get_submodule(outer)).__name__}.{name}", function, ""
                outer, _, own = outer.rpartition(".")

    def _known(self, nodes: Iterable[Node]) -> set[Any]:
        """The code that ran on the way to some ops."""
        return {code for node in nodes for _, frames in frames_of(node) for code, _, _ in frames}

    def _check_numbering(self, container: str, nodes: Iterable[Node]) -> None:
        """Raise NoWay where a member of a container is reached by its number, past what would be put between."""
        outer, _, name = container.rpartition(".")
        if name and other_ways.numbers_members(self.model.get_submodule(outer), name, self._known(nodes)):
            raise NoWay("another method runs the container's members by their numbers")

    def _rewrite(self, wanted: Rewrite, child: str = "") -> Rewrite:
        """The edit with a name for its child; the same edit for every site that wants the same of one expression."""
        if wanted not in self._rewrites:
            use = "wrap" if wanted.op in ("wrap", "member-wrap") else ("input", wanted.index)
            use = use if wanted.op in ("wrap", "wrap-input", "member-wrap") else "call"
            other = self._used.setdefault((wanted.module, wanted.path, use), wanted)
            if other != wanted:
                raise NoWay("the same expression makes several sites with different needs")
            base = _CHILD.get(wanted.op, wanted.op.replace("-", "_"))
            name = child or self._free(wanted.module, base)
            self._rewrites[wanted] = dataclasses.replace(wanted, child=name)
        return self._rewrites[wanted]

    def _free(self, module: str, base: str) -> str:
        """A name for a child that the module has not."""
        owner = self.model.get_submodule(module)
        name, number = base, 1
        while name in self._children[module] or hasattr(owner, name):
            number += 1
            name = f"{base}_{number}"
        self._children[module].add(name)
        return name

    def _can_attach(self, call: Call) -> bool:
        """Whether a module can move to a subclass that blurs around its forward."""
        if call.path is None or isinstance(call.module, (*_CONTAINERS, GraphModule, torch.jit.ScriptModule)):
            return False
        return "forward" not in vars(self.model.get_submodule(call.path))

    def _is_stock_sequential(self, call: Call) -> bool:
        """Whether a call is of an `nn.Sequential` that runs its members one after the other."""
        module = call.module
        if call.path is None or not isinstance(module, nn.Sequential) or isinstance(module, GraphModule):
            return False
        own = self.model.get_submodule(call.path)
        return type(module).forward is nn.Sequential.forward and "forward" not in vars(own)


def in_call(node: Node, call: Call) -> bool:
    """Whether an op ran in a module call, or in one within it."""
    return node.meta.get("call") is not None and call in node.meta["call"].stack()


def _inner(node: Node, level: int) -> Call:
    """The module call that is `level` calls out from the one in which an op ran."""
    return frames_of(node)[level][0]


def _subsamples(node: Node) -> bool:
    name = function_name(node)
    if name == "getitem":
        return bool(sliced(node)[0])
    return name in PARAMETERS and max(read_op(node, name).stride) > 1


def stride_of(module: nn.Module) -> Any:
    """A module's stride in the form that it has."""
    stride: Any = module.stride
    # Whole numbers of numpy too, which some libraries compute strides with: a plan holds Python's.
    return tuple(map(index, stride)) if isinstance(stride, Sequence) else index(stride)


def conv_size(op: Op, stride: tuple[int, ...]) -> tuple[int, ...]:
    """The spatial size of what a convolution would return with another stride."""
    padding = op.padding if isinstance(op.padding, tuple) else (0,) * op.rank
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(op.input_shape[-op.rank :], padding, op.dilation, op.kernel_size, stride, strict=True)
    )


def _input_index(op: Op) -> int | None:
    """Which positional argument of its module a convolution reads, itself or padded, and nothing else in it does."""
    call, node = op.call, op.source
    assert call is not None
    chain = [op.node]
    while node not in call.inputs and function_name(node) in ("pad", "contiguous", "to") and node in call.nodes:
        chain.append(node)
        node = node.args[0]  # type: ignore[assignment]
    if node not in call.inputs:
        return None
    users = [user for user in node.users if user.meta.get("call") and call in user.meta["call"].stack()]
    return call.inputs.index(node) if all(user in chain for user in users) else None
