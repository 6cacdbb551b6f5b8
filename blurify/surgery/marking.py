"""A mark that travels with the weights of a converted model where the model itself does not.

Other programs save weights and build the class again: the blurs are then gone, and nothing says so. So a converted
model leaves its plan where these programs keep what they do not know: in the metadata of its state_dict (`torch.save`
keeps them: timm's checkpoint saver, Lightning, averaged copies of a model), in the configuration of a transformers
model (`save_pretrained`), in the notes of a timm model (`save_for_hf`, `push_to_hf_hub`). Never among the tensors:
keys, shapes and values of a state_dict stay the original's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.nn.blurpool import MARK, BlurPool
from blurify.spec.plan import Plan

FORMAT = 1
_CONFIG = "blurify"
_NOTE = "blurify: "
_LONGEST = 2**25  # characters; 1,000 sites have some 2**20
_DEEPEST = 3  # dictionaries in dictionaries, as training checkpoints are


@dataclass(frozen=True)
class Mark:
    """A plan that was found beside weights.

    Attributes:
        plan: by which the model was converted that they are of.
        prefix: what stands before the model's own names in the weights, such as 'model.' in a Lightning module's.
    """

    plan: Plan
    prefix: str = ""


def mark_blurs(model: nn.Module, plan: Plan) -> None:
    """Let the first blur of a plan write the plan into the metadata of every state_dict."""
    for path, blur in _blurs(model, plan):
        blur.__dict__["_mark"] = _text(plan, path)
        return


def unmark_blurs(model: nn.Module, plan: Plan) -> None:
    """Let no blur of a plan do so any more."""
    for _, blur in _blurs(model, plan):
        blur.__dict__.pop("_mark", None)


def mark_configuration(model: nn.Module, plan: Plan | None) -> None:
    """Write a plan into the configuration that a model's own library saves with it; None takes it out.

    Args:
        model: of transformers or timm; others have no configuration, and are left as they are.
        plan: in force.
    """
    own: Any = getattr(model, "config", None)
    if hasattr(own, "to_diff_dict") and hasattr(own, "model_type"):
        if plan is not None:
            setattr(own, _CONFIG, {"format": FORMAT, "plan": plan.to_dict()})
        elif _CONFIG in vars(own):
            delattr(own, _CONFIG)
    described: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(described, dict) and "architecture" in described and hasattr(model, "num_classes"):
        before = tuple(described.get("notes") or ())
        notes = tuple(note for note in before if not str(note).startswith(_NOTE))
        notes += (_NOTE + _text(plan, ""),) if plan is not None else ()
        if notes != before:  # a dictionary of its own: timm may hand the same one to many models
            fields = {key: value for key, value in described.items() if key != "notes"}
            again: Any = {**fields, "notes": notes} if notes else fields
            model.pretrained_cfg = model.default_cfg = again


def mark_of_configuration(model: nn.Module) -> Mark | None:
    """The plan that a model's configuration holds; None where it holds none.

    Raises:
        BlurifyError: it was written by a version of blurify that this one can't read.
    """
    own: Any = getattr(model, "config", None)
    data = getattr(own, _CONFIG, None) if hasattr(own, "to_diff_dict") else None
    if data is None:
        described: Any = getattr(model, "pretrained_cfg", None)
        described = described if isinstance(described, Mapping) else {}
        return mark_of_configuration_file({"pretrained_cfg": described})
    return mark_of_configuration_file({_CONFIG: data})


def mark_of_configuration_file(config: Mapping[str, Any]) -> Mark | None:
    """The same of what a config.json holds."""
    data = config.get(_CONFIG)
    if isinstance(data, Mapping) and isinstance(data.get("plan"), Mapping):
        return Mark(Plan.from_dict(dict(data["plan"])))
    described = config.get("pretrained_cfg")
    for note in (described.get("notes") if isinstance(described, Mapping) else None) or ():
        if isinstance(note, str) and note.startswith(_NOTE):
            return _read(note.removeprefix(_NOTE), "")
    return None


def marked_weights(found: Any) -> tuple[Mapping[str, Any], Mark] | None:
    """The state_dict that carries a plan, the first in a training checkpoint; None where there is none.

    Args:
        found: what `torch.load` gave, or a state_dict.

    Raises:
        BlurifyError: the plan was written by a version of blurify that this one can't read.
    """
    for one in _state_dicts(found, _DEEPEST):
        if (mark := mark_of_metadata(one._metadata)) is not None:
            return one, mark
    return None


def mark_of_metadata(metadata: Any) -> Mark | None:
    """The same of the metadata of one state_dict."""
    for key, text in _marked(metadata):
        return _read(text, key)
    return None


def _state_dicts(found: Any, depth: int) -> Iterator[Any]:
    if isinstance(found, Mapping) and hasattr(found, "_metadata"):
        yield found
    elif isinstance(found, Mapping) and depth:
        for item in found.values():
            yield from _state_dicts(item, depth - 1)


def _marked(metadata: Any) -> list[tuple[str, str]]:
    if not isinstance(metadata, Mapping):
        return []
    return [
        (key, one[MARK])
        for key, one in metadata.items()
        if isinstance(key, str) and isinstance(one, Mapping) and isinstance(one.get(MARK), str)
    ]


def _blurs(model: nn.Module, plan: Plan) -> Iterator[tuple[str, BlurPool]]:
    """The blurs of a plan that are there, in its order."""
    modules = dict(model.named_modules())
    for edit in plan.edits:
        path = getattr(edit, "blur_path", None)
        if path is not None and isinstance(blur := modules.get(path), BlurPool):
            yield path, blur


def _text(plan: Plan, path: str) -> str:
    """A plan as text; the path of the blur that carries it tells where the model begins."""
    return json.dumps({"format": FORMAT, "blur": path, "plan": plan.to_dict()}, separators=(",", ":"))


def _read(text: str, key: str) -> Mark:
    try:
        if len(text) > _LONGEST:
            raise ValueError("no plan is so long")
        data = json.loads(text)
        if data["format"] != FORMAT or not key.endswith(data["blur"]):
            raise ValueError("another format")
        prefix = key.removesuffix(data["blur"]).replace("_orig_mod.", "")  # which torch.compile puts anywhere
        return Mark(Plan.from_dict(data["plan"]), prefix)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BlurifyError(
            "these weights carry a plan that can't be read, of another version of blurify: convert the original model "
            "again, and load them into it"
        ) from error
