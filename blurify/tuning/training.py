"""The training loop that the gradient stages share: steps, schedule, average, processes, and a state to go on from.

Optimiser and averaging are timm's; devices, precision and processes are Hugging Face accelerate's. Learning rates are
relative to the size of each tensor, as in LARS and LAMB (You et al. 2017, 2020): the weights are good, and are to move
by a few hundredths.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.structure import Inputs, map_tensors
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
    learning_rate: float = 1e-4
    optimizer: str = "adamw"
    decay: float = 0.98
    precision: str = "no"
    accumulate: int = 1
    labels: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """How far a stage is: told at every step.

    Attributes:
        stage: its name.
        step, steps: done, and in all (None while their number is not known).
        loss: a running mean.
        learning_rate: now, relative.
        seconds: since the stage began (a resumed one: in all its runs).
        left: seconds to go; None while not known.
    """

    stage: str
    step: int
    steps: int | None
    loss: float
    learning_rate: float
    seconds: float
    left: float | None


@dataclass(frozen=True)
class Trained:
    """What a gradient stage did."""

    stage: str
    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    tensors: int
    frozen: int = 0
    stopped: str = ""
    what: str = ""

    def line(self) -> str:
        """The same in words."""
        time_ = f"{self.seconds:.0f} s" if self.seconds < 100 else f"{self.seconds / 60:.1f} min"
        frozen = f", {self.frozen} more are frozen" if self.frozen else ""
        stopped = f"; {self.stopped}" if self.stopped else ""
        return (
            f"{self.stage}: {self.what}{self.steps} steps in {time_}, loss {self.first_loss:.3f} -> "
            f"{self.last_loss:.3f}, {self.tensors} tensors learned{frozen}{stopped}"
        )


class NothingLearnsError(BlurifyError):
    """A stage has nothing to train."""


class Objective(Protocol):
    """What is to become small."""

    def __call__(
        self, step: int, part: tuple[int, int], backward: Callable[[Tensor], Any], device: torch.device
    ) -> float:
        """Run one batch (the part of a step's, which of how many) forwards and backwards; the loss."""
        ...


def train(
    stage: str,
    original: nn.Module,
    converted: nn.Module,
    names: Sequence[str],
    objective: Objective,
    training: Training,
    *,
    what: str = "",
    device: torch.device | None = None,
    kept: Kept | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Trained:
    """Let some parameters of a converted model learn, in place.

    Args:
        stage: its name.
        original: in eval mode.
        converted: in eval mode; changed in place.
        names: of the parameters that may learn; those that are frozen or are no floating point stay.
        objective: what is to become small.
        training: how.
        what: said in front of the number of steps.
        device: where; None: where accelerate puts it.
        kept: where the state is kept, and taken up from where it is there: the result is the same as without the
            interruption, bit for bit on the CPU.
        watch: told of each step.

    Raises:
        NothingLearnsError: no parameter may learn.
        BlurifyError: the settings are none; the kept state is of another run.
    """
    accelerator = _accelerator(training, device)
    owned = dict(converted.named_parameters())
    fit = [name for name in names if owned[name].is_floating_point()]
    learning = [name for name in fit if owned[name].requires_grad]
    if not learning:
        raise NothingLearnsError(
            "all parameters behind the blurs are frozen (requires_grad is off), so none can learn"
            if fit
            else "no parameters are behind the blurs, so none can learn"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only(converted, set(learning)))
        stack.enter_context(_only(original, set()))
        for model in (original, converted):
            stack.enter_context(_channels_last(model))
        loop = _Loop(stage, original, converted, objective, training, accelerator, learning)
        done = loop.run(kept or Kept(None), watch)
    return Trained(stage, *done, len(learning), len(fit) - len(learning), loop.stopped, what)


class _Loop:
    def __init__(
        self, stage: str, original: nn.Module, converted: nn.Module, objective: Objective, training: Training,
        accelerator: Any, learning: list[str],
    ) -> None:  # fmt: skip
        from timm.optim import create_optimizer_v2
        from timm.utils import ModelEmaV3

        self.stage, self.objective, self.training, self.accelerator = stage, objective, training, accelerator
        self.converted = converted.to(accelerator.device)
        original.to(accelerator.device)
        owned = dict(converted.named_parameters())
        self.learning = [owned[name] for name in learning]
        rate = training.learning_rate
        groups = [{"params": [one], "lr": rate * _size(one), "weight_decay": 0.0} for one in self.learning]
        optimizer = create_optimizer_v2(groups, opt=training.optimizer, lr=rate, weight_decay=0.0)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.average = ModelEmaV3(self.converted, decay=training.decay, use_warmup=True) if training.decay else None
        self.optimizer = accelerator.prepare(optimizer)
        self.stopped = ""

    def run(self, kept: Kept, watch: Callable[[Step], None] | None) -> tuple[int, float, float, float]:
        """(steps, seconds, first loss, last loss)."""
        training = self.training
        step, steps, spent, first, mean = 0, training.steps, 0.0, math.nan, math.nan
        state = kept.read(self.stage)
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
            rate = _rate(step, steps)
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
                watch(Step(self.stage, step, steps, mean, rate * training.learning_rate, seconds, left))
            if self.accelerator.is_main_process and kept.due(step) and steps is not None:
                kept.write(self.stage, self._state(step, steps, seconds, first, mean))
        if self.average is not None:  # the average is the result
            self.converted.load_state_dict(self.average.module.state_dict())
        self.accelerator.wait_for_everyone()
        return step, time.monotonic() - begun, first, mean

    def _steps_within(self, begun: float, each: float, step: int) -> int:
        """How many steps fit into the budget; the same in every process."""
        budget = (self.training.minutes or 0) * 60
        steps = max(step + 1, step + int((budget - (time.monotonic() - begun)) / max(each, 1e-6)))
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            steps = broadcast_object_list([steps])[0]
        return steps

    def _step(self, step: int, rate: float) -> float:
        training, accelerator = self.training, self.accelerator
        for group, largest in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = largest * rate
        self.optimizer.zero_grad()
        parts = accelerator.num_processes * training.accumulate

        def backward(loss: Tensor) -> None:
            accelerator.backward(loss / training.accumulate)

        total = 0.0
        for index in range(training.accumulate):
            place = accelerator.process_index * training.accumulate + index
            with accelerator.autocast():
                total += self.objective(step, (place, parts), backward, accelerator.device) / training.accumulate
        if accelerator.num_processes > 1:
            total = self._shared(total)
        if math.isfinite(total):
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.converted, step=step + 1)
        return total

    def _shared(self, loss: float) -> float:
        """The mean of gradients and loss over all processes."""
        for parameter in self.learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return float(self.accelerator.reduce(torch.tensor(loss, device=self.accelerator.device), "mean"))

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


def _rate(step: int, steps: int | None) -> float:
    """Of the largest learning rate: a linear start, then a half cosine to 0 (Loshchilov and Hutter 2017)."""
    warm = min(20, max(1, (steps or 1000) // 10))
    start = min(1.0, (step + 1) / warm)
    return start if steps is None else start * (1 + math.cos(math.pi * step / steps)) / 2


def _accelerator(training: Training, device: torch.device | None) -> Any:
    """Where and how precisely it runs."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if training.precision not in ("no", "fp16", "bf16"):  # accelerate has more, where other packages are installed
        raise BlurifyError(f"--precision {training.precision} can't be used here: give no, fp16 or bf16")
    if AcceleratorState._shared_state:  # of an earlier call, perhaps with another precision
        AcceleratorState._reset_state()
    on_cpu = device is not None and device.type == "cpu"
    try:
        return Accelerator(mixed_precision=training.precision, cpu=on_cpu)
    except ValueError as error:
        raise BlurifyError(f"--precision {training.precision} can't be used here ({error}): give no") from error


def main_process() -> bool:
    """Whether this is the one of several processes that says and writes what is done."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _size(parameter: Tensor) -> float:
    """The root mean square of a tensor; of one that is all zeros, a small number."""
    return max(float(parameter.detach().float().square().mean().sqrt()), 1e-3)


def on_device(device: torch.device, inputs: Inputs) -> Inputs:
    """Inputs where they are needed."""
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
