"""Have a new process heed all signals: a shell has what it runs in the background ignore some.

On its own, without torch: it is called in new processes before anything else.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

SIGNALS = ("SIGTERM", "SIGKILL", "SIGINT", "SIGHUP")


def heed(then: Callable[[], object] | None = None) -> None:
    """Let signals do what they do by default, and call what else is to come first."""
    for name in SIGNALS:
        if name != "SIGKILL":
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    if then is not None:
        then()
