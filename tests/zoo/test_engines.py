"""What an engine does with a cluster, on a cluster that does as it is told."""

from __future__ import annotations

import importlib.util
import queue
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm

import blurify
from blurify.cli import main
from blurify.errors import BlurifyError
from blurify.zoo.engines import ray as ray_engine
from blurify.zoo.engines import ray_driver
from blurify.zoo.task import Task

ROOT = Path(__file__).parents[2]


class Lost(Exception):
    """As ray.exceptions.RayError."""


class Raised(Exception):
    """As ray.exceptions.RayTaskError."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


Answer = Callable[[int, int], Any]


class Actor:
    def __init__(self, cluster: Cluster) -> None:
        self.node = SimpleNamespace(remote=lambda: cluster.ask(self, cluster.at_start))
        self.carry_out = SimpleNamespace(remote=lambda task: cluster.ask(self, lambda: cluster.done(task["model"])))


class Cluster:
    """Stands for the module `ray`. What it is asked is answered at the next `wait`, but by actors that have no room."""

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Raised)

    def __init__(self, answer: Answer, room: int = 2) -> None:
        self.answer, self.room = answer, room
        self.attempts: dict[str, int] = {}
        self.started = self.most = 0
        self.alive: list[Actor] = []

    def at_start(self) -> str:
        return "node"

    def done(self, model: str) -> Any:
        self.attempts[model] = self.attempts.get(model, 0) + 1
        return self.answer(int(model), self.attempts[model])

    def remote(self, post: type) -> Any:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self.start))

    def start(self, told: Any) -> Actor:
        self.started += 1
        self.alive.append(Actor(self))
        self.most = max(self.most, len(self.alive))
        return self.alive[-1]

    def ask(self, actor: Actor, what: Callable[[], Any]) -> Any:
        return actor, what

    def wait(self, asked: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [question for question in asked if question[0] in self.alive[: self.room]], []

    def get(self, question: Any) -> Any:
        found = question[1]()
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self, actor: Actor) -> None:
        self.alive.remove(actor)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.room), "memory": 4.0 * 2**30}


class Run:
    """The other end of the driver's pipe: some tasks, each given when it is asked for."""

    def __init__(self, tasks: int, retries: int = 2, jobs: int | None = None) -> None:
        node = {"timeout": 60.0, "memory": None, "storage": None, "token": ""}
        self.told = {"jobs": jobs, "retries": retries, "node": node}
        self.messages: deque[dict[str, Any] | None] = deque([{"tasks": tasks}])
        self.total, self.left = tasks, deque(range(tasks))
        self.records: dict[int, dict[str, Any]] = {}

    def hear(self, seconds: float) -> dict[str, Any] | None:
        if not self.messages:
            raise queue.Empty
        return self.messages.popleft()

    def say(self, message: dict[str, Any]) -> None:
        for _ in range(message.get("wants", 0)):
            number = self.left.popleft()  # it never asks for more than there are
            self.messages.append({"number": number, "task": {"model": str(number), "recipe": {}}})
        if "record" in message:
            assert message["number"] not in self.records  # each once
            self.records[message["number"]] = message["record"]
            if len(self.records) == self.total:
                self.messages.append(None)


def works(number: int) -> dict[str, Any]:
    return {"record": {"model": str(number), "status": "converted", "seconds": {}}, "seconds": 1.0}


def test_what_a_lost_node_did_is_done_again_but_not_for_ever() -> None:
    """Task n is lost n times."""
    cluster = Cluster(lambda number, attempt: Lost("its node has died") if attempt <= number else works(number))
    run = Run(5, retries=2)
    ray_driver.Driver(run, cluster).work()
    assert cluster.attempts == {"0": 1, "1": 2, "2": 3, "3": 3, "4": 3}
    assert [run.records[number]["status"] for number in range(5)] == ["converted"] * 3 + ["failed"] * 2
    for number in (3, 4):
        assert run.records[number]["model"] == str(number) and run.records[number]["stage"] == "worker"
        assert run.records[number]["error"] == (
            "the node that it ran on was lost 3 times (--retries 2), the last time node: its node has died"
        )
    assert cluster.alive == []


def test_there_are_as_many_posts_as_work_and_room() -> None:
    for room, jobs, tasks, wanted in ((2, None, 5, 2), (8, 3, 5, 3), (8, None, 4, 4)):
        cluster, run = Cluster(lambda number, attempt: works(number), room), Run(tasks, jobs=jobs)
        ray_driver.Driver(run, cluster).work()
        assert cluster.most == cluster.started == wanted and len(run.records) == tasks and cluster.alive == []


def test_a_cluster_that_cant_be_worked_on_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Cluster(lambda number, attempt: Raised(BlurifyError("the directory is another one here")))
    with pytest.raises(BlurifyError, match="on node node: the directory is another one here"):
        ray_driver.Driver(Run(3), refused).work()
    broken = Cluster(lambda number, attempt: works(number))
    monkeypatch.setattr(broken, "at_start", lambda: Lost("no such package"))
    with pytest.raises(BlurifyError, match="posts can't be started on the Ray cluster: no such package"):
        ray_driver.Driver(Run(3), broken).work()
    assert broken.started < 20
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(ray_driver, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    full = Cluster(lambda number, attempt: works(number), room=0)
    with pytest.raises(BlurifyError, match=r"no room for a worker for 300 s: it takes 1 CPU, and all nodes .* 0 CPUs"):
        ray_driver.Driver(Run(3), full).work()


def test_a_post_that_does_not_answer_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, run = Cluster(lambda number, attempt: works(number)), Run(1, retries=0)
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(ray_driver, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    wait = cluster.wait

    def silent(asked: list[Any], num_returns: int, timeout: float) -> Any:
        return [] if run.left == deque() else wait(asked, num_returns, timeout)[0], []

    monkeypatch.setattr(cluster, "wait", silent)
    ray_driver.Driver(run, cluster).work()
    assert run.records[0]["status"] == "failed" and "did not answer for" in run.records[0]["error"]


def test_nodes_are_sent_our_code_and_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alone.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    models = ("timm/resnet18", "python:tests.zoo.models:tiny", "python:tests.x:y", "python:alone:net", "python:timm:x",
              "python:nowhere:x", "python:json:x")  # fmt: skip
    sent = ray_engine.shipped([Task(model, {}) for model in models])
    assert sent == [str(Path(blurify.__file__).parent), str(tmp_path / "alone.py"), str(ROOT / "tests")]
    assert str(Path(timm.__file__).parent) not in sent  # installed: the nodes have it, or say so


def test_without_ray_nothing_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    assert main(["zoo", "timm/test_vit", "-o", str(tmp_path / "out"), "--random", "--engine", "ray"]) == 2
    assert "pip install 'blurify[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
