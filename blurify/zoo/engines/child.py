"""A process of ours, as its parent sees it: two pipes, what it prints, and how it ended. `zoo.pipe` is its own side."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

_CODE = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from {module} import main; main()"


class Child:
    """One process, in a session of its own: Ctrl-C is the parent's.

    Attributes:
        out: the descriptor to wait at for what it says.
        verdict: why the parent killed it.
    """

    def __init__(
        self, module: str, told: dict[str, Any], *, keep: Sequence[int] = (), threads: int = 1, patient: bool = False
    ) -> None:
        """Start it.

        Args:
            module: whose `main` it runs.
            told: what it is told of how to work.
            keep: descriptors that it inherits.
            threads: that its libraries may use.
            patient: it ends by itself once its pipe has ended; else the end of the pipe ends it.
        """
        tasks, self._in = os.pipe()
        self.out, results = os.pipe()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 (what it prints, for as long as it lives)
        told = {**told, "parent": os.getpid(), "in": tasks, "out": results, "patient": patient}
        path = [entry or os.getcwd() for entry in sys.path]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(module=module), json.dumps(path), json.dumps(told)],
                stdin=subprocess.DEVNULL, stdout=self._noise, stderr=self._noise, pass_fds=(tasks, results, *keep),
                start_new_session=True,
                env={"OMP_NUM_THREADS": str(threads), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **os.environ},
            )  # fmt: skip
        finally:
            os.close(tasks)
            os.close(results)
        self.verdict = ""
        self._received = b""

    def say(self, message: dict[str, Any]) -> None:
        """Tell it something."""
        with contextlib.suppress(BrokenPipeError):  # it has just died: the end of `out` says so next
            os.write(self._in, json.dumps(message).encode() + b"\n")

    def hear(self) -> Iterator[dict[str, Any]]:
        """What it has said; raises EOFError where it will say no more, BlockingIOError where `out` may not block."""
        data = os.read(self.out, 1 << 16)
        if not data:
            raise EOFError
        *lines, self._received = (self._received + data).split(b"\n")
        return map(json.loads, lines)

    def memory(self) -> int:
        """Bytes in use; 0 where that can't be known."""
        try:
            with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as statm:
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def kill(self, verdict: str = "") -> None:
        """Kill it, with whatever it started."""
        self.verdict = self.verdict or verdict
        with contextlib.suppress(ProcessLookupError, PermissionError):
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

    def needs_no_more(self) -> None:
        """End the pipe to it."""
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def end(self) -> None:
        """Close everything and wait for the process."""
        self.needs_no_more()
        os.close(self.out)
        self.process.wait()
        self._noise.close()

    def cause_of_death(self) -> str:
        """Why it ended, in one line."""
        if self.verdict:
            return self.verdict
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, as the system does when memory runs out: use fewer processes (-j)"
        if code < 0:
            known = {signum.value for signum in signal.Signals}
            return f"its process crashed ({signal.Signals(-code).name if -code in known else f'signal {-code}'})"
        self._noise.seek(max(0, self._noise.seek(0, os.SEEK_END) - 2000))
        lines = self._noise.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended with code {code}" + (f": {last[:200]}" if last else "")
