"""What a file needs and does not get, in one line that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def explain_missing(path: Path, missing: Mapping[str, str]) -> str:
    """One line: which classes the file needs, and what the user can do about each.

    Args:
        path: the file.
        missing: full name -> why it can't be made, '' where it is only not on the list.
    """
    absent = {name: why for name, why in missing.items() if why}
    if absent:
        name, why = next(iter(absent.items()))
        top = name.partition(".")[0]
        version = getattr(sys.modules.get(top), "__version__", "")
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        return (
            f"{path} needs {_printable(name)}{more}, {why} ({version}): install the version of {top} that the model "
            "was saved with"
        )
    names = [_printable(name) for name in missing]
    script = [name for name in names if name.startswith("__main__.")]
    if script:
        return (
            f"{path} needs the class {script[0]}, which was defined in the script that saved it: save its state_dict "
            "and give the model with --arch python:module:factory, or save it again with the class in a module of its "
            "own"
        )
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    options = " ".join(f"--allow {name}" for name in names[:8])
    what = "the class" if len(names) == 1 else "the classes"
    those = "that class" if len(names) == 1 else "them"
    return f"{path} needs {what} {listed}: add {options} if you trust {those} (the package must be importable)"


def _printable(name: str) -> str:
    return ascii(name)[1:-1][:200]
