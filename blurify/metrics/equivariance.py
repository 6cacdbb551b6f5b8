"""Equivariance maps: per layer, how far shifting the picture is from shifting the feature map (Zhang 2019)."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.inputs import traced
from blurify.graph.recorder import Trace
from blurify.metrics.circular import circular_padding
from blurify.metrics.kept import Kept, check_kept, steps_for
from blurify.metrics.pictures import some_of
from blurify.metrics.results import Equivariance, Estimate, LayerMap
from blurify.metrics.subject import Pictures, Subject, Watch, middle, not_finite
from blurify.nn import BlurPool
from blurify.spec.edits import InsertBlur, below
from blurify.surgery.carrying import plan_of

IMAGES = 8
"""Pictures that are looked at where no other number is given."""
MOST_LAYERS = 24
"""Layers that are looked at where none are named."""
MOST_SHIFT = 31
"""The largest shift where none is given: all 32 x 32 shifts of a layer of total stride 32."""

_DEPTH = 2  # the model's children, and theirs
_GROWTH = 192  # pixels; a multiple of the usual total strides, so that a map grows by exactly 192 / stride
_MINOR = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.modules.dropout._DropoutNd,
    nn.Identity,
)  # fmt: skip


class UnknownLayerError(BlurifyError):
    """A name or glob that fits no layer with maps."""


def equivariance(
    subject: Subject,
    pictures: Pictures,
    *,
    images: int = IMAGES,
    largest_shift: int | None = None,
    most_shift: int = MOST_SHIFT,
    step: int = 1,
    circular: bool = True,
    layers: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> Equivariance:
    """How far each layer is from shift-equivariance, for each shift of the picture.

    With F(X) the map of a layer of total stride s, and F~(X) the same brought to the picture's resolution by
    repeating each sample s x s times, the distance for a shift is that between Shift(F~(X)) and F~(Shift(X)): the
    cosine distance 1 - <a, b> / (|a| |b|) of the two feature vectors at each pixel, averaged over pixels, then over
    pictures. (Zhang 2019: sections 3.1 and 4.1 and figure 5 for the two sides and the cosine distance; it leaves open
    what the cosine is taken over: here, as is usual for deep features, the channels of one position, so that positions
    of weak features count as much as others.) It is 0 for perfect equivariance and at most 2. Two vectors of zeros have
    distance 0; a vector of zeros and another one, 1.

    Shifts are circular: what leaves the picture on one side comes in on the other. Pictures are the middle of the
    canvas, of the model's input size cut to a multiple of the largest total stride.

    The cost is one forward of every picture for each shift: 1024 for a network of total stride 32, 256 for one of 16 or
    with `most_shift=15`; the square of `step` times fewer.

    Args:
        subject: the model.
        pictures: what to shift; canvases at least as large as the model's input.
        images: how many of them.
        largest_shift: pixels. By default each layer is tried up to its own total stride less one; if given, every
            layer is tried up to this shift, so that the period of the finer layers shows.
        most_shift: pixels; where no largest shift is given, none beyond this is tried.
        step: only every step-th shift (a layer whose stride is no larger sees the unshifted picture alone, then).
        circular: pad circularly too (see `circular_padding`), so that borders play no part.
        layers: names of modules, or globs of names. By default up to 24 of the model's children and their children,
            normalisations, dropout and identities left out: those at which the total stride changes, and some spread
            evenly over the rest. A layer counts if its output is one tensor (N, C, H, W) whose size divides the
            picture's, in each
            call of the model exactly once.
        seed: of the choice of pictures.
        batch_size: pictures a forward.
        watch: told of each forward.
        kept: where the distances of each forward are written down (see `kept`); of a batch that is gone on with, the
            unshifted pictures are run once more, as maps are not kept.

    Raises:
        BlurifyError: no layer fits, a name matches none (UnknownLayerError), the canvas is too small, or features are
            not finite.
    """
    if images < 1 or step < 1 or most_shift < 0 or (largest_shift is not None and largest_shift < 0):
        raise BlurifyError("images and step must be at least 1, the largest shift at least 0")
    found, size, whole = find_layers(subject, layers, circular)
    reach, shifts = _begun(found, largest_shift, most_shift, step)
    chosen = some_of(pictures, images, seed)
    batches = math.ceil(len(chosen) / batch_size)
    steps = steps_for(
        kept, "equivariance", batches, images=images, seed=seed, shifts=[reach, step, largest_shift is not None],
        circular=circular, layers=[layer.name for layer in found], batch_size=batch_size,
    )  # fmt: skip
    with ExitStack() as stack:
        if circular:
            stack.enter_context(circular_padding(subject.model, whole=whole))
        at = {member: blur for blur, member in blurred_members(subject.model).items()}
        paths = [at.get(layer.name, layer.name) for layer in found]
        hooks = [
            subject.model.get_submodule(path).register_forward_hook(layer.see)
            for path, layer in zip(paths, found, strict=True)
        ]
        for hook in hooks:
            stack.callback(hook.remove)

        def distances(still: Tensor, shift: tuple[int, int]) -> list[list[float] | None]:
            """Of each layer those of each picture; None where the shift is beyond it."""
            for layer in found:
                layer.at, layer.now = shift, None
            subject.run(torch.roll(still, (shift[0] * step, shift[1] * step), (2, 3)))
            return [None if layer.now is None else layer.now.tolist() for layer in found]

        for number, batch in steps.batches(chosen, batch_size):
            still = middle(batch.canvases, size)
            each: dict[tuple[int, int], list[list[float] | None]] = {}
            for done, shift in enumerate(shifts, 1):
                run = functools.partial(distances, still, shift)
                each[shift] = run() if shift == (0, 0) else steps.part(number, f"{shift[0]} {shift[1]}", run)
                check_kept(len(each[shift]) == len(found))
                if watch is not None:
                    watch("equivariance", number * len(shifts) + done, batches * len(shifts))
            steps.done(number, [layer.summary(each, place) for place, layer in enumerate(found)])
    for step_of_all in steps.results:
        for layer, summary in zip(found, step_of_all, strict=True):
            layer.add(summary)
    maps = tuple(layer.result(len(chosen)) for layer in found)
    if not all(math.isfinite(layer.mean) for layer in maps):
        raise not_finite("the model's features are")
    return Equivariance(maps, len(chosen), (subject.preprocessing.channels, *size), reach, step=step, circular=circular)


def shifts_of(
    subject: Subject, *, layers: Sequence[str] | None = None, most_shift: int = MOST_SHIFT, circular: bool = True
) -> int:
    """How many shifts `equivariance` tries, each of which is a forward of every picture. Raises BlurifyError as it."""
    try:
        found = find_layers(subject, layers, circular)[0]
    except UnknownLayerError:
        found = find_layers(subject, None, circular)[0]
    return len(_begun(found, None, most_shift, 1)[1])


def _begun(
    layers: Sequence[Layer], largest_shift: int | None, most_shift: int, step: int
) -> tuple[int, list[tuple[int, int]]]:
    """Make room in layers for the shifts; the largest one in pixels, and all of them in steps (rows, columns)."""
    largest = max(max(layer.stride) for layer in layers)
    reach = min(largest - 1, most_shift) if largest_shift is None else largest_shift
    for layer in layers:
        layer.begin(reach, step, whole=largest_shift is not None)
    rows, columns = (max(len(layer.sums[0]) if axis else len(layer.sums) for layer in layers) for axis in (0, 1))
    return reach, [(row, column) for row in range(rows) for column in range(columns)]


@dataclass
class Layer:
    """One layer while it is measured: a forward hook that compares what it sees with the unshifted pictures' map.

    The comparison at the picture's resolution takes no map of that size: shifted by q * s + t pixels (0 <= t < s), the
    repeated samples of a cell of s pixels are those of the map shifted by q for s - t pixels, and by q + 1 for t of
    them; so the average over pixels is a weighted average over at most 2 x 2 whole shifts of the small map.
    """

    name: str
    kind: str
    stride: tuple[int, int]
    shape: tuple[int, ...]
    place: int  # in running order; a container has its last child's

    def begin(self, reach: int, step: int, *, whole: bool) -> None:
        """Make room for the shifts up to `reach`; up to the stride only, if not `whole`."""
        rows, columns = (len(range(0, reach + 1 if whole else min(reach + 1, s), step)) for s in self.stride)
        self.sums = [[0.0] * columns for _ in range(rows)]
        self.each: list[float] = []  # of each picture, the sum over shifts
        self.step = step
        self.at = 0, 0
        self.now: Tensor | None = None  # of each picture, the distance at the present shift

    def see(self, module: nn.Module, args: Any, output: Tensor) -> None:
        """Forward hook: add up the distances of a batch at the present shift."""
        row, column = self.at
        if output.shape[1:] != self.shape:
            raise BlurifyError(
                f"{self.name} gives maps of {tuple(output.shape[1:])} where {self.shape} was expected: equivariance "
                "maps need sizes that divide the picture's; leave equivariance and lie-derivative out"
            )
        if row >= len(self.sums) or column >= len(self.sums[0]):
            return
        unit, empty = _unit(output)
        self.now = torch.zeros(len(unit), dtype=torch.float64)
        if self.at == (0, 0):  # by definition at distance 0
            self.unit, self.empty = unit, empty
            return
        (y, rest_y), (x, rest_x) = (divmod(i * self.step, s) for i, s in zip(self.at, self.stride, strict=True))
        for down, in_y in ((0, self.stride[0] - rest_y), (1, rest_y)):
            for right, in_x in ((0, self.stride[1] - rest_x), (1, rest_x)):
                if in_y and in_x:
                    shift = (y + down, x + right)
                    before, gone = (torch.roll(t, shift, (-2, -1)) for t in (self.unit, self.empty))
                    # Half the squared distance of unit vectors is 1 - cosine, without its rounding errors near 0.
                    distance = (unit - before).square_().sum(1).add_((empty != gone).to(unit.dtype)).div_(2)
                    share = in_y * in_x / math.prod(self.stride)
                    self.now += share * distance.mean((1, 2)).cpu().double()

    def summary(self, each: Mapping[tuple[int, int], Sequence[list[float] | None]], place: int) -> dict[str, Any]:
        """Of a batch: the distances of all shifts, summed over pictures, and of all pictures, summed over shifts.

        Args:
            each: what `now` was at each shift, of all layers.
            place: this one among them.
        """
        mine = [[each[row, column][place] for column in range(len(self.sums[0]))] for row in range(len(self.sums))]
        if any(values is None for row in mine for values in row):
            raise BlurifyError(
                f"{self.name} does not run for some pictures: equivariance is measured where the same layers run for "
                "every picture; leave equivariance and lie-derivative out"
            )
        found = torch.tensor(mine, dtype=torch.float64)  # (rows, columns, pictures)
        return {"shifts": found.sum(2).tolist(), "pictures": found.sum((0, 1)).tolist()}

    def add(self, summary: Mapping[str, Any]) -> None:
        """Take in a batch's summary."""
        for sums, more in zip(self.sums, summary["shifts"], strict=True):
            sums[:] = [one + other for one, other in zip(sums, more, strict=True)]
        self.each += summary["pictures"]

    def result(self, count: int) -> LayerMap:
        """The mean distances over `count` pictures."""
        distances = tuple(tuple(total / count for total in row) for row in self.sums)
        means = [total / (len(self.sums) * len(self.sums[0])) for total in self.each]
        over_pictures = Estimate.of(means, bounded=False, yes_or_no=False)
        return LayerMap(self.name, self.kind, self.stride, self.shape, distances, over_pictures)


