"""Prove that a conversion changed nothing but the blur: section 5 of the design."""

from __future__ import annotations

import functools
import itertools
import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, VerificationError
from blurify.graph.copies import copy_model, sharing_copy
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.nn import BlurPool
from blurify.planning.planner import make_plan
from blurify.spec.plan import BlurInput, BlurOutput, Plan, Rewrite, SetStride, Site
from blurify.surgery.apply import apply_plan, identity, with_taps

# How deep the modules lie whose outputs are compared one by one; all of them take gigabytes.
_DETECTORS_DEPTH = 3
_VARIED = 16  # different numbers among the first of each output
_LOOKED_AT = 4096
_SHOWS = 1e-3  # relative change of an output that the filter makes: then it would show a mistake of the plan too
_BLOCKS_DEPTH = 4  # blocks of stages: within a whole stage rounding may grow too much already
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Largest relative error of the identity check. float64 is the arbiter where float32 is too noisy."""


@dataclass(frozen=True)
class Proof:
    """What was checked after a conversion.

    Attributes:
        identity_error: largest relative error of the outputs when the same plan is carried out with the one-tap filter.
        dtype: the precision in which that was computed ('float32', or 'float64' where float32 was too noisy).
        outputs: how many output tensors were compared.
        stepwise: the outputs of modules were compared, each given what the original computed before it. That is done
            where a model has no outputs to compare (a detector that finds nothing in noise) or such as do not even
            show the filter, and where it amplifies rounding so much that even float64 does not agree with itself end
            to end (deep random networks).
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
    stepwise: bool = False

    def lines(self) -> list[str]:
        """The proof in words, one line a check."""
        return [
            f"identity: with the one-tap filter the model computes the original function (relative error "
            f"{self.identity_error:.1e} in {self.dtype}, {self.outputs} outputs{' of modules' * self.stepwise})",
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
    found = identity_error(original, plan, inputs)
    if not found.within_tolerance:
        raise VerificationError(
            f"with the one-tap filter the outputs differ from the original's by {found.error:.1e} ({found.dtype}): "
            "please report this model; --no-verify (verify=False) converts it all the same"
        )
    seconds = time.perf_counter() - begin
    return Proof(
        found.error, found.dtype, found.outputs, len(plan.converted), 0, equal, seconds, stepwise=found.stepwise
    )


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
    blur = module.extra_repr() if isinstance(module, BlurPool) else ""
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


@dataclass(frozen=True)
class Identity:
    """How far the plan with the one-tap filter is from the original.

    Attributes:
        error, dtype, outputs, stepwise: as those of `Proof`.
        varied: the outputs hold many different numbers, so that they can't agree by being clipped or saturated.
    """

    error: float
    dtype: str
    outputs: int
    stepwise: bool = False
    varied: bool = False

    @property
    def within_tolerance(self) -> bool:
        """Whether the error is rounding."""
        return self.error <= TOLERANCE["float64" if self.dtype == "float64" else "float32"]


def identity_error(original: nn.Module, plan: Plan, inputs: Inputs) -> Identity:
    """Compare the plan with the one-tap filter with the original."""
    if not plan.edits:
        return Identity(0.0, "float32", 0)
    unfiltered = identity(plan)
    probe = _lively(original)
    noise = _with_noise(inputs, _like(probe))
    if _like(probe).dtype != torch.float64:
        found = _compare(probe, unfiltered, noise)
        if found.error <= TOLERANCE["float32"]:
            return _told(found, probe, plan, noise)
        # Half precision, or sums so long that the order of additions shows: compute again in float64.
        probe = copy_model(probe)
        if _like(probe).device.type == "mps":  # which has no double precision
            probe, noise = probe.cpu(), map_tensors(noise, Tensor.cpu)
        probe, noise = probe.double(), map_tensors(noise, _to_double)
    found = _compare(probe, unfiltered, noise)
    if found.within_tolerance:
        return _told(found, probe, plan, noise)
    # An error that is rounding grows from module to module; one of the plan stands where it is made.
    return found if found.stepwise else _compare(probe, unfiltered, noise, depth=_BLOCKS_DEPTH)


def _told(found: Identity, original: nn.Module, plan: Plan, inputs: Inputs) -> Identity:
    """What was found if it tells anything, else what comparing module by module tells.

    Outputs that agree to the last bit may be right, or may be such that would agree anyway: a detector's boxes that are
    clipped at the picture's edge with scores of 1. The filter itself changes features a lot: where the outputs do not
    show even that, they show nothing.
    """
    if found.stepwise or found.varied or found.error > torch.finfo(_like(original).dtype).eps:
        return found
    blurred = sharing_copy(original)
    apply_plan(blurred, with_taps(plan, (0.25, 0.5, 0.25)))
    expected, actual = (_outputs(model, inputs, lambda *_: None, 0) for model in (original, blurred))
    pairs = zip(expected, actual, strict=False)
    if any(a.shape == b.shape and a.is_floating_point() and _relative(a, b) > _SHOWS for a, b in pairs):
        return found
    return _compare(original, identity(plan), inputs, depth=_DETECTORS_DEPTH)


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


def _compare(original: nn.Module, plan: Plan, inputs: Inputs, *, depth: int = 0) -> Identity:
    """The largest relative difference that carrying out the plan makes in the outputs.

    With a depth, in those of all modules down to it, each given what the original computed before it.
    """
    stepwise = depth > 0
    converted = sharing_copy(original)  # before the original runs, which may write to its buffers
    apply_plan(converted, plan)
    kept: dict[str, list[list[Tensor]]] = {}

    def keep(name: str, out: Any) -> None:  # cloned, as what follows may write to it
        kept.setdefault(name, []).append([tensor.clone() for tensor in tensors_in(out)])

    try:
        expected = _outputs(original, inputs, keep, depth)
    except Exception as error:
        raise BlurifyError(f"the model does not run on these inputs ({error}): give example_inputs") from error
    if not stepwise and not any(tensor.numel() for tensor in expected):
        # Nothing to compare, as where a detector finds nothing in noise: compare what its modules compute.
        return _compare(original, plan, inputs, depth=_DETECTORS_DEPTH)
    errors: list[float] = []
    unblurred = _track(converted, plan) if stepwise else set()
    strange: list[str] = []

    def compare(name: str, out: Any) -> Any:
        """Compare, and go on with what the original computed, so that no difference adds to the next."""
        now, before = tensors_in(out), kept[name].pop(0) if kept.get(name) else []
        if [tensor.shape for tensor in now] != [tensor.shape for tensor in before]:
            if before and not unblurred:  # not between a dense op and its blur
                strange.append(name)
            return None
        errors.extend(_relative(a, b) for a, b in zip(before, now, strict=True) if a.is_floating_point() and a.numel())
        if isinstance(out, Mapping) and type(out) not in (dict, OrderedDict):
            return None  # it may have more than its entries
        values = iter(before)
        return map_tensors(out, lambda tensor: next(values))

    try:
        actual = _outputs(converted, inputs, compare, depth)
    except Exception as error:
        raise VerificationError(f"with the one-tap filter the model does not run: {error}") from error
    if stepwise:
        right = bool(errors) and not strange and not unblurred and not any(kept.values())
    else:
        right = [t.shape for t in expected] == [t.shape for t in actual]
        errors = [_relative(a, b) for a, b in zip(expected, actual, strict=True)] if right else []
    dtype = str(_like(original).dtype).removeprefix("torch.")
    largest = max(errors, default=0.0) if right else float("inf")
    return Identity(largest, dtype, len(errors), stepwise, varied=_are_varied(expected))


def _are_varied(outputs: Sequence[Tensor]) -> bool:
    some = [t.detach().flatten()[:_LOOKED_AT].cpu().double() for t in outputs if t.is_floating_point()]
    return bool(some) and len(torch.cat(some).unique()) >= _VARIED


def _track(converted: nn.Module, plan: Plan) -> set[str]:
    """The blurs that are still to come in a forward of the converted model: a set that changes while it runs.

    Only while there are some may outputs have another size than the original's.
    """
    coming: set[str] = set()

    def begin(blur: str, *_: Any) -> None:
        coming.add(blur)

    def end(blur: str, *_: Any) -> None:
        coming.discard(blur)

    for site in plan.converted:
        dense = [edit.module for edit in site.edits if isinstance(edit, SetStride)]
        blurs = [f"{edit.module}.blur_output".lstrip(".") for edit in site.edits if isinstance(edit, BlurOutput)]
        for edit in site.edits:
            if isinstance(edit, BlurInput) and edit.module not in dense:  # else it comes before the dense op
                blurs.append(f"{edit.module}.blur_input".lstrip("."))
            if isinstance(edit, Rewrite) and edit.op in ("conv-dense", "wrap"):
                child = f"{edit.module}.{edit.child}".lstrip(".")
                (dense if edit.op == "conv-dense" else blurs).append(child)
        for module, blur in itertools.product(dense, blurs):
            converted.get_submodule(module).register_forward_pre_hook(functools.partial(begin, blur))
            converted.get_submodule(blur).register_forward_hook(functools.partial(end, blur))
    return coming


def _outputs(model: nn.Module, inputs: Inputs, visit: Callable[[str, Any], Any], depth: int) -> list[Tensor]:
    """What a model returns in eval mode; `visit` sees what modules down to a depth return, and may replace it."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    args, kwargs = map_tensors(inputs, Tensor.clone)
    handles = [
        module.register_forward_hook(functools.partial(_visited, visit, name))
        for name, module in model.named_modules()
        if name.count(".") < depth
    ]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(0)
            if devices:  # seeding queues for a CUDA that is not initialised, where nothing puts it back
                torch.cuda.manual_seed_all(0)
            return tensors_in(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode


def _visited(visit: Callable[[str, Any], Any], name: str, module: nn.Module, args: Any, out: Any) -> Any:
    instead = visit(name, out)
    return None if any(out is arg for arg in args) else instead  # what is written to it later must reach its input


def _relative(expected: Tensor, actual: Tensor) -> float:
    if not expected.numel():
        return 0.0
    a, b = ((t.cpu() if t.device.type == "mps" else t).detach().double() for t in (expected, actual))
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
