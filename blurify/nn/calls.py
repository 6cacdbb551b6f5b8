"""Stand-ins for strided torch calls inside a forward: each takes the function and its arguments.

It runs the call anti-aliased; `rewriting` routes a forward's own `F.max_pool2d(x, 3, 2)` through one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.nn.arguments import CONV_PARAMETERS, POOL_PARAMETERS, given_per_dim
from blurify.nn.pools import avg_blur_pool, max_blur_pool

# By identity, not by name: torch.compile can't read the name of some functions (torch 2.14).
_WITH_INDICES = (
    *(F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices, torch.max_pool1d_with_indices),
    *(torch._C._nn.max_pool2d_with_indices, torch._C._nn.max_pool3d_with_indices),
)


class _Call(nn.Module):
    """Reads a call's arguments by name, however they were given."""

    names: tuple[str, ...]

    def bind(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        while isinstance(function, functools.partial):  # `self.pool = partial(F.max_pool2d, kernel_size=2)`
            args, kwargs, function = (*function.args, *args), {**function.keywords, **kwargs}, function.func
        return dict(zip(self.names, args, strict=False)) | kwargs


class DenseConv(_Call):
    """A functional convolution at another stride (the blur comes later in the graph)."""

    names = CONV_PARAMETERS

    def __init__(self, stride: tuple[int, ...]) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the convolution on its own arguments, but with this stride."""
        given = self.bind(function, args, kwargs)
        if not isinstance(given.get("stride", 1), int) or given.get("stride", 1) != 1:
            given["stride"] = self.stride
        while isinstance(function, functools.partial):  # whose arguments are among those given
            function = function.func
        return function(given.pop("input"), given.pop("weight"), **given)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"stride={self.stride}"


class BlurredConv(DenseConv):
    """A functional convolution whose input is blurred first."""

    def __init__(self, blurpool: nn.Module, stride: tuple[int, ...]) -> None:
        super().__init__(stride)
        self.blurpool = blurpool

    def forward(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Blur, then run the convolution with this stride."""
        given = self.bind(function, args, kwargs)
        return super().forward(function, self.blurpool(given.pop("input")), **given)


class _PoolCall(_Call):
    """A functional pool with a BlurPool of its stride."""

    def __init__(self, blurpool: nn.Module) -> None:
        super().__init__()
        self.blurpool: Any = blurpool

    def geometry(self, given: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The call's kernel size, stride and padding, one entry a spatial dimension."""
        rank = len(self.blurpool.stride)
        kernel = given_per_dim(given["kernel_size"], rank)
        return kernel, given_per_dim(given.get("stride") or kernel, rank), given_per_dim(given.get("padding", 0), rank)


class BlurredMaxPool(_PoolCall):
    """A functional max pool: dense, then blurred and subsampled, with the output size of the original."""

    def __init__(self, blurpool: nn.Module, dense_kernel_size: tuple[int, ...] | None = None) -> None:
        super().__init__(blurpool)
        self.dense_kernel_size = dense_kernel_size

    names = POOL_PARAMETERS["max"]

    def forward(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Pool `input` (N, C, *spatial) as the call asks for."""
        given = self.bind(function, args, kwargs)
        kernel, stride, padding = self.geometry(given)
        if stride != self.blurpool.stride:
            return function(*args, **kwargs)
        pooled = max_blur_pool(
            given["input"],
            kernel,
            stride,
            padding,
            given_per_dim(given.get("dilation", 1), len(stride)),
            given.get("ceil_mode", False),
            self.blurpool,
            self.dense_kernel_size,
        )
        return self.returned(pooled, function, given)

    @staticmethod
    def returned(pooled: Tensor, function: Callable[..., Any], given: dict[str, Any]) -> Any:
        """What the call returns: a plan takes a pool that gives indices too only where nobody reads them."""
        return (
            (pooled, None)
            if given.get("return_indices") or getattr(function, "func", function) in _WITH_INDICES
            else pooled
        )


class MemberBlur(nn.Module):
    """The blur of a loop over modules of which some became dense: it blurs what comes of those, and nothing else.

    The loop's own expressions call it: `conv(x)` is routed through `run`, the value to be blurred through the layer.
    What is owed in between stands in a list that belongs to that one run of the forward.
    """

    def __init__(self, blurpool: nn.Module, members: tuple[str, ...]) -> None:
        super().__init__()
        self.blurpool = blurpool
        self.members = members

    def run(self, owed: list[bool], owner: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`; where it is one of the owner's members that became dense, a blur is owed."""
        for member in self.members:
            if owner.get_submodule(member) is function:
                owed.append(True)
        return function(*args, **kwargs)

    def forward(self, x: Tensor, owed: list[bool]) -> Tensor:
        """Blur x (N, C, *spatial) if that is owed."""
        if not owed:
            return x
        owed.clear()
        blurred: Tensor = self.blurpool(x)
        return blurred

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"members={self.members}"


class BlurredSlice(nn.Module):
    """A strided slice `x[:, :, ::2, ::2]`: blurred and subsampled in its spatial dimensions, sliced in the others."""

    def __init__(self, blurpool: nn.Module, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.blurpool = blurpool
        self.dims = dims

    def forward(self, x: Tensor, index: Any) -> Tensor:
        """`x[index]` of (N, C, *spatial) or (N, *spatial, C), as `dims` say, with the steps taken by the blur."""
        items = index if isinstance(index, tuple) else (index,)
        steps = tuple(item.step for item in items if isinstance(item, slice) and item.step not in (None, 1))
        # Another step than the one that was planned for is left to the slice.
        if self.blurpool.is_identity or steps != tuple(step for step in self.blurpool.stride if step > 1):  # type: ignore[union-attr]
            return x[index]
        last = self.dims[0] == 1
        blurred = self.blurpool(x.movedim(-1, 1) if last else x)
        rest = tuple(slice(None) if isinstance(item, slice) and item.step not in (None, 1) else item for item in items)
        return (blurred.movedim(1, -1) if last else blurred)[rest]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"dims={self.dims}"


class BlurredAvgPool(_PoolCall):
    """A functional average pool: replaced by the low-pass filter, with the output size of the original."""

    names = POOL_PARAMETERS["avg"]

    def __init__(
        self, blurpool: nn.Module, dense_kernel_size: tuple[int, ...] | None = None, unless_global: bool = False
    ) -> None:
        super().__init__(blurpool)
        self.dense_kernel_size = dense_kernel_size
        self.unless_global = unless_global

    def forward(self, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Filter `input` (N, C, *spatial) down to the size that the call asks for."""
        given = self.bind(function, args, kwargs)
        kernel, stride, padding = self.geometry(given)
        if stride != self.blurpool.stride or self.blurpool.is_identity:
            return function(*args, **kwargs)
        return avg_blur_pool(
            given["input"],
            kernel,
            stride,
            padding,
            given.get("ceil_mode", False),
            self.blurpool,
            count_include_pad=given.get("count_include_pad", True),
            divisor_override=given.get("divisor_override"),
            dense_kernel_size=self.dense_kernel_size,
            unless_global=self.unless_global,
        )
