"""Decide what happens at each site: the rules of section 3 of the design, one plan for one model."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from blurify.graph.inputs import traced
from blurify.graph.recorder import Call, Trace, trace
from blurify.graph.regions import blur_points
from blurify.graph.sites import (
    PARAMETERS,
    Found,
    Op,
    find_sites,
    function_name,
    is_constant_filter,
    low_passed,
    matrix_macs,
    read_op,
    reads_image,
    scripted_modules,
    sliced,
)
from blurify.graph.structure import tensors_in
from blurify.nn.arguments import given_per_dim as per_dim
from blurify.nn.rewriting import CannotRewriteError, path_of
from blurify.spec.filters import compose_taps
from blurify.spec.plan import Blur, BlurInput, BlurOutput, BlurPooling, Edit, Plan, Rewrite, SetStride, Site
from blurify.spec.recipes import Recipe

REASONS: dict[str, str] = {
    "stem": "reads the image: its dense version would cost most; the recipe 'full' converts it",
    "patchify-stem": "cuts the image into patches (kernel <= stride); the recipe 'full' blurs the image first",
    "already-filtered": "already anti-aliased: what it reads or does is a fixed low-pass filter",
    "global-pool": "covers its whole input, so that nothing is left to alias",
    "recipe": "the recipe leaves it alone: {}",
    "returns-indices": "returns indices for unpooling, which a blurred pool does not have: use return_indices=False",
    "whole-numbers": "reads whole numbers or a mask, which can't be blurred: make them floating point to convert it",
    "slice": "a strided slice that is no plain subsampling (its phases or dimensions): use blurify.BlurPool2d there",
    "other-pool": "{}: no low-pass rule for this kind of pooling; use a max or average pool",
    "scripted": "scripted code can't be changed: build the model without torch.jit",
    "not-run": "not run in eval mode on these inputs, so that nothing is known about it",
    "varies": "called several times with different strides or shapes of use: give each use its own module",
    "source": "can't be changed where it stands ({}): put a pooling or convolution module there in the model's code",
}
"""Every reason for which a site is skipped."""

_POOL_CLASSES: dict[type[nn.Module], str] = {
    nn.MaxPool1d: "maxpool", nn.MaxPool2d: "maxpool", nn.MaxPool3d: "maxpool",
    nn.AvgPool1d: "avgpool", nn.AvgPool2d: "avgpool", nn.AvgPool3d: "avgpool",
}  # fmt: skip
_CONV_CLASSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_AFTER = ("after-activation", "split")
_CHILD = {"wrap": "blur", "maxpool": "blur_max_pool", "avgpool": "blur_avg_pool", "slice": "blur_slice"}


def make_plan(model: nn.Module, recipe: Recipe, example_inputs: Any = None, *, seen: Trace | None = None) -> Plan:
    """Trace a model, find its sites and decide what happens at each; the model is not touched.

    Args:
        model: any eager module.
        recipe: what the user wants.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords; inferred where None.
        seen: the trace of the model, where there is one already.

    Raises:
        BlurifyError: no inputs are known that the model takes, or it can't be traced.
    """
    seen = traced(model, example_inputs) if seen is None else seen
    sites = _Planner(model, seen, recipe).sites()
    return Plan(
        recipe=recipe,
        sites=tuple(sites),
        macs=matrix_macs(seen),
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        input_shapes=tuple(tuple(tensor.shape) for tensor in tensors_in(seen.inputs)),
    )


@dataclass(frozen=True)
class _Decision:
    """What is to be done at one site."""

    rule: str
    reason: str
    placement: str
    edits: tuple[Edit, ...]
    extra_macs: int


class _NoWay(Exception):
    """This way of editing the model does not fit; another may."""


class _Planner:
    def __init__(self, model: nn.Module, seen: Trace, recipe: Recipe) -> None:
        self.model = model
        self.trace = seen
        self.recipe = recipe
        self.taps = recipe.resolved_taps
        self.calls_of: dict[int, list[Call]] = defaultdict(list)
        for call in seen.calls:
            self.calls_of[id(call.module)].append(call)
        self._framed: dict[Node, Node] | None = None
        self._unreached: dict[str, str] = {}  # why a site is not blurred after its nonlinearity

    # --- which sites

    def sites(self) -> list[Site]:
        """The plan's sites, in running order."""
        found = find_sites(self.trace)
        skips = {site.name: self._skip(site) for site in found}
        refused: set[str] = set()
        while True:
            wanted = [site for site in found if skips[site.name] is None]
            points = self._blur_points([site for site in wanted if site.name not in refused])
            self._begin(wanted, points)
            planned = []
            for site in found:
                skip = skips[site.name]
                planned.append(self._skipped(site, *skip) if skip else self._planned(site, points.get(site.name)))
            # Branches that are added share a blur point only if all of them can be made dense.
            lost = {site.name for site in planned if site.name in points and site.rule not in _AFTER}
            if not lost:
                return [*planned, *self._unseen(found)]
            refused |= lost

    def _begin(self, sites: Sequence[Found], points: dict[str, tuple[Node, ...]]) -> None:
        """Start planning edits anew, with these blur points."""
        self._children: dict[str, set[str]] = defaultdict(set)
        self._rewrites: dict[Rewrite, Rewrite] = {}
        self._used_paths: dict[tuple[str, Any], Rewrite] = {}
        self._strides = {op.node: op.stride for site in sites for op in site.ops}
        self._together = self._blurred_alike(sites, points)

    def _skip(self, site: Found) -> tuple[str, str] | None:
        """The (rule, detail) for which a site is left alone, if there is one."""
        op, recipe = site.op, self.recipe
        if any(other.stride != op.stride or other.kernel_size != op.kernel_size for other in site.ops):
            return "varies", ""
        if op.call is not None and len(site.ops) != len(self.calls_of[id(op.call.module)]):
            return "varies", ""
        if is_constant_filter(op) or any(low_passed(other, self.trace) for other in site.ops):
            return "already-filtered", ""
        if op.kind == "slice" and not op.dims:
            return "slice", ""
        if op.kind not in ("conv", "maxpool", "avgpool", "slice"):
            return "other-pool", op.kind
        if not op.of_floats:
            return "whole-numbers", ""
        if op.returns_indices and not all(_indices_unused(other) for other in site.ops):
            return "returns-indices", ""
        if op.kind == "avgpool" and all(_covers_input(other) for other in site.ops):
            return "global-pool", ""
        if op.kind in recipe.skip_kinds:
            return "recipe", f"kind {op.kind}"
        glob = next((name for name in recipe.skip_names if fnmatch.fnmatchcase(site.name, name)), None)
        if glob is not None:
            return "recipe", f"name {glob}"
        if _channels(op) < recipe.min_channels:
            return "recipe", f"{_channels(op)} channels, fewer than {recipe.min_channels}"
        if op.kind == "conv" and any(reads_image(other) for other in site.ops):
            splits = max(op.stride) >= 4 and not any(s % 2 and s > 1 for s in op.stride)
            if recipe.stem == "skip" or (recipe.stem == "split" and not splits):
                return ("patchify-stem" if _is_patchify(op) else "stem"), ""
        return None

    def _blur_points(self, sites: Sequence[Found]) -> dict[str, tuple[Node, ...]]:
        """Rule 2: the blur points of the convolutions that are followed by a nonlinearity, one for each call."""
        convs = {}
        for number, site in enumerate(sites):
            op = site.op
            splits = self.recipe.stem == "split" and reads_image(op)
            if op.kind == "conv" and (self.recipe.conv == "after-activation" or splits) and not _is_patchify(op):
                for other in site.ops:
                    convs[other.node] = (_halves(op.stride) if splits else op.stride, number)
        points = blur_points(self.trace.graph, convs)
        result = {}
        for site in sites:
            nodes = tuple(points.get(op.node) for op in site.ops)
            if all(nodes):
                result[site.name] = nodes
        return result  # type: ignore[return-value]

    def _blurred_alike(
        self, sites: Sequence[Found], points: dict[str, tuple[Node, ...]]
    ) -> dict[tuple[str, tuple[int, ...]], set[Node]]:
        """The nodes that want the same edit, by kind and stride: one expression or activation may serve them all."""
        together: dict[tuple[str, tuple[int, ...]], set[Node]] = defaultdict(set)
        for site in sites:
            together[site.op.kind, site.op.stride].update(op.node for op in site.ops)
            if site.name in points:
                together["wrap", self._after_blur(site).stride].update(points[site.name])
        return together

    def _unseen(self, found: Sequence[Found]) -> list[Site]:
        """Strided modules that tracing did not see run: listed, so that nothing is passed over in silence."""
        sites = [_listed(name, "script", "scripted") for name, _ in scripted_modules(self.model)]
        ran = {call.path for call in self.trace.calls}
        names = {site.name for site in found}
        for name, module in self.model.named_modules():
            kind = "conv" if isinstance(module, _CONV_CLASSES) else _POOL_CLASSES.get(type(module))
            if kind is None or name in ran or name in names or isinstance(module, torch.jit.ScriptModule):
                continue
            if max(per_dim(module.stride, 1)) > 1:
                sites.append(_listed(name, kind, "not-run", module))
        return sites

    # --- what is done

    def _skipped(self, site: Found, rule: str, detail: str = "") -> Site:
        op = site.op
        return Site(
            site.name, op.kind, op.kernel_size, op.stride, op.input_shape, op.output_shape,
            "skip", rule, REASONS[rule].format(detail),
        )  # fmt: skip

    def _planned(self, site: Found, points: tuple[Node, ...] | None) -> Site:
        op = site.op
        ways: list[Callable[[], _Decision]] = []
        if op.kind == "conv":
            if points is not None:
                ways.append(lambda: self._conv_after(site, points))
            # What pads, pads for the size that it sees: there the blur may not subsample first.
            padded = any(op.padding) or any(function_name(other.source) == "pad" for other in site.ops)
            if max(op.kernel_size) == 1 and not padded:
                ways.append(lambda: self._conv_commuted(site))
            ways.append(lambda: self._conv_blurred(site))
        elif op.kind == "slice":
            ways.append(lambda: self._slice(site))
        else:
            ways.append(lambda: self._pool(site))
        problem = ""
        for way in ways:
            try:
                decision = way()
            except (_NoWay, CannotRewriteError) as error:
                problem = problem or str(error)
                if points is not None:
                    self._unreached[site.name] = problem
                continue
            reason = decision.reason
            if site.name in self._unreached:
                reason = f"blur before it: after its nonlinearity it can't be done ({self._unreached[site.name]})"
            return Site(
                site.name, op.kind, op.kernel_size, op.stride, op.input_shape, op.output_shape, "blur",
                decision.rule, reason, decision.placement, decision.extra_macs, decision.edits,
            )  # fmt: skip
        return self._skipped(site, "source", problem)

    def _blur(
        self, stride: tuple[int, ...], factor: tuple[int, ...] | None = None, shift: tuple[int, ...] = ()
    ) -> Blur:
        return Blur(stride, factor or stride, self.taps, self.recipe.padding, shift or (0,) * len(stride))

    def _blur_macs(self, blur: Blur, shape: tuple[int, ...]) -> int:
        """Multiply-adds of a blur whose output has this shape (the joint kernel)."""
        return (
            math.prod(shape) * math.prod(len(compose_taps(self.taps, f)) for f in blur.factor)
            if len(self.taps) > 1
            else 0
        )

    def _conv_after(self, site: Found, points: tuple[Node, ...]) -> _Decision:
        """Rule 2 (and 7, split): dense convolution, nonlinearity, blur and subsample."""
        op = site.op
        blur = self._after_blur(site)
        keep = tuple(s // b for s, b in zip(op.stride, blur.stride, strict=True))
        split = blur.stride != op.stride
        edits = self._strided(site, keep)
        where, blurring = self._after(points, blur)
        times = math.prod(o // k for o, k in zip(op.stride, keep, strict=True)) - 1
        macs = op.macs * times + self._blur_macs(blur, points[0].meta["shape"])
        rule = "split" if split else "after-activation"
        reason = "stride split into conv and blur" if split else "dense conv, blur after its nonlinearity"
        return _Decision(rule, reason, where, (*edits, *blurring), macs)

    def _after_blur(self, site: Found) -> Blur:
        split = self.recipe.stem == "split" and reads_image(site.op)
        return self._blur(_halves(site.op.stride) if split else site.op.stride)

    def _conv_commuted(self, site: Found) -> _Decision:
        """Rule 3: a pointwise convolution commutes with the blur, so blur and subsample first."""
        op = site.op
        blur, dense = self._blur(op.stride), (1,) * op.rank
        macs = self._blur_macs(blur, (*op.input_shape[: -op.rank], *op.output_shape[-op.rank :]))
        where, edits = self._before(site, blur, dense)
        return _Decision("commuted", "1x1 conv: the same as blurring its output, and cheaper", where, edits, macs)

    def _conv_blurred(self, site: Found) -> _Decision:
        """Rules 3 and 6: blur what the strided convolution reads."""
        op = site.op
        blur = self._blur((1,) * op.rank, op.stride)
        where, edits = self._before(site, blur, op.stride)
        reason = "no nonlinearity before what mixes positions: blur before it"
        if _is_patchify(op):
            reason = "patchify conv: blur before it"
        elif self.recipe.conv == "cheap":
            reason = "cheap form: blur before it"
        return _Decision("blurred-input", reason, where, edits, self._blur_macs(blur, op.input_shape))

    def _pool(self, site: Found) -> _Decision:
        """Rules 1 and 4."""
        op = site.op
        kernel = None
        if op.kind == "maxpool":
            size = self.recipe.maxpool_kernel_size
            kernel = None if size is None else (size,) * op.rank
            blur = self._blur(op.stride)
            reason = "dense max pool, then blur" if kernel is None else f"dense max pool of kernel {size}, then blur"
        else:
            # The filter is centred where the pool's windows are centred.
            padding = op.padding if isinstance(op.padding, tuple) else (0,) * op.rank
            shift = tuple((k - 1) // 2 - p for k, p in zip(op.kernel_size, padding, strict=True))
            blur = self._blur(op.stride, shift=shift)
            reason = "average pool replaced by the filter"
        call = op.call
        if call is not None and call.path is not None and type(call.module) in _POOL_CLASSES and not op.returns_indices:
            where, edits = f"in {call.path}", (BlurPooling(call.path, blur, kernel),)
        else:
            where, edits = self._rewrite([o.node for o in site.ops], op.kind, blur, kernel=kernel)  # type: ignore[assignment]
        return _Decision(op.kind, reason, where, edits, self._blur_macs(blur, op.output_shape))

    def _slice(self, site: Found) -> _Decision:
        """A strided slice is a subsampling and nothing else: the blur takes its place."""
        op = site.op
        blur = self._blur(op.stride)
        where, edits = self._rewrite([o.node for o in site.ops], "slice", blur, dims=op.dims)
        reason = "strided slice replaced by the filter"
        return _Decision("slice-blurred", reason, where, edits, self._blur_macs(blur, op.output_shape))

    # --- edits

    def _strided(self, site: Found, stride: tuple[int, ...]) -> tuple[Edit, ...]:
        """Edits that give a convolution another stride and leave its padding as the original stride made it."""
        call = site.op.call
        # A convolution with parametrized weights (spectral_norm) has calls in it, and still is one convolution.
        alone = call is not None and (not call.has_calls or isinstance(call.module, _CONV_CLASSES))
        if call is not None and alone and call.path is not None and self._obeys_stride(site, stride):
            return (SetStride(call.path, stride),)
        return self._rewrite([op.node for op in site.ops], "conv-dense", None, stride=stride)[1]

    def _obeys_stride(self, site: Found, stride: tuple[int, ...]) -> bool:
        """Whether setting a module's `stride` changes its convolution's stride and nothing else: tried on the copy."""
        call = site.op.call
        assert call is not None
        module = call.module
        if not hasattr(module, "stride"):
            return False
        if type(module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward) and (
            type(module)._conv_forward  # type: ignore[attr-defined]
            in (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
        ):
            return True
        if self.trace.real:
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
        expected = _conv_shape(site.op, stride)
        source = new.args[0] if new.args else new.kwargs["input"]
        return source.meta["shape"] == site.op.input_shape and new.meta["shape"][-site.op.rank :] == expected

    def _before(self, site: Found, blur: Blur, stride: tuple[int, ...]) -> tuple[str, tuple[Edit, ...]]:
        """Edits that blur what a convolution reads, and give it this stride."""
        op, call = site.op, site.op.call
        if call is not None and call.path is not None and not isinstance(call.module, _CONTAINERS):
            indices = {_input_index(other) for other in site.ops}
            if len(indices) == 1 and None not in indices:
                edits = (BlurInput(call.path, blur, indices.pop()),)  # type: ignore[arg-type]
                if stride == op.stride:
                    return f"before {call.path}", edits
                if self._obeys_stride(site, stride):
                    return f"before {call.path}", (SetStride(call.path, stride), *edits)
        return self._rewrite([o.node for o in site.ops], "conv-blurred", blur, stride=stride)

    def _after(self, points: tuple[Node, ...], blur: Blur) -> tuple[str, tuple[Edit, ...]]:
        """Edits that blur the value of these nodes (the same place in every call)."""
        nodes, alike = set(points), self._together["wrap", blur.stride]
        if not any(node.meta.get("stale") for node in nodes):
            for call in points[0].meta["call"].stack() if points[0].meta["call"] else ():
                if call.output is not points[0]:
                    break
                if self._can_attach(call) and nodes <= {c.output for c in self.calls_of[id(call.module)]} <= alike:
                    return f"after {call.path}", (BlurOutput(call.path, blur),)
        # A size that the forward reads in between must be the blurred one already.
        consumers = () if any(node.meta.get("sized") for node in nodes) else self._consumers(points[0])
        for call, index in consumers:
            calls = self.calls_of[id(call.module)]
            if (
                self._can_attach(call)
                and nodes <= {c.inputs[index] if len(c.inputs) > index else None for c in calls} <= alike
                and all(_only_within(c.inputs[index], c) for c in calls)
            ):
                return f"before {call.path}", (BlurInput(str(call.path), blur, index),)
        if any(node.meta.get("stale") for node in nodes):
            raise _NoWay("its activation writes in place and the result is used by its old name")
        return self._rewrite(points, "wrap", blur)

    def _can_attach(self, call: Call) -> bool:
        return bool(call.path) and not isinstance(call.module, (*_CONTAINERS, GraphModule, torch.jit.ScriptModule))

    def _consumers(self, node: Node) -> Iterable[tuple[Call, int]]:
        """Module calls that take this node as a positional argument, inner ones first."""
        inside = {call for user in node.users if user.meta.get("call") for call in user.meta["call"].stack()}
        own = set(node.meta["call"].stack()) if node.meta["call"] else set()
        for call in sorted(inside - own, key=lambda call: -sum(1 for _ in call.stack())):
            if node in call.inputs:
                yield call, call.inputs.index(node)

    # --- rewriting

    def _rewrite(
        self,
        nodes: Sequence[Node],
        op: Any,
        blur: Blur | None,
        *,
        stride: tuple[int, ...] = (),
        kernel: tuple[int, ...] | None = None,
        dims: tuple[int, ...] = (),
    ) -> tuple[str, tuple[Edit, ...]]:
        """Edits that change the expression which makes these nodes, in the forward of the module that it stands in."""
        stride_of = blur.stride if op == "wrap" and blur is not None else self._strides[nodes[0]]
        # Only blur points need frames that the first trace did not keep.
        framed = self._with_frames() if op == "wrap" else {node: node for node in self.trace.graph.nodes}
        targets = {framed[node] for node in nodes}
        alike = {framed[node] for node in self._together[op.removesuffix("-dense").removesuffix("-blurred"), stride_of]}
        first = framed[nodes[0]]
        problem = "it does not run in any module"
        for level, (_, frames) in enumerate(first.meta.get("frames", ())):
            if level and (op != "wrap" or _inner(first, level - 1).output is not first):
                break
            if not self._is_alone(framed.values(), targets, alike, level, frames, op):
                problem = "the same expression runs several times with different needs"
                continue
            try:
                module, path = path_of(self.trace.model, frames)
            except CannotRewriteError as error:
                problem = str(error)
                continue
            if isinstance(self.model.get_submodule(module), GraphModule):
                problem = "torch.fx writes its forward anew with every copy: convert the model before it is traced"
                continue
            if isinstance(self.model.get_submodule(module), _CONTAINERS):
                problem = "it stands in a container's forward"
                continue
            where = f"in {module or type(self.model).__name__}.{path[-1][0]}"
            return where, (self._rewrite_edit(Rewrite(module, path, op, "", blur, stride, kernel, dims)),)
        raise _NoWay(problem)

    def _rewrite_edit(self, wanted: Rewrite) -> Rewrite:
        """The edit with a name for its child; the same edit for every site that wants the same of one expression."""
        if wanted not in self._rewrites:
            other = self._used_paths.setdefault((wanted.module, wanted.path), wanted)
            if other != wanted:
                raise _NoWay("the same expression makes several sites with different needs")
            base = _CHILD.get(wanted.op, wanted.op.replace("-", "_"))
            owner = self.model.get_submodule(wanted.module)
            name, number = base, 1
            while name in self._children[wanted.module] or hasattr(owner, name):
                number += 1
                name = f"{base}_{number}"
            self._children[wanted.module].add(name)
            self._rewrites[wanted] = dataclasses.replace(wanted, child=name)
        return self._rewrites[wanted]

    def _with_frames(self) -> dict[Node, Node]:
        """The nodes of the trace, each to its twin in a second trace that has the Python calls to the blur points."""
        if self._framed is None:
            points = [node for (kind, _), nodes in self._together.items() if kind == "wrap" for node in nodes]
            paths = {call.path for node in points for call in node.meta["call"].stack() if call.output is node}
            paths |= {node.meta["call"].path for node in points}
            # An activation is called from the forward of the module around it.
            paths |= {path.rpartition(".")[0] for path in paths if path}
            wanted = frozenset(path for path in paths if path is not None)
            again = trace(self.model, self.trace.inputs, frames_in=wanted, real=self.trace.real)
            self._framed = dict(zip(self.trace.graph.nodes, again.graph.nodes, strict=True))
        return self._framed

    @staticmethod
    def _is_alone(
        nodes: Iterable[Node], targets: set[Node], alike: set[Node], level: int, frames: list[Any], op: str
    ) -> bool:
        """Whether the expression, wherever it runs, makes these nodes and only such as want the same."""
        made: set[Node | None] = set()
        for node in nodes:
            segments = node.meta.get("frames", ())
            if len(segments) > level and segments[level][1] == frames:
                made.add(_inner(node, level - 1).output if level else node)
        if op != "wrap":  # the stand-ins pass calls through that do not subsample
            made = {node for node in made if node is not None and _subsamples(node)}
        return targets <= made <= alike


def _inner(node: Node, level: int) -> Call:
    return node.meta["frames"][level][0]


def _subsamples(node: Node) -> bool:
    name = function_name(node)
    if name == "getitem":
        return bool(sliced(node)[0])
    return name in PARAMETERS and max(read_op(node, name).stride) > 1


def set_stride(module: nn.Module, stride: tuple[int, ...]) -> None:
    """Set a convolution module's stride, in the form (number or tuple) that it has."""
    as_number = isinstance(module.stride, int) and len(set(stride)) == 1
    setattr(module, "stride", stride[0] if as_number else stride)  # noqa: B010 (typed as a submodule)


def _conv_shape(op: Op, stride: tuple[int, ...]) -> tuple[int, ...]:
    padding = op.padding if isinstance(op.padding, tuple) else (0,) * op.rank
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(op.input_shape[-op.rank :], padding, op.dilation, op.kernel_size, stride, strict=True)
    )


def _halves(stride: tuple[int, ...]) -> tuple[int, ...]:
    """What the blur takes of a split stride: 2 of every strided dimension."""
    return tuple(2 if s > 1 else 1 for s in stride)


def _is_patchify(op: Op) -> bool:
    extent = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.kernel_size, strict=True)]
    return op.kind == "conv" and max(extent) > 1 and all(e <= s for e, s in zip(extent, op.stride, strict=True))


def _covers_input(op: Op) -> bool:
    space = op.input_shape[-op.rank :]
    return all(k >= n for k, n in zip(op.kernel_size, space, strict=True))


def _channels(op: Op) -> int:
    return op.input_shape[-op.rank - 1]


def _indices_unused(op: Op) -> bool:
    return op.node.meta["shape"] is None and all(user.args[1] == 0 or not user.users for user in op.node.users)


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


def _only_within(node: Node | None, call: Call) -> bool:
    return node is not None and all(
        user.meta.get("call") is not None and call in user.meta["call"].stack() for user in node.users
    )


def _listed(name: str, kind: str, rule: str, module: nn.Module | None = None) -> Site:
    kernel, stride = (per_dim(getattr(module, field), 1) if module else () for field in ("kernel_size", "stride"))
    return Site(name, kind, kernel, stride, (), (), "skip", rule, REASONS[rule])
