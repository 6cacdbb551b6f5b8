"""Decide what happens at each site of one model: one plan."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from blurify.errors import BlurifyError, FilterTooLongError
from blurify.graph.banks import keeps_everything
from blurify.graph.branches import partners
from blurify.graph.filters import is_filtered, reads_image
from blurify.graph.inputs import traced
from blurify.graph.recorder import Call, Key, Trace, trace
from blurify.graph.regions import blur_points
from blurify.graph.resampling import Resampler, find_resampling, is_smoothed
from blurify.graph.sites import (
    Found,
    Op,
    find_sites,
    is_mask,
    scripted_modules,
)
from blurify.graph.structure import tensors_in
from blurify.nn.arguments import given_per_dim
from blurify.nn.source import CannotRewriteError
from blurify.planning import phases
from blurify.planning.alignment import with_drifts
from blurify.planning.placement import CONV_CLASSES, POOL_CLASSES, RESAMPLERS, NoWay, Placer, wish
from blurify.planning.reasons import REASONS
from blurify.planning.resampling import resampling_blur, resampling_way
from blurify.planning.rules import Rules, halves, is_patchify
from blurify.spec.edits import Rewrite
from blurify.spec.overrides import Facts, check_patterns, facts_of, nearest_site
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import AtSite, Recipe

_AFTER = ("after-activation", "split")
_BEFORE = ("commuted", "blurred-input")
_RESAMPLER_CLASSES: dict[type[nn.Module], str] = {
    nn.ConvTranspose1d: "convtranspose", nn.ConvTranspose2d: "convtranspose", nn.ConvTranspose3d: "convtranspose",
    nn.Upsample: "upsample", nn.UpsamplingNearest2d: "upsample", nn.UpsamplingBilinear2d: "upsample",
    nn.PixelShuffle: "pixelshuffle", nn.PixelUnshuffle: "pixelunshuffle",
}  # fmt: skip
_WITHOUT_STRIDE = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.PixelShuffle, nn.PixelUnshuffle)
_CANNOT = frozenset(
    {"source", "varies", "slice", "other-pool", "returns-indices", "too-long"}
)  # no choice: nothing fits there


@dataclass(frozen=True)
class Decided:
    """A plan, and where in a forward its sites are.

    Attributes:
        plan: what is done.
        points: of each converted site, the ops whose values must be the same in the original and in a conversion that
            filters nothing: in every trace.
        traces: the model's forward in eval mode and, where it runs like that, in train mode.
        found: the sites as they were found, by their names.
    """

    plan: Plan
    points: dict[str, tuple[Node, ...]]
    traces: tuple[Trace, ...]
    found: dict[str, Found]

    def keys(self, site: str, trace: Trace) -> tuple[Key, ...]:
        """The keys of a site's points in one trace, in running order."""
        return tuple(node.meta["key"] for node in self.points.get(site, ()) if node.graph is trace.graph)


def make_plan(
    model: nn.Module,
    recipe: Recipe,
    example_inputs: Any = None,
    *,
    seen: Trace | None = None,
    training: bool = True,
) -> Plan:
    """Trace a model, find its sites and decide what happens at each; the model is not touched.

    Args:
        model: any eager module.
        recipe: what the user wants.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords; inferred where None.
        seen: the trace of the model, where there is one already.
        training: look at the forward in train mode too, where it may have other branches.

    Raises:
        BlurifyError: no inputs are known that the model takes, it can't be traced, or a pattern of the recipe matches
            no site.
    """
    return decide(model, recipe, example_inputs, seen=seen, training=training).plan


def decide(
    model: nn.Module,
    recipe: Recipe,
    example_inputs: Any = None,
    *,
    seen: Trace | None = None,
    local: frozenset[str] = frozenset(),
    simple: frozenset[str] = frozenset(),
    training: bool = True,
) -> Decided:
    """As `make_plan`, and also where the sites are.

    Args:
        model, recipe, example_inputs, seen, training: as of `make_plan`.
        local: sites that must be edited within one module, because a wider edit was tried and did not hold.
        simple: sites whose input is blurred, because nothing else held.
    """
    seen = traced(model, example_inputs) if seen is None else seen
    return _Planner(model, seen, recipe, local, simple, training).decided()


