"""Feature maps side by side under a shift: what a site keeps of a picture, and of the same picture moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.aliasing import signals_at
from blurify.metrics.evidence import Grid, SiteFeatures, SiteMaps
from blurify.metrics.subject import Subject
from blurify.metrics.thumbnails import address

_LARGEST = 112  # cells to a side: the middle of larger maps is shown


def site_features(
    subjects: Sequence[Subject], seen: Tensor, site: str, name: str, *, pictures: bool = True
) -> SiteFeatures:
    """What each model keeps of a picture at one site, and what a small shift of the picture makes of it.

    Zhang (2019, figure 1 and sections 3.1 and 4.1) shows it of a max pool in one dimension, and as distances: shifting
    the input by a sample changes what the pool keeps. Here the picture is rolled to the right by as many pixels as one
    sample *before* the subsampling by s stands for, so that the signal there is the same but for one sample, and the
    subsampling takes other samples of it. What is kept is then shifted back by 1/s of a sample, in the Fourier domain:
    of a signal without anything above the new Nyquist frequency that gives what was kept of the picture itself,
    exactly, by the sampling theorem; what differs is aliasing, here and at the sites before. (Near borders the model's
    own padding differs too.)

    Args:
        subjects: the models; the first one's largest change chooses the channel.
        seen: one picture (1, C, h, w) in 0..1.
        site: its name in the plan of the original.
        name: of the picture.
        pictures: show it.

    Raises:
        BlurifyError: no model has the site, it is not in two dimensions, or it subsamples none of the two sides.
    """
    first = [signals_at(subject, seen, site) for subject in subjects]
    known = [found for found in first if found is not None]
    if not known:
        raise BlurifyError(f"no model has the site {site} at this size")
    stride = known[0][1]
    if len(stride) != 2:
        raise BlurifyError(f"{site} is in {len(stride)} dimensions, and maps are shown in two")
    if stride[1] < 2:
        raise BlurifyError(f"{site} does not subsample from left to right")
    shift = max(round(seen.shape[3] / known[0][0].shape[3]), 1)
    rolled = torch.roll(seen, shift, 3)
    moved = [
        None if found is None else signals_at(subject, rolled, site)
        for found, subject in zip(first, subjects, strict=True)
    ]
    pairs = [
        None
        if one is None or other is None
        else (kept(one[0], stride)[0], moved_back(kept(other[0], stride), stride)[0])
        for one, other in zip(first, moved, strict=True)
    ]
    leading = next(pair for pair in pairs if pair is not None)
    channel = int((leading[1] - leading[0]).square().sum((1, 2)).argmax())
    maps = tuple(None if pair is None else _maps(*pair, min(channel, len(pair[0]) - 1)) for pair in pairs)
    return SiteFeatures(site, name, shift, channel, maps, address(seen[0]) if pictures else "")


def kept(signal: Tensor, stride: Sequence[int]) -> Tensor:
    """What subsampling keeps: (N, C, H, W) -> (N, C, ceil(H / s), ceil(W / s))."""
    return signal[:, :, :: stride[0], :: stride[1]].cpu().double()  # not every device has double precision


def moved_back(features: Tensor, stride: Sequence[int]) -> Tensor:
    """Features shifted to the left by 1/s of a sample, by the phases of their Fourier transform along the last side.

    Of an even number of samples the frequency at Nyquist has no phase that would leave it real: it gets the real part.
    """
    count = features.shape[-1]
    frequencies = torch.fft.rfftfreq(count, dtype=torch.float64, device=features.device)
    turned = torch.fft.rfft(features) * torch.exp(2j * math.pi * frequencies / stride[-1])
    return torch.fft.irfft(turned, n=count)


def _maps(still: Tensor, back: Tensor, channel: int) -> SiteMaps:
    """Of all channels (C, h, w) the error; of one the maps."""
    length = float(still.norm())
    error = float((back - still).norm()) / length if length > 0 else 0.0
    if not math.isfinite(error):
        raise BlurifyError("the features are not finite (nan or infinite)")
    top, left = ((n - min(n, _LARGEST)) // 2 for n in still.shape[1:])
    one, other = (part[channel, top : top + _LARGEST, left : left + _LARGEST].cpu() for part in (still, back))
    # By the unshifted map, so that a difference as large as the features is as light as they are.
    low, high = float(one.min()), float(one.max())
    apart = (other - one).abs()
    span = high - low
    return SiteMaps(
        Grid.of(one.tolist(), low, high),
        Grid.of(other.tolist(), low, high),
        Grid.of(apart.tolist(), 0.0, span if span > 0 else float(apart.max()) or 1.0),
        round(error, 6),
    )
