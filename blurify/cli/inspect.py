"""`blurify inspect`: list the sites of a model, what would be done, what it costs, and how much each aliases."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blurify.cli import console, options, plans
from blurify.cli.devices import find_device, memory_errors
from blurify.errors import BlurifyError

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.files.sources import LoadedModel
    from blurify.metrics.results import Aliasing
    from blurify.metrics.subject import Preprocessing
    from blurify.spec.plan import Plan
    from blurify.spec.recipes import Recipe


def inspect(
    model: options.Model,
    recipe: options.Recipe = None,
    filter_size: options.FilterSize = None,
    input_shape: options.InputShape = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of images: measure how much each site aliases on them, and rank."),
    ] = None,
    images: Annotated[int, typer.Option(metavar="N", help="With --data: so many images, at random all over.")] = 32,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="With --data: where the model runs.")] = (
        "auto"
    ),
    arch: options.Arch = None,
    random: options.Random = False,
    allow: options.Allow = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """List where a model subsamples, what would be done there, and what it costs.

    Nothing is changed or written. Sites do not depend on weights, so that no pretrained ones are downloaded; how much
    each aliases does: --data uses them unless there is --random.
    """
    options.check_filter_size(filter_size)
    if images < 1:
        raise BlurifyError(f"--images {images} is no picture at all: give at least 1")
    with console.working("reading and tracing the model"):
        inputs = options.example_inputs(input_shape)
        from blurify.spec.recipes import load_recipe

        wanted = load_recipe(recipe)
        if filter_size is not None:
            wanted = wanted.with_filter(filter_size=filter_size)
        # Without --data, `--random` changes nothing; it is taken so that a command line of `convert` can be tried here.
        pretrained = data is not None and not random
        loaded = options.open_model(model, arch=arch, pretrained=pretrained, allow=allow, trust=trust)
        import blurify

        if data is None:
            plan, aliasing = blurify.inspect(loaded.model, example_inputs=inputs, recipe=wanted), None
        else:
            used = _preprocessing(loaded, inputs)
            plan = _plan(loaded, used, wanted)
    if data is not None:
        with console.working("measuring aliasing"), memory_errors("a smaller --input-shape"):
            aliasing = _measured(loaded, used, data, images, device)
    if json:
        console.print_json(_as_json(plan, aliasing, data))
        return
    if loaded.note and data is not None:
        console.say(loaded.note)
    plans.print_plan(plan, None if aliasing is None else _shares(aliasing))
    if aliasing is not None and plan.sites:
        console.say(
            "aliasing: share of energy above the new Nyquist frequency just before the subsampling, most first; "
            f"{aliasing.images} images ({data}), 95% intervals in brackets"
        )


def _preprocessing(loaded: LoadedModel, inputs: tuple[Tensor, ...] | None) -> Preprocessing:
    """How pictures become the model's input; its size is that of --input-shape where given."""
    from blurify.metrics.preprocessing import preprocessing_of

    size = None
    if inputs is not None:
        if len(inputs) != 1 or inputs[0].dim() != 4:
            raise BlurifyError("--data shows pictures to the model: give one --input-shape N,C,H,W, or none")
        size = inputs[0].shape[2], inputs[0].shape[3]
    used = preprocessing_of(loaded.model, loaded.source.arch, size=size)
    if inputs is not None and inputs[0].shape[1] != used.channels:
        raise BlurifyError(
            f"--input-shape has {inputs[0].shape[1]} channels, the model's pictures have {used.channels}: give those"
        )
    return used


def _plan(loaded: LoadedModel, used: Preprocessing, recipe: Recipe) -> Plan:
    """What would be done with pictures of this size; for a converted model, what was done."""
    import torch

    import blurify

    carried = blurify.plan_of(loaded.model)
    if carried is not None:
        return carried
    dtype = next((p.dtype for p in loaded.model.parameters() if p.is_floating_point()), torch.float32)
    example = torch.zeros(1, used.channels, *used.crop, dtype=dtype)
    return blurify.inspect(loaded.model, example_inputs=example, recipe=recipe)


def _measured(loaded: LoadedModel, used: Preprocessing, data: Path, images: int, device: str) -> Aliasing:
    from blurify.metrics.aliasing import aliasing
    from blurify.metrics.pictures import open_folder
    from blurify.metrics.subject import Subject

    pictures = open_folder(data, used, images=images)
    return aliasing(Subject(loaded.model.to(find_device(device)), used), pictures)


def _shares(aliasing: Aliasing) -> plans.Shares:
    return {site.site: site.share for site in aliasing.sites}


def _as_json(plan: Plan, aliasing: Aliasing | None, data: Path | None) -> dict[str, object]:
    found = {**plan.to_dict(), "totals": plans.totals(plan)}
    if aliasing is not None:
        shares = _shares(aliasing)
        for site in found["sites"]:
            share = shares.get(site["name"])
            site["aliasing"] = share and {name: getattr(share, name) for name in ("value", "low", "high", "count")}
        found["data"] = {"name": str(data), "images": aliasing.images}
    return found
