"""The worker process: imports torch once, then does one task after the other until its parent says no more."""

from __future__ import annotations

import contextlib
import ctypes
import gc

from blurify.errors import BlurifyError
from blurify.zoo.pipe import Pipe
from blurify.zoo.storage import storage_at


def main() -> None:
    """Run as a worker."""
    pipe = Pipe()
    told = pipe.told
    storage = None
    if told["storage"] is not None:
        try:
            storage = storage_at(told["storage"])
            storage.check(told["token"])
        except BlurifyError as error:
            pipe.say({"refused": str(error)})
            return

    import torch

    torch.set_num_threads(told["threads"])
    import blurify.conversion  # noqa: F401 (loaded once, before the first model's time counts)
    from blurify.zoo.task import Task, carry_out

    for name in told["preload"]:
        __import__(name)
    _limit_memory(told["memory"])
    _forget()
    pipe.say({"ready": True})
    while (message := pipe.hear()) is not None:
        task = Task(**message)
        gc.disable()  # building and tracing make many objects that all live to the end
        record = carry_out(task, storage)
        gc.enable()
        _forget()
        pipe.say({"record": record})


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
