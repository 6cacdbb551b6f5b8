"""Decorated forwards: whatever a decorator does, the function that it holds is changed inside of it."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.nn.rewriting import Expression, rewrite
from blurify.nn.source import CannotRewriteError
from blurify.nn.wrapped import WRAPPED, held_functions, holding

IMAGE = torch.randn(2, 3, 17, 14, generator=torch.Generator().manual_seed(0))


def plain(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return wrapper


def bound(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function.__get__(self)(*args, **kwargs)

    return wrapper


def renamed(function: Any) -> Any:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = types.MethodType(function, self) if args else None
        assert call is not None
        return call(*args, **kwargs)

    return wrapper


def listed(function: Any) -> Any:
    functions = [function]

    def wrapper(self: Any, *args: Any) -> Any:
        for one in functions:
            out = one(self, *args)
        return out

    return wrapper


def partial(function: Any) -> Any:
    def wrapper(self: Any, *args: Any) -> Any:
        return functools.partial(function, self)(*args)

    return wrapper


def own_wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any) -> Any:
        this = wrapper
        return this.__wrapped__(self, *args)

    return wrapper


class Called:
    """A decorator that leaves an object in the class."""

    def __init__(self, function: Any) -> None:
        self.function, self.runs = function, 0

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any) -> Any:
        self.runs += 1
        return self.function(*args)


class Bound:
    """A decorator that leaves a descriptor in the class."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.function.__get__(instance, owner)


_made: dict[str, Any] = {}
exec("def without_source(function):\n    def run(*args):\n        return function(*args)\n    return run", _made)

DECORATORS: dict[str, Any] = {
    "plain": plain, "bound": bound, "renamed": renamed, "listed": listed, "partial": partial,
    "own_wrapped": own_wrapped, "Called": Called, "Bound": Bound, "without_source": _made["without_source"],
    "partialmethod": functools.partialmethod, "no_grad": torch.no_grad(),
    "autocast": torch.autocast("cpu", enabled=False),
    "twice": lambda function: bound(torch.no_grad()(listed(function))),
}  # fmt: skip


def decorated(name: str) -> type[nn.Module]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.conv(x), 2)
            return F.relu(self.down(x)) + 1

    Net.forward = DECORATORS[name](Net.forward)
    Net.__name__ = Net.__qualname__ = f"Net_{name}"
    setattr(sys.modules[__name__], Net.__name__, Net)  # where pickle looks for it
    return Net


@pytest.mark.parametrize("name", DECORATORS)
def test_a_forward_is_changed_inside_its_decorator(name: str) -> None:
    torch.manual_seed(0)
    cls = decorated(name)
    net = cls().eval()
    before = net(IMAGE)
    out = blurify.convert(net, example_inputs=IMAGE)
    assert [site.rule for site in blurify.plan_of(out).sites] == ["maxpool", "after-activation"]
    blur = blurify.BlurPool2d(2)
    dense = F.conv2d(blur(F.max_pool2d(net.conv(IMAGE), 2, 1)), net.down.weight, net.down.bias, 1, 1)
    expected = blur(F.relu(dense)) + 1
    with torch.no_grad():
        torch.testing.assert_close(out(IMAGE), expected)
        torch.testing.assert_close(copy.deepcopy(out)(IMAGE), expected)
        torch.testing.assert_close(pickle.loads(pickle.dumps(out))(IMAGE), expected)
        torch.testing.assert_close(net(IMAGE), before)  # the class is as its author wrote it
        torch.testing.assert_close(blurify.revert(out)(IMAGE), before)


def test_what_the_decorator_does_still_happens() -> None:
    class Net(nn.Module):
        @bound
        @torch.no_grad()
        @listed
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x * self.scale, 2)

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    out = blurify.convert(Net(), example_inputs=IMAGE)
    assert [site.action for site in blurify.plan_of(out).sites] == ["blur"]
    assert not out(IMAGE).requires_grad


def test_functions_are_found_and_replaced_at_any_depth() -> None:
    def inner(x: int) -> int:
        return x + 1

    def other(x: int) -> int:
        return x * 10

    held = plain(listed(inner))
    assert inner in held_functions(held) and other not in held_functions(held)
    made = holding(plain(lambda self, x: inner(x)), inner, other)
    assert made(None, 3) == 30
    assert holding(inner, other, inner) is inner  # holds neither


def test_a_wrapper_that_holds_itself_ends() -> None:
    def inner(self: Any, x: int) -> int:
        return x + 1

    def other(self: Any, x: int) -> int:
        return x * 10

    assert holding(own_wrapped(inner), inner, other)(None, 3) == 30
    assert own_wrapped(inner)(None, 3) == 4


def test_a_step_to_what_is_no_longer_held_is_refused() -> None:
    """As in a plan of another version of the library, or a file that somebody made up."""
    cls = decorated("bound")
    for step in (("forward", WRAPPED, 7), ("forward", WRAPPED, -1), ("missing", WRAPPED, 0)):
        with pytest.raises(CannotRewriteError, match="no longer holds"):
            rewrite(cls, [Expression((step, ("forward", "F.max_pool2d(self.conv(x), 2)", 0)), "child", "wrap")])
    with pytest.raises(CannotRewriteError, match="no longer holds other"):
        rewrite(cls, [Expression((("forward", WRAPPED, 0), ("other", "x", 0)), "child", "wrap")])
