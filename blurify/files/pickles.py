"""Read a pickled `nn.Module` without running code that the file chooses.

Threat model. A pickle is a program: its REDUCE, INST and OBJ operations call whatever the file names, with arguments
that the file chooses, and BUILD, SETITEM and APPEND call methods of whatever is on the stack. Here the file comes from
somebody else, and loading it must not do more than make objects of known kinds. `torch.load(weights_only=True)` with an
allowlist does not express that for whole modules: each allowed class or function becomes callable with any arguments
(`functools.partial`, a class whose constructor reads a file, `Enum`), BUILD looks `__setstate__` up on the instance
(where the file may have put a function), and files of the old format, which name their classes by persistent ids, can't
be read at all. So this is an unpickler of its own, handed to `torch.load` as its `pickle_module`; torch still reads the
archive and the tensors.

- Only classes and functions under `_LIBRARIES` are looked up, by walking module dictionaries and class bodies (no
  module `__getattr__`, no re-exports of other packages' objects: the object's own `__module__` counts). Nothing else is
  imported.
- Modules and dataclasses are made by `object.__new__` without arguments and filled by their class's `__setstate__`:
  constructors never run.
- Functions are inert references (`self.act = F.relu`), and only of a kind that computes with tensors.
- What may be called is a closed table (`_rebuilders`), and each entry checks its arguments.
- Containers are changed only when they are exactly `list`, `dict`, `set` or their `collections` variants.
- Everything else becomes an inert `Refused` placeholder, so that one pass finds every class that is missing; and the
  tensors of a training checkpoint stay readable next to, say, an `argparse.Namespace`, which is simply not made.

What remains: once a module is loaded, its *forward* runs code of torch, torchvision, timm and blurify on data that the
file chose, as any architecture does; and as the file also fills hooks, partials and attributes, that code is every
function, constructor and method that it may refer to, with arguments of its choice. So none of those may run source
text, start programs or touch files; the tables below leave out what does. A file can also waste memory or time.
"""

from __future__ import annotations

import _compat_pickle
import dataclasses
import enum
import functools
import importlib
import pickle
import sys
import types
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from blurify.errors import BlurifyError, one_line

# Where classes may come from: the class's own module must be one of these or lie below one.
_LIBRARIES = (
    "torch.nn",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.layers",
    "timm.models",
    "blurify.demo",
    "blurify.nn",
    "blurify.proof.proof",
    "blurify.spec.edits",
    "blurify.spec.plan",
    "blurify.spec.recipes",
)
# Below those, but no part of a network that is to be read: hooks that call what they hold, process groups, and classes
# whose constructors trace a model with torch.fx and execute the source text made of it, names of submodules included.
_NOT_FROM = (
    "torch.nn.parallel.distributed",
    "torch.nn.utils.parametrize",
    "torch.nn.utils._expanded_weights",
    "timm.models._features_fx",
    "torchvision.models.feature_extraction",
)

# Modules whose functions (not classes) are inert references: they compute with tensors. Of torchvision.ops only what
# it exports: `torchvision.ops.roi_align.lazy_compile` compiles whatever it is given, with any options.
_FUNCTIONS_OF = ("torch.nn.functional", "torch.nn.init", "torchvision.ops", "timm.layers.activations")
# The hooks that run a blur, and what else the architectures of timm 1.0.31 and torchvision 0.29 hold (all of them were
# pickled to find out): one function, and classes that are no modules but only hold settings; none has a `__setstate__`
# or does anything when made or filled.
_FUNCTIONS = frozenset(
    {
        "blurify.nn.legacy.blur_output",
        "blurify.nn.legacy.blur_input",
        "torchvision.models.optical_flow.raft._pass_through_h",
    }
)
_HELPERS = frozenset(
    {
        "timm.models._features.FeatureInfo",
        "torchvision.models.detection._utils.BalancedPositiveNegativeSampler",
        "torchvision.models.detection._utils.BoxCoder",
        "torchvision.models.detection._utils.BoxLinearCoder",
        "torchvision.models.detection._utils.Matcher",
        "torchvision.models.detection._utils.SSDMatcher",
    }
)
# Operators of torch that modules hold as `self.act = torch.relu`.
_TORCH_OPERATORS = frozenset(
    "abs add adaptive_avg_pool1d argmax cat celu clamp concat cos cumsum einsum erf exp flatten log logsumexp matmul "
    "max"
    " mean min mul norm permute prelu relu relu_ reshape rrelu rsqrt selu selu_ sigmoid sigmoid_ sin softmax sqrt "
    "square"
    " squeeze stack sub sum tanh tanh_ transpose unflatten unsqueeze conv1d conv2d conv3d max_pool1d max_pool2d "
    "max_pool3d"
    " avg_pool1d hardshrink threshold celu_ rrelu_ batch_norm layer_norm group_norm dropout".split()
)
# Blurify's own functions that make the instance of a module whose class was edited, today's and that of 0.1.0.
_EDITED = ("blurify.nn.edited.edited_instance", "blurify.nn.legacy.rewritten_instance")


