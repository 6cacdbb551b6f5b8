"""Carry a plan out: edit the model in place, so that it stays the same object, of the same class and weights."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

from blurify import nn as layers
from blurify.errors import BlurifyError
from blurify.nn.aps import ApsPool, SharedPhase
from blurify.nn.arguments import set_stride
from blurify.nn.build import build
from blurify.nn.calls import BlurredAvgPool, BlurredConv, BlurredMaxPool, BlurredSlice, DenseConv, MemberBlur
from blurify.nn.edited import JOINED, Change, changes_of, edit_class, set_changes
from blurify.nn.joining import has_pairs
from blurify.nn.sequential import place
from blurify.spec.edits import BlurInput, BlurOutput, BlurPooling, Edit, InsertBlur, Rewrite, SetStride
from blurify.spec.plan import Plan
from blurify.surgery.carrying import carry_plan
from blurify.surgery.marking import mark_blurs

ANTIALIASED: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: layers.MaxBlurPool1d,
    nn.MaxPool2d: layers.MaxBlurPool2d,
    nn.MaxPool3d: layers.MaxBlurPool3d,
    nn.AvgPool1d: layers.AvgBlurPool1d,
    nn.AvgPool2d: layers.AvgBlurPool2d,
    nn.AvgPool3d: layers.AvgBlurPool3d,
}
"""The anti-aliased class of each pool of torch."""

_FORMS = {"wrap": "wrap", "wrap-input": "input", "member-wrap": "owed", "member-dense": "member"}


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Edit `model` in place as `plan` says, and let it carry the plan.

    Raises:
        BlurifyError: the plan was made for another model (nothing is changed then).
    """
    with torch.device("cpu"):  # where filters are made, whatever the default device; then they go where the model is
        _apply_plan(model, plan)


def _apply_plan(model: nn.Module, plan: Plan) -> None:
    modules = dict(model.named_modules())
    missing = sorted({edit.module for edit in plan.edits} - set(modules))
    if missing:
        raise BlurifyError(
            f"the plan was made for another model ({plan.model}): this {type(model).__name__} has no {missing[0]!r}"
        )
    for edit in plan.edits:
        _check(modules[edit.module], edit)
    changed: list[tuple[nn.Module, tuple[Change, ...]]] = []
    try:  # first, as only these can still fail
        for name, changes in changes_in(plan).items():
            changed.append((modules[name], changes_of(modules[name])))
            edit_class(modules[name], changes)
    except BaseException:
        for module, before in changed:
            set_changes(module, before)
        raise
    for edit in plan.edits:
        _apply(modules[edit.module], edit, _device_of(modules[edit.module], model))
    _join(model, plan)
    _share_phases(model, plan)
    carry_plan(model, plan)
    mark_blurs(model, plan)


def _join(model: nn.Module, plan: Plan) -> None:
    """Let activations run in one pass with the blurs behind them, in a Sequential."""
    for edit in plan.edits:
        path = edit.module if isinstance(edit, InsertBlur) else edit.module.rpartition(".")[0]
        module = model.get_submodule(path)
        if edit.blur is not None and has_pairs(module) and JOINED not in changes_of(module):
            edit_class(module, [JOINED])


def _share_phases(model: nn.Module, plan: Plan) -> None:
    """Give the blurs of adaptive polyphase sampling that belong together the same holder of their phase."""
    holders: dict[str, SharedPhase] = {}
    for edit in plan.edits:
        if edit.blur is None or edit.blur.phase is None or edit.blur_path is None:
            continue
        layer = model.get_submodule(edit.blur_path)
        if isinstance(layer, ApsPool):
            for i, (group, back) in enumerate(zip(layer.groups, layer.back, strict=True)):
                holder = holders.setdefault(group, layer.shared[i])
                holder.depth = max(holder.depth, back + 1)
                layer.add_module(f"phase{i}", holder)


def changes_in(plan: Plan) -> dict[str, list[Change]]:
    """What a plan changes in the classes of modules, by their paths."""
    found: dict[str, list[Change]] = defaultdict(list)
    for edit in plan.edits:
        match edit:
            case Rewrite():
                form = _FORMS.get(edit.op, "call")
                found[edit.module].append(("expression", edit.path, edit.child, form, edit.index))
            case BlurInput():
                found[edit.module].append(("input", edit.child, edit.index))
            case BlurOutput():
                found[edit.module].append(("output", edit.child))
            case InsertBlur():
                found[edit.module].append(("member", edit.child))
    return dict(found)


def _check(module: nn.Module, edit: Edit) -> None:
    """Raise BlurifyError where an edit does not fit a module."""
    if isinstance(edit, SetStride) and not hasattr(module, "stride"):
        raise BlurifyError(f"the plan was made for another model: {edit.module!r} has no stride to set")
    if isinstance(edit, BlurPooling) and type(module) not in ANTIALIASED:
        raise BlurifyError(f"the plan was made for another model: {edit.module!r} is no plain pool of torch")
    if isinstance(edit, InsertBlur) and edit.member not in module._modules:
        raise BlurifyError(f"the plan was made for another model: {edit.module!r} has no member {edit.member!r}")
    child = "blurpool" if isinstance(edit, BlurPooling) else getattr(edit, "child", None)
    if child is not None and hasattr(module, child):
        raise BlurifyError(
            f"{type(module).__name__} has already an attribute {child!r}: rename it, or skip the site in the recipe"
        )


def _apply(module: nn.Module, edit: Edit, device: torch.device) -> None:
    match edit:
        case SetStride():
            set_stride(module, edit.stride)
        case BlurPooling():
            module.__class__ = ANTIALIASED[type(module)]
            module.add_module("blurpool", _placed(build(edit.blur), module, device))
            if edit.kernel_size is not None:
                module.dense_kernel_size = edit.kernel_size  # type: ignore[assignment]
            if edit.unless_global:
                module.unless_global = True  # type: ignore[assignment]
        case InsertBlur():
            place(module, edit.child, _placed(build(edit.blur), module, device), edit.member, behind=edit.after)
        case BlurOutput() | BlurInput():
            module.add_module(edit.child, _placed(build(edit.blur), module, device))
        case Rewrite():
            child = _child(edit)
            if child is not None and edit.child not in module._modules:  # else another expression brought it
                module.add_module(edit.child, _placed(child, module, device))


def _child(edit: Rewrite) -> nn.Module | None:
    """The module that an expression goes through."""
    if edit.op == "member-dense":
        return None
    if edit.op == "conv-dense":
        return DenseConv(edit.stride)
    assert edit.blur is not None
    blur = build(edit.blur)
    match edit.op:
        case "conv-blurred":
            return BlurredConv(blur, edit.stride)
        case "maxpool":
            return BlurredMaxPool(blur, edit.kernel_size)
        case "avgpool":
            return BlurredAvgPool(blur, edit.kernel_size, edit.unless_global)
        case "slice":
            return BlurredSlice(blur, edit.dims)
        case "member-wrap":
            return MemberBlur(blur, edit.members)
        case _:
            return blur


def _placed(child: nn.Module, module: nn.Module, device: torch.device) -> nn.Module:
    """A new part of a module, in its mode and on its device."""
    child.train(module.training)
    return child.to(device)


def _device_of(module: nn.Module, model: nn.Module) -> torch.device:
    """Where a module runs: where its tensors are, else the model's."""
    for owner in (module, model):
        for tensor in (*owner.parameters(), *owner.buffers()):
            return tensor.device
    return torch.device("cpu")
