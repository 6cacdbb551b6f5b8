"""The certificate: does a circular shift of the picture shift the output, and do nothing else?"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, named_line
from blurify.graph.copies import copy_model, sharing_copy
from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.metrics.breaking import Break, first_break, lies_on, shifts_back
from blurify.metrics.circular import circular_padding
from blurify.surgery.carrying import plan_of

TOLERANCE = 1e-5
"""Largest difference of two outputs, relative to the largest value, that counts as equal."""
SIDE = 64
"""The side of the pictures, where a model wants no other: what holds at one multiple of the stride holds at all."""

NOT_COVERED = (
    "circular shifts alone are covered: what leaves the picture at one border comes back at the other. A real shift "
    "brings new content in, and models that are exact for circular shifts still answer 11% of realistic one-pixel "
    "shifts otherwise (Shifman and Weiss 2024): blurify measure counts those"
)


@dataclass(frozen=True)
class Certificate:
    """What random circular shifts of random pictures did to the outputs of a model; true where nothing but shift them.

    Attributes:
        shifts: how many (picture, shift) pairs were tried.
        equal: of how many all outputs were equal, after shifting maps back.
        same_answer: of how many the largest value of every output that is no map stood at the same place.
        worst: the largest difference, relative to the largest value of the output.
        in_float64: of how many the outputs were equal only when computed in float64: rounding.
        shape: of a picture.
        images: how many different ones.
        maps, vectors: how many outputs are maps of positions, and how many are not.
        circular: whether the model's padding was made circular for this.
        found: the operation that breaks it, where one was found.
    """

    shifts: int
    equal: int
    same_answer: int
    worst: float
    in_float64: int
    shape: tuple[int, ...]
    images: int
    maps: int
    vectors: int
    circular: bool
    found: Break | None = None

    def __bool__(self) -> bool:
        return self.equal == self.shifts

    def lines(self) -> list[str]:
        """The same in words, the verdict first, and what it does not cover last."""
        size = "x".join(map(str, self.shape[1:]))
        what = f"{self.equal:,} of {self.shifts:,} random circular shifts of {self.images} pictures of {size}"
        padding = ", all padding made circular" if self.circular else ""
        outputs = [f"{self.maps} map{'s' * (self.maps > 1)}"] * bool(self.maps)
        outputs += [f"{self.vectors} vector{'s' * (self.vectors > 1)}"] * bool(self.vectors)
        lines = [
            f"{'certified' if self else 'not certified'}: {what} give equal outputs ({' and '.join(outputs)}, largest "
            f"relative difference {self.worst:.1e}{padding})"
        ]
        if self.in_float64:
            lines.append(f"of these {self.in_float64:,} in float64 only: float32 rounds more than {TOLERANCE:.0e}")
        if not self and self.vectors:
            lines.append(f"the answer is the same for {self.same_answer / self.shifts:.1%} of them")
        if self.found is not None:
            lines.append(f"first broken at {self.found}")
        elif not self:
            lines.append(
                "each operation gives shifted maps for a shifted picture, but the outputs lie at another phase: an "
                "upsampling does not restore it (blurify inspect says which do)"
            )
        return [*lines, NOT_COVERED]

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain data for JSON."""
        data = asdict(self) | {"shape": list(self.shape), "certified": bool(self), "not_covered": NOT_COVERED}
        if self.found is None and not self:
            data["broken"] = self.lines()[-2]
        return data


