"""Fuse a converted model for deployment: the same function in eval mode, by fewer operations.

What is fused is read off a forward (`graph.recorder`), and each replacement is compared on random numbers with what it
replaces, before the whole model is:

- batch norms are folded into the convolutions that they follow;
- a blur, or an average pool that became one, behind a linear 1x1 convolution goes in front of it: they commute, and the
  convolution then runs on fewer samples;
- where it is asked for, a blur and the convolution that alone reads it become one strided convolution, if that takes
  fewer multiply-adds (it does for depthwise ones). It also writes less, and is not always quicker: docs/fusing.md.

The weights have other names and shapes then: what comes out is for inference, and can't be reverted or trained on.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from blurify.errors import BlurifyError, VerificationError
from blurify.graph.copies import copy_model, device_of
from blurify.graph.inputs import traced
from blurify.graph.recorder import Call, Trace
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.nn.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d
from blurify.nn.fused import BlurredConvolution
from blurify.nn.pools import AvgBlurPool1d, AvgBlurPool2d, AvgBlurPool3d
from blurify.surgery.carrying import carry_adapted, drop_plan, plan_of
from blurify.surgery.force import problems

_CONVS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_BLURS: tuple[type[nn.Module], ...] = (BlurPool1d, BlurPool2d, BlurPool3d)
_AVERAGES: tuple[type[nn.Module], ...] = (AvgBlurPool1d, AvgBlurPool2d, AvgBlurPool3d)
_PROOF = "_blurify_proof"
TOLERANCE = 1e-4
"""How far an output of the fused model may be off, as a share of the largest value (float32)."""
_EXACT = 1e-9  # of each replacement, in float64


@dataclass
class Fused:
    """What was fused.

    Attributes:
        norms: batch norms that were folded into convolutions, by the paths of these.
        moved: 1x1 convolutions that run behind the blur that came after them.
        merged: convolutions that became one with the blur before them.
        macs: multiply-adds before and after, of one forward on the inputs that it was fused with.
        error: the largest difference of the outputs, as a share of the largest value.
    """

    norms: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    macs: tuple[int, int] = (0, 0)
    error: float = 0.0

    def lines(self) -> list[str]:
        """The same in words."""
        counted = ((self.norms, "batch norm", "folded into the convolution before it"),
                   (self.moved, "1x1 convolution", "moved behind the blur that came after it"),
                   (self.merged, "convolution", "merged with the blur before it"))  # fmt: skip
        return [f"{len(paths)} {what}{'s' * (len(paths) > 1)} {done}" for paths, what, done in counted if paths]


def fuse(model: nn.Module, example_inputs: Any = None, *, merge: bool = False) -> nn.Module:
    """A copy of a converted model for inference: the same outputs by fewer operations, with other weights.

    Args:
        model: converted by blurify; it is not changed.
        example_inputs: what to call it with, as of `blurify.inspect`; the shapes that it was converted with where None.
        merge: merge blurs and the depthwise convolutions behind them, too: fewer multiply-adds and less traffic, but on
            small maps more time on a CPU.

    Returns:
        the fused copy, in eval mode, on the same device. Its state_dict is its own; it carries no plan any more.

    Raises:
        BlurifyError: the model is not converted, its plan is not in force, or it refuses the inputs.
        VerificationError: the fused model computes something else.

    Example:
        >>> fast = blurify.fuse(blurify.convert(model))
    """
    return fused(model, example_inputs, merge=merge)[0]


def fused(model: nn.Module, example_inputs: Any = None, *, merge: bool = False) -> tuple[nn.Module, Fused]:
    """As `fuse`, and what was done."""
    plan = plan_of(model)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it, then fuse the result")
    wrong = problems(model, plan)
    if wrong:
        raise BlurifyError(f"the model's plan is no longer in force ({wrong[0]}): convert the original model again")
    if example_inputs is None:
        dtype = next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
        example_inputs = tuple(torch.zeros(shape, dtype=dtype, device="cpu") for shape in plan.input_shapes)
    result = copy_model(model).eval()
    drop_plan(result)
    carry_adapted(result, None)
    result.__dict__.pop(_PROOF, None)
    done = Fused()
    seen = traced(result, example_inputs)
    before = seen.macs
    for step in (_fold, _commute, *([_merge] if merge else [])):
        while found := step(_Network(result, seen), done):
            for path, module in found.items():
                _put(result, path, module.eval())
            seen = traced(result, seen.inputs)
    done.macs = (before, seen.macs)
    done.error = _difference(model, result, seen.inputs)
    return result, done


Kind = Callable[[nn.Module], bool]


class _Network:
    """What a trace says of the modules of a model: who reads whose output."""

    def __init__(self, model: nn.Module, seen: Trace) -> None:
        self.model = model
        self.calls: dict[str, list[Call]] = defaultdict(list)
        for call in seen.calls:
            if call.path is not None:
                self.calls[call.path].append(call)
        self._used = defaultdict(int)  # type: ignore[var-annotated]
        for node in seen.graph.nodes:
            if node.op == "get_attr":
                for user in node.users:
                    self._used[node.target] += user.op == "call_function"

    def pairs(self, first: Kind, second: Kind) -> Iterator[Pair]:
        """The modules of these kinds of which one runs once, and is read by the other alone, which runs once."""
        by_output = {
            calls[0].output: path
            for path, calls in self.calls.items()
            if len(calls) == 1 and self._is_plain(path, first) and calls[0].output is not None
        }
        for path, calls in list(self.calls.items()):
            call = calls[0]
            if len(calls) > 1 or not self._is_plain(path, second) or len(call.inputs) != 1 or call.kwargs:
                continue
            source = call.inputs[0]
            if source is None or source not in by_output or source.meta.get("stale"):
                continue
            if all(user.meta.get("call") and call in user.meta["call"].stack() for user in source.users):
                before = by_output[source]
                one, two = self.model.get_submodule(before), self.model.get_submodule(path)
                origin = self.calls[before][0].inputs
                if len(origin) == 1 and origin[0] is not None and origin[0].meta["shape"] is not None:
                    yield Pair(before, path, one, two, tuple(origin[0].meta["shape"]))

    def _is_plain(self, path: str, kind: Kind) -> bool:
        """Whether a module is of this kind, without hooks and with weights that nobody else uses."""
        module = self.model.get_submodule(path)
        if not kind(module) or "forward" in vars(module):
            return False
        if module._forward_hooks or module._forward_pre_hooks or getattr(module, "parametrizations", None):
            return False
        names = [name for name, _ in module.named_parameters(recurse=False)]
        return all(self._used[f"{path}.{name}"] <= 1 for name in names)


@dataclass(frozen=True)
class Pair:
    """Two modules that run one after the other: their paths, themselves, and the shape of what the first one reads."""

    first: str
    second: str
    one: Any
    two: Any
    shape: tuple[int, ...]


def _fold(net: _Network, done: Fused) -> dict[str, nn.Module]:
    """A convolution and the batch norm behind it."""
    instead: dict[str, nn.Module] = {}
    for pair in net.pairs(_is_conv, _is_norm):
        if pair.two.running_mean is None:
            continue
        rest = _behind_norm(pair.two)
        _check(pair, nn.Sequential(fuse_conv_bn_eval(_double(pair.one), _double(pair.two)), rest))
        done.norms.append(pair.first)
        instead |= {pair.first: fuse_conv_bn_eval(pair.one, pair.two), pair.second: rest}
    return instead


def _is_conv(module: nn.Module) -> bool:
    return type(module) in _CONVS


def _is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of torch, or one of timm's, which has its activation in it."""
    if type(module) in _NORMS:
        return True
    return isinstance(module, _NORMS) and type(module).__module__ == "timm.layers.norm_act" and hasattr(module, "act")


