"""What a conversion does to a trained model's answers: said by `convert` and `inspect`, and counted where asked."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurify.allocation import keep_freed_memory
from blurify.cli import console
from blurify.cli.devices import find_device, memory_errors
from blurify.cli.tables import Column, print_table, say_left_out
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from blurify.files.sources import LoadedModel
    from blurify.metrics.pareto import ParetoTable
    from blurify.metrics.pictures import FolderPictures
    from blurify.metrics.results import Agreement, Aliasing, Estimate
    from blurify.metrics.subject import Preprocessing, Subject
    from blurify.metrics.trade_off import Ranking
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe
    from blurify.tuning.budget import Budget, Chosen

IMAGES = 100
_BATCH = 32

Images = Annotated[int, typer.Option(metavar="N", help="With --data: so many images, at random all over.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="For pictures: where the model runs.")]


def check_images(images: int) -> None:
    """Raise BlurifyError for a number of pictures that is none."""
    if images < 1:
        raise BlurifyError(f"--images {images} is no picture at all: give at least 1")


def changes_answers(plan: Plan) -> bool:
    """Whether what the plan does changes a model's outputs: something is blurred, with more than one tap."""
    return plan.filters


def adapt_command(model: str, output: str, options: Sequence[str]) -> str:
    """The command line that fits a model's weights to the blur, on pictures that the user has.

    Args:
        model, output: its files.
        options: that it takes to read the model.
    """
    return f"blurify adapt {shlex.join([model, *options])} --data DIR -o {shlex.quote(output)}"


def shown(output: Path) -> str:
    """A path as the user wrote it: of a directory with its slash."""
    from blurify.files.atomic import Folder

    return f"{output}/" if isinstance(output, Folder) else str(output)


def adapted_name(output: Path) -> str:
    """What the adapted model's file might be called: 'aa.pt' -> 'aa_adapted.pt'."""
    from blurify.files.atomic import Folder

    endings = "".join(_endings(output.name))
    name = str(output.with_name(f"{output.name.removesuffix(endings)}_adapted{endings}"))
    return f"{name}/" if isinstance(output, Folder) else name


def _endings(name: str) -> list[str]:
    """The endings of a file's name that say its format: '.pt', or '.pth.tar', '.pt.gz'."""
    *before, last = ["", *PurePath(name).suffixes][-2:]
    return [*(before if before and last in (".gz", ".tar") else []), last]


def warning(command: str, *, done: bool) -> str:
    """What becomes of a trained model's answers, and the command that mends it, in one line."""
    answers = "many of the answers, often most, {} the original's"
    if done:
        start = f"NOT READY FOR USE: trained weights do not fit the blur, {answers.format('are no longer')}"
    else:
        start = "converting a trained model is not enough: its weights do not fit the blur, "
        start += answers.format("will not be")
    return f"{start}; mend them with: {command}"


@dataclass(frozen=True)
class Shown:
    """A model and the pictures that it is shown.

    Attributes:
        spec: what the user called the model.
        model: the original.
        preprocessing: how pictures become its input.
        pictures: a folder of them.
        device: --device.
    """

    spec: str
    model: nn.Module
    preprocessing: Preprocessing
    pictures: FolderPictures
    device: str

    @classmethod
    def of(
        cls, spec: str, loaded: LoadedModel, inputs: tuple[Tensor, ...] | None, data: Path, images: int, device: str
    ) -> Shown:
        """By the options of a command. Raises BlurifyError where there are no such pictures, or no such device."""
        from blurify.metrics.pictures import open_folder

        keep_freed_memory()
        used = preprocessing_for(loaded, inputs)
        find_device(device)  # before the work, so that none is wasted
        return cls(spec, loaded.model, used, open_folder(data, used, images=images), device)

    @property
    def example(self) -> Tensor:
        """One picture's worth of zeros: (1, C, h, w), in the model's precision."""
        import torch

        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.zeros(1, self.preprocessing.channels, *self.preprocessing.crop, dtype=dtype)

    def aliasing(self) -> Aliasing:
        """How much each site aliases."""
        from blurify.metrics.aliasing import aliasing

        with self._on_device(self.model) as (subject,), console.working("measuring aliasing"):
            return aliasing(subject, self.pictures)

    def compared(self, converted: nn.Module) -> Agreement:
        """How far a conversion answers as the model does."""
        from blurify.metrics.agreement import agreement

        with (
            self._on_device(self.model, converted) as (original, other),
            console.working("counting the answers that change"),
        ):
            return agreement(original, other, self.pictures, batch_size=_BATCH)

    def within(self, recipe: Recipe, budget: Budget, inputs: Any) -> Chosen:
        """The recipe within a budget, by the aliasing measured on the pictures."""
        from blurify.tuning.budget import within_budget

        with self._on_device(self.model) as (subject,), console.working("choosing within the budget"):
            return within_budget(self.model, recipe, budget, inputs, subject=subject, pictures=self.pictures)

    def ranked(self, recipe: Recipe) -> Ranking:
        """The sites in the order in which to convert them."""
        from blurify.tuning.ranking import rank_sites

        with self._on_device(self.model) as (subject,), console.working("ranking the sites"):
            return rank_sites(subject, recipe, self.pictures, batch_size=_BATCH)

    def pareto(self, recipe: Recipe, points: int) -> ParetoTable:
        """What partial conversions cost and buy."""
        from blurify.tuning.pareto import pareto_table

        with self._on_device(self.model) as (subject,), console.bar("partial conversions") as watch:
            return pareto_table(
                self.model, recipe, subject=subject, pictures=self.pictures, most=points, batch_size=_BATCH, watch=watch
            )

    @contextlib.contextmanager
    def _on_device(self, *models: nn.Module) -> Iterator[list[Subject]]:
        """The models on --device; they are back where they were afterwards."""
        from blurify.graph.copies import device_of
        from blurify.metrics.subject import Subject

        homes = [device_of(model) for model in models]
        place = find_device(self.device)
        names = [self.spec, f"{self.spec} converted"]
        try:
            with memory_errors("a smaller --input-shape"):
                yield [
                    Subject(model.to(place), self.preprocessing, name)
                    for model, name in zip(models, names, strict=False)
                ]
        finally:
            for model, home in zip(models, homes, strict=True):
                model.to(home)


