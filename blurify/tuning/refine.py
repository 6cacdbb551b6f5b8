"""Stage 3: train the parts around the blurs, each by itself, to give what the original's part gives.

After `reconstruct`, which is linear, what is left of the error is in the nonlinearities between convolution and blur.
Each part of the network that holds a blur (a residual block, mostly) learns by gradient to give what the same part of
the original gives, from the input that it gets in the converted network (as in Li et al., "BRECQ", 2021; Romero et al.,
"FitNets", 2015). All parts learn at once, in one forward, and no gradient crosses from one part into another: so the
problems stay small and well-conditioned, each has a target at every position of every picture, and a few hundred
pictures don't overfit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace
from blurify.graph.structure import map_tensors
from blurify.spec.plan import Plan
from blurify.surgery.carrying import plan_of
from blurify.tuning.answers import exact
from blurify.tuning.examples import Examples
from blurify.tuning.keeping import Kept
from blurify.tuning.reading import layers_to_refit
from blurify.tuning.training import Step, Trained, Training, on_device, train

_LARGE = 24
"""Layers with weights from which on a part is taken apart: it is a network of its own, not a block."""


def parts_with_blurs(plan: Plan, trace: Trace) -> list[str]:
    """The parts of a model that hold a blur and what reads it: paths of modules that run once and give one tensor.

    Containers are gone down into (Sequential, ModuleList, the model itself, and whatever has many layers). Where a
    blur's reader stands in another part than the blur, that part counts as well.

    Args:
        plan: of the traced model.
        trace: of the converted model.
    """
    wanted = {layer.path for layer in layers_to_refit(plan, trace)}
    modules = dict(trace.model.named_modules())
    runs: dict[str, int] = {}
    single: set[str] = set()
    for call in trace.calls:
        if call.path is not None:
            runs[call.path] = runs.get(call.path, 0) + 1
            if call.output is not None:
                single.add(call.path)
    found: dict[str, None] = {}
    for path in sorted(wanted):
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            part = ".".join(names[:depth])
            module = modules[part]
            if runs.get(part) == 1 and part in single and not _is_container(module):
                found[part] = None
                break
    return [path for path in dict.fromkeys(call.path for call in trace.calls) if path in found]


def _is_container(module: nn.Module) -> bool:
    layers = sum(
        1 for inner in module.modules() if inner._parameters and not isinstance(inner, nn.modules.batchnorm._NormBase)
    )
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or layers > _LARGE


def refine(
    original: nn.Module,
    converted: nn.Module,
    examples: Examples,
    training: Training,
    *,
    device: torch.device | None = None,
    kept: Kept | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Trained:
    """Train the parts of a converted model that hold blurs to give what the original's give, in place.

    Args:
        original: in eval mode.
        converted: in eval mode; changed in place.
        examples: what to draw batches from.
        training: how.
        device, kept, watch: see `training.train`.

    Raises:
        BlurifyError: the model carries no plan, or no part with a blur has parameters that can learn.
    """
    plan = plan_of(converted)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it first")
    paths = parts_with_blurs(plan, traced(converted, examples.plain(1, 1)[0]))
    names = [name for name, _ in converted.named_parameters() if any(name.startswith(f"{path}.") for path in paths)]
    parts = _Parts(original, converted, paths)

    def objective(step: int, part: tuple[int, int], backward: Callable[[Tensor], Any], device: torch.device) -> float:
        drawn = examples.draw(training.seed, step, training.batch_size * part[1], part)
        args, kwargs = on_device(device, drawn.seen)
        with parts.learning(backward):
            with torch.no_grad():
                original(*args, **kwargs)
            converted(*args, **kwargs)
        return sum(parts.losses.values()) / max(len(parts.losses), 1)

    what = f"{len(paths)} parts with blurs, each by itself, "
    return train(
        "refine", original, converted, names, objective, training, what=what, device=device, kept=kept, watch=watch
    )


class _Parts:
    """Lets parts of a converted model learn from the same parts of the original, in the forward of each.

    Args:
        original, converted: the models.
        paths: the parts.
    """

    def __init__(self, original: nn.Module, converted: nn.Module, paths: list[str]) -> None:
        theirs, mine = dict(original.named_modules()), dict(converted.named_modules())
        self._theirs = {path: theirs[path] for path in paths}
        self._mine = {path: mine[path] for path in paths}
        self._open = False
        self.losses: dict[str, float] = {}

    @contextlib.contextmanager
    def learning(self, backward: Callable[[Tensor], Any]) -> Iterator[None]:
        """Within it, call the original and then the converted model on the same inputs.

        Args:
            backward: called with each part's loss; the gradients are there when the forward is over.
        """
        wanted: dict[str, Tensor] = {}
        handles = []
        for path, module in self._theirs.items():
            handles.append(module.register_forward_hook(_keeping(wanted, path)))
        for path, module in self._mine.items():
            handles.append(module.register_forward_pre_hook(self._cut, with_kwargs=True))
            handles.append(module.register_forward_hook(self._compared(wanted, path, backward)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _cut(self, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """No gradient crosses into the part before, unless that could not be compared and learns with this one."""
        if self._open:
            return None
        return map_tensors(args, lambda tensor: tensor.detach()), map_tensors(kwargs, lambda tensor: tensor.detach())

    def _compared(
        self, wanted: dict[str, Tensor], path: str, backward: Callable[[Tensor], Any]
    ) -> Callable[..., Tensor]:
        def hook(_: nn.Module, __: object, out: Tensor) -> Tensor:
            target = wanted.pop(path)
            if out.shape != target.shape:  # a dense convolution, whose blur comes later
                self._open = True
                return out
            self._open = False
            loss = part_error(out, target)
            self.losses[path] = float(loss.detach())
            if loss.requires_grad:
                backward(loss)
            return out.detach()

        return hook


def part_error(out: Tensor, target: Tensor) -> Tensor:
    """Sum |out - target|^2 / sum |target - its channels' means|^2 of features (N, C, ...)."""
    target = exact(target)
    dims = [0, *range(2, target.ndim)]
    spread = (target - target.mean(dims, keepdim=True)).square().mean()
    return (exact(out) - target).square().mean() / (spread + 1e-12)


def _keeping(wanted: dict[str, Tensor], path: str) -> Callable[..., None]:
    def hook(_: nn.Module, __: object, out: Tensor) -> None:
        wanted[path] = out.detach().clone()  # the next layer may write to it

    return hook
