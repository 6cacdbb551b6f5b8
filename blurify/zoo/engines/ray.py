"""Workers on a Ray cluster, as the run sees them.

Ray runs in a process of its own (`ray_driver`): it prints where it likes, takes over signals, and ends the process that
uses it when the cluster's head is lost. None of that is the run's: it hands out tasks, and writes down what comes back.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import selectors
import sys
import sysconfig
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import blurify
from blurify.errors import BlurifyError
from blurify.zoo.engines.base import Begins, Ended, Event, Site, Tick
from blurify.zoo.engines.child import Child
from blurify.zoo.engines.local import TICK
from blurify.zoo.settings import Settings
from blurify.zoo.task import Task

_CONNECTING = 180.0  # seconds to import Ray, to connect to a cluster and to send it what nodes need
_FAREWELL = 5.0  # seconds that the driver has to let the cluster go


class Ray:
    """The tasks on a cluster: those of a node that is lost are given to another."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is started yet.

        Raises:
            BlurifyError: Ray is not installed.
        """
        if importlib.util.find_spec("ray") is None:
            raise BlurifyError("--engine ray needs Ray, which is not installed: pip install 'blurify[ray]'")
        self.settings = settings
        self.driver: Child | None = None
        self.selector = selectors.DefaultSelector()

    def work(self, tasks: Sequence[Task], site: Site) -> Generator[Event, None, None]:
        """Carry out tasks."""
        if not tasks:
            return
        driver = self.driver = self.driver or self._start(tasks, site)
        driver.say({"tasks": len(tasks)})
        todo, left = deque(enumerate(tasks)), len(tasks)
        while left:
            yield Tick()
            for message in self._heard(driver):
                if "refused" in message:
                    raise BlurifyError(message["refused"])
                for _ in range(min(message.get("wants", 0), len(todo))):
                    number, task = todo.popleft()
                    yield Begins(task)
                    driver.say({"number": number, "task": dataclasses.asdict(task)})
                if "record" in message:
                    left -= 1
                    yield Ended(tasks[message["number"]], message["record"], message["seconds"])

    def close(self) -> None:
        """Let the driver end its workers; and end it."""
        if self.driver is not None:
            self.driver.needs_no_more()
            self.driver.ends_by_itself(_FAREWELL)
            self.driver.kill()
            self.driver.end()
        self.selector.close()

    def _start(self, tasks: Sequence[Task], site: Site) -> Child:
        settings = self.settings
        told = {
            "address": settings.address, "jobs": settings.jobs, "retries": settings.retries,
            "modules": shipped(tasks),
            "node": {
                "timeout": settings.timeout, "memory": settings.bytes, "storage": site.where, "token": site.token,
            },
        }  # fmt: skip
        keep = () if site.lock is None else (site.lock,)
        driver = Child("blurify.zoo.engines.ray_driver", told, keep=keep, patient=True)
        self.selector.register(driver.out, selectors.EVENT_READ)
        self.begin, self.connected = time.monotonic(), False
        return driver

    def _heard(self, driver: Child) -> Iterator[dict[str, Any]]:
        if not self.selector.select(TICK):
            if not self.connected and time.monotonic() - self.begin > _CONNECTING:
                raise BlurifyError(f"the Ray cluster did not answer in {_CONNECTING:.0f} s: see that it runs")
            return
        try:
            messages = list(driver.hear())
        except EOFError:
            driver.ends_by_itself(_FAREWELL)
            driver.kill("its head does not answer any more")
            raise BlurifyError(
                f"the Ray cluster was lost ({driver.cause_of_death()}): run the same again once it is back; what is "
                "done is kept"
            ) from None
        self.connected = True
        yield from messages


def shipped(tasks: Sequence[Task]) -> list[str]:
    """What nodes are sent: blurify itself, and the modules of the user's own that make models.

    What is installed beside blurify, as torch is, has to be installed on the nodes.
    """
    modules = [str(Path(blurify.__file__).parent)]
    own = {task.model.removeprefix("python:").partition(":")[0].partition(".")[0] for task in tasks
           if task.model.startswith("python:")}  # fmt: skip
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib")]
    for name in sorted(own):
        place = _place_of(name)
        if place is not None and not any(place.is_relative_to(folder) for folder in installed):
            modules.append(str(place))
    return list(dict.fromkeys(modules))


def _place_of(name: str) -> Path | None:
    """The directory or the file of a top-level module, looked for in the working directory, too."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path[:] = before
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin is not None and spec.origin.endswith(".py") else None
