"""Prove that a conversion changed nothing but the blur: section 5 of the design."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, VerificationError
from blurify.plan import BlurInput, Plan, Site
from blurify.planning import make_plan
from blurify.sites import BLUR_POOLS
from blurify.surgery import apply_plan, identity
from blurify.tracing import Inputs, copy_model, map_tensors, tensors_in

_DEPTH = 3  # of the modules whose outputs are compared where the model's own are empty; all of them take gigabytes
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Largest relative error of the identity check. float64 is the arbiter where float32 is too noisy."""


@dataclass(frozen=True)
class Proof:
    """What was checked after a conversion.

    Attributes:
        identity_error: largest relative error of the outputs when the same plan is carried out with the one-tap filter.
        dtype: the precision in which that was computed ('float32', or 'float64' where float32 was too noisy).
        outputs: how many output tensors were compared.
        sites_converted: the sites that the plan converts.
        sites_left: those of them that tracing the converted model still finds (0).
        tensors_equal: the tensors of the state_dict, all with the same name and the same bits.
        seconds: how long the proof took.
    """

    identity_error: float
    dtype: str
    outputs: int
    sites_converted: int
    sites_left: int
    tensors_equal: int
    seconds: float

    def lines(self) -> list[str]:
        """The proof in words, one line a check."""
        return [
            f"identity: with the one-tap filter the model computes the original function "
            f"(relative error {self.identity_error:.1e} in {self.dtype}, {self.outputs} outputs)",
            f"audit: tracing the result finds {self.sites_left} of the {self.sites_converted} converted sites "
            "still aliasing",
            f"weights: all {self.tensors_equal} tensors of the state_dict keep their names and bits",
        ]


def verify(original: nn.Module, converted: nn.Module, plan: Plan, inputs: Inputs) -> Proof:
    """Prove a conversion; neither model is changed.

    Args:
        original: the model before the conversion.
        converted: the model after it, with the same weights.
        plan: what was done.
        inputs: (args, kwargs); tensors of zeros are filled with noise.

    Raises:
        VerificationError: a check failed; the message names it and what to do.
    """
    begin = time.perf_counter()
    equal = check_weights(original, converted)
    check_edits(original, converted, plan)
    try:
        left = sites_left(converted, plan, inputs)
    except BlurifyError as error:
        raise VerificationError(f"the converted model does not run: {error}") from error
    if left:
        raise VerificationError(
            f"{len(left)} of the sites that the plan converts still alias, first {left[0]}: "
            "please report this model; skip the site in a recipe ([skip] names) to go on"
        )
    distance, dtype, outputs = identity_error(original, plan, inputs)
    if not distance <= (TOLERANCE["float64"] if dtype == "float64" else TOLERANCE["float32"]):
        raise VerificationError(
            f"with the one-tap filter the outputs differ from the original's by {distance:.1e} ({dtype}): "
            "please report this model; --no-verify (verify=False) converts it all the same"
        )
    return Proof(distance, dtype, outputs, len(plan.converted), 0, equal, time.perf_counter() - begin)


def check_weights(original: nn.Module, converted: nn.Module) -> int:
    """Count the tensors of the state_dict, after checking that each has the name and the bits that it had."""
    before, after = original.state_dict(), converted.state_dict()
    if list(before) != list(after):
        odd = sorted(set(before) ^ set(after)) or ["their order"]
        raise VerificationError(f"the state_dict has other keys than the original's: {odd[0]}")
    for name, tensor in before.items():
        if isinstance(tensor, Tensor) and not _same_bits(tensor, after[name]):
            raise VerificationError(f"the tensor {name} is not the original's")
    return sum(isinstance(tensor, Tensor) for tensor in before.values())


def check_edits(original: nn.Module, converted: nn.Module, plan: Plan) -> None:
    """Check that the converted model is what the plan makes of the original: the identity check is about the plan."""
    expected = sharing_copy(original)
    apply_plan(expected, plan)
    pairs = itertools.zip_longest(expected.named_modules(), converted.named_modules(), fillvalue=("", None))
    for (name, a), (other, b) in pairs:
        if name != other or _edited(a) != _edited(b):
            raise VerificationError(f"the edits of the plan were not carried out as planned at {name or other!r}")


def _edited(module: nn.Module | None) -> tuple[Any, ...]:
    if module is None:
        return ()
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    names = [getattr(getattr(hook, "func", hook), "__qualname__", type(hook).__qualname__) for hook in hooks]
    blur = module.extra_repr() if isinstance(module, BLUR_POOLS) else ""
    cls = type(module)  # not compared itself: a copied GraphModule has a class of its own
    rewrites, stride = getattr(cls, "_blurify_rewrites", ()), getattr(module, "stride", None)
    return cls.__module__, cls.__qualname__, rewrites, stride, blur, names


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a is b or a.is_meta or a.data_ptr() == b.data_ptr() or torch.equal(a, b):
        return True
    return a.is_floating_point() and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def sites_left(converted: nn.Module, plan: Plan, inputs: Inputs) -> list[str]:
    """The names of sites that the plan converted and that a trace of the converted model still finds."""
    again = make_plan(converted, plan.recipe, inputs).sites
    # Calls in one forward are numbered, and those that stand-ins run no longer count: compare how many there are.
    now = Counter(_kind_of(site) for site in again)
    behind_blur = [site for site in plan.converted if site.rule == "blurred-input"]
    strided = {site.name for site in behind_blur if any(isinstance(edit, BlurInput) for edit in site.edits)}
    kept = Counter(_kind_of(site) for site in plan.sites if site.action == "skip" or site.name in strided)
    unfiltered = {site.name for site in again if site.rule != "already-filtered"}
    return [
        site.name
        for site in plan.converted
        if (site.name in unfiltered if site.name in strided else now[_kind_of(site)] > kept[_kind_of(site)])
    ]


