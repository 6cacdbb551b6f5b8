"""`blurify measure`: how shift-invariant a model is, alone or beside another."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import platform
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from blurify.cli import console, measurements, options
from blurify.errors import BlurifyError, one_line
from blurify.versions import versions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from blurify.files.sources import LoadedModel
    from blurify.metrics.results import Measurement
    from blurify.metrics.subject import Pictures, Preprocessing, Subject, Watch
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe


def measure(
    context: typer.Context,
    model: options.Model,
    model2: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL2]", help="A second model, for the same pictures.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of images, with class folders or without.", show_default="embedded digits"
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="LIST", help="consistency, aliasing, equivariance, stability, worst-case; or all.")
    ] = "consistency,aliasing",
    images: Annotated[
        int | None, typer.Option(metavar="N", help="Only so many, picked at random all over.", show_default="all")
    ] = None,
    convert: Annotated[
        bool, typer.Option("--convert", help="Convert MODEL2 first; where there is none, MODEL again, converted.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="How to convert.", show_default="zhang2019")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the measurements as JSON.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE where it exists.")] = False,
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--no-labels", help="Insist on labels, or ignore them.", show_default="where they fit"),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Size of the model's input.", show_default="the model's own")
    ] = None,
    canvas: Annotated[
        str | None, typer.Option(metavar="H,W", help="Size that crops are taken from.", show_default="8/7 of --size")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None,
    circular: Annotated[
        bool, typer.Option("--circular", help="Consistency under circular shifts of the whole crop.")
    ] = False,
    most_shift: Annotated[
        int, typer.Option(metavar="N", help="Equivariance: shifts of at most so many pixels; 15 takes a quarter of 31.")
    ] = 31,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures a forward.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random choices.")] = 0,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where the models run.")] = "auto",
    arch: options.Arch = None,
    random: options.Random = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Measure how shift-invariant a model is; with MODEL2 or --convert side by side, on the same pictures and crops.

    Figures are means over the pictures with 95% intervals. Class folders give labels where they are named by the
    numbers of the model's classes, ImageNet's identifiers or the classes' names, or are as many as the classes.
    """
    for name, number in (("--images", images), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise BlurifyError(f"{name} {number} is no picture at all: give at least 1")
    if most_shift < 0:
        raise BlurifyError(f"--most-shift {most_shift} is no number of pixels: give 0 or more")
    geometry = _Geometry(
        parse_size("--size", size),
        parse_size("--canvas", canvas),
        parse_numbers("--mean", mean),
        parse_numbers("--std", std),
    )
    if recipe is not None and not convert:
        raise BlurifyError("--recipe says how to convert: add --convert")
    with console.working("loading torch"):
        from blurify.files import atomic
        from blurify.metrics import files, measuring
        from blurify.spec.recipes import load_recipe

    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    measuring.check_metrics(wanted)
    measuring.check_seed(seed)
    blur = load_recipe(recipe) if convert else None
    if output is not None:
        atomic.check_target(output, force=force)  # before the work, so that none is wasted
    place = find_device(device)
    with console.working("reading the model"):
        opened = [
            (spec, _open(spec, arch, pretrained=not random, allow=allow, trust=trust))
            for spec in (model, model2)
            if spec is not None
        ]
        used = _preprocessing(opened, geometry, digits=data is None)
    models = [(spec, loaded.model) for spec, loaded in opened]
    if blur is not None:
        with console.working("converting and verifying"):
            models[1:] = [_converted(*models[-1], blur, used)]
    with memory_errors("a smaller --batch-size"):
        subjects, answer = _subjects(models, used, place)
        shown = _pictures(subjects[0], answer, opened[0][1], data, images, seed, labels=labels)
        note = getattr(shown, "note", "")
        unchanged = same_weights([model for _, model in models])
        if output is not None:
            with console.working("listing the sites"):
                about = files.Context(_plan(models, used), _command_line(context), _versions(), same_weights=unchanged)
        layers = _shared_layers(subjects) if "equivariance" in wanted or "all" in wanted else None
        results: list[Measurement] = []
        for subject in subjects:
            with _watching(subject.name) as watch:
                found = measuring.measure(
                    subject, shown, wanted, seed=seed, batch_size=batch_size, circular=circular, layers=layers,
                    most_shift=most_shift, watch=watch,
                )  # fmt: skip
            results.append(dataclasses.replace(found, settings={**found.settings, "labels": note}))
    if output is not None:
        files.write_measurements(output, results, context=about, force=force)
    if json:
        console.print_json(files.as_json(results))
        return
    notes = [*(loaded.note for _, loaded in opened), note, UNCHANGED.format(*results) if unchanged else ""]
    for remark in dict.fromkeys(notes):
        if remark:
            console.say(remark)
    for found in results:
        for name, reason in found.skipped.items():
            console.say(f"{name} of {found.model} is not measured: {reason}")
    measurements.print_measurements(results)
    if output is not None:
        console.say(f"wrote {output}", style="bold")


UNCHANGED = "{1.model} has exactly the weights of {0.model}: it was not fine-tuned, and has never seen blurred features"
"""To be said of a conversion alone: what it does to accuracy is no more than a start."""


def same_weights(models: Sequence[nn.Module]) -> bool:
    """Whether two models have the same tensors under the same names, and one of them is converted."""
    import torch

    import blurify

    if len(models) != 2 or (blurify.plan_of(models[0]) is None) == (blurify.plan_of(models[1]) is None):
        return False
    first, second = (model.state_dict() for model in models)
    return list(first) == list(second) and all(
        first[name].shape == second[name].shape and torch.equal(first[name].cpu(), second[name].cpu())
        for name in first
        if isinstance(first[name], torch.Tensor)
    )


def _shared_layers(subjects: Sequence[Subject]) -> list[str] | None:
    """For the same network twice, the layers that compare; None where each has its own."""
    from blurify.metrics.equivariance import shared_layers

    if len(subjects) != 2 or list(subjects[0].model.state_dict()) != list(subjects[1].model.state_dict()):
        return None
    with contextlib.suppress(BlurifyError):  # where there are no maps, measuring says so
        return shared_layers(*subjects) or None
    return None


def _plan(models: Sequence[tuple[str, nn.Module]], used: Preprocessing) -> Plan | None:
    """The plan that one of the models carries, or what a conversion of the first would do."""
    import torch

    import blurify

    found = next(filter(None, (blurify.plan_of(model) for _, model in models)), None)
    if found is not None:
        return found
    model = models[0][1]
    like = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), None)
    example = torch.zeros(1, used.channels, *used.crop)
    return blurify.inspect(model, example_inputs=example if like is None else example.to(like))


