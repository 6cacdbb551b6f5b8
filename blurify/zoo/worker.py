"""The worker process: imports torch once, then does one task after the other until its parent says no more.

Tasks come and records go as lines of JSON over two pipes of their own, so that nothing a model prints gets in between.
A worker never outlives its parent: the kernel kills it (Linux), and the end of the pipe ends it (everywhere).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run as a worker; the arguments come as JSON after the program's own."""
    settings: dict[str, Any] = json.loads(sys.argv[2])
    _die_with(settings["parent"])
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_receive, args=(settings["tasks"], tasks), daemon=True).start()
    results = os.fdopen(settings["results"], "w", encoding="utf-8")

    def send(data: dict[str, Any]) -> None:
        results.write(json.dumps(data) + "\n")
        results.flush()

    import torch

    torch.set_num_threads(settings["threads"])
    import blurify.conversion  # noqa: F401 (loaded once, before the first model's time counts)
    from blurify.zoo.task import Task, carry_out

    for name in settings["preload"]:
        __import__(name)
    _limit_memory(settings["memory"])
    _forget()
    send({"ready": True})
    while True:
        task = Task(**tasks.get())
        gc.disable()  # building and tracing make many objects that all live to the end
        record = carry_out(task)
        gc.enable()
        _forget()
        send({"record": record})


def _receive(descriptor: int, tasks: queue.Queue[dict[str, Any]]) -> None:
    with os.fdopen(descriptor, encoding="utf-8") as lines:
        for line in lines:
            tasks.put(json.loads(line))
    os._exit(0)  # the parent has gone, or needs no more; whatever is half done is its next run's to clean up


def _die_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was asked for
        os._exit(0)


def _limit_memory(limit: int) -> None:
    """Let allocations beyond the limit fail cleanly; the parent's watch over the memory in use comes second."""
    import resource

    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        used = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (used + limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _forget() -> None:
    """Free what the last model left, and give the memory back.

    What stays is code, the syntax trees of code and the like, more with every library that a model loads: the next
    collection is not to look through a million objects for what one model left.
    """
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
