"""Arguments that may be one number for all spatial dimensions, or one a dimension; and those of torch's own calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError

CONV_PARAMETERS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
POOL_PARAMETERS = {
    "max": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "lp": ("input", "norm_type", "kernel_size", "stride", "ceil_mode"),
    "fractional_max": ("input", "kernel_size", "output_size", "output_ratio", "return_indices"),
}
"""The positional parameters of the torch functions that can subsample."""


def given_per_dim(value: Any, rank: int) -> tuple[int, ...]:
    """An argument that a torch call was given, as one number a spatial dimension; taken as it is."""
    values = tuple(int(v) for v in value) if isinstance(value, tuple | list | torch.Size) else (int(value),)
    return values * rank if len(values) == 1 else values


def per_dim(value: int | Sequence[int], ndim: int, name: str, least: int | None = None) -> tuple[int, ...]:
    """An int, or one for each spatial dimension, as a tuple."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) == 1 < ndim:
        values *= ndim
    whole = all(isinstance(v, int) and not isinstance(v, bool) and (least is None or v >= least) for v in values)
    if isinstance(value, str) or len(values) != ndim or not whole:
        kind = "a whole number" if least is None else f"a whole number of at least {least}"
        raise BlurifyError(f"{name} {value!r}: give {kind}" + (f", or {ndim} of them" if ndim > 1 else ""))
    return values


def numbers_per_dim(value: float | Sequence[float], ndim: int, name: str) -> tuple[float, ...]:
    """A finite number, or one for each spatial dimension, as a tuple."""
    values = (value,) * ndim if isinstance(value, int | float) else tuple(value) if isinstance(value, Sequence) else ()
    usable = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    if isinstance(value, str) or len(values) != ndim or not usable:
        raise BlurifyError(f"{name} {value!r}: give a number" + (f", or {ndim} of them" if ndim > 1 else ""))
    return tuple(float(v) for v in values)


def short(values: tuple[float, ...]) -> str:
    """(2, 2) as 2, (1, 2) as (1, 2)."""
    return str(values[0] if len(set(values)) == 1 else values)


def set_stride(module: nn.Module, stride: tuple[int, ...]) -> None:
    """Set a convolution module's stride, in the form (number or tuple) that it has."""
    as_number = isinstance(module.stride, int) and len(set(stride)) == 1
    setattr(module, "stride", stride[0] if as_number else stride)  # noqa: B010 (typed as a submodule)
