"""Whether the plan that a model carries is still in force: tools that fuse, swap and convert may have undone edits."""

from __future__ import annotations

from typing import Any

from torch import nn

from blurify.nn.arguments import given_per_dim
from blurify.nn.blurpool import BlurPool
from blurify.nn.build import build
from blurify.nn.edited import changes_of
from blurify.spec.edits import BlurPooling, Edit, SetStride
from blurify.spec.plan import Plan
from blurify.surgery.apply import ANTIALIASED, changes_in


def problems(model: nn.Module, plan: Plan) -> list[str]:
    """What of a plan is no longer so in a model, a line each; nothing where it is in force."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for edit in plan.edits:
        module = modules.get(edit.module)
        if module is None:
            found.append(f"{edit.module!r} is gone")
        else:
            found += edit_problems(modules, module, edit)
    for name, changes in changes_in(plan).items():
        module = modules.get(name)
        if module is None:
            continue
        if not set(changes) <= set(changes_of(module)):
            found.append(f"{name or 'the model'!r} was replaced, and its blurs with it")
        elif "forward" in vars(module) and getattr(vars(module)["forward"], "__func__", None) not in _own(module):
            found.append(f"the forward of {name or 'the model'!r} was replaced on the instance, and its blurs with it")
    return list(dict.fromkeys(found))


def _own(module: nn.Module) -> set[object]:
    return set(vars(type(module)).values())


def edit_problems(modules: dict[str, nn.Module], module: nn.Module, edit: Edit) -> list[str]:
    """What is not as one edit made it: strides, pools and blurs; not the class of the module."""
    if isinstance(edit, SetStride):
        stride = getattr(module, "stride", None)
        if not isinstance(stride, int | tuple | list) or given_per_dim(stride, len(edit.stride)) != edit.stride:
            return [f"{edit.module!r} has stride {stride}, not {edit.stride}"]
        return []
    if isinstance(edit, BlurPooling) and type(module) not in ANTIALIASED.values():
        return [f"the pool {edit.module!r} was replaced, and its blur with it"]
    if edit.blur_path is None or edit.blur is None:
        return []
    if isinstance(edit, BlurPooling):
        pool: Any = module
        stride = given_per_dim(pool.stride or pool.kernel_size, len(edit.blur.stride))
        if stride != edit.blur.stride:
            return [f"the pool {edit.module!r} has stride {stride}, not {edit.blur.stride}"]
    blur = modules.get(edit.blur_path)
    if not isinstance(blur, BlurPool):
        return [f"the blur {edit.blur_path!r} is gone"]
    if blur.extra_repr() != build(edit.blur).extra_repr():
        return [f"the blur {edit.blur_path!r} is another one"]
    return []
