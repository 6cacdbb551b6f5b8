"""What a model does last: the operation that each tensor of its output comes from, by a trace of its forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.sites import function_name

SOFTMAX = frozenset("softmax log_softmax".split())
SQUASHED = frozenset("sigmoid tanh hardsigmoid hardtanh clamp clip".split())
SCORING = frozenset("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split())
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
_SCALED = frozenset("mul div add sub truediv neg".split())
_PRODUCTS = frozenset(
    "matmul mm einsum tensordot cdist cosine_similarity".split()
)  # with what the input doesn't change
_RESIZED = frozenset("interpolate upsample".split())
_MOST = 64  # operations to go back through


@dataclass(frozen=True)
class Origin:
    """What a tensor of an output comes from, reshaping, scaling by numbers and dropout left out.

    Attributes:
        function: the operation, as torch calls it; '' where it is the model's input itself.
        path: the module whose forward ran it, '' where that is the model itself.
        before: the operation before that, where the last one pools: what it pools; where it is 'cat', put together of
            what layers give that may all score: one of these.
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
    looking = _Looking(graph)
    return [looking.origin(node) if isinstance(node, Node) else None for node in returned]


class _Looking:
    """Where tensors of a graph come from; weights, and all else that the input doesn't change, are only numbers."""

    def __init__(self, graph: Graph) -> None:
        self._moving: set[Node] = set()  # what depends on the input
        for node in graph.nodes:
            if node.op == "placeholder" or any(source in self._moving for source in node.all_input_nodes):
                self._moving.add(node)

    def origin(self, node: Node) -> Origin | None:
        """What a tensor comes from; None where that is too far away."""
        last = self._meaning(node)
        if last is None:
            return None
        name = self._name(last)
        sources = self._sources(last)
        before = ""
        if name == "cat":
            parts = {self._name(part) for source in sources if (part := self._meaning(source)) is not None}
            before = min(parts) if parts <= SCORING and parts else ""
        elif name in POOLED | _RESIZED:
            pooled = self._meaning(sources[0]) if sources else None
            before = self._name(pooled) if pooled is not None else ""
            if name in _RESIZED and pooled is not None:  # a map that was brought to another size is of the same kind
                return Origin(before, _path(pooled))
        return Origin(name, _path(last), before)

    def _meaning(self, node: Node) -> Node | None:
        """The first operation, from here backwards, that is more than a change of shape or scale."""
        at: Node | None = node
        for _ in range(_MOST):
            if at is None or at.op != "call_function":
                return at
            name, sources = self._name(at), self._sources(at)
            if name == "cat" and self._of_several_heads(at, sources):
                return at
            if not (
                name in _SAME_VALUES
                or (name in _SCALED and len(sources) == 1)
                or (name == "add" and self._of_an_ensemble(sources))
            ):
                return at
            at = sources[0] if sources else None
        return None

    def _of_several_heads(self, node: Node, sources: Sequence[Node]) -> bool:
        """Whether the values of one picture are put together of what several layers give, one of which may score."""
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        parts = {self._meaning(source) for source in sources}
        names = {self._name(part) for part in parts if part is not None}
        return axis not in (0, None) and len(parts) > 1 and not names.isdisjoint(SCORING)

    def _of_an_ensemble(self, sources: Sequence[Node]) -> bool:
        """Whether scores of several linear layers are added, none of which goes through another as residuals do."""
        parts = [self._meaning(source) for source in sources]
        if not all(part is not None and self._name(part) == "linear" for part in parts):
            return False
        found = [part for part in parts if part is not None]
        return not any(one in self._before(other) for one in found for other in found)

    def _before(self, node: Node) -> set[Node]:
        """All that a node depends on, without itself."""
        found: set[Node] = set()
        left = list(self._sources(node))
        while left:
            source = left.pop()
            if source not in found:
                found.add(source)
                left += self._sources(source)
        return found

    def _sources(self, node: Node) -> list[Node]:
        """What it is made of, that the input changes."""
        return [source for source in node.all_input_nodes if source in self._moving]

    def _name(self, node: Node) -> str:
        """The operation; a product with weights is linear, whatever torch calls it."""
        name = function_name(node).rstrip("_")
        if name in ("concat", "concatenate"):
            return "cat"
        linear = name == "addmm" or (name in _PRODUCTS and len(self._sources(node)) == 1)
        return "linear" if linear else name


def _path(node: Node) -> str:
    call = node.meta.get("call")
    path = next((one.path for one in call.stack() if one.path is not None), "") if call is not None else ""
    return path or ""
