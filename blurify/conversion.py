"""The two verbs: `inspect` says what would happen to a model, `convert` does it and proves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from blurify.graph.copies import copy_model, sharing_copy
from blurify.graph.inputs import given_inputs, traced
from blurify.graph.structure import Inputs
from blurify.planning.planner import make_plan
from blurify.proof import verification
from blurify.proof.verification import Proof
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe, load_recipe
from blurify.surgery.apply import apply_plan, plan_of

_PROOF = "_blurify_proof"

RecipeLike = str | Path | Mapping[str, Any] | Recipe | None


def inspect(model: nn.Module, example_inputs: Any = None, recipe: RecipeLike = None) -> Plan:
    """List the sites of a model, and what a conversion would do at each. The model is not changed.

    Args:
        model: any eager PyTorch module, on any device (also 'meta').
        example_inputs: what to call it with: a tensor, a tuple of arguments or a dict of keywords. Only shapes matter.
            Inferred where None: timm's configuration, else the first layer's rank and channels and a usual size.
        recipe: the name of a recipe, a path to one, a Recipe or a mapping; None is 'zhang2019'.

    Returns:
        the plan: `.sites` (each with name, kind, kernel_size, stride, shapes, action, reason, placement, extra_macs),
        and `.macs`, `.extra_macs`, `.count()`, `.to_dict()`.

    Raises:
        BlurifyError: the model refuses the inputs, or can't be seen into.

    Example:
        >>> for site in blurify.inspect(model).sites:
        ...     print(site.name, site.kind, site.action, site.reason)
    """
    return make_plan(model, load_recipe(recipe), example_inputs)


def convert(
    model: nn.Module,
    recipe: RecipeLike = None,
    *,
    filter_size: int | None = None,
    example_inputs: Any = None,
    inplace: bool = False,
    verify: bool = True,
) -> nn.Module:
    """Give the same model back, anti-aliased.

    Same class, same weights under the same names, a low-pass filter at every subsampling step (Zhang, "Making
    Convolutional Networks Shift-Invariant Again", ICML 2019).

    Args:
        model: any eager PyTorch module. One that was converted before comes back as it is.
        recipe: the name of a recipe, a path to one, a Recipe or a mapping; None is 'zhang2019'.
        filter_size: number of binomial taps, 1..7, in place of the recipe's filter.
        example_inputs: what to call the model with (see `inspect`).
        inplace: change the model itself; otherwise a deep copy is changed, and the model is left as it was.
        verify: prove the result on this very model (design section 5); `proof_of` returns the proof.

    Returns:
        the converted model, in the train/eval mode that it had.

    Raises:
        BlurifyError: the model refuses the inputs, or can't be seen into.
        VerificationError: the proof failed; the model is as it was.

    Example:
        >>> model = blurify.convert(timm.create_model("resnet50", pretrained=True))
    """
    wanted = load_recipe(recipe).with_filter(filter_size)
    if plan_of(model) is not None:
        return model if inplace else copy_model(model)
    seen = traced(model, example_inputs)
    inputs: Inputs = seen.inputs if example_inputs is None else given_inputs(example_inputs)
    plan = make_plan(model, wanted, inputs, seen=seen)
    if inplace and not verify:
        apply_plan(model, plan)
        return model
    result = sharing_copy(model) if inplace else copy_model(model)
    apply_plan(result, plan)
    proof = verification.verify(model, result, plan, inputs) if verify else None
    if inplace:
        result = model
        apply_plan(model, plan)
    if proof is not None:
        setattr(result, _PROOF, proof)
    return result


def proof_of(model: nn.Module) -> Proof | None:
    """The proof that a verified conversion leaves on the model, else None."""
    proof = getattr(model, _PROOF, None)
    return proof if isinstance(proof, Proof) else None
