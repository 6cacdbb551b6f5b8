"""What exports have in common: the inputs, which sizes stay open, and whether what was written computes the same."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from blurify.errors import BlurifyError, one_line
from blurify.files.checkpoint import Saved
from blurify.files.replanning import planned_inputs
from blurify.graph.copies import device_of
from blurify.spec.plan import Plan

Inputs = tuple[Tensor, ...]
Open = tuple[dict[int, str], ...]
"""Of each input the dimensions whose size stays open, with a name for each."""


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """What is exported is the model as it answers; afterwards it is as it was."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, training in before:
            module.training = training


def inputs_of(saved: Saved) -> Inputs:
    """Random inputs of the shapes that the plan was made for; the same ones every time.

    Raises:
        BlurifyError: the model is not in memory, or was planned without tensors.
    """
    model = saved.model
    if saved.tensors is not None or any(parameter.is_meta for parameter in model.parameters()):
        raise BlurifyError("the model has no weights in memory: save it as .safetensors")
    planned = planned_inputs(model, Plan.from_dict(saved.header["plan"]))
    if not planned:
        raise BlurifyError("the plan has no shapes of inputs, so the model can't be exported: save it as .pt")
    return alike(planned, [tuple(one.shape) for one in planned], device_of(model))


def alike(inputs: Sequence[Tensor], shapes: Sequence[Sequence[int]], device: torch.device) -> Inputs:
    """Random inputs of the same dtypes, of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(tuple(shape), generator=generator).to(device, one.dtype)
        for one, shape in zip(inputs, shapes, strict=True)
    )


def open_dimensions(inputs: Inputs) -> Iterator[tuple[Open, str]]:
    """Which sizes to leave open: all, then the batch alone, then none; with what to tell where that is not all."""
    names = {3: ("length",), 4: ("height", "width"), 5: ("depth", "height", "width")}
    batch: Open = tuple({0: "batch"} if one.dim() > 1 else {} for one in inputs)
    sizes: Open = tuple(
        own | {dim + 2: name for dim, name in enumerate(names.get(one.dim(), ()))}
        for own, one in zip(batch, inputs, strict=True)
    )
    if sizes != batch:
        yield sizes, ""
    # Dimensions of an input that no name is known for are no spatial ones.
    shape = " and ".join("x".join(map(str, one.shape[2:])) for one in inputs if one.dim() > 2)
    yield batch, f"this model can only be exported for the size {shape}" if sizes != batch else ""
    whole = " and ".join("x".join(map(str, one.shape)) for one in inputs)
    yield tuple({} for _ in inputs), f"this model can only be exported for inputs of {whole}: no other batch or size"


def by_parameter(model: nn.Module, shapes: tuple[Any, ...]) -> Any:
    """What is said of each input, in the form that torch.export asks for where a forward takes `*args`."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return (shapes,)
    return shapes


def program_of(saved: Saved) -> tuple[ExportedProgram, Open, str]:
    """The model as a program, with as many sizes left open as can be.

    Args:
        saved: the model, which is exported in eval mode.

    Returns:
        The program, the sizes that are open in it, and what to tell of it ('' where all are).

    Raises:
        BlurifyError: it can't be exported.
    """
    inputs = inputs_of(saved)
    first: Exception | None = None
    for opened, note in open_dimensions(inputs):
        with in_eval_mode(saved.model):
            sizes = any(max(own, default=0) > 1 for own in opened)
            if sizes and _other_sizes(saved.model, inputs, opened, [one.shape for one in inputs]) is None:
                continue  # the program would say that it takes what the model does not
        try:
            with in_eval_mode(saved.model), _simple_sizes():
                return _export(saved.model, inputs, opened), opened, note
        except BlurifyError:
            raise
        except Exception as error:  # torch.export raises many kinds
            first = first or error
    why = one_line(first) if first else "no reason given"
    raise BlurifyError(f"the {type(saved.model).__name__} can't be exported ({why}): save it as .pt") from first


