"""What is done to pictures, against slow computations with NumPy, PIL and colorsys."""

import colorsys
import io
import math

import numpy as np
import pytest
import slow_pictures as slow
import torch
import torch.nn.functional as F
from PIL import Image

from blurify.metrics import effects


def pictures(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sources(count, seed=0):
    return effects.generators(seed, torch.arange(count), "a test")


# Random numbers


def test_a_pictures_random_numbers_do_not_depend_on_the_batch_it_is_in():
    def draws(seed, indices, purpose):
        return [torch.rand(3, generator=g).tolist() for g in effects.generators(seed, torch.tensor(indices), purpose)]

    together = draws(0, [0, 1, 2, 3], "noise")
    assert together == draws(0, [0], "noise") + draws(0, [1, 2], "noise") + draws(0, [3], "noise")
    others = draws(1, [0, 1, 2, 3], "noise") + draws(0, [0, 1, 2, 3], "other noise")
    assert len({tuple(draw) for draw in together + others}) == 12


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    x = pictures(2, 3, 8, 8)
    for noisy in (effects.gaussian_noise, effects.shot_noise, effects.impulse_noise):
        noisy(x, 0.1, sources(2))
    assert torch.equal(torch.get_rng_state(), before)


# Noise


def test_gaussian_noise_has_the_given_deviation():
    grey = torch.full((2, 3, 128, 128), 0.5)
    noise = effects.gaussian_noise(grey, 0.08, sources(2)) - grey
    assert noise.std().item() == pytest.approx(0.08, rel=0.01)
    assert noise.mean().item() == pytest.approx(0, abs=0.001)
    assert not torch.equal(noise[0], noise[1])  # each picture has its own
    assert not torch.equal(noise[0, 0], noise[0, 1])  # and each channel


def test_shot_noise_is_poisson():
    values = torch.tensor([0.0, 0.1, 0.5])
    noisy = effects.shot_noise(values.reshape(1, 3, 1, 1).expand(1, 3, 256, 256), 60, sources(1))[0]
    counts = noisy * 60
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    assert noisy[0].max() == 0
    for value, plane in zip(values[1:].tolist(), noisy[1:], strict=True):
        assert plane.mean().item() == pytest.approx(value, rel=0.02)
        assert plane.var().item() == pytest.approx(value / 60, rel=0.03)  # a Poisson count's variance is its mean


def test_impulse_noise_hits_the_given_share_with_black_and_white_alike():
    grey = torch.full((1, 3, 256, 256), 0.5)
    noisy = effects.impulse_noise(grey, 0.17, sources(1))
    assert (noisy == 0).float().mean().item() == pytest.approx(0.085, rel=0.05)
    assert (noisy == 1).float().mean().item() == pytest.approx(0.085, rel=0.05)
    assert (noisy == 0.5).float().mean().item() == pytest.approx(0.83, rel=0.01)


@pytest.mark.parametrize("noisy", [effects.gaussian_noise, effects.shot_noise, effects.impulse_noise])
def test_noise_stays_within_0_and_1_and_is_the_same_again(noisy):
    x = pictures(2, 1, 32, 32)
    first = noisy(x, 0.9, sources(2))
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, noisy(x, 0.9, sources(2)))
    assert not torch.equal(first, noisy(x, 0.9, sources(2, seed=1)))


# Light


@pytest.mark.parametrize("amount", [-0.3, -0.02, 0.0, 0.3, 1.0])
def test_brighten_adds_to_the_value_of_hsv(amount):
    x = pictures(2, 3, 5, 6)
    x[0, :, 0, 0] = 0  # black
    x[0, :, 0, 1] = 0.4  # grey
    x[0, :, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    found = effects.brighten(x, amount)
    for n in range(2):
        for i in range(5):
            for j in range(6):
                h, s, v = colorsys.rgb_to_hsv(*x[n, :, i, j].tolist())
                wanted = colorsys.hsv_to_rgb(h, s, min(max(v + amount, 0), 1))
                assert found[n, :, i, j].tolist() == pytest.approx(wanted, abs=1e-5)


def test_brighten_of_a_grey_picture_is_a_sum():
    x = pictures(1, 1, 5, 6)
    assert torch.allclose(effects.brighten(x, 0.25), (x + 0.25).clamp(max=1), atol=1e-6)


def test_contrast_draws_each_channel_to_its_mean():
    x = pictures(2, 3, 5, 6)
    found = effects.contrast(x, 0.3).numpy()
    for n in range(2):
        for c in range(3):
            plane = x[n, c].numpy()
            mean = plane.sum() / 30
            assert np.allclose(found[n, c], mean + 0.3 * (plane - mean), atol=1e-6)


# Blur


def test_defocus_is_a_convolution_with_a_disc():
    point = torch.zeros(1, 1, 31, 31)
    point[0, 0, 15, 15] = 1
    spread = effects.defocus(point, 5.0, 0.1)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    for i in range(31):
        for j in range(31):
            distance = math.hypot(i - 15, j - 15)
            if distance < 4:  # wholly inside
                assert spread[i, j].item() == pytest.approx(1 / (math.pi * 25), rel=0.01)
            elif distance > 6.5:  # wholly outside
                assert spread[i, j].item() == pytest.approx(0, abs=1e-7)
    # An off-centre picture with its borders mirrored, the border pixel itself once.
    x = pictures(1, 2, 9, 9)
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    kernel = effects.defocus(point, 2.2, 0.5)[0, 0].numpy()
    found = effects.defocus(x, 2.2, 0.5)
    for c in range(2):
        mirrored = np.pad(x[0, c].numpy(), 4, mode="reflect")
        for i in range(9):
            for j in range(9):
                wanted = (mirrored[i : i + 9, j : j + 9] * kernel).sum()  # the disc is symmetric
                assert found[0, c, i, j].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("degrees", "axis"), [(0, 1), (90, 0), (-180, 1), (-90, 0)])
