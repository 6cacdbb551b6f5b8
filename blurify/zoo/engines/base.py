"""What an engine is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from blurify.zoo.journal import Record
from blurify.zoo.task import Task


@dataclass(frozen=True)
class Begins:
    """A task is about to be given to a worker, for the first time."""

    task: Task


@dataclass(frozen=True)
class Ended:
    """What came of a task, after how many seconds in a worker."""

    task: Task
    record: Record
    seconds: float


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a moment."""


Event: TypeAlias = Begins | Ended | Tick


@dataclass(frozen=True)
class Site:
    """Where workers find the run's storage.

    Attributes:
        where: the absolute path or the URL; None where they write nothing.
        token: what the storage's lock says.
        lock: a descriptor that local workers keep open, so that the lock ends with the last of them; None: no such.
    """

    where: str | None
    token: str
    lock: int | None


class Engine(Protocol):
    """Something that carries tasks out, each in a process that it may take down with it."""

    def work(self, tasks: Sequence[Task], site: Site) -> Generator[Event, None, None]:
        """Carry out tasks: a `Begins` and an `Ended` for each, and a `Tick` several times a second.

        A task starts only after its `Begins` was taken, so that it can be written down before. What a task does to its
        process is its result. Workers stay for the next call, at the same site.

        Raises:
            BlurifyError: there can be no workers.
        """
        ...

    def close(self) -> None:
        """End all workers, with what they are doing."""
        ...