def _kind_of(site: Site) -> tuple[str, str, tuple[int, ...]]:
    return site.name.partition("#")[0], site.kind, site.stride


def identity_error(original: nn.Module, plan: Plan, inputs: Inputs) -> tuple[float, str, int]:
    """How far the plan with the one-tap filter is from the original: (relative error, dtype, outputs compared)."""
    if not plan.edits:
        return 0.0, "float32", 0
    unfiltered = identity(plan)
    probe = _lively(original)
    noise = _with_noise(inputs, _like(probe))
    single = _like(probe).dtype != torch.float64
    if single:
        error, outputs = _compare(probe, unfiltered, noise)
        if error <= TOLERANCE["float32"]:
            return error, str(_like(probe).dtype).removeprefix("torch."), outputs
        # Half precision, or sums so long that the order of additions shows: compute again in float64.
        probe, noise = copy_model(probe).double(), map_tensors(noise, _to_double)
    error, outputs = _compare(probe, unfiltered, noise)
    return error, "float64", outputs


def _lively(model: nn.Module) -> nn.Module:
    """A copy of the model, sharing its weights but for those that are (almost) zero, which get noise.

    A branch that a fresh model multiplies by zero (last norms, layer scales) would else not be checked at all. A model
    on the meta device gets weights made up on the CPU.
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if not parameter.numel() or not parameter.is_floating_point():
            continue
        if parameter.is_meta or not parameter.detach().abs().max() > 1e-2:
            noise = 0.5 + torch.rand(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                noise = (noise - 1) / max(parameter[0].numel(), 1) ** 0.5 if parameter[0].numel() > 1 else noise
            noise = noise.to("cpu" if parameter.is_meta else parameter.device, parameter.dtype)
            memo[id(parameter)] = nn.Parameter(noise, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.is_meta:
            fill = torch.ones if buffer.is_floating_point() else torch.zeros
            memo[id(buffer)] = fill(buffer.shape, dtype=buffer.dtype)
    return sharing_copy(model, memo)


def sharing_copy(model: nn.Module, instead: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the model's modules around the very same parameters; it takes no memory for them.

    Buffers are copied: a forward may write to them in eval mode too. `instead` gives other parameters and buffers, by
    the id of those that they replace.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    return copy_model(model, memo | (instead or {}))


def _compare(original: nn.Module, plan: Plan, inputs: Inputs) -> tuple[float, int]:
    """The largest relative difference that carrying out the plan makes in the outputs, and how many those are."""
    converted = sharing_copy(original)  # before the original runs, which may write to its buffers
    apply_plan(converted, plan)
    try:
        expected = _outputs(original, inputs)
    except Exception as error:
        raise BlurifyError(f"the model does not run on these inputs ({error}): give example_inputs") from error
    try:
        actual = _outputs(converted, inputs)
    except Exception as error:
        raise VerificationError(f"with the one-tap filter the model does not run: {error}") from error
    if not any(tensor.numel() for tensor in expected):
        # Nothing to compare, as where a detector finds nothing in noise: compare what its modules compute.
        return _compare_features(original, converted, inputs)
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return float("inf"), len(expected)
    return max((_relative(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0), len(expected)


def _compare_features(original: nn.Module, converted: nn.Module, inputs: Inputs) -> tuple[float, int]:
    """The largest relative difference between what modules of the same name return at the same size."""
    expected: dict[str, list[Tensor]] = {}
    errors: list[float] = []

    def keep(name: str, out: Any) -> None:
        if name not in expected:  # cloned, as what follows may write to it
            expected[name] = [tensor.clone() for tensor in tensors_in(out)]

    def compare(name: str, out: Any) -> None:
        for a, b in zip(expected.pop(name, ()), tensors_in(out), strict=False):
            if a.shape == b.shape and a.is_floating_point() and a.numel():
                errors.append(_relative(a, b))

    for model, visit in ((original, keep), (converted, compare)):
        handles = [
            module.register_forward_hook(lambda module, args, out, name=name, visit=visit: visit(name, out))
            for name, module in model.named_modules()
            if name.count(".") < _DEPTH
        ]
        try:
            _outputs(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
    return (max(errors), len(errors)) if errors else (float("inf"), 0)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    args, kwargs = map_tensors(inputs, Tensor.clone)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return tensors_in(model(*args, **kwargs))
    finally:
        for module, mode in training.items():
            module.training = mode


def _relative(expected: Tensor, actual: Tensor) -> float:
    if not expected.numel():
        return 0.0
    a, b = expected.detach().double(), actual.detach().double()
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    scale = a.abs().max().item()
    return (a - b).abs().max().item() / (scale or 1.0)


def _like(model: nn.Module) -> Tensor:
    """A floating-point tensor of the model, for its device and dtype."""
    tensors: Sequence[Tensor] = [*model.parameters(), *model.buffers()]
    return next((t for t in tensors if t.is_floating_point()), torch.zeros(()))


def _with_noise(inputs: Inputs, like: Tensor) -> Inputs:
    """The inputs on the model's device; where they hold nothing (meta tensors, all zeros), noise."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return (
                torch.zeros(tensor.shape, dtype=tensor.dtype, device=like.device)
                if tensor.is_meta
                else tensor.to(like.device)
            )
        if tensor.is_meta or not tensor.any():
            tensor = torch.randn(tensor.shape, generator=generator)
        return tensor.to(like.device, like.dtype)

    return map_tensors(inputs, fill)


def _to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
