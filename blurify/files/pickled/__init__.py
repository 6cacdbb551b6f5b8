"""Read what torch.save wrote without running code that the file chooses.

Threat model. A pickle is a program, written by whoever made the file; loading it must do no more than make a model.
From the bottom up:

- `tree` reads the pickle into an inert tree: nothing that it names is looked up, called or changed.
- `archive` reads the file around it, once: no compressed, overlapping, doubled or unsummed part, and what was checked
  is what is used.
- `names` says what a name may stand for: a list of what the architectures of timm and torchvision need.
- `building` makes modules (`cls.__new__`, and a `__dict__` of plain data, tensors and modules) and tensors (within
  their storages) of what of the tree is wanted, and refuses the rest by name. No constructor of a module runs, but
  those that `--allow` names.
- `carrying` writes what stands beside a model again, as it was, from the tree.
- `saving` writes files anew, and compares them with what was meant.
- `content` answers what a file holds; `trusted` does so for a file that the user trusts, by Python's own unpickler.

What remains trusted is in docs/files.md: the code of torch, torchvision, timm and blurify, which runs when the model
does, on numbers and settings that the file chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from blurify.files.pickled.content import Content, Inert
from blurify.files.pickled.saving import compare, save
from blurify.files.pickled.trusted import Trusted

__all__ = ["Content", "compare", "read", "save"]


def read(
    path: Path,
    *,
    allow: Sequence[str] = (),
    trust: bool = False,
    content: bytes | None = None,
    source: ModuleType | None = None,
) -> Content:
    """What a file of torch.save holds, of which nothing is made before it is asked for.

    Args:
        path: a file in torch's zip format or its older one.
        allow: full names of further classes that modules may be made of; their code may run.
        trust: run whatever the file says; the caller has asked the user.
        content: the bytes to read, where they are only a part of the file.
        source: the user's own module, whose classes and functions are allowed.

    Raises:
        BlurifyError: the file is damaged, no such file, or names functions that only an attack needs.
    """
    return Trusted(path, source) if trust and content is None else Inert(path, allow, content, source)