def certify(
    model: nn.Module,
    *,
    images: Tensor | None = None,
    example_inputs: Any = None,
    shifts: int = 1000,
    batch: int = 32,
    seed: int = 0,
    circular: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Certificate:
    """Shift pictures circularly, by any whole number of pixels, and compare what a model makes of them.

    Outputs that are no maps must be equal (logits, not only the answer); maps must be equal after they are shifted
    back; maps that are smaller than the picture, at one of the phases that they may have.

    Args:
        model: as it is or converted; it is run in eval mode on a copy around the same weights.
        images: (N, C, *spatial), as the model wants them; noise where None.
        example_inputs: what to call the model with, where it wants more than one picture or another size than 64.
        shifts: how many (picture, shift) pairs.
        batch: as many shifted pictures at once.
        seed: of the pictures and the shifts.
        circular: make the padding circular for this: of convolutions, pools, interpolations and `F.pad`.
        progress: is told how many pairs are done.

    Raises:
        BlurifyError: the model refuses the pictures, or it is not called with one picture.
    """
    if shifts < 1 or batch < 1:
        raise BlurifyError(f"{shifts} shifts in batches of {batch}: give at least 1 of both")
    subject = _Subject(model, example_inputs, images, seed, circular)
    generator = torch.Generator(device="cpu").manual_seed(seed + 1)
    pictures, space = subject.pictures, tuple(subject.pictures.shape[2:])
    drawn = [
        (number % len(pictures), tuple(int(torch.randint(n, (1,), generator=generator)) for n in space))
        for number in range(shifts)
    ]
    drawn.sort(key=lambda one: one[0])
    before = [subject.outputs(pictures[i : i + 1]) for i in range(len(pictures))]
    errors: list[float] = []
    same = 0
    for start in range(0, shifts, batch):
        part = drawn[start : start + batch]
        after = subject.outputs(torch.stack([_shifted(pictures[i], shift) for i, shift in part]))
        for place, (i, shift) in enumerate(part):
            errors.append(_difference(before[i], [out[place : place + 1] for out in after], shift, space))
            same += _same_answer(before[i], [out[place : place + 1] for out in after], space)
        if progress is not None:
            progress(len(part))
    in_double = 0
    wrong = [place for place, error in enumerate(errors) if not error <= TOLERANCE]
    if wrong and len(wrong) <= max(shifts // 10, 1):  # a few: rounding, or a tie that rounding breaks?
        double = subject.in_double()
        if double is not None:
            for place in list(wrong):
                i, shift = drawn[place]
                pair = torch.stack([pictures[i], _shifted(pictures[i], shift)])
                outs = double.outputs(pair)
                error = _difference([out[:1] for out in outs], [out[1:] for out in outs], shift, space)
                if error <= TOLERANCE:
                    in_double, errors[place] = in_double + 1, error
                    wrong.remove(place)
    found = None
    if wrong:
        i, shift = drawn[wrong[0]]
        precise = subject.in_double() or subject
        pair = torch.stack([pictures[i], _shifted(pictures[i], shift)])
        found = first_break(precise.model, precise.like(pair), precise.run)
    maps = sum(_is_map(out, space) for out in before[0])
    return Certificate(
        shifts, shifts - len(wrong), same, max(errors), in_double, tuple(pictures.shape[1:]), len(pictures), maps,
        len(before[0]) - maps, circular, found,
    )  # fmt: skip


class _Subject:
    """A model, and how it is called with pictures alone."""

    def __init__(self, model: nn.Module, example: Any, images: Tensor | None, seed: int, circular: bool) -> None:
        self.model = sharing_copy(model).eval()
        self.circular = circular
        if next((p for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None) is not None:
            self.model = copy_model(self.model).float()
        self.inputs = _inputs(self.model, example, images)
        tensors = [one for one in tensors_in(self.inputs) if one.is_floating_point() and one.dim() > 2]
        if len(tensors) != 1:
            raise BlurifyError(
                f"the model is called with {len(tensors)} pictures or maps: a certificate is for models of one picture"
            )
        shape = tensors[0].shape
        if images is None:
            generator = torch.Generator(device="cpu").manual_seed(seed)
            images = torch.randn((8, *shape[1:]), generator=generator, device="cpu")
        self.pictures = images

    def like(self, pictures: Tensor) -> Tensor:
        """Pictures where the model is, and in its precision."""
        like = next((p for p in (*self.model.parameters(), *self.model.buffers()) if p.is_floating_point()), pictures)
        return pictures.to(like.device, like.dtype)

    def run(self, pictures: Tensor) -> Any:
        """What the model returns for (N, C, *spatial)."""
        args, kwargs = map_tensors(
            self.inputs, lambda one: pictures if one.is_floating_point() and one.dim() > 2 else one
        )
        with torch.no_grad(), circular_padding(self.model) if self.circular else contextlib.nullcontext():
            return self.model(*args, **kwargs)

    def outputs(self, pictures: Tensor) -> list[Tensor]:
        """The tensors among them, on the CPU, in float64."""
        try:
            found = tensors_in(self.run(self.like(pictures)))
        except BlurifyError:
            raise
        except Exception as error:
            shape = "x".join(map(str, pictures.shape))
            raise BlurifyError(
                f"the model refuses pictures of {shape} ({named_line(error)}): give another size"
            ) from error
        outs = [out.detach().cpu().double() for out in found if out.dim() and out.shape[0] == len(pictures)]
        if not outs:
            raise BlurifyError("the model returns no tensor with an entry for each picture: nothing can be compared")
        return outs

    def in_double(self) -> _Subject | None:
        """The same in float64; None where the model can't be run so."""
        other = object.__new__(_Subject)
        other.__dict__.update(self.__dict__)
        try:
            other.model = copy_model(self.model).double()
            other.outputs(self.pictures[:1])
        except Exception:  # it makes float32 tensors of its own
            return None
        return other


def _inputs(model: nn.Module, example: Any, images: Tensor | None) -> Inputs:
    """What to call a model with: as given, else one picture of the size that it was converted for, at most 64."""
    if images is not None:
        return (images[:1],), {}
    if example is not None:
        return traced(model, example).inputs
    plan = plan_of(model)
    shapes = plan.input_shapes if plan is not None else ()
    inputs: Inputs | None = ((torch.zeros(shapes[0]),), {}) if len(shapes) == 1 else None
    if inputs is None:
        inputs = traced(model).inputs
    args, kwargs = inputs
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and args[0].dim() > 3:
        smaller = torch.zeros(1, args[0].shape[1], *(min(n, SIDE) for n in args[0].shape[2:]))
        with contextlib.suppress(BlurifyError):  # which takes one size alone
            return traced(model, smaller).inputs
    return inputs


def _shifted(picture: Tensor, shift: tuple[int, ...]) -> Tensor:
    return torch.roll(picture, shift, tuple(range(1, picture.dim())))


def _is_map(out: Tensor, space: tuple[int, ...]) -> bool:
    """Whether an output (N, C, *sizes) has positions: those of the picture, or as many times more or fewer."""
    sizes = out.shape[2:]
    return len(sizes) == len(space) and math.prod(sizes) > 1 and lies_on(space, sizes)


def _difference(before: list[Tensor], after: list[Tensor], shift: tuple[int, ...], space: tuple[int, ...]) -> float:
    """The largest relative difference of the outputs for one picture and for the shifted one."""
    largest = 0.0
    for a, b in zip(before, after, strict=True):
        ways = [()] if not _is_map(a, space) else shifts_back(shift, space, tuple(a.shape[2:]))
        dims = tuple(range(2, a.dim()))
        scale = a.abs().max().item() or 1.0
        if a.shape != b.shape or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return math.inf
        errors = (((torch.roll(a, way, dims) if way else a) - b).abs().max().item() / scale for way in ways)
        largest = max(largest, min(errors))
    return largest


def _same_answer(before: list[Tensor], after: list[Tensor], space: tuple[int, ...]) -> bool:
    """Whether all outputs that are no maps have their largest value at the same place."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if not _is_map(a, space)]
    return all(bool(a.flatten().argmax() == b.flatten().argmax()) for a, b in pairs)