def _command_line(context: typer.Context) -> str:
    """What the user typed, for the record; '' where the command was called some other way."""
    arguments = context.find_root().obj
    return shlex.join(["blurify", *arguments]) if arguments else ""


def _versions() -> dict[str, str]:
    """What the figures may depend on."""
    installed = {name: version for name, version in versions().items() if version is not None}
    return {"python": platform.python_version(), **installed}


@dataclass(frozen=True)
class _Geometry:
    """What the user said about the pictures; None: as the model says."""

    size: tuple[int, int] | None
    canvas: tuple[int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def parse_size(option: str, text: str | None) -> tuple[int, int] | None:
    """'224' -> (224, 224), '224,320' or '224x320' -> (224, 320). Raises BlurifyError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[,x](\d+))?", text.lower().replace(" ", ""))
    found = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if min(found) < 1:
        raise BlurifyError(f"{option} {text!r} is no size: give height and width in pixels, as in 224,224, or 224")
    return found


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """'0.5,0.5,0.5' -> (0.5, 0.5, 0.5). Raises BlurifyError for anything else."""
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise BlurifyError(f"{option} {text!r} is no list of numbers: give one a channel, as in 0.5,0.5,0.5")
    return found


def find_device(name: str) -> torch.device:
    """The device of a name; 'auto' is an accelerator where there is one. Raises BlurifyError where it is not there."""
    import torch

    if name == "auto":
        found = next((kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()), "cpu")
        return torch.device(found)
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # every backend has its own way to be missing
        raise BlurifyError(f"--device {name} can't be used ({one_line(error, 120)}): give auto or cpu") from error
    return device


def _open(spec: str, arch: str | None, *, pretrained: bool, allow: list[str] | None, trust: bool) -> LoadedModel:
    """One MODEL argument; --arch is for those that are files."""
    from blurify.files import sources

    return options.open_model(
        spec, arch=None if sources.is_factory(spec) else arch, pretrained=pretrained, allow=allow, trust=trust
    )


def _preprocessing(opened: Sequence[tuple[str, LoadedModel]], geometry: _Geometry, *, digits: bool) -> Preprocessing:
    """MODEL's preprocessing, for all. Raises BlurifyError where MODEL2 says that it wants another."""
    from blurify.metrics import pictures, preprocessing

    first = opened[0][1]
    fallback = pictures.digit_preprocessing() if digits else None
    used = preprocessing.preprocessing_of(
        first.model, first.source.arch, **dataclasses.asdict(geometry), fallback=fallback
    )
    given = [name for name, value in dataclasses.asdict(geometry).items() if value is not None]
    for spec, other in opened[1:]:
        says = preprocessing.declared(other.model, other.source.arch)
        differs = preprocessing.disagreement(says, used, given)
        if differs:
            raise BlurifyError(
                f"{spec} wants other pictures than {opened[0][0]} ({differs}): say what both are to get, or measure "
                "them one by one"
            )
    return used


def _converted(spec: str, model: nn.Module, recipe: Recipe, used: Preprocessing) -> tuple[str, nn.Module]:
    import torch

    import blurify

    if blurify.plan_of(model) is not None:
        raise BlurifyError(f"{spec} is converted already: leave --convert out, or give the original model")
    example = torch.zeros(1, used.channels, *used.crop, dtype=next((p.dtype for p in model.parameters()), None))
    return f"{spec} converted", blurify.convert(model, recipe, example_inputs=example)


def _subjects(
    models: Sequence[tuple[str, nn.Module]], used: Preprocessing, device: torch.device
) -> tuple[list[Subject], tuple[int, ...]]:
    """The models on their device, and the shape of their answers. Raises BlurifyError where the classes differ."""
    from blurify.metrics.measuring import answer_shape
    from blurify.metrics.subject import Subject

    subjects = [Subject(model.to(device), used, spec) for spec, model in models]
    answers = [answer_shape(subject) for subject in subjects]
    if len({(len(answer), answer[0]) for answer in answers}) > 1:
        raise BlurifyError(
            f"{subjects[0].name} tells {answers[0][0]} classes apart and {subjects[1].name} {answers[1][0]}, or one of "
            "them gives a label map: measure them one by one"
        )
    return subjects, answers[0]


def _pictures(
    subject: Subject,
    answer: tuple[int, ...],
    loaded: LoadedModel,
    data: Path | None,
    images: int | None,
    seed: int,
    *,
    labels: bool | None,
) -> Pictures:
    """The pictures that were asked for, with labels where they fit.

    Args:
        subject: the model.
        answer: the shape of its answers.
        loaded: where it came from, which may tell its classes' names.
        data, images, seed, labels: the options.
    """
    from blurify.metrics import pictures, preprocessing

    used, dense = subject.preprocessing, len(answer) > 1
    if labels and dense:
        raise BlurifyError(f"{subject.name} gives a label map, for which folders have no labels: leave --labels out")
    if data is None:
        if answer != (pictures.DIGIT_CLASSES,):
            what = "a label map" if dense else f"{answer[0]} classes"
            raise BlurifyError(
                f"{subject.name} gives {what}, and the embedded digits are for classifiers of 10: give --data a folder "
                "of images"
            )
        held = pictures.digits(used, images=images, seed=seed)
        return dataclasses.replace(held, labels=None) if labels is False else held
    found = pictures.open_folder(
        data,
        used,
        images=images,
        seed=seed,
        classes=None if labels is False or dense else answer[0],
        categories=preprocessing.declared(loaded.model, loaded.source.arch).categories,
    )
    if labels and not found.labelled:
        raise BlurifyError(f"--labels can't be had: {found.note.removeprefix('no labels: ')}")
    return found


@contextlib.contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Say what to give where memory runs out."""
    import torch

    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise BlurifyError(f"memory ran out ({one_line(error, 120)}): give {remedy}") from error
        raise


@contextlib.contextmanager
def _watching(name: str) -> Iterator[Watch | None]:
    """A bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        task = bar.add_task(name, total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {what}", completed=done, total=total)

        yield show
