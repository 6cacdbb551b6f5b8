"""The parent: hands models to worker processes, watches over them, and writes down what comes of each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blurify.errors import BlurifyError
from blurify.spec.recipes import Recipe, load_recipe
from blurify.zoo.journal import Directory, Entry, Record, Summary
from blurify.zoo.names import file_stem
from blurify.zoo.task import Task, unfinished

FORMATS = ("safetensors", "pt")
GIB = 2**30
_START_SECONDS = 300.0  # importing torch on a cold, busy machine
_STARTS = 5  # this many workers in a row that end before they are ready: something is wrong with the installation
_TICK = 0.1
_LAST_WORDS = 2.0  # seconds that a worker has from closing its pipe to its end, whose code says why
_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from blurify.zoo.worker import main; main()"


@dataclass(frozen=True)
class Settings:
    """How a run works.

    Attributes:
        inspect_only: only list the sites, on weightless models; nothing is downloaded or written but the results.
        pretrained: convert pretrained weights; False takes random ones (the same in every run).
        recipe: what to do at the sites.
        format: 'safetensors' | 'pt', the files that are written.
        jobs: worker processes.
        timeout: seconds that one model may take.
        memory: GiB that one worker may take; None shares nine tenths of the machine's among them.
        force: do again what is done, and replace files.
        write: write a file for each converted model; False only converts and proves.
        proof_macs: prove on a smaller input where one forward takes more multiply-adds than this; None never does.
        measure: also time one bare forward of each model.
        positions: also measure how far the converted model's features drifted (`blurify.proof.positions`).
    """

    inspect_only: bool = False
    pretrained: bool = True
    recipe: Recipe = field(default_factory=load_recipe)
    format: str = "safetensors"
    jobs: int = 1
    timeout: float = 900.0
    memory: float | None = None
    force: bool = False
    write: bool = True
    proof_macs: int | None = None
    measure: bool = False
    positions: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BlurifyError(f"there is no format {self.format!r}: choose {' or '.join(FORMATS)}")
        if self.jobs < 1:
            raise BlurifyError(f"-j {self.jobs} is no number of processes: give 1 or more")
        if not self.timeout > 0:
            raise BlurifyError(f"--timeout {self.timeout:g} is no time: give seconds")
        if self.memory is not None and not 0 < self.memory < 2**20:
            raise BlurifyError(f"--memory {self.memory:g} is no amount: give GiB")

    @property
    def looked(self) -> str:
        """A fingerprint of all that an inspection depends on."""
        return _fingerprint(self.recipe.to_dict())

    @property
    def made(self) -> str:
        """A fingerprint of all that a converted file depends on."""
        more = ["positions"] * self.positions
        return _fingerprint([self.recipe.to_dict(), self.pretrained, self.format if self.write else None, *more])

    @property
    def bytes(self) -> int:
        """The memory of one worker in bytes."""
        return int(self.memory * GIB) if self.memory is not None else int(0.9 * machine_memory() / self.jobs)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, total: models of this run's selection.
        running: the models in work.
        finished: the record of a model that has just been finished, else None.
    """

    done: int
    total: int
    running: tuple[str, ...]
    finished: Record | None = None


