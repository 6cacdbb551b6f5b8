"""Keep memory that was freed.

glibc hands large blocks back to the system at once, and the page faults take as long as the arithmetic.
"""

from __future__ import annotations

import contextlib
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """For programs that make and drop large tensors all the time: let blocks under 1 GiB come from the heap.

    Without it a third of the time of small CPU training is page faults. Only glibc knows how; elsewhere nothing
    happens. It holds for the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
