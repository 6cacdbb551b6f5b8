"""Results as they come: what a metric has done is written down at once, and a run that was ended goes on behind it.

A metric takes a `Kept` beside `watch`, and has its results from `Steps`, which know those of before:

    steps = steps_for(kept, "consistency", batches, seed=seed, batch_size=batch_size)
    for number, batch in steps.batches(pictures, batch_size):   # those not done; the others are not even decoded
        steps.done(number, {"same": same.tolist()})             # plain data, one entry a batch
        watch("consistency", number + 1, batches)
    values = [value for step in steps.results for value in step["same"]]   # all of them, in order

A step of many forwards asks for each of them, and computes only those that are not known yet:

        same = steps.part(number, f"shift {dy} {dx}", lambda: compared(...).tolist())

What a step says may depend on the model, the pictures (both are in the `Kept`), its number and the settings given to
`steps_for`, and on nothing else: every argument of the metric that changes a figure belongs there. Floats come back bit
for bit, so that a run that went on says exactly what an undisturbed one says. Without a `Kept` (None) the loop is the
same, and nothing is written down.

Of sums over whole outputs, which are too large for lines, what there is after each step replaces the one before:

    before = steps.stored()            # (steps, tensors, plain data), or None
    steps.store(number, tensors, data)   # instead of `done`
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.journal import Journal
from blurify.metrics.stored import Store, Stored
from blurify.metrics.subject import Batch, Pictures

Result = TypeVar("Result")
_SETTINGS = re.compile(r"([1-9]\d{0,17})/([0-9a-f]{16})/\d+")  # what follows the name: how many steps, and which one


class Kept:
    """What was measured of one model on some pictures; `keeping.keep` opens one.

    Args:
        journal: where it is written down.
        under: what else all of it depends on, such as the other one of two models (see `under`).
    """

    def __init__(self, journal: Journal, under: str = "") -> None:
        self.journal = journal
        self._under = under

    def close(self, *, done: bool) -> None:
        """Let go of it; removed where all is done. A run that ends without this can be gone on with."""
        self.journal.close(done=done)

    def under(self, **settings: Any) -> Kept:
        """The same for results that depend on this besides: plain data."""
        return Kept(self.journal, f"{self._under}{_digest(settings)}/")

    def steps(self, name: str, total: int, **settings: Any) -> Steps:
        """The steps of a metric: see the module.

        Args:
            name: of the metric.
            total: how many steps there are.
            settings: plain data; all that the steps depend on besides the model and the pictures.
        """
        return Steps(total, self.journal, f"{self._under}{name}/{total}/{_digest(settings)}")

    def share(self, name: str) -> float:
        """How much of a metric is done, from 0 to 1; of several settings, that of which most is."""
        done: Counter[tuple[int, str]] = Counter()
        most = 0.0
        for key, known in self.journal.entries.items():
            if "" not in known or not key.startswith(f"{self._under}{name}/"):
                continue
            found = _SETTINGS.fullmatch(key, len(self._under) + len(name) + 1)
            if found is not None:  # else it is no line of ours
                total, digest = int(found[1]), found[2]
                done[total, digest] += 1
                most = max(most, done[total, digest] / total)
        return min(most, 1.0)

    def knows(self, names: Iterable[str]) -> bool:
        """Whether anything is there of one of some metrics."""
        return any(key.startswith(f"{self._under}{name}/") for key in self.journal.entries for name in names)


_STORED = "in a file of its own"


class Steps:
    """The results of a metric, step by step: of before, and of now."""

    def __init__(self, total: int, journal: Journal | None = None, key: str = "") -> None:
        self.total = total
        if journal is not None:
            journal.used.add(key)
        self._journal = journal
        self._key = key
        self._mine: dict[int, Any] = {}  # where nothing is written down
        self._store = None if journal is None else Store(journal.path, key)
        self._stored: Stored | None = None

    def __contains__(self, number: int) -> bool:
        if self._journal is None:
            return number in self._mine
        known = self._known(number)
        if "" in known and known[""] == _STORED:
            return self._stored is not None and number < self._stored[0]
        return "" in known

    def batches(self, pictures: Pictures, size: int) -> Iterator[tuple[int, Batch]]:
        """The batches that are not done, each with its number, which is the step's."""
        first = next((number for number in range(self.total) if number not in self), self.total)
        if first == self.total:
            return
        for number, batch in enumerate(_batches(pictures, size, first), first):
            if number not in self:
                yield number, batch

    def done(self, number: int, result: Any) -> None:
        """Write down the result of a step: plain data (lists, dicts with text as keys, numbers, text, None)."""
        if self._journal is None:
            self._mine[number] = result
        else:
            self._journal.append(f"{self._key}/{number}", "", result)

    def stored(self) -> Stored | None:
        """What `store` was given last: after how many steps, tensors, plain data. The steps in it are done."""
        if self._journal is not None and any(known.get("") == _STORED for known in map(self._known, range(self.total))):
            self._stored = self._store.read() if self._store is not None else None
        return self._stored

    def store(self, number: int, tensors: Mapping[str, Tensor], data: Any) -> None:
        """Write down what there is after a step and all before it, in place of what there was: on the CPU."""
        if self._journal is None or self._store is None:
            self._mine[number] = None
            return
        if self._journal.trouble:
            return
        try:
            self._store.write(number + 1, tensors, data)
        except OSError as error:
            self._journal.trouble = error.strerror or str(error)
            return
        self._stored = (number + 1, {}, None)
        self._journal.append(f"{self._key}/{number}", "", _STORED)

    def part(self, number: int, name: str, compute: Callable[[], Result]) -> Result:
        """A part of a step that is not done: the known one, else what `compute` gives, plain data, written down."""
        if self._journal is None:
            return compute()
        known = self._known(number)
        if name in known:
            return known[name]
        found = compute()
        self._journal.append(f"{self._key}/{number}", name, found)
        return found

    @property
    def results(self) -> list[Any]:
        """Those of all steps, in order. Raises KeyError where one is not done."""
        numbers = range(self.total)
        if self._journal is None:
            return [self._mine[number] for number in numbers]
        return [self._known(number)[""] for number in numbers]

    def _known(self, number: int) -> dict[str, Any]:
        assert self._journal is not None
        return self._journal.entries.get(f"{self._key}/{number}", {})


def steps_for(kept: Kept | None, name: str, total: int, **settings: Any) -> Steps:
    """`Kept.steps`; where there is no `Kept`, steps that are kept nowhere."""
    return Steps(total) if kept is None else kept.steps(name, total, **settings)


def anew_where_damaged(kept: Kept | None, run: Callable[[], Result]) -> Result:
    """What `run` returns; where it stumbles over lines of before that are not what was written, it is run without them.

    What a model raises, and memory that runs out, is no such reason: `Subject.run` makes a BlurifyError of the one.
    """
    try:
        return run()
    except (BlurifyError, OSError, MemoryError):
        raise
    except Exception as error:
        memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if memory or kept is None or not kept.journal.distrust():
            raise
    return run()


def check_kept(fits: bool) -> None:
    """Raise ValueError, by which `anew_where_damaged` knows it, where results don't fit what was measured."""
    if not fits:
        raise ValueError("what was kept of a run before is not what it wrote")


def _batches(pictures: Pictures, size: int, first: int) -> Iterator[Batch]:
    """The batches of a set from number `first` on; sets that can leave the others out are not asked for them."""
    begin = getattr(pictures, "batches_from", None)
    if begin is not None:
        yield from begin(size, first)
    else:
        yield from itertools.islice(pictures.batches(size), first, None)


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
