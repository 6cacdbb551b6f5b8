"""The teaching stage: resumed runs and several processes give the same weights as one run; what may learn does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.tuning.distil import behind_the_blurs, distil
from blurify.tuning.examples import Tensors
from blurify.tuning.keeping import Kept
from blurify.tuning.training import Step, Training
from tests import warm
from tests.tuning.networks import Small, pair, pictures

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def _taught(training: Training, *, original=None, converted=None, dtype=torch.float32, **options):
    if original is None:
        original, converted = (model.to(dtype) for model in pair())
    result = copy.deepcopy(converted)
    done = distil(original, result, Tensors(pictures(64, 5).to(dtype)), training, "classes", device=CPU, **options)
    return result, done


def _same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_learns_what_the_original_answers():
    original, converted = pair()
    training = Training(steps=120, batch_size=16, learning_rate=1e-2)
    result, done = _taught(training, original=original, converted=converted)
    held = pictures(256, 77)

    def divergence(model: nn.Module) -> float:
        with torch.no_grad():
            wanted, found = original(held).softmax(1), model(held).softmax(1)
        return float((wanted * (wanted.log() - found.log())).sum(1).mean())

    assert divergence(result) < 0.8 * divergence(converted)
    assert done.last_loss < done.first_loss


def test_only_what_is_behind_the_first_site_learns():
    original, converted = pair()
    names = behind_the_blurs(converted, ((pictures(1),), {}))
    assert set(names) == {name for name, _ in converted.named_parameters() if not name.startswith(("stem", "norm1"))}
    result, _ = _taught(Training(steps=3), original=original, converted=converted)
    for name, value in result.state_dict().items():
        fixed = name.startswith(("stem", "norm1")) or "running" in name or "num_batches" in name
        assert torch.equal(value, converted.state_dict()[name]) == fixed, name


def test_frozen_parameters_stay_and_are_counted():
    original, converted = pair()
    converted.mix.weight.requires_grad_(False)
    result, done = _taught(Training(steps=3), original=original, converted=converted)
    assert torch.equal(result.mix.weight, converted.mix.weight)
    assert done.frozen == 1
    assert "1 more are frozen" in done.line()
    assert not result.mix.weight.requires_grad
    assert result.down.weight.requires_grad
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BlurifyError, match="frozen"):
        _taught(Training(steps=3), original=original, converted=converted)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, accumulate):
    training = Training(steps=9, batch_size=8, accumulate=accumulate, learning_rate=3e-3)
    whole, _ = _taught(training)
    keep = tmp_path / "state"

    class Killed(Exception):
        pass

    def kill(step: Step) -> None:
        if step.step == 6:
            raise Killed

    with pytest.raises(Killed):
        _taught(training, kept=Kept(keep, steps=2), watch=kill)
    assert keep.exists()
    seen: list[int] = []
    resumed, done = _taught(training, kept=Kept(keep, steps=2), watch=lambda step: seen.append(step.step))
    assert seen == [5, 6, 7, 8, 9]  # the state after four steps was kept
    assert done.steps == 9
    assert _same(whole, resumed)


def test_a_state_of_other_settings_is_refused_by_name(tmp_path):
    keep = tmp_path / "state"
    Kept(keep, {"seed": 1}).write("distil", {"step": 3})
    assert Kept(keep, {"seed": 1}).read("distil") == {"step": 3}
    assert Kept(keep, {"seed": 1}).read("refine") is None
    with pytest.raises(BlurifyError, match="other settings"):
        Kept(keep, {"seed": 2}).read("distil")
    keep.write_bytes(b"damaged")
    with pytest.raises(BlurifyError, match="delete it"):
        Kept(keep, {"seed": 1}).found()


def test_accumulated_batches_are_one_large_batch():
    large, _ = _taught(Training(steps=4, batch_size=16, learning_rate=3e-3))
    small, _ = _taught(Training(steps=4, batch_size=8, accumulate=2, learning_rate=3e-3))
    for name, value in large.state_dict().items():
        assert torch.allclose(value.float(), small.state_dict()[name].float(), rtol=1e-3, atol=1e-4), name


_WORKER = """
import sys, torch
torch.set_num_threads(1)
from tests.tuning.test_distil import _taught
from blurify.tuning.training import Training
from accelerate import PartialState
result, _ = _taught(Training(steps=4, batch_size=8, learning_rate=3e-3), dtype=torch.float64)
state = PartialState()
assert state.num_processes == 2, state
torch.save(result.state_dict(), f"{sys.argv[1]}.{state.process_index}")
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    # In double precision: Adam divides by gradients that may be rounding errors.
    one, _ = _taught(Training(steps=4, batch_size=16, learning_rate=3e-3), dtype=torch.float64)
    (tmp_path / "worker.py").write_text(_WORKER)
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    workers = [
        warm.Popen(
            [sys.executable, tmp_path / "worker.py", tmp_path / "result"],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        _, errors = worker.communicate(timeout=900)
        assert worker.returncode == 0, errors[-3000:]
    both = [torch.load(f"{tmp_path / 'result'}.{rank}", weights_only=True) for rank in range(2)]
    for name, value in one.state_dict().items():
        assert torch.equal(both[0][name], both[1][name]), name
        assert torch.allclose(value.double(), both[0][name].double(), rtol=1e-6, atol=1e-9), name


def test_minutes_set_the_number_of_steps():
    _, done = _taught(Training(steps=None, minutes=0.02, batch_size=4))
    assert done.steps >= 6


def test_a_loss_that_is_no_number_ends_the_run():
    original, converted = pair()
    with torch.no_grad():
        converted.head.bias.fill_(float("nan"))
    _, done = _taught(Training(steps=50), original=original, converted=converted)
    assert done.steps == 3
    assert "not finite" in done.line()


def test_the_memory_format_is_as_it_was():
    original, converted = pair(Small())
    result, _ = _taught(Training(steps=2), original=original, converted=converted)
    assert all(parameter.is_contiguous() for parameter in (*result.parameters(), *original.parameters()))
    assert blurify.check(result)