def _moved() -> dict[str, str]:
    homes = {
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
    }
    return {f"{old}.{name}": f"{new}.{name}" for (old, new), names in homes.items() for name in names.split()}


_MOVED = _moved()
"""Where what files of blurify 0.1.0 name is now. The new name goes through the gate like any other."""

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

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


class Refused:
    """Stands for an object that was not made; holds nothing and does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class _Callee:
    """What a file gets where it names a function that only loading calls (getattr): nothing can call it later."""

    def __init__(self, name: str) -> None:
        self.__module__, _, self.__qualname__ = name.rpartition(".")


class Gate:
    """Decides what a file may name; remembers what it refused.

    Args:
        allow: qualified names of further classes ('mypkg.nets.Net') that the user trusts: their packages are imported
            and their constructors and `__setstate__` may run. Raises BlurifyError where one can't be imported.

    Attributes:
        refused: name -> why, in words, of everything that the file named and did not get.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.trusted = {name: _import_allowed(name) for name in allow}
        self.refused: dict[str, str] = {}
        self._objects: dict[tuple[str, str], object] = {}
        # By identity: what the file may do with an object that it was given.
        self._rebuild: dict[int, Callable[..., Any]] = {id(obj): obj for obj in self.trusted.values()}
        self._new: dict[int, str] = {id(obj): "trusted" for obj in self.trusted.values()}
        self._made_classes: list[type] = []  # kept alive, since they are known by identity
        self._tables_ready = False

    def find(self, module: str, name: str) -> object:
        """The object that a file calls `module.name`, or a placeholder."""
        key = (module, name)
        if key not in self._objects:
            self._objects[key] = self._resolve(module, name)
        return self._objects[key]

    def rebuilder(self, function: object) -> Callable[..., Any] | None:
        """What to call where the file calls `function`; None: it may not."""
        return self._rebuild.get(id(function))

    def makes(self, cls: object) -> str:
        """How objects of this class are made: 'module', 'data', 'namedtuple', 'trusted', or '' (not at all)."""
        return self._new.get(id(cls), "")

    def refuse(self, name: str, why: str = "") -> Refused:
        """Remember that `name` was refused."""
        self.refused.setdefault(name, why)
        return Refused(name)

    def _resolve(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full in self.trusted:
            return self.trusted[full]
        if not self._tables_ready:
            self._tables_ready = True
            for key, (obj, call) in _rebuilders(self).items():
                self._objects[key] = obj
                if call is not None:
                    self._rebuild[id(obj)] = call
        if (module, name) in self._objects:
            return self._objects[(module, name)]
        if module == "torch" and not name.startswith("_"):
            import torch

            value = vars(torch).get(name)
            if isinstance(value, torch.dtype | torch.layout | torch.memory_format) or value in torch._storage_classes:
                return value
        if module == "torch._C._nn" and not name.startswith("_"):
            import torch

            value = getattr(torch._C._nn, name, None)
            if isinstance(value, types.BuiltinFunctionType):
                return value
        if _below(module, _LIBRARIES) and not _below(module, _NOT_FROM):
            return self._from_library(module, name)
        return self.refuse(full)

    def _from_library(self, module: str, name: str) -> object:
        import torch

        full = f"{module}.{name}"
        top = module.partition(".")[0]
        absent = f"which the installed {top} doesn't have"
        if not all(part.isidentifier() for part in module.split(".")):
            return self.refuse(full)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated paths of old files
                holder: Any = importlib.import_module(module)
        except ImportError:
            return self.refuse(full, absent)
        for part in name.split("."):
            if not isinstance(holder, types.ModuleType | type):
                return self.refuse(full)
            holder = vars(holder).get(part)
            if holder is None:
                return self.refuse(full, absent)
        home = getattr(holder, "__module__", None)
        if not isinstance(home, str) or not _below(home, _LIBRARIES) or _below(home, _NOT_FROM):
            return self.refuse(full)
        if isinstance(holder, type):
            if issubclass(holder, torch.nn.Module):
                self._new[id(holder)] = "module"
            elif issubclass(holder, enum.Enum):
                self._rebuild[id(holder)] = functools.partial(_rebuild_enum, holder)
            elif issubclass(holder, tuple) and hasattr(holder, "_fields"):
                self._new[id(holder)] = "namedtuple"
            elif dataclasses.is_dataclass(holder) or f"{home}.{holder.__qualname__}" in _HELPERS:
                self._new[id(holder)] = "data"
            else:
                return self.refuse(full)
            return holder
        if isinstance(holder, types.FunctionType):
            if full in _EDITED:
                self._rebuild[id(holder)] = self._edited(holder)
                return holder
            if f"{home}.{holder.__qualname__}" in _FUNCTIONS:
                return holder
            if _below(home, _FUNCTIONS_OF) and (not _below(home, ("torchvision.ops",)) or _is_operator(holder)):
                return holder
        return self.refuse(full)

    def _edited(self, make: Callable[..., Any]) -> Callable[..., Any]:
        from blurify.nn import edited, legacy

        def rebuild(*args: Any) -> Any:
            if len(args) != 2 or self.makes(args[0]) not in ("module", "trusted") or not isinstance(args[1], tuple):
                raise pickle.UnpicklingError("an edited module is made of a module's class and the changes")
            changes = args[1] if make is edited.edited_instance else legacy.changes_of_rewrites(args[1])
            if any(change[1][0][0] in _own_methods() for change in changes if change[0] == "expression"):
                raise pickle.UnpicklingError("only what a forward runs is rewritten")
            made = edited.edited_instance(args[0], changes)
            self._made_classes.append(type(made))
            self._new[id(type(made))] = "module"
            return made

        return rebuild


def _below(module: str, roots: Iterable[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


@functools.cache
def _own_methods() -> frozenset[str]:
    """What `nn.Module` itself can do (train, apply, compile, ...), except what every network overrides."""
    import torch

    methods = {name for name, value in vars(torch.nn.Module).items() if isinstance(value, types.FunctionType)}
    return frozenset(methods | {"_compiled_call_impl"}) - {"forward", "extra_repr"}


def _is_operator(function: types.FunctionType) -> bool:
    import torchvision

    return vars(torchvision.ops).get(function.__qualname__) is function


def _import_allowed(name: str) -> Any:
    """The class that `--allow` names. Raises BlurifyError where there is none."""
    module, _, attribute = name.rpartition(".")
    if not module:
        raise BlurifyError(f"--allow {name}: give the class with its package, such as mypkg.nets.Net")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # the user's own package may fail in any way
        raise BlurifyError(
            f"--allow {name}: {module} can't be imported ({one_line(error)}): its package must be importable from here"
        ) from error
    found = getattr(found, attribute, None)
    if found is None:
        raise BlurifyError(f"--allow {name}: {module} has no {attribute}")
    if not isinstance(found, type):
        raise BlurifyError(f"--allow {name}: that is not a class; --trust loads the whole file without any checks")
    return found


def _rebuild_enum(cls: type[enum.Enum], *args: Any) -> Any:
    if len(args) != 1 or not isinstance(args[0], _PLAIN):
        raise pickle.UnpicklingError(f"{cls.__name__} is made of one plain value")
    return cls(args[0])


def _rebuilders(gate: Gate) -> dict[tuple[str, str], tuple[Any, Callable[..., Any] | None]]:
    """The closed table of what a file may call: name -> (the object the file gets, what a call of it does)."""
    import torch
    from torch import _utils

    operators: Any = torch._C._VariableFunctionsClass  # type: ignore[attr-defined]

    def tensor_first(function: Callable[..., Any]) -> Callable[..., Any]:
        def rebuild(*args: Any) -> Any:
            if not args or not isinstance(args[0], torch.Tensor):
                raise pickle.UnpicklingError("a parameter is made of a tensor")
            return function(*args)

        return rebuild

    def from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
        # A tensor with attributes. The function is called, so it must be one of the tensor rebuilders.
        if not any(function is known for known in tensors) or kind not in (torch.Tensor, torch.nn.Parameter):
            raise pickle.UnpicklingError("only plain tensors are rebuilt")
        call = gate.rebuilder(function)
        assert call is not None
        rebuild: Any = torch._tensor._rebuild_from_type_v2
        return rebuild(call, kind, args, state)

    def partial(*args: Any) -> Any:
        if len(args) != 1 or not _is_reference(args[0]):
            raise pickle.UnpicklingError("functools.partial is made of one function")
        return functools.partial(args[0])

    def default(*args: Any) -> Any:
        if len(args) > 1 or (args and args[0] not in (list, dict, int, float, set, None)):
            raise pickle.UnpicklingError("defaultdict with an unknown factory")
        return defaultdict(*args)

    def attribute(owner: Any, name: Any, *rest: Any) -> Any:
        # Pickle writes `torch.relu` and bound methods as calls of getattr.
        if rest or not isinstance(name, str) or name.startswith("_"):
            raise pickle.UnpicklingError("getattr of something private")
        if owner is operators:
            if name in _TORCH_OPERATORS:
                return getattr(operators, name)
        elif (
            isinstance(owner, torch.nn.Module)
            and gate.makes(type(owner))
            and name not in _own_methods()  # `compile` runs the C++ compiler that its options name
            and not name.startswith("load")  # reads a file
        ):
            method = getattr(type(owner), name, None)
            if isinstance(method, types.FunctionType):
                return types.MethodType(method, owner)
        return gate.refuse(f"{getattr(owner, '__name__', type(owner).__name__)}.{name}")

    def device(*args: Any) -> Any:
        return torch.device(*args)

    functions: dict[str, Callable[..., Any]] = {
        "_rebuild_tensor": _utils._rebuild_tensor,
        "_rebuild_tensor_v2": _utils._rebuild_tensor_v2,
        "_rebuild_tensor_v3": _utils._rebuild_tensor_v3,
        "_rebuild_sparse_tensor": _utils._rebuild_sparse_tensor,
        "_rebuild_meta_tensor_no_storage": _utils._rebuild_meta_tensor_no_storage,
        "_rebuild_qtensor": _utils._rebuild_qtensor,
        "_rebuild_parameter": tensor_first(_utils._rebuild_parameter),
        "_rebuild_parameter_with_state": tensor_first(_utils._rebuild_parameter_with_state),
    }
    table: dict[tuple[str, str], tuple[Any, Callable[..., Any] | None]] = {
        ("torch._utils", name): (_Callee(f"torch._utils.{name}"), call) for name, call in functions.items()
    }
    tensors = [obj for obj, _ in table.values()]
    table[("torch._tensor", "_rebuild_from_type_v2")] = (_Callee("torch._tensor._rebuild_from_type_v2"), from_type)
    layout = torch.serialization._get_layout
    table[("torch.serialization", "_get_layout")] = (_Callee("torch.serialization._get_layout"), layout)
    table[("torch", "Size")] = (torch.Size, torch.Size)
    table[("torch", "device")] = (torch.device, device)
    table[("torch", "Tensor")] = (torch.Tensor, None)
    for module in ("torch.nn.parameter", "torch.nn"):
        table[(module, "Parameter")] = (torch.nn.Parameter, None)
    for name in ("UntypedStorage", "TypedStorage"):
        table[("torch.storage", name)] = (getattr(torch.storage, name), None)
    table[("torch._C", "_VariableFunctionsClass")] = (operators, None)
    table[("builtins", "getattr")] = (_Callee("builtins.getattr"), attribute)
    callable_types: tuple[type, ...] = (set, frozenset, complex, bytearray, slice, range)
    for kind in (*callable_types, list, dict, int, float, bool, str, tuple):
        table[("builtins", kind.__name__)] = (kind, kind if kind in callable_types else None)
    table[("collections", "OrderedDict")] = (OrderedDict, OrderedDict)
    table[("collections", "Counter")] = (Counter, Counter)
    table[("collections", "defaultdict")] = (defaultdict, default)
    table[("functools", "partial")] = (_Callee("functools.partial"), partial)
    table[("_codecs", "encode")] = (_Callee("_codecs.encode"), _encode)
    return table


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # Protocol 2 writes bytes so; other codecs are none of a model's business.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes are written in latin1")
    return text.encode("latin1")


def _is_reference(value: object) -> bool:
    """Whether a partial may hold it: a function, a class, a bound method or another partial, all from the gate."""
    return isinstance(
        value, types.FunctionType | types.BuiltinFunctionType | types.MethodType | type | functools.partial
    )


_PICKLE_DISPATCH: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch
_BUILD_AS_PICKLE = _PICKLE_DISPATCH[pickle.BUILD[0]]


class _Unpickler(pickle._Unpickler):  # the one written in Python: operations can be replaced
    gate: ClassVar[Gate]
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if getattr(self, "proto", 2) < 3:  # names of Python 2
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[(module, name)]
            elif module in _compat_pickle.IMPORT_MAPPING:
                module = _compat_pickle.IMPORT_MAPPING[module]
        return self.gate.find(*_home(module, name))

    def _reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("a call without a tuple of arguments")
        if isinstance(function, Refused) or any(isinstance(arg, Refused) for arg in args):
            known = self.gate.rebuilder(function) is not None  # then only what it is made of is missing
            self.stack[-1] = next(arg for arg in args if isinstance(arg, Refused)) if known else self._unmade(function)
            return
        call = self.gate.rebuilder(function)
        self.stack[-1] = self._unmade(function) if call is None else call(*args)

    def _newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack.pop()
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("a new object without a tuple of arguments")
        how = self.gate.makes(cls)
        made: Any
        if how == "trusted":
            made = cls.__new__(cls, *args)
        elif how == "namedtuple":
            made = tuple.__new__(cls, args) if len(args) == len(cls._fields) else self._unmade(cls)
        elif how and not args and cls.__new__ is object.__new__:
            made = object.__new__(cls)
        else:
            made = self._unmade(cls)
        self.stack.append(made)

    def _unmade(self, what: Any) -> Refused:
        if isinstance(what, Refused):
            return what
        home = getattr(what, "__module__", None) or "builtins"
        return self.gate.refuse(f"{home}.{getattr(what, '__qualname__', type(what).__name__)}")

    def _build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        cls = type(made)
        if isinstance(made, Refused):
            return
        how = self.gate.makes(cls)
        if how == "trusted":
            self.stack.append(state)
            _BUILD_AS_PICKLE(self)
        elif cls is OrderedDict and isinstance(state, dict):
            made.__dict__.update(state)
        elif cls is functools.partial:
            if isinstance(state, tuple) and len(state) == 4 and isinstance(state[0], Refused):
                return
            if not (isinstance(state, tuple) and len(state) == 4 and _is_reference(state[0])):
                raise pickle.UnpicklingError("functools.partial with an unknown state")
            functools.partial.__setstate__(made, state)  # type: ignore[attr-defined]
        elif how in ("module", "data") and isinstance(state, dict) and all(type(key) is str for key in state):
            # The class's own __setstate__: the file may have put something under that name into the instance.
            shadowed = [key for key in state if key in _own_methods() and callable(state[key])]
            if how == "module" and shadowed:  # blurify itself would call it, as in `model.eval()`
                raise pickle.UnpicklingError(f"a {cls.__name__} with a {shadowed[0]} of its own")
            setstate = getattr(cls, "__setstate__", None)
            if setstate is not None and how == "module":
                setstate(made, state)
            else:
                made.__dict__.update(state)
        else:
            raise pickle.UnpicklingError(f"a state for a {cls.__name__}")

    def _persistent(self) -> None:
        pid = self.stack.pop()
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("an unknown persistent id")
        kind = pid[0].decode("ascii", "replace") if isinstance(pid[0], bytes) else pid[0]
        if kind == "module" and len(pid) == 4:
            # The old format: a class with its source text, which torch would compare; only the class counts.
            self.stack.append(pid[1] if self.gate.makes(pid[1]) else self._unmade(pid[1]))
        elif kind == "storage" and len(pid) in (5, 6) and _is_storage_type(pid[1]):
            self.stack.append(self.persistent_load(pid))
        else:
            raise pickle.UnpicklingError("an unknown persistent id")

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self._mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Refused):
            return
        if type(target) is not list:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        target.extend(values)

    def _setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update([key, value])

    def _setitems(self) -> None:
        self._update(self._mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Refused):
            return
        if type(target) not in (dict, OrderedDict, Counter, defaultdict):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _additems(self) -> None:
        items = self._mark()
        target = self.stack[-1]
        if isinstance(target, Refused):
            return
        if type(target) is not set:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        target.update(items)

    def _mark(self) -> list[Any]:
        items: list[Any] = self.pop_mark()  # type: ignore[attr-defined]
        return items

    def _forbidden(self) -> None:
        raise pickle.UnpicklingError("an operation of the pickle format that torch.save never writes")


def _is_storage_type(value: object) -> bool:
    import torch

    if isinstance(value, torch.serialization.StorageType):
        return True
    return isinstance(value, type) and issubclass(value, torch.storage.TypedStorage | torch.UntypedStorage)


_HANDLERS: dict[str, Callable[[Any], None]] = {
    "REDUCE": _Unpickler._reduce,
    "NEWOBJ": _Unpickler._newobj,
    "BUILD": _Unpickler._build,
    "BINPERSID": _Unpickler._persistent,
    "APPEND": _Unpickler._append,
    "APPENDS": _Unpickler._appends,
    "SETITEM": _Unpickler._setitem,
    "SETITEMS": _Unpickler._setitems,
    "ADDITEMS": _Unpickler._additems,
}
# Taken as they are: they read constants, tuples and the memo, and move the stack.
_KEPT = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
    "BINFLOAT"
    " STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8"
    " TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET LIST DICT FROZENSET GET BINGET LONG_BINGET"
    " PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL"
).split()
for _code in _PICKLE_DISPATCH:
    _Unpickler.dispatch[_code] = _Unpickler._forbidden  # INST, OBJ, NEWOBJ_EX, EXT1.., PERSID, buffers
for _name in _KEPT:
    _Unpickler.dispatch[getattr(pickle, _name)[0]] = _PICKLE_DISPATCH[getattr(pickle, _name)[0]]
for _name, _handler in _HANDLERS.items():
    _Unpickler.dispatch[getattr(pickle, _name)[0]] = _handler


class _Trusting(pickle.Unpickler):
    """Python's own, which makes whatever the file names; only old names of ours are told their new homes."""

    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*_home(module, name))


