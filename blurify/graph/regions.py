"""Find the blur point of a convolution: the place after its nonlinearity where everything dense comes together.

Making a convolution dense makes what follows dense too, as far as each op is pointwise (commutes with subsampling).
Walking from join to join through that dense region, the first join behind a nonlinearity is the blur point: for
`x * sigmoid(x)` that is the product. Branches that are added (RepVGG) have one blur point if all of them are dense.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from blurify.graph.sites import function_name

_LINEAR = frozenset(
    "add sub mul div true_divide neg negative rsub batch_norm dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout contiguous clone detach to float half bfloat16 double type_as type positive cat "
    "concat chunk split tensor_split _getitem addcmul lerp identity channel_shuffle".split()
)
_NONLINEAR = frozenset(
    "relu relu6 elu selu celu gelu silu mish hardtanh hardswish hardsigmoid leaky_relu prelu rrelu sigmoid tanh "
    "softplus softsign logsigmoid threshold clamp clip clamp_min clamp_max abs exp expm1 log log1p pow square sqrt "
    "rsqrt reciprocal sin cos erf tanhshrink hardshrink softshrink maximum minimum glu".split()
)
_CHANNEL_OPS = frozenset("cat concat chunk split tensor_split glu".split())  # pointwise only along the channels
_PRODUCTS = frozenset("mul div true_divide pow maximum minimum addcmul".split())  # of two signals: not linear
_VECTORS = frozenset("batch_norm prelu".split())  # take their vectors by channel, whatever those are shaped like


@dataclass(frozen=True)
class _Dense:
    """What is known of a tensor that becomes dense."""

    stride: tuple[int, ...]
    curved: bool  # a nonlinearity lies behind it


def blur_points(graph: Graph, convs: Mapping[Node, tuple[tuple[int, ...], int]]) -> dict[Node, Node | None]:
    """The blur point of each convolution, or None where no nonlinearity comes before a consumer that is not pointwise.

    Args:
        graph: a traced graph.
        convs: the convolutions that would become dense: by how much each subsamples, and its group (calls of one
            module: all of them have a blur point, or none).

    Returns:
        the last node of each dense region: it is blurred and subsampled by the convolution's stride.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    inputs = _derived(graph)
    left = dict(convs)
    cuts: dict[Node, Node] = {}
    for _ in range(2 * len(convs) + 2):
        dense = _label(graph, {conv: stride for conv, (stride, _) in left.items()}, set(cuts.values()), inputs)
        found = {conv: _blur_point(conv, dense, order, left) for conv in left}
        lost = {left[conv][1] for conv, point in found.items() if point is None}
        left = {conv: value for conv, value in left.items() if value[1] not in lost}
        new = {conv: point for conv, point in found.items() if point is not None and conv in left}
        if not lost and new == cuts:
            break
        cuts = new
    else:
        cuts = {}
    return {conv: cuts.get(conv) for conv in convs}


def _derived(graph: Graph) -> set[Node]:
    """The nodes that depend on the input."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def _label(
    graph: Graph, convs: Mapping[Node, tuple[int, ...]], cuts: set[Node], derived: set[Node]
) -> dict[Node, _Dense]:
    dense: dict[Node, _Dense] = {}
    for node in graph.nodes:
        if node in convs:
            dense[node] = _Dense(convs[node], False)
        elif node.op == "call_function":
            label = _propagate(node, dense, cuts, derived)
            if label is not None:
                dense[node] = label
    return dense


def _propagate(node: Node, dense: Mapping[Node, _Dense], cuts: set[Node], derived: set[Node]) -> _Dense | None:
    name = function_name(node)
    if name not in _LINEAR and name not in _NONLINEAR:
        return None
    operands = node.all_input_nodes
    signals = [arg for arg in operands if arg in dense and arg not in cuts]
    if not signals or len({dense[arg].stride for arg in signals}) > 1:
        return None
    label = dense[signals[0]]
    rank = len(label.stride)
    if name in _CHANNEL_OPS and not _along_channels(node, rank):
        return None
    space = _space(signals[0], rank)
    if any(_space(signal, rank) != space for signal in signals):
        return None
    for arg in operands:
        if arg not in signals and not (
            (name in _VECTORS and arg is not operands[0]) or _is_broadcast(arg, space, rank, arg in derived)
        ):
            return None
    twice = name in _PRODUCTS and len([arg for arg in node.args if arg in signals]) > 1
    return _Dense(label.stride, name in _NONLINEAR or twice or any(dense[arg].curved for arg in signals))


def _space(node: Node, rank: int) -> tuple[int, ...] | None:
    """A tensor's spatial sizes; for the several outputs of a split, those of the split tensor."""
    while node.meta["shape"] is None:
        node = node.all_input_nodes[0]
    shape = node.meta["shape"]
    return shape[-rank:] if len(shape) > rank else None


def _is_broadcast(node: Node, space: tuple[int, ...] | None, rank: int, derived: bool) -> bool:
    """Whether a tensor is the same at every position: a scalar, or of size 1 in all spatial dimensions."""
    shape = node.meta.get("shape")
    if shape is None or any(size != 1 for size in shape[-rank:]):
        return False
    # A 1x1 feature map looks like a broadcast one; it only is one for sure beside a larger map, or as a constant.
    return not derived or space is None or any(size > 1 for size in space)


def _along_channels(node: Node, rank: int) -> bool:
    names = {"cat": 1, "concat": 1, "glu": 1}
    position = names.get(function_name(node), 2)
    default = -1 if function_name(node) == "glu" else 0
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    source = node.all_input_nodes[0].meta["shape"]
    return isinstance(dim, int) and source is not None and dim % len(source) == len(source) - rank - 1


def _blur_point(
    conv: Node, dense: Mapping[Node, _Dense], order: Mapping[Node, int], convs: Mapping[Node, object]
) -> Node | None:
    node: Node | None = conv
    while node is not None and not dense[node].curved:
        node = None if _is_sized(node) else _join(node, dense, order, convs)
    # Of a split's outputs none is the whole signal.
    return node if node is not None and node.meta["shape"] is not None else None


def _is_sized(node: Node) -> bool:
    """Whether the forward reads the tensor's size: dense, it is another one."""
    return bool(node.meta.get("sized"))


def _join(
    node: Node, dense: Mapping[Node, _Dense], order: Mapping[Node, int], convs: Mapping[Node, object]
) -> Node | None:
    """The next node that everything from `node` on passes through, where all in between is dense.

    Another convolution that becomes dense is no such node: it mixes positions, and what comes of it is its own region.
    """
    waiting = {order[user]: user for user in node.users}
    heap = list(waiting)
    heapq.heapify(heap)
    while heap:
        current = waiting.pop(heapq.heappop(heap))
        if current not in dense or current in convs:
            return None
        if not heap:
            return current
        if _is_sized(current):
            return None
        if not current.users:
            if function_name(current) == "_getitem":  # an unused part of a split
                continue
            return None
        for user in current.users:
            if order[user] not in waiting:
                waiting[order[user]] = user
                heapq.heappush(heap, order[user])
    return None
