"""Which versions took part: what results may depend on, written down beside them."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("blurify", "torch", "torchvision", "timm")


def version(package: str) -> str | None:
    """The version of an installed package; None where it is not, as blurify may be run from a checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Those of Python and of the packages that results depend on, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
