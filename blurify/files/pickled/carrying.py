"""What stands in a file beside the model, written again as it was, without being made or run.

An optimizer's state, arguments, a scheduler: objects of any class. Their nodes in the inert tree say everything that
the pickle said, so they can be pickled again from there. Only tensors are made, which `torch.save` has to store anew.
"""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor

from blurify.files.pickled.tree import Call, DictNode, ListNode, Name, SetNode, Stored

_BATCH = 1000


class Carried(Mapping[str, Any]):
    """The entries of a dictionary in a file, each made ready to be written when it is asked for.

    Args:
        entries: the node of each.
        is_tensor: whether a node is a tensor.
        tensor: makes it.
        name_of: the name that a node is, of old files, too.
        error: of what went wrong, the error to raise.
    """

    def __init__(
        self,
        entries: Mapping[str, Any],
        is_tensor: Callable[[Any], bool],
        tensor: Callable[[Any], Tensor],
        name_of: Callable[[Any], Name | None],
        error: Callable[[Exception], Exception],
    ) -> None:
        self._entries, self._error = entries, error
        self._is_tensor, self._tensor, self._name_of = is_tensor, tensor, name_of
        self._made: dict[int, Any] = {}

    def __getitem__(self, key: str) -> Any:
        node = self._entries[key]
        try:
            return self._ready(node)
        except (ValueError, OSError, MemoryError, RecursionError) as error:
            raise self._error(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _ready(self, node: Any) -> Any:
        """The same node, but with the tensors in it made; a plain dictionary or list is one again."""
        if isinstance(node, Stored | Name):
            name = self._name_of(node)
            if name is None:
                raise ValueError("a bare storage of a tensor")
            if not all(part.isidentifier() for part in (*name.module.split("."), *name.name.split("."))):
                raise ValueError("a name that is none")  # in the format it ends with a line, and more could follow
            return name
        if isinstance(node, tuple):
            return tuple(self._ready(one) for one in node)
        if not isinstance(node, Call | DictNode | ListNode | SetNode):
            return node
        if id(node) in self._made:
            return self._made[id(node)]
        if isinstance(node, DictNode):
            return self._dictionary(node)
        if isinstance(node, ListNode):
            values: list[Any] = []
            self._made[id(node)] = values
            values += [self._ready(one) for one in node.appended]
            return values
        if isinstance(node, SetNode):
            members = SetNode(frozen=node.frozen)
            self._made[id(node)] = members
            members.appended = [self._ready(one) for one in node.appended]
            return members
        if self._is_tensor(node):
            self._made[id(node)] = made = self._tensor(node)
            return made
        name = self._name_of(node.function)
        if name is not None and name.full == "collections.OrderedDict" and not (node.args or node.appended):
            return self._ordered(node)
        call = Call(self._ready(node.function), tuple(self._ready(one) for one in node.args), new=node.new)
        self._made[id(node)] = call
        call.items = [(self._ready(key), self._ready(value)) for key, value in node.items]
        call.appended = [self._ready(one) for one in node.appended]
        call.state = tuple(self._ready(one) for one in node.state)
        return call

    def _ordered(self, node: Call) -> Any:
        """A state_dict, mostly, with the versions of its modules as an attribute."""
        made: OrderedDict[Any, Any] = OrderedDict()
        if any(type(key) is not str for key, _ in node.items):
            raise ValueError("an ordered dictionary whose keys are no text")
        self._made[id(node)] = made
        made.update((key, self._ready(value)) for key, value in node.items)
        state = self._ready(node.state[0]) if node.state else None
        if isinstance(state, dict) and "_metadata" in state:
            made.__dict__["_metadata"] = state["_metadata"]
        return made

    def _dictionary(self, node: DictNode) -> Any:
        plain = all(type(key) in (str, int) for key, _ in node.items)
        made: Any = {} if plain else DictNode()
        self._made[id(node)] = made
        pairs = [(self._ready(key), self._ready(value)) for key, value in node.items]
        if plain:
            made.update(pairs)
        else:
            made.items = pairs
        return made


_InPython: Any = vars(pickle)["_Pickler"]  # which, unlike the one in C, can be told of further kinds


class _Pickler(_InPython):
    """Python's own, that writes nodes as the operations that they were read from, and sets in an order of their own."""

    dispatch: ClassVar[dict[type, Any]] = dict(_InPython.dispatch)

    def _save_name(self, node: Name) -> None:
        self.write(pickle.GLOBAL + f"{node.module}\n{node.name}\n".encode())
        self.memoize(node)

    def _save_call(self, node: Call) -> None:
        self.save(node.function)
        self.save(node.args)
        self.write(pickle.NEWOBJ if node.new else pickle.REDUCE)
        if id(node) in self.memo:  # one of its arguments refers to it
            self.write(pickle.POP + self.get(self.memo[id(node)][0]))
        else:
            self.memoize(node)
        self._append(node.appended)
        self._set_items(node.items)
        if node.state:
            self.save(node.state[0])
            self.write(pickle.BUILD)

    def _save_dictionary(self, node: DictNode) -> None:
        self.write(pickle.EMPTY_DICT)
        self.memoize(node)
        self._set_items(node.items)

    def _save_set(self, node: SetNode) -> None:
        """As protocol 2 writes it, which has no operation for sets."""
        self._save_name(Name("__builtin__", "frozenset" if node.frozen else "set"))
        self.save((list(node.appended),))
        self.write(pickle.REDUCE)
        self.memoize(node)

    def _append(self, values: list[Any]) -> None:
        for begin in range(0, len(values), _BATCH):
            self.write(pickle.MARK)
            for value in values[begin : begin + _BATCH]:
                self.save(value)
            self.write(pickle.APPENDS)

    def _set_items(self, items: list[tuple[Any, Any]]) -> None:
        for begin in range(0, len(items), _BATCH):
            self.write(pickle.MARK)
            for key, value in items[begin : begin + _BATCH]:
                self.save(key)
                self.save(value)
            self.write(pickle.SETITEMS)

    def _save_python_set(self, value: set[Any] | frozenset[Any]) -> None:
        """As Python writes it in protocol 2, but not in the order in which it comes out, another in every process."""
        kind = set if isinstance(value, set) else frozenset
        self.save_reduce(kind, (_ordered(value),), obj=value)

    dispatch[set] = _save_python_set
    dispatch[frozenset] = _save_python_set
    dispatch[Name] = _save_name
    dispatch[Call] = _save_call
    dispatch[DictNode] = _save_dictionary
    dispatch[SetNode] = _save_set


def _ordered(values: set[Any] | frozenset[Any]) -> list[Any]:
    try:
        return sorted(values, key=lambda value: (type(value).__qualname__, repr(value)))
    except Exception:  # a class whose repr fails
        return list(values)


WRITER: Any = types.SimpleNamespace(__name__=__name__, Pickler=_Pickler)
"""For `torch.save(..., pickle_module=WRITER)`, of content that may have in it what `Carried` gave."""
