"""Find the first operation of a model that does something else with a shifted picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blurify.graph.sites import PARAMETERS, bare_name
from blurify.nn import BlurPool
from blurify.nn.aps import ApsPool
from blurify.nn.arguments import given_per_dim
from blurify.spec.plan import Site
from blurify.surgery.carrying import plan_of

_MOST = 1e-4  # relative: what breaks equivariance does so by far more, and rounding by less
_MOST_OTHER_TOKENS = 8
_RESHAPES = frozenset("flatten view reshape unflatten squeeze unsqueeze permute transpose movedim contiguous".split())
_PADS = {"constant": "zeros (or a constant)", "reflect": "the reflected map", "replicate": "its border's samples"}
_LINEAR = frozenset("linear matmul mm addmm bmm baddbmm einsum".split())
_MEETING = frozenset("add sub mul div true_divide cat concat concatenate where maximum minimum stack".split())
_OWN = ("blurify.nn.aps", "blurify.nn.blurpool", "blurify.nn.pools", "blurify.nn.calls")


@dataclass(frozen=True)
class Break:
    """Where a shifted picture stops giving shifted features.

    Attributes:
        path: the module that it happens in ('' for the model itself).
        operation: the function, or the class of a layer of blurify.
        why: what about it breaks equivariance, and what would help.
    """

    path: str
    operation: str
    why: str

    def __str__(self) -> str:
        where = self.path or "the model's own forward"
        return f"{where} ({self.operation}): {self.why}"


def first_break(model: nn.Module, pair: Tensor, run: Callable[[Tensor], Any]) -> Break | None:
    """The first operation whose result for the shifted picture is no circular shift of that for the picture.

    Args:
        model: in eval mode.
        pair: (2, C, *spatial): a picture, and the same one shifted circularly.
        run: calls the model.

    Returns:
        None where every operation that can be judged does the same: then the outputs lie at another phase, and where
        the plan knows of an upsampling that does not restore it, it is that one.
    """
    watcher = _Watcher(model, tuple(pair.shape[2:]))
    with watcher.watching(), torch.no_grad():
        run(pair)
    return watcher.found or watcher.unrestored()


class _Watcher(TorchFunctionMode):
    """Compares the two samples of the batch behind each operation."""

    def __init__(self, model: nn.Module, space: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.space = model, space
        self.found: Break | None = None
        self._stack: list[tuple[str, nn.Module]] = []
        self._map = space  # the sizes of the last feature map
        self._flat: dict[int, Tensor] = {}  # vectors that hold positions one beside the other
        self._padded: dict[int, tuple[Tensor, str]] = {}
        self._plan = plan_of(model)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, what the model runs is compared."""
        with ExitStack() as hooks:
            for path, module in self.model.named_modules():
                enter = module.register_forward_pre_hook(lambda m, _, path=path: self._stack.append((path, m)))  # type: ignore[misc]
                leave = module.register_forward_hook(self._leave, always_call=True)
                hooks.callback(enter.remove)
                hooks.callback(leave.remove)
            with self:
                yield

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        path, _ = self._stack.pop()
        outside = not any(_is_own(outer) for _, outer in self._stack)
        if self.found is None and _is_own(module) and outside and isinstance(out, Tensor):
            with torch._C.DisableTorchFunction():
                wrong = self._judge(out)
            if wrong is not None and wrong > _MOST:
                self.found = Break(path, type(module).__name__, self._why_own(module, args))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.found is not None or not isinstance(out, Tensor) or any(_is_own(m) for _, m in self._stack):
            return out
        name = bare_name(func)
        with torch._C.DisableTorchFunction():
            why = self._look(name, out, args, kwargs)
        if why:
            path = self._stack[-1][0] if self._stack else ""
            self.found = Break(path, name, why)
        return out

    # --- what is the same

    def _look(self, name: str, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Why an operation breaks equivariance; '' where it does not, or where that can't be told of its result."""
        if out.dim() < 2 or out.shape[0] != 2 or not (out.is_floating_point() or out.is_complex()):
            return ""
        source = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)), None)
        if name == "pad":
            mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
            self._padded[id(out)] = out, str(mode)
            return ""
        sized = len(self.space) + 2 == out.dim() and (name in PARAMETERS or name.startswith("adaptive_"))
        if sized and self._divides(out.shape[2:]) is False:
            return self._why_size(name, out, source)
        if out.dim() == 2 and source is not None and self._holds_positions(name, out, source):
            self._flat[id(out)] = out
            return ""
        wrong = self._judge(out)
        if wrong is None or wrong <= _MOST:
            return ""
        return self._why(name, source, args, kwargs)

    def _holds_positions(self, name: str, out: Tensor, source: Tensor) -> bool:
        if name in _RESHAPES:
            return id(source) in self._flat or math.prod(source.shape[2:]) > 1
        return id(source) in self._flat and out.shape == source.shape

    def _divides(self, sizes: Any) -> bool:
        """Whether these sizes are those of a map of the picture, subsampled by whole numbers."""
        return lies_on(self.space, sizes)

    def _judge(self, out: Tensor) -> float | None:
        """How far the second sample is from a shift of the first, relative; None where it can't be told."""
        rank = len(self.space)
        if out.dim() == 2:
            return _apart(out[0], out[1])
        if out.dim() == rank + 2 and self._divides(out.shape[2:]):
            self._map = tuple(out.shape[2:])
            return _apart_by_a_shift(out[0], out[1], rank)
        if out.dim() == rank + 2 and self._divides(out.shape[1:-1]):
            moved = out.movedim(-1, 1)
            return _apart_by_a_shift(moved[0], moved[1], rank)
        positions = math.prod(self._map)
        if rank > 1 and out.dim() == 3 and positions > 1:  # tokens, behind some that stand for no position
            for tokens in (out, out.transpose(1, 2)):
                if 0 <= tokens.shape[2] - positions <= _MOST_OTHER_TOKENS:
                    maps = tokens[:, :, -positions:].reshape(2, tokens.shape[1], *self._map)
                    return _apart_by_a_shift(maps[0], maps[1], rank)
        return None

    # --- why it is not

    def _why(self, name: str, source: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if name in PARAMETERS:
            return self._why_windowed(name, source, args, kwargs)
        tensors = [
            one for arg in (*args, *kwargs.values()) for one in (arg if isinstance(arg, list | tuple) else [arg])
        ]
        others = [one for one in tensors if isinstance(one, Tensor) and one is not source]
        if name in _LINEAR and source is not None and id(source) in self._flat:
            positions = "x".join(map(str, self._map))
            return (
                f"flatten and linear: it weighs the {positions} positions of the last map differently; put a global "
                "pooling (nn.AdaptiveAvgPool2d(1)) in front, or use an input size at which that map is 1x1"
            )
        if name in _MEETING:
            tables = [one for one in others if one.dim() > 1 and (one.shape[0] != 2) and max(one.shape[1:]) > 1]
            if tables:
                shape = "x".join(map(str, tables[0].shape))
                return f"a table of shape {shape} that depends on the position (a position embedding) is added to a map"
            left = self._left()
            return "maps meet here that lie at different phases, or a table that depends on the position is added: " + (
                f"{left.name}, {left.reason}"
                if left
                else "the blur of each must follow one phase (blurify inspect says which follow)"
            )
        if name.startswith("conv_transpose"):
            return "a transposed convolution's windows reach beyond its border, where there is nothing: " + _CIRCULAR
        if name in ("interpolate", "upsample"):
            return "it interpolates beyond its border, where it repeats the border's samples: " + _CIRCULAR
        if "layer_norm" in name:
            return "its weights depend on the position"
        if name in ("roll", "unfold", "view", "reshape", "permute"):
            return "it cuts the map into windows at fixed places"
        if name == "getitem":
            return "it takes samples at fixed places (a strided slice, or a crop)"
        return "what it gives for the shifted picture is no shift of what it gives for the picture"

    def unrestored(self) -> Break | None:
        """The first upsampling whose phase the plan could not have restored."""
        left = self._left()
        if left is None:
            return None
        path, _, operation = left.name.partition("#")[0].partition(":")
        return Break(path, operation or left.kind, left.reason)

    def _left(self) -> Site | None:
        sites = self._plan.sites if self._plan is not None and self._plan.recipe.sampling is not None else ()
        return next((site for site in sites if site.kind == "upsample" and site.rule == "source"), None)

    def _why_windowed(self, name: str, source: Tensor | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = dict(zip(PARAMETERS[name], args, strict=False)) | kwargs
        rank = len(self.space)
        stride = given.get("stride")
        if stride in (None, (), []):
            stride = 1 if "weight" in given else given["kernel_size"]
        padding = given.get("padding", 0)
        pads = padding == "same" or (not isinstance(padding, str) and max(given_per_dim(padding, rank)) > 0)
        mode = self._padded.get(id(source), (None, ""))[1] if source is not None else ""
        reasons = []
        if pads:
            what = "zeros" if "weight" in given or "avg" in name else "nothing"
            reasons.append(f"it pads with {what}, so that a border is not like the middle: {_CIRCULAR}")
        elif mode in _PADS:
            reasons.append(f"what it reads is padded with {_PADS[mode]}: {_CIRCULAR}")
        if max(given_per_dim(stride, rank)) > 1:
            steps = "x".join(map(str, given_per_dim(stride, rank)))
            reasons.append(f"its stride of {steps} takes every sample at a fixed phase: {_APS}")
        return "; ".join(reasons) or "its windows do not go around the border: " + _CIRCULAR

    def _why_size(self, name: str, out: Tensor, source: Tensor | None) -> str:
        sizes, whole = ("x".join(map(str, s)) for s in (out.shape[2:], self.space))
        if name.startswith("adaptive_"):
            return f"its windows are not alike (it gives {sizes} for a picture of {whole}): use an output size of 1"
        return (
            f"it gives {sizes} samples for a picture of {whole}, which is no whole number of strides: use a picture "
            "whose sides are multiples of the total stride, and padding that keeps sizes"
        )

    def _why_own(self, module: nn.Module, args: tuple[Any, ...]) -> str:
        layer = next((part for part in module.modules() if isinstance(part, BlurPool)), None)
        if layer is not None and not isinstance(layer, ApsPool) and max(layer.stride) > 1:
            return f"it is blurred, and then subsampled at the first sample: {_APS}"
        if layer is None:  # a stand-in that runs an op densely
            return f"it pads with zeros: {_CIRCULAR}"
        if layer.padding != "circular":
            return f"it pads by {layer.padding}: {_CIRCULAR}"
        x = args[0] if args and isinstance(args[0], Tensor) else None
        rank = layer.ndim
        if x is not None and any(n % s for n, s in zip(x.shape[-rank:], layer.factor, strict=True)):
            sizes, steps = ("x".join(map(str, s)) for s in (x.shape[-rank:], layer.factor))
            return (
                f"a map of {sizes} is no multiple of its stride of {steps}: use a picture whose sides are multiples of "
                "the total stride"
            )
        return "two of its phases have the same norm, so that a shift chooses another one"


_CIRCULAR = "use circular padding (padding_mode='circular'; blurify certify --circular tries it)"
_APS = "convert with the recipe 'aps', and leave no site out"


def _is_own(module: nn.Module) -> bool:
    return type(module).__module__ in _OWN


def _apart(before: Tensor, after: Tensor) -> float:
    """The largest difference over the largest value."""
    scale = before.abs().max().item()
    return (before - after).abs().max().item() / (scale or 1.0)


def _apart_by_a_shift(before: Tensor, after: Tensor, rank: int) -> float:
    """The same, after the circular shift of (C, *spatial) that brings them together best."""
    dims = tuple(range(1, 1 + rank))
    sizes = before.shape[1:]
    if math.prod(sizes) == 1:
        return _apart(before, after)
    a, b = (torch.fft.fftn(one.double() if not one.is_complex() else one, dim=dims) for one in (before, after))
    likeness = torch.fft.ifftn((a.conj() * b).sum(0)).real.flatten()
    best = math.inf
    # Of maps that hardly vary, rounding may put another shift first.
    for place in likeness.topk(min(4, likeness.numel())).indices.tolist():
        shift = [place // math.prod(sizes[dim + 1 :]) % sizes[dim] for dim in range(rank)]
        best = min(best, _apart(torch.roll(before, shift, dims), after))
        if best <= _MOST:
            break
    return best


def lies_on(space: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a map of these sizes can be one of a picture of `space`, sub- or upsampled by whole numbers."""
    return all(n > 0 and (whole % n == 0 or n % whole == 0) for whole, n in zip(space, sizes, strict=True))


def shifts_back(shift: tuple[int, ...], space: tuple[int, ...], sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """By how much a map of these sizes may be shifted, where the picture is by `shift`: one way from full size on.

    A map that is subsampled by S lies at a phase between 0 and S - 1; it moves by the quotient, or one more.
    """
    ways = []
    for k, whole, n in zip(shift, space, sizes, strict=True):
        if n >= whole:
            ways.append([k * (n // whole)])
            continue
        step = whole // n
        ways.append(sorted({k // step, -(-k // step)}))
    return list(itertools.product(*ways))
