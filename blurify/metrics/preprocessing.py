"""How a model wants its pictures: size, channels, statistics. What it says of itself, else what it can be run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blurify.errors import BlurifyError, without_remedy
from blurify.graph.inputs import traced
from blurify.metrics.sizes import dimensions
from blurify.metrics.subject import Preprocessing
from blurify.surgery.carrying import plan_of


@dataclass(frozen=True)
class Declared:
    """What a model says about its pictures; None where it says nothing.

    Attributes:
        size: (height, width) of its input.
        channels: of its input.
        mean, std: of each channel, for pictures in 0..1.
        interpolation: how pictures are brought to their size.
        categories: the names of its classes, in order; () where it names none.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    categories: tuple[str, ...] = ()


def declared(model: nn.Module, arch: str | None = None) -> Declared:
    """What a model says about its pictures.

    Args:
        model: timm's models carry a configuration.
        arch: what builds it, as `ModelSource.arch` has it. For `torchvision/NAME[:WEIGHTS]` the weights tell (the
            default ones where the model has random ones).
    """
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and config.get("input_size"):
        channels, *size = config["input_size"]
        return Declared(
            (size[0], size[-1]),
            channels,
            _floats(config.get("mean")),
            _floats(config.get("std")),
            config.get("interpolation"),
            tuple(config.get("label_names") or ()),
        )
    if (detector := _detector(model)) is not None:
        return detector
    if arch is not None and arch.startswith("torchvision/"):
        return _torchvision(arch)
    return Declared()


def _detector(model: nn.Module) -> Declared | None:
    """What detectors say, whose pictures are in 0..1: torchvision's normalise and resize by themselves."""
    plain: dict[str, Any] = {"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    homes = [kind.__module__ for kind in type(model).__mro__]
    if any(home.startswith("torchvision.models.detection") for home in homes):
        transform: Any = getattr(model, "transform", None)
        fixed, sides = getattr(transform, "fixed_size", None), getattr(transform, "min_size", None)
        size = (fixed[1], fixed[0]) if fixed else (sides[-1], sides[-1]) if sides else None
        return Declared(size=size, **plain)
    if any(home.startswith("ultralytics.") for home in homes):
        return Declared(**plain)
    return None


def _torchvision(arch: str) -> Declared:
    from torchvision.models import get_model_weights

    name, _, tag = arch.removeprefix("torchvision/").partition("?")[0].partition(":")
    offered = get_model_weights(name)
    if not list(offered):
        return Declared()
    weights = next((entry for entry in offered if entry.name == tag), offered.DEFAULT)
    preset = weights.transforms()
    size = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None)
    mean = getattr(preset, "mean", None)
    return Declared(
        (size[0], size[-1]) if size else None,
        len(mean) if mean else None,
        _floats(mean),
        _floats(getattr(preset, "std", None)),
        getattr(getattr(preset, "interpolation", None), "value", None),
        tuple(weights.meta.get("categories") or ()),
    )


def preprocessing_of(
    model: nn.Module,
    arch: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    canvas: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    fallback: Preprocessing | None = None,
) -> Preprocessing:
    """How pictures become a model's input.

    What is not given is what the model declares (see `declared`); else what `fallback` has; else the size and channels
    that the model can be run with, with ImageNet's statistics for three channels and none (mean 0, std 1) for one.

    Args:
        model: takes pictures (N, 1 or 3, H, W).
        arch: what builds it, as `ModelSource.arch` has it.
        size: (height, width) of its input.
        canvas: (height, width) that crops are taken from; 8/7 of the size where left out (256 for 224, as Zhang 2019
            evaluates).
        mean, std: one number, or one a channel, for pictures in 0..1.
        fallback: for a model that declares nothing.

    Raises:
        BlurifyError: the model takes no pictures, or none of that size, or the numbers don't fit together.
    """
    says = declared(model, arch)
    size = size or says.size or (fallback.crop if fallback else None)
    if size is None:
        channels, size = _runs_with(model)
    else:
        channels = _channels(model, size, says.channels)
    canvas = canvas or (round(size[0] * 8 / 7), round(size[1] * 8 / 7))
    if canvas[0] < size[0] or canvas[1] < size[1]:
        raise BlurifyError(
            f"the canvas of {dimensions(canvas)} is smaller than the model's input of {dimensions(size)}: give a "
            "larger --canvas or a smaller --size"
        )
    default = fallback or (Preprocessing(size, canvas) if channels == 3 else None)
    return Preprocessing(
        crop=size,
        canvas=canvas,
        channels=channels,
        mean=statistic("mean", mean, says.mean or (default.mean if default else (0.0,)), channels),
        std=statistic("std", std, says.std or (default.std if default else (1.0,)), channels),
        interpolation=says.interpolation if says.interpolation in ("nearest", "bicubic", "lanczos") else "bilinear",
    )


