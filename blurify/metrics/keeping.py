"""What is kept of a measurement that was ended, and whether it may be used: only for the same model and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError
from blurify.graph.structure import tensors_in
from blurify.metrics.by_kind import FIELDS
from blurify.metrics.journal import ENDING, open_journal, remove_old
from blurify.metrics.kept import Kept
from blurify.metrics.subject import Pictures, Subject
from blurify.proof.weights import digest_of, fingerprint
from blurify.surgery.carrying import plan_of
from blurify.versions import version_of, versions

CACHE = "BLURIFY_CACHE"
"""The environment variable that names the cache folder."""

_HEAD = "model"
_TOLERANCE = 0.01  # of an output's size: what other numbers of threads change is far below it
_SHOWN = 8


def cache_folder() -> Path:
    """Where results are kept: under $BLURIFY_CACHE, else $XDG_CACHE_HOME/blurify, else ~/.cache/blurify.

    Raises:
        OSError: there is no home folder.
    """
    named = os.environ.get(CACHE)
    try:
        if named:
            return Path(named).expanduser() / "measured"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "blurify", "measured")
    except RuntimeError as error:  # a user without an entry in the system's list, as in many a container
        raise OSError(f"there is no home folder: name one by {CACHE}") from error


def keep(subject: Subject, pictures: Pictures, *, folder: str | Path | None = None, fresh: bool = False) -> Kept | None:
    """What is kept of measuring this model on these pictures, to be handed to metrics, and to be closed at the end.

    Results are found again for the same weights, classes, plan, structure, plain floats and source code of the model
    (its classes' files, and all loaded ones that were not installed), the same preprocessing and precision on the same
    kind of device, the same files (by path, size and times; tensors by their values) with the same labels, and the
    same versions and source code of blurify and versions of torch, torchvision, timm, numpy, Pillow and Python. Where
    all that agrees, a picture of noise is shown to the model: if its answer is another one than before (a random
    forward, code that was loaded from elsewhere), everything is measured anew.

    Args:
        subject, pictures: as `measure` takes them.
        folder: of journals; None: `cache_folder()`. Journals that nobody went on with for 30 days are removed from it.
        fresh: begin anew.

    Returns:
        It; `kept.close(done=True)` removes what is not needed any more. None for pictures that can't be told
        from others (a set of the user's own without `fingerprint`), and where another run uses what may not be used.

    Raises:
        OSError: nothing can be kept there.
    """
    name = name_of(subject, pictures)
    return None if name is None else open_kept(name, subject, pictures, folder=folder, fresh=fresh)


def name_of(subject: Subject, pictures: Pictures) -> str | None:
    """The journal's name: differs wherever results may (see `keep`). None for pictures that can't be told apart."""
    shown = _pictures_identity(pictures)
    if shown is None:
        return None
    device = subject.device
    known = {
        "model": identity_of(subject.model),
        "preprocessing": dataclasses.asdict(subject.preprocessing),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": [str(subject.dtype), torch.get_float32_matmul_precision()],
        "pictures": shown,
        "versions": {**versions(), **{name: version_of(name) for name in ("numpy", "pillow")}},
        "blurify": _own_code(),
    }
    return _digest(known)


def open_kept(
    name: str, subject: Subject, pictures: Pictures, *, folder: str | Path | None = None, fresh: bool = False
) -> Kept | None:
    """`keep`, where `name_of` was asked already."""
    place = cache_folder() if folder is None else Path(folder).expanduser()
    remove_old(place)
    journal = open_journal(place / f"{name}{ENDING}")
    answer = _probe(subject)
    known = journal.entries.get(_HEAD, {}).get("")
    good = not fresh and isinstance(known, dict) and _alike(known.get("answer"), answer)
    if not good and journal.entries and not journal.forget():
        journal.close(done=False)
        return None
    if not good:
        journal.append(_HEAD, "", {"name": subject.name, "pictures": pictures.name, "answer": answer})
    return Kept(journal)


def of_output(kept: Kept, subject: Subject) -> Kept:
    """The same for what the model's output was taken for: under which `measure` has it."""
    return kept.under(output=dataclasses.asdict(subject.output))


def steps_of(metrics: Iterable[str], subject: Subject) -> list[str]:
    """The names under which metrics of a model are written down; agreement comes without being asked for."""
    return ["agreement", *(FIELDS[subject.output.kind] if name == "consistency" else name for name in metrics)]


def of_model(kept: Kept | None, model: nn.Module) -> Kept | None:
    """What is kept of another model on the same pictures, such as a conversion; see `Kept.under`."""
    return None if kept is None else kept.under(model=identity_of(model))


def subject_identity(subject: Subject) -> list[Any]:
    """What results depend on besides one's own model, where another takes part: plain data."""
    taken = subject.decided
    told = None if taken is None else dataclasses.asdict(taken)
    return [identity_of(subject.model), dataclasses.asdict(subject.preprocessing), told]


def identity_of(model: nn.Module) -> str:
    """A digest of what a model computes, as far as it can be told: weights, plan, structure and code."""
    plan = plan_of(model)
    kept = dict(model.state_dict(keep_vars=True))
    others = {name: buffer for name, buffer in model.named_buffers() if name not in kept}
    return _digest(
        {
            "weights": fingerprint(model),
            "others": {name: digest_of(buffer) for name, buffer in others.items()},
            "plan": plan.to_dict() if plan is not None else None,
            "classes": [f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()],
            "structure": re.sub(r" at 0x[0-9a-f]+", "", repr(model)),
            "numbers": [_numbers(module) for module in model.modules()],
            "code": _code_of(type(module) for module in model.modules()),
        }
    )


def _numbers(module: nn.Module) -> dict[str, Any]:
    """What a module keeps as plain floats, which few show in their `repr`. Not whole numbers: these often count."""

    def plain(value: Any) -> bool:
        if isinstance(value, tuple | list):
            return any(map(plain, value)) and all(isinstance(one, float | int) or plain(one) for one in value)
        return isinstance(value, float)

    return {name: value for name, value in sorted(vars(module).items()) if plain(value)}


def _pictures_identity(pictures: Pictures) -> Any:
    files = getattr(pictures, "files", None)
    seen = getattr(pictures, "fingerprint", "")
    if files is not None:
        # A fingerprint knows files by name and size alone; of signals it knows which stretches of them are meant.
        paths = [Path(getattr(file, "path", file)) for file in files]
        found = [(str(path.absolute()), *_times(path)) for path in paths]
        return [found, [getattr(file, "folder", "") for file in files], dict(getattr(pictures, "classes", {})), seen]
    labels = getattr(pictures, "labels", None)
    return [seen, labels.tolist() if isinstance(labels, torch.Tensor) else None] if seen else None


def _times(path: Path) -> tuple[int, int, int]:
    # The time of the last change of any kind can't be set by a user, as that of the contents can.
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _code_of(classes: Iterable[type]) -> list[Any]:
    """A digest of the files in which classes are written, and of all that is loaded and was not installed.

    Torch's are known by its version; of other packages the version counts besides, as they may call more of their own.
    """
    modules = {cls.__module__ for cls in classes if not cls.__module__.startswith("torch.")}
    packages = sorted({name.partition(".")[0] for name in modules})
    loaded = dict(sys.modules)
    files = {str(getattr(loaded.get(name), "__file__", None) or "") for name in modules}
    files |= {file for one in loaded.values() if _is_own(file := str(getattr(one, "__file__", None) or ""))}
    known = [str(getattr(loaded.get(name), "__version__", "")) for name in packages]
    return [packages, known, _of_files(sorted(files - {""}))]


def _is_own(file: str) -> bool:
    """Whether a file is the user's own code: Python's, that of packages and ours are known by version."""
    if not file.endswith(".py") or "site-packages" in file or "dist-packages" in file:
        return False
    return not file.startswith(_KNOWN)


_KNOWN = tuple(
    f"{folder}{os.sep}"
    for folder in (*map(sysconfig.get_path, ("stdlib", "platstdlib")), str(Path(__file__).parents[1]))
)


@functools.cache
def _own_code() -> str:
    return _of_files(sorted(map(str, Path(__file__).parents[1].rglob("*.py"))))


def _of_files(paths: Iterable[str]) -> str:
    total = hashlib.sha256()
    for path in paths:
        try:
            total.update(Path(path).read_bytes())
        except OSError:  # code in an archive, or written in a notebook
            total.update(path.encode())
    return total.hexdigest()


def _probe(subject: Subject) -> list[list[float]] | None:
    """What the model answers to a picture of noise, in a few numbers a tensor; None where it refuses it."""
    geometry = subject.preprocessing
    noise = torch.rand(1, geometry.channels, *geometry.crop, generator=torch.Generator().manual_seed(0))
    try:
        tensors = [tensor for tensor in tensors_in(subject.run(noise)) if tensor.is_floating_point()]
    except BlurifyError:
        return None
    flat = [tensor.detach().cpu().double().flatten() for tensor in tensors if tensor.numel()]
    return [[float(x.square().mean().sqrt()), float(x.mean()), *x[:_SHOWN].tolist()] for x in flat]


def _alike(one: Any, other: list[list[float]] | None) -> bool:
    """Whether a known answer, as it was read, is the model's."""
    if one is None or other is None:
        return one is None and other is None
    with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):  # nothing that was written here
        return all(
            abs(a - b) <= _TOLERANCE * there[0] or a == b or (math.isnan(a) and math.isnan(b))
            for here, there in zip(one, other, strict=True)
            for a, b in zip(here, there, strict=True)
        )
    return False


def _digest(known: Any) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]
