"""A converted model back, from what another program saved of it: the blurs again, and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.files import formats, weights
from blurify.files.checkpoint import Reading
from blurify.files.in_force import require_in_force
from blurify.files.replanning import carry_out
from blurify.surgery.carrying import plan_of
from blurify.surgery.marking import Mark, mark_configuration, mark_of_configuration, marked_weights

_HERE = Path("the model's configuration")


def reload(model: nn.Module, source: str | Path | Mapping[str, Any] | None = None) -> nn.Module:
    """Put the blurs back that a converted model had when another program saved it, and load its weights.

    `save_pretrained` of transformers, the checkpoint savers of timm and Lightning and `torch.save(model.state_dict())`
    keep weights and build the original class again, without blurs. What they save of a converted model carries its plan
    all the same: in the configuration, or in the metadata of the state_dict (docs/ecosystem.md).

    Args:
        model: the original architecture, as `from_pretrained`, `create_model` or your own code builds it; or a model
            that holds it as a part, as a LightningModule does. It is changed in place.
        source: what was saved: a path (a checkpoint, a directory, safetensors that blurify wrote), what `torch.load`
            gave, or a state_dict. None where `model` has its weights already, and its configuration has the plan.

    Returns:
        the same object, converted, with the weights.

    Raises:
        BlurifyError: there is no plan in what was given, it is not one for this model, or the weights don't fit.

    Example:
        >>> model = AutoModelForImageClassification.from_pretrained("converted")   # without blurs
        >>> model = blurify.reload(model)
        >>> model = blurify.reload(timm.create_model("resnet18"), "output/train/model_best.pth.tar")
    """
    where, tensors, mark = _read(model, source)
    root, inside = _root(model, mark)
    before = plan_of(root)
    if before is None:
        carry_out(root, mark.plan, where)
    elif before != mark.plan:
        raise BlurifyError(f"the model is converted already, by another plan than {where} has: give the original model")
    else:
        require_in_force(root, before, "build the original model again")
    if tensors is not None:
        prefix = None if inside else mark.prefix or None
        weights.fill(model, tensors, where=str(where), arch=f"this {type(model).__name__}", prefix=prefix)
    mark_configuration(root, mark.plan)
    return model


def _read(model: nn.Module, source: Any) -> tuple[Path, Mapping[str, Tensor] | None, Mark]:
    """What to call the source, its weights, and the plan in it."""
    if source is None:
        mark = mark_of_configuration(model)
        if mark is None:
            raise BlurifyError(
                "the model's configuration has no plan, so it was not converted when it was saved: give what was "
                "saved as source, or convert it (blurify.convert)"
            )
        return _HERE, None, mark
    if isinstance(source, Mapping):
        found = marked_weights(source)
        if found is None:
            raise BlurifyError(
                "these weights carry no plan: they were not saved of a converted model, or by a program that keeps "
                "only tensors (safetensors do): load them, and convert the model by the recipe that it had"
            )
        return Path("these weights"), found[0], found[1]
    path = Path(source)
    checkpoint = formats.read_checkpoint(path, Reading())
    plan_in_header = checkpoint.plan()
    mark = Mark(plan_in_header) if plan_in_header is not None else checkpoint.mark
    if checkpoint.tensors is None or mark is None:
        raise BlurifyError(
            f"{path} carries no plan beside its weights: it was not saved of a converted model, or by a program that "
            "keeps only tensors (safetensors do): load it, and convert the model by the recipe that it had"
        )
    return path, checkpoint.tensors, mark


def _root(model: nn.Module, mark: Mark) -> tuple[nn.Module, bool]:
    """The part of a model that was converted, and whether it is one that the weights' names lead to from the model."""
    if not mark.prefix:
        return model, True
    try:
        return model.get_submodule(mark.prefix.rstrip(".")), True
    except AttributeError:
        return model, False
