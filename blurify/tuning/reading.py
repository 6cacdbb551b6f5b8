"""Which layers make and which read blurred features: what is refitted, in the order in which the model runs them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import Node

from blurify.graph.recorder import Call, Trace
from blurify.spec.edits import Blur
from blurify.spec.plan import Plan

_STOPS = ("conv", "linear", "matmul", "mm", "einsum", "attention", "add", "sub", "mean", "pool", "sum", "norm")
_PASSES = ("batch_norm",)


@dataclass(frozen=True)
class Layer:
    """One layer to refit.

    Attributes:
        path: of its module: a convolution or a linear layer.
        blur: the filter that its output goes through after an activation; None for a layer that reads blurred features.
        norm: the path of the batch norm that reads its output alone, if there is one.
    """

    path: str
    blur: Blur | None
    norm: str | None


def layers_to_refit(plan: Plan, trace: Trace) -> list[Layer]:
    """The convolutions of sites, each with its blur, and the layers that read what a blur gives.

    Args:
        plan: the plan of the traced model.
        trace: of the converted model.
    """
    blurs: dict[str, Blur] = {}
    for site in plan.converted:
        dense = next((edit.module for edit in site.edits if edit.dense_path is not None), None)
        blur = next((edit.blur for edit in site.edits if edit.blur is not None), None)
        if site.rule == "after-activation" and dense is not None and blur is not None and max(blur.stride) > 1:
            blurs[dense] = blur
    reached = _blurred(plan, trace)
    readers: dict[Node, list[Call]] = {}
    for call in trace.calls:
        if call.inputs and call.inputs[0] is not None:
            readers.setdefault(call.inputs[0], []).append(call)
    found: dict[str, Layer] = {}
    for call in trace.calls:
        if call.path is None or call.number or not _can_refit(call.module):
            continue
        reads = bool(call.inputs) and call.inputs[0] in reached
        if call.path in blurs or reads:
            found[call.path] = Layer(call.path, blurs.get(call.path), _norm_after(call, readers))
    return list(found.values())


def _can_refit(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and "weight" in module._parameters


def _blurred(plan: Plan, trace: Trace) -> set[Node]:
    """The tensors that are blurred, also after an activation, a gate or a change of form, up to the next layer."""
    paths = {path for site in plan.converted for path in site.blur_paths}
    todo = [call.output for call in trace.calls if call.path in paths and call.output is not None]
    reached: set[Node] = set()
    while todo:
        node = todo.pop()
        if node in reached:
            continue
        reached.add(node)
        for user in node.users:
            name = getattr(user.target, "__name__", str(user.target)).lower()
            if name in _PASSES or not any(word in name for word in _STOPS):
                todo.append(user)
    return reached


def _norm_after(call: Call, readers: dict[Node, list[Call]]) -> str | None:
    """The batch norm that alone reads what a layer gives."""
    if call.output is None or len(call.output.users) != 1:
        return None
    for reader in readers.get(call.output, ()):
        if getattr(reader.module, "running_mean", None) is not None:
            return reader.path
    return None
