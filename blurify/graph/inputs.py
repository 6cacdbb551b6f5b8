"""Find out what a model wants to be called with, when the user does not say."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError, named_line
from blurify.graph.guesses import by_configuration, by_names, last_resorts, possible
from blurify.graph.recorder import Trace, trace
from blurify.graph.structure import Inputs
from blurify.nn.exported import Exported

_SIZES = {
    1: ((1024,), (16000,), (4096,), (256,), (128,)),
    2: ((224, 224), (32, 32), (28, 28), (64, 64), (256, 256), (299, 299), (384, 384), (512, 512), (128, 128)),
    3: ((16, 112, 112), (16, 64, 64), (32, 32, 32), (64, 64, 64), (16, 224, 224), (32, 224, 224)),
}
_MOST_TRIED = 4  # guesses, for a message
_CONVS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_POOLS = {
    nn.MaxPool1d: 1, nn.MaxPool2d: 2, nn.MaxPool3d: 3, nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3
}  # fmt: skip


def given_inputs(example_inputs: Any) -> Inputs:
    """The user's example inputs as (args, kwargs): a tensor, a tuple or list of arguments, or a dict of keywords."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if (
        isinstance(example_inputs, tuple)
        and len(example_inputs) == 2
        and isinstance(example_inputs[0], tuple)
        and isinstance(example_inputs[1], dict)
    ):
        return example_inputs  # already in that form
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise BlurifyError(
        f"example_inputs is {type(example_inputs).__name__}: give a tensor, a tuple of arguments or a dict of keywords"
    )


def traced(model: nn.Module, example_inputs: Any = None) -> Trace:
    """Trace a model on the inputs that the user gives, or on the first inferred ones that it takes.

    Raises:
        BlurifyError: the model refuses the inputs given, or all that were tried; the message has its own reason.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise BlurifyError("this is a scripted model, which can't be changed any more: give the model before torch.jit")
    _refuse_wrapper(model)
    static = ("torch.ao.nn.quantized.modules", "torch.ao.nn.intrinsic.quantized.modules")
    floating = ("FloatFunctional", "FXFloatFunctional")  # which stand there too
    if any(
        type(module).__module__.startswith(static) and type(module).__name__ not in floating
        for module in model.modules()
    ):
        raise BlurifyError("this model is quantized, its weights are fixed to its strides: convert the float model")
    if example_inputs is not None:
        inputs = given_inputs(example_inputs)
        try:
            return trace(model, inputs, count=True)
        except BlurifyError:
            raise
        except Exception as error:
            if (other := _as_the_weights(model, inputs)) is not None:
                with contextlib.suppress(Exception):
                    return trace(model, other, count=True)
            hint = ""
            if isinstance(error, TypeError) and isinstance(example_inputs, Mapping):
                hint = " (a dict gives keywords; for a forward that takes a dict, give a tuple with that dict)"
            raise BlurifyError(
                f"the model refuses {_described(inputs)}: {named_line(error)}{hint}{_what_it_takes(model)}"
            ) from error
    first: Exception | None = None
    tried = []
    for inputs in _guesses(model):
        try:
            return trace(model, inputs, count=True)
        except BlurifyError:
            raise
        except Exception as error:
            first = first or error
            tried.append(_described(inputs))
    if not tried:
        raise BlurifyError("no input can be guessed for this model: give example_inputs (CLI: --input-shape N,C,H,W)")
    raise BlurifyError(
        f"the model refuses every input tried ({tried[0]}, ...; {named_line(first)}): "
        "give what it was made for as example_inputs (CLI: --input-shape N,C,H,W)"
    ) from first


def _what_it_takes(model: nn.Module) -> str:
    """'; it takes an input of shape ...' for the end of a message; '' where no input is known that it takes."""
    for inputs, _ in zip(_guesses(model), range(_MOST_TRIED), strict=False):
        with contextlib.suppress(Exception):
            trace(model, inputs)
            return f"; it takes {_described(inputs)}"
    return ""


_WRAPPERS = frozenset(
    "DataParallel DistributedDataParallel FullyShardedDataParallel AveragedModel ModelEma ModelEmaV2 ModelEmaV3".split()
)


def _refuse_wrapper(model: nn.Module) -> None:
    """Say what to convert instead of a wrapper around the model."""
    name = type(model).__name__
    if name == "OptimizedModule" and hasattr(model, "_orig_mod"):
        raise BlurifyError("this model is compiled: convert model._orig_mod, then torch.compile the result")
    if name in _WRAPPERS and isinstance(getattr(model, "module", None), nn.Module):
        raise BlurifyError(
            f"this is a {name} around the model: convert model.module, then wrap the result in {name} again"
        )


def _as_the_weights(model: nn.Module, inputs: Inputs) -> Inputs | None:
    """The inputs in the kind of numbers of the weights, complex or half: of an input often only the shape is said."""
    args, kwargs = inputs
    dtypes = dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    dtype = next((one for one in dtypes if one.is_complex), next(iter(dtypes), None))
    if dtype is None or not all(isinstance(one, Tensor) and one.is_floating_point() for one in args):
        return None
    return (tuple(one.to(dtype) for one in args), kwargs) if any(one.dtype != dtype for one in args) else None


def as_traced(inputs: Inputs, seen: Inputs) -> Inputs:
    """The user's inputs in the kind of numbers with which the model could be traced."""
    pairs = list(zip(inputs[0], seen[0], strict=False))
    if all(isinstance(one, Tensor) and isinstance(mine, Tensor) for mine, one in pairs) and any(
        mine.dtype != one.dtype for mine, one in pairs
    ):
        return tuple(mine.to(one.dtype) for mine, one in zip(inputs[0], seen[0], strict=True)), inputs[1]
    return inputs


