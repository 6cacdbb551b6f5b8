"""The README.md of a converted model on the hub: what it is, how to open it, what was changed, proven and measured."""

from __future__ import annotations

from collections.abc import Sequence

from blurify.files.checkpoint import Saved
from blurify.proof.proof import proof_of
from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan
from blurify.versions import version_of

_PAPER = "Zhang, [Making Convolutional Networks Shift-Invariant Again](https://arxiv.org/abs/1904.11486), ICML 2019"


def model_card(saved: Saved, library: str | None) -> str:
    """The card, in Markdown with the front matter that the hub reads.

    Args:
        saved: the model, and what goes with it.
        library: what the hub calls the library that builds the unconverted model; None: none that it knows.
    """
    plan = Plan.from_dict(saved.header["plan"])
    source = saved.header.get("source") or {}
    name = str(source.get("spec") or plan.model or "model")
    recorded = saved.header.get("adapted")
    adapted = Adapted.from_dict(recorded) if recorded else None
    front = ["---", "tags:", "- anti-aliasing", "- blurify", *([f"library_name: {library}"] if library else [])]
    base = name.removeprefix("hf-hub:").partition("@")[0] if name.startswith("hf-hub:") else None
    front += [f"base_model: {base}"] if base else []
    parts = [
        "\n".join([*front, "---"]),
        f"# {name.removeprefix('hf-hub:')}, anti-aliased",
        f"The same model with a low-pass filter at every step that subsamples ({_PAPER}), made by blurify "
        f"{version_of('blurify') or ''} with the recipe `{plan.recipe.name}`. Its weights have the names and shapes of "
        "the original's.",
        _state(adapted, plan),
        _usage(source),
        _measurements(saved.measured, adapted),
        _sites(plan),
        _proof(saved, adapted),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _state(adapted: Adapted | None, plan: Plan) -> str:
    if adapted is not None:
        return f"The weights were adapted to the filters: {adapted.summary()}."
    if not plan.filters:
        return ""
    return (
        "**Not ready for use**: the weights are the original's, and do not fit the filters. Fine-tune it, or adapt it "
        "without labels: `blurify adapt`."
    )


def _usage(source: dict[str, object]) -> str:
    arch = source.get("arch")
    how = "" if arch else ", model=the original model"
    return "\n".join(
        [
            "## Use",
            "",
            "```python",
            "import blurify",
            f'model = blurify.load("hf-hub:ORG/NAME"{how})  # or the path of this directory',
            "```",
            "",
            "Other libraries build the original architecture and load these weights into it, **without the filters**: "
            "convert it again then (`blurify.convert`), or open it as above.",
        ]
    )


def _measurements(measured: Sequence[str], adapted: Adapted | None) -> str:
    lines = [*measured, *(adapted.lines() if adapted is not None else [])]
    return "\n".join(["## Measured", "", *(f"- {line}" for line in lines)]) if lines else ""


def _sites(plan: Plan) -> str:
    rows = [
        f"| `{site.name}` | {site.kind} | {'x'.join(map(str, site.stride))} | {site.action} | "
        f"{' '.join((site.placement or site.reason).split())} |"
        for site in plan.sites
    ]
    cost = f", multiply-adds {plan.extra_macs / plan.macs:+.0%}" if plan.macs else ""
    head = f"{len(plan.converted)} of {len(plan.sites)} sites are blurred, filter {plan.recipe.method.words()}{cost}."
    return "\n".join(
        ["## What was changed", "", head, "", "| site | kind | stride | action | where, or why not |",
         "| --- | --- | --- | --- | --- |", *rows]
    )  # fmt: skip


def _proof(saved: Saved, adapted: Adapted | None) -> str:
    proof = proof_of(saved.model)
    if proof is None:
        return ""
    lines = proof.lines() if adapted is None else proof.lines()[:2]
    return "\n".join(["## Proven at the conversion", "", *(f"- {line}" for line in lines)])
