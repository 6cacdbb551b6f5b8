"""What a converted model runs, and nothing else. Saved models name what is in here: it never moves again.

Knows nothing of graphs, recipes and plans; importing it loads torch and the filters.
"""

from blurify.nn.aps import ApsPool1d, ApsPool2d, ApsPool3d
from blurify.nn.blurpool import BlurPool, BlurPool1d, BlurPool2d, BlurPool3d, blurpool
from blurify.nn.fourier import FourierPool1d, FourierPool2d, FourierPool3d
from blurify.nn.pools import (
    AvgBlurPool1d,
    AvgBlurPool2d,
    AvgBlurPool3d,
    MaxBlurPool1d,
    MaxBlurPool2d,
    MaxBlurPool3d,
    avg_blur_pool,
    dense_max_pool,
    max_blur_pool,
    pool_output_size,
)

__all__ = [
    "ApsPool1d",
    "ApsPool2d",
    "ApsPool3d",
    "AvgBlurPool1d",
    "AvgBlurPool2d",
    "AvgBlurPool3d",
    "BlurPool",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "FourierPool1d",
    "FourierPool2d",
    "FourierPool3d",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
    "avg_blur_pool",
    "blurpool",
    "dense_max_pool",
    "max_blur_pool",
    "pool_output_size",
]
