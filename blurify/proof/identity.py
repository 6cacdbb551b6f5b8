"""Identity: with a filter that filters nothing, a conversion must compute the original function.

The original and the unfiltered conversion run side by side on the same input. At every site the conversion's value is
compared with the original's own, and then replaced by it: so a mistake shows where it is made, whatever becomes of it
further on, and rounding does not add up from site to site. A third run has every blur off by one sample: where that
makes no difference (features that are constant there), a mistake would not show, and the site counts as not shown.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, VerificationError, one_line
from blurify.graph import supplying
from blurify.graph.copies import copy_model, sharing_copy
from blurify.graph.observing import Observer, observing
from blurify.graph.recorder import Key, Trace, structure_of
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.planning import phases
from blurify.planning.planner import Decided
from blurify.spec import kinds
from blurify.spec.edits import BlurPooling, Rewrite
from blurify.spec.plan import Plan, Site
from blurify.surgery.apply import apply_plan

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Largest relative error of the identity check. float64 is the arbiter where float32 is too noisy."""
_SHOWS = 2.0  # times the tolerance: a difference of that size is not taken for rounding
_NORMS = (nn.modules.batchnorm._NormBase,)
_RANDOM = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")


@dataclass
class Identity:
    """How far the unfiltered conversion is from the original.

    Attributes:
        error: the largest relative error, at the sites and in the outputs.
        dtype: the precision of the comparison.
        outputs: how many output tensors were compared.
        worst: where the largest error is: a site's name, or 'the outputs'.
        compared: the sites whose own values were compared.
        unshown: those of them at which an error would not show.
        filtered: the sites whose blur was called, on more than one sample.
        train: what was compared in train mode.
    """

    error: float = 0.0
    dtype: str = "float32"
    outputs: int = 0
    worst: str = ""
    compared: tuple[str, ...] = ()
    unshown: tuple[str, ...] = ()
    filtered: frozenset[str] = frozenset()
    train: str = ""

    @property
    def within_tolerance(self) -> bool:
        """Whether the error is rounding."""
        return self.error <= TOLERANCE["float64" if self.dtype == "float64" else "float32"]


def identity_of(original: nn.Module, decided: Decided, inputs: Inputs) -> Identity:
    """Compare a conversion that filters nothing with the original.

    Args:
        original: the model before the conversion.
        decided: the plan, and where its sites are.
        inputs: (args, kwargs); tensors of zeros are filled with noise.

    Raises:
        VerificationError: the conversion does not run, or there is nothing that could be compared.
    """
    if not decided.plan.edits:
        return Identity()
    with supplying.changed(functools.partial(_lively_tensor, False)):
        return _identity_of(original, decided, inputs)


def _identity_of(original: nn.Module, decided: Decided, inputs: Inputs) -> Identity:
    probe = _lively(original)
    noise = _with_noise(inputs, _like(probe))
    found = _side_by_side(probe, decided, noise)
    hidden = set(found.unshown) & found.filtered
    if (hidden or not found.within_tolerance) and _like(probe).dtype != torch.float64:
        # Half precision, sums so long that the order of additions shows, or features that hardly vary beside a large
        # bias: compute again in float64.
        single, probe = found, copy_model(probe)
        if _like(probe).device.type == "mps":  # which has no double precision
            probe, noise = probe.cpu(), map_tensors(noise, Tensor.cpu)
        probe, noise = probe.double(), map_tensors(noise, _to_double)
        try:
            found = _side_by_side(probe, decided, noise)
        except (BlurifyError, RuntimeError, TypeError) as error:
            # A forward that makes float32 tensors of its own can't run in float64.
            found = single
            if not single.within_tolerance:
                raise VerificationError(
                    f"with the one-tap filter {single.worst} differs from the original's by {single.error:.1e} "
                    f"(float32), and the model does not run in float64, which would tell whether that is rounding "
                    f"({one_line(error, 120)}): please report this model; --no-verify (verify=False) converts it all "
                    "the same"
                ) from error
    if found.within_tolerance and set(found.unshown) & found.filtered:
        found = _with_other_weights(original, decided, inputs, found)
    if found.within_tolerance:
        found.train = _in_training(original, decided, inputs)
    return found


