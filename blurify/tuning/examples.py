"""What a model is adapted on, as a pure function of seed and step: a killed run goes on exactly where it was.

Three kinds of data give the same: windows of pictures, tensors as the model takes them, and ready-made batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.graph.inputs import given_inputs
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.metrics.subject import Preprocessing
from blurify.tuning.crops import Crops


@dataclass(frozen=True)
class Drawn:
    """One batch of a training step.

    Attributes:
        seen: what the converted model is called with.
        taught: what the original is called with; its answers are averaged.
        labels: (N,) int64, -1 where unknown; None where there are none.
    """

    seen: Inputs
    taught: tuple[Inputs, ...]
    labels: Tensor | None = None


class Examples(Protocol):
    """Data that batches are drawn from."""

    def __len__(self) -> int: ...

    def plain(self, size: int, most: int | None = None) -> list[Inputs]:
        """As they are, `size` at a time, at most so many."""
        ...

    def draw(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Drawn:
        """The batch of a step, or one of several equal parts of it (which, of how many)."""
        ...


def _generator(*numbers: int) -> torch.Generator:
    """Of its own for each step."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 0x9E3779B9) % (2**63 - 1)
    return torch.Generator().manual_seed(mixed)


def _order(count: int, seed: int, step: int, size: int) -> Tensor:
    """Which examples a step sees: each once an epoch, in a new order every time."""
    places = torch.arange(step * size, (step + 1) * size)
    epochs = (places // count).unique().tolist()
    orders = {epoch: torch.randperm(count, generator=_generator(seed, 1, epoch)) for epoch in epochs}
    return torch.stack([orders[int(place) // count][int(place) % count] for place in places])


def _part(size: int, part: tuple[int, int]) -> slice:
    which, of = part
    if size % of:
        raise BlurifyError(f"a batch of {size} does not divide among {of} processes: give a multiple of {of}")
    return slice(which * size // of, (which + 1) * size // of)


@dataclass(frozen=True)
class Augmentation:
    """How pictures are varied; teacher and student see the same variation, but for the window.

    Attributes:
        shift: the teacher's other views are windows up to so many pixels away.
        views: how many windows the teacher's answer is averaged over, the student's own among them.
        flip: mirror half of them.
        colour: strength of random contrast, brightness and tint; 0 for none.
        mix: share of batches in which each picture is mixed with another (Zhang et al., "mixup", 2018).
    """

    shift: int = 8
    views: int = 2
    flip: bool = True
    colour: float = 0.3
    mix: float = 0.5


class Pictures:
    """Windows of crops of pictures."""

    def __init__(
        self, crops: Crops, preprocessing: Preprocessing, augmentation: Augmentation, dtype: torch.dtype = torch.float32
    ) -> None:
        self.crops, self.geometry, self.augmentation, self.dtype = crops, preprocessing, augmentation, dtype
        shape = (preprocessing.channels, 1, 1)
        self._mean = torch.tensor(preprocessing.mean).expand(preprocessing.channels).reshape(shape)
        self._std = torch.tensor(preprocessing.std).expand(preprocessing.channels).reshape(shape)

    def __len__(self) -> int:
        return len(self.crops)

    def _prepared(self, pictures: Tensor) -> Inputs:
        return (((pictures - self._mean) / self._std).to(self.dtype),), {}

    def plain(self, size: int, most: int | None = None) -> list[Inputs]:
        """The middle windows."""
        (height, width), (tall, wide) = self.geometry.crop, self.geometry.canvas
        top, left = (tall - height) // 2, (wide - width) // 2
        canvases = self.crops.canvases[:most, :, top : top + height, left : left + width]
        return [self._prepared(part.float() / 255) for part in canvases.split(size)]

    def draw(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Drawn:
        """Random windows; the teacher's views are the same window and others near it."""
        how = self.augmentation
        chosen = _order(len(self), seed, step, size)
        random = _generator(seed, 2, step)
        spare = torch.tensor(self.geometry.canvas) - torch.tensor(self.geometry.crop)
        corner = (torch.rand(size, 2, generator=random) * (spare + 1)).long()
        flip = torch.rand(size, generator=random) < 0.5
        colour = torch.rand(size, 5, generator=random) * 2 - 1
        mixing = float(torch.rand((), generator=random)) < how.mix
        share = torch.rand(size, 1, 1, 1, generator=random) / 2
        partner = torch.randperm(size, generator=random)
        corners = [corner]
        for _ in range(how.views - 1):
            away = torch.randint(-how.shift, how.shift + 1, (size, 2), generator=random)
            corners.append((corner + away).clamp_min(0).minimum(spare))
        mine = _part(size, part)
        views = []
        for where in corners:
            rows = range(size) if mixing else range(size)[mine]
            seen = torch.stack([self._window(int(chosen[row]), where[row], bool(flip[row])) for row in rows])
            seen = _tinted(seen, colour if mixing else colour[mine], how.colour)
            if mixing:  # the partner may be in another process' part
                seen = (seen * (1 - share) + seen[partner] * share)[mine]
            views.append(self._prepared(seen))
        labels = None if mixing else self.crops.labels[chosen][mine]
        return Drawn(views[0], tuple(views), labels)

    def _window(self, index: int, corner: Tensor, flip: bool) -> Tensor:
        (height, width), (y, x) = self.geometry.crop, corner.tolist()
        window = self.crops.canvases[index, :, y : y + height, x : x + width].float() / 255
        return window.flip(-1) if flip and self.augmentation.flip else window


def _tinted(pictures: Tensor, draws: Tensor, strength: float) -> Tensor:
    """Other contrast, brightness and tint, by draws (N, 5) in -1..1."""
    if not strength:
        return pictures
    level = pictures.mean((2, 3), keepdim=True)
    contrast, brightness = 1 + strength * draws[:, 0], 1 + strength * 2 / 3 * draws[:, 1]
    tint = draws[:, 2 : 2 + pictures.shape[1]] * strength * 0.13
    moved = (pictures - level) * contrast.reshape(-1, 1, 1, 1) + level * brightness.reshape(-1, 1, 1, 1)
    return (moved + tint[..., None, None]).clamp(0, 1)


class Tensors:
    """Inputs (N, C, ...) as the model takes them; varied by small shifts along their spatial dimensions alone."""

    def __init__(self, inputs: Tensor, shift: int = 1, views: int = 2) -> None:
        self.inputs, self.shift, self.views = inputs, shift, views

    def __len__(self) -> int:
        return len(self.inputs)

    def plain(self, size: int, most: int | None = None) -> list[Inputs]:
        """As they are."""
        return [((part,), {}) for part in self.inputs[:most].split(size)]

    def draw(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Drawn:
        """Each moved by up to `shift` samples; the teacher's other views are moved otherwise."""
        random = _generator(seed, 2, step)
        mine = _part(size, part)
        chosen = self.inputs[_order(len(self), seed, step, size)[mine]]
        first = 2 if chosen.ndim > 2 else 1
        views: list[Inputs] = []
        for _ in range(max(self.views, 1)):
            moves = torch.randint(-self.shift, self.shift + 1, (size, chosen.ndim - first), generator=random)[mine]
            views.append(((_moved(chosen, moves, first),), {}))
        return Drawn(views[0], tuple(views))


def _moved(inputs: Tensor, moves: Tensor, first: int) -> Tensor:
    """Each of (N, ...) shifted along its dimensions from `first` on; what comes in repeats the edge."""
    rows = []
    for row, move in zip(inputs, moves.tolist(), strict=True):
        for dim, by in enumerate(move, first - 1):
            if by:
                at = (torch.arange(row.shape[dim]) - by).clamp(0, row.shape[dim] - 1)
                row = row.index_select(dim, at.to(row.device))
        rows.append(row)
    return torch.stack(rows)


class Batches:
    """Ready-made batches, of any structure, as they are."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self.batches = list(batches)

    def __len__(self) -> int:
        return sum(_count(batch) for batch in self.batches)

    def plain(self, size: int, most: int | None = None) -> list[Inputs]:
        """So many batches that hold `most` examples."""
        found, count = [], 0
        for batch in self.batches:
            if most is not None and count >= most:
                break
            found.append(batch)
            count += _count(batch)
        return found

    def draw(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Drawn:
        """One of the batches after the other, in a new order every time."""
        batch = self.batches[int(_order(len(self.batches), seed, step, 1)[0])]
        if part[1] > 1:
            mine = _part(_count(batch), part)
            batch = (
                map_tensors(batch[0], lambda tensor: tensor[mine]),
                map_tensors(batch[1], lambda tensor: tensor[mine]),
            )
        return Drawn(batch, (batch,))


def _count(batch: Inputs) -> int:
    """How many examples a batch has: the first tensor's length."""
    tensors = tensors_in(batch)
    return len(tensors[0]) if tensors and tensors[0].ndim else 1


def examples_from(data: Any, most: int, shift: int) -> Tensors | Batches:
    """Examples out of a tensor (N, ...), or of an iterable of batches such as a DataLoader, up to `most` of them.

    A batch is a tensor, a tuple of arguments or a dict of keywords; of a pair (tensor, labels) the labels are left out
    where they are whole numbers.

    Raises:
        BlurifyError: it is something else, or empty.
    """
    if isinstance(data, Tensor):
        if data.ndim < 2 or not len(data):
            raise BlurifyError(f"data of shape {tuple(data.shape)} are no inputs: give a tensor (N, ...) of N of them")
        return Tensors(data[:most], shift)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise BlurifyError(
            f"data is {type(data).__name__}: give a folder of pictures, a tensor (N, ...), or an iterable of batches "
            "(tensors, tuples of arguments or dicts of keywords)"
        )
    batches: list[Inputs] = []
    count = 0
    for batch in data:
        batches.append(_inputs(batch))
        count += _count(batches[-1])
        if count >= most:
            break
    if not batches:
        raise BlurifyError("there are no data to adapt on: give at least one batch")
    single = [
        batch[0][0] for batch in batches if len(batch[0]) == 1 and not batch[1] and isinstance(batch[0][0], Tensor)
    ]
    if len(single) == len(batches) and len({tensor.shape[1:] for tensor in single}) == 1 and single[0].ndim > 1:
        return Tensors(torch.cat(single)[:most], shift)
    return Batches(batches)


def _inputs(batch: Any) -> Inputs:
    """A batch as (args, kwargs); labels beside a tensor, as data loaders give them, are not the model's."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(item, Tensor) for item in batch):
        first, second = batch
        if first.is_floating_point() and not second.is_floating_point():
            return (first,), {}
    return given_inputs(tuple(batch) if isinstance(batch, list) else batch)


def held_out(examples: Tensors | Batches) -> tuple[Tensors | Batches, Tensors | Batches]:
    """Examples to adapt on and to check on: every tenth is held back; the same twice where there are under ten."""
    if isinstance(examples, Tensors):
        count = len(examples)
        if count < 10:
            return examples, examples
        held = torch.arange(count) % 10 == 9
        return (
            Tensors(examples.inputs[~held], examples.shift, examples.views),
            Tensors(examples.inputs[held][:256], 0, 1),
        )
    if len(examples.batches) < 5:
        return examples, examples
    every = max(2, min(10, len(examples.batches) // 2))
    return (
        Batches([batch for index, batch in enumerate(examples.batches) if index % every != every - 1]),
        Batches(examples.batches[every - 1 :: every]),
    )
