"""Which of the known words a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The known words that are most like `word`, the nearest first, at most `count`; none where all are far off."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=cutoff)


def did_you_mean(words: Iterable[str]) -> str:
    """': did you mean A or B?' for the end of a message; '' for no words."""
    listed = " or ".join(words)
    return f": did you mean {listed}?" if listed else ""