def _with_other_weights(original: nn.Module, decided: Decided, inputs: Inputs, found: Identity) -> Identity:
    """Compare once more with weights made up: what is constant with the model's own (dead units) may not be then.

    Where the edits go does not depend on weights, so that what shows a mistake with others shows it with these.
    """
    probe = _lively(original, everywhere=True)
    if _like(probe).device.type != "mps":  # which has no double precision
        probe = probe.double()
    noise = _with_noise(inputs, _like(probe))
    try:
        with supplying.changed(functools.partial(_lively_tensor, True)):
            other = _side_by_side(probe, decided, noise)
    except (BlurifyError, RuntimeError, TypeError):  # a forward that makes tensors of its own, or NaN
        return found
    if not other.within_tolerance:
        return found if other.error == float("inf") and other.worst == "the outputs" else other
    return dataclasses.replace(found, unshown=tuple(name for name in found.unshown if name in other.unshown))


# --- the runs


@dataclass
class _Compared:
    """What one run of a conversion differs by.

    Attributes:
        errors: the largest relative error at each site.
        outputs: and of the outputs.
        count: how many of those there are.
        filtered: the sites whose blur was called, on more than one sample.
    """

    errors: dict[str, float] = field(default_factory=dict)
    outputs: float = 0.0
    count: int = 0
    filtered: set[str] = field(default_factory=set)


def _side_by_side(model: nn.Module, decided: Decided, inputs: Inputs, seen: Trace | None = None) -> Identity:
    seen = decided.traces[0] if seen is None else seen
    training = seen is not decided.traces[0]
    plan = decided.plan.with_method(lambda method: method.identity())
    converted, shifted = sharing_copy(model), sharing_copy(model)  # before the original runs: it may write to buffers
    keys = {site.name: decided.keys(site.name, seen) for site in plan.converted}
    observer = Observer(model, {key for found in keys.values() for key in found})
    try:
        expected = _outputs(model, inputs, training, observer)
    except Exception as error:
        raise BlurifyError(
            f"the model does not run on these inputs ({one_line(error)}): give example_inputs"
        ) from error
    order = {node.meta.get("key"): place for place, node in enumerate(seen.graph.nodes)}
    values = dict(sorted(observer.values.items(), key=lambda item: order[item[0]]))
    _check_finite(keys, values, expected)
    for copy in (converted, shifted):
        apply_plan(copy, plan)
    try:
        found = _run(converted, plan, keys, values, inputs, expected, training)
    except Exception as error:
        raise VerificationError(f"with the one-tap filter the model does not run: {one_line(error)}") from error
    dtype = str(_like(model).dtype).removeprefix("torch.")
    limit = TOLERANCE["float64" if dtype == "float64" else "float32"]
    if limit < found.outputs < float("inf") and max(found.errors.values(), default=0.0) <= limit:
        # All sites agree: are the outputs such as the original itself does not compute twice?
        again = _outputs(model, inputs, training, Observer(model, frozenset()))
        if any(relative(a, b) > limit for a, b in zip(expected, again, strict=False)):
            found.outputs, found.count = 0.0, 0
    worst = max([*found.errors, ""], key=lambda name: found.errors.get(name, 0.0))
    largest = max(found.errors.get(worst, 0.0), found.outputs)
    if found.outputs >= largest:
        worst = "the outputs"
    least = limit * _SHOWS
    unshown: tuple[str, ...] = ()
    if largest <= least and not training:
        try:
            moved = _run(shifted, plan, keys, values, inputs, expected, training, shift=True).errors
        except Exception:  # what comes of it may be anything; what was compared before that counts
            moved = {}
        unshown = tuple(name for name in found.errors if name not in found.filtered or moved.get(name, 0.0) <= least)
    return Identity(largest, dtype, found.count, worst, tuple(found.errors), unshown, frozenset(found.filtered))