def test_motion_blur_is_half_a_gaussian_along_the_line(degrees, axis):
    x = pictures(1, 2, 9, 11)
    found = effects.motion_blur(x, 3, 1.7, degrees)[0].numpy()
    sign = -1 if degrees < 0 else 1
    weights = [math.exp(-(k**2) / (2 * 1.7**2)) for k in range(7)]
    for c in range(2):
        plane = x[0, c].numpy()
        for i in range(9):
            for j in range(11):
                wanted = 0.0
                for k, weight in enumerate(weights):
                    y = min(max(i + sign * k * (axis == 0), 0), 8)  # the border's pixels go on beyond it
                    z = min(max(j + sign * k * (axis == 1), 0), 10)
                    wanted += weight / sum(weights) * plane[y, z]
                assert found[c, i, j] == pytest.approx(wanted, abs=1e-5)


def test_motion_blur_at_any_angle_interpolates():
    x = pictures(1, 1, 12, 12)
    found = effects.motion_blur(x, 2, 1.5, 33)[0, 0].numpy()
    plane = np.pad(x[0, 0].numpy(), 8, mode="edge")
    weights = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(5)]
    for i in range(12):
        for j in range(12):
            wanted = sum(
                weight
                / sum(weights)
                * slow.value_at(plane, 8 + i + k * math.sin(math.radians(33)), 8 + j + k * math.cos(math.radians(33)))
                for k, weight in enumerate(weights)
            )
            assert found[i, j] == pytest.approx(wanted, abs=1e-5)


# Digital


@pytest.mark.parametrize(("size", "share"), [((224, 224), 0.6), ((224, 224), 0.25), ((28, 40), 0.3), ((5, 7), 0.1)])
def test_pixelate_is_pils_box_filter_down_and_up(size, share):
    x = pictures(2, 3, *size)
    found = effects.pixelate(x, share)
    small = [max(int(side * share), 1) for side in size]
    for n in range(2):
        for c in range(3):
            image = Image.fromarray(x[n, c].numpy())
            wanted = image.resize(small[::-1], Image.Resampling.BOX).resize(size[::-1], Image.Resampling.BOX)
            assert np.allclose(found[n, c].numpy(), np.asarray(wanted), atol=1e-5)


def test_pixelate_by_whole_blocks_is_the_mean_of_each():
    x = pictures(1, 1, 8, 12)
    wanted = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4)
    assert torch.allclose(effects.pixelate(x, 0.25), wanted, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [25, 7])
def test_jpeg_is_what_pil_writes(channels, quality):
    x = F.avg_pool2d(pictures(2, channels, 52, 44), 5, 1)  # 48x40
    found = effects.jpeg(x, quality)
    assert found.dtype == x.dtype
    for n in range(2):
        array = (x[n] * 255).round().byte().permute(1, 2, 0).numpy()
        buffer = io.BytesIO()
        Image.fromarray(array.squeeze()).save(buffer, "JPEG", quality=quality)
        wanted = np.asarray(Image.open(buffer), dtype=np.float32).reshape(array.shape) / 255
        difference = np.abs(found[n].permute(1, 2, 0).numpy() - wanted)
        assert difference.mean() < 1 / 255  # two builds of libjpeg may round differently
        assert np.abs(wanted - array / 255).mean() > 3 / 255  # and the compression shows


# Geometry


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, -2), (-3, 3), (0, 6), (-20, 1), (99, -99)])
def test_moving_by_whole_pixels_is_slicing(dy, dx):
    x = pictures(2, 3, 12, 13)
    around = np.pad(x.numpy(), ((0, 0), (0, 0), (100, 100), (100, 100)))
    top, left = 100 + 2 - dy, 100 + 1 - dx
    found = effects.moved(x, (8, 10), dy=dy, dx=dx)
    assert np.array_equal(found.numpy(), around[..., top : top + 8, left : left + 10])


@pytest.mark.parametrize(
    "how",
    [
        {"degrees": 17.0},
        {"degrees": -30.0, "dy": 1.5, "dx": -2.0},
        {"dy": 0.5, "dx": 0.25},
        {"scale": 0.7},
        {"scale": 1.3, "degrees": 90.0},
    ],
)
@pytest.mark.parametrize("size", [(14, 14), (13, 16)])
def test_moving_is_bilinear_about_the_middle_of_the_canvas(how, size):
    x = pictures(2, 2, *size)
    found = effects.moved(x, (10, 11), **how)
    for n in range(2):
        for c in range(2):
            assert np.allclose(found[n, c].numpy(), slow.moved(x[n, c].numpy(), (10, 11), **how), atol=1e-4)


@pytest.mark.parametrize("degrees", [-15, -4, 0, 9])
def test_tilting_is_perspective(degrees):
    x = pictures(1, 2, 16, 13)
    found = effects.tilted(x, (12, 11), degrees)
    for c in range(2):
        assert np.allclose(found[0, c].numpy(), slow.tilted(x[0, c].numpy(), (12, 11), degrees), atol=1e-4)
