"""Which versions of the packages take part."""

from __future__ import annotations

import platform
from collections.abc import Sequence

PACKAGES = ("blurify", "torch", "torchvision", "timm")
"""What a figure or a file of ours may depend on."""


def version_of(package: str) -> str | None:
    """The installed version of a package; None where it is not installed, as blurify run from a checkout may be."""
    from importlib import metadata  # slow to import, and most commands ask for no version

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str | None]:
    """Python's version and those of the installed packages, by name."""
    return {"python": platform.python_version(), **{package: version_of(package) for package in packages}}
