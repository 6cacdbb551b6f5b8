"""Half-patch shifts, on networks of which it is known what a shift does to them."""

import pytest
import torch
from torch import nn

from blurify.errors import BlurifyError
from blurify.metrics import Preprocessing, Subject, TensorPictures, measure
from blurify.metrics.differences import differences
from blurify.metrics.half_patch import half_patch, patch_of

CROP, CANVAS, PATCH = 32, 48, 8
GEOMETRY = Preprocessing((CROP, CROP), (CANVAS, CANVAS), 1, (0.0,), (1.0,))


class Sampling(nn.Module):
    """Looks at one pixel of each patch, as the worst patch embedding would: bright columns or dark ones."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 1, PATCH, PATCH, bias=False)
        self.embed.weight.data.zero_()
        self.embed.weight.data[0, 0, 0, 0] = 1

    def forward(self, x):
        bright = self.embed(x).flatten(1).mean(1)
        return torch.stack([bright, 0.5 - bright], 1) * 10


class Averaging(Sampling):
    """Takes the mean of each patch, and knows no more than the mean of all."""

    def __init__(self):
        super().__init__()
        self.embed.weight.data.fill_(1 / PATCH**2)


def stripes(period: int = PATCH) -> TensorPictures:
    """Columns of a bright and a dark half, of a period."""
    row = ((torch.arange(CANVAS) % period) < period // 2).float()
    return TensorPictures(row.expand(6, 1, CANVAS, CANVAS).clone())


def test_what_samples_one_pixel_of_a_patch_is_the_same_a_whole_patch_further_and_not_half_a_patch_further():
    subject = Subject(Sampling(), GEOMETRY, "sampling")
    found = half_patch(subject, stripes())
    assert found.patch == (PATCH, PATCH)
    assert found.whole.value == 1
    # Along y nothing changes; along x, and along both, every answer does.
    assert found.half.value == pytest.approx(1 / 3)
    # Of the 15 places of the grid those with dx = 0 (3) see the same; dx = 2, 6 on some pictures.
    assert 3 / 15 <= found.grid.value < 1
    assert found.half_change.value > 0.6


def test_what_averages_a_patch_is_not_moved_at_all():
    subject = Subject(Averaging(), GEOMETRY, "averaging")
    found = half_patch(subject, stripes())
    assert (found.half.value, found.grid.value, found.whole.value) == (1, 1, 1)
    assert found.half_change.value < 1e-6


def test_shifts_are_circular_where_they_are_to_be():
    geometry = Preprocessing((CROP, CROP), (CROP, CROP), 1, (0.0,), (1.0,))
    pictures = TensorPictures(stripes().canvases[..., :CROP, :CROP].clone())
    subject = Subject(Sampling(), geometry, "sampling")
    with pytest.raises(BlurifyError, match="give a larger --canvas, or --circular"):
        half_patch(subject, pictures)
    assert half_patch(subject, pictures, circular=True).whole.value == 1


def test_it_is_a_metric_like_the_others():
    first, second = (
        measure(Subject(model, GEOMETRY, "one"), stripes(), ["half-patch"]) for model in (Sampling(), Averaging())
    )
    assert first.consistency is None and first.half_patch is not None
    assert type(first).from_dict(first.to_dict()) == first
    assert differences(first, second)["half_patch.half"].value == pytest.approx(2 / 3)


def test_a_network_that_does_not_subsample_has_no_patch():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    subject = Subject(Flat(), GEOMETRY, "flat")
    assert patch_of(subject) == (1, 1)
    with pytest.raises(BlurifyError, match="does not subsample"):
        half_patch(subject, stripes())
