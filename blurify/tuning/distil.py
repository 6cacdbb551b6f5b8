"""Stage 3: the original, frozen, teaches the converted model on unlabelled pictures (Hinton et al. 2015).

Only layers behind the first blur learn; norms keep their statistics. The teacher's answer is averaged over windows a
few pixels apart, of which the student sees one: so it learns the original's answer without its dependence on the shift
("two crops, one answer"). Learning rates are relative to the size of each tensor, as in LARS and LAMB (You et al. 2017,
2020): the weights are good, and are to move by a few hundredths.

Optimiser, schedule and averaging are timm's; devices, precision and processes are Hugging Face accelerate's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs, map_tensors
from blurify.surgery.carrying import plan_of
from blurify.tuning.answering import Answering
from blurify.tuning.answers import Kind, distance, exact, mean_answer
from blurify.tuning.examples import Examples
from blurify.tuning.keeping import Kept

_TIMED = 4
"""Steps after the first by whose time the number of steps within a budget is set."""


@dataclass(frozen=True)
class Training:
    """How the converted model is taught.

    Attributes:
        steps: of the optimiser; None: as many as fit into `minutes`.
        minutes: of wall time.
        batch_size: pictures a step and process.
        learning_rate: the largest, relative to the root mean square of each tensor.
        optimizer: one of timm's.
        decay: of the weights' moving average, which is what is kept; 0 for none.
        precision: 'no', 'fp16' or 'bf16', as accelerate has it.
        accumulate: batches a step.
        labels: share of the loss that labels have, where there are any.
        seed: of the data's order and variation.
    """

    steps: int | None = None
    minutes: float | None = 10.0
    batch_size: int = 16
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    decay: float = 0.98
    precision: str = "no"
    accumulate: int = 1
    labels: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """How far it is: told at every step.

    Attributes:
        step, steps: done, and in all (None while their number is not known).
        loss: a running mean.
        learning_rate: now, relative.
        seconds: since the stage began (a resumed one: in all its runs).
        left: seconds to go; None while not known.
    """

    step: int
    steps: int | None
    loss: float
    learning_rate: float
    seconds: float
    left: float | None


@dataclass(frozen=True)
class Distilled:
    """What the stage did."""

    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    tensors: int
    frozen: int = 0
    stopped: str = ""

    def line(self) -> str:
        """The same in words."""
        frozen = f", {self.frozen} more are frozen" if self.frozen else ""
        stopped = f"; {self.stopped}" if self.stopped else ""
        return (
            f"distil: {self.steps} steps in {_time(self.seconds)}, loss {self.first_loss:.3f} -> "
            f"{self.last_loss:.3f}, {self.tensors} tensors learned{frozen}{stopped}"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def behind_the_blurs(model: nn.Module, inputs: Inputs) -> list[str]:
    """The names of the parameters that blurs have anything to do with: of layers that run from the first site on."""
    plan = plan_of(model)
    assert plan is not None
    starts = {path for site in plan.converted for path in site.blur_paths}
    starts |= {path for site in plan.converted for edit in site.edits if (path := edit.dense_path) is not None}
    starts |= {edit.module for site in plan.converted for edit in site.edits if edit.dense_path is not None}
    before: set[str] = set()
    for call in traced(model, inputs).calls:
        if call.path in starts:
            break
        if call.path is not None and not call.has_calls:
            before.add(call.path)
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in before]


def distil(
    original: nn.Module,
    converted: nn.Module,
    examples: Examples,
    training: Training,
    kind: Kind,
    *,
    layers: tuple[str, ...] = (),
    device: torch.device | None = None,
    keep: Path | None = None,
    settings: str = "",
    watch: Callable[[Step], None] | None = None,
) -> Distilled:
    """Teach a converted model what the original answers, in place.

    Args:
        original: in eval mode.
        converted: in eval mode; changed in place.
        examples: what to draw batches from; no labels are needed.
        training: how.
        kind: what the outputs are.
        layers: paths of layers whose outputs are compared instead of the models' (see `answering`).
        device: where; None: where accelerate puts it.
        keep: a file that the state is kept in, and taken up from where it is there: the result is the same as without
            the interruption, bit for bit on the CPU.
        settings: what else the kept state depends on.
        watch: told of each step.

    Raises:
        BlurifyError: nothing can learn; the settings are none; the kept state is of another run.
    """
    from accelerate.utils import set_seed  # noqa: F401  (says early where it is missing)

    accelerator = _accelerator(training, device)
    names = behind_the_blurs(converted, examples.plain(1, 1)[0])
    owned = dict(converted.named_parameters())
    fit = [name for name in names if owned[name].is_floating_point()]
    learning = [name for name in fit if owned[name].requires_grad]
    if not learning:
        raise BlurifyError("all parameters behind the blurs are frozen (requires_grad is off), so none can learn")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only(converted, set(learning)))
        stack.enter_context(_only(original, set()))
        for model in (original, converted):
            stack.enter_context(_channels_last(model))
        loop = _Loop(original, converted, examples, training, kind, layers, accelerator, learning)
        kept = Kept(keep, {"training": asdict(training), "settings": settings, "examples": len(examples)})
        done = loop.run(kept, watch)
    return Distilled(*done, tensors=len(learning), frozen=len(fit) - len(learning), stopped=loop.stopped)


class _Loop:
    """The training loop."""

    def __init__(
        self, original: nn.Module, converted: nn.Module, examples: Examples, training: Training, kind: Kind,
        layers: tuple[str, ...], accelerator: Any, learning: list[str],
    ) -> None:  # fmt: skip
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        self.examples, self.training, self.kind, self.accelerator = examples, training, kind, accelerator
        self.converted = converted.to(accelerator.device)
        self.original = original.to(accelerator.device)
        owned = dict(converted.named_parameters())
        rate = training.learning_rate
        groups = [{"params": [owned[name]], "lr": rate * _size(owned[name]), "weight_decay": 0.0} for name in learning]
        self.optimizer = create_optimizer_v2(groups, opt=training.optimizer, lr=rate, weight_decay=0.0)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.learning = [owned[name] for name in learning]
        self.average = ModelEmaV3(self.converted, decay=training.decay) if training.decay else None
        wrapped, self.optimizer = accelerator.prepare(self.converted, self.optimizer)
        self.wrapped = wrapped
        mine, theirs = dict(self.converted.named_modules()), dict(self.original.named_modules())
        self.student = Answering(wrapped, [mine[path] for path in layers])
        self.teacher = Answering(self.original, [theirs[path] for path in layers])
        self.stopped = ""

    def run(self, kept: Kept, watch: Callable[[Step], None] | None) -> tuple[int, float, float, float]:
        """(steps, seconds, first loss, last loss)."""
        training = self.training
        step, steps, spent, first, mean = 0, training.steps, 0.0, math.nan, math.nan
        state = kept.read()
        if state is not None:
            step, steps, spent, first, mean = self._restore(state)
        begun = time.monotonic() - spent
        timed = 0.0
        bad = 0
        while steps is None or step < steps:
            if steps is None and step == 1:
                timed = time.monotonic()
            if steps is None and step == 1 + _TIMED:
                steps = self._steps_within(begun, (time.monotonic() - timed) / _TIMED, step)
            rate = self._rate(step, steps)
            loss = self._step(step, rate)
            step += 1
            if math.isfinite(loss):
                first = loss if math.isnan(first) else first
                mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
                bad = 0
            else:
                bad += 1
                if bad == 3:
                    self.stopped = "stopped: the loss is not finite any more (give a lower --learning-rate)"
                    break
            seconds = time.monotonic() - begun
            if watch is not None and self.accelerator.is_main_process:
                left = seconds / step * (steps - step) if steps is not None else None
                watch(Step(step, steps, mean, rate * training.learning_rate, seconds, left))
            if self.accelerator.is_main_process and kept.due(step):
                kept.write(self._state(step, steps, seconds, first, mean))
        self._finish()
        return step, time.monotonic() - begun, first, mean

    def _steps_within(self, begun: float, each: float, step: int) -> int:
        """How many steps fit into the budget; the same in every process."""
        budget = (self.training.minutes or 0) * 60
        steps = max(step + 1, step + int((budget - (time.monotonic() - begun)) / max(each, 1e-6)))
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            steps = broadcast_object_list([steps])[0]
        return steps

    def _rate(self, step: int, steps: int | None) -> float:
        """Of the largest learning rate: a linear start, then a half cosine to 0 (Loshchilov and Hutter 2017)."""
        warm = min(20, max(1, (steps or 1000) // 10))
        start = min(1.0, (step + 1) / warm)
        return start if steps is None else start * (1 + math.cos(math.pi * step / steps)) / 2

    def _step(self, step: int, rate: float) -> float:
        training, accelerator = self.training, self.accelerator
        for group, largest in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = largest * rate
        self.optimizer.zero_grad()
        parts = accelerator.num_processes * training.accumulate
        total = 0.0
        for index in range(training.accumulate):
            place = accelerator.process_index * training.accumulate + index
            last = index == training.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss = self._loss(step, (place, parts)) / training.accumulate
                accelerator.backward(loss)
                total += float(loss.detach())
        if accelerator.num_processes > 1:
            total = float(accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean"))
        if math.isfinite(total):
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.converted)
        return total

    def _loss(self, step: int, part: tuple[int, int]) -> Tensor:
        training, device = self.training, self.accelerator.device
        drawn = self.examples.draw(training.seed, step, training.batch_size * part[1], part)
        with torch.no_grad(), self.accelerator.autocast():
            wanted = mean_answer([self.teacher(_on(device, inputs)) for inputs in drawn.taught], self.kind)
        with self.accelerator.autocast():
            answer = self.student(_on(device, drawn.seen))
        if len(answer) != len(wanted) or any(a.shape != w.shape for a, w in zip(answer, wanted, strict=True)):
            raise BlurifyError("the two models' answers have other shapes: give --outputs, or report it")
        loss = distance(answer, wanted, self.kind)
        labels = drawn.labels.to(device) if drawn.labels is not None and self.kind == "classes" else None
        if labels is not None and training.labels and bool((labels >= 0).any()):
            told = F.cross_entropy(exact(answer[0]), labels, ignore_index=-1, label_smoothing=0.1)
            loss = (1 - training.labels) * loss + training.labels * told
        return loss

    def _state(self, step: int, steps: int | None, seconds: float, first: float, mean: float) -> dict[str, Any]:
        return {
            "step": step,
            "steps": steps,
            "numbers": [seconds, first, mean],
            "model": self.converted.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else {},
            "optimizer": self.optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> tuple[int, int | None, float, float, float]:
        self.converted.load_state_dict(state["model"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        seconds, first, mean = state["numbers"]
        return state["step"], state["steps"], seconds, first, mean

    def _finish(self) -> None:
        """The average is the result."""
        if self.average is not None:
            self.converted.load_state_dict(self.average.module.state_dict())
        self.accelerator.wait_for_everyone()


def _accelerator(training: Training, device: torch.device | None) -> Any:
    """Where and how precisely it runs."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state:  # of an earlier call, perhaps with another precision
        AcceleratorState._reset_state()
    on_cpu = device is not None and device.type == "cpu"
    unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    try:
        return Accelerator(mixed_precision=training.precision, cpu=on_cpu, kwargs_handlers=[unused])
    except ValueError as error:
        raise BlurifyError(f"--precision {training.precision} can't be used here ({error}): give no") from error


def _size(parameter: Tensor) -> float:
    """The root mean square of a tensor; of one that is all zeros, a small number."""
    return max(float(parameter.detach().float().square().mean().sqrt()), 1e-3)


def _on(device: torch.device, inputs: Inputs) -> Inputs:
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.to(device, non_blocking=True))
    return args, kwargs


@contextlib.contextmanager
def _only(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Let only some parameters have gradients."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


@contextlib.contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Keep the kernels of 2-d convolutions channels last meanwhile, as CPUs and tensor cores want them."""
    changed = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 4 and parameter.is_contiguous()
    ]
    for parameter in changed:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.data = parameter.data.contiguous()
