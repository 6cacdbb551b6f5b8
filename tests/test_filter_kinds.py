"""Whole conversions with each kind of filter: sizes, proof, files, revert; and causal ones on streams."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError, VerificationError
from blurify.nn.fourier import FourierPool
from blurify.proof.averages import check_averages
from blurify.proof.filters import wrong_filters
from blurify.spec.methods import Area, Flat, Fourier, Sinc, Wavelet
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe

KINDS = [Flat(7), Sinc(), Wavelet("db2"), Area(), Fourier(), Fourier("hamming")]


def plain() -> nn.Module:
    """Every kind of site, at strides of 2, 3, 4 and (1, 2)."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(nn.Conv2d(4, 4, 3, 3, 1), nn.GELU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 3, (1, 2), 1), nn.Conv2d(4, 6, 5, 4, 2), nn.SiLU()),
    ).eval()


@pytest.mark.parametrize("method", KINDS, ids=repr)
def test_each_kind_converts_proves_saves_and_reverts(method, tmp_path):
    model, x = plain(), torch.randn(1, 3, 67, 74)
    recipe = Recipe(name="mine", filter=method)
    converted = blurify.convert(model, recipe, example_inputs=torch.randn(1, 3, 64, 64))
    plan = blurify.plan_of(converted)
    assert len(plan.converted) == 5
    assert all(edit.blur.method == method for edit in plan.edits if edit.blur is not None)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.recipe == recipe
    found = blurify.conversion.proof_of(converted)
    assert (found.sites_compared, found.sites_left) == (5, 0)
    assert blurify.check(converted)
    assert isinstance(next(m for m in converted.modules() if hasattr(m, "shift")), FourierPool) == isinstance(
        method, Fourier
    )
    with torch.no_grad():
        y = converted(x)
        for size in (16, 17, 25, 66):  # tiny maps too
            assert converted(x[..., :size, :size]).shape == model(x[..., :size, :size]).shape
        assert torch.equal(copy.deepcopy(converted)(x), y)
        torch.testing.assert_close(
            copy.deepcopy(converted).to(memory_format=torch.channels_last)(x), y, rtol=1e-4, atol=1e-5
        )
        blurify.save(converted, tmp_path / "model.pt")
        again = blurify.load(tmp_path / "model.pt").eval()
        assert torch.equal(again(x), y)
        assert blurify.check(again)
        assert torch.equal(blurify.revert(again)(x), model(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert converted(x).isfinite().all()
    assert blurify.convert(converted, recipe) is not converted
    assert list(converted.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("method", [Flat(7), Fourier()], ids=repr)
def test_a_wrong_filter_is_found(method):
    converted = blurify.convert(plain(), Recipe(filter=method), example_inputs=torch.randn(1, 3, 64, 64))
    blur = converted[2].blurpool
    if isinstance(method, Fourier):
        blur.window = "hamming"
    else:
        blur.kernel0 *= 1.01
    assert not blurify.check(converted)


@pytest.mark.parametrize("method", [Flat(7), Fourier()], ids=repr)
def test_a_plan_that_says_what_can_not_be_is_refused(method):
    plan = blurify.inspect(plain(), torch.randn(1, 3, 64, 64), Recipe(filter=method)).to_dict()
    edit = next(edit for site in plan["sites"] for edit in site["edits"] if "blur" in edit)
    for changes in ({"kind": "fourier", "window": 3}, {"kind": "flat", "size": 10**6}, {"kind": "flat", "more": 1}):
        edit["blur"]["method"] = changes
        with pytest.raises(BlurifyError):
            Plan.from_dict(plan)
    edit["blur"]["method"] = {"kind": "fourier", "window": "none"}
    edit["blur"]["padding"] = "causal"
    with pytest.raises(BlurifyError, match="padding"):
        Plan.from_dict(plan)


def test_an_ideal_conversion_ignores_what_would_alias():
    model = nn.Sequential(nn.MaxPool2d(1, 2)).eval()  # subsampling and nothing else
    converted = blurify.convert(
        model, Recipe(filter=Fourier(), padding="circular"), example_inputs=torch.randn(1, 1, 16, 16)
    )
    wave = torch.cos(torch.pi * 0.75 * torch.arange(16.0)).expand(1, 1, 16, 16)
    assert model(wave).abs().max() > 0.9
    assert converted(wave).abs().max() < 1e-5


@pytest.mark.parametrize("method", [Wavelet("db2"), Wavelet("db4"), Flat(6), Flat(7), Area(), Fourier()], ids=repr)
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (4, 4, 0), (2, 2, 1)])
def test_a_filter_in_place_of_an_average_looks_where_that_looked(method, kernel, stride, padding):
    model = nn.Sequential(nn.AvgPool1d(kernel, stride, padding)).eval()
    converted = blurify.convert(model, Recipe(filter=method), example_inputs=torch.randn(1, 1, 64)).double()
    ramp = torch.arange(240, dtype=torch.float64).view(1, 1, -1)
    before, after = model(ramp), converted(ramp)
    middle = before.shape[-1] // 2
    assert before.shape == after.shape
    assert abs(before[0, 0, middle] - after[0, 0, middle]) <= 0.5 + (0.02 if isinstance(method, Fourier) else 1e-3)


# Streams.


def stream() -> nn.Module:
    """A causal network: it pads on the left alone, as far as its own pools and convolutions let it."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.ConstantPad1d((4, 0), 0.0), nn.Conv1d(1, 4, 5), nn.GELU(), nn.AvgPool1d(2)),
        *(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 4, 3, 3), nn.GELU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(4, 4, 1, 2), nn.AvgPool1d(3, 2), nn.Conv1d(4, 2, 3, 2, 1)),
    ).eval()


def reads(model: nn.Module, x: Tensor) -> list[int]:
    """For each output sample, the last input sample that it depends on, by changing one after the other."""
    with torch.no_grad():
        before = model(x)
        last = [-1] * before.shape[-1]
        for place, change in itertools.product(range(x.shape[-1]), (50.0, -50.0)):  # one of them passes a max pool
            changed = x.clone()
            changed[..., place] += change
            moved = (model(changed) - before).abs().amax(tuple(range(before.dim() - 1))) > 1e-9
            for j in moved.nonzero().flatten().tolist():
                last[j] = place
    return last


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(padding="causal"),
        Recipe(padding="causal", filter_size=3, conv="cheap"),
        Recipe(padding="causal", filter=Flat(7)),
        Recipe(padding="causal", filter=Wavelet("db2")),
        Recipe(padding="causal", maxpool_kernel_size=3),
    ],
    ids=lambda recipe: f"{recipe.method.words()} {recipe.conv} {recipe.maxpool_kernel_size}",
)
def test_a_causal_conversion_reads_nothing_later_than_the_original(recipe):
    model, x = stream().double(), torch.randn(1, 1, 131, dtype=torch.float64)
    converted = blurify.convert(model, recipe, example_inputs=torch.randn(1, 1, 131, dtype=torch.float64))
    assert len(blurify.plan_of(converted).converted) == 6
    original, causal = reads(model, x), reads(converted, x)
    assert len(original) == len(causal)
    assert all(mine <= theirs for mine, theirs in zip(causal, original, strict=True)), (original, causal)
    ordinary = reads(blurify.convert(model, "zhang2019", example_inputs=x), x)
    assert any(mine > theirs for mine, theirs in zip(ordinary, original, strict=True)), "or the test shows nothing"


def test_a_causal_conversion_of_a_spectrogram_is_causal_in_time_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.MaxPool2d(2)).eval().double()
    x = torch.randn(1, 1, 16, 16, dtype=torch.float64)
    converted = blurify.convert(model, "causal", example_inputs=x)
    assert all(mine <= theirs for mine, theirs in zip(reads(converted, x), reads(model, x), strict=True))
    turned = nn.Sequential(*[_Turned(converted)])
    original = nn.Sequential(*[_Turned(model)])
    assert any(mine > theirs for mine, theirs in zip(reads(turned, x), reads(original, x), strict=True))


class _Turned(nn.Module):
    """A network on the transposed map: what was height is time."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.transpose(-1, -2)).transpose(-1, -2)


@pytest.mark.parametrize("stride", [16, 300, 2000])
def test_an_ideal_filter_in_place_of_a_long_average(stride):
    """Its ringing, which the proof must not take for a shift, grows with the stride."""
    net = nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool1d(stride)).eval()
    converted = blurify.convert(net, Recipe(filter=Fourier()), example_inputs=torch.zeros(1, 1, 4 * stride))
    assert [site.name for site in blurify.plan_of(converted).converted] == ["2"]
    shifted = copy.deepcopy(converted)
    move = 1 + stride // 50
    shifted[2].register_forward_pre_hook(lambda module, given: (given[0].roll(move, -1),))
    with pytest.raises(VerificationError, match="beside where the original looked"):
        check_averages(net, shifted, blurify.plan_of(converted))