def _behind_norm(norm: Any) -> nn.Module:
    """What a batch norm does after it has normed: nothing, or timm's activation."""
    return nn.Identity() if type(norm) in _NORMS else nn.Sequential(norm.drop, norm.act)


def _commute(net: _Network, done: Fused) -> dict[str, nn.Module]:
    """A 1x1 convolution and the blur behind it."""
    instead: dict[str, nn.Module] = {}
    for pair in net.pairs(_is_conv, lambda two: type(two) in (*_BLURS, *_AVERAGES)):
        conv = pair.one
        if max(*conv.kernel_size, *conv.stride) > 1 or not _unpadded(conv) or not _commutes(pair.two, conv):
            continue
        layer = pair.two if isinstance(pair.two, BlurPool) else pair.two.blurpool
        taps, fewer = math.prod(map(len, layer._filters)), math.prod(layer.stride)
        weights = conv.in_channels // conv.groups * conv.out_channels
        if fewer == 1 or taps * conv.in_channels + weights >= taps * conv.out_channels + fewer * weights:
            continue
        both = nn.Sequential(pair.two, conv)
        _check(pair, _double(both))
        done.moved.append(pair.first)
        instead |= {pair.first: both, pair.second: nn.Identity()}
    return instead


def _merge(net: _Network, done: Fused) -> dict[str, nn.Module]:
    """A blur and the convolution behind it."""
    instead: dict[str, nn.Module] = {}
    for pair in net.pairs(lambda one: type(one) in _BLURS, _is_conv):
        blur, conv = pair.one, pair.two
        if blur.filters_nothing or blur.of_tokens or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        apart, merged = BlurredConvolution.multiply_adds(blur, conv)
        if merged >= apart:
            continue
        _check(pair, BlurredConvolution(blur, _double(conv)))
        done.merged.append(pair.second)
        instead |= {pair.first: nn.Identity(), pair.second: BlurredConvolution(blur, conv)}
    return instead


