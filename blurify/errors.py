"""The errors a user can meet. Each message is one line that says what to do."""

from __future__ import annotations


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
