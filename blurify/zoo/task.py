"""What is done with one model, inside a worker process."""

from __future__ import annotations

import gc
import random
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blurify.errors import BlurifyError, text_of
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe
from blurify.zoo.journal import Record

if TYPE_CHECKING:
    from torch import nn

    from blurify.graph.structure import Inputs
    from blurify.zoo.storage import Storage

_POSITIONS_SIDE = 128  # at a stride of 32, four samples are left: more than the usual filters have
_PERIOD = 64  # sides that differ by it are halved five times in the same way
_SIDES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384)


@dataclass(frozen=True)
class Task:
    """One model and what to do with it; plain data, for it travels to a worker as JSON.

    Attributes:
        model: the spec, as `opening.open_model` takes it.
        recipe: `Recipe.to_dict()`.
        inspect_only: do not convert.
        pretrained: convert it with its pretrained weights, else with random ones.
        target: the file to write, by its name in the run's storage; None writes none.
        proof_macs: where a forward takes more multiply-adds than this, prove the conversion on a smaller input.
        measure: also time a bare forward.
        positions: also measure how far the features drifted.
    """

    model: str
    recipe: dict[str, Any]
    inspect_only: bool = False
    pretrained: bool = True
    target: str | None = None
    proof_macs: int | None = None
    measure: bool = False
    positions: bool = False


def unfinished(task: Task) -> Record:
    """The record of a task of which nothing is known yet."""
    weights = None if task.inspect_only else "pretrained" if task.pretrained else "random"
    return {"model": task.model, "status": "failed", "recipe": task.recipe.get("name"), "weights": weights}


def carry_out(task: Task, storage: Storage | None) -> Record:
    """Do one task; whatever the model does, a record comes back (unless it takes the process with it).

    Args:
        task: what to do.
        storage: where its file goes; not needed for a task without one.
    """
    record = unfinished(task)
    clock = _Clock()
    try:
        _carry_out(task, record, clock, storage)
    except BaseException as error:  # a model may well exit: that is its result
        record["error"] = explained(error)
        record["stage"] = clock.stage
    record["seconds"] = {stage: round(seconds, 4) for stage, seconds in clock.seconds.items()}
    return record


def _carry_out(task: Task, record: Record, clock: _Clock, storage: Storage | None) -> None:
    recipe = Recipe.from_dict(task.recipe)
    model, plan, inputs = _inspected(task, recipe, clock)
    record |= described(plan)
    if task.measure:
        _bare_forward(model, inputs, clock)
    if task.inspect_only or not plan.converted:
        record["status"] = "inspected"
        return
    proof_inputs = inputs
    if task.proof_macs is not None and plan.macs + plan.extra_macs > task.proof_macs:
        with clock("inspect-smaller"):
            proof_inputs = _smallest(model, recipe, plan, inputs)
    del model
    gc.collect()  # traces are cycles, and hold a copy of the weights where a model needs values
    from blurify.conversion import convert, proof_of
    from blurify.files import checkpoints, opening
    from blurify.surgery.carrying import plan_of

    with clock("build"), reproducible(task.model):
        loaded = opening.open_model(task.model, pretrained=task.pretrained)
    positions = _Positions(loaded.model, inputs, proof_inputs, clock) if task.positions else None
    with clock("convert"), reproducible(task.model):
        converted = convert(loaded.model, recipe, example_inputs=proof_inputs, inplace=True)
    proof, applied = proof_of(converted), plan_of(converted)
    assert proof is not None and applied is not None  # that is what `convert` promises
    if _gist(applied) != _gist(plan):
        raise BlurifyError("on real weights other sites are found than without: please report this model")
    record |= {
        "identity_error": proof.identity_error,
        "identity_dtype": proof.dtype,
        "sites_compared": proof.sites_compared,
        "sites_shown": proof.sites_shown,
        "sites_left": proof.sites_left,
        "tensors_equal": proof.tensors_equal,
        "proof_input_shapes": [list(shape) for shape in applied.input_shapes],
    }
    if positions is not None:
        record |= positions.compared(converted)
    if task.target is not None:
        assert storage is not None

        def write(path: Path) -> None:
            checkpoints.save(converted, path, source=loaded.source, force=True)

        with clock("save"):
            size = storage.store(task.target, write)
        record |= {"file": task.target, "bytes": size}
    record["status"] = "converted"


def _inspected(task: Task, recipe: Recipe, clock: _Clock) -> tuple[nn.Module, Plan, Inputs]:
    """The model without data where it can be built like that, its plan, and what it was called with."""
    from blurify.files import sources
    from blurify.graph.copies import without_data

    # torchvision's builders make another architecture with weights than without (frozen norms).
    weightless = task.pretrained and task.model.startswith("torchvision/")

    def build() -> nn.Module:
        with clock("build"), reproducible(task.model):
            return sources.build(task.model, pretrained=False, weightless=weightless)[0].eval()

    try:
        with without_data():
            model = build()
        with clock("inspect"):
            return (model, *_planned(model, recipe))
    except Exception as error:
        # Some constructors and forwards need values: then build it with data. The reason is that attempt's.
        if out_of_memory(error):
            raise
    model = build()
    with clock("inspect"):
        return (model, *_planned(model, recipe))


