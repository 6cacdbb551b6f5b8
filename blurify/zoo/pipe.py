"""A child's end of the pipes to its parent: what it is told, and what it says, as lines of JSON.

They are pipes of their own, so that nothing that anybody prints gets in between. A child never outlives its parent: the
kernel kills it (Linux), and the end of the pipe ends it (everywhere).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1


class Pipe:
    """The way to the parent; made once, at the start of the child.

    Attributes:
        told: what the parent said of how to work.
    """

    def __init__(self) -> None:
        self.told: dict[str, Any] = json.loads(sys.argv[2])
        _die_with(self.told["parent"])
        self._out = os.fdopen(self.told["out"], "w", encoding="utf-8")
        self._heard: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, args=(self.told["in"], self.told["patient"]), daemon=True).start()

    def say(self, message: dict[str, Any]) -> None:
        """Tell the parent something."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def hear(self, seconds: float | None = None) -> dict[str, Any] | None:
        """What the parent says next.

        Args:
            seconds: how long to wait for it; None: for ever.

        Raises:
            queue.Empty: it said nothing in that time.

        Returns:
            None where it needs no more.
        """
        return self._heard.get(timeout=seconds)

    def _listen(self, descriptor: int, patient: bool) -> None:
        with os.fdopen(descriptor, encoding="utf-8") as lines:
            for line in lines:
                self._heard.put(json.loads(line))
        if not patient:
            os._exit(0)  # the parent has gone, or needs no more; what is half done is its next run's to clean up
        self._heard.put(None)


def _die_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was asked for
        os._exit(0)
