"""Refitting layers: least squares against the closed formula, and errors that fall on pictures never seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import blurify
from blurify.graph.inputs import traced
from blurify.tuning.reading import layers_to_refit
from blurify.tuning.reconstruct import _Problem, reconstruct
from tests.tuning.networks import Small, pair, pictures


def _batches(start: int = 100, count: int = 4) -> list:
    return [((pictures(16, start + seed),), {}) for seed in range(count)]


@pytest.mark.parametrize("constant", [False, True])
def test_many_steps_are_the_closed_formula(constant):
    """w = w0 + (A'A + ridge)^-1 A'(y - A w0), written out with an unfolded matrix in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, bias=False).double()
    given = [pictures(4, seed).double() for seed in range(3)]
    wanted = [torch.randn(4, 4, 14, 14, dtype=torch.float64) + 5 for _ in given]
    problem = _Problem(lambda x, weight: F.conv2d(x, weight), given, wanted, 1, constant=constant)
    start = conv.weight.detach()
    found, before, after, offset = problem.solve(start, 1e-2, 200)

    matrix = torch.cat([F.unfold(x, 3).transpose(1, 2).reshape(-1, 27) for x in given])
    target = torch.cat([y.permute(0, 2, 3, 1).reshape(-1, 4) for y in wanted])
    centred = matrix - matrix.mean(0) if constant else matrix
    rest = target - matrix @ start.reshape(4, 27).T
    rest = rest - rest.mean(0) if constant else rest
    probe = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).double().reshape(4, 27)
    for channel in range(4):
        scale = (matrix @ probe[channel] - (matrix @ probe[channel]).mean() * constant).square().sum()
        ridge = 1e-2 * scale / probe[channel].square().sum()
        change = torch.linalg.solve(
            centred.T @ centred + ridge * torch.eye(27, dtype=torch.float64), centred.T @ rest[:, channel]
        )
        assert torch.allclose(found[channel].flatten(), start[channel].flatten() + change, atol=1e-6)
    spread = (target - target.mean(0)).square().sum()
    residual = target - matrix @ found.reshape(4, 27).T
    if constant:
        assert torch.allclose(offset, residual.mean(0), atol=1e-6)
        residual = residual - residual.mean(0)
    assert after == pytest.approx(float(residual.square().sum() / spread), rel=1e-6)
    assert after < before


def test_the_layers_are_those_that_make_and_read_blurred_features():
    _, converted = pair()
    found = layers_to_refit(blurify.plan_of(converted), traced(converted, pictures(1)))
    assert [(layer.path, layer.blur is not None, layer.norm) for layer in found] == [
        ("down", True, "norm2"), ("mix", False, "norm3"),
    ]  # fmt: skip


def test_features_come_nearer_to_the_originals_on_other_pictures():
    original, converted = pair()
    held = [((pictures(32, 999),), {})]

    def error(model: nn.Module) -> float:
        found = []
        for one in (original, model):
            handle = one.norm3.register_forward_hook(lambda _, __, out, found=found: found.append(out.clone()))
            with torch.no_grad():
                one(*held[0][0])
            handle.remove()
        return float((found[0] - found[1]).square().sum() / (found[0] - found[0].mean()).square().sum())

    before = error(converted)
    done = reconstruct(original, converted, _batches())
    assert [layer.path for layer in done.layers] == ["down", "mix"]
    assert all(layer.after < layer.before for layer in done.layers)
    assert error(converted) < 0.95 * before


def test_the_identity_filter_changes_next_to_nothing():
    original, converted = pair(filter_size=1)
    reconstruct(original, converted, _batches())
    for name, value in converted.state_dict().items():
        assert torch.allclose(value, original.state_dict()[name], atol=1e-4), name


def test_a_constant_goes_into_the_bias_where_no_norm_follows():
    original, converted = pair(Small(norms=False))
    done = reconstruct(original, converted, _batches())
    assert {layer.path for layer in done.layers} == {"down", "mix"}
    means = []
    for model in (original, converted):
        handle = model.mix.register_forward_hook(lambda _, __, out: means.append(out.mean((0, 2, 3))))
        with torch.no_grad():
            model(torch.cat([args[0] for args, _ in _batches()]))
        handle.remove()
    assert torch.allclose(means[0], means[1], atol=1e-4)  # free of a constant, so nothing of it is left
    assert not torch.equal(original.mix.bias, converted.mix.bias)


def test_standardised_weights_and_frozen_ones_are_left_and_named():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight / self.weight.std()
            return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    model = Small()
    model.mix = Standardised(12, 12, 1, bias=False)
    original, converted = pair(model)
    converted.down.weight.requires_grad_(False)
    before = converted.mix.weight.clone()
    done = reconstruct(original, converted, _batches())
    assert dict(done.left) == {"down": "it is frozen", "mix": "it is not linear in its weight"}
    assert torch.equal(before, converted.mix.weight)
    assert "mix is left" in done.line()


def test_depthwise_and_one_dimensional_networks():
    class Audio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand = nn.Conv1d(1, 8, 7, padding=3)
            self.down = nn.Conv1d(8, 8, 9, stride=4, padding=4, groups=8)
            self.norm = nn.BatchNorm1d(8)
            self.read = nn.Conv1d(8, 4, 1)

        def forward(self, x):
            return self.read(self.norm(self.down(self.expand(x).relu())).relu())

    torch.manual_seed(0)
    model = Audio().train()
    for seed in range(20):
        model(torch.randn(8, 1, 256, generator=torch.Generator().manual_seed(seed)))
    original = model.eval()
    converted = blurify.convert(original, example_inputs=torch.zeros(1, 1, 256))
    batches = [((torch.randn(8, 1, 256).cumsum(-1) / 10,), {}) for _ in range(3)]
    done = reconstruct(original, converted, batches)
    assert [layer.path for layer in done.layers] == ["down", "read"]
    assert all(layer.after <= layer.before for layer in done.layers)
