"""Spectra and features at a site, against slow sums and the sampling theorem."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics.aliasing import aliasing, signals_at
from blurify.metrics.site_features import moved_back, site_features
from blurify.metrics.spectra import edges_for, spectrum
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

GEOMETRY = Preprocessing((16, 16), (16, 16), channels=1, mean=(0.0,), std=(1.0,))


def test_spectrum_is_that_of_slow_sums() -> None:
    signal = torch.rand(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    edges = (0.0, 0.75, 1.2, 1.5, 2.0)
    rings: dict[int, list[float]] = {index: [] for index in range(4)}
    for ky in range(6):
        for kx in range(8):
            energy = 0.0
            for channel in signal.flatten(0, 1).double().tolist():
                total = sum(
                    channel[y][x] * cmath.exp(-2j * math.pi * (ky * y / 6 + kx * x / 8))
                    for y in range(6)
                    for x in range(8)
                )
                energy += abs(total) ** 2 / 48
            place = max(min(ky, 6 - ky) * 4 / 6, min(kx, 8 - kx) * 4 / 8)
            if ky or kx:
                rings[sum(place >= edge - 1e-9 for edge in edges[1:-1])].append(energy)
    level = sum(map(sum, rings.values())) / 47
    found = spectrum(signal, (2, 2), edges)
    assert found.power == pytest.approx([sum(ring) / len(ring) / level for ring in rings.values()], rel=1e-5)


def test_white_noise_is_flat_and_a_wave_is_in_its_ring() -> None:
    noise = torch.randn(4, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    edges = edges_for((32, 32), (2, 2))
    assert edges[0] == 0 and edges[-1] == 2 and 1.0 in edges
    found = spectrum(noise, (2, 2), edges)
    assert found.power[2:] == pytest.approx([1.0] * len(found.power[2:]), abs=0.15)
    assert found.above == pytest.approx(3 / 4, abs=0.05)
    x = torch.arange(32.0)
    wave = torch.cos(2 * math.pi * 10 * x / 32).expand(1, 1, 32, 32)  # at 10 * 4 / 32 = 1.25
    power = spectrum(wave, (2, 2), edges).power
    ring = max(range(len(power)), key=power.__getitem__)
    assert edges[ring] <= 1.25 < edges[ring + 1] and sum(power) == pytest.approx(power[ring])
    assert spectrum(torch.zeros(1, 1, 8, 8), (2, 2), (0.0, 1.0, 2.0)).power == (0.0, 0.0)


def test_only_sides_that_are_subsampled_count() -> None:
    y = torch.arange(16.0)[:, None]
    wave = torch.cos(2 * math.pi * 7 * y / 16).expand(1, 1, 16, 16)
    assert spectrum(wave, (1, 2), (0.0, 1.0, 2.0)).power[1] == pytest.approx(0, abs=1e-9)
    assert spectrum(wave, (2, 2), (0.0, 1.0, 2.0)).power[0] == pytest.approx(0, abs=1e-9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()


def test_signals_are_those_whose_aliasing_is_measured() -> None:
    net, seen = network(), torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    for model in (net, blurify.convert(net, example_inputs=seen)):
        subject = Subject(model, GEOMETRY)
        (measured, *_) = aliasing(subject, TensorPictures(seen)).sites
        found = signals_at(subject, seen, measured.site)
        assert found is not None
        signal, stride = found
        assert stride == (2, 2)
        shares = [spectrum(one[None], stride, (0.0, 1.0, 2.0)).above for one in signal]
        assert shares == pytest.approx(measured.share.values, abs=1e-6)
    # As it is, the signal is the dense pool's output.
    plain = signals_at(Subject(net, GEOMETRY), seen, "2")
    assert plain is not None
    dense = nn.functional.max_pool2d(net[:2](seen), 2, 1)
    assert torch.allclose(plain[0][..., : dense.shape[2], : dense.shape[3]], dense)
    assert signals_at(Subject(net, GEOMETRY), seen, "elsewhere") is None


def test_moving_back_is_by_half_a_sample() -> None:
    x = torch.arange(12.0, dtype=torch.float64)
    wave, moved = (torch.cos(2 * math.pi * 2 * (x - by) / 12).expand(1, 1, 3, 12) for by in (0.0, 0.5))
    assert torch.allclose(moved_back(moved, (2, 2)), wave)
    assert torch.allclose(moved_back(torch.ones(1, 1, 2, 7).double(), (2, 2)), torch.ones(1, 1, 2, 7).double())


class Keeps(nn.Module):
    """Keeps every other sample, of what it sees or of what an ideal low-pass leaves of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x).flatten(1)


@pytest.mark.parametrize(("waves", "error"), [(2, 0.0), (6, 2.0)])
def test_features_of_what_is_below_nyquist_come_back_and_others_do_not(waves: int, error: float) -> None:
    """Above it: a wave of 6 in 16 samples, of which 8 are kept, is one of 2 the other way; half a sample further it
    has the opposite phase to what it should have."""
    x = torch.arange(16.0)
    seen = (0.5 + 0.5 * torch.cos(2 * math.pi * waves * x / 16)).expand(1, 1, 16, 16)
    net = Keeps()
    found = site_features([Subject(net, GEOMETRY)], seen - 0, "pool", "wave")
    (maps,) = found.maps
    assert maps is not None and (found.site, found.shift, found.channel) == ("pool", 1, 0)
    # The mean (0.5) comes back in any case: of the wave, 0.5 cos, the length is 1/sqrt(3) of all.
    assert maps.error == pytest.approx(error / math.sqrt(3), abs=1e-5)
    assert (maps.still.rows, maps.still.columns) == (8, 8)
    shares = torch.tensor(maps.still.shares)
    kept = seen[0, 0, ::2, ::2]
    assert torch.allclose(shares, (kept - kept.min()) / (kept.max() - kept.min()), atol=1 / 255)
    assert found.shown.startswith("data:image/jpeg;base64,")
    assert site_features([Subject(net, GEOMETRY)], seen, "pool", "wave", pictures=False).shown == ""


def test_a_blur_makes_the_difference_smaller() -> None:
    net, seen = network(), torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    subjects = [Subject(model, GEOMETRY) for model in (net, blurify.convert(net, example_inputs=seen))]
    before, after = site_features(subjects, seen, "2", "noise").maps
    assert before is not None and after is not None and after.error < before.error / 2


def test_sites_that_can_not_be_shown_say_why() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d((2, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(x).flatten(1)

    seen = torch.rand(1, 1, 16, 16)
    with pytest.raises(BlurifyError, match="from left to right"):
        site_features([Subject(Rows(), GEOMETRY)], seen, "pool", "a")
    with pytest.raises(BlurifyError, match="no model has the site"):
        site_features([Subject(Rows(), GEOMETRY)], seen, "none", "a")