def preprocessing_for(loaded: LoadedModel, inputs: tuple[Tensor, ...] | None) -> Preprocessing:
    """How pictures become the model's input; its size is that of --input-shape where given."""
    from blurify.metrics.preprocessing import preprocessing_of

    size = None
    if inputs is not None:
        if len(inputs) != 1 or inputs[0].dim() != 4:
            raise BlurifyError("a folder of pictures is shown to the model: give one --input-shape N,C,H,W, or none")
        size = inputs[0].shape[2], inputs[0].shape[3]
    used = preprocessing_of(loaded.model, loaded.source.arch, size=size)
    if inputs is not None and inputs[0].shape[1] != used.channels:
        raise BlurifyError(
            f"--input-shape has {inputs[0].shape[1]} channels, the model's pictures have {used.channels}: give those"
        )
    return used


def line(found: Agreement, data: Path | str, *, done: bool) -> str:
    """How many answers change, in one line.

    Args:
        found: the agreement of the original and its conversion.
        data: the folder of the pictures.
        done: the model is converted; else it would be.
    """
    start = f"on {found.images} pictures of {data}: {'' if done else 'converted as it is, '}"
    if found.same is None or found.divergence is None:
        off = f"the outputs are off by a relative error of {found.relative_error:.3g} (0: none, 1: all is lost)"
        labels = found.same_labels
        return f"{start}{'' if labels is None else f'{1 - labels.value:.1%} of the labels change, '}{off}"
    text = f"{start}{changed(found)} answers change, KL {found.divergence.value:.2g} nats"
    if found.sure is not None:
        lost = round((1 - found.sure.value) * found.sure.count)
        text += f"; of the {found.sure.count} that the original is sure of, {lost} change"
    if found.confidence is not None and found.confidence_other is not None:
        text += f"; mean confidence {found.confidence.value:.0%} -> {found.confidence_other.value:.0%}"
    return text


def changed(found: Agreement) -> int | None:
    """How many answers change; None for a model that is no classifier."""
    return None if found.same is None else round((1 - found.same.value) * found.same.count)


def as_json(found: Agreement | None, data: Path | None) -> dict[str, Any] | None:
    """The same as plain data; None where it was not measured."""
    if found is None:
        return None
    figures: dict[str, Any] = {"data": str(data), "images": found.images, "changed": changed(found)}
    for field in dataclasses.fields(found)[1:]:
        value: Estimate | float | str | None = getattr(found, field.name)
        if isinstance(value, str):  # what the original is called, which was said
            continue
        figures[field.name] = (
            value
            if value is None or isinstance(value, float)
            else {name: getattr(value, name) for name in ("value", "low", "high", "count")}
        )
    return figures


def parse_share(option: str, text: str | None) -> float | None:
    """'90%' -> 0.9, '0.9' -> 0.9. Raises BlurifyError for what is no share above 0 and up to 1."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share <= 1:
        raise BlurifyError(f"{option} {text!r} is no share: give one above 0 and up to 100%, such as 90% or 0.9")
    return share


def parse_extra(option: str, text: str | None) -> float | None:
    """'10%' -> 0.1, '0' -> 0.0, '1.5' -> 1.5. Raises BlurifyError for what is no share, or a negative one."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    if not match:
        raise BlurifyError(f"{option} {text!r} is no share: give one such as 10%, 0% or 0.1")
    return float(match[1]) / (100 if match[2] else 1)


def print_ranking(ranking: Ranking, *, wide: bool = False) -> None:
    """The sites in their order: each alone, and all up to it."""
    console.say()
    console.say(
        f"sites ranked by what is lost for the aliasing removed, on {ranking.curve[0].agreement.images} pictures of "
        f"{ranking.data} (aliasing: {ranking.aliasing_images}); kept: "
        f"{'equal answers' if ranking.curve[0].agreement.answers else '1 - relative error of the outputs'}",
        style="bold",
    )
    lost = "KL" if ranking.curve[0].agreement.same else "error"
    columns = (
        Column("site"), Column("kind", use=6), Column("aliasing", right=True, use=2),
        Column("with blur", right=True, use=3),
        Column(f"{lost} alone", right=True, use=5), Column("kept alone", right=True, use=4),
        Column("kept so far", right=True), Column("removed so far", right=True, use=1),
    )  # fmt: skip
    rows = [
        (
            site.site, site.kind, f"{site.before.value:.2%}", f"{site.after.value:.2%}", f"{site.agreement.lost:.3g}",
            f"{site.agreement.kept:.1%}", f"{step.agreement.kept:.1%}", f"{step.removed:.1%}",
        )
        for site, step in zip(ranking.sites, ranking.curve, strict=True)
    ]  # fmt: skip
    say_left_out(print_table(columns, rows, wide=wide))
