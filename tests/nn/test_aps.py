"""Adaptive polyphase sampling against the slow, obvious formula, and its promise for circular shifts."""

from __future__ import annotations

import copy
import io
import itertools
import threading

import pytest
import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.nn import ApsPool1d, ApsPool2d, ApsPool3d, BlurPool1d, BlurPool2d, BlurPool3d, MaxBlurPool2d
from blurify.nn.aps import SharedPhase

APS = (ApsPool1d, ApsPool2d, ApsPool3d)
BLURS = (BlurPool1d, BlurPool2d, BlurPool3d)
CASES = [((2,), (12,)), ((3,), (12,)), ((2, 2), (8, 12)), ((1, 2), (5, 8)), ((4, 3), (8, 9)), ((2, 1, 2), (4, 3, 6))]


def aps(stride: tuple[int, ...], size: int = 3, step: tuple[int, ...] | None = None, **more):
    rank = len(stride)
    dense = BLURS[rank - 1](1, size, factor=stride, padding="circular")
    return APS[rank - 1](step or stride, dense, **more)


def signal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn((3, 4, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(dense: Tensor, stride: tuple[int, ...], norm: int) -> tuple[Tensor, list[tuple[int, ...]]]:
    """For each sample of a batch, of all phases the first with the largest norm."""
    outs, chosen = [], []
    for one in dense:
        best = None
        for phase in itertools.product(*map(range, stride)):
            taken = one[(slice(None), *(slice(p, None, s) for p, s in zip(phase, stride, strict=True)))]
            power = sum(abs(v) ** norm for v in taken.flatten().tolist())
            if best is None or power > best[0] * (1 + 1e-12):
                best = power, phase, taken
        outs.append(best[2])
        chosen.append(best[1])
    return torch.stack(outs), chosen


@pytest.mark.parametrize(("stride", "shape"), CASES)
@pytest.mark.parametrize("norm", [1, 2])
def test_each_sample_takes_its_strongest_phase(stride, shape, norm):
    x = signal(shape)
    dense = BLURS[len(stride) - 1](1, 3, factor=stride, padding="circular")(x)
    expected, chosen = slow(dense, stride, norm)
    assert len(set(chosen)) > 1  # or one phase for the whole batch would do
    assert torch.equal(aps(stride, norm=norm)(x), expected)


@pytest.mark.parametrize(("stride", "shape"), CASES)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_circular_shift_of_the_input_shifts_the_output(stride, shape, size):
    x, pool = signal(shape), aps(stride, size)
    dims = tuple(range(2, x.dim()))
    y = pool(x)
    moves = list(itertools.product(*(range(n) for n in y.shape[2:])))
    for shift in itertools.product(*(range(0, n, max(n // 5, 1)) for n in shape)):
        z = pool(torch.roll(x, shift, dims))
        for one in range(len(x)):  # each by its own amount
            fits = [torch.roll(y[one], move, tuple(range(1, x.dim() - 1))) for move in moves]
            assert any(torch.allclose(z[one], fit, atol=1e-12) for fit in fits), shift


def test_of_equal_norms_the_first_phase_is_taken():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 1], x[0, 0, 1, 0] = 5, -5
    assert aps((2, 2), 1)(x).flatten().tolist() == [5, 0, 0, 0]


@pytest.mark.parametrize("shape", [(7, 9), (1, 1), (2, 5), (64, 3)])
def test_sizes_are_those_of_a_blurpool(shape):
    x = signal(shape)
    pool = aps((2, 3))
    assert pool(x).shape == BlurPool2d((2, 3))(x).shape
    assert pool(x[0]).shape == pool(x).shape[1:]


def follower_of(leader, role: str, step: tuple[int, ...] | None = None, **more):
    layer = aps(leader.stride, 1, step=step, role=role, groups=("leader",), **more)
    layer.add_module("phase0", leader.phase0)
    return layer


def test_a_follower_takes_the_leaders_phase_and_a_restorer_puts_the_samples_back():
    leader = aps((2, 3), 1)
    follows, back = follower_of(leader, "follows"), follower_of(leader, "restores", step=(1, 1))
    x, other = signal((8, 9)), signal((8, 9), 1)
    y = leader(x)
    _, chosen = slow(x, (2, 3), 2)
    expected = [o[:, p::2, q::3] for o, (p, q) in zip(other, chosen, strict=True)]
    assert torch.equal(follows(other), torch.stack(expected))
    up = torch.zeros_like(x)
    up[:, :, ::2, ::3] = y
    z = back(up)
    for one, (p, q) in enumerate(chosen):
        assert torch.equal(z[one, :, p::2, q::3], y[one])
        assert z[one].count_nonzero() == y[one].count_nonzero()


def test_with_stride_1_the_map_is_moved_so_that_the_phase_comes_first():
    x = signal((8, 12))
    assert torch.equal(aps((2, 2), 3, step=(1, 1))(x)[:, :, ::2, ::2], aps((2, 2), 3)(x))


def test_a_leader_that_ran_again_is_followed_as_many_runs_back_as_said():
    leader = aps((2, 2), 1)
    leader.phase0.depth = 2
    before, last = follower_of(leader, "follows", back=(1,)), follower_of(leader, "follows")
    x, other = signal((8, 8)), signal((8, 8), 2)
    first, second = leader(x), leader(other)
    assert torch.equal(before(x), first) and torch.equal(last(other), second)
    assert not torch.equal(last(x), first)


def test_a_follower_alone_says_what_is_missing():
    with pytest.raises(BlurifyError, match="ran before"):
        aps((2, 2), role="follows")(signal((4, 4)))
    leader = aps((2, 2))
    follows = follower_of(leader, "follows")
    leader(signal((4, 4)))
    with pytest.raises(BlurifyError, match="3 phases were chosen for a batch of 2"):
        follows(signal((4, 4))[:2])


def test_threads_do_not_see_each_others_phases():
    leader = aps((2, 2), 1)
    follows = follower_of(leader, "follows")
    inputs = [signal((16, 16), seed) for seed in range(4)]
    expected = []
    for x in inputs:
        leader(x)
        expected.append(follows(x.flip(-1)))
    wrong, barrier = [], threading.Barrier(4)

    def run(number: int) -> None:
        for _ in range(20):
            leader(inputs[number])
            barrier.wait()  # all have chosen before any follows
            if not torch.equal(follows(inputs[number].flip(-1)), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_and_pickles_keep_who_follows_whom_and_nothing_that_was_chosen():
    pair = torch.nn.ModuleList([aps((2, 2), 1)])
    pair.append(follower_of(pair[0], "follows"))
    x = signal((8, 8))
    y = pair[0](x)
    buffer = io.BytesIO()
    torch.save(pair, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(pair), torch.load(buffer, weights_only=False)):
        with pytest.raises(BlurifyError, match="ran before"):
            other[1](x)
        other[0](x)
        assert torch.equal(other[1](x), y)
        assert other[0].phase0 is other[1].phase0 is not pair[0].phase0
        assert not other.state_dict()


def test_threads_that_ended_leave_no_memory_behind():
    holder = SharedPhase()
    for number in range(300):
        holder._chosen[number] = (torch.zeros(1, 2),)
    holder.put(torch.ones(1, 2))
    assert len(holder._chosen) <= 64 and holder.get().eq(1).all()


def test_layout_precision_and_gradients():
    x = signal((8, 8)).float().requires_grad_()
    pool = aps((2, 2))
    y = pool(x)
    y.square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    dense = BlurPool2d(1, 3, factor=2, padding="circular")(reference)
    slow(dense, (2, 2), 2)[0].square().sum().backward()
    assert torch.allclose(x.grad, reference.grad, atol=1e-6)
    last = pool(x.detach().contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last, y) and last.is_contiguous(memory_format=torch.channels_last)
    assert pool(x.detach().bfloat16()).dtype == torch.bfloat16


def test_a_max_pool_in_front_gives_the_whole_period():
    for kernel, padding in ((2, 0), (3, 1), (3, 0)):
        pool = MaxBlurPool2d(kernel, 2, padding)
        pool.blurpool = aps((2, 2), 3)
        x = signal((8, 12))
        y = pool(x)
        assert y.shape == torch.nn.functional.max_pool2d(x, kernel, 2, padding).shape
        if y.shape[2:] == (4, 6):
            moved = pool(torch.roll(x, (2, 4), (2, 3)))
            assert torch.equal(moved, torch.roll(y, (1, 2), (2, 3)))
            odd = pool(torch.roll(x, (1, 1), (2, 3)))
            assert torch.allclose(odd.flatten(1).sort().values, y.flatten(1).sort().values)


def test_arguments_that_make_no_sense_are_refused():
    with pytest.raises(BlurifyError, match="stride 1"):
        ApsPool2d(2, BlurPool2d(2))
    with pytest.raises(BlurifyError, match="norm 3"):
        aps((2, 2), norm=3)
    with pytest.raises(BlurifyError, match="role"):
        aps((2, 2), role="guesses")
