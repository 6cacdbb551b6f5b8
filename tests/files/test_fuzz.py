"""A sample of the hostile files of `make fuzz`: each ends in one line and exit code 2, and does nothing else."""

import sys
from pathlib import Path

import pytest

HOSTILE = Path(__file__).parents[1] / "hostile"
sys.path.insert(0, str(HOSTILE.parent))
from hostile import kinds, run  # noqa: E402

from tests import warm  # noqa: E402

SAMPLE = 200
CHUNKS = 2


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_hostile_files(chunk):
    begin = run.SEEDS + chunk * SAMPLE // CHUNKS  # others than those of `make fuzz`
    seeds = f"{begin}:{begin + SAMPLE // CHUNKS}"
    done = warm.run([sys.executable, HOSTILE / "run.py", "--seeds", seeds, "-j", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{SAMPLE // CHUNKS} files, 0 failures" in done.stdout


def test_a_file_is_made_again_from_its_number(tmp_path):
    for seed in range(len(kinds.ORDER)):
        assert kinds.make(seed, tmp_path) == kinds.make(seed, tmp_path)
    assert (
        len({kinds.make(seed, tmp_path)[1].content for seed in range(0, 40 * len(kinds.ORDER), len(kinds.ORDER))}) > 30
    )


BAD = [
    ("(marker / 'ran').touch(); return 2", "code of the file ran"),
    ("print('Traceback (most recent call last)'); return 2", "a traceback"),
    ("return 1", "exit code 1"),
    ("os.abort()", "exit code -6"),
    ("return 2", "0 lines"),
    ("(out / 'y.pt.tmp').touch(); print('error: x', file=sys.stderr); return 2", "1 lines, 1 files left"),
    ("(here / 'x').touch(); print('error: x', file=sys.stderr); return 2", "stray files"),
    ("path.write_bytes(b'x'); print('error: x', file=sys.stderr); return 2", "the file was changed"),
    ("bytearray(6 * 2**30); return 2", "a traceback"),
    ("time.sleep(1000); return 2", "hung"),
    ("print('error: x', file=sys.stderr); return 2", ""),
]


def test_the_harness_sees_what_must_not_be(tmp_path):
    script = f"""
import os, sys, time
sys.path.insert(0, {str(HOSTILE.parent)!r})
from hostile import run
from pathlib import Path
"""
    for program, _ in BAD:
        script += f"""
def bad(arguments):
    if arguments[1] == os.devnull:
        return 2  # only for what it imports
    path = Path(arguments[1]); folder = path.parents[1]
    marker, out, here = folder / "marker", folder / "out", folder / "here"
    {program}
run.blurify_main, run.SECONDS = bad, {0.5 if "sleep" in program else 300}
(result,) = run.run([11])
print("problem:", result.problem)
"""
    done = warm.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    found = [line.removeprefix("problem:").strip() for line in done.stdout.splitlines() if line.startswith("problem:")]
    assert len(found) == len(BAD), done
    for line, (program, problem) in zip(found, BAD, strict=True):
        assert line.startswith(problem) and bool(line) == bool(problem), (program, line)