class _Planner:
    def __init__(
        self,
        model: nn.Module,
        seen: Trace,
        recipe: Recipe,
        local: frozenset[str],
        simple: frozenset[str],
        training: bool,
    ) -> None:
        self.model = model
        self.trace = seen
        self.recipe = recipe
        self.simple = simple
        self.traces = [seen, *(_in_training(model, seen) if training else ())]
        self.placer = Placer(model, self.traces, local | simple)
        self._rules: dict[Recipe, Rules] = {}  # one a recipe: sites may have their own
        self._facts: dict[str, Facts] = {}
        self._wanted: dict[str, AtSite] = {}
        self._unreached: dict[str, str] = {}  # why a site is not blurred after its nonlinearity

    def decided(self) -> Decided:
        """The plan, and where its sites are."""
        found = self._found()
        unseen = tuple(self._unseen(found))
        self._note(found, unseen)
        sites, points = self._sites(found)
        sites += unseen
        self._check_patterns(sites)
        check_patterns(self.recipe.sites, list(self._facts.values()))
        alignment = None
        with contextlib.suppress(Exception):  # an op in a form that the walk does not know: reports say so
            sites, alignment = with_drifts(self.trace, found, sites, points)
        plan = Plan(
            recipe=self.recipe.pinned(list(self._facts)),
            sites=tuple(sites),
            macs=self.trace.macs,
            model=f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            input_shapes=tuple(tuple(tensor.shape) for tensor in tensors_in(self.trace.inputs)),
            alignment=alignment,
        )
        places: dict[str, tuple[Node, ...]] = {}
        for site, one in zip(sites, found, strict=False):
            if site.action == "blur":
                places[site.name] = points[site.name] if site.rule in _AFTER else tuple(op.node for op in one.ops)
        if self.recipe.sampling is not None:
            plan, places = phases.with_phases(plan, found, places, self.traces, self.placer)
        return Decided(plan, places, tuple(self.traces), {site.name: site for site in found})

    # --- what the recipe wants where

    def _note(self, found: Sequence[Found], unseen: Sequence[Site]) -> None:
        """Keep what the recipe's tables ask of each site."""
        ran = ((site.name, site.op.kind, site.op.stride, site.op.input_shape) for site in found)
        listed = ((one.name, one.kind, one.stride, one.input_shape) for one in unseen)
        self._facts = {facts.name: facts for facts in facts_of((*ran, *listed))}
        self._wanted = {name: self.recipe.at(facts) for name, facts in self._facts.items()}

    def _recipe_at(self, site: Found) -> Recipe:
        return self._wanted[site.name].recipe

    def rules_at(self, site: Found) -> Rules:
        """The rules by what the recipe wants at a site."""
        recipe = self._recipe_at(site)
        if recipe not in self._rules:
            self._rules[recipe] = Rules(recipe, recipe.method, self.placer)
        return self._rules[recipe]

    # --- which sites

    def _found(self) -> list[Found]:
        """The sites of an eval forward, each with its runs in all traces."""
        order = {node: place for place, node in enumerate(self.trace.graph.nodes)}
        sites = sorted([*find_sites(self.trace), *find_resampling(self.trace)], key=lambda site: order[site.op.node])
        for other in self.traces[1:]:
            more = {site.key: site.ops for site in (*find_sites(other), *find_resampling(other))}
            sites = [Found(site.name, (*site.ops, *more.get(site.key, ())), site.key) for site in sites]
        return sites

    def _sites(self, found: Sequence[Found]) -> tuple[list[Site], dict[str, tuple[Node, ...]]]:
        """The plan's sites, in running order."""
        skips = {site.name: self._skip(site) for site in found}
        refused: set[str] = set(self.simple)
        while True:
            wanted = [site for site in found if skips[site.name] is None]
            points = self._blur_points([site for site in wanted if site.name not in refused])
            self._check_shared(wanted, points)
            self._begin(wanted, points)
            planned = []
            for site in found:
                skip = skips[site.name]
                planned.append(self._skipped(site, *skip) if skip else self._planned(site, points.get(site.name)))
            # Branches that are added share a blur point only if all of them can be made dense.
            lost = {site.name for site in planned if site.name in points and site.rule not in _AFTER}
            alone = {} if lost else self._blurred_alone(found, planned)
            if not lost and not alone:
                return self._sharing(self._counted_once(planned, found, points), found), points
            refused |= lost
            skips |= alone

    def _sharing(self, planned: list[Site], found: Sequence[Found]) -> list[Site]:
        """The sites; where some alone read the input of a module, it is blurred once for all of them.

        A 1x1 convolution commutes with the blur, so that it may as well stride over a blurred map: the same function.
        """
        if self.recipe.sampling is not None:  # whose blurs choose phases
            return planned
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for number, (site, one) in enumerate(zip(planned, found, strict=True)):
            if site.rule not in _BEFORE or one.op.kind != "conv" or site.name in self.placer.local:
                continue
            if not any(isinstance(edit, Rewrite) and edit.op == "conv-blurred" for edit in site.edits):
                groups[tuple(op.source for op in one.ops), self.rules_at(one).input_blur(one.op)].append(number)
        for (_, blur), numbers in groups.items():
            members = [found[number] for number in numbers]
            rules = self.rules_at(members[0])
            macs = sum(rules.macs(blur, run.input_shape) for run in rules.runs(members[0]))
            if len(members) < 2 or macs >= sum(planned[number].extra_macs for number in numbers):
                continue
            try:
                where, edits = self.placer.shared_input(members, blur)
            except NoWay:
                continue
            names = ", ".join(one.name for one in members)
            for number in numbers:
                planned[number] = dataclasses.replace(
                    planned[number], rule="blurred-input", reason=f"one blur before all that read it: {names}",
                    placement=where, edits=edits, extra_macs=macs if number == numbers[0] else 0,
                )  # fmt: skip
        return planned

    def _counted_once(
        self, planned: list[Site], found: Sequence[Found], points: dict[str, tuple[Node, ...]]
    ) -> list[Site]:
        """The sites; of those that share a blur, only the first one has its multiply-adds."""
        counted: set[Node] = set()
        for number, (site, one) in enumerate(zip(planned, found, strict=True)):
            if site.rule in _AFTER:
                rules, there = self.rules_at(one), set(points[site.name])
                again = {point for point in there & counted if rules.counts(point)}
                macs = sum(rules.macs(rules.after_blur(one.op), point.meta["shape"]) for point in again)
                planned[number] = dataclasses.replace(site, extra_macs=site.extra_macs - macs)
                counted |= there
        return planned

    def _blurred_alone(self, found: Sequence[Found], planned: Sequence[Site]) -> dict[str, tuple[str, str]]:
        """The sites that meet one that can't be blurred: left alone like it, so that both lie on one grid."""
        stuck = {site.name: site.rule for site in planned if site.action == "skip" and site.rule in _CANNOT}
        if not stuck:
            return {}
        meeting = partners(self.trace.graph, found)
        alone = {}
        for site in planned:
            cause = next((name for name in sorted(meeting.get(site.name, ())) if name in stuck), None)
            if site.action == "blur" and cause is not None:
                alone[site.name] = ("branch", f"{cause} ({stuck[cause]})")
        return alone

    def _begin(self, sites: Sequence[Found], points: dict[str, tuple[Node, ...]]) -> None:
        """Start planning edits anew, with these blur points."""
        together: dict[tuple[Any, ...], set[Node]] = defaultdict(set)
        dense_of: dict[Node, list[Node]] = defaultdict(list)
        needs: dict[Node, Any] = {}
        for site in sites:
            if isinstance(site.op, Resampler):
                nodes, up = [op.node for op in site.ops], site.op.is_upsampling
                together[wish(resampling_blur(self.rules_at(site), site.op)) if up else RESAMPLERS].update(nodes)
                dense_of.update({node: [node] for node in nodes} if up else {})
                continue
            recipe, method = self._recipe_at(site), self.rules_at(site).method
            needs.update((op.node, (method, recipe.padding, recipe.maxpool_kernel_size)) for op in site.ops)
            needs.update((point, (method, recipe.padding)) for point in points.get(site.name, ()))
            together[site.op.kind, site.op.stride].update(op.node for op in site.ops)
            if site.op.kind == "patches":
                together[wish(self.rules_at(site).patch_blur(site.op))].update(op.source for op in site.ops)
                for op in site.ops:
                    dense_of[op.source].append(op.node)
            if site.name in points:
                together["wrap", self.rules_at(site).after_blur(site.op).stride].update(points[site.name])
                for op, point in zip(site.ops, points[site.name], strict=True):
                    dense_of[point].append(op.node)
        self.placer.begin(together, dense_of, needs)

    def _skip(self, site: Found) -> tuple[str, str] | None:
        """The (rule, detail) for which a site is left alone, if there is one."""
        op, recipe = site.op, self._recipe_at(site)
        if isinstance(op, Resampler):
            return self._skip_resampler(site, op)
        if any(other.stride != op.stride or other.kernel_size != op.kernel_size for other in site.ops):
            return "varies", ""
        if op.call is not None and len(site.ops) != self._count_of_calls(op.call):
            return "varies", ""
        if is_filtered(site, self.traces, self.model):
            return "already-filtered", ""
        if keeps_everything(op, self.model):
            return "keeps-all", ""
        if op.kind == "slice" and not op.dims:
            return "slice", ""
        if op.kind not in ("conv", "maxpool", "avgpool", "slice", "patches"):
            return "other-pool", op.kind
        if not op.of_floats or (op.kind != "conv" and is_mask(op)):
            return "whole-numbers", ""
        if op.returns_indices and not all(_indices_unused(other) for other in site.ops):
            return "returns-indices", ""
        left = self._left_by_recipe(site)
        if op.kind == "avgpool" and all(_covers_input(other) for other in site.ops):
            always = left is not None or bool(op.source.meta.get("sized"))
            return "global-pool", "" if always else "; where it does not, it is blurred"
        if left is not None:
            return "recipe", left
        if op.kind == "conv" and any(reads_image(other, self.model) for other in site.ops):
            splits = max(op.stride) >= 4 and not any(s % 2 and s > 1 for s in op.stride)
            if recipe.stem == "skip" or (recipe.stem == "split" and not splits):
                return ("patchify-stem" if is_patchify(op) else "stem"), ""
        if op.kind == "patches":
            if all(reads_image(other, self.model) for other in site.ops):
                return ("patchify-stem", "") if recipe.stem != "convert" else None
            return ("merging", "") if recipe.merging == recipe.resampling == "skip" else None
        return None

    def _count_of_calls(self, call: Call) -> int:
        """How often a call's module runs; one that the forward made for itself is another one in each trace."""
        calls = self.placer.calls_of[call.path]
        return len(calls) if call.path is not None else sum(other.module is call.module for other in calls)

    def _skip_resampler(self, site: Found, op: Resampler) -> tuple[str, str] | None:
        """The same, for what upsamples, or subsamples in another way than by a stride."""
        up, ops = op.is_upsampling, [other for other in site.ops if isinstance(other, Resampler)]
        never = next((other for other in ops if other.rule), None)
        if never is not None:
            return never.rule, never.detail
        if is_smoothed(site, self.traces, self.model):
            return "already-filtered", ""
        if not op.of_floats or is_mask(op):
            return "whole-numbers", ""
        left = self._left_by_recipe(site)
        if left is not None:
            return "recipe", left
        if (self._recipe_at(site).upsampling if up else self._recipe_at(site).resampling) == "skip":
            return ("upsampling", "") if up else ("resampling", op.detail)
        if any(other.stride != op.stride for other in ops):
            return "varies", ""
        return None

    def _left_by_recipe(self, site: Found) -> str | None:
        """Why the recipe leaves a site alone, if it does."""
        op, recipe, left = site.op, self._recipe_at(site), self._wanted[site.name].left
        if left is not None:
            return left
        if op.kind in recipe.skip_kinds:
            return f"kind {op.kind}"
        glob = next((name for name in recipe.skip_names if fnmatch.fnmatchcase(site.name, name)), None)
        if glob is not None:
            return f"name {glob}"
        channels = op.channels
        return f"{channels} channels, fewer than {recipe.min_channels}" if channels < recipe.min_channels else None

    def _check_patterns(self, sites: Sequence[Site]) -> None:
        """A pattern that matches nothing is a mistake: what it was to leave alone would be converted."""
        names = [site.name for site in sites]
        for glob in self.recipe.skip_names:
            if not any(fnmatch.fnmatchcase(name, glob) for name in names):
                raise BlurifyError(
                    f"the recipe's [skip] names has {glob!r}, which matches no site of this model: "
                    f"{nearest_site(glob, names)}"
                )

    def _check_shared(self, sites: Sequence[Found], points: dict[str, tuple[Node, ...]]) -> None:
        """Branches that are added share one blur: they can't have different ones."""
        first: dict[Node, Found] = {}
        for site in sites:
            for node in points.get(site.name, ()):
                other = first.setdefault(node, site)
                one, two = (self.rules_at(s).after_blur(s.op) for s in (other, site))
                if (one.method, one.padding) != (two.method, two.padding):
                    raise BlurifyError(
                        f"{other.name!r} and {site.name!r} share one blur (their outputs are added before it), and the "
                        "recipe gives them different filters: give them the same"
                    )

    def _blur_points(self, sites: Sequence[Found]) -> dict[str, tuple[Node, ...]]:
        """The blur points of the convolutions that are followed by a nonlinearity, one for each run."""
        points: dict[Node, Node | None] = {}
        for seen in self.traces:
            convs = {}
            for number, site in enumerate(sites):
                op, splits = site.op, self.rules_at(site).splits(site.op)
                behind = splits or self._recipe_at(site).conv == "after-activation"
                if op.kind == "conv" and behind and not is_patchify(op):
                    for other in site.ops:
                        if other.node.graph is seen.graph:
                            convs[other.node] = (halves(op.stride) if splits else op.stride, number)
            points |= blur_points(seen.graph, convs)
        result = {}
        for site in sites:
            nodes = tuple(points.get(op.node) for op in site.ops)
            if all(nodes):
                result[site.name] = nodes
        return result  # type: ignore[return-value]

    def _unseen(self, found: Sequence[Found]) -> Iterator[Site]:
        """Strided modules that tracing did not see run: listed, so that nothing is passed over in silence."""
        for name, _ in scripted_modules(self.model):
            yield _listed(name, "script", "scripted")
        ran = {call.path for call in self.trace.calls}
        names = {site.name for site in found}
        for name, module in self.model.named_modules():
            kind = "conv" if isinstance(module, CONV_CLASSES) else POOL_CLASSES.get(type(module))
            kind = kind or _RESAMPLER_CLASSES.get(type(module))
            if kind is None or name in ran or name in names or isinstance(module, torch.jit.ScriptModule):
                continue
            if type(module) in _WITHOUT_STRIDE:
                yield _listed(name, kind, "not-run")
            elif max(given_per_dim(module.stride, 1)) > 1:
                yield _listed(name, kind, "not-run", module)

    # --- what is done

    def _skipped(self, site: Found, rule: str, detail: str = "") -> Site:
        op = site.op
        edits: tuple[Any, ...] = ()
        if rule == "global-pool" and detail:
            try:
                edits = self.rules_at(site).avgpool(site, unless_global=True).place()[1]
            except (NoWay, CannotRewriteError, FilterTooLongError):
                detail = ""
        return Site(
            site.name, op.kind, op.kernel_size, op.stride, op.input_shape, op.output_shape,
            "skip", rule, REASONS[rule].format(detail), edits=edits,
        )  # fmt: skip

    def _planned(self, site: Found, points: tuple[Node, ...] | None) -> Site:
        try:
            return self._blurred(site, points)
        except FilterTooLongError as error:
            return self._skipped(site, "too-long", str(error))

    def _blurred(self, site: Found, points: tuple[Node, ...] | None) -> Site:
        op = site.op
        problem = ""
        rules = self.rules_at(site)
        ways = [resampling_way(rules, site)] if isinstance(op, Resampler) else rules.ways(site, points)
        for way in ways:
            try:
                where, edits = way.place()
            except (NoWay, CannotRewriteError) as error:
                problem = problem or str(error)
                if points is not None:
                    self._unreached[site.name] = problem
                continue
            reason = way.reason
            if site.name in self._unreached and way.rule not in _AFTER:
                reason = f"blur before it: after its nonlinearity it can't be done ({self._unreached[site.name]})"
            return Site(
                site.name, op.kind, op.kernel_size, op.stride, op.input_shape, op.output_shape, "blur",
                way.rule, reason, where, way.extra_macs, edits,
            )  # fmt: skip
        return self._skipped(site, "source", problem)


def _in_training(model: nn.Module, seen: Trace) -> list[Trace]:
    """The trace in train mode too, where the model can be run like that: branches of it have the same edits."""
    if seen.real:
        return []  # real features once more cost as much as the model, and training often wants targets there
    state, python_state = torch.get_rng_state(), random.getstate()
    try:
        other = trace(model, seen.inputs, training=True)
    except Exception:  # it wants targets, or larger batches
        return []
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)
    return [] if other.real else [other]


def _covers_input(op: Op) -> bool:
    space = op.input_shape[-op.rank :]
    return all(k >= n for k, n in zip(op.kernel_size, space, strict=True))


def _indices_unused(op: Op) -> bool:
    return op.node.meta["shape"] is None and all(user.args[1] == 0 or not user.users for user in op.node.users)


def _listed(name: str, kind: str, rule: str, module: nn.Module | None = None) -> Site:
    fields = ("kernel_size", "stride")
    kernel, stride = (given_per_dim(getattr(module, field), 1) if module else () for field in fields)
    return Site(name, kind, kernel, stride, (), (), "skip", rule, REASONS[rule])
