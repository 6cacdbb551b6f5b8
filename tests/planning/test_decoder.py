"""Conversion of what resamples: against interpolation, spectra and the original, and back again."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.graph.recorder import trace
from blurify.graph.sites import find_sites
from blurify.metrics.subject import Preprocessing, Subject
from blurify.planning.resampling import without_shift
from blurify.proof.audit import sites_left
from blurify.spec.filters import binomial_taps
from blurify.spec.kinds import RULES
from blurify.spec.methods import Taps
from blurify.tuning.ranking import rank_sites


class UNet(nn.Module):
    """Two levels down by pools, up again by what is given, with skips."""

    def __init__(self, up: Any) -> None:
        super().__init__()

        def block(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))

        self.down1, self.down2, self.down3 = block(3, 4), block(4, 8), block(8, 16)
        self.pool, self.up2, self.up1 = nn.MaxPool2d(2), up(16, 8), up(8, 4)
        self.join2, self.join1, self.out = block(16, 8), block(8, 4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(self.pool(a))
        y = self.join2(torch.cat([self.up2(self.down3(self.pool(b))), b], 1))
        return self.out(self.join1(torch.cat([self.up1(y), a], 1)))


def unet(kind: str) -> UNet:
    return UNet({
        "transposed": lambda a, b: nn.ConvTranspose2d(a, b, 2, 2),
        "nearest": lambda a, b: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, padding=1)),
        "shuffle": lambda a, b: nn.Sequential(nn.Conv2d(a, 4 * b, 1), nn.PixelShuffle(2)),
    }[kind])  # fmt: skip


def dcgan() -> nn.Module:
    layers: list[nn.Module] = [nn.ConvTranspose2d(8, 16, 4, 1, 0, bias=False)]
    for a, b in ((16, 8), (8, 4)):
        layers += [nn.BatchNorm2d(a), nn.ReLU(True), nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


class Autoencoder(nn.Module):
    """In 1-d, with its decoder in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv1d(1, 4, 4, 2, 1), nn.ReLU(), nn.Conv1d(4, 8, 4, 2, 1), nn.ReLU())
        self.decode = nn.ModuleList([nn.ConvTranspose1d(8, 4, 4, 2, 1), nn.ConvTranspose1d(4, 1, 4, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(x)
        for i, layer in enumerate(self.decode):
            x = layer(x)
            if i == 0:
                x = F.relu(x)
        return x


class Volumes(nn.Module):
    """In 3-d, by other factors in each dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv3d(1, 2, 3, 2, 1), nn.ConvTranspose3d(2, 2, 2, (1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.relu(self.up(F.relu(self.conv(x)))), scale_factor=(2, 1, 1))


class Functions(nn.Module):
    """Upsampling by functions, by a helper method and by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 16, 1)

    def grown(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        y = self.grown(F.relu(self.conv(x))).repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = F.pixel_shuffle(self.wide(y), 2)
        n, c, h, w = y.shape
        return y[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


class Smaller(nn.Module):
    """Subsampling without a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unshuffle, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.PixelUnshuffle(2), nn.Conv2d(16, 8, 1)
        self.offset, self.deform = nn.Conv2d(8, 18, 1), torchvision.ops.DeformConv2d(8, 8, 3, 2, 1)
        self.pool, self.cut = nn.AdaptiveAvgPool2d((8, 4)), nn.Unfold(2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.unshuffle(F.relu(self.conv(x))))
        y = F.interpolate(y, scale_factor=0.5, mode="bilinear", align_corners=False)
        y = self.deform(y, F.max_pool2d(self.offset(y), 2))
        return self.cut(self.pool(y))


MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "unet-transposed": (lambda: unet("transposed"), (1, 3, 24, 32), 2),
    "unet-nearest": (lambda: unet("nearest"), (1, 3, 24, 32), 2),
    "unet-shuffle": (lambda: unet("shuffle"), (1, 3, 24, 32), 2),
    "dcgan": (dcgan, (2, 8, 1, 1), 2),
    "autoencoder": (Autoencoder, (1, 1, 32), 2),
    "volumes": (Volumes, (1, 1, 6, 8, 8), 2),
    "functions": (Functions, (1, 3, 6, 6), 5),
    "smaller": (Smaller, (1, 3, 128, 128), 5),
}


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name: str, tmp_path: Path) -> None:
    build, shape, count = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    y = model(x)
    converted = blurify.convert(model, "resampling", example_inputs=x)
    plan, proof = blurify.plan_of(converted), blurify.proof_of(converted)
    assert plan is not None and proof is not None
    assert sum(site.rule in RULES or site.kind == "patches" for site in plan.converted) == count, plan.sites
    assert proof.sites_compared == proof.sites_shown == len(plan.converted)
    # Another function, of the same size and with the same weights ...
    assert converted(x).shape == y.shape and not torch.allclose(converted(x), y, atol=1e-4)
    assert type(converted).__name__ == type(model).__name__
    assert {k: v.tolist() for k, v in converted.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    assert blurify.check(converted, x)
    # ... which is the original with one tap, also at other sizes, ...
    one = blurify.convert(model, "resampling", filter_size=1, example_inputs=x)
    larger = torch.randn(*shape[:2], *(n + 8 if n > 1 else n for n in shape[2:]))
    for other in (x, larger):
        torch.testing.assert_close(one(other), model(other), rtol=1e-4, atol=1e-5)
    # ... goes through files, and back.
    blurify.save(converted, tmp_path / "model.pt")
    loaded = blurify.load(tmp_path / "model.pt", trust=True)
    assert torch.equal(loaded(x), converted(x))
    assert torch.equal(blurify.revert(converted)(x), y)


@pytest.mark.parametrize("name", MODELS)
def test_older_recipes_do_not_touch_them(name: str) -> None:
    build, shape, _ = MODELS[name]
    model, x = build(), torch.randn(shape)
    for recipe in (None, "full"):
        strided = {site.name for site in find_sites(trace(model, ((x,), {})))}
        plan = blurify.inspect(model, x, recipe)
        assert strided < {site.name for site in plan.sites}
        assert {site.name for site in plan.sites if site.edits} <= strided


# --- what the filters do


def convert(model: nn.Module, x: Tensor, recipe: Any = "resampling") -> nn.Module:
    return blurify.convert(model.eval(), recipe, example_inputs=x)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("factor", [2, 3])
def test_nearest_upsampling_and_four_taps_are_linear_interpolation_for_a_factor_of_two(rank: int, factor: int) -> None:
    """Zeros in between and (1, 3, 3, 1) / 4 is linear interpolation between the centres of the samples."""
    x = torch.randn(1, 2, *(6,) * rank, dtype=torch.float64)
    net = nn.Sequential(nn.Upsample(scale_factor=factor)).double()
    y = convert(net, x, "decoder")(x)
    middle = (..., *(slice(2 * factor, 4 * factor),) * rank)
    if factor == 2:
        expected = F.interpolate(x, scale_factor=2, mode=("linear", "bilinear", "trilinear")[rank - 1])
        torch.testing.assert_close(y[middle], expected[middle])
    # No shift, for any factor: a ramp stays where it was.
    ramp = torch.arange(6.0, dtype=torch.float64).expand(1, 2, *(6,) * rank)
    smooth = convert(net, x, "decoder")(ramp)[middle]
    positions = (torch.arange(2 * factor, 4 * factor, dtype=torch.float64) + 0.5) / factor - 0.5
    assert (smooth.mean() - positions.mean()).abs() < 1e-9


@pytest.mark.parametrize("kind", ["transposed", "nearest", "shuffle"])
def test_images_of_the_spectrum_go(kind: str) -> None:
    """Of noise that is made larger by 2, the energy above half of the new Nyquist frequency."""
    torch.manual_seed(0)
    layer: nn.Module = {
        "transposed": nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, bias=False),
        "nearest": nn.Upsample(scale_factor=2),
        "shuffle": nn.PixelShuffle(2),
    }[kind]
    net, x = nn.Sequential(layer), torch.randn(8, 4, 32, 32)

    def above(y: Tensor) -> float:
        spectrum = torch.fft.fft2(y).abs() ** 2
        frequency = torch.fft.fftfreq(y.shape[-1]).abs()
        high = (frequency[:, None] > 0.25) | (frequency > 0.25)
        return float(spectrum[..., high].sum() / spectrum.sum())

    with torch.no_grad():
        before, after = above(net(x)), above(convert(net, x, "decoder")(x))
    assert after < 0.4 * before, (before, after)


def test_checkerboard_of_a_transposed_convolution_goes() -> None:
    """Kernel 3 at stride 2 adds one or two terms in turn, so that a constant comes out as a checkerboard."""
    layer = nn.ConvTranspose1d(1, 1, 3, 2, 1, bias=False)
    nn.init.constant_(layer.weight, 0.5)
    x = torch.ones(1, 1, 16)
    with torch.no_grad():
        y, z = layer(x)[..., 4:-4], convert(nn.Sequential(layer), x, "decoder")(x)[..., 4:-4]
    assert float(y.max() - y.min()) == pytest.approx(0.5)
    torch.testing.assert_close(z, torch.full_like(z, 0.75))


def test_adaptive_average_pool_becomes_what_a_plain_one_does() -> None:
    x = torch.randn(1, 2, 32, 32)
    adaptive, plain = nn.Sequential(nn.AdaptiveAvgPool2d(16)), nn.Sequential(nn.AvgPool2d(2))
    a, b = convert(adaptive, x)(x), blurify.convert(plain, example_inputs=x)(x)
    torch.testing.assert_close(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])
    torch.testing.assert_close(adaptive(x), plain(x))


def test_odd_filters() -> None:
    for taps in (binomial_taps(4), binomial_taps(6), (-1 / 16, 9 / 16, 9 / 16, -1 / 16)):
        odd = without_shift(Taps(taps)).taps
        whole = [sum(odd[i - j] for j in (0, 1) if 0 <= i - j < len(odd)) / 2 for i in range(len(taps))]
        assert whole == pytest.approx(taps) and sum(odd) == pytest.approx(1)
    assert without_shift(Taps(binomial_taps(4))).taps == pytest.approx(binomial_taps(3))
    for taps in ((1.0,), binomial_taps(5), (0.1, 0.2, 0.3, 0.4)):
        assert without_shift(Taps(taps)).taps == taps
    assert without_shift(Taps((0.5, 0.5))).taps == binomial_taps(3)


# --- what must be noticed


def test_a_lost_filter_is_noticed() -> None:
    x = torch.randn(1, 3, 24, 32)
    converted = convert(unet("nearest"), x)
    plan = blurify.plan_of(converted)
    assert plan is not None
    path = next(iter(next(site for site in plan.converted if site.rule in RULES).blur_paths))
    assert sites_left(converted, plan, ((x,), {})) == []
    parent, _, name = path.rpartition(".")
    converted.get_submodule(parent)._modules[name] = nn.Identity()
    assert len(sites_left(converted, plan, ((x,), {}))) == 1
    assert not blurify.check(converted, x)


def test_a_ranking_says_that_it_does_not_measure_them() -> None:
    subject = Subject(unet("nearest").eval(), Preprocessing((32, 32), (32, 32)))
    with pytest.raises(BlurifyError, match=r"no aliasing.*\[resampling\]"):
        rank_sites(subject, "decoder", None)  # type: ignore[arg-type]
