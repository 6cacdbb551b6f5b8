"""Run a model as if its pictures went on periodically, so that borders play no part in what is measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blurify.graph.sites import PARAMETERS
from blurify.nn import BlurPool, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d, pool_output_size
from blurify.nn.arguments import given_per_dim as per_dim
from blurify.nn.calls import BlurredMaxPool
from blurify.spec.edits import Rewrite, SetStride
from blurify.spec.plan import Site
from blurify.surgery.carrying import plan_of

_MAX_BlurPool = (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_PADS = ("constant", "reflect", "replicate")
_KINDS = ("conv", "max_pool", "avg_pool")

Pads = list[tuple[int, int]]
"""(left, right) samples, one pair a spatial dimension."""


@contextmanager
def circular_padding(model: nn.Module, *, whole: bool = False) -> Iterator[None]:
    """While this lasts, whatever the model pads, it pads with the other side of the map; all sizes stay.

    Then a convolutional network is exactly periodic: for an input whose size is a multiple of a layer's total stride,
    rolling the input by that stride rolls the layer's map by one. Convolutions, max and average pools, `F.pad` of
    feature maps (N, C, H, W), transposed convolutions and linear interpolations by whole numbers, and blurify's own
    layers are made circular. Left alone: paddings of other tensors (tables, channels, parameters), max pools that
    return indices, other interpolations and `F.unfold`. A network whose sizes do not divide (an unpadded
    stem, say) stays aperiodic, unless `whole`.

    Args:
        model: any eager module, as it is or converted by blurify; it is as it was afterwards. No other thread may run
            it meanwhile.
        whole: pad more, too, where a convolution or pool would give fewer samples than a stride-th of those that it
            reads: a map of 224 read at stride 4 gives 56 samples, however little the model pads itself.
    """
    mode = _Circular(whole)
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, BlurPool):
                stack.callback(setattr, module, "padding", module.padding)
                module.padding = "circular"
                stack.callback(module.register_forward_pre_hook(mode.rest).remove)
                stack.callback(module.register_forward_hook(mode.resume, always_call=True).remove)
            elif isinstance(module, (*_MAX_BlurPool, BlurredMaxPool)):
                run: Callable[..., Any] = _max_blur_call if isinstance(module, BlurredMaxPool) else _max_blur_pool
                module.forward = functools.partial(run, module, mode)  # type: ignore[method-assign]
                stack.callback(delattr, module, "forward")
        for path, rest in _made_dense(model).items():
            module = model.get_submodule(path)
            enter = module.register_forward_pre_hook(functools.partial(mode.enter, rest))
            leave = module.register_forward_hook(mode.leave, always_call=True)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        with mode:
            yield


def wrapped(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Continue the last dimensions of x periodically, by (left, right) samples each; negative amounts crop."""
    for dim, (left, right) in enumerate(pads, start=x.dim() - len(pads)):
        if left or right:
            n = x.shape[dim]
            x = x.index_select(dim, torch.arange(-left, n + right, device=x.device) % n)
    return x


