"""An `nn.Sequential` in which blurs run between the members, and that is numbered as it was without them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from blurify.errors import BlurifyError


class WithBlurs:
    """Mixed in before the class of a Sequential that got blurs.

    The blurs are children at their places, so that whatever runs the members one after the other (`forward`, a loop,
    `children()`, symbolic tracing, checkpointing) runs them too. Numbers (`net[3]`, `len(net)`) are those of the
    original members; a slice takes the blurs between its members along.
    """

    _modules: dict[str, nn.Module]
    _blurify_blurs: frozenset[str] = frozenset()

    def _names(self) -> list[str]:
        return [name for name in self._modules if name not in self._blurify_blurs]

    def _name(self, index: Any) -> str:
        names = self._names()
        try:
            return names[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range: there are {len(names)} members") from None

    def __len__(self) -> int:
        return len(self._names())

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return self._modules[self._name(index)]
        names, every = self._names(), list(self._modules)
        chosen = names[index]
        if not chosen:
            return nn.Sequential()
        if index.step not in (None, 1):
            raise BlurifyError("a slice with a step parts blurs from what they belong to: choose members one by one")
        first, last = every.index(chosen[0]), every.index(chosen[-1])
        # What comes before the first member or after the last belongs to them by its name.
        while first and every[first - 1] == before(every[first]):
            first -= 1
        while last + 1 < len(every) and every[last + 1].startswith(after(chosen[-1])):
            last += 1
        part = OrderedDict((name, self._modules[name]) for name in every[first : last + 1])
        return nn.Sequential(part)

    def __setitem__(self, index: int, module: nn.Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: Any) -> None:
        names = self._names()
        for name in names[index] if isinstance(index, slice) else [self._name(index)]:
            del self._modules[name]
        # The rest is numbered anew, as torch does.
        number = iter(range(len(self._modules)))
        items = [(name if name in self._blurify_blurs else str(next(number)), m) for name, m in self._modules.items()]
        self._modules.clear()
        self._modules.update(items)

    def insert(self, index: int, module: nn.Module) -> Any:
        """Refused: the members' names would move away from those in the plan."""
        raise BlurifyError("insert members before converting (blurify.revert gives the original back)")


def before(member: str) -> str:
    """The name of a blur that comes before a member."""
    return f"blur_before_{member}"


def after(member: str) -> str:
    """The name of a blur that comes after a member."""
    return f"blur_after_{member}"


def place(sequential: nn.Module, child: str, blur: nn.Module, member: str, *, behind: bool) -> None:
    """Put a blur before or behind a member, among the children."""
    items = list(sequential._modules.items())
    position = [name for name, _ in items].index(member) + behind
    items.insert(position, (child, blur))
    sequential._modules.clear()
    sequential._modules.update(items)