def run(
    names: Sequence[str],
    directory: str | Path,
    settings: Settings | None = None,
    *,
    watch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Inspect or convert models, each in a worker process, into one directory.

    What is done already is not done again: a model counts as done where the journal says so and its file is there. A
    model that failed is tried again.

    Args:
        names: specs, as `select` gives them.
        directory: gets a file for each converted model (`timm/resnet18.safetensors`), `journal.jsonl`, `summary.json`
            and `summary.csv`. Made where it does not exist.
        settings: how; the defaults where None.
        watch: told about the progress, several times a second.

    Returns:
        What the directory holds now. A model that failed is a record there, not an exception.

    Raises:
        BlurifyError: another run is at work in the directory, it holds models converted with other settings or files
            that no run made (`force` does them again), or workers can't be started.
        KeyboardInterrupt: passed on, after the workers were ended and the summary written.
    """
    settings = settings or Settings()
    names = list(dict.fromkeys(names))
    place = Directory(directory)
    try:
        targets = {name: place.path / f"{file_stem(name)}.{settings.format}" for name in names}
        writes = settings.write and not settings.inspect_only
        place.open()
        if writes and not settings.force:
            _refuse_strangers(place, targets)
        _refuse_other_settings(place, settings, names)
        todo = [name for name in names if settings.force or not _is_done(place, name, settings)]
        tasks = [
            Task(
                model=name, recipe=settings.recipe.to_dict(), inspect_only=settings.inspect_only,
                pretrained=settings.pretrained, target=os.path.abspath(targets[name]) if writes else None,
                proof_macs=settings.proof_macs, measure=settings.measure, positions=settings.positions,
            )
            for name in todo
        ]  # fmt: skip
        try:
            _Crew(tasks, len(names), place, settings, watch or (lambda progress: None)).work()
        finally:
            summary = place.summarize(names)
        return summary
    finally:
        place.close()


def _refuse_strangers(place: Directory, targets: Mapping[str, Path]) -> None:
    """Refuse to replace files that no run made, here or in a run that was killed before it wrote that down."""
    ours = {entry.record.get("file") for entry in place.entries.values()}
    strange = next(
        (
            target
            for name, target in targets.items()
            if name not in place.begun and f"{target.parent.name}/{target.name}" not in ours and target.exists()
        ),
        None,
    )
    if strange is not None:
        raise BlurifyError(f"{strange} exists and no run made it: choose another directory, or --force to replace it")


def _refuse_other_settings(place: Directory, settings: Settings, names: Sequence[str]) -> None:
    converted = [entry for entry in place.entries.values() if entry.record["status"] == "converted"]
    if settings.inspect_only:
        for entry in converted:
            if entry.record["model"] in names and (settings.force or entry.looked != settings.looked):
                raise BlurifyError(
                    f"{place.path} holds {entry.record['model']} converted (recipe {entry.record.get('recipe')}), "
                    "which an inspection would forget: choose another directory to inspect into"
                )
        return
    if settings.force:
        return
    for entry in converted:
        if entry.made != settings.made:
            raise BlurifyError(
                f"{place.path} holds models converted with other settings (recipe {entry.record.get('recipe')}, "
                f"{entry.record.get('weights')} weights): choose another directory, or --force to do them again"
            )


def _is_done(place: Directory, name: str, settings: Settings) -> bool:
    entry = place.entries.get(name)
    if entry is None or entry.record["status"] == "failed":
        return False
    record = entry.record
    if record["status"] == "inspected":
        # Without a site to convert there is nothing more to do.
        return entry.looked == settings.looked and (settings.inspect_only or not record["converted"])
    if settings.inspect_only:
        return entry.looked == settings.looked
    if entry.made != settings.made:
        return False
    if record.get("file") is None:
        return True
    file = place.path / record["file"]
    return file.is_file() and file.stat().st_size == record["bytes"]


class _Worker:
    """One worker process, as the parent sees it."""

    def __init__(self, settings: Settings, preload: Sequence[str], lock: int) -> None:
        tasks, self.tasks = os.pipe()
        self.results, results = os.pipe()
        self.noise = tempfile.TemporaryFile()  # noqa: SIM115 (what it prints, for as long as it lives)
        threads = _threads(settings.jobs)
        told = {
            "parent": os.getpid(), "tasks": tasks, "results": results, "threads": threads, "memory": settings.bytes,
            "preload": list(preload),
        }  # fmt: skip
        path = [entry or os.getcwd() for entry in sys.path]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(path), json.dumps(told)],
                stdin=subprocess.DEVNULL, stdout=self.noise, stderr=self.noise,
                pass_fds=(tasks, results, lock),  # with the lock: a directory is free once its last worker has gone
                start_new_session=True,  # Ctrl-C is the parent's
                env={"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **os.environ},
            )  # fmt: skip
        finally:
            os.close(tasks)
            os.close(results)
        self.ready = False
        self.task: Task | None = None
        self.begin = time.monotonic()
        self.received = b""
        self.verdict = ""  # why the parent killed it
        self.retired = False  # it gets no more tasks

    def give(self, task: Task) -> None:
        self.task, self.begin = task, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has just died: its results pipe says so next
            os.write(self.tasks, json.dumps(dataclasses.asdict(task)).encode() + b"\n")

    def memory(self) -> int:
        """Bytes in use; 0 where that can't be known."""
        try:
            with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def kill(self, verdict: str = "") -> None:
        self.verdict = self.verdict or verdict
        with contextlib.suppress(ProcessLookupError, PermissionError):  # with whatever the model started
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        """Whether the process is gone, though something that it started may still hold its pipes."""
        return self.process.poll() is not None

    def ends_by_itself(self, seconds: float) -> bool:
        """Wait a little for the process to end; whether it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.ended

    def end(self) -> None:
        """Close everything and wait for the process."""
        os.close(self.tasks)
        os.close(self.results)
        self.process.wait()
        self.noise.close()

    def cause_of_death(self) -> str:
        if self.verdict:
            return self.verdict
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, as the system does when memory runs out: use fewer processes (-j)"
        if code < 0:
            known = {signum.value for signum in signal.Signals}
            return f"its process crashed ({signal.Signals(-code).name if -code in known else f'signal {-code}'})"
        self.noise.seek(max(0, self.noise.seek(0, os.SEEK_END) - 2000))
        lines = self.noise.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended with code {code}" + (f": {last[:200]}" if last else "")


class _Crew:
    """All workers of a run."""

    def __init__(
        self, tasks: Sequence[Task], total: int, place: Directory, settings: Settings, watch: Callable[[Progress], None]
    ) -> None:
        self.todo = deque(tasks)
        self.left, self.total = len(tasks), total
        self.place, self.settings, self.watch = place, settings, watch
        self.preload = sorted({"timm" if t.model.startswith("timm/") else "torchvision" for t in tasks
                               if not t.model.startswith("python:")})  # fmt: skip
        self.limit = settings.bytes
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()
        self.false_starts = 0

    def work(self) -> None:
        try:
            while self.left:
                self._staff()
                self._tell()
                for key, _ in self.selector.select(_TICK):
                    self._hear(key.data)
                for worker in list(self.workers):
                    self._check(worker)
            self._tell()
        finally:
            for worker in self.workers:
                worker.kill()
            for worker in list(self.workers):
                self._dismiss(worker)
            self.selector.close()

    def _staff(self) -> None:
        """Have as many workers as there is work for, and none of them idle while there is any."""
        wanted = min(self.settings.jobs, self.left)
        while len(self.workers) < wanted:
            worker = _Worker(self.settings, self.preload, self.place.lock)
            self.workers.append(worker)
            self.selector.register(worker.results, selectors.EVENT_READ, worker)
        for worker in self.workers:
            if worker.ready and not worker.retired and worker.task is None and self.todo:
                task = self.todo.popleft()
                if task.target is not None:
                    self.place.begin(task.model)
                worker.give(task)

    def _hear(self, worker: _Worker) -> None:
        data = os.read(worker.results, 1 << 16)
        if not data:
            self._mourn(worker)
            return
        *lines, worker.received = (worker.received + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if message.get("ready"):
                worker.ready, self.false_starts = True, 0
            elif worker.task is not None:
                task, worker.task = worker.task, None
                self._finish(message["record"], time.monotonic() - worker.begin, task)
                if worker.memory() > max(self.limit // 2, 2 * GIB):  # what models leave behind adds up
                    worker.retired = True
                    worker.kill()

    def _hear_out(self, worker: _Worker) -> None:
        """Of a process that is gone, what it still said. Its pipe has no end while something that it started lives."""
        os.set_blocking(worker.results, False)
        with contextlib.suppress(BlockingIOError):
            while worker in self.workers:
                self._hear(worker)
        if worker in self.workers:
            self._mourn(worker)

    def _mourn(self, worker: _Worker) -> None:
        """A worker is gone: that is the result of the model that it had, and of no other."""
        task, ready = worker.task, worker.ready
        if not worker.ends_by_itself(_LAST_WORDS):
            worker.kill("it closed the pipe to its parent")
        worker.kill()  # what it started and left behind
        cause = worker.cause_of_death()
        self._dismiss(worker)
        if task is not None:
            record = {**unfinished(task), "error": cause, "stage": "worker", "seconds": {}}
            self._finish(record, time.monotonic() - worker.begin, task)
        elif not ready:
            self.false_starts += 1
            if self.false_starts >= _STARTS:
                raise BlurifyError(f"worker processes can't be started: {cause}")

    def _dismiss(self, worker: _Worker) -> None:
        self.selector.unregister(worker.results)
        self.workers.remove(worker)
        worker.end()

    def _check(self, worker: _Worker) -> None:
        """End a worker that takes too long or too much."""
        seconds = time.monotonic() - worker.begin
        if worker.ended:
            self._hear_out(worker)
        elif not worker.ready:
            if seconds > _START_SECONDS:
                worker.kill(f"it was not ready after {_START_SECONDS:.0f} s")
        elif worker.task is not None:
            if seconds > self.settings.timeout:
                worker.kill(f"it took longer than {self.settings.timeout:g} s (--timeout)")
            elif worker.memory() > self.limit:
                worker.kill(f"it took more than {self.limit / GIB:.3g} GiB of memory (--memory)")

    def _finish(self, record: Record, seconds: float, task: Task) -> None:
        record["seconds"]["total"] = round(seconds, 4)
        before = self.place.entries.get(task.model)
        old = before.record.get("file") if before is not None and task.target is not None else None
        if old is not None and old != record.get("file") and (self.place.path / old).exists():
            if record["status"] == "converted":  # in another format, which takes its place
                (self.place.path / old).unlink()
            else:
                record["error"] = f"{record.get('error', 'nothing to convert')} ({old} of an earlier run is left)"
        self.place.append(Entry(record, self.settings.looked, self.settings.made))
        self.left -= 1
        self._tell(record)

    def _tell(self, finished: Record | None = None) -> None:
        running = tuple(worker.task.model for worker in self.workers if worker.task is not None)
        self.watch(Progress(self.total - self.left, self.total, running, finished))


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container that this runs in, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total


def _threads(jobs: int) -> int:
    """The threads of one worker: its share of the cores, or fewer where OMP_NUM_THREADS says so."""
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):  # not everywhere
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(ValueError):
        cores = min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
    return max(1, cores // jobs)


def _fingerprint(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
