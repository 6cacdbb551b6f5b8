"""The verbs: `inspect` says what would happen to a model, `convert` does it and proves it, `revert` undoes it."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError, VerificationError
from blurify.files import plan_files
from blurify.graph.copies import copy_model, sharing_copy
from blurify.graph.inputs import as_traced, given_inputs, traced
from blurify.graph.recorder import Trace, trace
from blurify.graph.structure import Inputs
from blurify.nn.exported import Exported
from blurify.planning.costs import with_memory
from blurify.planning.planner import Decided, decide
from blurify.proof import verify as proving
from blurify.proof.filters import wrong_filters
from blurify.proof.proof import carry_proof, proof_of
from blurify.proof.rehearsal import rehearsed
from blurify.proof.weights import Fingerprint, check_weights, fingerprint
from blurify.spec.overrides import Override
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe, load_recipe, override_from_dict
from blurify.surgery import undo
from blurify.surgery.apply import apply_plan
from blurify.surgery.carrying import plan_of
from blurify.surgery.force import problems
from blurify.surgery.marking import mark_configuration, mark_of_configuration

__all__ = ["Condition", "check", "convert", "inspect", "proof_of", "revert", "reverted"]

RecipeLike = str | Path | Mapping[str, Any] | Recipe | None
SiteFilter = Callable[[Site], "bool | Mapping[str, Any] | None"]
"""Asked once of every site of the plan: False leaves it alone, a mapping has settings for it (as a `[[site]]` table of
a recipe has: `{"taps": 3, "placement": "before"}`, `{"skip": False}`), True or None leaves it as planned."""

reverted = undo.reverted


def inspect(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: RecipeLike = None,
    *,
    site_filter: SiteFilter | None = None,
    memory: bool = False,
) -> Plan:
    """List the sites of a model, and what a conversion would do at each. The model is not changed.

    Args:
        model: any eager PyTorch module, on any device (also 'meta').
        example_inputs: what to call it with: a tensor, a tuple of arguments or a dict of keywords. Only shapes matter.
            Inferred where None: timm's configuration, else the first layer's rank and channels and a usual size.
        recipe: the name of a recipe, a path to one, a Recipe or a mapping; None is 'zhang2019'. A path that ends in
            '.json' is a plan file (`blurify inspect MODEL --plan`), which is followed.
        site_filter: a function of each site, for what a recipe can't say: see `convert`.
        memory: predict the bytes, too, that a forward writes and that a training step keeps for its backward (two
            more forwards without data).

    Returns:
        the plan: `.sites` (each with name, kind, kernel_size, stride, shapes, action, reason, placement, extra_macs),
        and `.macs`, `.extra_macs`, `.count()`, `.to_dict()`; with `memory` also `.written`, `.extra_written`, `.kept`
        and `.extra_kept`, in all and of each site.

    Raises:
        BlurifyError: the model refuses the inputs, or can't be seen into; the recipe has a pattern that matches no
            site.

    Example:
        >>> for site in blurify.inspect(model).sites:
        ...     print(site.name, site.kind, site.action, site.reason)
    """
    wanted, inputs = _wanted(model, recipe, example_inputs, site_filter)
    decided = rehearsed(model, wanted, inputs)
    return with_memory(model, decided) if memory else decided.plan


def _wanted(
    model: nn.Module, recipe: RecipeLike, example_inputs: Any, site_filter: SiteFilter | None, size: int | None = None
) -> tuple[Recipe, Any]:
    """What the user wants of a model, as a recipe alone, and the example inputs."""
    followed = isinstance(recipe, str | Path) and plan_files.is_plan_file(recipe)
    if not followed and site_filter is None:
        return load_recipe(recipe).with_filter(size), example_inputs
    if plan_of(model) is not None:
        model = revert(model)
    if followed:
        if size is not None:
            raise BlurifyError("a plan file has the filter of every site: leave filter_size out, or edit the file")
        wanted, example_inputs = plan_files.follow(model, plan_files.read(str(recipe)), str(recipe), example_inputs)
    else:
        wanted = load_recipe(recipe).with_filter(size)
    if site_filter is not None:
        wanted = _filtered(rehearsed(model, wanted, example_inputs).plan, wanted, site_filter)
    return wanted, example_inputs


def _filtered(plan: Plan, recipe: Recipe, site_filter: SiteFilter) -> Recipe:
    """The recipe with a `[[site]]` table for each site of which a function says otherwise than the plan."""
    more = []
    for site in plan.sites:
        answer = site_filter(site)
        if answer is None or answer == {}:
            continue
        if isinstance(answer, Mapping):
            read = override_from_dict(dict(answer), f"what site_filter returned for {site.name!r}")
            more.append(Override.exactly(site.name, skip=read.skip, because=read.because, settings=read.settings))
        elif answer not in (True, False):
            raise BlurifyError(
                f"site_filter returned {str(answer)[:80]!r} for {site.name!r}: return False to leave the site alone, a "
                "mapping of settings, or True"
            )
        elif not answer and site.action == "blur":
            more.append(Override.exactly(site.name, skip=True, because="site_filter"))
    return recipe.with_sites(more) if more else recipe


def convert(
    model: nn.Module,
    recipe: RecipeLike = None,
    *,
    filter_size: int | None = None,
    example_inputs: Any = None,
    inplace: bool = False,
    verify: bool = True,
    site_filter: SiteFilter | None = None,
    memory: bool = False,
) -> nn.Module:
    """Give the same model back, anti-aliased.

    Same class, same weights under the same names, a low-pass filter at every subsampling step (Zhang, "Making
    Convolutional Networks Shift-Invariant Again", ICML 2019).

    Args:
        model: any eager PyTorch module. One that was converted by the same recipe comes back as it is; by another one,
            it is converted anew from the original.
        recipe: the name of a recipe, a path to one, a Recipe or a mapping; None is 'zhang2019'. A path that ends in
            '.json' is a plan file (`blurify inspect MODEL --plan`), which is followed.
        filter_size: number of binomial taps, 1..7, in place of the recipe's filters.
        example_inputs: what to call the model with (see `inspect`).
        inplace: change the model itself; otherwise a deep copy is changed, and the model is left as it was. An
            optimizer that was made before holds the parameters of the model itself: it needs `inplace=True`.
        verify: prove the result on this very model (docs/how-it-works.md); `proof_of` returns the proof.
        site_filter: called once with every site as the recipe plans it (name, kind, stride, shapes, action, ...).
            False leaves the site alone; a mapping has settings for it, as a `[[site]]` table of a recipe has
            (`{"taps": 3}`, `{"placement": "before"}`, `{"skip": False}`); True or None leaves it as planned. What it
            answered is kept in the plan as data, not the function.
        memory: let the plan say what it costs in bytes, too (see `inspect`).

    Returns:
        the converted model, in the train/eval mode and on the device that it had.

    Raises:
        BlurifyError: the model refuses the inputs, or can't be seen into.
        VerificationError: the proof failed; the model is as it was.

    Example:
        >>> model = blurify.convert(timm.create_model("resnet50", pretrained=True))
        >>> model = blurify.convert(model, site_filter=lambda site: site.kind != "maxpool")
    """
    before = plan_of(model)
    if isinstance(model, Exported) and model.converted is not None:
        done, sites = model.converted
        raise BlurifyError(
            f"this program was exported from a converted model ({done} of {sites} sites blurred), and would be blurred "
            "twice: convert the model that it was made from"
        )
    if before is not None:
        wrong = problems(model, before)
        if wrong:
            raise BlurifyError(
                f"the model was converted and then changed, its plan is no longer in force ({wrong[0]}): convert the "
                "original model"
            )
    wanted, example_inputs = _wanted(model, recipe, example_inputs, site_filter, filter_size)
    if before is not None:
        if before.recipe == wanted.pinned([site.name for site in before.sites]):
            return model if inplace else copy_model(model)
        if not inplace:
            return convert(
                revert(model), wanted, example_inputs=example_inputs, inplace=True, verify=verify, memory=memory
            )
        with undo.taken_back_unless_done(model):
            return convert(model, wanted, example_inputs=example_inputs, inplace=True, verify=verify, memory=memory)
    if (mark := mark_of_configuration(model)) is not None:
        warnings.warn(
            f"the configuration says that these weights are of a model converted by {mark.plan.recipe.name}, whose "
            "blurs are gone: blurify.reload(model) puts exactly those back",
            stacklevel=2,
        )
    seen = traced(model, example_inputs)
    inputs: Inputs = seen.inputs if example_inputs is None else as_traced(given_inputs(example_inputs), seen.inputs)
    decided = rehearsed(model, wanted, inputs, seen=seen)
    if not verify:
        result = model if inplace else copy_model(model)
        planned = with_memory(model, decided) if memory else decided.plan
        apply_plan(result, planned)
        mark_configuration(result, planned)
        return result
    weights = fingerprint(model)
    first: VerificationError | None = None
    for attempt in (decided, *_more_careful(model, wanted, inputs, seen, decided)):
        if memory:
            attempt = dataclasses.replace(attempt, plan=with_memory(model, attempt))
        result = sharing_copy(model) if inplace else copy_model(model)
        try:
            apply_plan(result, attempt.plan)
            proof = proving.verify(model, result, attempt, inputs, weights)
        except VerificationError as error:
            first = first or error
            continue
        if inplace:
            result = model
            apply_plan(model, attempt.plan)
            _check_again(model, attempt.plan, weights)
        mark_configuration(result, attempt.plan)
        carry_proof(result, proof)
        return result
    assert first is not None
    raise first


def _check_again(model: nn.Module, plan: Plan, weights: Fingerprint) -> None:
    """What was proven is a copy around the same weights: the model itself must be as that copy was."""
    wrong = [*problems(model, plan), *wrong_filters(model, plan)]
    if wrong:
        raise VerificationError(f"the edits of the plan were not carried out as planned: {wrong[0]}")
    check_weights(weights, fingerprint(model))


def _more_careful(model: nn.Module, recipe: Recipe, inputs: Inputs, seen: Trace, decided: Decided) -> Iterator[Decided]:
    """Other plans for a model whose code does what the trace does not tell: edits within one module, then the simplest.

    Each is proven like the first one.
    """
    names = frozenset(site.name for site in decided.plan.converted)
    before = decided.plan
    for local, simple in ((names, frozenset[str]()), (names, names)):
        other = decide(model, recipe, inputs, seen=seen, local=local, simple=simple)
        if other.plan != before:
            yield other
        before = other.plan


def revert(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Give the original model back: the same class, strides, forwards and weights (as they are now).

    Args:
        model: converted by `convert`.
        inplace: change the model itself; otherwise a deep copy is.

    Raises:
        BlurifyError: it was not converted, or it was changed since so that its plan is no longer in force.

    `reverted(model)` is the same for the length of a `with` block.
    """
    result = model if inplace else copy_model(model)
    undo.undo(result)
    return result


@dataclass(frozen=True)
class Condition:
    """Whether a converted model's plan is still in force; true where it is.

    Attributes:
        problems: what is no longer so, a line each.
        blurs: how many blurs the plan has.
        ran: how many of them ran in a forward; None where the model could not be run.
    """

    problems: tuple[str, ...]
    blurs: int
    ran: int | None = None

    def __bool__(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """The same in words."""
        if self.problems:
            return [f"not in force: {problem}" for problem in self.problems]
        ran = "" if self.ran is None else f", {self.ran} of them ran in a forward"
        return [f"in force: all {self.blurs} blurs of the plan are in place{ran}"]


def check(model: nn.Module, example_inputs: Any = None) -> Condition:
    """Say whether the plan of a converted model is still in force: fusing, swapping and freezing may undo edits.

    Args:
        model: converted by `convert`; it is not changed.
        example_inputs: what to call it with, to see every blur run; the shapes that it was planned with where None.

    Returns:
        true or false, with `.problems` and `.lines()`.

    Raises:
        BlurifyError: the model carries no plan.
    """
    plan = plan_of(model)
    if plan is None and (mark := mark_of_configuration(model)) is not None:
        blurs = sum(len(site.blur_paths) for site in mark.plan.sites)
        return Condition(("its configuration has the plan, but the blurs are gone: blurify.reload(model)",), blurs)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it first")
    found = list(problems(model, plan)) or wrong_filters(model, plan)
    paths = {path for site in plan.sites for path in site.blur_paths}
    skipped = {path for site in plan.skipped for path in site.blur_paths}
    ran: int | None = None
    if not found:
        ran_paths = _blurs_that_run(model, plan, example_inputs)
        if ran_paths is not None:
            wanted = paths - skipped - plan.idle_blurs
            found += [f"the blur {path!r} does not run any more" for path in sorted(wanted - ran_paths)]
            ran = len(paths & ran_paths)
    return Condition(tuple(found), len(paths), ran)


def _blurs_that_run(model: nn.Module, plan: Plan, example_inputs: Any) -> set[str | None] | None:
    """The paths of the modules that a forward calls; None where it can't be run."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    planned = tuple(torch.zeros(shape, dtype=dtype, device="cpu") for shape in plan.input_shapes)
    seen = None
    for inputs in (example_inputs,) if example_inputs is not None else (planned, None):
        with contextlib.suppress(BlurifyError):  # planned with whole numbers, or by keywords
            seen = traced(model, inputs)
            break
    if seen is None:
        return None
    called = {call.path for call in seen.calls}
    if example_inputs is None:  # blurs may stand where only another mode gets
        try:
            called |= {call.path for call in trace(model, seen.inputs, training=True).calls}
        except Exception:
            return called
    return called
