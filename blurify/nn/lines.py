"""How one dimension is filtered and subsampled, in numbers: sizes, borders, the order of the sums. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

# Up to this ratio of its largest to its smallest tap a filter is summed in units of the smallest: those of a binomial
# filter are whole numbers, and so exact.
_EVEN = 1000.0

Step = tuple[int, int, float, int]
"""(a, b, ratio, into): slot `into` becomes slot a + ratio * slot b; with b = -1 it becomes slot a."""


@dataclass(frozen=True)
class Line:
    """One dimension: output j is the sum of `taps[k] * x[stride * j - left + k]`.

    Args:
        taps: the filter.
        stride: the subsampling.
        left, right: by how many samples the signal goes on before the windows are laid; negative amounts crop.
        padding: how it goes on: 'reflect', 'replicate', 'zeros' or 'circular'.
    """

    taps: tuple[float, ...]
    stride: int
    left: int
    right: int
    padding: str

    @property
    def is_nothing(self) -> bool:
        """Whether the signal stays as it is."""
        return len(self.taps) == 1 and self.stride == 1 and self.left == self.right == 0 and self.taps[0] == 1.0

    def size(self, n: int) -> int:
        """The number of outputs for n samples."""
        return (n + self.left + self.right - len(self.taps)) // self.stride + 1


def lines_of(
    filters: Sequence[tuple[float, ...]], strides: Sequence[int], pads: Sequence[tuple[int, int]], padding: str
) -> tuple[Line, ...]:
    """One line a dimension; 'causal' is 'replicate' in the last one and 'reflect' in the others."""
    lines = []
    for dim, (taps, stride, (left, right)) in enumerate(zip(filters, strides, pads, strict=True), start=1):
        own = padding if padding != "causal" else "replicate" if dim == len(strides) else "reflect"
        lines.append(Line(taps, stride, left, right, own))
    return tuple(lines)


def source(i: int, n: int, padding: str) -> int | None:
    """The sample of n that stands at place i of the signal that goes on; None for a zero."""
    if 0 <= i < n:
        return i
    if padding == "zeros":
        return None
    if padding == "replicate":
        return min(max(i, 0), n - 1)
    if padding == "circular":
        return i % n
    i %= max(2 * n - 2, 1)
    return min(i, 2 * n - 2 - i) if n > 1 else 0


@lru_cache(maxsize=1024)
def unit(taps: tuple[float, ...]) -> float:
    """The weight that a sum of samples is a multiple of."""
    sizes = [abs(tap) for tap in taps if tap]
    whole = max(sizes) <= _EVEN * min(sizes)
    return next(tap for tap in taps if abs(tap) == (min(sizes) if whole else max(sizes)))


@lru_cache(maxsize=1024)
def steps(weights: tuple[float, ...], of: float) -> tuple[Step, ...]:
    """The sums that give `sum(weights[k] * slot k) / of`, each of two slots; equal weights are added up first.

    Slot len(weights) is the result, the one after it is room for sums.
    """
    out, room = len(weights), len(weights) + 1
    groups: dict[float, list[int]] = {}
    for k, weight in enumerate(weights):
        if weight:
            groups.setdefault(weight / of, []).append(k)
    # First what needs no factor; a group of several before one of a single slot.
    order = sorted(groups.items(), key=lambda group: (group[0] != 1.0, len(group[1]) == 1))
    done: list[Step] = []
    single: int | None = None  # a first slot that waits for something to be added to
    for position, (ratio, members) in enumerate(order):
        begun = position > 0
        if not begun and ratio != 1.0:
            done.append((members[0], -1, ratio, out))
            done += [(out, k, ratio, out) for k in members[1:]]
        elif not begun and len(members) == 1:
            single = members[0]
        elif not begun:
            done.append((members[0], members[1], 1.0, out))
            done += [(out, k, 1.0, out) for k in members[2:]]
        else:
            base, single = (out if single is None else single), None
            if len(members) == 1:
                done.append((base, members[0], ratio, out))
            else:
                done.append((members[0], members[1], 1.0, room))
                done += [(room, k, 1.0, room) for k in members[2:]]
                done.append((base, room, ratio, out))
    if single is not None:
        done.append((single, -1, 1.0, out))
    return tuple(done)


@dataclass(frozen=True)
class Spread:
    """The transpose of a line for n samples: from its m outputs' gradients back to the samples.

    Attributes:
        before, after: the zeros that stand before and after the m gradients.
        phases: for each phase r of the samples r, r + stride, ...: how many there are, and (begin, weight) of the
            slices of the gradients that they are sums of.
        folds: (sample, gradient, weight): what reaches a sample through its copies beyond the borders.
    """

    before: int
    after: int
    phases: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    folds: tuple[tuple[int, int, float], ...]


@lru_cache(maxsize=4096)
def spread_of(line: Line, n: int) -> Spread:
    """The transpose of a line, in units of `unit(taps)`."""
    length, step, left, m = len(line.taps), line.stride, line.left, line.size(n)
    ratios = [tap / unit(line.taps) for tap in line.taps]
    before = max(0, -((left - (length - 1)) // step))
    after = max(0, (left + n - 1) // step - (m - 1))
    phases = []
    for r in range(min(step, n)):
        count = -(-(n - r) // step)
        taps = [k for k in range(length) if (r + left - k) % step == 0 and ratios[k]]
        phases.append((count, tuple((before + (r + left - k) // step, ratios[k]) for k in taps)))
    folds: dict[tuple[int, int], float] = {}
    for place in (*range(min(left, 0), 0), *range(left), *range(left + n, n + left + line.right)):
        sample = source(place - left, n, line.padding) if not 0 <= place - left < n else None
        if sample is None:
            continue
        for k in range(length):
            j, rest = divmod(place - k, step)
            if rest == 0 and 0 <= j < m and ratios[k]:
                folds[sample, j] = folds.get((sample, j), 0.0) + ratios[k]
    return Spread(before, after, tuple(phases), tuple((i, before + j, weight) for (i, j), weight in folds.items()))
