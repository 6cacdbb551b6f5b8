"""Exported programs (`torch.export`), read as data.

torch's own reader is no way to open a file that somebody else made: `torch.export.load` unpickles example inputs,
constants and some weights, evaluates sizes as text (`sympy.sympify`) and guards as Python, finds operators by
`getattr`, and loads compiled libraries. None of that is used here. `archive` reads what of the file is JSON or plain
bytes; `building` makes modules of them (`nn.exported`), by a list of operators; `operators` is that list.
"""

from __future__ import annotations

from blurify.files.programs.archive import Program, is_program, open_program
from blurify.files.programs.building import build

__all__ = ["Program", "build", "is_program", "open_program"]
