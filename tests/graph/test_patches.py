"""Patches that are cut by a rearrangement: which forms are seen, and which look like them and are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blurify.graph.recorder import trace
from blurify.graph.resampling import find_resampling
from blurify.graph.sites import find_sites


class Forward(nn.Module):
    """A module whose forward is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def sites_of(function, *shape):
    seen = trace(Forward(function), ((torch.zeros(shape),), {}))
    # What cuts patches resamples too, and is found once.
    found = [*find_sites(seen), *(site for site in find_resampling(seen) if "shuffle" in site.op.kind)]
    return [(site.op.kind, site.op.stride, site.op.dims, site.op.output_shape) for site in found]


def einops_image(x):
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 4, 4, w // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // 4) * (w // 2), 4 * 2 * c)


def swin(x):
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)


def slices(x):
    return torch.cat([x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]], -1)


def focus(x):
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def tubes(x):
    b, c, t, h, w = x.shape
    x = x.view(b, c, t // 2, 2, h // 4, 4, w // 4, 4).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return x.reshape(b, t // 2, (h // 4) * (w // 4), 2 * 4 * 4 * c)


def signal(x):
    b, c, n = x.shape
    return x.reshape(b, c, n // 4, 4).permute(0, 2, 3, 1).reshape(b, n // 4, 4 * c)


def unfolded_twice(x):
    b, c, _, _ = x.shape
    x = x.unfold(2, 4, 4).unfold(3, 4, 4)
    return x.permute(0, 2, 3, 1, 4, 5).reshape(b, -1, c * 16)


def space_to_depth(x):
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def split_again(x):  # in steps that part and join dimensions on the way
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    return x.contiguous().view(b, h // 4, w // 4, 16 * c)


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (einops_image, (1, 3, 16, 8), ((4, 2), (2, 3), (1, 24, 4, 4))),
        (swin, (1, 7, 6, 5), ((2, 2), (1, 2), (1, 4, 3, 20))),
        (slices, (1, 8, 8, 5), ((2, 2), (1, 2), (1, 4, 4, 20))),
        (focus, (1, 3, 8, 8), ((2, 2), (2, 3), (1, 12, 4, 4))),
        (tubes, (1, 3, 4, 8, 8), ((2, 4, 4), (2, 3, 4), (1, 96, 2, 2, 2))),
        (signal, (1, 3, 16), ((4,), (2,), (1, 12, 4))),
        (lambda x: F.unfold(x, 7, stride=4, padding=2), (1, 3, 32, 32), ((4, 4), (2, 3), (1, 147, 7, 7))),
        (unfolded_twice, (1, 3, 16, 16), ((4, 4), (2, 3), (1, 48, 4, 4))),
        (space_to_depth, (1, 4, 16, 16), ((2, 2), (2, 3), (1, 16, 8, 8))),
        (split_again, (1, 6, 8, 8), ((4, 4), (2, 3), (1, 96, 2, 2))),
    ],
)
def test_patches_are_sites(function, shape, expected):
    assert sites_of(function, *shape) == [("patches", *expected)]


def window_partition(x):
    b, h, w, c = x.shape
    return x.view(b, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)


def heads(x):
    b, n, c = x.shape
    return x.reshape(b, n, 4, c // 4).permute(0, 2, 1, 3).reshape(b * 4, n, c // 4)


def pixel_shuffle(x):
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


def grid(x):  # every token gets samples that lie far apart: dilated, no patches
    b, h, w, c = x.shape
    return x.reshape(b, 2, h // 2, 2, w // 2, c).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2, w // 2, 4 * c)


def channel_groups(x):
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def halo(x):  # Vaswani 2021: a block of queries looks at a window that is larger than it
    b, c, h, w = x.shape
    q = x.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 3, 5, 2, 4).reshape(b, c, 16, -1).transpose(1, 3)
    k = F.pad(x, (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4).reshape(b, c, -1, 36).permute(0, 2, 3, 1)
    return (q @ k.mT).softmax(-1) @ k


def local(x):  # the same with im2col
    b, c, _, _ = x.shape
    k = F.unfold(x, 4, padding=1, stride=2).view(b, c, 16, -1).permute(0, 3, 2, 1)
    return (k.mean(2, keepdim=True) @ k.mT).softmax(-1) @ k


def pixels_of_patches(x):  # TNT: the pixels of a patch are tokens
    c = x.shape[1]
    x = F.unfold(x, 4, stride=4).transpose(1, 2).reshape(-1, c, 4, 4)
    return x.reshape(-1, c, 16).transpose(1, 2) @ torch.ones(c, c, device=x.device)


def heads_of_one_token(x):  # CaiT's class attention
    return x[:, 0].unsqueeze(1).reshape(1, 1, 4, 4).permute(0, 2, 1, 3) * 2


def by_heads(x):  # torch's attention has (L, N * heads, E / heads)
    return x.reshape(3, 4, 10)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (window_partition, (1, 8, 8, 5)),
        (halo, (1, 3, 16, 16)),
        (local, (1, 3, 16, 16)),
        (pixels_of_patches, (1, 3, 16, 16)),
        (by_heads, (3, 8, 5)),
        (heads_of_one_token, (1, 9, 16)),
        (lambda x: x[:, :, :0].reshape(1, 3, 0, 2, 2).reshape(1, 0, 4), (1, 3, 8, 4)),  # no boxes were found
        (lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).median(-1).values, (1, 3, 16, 16)),
        (heads, (1, 16, 16)),
        (pixel_shuffle, (1, 4, 4, 16)),
        (grid, (1, 8, 8, 5)),
        (channel_groups, (1, 8, 4, 4)),
        (lambda x: x.unfold(1, 4, 2), (1, 64)),
        (lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2), (8, 8), 3, padding=1, stride=2), (1, 3, 8, 8)),
        (lambda x: torch.cat([x[:, 0::2, 0::2], x[:, 0::2, 0::2], x[:, 0::2, 0::2], x[:, 0::2, 0::2]], -1), (1, 4, 4)),
    ],
)
def test_what_looks_like_patches_is_none(function, shape):
    assert [site for site in sites_of(function, *shape) if site[0] == "patches"] == []