def disagreement(says: Declared, used: Preprocessing, given: Sequence[str] = ()) -> str:
    """How what a model declares differs from the preprocessing that it would be measured with, in words; '' if not.

    Args:
        says: what the model declares.
        used: the preprocessing.
        given: which of 'size', 'mean' and 'std' the user chose, so that they don't count.
    """
    wanted = {"size": says.size, "mean": says.mean, "std": says.std}
    has = {"size": used.crop, "mean": used.mean, "std": used.std}
    differing = []
    for name, value in wanted.items():
        if name in given or value is None:
            continue
        if name != "size":
            value = _spread(value, used.channels)
        if value != has[name]:
            theirs, ours = (",".join(f"{number:g}" for number in numbers) for numbers in (value, has[name]))
            differing.append(f"--{name} {theirs}, not {ours}")
    return "; ".join(differing)


def _runs_with(model: nn.Module) -> tuple[int, tuple[int, int]]:
    """The channels and size of the pictures that a model can be run with."""
    plan = plan_of(model)
    if plan is not None and plan.input_shapes:
        shapes = list(plan.input_shapes)
    else:
        try:
            args, kwargs = traced(model).inputs
        except BlurifyError as error:
            raise BlurifyError(
                f"the size of the model's pictures can't be found ({without_remedy(error)}): give --size"
            ) from error
        shapes = [tuple(getattr(value, "shape", ())) for value in (*args, *kwargs.values())]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (1, 3):
        found = " and ".join("x".join(map(str, shape)) or "something else" for shape in shapes)
        raise BlurifyError(
            f"the model takes {found}, not pictures of 1 or 3 channels: give a model of pictures (of one of signals, "
            "blurify measure takes --data of .wav or .npy files)"
        )
    return shapes[0][1], (shapes[0][2], shapes[0][3])


def _channels(model: nn.Module, size: tuple[int, int], first: int | None) -> int:
    """1 or 3, whichever the model can be run with at a size."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    candidates = dict.fromkeys(count for count in (first, 3, 1) if count in (1, 3))
    problem: BlurifyError | None = None
    for channels in candidates:
        try:
            traced(model, torch.zeros(1, channels, *size, dtype=like.dtype))
        except BlurifyError as error:
            problem = problem or error
        else:
            return channels
    raise BlurifyError(
        f"the model takes no pictures of {dimensions(size)} with {' or '.join(map(str, candidates))} channels "
        f"({problem}): give another --size, or a model of pictures"
    ) from problem


def statistic(
    name: str, given: Sequence[float] | None, fallback: tuple[float, ...], channels: int
) -> tuple[float, ...]:
    """One number a channel."""
    if given is None:
        return _spread(fallback, channels)
    if len(given) not in (1, channels):
        raise BlurifyError(
            f"--{name} has {len(given)} numbers, the model's pictures {channels} channels: give one each"
        )
    if name == "std" and min(given) <= 0:
        raise BlurifyError("--std must be above 0")
    return _spread(tuple(float(value) for value in given), channels)


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number a channel; grey takes the mean of the colours' numbers."""
    if len(values) == channels:
        return values
    return (values[0],) * channels if len(values) == 1 else (sum(values) / len(values),) * channels


def _floats(values: Any) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(float(value) for value in values) if isinstance(values, Sequence) else (float(values),)
