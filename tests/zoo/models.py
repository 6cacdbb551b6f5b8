"""Models that the processes of a run make, wherever they are; quick to import."""

from __future__ import annotations

import os
import time
from pathlib import Path

from torch import nn

import blurify


def tiny(width: int = 4) -> nn.Module:
    """Two sites to convert."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.MaxPool2d(2), nn.Conv2d(width, 4, 3, stride=2), nn.ReLU())


def siteless() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


def broken() -> nn.Module:
    raise ValueError("it is broken")


def waits(width: int = 4) -> nn.Module:
    """Does not go on before there is a file 'open' in $BLURIFY_TEST_GATE; notes there each process that it ran in."""
    gate = Path(os.environ["BLURIFY_TEST_GATE"])
    (gate / f"{width}-{os.getpid()}").write_text(f"{blurify.__file__}\n{__file__}\n")
    while not (gate / "open").exists():
        time.sleep(0.02)
    return tiny(width)
