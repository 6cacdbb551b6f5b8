"""What a conversion costs, as measured on it, and what it may cost."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify.graph.copies import meta_copy, sharing_copy
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace
from blurify.graph.structure import Inputs, map_tensors
from blurify.spec.plan import Plan
from blurify.surgery.apply import apply_plan


@dataclass(frozen=True)
class Budget:
    """What a conversion may cost at most, as shares of what the original costs: 0.1 is 10%.

    Attributes:
        flops: of its multiply-adds, as `torch.utils.flop_counter` counts them (pools count nothing). None: no limit.
        memory: of the bytes that its forward keeps for a backward (parameters and buffers left out). None: no limit.
    """

    flops: float | None = None
    memory: float | None = None

    def words(self) -> str:
        """In words, for reasons and messages."""
        parts = [f"{self.flops:.1%} extra multiply-adds"] if self.flops is not None else []
        parts += [f"{self.memory:.1%} extra activation memory"] if self.memory is not None else []
        return " and ".join(parts)


@dataclass(frozen=True)
class Spent:
    """What a conversion costs, measured on it.

    Attributes:
        macs, extra_macs: multiply-adds of the original, and how many more the conversion has.
        bytes, extra_bytes: kept for a backward; None where there is no limit on them.
    """

    macs: int
    extra_macs: int
    bytes: int | None = None
    extra_bytes: int | None = None

    def within(self, budget: Budget) -> bool:
        """Whether it keeps a budget."""
        if budget.flops is not None and self.extra_macs > budget.flops * self.macs:
            return False
        if budget.memory is None or self.bytes is None or self.extra_bytes is None:
            return True
        return self.extra_bytes <= budget.memory * self.bytes

    def line(self, budget: Budget) -> str:
        """The costs against the budget, in one line."""
        parts = []
        if budget.flops is not None:
            parts.append(f"multiply-adds {in_percent(self.extra_macs, self.macs)} of at most {budget.flops:+.1%}")
        if budget.memory is not None and self.bytes is not None and self.extra_bytes is not None:
            parts.append(
                f"activation memory {in_percent(self.extra_bytes, self.bytes)} of at most {budget.memory:+.1%}"
            )
        return f"budget kept, as measured: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


class Meter:
    """Carries plans out on copies without data, and counts what they cost.

    Args:
        model: the original; it is not changed.
        seen: its trace.
        memory: weigh the bytes that a forward keeps for its backward, too; in train mode where the model runs like
            that.

    Attributes:
        macs: multiply-adds of the original.
        bytes: that it keeps; None where they are not weighed.
    """

    def __init__(self, model: nn.Module, seen: Trace, *, memory: bool) -> None:
        self._model = model
        self._seen = seen
        self._training = True
        self.macs = seen.macs
        self.bytes: int | None = None
        if not memory:
            return
        try:
            self.bytes = kept_bytes(self._copy(), seen.inputs, training=True)
        except Exception:  # a batch of one, targets that are missing
            self._training = False
            self.bytes = kept_bytes(self._copy(), seen.inputs, training=False)

    def spent(self, plan: Plan) -> Spent:
        """What a plan of the model costs."""
        return Spent(self.macs, self._extra_macs(plan), self.bytes, self._extra_bytes(plan))

    def _extra_macs(self, plan: Plan) -> int:
        if self._seen.real or not plan.edits:  # it can't be run without data: the plan's own count
            return plan.extra_macs
        copy = meta_copy(self._model)
        apply_plan(copy, plan)
        return traced(copy, self._seen.inputs).macs - self.macs

    def _extra_bytes(self, plan: Plan) -> int | None:
        if self.bytes is None:
            return None
        copy = self._copy()
        apply_plan(copy, plan)
        return kept_bytes(copy, self._seen.inputs, training=self._training) - self.bytes

    def _copy(self) -> nn.Module:
        return sharing_copy(self._model) if self._seen.real else meta_copy(self._model)


def kept_bytes(model: nn.Module, inputs: Inputs, *, training: bool) -> int:
    """The bytes that a forward keeps for its backward: unique storages, parameters and buffers left out.

    Args:
        model: it may be on the meta device; its parameters are made to require gradients.
        inputs: (args, kwargs), brought to the model's device.
        training: in train mode, else in eval mode.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            with suppress(RuntimeError):
                parameter.requires_grad_(True)
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # the storages themselves, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().to(device, copy=True))
    was = model.training
    model.train(training)
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(*args, **kwargs)
    finally:
        model.train(was)
    del out
    return sum(storage.nbytes() for storage in kept.values())


def in_percent(part: int, whole: int) -> str:
    """A share of a whole with its sign: '+3.20%'; the part itself where the whole is nothing."""
    return f"{part / whole:+.2%}" if whole else f"{part:+d}"
