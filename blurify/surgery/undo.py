"""Undo a conversion: the original model comes back, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.nn.arguments import set_stride
from blurify.nn.edited import JOINED, changes_of, set_changes
from blurify.nn.joining import has_pairs
from blurify.spec.edits import BlurPooling, Edit, SetStride
from blurify.spec.plan import Plan
from blurify.surgery.apply import ANTIALIASED, apply_plan, changes_in
from blurify.surgery.carrying import adapted_of, carry_adapted, drop_plan, plan_of
from blurify.surgery.force import edit_problems, problems
from blurify.surgery.marking import mark_configuration

_PROOF = "_blurify_proof"
_ORIGINAL = {cls: base for base, cls in ANTIALIASED.items()}


def undo(model: nn.Module) -> None:
    """Take a conversion back, in place.

    Raises:
        BlurifyError: the model was not converted, or was changed since in a way that can't be undone.
    """
    plan = plan_of(model)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: there is nothing to revert")
    wrong = problems(model, plan)
    if wrong:
        raise BlurifyError(f"the model was changed after it was converted ({wrong[0]}): build the original again")
    modules = dict(model.named_modules())
    for edit in plan.edits:
        _undo(modules[edit.module], edit)
    for name in changes_in(plan):
        set_changes(modules[name], ())
    for name in sorted({edit.module.rpartition(".")[0] for edit in plan.edits}):
        around = modules.get(name)
        if around is not None and JOINED in changes_of(around) and not has_pairs(around):  # else of a part's own plan
            set_changes(around, tuple(change for change in changes_of(around) if change != JOINED))
    drop_plan(model)
    mark_configuration(model, None)
    carry_adapted(model, None)
    model.__dict__.pop(_PROOF, None)


def take_out(model: nn.Module, plan: Plan, edited: frozenset[int]) -> frozenset[Edit]:
    """Take the edits of a plan out of a model whose classes are already those that its authors wrote.

    Args:
        model: as it was unpickled.
        plan: the plan that it carried.
        edited: by identity, the modules whose class was an edited one.

    Returns:
        the edits that were not in the model any more.
    """
    modules = dict(model.named_modules())
    classes = changes_in(plan)
    lost: set[Edit] = set()
    for edit in plan.edits:
        module = modules.get(edit.module)
        try:
            there = module is not None and not edit_problems(modules, module, edit)
        except Exception:  # a part with attributes that nobody wrote
            there = False
        # Those of 0.1.0 that ran by hooks are counted as edited, too.
        own = edit.module in classes and not isinstance(edit, BlurPooling | SetStride)
        if not there or (own and id(module) not in edited):
            lost.add(edit)
    for edit in plan.edits:
        if edit not in lost:
            _undo(modules[edit.module], edit)
    return frozenset(lost)


def _undo(module: nn.Module, edit: Edit) -> None:
    match edit:
        case SetStride():
            stride: Any = edit.before
            setattr(module, "stride", stride) if isinstance(stride, int) else set_stride(module, stride)
        case BlurPooling():
            del module._modules["blurpool"]
            for name in ("dense_kernel_size", "unless_global"):
                vars(module).pop(name, None)
            module.__class__ = _ORIGINAL[type(module)]
        case _:
            module._modules.pop(edit.child, None)


@contextmanager
def reverted(model: nn.Module) -> Iterator[nn.Module]:
    """Within the context a converted model is the original again; after it, it is converted as it was.

    Args:
        model: converted; it is changed in place, both ways.

    Yields:
        the same object.

    Raises:
        BlurifyError: as `blurify.revert`.
    """
    plan, proof, adapted = plan_of(model), vars(model).get(_PROOF), adapted_of(model)
    undo(model)
    assert plan is not None  # or `undo` had refused
    try:
        yield model
    finally:
        apply_plan(model, plan)
        mark_configuration(model, plan)
        carry_adapted(model, adapted)
        if proof is not None:
            model.__dict__[_PROOF] = proof


@contextmanager
def taken_back_unless_done(model: nn.Module) -> Iterator[None]:
    """Within the context a converted model is the original again, to be converted anew; if that fails, it is as it was.

    Raises:
        BlurifyError: as `undo`.
    """
    plan, proof, adapted = plan_of(model), vars(model).get(_PROOF), adapted_of(model)
    undo(model)
    assert plan is not None  # or `undo` had refused
    try:
        yield
    except BaseException:
        apply_plan(model, plan)
        carry_adapted(model, adapted)
        if proof is not None:
            model.__dict__[_PROOF] = proof
        raise
