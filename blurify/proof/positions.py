"""Measure where features are: run a model on coordinates instead of pictures.

Every op is put in the place of its average: convolutions and products with weights take the mean of what they read
(fixed filters their own weights), norms and nonlinearities pass their input on, what is enlarged or goes on beyond a
border is a straight line. Attention looks where it stands; of a product of signals that sums over positions the other
signal's place is left. In such a network the weights of all ways from the input to one feature
have a centre of mass, and the response to the ramp 0, 1, 2, ... over the response to ones *is* that centre: the
centroid of the feature's impulse response, in input pixels. It is computed by the layers that really run, blurs
included, so that it knows nothing of how the drift was predicted. Two models are compared module by module.

Ramps go up and down, and of what comes out the odd part is taken: added constants (biases, position embeddings) cancel,
and the window of a maximum has its centre in the middle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blurify.graph.copies import sharing_copy
from blurify.graph.quiet import quietly
from blurify.graph.sites import PARAMETERS, bare_name
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.nn.arguments import given_per_dim

_PASS_ON = frozenset(
    "relu relu6 elu selu celu gelu silu mish hardtanh hardswish hardsigmoid leaky_relu prelu rrelu sigmoid tanh "
    "softplus softsign logsigmoid threshold clamp clip clamp_min clamp_max abs exp expm1 log log1p pow square sqrt "
    "rsqrt reciprocal sin cos erf tanhshrink hardshrink softshrink batch_norm layer_norm group_norm instance_norm "
    "rms_norm local_response_norm normalize dropout dropout2d dropout3d alpha_dropout feature_alpha_dropout "
    "log_softmax".split()
)
_BOX = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MEAN = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

_FARTHEST = 1e5  # input pixels: no input is so large that features look so far
_MOST = 4096  # features of one module that are kept: of millions, every so many-th tells the same

Positions = dict[tuple[str, int], tuple[torch.Size, list[Tensor]]]
"""By module path and which call of it: the shape of its output, and the places of features of it, in input pixels, a
tensor a spatial dimension; nan where a feature has none."""


@dataclass(frozen=True)
class Measured:
    """How far the features of two models are apart.

    Attributes:
        drifts: by module path, the median over its features of how far they lie to the right of the original's, in
            input pixels, one a spatial dimension.
        most: the largest distance of any single feature, borders included.
    """

    drifts: dict[str, tuple[float, ...]]
    most: float

    @property
    def largest(self) -> float:
        """The largest median distance."""
        return max((abs(one) for drift in self.drifts.values() for one in drift), default=0.0)


def drift_between(original: nn.Module, converted: nn.Module, inputs: Inputs) -> Measured:
    """Compare where two models have their features, at every module whose output has the same size in both.

    Args:
        original: with real or made-up weights; they do not matter.
        converted: the same, converted.
        inputs: (args, kwargs); the floating-point tensors are pictures of one batch entry, and replaced by ramps. Maps
            should stay larger than the filters are, or their borders bend.

    Raises:
        Exception: whatever the model raises that can't be run on coordinates.
    """
    return compared(positions_of(original, inputs), positions_of(converted, inputs))


def compared(before: Positions, after: Positions) -> Measured:
    """Compare the positions in two models; what has another size in one (it became dense) is left out."""
    drifts: dict[str, tuple[float, ...]] = {}
    most = 0.0
    for key, (shape, places) in before.items():
        other, others = after.get(key, (None, []))
        if other != shape:
            continue
        # What is far outside the input is no place: a product of features that no average stands for.
        usual = [place.abs().le(_FARTHEST) for place in places]
        apart = [(b - a)[near & (b - a).isfinite()] for a, b, near in zip(places, others, usual, strict=True)]
        if all(one.numel() for one in apart):
            drifts[key[0]] = tuple(float(one.median()) for one in apart)
            most = max(most, *(float(one.abs().max()) for one in apart))
    return Measured(drifts, most)


def positions_of(model: nn.Module, inputs: Inputs) -> Positions:
    """Where the features of all modules of a model are."""
    probe = sharing_copy(model, {id(parameter): _ones_like(parameter) for parameter in model.parameters()}).eval()
    for module in probe.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.double()
    rank = min(max((t.ndim - 2 for t in tensors_in(inputs) if t.is_floating_point()), default=2), 3)
    args, kwargs = map_tensors(inputs, partial(_coordinates, rank=rank))
    found: Positions = {}
    numbers: Counter[str] = Counter()
    handles = []

    def note(path: str, module: nn.Module, _: Any, out: Any) -> None:
        number = numbers[path]
        numbers[path] += 1
        if isinstance(out, Tensor) and out.is_floating_point() and out.shape[:1] == (2 + 2 * rank,):
            with torch._C.DisableTorchFunction():  # hooks run where ops are averages
                found[path, number] = out.shape, _places(out, rank)

    for path, module in probe.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_hook(partial(note, path)))
    try:
        with torch.no_grad(), quietly(), _Averages():
            probe(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _ones_like(parameter: Tensor) -> nn.Parameter:
    """A parameter of ones that takes no memory."""
    kind = torch.float64 if parameter.is_floating_point() else parameter.dtype
    return nn.Parameter(torch.ones((), dtype=kind).expand(parameter.shape), requires_grad=False)


def _coordinates(tensor: Tensor, rank: int) -> Tensor:
    """Ones and ramps along each spatial dimension, each once more negated, as a batch: 2 + 2 * rank entries."""
    if not tensor.is_floating_point() or tensor.ndim < rank + 2:
        return tensor
    shape = tensor.shape[1:]
    signals = [torch.ones(shape, dtype=torch.float64)]
    for dim in range(len(shape) - rank, len(shape)):
        ramp = torch.arange(shape[dim], dtype=torch.float64)
        signals.append(ramp.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape))
    batch = torch.stack(signals)
    return torch.cat([batch, -batch])


def _places(out: Tensor, rank: int) -> list[Tensor]:
    """The place of each feature: the odd part of the response to a ramp, over that to ones."""
    features = out.detach().flatten(1)
    up, down = features[:, :: -(-features.shape[1] // _MOST) | 1].chunk(2)
    odd = (up - down) / 2
    ones = torch.where(odd[0].abs() > 1e-300, odd[0], math.nan)
    return [odd[1 + dim] / ones for dim in range(rank)]


def extended(x: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    """Let the last dimensions go on as a straight line by (left, right) samples; negative amounts crop."""
    first = x.dim() - len(pads)
    for dim, (left, right) in enumerate(pads, start=first):
        n = x.shape[dim]
        if left > 0 or right > 0:
            begin, end = x.narrow(dim, 0, 1), x.narrow(dim, n - 1, 1)
            slope = (begin * 0, begin * 0) if n == 1 else (x.narrow(dim, 1, 1) - begin, end - x.narrow(dim, n - 2, 1))
            shape = [-1 if d == dim else 1 for d in range(x.dim())]
            before = begin - slope[0] * torch.arange(max(left, 0), 0, -1, dtype=x.dtype).view(shape)
            after = end + slope[1] * torch.arange(1, max(right, 0) + 1, dtype=x.dtype).view(shape)
            x = torch.cat([before, x, after], dim)
        if left < 0 or right < 0:
            x = x.narrow(dim, max(-left, 0), x.shape[dim] - max(-left, 0) - max(-right, 0))
    return x


class _Averages(TorchFunctionMode):
    """Puts an average in the place of every op that is none."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = bare_name(func)
        if name in PARAMETERS:
            return _strided(func, name, dict(zip(PARAMETERS[name], args, strict=False)) | kwargs)
        if name in ("matmul", "rmatmul", "bmm", "einsum"):
            return _product(func, name, args, kwargs)
        first = args[0] if args else kwargs.get("input")
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return func(*args, **kwargs)
        if name in _PASS_ON:
            return first
        if name in ("mul", "multiply", "div", "true_divide", "sub", "subtract"):
            other = args[1] if len(args) > 1 else kwargs.get("other")
            if isinstance(other, Tensor) and other.is_floating_point():
                return _one_of(func, name, first, other)
        elif name == "pad":
            pads = [int(n) for n in (args[1] if len(args) > 1 else kwargs["pad"])]
            return extended(first, list(zip(pads[::2], pads[1::2], strict=True))[::-1])
        elif name == "softmax":
            dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
            return _attention(first, -1 if dim is None else int(dim))
        elif name == "linear":
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return first.mean(-1, keepdim=True).repeat_interleave(weight.shape[0], -1)
        elif name == "glu":
            return first.chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))[0]
        elif name == "scaled_dot_product_attention":
            value = args[2] if len(args) > 2 else kwargs["value"]
            if value.shape[:-1] == first.shape[:-1]:
                return value
            return first.mean(-1, keepdim=True).repeat_interleave(value.shape[-1], -1)
        elif name == "fold":  # where windows overlap their sum would be larger, and weigh more in what is averaged next
            return func(*args, **kwargs) / func(torch.ones_like(first), *args[1:], **_without_input(kwargs))
        elif name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            values, *states = func(*args, **kwargs)
            if values.shape[:-1] == first.shape[:-1]:
                values = first.mean(-1, keepdim=True).repeat_interleave(values.shape[-1], -1)
            return (values, *states)
        elif name.startswith("conv_transpose"):
            return _upsampled(int(name[-2]), first, *args[1:], **_without_input(kwargs))
        elif name == "interpolate":
            sizes = func(first.to("meta"), *args[1:], **_without_input(kwargs)).shape[2:]
            corners = args[4] if len(args) > 4 else kwargs.get("align_corners")
            return _resized(first, sizes, bool(corners))
        elif name == "pixel_shuffle":
            times = args[1] if len(args) > 1 else kwargs["upscale_factor"]
            sizes = [n * times for n in first.shape[-2:]]
            return _resized(first.unflatten(-3, (-1, times**2)).mean(-3), sizes, False)
        return func(*args, **kwargs)


