"""New Python processes that need not import torch again.

A test that starts `sys.executable` pays some five seconds for importing torch and timm before anything happens. Here
one process a session imports them (other people's packages: nothing of blurify, nothing of the tests) and waits, and
`Popen` forks from it. What comes out is a process like any other: a child of the test's own process, with the
arguments, environment, directory, files and signals that were asked for, which runs its program as `__main__` and ends
as Python ends. Processes that it starts in turn are forked from itself.

Not for tests about what is imported, about hash seeds, or about all the memory of a process. Where there is no Linux,
ordinary processes are started.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import traceback
import types
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "safetensors.torch", "PIL.Image", "typer", "rich.progress"),
    "typer._adapters",  # which typer imports when it first reads a command line
)
_Ordinary = subprocess.Popen
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_MOST = 1 << 20  # bytes of one request
_BEYOND = 700  # no file that is passed on has such a number


class Program(NamedTuple):
    """What a new process is to be.

    Attributes:
        arguments: behind the interpreter's own name: `-c TEXT ...`, `-m MODULE ...` or `FILE ...`, after `-P` or not.
        keep: the numbers of the files that are passed on, besides 0, 1 and 2.
        first: called before anything else; importable by its name.
    """

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    keep: tuple[int, ...]
    session: bool
    first: Any


class Popen(_Ordinary):
    """`subprocess.Popen`, but what it starts with `sys.executable` is forked from a process that has imported torch."""

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(_Ordinary._execute_child).bind(self, *given).arguments
        program = _program(asked) if sys.platform == "linux" else None
        if program is None:
            super()._execute_child(*given)
            return
        files = [asked[name] if asked[name] != -1 else number
                 for number, name in enumerate(("p2cread", "c2pwrite", "errwrite"))]  # fmt: skip
        try:
            self.pid = self._forked(program, [*files, *program.keep])
            self._child_created = True
        finally:
            self._close_pipe_fds(*(asked[name] for name in _PIPES))

    def _forked(self, program: Program, files: list[int]) -> int:
        return _server().start(program, files)


class _ChildsPopen(Popen):
    """In a process that was forked: what it starts is forked from itself."""

    def _forked(self, program: Program, files: list[int]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            _run_and_end(program, files, write)
        os.close(write)
        os.read(read, 1)
        os.close(read)
        return pid


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run`."""
    before, subprocess.Popen = subprocess.Popen, Popen  # type: ignore[misc]
    try:
        return subprocess.run([*map(str, command)], **options)
    finally:
        subprocess.Popen = before  # type: ignore[misc]


def __getattr__(name: str) -> Any:
    """All else as there: a test may put this module in the place of `subprocess` in another."""
    return getattr(subprocess, name)


def _program(asked: dict[str, Any]) -> Program | None:
    """What `Popen` was asked for; None where that is no Python program, or started in a way that is not done here."""
    arguments = [os.fsdecode(one) for one in asked["args"]] if not isinstance(asked["args"], (str, bytes)) else []
    if asked["shell"] or not arguments or arguments[0] != sys.executable or not asked["close_fds"]:
        return None
    environment = dict(os.environ if asked["env"] is None else asked["env"])
    folder = None if asked["cwd"] is None else os.fspath(asked["cwd"])
    keep = tuple(map(int, asked["pass_fds"]))
    first = asked["preexec_fn"]
    return Program(arguments[1:], environment, folder or os.getcwd(), keep, asked["start_new_session"], first)


class _Server:
    """The process that has imported everything, as the test's own process sees it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # What it forks is left behind at once, and becomes a child of this process.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with theirs:
            self.process = _Ordinary(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment,
            )  # fmt: skip

    def start(self, program: Program, files: list[int]) -> int:
        # What is called first may be found on the program's own import path only.
        request = tuple(program._replace(first=pickle.dumps(program.first)))
        socket.send_fds(self.channel, [pickle.dumps(request)], files)
        answer = self.channel.recv(100)
        if not answer:
            raise RuntimeError("the process that new ones are forked from has ended")
        return int(answer)


_the_server: _Server | None = None


def _server() -> _Server:
    global _the_server
    if _the_server is None or _the_server.owner != os.getpid():
        _the_server = _Server()
    return _the_server


# --- in the process that waits


def _wait(channel: socket.socket) -> tuple[bytes, list[int], int]:
    """Fork a process for each request. This returns in the new ones only."""
    while True:
        data, files, _, _ = socket.recv_fds(channel, _MOST, 64)
        if not data:
            os._exit(0)
        read, write = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            pid = os.fork()
            if pid:
                os.write(write, str(pid).encode())
                os._exit(0)
            while os.getppid() == between:
                os.sched_yield()
            return data, files, write
        os.close(write)
        os.waitpid(between, 0)
        pid = int(os.read(read, 100))
        os.read(read, 1)  # until it is in a session of its own
        channel.send(str(pid).encode())
        for file in (read, *files):
            os.close(file)


def _begin(program: Program, files: list[int], begun: int) -> None:
    """Make this process what was asked for; `begun` is closed when others may know of it."""
    installed = [entry for entry in sys.path if entry]
    if program.session:
        os.setsid()
    os.close(begun)
    import fcntl  # not on Windows

    high = [fcntl.fcntl(file, fcntl.F_DUPFD, _BEYOND) for file in files]
    for file, number in zip(high, (0, 1, 2, *program.keep), strict=True):
        os.dup2(file, number)
    last = 2
    for number in (*sorted(program.keep), os.sysconf("SC_OPEN_MAX")):
        os.closerange(last + 1, number)
        last = number
    os.chdir(program.folder)
    os.environ.clear()
    os.environ.update(program.environment)
    more = [entry for entry in program.environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [*_own_path(program.arguments), *more, *installed]
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    subprocess.Popen = _ChildsPopen  # type: ignore[misc]
    first = pickle.loads(program.first) if isinstance(program.first, bytes) else program.first
    if first is not None:
        first()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as Python does when it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _own_path(arguments: list[str]) -> list[str]:
    """What comes first on a program's import path."""
    if arguments[0] == "-P":
        return []
    return [{"-c": "", "-m": os.getcwd()}.get(arguments[0], os.path.dirname(os.path.abspath(arguments[0])))]


def _run(arguments: list[str]) -> None:
    """Run a program as the interpreter would."""
    how, *rest = arguments[1:] if arguments[0] == "-P" else arguments
    if how == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if how == "-c":
        text, *rest = rest
    else:
        with open(how, "rb") as file:
            text = file.read()
        main.__file__ = how
    sys.argv[:] = [how, *rest]
    exec(compile(text, "<string>" if how == "-c" else how, "exec"), main.__dict__)


def _run_and_end(program: Program, files: list[int], begun: int) -> NoReturn:
    """The same in the midst of another program, none of whose `finally` may run."""
    code: Any = 99
    try:
        gc.freeze()
        _begin(program, files, begun)
        _run(program.arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    for package in PACKAGES:
        with contextlib.suppress(ImportError):  # of another release
            importlib.import_module(package)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a new process ends silently until it runs
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # its pages are shared for as long as nothing writes to them
    request, passed, telling = _wait(socket.socket(fileno=int(sys.argv[1])))
    asked = Program(*pickle.loads(request))
    _begin(asked, passed, telling)
    _run(asked.arguments)
