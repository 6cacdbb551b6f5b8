"""Aliasing per site: how much of the signal lies above the new Nyquist frequency just before the subsampling."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace
from blurify.graph.sites import (
    OURS,
    PARAMETERS,
    Found,
    bare_name,
    find_sites,
    function_name,
    in_our_layers,
    sliced,
    steps_of,
)
from blurify.metrics.kept import Kept, check_kept, steps_for
from blurify.metrics.pictures import some_of
from blurify.metrics.results import Aliasing, Estimate, SiteAliasing
from blurify.metrics.subject import Pictures, Subject, Watch, middle
from blurify.nn import dense_max_pool
from blurify.nn.arguments import given_per_dim as per_dim
from blurify.nn.calls import BlurredAvgPool
from blurify.planning.planner import make_plan
from blurify.spec.edits import Rewrite
from blurify.spec.kinds import RESAMPLING, RULES, UPSAMPLING
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import load_recipe
from blurify.surgery.carrying import plan_of

_SAME_SIGNAL = ("contiguous", "to")
_NO_OWN_STRIDE = "fractional_max"
_WINDOW = {"kernel_size": 1, "padding": 0, "dilation": 1}


def aliasing(
    subject: Subject,
    pictures: Pictures,
    *,
    batch_size: int = 16,
    images: int | None = None,
    seed: int = 0,
    only: Collection[str] | None = None,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Aliasing:
    """How much each site aliases: the share of energy that its subsampling folds back (the alias violation ratio).

    For a site, the signal y is what its subsampling `y[..., ::s, ::s]` is applied to:

    - as the model is: the output of the dense version of the strided op (the op at stride 1, its padding unchanged; the
      source of a slice); samples that `ceil_mode` appends at the border are left out;
    - where blurify blurs: what its filter gives, before it is subsampled. With a filter before a convolution, the dense
      convolution of the filtered input. After a nonlinearity, the filter has the activation's output to work on, where
      the original subsamples the convolution's: both are what really is subsampled. A stem split into two strides is
      measured at the second, the blur's.

    With |Y(k)|^2 the energy of y's discrete Fourier transform over its spatial dimensions (no window, the mean at k = 0
    included), summed over channels, the share is that of the frequencies outside the box |k_d| < N_d / (2 s_d), for
    strides s_d above 1, in which subsampling loses nothing: the sampling theorem (see Zhang 2019, section 2; the ratio
    follows the "alias violation ratio" of work on spectra of strided networks). Energy exactly at a new Nyquist
    frequency counts half. So white noise has 3/4 at stride 2 in 2-d, and a picture of low frequencies 0. A signal of
    zeros has 0. Sites that are called several times have the energies of all calls added up.

    The canvas' middle is what the model sees. Sites that don't run, and fractional max pools, have no row; the sites of
    a converted model have the names that they have in the original's.

    Args:
        subject: the model, as it is or converted by blurify.
        pictures: canvases at least as large as the model's input.
        batch_size: pictures a forward. Dense versions take the square of the stride times the memory.
        images: only so many of the pictures.
        seed: of the choice of pictures.
        only: the names of the sites to measure; all where None. Those that are not asked for cost nothing.
        watch: told of each batch.
        kept: where the energies of each batch are written down (see `kept`).

    Raises:
        BlurifyError: the model can't be traced, runs otherwise than when it was traced, the canvas is too small, or
            signals are not finite.
    """
    if images is not None and images < 1:
        raise BlurifyError("images must be at least 1")
    chosen = some_of(pictures, images, seed)
    batches = math.ceil(len(chosen) / batch_size)
    steps = steps_for(
        kept, "aliasing", batches, images=len(chosen), seed=seed, batch_size=batch_size,
        only=None if only is None else sorted(only),
    )  # fmt: skip
    scheme = functools.cache(lambda count: _scheme(subject, count, only))
    for number, batch in steps.batches(chosen, batch_size):
        seen = middle(batch.canvases, subject.preprocessing.crop)
        count = len(seen)
        gauge = _Gauge(scheme(count), count)
        with gauge.attached(subject.model):
            subject.run(seen)
        steps.done(number, {name: energies.tolist() for name, energies in gauge.finish().items()})
        if watch is not None:
            watch("aliasing", number + 1, batches)
    sites = scheme(min(batch_size, len(chosen))).sites
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for step in steps.results:
        for name, energies in step.items():
            parts[name].append(torch.tensor(energies, dtype=torch.float64))
    energies = {site.name: torch.cat(parts[site.name], 1) for site, _ in sites}
    check_kept(all(each.shape == (2, len(chosen)) for each in energies.values()))
    return Aliasing(tuple(_row(site, energies[site.name], plan) for site, plan in sites), len(chosen))


def _row(site: Site, energies: Tensor, blurred: bool) -> SiteAliasing:
    if not bool(energies.isfinite().all()):
        raise BlurifyError(
            f"the signal at {site.name} is not finite (nan or infinite): give pictures and --mean and --std that suit "
            "the model, or measure it in float32"
        )
    above, total = energies
    shares = (above / total.where(total > 0, 1)).tolist()
    return SiteAliasing(site.name, site.kind, site.stride, blurred, Estimate.of(shares, yes_or_no=False))


def energy_above(signal: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Spectral energy above the new Nyquist frequency, and in all.

    Args:
        signal: (N, C, *spatial), real.
        stride: the subsampling that follows, one entry a spatial dimension.

    Returns:
        (2, N) float64 on the CPU: the energy outside the box |k_d| < n_d / (2 stride_d), energy on its edge counted
        half at each edge; and the whole energy. Both are sums over channels.
    """
    precise = torch.float64 if signal.dtype == torch.float64 else torch.float32
    dims = tuple(range(1, 1 + len(stride)))
    sizes = signal.shape[2:]
    below = [_below(n, s) for n, s in zip(sizes, stride, strict=True)]
    # Of a real signal the transform's half is enough: the other half has the same energy.
    half = sizes[-1] // 2 + 1
    twice = torch.full((half,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if sizes[-1] % 2 == 0:
        twice[-1] = 1
    below[-1] = below[-1][:half]
    inside = below[0]
    for weights in below[1:]:
        inside = inside[..., None] * weights
    result = []
    for picture in signal:  # one at a time: spectra take as much memory again as the signal
        spectrum = torch.fft.rfftn(picture.to(precise), dim=dims, norm="ortho")
        # On the CPU from here on: not every device has double precision.
        energy = (spectrum.real.square() + spectrum.imag.square()).sum(0).cpu().double() * twice
        result.append(torch.stack([(energy * (1 - inside)).sum(), energy.sum()]))
    return torch.stack(result, 1)


def _below(n: int, stride: int) -> Tensor:
    """For each frequency of n samples 1 below the new Nyquist frequency, 1/2 at it, 0 above."""
    if stride == 1:
        return torch.ones(n, dtype=torch.float64)
    k = torch.arange(n)
    doubled = 2 * stride * torch.minimum(k, n - k)  # whole numbers, so that "at" is exact
    return (doubled < n).double() + (doubled == n).double() / 2


# --- what to look at in a forward


@dataclass(frozen=True)
class _Call:
    """One call that can subsample, as the trace saw it.

    Attributes:
        function: its name.
        shape: of what it reads.
        site: the site that it is and that its own input tells, '' if none.
    """

    function: str
    shape: tuple[int, ...]
    site: str


@dataclass(frozen=True)
class _Scheme:
    """Where the sites are in one forward.

    Attributes:
        sites: those that are measured, in the plan's order, and whether the model filters there.
        strides: of each of them.
        calls: every call that can subsample, outside of our layers, in order.
        blurs: path of a BlurPool -> the sites whose signal it gives.
        before: path of a BlurPool -> the sites whose signal the convolution gives that reads its output.
        turns: path of a BlurPool that several sites share, each with a call of its own -> these sites, as they run.
        averages: path of a pool of ours that averages as the original does, covering its input here -> its site.
    """

    sites: tuple[tuple[Site, bool], ...]
    strides: dict[str, tuple[int, ...]]
    calls: tuple[_Call, ...]
    blurs: dict[str, list[str]]
    before: dict[str, list[str]]
    averages: dict[str, str]
    turns: dict[str, tuple[str, ...]]


def _scheme(subject: Subject, count: int, only: Collection[str] | None) -> _Scheme:
    """Trace the model on `count` pictures, and find its sites, or only those of some names."""
    example = (subject.example(count),)
    seen = traced(subject.model, example)
    found = find_sites(seen)
    blurs: dict[str, list[str]] = defaultdict(list)
    before: dict[str, list[str]] = defaultdict(list)
    averages: dict[str, str] = {}
    turns: dict[str, tuple[str, ...]] = {}
    plan = plan_of(subject.model)
    if plan is None:
        plan = make_plan(subject.model, load_recipe(None), example, seen=seen)
        names, converted = {site.name: site.name for site in found}, set()
    else:
        names, converted = _names_in_plan(plan, found), {site.name for site in plan.converted}
        ran = {call.path for call in seen.calls}
        for site in plan.converted:
            if site.name in names.values() or site.rule in RULES:
                continue  # no stride of theirs is where the signal would be measured
            # Its own convolution comes only after the blur, and gives the signal.
            waits = site.rule == "commuted" or any(
                isinstance(e, Rewrite) and e.op == "conv-blurred" for e in site.edits
            )
            for path in sorted(site.blur_paths & ran):
                (before if waits else blurs)[path].append(site.name)
        for site in plan.skipped:  # a global pool, which has a blur for larger inputs
            for edit in site.edits:
                pool, blur = edit.part if isinstance(edit, Rewrite) else edit.module, edit.blur_path
                if blur in ran and blur is not None:
                    blurs[blur].append(site.name)
                elif pool in ran:
                    averages[pool] = site.name
        called = Counter(call.path for call in seen.calls)
        turns = {path: tuple(sites) for path, sites in blurs.items() if called[path] == len(sites) > 1}
    if only is not None:
        names = {now: name if name in only else "" for now, name in names.items()}
        blurs, before = (
            {path: kept for path, sites in part.items() if (kept := [name for name in sites if name in only])}
            for part in (blurs, before)
        )
        averages = {path: name for path, name in averages.items() if name in only}
    calls = _calls(seen, found, names)
    measured = {call.site for call in calls}.union(*blurs.values(), *before.values(), averages.values())
    sites = tuple(
        (site, site.name in converted or site.rule == "already-filtered")
        for site in plan.sites
        if site.name in measured
    )
    strides = {site.name: site.stride for site, _ in sites}
    return _Scheme(sites, strides, calls, dict(blurs), dict(before), averages, turns)


def _names_in_plan(plan: Plan, found: list[Found]) -> dict[str, str]:
    """The sites that a trace of a converted model still finds, each with its name in the plan.

    Calls inside one forward are numbered, and those that our stand-ins run no longer count: what is left has the order
    that it has in the plan. A stem that keeps a part of its stride is found too, but measured at its blur ('').
    """
    kept: dict[str, list[str]] = defaultdict(list)
    for site in plan.sites:
        if site.kind in (*UPSAMPLING, *RESAMPLING):  # nothing of it subsamples with a stride
            continue
        rewritten = any(isinstance(edit, Rewrite) and edit.op.startswith("conv-") for edit in site.edits)
        skipped = site.action == "skip" and not site.edits  # else it is a pool of ours
        strided = skipped or (site.rule in ("blurred-input", "split") and not rewritten)
        if strided and site.input_shape:  # else it did not run
            kept[_base(site.name)].append("" if site.rule == "split" else site.name)
    left: dict[str, list[str]] = defaultdict(list)
    for there in found:
        left[_base(there.name)].append(there.name)
    for base in {*kept, *left}:
        if len(left[base]) != len(kept[base]):
            raise BlurifyError(
                f"the model has {len(left[base])} strided calls in {base}, and should have {len(kept[base])} by its "
                "plan: it was changed after its conversion, or runs otherwise at this size; convert the original again"
            )
    return {now: name for base, sites in left.items() for now, name in zip(sites, kept[base], strict=True)}


def _base(name: str) -> str:
    return name.partition("#")[0]


def _calls(seen: Trace, found: list[Found], names: dict[str, str]) -> tuple[_Call, ...]:
    """Every call of a forward that can subsample, in order, but for those of our layers."""
    of_site = {op.node: names[site.name] for site in found for op in site.ops}
    calls = []
    for node in seen.graph.nodes:
        name = function_name(node)
        if in_our_layers(node):
            continue
        source = node.args[0] if node.args else node.kwargs.get("input")
        if name in PARAMETERS:
            own_stride = not name.startswith(_NO_OWN_STRIDE)
            calls.append(_Call(name, source.meta["shape"], of_site.get(node, "") if own_stride else ""))
        elif name == "getitem" and node.meta["shape"] is not None and sliced(node)[0]:
            calls.append(_Call(name, source.meta["shape"], of_site.get(node, "")))
    return tuple(calls)


# --- the forward


class _Gauge(TorchFunctionMode):
    """Takes the energies at the sites while a forward runs, which must run as it was traced."""

    def __init__(self, scheme: _Scheme, count: int) -> None:
        super().__init__()
        self._scheme = scheme
        self._count = count  # pictures in the batch
        self._next = 0  # of the scheme's calls
        self._called: Counter[str] = Counter()  # blurs whose sites take turns
        self._inside = 0  # how many of our layers run, one in the other
        # Blurred tensors whose convolution is still to come: its sites, the tensor, and the same before subsampling.
        self._waiting: list[tuple[list[str], Tensor, Tensor]] = []
        self._energies: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Watch the model while this lasts."""
        with ExitStack() as stack:

            def hook(handle: RemovableHandle) -> None:
                stack.callback(handle.remove)

            for module in model.modules():
                if type(module).__module__ in OURS:
                    hook(module.register_forward_pre_hook(self._enter))
                    hook(module.register_forward_hook(self._leave, always_call=True))
            for path, sites in self._scheme.blurs.items():
                blurred = functools.partial(self._blurred, path, sites)
                hook(model.get_submodule(path).register_forward_hook(blurred, with_kwargs=True))
            for path, sites in self._scheme.before.items():
                hook(
                    model.get_submodule(path).register_forward_hook(
                        functools.partial(self._wait, sites), with_kwargs=True
                    )
                )
            for path, site in self._scheme.averages.items():
                hook(
                    model.get_submodule(path).register_forward_pre_hook(
                        functools.partial(self._average, site), with_kwargs=True
                    )
                )
            with self:
                yield

    def finish(self) -> dict[str, Tensor]:
        """The energies by site, (2, N) as `energy_above` gives them, after the forward."""
        if self._next != len(self._scheme.calls):
            self._differs("the end")
        if self._waiting:
            raise BlurifyError(
                f"the convolution of {self._waiting[0][0][0]} does not read what its blur gives: please report this "
                "model; leave aliasing out"
            )
        return self._energies

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = bare_name(func)
        if name in PARAMETERS:
            given = dict(zip(PARAMETERS[name], args, strict=False)) | kwargs
            for waiting in self._waiting:
                if given["input"] is waiting[1]:
                    self._waiting.remove(waiting)
                    for site in waiting[0]:
                        self._take(site, _dense(func, name, given | {"input": waiting[2]}))
                    break
            site = self._follow(name, given["input"])
            if site:
                self._take(site, _dense(func, name, given))
        elif name == "getitem" and isinstance(args[0], Tensor):
            steps = steps_of(args[1], args[0].dim())[0]
            site = self._follow(name, args[0]) if steps else ""
            if site:
                # As for the trace: channels come last where the steps do not reach the last dimension.
                last = steps[0][0] == 1 and steps[-1][0] < args[0].dim() - 1
                self._take(site, args[0].movedim(-1, 1) if last else args[0])
        out = func(*args, **kwargs)
        if name in _SAME_SIGNAL:
            self._waiting = [
                (sites, out if args and args[0] is blurred else blurred, signal)
                for sites, blurred, signal in self._waiting
            ]
        return out

    def _follow(self, name: str, source: Tensor) -> str:
        """The site that a call is ('' for none), which must be the call that the trace saw here."""
        if self._inside:
            return ""
        calls = self._scheme.calls
        here = calls[self._next] if self._next < len(calls) else None
        # What is no site may be of any size: a detector slices as many boxes as it finds.
        if here is None or here.function != name or (here.site and here.shape != tuple(source.shape)):
            self._differs(f"{name} of {tuple(source.shape)}")
        self._next += 1
        return here.site

    def _differs(self, what: str) -> NoReturn:
        calls = self._scheme.calls
        expected = (
            f"{calls[self._next].function} of {calls[self._next].shape}" if self._next < len(calls) else "the end"
        )
        raise BlurifyError(
            f"the model runs otherwise on these pictures than when it was traced ({what} in place of {expected}): "
            "aliasing is measured where the same operations run for every picture; leave aliasing out"
        )

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, *_: Any) -> None:
        self._inside -= 1

    def _blurred(self, path: str, sites: list[str], layer: Any, args: Any, kwargs: Any, output: Any) -> None:
        if path in self._scheme.turns:
            turns = self._scheme.turns[path]
            if self._called[path] == len(turns):
                self._differs(f"one more call of {path}")
            turn = turns[self._called[path]]
            self._called[path] += 1
            sites = [turn] if turn in sites else []
        signal = _unstrided(layer, args[0], **kwargs)
        for site in sites:
            self._take(site, signal, layer.stride)

    def _average(self, site: str, layer: Any, args: Any, kwargs: Any) -> None:
        """The signal of a pool that averages as the original does."""
        if isinstance(layer, BlurredAvgPool):
            given, function = layer.bind(args[0], args[1:], kwargs), args[0]
        else:  # a pool module
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            given = {name: getattr(layer, name) for name in names if hasattr(layer, name)} | {"input": args[0]}
            function = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[layer.blurpool.ndim - 1]
        self._take(site, _dense(function, bare_name(function), given))

    def _wait(self, sites: list[str], layer: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        signal = _unstrided(layer, args[0], **kwargs)
        self._waiting.append((sites, output, signal))

    def _take(self, site: str, signal: Tensor, stride: tuple[int, ...] | None = None) -> None:
        """Add the energies of a signal (N, C, *spatial), or (C, *spatial)."""
        stride = stride or self._scheme.strides[site]
        space = signal.shape[-len(stride) :]
        lead = signal.shape[: -len(stride)]
        # Pictures may be cut into windows or frames, or lie side by side in the channels; never the other way round.
        if next((n for n in lead if n != 1), 1) % self._count:
            raise BlurifyError(
                f"what {site} reads ({'x'.join(map(str, signal.shape))}) is not split by picture: give batch size 1"
            )
        with torch._C.DisableTorchFunction():
            energies = energy_above(signal.reshape(self._count, -1, *space), stride)
        self._energies[site] = self._energies[site] + energies if site in self._energies else energies


def _dense(func: Callable[..., Any], name: str, given: dict[str, Any]) -> Tensor:
    """What a convolution or pool gives at stride 1, its padding unchanged."""
    x = given["input"] if given["input"].is_floating_point() else given["input"].float()
    with torch._C.DisableTorchFunction():
        if name.startswith("max"):
            rank = int(name.removesuffix("_with_indices")[-2])
            window = (per_dim(given.get(key, default), rank) for key, default in _WINDOW.items())
            return dense_max_pool(x, *window)
        changed = {"stride": 1} | ({"ceil_mode": False} if "ceil_mode" in given else {})
        rest = {key: value for key, value in given.items() if key != "input"}
        return cast(Tensor, func(x, **rest | changed))


def _unstrided(layer: Any, x: Tensor, extend: tuple[int, ...] | None = None) -> Tensor:
    """What a BlurPool's filter gives before the layer subsamples it."""
    with torch._C.DisableTorchFunction():
        return cast(Tensor, layer.unstrided().to(x.device)(x, extend=extend))


# --- the signals themselves


def signals_at(subject: Subject, seen: Tensor, site: str) -> tuple[Tensor, tuple[int, ...]] | None:
    """The signal at one site as `aliasing` measures it, and its stride; None where the model has no such site.

    Args:
        subject: the model, as it is or converted.
        seen: (N, C, h, w) in 0..1.
        site: its name in the plan of the original.

    Returns:
        (N, C', *spatial) in float32, of the first call where it is called several times.

    Raises:
        BlurifyError: the model can't be traced, or runs otherwise than when it was traced.
    """
    scheme = _scheme(subject, len(seen), (site,))
    if not scheme.sites:
        return None
    gauge = _Signals(scheme, len(seen))
    with gauge.attached(subject.model):
        subject.run(seen)
    gauge.finish()
    signal = gauge.signals.get(site)
    return None if signal is None else (signal.float(), scheme.strides[site])


class _Signals(_Gauge):
    """Keeps the signals instead of their energies."""

    def __init__(self, scheme: _Scheme, count: int) -> None:
        super().__init__(scheme, count)
        self.signals: dict[str, Tensor] = {}

    def _take(self, site: str, signal: Tensor, stride: tuple[int, ...] | None = None) -> None:
        rank = len(stride or self._scheme.strides[site])
        if next((n for n in signal.shape[:-rank] if n != 1), 1) % self._count:
            raise BlurifyError(f"what {site} reads is not split by picture: give batch size 1")
        with torch._C.DisableTorchFunction():
            kept = signal.detach().reshape(self._count, -1, *signal.shape[-rank:]).clone()
        self.signals.setdefault(site, kept)
