"""Measuring as the command line has it: the options, and one function that measures by them and prints nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.allocation import keep_freed_memory
from blurify.cli import console, expecting, options
from blurify.cli.devices import find_device, memory_errors
from blurify.cli.filtering import Filters
from blurify.cli.keeping import Keeping
from blurify.cli.spreading import with_options
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from blurify.files.sources import LoadedModel
    from blurify.metrics import files
    from blurify.metrics.expected import Expected
    from blurify.metrics.pareto import ParetoTable
    from blurify.metrics.results import Measurement
    from blurify.metrics.subject import Pictures, Preprocessing, Subject
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe


@dataclass(frozen=True)
class Choices(Filters):
    """The options of every command that measures: what on, and how."""

    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of images, with class folders or without; or of signals, .wav or .npy.",
            show_default="embedded digits",
        ),
    ] = None
    entry: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="NAME|INDEX[:KIND]",
            show_default="what can be told",
            help="Which entry of the model's output, and as what: classes, label-map, embedding, dense, detections.",
        ),
    ] = None
    images: Annotated[
        int | None, typer.Option(metavar="N", help="Only so many, picked at random all over.", show_default="all")
    ] = None
    convert: Annotated[
        bool, typer.Option("--convert", help="Convert MODEL2 first; where there is none, MODEL again, converted.")
    ] = False
    recipe: options.Recipe = None
    labels: Annotated[
        bool | None,
        typer.Option("--labels/--no-labels", help="Insist on labels, or ignore them.", show_default="where they fit"),
    ] = None
    size: Annotated[
        str | None, typer.Option(metavar="H,W", help="Size of the model's input.", show_default="the model's own")
    ] = None
    canvas: Annotated[
        str | None, typer.Option(metavar="H,W", help="Size that crops are taken from.", show_default="8/7 of --size")
    ] = None
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="For pictures in 0..1.", show_default="the model's own")
    ] = None
    pareto: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Also what partial conversions cost and buy: convert and measure at most N of them, such as 12.",
            show_default=False,
        ),
    ] = None
    circular: Annotated[
        bool, typer.Option("--circular", help="Consistency under circular shifts of the whole crop.")
    ] = False
    least_score: Annotated[
        float, typer.Option(metavar="SHARE", help="Detections: boxes of a lower score don't count.")
    ] = 0.5
    rate: Annotated[
        int | None,
        typer.Option(metavar="HZ", help="Signals: samples a second of the model.", show_default="the model's own"),
    ] = None
    standardise: Annotated[
        bool | None,
        typer.Option(
            "--standardise/--no-standardise",
            show_default="as the model's own",
            help="Signals: each window less its mean, over its deviation.",
        ),
    ] = None
    most_shift: Annotated[
        int, typer.Option(metavar="N", help="Equivariance: shifts of at most so many pixels; 15 takes a quarter of 31.")
    ] = 31
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Stability: give mFR and mCE as multiples of this model's, on the same pictures.",
            show_default="MODEL, where there is a second",
        ),
    ] = None
    batch_size: Annotated[int, typer.Option(metavar="N", help="Pictures a forward.")] = 64
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random choices.")] = 0
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where the models run.")] = "auto"
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure all anew; else the same command goes on where it was stopped.")
    ] = False
    estimate: Annotated[bool, typer.Option("--estimate", help="Only say how long it would take.")] = False
    arch: options.Arch = None
    random: options.Random = False
    allow: options.Allow = None
    trust: options.Trust = False
    weights: options.Weights = None
    source: options.Source = None

    def check(self) -> None:
        """Raise BlurifyError for what can be seen to be wrong before anything is loaded."""
        for name, number in (("--images", self.images), ("--batch-size", self.batch_size)):
            if number is not None and number < 1:
                raise BlurifyError(f"{name} {number} is no picture at all: give at least 1")
        if not 0 <= self.least_score <= 1:
            raise BlurifyError(f"--least-score {self.least_score:g} is no score: give a number from 0 to 1")
        if self.rate is not None and self.rate < 1:
            raise BlurifyError(f"--rate {self.rate} is no number of samples a second: give it in Hz, such as 16000")
        if self.most_shift < 0:
            raise BlurifyError(f"--most-shift {self.most_shift} is no number of pixels: give 0 or more")
        super().check()
        given = [*["--recipe"] * (self.recipe is not None), *self.given]
        if given and not (self.convert or self.pareto is not None):
            raise BlurifyError(f"{given[0]} says how to convert: add --convert")
        if self.pareto is not None:
            from blurify.metrics.pareto import check_points

            check_points(self.pareto)


with_choices = with_options("choices", Choices)
"""Give a command, whose parameter `choices` is keyword-only, the options of `Choices`."""


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        results: one entry a model.
        context: what goes into a file or a report besides; None where it was not wanted.
        notes: what the user is to know, each in one line.
        pareto: of the original among the models, with what of them is its conversion; None where it was not wanted.
        subjects, pictures: what was measured, for more of it.
        categories: the names that MODEL itself has for its classes; () where it has none.
        keeping: what was written down meanwhile: to be entered while the results are brought to where they are to be.
    """

    results: tuple[Measurement, ...]
    context: files.Context | None
    notes: tuple[str, ...]
    pareto: ParetoTable | None = None
    subjects: tuple[Subject, ...] = ()
    pictures: Pictures | None = None
    categories: tuple[str, ...] = ()
    keeping: Keeping = dataclasses.field(default_factory=Keeping)


