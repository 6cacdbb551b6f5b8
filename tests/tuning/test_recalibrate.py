"""Batch norms are moved by what the blurs changed: normalised features are distributed as in the original."""

from __future__ import annotations

import torch
from torch import nn

import blurify
from blurify.tuning.recalibrate import recalibrate
from blurify.tuning.statistics import Tally
from tests.tuning.networks import Small, pair, pictures


def _batches(model: nn.Module | None = None) -> list:
    return [((pictures(16, 100 + seed),), {}) for seed in range(4)]


def _normalised(model: nn.Module, path: str, batches: list) -> torch.Tensor:
    """What a norm gives over all batches: (N, C, ...)."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, out: found.append(out.clone()))
    with torch.no_grad():
        for args, kwargs in batches:
            model(*args, **kwargs)
    handle.remove()
    return torch.cat(found)


def test_the_tally_is_the_moments_of_everything_at_once():
    parts = [pictures(count, count) * 3 + 100 for count in (1, 7, 4)]
    tally = Tally()
    for part in parts:
        tally.add(part)
    whole = torch.cat(parts).double()
    assert torch.allclose(tally.moments.mean, whole.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(tally.moments.variance, whole.var((0, 2, 3), correction=0), rtol=1e-4)


def test_normalised_features_have_the_originals_mean_and_variance():
    original, converted = pair()
    batches = _batches()
    done = recalibrate(original, converted, batches)
    assert done.norms == 3
    assert done.moved == ("norm3",)  # the only one that reads blurred features
    for path in ("norm1", "norm3"):  # norm2 sees a dense convolution: the same features at more places
        wanted, found = (_normalised(model, path, batches) for model in (original, converted))
        assert torch.allclose(wanted.mean((0, 2, 3)), found.mean((0, 2, 3)), atol=1e-3)
        # (the epsilon of the norm, and the floor for dead channels)
        assert torch.allclose(wanted.std((0, 2, 3)), found.std((0, 2, 3)), rtol=2e-2)
    before = _normalised(blurify.convert(original, example_inputs=pictures(1)), "norm3", batches)
    assert not torch.allclose(before.std((0, 2, 3)), wanted.std((0, 2, 3)), rtol=5e-2), "the blur changed nothing"


def test_what_the_training_data_had_is_kept():
    """Norms that were trained on a hundred times the contrast of these pictures keep that, but for the blur's part."""
    original, converted = pair()
    for model in (original, converted):
        model.norm3.running_var.mul_(100)
    batches = _batches()
    recalibrate(original, converted, batches)
    share = converted.norm3.running_var / original.norm3.running_var
    assert bool((share > 0.2).all()), "estimated anew from the pictures at hand"


def test_the_identity_filter_moves_nothing():
    original, converted = pair(filter_size=1)
    before = {name: value.clone() for name, value in converted.state_dict().items()}
    assert recalibrate(original, converted, _batches()).moved == ()
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items())


def test_a_model_without_norms_is_said():
    original, converted = pair(Small(norms=False))
    assert "no batch norms" in recalibrate(original, converted, _batches()).line()


def test_frozen_norms_of_torchvision_are_moved_too():
    from torchvision.ops.misc import FrozenBatchNorm2d

    class Frozen(Small):
        pass

    original, _ = pair(Frozen())
    frozen = FrozenBatchNorm2d(12)
    frozen.load_state_dict({k: v for k, v in original.norm3.state_dict().items() if k != "num_batches_tracked"})
    original.norm3 = frozen
    converted = blurify.convert(original, example_inputs=pictures(1))
    assert recalibrate(original, converted, _batches()).moved == ("norm3",)
