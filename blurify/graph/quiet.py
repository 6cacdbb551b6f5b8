"""Keep the warnings of code that only runs to be looked at quiet, in any number of threads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_saved: tuple[list[Any], Any] | None = None


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings while the body runs.

    `warnings.catch_warnings` is for one thread: of two that overlap, the one that ends last puts the other's filter
    back for good. Here the first one in silences, and the last one out restores.
    """
    global _inside, _saved
    with _lock:
        if not _inside:
            _saved = (list(warnings.filters), warnings.showwarning)
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _saved is not None:
                warnings.filters[:], warnings.showwarning = _saved  # type: ignore[index]
                warnings._filters_mutated()  # type: ignore[attr-defined]  # else what was ignored stays so
                _saved = None