def _run(
    model: nn.Module,
    plan: Plan,
    keys: dict[str, tuple[Key, ...]],
    values: dict[Key, Tensor],
    inputs: Inputs,
    expected: Sequence[Tensor],
    training: bool,
    *,
    shift: bool = False,
) -> _Compared:
    """Run a conversion; at each site compare its value with the original's, and go on with that."""
    found = _Compared()
    handles: list[Any] = []
    at_ops: dict[Key, list[str]] = {}
    blurs: dict[str, list[str]] = defaultdict(list)
    for site in plan.converted:
        for path in site.blur_paths:
            blurs[path].append(site.name)
        if not _result_paths(site):  # the convolution's own op, which is the same in both
            at_ops |= {key: [site.name] for key in keys[site.name]}
    results = _expected_results(plan, keys, list(values))

    def compare(names: list[str], before: Tensor | None, value: Tensor) -> Tensor:
        """Note the error at some sites, and go on with the original's value."""
        fits = before is not None and before.shape == value.shape
        error = relative(before, value) if before is not None and fits else float("inf")
        for name in names:
            found.errors[name] = max(found.errors.get(name, 0.0), error)
        return before.clone() if before is not None and fits else value  # what follows may write to it

    def at_result(path: str, module: nn.Module, args: Any, out: Any) -> Any:
        value = out if isinstance(out, Tensor) else next(iter(tensors_in(out)))
        waiting = results[path]
        key, names = waiting.pop(0) if waiting else (None, blurs.get(path, [path]))
        before = compare(names, values.get(key) if key is not None else None, value)
        return before if isinstance(out, Tensor) else (before, *out[1:])

    def at_blur(names: list[str], module: Any, args: Any, kwargs: Any) -> Any:
        x = args[0]
        sizes = [n for n, factor in zip(x.shape[-module.ndim :], module.factor, strict=True) if factor > 1]
        if any(size > 1 for size in sizes):
            found.filtered.update(names)
        if not shift:
            return None
        dims = tuple(range(x.dim() - module.ndim, x.dim()))
        return (torch.roll(x, (1,) * len(dims), dims), *args[1:]), kwargs

    observer = _Comparing(
        model, {key: functools.partial(compare, names, values.get(key)) for key, names in at_ops.items()}
    )
    for path, names in blurs.items():
        handles.append(
            model.get_submodule(path).register_forward_pre_hook(functools.partial(at_blur, names), with_kwargs=True)
        )
    for path in results:
        handles.append(model.get_submodule(path).register_forward_hook(functools.partial(at_result, path)))
    try:
        actual = _outputs(model, inputs, training, observer)
    finally:
        for handle in handles:
            handle.remove()
    for waiting in results.values():
        for _, names in waiting:  # a value of the original that the conversion never made
            found.errors |= dict.fromkeys(names, float("inf"))
    same = [t.shape for t in expected] == [t.shape for t in actual]
    errors = [relative(a, b) for a, b in zip(expected, actual, strict=True)] if same else [float("inf")]
    found.outputs, found.count = max(errors, default=0.0), len(errors) if same else 0
    return found


class _Comparing(Observer):
    """Compares what certain ops return, and goes on with what it is given instead."""

    def __init__(self, model: nn.Module, compare: dict[Key, Callable[[Tensor], Tensor]]) -> None:
        super().__init__(model, compare.keys())
        self._compare = compare

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        if self.values:
            key, value = self.values.popitem()
            with torch._C.DisableTorchFunction():
                before = self._compare[key](value)
            return before if isinstance(out, Tensor) else out
        return out


def _result_paths(site: Site) -> list[str]:
    """The modules whose outputs are a site's value in the conversion; none where that is its convolution's own op."""
    if site.rule in ("commuted", "blurred-input", kinds.BEFORE) and not _stand_ins(site):
        return []
    if site.rule in ("after-activation", "split", kinds.AFTER, phases.RULE):
        return sorted(site.blur_paths)
    pools = [edit.module for edit in site.edits if isinstance(edit, BlurPooling)]
    return sorted({*pools, *_stand_ins(site)})


