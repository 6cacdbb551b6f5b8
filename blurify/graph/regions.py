"""Find the blur point of a convolution: the place after its nonlinearity where everything dense comes together.

Making a convolution dense makes what follows dense too, as far as each op is pointwise (commutes with subsampling).
Walking from join to join through that dense region, the first join behind a nonlinearity is the blur point: for
`x * sigmoid(x)` that is the product. Branches that are added (RepVGG) have one blur point if all of them are dense.

A norm over the channels (`LayerNorm`, root mean square, also written out) is pointwise in space, and mostly runs with
the channels last: each tensor of the region is known by where its spatial dimensions and its channels lie.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, Node

from blurify.graph.sites import function_name

_LINEAR = frozenset(
    "add sub mul div true_divide neg negative rsub batch_norm dropout dropout1d dropout2d dropout3d alpha_dropout "
    "feature_alpha_dropout contiguous clone detach to float half bfloat16 double type_as type positive cat "
    "concat chunk split tensor_split _getitem addcmul lerp identity channel_shuffle complex real imag".split()
)
_NONLINEAR = frozenset(
    "relu relu6 elu selu celu gelu silu mish hardtanh hardswish hardsigmoid leaky_relu prelu rrelu sigmoid tanh "
    "softplus softsign logsigmoid threshold clamp clip clamp_min clamp_max abs exp expm1 log log1p pow square sqrt "
    "rsqrt reciprocal sin cos erf tanhshrink hardshrink softshrink maximum minimum glu".split()
)
_CHANNEL_OPS = frozenset("cat concat chunk split tensor_split glu".split())  # pointwise only along the channels
_PRODUCTS = frozenset("mul div true_divide pow maximum minimum addcmul".split())  # of two signals: not linear
_VECTORS = frozenset("batch_norm prelu layer_norm rms_norm".split())  # vectors by channel, whatever their shape
_SECOND = frozenset(
    "batch_norm prelu dropout1d dropout2d dropout3d feature_alpha_dropout channel_shuffle".split()
)  # take the second dimension for the channels
_MOVES = frozenset("permute transpose swapaxes swapdims movedim moveaxis".split())
_LAYER_NORMS = frozenset("layer_norm rms_norm".split())  # over the last dimensions
_PARTS = {"view_as_real": -1, "view_as_complex": 1}  # real and imaginary part get, or were, a last dimension
_OVER_CHANNELS = frozenset("mean sum var std var_mean std_mean norm vector_norm linalg_vector_norm".split())
_OF_STATISTICS = frozenset(  # what a norm that is written out does to its means and variances
    "add sub mul div true_divide rsub pow square sqrt rsqrt reciprocal abs clamp clip clamp_min maximum _getitem to "
    "float half bfloat16 double type_as type".split()
)


@dataclass(frozen=True)
class _Dense:
    """What is known of a tensor that becomes dense.

    Attributes:
        stride: of the convolution, one entry a spatial dimension.
        curved: a nonlinearity lies behind it.
        axes: where its spatial dimensions lie, counted from the end.
        channel: where its channels lie, counted from the end.
        statistic: it is a mean or the like over the channels, by which a norm shifts or scales.
    """

    stride: tuple[int, ...]
    curved: bool
    axes: tuple[int, ...]
    channel: int
    statistic: bool = False

    @classmethod
    def first(cls, stride: tuple[int, ...]) -> _Dense:
        """What a convolution makes: its spatial dimensions are the last ones."""
        rank = len(stride)
        return cls(stride, False, tuple(range(-rank, 0)), -rank - 1)

    @property
    def is_channels_first(self) -> bool:
        """Whether its dimensions lie as a convolution, and a blur, takes them."""
        return (self.axes, self.channel) == (_Dense.first(self.stride).axes, -len(self.stride) - 1)


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
            dense[node] = _Dense.first(convs[node])
        elif node.op == "call_function":
            label = _propagate(node, dense, cuts, derived)
            if label is not None:
                dense[node] = label
    return dense


def _propagate(node: Node, dense: Mapping[Node, _Dense], cuts: set[Node], derived: set[Node]) -> _Dense | None:
    name = function_name(node)
    operands = node.all_input_nodes
    signals = [arg for arg in operands if arg in dense and arg not in cuts]
    if not signals:
        return None
    label = dense[signals[0]]
    if any((dense[arg].stride, dense[arg].axes, dense[arg].channel) != (label.stride, label.axes, label.channel)
           for arg in signals):  # fmt: skip
        return None
    if name in _MOVES:
        return _moved(node, label)
    if name in _PARTS:
        return _of_parts(label, _PARTS[name])
    if name in _OVER_CHANNELS:
        return replace(label, curved=False, statistic=True) if _keeps_space(node, label) else None
    if name in _LAYER_NORMS:
        if not _norms_channels(node, label):
            return None
    elif name == "normalize":
        if _dim(node, 2, 1) != label.channel:
            return None
    elif name not in _LINEAR and name not in _NONLINEAR:
        return None
    if name in _SECOND and not label.is_channels_first:
        return None
    if name in _CHANNEL_OPS and not _along_channels(node, label):
        return None
    space = _space(signals[0], label)
    if any(_space(signal, label) != space for signal in signals):
        return None
    for arg in operands:
        if arg not in signals and not (
            (name in _VECTORS and arg is not operands[0]) or _is_broadcast(arg, space, label, arg in derived)
        ):
            return None
    features = [arg for arg in signals if not dense[arg].statistic]
    if not features and name in _OF_STATISTICS:
        return label
    twice = name in _PRODUCTS and len([arg for arg in node.args if arg in features]) > 1
    curved = name in _NONLINEAR or twice or any(dense[arg].curved for arg in signals)
    return replace(label, curved=curved, statistic=False)


def _space(node: Node, label: _Dense) -> tuple[int, ...] | None:
    """A tensor's spatial sizes; for the several outputs of a split, those of the split tensor."""
    while node.meta["shape"] is None:
        node = node.all_input_nodes[0]
    shape = node.meta["shape"]
    return tuple(shape[axis] for axis in label.axes) if len(shape) > len(label.axes) else None


