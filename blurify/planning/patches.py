"""Where the blur of a patch embedding or token merging goes that is written as a rearrangement."""

from __future__ import annotations

from torch.fx import Node

from blurify.graph.recorder import Call
from blurify.graph.sites import Found, Op, function_name
from blurify.nn.source import CannotRewriteError
from blurify.planning.placement import NoWay, Placed, Placer, in_call
from blurify.spec.edits import Blur

_SAME = frozenset("pad contiguous to".split())
"""What may stand between the input of a module and the op that cuts it: it pads, or changes nothing."""


def before_patches(placer: Placer, site: Found, blur: Blur) -> Placed:
    """Edits that blur what is cut into patches: the input of the module that cuts it, or the value that it makes of it.

    Args:
        placer: finds the edits.
        site: of the kind 'patches'.
        blur: of stride 1.

    Raises:
        NoWay: the same values are read for something else, too.
    """
    problem: Exception | None = None
    for depth in range(3):  # a wrapper around the module that cuts may do nothing else
        calls = [list(op.node.meta["call"].stack()) if op.node.meta["call"] else [] for op in site.ops]
        if any(len(stack) <= depth for stack in calls):
            break
        indices = {_input_index(op, stack[depth]) for op, stack in zip(site.ops, calls, strict=True)}
        paths = {stack[depth].path for stack in calls}
        if len(paths) == 1 and len(indices) == 1 and None not in indices:
            try:
                return placer.in_front(site, calls[0][depth], indices.pop(), blur)  # type: ignore[arg-type]
            except (NoWay, CannotRewriteError) as error:
                problem = problem or error
    for op in site.ops:
        if any(user not in op.readers for user in op.source.users):
            raise problem or NoWay("what it cuts is used for something else, too")
    return placer.after([op.source for op in site.ops], blur)


def _input_index(op: Op, call: Call) -> int | None:
    """Which positional argument of a module call is cut, itself or padded, and read by nothing else in the call."""
    node = op.source
    chain: set[Node] = set(op.readers)
    while node not in call.inputs and function_name(node) in _SAME and in_call(node, call):
        chain.add(node)
        node = node.args[0]  # type: ignore[assignment]
    if node not in call.inputs:
        return None
    users = [user for user in node.users if in_call(user, call)]
    return call.inputs.index(node) if all(user in chain for user in users) else None