def _expected_results(
    plan: Plan, keys: dict[str, tuple[Key, ...]], order: Sequence[Key]
) -> dict[str, list[tuple[Key, list[str]]]]:
    """What the modules of `_result_paths` are to return, in running order: the original's op, and the sites it is of.

    Modules that serve the same sites (a site with several expressions, a loop's blur for several) share one list.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for site in plan.converted:
        paths, names = set(_result_paths(site)), [site.name]
        if not paths:
            continue
        for group in [group for group in groups if group[0] & paths]:
            groups.remove(group)
            paths, names = paths | group[0], group[1] + names
        groups.append((paths, names))
    places = {key: place for place, key in enumerate(order)}
    results: dict[str, list[tuple[Key, list[str]]]] = {}
    for paths, names in groups:
        wanted: dict[Key, list[str]] = {}
        for name in names:
            for key in keys[name]:
                wanted.setdefault(key, []).append(name)
        shared = sorted(wanted.items(), key=lambda item: places.get(item[0], len(places)))
        results |= dict.fromkeys(paths, shared)
    return results


def _stand_ins(site: Site) -> list[str]:
    ops = ("maxpool", "avgpool", "slice", "conv-blurred")
    return [edit.part for edit in site.edits if isinstance(edit, Rewrite) and edit.op in ops]


def _outputs(model: nn.Module, inputs: Inputs, training: bool, observer: Observer) -> list[Tensor]:
    """What a model returns, seeded; `observer` sees its ops."""
    args, kwargs = map_tensors(inputs, Tensor.clone)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _in_mode(model, training), torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(0)
        if devices:  # seeding queues for a CUDA that is not initialised, where nothing puts it back
            torch.cuda.manual_seed_all(0)
        with observing(observer), supplying.with_weights(model):
            return tensors_in(model(*args, **kwargs))


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """In eval mode; or in train mode but for norms, whose statistics are others over dense features, and dropout."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    for module in model.modules() if training else ():
        name = type(module).__name__
        if isinstance(module, _NORMS) or any(word in name for word in _RANDOM) or hasattr(module, "running_mean"):
            module.training = False
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


def _in_training(original: nn.Module, decided: Decided, inputs: Inputs) -> str:
    """What can be compared in train mode: the values, where the forward has branches of its own there; else shapes.

    Raises:
        VerificationError: the values differ.
    """
    if len(decided.traces) < 2:
        return "not run (it needs more than the inputs of eval mode)"
    evaluating, training = decided.traces
    if structure_of(evaluating) == structure_of(training):
        return "the same calls, all sizes kept"
    probe = _lively(original)
    noise = _with_noise(inputs, _like(probe))
    try:
        found = _side_by_side(probe, decided, noise, training)
    except BlurifyError as error:
        if isinstance(error, VerificationError):
            raise
        return "all sizes kept"
    if found.error <= TOLERANCE["float32"] or not _is_deterministic(probe, noise):
        return "all sizes kept" if found.error > TOLERANCE["float32"] else "its own branches compute the original too"
    if found.error < 1e-2 and found.error != float("inf"):
        return "all sizes kept"  # rounding, or batch statistics that a norm of its own kind takes
    raise VerificationError(
        f"in train mode {found.worst} differs from the original's by {found.error:.1e} with the one-tap filter: "
        "please report this model; --no-verify (verify=False) converts it all the same"
    )


