"""The process that talks to Ray: it keeps posts on the cluster's nodes, and gives each a task at a time.

It hears of tasks from the run and tells it what came of them (`engines.ray`). The task of a post that is lost, with its
node mostly, is done again by another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import time
from collections import Counter, deque
from typing import Any

from blurify.errors import BlurifyError, one_line
from blurify.zoo.engines.local import START_SECONDS, STARTS, TICK
from blurify.zoo.engines.ray_node import Post
from blurify.zoo.pipe import Pipe
from blurify.zoo.settings import GIB
from blurify.zoo.task import Task, unfinished

_LATE = 120.0  # seconds beyond its time after which a post that does not answer counts as lost
_KNOCK = 20.0  # seconds that a machine has to take a connection
_COUNT = 2.0  # seconds between two looks at how large the cluster is


def main() -> None:
    """Run as the driver."""
    pipe = Pipe()
    try:
        _connect(pipe.told)
        pipe.say({"connected": True})
        try:
            import ray

            Driver(pipe, ray).work()
        finally:
            _disconnect()
    except BlurifyError as error:
        pipe.say({"refused": str(error)})


def _connect(told: dict[str, Any]) -> None:
    address = told["address"] or os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":  # all of the cluster is this run's: its workers are as nice as those of the other engine
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray

        _knock(address)
        ray.init(
            address=address,
            runtime_env={"py_modules": told["modules"], "excludes": ["**/__pycache__"]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # of many kinds: nothing there, another version, a runtime environment of a job
        where = f"at {address}" if address != "auto" else "on this machine"
        raise BlurifyError(
            f"no Ray cluster can be used {where} ({one_line(error, 200).rstrip('.')}): start one (ray start --head), "
            "or name one with --engine-address HOST:PORT or RAY_ADDRESS; 'local' starts one here for this run"
        ) from error


def _knock(address: str) -> None:
    """See that somebody is at an address: Ray itself would wait for minutes.

    Raises:
        OSError: nobody is.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _disconnect() -> None:
    import ray

    with contextlib.suppress(Exception):
        ray.shutdown()


class _Place:
    """A post, as the driver sees it.

    Attributes:
        actor: Ray's handle.
        waits_for: what it was asked last.
        node: where it is; '' until it answered.
        number: of the task that it has; None: it has none.
        begin: when it was given that.
    """

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.waits_for = actor.node.remote()
        self.node = ""
        self.number: int | None = None
        self.begin = time.monotonic()