class _Circular(TorchFunctionMode):
    """Pads with the other side of the map before each call that pads."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole = whole
        self._resting = 0
        self._to_wrap: list[Pads | None] = []
        self._dense: list[tuple[int, ...]] = []
        # What `F.pad` gave last, of what, and by how much: a call that pads it further, or that a conversion made
        # dense, must know the map's own period.
        self._padded: tuple[Tensor, Tensor, Pads] | None = None

    def enter(self, rest: tuple[int, ...], *_: Any) -> None:
        """Forward pre-hook of a convolution that a conversion made dense; a blur subsamples later by `rest`."""
        self._dense.append(rest)

    def leave(self, *_: Any) -> None:
        """Forward hook of such a convolution."""
        self._dense.pop()

    def rest(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Forward pre-hook of a BlurPool, which pads by itself. Of a padded map it blurs the map, before the pads."""
        self._resting += 1
        source, pads = self.source(args[0], args[0].dim() - 2)
        if not any(map(any, pads)) or max(module.stride) > 1:  # type: ignore[arg-type]
            self._to_wrap.append(None)
            return None
        self._to_wrap.append(pads)
        return (source, *(source.shape[2:] if size is not None else None for size in args[1:]))

    def resume(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        """Forward hook of a BlurPool: pads the blurred map as the map was."""
        self._resting -= 1
        pads = self._to_wrap.pop()
        if pads is None or not isinstance(out, Tensor):
            return None
        padded = wrapped(out, pads)
        self._padded = padded, out, pads
        return padded

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name: str = getattr(func, "__name__", "")
        if self._resting:
            return func(*args, **kwargs)
        if name == "pad":
            return self._pad(func, args, kwargs)
        if name == "interpolate":
            return self._interpolated(func, args, kwargs)
        if name.startswith("conv_transpose"):
            return self._transposed(func, int(name[-2]), args, kwargs)
        if name in PARAMETERS and name.startswith(_KINDS) and not name.endswith("_with_indices"):
            given = dict(zip(PARAMETERS[name], args, strict=False)) | kwargs
            if not given.get("return_indices"):
                return self._windowed(func, name, given)
        return func(*args, **kwargs)

    def _pad(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
        x, amounts = given["input"], [int(amount) for amount in given["pad"]]
        spatial = x.dim() == 4 and x.is_floating_point() and not isinstance(x, nn.Parameter) and not any(amounts[4:])
        if not spatial or not any(amounts) or given.get("mode", "constant") not in _PADS:
            return func(*args, **kwargs)
        amounts += [0] * (4 - len(amounts))
        pads = [(amounts[2], amounts[3]), (amounts[0], amounts[1])]
        x, before = self.source(x, 2)
        pads = _sum(before, pads)
        out = wrapped(x, pads)
        self._padded = out, x, pads
        return out

    def _windowed(self, func: Callable[..., Any], name: str, given: dict[str, Any]) -> Any:
        """Run a convolution or a pool on a map that is padded already."""
        rank = int(name[-2])
        kernel = per_dim(given["weight"].shape[2:] if "weight" in given else given["kernel_size"], rank)
        stride = per_dim(given.get("stride") or (1 if "weight" in given else kernel), rank)
        dilation = per_dim(given.get("dilation", 1), rank)
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = given.get("padding", 0)
        if isinstance(padding, str):
            own = [(r // 2, r - r // 2) if padding == "same" else (0, 0) for r in reach]
        else:
            own = [(p, p) for p in per_dim(padding, rank)]
        x, before = self.source(given["input"], rank)
        pads = _sum(before, own)
        if self.whole:
            needed = [
                s * (n // s - 1) + r + 1 if n % s == 0 else 0
                for n, s, r in zip(x.shape[-rank:], stride, reach, strict=True)
            ]
            pads = _at_least(needed, x, pads)
        elif given.get("ceil_mode"):
            sizes = given["input"].shape[-rank:]
            windows = zip(sizes, kernel, stride, own, dilation, strict=True)
            out = [pool_output_size(n, k, s, left, d, True) for n, k, s, (left, _), d in windows]
            needed = [s * (size - 1) + r + 1 for s, size, r in zip(stride, out, reach, strict=True)]
            pads = _at_least(needed, x, pads)
        elif "weight" in given and self._dense:
            needed = [
                _whole_period(n, sum(pad), s, r, rest)
                for n, pad, s, r, rest in zip(x.shape[-rank:], pads, stride, reach, self._dense[-1], strict=True)
            ]
            pads = _at_least(needed, x, pads)
        if not any(map(any, pads)):
            return func(**given)
        changed = {"padding": 0} | ({"ceil_mode": False} if "ceil_mode" in given else {})
        given = given | changed | {"input": wrapped(x, pads)}
        return func(given.pop("input"), **given)

    def _interpolated(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Interpolate a map that goes on, and take what belongs to the map itself."""
        names = ("input", "size", "scale_factor", "mode", "align_corners")
        given = dict(zip(names, args, strict=False)) | kwargs
        x, mode = given["input"], given.get("mode", "nearest")
        if mode not in ("linear", "bilinear", "bicubic", "trilinear") or given.get("align_corners"):
            return func(*args, **kwargs)
        rank = x.dim() - 2
        with torch._C.DisableTorchFunction():
            scales = [m / n for m, n in zip(func(*args, **kwargs).shape[2:], x.shape[2:], strict=True)]
            if any(scale != int(scale) for scale in scales):
                return func(*args, **kwargs)
            around = wrapped(x, [(2, 2)] * rank)
            sizes = [int(scale) * n for scale, n in zip(scales, around.shape[2:], strict=True)]
            out = func(around, size=sizes, mode=mode, align_corners=False)
            for dim, (scale, n) in enumerate(zip(scales, x.shape[2:], strict=True), start=2):
                out = out.narrow(dim, 2 * int(scale), int(scale) * n)
            return out

    def _transposed(self, func: Callable[..., Any], rank: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A transposed convolution that gives `stride` samples for each: those that reach over a border come around."""
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = dict(zip(names, args, strict=False)) | kwargs
        x = given["input"]
        stride, padding = per_dim(given.get("stride", 1), rank), per_dim(given.get("padding", 0), rank)
        dilation = per_dim(given.get("dilation", 1), rank)
        with torch._C.DisableTorchFunction():
            sizes = func(*args, **kwargs).shape[-rank:]
            fits = all(m == s * n for m, s, n in zip(sizes, stride, x.shape[-rank:], strict=True))
            if not fits or x.dim() != rank + 2:
                return func(*args, **kwargs)
            reach = [d * (k - 1) for d, k in zip(dilation, given["weight"].shape[2:], strict=True)]
            more = [max(r, p) // s + 1 for r, p, s in zip(reach, padding, stride, strict=True)]
            changed = given | {"input": wrapped(x, [(m, m) for m in more]), "padding": 0, "output_padding": 0}
            out = func(changed.pop("input"), changed.pop("weight"), **changed)
            for dim, (m, s, p, n) in enumerate(zip(more, stride, padding, sizes, strict=True), start=2):
                out = out.narrow(dim, m * s + p, n)
            return out

    def source(self, x: Tensor, rank: int) -> tuple[Tensor, Pads]:
        """What a tensor was padded from, and by how much, where `F.pad` just did that."""
        if self._padded is not None and self._padded[0] is x and rank == 2:
            return self._padded[1], self._padded[2]
        return x, [(0, 0)] * rank


def _sum(first: Pads, second: Pads) -> Pads:
    return [(a + c, b + d) for (a, b), (c, d) in zip(first, second, strict=True)]


def _at_least(needed: Sequence[int], x: Tensor, pads: Pads) -> Pads:
    """Pads with more on the right, so that a dimension has as many samples as its windows need."""
    sizes = x.shape[-len(pads) :]
    return [(left, max(right, want - n - left)) for want, n, (left, right) in zip(needed, sizes, pads, strict=True)]


def _whole_period(n: int, pads: int, stride: int, reach: int, rest: int) -> int:
    """The samples that a convolution made dense needs, to give the whole period of its map.

    Padding for the original stride leaves a dense map a sample or so short (TF "same" padding). That does not change
    the size after the blur's subsampling by `rest`, but the blur must know the sample at the end.
    """
    size, period = (n + pads - reach - 1) // stride + 1, n // stride
    fits = n % stride == 0 and size < period and -(-size // rest) == -(-period // rest)
    return stride * (period - 1) + reach + 1 if fits else n + pads


def _made_dense(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The convolutions that a conversion made dense, and by how much a blur subsamples later."""
    plan = plan_of(model)
    found = {}
    for site in plan.sites if plan is not None else ():
        for edit in site.edits:
            strided = isinstance(edit, SetStride) or (isinstance(edit, Rewrite) and edit.op == "conv-dense")
            if strided and edit.dense_path is not None:
                found[edit.dense_path] = _rest(site, edit.stride)  # type: ignore[union-attr]
    return found


def _rest(site: Site, stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(whole // kept for whole, kept in zip(site.stride, stride, strict=True))


def _max_blur_pool(pool: Any, mode: _Circular, input: Tensor) -> Tensor:
    """The forward of a MaxBlurPool1d/2d/3d on a periodic map."""
    rank = pool.blurpool.ndim
    stride = pool.kernel_size if pool.stride is None else pool.stride
    kernel, stride, padding, dilation = (
        per_dim(value, rank) for value in (pool.kernel_size, stride, pool.padding, pool.dilation)
    )
    ceil, dense_kernel = pool.ceil_mode, pool.dense_kernel_size
    return _blurred(input, kernel, stride, padding, dilation, ceil, pool.blurpool, dense_kernel, mode)


def _max_blur_call(
    pool: BlurredMaxPool, mode: _Circular, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """The forward of the stand-in for `F.max_pool2d`, on a periodic map."""
    given = pool.bind(function, args, kwargs)
    kernel, stride, padding = pool.geometry(given)
    if stride != pool.blurpool.stride:
        return function(*args, **kwargs)
    dilation, ceil_mode = per_dim(given.get("dilation", 1), len(stride)), given.get("ceil_mode", False)
    x = given["input"]
    pooled = _blurred(x, kernel, stride, padding, dilation, ceil_mode, pool.blurpool, pool.dense_kernel_size, mode)
    return pool.returned(pooled, function, given)


def _blurred(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil_mode: bool,
    blurpool: nn.Module,
    dense_kernel: tuple[int, ...] | None,
    mode: _Circular,
) -> Tensor:
    """Dense max pool over the whole period (a plain one may miss its last samples), then blur and subsample."""
    rank = len(kernel)
    dims = zip(x.shape[-rank:], kernel, stride, padding, dilation, strict=True)
    sizes = [max(pool_output_size(*dim, ceil_mode), dim[0] // dim[2] if mode.whole else 0) for dim in dims]
    window, lead = (kernel, padding) if dense_kernel is None else (dense_kernel, (0,) * rank)
    x, before = mode.source(x, rank)
    lead = tuple(p + left for p, (left, _) in zip(lead, before, strict=True))
    pads = [(p, d * (k - 1) - p) for k, p, d in zip(window, lead, dilation, strict=True)]
    padded = wrapped(x, pads)
    with torch._C.DisableTorchFunction():  # it is padded already
        dense = _MAX_POOL[rank](padded, window, 1, 0, dilation)
    return blurpool(dense, sizes)
