"""Worker processes on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import selectors
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from blurify.errors import BlurifyError
from blurify.zoo.engines.base import Begins, Ended, Event, Site, Tick
from blurify.zoo.engines.child import Child
from blurify.zoo.settings import GIB
from blurify.zoo.task import Task, unfinished

START_SECONDS = 300.0  # importing torch on a cold, busy machine
STARTS = 5  # this many workers in a row that end before they are ready: something is wrong with the installation
TICK = 0.1
_LAST_WORDS = 2.0  # seconds that a worker has from closing its pipe to its end, whose code says why


class Local:
    """As many worker processes as there is work for, and a watch over the time and the memory that each model takes."""

    def __init__(self, jobs: int, timeout: float, memory: int, threads: int) -> None:
        """Nothing is started yet.

        Args:
            jobs: most worker processes.
            timeout: seconds that one model may take.
            memory: bytes that one worker may take.
            threads: of one worker.
        """
        self.jobs, self.timeout, self.memory, self.threads = jobs, timeout, memory, threads
        self.preload: set[str] = set()
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()
        self.false_starts = 0

    def work(self, tasks: Sequence[Task], site: Site) -> Generator[Event, None, None]:
        """Carry out tasks."""
        todo, left = deque(tasks), len(tasks)
        self.preload |= preload(tasks)
        ended: list[Ended] = []
        while left:
            self._staff(min(self.jobs, left), site)
            for worker in self.workers:
                if worker.free and todo:
                    task = todo.popleft()
                    yield Begins(task)
                    worker.give(task)
            yield Tick()
            for key, _ in self.selector.select(TICK):
                ended += self._hear(key.data)
            for worker in list(self.workers):
                ended += self._check(worker)
            while ended:
                left -= 1
                yield ended.pop(0)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self.workers:
            worker.kill()
        for worker in list(self.workers):
            self._dismiss(worker)
        self.selector.close()

    def _staff(self, wanted: int, site: Site) -> None:
        while len(self.workers) < wanted:
            worker = _Worker(self, site)
            self.workers.append(worker)
            self.selector.register(worker.out, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> Iterator[Ended]:
        try:
            messages = worker.hear()
        except EOFError:
            yield from self._mourn(worker)
            return
        for message in messages:
            if message.get("ready"):
                worker.ready, self.false_starts = True, 0
            elif "refused" in message:
                raise BlurifyError(message["refused"])
            elif worker.task is not None:
                task, worker.task = worker.task, None
                yield Ended(task, message["record"], time.monotonic() - worker.begin)
                if worker.memory() > max(self.memory // 2, 2 * GIB):  # what models leave behind adds up
                    worker.retired = True
                    worker.kill()

    def _hear_out(self, worker: _Worker) -> Iterator[Ended]:
        """Of a process that is gone, what it still said. Its pipe has no end while something that it started lives."""
        os.set_blocking(worker.out, False)
        with contextlib.suppress(BlockingIOError):
            while worker in self.workers:
                yield from self._hear(worker)
        if worker in self.workers:
            yield from self._mourn(worker)

    def _mourn(self, worker: _Worker) -> Iterator[Ended]:
        """A worker is gone: that is the result of the model that it had, and of no other."""
        task, ready = worker.task, worker.ready
        if not worker.ends_by_itself(_LAST_WORDS):
            worker.kill("it closed the pipe to its parent")
        worker.kill()  # what it started and left behind
        cause = worker.cause_of_death()
        self._dismiss(worker)
        if task is not None:
            record = {**unfinished(task), "error": cause, "stage": "worker", "seconds": {}}
            yield Ended(task, record, time.monotonic() - worker.begin)
        elif not ready:
            self.false_starts += 1
            if self.false_starts >= STARTS:
                raise BlurifyError(f"worker processes can't be started: {cause}")

    def _dismiss(self, worker: _Worker) -> None:
        self.selector.unregister(worker.out)
        self.workers.remove(worker)
        worker.end()

    def _check(self, worker: _Worker) -> Iterator[Ended]:
        """End a worker that takes too long or too much."""
        seconds = time.monotonic() - worker.begin
        if worker.ended:
            yield from self._hear_out(worker)
        elif not worker.ready:
            if seconds > START_SECONDS:
                worker.kill(f"it was not ready after {START_SECONDS:.0f} s")
        elif worker.task is not None:
            if seconds > self.timeout:
                worker.kill(f"it took longer than {self.timeout:g} s (--timeout)")
            elif worker.memory() > self.memory:
                worker.kill(f"it took more than {self.memory / GIB:.3g} GiB of memory (--memory)")


class _Worker(Child):
    """A worker process and the task that it has."""

    def __init__(self, engine: Local, site: Site) -> None:
        told = {
            "storage": site.where, "token": site.token, "threads": engine.threads, "memory": engine.memory,
            "preload": sorted(engine.preload),
        }  # fmt: skip
        keep = () if site.lock is None else (site.lock,)  # a directory is free once its last worker has gone
        super().__init__("blurify.zoo.worker", told, keep=keep, threads=engine.threads)
        self.ready = False
        self.retired = False  # it gets no more tasks
        self.task: Task | None = None
        self.begin = time.monotonic()

    @property
    def free(self) -> bool:
        return self.ready and not self.retired and self.task is None

    def give(self, task: Task) -> None:
        self.task, self.begin = task, time.monotonic()
        self.say(dataclasses.asdict(task))


def preload(tasks: Sequence[Task]) -> set[str]:
    """The libraries to import before the first model's time counts."""
    models = [task.model for task in tasks if not task.model.startswith("python:")]
    return {"timm" if model.startswith("timm/") else "torchvision" for model in models}


def default_jobs() -> int:
    """Worker processes where nobody said how many."""
    return min(os.cpu_count() or 1, 4)


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container that this runs in, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total


def share_of_cores(jobs: int) -> int:
    """The threads of one of some workers: its share of the cores, or fewer where OMP_NUM_THREADS says so."""
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # not everywhere
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(ValueError):
        cores = min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
    return max(1, cores // jobs)