def measured(
    specs: Sequence[str], metrics: str, choices: Choices, *, command: str, in_context: bool, json: bool = False
) -> Found:
    """Measure one to three models on the same pictures and crops.

    What is done is written down at once, and shown where the command is stopped.

    Args:
        specs: MODEL, and MODEL2 and MODEL3 where there are such.
        metrics: --metrics.
        choices: the other options.
        command: the command line, for the record.
        in_context: also find out what a file or a report says besides the figures.
        json: what is printed is to be JSON.

    Raises:
        typer.Exit: --estimate was given, and how long it takes is printed.
    """
    choices.check()
    keep_freed_memory()
    geometry = _Geometry(
        parse_size("--size", choices.size),
        parse_size("--canvas", choices.canvas),
        parse_numbers("--mean", choices.mean),
        parse_numbers("--std", choices.std),
    )
    with console.working("loading torch"):
        from blurify.metrics import files, measuring, outputs, preprocessing
        from blurify.spec.recipes import load_recipe
        from blurify.surgery.carrying import adapted_of
        from blurify.versions import versions

    if choices.entry is not None:
        outputs.parse_choice(choices.entry)
    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    of_one = measuring.check_metrics(wanted)
    if measuring.OF_TWO in wanted and len(specs) == 1 and not choices.convert:
        raise BlurifyError(f"{measuring.OF_TWO} is of two models: give MODEL2, or --convert")
    if choices.reference is not None and "stability" not in of_one:
        raise BlurifyError("--reference is what flip rates and errors are divided by: add --metrics stability")
    measuring.check_seed(choices.seed)
    if choices.convert:
        choices.on(load_recipe(choices.recipe))  # before the work, so that none is wasted
    place = find_device(choices.device)
    with console.working("reading the model"):
        opened = [(spec, _open(spec, choices)) for spec in specs]
        apart = [spec for spec in (choices.reference,) if spec is not None and spec not in specs]
        unit = [(spec, _open(spec, choices)) for spec in apart]
        used = _preprocessing([*opened, *unit], geometry, choices)
    models = [(spec, loaded.model) for spec, loaded in opened]
    if choices.convert:
        with console.working("converting and verifying"):
            models[1:] = [_converted(*models[-1], options.recipe_for(opened[-1][1], choices.recipe, choices), used)]
    with memory_errors("a smaller --batch-size"):
        seen = [*models, *((spec, loaded.model) for spec, loaded in unit)]
        subjects = _subjects(seen, used, place, choices)
        subjects, references = subjects[: len(models)], subjects[len(models) :]
        shown = _pictures(subjects[0], opened[0][1], choices)
        note = getattr(shown, "note", "")
        unchanged = same_weights([model for _, model in models[:2]])
        about = None
        if in_context:
            with console.working("listing the sites"):
                known = {name: version for name, version in versions().items() if version is not None}
                adapted = tuple(adapted_of(model) for _, model in models)
                about = files.Context(
                    _plan(models, used), command, known, same_weights=unchanged,
                    adapted=adapted if any(adapted) else (),
                )  # fmt: skip
        by_layer = {"equivariance", "lie-derivative", "all"} & {*wanted}
        layers = _shared_layers(subjects) if by_layer else None
        expectations = _expected(subjects, shown, wanted, layers, choices)
        if choices.estimate:
            expecting.show(expectations, choices.most_shift, json=json)
            raise typer.Exit
        keeping = Keeping(of_one, fresh=choices.fresh)
        try:
            known_before = [keeping.of(subject, shown) for subject in subjects]
            expecting.warn(expecting.left(expectations, known_before, subjects), choices.most_shift)
            results: list[Measurement] = []
            for subject, kept in zip(subjects, known_before, strict=True):
                with console.bar(subject.name, f"{subject.name}: ") as watch:
                    found = measuring.measure(
                        subject, shown, wanted, seed=choices.seed, batch_size=choices.batch_size,
                        circular=choices.circular, layers=layers, most_shift=choices.most_shift,
                        least_score=choices.least_score,
                        original=None if subject is subjects[0] else subjects[0], watch=watch,
                        kept=kept, told=keeping.told,
                    )  # fmt: skip
                results.append(dataclasses.replace(found, settings={**found.settings, "labels": note}))
            results = _with_rates(results, references, shown, choices, keeping)
            table = None
            if choices.pareto is not None:
                table = _pareto(subjects, opened, shown, choices, choices.pareto, keeping)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                keeping.stopped(quiet=json)
            keeping.close(done=False)
            raise
        about = about and dataclasses.replace(about, pareto=table)
    remark = getattr(shown, "remark", "")
    notes = [*(loaded.note for _, loaded in opened), remark, note, UNCHANGED.format(*results) if unchanged else ""]
    for one, (_, model) in zip(results, models, strict=True):
        record = adapted_of(model)
        notes.append(f"{one.model} was {record.summary()}" if record is not None else "")
    notes += [
        f"{name} of {one.model} is not measured: {reason}" for one in results for name, reason in one.skipped.items()
    ]
    first = opened[0][1]
    return Found(
        tuple(results), about, tuple(dict.fromkeys(filter(None, notes))), table, subjects=tuple(subjects),
        pictures=shown, categories=preprocessing.declared(first.model, first.source.arch).categories, keeping=keeping,
    )  # fmt: skip


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


