"""Forked processes are what ordinary ones are: what they are given, how they end, and whose children they are."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they are ordinary ones")

LOOK = """
import atexit, os, resource, signal, subprocess, sys
print(sys.argv, sys.path[:2], os.getcwd(), __name__, sys.modules["__main__"].__dict__ is globals())
print(os.environ["A"], sys.stdin.read(), os.getsid(0) == os.getpid(), sorted(os.listdir("/proc/self/fd")))
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), resource.getrlimit(resource.RLIMIT_FSIZE))
print(subprocess.run([sys.executable, "-c", "import sys; print(3); sys.exit(3)"], capture_output=True))
atexit.register(print, "ended")
"""
ENDS = {
    "code": "print('x', file=sys.stderr); sys.exit(7)",
    "message": "sys.exit('wrong')",
    "exception": "1 / 0",
    "interrupt": "raise KeyboardInterrupt",
}
WAYS = {"-c": ["-c", LOOK, "two words"], "file": ["program.py", "x"], "-m": ["-m", "program"], "-P": ["-P", "-c", LOOK]}


@pytest.mark.parametrize("way", WAYS)
def test_they_have_what_ordinary_ones_have(tmp_path: Path, way: str) -> None:
    import resource

    (tmp_path / "program.py").write_text(LOOK)
    same([sys.executable, *WAYS[way]], cwd=tmp_path, env={"A": "a", "PYTHONPATH": str(tmp_path)}, input="abc",
         start_new_session=way == "-c",
         preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10**6, 10**6)))  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_they_end_as_ordinary_ones_do(how: str) -> None:
    same([sys.executable, "-c", f"import sys; {ENDS[how]}"])


def same(command: list[str], **options: Any) -> None:
    ordinary, forked = (run(command, capture_output=True, text=True, **options) for run in (subprocess.run, warm.run))
    assert (forked.returncode, forked.stdout) == (ordinary.returncode, ordinary.stdout), forked.stderr
    assert forked.stderr.splitlines()[-1:] == ordinary.stderr.splitlines()[-1:]


def test_they_have_torch_and_nothing_of_ours() -> None:
    program = "import sys; print('torch' in sys.modules, [name for name in sys.modules if name.startswith('blurify')])"
    assert warm.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "True []\n"


def test_they_are_children_that_can_be_killed() -> None:
    program = "import os, time; print(os.getppid(), flush=True); time.sleep(1000)"
    with warm.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and int(process.stdout.readline()) == os.getpid()
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_files_that_are_passed_on_keep_their_numbers() -> None:
    read, write = os.pipe()
    program = f"import os; os.write({write}, b'x')"
    try:
        for start in (subprocess.Popen, warm.Popen):
            with start([sys.executable, "-c", program], pass_fds=[write]) as process:
                assert process.wait() == 0 and os.read(read, 10) == b"x"
    finally:
        os.close(read)
        os.close(write)