def _is_deterministic(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a forward in train mode gives the same twice, with other random numbers."""
    outputs = []
    for seed in (1, 2):
        with _in_mode(model, True), torch.random.fork_rng(()), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            args, kwargs = map_tensors(inputs, Tensor.clone)
            outputs.append(tensors_in(model(*args, **kwargs)))
    return all(a.shape == b.shape and relative(a, b) <= 1e-5 for a, b in zip(*outputs, strict=False))


# --- what is compared


def relative(expected: Tensor, actual: Tensor) -> float:
    """The largest difference over the largest value; infinite where they are not finite at the same places."""
    if not expected.numel():
        return 0.0
    a, b = (_as_double(t) for t in (expected, actual))
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    return (a - b).abs().max().item() / (a.abs().max().item() or 1.0)


def _as_double(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def _check_finite(keys: dict[str, tuple[Key, ...]], values: dict[Key, Tensor], outputs: Sequence[Tensor]) -> None:
    """Refuse to compare what is no number."""
    for name, own in keys.items():
        for value in (values[key] for key in own if key in values):
            if value.numel() and not _as_double(value).isfinite().any():
                raise VerificationError(
                    f"the original computes no finite number at {name} (NaN or infinity in its weights or inputs), so "
                    "nothing can be compared there: mend the weights, or convert without the proof (verify=False, "
                    "--no-verify)"
                )
    if (
        outputs
        and not any(_as_double(t).isfinite().any() for t in outputs if t.numel())
        and any(t.numel() for t in outputs)
    ):
        raise VerificationError(
            "the original's outputs hold no finite number, so nothing can be compared: mend the weights, or convert "
            "without the proof (verify=False, --no-verify)"
        )


def _lively(model: nn.Module, *, everywhere: bool = False) -> nn.Module:
    """A copy of the model around its weights; those that are (almost) zero get noise (`everywhere`: all of them).

    A branch that a fresh model multiplies by zero (last norms, layer scales) would else not be checked at all. Biases
    get little, so that they do not drown the features. A model on the meta device gets weights made up on the CPU,
    unless it is run with weights from elsewhere: then those get the noise when they are used.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    memo: dict[int, Any] = {}
    for name, parameter in () if supplying.is_supplied(model) else model.named_parameters():
        if not parameter.numel() or not (parameter.is_floating_point() or parameter.is_complex()):
            continue
        if everywhere or parameter.is_meta or not parameter.detach().abs().max() > 1e-2:
            if not parameter.is_meta and not parameter.detach().isfinite().all():
                continue
            noise = _noise(name, parameter, generator, everywhere)
            noise = noise.to("cpu" if parameter.is_meta else parameter.device, parameter.dtype)
            memo[id(parameter)] = nn.Parameter(noise, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.is_meta:
            fill = torch.ones if buffer.is_floating_point() else torch.zeros
            memo[id(buffer)] = fill(buffer.shape, dtype=buffer.dtype, device="cpu")
    for module in model.modules() if everywhere else ():
        if isinstance(module, _NORMS) and module.running_var is not None and module.running_mean is not None:
            memo[id(module.running_var)] = torch.ones_like(module.running_var, device=_device(module.running_var))
            memo[id(module.running_mean)] = torch.zeros_like(module.running_mean, device=_device(module.running_mean))
    return sharing_copy(model, memo)


def _noise(name: str, parameter: Tensor, generator: torch.Generator, everywhere: bool) -> Tensor:
    """Numbers of a size that weights of that name and shape may have."""
    noise = torch.rand(parameter.shape, generator=generator, device="cpu")
    if parameter.ndim > 1 and parameter[0].numel() > 1:
        return (4 if everywhere else 1) * (noise - 0.5) / parameter[0].numel() ** 0.5
    return 0.1 * (noise - 0.5) if name.endswith("bias") else 0.5 + noise


def _lively_tensor(everywhere: bool, name: str, tensor: Tensor) -> Tensor:
    """What `_lively` makes of a parameter, for one that is supplied when it is used."""
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    if not everywhere and tensor.dim() and tensor.is_floating_point():
        low, high = tensor.aminmax()  # without a copy: a tensor may be a large part of what memory there is
        if max(-low, high) > 1e-2 or not (low.isfinite() and high.isfinite()):
            return tensor
    elif not everywhere and tensor.abs().max() > 1e-2:
        return tensor
    if not tensor.isfinite().all():
        return tensor
    generator = torch.Generator(device="cpu").manual_seed(supplying.seed_of(name))
    return _noise(name, tensor, generator, everywhere).to(tensor.dtype)


def _device(tensor: Tensor) -> torch.device:
    return torch.device("cpu") if tensor.is_meta else tensor.device


def _like(model: nn.Module) -> Tensor:
    """A floating-point tensor of the model, for its device and dtype."""
    tensors: Sequence[Tensor] = [*model.parameters(), *model.buffers()]
    found = next((t for t in tensors if t.is_floating_point()), torch.zeros((), device="cpu"))
    return torch.zeros((), dtype=found.dtype, device="cpu") if found.is_meta else found


def _with_noise(inputs: Inputs, like: Tensor) -> Inputs:
    """The inputs on the model's device; where they hold nothing (meta tensors, all zeros), noise."""
    generator = torch.Generator(device="cpu").manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            if tensor.is_meta:
                return torch.zeros(tensor.shape, dtype=tensor.dtype, device=like.device)
            return tensor.to(like.device)
        dtype = tensor.dtype if tensor.is_complex() else like.dtype
        if tensor.is_meta or not tensor.any():
            kind = tensor.dtype if tensor.is_complex() else torch.float32
            tensor = torch.randn(tensor.shape, generator=generator, dtype=kind, device="cpu")
        return tensor.to(like.device, dtype)

    return map_tensors(inputs, fill)


def _to_double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor
