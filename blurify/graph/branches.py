"""Branches that meet: which sites subsample the same signal on two ways to one sum or concatenation."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from torch.fx import Graph, Node

from blurify.graph.sites import Found, Op, function_name

_MEET = frozenset("add sub mul maximum minimum cat concat".split())


def partners(graph: Graph, sites: Sequence[Found]) -> dict[str, set[str]]:
    """The sites that meet each site: a shortcut and the main path, the branches of an inception block.

    Two sites meet where a sum or a concatenation has one of them, and not the other, as the last subsampling on the way
    to one operand, and the other way round; both by the same stride, from as many positions. So the features of a
    decoder and of its skip do not count: those were subsampled one after the other.

    Args:
        graph: of a trace.
        sites: found in it.

    Returns:
        the names of the partners, by the names of sites that have any.
    """
    at = {op.node: site for site in sites for op in site.ops if op.node.graph is graph}
    reached: dict[Node, frozenset[Node]] = {}
    found: dict[str, set[str]] = defaultdict(set)
    ops = {op.node: op for site in sites for op in site.ops}
    for node in graph.nodes:
        ways = [reached[source] for source in node.all_input_nodes]
        if function_name(node) in _MEET and len(ways) > 1:
            common = frozenset.intersection(*ways)
            for index, way in enumerate(ways):
                for other in ways[index + 1 :]:
                    for one in way - common:
                        for two in other - common:
                            if at[one] is not at[two] and _alike(ops[one], ops[two]):
                                found[at[one].name].add(at[two].name)
                                found[at[two].name].add(at[one].name)
        reached[node] = frozenset({node}) if node in at else frozenset().union(*ways)
    return dict(found)


def _alike(one: Op, other: Op) -> bool:
    return one.stride == other.stride and _positions(one) == _positions(other)


def _positions(op: Op) -> int:
    """How many positions an op reads, over all images and windows."""
    shape = op.input_shape
    if op.kind == "slice":
        return math.prod(shape[dim] for dim in op.dims) * shape[0] if op.dims else math.prod(shape) // shape[1]
    return math.prod(shape) // shape[-op.rank - 1]
