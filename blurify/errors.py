"""The errors a user can meet. Each message is one line that says what to do."""

from __future__ import annotations

import re


class BlurifyError(Exception):
    """Bad usage or bad input: the message is one line that says what is wrong and what to do (CLI exit code 2)."""


class VerificationError(BlurifyError):
    """The converted model did not pass its proof; nothing was changed or written (CLI exit code 1)."""


class FilterTooLongError(BlurifyError):
    """No filter of this kind is short enough for so large a subsampling (CLI exit code 2; a plan skips the site)."""


class PictureError(BlurifyError):
    """A picture can't be read: no matter of the model or of one metric (CLI exit code 2)."""


def one_line(error: object, limit: int = 300) -> str:
    """The text of another library's error in one line, to stand in a message of ours."""
    return text_of(error)[:limit] or type(error).__name__


def printable(text: str, instead: str = "?") -> str:
    """A text of somebody else's without what a terminal takes for a command, or no file can hold.

    Names of files, layers and classes come from whoever made them. Control characters but the tab and the end of a
    line, those that turn the direction of writing, and halves of surrogate pairs are replaced, each by one character.
    """
    return _COMMANDS.sub(lambda found: instead, text)


_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def named_line(error: BaseException | None, limit: int = 300) -> str:
    """The kind and the first line of an error, to stand in a message of ours."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:limit]


def without_remedy(error: BlurifyError) -> str:
    """What one of our errors says is wrong, for a message that says itself what to do."""
    return str(error).partition(": give ")[0]


def text_of(error: object) -> str:
    """The whole text of an error in one line; '' where there is none, or its own code fails to make it."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""
