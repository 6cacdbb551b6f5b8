"""The audit of other libraries than timm and torchvision: `make wild-check`, or `python -m benchmarks.wild_check`.

Models of a dozen libraries (benchmarks/wild/) are built with random weights from small configurations. Each is, in a
process of its own with limits of time and memory: inspected, without inputs (can they be found out?) and with them;
whatever has a site to convert is converted and proven (identity check, same keys and bits, no site left). What fails
is listed with its cause, by the step at which it failed: 'build' and 'forward' are the library's own with this torch,
all others are blurify's.

Libraries that are not there are listed as such: `make wild-check` installs them into an environment of their own.
Results are kept as they come (--work), so that a run that was stopped goes on where it was; --fresh starts over. Writes
benchmarks/wild.json (totals, causes), benchmarks/wild.csv (one row a model) and docs/wild.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".cache" / "wild-check"
PAGE = HERE.parent / "docs" / "wild.md"
OURS = ("guess", "inspect", "convert")
"""The steps at which a failure is blurify's, not the library's."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("libraries", nargs="*", help="names of libraries (default: all)")
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds a model (default 240)")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB a model (default 6)")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--again", action="store_true", help="do those again that failed")
    parser.add_argument("--report", action="store_true", help="run nothing, only write what earlier runs found")
    parser.add_argument("--packages", action="store_true", help="only print what has to be installed")
    parser.add_argument("--work", type=Path, default=WORK, help="where results are kept (default .cache/wild-check)")
    parser.add_argument("--out", type=Path, default=None, help="where wild.json and wild.csv go")
    parser.add_argument("--library", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from benchmarks.wild.catalog import libraries

    known = {library.name: library for library in libraries()}
    if options.packages:
        print("\n".join(dict.fromkeys(package for library in known.values() for package in library.packages)))
        return 0
    if unknown := [name for name in options.libraries if name not in known]:
        parser.error(f"no such library: {', '.join(unknown)}; there are {', '.join(known)}")
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.library:
        return one_library(known[options.library], options)
    for name in () if options.report else options.libraries or known:
        command = [sys.executable, "-m", "benchmarks.wild_check", "--library", name, "--work", str(options.work)]
        command += ["--timeout", str(options.timeout), "--memory", str(options.memory), "--only", options.only]
        command += ["--again"] * options.again
        subprocess.run(command, cwd=HERE.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    from benchmarks import wild_page

    rows = [scrubbed(row) for name in known for row in read(options.work / f"{name}.jsonl").values()]
    if options.out is not None or not (options.libraries or options.only):
        out = (options.out or HERE).resolve()
        out.mkdir(parents=True, exist_ok=True)
        data = wild_page.report(rows, versions(known))
        (out / "wild.json").write_text(json.dumps(data, indent=1) + "\n")
        (out / "wild.csv").write_text(wild_page.to_csv(rows))
        (PAGE if out == HERE else out / "wild.md").write_text(wild_page.page(data, rows))
    bad = [row for row in rows if row["status"] == "failed" and row["stage"] in OURS]
    print(
        f"{len(rows)} models, {sum(r['status'] == 'converted' for r in rows)} converted, {len(bad)} failed in blurify"
    )
    return 1 if bad else 0


def scrubbed(row: dict[str, Any]) -> dict[str, Any]:
    """A record whose messages name no path or address: those are of one machine, and change nothing."""

    def plain(text: str) -> str:
        text = re.sub(r"https?://\S+", "(an address)", text)
        text = re.sub(r"\bhost='[^']*'?", "host=(a name)", text)
        return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+[\w.+-]*", "(a path)", text)

    return {
        key: plain(value) if key in ("error", "guess_error") and isinstance(value, str) else value
        for key, value in row.items()
    }


def versions(known: Any) -> dict[str, str]:
    import blurify

    found = {"python": platform.python_version(), "blurify": blurify.__version__}
    for name in dict.fromkeys(["torch", *(library.packages[0] for library in known.values())]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """What is known of a library's models: the last line of each counts."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["model"]: row for row in rows}


# --- one library: a process that imports it once, and is copied for each model


def one_library(library: Any, options: argparse.Namespace) -> int:
    journal = options.work / f"{library.name}.jsonl"
    done = read(journal)
    try:
        models = list(library.models())
    except Exception as error:
        print(f"{library.name}: {type(error).__name__}: {error}", flush=True)
        return 1
    import blurify.conversion  # noqa: F401 (once, for all copies)

    for model in models:
        name = f"{library.name}/{model.name}"
        if options.only not in name or (name in done and not (options.again and done[name]["status"] == "failed")):
            continue
        row = limited(name, library.name, model, options)
        with open(journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        line = row.get("error") or f"{row['converted']} of {row['sites']} sites"
        print(f"{name}: {row['status']} {row['stage']}: {line} ({row['seconds']} s)", flush=True)
    return 0


def limited(name: str, library: str, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The record of one model, made by a copy of this process that is ended where it takes too long or too much."""
    path = options.work / f"{os.getpid()}.part"
    path.unlink(missing_ok=True)
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        audit(name, model, path)
        os._exit(0)
    ended = ""
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.05)
        if not ended and time.monotonic() - begin > options.timeout:
            ended = f"it takes longer than {options.timeout:.0f} s"
        elif not ended and resident(child) > options.memory:
            ended = f"it needs more than {options.memory:.0f} GiB"
        if ended:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
    record: dict[str, Any] = {"model": name, "library": library, "status": "failed", "stage": "build"}
    if path.is_file():
        lines = path.read_text().splitlines()
        record |= json.loads(lines[-1]) if lines else {}
        path.unlink()
    if record["status"] == "failed" and not record.get("error"):
        record["error"] = ended or "the process died"
    record["seconds"] = round(time.monotonic() - begin, 1)
    return record


def resident(process: int) -> float:
    """GiB of memory that a process holds."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def audit(name: str, model: Any, path: Path) -> None:
    """Do one model, and write down after each step what is known."""
    record: dict[str, Any] = {"status": "failed", "stage": "build"}

    def say(**more: Any) -> None:
        record.update(more)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    try:
        steps(name, model, say)
    except BaseException as error:
        from blurify.errors import BlurifyError

        text = " ".join(str(error).split())[:400]
        say(
            error=text if isinstance(error, BlurifyError) and text else f"{type(error).__name__}: {text}",
            trace=""
            if isinstance(error, BlurifyError)
            else " < ".join(
                f"{Path(frame.filename).name}:{frame.lineno}"
                for frame in reversed(traceback.extract_tb(error.__traceback__))
            )[:300],
        )


def steps(name: str, model: Any, say: Any) -> None:
    import warnings

    import torch

    import blurify
    from blurify.zoo.task import described, reproducible

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with reproducible(name):
        module = model.build().eval()
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"it builds a {type(module).__name__}, no module")
        inputs = model.inputs() if model.inputs is not None else None
    say(stage="forward", parameters=sum(p.numel() for p in module.parameters()))
    if inputs is not None:
        from blurify.graph.inputs import given_inputs

        args, kwargs = given_inputs(inputs)
        with torch.no_grad(), reproducible(name):
            module(*args, **kwargs)
        inputs = model.inputs()  # a forward may have written to the lists that it was given
    say(stage="guess")
    from blurify.conversion import proof_of
    from blurify.graph.inputs import traced
    from blurify.surgery.carrying import plan_of

    try:
        traced(module)
        say(guessed=True)
    except Exception as error:
        say(guessed=False, guess_error=f"{type(error).__name__}: {error}"[:300])
        if inputs is None:
            raise
    say(stage="convert")
    try:
        with reproducible(name):
            converted = blurify.convert(module, example_inputs=inputs)
    except Exception:
        say(stage="inspect")  # was it that already?
        plan = blurify.inspect(module, inputs)
        say(stage="convert", **described(plan))
        raise
    plan = plan_of(converted) or blurify.inspect(module, inputs)
    left = {site.name: site.reason[:200] for site in plan.skipped if site.rule == "source"}
    say(**described(plan), names_left=left)
    if not plan.converted:
        say(stage="", status="inspected")
        return
    proof = proof_of(converted)
    assert proof is not None
    say(
        stage="", status="converted", identity_error=proof.identity_error, identity_dtype=proof.dtype,
        sites_compared=proof.sites_compared, sites_shown=proof.sites_shown, sites_left=proof.sites_left,
        tensors_equal=proof.tensors_equal,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
