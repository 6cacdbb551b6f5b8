"""The verb: `adapt` lets the original teach the converted model, stage by stage, and keeps what helped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.copies import copy_model
from blurify.graph.structure import Inputs
from blurify.metrics.pictures import FolderPictures, open_folder
from blurify.metrics.preprocessing import preprocessing_of
from blurify.metrics.subject import Preprocessing, TensorPictures
from blurify.proof.proof import drop_proof
from blurify.spec.adapted import Adapted, Stage
from blurify.surgery import undo
from blurify.surgery.carrying import carry_adapted, plan_of
from blurify.tuning import crops as cropping
from blurify.tuning.answering import Answering, layers_to_compare
from blurify.tuning.answers import Agreement, agreement, check_kind, kind_of
from blurify.tuning.distil import distil
from blurify.tuning.examples import Augmentation, Examples, Pictures, examples_from, held_out
from blurify.tuning.keeping import Kept
from blurify.tuning.recalibrate import recalibrate
from blurify.tuning.reconstruct import reconstruct
from blurify.tuning.refine import refine
from blurify.tuning.training import NothingLearnsError, Step, Training, main_process, on_device

STAGES = ("recalibrate", "reconstruct", "refine", "distil")
REFINING = 0.4
"""Share of the steps or of the time that `refine` gets, where `distil` follows it."""

PARTS_RATE = 100.0
"""Learning rate of `refine` over that of `distil`: its problems are small and well-conditioned."""

TOLERANCE = 1.05
"""By how much a stage may be further from the original than the one before, and still be kept: some tens of held-back
pictures don't tell less apart."""

FEW = 32
"""Examples below which results vary a lot."""

Watch = Callable[[str, int, int], None]
"""Told (what is done, how far, of how much)."""