def _planned(model: nn.Module, recipe: Recipe) -> tuple[Plan, Inputs]:
    """As `blurify.inspect`, and also the inputs."""
    from blurify.graph.inputs import traced
    from blurify.planning.planner import make_plan

    seen = traced(model)
    return make_plan(model, recipe, seen.inputs, seen=seen), resized(seen.inputs, None)


def _smallest(model: nn.Module, recipe: Recipe, plan: Plan, inputs: Inputs) -> Inputs:
    """The smallest input that the model takes and for which the plan is the same, site by site."""
    from blurify.planning.planner import make_plan

    for side in _SIDES:
        smaller = resized(inputs, side)
        try:
            other = make_plan(model, recipe, smaller, training=False)
        except Exception:  # this size is too small for it, or it takes only one
            continue
        if other.macs >= plan.macs:  # it brings pictures to a size of its own, as detectors do; so are larger ones
            break
        if _gist(other) == _gist(plan):
            return smaller
    return inputs


def resized(inputs: Inputs, side: int | None) -> Inputs:
    """Inputs of zeros on the CPU, images and videos among them with another height and width."""
    import torch
    from torch import Tensor

    from blurify.graph.structure import map_tensors

    def zeros(tensor: Tensor) -> Tensor:
        shape = tuple(tensor.shape)
        if side is not None and tensor.is_floating_point() and tensor.ndim >= 3:
            shape = (*shape[:-2], side, side)
        return torch.zeros(shape, dtype=tensor.dtype, device="cpu")

    resized: Inputs = map_tensors(inputs, zeros)
    return resized


def _gist(plan: Plan) -> list[tuple[str, str, str]]:
    return [(site.name, site.action, site.rule) for site in plan.sites]


def described(plan: Plan) -> Record:
    """What a plan says about a model, in numbers."""

    def counts(field: str, sites: tuple[Any, ...]) -> dict[str, int]:
        values = [getattr(site, field) for site in sites]
        return {value: values.count(value) for value in sorted(set(values))}

    return {
        "class": plan.model,
        "input_shapes": [list(shape) for shape in plan.input_shapes],
        "sites": len(plan.sites),
        "kinds": counts("kind", plan.sites),
        "converted": len(plan.converted),
        "converted_by_rule": counts("rule", plan.converted),
        "skipped": len(plan.skipped),
        "skipped_by_rule": counts("rule", plan.skipped),
        "macs": plan.macs,
        "extra_macs": plan.extra_macs,
        "drift": plan.alignment.largest if plan.alignment is not None else None,
        "meetings": len(plan.alignment.meetings) if plan.alignment is not None else None,
    }


class _Positions:
    """Where the features of a model are, to be compared with where they are once it is converted.

    Measured on a small input where the model takes one: the positions are the same on any. But not where padding
    depends on the size, as TensorFlow's 'SAME' does: that the plan knows for sizes like its own.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, planned: Inputs, clock: _Clock) -> None:
        from blurify.proof.positions import positions_of

        self.clock = clock
        self.error = ""
        for self.inputs in (resized(inputs, _positions_side(planned)), inputs):
            try:
                with clock("positions"):
                    self.before = positions_of(model, self.inputs)
                return
            except Exception as error:  # this size is too small for it, or it can't be run on coordinates
                self.error = self.error or explained(error)
        self.before = {}

    def compared(self, converted: nn.Module) -> Record:
        """The largest drift of any module's output, over how many of them it was measured, or why it was not."""
        from blurify.proof.positions import compared, positions_of

        try:
            with self.clock("positions"):
                found = compared(self.before, positions_of(converted, self.inputs)) if self.before else None
        except Exception as error:
            found, self.error = None, explained(error)
        if found is None:
            return {"drift_measured": None, "drift_modules": 0, "drift_error": self.error}
        return {"drift_measured": round(found.largest, 6), "drift_modules": len(found.drifts), "drift_error": None}


def _positions_side(planned: Inputs) -> int:
    """Of the sides whose maps are odd where those of the planned input are, the first that is large enough."""
    from blurify.graph.structure import tensors_in

    sides = {side for tensor in tensors_in(planned) if tensor.ndim >= 3 for side in tensor.shape[-2:]}
    rest = sides.pop() % _PERIOD if len(sides) == 1 else 0
    return _POSITIONS_SIDE + (rest - _POSITIONS_SIDE) % _PERIOD


def _bare_forward(model: nn.Module, inputs: Inputs, clock: _Clock) -> None:
    """One forward with nothing around it, on the meta device where that works: what inspecting is measured against."""
    import torch
    from torch import Tensor

    from blurify.graph.structure import map_tensors

    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))

    def to_device(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    args, kwargs = map_tensors(inputs, to_device)
    with clock("bare-forward"), torch.no_grad():
        model(*args, **kwargs)


@contextmanager
def reproducible(name: str) -> Iterator[None]:
    """Random numbers that depend on the model's name alone: a model that is done again comes out the same."""
    import torch

    seed = zlib.crc32(name.encode())
    random.seed(seed)
    torch.manual_seed(seed)
    yield


def explained(error: BaseException) -> str:
    """The one-line cause of a failure."""
    if out_of_memory(error):
        return "it needs more memory than a worker may take: raise --memory, or use fewer processes (-j)"
    text = text_of(error)[:400].encode("utf-8", "backslashreplace").decode()
    return text if isinstance(error, BlurifyError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory that could not be had is behind an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in text_of(error):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Clock:
    """Seconds by stage; a stage that comes again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stage = ""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.stage = stage
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