def _is_broadcast(node: Node, space: tuple[int, ...] | None, label: _Dense, derived: bool) -> bool:
    """Whether a tensor is the same at every position: a scalar, or of size 1 in all spatial dimensions."""
    shape = node.meta.get("shape")
    if shape is None or any(shape[axis] != 1 for axis in label.axes if -axis <= len(shape)):
        return False
    # A 1x1 feature map looks like a broadcast one; it only is one for sure beside a larger map, or as a constant.
    return not derived or space is None or any(size > 1 for size in space)


def _along_channels(node: Node, label: _Dense) -> bool:
    names = {"cat": 1, "concat": 1, "glu": 1}
    default = -1 if function_name(node) == "glu" else 0
    return _dim(node, names.get(function_name(node), 2), default) == label.channel


def _dim(node: Node, position: int, default: int | None) -> int | None:
    """The one dimension that a call is about, counted from the end; None where there are several or none."""
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    if isinstance(dim, tuple | list) and len(dim) == 1:
        dim = dim[0]
    shape = node.all_input_nodes[0].meta["shape"]
    return dim % len(shape) - len(shape) if isinstance(dim, int) and shape else None


def _moved(node: Node, label: _Dense) -> _Dense | None:
    """Where the dimensions lie after a permutation of them; tried on a tensor without data."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or source.meta["shape"] is None:
        return None
    count = len(source.meta["shape"])
    function: Any = node.target
    order = function(torch.empty(*range(1, count + 1), device="meta"), *node.args[1:], **node.kwargs).shape
    place = {size - 1 - count: index - count for index, size in enumerate(order)}
    if label.channel not in place:
        return None
    return replace(label, axes=tuple(place[axis] for axis in label.axes), channel=place[label.channel])


def _of_parts(label: _Dense, shift: int) -> _Dense | None:
    """Where the dimensions lie when one is put behind them (-1), or the last one is taken away (1)."""
    if shift > 0 and -1 in (*label.axes, label.channel):
        return None
    return replace(label, axes=tuple(axis + shift for axis in label.axes), channel=label.channel + shift)


def _keeps_space(node: Node, label: _Dense) -> bool:
    """Whether a reduction is over the channels alone, and keeps their dimension."""
    position = 2 if function_name(node).endswith("norm") else 1
    if _dim(node, position, None) != label.channel:
        return False
    source, made = node.args[0], [node] if node.meta["shape"] is not None else list(node.users)
    return all(len(one.meta["shape"] or ()) == len(source.meta["shape"]) for one in made)  # type: ignore[union-attr]


def _norms_channels(node: Node, label: _Dense) -> bool:
    """Whether a layer norm is over the channels, which lie last."""
    shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    return isinstance(shape, tuple | list) and len(shape) == 1 and label.channel == -1


def _blur_point(
    conv: Node, dense: Mapping[Node, _Dense], order: Mapping[Node, int], convs: Mapping[Node, object]
) -> Node | None:
    node: Node | None = conv
    # A blur takes the spatial dimensions last: what lies otherwise goes on to where it is moved back.
    while node is not None and not (dense[node].curved and dense[node].is_channels_first):
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