def _expected(
    subjects: Sequence[Subject], shown: Pictures, wanted: Sequence[str], layers: Sequence[str] | None, choices: Choices
) -> expecting.Expectations:
    """How long each model's metrics take; roughly, where that is short."""
    from blurify.metrics.expected import expected
    from blurify.tuning.options import ALIASING_IMAGES

    least = 0.0 if choices.estimate else expecting.LONG / len(subjects)
    partial = {}
    if choices.pareto is not None:  # the original and all points answer, and each is gauged; before, about three forms
        images = len(shown)
        count = (choices.pareto + 1) * images + (choices.pareto + 3) * min(images, ALIASING_IMAGES)
        partial = {"partial conversions": count}
    compared = {"agreement": 5 * len(shown)}  # with the first model, of which three are
    found: list[tuple[str, Sequence[Expected]]] = []
    with console.working("timing a forward"):
        for subject in subjects:
            of_it = expected(
                subject, shown, wanted, batch_size=choices.batch_size, circular=choices.circular, layers=layers,
                most_shift=choices.most_shift, others=compared if found else partial, unless_below=least,
            )  # fmt: skip
            found.append((subject.name, of_it))
    return found


def _shared_layers(subjects: Sequence[Subject]) -> list[str] | None:
    """For the same network several times, the layers that compare; None where each has its own."""
    from blurify.metrics.equivariance import shared_layers

    first, *others = subjects
    keys = list(first.model.state_dict())
    if not others or any(list(other.model.state_dict()) != keys for other in others):
        return None
    with contextlib.suppress(BlurifyError):  # where there are no maps, measuring says so
        found = [shared_layers(first, other) for other in others]
        return [name for name in found[0] if all(name in names for names in found)] or None
    return None