def _export(model: nn.Module, inputs: Inputs, opened: Open) -> ExportedProgram:
    # A batch of one would be taken for a constant.
    shapes = [
        (max(one.shape[0], 2), *one.shape[1:]) if own else one.shape for own, one in zip(opened, inputs, strict=True)
    ]
    batch = torch.export.Dim("batch", min=1)
    dims = tuple(
        {dim: batch if name == "batch" else torch.export.Dim.DYNAMIC for dim, name in own.items()} or None
        for own in opened
    )
    return torch.export.export(
        model, alike(inputs, shapes, inputs[0].device), dynamic_shapes=by_parameter(model, dims), strict=False
    )


_MOST_TERMS = 32
"""Of a size as an expression of the input's: four stages make some ten."""


@contextlib.contextmanager
def _simple_sizes() -> Iterator[None]:
    """Give up where sizes become expressions that double at every layer, as those of TF-style padding do.

    torch.export would go on for hours with them.
    """

    def look(module: nn.Module, args: Any, out: Any) -> None:
        for size in out.shape if isinstance(out, Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.count_ops() > _MOST_TERMS:
                raise ValueError("its sizes are too involved to be left open")

    hook = nn.modules.module.register_module_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _other_sizes(
    model: nn.Module, inputs: Inputs, opened: Open, shapes: Sequence[Sequence[int]]
) -> list[list[int]] | None:
    """Shapes of other sizes that the model takes; None where it takes none that was tried."""
    # Odd sizes where it does; else multiples, as networks that divide and join ask for.
    for step in (17, 32, 64):
        other = [
            [n + step * (dim - 1) if dim > 1 and dim in own else n for dim, n in enumerate(shape)]
            for own, shape in zip(opened, shapes, strict=True)
        ]
        with contextlib.suppress(Exception):
            model(*alike(inputs, other, inputs[0].device))
            return other
    return None


def compare(
    model: nn.Module,
    inputs: Inputs,
    opened: Open,
    run: Callable[[Inputs], Sequence[Tensor]],
    tolerance: float,
) -> None:
    """Ask whether an export computes what the model does: at the planned sizes, and at others where they are open.

    Args:
        model: in eval mode.
        inputs: of the planned shapes.
        opened: which sizes are open.
        run: the export's tensors for inputs.
        tolerance: of the largest error, relative to the largest output.

    Raises:
        BlurifyError: it does not.
    """
    shapes = [[list(one.shape) for one in inputs]]
    if any(0 in own for own in opened):
        pairs = zip(opened, inputs, strict=True)
        shapes.append([[3 if dim == 0 and 0 in own else n for dim, n in enumerate(one.shape)] for own, one in pairs])
    if any(max(own, default=0) > 1 for own in opened) and (other := _other_sizes(model, inputs, opened, shapes[-1])):
        shapes.append(other)
    for sizes in shapes:
        given = alike(inputs, sizes, inputs[0].device)
        expected = flat(model(*given))
        actual = list(run(given))
        said = " and ".join("x".join(map(str, shape)) for shape in sizes)
        if [tuple(one.shape) for one in actual] != [tuple(one.shape) for one in expected]:
            raise BlurifyError(f"the exported model gives outputs of other shapes at {said}: save it as .pt")
        for one, wanted in zip(actual, expected, strict=True):
            if not wanted.numel():
                continue
            error = float((one.to(wanted.device, torch.float64) - wanted.double()).abs().max())
            largest = float(wanted.double().abs().max())
            if not error <= tolerance * max(largest, 1e-3):
                raise BlurifyError(
                    f"the exported model computes something else at {said} (off by {error:.1e} of {largest:.1e}): save "
                    "it as .pt"
                )


def flat(out: Any) -> list[Tensor]:
    """The tensors of whatever a model returns."""
    return [one for one in torch.utils._pytree.tree_leaves(out) if isinstance(one, Tensor)]


def tolerance_of(model: nn.Module, single: float) -> float:
    """How far apart two runs may be: `single` in float32, more in halves of it."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return max(single, 20 * torch.finfo(dtype).eps)
