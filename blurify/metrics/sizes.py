"""Sizes and counts in words, for tables, pages and messages alike."""

from __future__ import annotations

from collections.abc import Sequence

from blurify.spec.notebook import amount as amount


def dimensions(values: Sequence[int], sign: str = "x") -> str:
    """(3, 3) -> '3x3'."""
    return sign.join(map(str, values))


def file_size(count: int) -> str:
    """Bytes for people: 44700000 -> '44.7 MB'."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def growth(before: int, extra: int) -> str:
    """Bytes before and after: (20_000_000, 5_000_000) -> '20.0 MB -> 25.0 MB (+25%)'."""
    share = f" ({extra / before:+.0%})" if before else ""
    return f"{file_size(before)} -> {file_size(before + extra)}{share}"


def bytes_line(written: int | None, extra_written: int | None, kept: int | None, extra_kept: int | None) -> str:
    """What a forward writes and what a training step keeps, before and after; '' where that is not known."""
    parts = []
    if written is not None and extra_written is not None:
        parts.append(f"a forward writes {growth(written, extra_written)}")
    if kept is not None and extra_kept is not None:
        parts.append(f"a training step keeps {growth(kept, extra_kept)} for its backward")
    return ", ".join(parts)
