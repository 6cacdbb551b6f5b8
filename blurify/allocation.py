"""Keep memory that was freed.

glibc hands large blocks back to the system at once, and the page faults of the next ones take as long as the
arithmetic. The command line calls this where it runs a model; a program that uses blurify decides by itself, as it
holds for the whole process.
"""

from __future__ import annotations

import contextlib
import os

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = (1 << 31) - 1  # of a C int, which mallopt takes


def keep_freed_memory() -> bool:
    """For programs that make and drop large tensors all the time: let blocks come from a heap that does not shrink.

    Without it up to half of the time of measuring, and a third of that of small CPU training, is page faults. The
    process then holds on to the most memory that it ever used. Only glibc knows how; elsewhere (musl, macOS, Windows)
    nothing happens, and GPU memory is not concerned. `MALLOC_TRIM_THRESHOLD_` and the like in the environment win.

    Returns:
        Whether it is so now.
    """
    if not _is_glibc() or any(name in os.environ for name in _SAID):
        return False
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        # Some releases refuse thresholds above 32 MiB: then no block at all is mapped.
        mapped = mallopt(_MMAP_THRESHOLD, 1 << 30) or mallopt(_MMAP_MAX, 0)
        return bool(mapped and mallopt(_TRIM_THRESHOLD, _LARGEST))
    return False


_SAID = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def _is_glibc() -> bool:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (ValueError, AttributeError, OSError):  # macOS and musl know no such name, Windows no such function
        return False
