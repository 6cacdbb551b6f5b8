"""Prove a conversion on the user's own model: identity, audit, weights."""

from __future__ import annotations

import time

from torch import nn

from blurify.errors import BlurifyError, VerificationError
from blurify.graph import supplying
from blurify.graph.structure import Inputs
from blurify.planning.planner import Decided
from blurify.proof.audit import sites_left
from blurify.proof.averages import check_averages
from blurify.proof.filters import wrong_filters
from blurify.proof.identity import identity_of
from blurify.proof.proof import Proof
from blurify.proof.weights import Fingerprint, check_weights, fingerprint
from blurify.surgery.force import problems


def verify(original: nn.Module, converted: nn.Module, decided: Decided, inputs: Inputs, before: Fingerprint) -> Proof:
    """Prove a conversion; neither model is changed.

    Args:
        original: the model before the conversion.
        converted: the model after it.
        decided: what was done, and where.
        inputs: (args, kwargs); tensors of zeros are filled with noise.
        before: the fingerprint of the original's weights, taken before anything was done: the two models may share
            their tensors.

    Raises:
        VerificationError: a check failed; the message names it and what to do.
    """
    begin, plan = time.perf_counter(), decided.plan
    equal = check_weights(before, fingerprint(converted))
    wrong = problems(converted, plan)
    if wrong:
        raise VerificationError(f"the edits of the plan were not carried out as planned: {wrong[0]}")
    wrong = wrong_filters(converted, plan)
    if wrong:
        raise VerificationError(
            f"{wrong[0]}: please report this model; --no-verify (verify=False) converts it all the same"
        )
    _check_modules(original, converted, decided)
    try:
        left = sites_left(converted, plan, inputs)
    except BlurifyError as error:
        raise VerificationError(f"the converted model does not run: {error}") from error
    if left:
        raise VerificationError(
            f"{len(left)} of the sites that the plan converts still alias, first {left[0]}: "
            "please report this model; skip the site in a recipe ([skip] names) to go on"
        )
    averages = check_averages(original, converted, plan, decided.points)
    found = identity_of(original, decided, inputs)
    if not found.within_tolerance:
        raise VerificationError(
            f"with the one-tap filter {found.worst} differ{'' if found.worst.startswith('the ') else 's'} from the "
            f"original's by {found.error:.1e} ({found.dtype}): "
            "please report this model; --no-verify (verify=False) converts it all the same"
        )
    missing = [site.name for site in plan.converted if site.name not in found.compared]
    if missing:
        raise VerificationError(
            f"{len(missing)} of the sites that the plan converts were not reached when the proof ran the model, first "
            f"{missing[0]}: give example_inputs that reach it, or skip the site in a recipe ([skip] names)"
        )
    # Nothing was compared of tensors without data, unless they are supplied from a file, which no conversion touches.
    made_up = any(
        tensor.is_meta for tensor in (*original.parameters(), *original.buffers())
    ) and not supplying.is_supplied(original)
    unshown = tuple(name for name in found.unshown if name not in averages)
    return Proof(
        identity_error=found.error,
        dtype=found.dtype,
        outputs=found.outputs,
        sites_converted=len(plan.converted),
        sites_left=0,
        tensors_equal=0 if made_up else equal,
        seconds=time.perf_counter() - begin,
        sites_compared=len(found.compared),
        sites_shown=len(found.compared) - len(unshown),
        unshown=unshown,
        train=found.train,
        made_up=made_up,
        adaptive=sum(edit.blur is not None and edit.blur.phase is not None for edit in plan.edits),
    )


def _check_modules(original: nn.Module, converted: nn.Module, decided: Decided) -> None:
    """Check that there are the original's modules, of their classes, and the plan's parts, and no others."""
    parts = [path for edit in decided.plan.edits if (path := getattr(edit, "part", None) or edit.blur_path) is not None]
    before = {name: type(module).__qualname__ for name, module in original.named_modules()}
    for name, module in converted.named_modules():
        if name in before:
            cls = type(module)
            names = {cls.__qualname__, *(base.__qualname__ for base in cls.__mro__)}
            if before.pop(name) not in names:
                raise VerificationError(f"the module {name!r} is no longer what it was")
        elif not any(name == part or name.startswith(f"{part}.") for part in parts):
            raise VerificationError(f"the conversion brought a module that is not in its plan, {name!r}")
    if before:
        raise VerificationError(f"the conversion lost the module {min(before)!r}")
