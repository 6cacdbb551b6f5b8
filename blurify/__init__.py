"""blurify: give it any PyTorch model and it gives the same model back, anti-aliased.

    import blurify
    model = blurify.convert(model)

`inspect` lists the aliasing layers, `convert` blurs them and proves that nothing else changed, `save` and `load` keep
the result with its plan, `BlurPool1d/2d/3d` are ordinary layers for use by hand.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError, VerificationError

if TYPE_CHECKING:
    from blurify.conversion import check, convert, inspect, proof_of, revert, reverted
    from blurify.files.checkpoints import load, save
    from blurify.files.reloading import reload
    from blurify.metrics.certify import certify
    from blurify.nn import (
        AvgBlurPool1d,
        AvgBlurPool2d,
        AvgBlurPool3d,
        BlurPool1d,
        BlurPool2d,
        BlurPool3d,
        MaxBlurPool1d,
        MaxBlurPool2d,
        MaxBlurPool3d,
    )
    from blurify.spec.adapted import Adapted
    from blurify.spec.plan import Plan, Site
    from blurify.spec.recipes import Recipe
    from blurify.surgery.carrying import adapted_of, plan_of
    from blurify.surgery.fusing import fuse
    from blurify.tuning.adapting import adapt

__version__ = "0.2.0"

__all__ = [
    "Adapted",
    "AvgBlurPool1d",
    "AvgBlurPool2d",
    "AvgBlurPool3d",
    "BlurPool1d",
    "BlurPool2d",
    "BlurPool3d",
    "BlurifyError",
    "MaxBlurPool1d",
    "MaxBlurPool2d",
    "MaxBlurPool3d",
    "Plan",
    "Recipe",
    "Site",
    "VerificationError",
    "adapt",
    "adapted_of",
    "certify",
    "check",
    "convert",
    "fuse",
    "inspect",
    "load",
    "plan_of",
    "proof_of",
    "reload",
    "revert",
    "reverted",
    "save",
]

_HOMES = {
    **{f"{pool}BlurPool{n}d": "nn" for pool in ("", "Max", "Avg") for n in (1, 2, 3)},
    **dict.fromkeys(("check", "convert", "inspect", "proof_of", "revert", "reverted"), "conversion"),
    **dict.fromkeys(("load", "save"), "files.checkpoints"),
    "reload": "files.reloading",
    **dict.fromkeys(("Plan", "Site"), "spec.plan"),
    "Recipe": "spec.recipes",
    **dict.fromkeys(("adapted_of", "plan_of"), "surgery.carrying"),
    "Adapted": "spec.adapted",
    "fuse": "surgery.fusing",
    "adapt": "tuning.adapting",
    "certify": "metrics.certify",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `blurify --help` needs no torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'blurify' has no attribute {name!r}")
    return getattr(importlib.import_module(f"blurify.{home}"), name)


def __dir__() -> list[str]:
    """The public names, and nothing else."""
    return sorted([*__all__, "__version__"])