def _without_input(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key != "input"}


def _one_of(func: Any, name: str, first: Tensor, other: Tensor) -> Tensor:
    """A product of two signals has the place of the larger one (a gate has none); of equal ones that in the middle.

    Of a difference or quotient it is the first that counts, as in a norm written by hand.
    """
    name_of = getattr(func, "__name__", "")
    in_place = (name_of.endswith("_") and not name_of.endswith("__")) or name_of.startswith("__i")
    shape = torch.broadcast_shapes(first.shape, other.shape)
    own, its = _places_in(first), _places_in(other)
    if name in ("mul", "multiply") and own == its:
        result = (first + other) / 2
    else:
        result = first if name not in ("mul", "multiply") or own > its else other
        result = result if result.shape == shape else result.expand(shape).contiguous()
    return first.copy_(result) if in_place else result


def _places_in(tensor: Tensor) -> int:
    """The number of features that a tensor has places for: what was expanded has one for all."""
    return math.prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step)


def _attention(scores: Tensor, dim: int) -> Tensor:
    """What takes the place of a softmax: the same for all keys.

    Between other places than the queries' own it keeps theirs, which is where the result stands (see `_product`).
    """
    if scores.dim() > 2 and dim % scores.dim() == scores.dim() - 1 and scores.shape[-2] != scores.shape[-1]:
        return scores.mean(-1, keepdim=True).repeat_interleave(scores.shape[-1], -1)
    return torch.full_like(scores, 1 / scores.shape[dim])