def _with_rates(
    results: list[Measurement],
    references: Sequence[Subject],
    shown: Pictures,
    choices: Choices,
    keeping: Keeping,
) -> list[Measurement]:
    """The results with mFR and mCE: multiples of --reference's rates, or of the first model's where there are several.

    Args:
        results: of the models.
        references: --reference, unless it is one of the models.
        shown: the pictures.
        choices: the options.
        keeping: what is written down meanwhile.
    """
    from blurify.metrics import measuring
    from blurify.metrics.normalised import normalised

    if all(one.stability is None for one in results):
        return results
    unit = next((one for one in results if one.model == choices.reference), None)
    for subject in references:
        with console.bar(subject.name, f"{subject.name}: ") as watch:
            unit = measuring.measure(
                subject, shown, ("stability",), seed=choices.seed, batch_size=choices.batch_size, watch=watch,
                kept=keeping.of(subject, shown),
            )  # fmt: skip
    if unit is None and len(results) > 1:
        unit = results[0]
    if unit is None or unit.stability is None:
        return results
    by, name = unit.stability, unit.model
    return [
        one if one.stability is None else dataclasses.replace(one, stability=normalised(one.stability, by, name))
        for one in results
    ]


def _pareto(
    subjects: Sequence[Subject],
    opened: Sequence[tuple[str, LoadedModel]],
    shown: Pictures,
    choices: Choices,
    most: int,
    keeping: Keeping,
) -> ParetoTable:
    """What partial conversions of the original cost and buy, with the one among the models that is its conversion."""
    import blurify
    from blurify.metrics.subject import Subject
    from blurify.surgery.carrying import adapted_of
    from blurify.tuning.pareto import base_recipe, pareto_table

    original = next((one for one in subjects if blurify.plan_of(one.model) is None), None)
    if original is None:
        done = next((one for one in subjects if adapted_of(one.model) is None), None)
        if done is None:
            raise BlurifyError(
                f"{subjects[0].name} was adapted, so that its original's weights are not in it: give the original too"
            )
        original = Subject(blurify.revert(done.model), done.preprocessing, f"{done.name}, reverted")
    keys = list(original.model.state_dict())
    conversions = [one for one in subjects if blurify.plan_of(one.model) and list(one.model.state_dict()) == keys]
    present = conversions[-1].model if conversions else None
    if choices.recipe is not None or present is None:
        recipe = options.recipe_for(opened[0][1], choices.recipe, choices)
    else:
        plan = blurify.plan_of(present)
        assert plan is not None
        recipe = base_recipe(plan)
    with console.bar("partial conversions") as watch:
        return pareto_table(
            original.model, recipe, subject=original, pictures=shown, present=present, most=most,
            batch_size=min(choices.batch_size, _PARETO_BATCH), watch=watch, kept=keeping.of(original, shown),
        )  # fmt: skip


_PARETO_BATCH = 32  # many conversions are at hand at a time


def _plan(models: Sequence[tuple[str, nn.Module]], used: Preprocessing) -> Plan | None:
    """The plan that one of the models carries, or what a conversion of the first would do."""
    import blurify
    from blurify.graph.structure import map_tensors
    from blurify.metrics.subject import Subject

    found = next(filter(None, (blurify.plan_of(model) for _, model in models)), None)
    if found is not None:
        return found
    model = models[0][1]
    subject = Subject(model, used)
    example = map_tensors((subject.example(),), lambda tensor: tensor.to(subject.device))
    return blurify.inspect(model, example_inputs=example, memory=True)


def command_line(context: typer.Context) -> str:
    """What the user typed, for the record; '' where the command was called some other way."""
    arguments = context.find_root().obj
    return shlex.join(["blurify", *arguments]) if arguments else ""


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


def _open(spec: str, choices: Choices) -> LoadedModel:
    """One MODEL argument; --arch is for those that are files."""
    from blurify.files import sources as models

    arch = None if models.is_factory(spec) else choices.arch
    how = options.How(arch, choices.allow, choices.trust, choices.weights, choices.source)
    return how.open(spec, pretrained=not choices.random)


def _preprocessing(opened: Sequence[tuple[str, LoadedModel]], geometry: _Geometry, choices: Choices) -> Preprocessing:
    """MODEL's preprocessing, for all. Raises BlurifyError where MODEL2 says that it wants another."""
    from blurify.metrics import pictures, preprocessing, signals

    if choices.data is not None and signals.holds_signals(choices.data):
        size, canvas = (given[1] if given else None for given in (geometry.size, geometry.canvas))
        return signals.signal_preprocessing(
            opened[0][1].model, size=size, canvas=canvas, mean=geometry.mean, std=geometry.std, rate=choices.rate,
            standardised=choices.standardise,
        )  # fmt: skip
    for option, value in (("--rate", choices.rate), ("--standardise", choices.standardise)):
        if value is not None:
            raise BlurifyError(f"{option} is for signals: give --data a folder of .wav or .npy files, or leave it out")
    digits = choices.data is None
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
    import blurify
    from blurify.metrics.subject import Subject

    if blurify.plan_of(model) is not None:
        raise BlurifyError(f"{spec} is converted already: leave --convert out, or give the original model")
    return f"{spec} converted", blurify.convert(
        model, recipe, example_inputs=(Subject(model, used).example(),), memory=True
    )


