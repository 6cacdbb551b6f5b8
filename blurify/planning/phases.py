"""Adaptive polyphase sampling: which blur chooses the phase, and which ones must follow it.

Every feature map lies on a grid of samples of the input: it is known by the subsamplings on the way to it. Where two
maps meet (are added, concatenated, multiplied), their grids must be one: of the blurs that made them, the one that runs
first leads, and the others follow it. Behind an upsampling by the last subsamplings' stride, the map is moved by their
phases, and so lies on the grid from before them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from blurify.graph.recorder import Trace
from blurify.graph.resampling import Resampler
from blurify.graph.sites import PARAMETERS, Found, function_name, read_op
from blurify.nn.source import CannotRewriteError
from blurify.planning.placement import NoWay, Placer, wish
from blurify.spec.edits import Blur, Edit
from blurify.spec.methods import Taps
from blurify.spec.phases import Phase
from blurify.spec.plan import Plan, Site

RULE = "phase-restored"
KIND = "upsample"
_UPSAMPLING = frozenset(
    "interpolate upsample upsample_nearest upsample_bilinear conv_transpose1d conv_transpose2d conv_transpose3d "
    "pixel_shuffle repeat_interleave".split()
)
_RESIZING = frozenset("pad getitem narrow unfold".split())  # at the borders only, or by a step that is a site

Run = tuple[str, int]
"""One subsampling in a forward: the name of its site, and which of the site's runs it is."""


@dataclass(frozen=True)
class _Level:
    """One subsampling on the way to a map; without a run, one at a fixed phase."""

    stride: tuple[int, ...]
    run: Run | None


@dataclass
class _Map:
    """Where a feature map lies: the subsamplings on the way to it, and its spatial sizes."""

    grid: tuple[_Level, ...]
    sizes: tuple[int, ...]


@dataclass
class Grids:
    """What a trace tells of phases.

    Attributes:
        restored: the upsampling ops, and the subsamplings that they undo.
        begins: when each subsampling's blur runs, as a place in the graph.
        strides: by how much each subsamples.
        same: union-find over runs: those that must have one phase.
    """

    restored: dict[Node, tuple[_Level, ...]] = field(default_factory=dict)
    begins: dict[Run, int] = field(default_factory=dict)
    strides: dict[Run, tuple[int, ...]] = field(default_factory=dict)
    same: dict[Run, Run] = field(default_factory=dict)

    def leader(self, run: Run) -> Run:
        """The run that leads those which must have the phase of this one: the one that comes first."""
        while self.same.get(run, run) != run:
            run = self.same[run]
        return run

    def join(self, one: Run, other: Run) -> None:
        """Two runs must have one phase."""
        first, second = sorted((self.leader(one), self.leader(other)), key=lambda run: self.begins[run])
        self.same[second] = first