def test_a_pool_that_is_global_at_the_traced_size_is_shown_a_ramp_too():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8)).eval()
    converted = blurify.convert(net, example_inputs=torch.zeros(1, 1, 8, 8))
    assert blurify.plan_of(converted).converted == () and converted[2].unless_global
    shifted = copy.deepcopy(converted)
    shifted[2].register_forward_pre_hook(lambda module, given: (given[0].roll(2, -1),))
    with pytest.raises(VerificationError, match="beside where the original looked"):
        check_averages(net, shifted, blurify.plan_of(converted))


@pytest.mark.parametrize("padding", ["reflect", "zeros", "causal"])
@pytest.mark.parametrize("rotated", [0, 1])
def test_a_filter_too_wide_for_noise_in_both_dimensions_is_still_checked(padding, rotated):
    """As of `AvgPool2d(1280, ceil_mode=True)` in a network for small pictures: the slow formula took minutes there."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d((600, 512), ceil_mode=True)).eval()
    converted = blurify.convert(net, Recipe(padding=padding), example_inputs=torch.zeros(1, 1, 40, 40))
    plan = blurify.plan_of(converted)
    assert wrong_filters(converted, plan) == []
    taps = getattr(converted[2].blurpool, f"kernel{rotated}")
    taps.copy_(taps.roll(1, 2 + rotated))
    assert wrong_filters(converted, plan) == ["the blur '2.blurpool' does not compute its filter"]