def _unit(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) with vectors of length 1, a copy; and (N, H, W), where they are zeros."""
    features = features if features.dtype == torch.float64 else features.float()
    norm = features.norm(dim=1, keepdim=True)
    empty = norm == 0
    return features / norm.masked_fill(empty, 1), empty.squeeze(1)


# --- which layers


def find_layers(
    subject: Subject, names: Sequence[str] | None, circular: bool
) -> tuple[list[Layer], tuple[int, int], bool]:
    """The layers to look at, in running order; the (height, width) of the pictures; whether to pad whole periods."""
    layers, size, whole = _candidates(subject, circular)
    chosen = _chosen(subject.model, layers, names)
    if not chosen:
        raise BlurifyError(
            "no layer of this model gives maps (N, C, H, W) whose size divides the picture's: equivariance maps need "
            "one; leave equivariance and lie-derivative out"
        )
    return chosen, size, whole


def _candidates(subject: Subject, circular: bool) -> tuple[dict[str, Layer], tuple[int, int], bool]:
    """All layers with maps by name, in running order; the pictures' size; whether to pad whole periods.

    The last for networks of which most maps don't divide the picture, as they pad too little (AlexNet, Inception).
    """
    size = subject.preprocessing.crop
    first = _traced(subject, size)
    strides = _strides(subject, first, size)
    fitting = [stride for stride in strides.values() if stride[0] <= size[0] and stride[1] <= size[1]]
    if fitting:
        size = _multiple(size[0], {y for y, _ in fitting}), _multiple(size[1], {x for _, x in fitting})
    seen = first if size == subject.preprocessing.crop else _traced(subject, size)
    order = {node: index for index, node in enumerate(seen.graph.nodes)}
    layers: dict[str, Layer] = {}
    short = set()  # their maps are smaller than the picture over the stride
    for name, shape, node in _maps(seen):
        stride = strides.get(name)
        if stride is None or any(n % s for n, s in zip(size, stride, strict=True)):
            continue
        period = tuple(n // s for n, s in zip(size, stride, strict=True))
        if all(n <= most for n, most in zip(shape[2:], period, strict=True)):
            kind = type(subject.model.get_submodule(name)).__name__
            layers[name] = Layer(name, kind, stride, (shape[1], *period), order[node])
            if shape[2:] != period:
                short.add(name)
    whole = circular and 2 * len(short) > len(layers)
    if not whole:
        layers = {name: layer for name, layer in layers.items() if name not in short}
    return dict(sorted(layers.items(), key=lambda item: item[1].place)), size, whole


def _multiple(n: int, strides: set[int]) -> int:
    """The largest size up to n that all strides divide; or the largest one, where no size is a multiple of all."""
    period = math.lcm(*strides)
    period = period if period <= n else max(strides)
    return n // period * period


def shared_layers(first: Subject, second: Subject, *, circular: bool = True) -> list[str]:
    """The layers to look at in two models of the same network, side by side: [] where there are none.

    Only such as have the same total stride in both. A convolution whose blur comes after the activation has a smaller
    one in the converted model: its map is not what the original subsamples, but what the blur still reads.

    Raises:
        BlurifyError: a model can't be traced.
    """
    (layers, *_), (others, *_) = (_candidates(subject, circular) for subject in (first, second))
    common = {n: layer for n, layer in layers.items() if n in others and others[n].stride == layer.stride}
    return [layer.name for layer in _chosen(first.model, common, None)]


def _chosen(model: nn.Module, layers: dict[str, Layer], names: Sequence[str] | None) -> list[Layer]:
    ordered = list(layers)
    if names is not None:
        for glob in names:
            if not any(_matches(name, glob) for name in ordered):
                shown = ", ".join(ordered[:: max(1, len(ordered) // 5)])
                raise UnknownLayerError(f"no layer with maps is called {glob!r}: there are {shown or 'none'}, ...")
        return [layers[name] for name in ordered if any(_matches(name, glob) for glob in names)]
    minor = (*_MINOR, BlurPool)  # a blur is part of the module it was put into, which both models have
    near = [name for name in ordered if name.count(".") < _DEPTH and not isinstance(model.get_submodule(name), minor)]
    # A container returns what its last child returns: the child stands for both.
    last: dict[int, str] = {}
    for name in near:
        index = layers[name].place
        if index not in last or name.count(".") >= last[index].count("."):
            last[index] = name
    distinct = list(last.values())
    turns = [
        name
        for before, name in zip([None, *distinct], distinct, strict=False)
        if before is None or layers[before].stride != layers[name].stride
    ]
    rest = [name for name in distinct if name not in turns]
    room = max(MOST_LAYERS - len(turns), 0)
    if len(rest) > room:
        rest = [rest[index * len(rest) // room] for index in range(room)]
    kept = {*turns[:MOST_LAYERS], *rest}
    return [layers[name] for name in distinct if name in kept]


def _matches(name: str, glob: str) -> bool:
    return name == glob or fnmatch.fnmatchcase(name, glob)


def _traced(subject: Subject, size: tuple[int, int]) -> Trace:
    # Two pictures, so that what only looks like a batch (windows, heads) does not.
    return traced(subject.model, torch.zeros(2, subject.preprocessing.channels, *size, dtype=subject.dtype))


def _maps(seen: Trace) -> list[tuple[str, tuple[int, ...], Any]]:
    """(name, shape, node) of each 4-d output of a module that is called once; of a blurred member, its blur's."""
    times = Counter(call.path for call in seen.calls)
    members = blurred_members(seen.model)
    found = []
    for call in seen.calls:
        shape = call.output.meta["shape"] if call.output is not None else None
        if call.path in members.values():
            continue
        if call.path and times[call.path] == 1 and shape is not None and len(shape) == 4 and shape[0] == 2:
            found.append((members.get(call.path, call.path), shape, call.output))
    return found


