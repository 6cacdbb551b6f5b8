"""Read a pickle into an inert tree: nothing that it names is looked up, called or changed; there are only nodes.

A pickle is a program for a stack machine. Here its operations make nodes: a `Call` says that the file would call
something, and with what. What may become of a node is decided later, by `building`, and by what the node is for.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

MAX_BYTES = 2**28
"""The largest pickle that is read, without its tensors: those of timm's largest models have some MB."""

MAX_NODES = 5_000_000
MAX_INTEGER_BYTES = 1024


class UnreadableError(ValueError):
    """The pickle does what torch.save never writes; the message says what."""


class Name:
    """A class or function that the file names."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @property
    def full(self) -> str:
        """`module.name`, as `--allow` takes it."""
        return f"{self.module}.{self.name}"


class Call:
    """A call that would make an object, and how the object would be filled.

    Attributes:
        function: what would be called; mostly a `Name`.
        args: the arguments, nodes or plain values.
        new: it would be `function.__new__(function, *args)`.
        state: what the object's `__setstate__` or `__dict__` would get, in a tuple of one; () where nothing.
        items: keys and values that would be set.
        appended: what would be appended.
    """

    __slots__ = ("appended", "args", "function", "items", "new", "state")

    def __init__(self, function: Any, args: tuple[Any, ...], *, new: bool) -> None:
        self.function, self.args, self.new = function, args, new
        self.state: tuple[Any, ...] = ()
        self.items: list[tuple[Any, Any]] = []
        self.appended: list[Any] = []


class ListNode:
    """A list."""

    __slots__ = ("appended",)

    def __init__(self) -> None:
        self.appended: list[Any] = []


class DictNode:
    """A dict: keys and values in their order, not hashed yet."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[tuple[Any, Any]] = []


class SetNode:
    """A set or frozenset."""

    __slots__ = ("appended", "frozen")

    def __init__(self, *, frozen: bool = False) -> None:
        self.appended: list[Any] = []
        self.frozen = frozen


class Stored:
    """What stands elsewhere in the file: a storage of a tensor (or, in old files, a class with its source text)."""

    __slots__ = ("pid",)

    def __init__(self, pid: tuple[Any, ...]) -> None:
        self.pid = pid


class _Mark:
    """Where on the stack a collection begins."""


_MARK = _Mark()


class Tree:
    """What one pickle says.

    Attributes:
        root: the node of the whole; a tuple is a plain tuple of nodes, and numbers, text and None are themselves.
        names: every class and function that the pickle names, in their order.
        stored: every persistent id.
    """

    def __init__(self, root: Any, names: list[Name], stored: list[Stored]) -> None:
        self.root, self.names, self.stored = root, names, stored


def read_tree(file: BinaryIO) -> Tree:
    """Read one pickle, and leave the file behind it.

    Args:
        file: open where the pickle begins. What is declared to be long is read by one `read`, so it must not take
            memory for more than there is.

    Raises:
        UnreadableError: it is damaged, too large, or does what torch.save never writes.
    """
    machine = _Machine()
    begin = file.tell()
    try:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name == "STOP":
                break
            if position is not None and position - begin > MAX_BYTES:
                raise UnreadableError(f"the pickle is larger than {MAX_BYTES >> 20} MB without its tensors")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise UnreadableError(f"an operation of the pickle format that torch.save never writes ({opcode.name})")
            step(machine, argument)
            if machine.nodes > MAX_NODES:
                raise UnreadableError(f"the pickle holds more than {MAX_NODES:,} objects")
    except UnreadableError:
        raise
    except (IndexError, KeyError) as error:
        raise UnreadableError("the pickle takes what it never made") from error
    except (ValueError, OverflowError) as error:  # what pickletools says of lengths, names and opcodes
        raise UnreadableError(str(error)[:200] or "the pickle is damaged") from error
    if len(machine.stack) != 1 or machine.stack[0] is _MARK:
        raise UnreadableError("the pickle ends in the middle of something")
    return Tree(machine.stack[0], list(machine.names.values()), machine.stored)


