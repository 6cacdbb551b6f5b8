"""Build modules and tensors from the inert tree of a pickle.

A module is made by `cls.__new__` without arguments and gets a `__dict__` of plain data, tensors and modules; no
constructor runs. What a tree may hold is said here, kind by kind, and nothing else is made: no callables in the state
but the few on the list, no hooks, no key that hides what its class has, nothing larger or deeper than a model can be.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files.pickled.archive import Archive, storage_ref
from blurify.files.pickled.names import (
    CONTAINERS,
    EDITED,
    FACTORIES,
    LEGACY_HOOKS,
    PLAIN_RECORDS,
    TENSOR_TYPES,
    TENSORS,
    Names,
    is_function,
    known,
)
from blurify.files.pickled.tree import Call, DictNode, ListNode, Name, SetNode, Stored, UnreadableError, walk
from blurify.nn.edited import JOINED

MAX_DEPTH = 100
"""How deep plain data and modules may be nested: code that runs later goes down them one by one."""

MAX_MODULE_DEPTH = 64
MAX_WEIGHT = 5_000_000
"""How many objects a model may have where a shared one counts at every place: a forward runs it at each."""

MAX_KEY = 1000
MAX_SAME_HASH = 100
MAX_VIEWS = 8  # times the bytes of a file that its tensors have together, where many lie in one storage
MAX_NAME = 1000
_SPARE = 2**28  # bytes that tensors may have beyond what their file holds, as expanded ones have
_MAX_DIMS = 32
_LARGEST = 2**62

_QUANTIZED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})
_CONSTANTS = (type(None), bool, int, float, str, bytes)
_GROUPS = ("_parameters", "_buffers", "_modules")
_HOOKS = frozenset(
    f"_{name}"
    for name in (
        "backward_hooks backward_pre_hooks forward_hooks forward_hooks_with_kwargs forward_hooks_always_called "
        "forward_pre_hooks forward_pre_hooks_with_kwargs state_dict_hooks state_dict_pre_hooks "
        "load_state_dict_pre_hooks load_state_dict_post_hooks"
    ).split()
)
_PLAN, _PROOF, _ADAPTED = "_blurify_plan", "_blurify_proof", "_blurify_adapted"


class RefusedError(ValueError):
    """The file asks for what is not made without trust; the message says what."""


class Builder:
    """Makes what a tree says, each node once, so that what is shared stays shared.

    Args:
        archive: where the tensors are; it stays open.
        names: what names stand for.

    Attributes:
        edited: the modules whose class blurify had edited: they are made of the class that their author wrote.
    """

    def __init__(self, archive: Archive, names: Names) -> None:
        self._archive = archive
        self._names = names
        self._made: dict[tuple[int, str], Any] = {}
        self._weights: dict[tuple[int, str], int] = {}
        self._busy: set[int] = set()
        self._pending = [0]
        self._allow_bytes()
        self._owner: list[tuple[Call, nn.Module]] = []
        self.edited: list[nn.Module] = []

    # What a node is, without making it.

    def missing(self, node: Any) -> dict[str, str]:
        """Every name in a node that nothing is made of: full name -> why ('': it is only not on the list)."""
        found: dict[str, str] = {}
        for one in walk(node):
            if isinstance(one, Name):
                why = self._names.missing(one)
                if why is not None and one.full != "torch._C._VariableFunctionsClass":
                    found.setdefault(one.full, why)
        return found

    def name_of(self, node: Any) -> Name | None:
        """The name that a node is; old files wrap those of classes together with their source."""
        if isinstance(node, Stored) and len(node.pid) == 4 and node.pid[0] in ("module", b"module"):
            node = node.pid[1]
        return node if isinstance(node, Name) else None

    def called(self, node: Any) -> str:
        """The full name of what a call calls, '' for anything else."""
        name = self.name_of(node.function) if isinstance(node, Call) else None
        return self._names.full(name) if name is not None else ""

    def module_class(self, node: Any) -> type[nn.Module] | None:
        """The class of the module that a node would become."""
        if not isinstance(node, Call):
            return None
        name = self.name_of(node.args[0] if self.called(node) in EDITED and node.args else node.function)
        return self._names.module(name) if name is not None else None

    def is_tensor(self, node: Any) -> bool:
        """Whether a node is a tensor, perhaps one of a kind that is not read."""
        return self.called(node).startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_"))

    def items(self, node: Any) -> list[tuple[Any, Any]] | None:
        """The items of a dictionary."""
        if isinstance(node, DictNode) or self.called(node) in ("collections.OrderedDict", "collections.defaultdict"):
            return list(node.items)
        return None

    def metadata(self, node: Any) -> Any:
        """The `_metadata` of a state_dict, as plain data; None for what has none.

        Raises:
            RefusedError: it is no plain data.
        """
        state = node.state[0] if isinstance(node, Call) and node.state else None
        found = next((value for key, value in self.items(state) or () if key == "_metadata"), None)
        return None if found is None else self.plain(found)

    # Modules.

    def module(self, node: Any) -> nn.Module:
        """The module that a node says.

        Raises:
            RefusedError: it holds something that is not made.
            UnreadableError: it is damaged, or larger than a model can be.
        """
        cls = self.module_class(node)
        if cls is None:
            raise RefusedError(f"{_shown(node)} stands where a module should")
        made: nn.Module = self._once(node, lambda: self._module(node, cls))
        return made

    def _module(self, node: Call, cls: type[nn.Module]) -> nn.Module:
        edited = self.called(node) in EDITED
        trusted = cls in self._names.trusted.values()
        if trusted and not edited and not node.new:
            return self._trusted(cls, node)  # type: ignore[no-any-return]
        if not edited and (not node.new or node.appended or node.items or (node.args and not trusted)):
            raise RefusedError(f"a call of the class {cls.__name__}")
        if len(self._owner) >= MAX_MODULE_DEPTH:
            raise UnreadableError(f"modules are nested more than {MAX_MODULE_DEPTH} deep")
        if cls.__new__ is not object.__new__ and not trusted:
            raise RefusedError(f"the class {cls.__name__}, which makes its instances itself")
        module: nn.Module = cls.__new__(cls, *[self.value(one) for one in node.args] if not edited else ())
        self._made[id(node), ""] = module  # what is inside may refer to it
        if edited and node.args[1:] != ((JOINED,),):  # which no plan says: it changes nothing but how members are run
            self.edited.append(module)
        items = self.items(node.state[0]) if node.state else None
        setstate: Any = cls.__setstate__
        if items is None and trusted and node.state:  # its own __getstate__ wrote something else
            setstate(module, self.value(node.state[0]))
            return module
        if items is None:
            raise RefusedError(f"a {cls.__name__} without a state that is a dictionary")
        self._owner.append((node, module))
        state: dict[str, Any] = {}
        for key, value in items:
            if trusted and self._is_own_method(node, value):
                state[self._text(cls, key)] = self._method_of_trusted(cls, module, value)
            else:
                state[self._key(cls, key)] = self._attribute(cls, key, value)
        self._owner.pop()
        if not set(_GROUPS) <= set(state):
            raise RefusedError(f"a {cls.__name__} without parameters, buffers or modules")
        names: Counter[str] = Counter()
        for group in _GROUPS:
            names.update(state[group].keys())
        names.update(key for key in state if key in names)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise RefusedError(f"a {cls.__name__} with two attributes {_cut(twice[0])}")
        if issubclass(cls, nn.RNNBase) and not _names_its_weights(state):
            raise RefusedError(f"a {cls.__name__} as torch before 1.0 pickled it")  # which is counted out in a loop
        setstate(module, state)
        return module

    def _key(self, cls: type, key: Any) -> str:
        """A name in the state of an instance: nothing of the class, and nothing of Python's own."""
        key = self._text(cls, key)
        full = f"{cls.__module__}.{cls.__qualname__}.{key}"
        if key.startswith("_blurify") and key not in (_PLAN, _PROOF, _ADAPTED):
            raise RefusedError(f"a {cls.__name__} with {_cut(key)}, which only blurify sets")
        hidden = next((vars(base)[key] for base in cls.__mro__ if key in vars(base)), None)
        if hidden is None or _may_hide(cls, key) or full in known()["bound"]:
            return key
        if cls in self._names.trusted.values() and isinstance(hidden, (*_CONSTANTS, tuple, list, dict, set)):
            return key  # a default that the class gives
        raise RefusedError(f"a {cls.__name__} with {_cut(key)} of its own, which would hide that of its class")

    def _text(self, cls: type, key: Any) -> str:
        """A name that can be one, and none of those that Python gives a meaning."""
        if type(key) is not str or not key or not key.isprintable() or len(key) > MAX_NAME:
            raise RefusedError(f"a {cls.__name__} with an attribute whose name is no name")
        if key.startswith("__") and key.endswith("__"):
            raise RefusedError(f"a {cls.__name__} with {_cut(key)} of its own")
        return key

    def _is_own_method(self, owner: Call, node: Any) -> bool:
        return self.called(node) == "builtins.getattr" and len(node.args) == 2 and node.args[0] is owner

    def _method_of_trusted(self, cls: type[nn.Module], module: nn.Module, node: Call) -> types.MethodType:
        """`self.forward = self.forward_fused` in a class that the user allowed: a method that is not of nn.Module."""
        name = node.args[1] if type(node.args[1]) is str else ""
        home = next((base for base in cls.__mro__ if name in vars(base)), None)
        method = vars(home).get(name) if home is not None and home is not nn.Module else None
        if not isinstance(method, types.FunctionType) or name.startswith("__"):
            raise RefusedError(f"a {cls.__name__} with the method {_shown(node.args[1])}")
        return types.MethodType(method, module)

    def _attribute(self, cls: type[nn.Module], key: str, node: Any) -> Any:
        if key in _GROUPS:
            return self._group(cls, key, node)
        if key in _HOOKS:
            return self._hooks(cls, key, node)
        if key == "_compiled_call_impl" and node is not None:
            raise RefusedError(f"a {cls.__name__} with a call of its own")
        if key == "training" and not isinstance(node, bool):
            raise RefusedError(f"a {cls.__name__} that is neither in train nor in eval mode")
        if key == "_non_persistent_buffers_set":
            value = self.value(node)
            if not isinstance(value, set) or not all(isinstance(one, str) for one in value):
                raise RefusedError(f"a {cls.__name__} with odd {key}")
            return value
        if key in (_PLAN, _PROOF, _ADAPTED):
            return self.plain(node)
        full = f"{cls.__module__}.{cls.__qualname__}.{key}"
        if full in known()["bound"] and self.called(node) == "builtins.getattr":
            return self._own_method(cls, node, full)
        value = self.value(node)
        if _may_hide(cls, key) and not _is_data(value):
            raise RefusedError(f"a {cls.__name__} with {_cut(key)} of its own, which would hide that of its class")
        return value

    def _group(self, cls: type[nn.Module], key: str, node: Any) -> dict[str, Any]:
        kind: type = {"_parameters": nn.Parameter, "_buffers": Tensor, "_modules": nn.Module}[key]
        items = self.items(node)
        if items is None:
            raise RefusedError(f"a {cls.__name__} with odd {key}")
        group: dict[str, Any] = {}
        for name, one in items:
            if type(name) is not str or not name or "." in name:
                raise RefusedError(f"a {cls.__name__} with a name {_cut(repr(name))} in its {key}")
            self._key(cls, name)
            if one is not None and id(one) in self._busy:
                raise RefusedError(f"a {cls.__name__} that contains itself")
            value = None if one is None else self.value(one)
            if value is not None and not isinstance(value, kind):
                raise RefusedError(f"a {cls.__name__} with {_shown(one)} in its {key}")
            group[name] = value
        return group

    def _hooks(self, cls: type[nn.Module], key: str, node: Any) -> Any:
        """Hooks run code when a module does: there are none, but those of blurify 0.1.0, which its plan says again."""
        items = self.items(node)
        if items is None and node is not None:
            raise RefusedError(f"a {cls.__name__} with odd {key}")
        for _, hook in items or ():
            function = hook
            if self.called(hook) == "functools.partial" and hook.state and isinstance(hook.state[0], tuple):
                function = hook.state[0][0] if hook.state[0] else None
            name = self.name_of(function)
            if name is None or self._names.full(name) not in LEGACY_HOOKS:
                raise RefusedError(f"a {cls.__name__} with a hook ({_shown(function)}): remove it, and save again")
            self.edited.append(self._owner[-1][1])
        return OrderedDict()

    def _own_method(self, cls: type[nn.Module], node: Call, full: str) -> types.MethodType:
        """`self.forward = self.forward_slicing`, of the instance itself and of a method on the list."""
        owner, module = self._owner[-1]
        if len(node.args) != 2 or node.args[0] is not owner or node.state or node.items or node.appended:
            raise RefusedError(f"{full} is another module's")
        if type(node.args[1]) is not str:
            raise RefusedError(f"{full} is {_shown(node.args[1])}")
        bases = (vars(base) for base in cls.__mro__ if issubclass(base, nn.Module) and base is not nn.Module)
        method = next((base[node.args[1]] for base in bases if node.args[1] in base), None)
        if not isinstance(method, types.FunctionType) or f"{full}={node.args[1]}" not in known()["methods"]:
            raise RefusedError(f"{full} is {_shown(node.args[1])}")
        return types.MethodType(method, module)

    # Values.

    def value(self, node: Any) -> Any:
        """What an attribute holds: a constant, a container, a tensor, a module, settings, or a function on the list."""
        if isinstance(node, _CONSTANTS):
            return node
        if isinstance(node, Name):
            return self._named(node)
        if isinstance(node, Stored):
            name = self.name_of(node)
            if name is None:
                raise RefusedError("a bare storage of a tensor")
            return self._named(name)
        return self._once(node, lambda: self._container(node))

    def _container(self, node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(self.value(one) for one in node)
        if isinstance(node, ListNode):
            made: list[Any] = []
            self._made[id(node), ""] = made
            made += [self.value(one) for one in node.appended]
            return made
        if isinstance(node, SetNode):
            return (frozenset if node.frozen else set)(self._keys(node.appended))
        if isinstance(node, DictNode):
            return self._filled({}, node)
        return self._called(node)

    def _filled(self, made: Any, node: Any) -> Any:
        keys = self._keys([key for key, _ in node.items])
        for key, (_, value) in zip(keys, node.items, strict=True):
            made[key] = self.value(value)
        return made

    def _keys(self, nodes: Sequence[Any]) -> list[Any]:
        """Keys that a dictionary finds quickly: a file can choose thousands of one hash, each compared with all."""
        keys = [self._hashed(node) for node in nodes]
        if len(keys) > MAX_SAME_HASH and max(Counter(map(hash, keys)).values()) > MAX_SAME_HASH:
            raise UnreadableError("keys that were chosen to collide")
        return keys

    def _hashed(self, node: Any) -> Any:
        """A key or the member of a set: constants, settings, or small tuples of them."""
        value = self.value(node)
        if isinstance(node, tuple) and self._weights.get((id(node), ""), 1) > MAX_KEY:
            raise UnreadableError("a key is larger than any model needs")
        try:
            hash(value)
        except TypeError:
            raise RefusedError(f"a key that can't be one ({_shown(node)})") from None
        if isinstance(value, nn.Module):
            raise RefusedError("a module as a key")
        return value

    def _named(self, name: Name) -> Any:
        value = self._names.value(name)
        if value is None:
            raise RefusedError(f"{name.full} as a value")
        return value

    def _called(self, node: Call) -> Any:
        full = self.called(node)
        if self.module_class(node) is not None:
            return self._module(node, self.module_class(node))  # type: ignore[arg-type]
        if self.is_tensor(node):
            return self._tensor(node)
        if full in CONTAINERS:
            return self._standard(full, node)
        name = self.name_of(node.function)
        if name is not None:
            if full in self._names.trusted:
                return self._trusted(self._names.trusted[full], node)
            enumeration = self._names.enumeration(name)
            if enumeration is not None:
                return enumeration(self._only(node, _CONSTANTS))
            record = self._names.record(name)
            if record is not None:
                return self._record(record, node)
        raise RefusedError(f"a call of {_shown(node.function)}")

    def _only(self, node: Call, kinds: tuple[type, ...]) -> Any:
        """The single argument of a call that makes a plain value."""
        if len(node.args) != 1 or node.state or node.items or node.appended or not isinstance(node.args[0], kinds):
            raise RefusedError(f"a call of {_shown(node.function)} with odd arguments")
        return node.args[0]

    def _standard(self, full: str, node: Call) -> Any:
        if full in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter"):
            return self._dictionary(full, node)
        if full == "functools.partial":
            return self._partial(node)
        if full == "builtins.getattr":
            return self._operator(node)
        if node.state or node.items or node.appended:
            raise RefusedError(f"a {full} with a state")
        if full in ("builtins.set", "builtins.frozenset"):
            given = node.args[0] if len(node.args) == 1 else ()
            if len(node.args) > 1 or not isinstance(given, ListNode | tuple):
                raise RefusedError(f"a {full} of odd arguments")
            members = self._keys(given.appended if isinstance(given, ListNode) else given)
            return set(members) if full == "builtins.set" else frozenset(members)
        args = [self.value(one) for one in node.args]
        if full == "torch.Size":
            if len(args) != 1 or not isinstance(args[0], tuple | list) or not all(type(one) is int for one in args[0]):
                raise RefusedError("a torch.Size of odd arguments")
            return torch.Size(args[0])
        if full == "torch.device":
            if not 1 <= len(args) <= 2 or type(args[0]) is not str or not all(type(one) is int for one in args[1:]):
                raise RefusedError("a torch.device of odd arguments")
            return torch.device(*args)
        if full == "torch.serialization._get_layout":
            layout = getattr(torch, args[0].removeprefix("torch."), None) if len(args) == 1 and args[0] else None
            if not isinstance(layout, torch.layout):
                raise RefusedError("an unknown layout")
            return layout
        if full == "_codecs.encode":  # how protocol 2 writes bytes
            if len(args) not in (1, 2) or not isinstance(args[0], str) or args[1:] not in ([], ["latin1"]):
                raise RefusedError("text that is encoded oddly")
            return args[0].encode("latin1")
        kinds: dict[str, tuple[Callable[..., Any], tuple[type, ...]]] = {
            "builtins.slice": (slice, (int, type(None))),
            "builtins.range": (range, (int,)),
            "builtins.complex": (complex, (float, int)),
        }
        make, allowed = kinds[full]
        if not 1 <= len(args) <= 3 or not all(isinstance(one, allowed) for one in args):
            raise RefusedError(f"a {full} of odd arguments")
        return make(*args)

    def _dictionary(self, full: str, node: Call) -> Any:
        made: Any = OrderedDict()
        if full == "collections.defaultdict":
            name = self.name_of(node.args[0]) if len(node.args) == 1 else None
            if len(node.args) > 1 or (node.args and name is None and node.args[0] is not None):
                raise RefusedError("a defaultdict of odd arguments")
            factory = FACTORIES.get(self._names.full(name)) if name is not None else None
            if name is not None and factory is None:
                raise RefusedError(f"a defaultdict that calls {name.full}")
            made = defaultdict(factory)
        elif full == "collections.Counter":
            made = Counter()
            for given in node.args:
                made.update(self._filled({}, given) if isinstance(given, DictNode) else {})
        elif node.args and not (
            len(node.args) == 1 and isinstance(node.args[0], ListNode) and not node.args[0].appended
        ):
            raise RefusedError("an OrderedDict of odd arguments")  # Python 2 wrote an empty list
        if node.appended:
            raise RefusedError(f"a {full} to which something is appended")
        self._made[id(node), ""] = made
        return self._filled(made, node)  # attributes of a dictionary (the _metadata of a state_dict) are left out

    def _partial(self, node: Call) -> Any:
        """`partial(nn.LayerNorm, eps=1e-6)`: a class of layers on the list, and plain arguments."""
        state = node.state[0] if node.state else None
        if not isinstance(state, tuple) or len(state) != 4 or node.items or node.appended:
            raise RefusedError("a functools.partial with odd arguments")
        name = self.name_of(state[0])
        made = self._names.value(name) if name is not None else None
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise RefusedError(f"a functools.partial of {_shown(state[0])}")
        args, keywords = self.plain(state[1]), self.plain(state[2])
        rest = self.plain(state[3])
        if not isinstance(args, tuple) or not isinstance(keywords, dict) or rest:
            raise RefusedError("a functools.partial with odd arguments")
        return functools.partial(made, *args, **{str(key): value for key, value in keywords.items()})

    def _operator(self, node: Call) -> Any:
        """`torch.relu` is pickled as `getattr(torch._C._VariableFunctionsClass, 'relu')`."""
        owner = self.name_of(node.args[0]) if len(node.args) == 2 else None
        if owner is not None and owner.full == "torch._C._VariableFunctionsClass" and type(node.args[1]) is str:
            value = self._names.value(Name("torch", node.args[1]))
            if is_function(value):
                return value
        raise RefusedError(f"a bound method or attribute ({_shown(node.args[-1]) if node.args else 'of nothing'})")

    def _record(self, cls: type, node: Call) -> Any:
        if not node.new or node.args or node.items or node.appended or "__new__" in vars(cls):
            raise RefusedError(f"a call of the class {cls.__name__}")
        items = self.items(node.state[0]) if node.state else []
        if items is None:
            raise RefusedError(f"a {cls.__name__} without a state that is a dictionary")
        fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else None
        made: Any = object.__new__(cls)
        for key, one in items:
            if fields is None:
                self._key(cls, key)
            elif key not in fields:
                raise RefusedError(f"a {cls.__name__} with {_cut(str(key))} of its own")
            value = self.value(one)
            if fields is None and _may_hide(cls, key) and not _is_data(value):
                raise RefusedError(f"a {cls.__name__} with {key} of its own")
            made.__dict__[key] = value
        return made

    def _trusted(self, cls: type, node: Call) -> Any:
        """An object of a class that the user allowed: its code runs, with what the file gives it."""
        args = [self.value(one) for one in node.args]
        made: Any = cls.__new__(cls, *args) if node.new else cls(*args)
        self._made[id(node), ""] = made
        for value in node.appended:
            made.append(self.value(value))
        self._filled(made, node)
        if node.state:
            state = self.value(node.state[0])
            if hasattr(cls, "__setstate__"):
                made.__setstate__(state)
            elif isinstance(state, dict):
                for key, value in state.items():
                    made.__dict__[self._key(cls, key)] = value
            else:
                raise RefusedError(f"a {cls.__name__} with an odd state")
        return made

    def plain(self, node: Any) -> Any:
        """JSON's own data and tuples of it; plans and proofs that 0.1.0 pickled as objects, as dictionaries.

        Raises:
            RefusedError: it is something else.
        """
        if isinstance(node, _CONSTANTS):
            return node
        return self._once(node, lambda: self._plain(node), what="plain")

    def _plain(self, node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(self.plain(one) for one in node)
        if isinstance(node, ListNode):
            return [self.plain(one) for one in node.appended]
        items = self.items(node)
        if items is not None:
            if not all(type(key) is str for key, _ in items):
                raise RefusedError("a dictionary whose keys are no text")
            return {key: self.plain(value) for key, value in items}
        full = self.called(node)
        if full in PLAIN_RECORDS and node.state:
            state = self.plain(node.state[0])
            if isinstance(state, dict):
                return {"__kind__": full.rpartition(".")[2], **state}
        raise RefusedError(f"{_shown(node)} in plain data")

    # Tensors.

    def _tensor(self, node: Call) -> Tensor:
        full = self.called(node)
        if full not in TENSORS:
            kind = full.rpartition("_rebuild_")[2]
            raise RefusedError(f"a tensor of the kind {_cut(kind)}, which is not converted: save the plain float model")
        if node.state or node.items or node.appended:
            raise RefusedError("a tensor with a state")
        try:
            return self._rebuilt(full.rpartition(".")[2], node.args)
        except (RefusedError, UnreadableError, BlurifyError):
            raise
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError, AttributeError) as error:
            raise UnreadableError(f"a tensor that can't be ({one_line(error)[:120]})") from error

    def shape(self, node: Any) -> tuple[int, ...] | None:
        """The shape that a tensor is said to have, without reading it; None where only reading it tells."""
        args = node.args if isinstance(node, Call) else ()
        match self.called(node).rpartition(".")[2]:
            case "_rebuild_parameter" | "_rebuild_parameter_with_state" if args:
                return self.shape(args[0])
            case "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" if len(args) > 2:
                size = args[2]
                if isinstance(size, tuple) and all(type(one) is int for one in size):
                    return size
        return None

    def _rebuilt(self, how: str, args: tuple[Any, ...]) -> Tensor:
        if how in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            data = self.value(args[0])
            if type(data) is not Tensor or not isinstance(args[1], bool) or not self._is_empty(args[2]):
                raise RefusedError("a parameter of odd parts")
            parameter = nn.Parameter(data, args[1])
            if len(args) > 3:
                self._annotate(parameter, args[3])
            return parameter
        if how == "_rebuild_from_type_v2":
            return self._of_type(*args)
        if how == "_rebuild_meta_tensor_no_storage":
            kind, shape, steps, tracked = (self.value(one) for one in args)
            self._check_strided(shape, steps, 0, None, kind.itemsize)
            return torch.empty_strided(shape, steps, dtype=kind, device="meta", requires_grad=tracked)
        storage, offset, size, stride = args[:4]
        rest = args[4:]
        if not isinstance(storage, Stored):
            raise RefusedError("a tensor without a storage")
        ref = storage_ref(storage)
        dtype = ref.dtype
        grad: Any = False
        if how != "_rebuild_tensor":
            grad = rest[0]
            if not isinstance(grad, bool) or not self._is_empty(rest[1]):
                raise RefusedError("a tensor with hooks")
            rest = rest[2:]
        if how == "_rebuild_tensor_v3":
            dtype, rest = self.value(rest[0]), rest[1:]
        if not isinstance(dtype, torch.dtype) or dtype in _QUANTIZED:
            raise RefusedError(f"a tensor without a dtype that can be converted ({_shown(dtype)})")
        size, stride = self.value(size), self.value(stride)
        held = ref.part[2] if ref.part is not None else ref.count
        self._check_strided(size, stride, offset, held * ref.width, dtype.itemsize)
        made = torch.empty(0, dtype=dtype).set_(self._archive.storage(ref), offset, size, stride)  # type: ignore[call-overload]
        made.requires_grad = grad
        if rest:
            self._math_bits(made, self.value(rest[0]))
        return made

    def _check_strided(self, size: Any, stride: Any, offset: Any, held: int | None, width: int) -> None:
        """Ask whether a tensor lies within its storage, and is not much larger than it."""
        counts = (*size, *stride, offset)
        if (
            not isinstance(size, tuple)
            or not isinstance(stride, tuple)
            or len(size) != len(stride)
            or len(size) > _MAX_DIMS
            or not all(type(one) is int and 0 <= one < _LARGEST for one in counts)
        ):
            raise UnreadableError("a tensor whose size can't be")
        number = 1
        for one in size:
            number *= one
        last = offset + sum((one - 1) * step for one, step in zip(size, stride, strict=True)) if number else 0
        if (last + 1 if number else 0) * width > (_LARGEST if held is None else held):
            raise UnreadableError("a tensor that is larger than what is stored of it")
        if number * width > _LARGEST >> 8:
            raise UnreadableError("a tensor that is larger than any memory")
        if held is not None:
            self._spare -= max(0, number * width - held)
            self._room -= number * width  # what is copied later is copied tensor by tensor
            if self._spare < 0 or self._room < 0:
                raise UnreadableError("tensors that are larger than what is stored of them")

    def _of_type(self, function: Any, kind: Any, args: Any, state: Any) -> Tensor:
        """A tensor with attributes."""
        name, cls = self.name_of(function), self.name_of(kind)
        full = self._names.full(name) if name is not None else ""
        if full not in TENSORS or full.endswith("_rebuild_from_type_v2") or not isinstance(args, tuple):
            raise RefusedError(f"a tensor that is made by {_shown(function)}")
        if cls is None or cls.full not in TENSOR_TYPES:
            raise RefusedError(f"a tensor of the class {_shown(kind)}")
        made = self._rebuilt(full.rpartition(".")[2], args)
        self._annotate(made, state)
        return made

    def _annotate(self, tensor: Tensor, node: Any) -> None:
        """Attributes that somebody set on a tensor: plain data, none that tensors have themselves."""
        state = self.plain(node)
        if isinstance(state, tuple) and len(state) == 2:  # attributes, and those in slots
            state = {**(state[0] or {}), **(state[1] or {})}
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise RefusedError("a tensor with an odd state")
        for key, value in state.items():
            if key.startswith("__") or hasattr(type(tensor), key):
                raise RefusedError(f"a tensor with {_cut(key)} of its own")
            tensor.__dict__[key] = value

    def _math_bits(self, tensor: Tensor, bits: Any) -> None:
        """Whether the stored numbers are to be conjugated or negated."""
        if not isinstance(bits, dict) or not set(bits) <= {"conj", "neg"}:
            raise RefusedError("a tensor with odd metadata")
        if not all(isinstance(bit, bool) for bit in bits.values()):
            raise RefusedError("a tensor with odd metadata")
        if bits:
            torch._utils.set_tensor_metadata(tensor, bits)

    def _is_empty(self, node: Any) -> bool:
        """Whether a place for hooks is empty."""
        items = self.items(node)
        return node is None or (items is not None and not items)

    # Sharing, depth and size.

    def _once(self, node: Any, make: Callable[[], Any], what: str = "") -> Any:
        """What a node becomes, made at its first place; at every place its parts count, as a forward runs them."""
        key = (id(node), what)
        if key in self._made:
            if id(node) in self._busy and not isinstance(self._made[key], nn.Module):
                raise RefusedError("a list or dictionary that contains itself")
            self._count(self._weights.get(key, 1))
            return self._made[key]
        if id(node) in self._busy:
            raise RefusedError("data that contain themselves")
        if len(self._busy) > MAX_DEPTH:
            raise UnreadableError(f"data are nested more than {MAX_DEPTH} deep")
        self._busy.add(id(node))
        self._pending.append(1)
        self._made[key] = made = make()
        self._weights[key] = self._pending.pop()
        self._busy.discard(id(node))
        self._count(self._weights[key])
        return made

    def forget(self) -> None:
        """Keep nothing of what was made: the tensors of a file need not all be in memory."""
        self._made.clear()
        self._weights.clear()
        self._allow_bytes()
        self._archive.forget()

    def _allow_bytes(self) -> None:
        """How many bytes tensors may have beyond what is stored of each, and all together."""
        self._spare = _SPARE + self._archive.size
        self._room = _SPARE + MAX_VIEWS * self._archive.size

    def _count(self, weight: int) -> None:
        self._pending[-1] += weight
        if self._pending[-1] > MAX_WEIGHT:
            raise UnreadableError(f"the model has more than {MAX_WEIGHT:,} parts, those that are shared counted again")


def _may_hide(cls: type, key: str) -> bool:
    """Whether the list has it that instances of a class hold plain data under a name that the class has, too.

    A converted pool is of a class of its own, below that of the pool which it was.
    """
    return any(f"{base.__module__}.{base.__qualname__}.{key}" in known()["keys"] for base in cls.__mro__)


def _is_data(value: Any) -> bool:
    """Whether a value is a constant, a tensor, or a list or tuple of those."""
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return isinstance(value, (*_CONSTANTS, Tensor))


def _names_its_weights(state: Mapping[str, Any]) -> bool:
    """Whether a recurrent module says the names of its weights, layer by layer."""
    layers = state.get("_all_weights")
    return (
        "all_weights" not in state
        and isinstance(layers, list)
        and bool(layers)
        and all(isinstance(layer, list) and layer and all(type(name) is str for name in layer) for layer in layers)
    )


def _shown(node: Any) -> str:
    """What a node is, for a message."""
    if isinstance(node, Name):
        return node.full
    if isinstance(node, Call):
        return f"what {_shown(node.function)} makes" if isinstance(node.function, Name) else "what is called"
    if isinstance(node, Stored):
        return _shown(node.pid[1]) if len(node.pid) > 1 else "a reference"
    kinds = {ListNode: "a list", DictNode: "a dictionary", SetNode: "a set", tuple: "a tuple"}
    return kinds.get(type(node)) or _cut(repr(node))


def _cut(text: str) -> str:
    shown = ascii(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a state_dict; each is read when it is asked for, and not kept.

    Args:
        items: the node of each.
        builder: of the file that they are in.
        error: of what went wrong, the error to raise.
    """

    def __init__(self, items: Mapping[str, Any], builder: Builder, error: Callable[[Exception], Exception]) -> None:
        self._items, self._builder, self._error = items, builder, error

    def __getitem__(self, name: str) -> Tensor:
        node = self._items[name]
        try:
            tensor: Tensor = self._builder.value(node)
        except (RefusedError, UnreadableError, OSError, MemoryError) as error:
            raise self._error(error) from error
        self._builder.forget()
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it where the file says it."""
        return self._builder.shape(self._items[name]) or tuple(getattr(self[name], "shape", ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
