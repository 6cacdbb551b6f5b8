"""Lie derivatives: per layer, the local equivariance error under translation (Gruver et al. 2023).

`equivariance` compares whole-pixel shifts, and looks at directions of feature vectors alone. Here the shift goes to 0:
how far a layer's map is from moving with the picture at all, between the pixels too, where a network that is exact for
whole pixels can still alias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics.circular import circular_padding
from blurify.metrics.consistency import amounts
from blurify.metrics.equivariance import blurred_members, find_layers
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.pictures import some_of
from blurify.metrics.resampling import shifted
from blurify.metrics.results import LayerError, LieDerivative
from blurify.metrics.subject import Pictures, Subject, Watch, middle, not_finite

STEP = 1 / 32
"""Pixels. Small enough that the finite difference is within 0.2% of the derivative at a stride of 2, large enough that
rounding to float32 does not show."""

IMAGES = 32
"""Pictures that are taken where no other number is given."""

FORWARDS = 5
"""Of each picture: unshifted, and forth and back along both axes."""

_MOST_AT_ONCE = 8  # pictures: of each layer a map is kept from one forward to the next


def lie_derivative(
    subject: Subject,
    pictures: Pictures,
    *,
    images: int = IMAGES,
    step: float = STEP,
    circular: bool = True,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> LieDerivative:
    """How far each layer is from translation equivariance, for shifts that go to 0.

    With F(x) the map of a layer of total stride s, and S(t) the shift by t samples with an ideal resampler (see
    `resampling`), the Lie derivative along an axis is d/dt S(-t / s) F(S(t) x) at t = 0: shift the picture, shift the
    map back, and see how that changes (Gruver, Finzi, Goldblum and Wilson, "The Lie Derivative for Measuring Learned
    Equivariance", ICLR 2023, section 3). Taken as the central difference over `step` pixels to both sides, which every
    operation has. Given is the root of the mean over both axes of its squared norm over that of the map, of each
    picture, then the mean over pictures: the share of the map that is lost for each pixel of shift. (The published
    figure is the squared norm over the number of features, which grows with the scale of a layer's weights; two layers,
    or two models, compare by a relative one.)

    It is 0 for a convolution of stride 1, whatever its weights. Sampled at stride s, a wave of frequency f that folds
    back to f - k / s has 2 pi k / s: pi where it folds once at stride 2. Nonlinearities give some too, as they make
    frequencies that the pixels can't hold.

    Shifts are circular, and so is the padding (see `circular_padding`): where the picture's sides meet there is an edge
    like others in it. Each picture is run five times.

    Args:
        subject: the model, in single or double precision.
        pictures: canvases at least as large as the model's input, of which the middle is taken, cut to a multiple of
            the largest total stride.
        images: how many of them.
        step: pixels; half of what the difference spans.
        circular: pad circularly too.
        layers: names of modules, or globs of names; by default those that `equivariance` takes.
        seed: of the choice of pictures.
        batch_size: pictures a forward; at most 8 are.
        watch: told of each forward.
        kept: where each batch is written down (see `kept`).

    Raises:
        BlurifyError: no layer fits, a name matches none (UnknownLayerError), the canvas is too small, features are not
            finite, or the model is in half precision, in which so small a step drowns in rounding.
    """
    if images < 1 or not 0 < step <= 0.5:
        raise BlurifyError("images must be at least 1, and the step above 0 and at most half a pixel")
    if subject.dtype not in (torch.float32, torch.float64):
        raise BlurifyError(
            f"{subject.name} is in {str(subject.dtype).removeprefix('torch.')}, which rounds too coarsely for a Lie "
            "derivative: give the model in float32"
        )
    found, size, whole = find_layers(subject, layers, circular)
    watched = [_Layer(layer.name, layer.kind, layer.stride, layer.shape, step) for layer in found]
    chosen = some_of(pictures, images, seed)
    a_batch = min(batch_size, _MOST_AT_ONCE)
    batches = math.ceil(len(chosen) / a_batch)
    steps = steps_for(
        kept, "lie-derivative", batches, images=images, step=step, circular=circular, seed=seed, batch_size=a_batch,
        layers=[layer.name for layer in watched],
    )  # fmt: skip
    with ExitStack() as stack:
        if circular:
            stack.enter_context(circular_padding(subject.model, whole=whole))
        at = {member: blur for blur, member in blurred_members(subject.model).items()}
        for layer in watched:
            module = subject.model.get_submodule(at.get(layer.name, layer.name))
            stack.callback(module.register_forward_hook(layer.see).remove)
        for number, batch in steps.batches(chosen, a_batch):
            still = middle(batch.canvases, size).to(subject.device)
            for done, (axis, sign) in enumerate(_SHIFTS, 1):
                for layer in watched:
                    layer.at = axis, sign
                subject.run(shifted(still, *_along(axis, sign * step)) if sign else still)
                if watch is not None:
                    watch("lie-derivative", number * len(_SHIFTS) + done, batches * len(_SHIFTS))
            steps.done(number, [layer.errors for layer in watched])
    each = [[error for errors in found for error in errors] for found in zip(*steps.results, strict=True)]
    results = tuple(
        LayerError(layer.name, layer.kind, layer.stride, layer.shape, amounts(errors))
        for layer, errors in zip(watched, each, strict=True)
    )
    if not all(math.isfinite(layer.error.value) for layer in results):
        raise not_finite("the model's features are")
    return LieDerivative(results, len(chosen), (subject.preprocessing.channels, *size), step, circular)


_SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 1), (1, -1))  # (axis, sign): unshifted, then forth and back along each


def _along(axis: int, amount: float) -> tuple[float, float]:
    return (amount, 0.0) if axis == 0 else (0.0, amount)


@dataclass
class _Layer:
    """One layer while it is measured: a forward hook that shifts its maps back and takes their difference."""

    name: str
    kind: str
    stride: tuple[int, int]
    shape: tuple[int, ...]
    step: float
    at: tuple[int, int] = (0, 0)
    errors: list[float] = field(default_factory=list)  # of the batch, one a picture

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Forward hook: take the maps of a batch at the present shift."""
        if output.shape[1:] != self.shape:
            raise BlurifyError(
                f"{self.name} gives maps of {tuple(output.shape[1:])} where {self.shape} was expected: Lie derivatives "
                "need sizes that divide the picture's; leave lie-derivative out"
            )
        axis, sign = self.at
        if not sign:
            self._norm, self._squares = _energy(output), torch.zeros(len(output), dtype=torch.float64)
            return
        back = shifted(output, *_along(axis, -sign * self.step / self.stride[axis]))
        if sign > 0:
            self._forth = back
            return
        self._squares += _energy((self._forth - back) / (2 * self.step))
        del self._forth
        if axis == 1:
            mean = self._squares / 2
            ratio = torch.where(mean > 0, mean / self._norm, mean)  # of a map of zeros that stays so, 0
            self.errors = ratio.sqrt().tolist()


def _energy(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N,) float64 on the CPU, sum of squares."""
    return maps.detach().square().sum((1, 2, 3)).cpu().double()
