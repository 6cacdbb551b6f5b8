"""Copies of models: deep ones, ones around the same weights, ones without data."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from blurify.errors import BlurifyError

# What constructors fill their parameters with, of which nothing is left on the meta device.
_FILLS = frozenset(
    {
        *(Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_, Tensor.clamp_),
        *(Tensor.mul_, Tensor.add_, Tensor.sub_, Tensor.div_),
        *(nn.init.uniform_, nn.init.normal_, nn.init.constant_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
    }
)


class _Unfilled(TorchFunctionMode):
    """Leaves out what would only fill a tensor without data: most of building a model on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            filled = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it on by name
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


@contextmanager
def without_data() -> Iterator[None]:
    """Build models on the meta device: shapes, but no data, and no time spent on filling them."""
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def without_weights() -> Iterator[None]:
    """Build models whose parameters have no data, but whose buffers do: those that no checkpoint has, too."""
    register = nn.Module.register_parameter
    known = WeakIdKeyDictionary()  # a parameter that is registered twice stays one

    def without(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if type(parameter) is nn.Parameter and not parameter.is_meta:
            if parameter not in known:
                known[parameter] = nn.Parameter(to_meta(parameter.detach()), parameter.requires_grad)
                known[parameter].__dict__.update(parameter.__dict__)
            parameter = known[parameter]
        register(self, name, parameter)

    nn.Module.register_parameter = without  # type: ignore[method-assign, assignment]
    try:
        with _Unfilled():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters and buffers have shapes but no data. Takes no memory for the weights."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise BlurifyError(
                "the model has lazy modules that were never run: run it once on real data, then convert it"
            )
        memo[id(parameter)] = nn.Parameter(to_meta(parameter.detach()), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = to_meta(buffer)
    return copy_model(model, memo)


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model, with what `memo` has by id in place of the original's parts.

    Raises:
        BlurifyError: something in the model can't be copied.
    """
    memo = dict(memo or {})
    try:
        _copy_plain_modules(model, memo)
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise BlurifyError(
            f"the model can't be copied ({type(error).__name__}: {error}): make copy.deepcopy(model) work"
        ) from error


def _copy_plain_modules(model: nn.Module, memo: dict[int, Any]) -> None:
    """Put copies of the modules into a deep copy's memo: of those that say nothing of how they are copied.

    `copy.deepcopy` would make the same of them, but looks at each number in them: a dozen dicts of hooks a module.
    """
    plain: list[tuple[nn.Module, nn.Module]] = []
    known: dict[type, bool] = {}
    for module in model.modules():
        cls = type(module)
        if cls not in known:
            known[cls] = _is_copied_plainly(cls)
        if known[cls] and id(module) not in memo:
            plain.append((module, cls.__new__(cls)))
            memo[id(module)] = plain[-1][1]
        else:
            for value in vars(module).values():
                _without_graph(value, memo)
    for module, copied in plain:
        copied.__setstate__({name: _copied(value, memo) for name, value in module.__getstate__().items()})


def _is_copied_plainly(cls: type[nn.Module]) -> bool:
    """Whether a copy of an instance is a new instance with a copy of its `__dict__`."""
    own = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__")
    return (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and cls.__getstate__ is nn.Module.__getstate__  # which leaves out what was compiled
        and cls.__new__ is object.__new__
        and cls not in copyreg.dispatch_table
        and not any(hasattr(cls, name) for name in own)
        and not any("__slots__" in vars(base) for base in cls.__mro__)
    )


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of an attribute."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict:
        made = memo[id(value)] = {}
        for key, item in value.items():
            made[key if type(key) is str else copy.deepcopy(key, memo)] = _copied(item, memo)
        return made
    if kind in (OrderedDict, set, list) and not value:
        memo[id(value)] = kind()
        return memo[id(value)]
    if kind is tuple and all(type(item) in _ATOMS for item in value):
        return value
    _without_graph(value, memo)
    return copy.deepcopy(value, memo)


_ATOMS = frozenset({int, float, bool, str, bytes, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype})


def _without_graph(value: Any, memo: dict[int, Any]) -> None:
    # The product that torch.nn.utils.weight_norm keeps; deepcopy refuses it, and each forward makes it anew.
    if isinstance(value, Tensor) and not value.is_leaf:
        memo[id(value)] = value.detach()


def sharing_copy(model: nn.Module, instead: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the model's modules around the very same parameters; it takes no memory for them.

    Buffers are copied: a forward may write to them in eval mode too. `instead` gives other parameters and buffers, by
    the id of those that they replace.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    memo |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    return copy_model(model, memo | (instead or {}))


def to_meta(tensor: Tensor) -> Tensor:
    """The same tensor without data, on the meta device."""
    return tensor if tensor.is_meta else torch.empty_like(tensor, device="meta")


def device_of(model: nn.Module) -> torch.device:
    """Where the model is: the device of its first parameter or buffer, else the CPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
