"""Which classes and functions a file may name, and what for.

Nothing is allowed because it looks harmless: `known.json` lists what the architectures of timm and torchvision consist
of (`benchmarks/pickle_names.py` pickles all of them and writes it), and the layers of those libraries and of torch
whose source it has looked through; `known_ultralytics.json` lists the same of the networks of ultralytics. A name is
looked up only when it is on the list, or when the user allowed it.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import importlib
import json
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.tree import Name
from blurify.files.sources.own_file import import_from_here

MOVED = {
    f"{old}.{name}": f"{new}.{name}"
    for (old, new), names in {
        ("blurify.layers", "blurify.nn.blurpool"): "BlurPool1d BlurPool2d BlurPool3d",
        ("blurify.layers", "blurify.nn.pools"): (
            "MaxBlurPool1d MaxBlurPool2d MaxBlurPool3d AvgBlurPool1d AvgBlurPool2d AvgBlurPool3d"
        ),
        ("blurify.calls", "blurify.nn.calls"): "DenseConv BlurredConv BlurredMaxPool BlurredSlice BlurredAvgPool",
        ("blurify.rewriting", "blurify.nn.legacy"): "rewritten_instance",
        ("blurify.surgery", "blurify.nn.legacy"): "blur_output blur_input",
        ("blurify.plan", "blurify.spec.edits"): "Blur SetStride BlurOutput BlurInput BlurPooling Rewrite",
        ("blurify.plan", "blurify.spec.plan"): "Site Plan",
        ("blurify.recipes", "blurify.spec.recipes"): "Recipe",
        ("blurify.verification", "blurify.proof.proof"): "Proof",
    }.items()
    for name in names.split()
}
"""Where what files of blurify 0.1.0 name is now."""

EDITED = frozenset({"blurify.nn.edited.edited_instance", "blurify.nn.legacy.rewritten_instance"})
"""A module whose class blurify edited: of the class as its author wrote it, and edits, which the plan says again."""

PLAIN_RECORDS = frozenset(
    {f"blurify.spec.edits.{name}" for name in "Blur SetStride BlurOutput BlurInput BlurPooling Rewrite".split()}
    | {"blurify.spec.plan.Site", "blurify.spec.plan.Plan", "blurify.spec.recipes.Recipe", "blurify.proof.proof.Proof"}
)
"""Plans and proofs as 0.1.0 pickled them: objects, which are read as the dictionaries that they are today."""

LEGACY_HOOKS = frozenset({"blurify.nn.legacy.blur_output", "blurify.nn.legacy.blur_input"})
"""The hooks that ran a blur in 0.1.0."""

CONTAINERS = frozenset(
    {
        "builtins.set",
        "builtins.frozenset",
        "builtins.slice",
        "builtins.range",
        "builtins.complex",
        "collections.OrderedDict",
        "collections.defaultdict",
        "collections.Counter",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "functools.partial",
        "_codecs.encode",
        "builtins.getattr",
    }
)
"""What plain data consists of; `building` says how each is made."""

FACTORIES = {f"builtins.{kind.__name__}": kind for kind in (list, dict, set, int, float)}
"""What a defaultdict may make its values with."""

TENSORS = frozenset(
    {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
    | {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
    | {"torch._utils._rebuild_meta_tensor_no_storage", "torch._tensor._rebuild_from_type_v2"}
)
"""How pickles make tensors."""

TENSOR_TYPES = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.nn.parameter.Buffer"}
)
_STORAGE_NAMES = frozenset({"torch.storage.UntypedStorage", "torch.storage.TypedStorage"})

# No model needs these: a file that names them is reported as what it probably is.
_SUSPICIOUS = frozenset(
    "os posix nt sys subprocess shutil socket runpy importlib ctypes code codeop pty platform webbrowser pickle marshal"
    " commands popen2 timeit cProfile profile pdb bdb trace asyncio multiprocessing threading tempfile http urllib "
    "ftplib"
    " smtplib ssl signal _posixsubprocess nturl2path operator imp".split()
)
_DANGEROUS_BUILTINS = frozenset(
    "eval exec compile open __import__ input breakpoint setattr delattr globals locals vars".split()
)


@functools.cache
def known() -> Mapping[str, frozenset[str]]:
    """The list: of every kind ('modules', 'records', 'enums', 'values', 'bound', 'keys'), the full names."""
    home = resources.files("blurify.files.pickled")
    names: dict[str, frozenset[str]] = {}
    for file in ("known.json", "known_ultralytics.json"):
        for kind, some in json.loads(home.joinpath(file).read_text())["names"].items():
            names[kind] = names.get(kind, frozenset()).union(some)
    pools = [f"blurify.nn.pools.{kind}BlurPool{rank}d" for kind in ("Max", "Avg") for rank in (1, 2, 3)]
    own = frozenset(f"{pool}.{key}" for pool in pools for key in ("dense_kernel_size", "unless_global"))
    # YOLOv5, and all that was made of it, keeps a text there on whatever module a model has; nothing calls it.
    own |= {"torch.nn.modules.module.Module.type"}
    # What an exported program is read as: data for a fixed table of functions.
    exported = frozenset(f"blurify.nn.exported.{name}" for name in ("Exported", "Part", "Op", "Slice"))
    fourier = frozenset(f"blurify.nn.fourier.FourierPool{rank}d" for rank in (1, 2, 3))
    return {**names, "modules": names["modules"] | exported | fourier, "keys": names["keys"] | own}


class Names:
    """What the names in one file stand for.

    Args:
        allow: full names of further classes ('mypkg.nets.Net') that the user trusts.
        source: the user's own module, whose classes and functions are trusted, too: under its own name, within any
            package, and as those of the script that it was when the model was saved.

    Attributes:
        trusted: by full name, the classes.

    Raises:
        BlurifyError: one of them can't be imported.
    """

    def __init__(self, allow: Iterable[str] = (), source: types.ModuleType | None = None) -> None:
        self.trusted: dict[str, type] = {name: _import_allowed(name) for name in allow}
        self._functions: dict[str, types.FunctionType] = {}
        self._home = source.__name__.rpartition(".")[2] if source is not None else None
        if source is not None:
            own = own_members(source)
            self.trusted |= {f"{self._home}.{name}": one for name, one in own.items() if isinstance(one, type)}
            self._functions = {f"{self._home}.{name}": one for name, one in own.items() if is_function(one)}

    def module(self, name: Name) -> type[nn.Module] | None:
        """The class of modules that a name stands for, if it is one that may be made."""
        full = self.full(name)
        trusted = self.trusted.get(full)
        if trusted is not None:
            return trusted if issubclass(trusted, nn.Module) else None
        return _class(full) if full in known()["modules"] else None

    def record(self, name: Name) -> type | None:
        """A class that only holds settings."""
        full = self.full(name)
        return _class(full) if full in known()["records"] else None

    def enumeration(self, name: Name) -> type[enum.Enum] | None:
        """An enumeration, whose members are settings."""
        full = self.full(name)
        return _class(full) if full in known()["enums"] else None

    def value(self, name: Name) -> Any:
        """What an attribute may hold: a function that computes with tensors, a class of layers, a dtype; else None."""
        full = self.full(name)
        if full in self.trusted:
            return self.trusted[full]
        if full in self._functions:
            return self._functions[full]
        if full in known()["values"]:
            return _look_up(full)
        if name.module == "torch":
            found = vars(torch).get(name.name)
            if isinstance(found, torch.dtype | torch.layout | torch.memory_format):
                return found
        return FACTORIES.get(full)

    def full(self, name: Name) -> str:
        """The full name, today's for one of 0.1.0, and the module's own for one of the user's source."""
        if self._home is not None and name.module.rpartition(".")[2] in (self._home, "__main__"):
            own = f"{self._home}.{name.name}"
            if own in self.trusted or own in self._functions:
                return own
        return MOVED.get(name.full, name.full)

    def missing(self, name: Name) -> str | None:
        """Why a name can't be made anything of, '' where it is only not on the list; None where it is fine."""
        full = self.full(name)
        kinds = known()
        if full in self._functions:
            return None
        if full in self.trusted or full in CONTAINERS | TENSORS | TENSOR_TYPES | EDITED | PLAIN_RECORDS | LEGACY_HOOKS:
            return None
        if full in FACTORIES or full in _STORAGE_NAMES:
            return None
        if any(full in kinds[kind] for kind in ("modules", "records", "enums", "values")):
            top = full.partition(".")[0]
            return None if _look_up(full) is not None else f"which the installed {top} doesn't have"
        if name.module == "torch" and (name.name.endswith("Storage") or self.value(name) is not None):
            return None
        return _absent(name)