@dataclass(frozen=True)
class Options:
    """Everything about adapting that is not the models and the data.

    Attributes:
        stages: some of `STAGES`, in that order.
        training: how the last one trains.
        crops: how many pieces of pictures (or other examples) are used at most.
        calibrate: how many of them the first two stages see.
        forward: how many at once, in those.
        outputs: 'classes' | 'values' | 'auto': what the first output is taken for.
        augmentation: how pictures are varied.
        shift: by how many samples tensors are moved, where the data are no pictures.
        seed: of the choice of crops, the order and the variation.
    """

    stages: tuple[str, ...] = STAGES
    training: Training = field(default_factory=Training)
    crops: int = 500
    calibrate: int = 128
    forward: int = 16
    outputs: str = "auto"
    augmentation: Augmentation = field(default_factory=Augmentation)
    shift: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise BlurifyError for what can be seen to be wrong before anything is loaded."""
        for stage in self.stages:
            if stage not in STAGES:
                raise BlurifyError(f"there is no stage {stage!r}: choose from {', '.join(STAGES)}")
        if not self.stages:
            raise BlurifyError(f"no stage is chosen: choose from {', '.join(STAGES)}")
        check_kind(self.outputs)
        counts = {
            "crops": self.crops, "calibrate": self.calibrate, "batch_size": self.training.batch_size,
            "accumulate": self.training.accumulate,
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise BlurifyError(f"{name} is {count}: give at least 1")
        if self.training.steps is None and not self.training.minutes:
            raise BlurifyError("give steps or minutes: training would not end")
        if self.training.steps is not None and self.training.steps < 1:
            raise BlurifyError(f"{self.training.steps} steps are none: give at least 1, or leave the stage distil out")
        if self.training.minutes is not None and self.training.minutes <= 0:
            raise BlurifyError(f"{self.training.minutes:g} minutes are no time: give more")


def adapt(
    original: nn.Module | None,
    converted: nn.Module,
    data: Any,
    *,
    stages: Sequence[str] = STAGES,
    steps: int | None = None,
    minutes: float | None = 10.0,
    batch_size: int = 16,
    learning_rate: float = Training.learning_rate,
    crops: int = 500,
    calibrate: int = 128,
    preprocessing: Preprocessing | None = None,
    outputs: str = "auto",
    labels: bool = True,
    optimizer: str = Training.optimizer,
    decay: float = Training.decay,
    precision: str = "no",
    accumulate: int = 1,
    augmentation: Augmentation | None = None,
    shift: int = 1,
    seed: int = 0,
    device: torch.device | str | None = None,
    log: str | Path | None = None,
    keep: str | Path | None = None,
    inplace: bool = False,
    watch: Watch | None = None,
    told: Callable[[Stage], None] | None = None,
) -> nn.Module:
    """Let the original teach a converted model on unlabelled pictures, so that it answers as the original did.

    A trained network was never shown blurred features: converted, it keeps its weights and loses most of its answers.
    The stages, in this order, each of which is taken back where it made things clearly worse:

    - `recalibrate` moves batch-norm statistics by what the blurs changed;
    - `reconstruct` refits the layers around the blurs towards the original's activations (least squares, no training);
    - `refine` trains the parts that hold blurs, each by itself, to give what the original's give;
    - `distil` trains everything behind the first blur to answer what the original answers.

    Args:
        original: the model before the conversion; None: `converted`, reverted (while it has the original's weights).
        converted: what `convert` made of it.
        data: a folder of pictures (class folders give labels where they fit), `metrics.TensorPictures` or an open
            folder, a tensor (N, ...) of inputs as the model takes them, or an iterable of batches: tensors, tuples of
            arguments or dicts of keywords.
        stages: which.
        steps, minutes: how long `refine` and `distil` train: so many steps in all, or else what fits into so many
            minutes, with the other stages.
        batch_size: pictures a step and process.
        learning_rate: of `distil`, relative to the size of each tensor; `refine` takes a hundred times as much.
        crops: how many pieces of pictures are used at most; those of a picture are spread over it.
        calibrate: how many of them the first two stages see. They are in memory at once, with their features.
        preprocessing: how pictures become inputs; None: as the model says (see `metrics.preprocessing_of`).
        outputs: 'classes' (KL divergence) or 'values' (relative squared error: embeddings, boxes, maps); 'auto' finds
            out. Where two outputs can't be compared, as of detectors, layers inside are.
        labels: learn from class folders, too, where they fit.
        optimizer: one of timm's. decay: of the moving average of the weights.
        precision: 'no', 'fp16' or 'bf16'. accumulate: batches a step.
        augmentation: how pictures are varied.
        shift: by how many samples inputs are moved, where data are tensors.
        seed: of all random choices.
        device: where; None: where accelerate puts it, which also spreads it over processes (`accelerate launch`).
        log: a file that gets a line of JSON for every stage and step.
        keep: a file that the state is kept in. Where it is there, that run is taken up; it is deleted at the end.
        inplace: change `converted` itself; otherwise a deep copy is.
        watch: told (what, done, in all). told: given every stage as it ends.

    Returns:
        the adapted model: same class, keys and plan, in the mode and on the device that it had. `adapted_of` tells what
        was done.

    Raises:
        BlurifyError: the two models don't belong together, or the data or settings can't be used.

    Example:
        >>> converted = blurify.convert(model)
        >>> adapted = blurify.adapt(model, converted, "photos", minutes=10)
        >>> for line in blurify.adapted_of(adapted).lines():
        ...     print(line)
    """
    training = Training(
        steps, minutes, batch_size, learning_rate, optimizer, decay, precision, accumulate, 0.5 if labels else 0.0, seed
    )  # fmt: skip
    options = Options(
        tuple(stage for stage in STAGES if stage in stages) if set(stages) <= set(STAGES) else tuple(stages), training,
        crops, calibrate, outputs=outputs, augmentation=augmentation or Augmentation(), shift=shift, seed=seed,
    )  # fmt: skip
    options.check()
    result = converted if inplace else copy_model(converted)
    teacher = _teacher(original, converted)
    run = _Run(teacher, result, options, Path(log) if log else None, watch, told)
    with run.placed(torch.device(device) if device is not None else None):
        run.examine(data, preprocessing, labels=labels)
        run.stages(Path(keep) if keep else None)
    carry_adapted(result, run.record())
    drop_proof(result)  # it says that the weights are the original's
    return result


def _teacher(original: nn.Module | None, converted: nn.Module) -> nn.Module:
    """The original, checked."""
    if plan_of(converted) is None:
        raise BlurifyError("the model carries no plan, so it is not converted: convert it first")
    if original is None:
        teacher = copy_model(converted)
        undo.undo(teacher)
        return teacher
    if original is converted or plan_of(original) is not None:
        raise BlurifyError("the original is converted, too: give the model as it was before, or None to revert it")
    theirs, mine = original.state_dict(), converted.state_dict()
    differing = [name for name in {**theirs, **mine} if name not in theirs or name not in mine]
    differing += [name for name in mine if name in theirs and _shape(mine[name]) != _shape(theirs[name])]
    if differing:
        raise BlurifyError(
            f"the original and the converted model have other tensors ({differing[0]} differs): give the model that "
            "was converted"
        )
    return original


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else None


class _Run:
    """One call of `adapt`."""

    def __init__(
        self, original: nn.Module, converted: nn.Module, options: Options, log: Path | None, watch: Watch | None,
        told: Callable[[Stage], None] | None,
    ) -> None:  # fmt: skip
        self.original, self.converted, self.options, self.log = original, converted, options, log
        self.watch, self.told = watch, told
        self.begun = time.monotonic()
        self.done: list[Stage] = []
        self.notes: list[str] = []
        self.name = ""
        self.device = torch.device("cpu")

    @contextlib.contextmanager
    def placed(self, device: torch.device | None) -> Iterator[None]:
        """Both models on the device and in eval mode meanwhile."""
        modes = [(module, module.training) for model in (self.original, self.converted) for module in model.modules()]
        homes = [(model, _device(model)) for model in (self.original, self.converted)]
        self.device = device if device is not None else _default_device(homes[1][1])
        try:
            for model, _ in homes:
                model.eval().to(self.device)
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for model, home in homes:
                model.to(home)

    def examine(self, data: Any, preprocessing: Preprocessing | None, *, labels: bool) -> None:
        """Find out what there is: examples to adapt on and to check on, what the outputs are, where to compare."""
        self.examples, self.checked = self._examples(data, preprocessing, labels=labels)
        count = len(self.examples)
        if count < FEW:
            self.notes.append(f"{count} examples are few: results vary; some hundred are better")
        plain = self.examples.plain(self.options.forward, self.options.calibrate)
        self.batches = [on_device(self.device, batch) for batch in plain]
        self.checks = self._checks()
        kind = self.options.outputs
        with torch.no_grad():
            self.layers = tuple(layers_to_compare(self.original, self.converted, self.batches))
        self.kind: Any = (
            "values" if self.layers else kind_of(self.original, self.batches[0]) if kind == "auto" else kind
        )
        if self.layers:
            self.notes.append(
                f"the outputs of the two can't be compared one by one: {len(self.layers)} layers inside are compared"
            )
        frozen = [name for name, parameter in self.converted.named_parameters() if not parameter.requires_grad]
        if frozen:
            self.notes.append(f"{len(frozen)} parameters are frozen (requires_grad is off) and stay as they are")

    def _examples(self, data: Any, preprocessing: Preprocessing | None, *, labels: bool) -> tuple[Examples, Examples]:
        options = self.options
        dtype = next((p.dtype for p in self.converted.parameters() if p.is_floating_point()), torch.float32)
        if isinstance(data, str | Path | FolderPictures | TensorPictures):
            geometry = preprocessing or (
                data.preprocessing if isinstance(data, FolderPictures) else preprocessing_of(self.original)
            )
            found = self._crops(data, geometry, labels=labels)
            self.name = f"{len(found)} crops of {len(found.pictures.unique())} pictures"
            train, check = cropping.hold_back(found)
            plain = replace(options.augmentation, flip=False, colour=0.0, mix=0.0)
            return (
                Pictures(train, geometry, options.augmentation, dtype),
                Pictures(check, geometry, plain, dtype),
            )
        examples = examples_from(data, options.crops, options.shift)
        self.name = f"{len(examples)} examples"
        return held_out(examples)

    def _crops(self, data: Any, geometry: Preprocessing, *, labels: bool) -> cropping.Crops:
        if isinstance(data, TensorPictures):
            chosen = slice(0, self.options.crops)
            canvases = (data.canvases[chosen] * 255).round().to(torch.uint8)
            count = len(canvases)
            known = data.labels[chosen] if labels and data.labels is not None else torch.full((count,), -1)
            if canvases.shape[2:] != geometry.canvas:
                raise BlurifyError(
                    f"the pictures are {tuple(canvases.shape[2:])}, the canvas {geometry.canvas}: bring the pictures "
                    "to the canvas, or give another preprocessing"
                )
            return cropping.Crops(canvases, torch.arange(count), known)
        folder = data
        if not isinstance(data, FolderPictures):
            classes = self._classes(geometry) if labels else None
            folder = open_folder(data, geometry, classes=classes)
        found = cropping.cut(
            folder, self.options.crops, seed=self.options.seed,
            watch=None if self.watch is None else lambda done, of: self.watch("reading pictures", done, of),  # type: ignore[misc]
        )  # fmt: skip
        if found.left_out:
            rest = f" and {len(found.left_out) - 3} more" if len(found.left_out) > 3 else ""
            self.notes.append(f"left out, as they can't be read: {'; '.join(found.left_out[:3])}{rest}")
        if bool((found.labels >= 0).any()):
            self.notes.append("the class folders' labels are learned from, too (labels=False ignores them)")
        return found

    def _classes(self, geometry: Preprocessing) -> int | None:
        """How many classes the model tells apart; None where its answer is something else."""
        with torch.no_grad(), contextlib.suppress(Exception):
            like = next(p for p in self.original.parameters() if p.is_floating_point())
            answer = self.original(torch.zeros(1, geometry.channels, *geometry.crop).to(like))
            if isinstance(answer, Tensor) and answer.ndim == 2:
                return answer.shape[1]
        return None

    def _checks(self) -> list[tuple[Inputs, tuple[Inputs, ...]]]:
        """What stages are judged on: (what the converted model sees, what the original's answers are averaged over).

        As it is taught: answers that depend less on the shift are further from the original's on single windows.
        """
        size = self.options.forward
        if not isinstance(self.checked, Pictures):
            here = [on_device(self.device, batch) for batch in self.checked.plain(size)]
            return [(batch, (batch,)) for batch in here]
        steps = -(-len(self.checked) // size)
        drawn = [self.checked.draw(self.options.seed, step, size) for step in range(steps)]
        return [
            (on_device(self.device, one.seen), tuple(on_device(self.device, view) for view in one.taught))
            for one in drawn
        ]

    # --- the stages

    def stages(self, keep: Path | None) -> None:
        """One after the other; what made things worse is taken back."""
        options = self.options
        settings = {
            "options": asdict(replace(options, training=replace(options.training, minutes=None))),
            "data": self.name, "kind": self.kind,
        }  # fmt: skip
        kept = Kept(keep, settings)
        under_way = kept.found()
        self._log({"event": "start", "data": self.name, "outputs": self.kind, "notes": self.notes})
        best = self._agreement()
        waiting = list(options.stages)
        held = None
        if under_way is not None:
            name, beside = under_way
            waiting = waiting[waiting.index(name) :]
            for stage in beside["stages"]:
                self._end(Stage(**stage))
            best = Agreement(**beside["best"])
            held = beside["before"]
        else:
            self._end(Stage("converted", f"converted: {best.words()}", 0.0, _number(best.distance), best.same))
        for name in waiting:
            if held is None:
                held = {key: value.clone() for key, value in self.converted.state_dict().items()}
            kept.beside = {
                "stages": [asdict(stage) for stage in self.done], "best": asdict(best), "before": held
            }  # fmt: skip
            started = time.monotonic()
            try:
                line = self._stage(name, kept)
            except NothingLearnsError as error:
                line = f"{name}: {error}"
            now = self._agreement()
            worse = not now.distance <= best.distance * TOLERANCE
            if worse:
                self.converted.load_state_dict(held)
                line += f"; {now.words()}: worse, so it is taken back"
            else:
                best, line = now, f"{line}; {now.words()}"
            held = None
            seconds = time.monotonic() - started
            self._end(Stage(name, line, seconds, _number(now.distance), now.same, kept=not worse))
        kept.drop()
        self._log({"event": "end", "seconds": time.monotonic() - self.begun})

    def _stage(self, name: str, kept: Kept) -> str:
        if name == "recalibrate":
            self._watching("recalibrating", 0, 1)
            return recalibrate(self.original, self.converted, self.batches).line()
        if name == "reconstruct":
            return reconstruct(
                self.original,
                self.converted,
                self.batches,
                watch=lambda done, of: self._watching("refitting", done, of),
            ).line()
        training = self._share(name)
        if name == "refine":
            return refine(
                self.original, self.converted, self.examples, training, device=self.device, kept=kept, watch=self._step
            ).line()
        return distil(
            self.original, self.converted, self.examples, training, self.kind, layers=self.layers, device=self.device,
            kept=kept, watch=self._step,
        ).line()  # fmt: skip

    def _share(self, name: str) -> Training:
        """What a gradient stage gets of the steps, or of the time that is left."""
        training = self.options.training
        both = {"refine", "distil"} <= set(self.options.stages)
        if name == "refine":
            share = REFINING if both else 1.0
            training = replace(training, learning_rate=training.learning_rate * PARTS_RATE)
        else:
            share = 1 - REFINING if both else 1.0
        if training.steps is not None:
            return replace(training, steps=max(1, round(training.steps * share)))
        left = max((training.minutes or 0) - (time.monotonic() - self.begun) / 60, 0.01)
        return replace(training, minutes=left * (share if name == "refine" else 1.0))

    def _step(self, step: Step) -> None:
        self._log({"event": "step", **asdict(step)})
        self._watching(f"distilling, loss {step.loss:.3f}", step.step, step.steps or 0)

    def _watching(self, what: str, done: int, of: int) -> None:
        if self.watch is not None:
            self.watch(what, done, of)

    def _agreement(self) -> Agreement:
        mine, theirs = dict(self.converted.named_modules()), dict(self.original.named_modules())
        student = Answering(self.converted, [mine[path] for path in self.layers])
        teacher = Answering(self.original, [theirs[path] for path in self.layers])
        return agreement(teacher, student, self.checks, self.kind)

    def _end(self, stage: Stage) -> None:
        self.done.append(stage)
        self._log({"event": "stage", **asdict(stage)})
        if self.told is not None and main_process():
            self.told(stage)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.log is not None and main_process():
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def record(self) -> Adapted:
        """What was done."""
        return Adapted(self.name, len(self.examples), len(self.checked), self.kind, tuple(self.done), tuple(self.notes))


def _number(value: float) -> float:
    """JSON and records know no nan."""
    return value if value == value else 0.0


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _default_device(home: torch.device) -> torch.device:
    """Where the model is, or an accelerator where there is one and the model is on the CPU."""
    if home.type != "cpu":
        return home
    from accelerate import PartialState

    found: torch.device = PartialState().device
    return found