def _home(module: str, name: str) -> tuple[str, str]:
    """Where what a file calls `module.name` is today."""
    home, dot, moved = _MOVED.get(f"{module}.{name}", "").rpartition(".")
    return (home, moved) if dot else (module, name)


def pickle_module(gate: Gate) -> Any:
    """What `torch.load` takes as `pickle_module`: an unpickler that asks this gate."""
    return _as_module(type("Unpickler", (_Unpickler,), {"gate": gate}))


def _as_module(unpickler: Any) -> Any:
    def load(file: Any, **options: Any) -> Any:
        return unpickler(file, **options).load()

    return types.SimpleNamespace(__name__="blurify.files.pickles", Unpickler=unpickler, load=load)


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load(path: Path, *, allow: Sequence[str] = (), trust: bool = False) -> tuple[Any, dict[str, str]]:
    """Read what `torch.save` wrote, on the CPU, without running code that the file chooses.

    Args:
        path: a file in torch's zip format or its older one.
        allow: qualified names of further classes that may be made.
        trust: run whatever the file says; the caller has asked the user.

    Returns:
        The content, in which everything that was not allowed is a `Refused`, and the names refused (see
        `Gate.refused`).

    Raises:
        BlurifyError: the file is damaged, or names functions that only an attack needs.
    """
    import torch

    gate = Gate(allow)
    try:
        with _quietly(), path.open("rb") as file:
            if trust:
                trusting = _as_module(_Trusting)
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=trusting), {}
            # Not by its path: torch would also try the tar format of 2016, which it unpacks on the disk.
            source: Any = file if _is_zip(file) else _Opaque(file)
            module = pickle_module(gate)
            content = torch.load(source, map_location="cpu", weights_only=False, pickle_module=module)
    except BlurifyError:
        raise
    except RecursionError as error:
        raise BlurifyError(f"{path} is nested too deeply to be a model") from error
    except Exception as error:
        _check_suspicious(path, gate.refused)
        if "TORCH_FORCE_WEIGHTS_ONLY_LOAD" in one_line(error) or "explicit pickle_module" in one_line(error):
            raise BlurifyError("unset TORCH_FORCE_WEIGHTS_ONLY_LOAD: blurify loads files safely by itself") from error
        if gate.refused:
            raise BlurifyError(explain_refused(path, gate.refused)) from error
        why = f"{type(error).__name__}: {one_line(error)}" if trust else one_line(error)
        raise BlurifyError(
            f"{path} can't be read as a checkpoint: it is damaged, cut off, or no model ({why})"
        ) from error
    _check_suspicious(path, gate.refused)
    return content, gate.refused