class _Machine:
    """The stack machine of the format, for nodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Name] = {}
        self.stored: list[Stored] = []
        self.protocol = 0
        self.nodes = 0

    def push(self, value: Any) -> None:
        self.stack.append(value)
        self.nodes += 1

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise UnreadableError("the pickle takes what it never made")
        return value

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise UnreadableError("the pickle takes what it never made")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise UnreadableError("the pickle ends a collection that never began")

    def name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnreadableError("the pickle names something by what is no text")
        if self.protocol < 3:  # names of Python 2
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[(module, name)]
            elif module in _compat_pickle.IMPORT_MAPPING:
                module = _compat_pickle.IMPORT_MAPPING[module]
        return self.names.setdefault((module, name), Name(module, name))

    def append(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, ListNode | Call):
            raise UnreadableError("the pickle appends to what is no list")
        target.appended += values

    def add(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, SetNode):
            raise UnreadableError("the pickle adds to what is no set")
        target.appended += values

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, DictNode | Call):
            raise UnreadableError("the pickle sets items of what is no dictionary")
        if len(values) % 2:
            raise UnreadableError("the pickle sets a key without a value")
        target.items += zip(values[::2], values[1::2], strict=True)


def _proto(machine: _Machine, argument: Any) -> None:
    machine.protocol = argument


def _global(machine: _Machine, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    machine.push(machine.name(module, name))


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(machine.name(module, name))


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _given(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _integer(machine: _Machine, argument: int) -> None:
    if argument.bit_length() > 8 * MAX_INTEGER_BYTES:
        raise UnreadableError("the pickle holds a number of thousands of digits")
    machine.push(argument)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(values)))

    return make


def _marked_list(machine: _Machine, _: Any) -> None:
    node = ListNode()
    node.appended = machine.since_mark()
    machine.push(node)


def _marked_dict(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.push(DictNode())
    machine.set_items(values)


def _frozenset(machine: _Machine, _: Any) -> None:
    node = SetNode(frozen=True)
    node.appended = machine.since_mark()
    machine.push(node)


def _call(*, new: bool) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        args, function = machine.pop(), machine.pop()
        if not isinstance(args, tuple):
            raise UnreadableError("the pickle makes an object of what is no tuple")
        machine.push(Call(function, args, new=new))

    return make


def _build(machine: _Machine, _: Any) -> None:
    state = machine.pop()
    target = machine.top()
    if not isinstance(target, Call) or target.state:
        raise UnreadableError("the pickle gives a state to what has none")
    target.state = (state,)


def _persistent(machine: _Machine, _: Any) -> None:
    pid = machine.pop()
    if not isinstance(pid, tuple) or not pid:
        raise UnreadableError("the pickle refers to what the file can't hold")
    node = Stored(pid)
    machine.stored.append(node)
    machine.push(node)


def _pop(machine: _Machine, _: Any) -> None:
    machine.stack.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.since_mark()


def _memoize(machine: _Machine, _: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _put(machine: _Machine, argument: int) -> None:
    machine.memo[argument] = machine.top()


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _proto,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda machine, _: machine.push(machine.top()),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4"), _integer),
    **dict.fromkeys(("BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _given),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _given),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "EMPTY_LIST": lambda machine, _: machine.push(ListNode()),
    "LIST": _marked_list,
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push(DictNode()),
    "DICT": _marked_dict,
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "EMPTY_SET": lambda machine, _: machine.push(SetNode()),
    "FROZENSET": _frozenset,
    "ADDITEMS": lambda machine, _: machine.add(machine.since_mark()),
    "BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _call(new=False),
    "NEWOBJ": _call(new=True),
    "BUILD": _build,
    "BINPERSID": _persistent,
}


def entry(items: Sequence[tuple[Any, Any]] | None, name: str, default: Any = None) -> Any:
    """What a dictionary would have under a name, of items that were not hashed: the last of that name counts."""
    return next((value for key, value in reversed(items or ()) if type(key) is str and key == name), default)


def children(node: Any) -> Iterator[Any]:
    """The nodes and values directly in a node."""
    if isinstance(node, tuple):
        yield from node
    elif isinstance(node, Call):
        yield node.function
        yield from node.args
        yield from node.state
        yield from node.appended
        for pair in node.items:
            yield from pair
    elif isinstance(node, ListNode | SetNode):
        yield from node.appended
    elif isinstance(node, DictNode):
        for pair in node.items:
            yield from pair
    elif isinstance(node, Stored):
        yield from node.pid


def walk(node: Any) -> Iterator[Any]:
    """Every node and value in a node, itself too, each node once."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, tuple | Name | Call | ListNode | DictNode | SetNode | Stored):
            if id(one) in seen:
                continue
            seen.add(id(one))
            waiting.extend(children(one))
        yield one