class Driver:
    """All posts of a run."""

    def __init__(self, pipe: Pipe, ray: Any) -> None:
        """Nothing is asked of the cluster yet.

        Args:
            pipe: to the run.
            ray: the module, connected.
        """
        told = pipe.told
        self.ray, self.pipe = ray, pipe
        self.jobs, self.retries, self.node = told["jobs"], told["retries"], told["node"]
        memory = {} if self.node["memory"] is None else {"memory": self.node["memory"]}
        # A post of its own for each: Ray restarts none, for it is not its to say what is done again.
        self.remote = ray.remote(Post).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD", **memory)
        self.places: list[_Place] = []
        self.tasks: dict[int, dict[str, Any]] = {}
        self.todo: deque[int] = deque()
        self.lost: Counter[int] = Counter()
        self.left, self.wanted = 0, 0
        self.cpus, self.counted = 1, 0.0
        self.false_starts, self.last_seen = 0, time.monotonic()

    def work(self) -> None:
        """Until the run needs no more.

        Raises:
            BlurifyError: there can be no posts, or a post can't work.
        """
        while self._listen():
            self._staff()
            self._give()
            self._ask()
            pending = {place.waits_for: place for place in self.places if place.waits_for is not None}
            done, _ = self.ray.wait(list(pending), num_returns=len(pending), timeout=TICK) if pending else ([], None)
            for answer in done:
                self._hear(pending[answer])
            self._check()
        for place in self.places:
            self._dismiss(place)

    def _listen(self) -> bool:
        """Take what the run says; False once it needs no more."""
        seconds = TICK if not self.places else 0.0  # else the wait is for the posts
        with contextlib.suppress(queue.Empty):
            while (message := self.pipe.hear(seconds)) is not None:
                seconds = 0.0
                self.left += message.get("tasks", 0)
                if "task" in message:
                    self.wanted -= 1
                    self.tasks[message["number"]] = message["task"]
                    self.todo.append(message["number"])
            return False
        return True

    def _staff(self) -> None:
        """Have as many posts as there is work and room for. Ray decides where they are, and when there is room."""
        wanted = min(self.jobs or self._cpus(), self.left)
        while len(self.places) < wanted:
            self.places.append(_Place(self.remote.remote(self.node)))
        free = [place for place in self.places if place.waits_for is None]
        for place in free[: max(0, len(self.places) - wanted)]:  # others may need the room
            self._remove(place)

    def _cpus(self) -> int:
        if time.monotonic() - self.counted > _COUNT:
            self.counted = time.monotonic()
            self.cpus = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        return self.cpus

    def _give(self) -> None:
        for place in self.places:
            if place.waits_for is None and self.todo:
                place.number, place.begin = self.todo.popleft(), time.monotonic()
                place.waits_for = place.actor.carry_out.remote(self.tasks[place.number])

    def _ask(self) -> None:
        """Ask the run for as many tasks as there are posts without one."""
        free = sum(place.waits_for is None for place in self.places)
        in_hand = len(self.todo) + sum(place.number is not None for place in self.places)
        more = min(free - len(self.todo) - self.wanted, self.left - in_hand - self.wanted)
        if more > 0:
            self.wanted += more
            self.pipe.say({"wants": more})

    def _hear(self, place: _Place) -> None:
        number = place.number
        try:
            answer = self.ray.get(place.waits_for)
        except self.ray.exceptions.RayTaskError as error:  # our own code there gave up
            cause = error.cause if isinstance(error.cause, BlurifyError) else None
            raise BlurifyError(
                f"on node {place.node or 'unknown'}: {cause or one_line(error.cause)}"
                if number is not None else f"posts can't be started: {one_line(error.cause)}"
            ) from error  # fmt: skip
        except self.ray.exceptions.RayError as error:
            self._lose(place, one_line(error))
            return
        self.false_starts, self.last_seen = 0, time.monotonic()
        place.waits_for, place.number = None, None
        if number is None:
            place.node = answer
            return
        self._end(number, answer["record"], answer["seconds"])

    def _end(self, number: int, record: dict[str, Any], seconds: float) -> None:
        self.left -= 1
        del self.tasks[number]
        self.pipe.say({"number": number, "record": record, "seconds": seconds})

    def _lose(self, place: _Place, why: str) -> None:
        """A post is gone: what it had is done again by another, but not for ever."""
        number, node, seconds = place.number, place.node, time.monotonic() - place.begin
        self._remove(place)
        if number is None:
            self.false_starts += not node
            if self.false_starts >= STARTS:
                raise BlurifyError(f"posts can't be started on the Ray cluster: {why}")
            return
        self.lost[number] += 1
        if self.lost[number] <= self.retries:
            self.todo.appendleft(number)
            return
        times = f"{self.lost[number]} times" if self.lost[number] > 1 else "once"
        error = f"the node that it ran on was lost {times} (--retries {self.retries}), the last time {node}: {why}"
        record = {**unfinished(Task(**self.tasks[number])), "error": error[:400], "stage": "worker", "seconds": {}}
        self._end(number, record, seconds)

    def _check(self) -> None:
        """Give up what does not answer."""
        now = time.monotonic()
        if any(place.node for place in self.places) or not self.places:
            self.last_seen = now
        elif now - self.last_seen > START_SECONDS:
            memory = self.node["memory"]
            wanted = "1 CPU" + (f" and {memory / GIB:.3g} GiB of memory (--memory)" if memory is not None else "")
            there = self.ray.cluster_resources()
            raise BlurifyError(
                f"the Ray cluster had no room for a worker for {START_SECONDS:.0f} s: it takes {wanted}, and all nodes "
                f"together have {there.get('CPU', 0):g} CPUs and {there.get('memory', 0) / GIB:.3g} GiB"
            )
        for place in list(self.places):
            late = self.node["timeout"] + START_SECONDS + _LATE
            if place.number is not None and now - place.begin > late:
                self._lose(place, f"it did not answer for {late:.0f} s")

    def _remove(self, place: _Place) -> None:
        self.places.remove(place)
        self._dismiss(place)

    def _dismiss(self, place: _Place) -> None:
        with contextlib.suppress(Exception):
            self.ray.kill(place.actor)
