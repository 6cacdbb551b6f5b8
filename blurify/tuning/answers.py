"""What a model answers, whatever its structure: how two models' answers compare, and how one learns the other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs, tensors_in

Kind = Literal["classes", "values"]
KINDS = ("classes", "values")

Answers = Callable[[Inputs], list[Tensor]]
"""A model, called for its floating-point outputs."""

_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "addmm")
_FORMS = ("flatten", "view", "reshape", "squeeze", "dropout", "contiguous", "permute", "float", "to", "mean")


def float_tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, in order."""
    return [tensor for tensor in tensors_in(output) if tensor.is_floating_point() and tensor.numel()]


def kind_of(model: nn.Module, inputs: Inputs) -> Kind:
    """What a model's first output is taken for: 'classes' of a classifier, else 'values'.

    A classifier says how many classes it has (`num_classes`, as timm's models do), or its output (N, K) is what a
    linear layer or a 1x1 convolution with a bias gives, unchanged.
    """
    trace = traced(model, inputs)
    result = next((node for node in reversed(trace.graph.nodes) if node.op == "output"), None)
    outputs = list(result.all_input_nodes) if result is not None else []
    if not outputs:
        last = trace.calls[0].output if trace.calls else None
        outputs = [last] if last is not None else []
    if len(outputs) != 1:
        return "values"
    node = outputs[0]
    shape: Any = node.meta.get("shape") or ()
    if len(shape) != 2 or shape[1] < 2:
        return "values"
    if getattr(model, "num_classes", None) == shape[1]:
        return "classes"
    while getattr(node.target, "__name__", "") in _FORMS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    name = getattr(node.target, "__name__", "").lower()
    args: Any = node.args
    biased = (len(args) > 2 and args[2] is not None) or node.kwargs.get("bias") is not None
    return "classes" if name in _LINEAR and biased else "values"


def mean_answer(answers: Sequence[Any], kind: Kind) -> list[Tensor]:
    """The mean of several answers of a teacher: of probabilities (as their logarithm) for classes, else of values."""
    parts = [float_tensors(answer) for answer in answers]
    if len(parts) == 1:
        return parts[0]
    found = [torch.stack([exact(part[index]) for part in parts]).mean(0) for index in range(len(parts[0]))]
    if kind == "classes":
        found[0] = torch.stack([exact(part[0]).softmax(1) for part in parts]).mean(0).clamp_min(1e-12).log()
    return found


def exact(x: Tensor) -> Tensor:
    """In single precision, if it was in less."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def comparable(one: Any, other: Any) -> bool:
    """Whether two answers have the same tensors in the same shapes."""
    first, second = float_tensors(one), float_tensors(other)
    return bool(first) and [tuple(t.shape) for t in first] == [tuple(t.shape) for t in second]


def distance(answer: Sequence[Tensor], wanted: Sequence[Tensor], kind: Kind) -> Tensor:
    """How far an answer is from the wanted one, a scalar with a gradient.

    For classes, KL(wanted || answer) in nats, of the first tensor (Hinton et al. 2015); for values, the relative
    squared error of each tensor, averaged.
    """
    if kind == "classes":
        return F.kl_div(
            exact(answer[0]).log_softmax(1), exact(wanted[0]).log_softmax(1), reduction="batchmean", log_target=True
        )
    return torch.stack([relative_error(one, other) for one, other in zip(answer, wanted, strict=True)]).mean()


def relative_error(answer: Tensor, wanted: Tensor) -> Tensor:
    """Sum |answer - wanted|^2 / sum |wanted - its mean|^2: 0 where equal, 1 where no better than a constant."""
    if not wanted.ndim:
        answer, wanted = answer[None], wanted[None]
    wanted = exact(wanted)
    centre = wanted.mean(0, keepdim=True) if len(wanted) > 1 else wanted.mean()
    spread = (wanted - centre).square().sum()
    floor = 1e-6 * wanted.square().sum() + torch.finfo(torch.float32).tiny
    return (exact(answer) - wanted).square().sum() / torch.maximum(spread, floor)


@dataclass(frozen=True)
class Agreement:
    """How a model's answers agree with the original's on pictures that it was not adapted on.

    Attributes:
        count: how many pictures or other examples.
        kind: what the output was taken for.
        distance: KL in nats for classes, relative error for values; nan where answers can't be compared.
        same: share of equal top-1 answers; None for values.
        sure: the same among those where the original was over 0.5 sure; None where there are none.
    """

    count: int
    kind: Kind
    distance: float
    same: float | None = None
    sure: float | None = None

    def words(self) -> str:
        """In a few words."""
        if self.distance != self.distance:
            return f"its outputs can't be compared on {self.count} examples"
        if self.kind == "values":
            return f"outputs {self.distance:.1%} off on {self.count} held-back examples"
        return f"same answer on {self.same:.0%} of {self.count} held-back pictures, KL {self.distance:.3f}"


@torch.no_grad()
def agreement(
    original: Answers, converted: Answers, batches: Sequence[tuple[Inputs, Sequence[Inputs]]], kind: Kind
) -> Agreement:
    """Compare what two models answer.

    Args:
        batches: (what the converted model is given, what the original is: its answers are averaged).
    """
    pairs: list[tuple[list[Tensor], list[Tensor]]] = []
    for seen, taught in batches:
        answers, answer = [original(inputs) for inputs in taught], converted(seen)
        if not all(comparable(one, answer) for one in answers):
            return Agreement(len(batches), kind, float("nan"))
        pairs.append((mean_answer(answers, kind), answer))
    if kind == "values":
        errors = [_error([(wanted[i], answer[i]) for wanted, answer in pairs]) for i in range(len(pairs[0][0]))]
        return Agreement(sum(_examples(wanted[0]) for wanted, _ in pairs), kind, sum(errors) / len(errors))
    theirs, mine = (torch.cat([pair[index][0].float() for pair in pairs]) for index in range(2))
    same = theirs.argmax(1) == mine.argmax(1)
    sure = theirs.softmax(1).amax(1) > 0.5
    return Agreement(
        len(theirs),
        kind,
        float(distance([mine], [theirs], "classes")),
        float(same.double().mean()),
        float(same[sure].double().mean()) if bool(sure.any()) else None,
    )


def _examples(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The relative error of one output over all batches; the mean of theirs, where its size changes among them."""
    if pairs[0][0].ndim and len({wanted.shape[1:] for wanted, _ in pairs}) == 1:
        wanted, answer = (torch.cat([pair[index].float() for pair in pairs]) for index in range(2))
        return float(relative_error(answer, wanted))
    found = [float(relative_error(answer, wanted)) for wanted, answer in pairs]
    return sum(found) / len(found)


def check_kind(kind: str) -> None:
    """Raise BlurifyError for a kind of output that there is none of."""
    if kind not in (*KINDS, "auto"):
        raise BlurifyError(f"outputs are {' or '.join(KINDS)} (or auto), not {kind!r}")