def _unpadded(conv: Any) -> bool:
    return conv.padding == "valid" or (not isinstance(conv.padding, str) and max(conv.padding) == 0)


def _commutes(blur: Any, conv: Any) -> bool:
    """Whether a constant that the convolution adds is the same constant behind the blur."""
    layer = blur if isinstance(blur, BlurPool) else blur.blurpool
    if layer.of_tokens or layer.filters_nothing:
        return False
    if conv.bias is None:
        return True
    padded = not isinstance(blur, BlurPool) and max(_each(blur.padding)) > 0
    return layer.padding != "zeros" and not padded and not getattr(blur, "divisor_override", None)


def _each(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _double(module: nn.Module) -> Any:
    return copy.deepcopy(module).to("cpu", torch.float64).eval()


def _check(pair: Pair, instead: nn.Module) -> None:
    """Compare two modules with what replaces them, on random numbers."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    for more in (0, 1):  # even and odd sizes
        shape = (*pair.shape[:2], *(size + more for size in pair.shape[2:])) if len(pair.shape) > 2 else pair.shape
        x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")[:1]
        with torch.no_grad():
            wanted, found = _double(pair.two)(_double(pair.one)(x)), instead(x)
        scale = max(float(wanted.abs().max()), 1e-30)
        if wanted.shape != found.shape or float((wanted - found).abs().max()) > _EXACT * scale:
            raise VerificationError(
                f"{pair.first!r} and {pair.second!r} can't be fused: the result is another one (please report it)"
            )


def _difference(model: nn.Module, other: nn.Module, inputs: Inputs) -> float:
    """How far the outputs are apart on random inputs, as a share of the largest value. Raises VerificationError."""
    device = device_of(model)
    generator = torch.Generator(device="cpu").manual_seed(0)

    def filled(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float32, device="cpu").to(
            device, tensor.dtype
        )

    args, kwargs = map_tensors(inputs, filled)
    was = model.training
    try:
        with torch.no_grad():
            wanted, found = (tensors_in(one.eval()(*args, **kwargs)) for one in (model, other))
    finally:
        model.train(was)
    worst = 0.0
    for one, two in zip(wanted, found, strict=True):
        scale = max(float(one.abs().max()), 1e-30)
        error = float((one - two).abs().max()) / scale if one.shape == two.shape and one.numel() else math.inf
        worst = max(worst, error if one.numel() else 0.0)
        if not error <= TOLERANCE and one.numel():
            raise VerificationError(
                f"the fused model's output is off by {error:.2g} of its largest value, more than {TOLERANCE:g}: it is"
                " another function; use the converted model as it is"
            )
    return worst


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in another one's place."""
    outer, _, name = path.rpartition(".")
    model.get_submodule(outer)._modules[name] = module