def _guesses(model: nn.Module) -> Iterator[Inputs]:
    if isinstance(model, Exported):  # which may take no other sizes
        yield model.example()
    dtypes = dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point() or p.is_complex())
    first = next(iter(dtypes), torch.float32)
    yield from _guesses_of(model, first)
    if first.is_complex:  # whose forward may make it of a real signal
        yield from _guesses_of(model, next((one for one in dtypes if not one.is_complex), torch.float32))


def _guesses_of(model: nn.Module, dtype: torch.dtype) -> Iterator[Inputs]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) or hasattr(config, "get"):
        size = config.get("input_size")  # type: ignore[union-attr]
        if isinstance(size, tuple | list) and possible((1, *size)):
            yield (torch.zeros(1, *size, dtype=dtype),), {}
    shapes = list(filter(possible, _shapes(model)))
    yield from by_configuration(model, dtype)
    yield from by_names(model, shapes, dtype)
    for shape in shapes:
        image = torch.zeros(shape, dtype=dtype)
        wanted = max(_required(model), 1)
        yield (image,) * wanted, {}
        if wanted == 1:
            yield ([image[0]],), {}  # detection models take a list of images
    yield from last_resorts(model, dtype)


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    rank = channels = None
    for module in model.modules():
        for cls, dims in _CONVS.items():
            if isinstance(module, cls):
                rank, channels = dims, module.in_channels
                break
        if rank is not None:
            break
    if rank is None:
        for module in model.modules():
            rank = next((dims for cls, dims in _POOLS.items() if isinstance(module, cls)), None)
            if rank is not None:
                channels = 3
                break
    if rank is not None and channels is not None:
        for size in _SIZES[rank]:
            yield (1, channels, *size)
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            yield (1, module.in_features)
            break
    for channels in (3, 1):
        for size in _SIZES[2][:3]:
            yield (1, channels, *size)


def _required(model: nn.Module) -> int:
    """How many arguments the forward can't do without."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)


def _described(inputs: Inputs) -> str:
    def one(value: Any) -> str:
        if isinstance(value, Tensor):
            return "an input of shape " + "x".join(map(str, value.shape))
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(one, value)) + "]"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {one(item)}" for key, item in value.items()) + "}"
        return repr(value) if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"

    args, kwargs = inputs
    return ", ".join([*map(one, args), *(f"{key}={one(value)}" for key, value in kwargs.items())])
