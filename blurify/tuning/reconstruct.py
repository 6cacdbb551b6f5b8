"""Stage 2: refit what makes and what reads blurred features, towards the original's activations, without training.

The convolution of a site is refitted *through its blur*: its kernel is chosen so that its blurred and subsampled
responses come as near as they can to the original's strided ones. Then the layers that read blurred features are
refitted to what the original gives there. Each is a linear least squares problem in the layer's own weights, with a
ridge towards the weights that it had, as in post-training quantisation and pruning (He et al., "Channel Pruning",
2017; Nagel et al., "Up or Down?", 2020; Li et al., "BRECQ", 2021), solved by a few steps of conjugate gradients
(Hestenes and Stiefel 1952), all output channels at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs
from blurify.nn.build import build
from blurify.surgery.carrying import plan_of
from blurify.tuning.hooks import told_once
from blurify.tuning.lockstep import in_lockstep
from blurify.tuning.reading import Layer, layers_to_refit
from blurify.tuning.statistics import moments_of, move, norm_moments, put, running, running_norms

RIDGE = 1e-2
"""Weight of the old weights, relative to the mean eigenvalue of the least squares problem of each output channel."""

STEPS = 12
"""Of conjugate gradients. Few steps are a second regularisation: what the pictures hardly show stays as it was."""


@dataclass(frozen=True)
class Refit:
    """One layer: its path, and the part of its output's variance that was off, before and after."""

    path: str
    before: float
    after: float


@dataclass(frozen=True)
class Reconstructed:
    """What the stage did.

    Attributes:
        layers: those that were refitted, in running order.
        left: the paths of those that can't be, each with the reason.
        moved: the paths of the batch norms whose statistics were moved on the way.
    """

    layers: tuple[Refit, ...]
    left: tuple[tuple[str, str], ...] = ()
    moved: tuple[str, ...] = ()

    def line(self) -> str:
        """The same in words."""
        left = "".join(f"; {path} is left: {reason}" for path, reason in self.left[:2])
        left += f"; {len(self.left) - 2} more are left" if len(self.left) > 2 else ""
        if not self.layers:
            return f"reconstruct: no layer makes or reads blurred features that could be refitted{left}"
        before = sum(layer.before for layer in self.layers) / len(self.layers)
        after = sum(layer.after for layer in self.layers) / len(self.layers)
        return (
            f"reconstruct: refitted {len(self.layers)} layers that make or read blurred features: {before:.0%} of "
            f"their outputs' variance was off, now {after:.0%}{left}"
        )


def reconstruct(
    original: nn.Module,
    converted: nn.Module,
    batches: Sequence[Inputs],
    *,
    ridge: float = RIDGE,
    steps: int = STEPS,
    watch: Callable[[int, int], None] | None = None,
) -> Reconstructed:
    """Refit the layers around the blurs of a converted model towards the original's activations, in place.

    One forward of each batch, in lockstep: each layer sees what the refitted layers before it give, and batch norms on
    the way are moved as `recalibrate` moves them. Needs no labels. The targets are kept in memory: the outputs of the
    refitted layers for all batches.

    Args:
        original: what the converted model was made from; in eval mode.
        converted: changed in place; in eval mode. Start from its original weights.
        batches: what to call both with; some hundred pictures.
        ridge: see `RIDGE`.
        steps: see `STEPS`.
        watch: told (layers done, layers in all).

    Raises:
        BlurifyError: the model carries no plan.
    """
    plan = plan_of(converted)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it first")
    args, kwargs = batches[0]
    wanted = layers_to_refit(plan, traced(converted, (args, kwargs)))
    mine, theirs = dict(converted.named_modules()), dict(original.named_modules())
    layers = {layer.path: layer for layer in wanted if layer.path in theirs}
    norms, old_norms = running_norms(converted), running_norms(original)
    before = norm_moments(original, batches, [path for path in norms if path in old_norms])
    targets = _outputs(original, batches, list(layers))
    done: dict[str, Refit] = {}
    left: dict[str, str] = {}
    moved: dict[str, None] = {}
    settled: set[str] = set()  # norms, after their one call or by the intercept of the layer before

    def visit(path: str, given: list[Tensor]) -> None:
        layer = layers.get(path)
        if layer is not None and path not in done and path not in left:
            reason = _cannot(mine[path], layer, given, targets[path])
            if reason:
                left[path] = reason
            else:
                refit, offset = _refit(mine[path], layer, given, targets[path], ridge, steps)
                done[path] = refit
                if layer.norm is not None and layer.norm in old_norms:
                    mean, variance = running(old_norms[layer.norm])
                    put(norms[layer.norm], mean - offset.double().cpu(), variance)  # it adds the constant
                    settled.add(layer.norm)
            del targets[path]
            if watch is not None:
                watch(len(done) + len(left), len(layers))
        elif path in before and path not in settled:
            settled.add(path)
            now = moments_of(given)
            if not now.same(before[path]):
                move(norms[path], old_norms[path], before[path], now)
                moved[path] = None

    in_lockstep(converted, batches, [*layers, *before], visit)
    return Reconstructed(tuple(done.values()), tuple(left.items()), tuple(moved))


def _outputs(model: nn.Module, batches: Sequence[Inputs], paths: list[str]) -> dict[str, list[Tensor]]:
    """What some layers of a model give, by path, a tensor a batch: of their first call."""
    kept: dict[str, list[Tensor]] = {path: [] for path in paths}
    watched = {path: model.get_submodule(path) for path in paths}
    for args, kwargs in batches:
        with told_once(watched, lambda path, out: kept[path].append(out.detach().clone())), torch.no_grad():
            model(*args, **kwargs)
    return kept


