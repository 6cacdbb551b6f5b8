"""The zoo on a Ray cluster: what is done there is what is done here, also where nodes are lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from blurify import zoo
from blurify.zoo.settings import Settings
from tests.zoo.object_store import left_in, object_store
from tests.zoo.test_zoo import alive

pytestmark = [
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: it has no wheel for this Python or system"
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="Ray's clusters of several nodes are for Linux and macOS"),
]

MODELS = "python:tests.zoo.models"
ROOT = Path(__file__).parents[2]
# Every process of a node is a Python of its own: those that only watch are left out.
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
WITHOUT_EXTRAS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # no token in the user's home
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # else they starve where the machine has other things to do
}


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with object_store() as files:
        yield files


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `models.waits` looks into, on all nodes."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def cluster(gate: Path, store: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head with one CPU. Its processes, and so the workers, have this environment."""
    from ray.cluster_utils import Cluster

    with mock.patch.dict(os.environ, {**WITHOUT_EXTRAS, "BLURIFY_TEST_GATE": str(gate)}):
        logging.getLogger("ray").setLevel(logging.ERROR)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture(autouse=True)
def closed(gate: Path) -> None:
    for path in gate.iterdir():
        path.unlink()


def wait_until(true: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def notes(gate: Path) -> list[str]:
    """The widths of the models that were begun, each as often as there were processes that began it."""
    return sorted(path.name.partition("-")[0] for path in gate.glob("*-*"))


def test_a_lost_node_costs_no_model(
    cluster: Any, store: Any, gate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes are at work, one is killed: the end is that of an undisturbed run on one machine."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)  # Ray's nodes look where the run is, too: here they find only what they are sent
    specs = [f"{MODELS}:waits?width={width}" for width in range(2, 6)] + [f"{MODELS}:broken"]
    second = cluster.add_node(**NODE)
    lost = False
    began: list[str] = []
    finished: list[str] = []

    def kill_one(progress: zoo.Progress) -> None:
        nonlocal lost
        began.extend(set(progress.running) - set(began))
        if progress.finished is not None:
            finished.append(progress.finished["model"])
        if not lost and len(notes(gate)) == 2:
            lost = True
            assert len(set(notes(gate))) == 2  # one a node
            workers = [int(path.name.partition("-")[2]) for path in gate.glob("*-*")]
            cluster.remove_node(second, allow_graceful=False)
            until = time.monotonic() + 60  # its worker ends a little later than it, and must not go on before that
            while all(map(alive, workers)) and time.monotonic() < until:
                time.sleep(0.05)
            (gate / "open").touch()

    key = f"bucket/{tmp_path.name}"
    settings = Settings(pretrained=False, engine="ray", address=cluster.address, jobs=None)
    summary = zoo.run(specs, f"s3://{key}", settings, watch=kill_one)
    assert lost and sorted(finished) == sorted(began) == sorted(specs)
    assert [record["model"] for record in summary.failed] == [f"{MODELS}:broken"]
    left = left_in(Path(key), store)
    assert len(left["journal"]) == len(left["summary"]) == len(specs) and len(left["files"]) == 4
    # What the lost node was doing was begun twice. Nodes ran what they were sent, not what is installed there.
    assert set(notes(gate)) == set("2345") and len(notes(gate)) == 5
    assert all(path.read_text().count("_ray_pkg_") == 2 for path in gate.glob("*-*"))

    with mock.patch.dict(os.environ, {"BLURIFY_TEST_GATE": str(gate)}):
        zoo.run(specs, tmp_path / "here", Settings(pretrained=False))
    assert left == left_in(tmp_path / "here")


def test_a_stopped_run_leaves_its_journal_whole(cluster: Any, gate: Path, tmp_path: Path) -> None:
    specs = [f"{MODELS}:tiny", f"{MODELS}:waits"]
    command = [sys.executable, "-m", "blurify", "zoo", *specs, "-o", str(tmp_path), "--random", "--engine", "ray"]
    running = subprocess.Popen(
        [*command, "--engine-address", cluster.address],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: running.poll() is not None or notes(gate) != [])
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 143 and error.count("\n") <= 1, error
    journal = (tmp_path / "journal.jsonl").read_bytes()
    assert [json.loads(line)["record"]["model"] for line in journal.splitlines()] == specs[:1]
    assert [record["model"] for record in left_in(tmp_path)["summary"]] == specs[:1]
    # Either engine goes on where the other was stopped.
    (gate / "open").touch()
    told: list[zoo.Progress] = []
    with mock.patch.dict(os.environ, {"BLURIFY_TEST_GATE": str(gate)}):
        assert zoo.run(specs, tmp_path, Settings(pretrained=False), watch=told.append).failed == ()
    assert [progress.finished["model"] for progress in told if progress.finished] == specs[1:]
