"""Stage 4: the original, frozen, teaches the converted model on unlabelled pictures (Hinton et al. 2015).

Only layers behind the first blur learn; norms keep their statistics. The teacher's answer is averaged over windows a
few pixels apart, of which the student sees one: so it learns the original's answer without its dependence on the shift
("two crops, one answer").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs
from blurify.surgery.carrying import plan_of
from blurify.tuning.answering import Answering
from blurify.tuning.answers import Kind, distance, exact, mean_answer
from blurify.tuning.examples import Examples
from blurify.tuning.keeping import Kept
from blurify.tuning.training import Step, Trained, Training, on_device, train


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
    kept: Kept | None = None,
    watch: Callable[[Step], None] | None = None,
) -> Trained:
    """Teach a converted model what the original answers, in place.

    Args:
        original: in eval mode.
        converted: in eval mode; changed in place.
        examples: what to draw batches from; no labels are needed.
        training: how.
        kind: what the outputs are.
        layers: paths of layers whose outputs are compared instead of the models' (see `answering`).
        device, kept, watch: see `training.train`.

    Raises:
        BlurifyError: nothing can learn; the settings are none; the kept state is of another run.
    """
    names = behind_the_blurs(converted, examples.plain(1, 1)[0])
    objective = _Answers(original, converted, examples, training, kind, layers)
    return train(
        "distil", original, converted, names, objective, training, device=device, kept=kept, watch=watch
    )  # fmt: skip


class _Answers:
    """How far the converted model's answers are from the original's."""

    def __init__(
        self, original: nn.Module, converted: nn.Module, examples: Examples, training: Training, kind: Kind,
        layers: tuple[str, ...],
    ) -> None:  # fmt: skip
        mine, theirs = dict(converted.named_modules()), dict(original.named_modules())
        self.student = Answering(converted, [mine[path] for path in layers])
        self.teacher = Answering(original, [theirs[path] for path in layers])
        self.examples, self.training, self.kind = examples, training, kind

    def __call__(
        self, step: int, part: tuple[int, int], backward: Callable[[Tensor], Any], device: torch.device
    ) -> float:
        training = self.training
        drawn = self.examples.draw(training.seed, step, training.batch_size * part[1], part)
        with torch.no_grad():
            wanted = mean_answer([self.teacher(on_device(device, inputs)) for inputs in drawn.taught], self.kind)
        answer = self.student(on_device(device, drawn.seen))
        if len(answer) != len(wanted) or any(a.shape != w.shape for a, w in zip(answer, wanted, strict=True)):
            raise BlurifyError(
                "the two models' outputs have other shapes for some of the examples, so they can't be compared: give "
                "examples for which they have the same"
            )
        loss = distance(answer, wanted, self.kind)
        labels = drawn.labels.to(device) if drawn.labels is not None and self.kind == "classes" else None
        if labels is not None and training.labels and bool((labels >= 0).any()):
            told = F.cross_entropy(exact(answer[0]), labels, ignore_index=-1, label_smoothing=0.1)
            loss = (1 - training.labels) * loss + training.labels * told
        backward(loss)
        return float(loss.detach())