def _responses(module: nn.Module, layer: Layer) -> Callable[[Tensor, Tensor], Tensor]:
    """(input, weight) -> the layer's output without bias, through its blur where it has one: linear in the weight."""
    # A phase is chosen, or followed, in the whole model: here, the filter at the first phase.
    blur: nn.Module | None = None
    if layer.blur is not None:
        blur = build(dataclasses.replace(layer.blur, phase=None)).to(next(module.parameters()).device)
    bias = getattr(module, "bias", None)
    fixed = {} if bias is None else {"bias": torch.zeros_like(bias)}

    def respond(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = functional_call(module, {"weight": weight, **fixed}, (x,))
        return out if blur is None else blur(out)

    return respond


def _cannot(module: nn.Module, layer: Layer, given: list[Tensor], wanted: list[Tensor]) -> str:
    """Why a layer can't be refitted; '' where it can."""
    weight = module.weight
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        return "its weight is computed"
    if not weight.requires_grad:
        return "it is frozen"
    if len(given) != len(wanted):
        return "it does not run for every batch"
    respond = _responses(module, layer)
    with torch.no_grad():
        once = respond(given[0], weight)
        if once.shape != wanted[0].shape:
            return "its output has another shape than the original's"
        if not torch.allclose(respond(given[0], 2 * weight), 2 * once, rtol=1e-3, atol=1e-6):
            return "it is not linear in its weight"
    return ""


def _refit(
    module: nn.Module, layer: Layer, given: list[Tensor], wanted: list[Tensor], ridge: float, steps: int
) -> tuple[Refit, Tensor]:
    """Refit one layer; what is left as a constant goes into its bias, or is returned for the norm behind it (O,)."""
    given = [x.detach().clone() for x in given]  # whatever runs next may write to them
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    bias: Tensor | None = getattr(module, "bias", None)
    dim = -1 if isinstance(module, nn.Linear) else 1
    problem = _Problem(
        _responses(module, layer), given, wanted, dim, constant=bias is not None or layer.norm is not None
    )
    solution, before, after, offset = problem.solve(weight.detach(), ridge, steps)
    with torch.no_grad():
        weight.copy_(solution)
        if bias is not None and problem.constant:
            bias.copy_(offset)
            offset = torch.zeros_like(offset)
    return Refit(layer.path, before, after), offset


class _Problem:
    """Linear least squares in the weights of a layer, one problem an output channel, free of a constant.

    Minimises, for each output channel, sum |A w + c - y|^2 + ridge |w - w0|^2 over the kernel w (and over the constant
    c where there is somewhere to keep it), where A is the layer on all batches.
    """

    def __init__(
        self, respond: Callable[[Tensor, Tensor], Tensor], given: list[Tensor], wanted: list[Tensor], dim: int,
        constant: bool,
    ) -> None:  # fmt: skip
        self.respond, self.given, self.wanted, self.dim, self.constant = respond, given, wanted, dim, constant
        self.channels = wanted[0].shape[dim]
        self.count = sum(y.numel() for y in wanted) // self.channels
        self.means = self._mean(wanted)
        self.energy = sum(float(self._centred(y, self.means).square().sum()) for y in wanted)

    def solve(self, start: Tensor, ridge: float, steps: int) -> tuple[Tensor, float, float, Tensor]:
        """(kernels, part of the variance that was off before, and after, the constants (O,))."""
        like = (-1, *[1] * (start.ndim - 1))
        residual, before, _ = self._gradient(start, against=True)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(start.shape, generator=generator).to(start)
        _, seen, _ = self._gradient(probe, against=False)
        weight = (ridge * seen / probe.square().flatten(1).sum(1)).reshape(like)
        change = torch.zeros_like(start)
        direction, size = residual.clone(), residual.square().flatten(1).sum(1)
        for _ in range(steps):
            applied = self._gradient(direction, against=False)[0] + weight * direction
            length = size / ((direction * applied).flatten(1).sum(1) + _TINY)
            change += length.reshape(like) * direction
            residual -= length.reshape(like) * applied
            now = residual.square().flatten(1).sum(1)
            direction = residual + (now / (size + _TINY)).reshape(like) * direction
            size = now
        solution = start + change
        _, after, offset = self._gradient(solution, against=True)
        energy = max(self.energy, _TINY)
        return solution, float(before.sum()) / energy, float(after.sum()) / energy, offset

    def _gradient(self, weight: Tensor, *, against: bool) -> tuple[Tensor, Tensor, Tensor]:
        """A'r, |r|^2 (O,) and the mean of r (O,), for r = y - A w (`against` the targets) or r = A w, centred."""
        with torch.no_grad():
            rests = [self.respond(x, weight) for x in self.given]
            if against:
                rests = [y - rest for y, rest in zip(self.wanted, rests, strict=True)]
        mean = self._mean(rests) if self.constant else torch.zeros_like(self.means)
        total, size = torch.zeros_like(weight), torch.zeros_like(mean)
        for x, rest in zip(self.given, rests, strict=True):
            rest = self._centred(rest, mean)
            size += self._sum(rest.square())
            with torch.enable_grad():
                variable = weight.detach().requires_grad_()
                total += torch.autograd.grad(self.respond(x, variable), variable, rest)[0]
        return total, size, mean

    def _sum(self, x: Tensor) -> Tensor:
        dim = self.dim % x.ndim
        return x.sum([other for other in range(x.ndim) if other != dim])

    def _mean(self, parts: list[Tensor]) -> Tensor:
        return torch.stack([self._sum(part) for part in parts]).sum(0) / self.count

    def _centred(self, x: Tensor, mean: Tensor) -> Tensor:
        shape = [1] * x.ndim
        shape[self.dim] = -1
        return x - mean.reshape(shape)


_TINY = 1e-30
