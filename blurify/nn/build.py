"""From the data of a blur to the layer that runs it."""

from __future__ import annotations

import dataclasses
from functools import singledispatch
from typing import Any

from blurify.nn.aps import apspool
from blurify.nn.blurpool import BlurPool, blurpool
from blurify.nn.fourier import fourierpool
from blurify.spec.edits import Blur
from blurify.spec.methods import Area, Flat, Fourier, Sinc, Taps, Wavelet


def build(blur: Blur) -> BlurPool:
    """The layer for a blur, on the CPU; a kind of filter that is not `Taps` registers its own with `layer_for`."""
    if blur.phase is not None:
        rank, phase = len(blur.stride), blur.phase
        dense = dataclasses.replace(blur, stride=(1,) * rank, phase=None)
        return apspool(rank)(
            blur.stride, build(dense), norm=phase.norm, role=phase.role, groups=phase.groups, strides=phase.strides,
            back=phase.back, parts=phase.parts,
        )  # fmt: skip
    layer = layer_for(blur.method, blur)
    if blur.channels_last:
        layer.__dict__["channels_last"] = True  # see `BlurPool.of_tokens`
    return layer


@singledispatch
def layer_for(method: Any, blur: Blur) -> BlurPool:
    """The layer that filters by a method."""
    raise TypeError(f"no layer filters by a {type(method).__name__}")


@layer_for.register
def _(method: Taps, blur: Blur) -> BlurPool:
    return blurpool(len(blur.stride))(
        blur.stride, None, taps=method.taps, padding=blur.padding, factor=blur.factor, shift=blur.shift or 0,
        centre=blur.centre or None,
    )  # fmt: skip


@layer_for.register
def _(method: Flat | Sinc | Wavelet | Area, blur: Blur) -> BlurPool:
    return blurpool(len(blur.stride))(
        blur.stride, None, filter=method, padding=blur.padding, factor=blur.factor, shift=blur.shift or 0,
        centre=blur.centre or None,
    )  # fmt: skip


@layer_for.register
def _(method: Fourier, blur: Blur) -> BlurPool:
    return fourierpool(len(blur.stride))(
        blur.stride, window=method.window, padding=blur.padding, factor=blur.factor, shift=blur.shift or 0
    )
