"""From the data of a blur to the layer that runs it."""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any

from blurify.nn.aps import apspool
from blurify.nn.blurpool import BlurPool, blurpool
from blurify.spec.edits import Blur
from blurify.spec.methods import Taps


def build(blur: Blur) -> BlurPool:
    """The layer for a blur, on the CPU; a kind of filter that is not `Taps` registers its own with `layer_for`."""
    if blur.phase is not None:
        rank, phase = len(blur.stride), blur.phase
        dense = dataclasses.replace(blur, stride=(1,) * rank, phase=None)
        return apspool(rank)(
            blur.stride, build(dense), norm=phase.norm, role=phase.role, groups=phase.groups, strides=phase.strides,
            back=phase.back,
        )  # fmt: skip
    return layer_for(blur.method, blur)


@singledispatch
def layer_for(method: Any, blur: Blur) -> BlurPool:
    """The layer that filters by a method."""
    raise TypeError(f"no layer filters by a {type(method).__name__}")


@layer_for.register
def _(method: Taps, blur: Blur) -> BlurPool:
    return blurpool(len(blur.stride))(
        blur.stride, None, taps=method.taps, padding=blur.padding, factor=blur.factor, shift=blur.shift or 0
    )