def _subjects(
    models: Sequence[tuple[str, nn.Module]], used: Preprocessing, device: torch.device, choices: Choices
) -> list[Subject]:
    """The models on their device. Raises BlurifyError where it can't be told what they give, or they give others."""
    from blurify.metrics.subject import Subject

    subjects = [Subject(model.to(device), used, spec, output=choices.entry) for spec, model in models]
    folders = _folders(choices)
    first, *others = [subject.decide(folders=folders) for subject in subjects]
    for subject, other in zip(subjects[1:], others, strict=True):
        counted = (first.kind, first.shape[:1]) if first.kind == "classes" else (first.kind, ())
        if (other.kind, other.shape[: len(counted[1])]) == counted:
            continue
        if {first.kind, other.kind} <= {"classes", "label-map"}:
            raise BlurifyError(
                f"{subjects[0].name} tells {first.shape[0]} classes apart and {subject.name} {other.shape[0]}, or one "
                "of them gives a label map: measure them one by one"
            )
        raise BlurifyError(
            f"{subjects[0].name} gives {first.kind} and {subject.name} {other.kind}: measure them one by one, or say "
            "with --output what both give"
        )
    return subjects


def _folders(choices: Choices) -> int | None:
    """How many class folders there are, for models that don't say how many classes they have."""
    from blurify.metrics import pictures

    if choices.data is None:
        return pictures.DIGIT_CLASSES
    with contextlib.suppress(BlurifyError):  # said where they are opened
        return pictures.count_folders(choices.data)
    return None


def _pictures(subject: Subject, loaded: LoadedModel, choices: Choices) -> Pictures:
    """The pictures that were asked for, with labels where they fit; or the signals.

    Args:
        subject: the model.
        loaded: where it came from, which may tell its classes' names.
        choices: the options.
    """
    from blurify.metrics import pictures, preprocessing, signals
    from blurify.metrics.results import KIND_WORDS

    used, taken, labels = subject.preprocessing, subject.output, choices.labels
    classes = taken.shape[0] if taken.kind == "classes" else None
    gives = f"{classes} classes" if classes is not None else KIND_WORDS[taken.kind]
    if labels and classes is None:
        raise BlurifyError(f"{subject.name} gives {gives}, for which folders have no labels: leave --labels out")
    if choices.data is None:
        if classes != pictures.DIGIT_CLASSES:
            raise BlurifyError(
                f"{subject.name} gives {gives}, and the embedded digits are for classifiers of 10: give --data a "
                "folder of images"
            )
        held = pictures.digits(used, images=choices.images, seed=choices.seed)
        return dataclasses.replace(held, labels=None) if labels is False else held
    wanted = None if labels is False else classes
    categories = preprocessing.declared(loaded.model, loaded.source.arch).categories
    if used.signal is not None:
        heard = signals.open_signals(
            choices.data, used, count=choices.images, seed=choices.seed, classes=wanted, categories=categories
        )
        if labels and not heard.labelled:
            raise BlurifyError(f"--labels can't be had: {heard.note.removeprefix('no labels: ')}")
        return heard
    found = pictures.open_folder(
        choices.data,
        used,
        images=choices.images,
        seed=choices.seed,
        classes=wanted,
        categories=categories,
    )
    if labels and not found.labelled:
        raise BlurifyError(f"--labels can't be had: {found.note.removeprefix('no labels: ')}")
    return found


def entry_and_file(choices: Choices, file: Path | None, suffixes: tuple[str, ...]) -> tuple[Choices, Path | None]:
    """--output said where to write, before it said what of a model's output is meant: a name of a file still does."""
    named = choices.entry
    if named is None or not named.lower().endswith(suffixes):
        return choices, file
    if file is not None:
        raise BlurifyError(f"-o {file} and --output {named} both name a file: give -o alone")
    return dataclasses.replace(choices, entry=None), Path(named)
