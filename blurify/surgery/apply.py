"""Carry a plan out: edit the model in place, so that it stays the same object, of the same class and weights."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from typing import Any

from torch import nn

from blurify import nn as layers
from blurify.errors import BlurifyError
from blurify.nn.calls import BlurredAvgPool, BlurredConv, BlurredMaxPool, BlurredSlice, DenseConv
from blurify.nn.rewriting import rewrite_module
from blurify.planning.planner import set_stride
from blurify.spec.plan import Blur, BlurInput, BlurOutput, BlurPooling, Edit, Plan, Rewrite, SetStride

_PLAN = "_blurify_plan"


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a converted model carries, None for a model that was not converted."""
    plan = getattr(model, _PLAN, None)
    return plan if isinstance(plan, Plan) else None


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Edit `model` in place as `plan` says, and let it carry the plan.

    Raises:
        BlurifyError: the plan was made for another model (nothing is changed then).
    """
    modules = dict(model.named_modules())
    missing = sorted({edit.module for edit in plan.edits} - set(modules))
    if missing:
        raise BlurifyError(
            f"the plan was made for another model ({plan.model}): this {type(model).__name__} has no {missing[0]!r}"
        )
    rewrites: dict[str, list[Rewrite]] = defaultdict(list)
    for edit in plan.edits:
        if isinstance(edit, Rewrite):
            rewrites[edit.module].append(edit)
    for name, edits in rewrites.items():  # first, as only they can fail
        rewrite_module(modules[name], edits)
    for edit in plan.edits:
        _apply(modules[edit.module], edit)
    setattr(model, _PLAN, plan)


def _apply(module: nn.Module, edit: Edit) -> None:
    match edit:
        case SetStride():
            set_stride(module, edit.stride)
        case BlurOutput():
            _add(module, "blur_output", build(edit.blur))
            module.register_forward_hook(blur_output, prepend=True)
        case BlurInput():
            _add(module, "blur_input", build(edit.blur))
            module.register_forward_pre_hook(
                functools.partial(blur_input, index=edit.index) if edit.index else blur_input
            )
        case BlurPooling():
            module.__class__ = _ANTIALIASED[type(module)]
            _add(module, "blurpool", build(edit.blur))
            if edit.kernel_size is not None:
                module.dense_kernel_size = edit.kernel_size  # type: ignore[assignment]
        case Rewrite():
            _add(module, edit.child, _child(edit))


def build(blur: Blur) -> nn.Module:
    """The BlurPool1d, 2d or 3d that a plan's Blur describes."""
    return layers.blurpool(len(blur.stride))(
        blur.stride,
        None,
        taps=blur.taps,
        padding=blur.padding,
        factor=blur.factor,
        shift=blur.shift or 0,
    )


def _child(edit: Rewrite) -> nn.Module:
    blur = build(edit.blur) if edit.blur is not None else None
    if edit.op == "conv-dense":
        return DenseConv(edit.stride)
    assert blur is not None
    if edit.op == "conv-blurred":
        return BlurredConv(blur, edit.stride)
    if edit.op == "maxpool":
        return BlurredMaxPool(blur, edit.kernel_size)
    if edit.op == "slice":
        return BlurredSlice(blur, edit.dims)
    return BlurredAvgPool(blur) if edit.op == "avgpool" else blur


def _add(module: nn.Module, name: str, child: nn.Module) -> None:
    if hasattr(module, name):
        raise BlurifyError(
            f"{type(module).__name__} has already an attribute {name!r}: rename it, or skip the site in the recipe"
        )
    child.train(module.training)
    module.add_module(name, child)


_ANTIALIASED: dict[type[nn.Module], type[nn.Module]] = {
    nn.MaxPool1d: layers.MaxBlurPool1d,
    nn.MaxPool2d: layers.MaxBlurPool2d,
    nn.MaxPool3d: layers.MaxBlurPool3d,
    nn.AvgPool1d: layers.AvgBlurPool1d,
    nn.AvgPool2d: layers.AvgBlurPool2d,
    nn.AvgPool3d: layers.AvgBlurPool3d,
}


def blur_output(module: Any, args: Any, output: Any) -> Any:
    """Forward hook: what the module returns, blurred. At module level, so that models pickle."""
    return module.blur_output(output)


def blur_input(module: Any, args: Any, index: int = 0) -> Any:
    """Forward pre-hook: the module's positional argument `index`, blurred."""
    return (*args[:index], module.blur_input(args[index]), *args[index + 1 :])


def identity(plan: Plan) -> Plan:
    """The same plan with the one-tap filter, and without changes of kernels: it must compute the original function."""
    return with_taps(plan, (1.0,))


def with_taps(plan: Plan, taps: tuple[float, ...]) -> Plan:
    """The same plan with another filter, and without changes of kernels."""

    def changed(edit: Any) -> Any:
        changes: dict[str, Any] = {}
        if getattr(edit, "blur", None) is not None:
            changes["blur"] = dataclasses.replace(edit.blur, taps=taps)
        if getattr(edit, "kernel_size", None) is not None:
            changes["kernel_size"] = None
        return dataclasses.replace(edit, **changes)

    sites = tuple(dataclasses.replace(site, edits=tuple(map(changed, site.edits))) for site in plan.sites)
    return dataclasses.replace(plan, sites=sites)