def _product(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product of matrices, as an average.

    What is the same for a signal and its negative (weights, uniform attention) is no signal, and the product is what it
    is; but that square attention looks at its own place. Where there are windows, their means were a staircase, whose
    steps a centred blur moves to the left here and to the right there.

    Of two signals the one that differs along what is summed over is summed over positions: the place is that of the
    other, such as of the queries. Where both or none differ, it is the first's, or in the middle.
    """
    at = [index for index, arg in enumerate(args) if isinstance(arg, Tensor) and arg.is_floating_point()]
    if len(at) != 2 or kwargs:
        return func(*args, **kwargs)
    pair = [args[index] for index in at]
    if not all(map(_is_signal, pair)):
        mine = [arg if _is_signal(arg) else _on_itself(arg) for arg in pair]
        return func(*args[: at[0]], *mine)

    def with_ones(*which: int) -> Tensor:
        return func(
            *args[: at[0]], *(torch.ones_like(one) if index in which else one for index, one in enumerate(pair))
        )

    alike = [_is_alike(one, dims) for one, dims in zip(pair, _summed(name, args), strict=True)]
    if alike[0] or alike[1]:
        return with_ones(1 if alike[0] else 0) / with_ones(0, 1)
    return (with_ones(0) + with_ones(1)) / (2 * with_ones(0, 1))


def _summed(name: str, args: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions of either tensor that their product sums over."""
    if name != "einsum":
        return ((-2,), (-1,)) if name == "rmatmul" else ((-1,), (-2 if args[1].dim() > 1 else -1,))
    given, arrow, result = args[0].replace(" ", "").replace("...", ".").partition("->")
    first, _, second = given.partition(",")

    def dims(letters: str, other: str) -> tuple[int, ...]:
        gone = [place for place, one in enumerate(letters) if (one not in result if arrow else one in other)]
        return tuple(place - len(letters) if "." in letters[:place] else place for place in gone)

    return dims(first, second), dims(second, first)


def _is_alike(tensor: Tensor, dims: tuple[int, ...]) -> bool:
    """Whether it is the same along dimensions, but for rounding."""
    slack = 1e-9 * tensor.abs().max()
    return all(bool((tensor - tensor.narrow(dim, 0, 1)).abs().max() <= slack) for dim in dims)


def _on_itself(weights: Tensor) -> Tensor:
    """Square matrices of the same number everywhere as ones that have the whole sum on their diagonal."""
    size = weights.shape[-1]
    if weights.dim() < 2 or weights.shape[-2] != size or not bool((weights == weights.flatten()[0]).all()):
        return weights
    return (size * weights.flatten()[0] * torch.eye(size, dtype=weights.dtype)).expand(weights.shape)


def _is_signal(tensor: Tensor) -> bool:
    """Whether a tensor is another one for coordinates and their negatives, which are the halves of the batch."""
    if tensor.dim() == 0 or tensor.shape[0] % 2:
        return False
    return not torch.equal(*tensor.chunk(2))


def _strided(func: Any, name: str, given: dict[str, Any]) -> Any:
    """A convolution or pool: the mean of what it reads, of a fixed filter weighted; of a max pool the maximum."""
    rank = int(name.removesuffix("_with_indices")[-2])
    x, weight = given["input"], given.get("weight")
    dilation = given_per_dim(given.get("dilation", 1), rank)
    if weight is not None:
        kernel = tuple(weight.shape[2:])
        stride = given_per_dim(given.get("stride", 1), rank)
        extent = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding: Any = given.get("padding", 0)
        if isinstance(padding, str):
            pads = [(e // 2, e - e // 2) if padding == "same" else (0, 0) for e in extent]
        else:
            pads = [(p, p) for p in given_per_dim(padding, rank)]
        return _convolved(extended(x, pads), weight, stride, dilation, int(given.get("groups", 1)), rank)
    if not name.startswith(("max_pool", "avg_pool")):
        return func(**given)
    kernel = given_per_dim(given["kernel_size"], rank)
    stride = given_per_dim(given.get("stride") or kernel, rank)
    padding = given_per_dim(given.get("padding", 0), rank)
    ceil = given.get("ceil_mode", False)
    sized = _LARGEST[rank](torch.empty(x.shape, device="meta"), kernel, stride, padding, dilation, ceil)
    pads = [
        (p, s * (m - 1) + d * (k - 1) + 1 - n - p)
        for n, m, k, s, p, d in zip(
            x.shape[-rank:], sized.shape[-rank:], kernel, stride, padding, dilation, strict=True
        )
    ]
    x = extended(x, pads)
    if name.startswith("avg"):
        return _MEAN[rank](x, kernel, stride)
    y = _LARGEST[rank](x, kernel, stride, 0, dilation)
    with_indices = given.get("return_indices") or name.endswith("_with_indices")
    return (y, torch.zeros_like(y, dtype=torch.int64)) if with_indices else y


def _convolved(x: Tensor, weight: Tensor, stride: Any, dilation: Any, groups: int, rank: int) -> Tensor:
    sums = weight.sum(tuple(range(1, weight.dim())), dtype=torch.float64)
    fixed = bool((weight != weight.flatten()[0]).any()) and bool((sums.abs() > 1e-6).all())
    if fixed:
        y = _BOX[rank](x, weight.to(x.dtype), None, stride, 0, dilation, groups)
        return y / sums.view(-1, *(1 for _ in range(rank)))
    box = torch.ones((1, 1, *weight.shape[2:]), dtype=x.dtype) / math.prod(weight.shape[2:])
    y = _BOX[rank](x.mean(-rank - 1, keepdim=True), box, None, stride, 0, dilation)
    return y.repeat_interleave(weight.shape[0], -rank - 1)


def _upsampled(
    rank: int, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Tensor:  # fmt: skip
    """A transposed convolution: sample o is centred on sample (o + padding - dilation * (kernel - 1) / 2) / stride."""
    places = []
    given = (given_per_dim(value, rank) for value in (stride, padding, output_padding, dilation))
    for n, k, s, p, more, d in zip(x.shape[-rank:], weight.shape[2:], *given, strict=True):
        size = (n - 1) * s - 2 * p + d * (k - 1) + more + 1
        places.append((torch.arange(size, dtype=x.dtype) + p - d * (k - 1) / 2) / s)
    y = _read_at(x.mean(-rank - 1, keepdim=True), places)
    return y.repeat_interleave(weight.shape[1] * groups, -rank - 1)


def _resized(x: Tensor, sizes: Sequence[int], corners: bool) -> Tensor:
    """An interpolation of any kind, as a straight line: pixels are areas, or their corners are aligned."""
    places = []
    for n, m in zip(x.shape[-len(sizes) :], sizes, strict=True):
        at = torch.arange(m, dtype=x.dtype)
        places.append(at * ((n - 1) / max(m - 1, 1)) if corners else (at + 0.5) * (n / m) - 0.5)
    return _read_at(x, places)


def _read_at(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """The values at places between the samples of the last dimensions (one list a dimension), and beyond them."""
    for dim, at in enumerate(places, start=x.dim() - len(places)):
        n = x.shape[dim]
        if n == 1:
            x = x.repeat_interleave(len(at), dim)
            continue
        left = at.floor().clamp(0, n - 2).long()
        part = (at - left).view([-1 if d == dim else 1 for d in range(x.dim())])
        x = x.index_select(dim, left) * (1 - part) + x.index_select(dim, left + 1) * part
    return x