def blurred_members(model: nn.Module) -> dict[str, str]:
    """The blurs that come behind a member of an `nn.Sequential`, each with that member, whose map it gives."""
    plan = plan_of(model)
    inserted = [e for e in plan.edits if isinstance(e, InsertBlur) and e.after] if plan is not None else []
    return {below(edit.module, edit.child): below(edit.module, edit.member) for edit in inserted}


def _strides(subject: Subject, seen: Trace, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """The total strides (y, x) of the layers that give maps, by how much these grow with the picture.

    For a model that takes one size only: by their size, where it is above 1 x 1.
    """
    shapes = {name: shape for name, shape, _ in _maps(seen)}
    try:
        grown = (
            {} if seen.real else {n: s for n, s, _ in _maps(_traced(subject, (size[0] + _GROWTH, size[1] + _GROWTH)))}
        )
    except BlurifyError:
        grown = {}
    found: dict[str, tuple[int, int]] = {}
    for name, shape in shapes.items():
        if grown:
            growths = [after - before for before, after in zip(shape[2:], grown.get(name, shape)[2:], strict=True)]
            ratios = [(_GROWTH, growth) for growth in growths]
        else:
            ratios = list(zip(size, shape[2:], strict=True))
            if min(shape[2:]) == 1 or ratios[0][0] * ratios[1][1] != ratios[1][0] * ratios[0][1]:
                continue
        if all(part > 0 and whole % part == 0 for whole, part in ratios):
            y, x = (whole // part for whole, part in ratios)
            found[name] = y, x
    return found