def _is_zip(file: Any) -> bool:
    start = file.read(4)
    file.seek(0)
    return bool(start == b"PK\x03\x04")


class _Opaque:
    """A file without a descriptor: torch reads it piece by piece, and leaves the tar format alone."""

    def __init__(self, file: Any) -> None:
        self.read, self.readline, self.seek, self.tell = file.read, file.readline, file.seek, file.tell
        self.readinto = file.readinto


def _check_suspicious(path: Path, refused: Iterable[str]) -> None:
    for name in refused:
        top, _, rest = name.partition(".")
        harmless = top == "operator" and rest in ("itemgetter", "attrgetter")
        if (top in _SUSPICIOUS and not harmless) or (top == "builtins" and rest in _DANGEROUS_BUILTINS):
            raise BlurifyError(
                f"{path} calls {name}, which no model needs: it may be an attack, and nothing of it was run; get the "
                f"weights"
                " from a source that you trust, best as .safetensors"
            )


def explain_refused(path: Path, refused: dict[str, str]) -> str:
    """One line: which classes the file needs, and what the user can do about each."""
    absent = {name: why for name, why in refused.items() if why}
    if absent:
        name, why = next(iter(absent.items()))
        top = name.partition(".")[0]
        version = getattr(sys.modules.get(top), "__version__", "")
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        return (
            f"{path} needs {name}{more}, {why} ({version}): install the version of {top} that the model was saved with"
        )
    names = list(refused)
    script = [name for name in names if name.startswith("__main__.")]
    if script:
        return (
            f"{path} needs the class {script[0]}, which was defined in the script that saved it: save its state_dict "
            f"and give"
            " the model with --arch python:module:factory, or save it again with the class in a module of its own"
        )
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    options = " ".join(f"--allow {name}" for name in names)
    what = "the class" if len(names) == 1 else "the classes"
    those = "that class" if len(names) == 1 else "them"
    return f"{path} needs {what} {listed}: add {options} if you trust {those} (the package must be importable)"
