"""The kinds of site, by the word that stands in plans, recipes and reports."""

from __future__ import annotations

STRIDED = ("conv", "maxpool", "avgpool", "slice")
"""What subsamples with a stride, and has been converted from the first version on."""

UPSAMPLING = ("convtranspose", "upsample", "pixelshuffle", "repeat", "zerostuff", "maxunpool", "fold", "istft")
"""What makes a signal larger."""

RESAMPLING = (
    "downsample", "pixelunshuffle", "adaptiveavgpool", "adaptivemaxpool", "deformconv", "unfold", "gridsample", "roi",
    "stft", "resample",
)  # fmt: skip
"""What makes a signal smaller, but for convolutions, pools and slices with a stride; 'resample' is an unknown call."""

PATCHES = "patches"
"""What cuts a signal into patches by a rearrangement, without a strided convolution."""

KINDS = (*STRIDED, PATCHES, *UPSAMPLING, *RESAMPLING)
"""All that a recipe may name."""

AFTER, BEFORE = "after-upsampling", "before-resampling"
"""The rules by which such a site is converted: the low-pass comes after it, or before it."""

RULES = (AFTER, BEFORE)
