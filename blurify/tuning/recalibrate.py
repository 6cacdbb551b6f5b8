"""Stage 1: move the statistics of batch norms by what the blurs changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs
from blurify.surgery.carrying import plan_of
from blurify.tuning.lockstep import in_lockstep
from blurify.tuning.reading import layers_to_refit
from blurify.tuning.statistics import moments_of, move, norm_moments, running_norms


@dataclass(frozen=True)
class Recalibrated:
    """What the stage did.

    Attributes:
        norms: how many batch norms the model has.
        moved: the paths of those that were moved.
    """

    norms: int
    moved: tuple[str, ...]

    def line(self) -> str:
        """The same in words."""
        if not self.norms:
            return "recalibrate: the model has no batch norms, nothing to move"
        return f"recalibrate: moved the statistics of {len(self.moved)} of {self.norms} batch norms"


def recalibrate(original: nn.Module, converted: nn.Module, batches: Sequence[Inputs]) -> Recalibrated:
    """Move a converted model's batch-norm statistics by what its blurs changed, in place.

    Both models see the same pictures; a norm's running variance is scaled by the ratio of the two variances of its
    input, its running mean keeps its distance from the mean in standard deviations. The norms are moved in running
    order, each seeing what the moved ones before it give. Estimating them anew from few pictures loses what the
    training data looked like, and is worse than leaving them (docs/adapting.md has the figures).

    Args:
        original: what the converted model was made from; in eval mode.
        converted: changed in place; in eval mode.
        batches: what to call both with; some hundred pictures.

    Raises:
        BlurifyError: the model carries no plan.
    """
    plan = plan_of(converted)
    if plan is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it first")
    # Where a convolution became dense, its norm sees the same features at more places: nothing changed.
    layers = layers_to_refit(plan, traced(converted, batches[0]))
    dense = {layer.norm for layer in layers if layer.blur is not None}
    norms = running_norms(converted)
    theirs = running_norms(original)
    before = norm_moments(original, batches, [path for path in norms if path in theirs and path not in dense])
    moved: dict[str, None] = {}
    seen: set[str] = set()

    def visit(path: str, given: list[Tensor]) -> None:
        if path in seen:  # a norm that runs more than once: by its first call
            return
        seen.add(path)
        now = moments_of(given)
        if not now.same(before[path]):
            move(norms[path], theirs[path], before[path], now)
            moved[path] = None

    in_lockstep(converted, batches, before, visit)
    return Recalibrated(len(norms), tuple(moved))
