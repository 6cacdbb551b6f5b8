"""What a model does last: the operation that each tensor of its output comes from, by a trace of its forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.sites import function_name

SOFTMAX = frozenset("softmax log_softmax".split())
SQUASHED = frozenset("sigmoid tanh hardsigmoid hardtanh clamp clip".split())
SCORING = frozenset("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm".split())
POOLED = frozenset(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d "
    "avg_pool2d mean amax".split()
)
NORMALISED = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm normalize".split())
ACTIVATED = frozenset("relu relu6 gelu silu elu leaky_relu prelu hardswish mish softplus".split())
_SAME_VALUES = frozenset(
    "view reshape flatten squeeze unsqueeze permute transpose t contiguous to float type clone getitem dropout "
    "dropout1d dropout2d unflatten expand movedim alias identity cat stack".split()
)
_SCALED = frozenset("mul div add sub truediv".split())
_RESIZED = frozenset("interpolate upsample".split())
_MOST = 64  # operations to go back through


@dataclass(frozen=True)
class Origin:
    """What a tensor of an output comes from, reshaping, scaling by numbers and dropout left out.

    Attributes:
        function: the operation, as torch calls it; '' where it is the model's input itself.
        path: the module whose forward ran it, '' where that is the model itself.
        before: the operation before that, where the last one pools or resizes: what it pools.
    """

    function: str
    path: str
    before: str = ""


def origins(model: nn.Module, args: tuple[Any, ...]) -> list[Origin | None]:
    """The origin of each tensor that a forward returns, in the order of `graph.structure.tensors_in`.

    Args:
        model: any; a copy of it is run on tensors without data where that can be done.
        args: what it is called with.

    Returns:
        One entry a tensor, None where it can't be told; nothing where the model can't be traced.
    """
    try:
        graph = traced(model, args).graph
    except BlurifyError:
        return []
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0] if output.args else ()
    return [_origin(node) if isinstance(node, Node) else None for node in returned]


def _origin(node: Node) -> Origin | None:
    last = _meaning(node)
    if last is None:
        return None
    name = _name(last)
    before = ""
    if name in POOLED | _RESIZED:
        source = _source(last)
        pooled = _meaning(source) if source is not None else None
        before = _name(pooled) if pooled is not None else ""
        if name in _RESIZED and pooled is not None:  # a map that was brought to another size is of the same kind
            return Origin(before, _path(pooled))
    return Origin(name, _path(last), before)


def _meaning(node: Node) -> Node | None:
    """The first operation, from here backwards, that is more than a change of shape or scale."""
    at: Node | None = node
    for _ in range(_MOST):
        if at is None or at.op != "call_function":
            return at
        name = _name(at)
        tensors = [arg for arg in at.args if isinstance(arg, Node)]
        if not (name in _SAME_VALUES or (name in _SCALED and len(tensors) == 1)):
            return at
        at = _source(at)
    return None


def _source(node: Node) -> Node | None:
    nodes = node.all_input_nodes
    return nodes[0] if nodes else None


def _name(node: Node) -> str:
    return function_name(node).rstrip("_")


def _path(node: Node) -> str:
    call = node.meta.get("call")
    path = next((one.path for one in call.stack() if one.path is not None), "") if call is not None else ""
    return path or ""
