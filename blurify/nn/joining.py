"""An activation and the blur, or the max pool and blur, behind it in one pass, where nobody looks on.

A ReLU keeps its whole result for the backward, and takes a pass over it in each direction. Together with the layer that
reads it, all that need be kept is a byte a sample that says which gradients pass (`blocks.code_for`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from blurify.nn.autograd import is_unseen, is_watched, may_be_coded
from blurify.nn.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d, clamp_of
from blurify.nn.pools import MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d

_LAYERS = (BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)

_FRESH = frozenset(f"torch.nn.modules.{name}" for name in ("conv", "batchnorm", "instancenorm", "normalization"))
"""Where the modules are whose results nobody else has: they give a new tensor, and keep none."""


def after(blur: nn.Module, function: Callable[[Any], Any], x: Any) -> Any:
    """`blur(function(x))`, whatever stands where the blur was."""
    return blur.after(function, x) if isinstance(blur, BlurPool) else blur(function(x))


class Joined:
    """Mixed in before the class of a Sequential that has such pairs (see `has_pairs`).

    It runs like any Sequential; members that somebody watches, that were replaced or that a compiler or tracer sees run
    one after the other.
    """

    def forward(self, input: Any) -> Any:
        """Run the members one after the other."""
        if not is_unseen(input):
            return cast(Any, super()).forward(input)
        members = list(cast(nn.Module, self)._modules.values())
        skip = False
        for before, member, behind in zip([None, *members[:-1]], members, [*members[1:], None], strict=True):
            if skip:
                skip = False
            elif behind is not None and _may_join(before, member, behind, input):
                input, skip = cast(Any, behind).after(member, input), True
            else:
                input = cast(nn.Module, member)(input)
        return input


def runs_in_pairs(module: nn.Module) -> bool:
    """Whether a module is a Sequential that torch itself runs, one member after the other."""
    cls: Any = type(module)
    if not isinstance(module, nn.Sequential) or cls.__iter__ is not nn.Sequential.__iter__:
        return False
    return bool(cls.forward in (nn.Sequential.forward, Joined.forward))


def has_pairs(module: nn.Module) -> bool:
    """Whether a module is such a Sequential, and an activation stands in it before a layer that it can join."""
    members = list(module._modules.values())
    return runs_in_pairs(module) and any(map(_is_pair, members, members[1:]))


def _is_pair(member: nn.Module | None, behind: nn.Module | None) -> bool:
    return member is not None and type(behind) in _LAYERS and clamp_of(member) is not None


def may_stay(before: nn.Module | None, activation: Any) -> bool:
    """Whether nobody sees that an activation does not write to its input: it never does, or that is all its own.

    Args:
        before: what made its input; None where that is not known.
        activation: a module or function.
    """
    if not getattr(activation, "inplace", False):
        return True
    return before is not None and type(before).__module__ in _FRESH and not is_watched(before)


def _may_join(before: nn.Module | None, member: nn.Module | None, behind: nn.Module, x: Any) -> bool:
    """Whether two members may run in one pass on x, which the one before them returned."""
    if not _is_pair(member, behind) or not may_be_coded(x):
        return False
    return not is_watched(behind) and may_stay(before, member)