def _absent(name: Name) -> str:
    """Whether a library that is installed has no such class, by its files: only what is on the list is imported."""
    top, *parts = name.module.split(".")
    if top not in ("torch", "torchvision", "timm") or not all(part.isidentifier() for part in parts):
        return ""
    home = Path(str(importlib.import_module(top).__file__)).parent.joinpath(*parts)
    absent = f"which the installed {top} doesn't have"
    if not home.is_dir() and not home.with_suffix(".py").is_file():
        return absent
    homes = {full.rpartition(".")[0] for full in known()["modules"]}
    return absent if name.module in homes and _look_up(name.full) is None else ""


def _class(full: str) -> Any:
    found = _look_up(full)
    return found if isinstance(found, type) else None


@functools.cache
def _look_up(full: str) -> Any:
    """What a name on the list stands for; None where the installed library has no such thing."""
    module, _, name = full.rpartition(".")
    try:
        with warnings.catch_warnings(), _others_as_they_were():
            warnings.simplefilter("ignore")  # deprecated paths
            holder = importlib.import_module(module)
    except ImportError:
        return None
    return vars(holder).get(name)


@contextlib.contextmanager
def _others_as_they_were() -> Iterator[None]:
    """Undo what an import puts in the place of other packages' functions, as ultralytics does."""
    image = importlib.import_module("PIL.Image")
    before = [
        (holder, key, getattr(holder, key)) for holder, key in ((torch, "load"), (torch, "save"), (image, "open"))
    ]
    try:
        yield
    finally:
        for holder, key, own in before:
            setattr(holder, key, own)