def with_phases(
    plan: Plan,
    found: Sequence[Found],
    points: dict[str, tuple[Node, ...]],
    traces: Sequence[Trace],
    placer: Placer,
) -> tuple[Plan, dict[str, tuple[Node, ...]]]:
    """The plan, with adaptive polyphase sampling at each of its blurs.

    Args:
        plan: its blurs subsample at the first sample.
        found: where its sites are.
        points: of each converted site, the ops whose values are the same in a conversion that filters nothing.
        traces: of the model; the first one is of eval mode.
        placer: it placed the edits.

    Returns:
        the plan with a phase in every blur, and with a site for every upsampling that must restore one; and the points.
    """
    # What resamples without a blur of ours is an op like any other here.
    blurred = {site.name for site in plan.converted}
    others = [one for one in found if isinstance(one.op, Resampler) and one.name not in blurred]
    grids = _grids(traces[0].graph, plan, [one for one in found if one not in others], points)
    paths: dict[str, list[Run]] = defaultdict(list)  # the runs of each blur
    home: dict[Run, str] = {}  # the group that a run leads, if it does: named by the first blur of its site
    names: dict[str, str] = {}
    by_name = {site.name: site for site in plan.sites}
    for run in grids.begins:
        own = sorted(by_name[run[0]].blur_paths)
        for path in own:
            paths[path].append(run)
            names.setdefault(path, names.get(own[0], own[0]))
        home[run] = names[own[0]]
    for runs in paths.values():  # sites that share a blur share its phase
        by_time: dict[int, Run] = {}
        for run in runs:
            place = grids.begins[run]
            grids.join(by_time.setdefault(place, run), run)
    norm = plan.recipe.norm or 2
    phases = {path: _phase(names[path], runs, grids, home, norm) for path, runs in paths.items()}

    def chosen(edit: Edit) -> Edit:
        if edit.blur is None or edit.blur_path is None:
            return edit
        path = edit.blur_path
        leads = Phase("leads", (names.get(path, path),), (edit.blur.factor,), (0,), norm)
        return _replaced(edit, phase=phases.get(path) or leads)

    sites = [dataclasses.replace(site, edits=tuple(map(chosen, site.edits))) for site in plan.sites]
    sites = [dataclasses.replace(site, reason=_reason(site)) if site.action == "blur" else site for site in sites]
    listed = {one.name for one in others if any(op.node in grids.restored for op in one.ops)}
    sites = [site for site in sites if site.name not in listed]
    more = dict(points)
    restore = _Restoring(grids, home, traces, placer, norm)
    for site, nodes in restore.sites({site.name for site in sites}):
        sites.append(site)
        if site.action == "blur":
            more[site.name] = nodes
    return dataclasses.replace(plan, sites=tuple(sites)), more


def _replaced(edit: Edit, **changes: Any) -> Edit:
    assert edit.blur is not None
    blur = dataclasses.replace(edit.blur, **changes)
    return dataclasses.replace(edit, blur=blur)  # type: ignore[arg-type]


def _reason(site: Site) -> str:
    phases = [edit.blur.phase for edit in site.edits if edit.blur is not None and edit.blur.phase is not None]
    if any(phase.role == "follows" for phase in phases):
        return f"{site.reason}; at the phase that {', '.join(phases[0].groups)} chose"
    return f"{site.reason}; at the phase with the largest norm"


# --- what the graph tells


def _grids(graph: Graph, plan: Plan, found: Sequence[Found], points: dict[str, tuple[Node, ...]]) -> Grids:
    """Follow all feature maps through a graph."""
    grids = Grids()
    order = {node: place for place, node in enumerate(graph.nodes)}
    converted = {site.name: site for site in plan.converted}
    ops: dict[Node, tuple[Found, Run | None]] = {}
    for one in found:
        own = [op.node for op in one.ops if op.node.graph is graph]
        places = [node for node in points.get(one.name, ()) if node.graph is graph]
        for number, node in enumerate(own):
            run = (one.name, number) if one.name in converted else None
            ops[node] = one, run
            if run is not None:
                grids.begins[run] = order[places[number] if number < len(places) else node]
                grids.strides[run] = _levels(one.op.stride, converted[one.name], run)[-1].stride
    maps: dict[Node, _Map] = {}
    for node in graph.nodes:
        made = _made(node, maps, ops, converted, grids)
        if made is not None:
            maps[node] = made
    return grids


def _made(
    node: Node,
    maps: dict[Node, _Map],
    ops: dict[Node, tuple[Found, Run | None]],
    converted: dict[str, Site],
    grids: Grids,
) -> _Map | None:
    """Where what a node makes lies; None for what has no place (vectors, tokens, tables)."""
    shape = node.meta.get("shape")
    if node.op == "placeholder":
        is_map = shape is not None and len(shape) > 2 and node.meta["dtype"].is_floating_point
        return _Map((), tuple(shape[2:])) if shape is not None and is_map else None
    operands = [arg for arg in node.all_input_nodes if arg in maps]
    if node.op != "call_function" or not operands:
        return None
    first = maps[operands[0]]
    rank, name = len(first.sizes), function_name(node)
    if node in ops:
        site, run = ops[node]
        op = next(op for op in site.ops if op.node is node)
        sizes = tuple(op.output_shape[-op.rank :]) if op.kind != "slice" else tuple(op.output_shape[d] for d in op.dims)
        return _Map(first.grid + _levels(op.stride, converted.get(site.name), run), sizes)
    if shape is None:  # of several outputs
        return first
    if name in _UPSAMPLING:
        return _upsampled(node, first, rank, grids)
    if name in PARAMETERS or name in _RESIZING:
        if name in PARAMETERS and max(read_op(node, name).stride) > 1:
            return None
        return _Map(first.grid, tuple(shape[-rank:])) if len(shape) == rank + 2 else None
    if not _lies_in(first.sizes, shape):
        return None
    for other in operands[1:]:
        if maps[other].sizes == first.sizes:
            _meet(first.grid, maps[other].grid, grids)
    return first


