"""What every test runs under: one thread a process, plain terminals, the same examples every time."""

import atexit
import gc
import os
import shutil
import tempfile

# xdist runs one process a core, so a process takes one thread; subprocesses of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# CI services set these, and rich and typer then colour what tests read.
for variable in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "CLICOLOR_FORCE"):
    os.environ.pop(variable, None)
# What is kept of measurements is kept for no other run; each process of xdist has its own.
os.environ["BLURIFY_CACHE"] = tempfile.mkdtemp(prefix="blurify-tests-")
atexit.register(shutil.rmtree, os.environ["BLURIFY_CACHE"], ignore_errors=True)

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "blurify",
    deadline=None,  # the first call of an op is slow on a busy machine
    derandomize=True,  # a red run is red again
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# For a longer search than CI's: BLURIFY_HYPOTHESIS=default make test
settings.load_profile(os.environ.get("BLURIFY_HYPOTHESIS", "blurify"))


def pytest_collection_finish() -> None:
    """Of all that is imported nothing becomes garbage: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