def own_members(module: types.ModuleType) -> dict[str, Any]:
    """The classes and functions that a module defines, by name."""
    return {
        name: one
        for name, one in vars(module).items()
        if isinstance(one, type | types.FunctionType) and one.__module__ == module.__name__
    }


def _import_allowed(name: str) -> Any:
    """The class that `--allow` names. Raises BlurifyError where there is none."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise BlurifyError(f"--allow {name}: give the class with its package, such as mypkg.nets.Net")
    try:
        found: Any = import_from_here(module)
    except Exception as error:  # the user's own package may fail in any way
        raise BlurifyError(
            f"--allow {name}: {module} can't be imported ({one_line(error)}): its package must be importable, so "
            "run from the directory that holds it, install it, or give its file as --source FILE.py"
        ) from error
    found = getattr(found, attribute, None)
    if found is None:
        raise BlurifyError(f"--allow {name}: {module} has no {attribute}")
    if not isinstance(found, type):
        raise BlurifyError(
            f"--allow {name}: that is not a class; --source FILE.py allows the functions of a file of your own, too, "
            "and --trust loads the whole file without any checks"
        )
    return found


def attack(names: Iterable[str]) -> str | None:
    """The first of the full names that only an attack needs."""
    for name in names:
        top, _, rest = name.partition(".")
        harmless = top == "operator" and rest in ("itemgetter", "attrgetter")
        if (top in _SUSPICIOUS and not harmless) or (top == "builtins" and rest in _DANGEROUS_BUILTINS):
            return name
    return None


def is_function(value: object) -> bool:
    """Whether a value on the list is a function."""
    return isinstance(value, types.FunctionType | types.BuiltinFunctionType)