def _levels(stride: tuple[int, ...], site: Site | None, run: Run | None) -> tuple[_Level, ...]:
    """The subsamplings of one site: of a stride that is split, the convolution's at a fixed phase first."""
    factors = [edit.blur.factor for edit in site.edits if edit.blur is not None] if site is not None else []
    if factors and factors[0] != stride:
        kept = tuple(s // f for s, f in zip(stride, factors[0], strict=True))
        return _Level(kept, None), _Level(factors[0], run)
    return (_Level(stride, run),)


def _upsampled(node: Node, source: _Map, rank: int, grids: Grids) -> _Map | None:
    """Behind an upsampling: on the grid before the last subsamplings, if their strides are its factors."""
    shape = node.meta["shape"]
    sizes = tuple(shape[-rank:])
    if len(shape) != rank + 2 or any(not n or m % n for m, n in zip(sizes, source.sizes, strict=True)):
        return None
    factor = tuple(m // n for m, n in zip(sizes, source.sizes, strict=True))
    if max(factor, default=1) == 1:
        return source
    for count in range(1, len(source.grid) + 1):
        levels = source.grid[-count:]
        if tuple(math.prod(steps) for steps in zip(*(one.stride for one in levels), strict=True)) == factor:
            if all(one.run is not None for one in levels):
                grids.restored[node] = levels
            return _Map(source.grid[:-count], sizes)
    return None


def _lies_in(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether a shape has these spatial sizes, one after the other."""
    rank = len(sizes)
    return any(tuple(shape[at : at + rank]) == sizes for at in range(1, len(shape) - rank + 1))


def _meet(one: tuple[_Level, ...], other: tuple[_Level, ...], grids: Grids) -> None:
    """Two maps meet: subsampling by subsampling, they must have taken the same phases."""
    if [level.stride for level in one] != [level.stride for level in other]:
        return  # the certificate names where they meet
    for a, b in zip(one, other, strict=True):
        if a.run is not None and b.run is not None:
            grids.join(a.run, b.run)


# --- what follows from it


def _phase(own: str, runs: list[Run], grids: Grids, home: dict[Run, str], norm: int) -> Phase | None:
    """The part of a blur that follows; None for one that leads, at least in one of its runs.

    Args:
        own: the group that it would lead.
        runs: its own.
        grids: what follows what.
        home: the groups that runs would lead.
        norm: by which phases are chosen.
    """
    leaders = [grids.leader(run) for run in runs]
    groups = {home[leader] for leader in leaders}
    if len(groups) != 1 or groups == {own}:
        return None
    group = groups.pop()
    backs = {_back(group, leader, grids.begins[run], grids, home) for run, leader in zip(runs, leaders, strict=True)}
    if len(backs) != 1:
        return None
    return Phase("follows", (group,), (grids.strides[runs[0]],), (backs.pop(),), norm)


def _back(group: str, leader: Run, now: int, grids: Grids, home: dict[Run, str]) -> int:
    """How often the leading blur ran again between one of its runs and a place in the graph."""
    begins = {grids.begins[run] for run, name in home.items() if name == group}
    return sum(1 for place in begins if grids.begins[leader] < place < now)


@dataclass
class _Restoring:
    """Plans the sites of upsampling ops, behind which the phases that were taken on the way down are restored."""

    grids: Grids
    home: dict[Run, str]
    traces: Sequence[Trace]
    placer: Placer
    norm: int

    def sites(self, taken: set[str]) -> list[tuple[Site, tuple[Node, ...]]]:
        """All of them, each with its ops in all traces.

        Args:
            taken: the names of other sites.
        """
        found: list[tuple[Site, tuple[Node, ...]]] = []
        together: dict[Any, list[Node]] = defaultdict(list)
        for node in self.grids.restored:
            together[_expression(node)].append(node)
        for nodes in together.values():
            names = set(taken)
            alone = []
            for node in nodes:
                alone.append(self._site([node], self._phase(node), names))
                names.add(alone[-1][0].name)
            if len(nodes) > 1 and any(site.action == "skip" for site, _ in alone):
                phase = self._of_levels(nodes)
                joint = None if phase is None else self._site(nodes, phase, taken)
                alone = [joint] if joint is not None and joint[0].action == "blur" else alone
            taken = taken | {site.name for site, _ in alone}
            found += alone
        return found

    def _phase(self, node: Node) -> Phase:
        now = list(node.graph.nodes).index(node)
        groups, strides, backs = [], [], []
        for level in self.grids.restored[node]:
            assert level.run is not None  # or it were not restored
            leader = self.grids.leader(level.run)
            groups.append(self.home[leader])
            strides.append(level.stride)
            backs.append(_back(self.home[leader], leader, now, self.grids, self.home))
        return Phase("restores", tuple(groups), tuple(strides), tuple(backs), self.norm)

    def _of_levels(self, nodes: Sequence[Node]) -> Phase | None:
        """One phase for an expression that runs at several levels, which the sizes of their maps tell apart."""
        phases: dict[tuple[int, ...], Phase] = {}
        for node in nodes:
            phase = self._phase(node)
            if phases.setdefault(tuple(node.meta["shape"][2:]), phase) != phase:
                return None
        levels = list(phases.values())
        if len({(one.groups[0], one.back[0]) for one in levels}) < len(levels):
            return None
        if len(levels) == 1:
            return levels[0]
        groups, strides, back = (
            tuple(item for one in levels for item in getattr(one, name)) for name in ("groups", "strides", "back")
        )
        return Phase("restores", groups, strides, back, self.norm, tuple(len(one.groups) for one in levels))

    def _site(self, runs: Sequence[Node], phase: Phase, taken: set[str]) -> tuple[Site, tuple[Node, ...]]:
        rank = len(phase.span)
        blur = Blur((1,) * rank, phase.span, Taps((1.0,)), "circular", (0,) * rank, phase=phase)
        keys = {node.meta["key"] for node in runs}
        nodes = tuple(one for seen in self.traces for one in seen.graph.nodes if one.meta.get("key") in keys)
        first = runs[0]
        name = _name(first, taken)
        shapes = tuple(first.all_input_nodes[0].meta["shape"]), tuple(first.meta["shape"])
        self.placer.together[wish(blur)] = set(nodes)
        try:
            where, edits = self.placer.after(nodes, blur)
        except (NoWay, CannotRewriteError) as error:
            reason = f"its phase can't be restored ({error}): give each upsampling a module of its own"
            return Site(name, KIND, (), phase.span, *shapes, "skip", "source", reason), ()
        reason = f"moves the samples back to the phase that {', '.join(phase.groups)} chose"
        return Site(name, KIND, (), phase.span, *shapes, "blur", RULE, reason, where, 0, edits), nodes


def _expression(node: Node) -> Any:
    """The expression that makes a node, the same for each of its runs."""
    call = node.meta["call"]
    return call.path if call is not None else None, node.target, tuple(frame[:2] for frame in node.meta["frames"])


def _name(node: Node, taken: set[str]) -> str:
    call = node.meta["call"]
    path = (call.path if call is not None else "") or ""
    leaf = call is not None and not call.has_calls and type(call.module).__module__.startswith("torch.nn.")
    name = path if path and leaf else f"{path}:{function_name(node)}"
    number = 1
    while (numbered := f"{name}#{number}" if number > 1 else name) in taken:
        number += 1
    return numbered
