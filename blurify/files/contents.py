"""Find the module or the tensors in what a pickle held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.files import pickles, upgrading
from blurify.files.checkpoint import HEADER, Checkpoint

# Where training programs keep the weights, the averaged ones first (as timm's own loader does).
_WRAPPERS = (
    "state_dict_ema model_ema ema_state_dict ema params_ema state_dict model_state_dict model_state model module net "
    "network params weights"
).split()


def interpret(path: Path, content: Any, refused: dict[str, str]) -> Checkpoint:
    """Find the module or the tensors in what a file held.

    Args:
        path: the file, for messages.
        content: what the pickle made.
        refused: what `pickles.load` refused to make.

    Raises:
        BlurifyError: there is neither, or what is missing was refused.
    """
    if isinstance(content, Mapping) and HEADER in content and _is_state_dict(content.get("state_dict")):
        header = content[HEADER]
        if not isinstance(header, dict):
            raise BlurifyError(f"{path} carries a plan that can't be read")
        return Checkpoint(path, tensors=dict(content["state_dict"]), header=header)
    found, where = _search(content, 3)
    if isinstance(found, torch.jit.ScriptModule):
        raise BlurifyError(f"{path} is a TorchScript model, which can't be converted: give the model it was made from")
    if isinstance(found, torch.nn.Module):
        if refused:
            raise BlurifyError(pickles.explain_refused(path, refused))
        upgrading.upgrade(found)
        return Checkpoint(path, module=found, note=where and f"took the module under {where!r}")
    if found is not None:
        return Checkpoint(path, tensors=dict(found), note=where and f"took the weights under {where!r}")
    if refused:
        raise BlurifyError(pickles.explain_refused(path, refused))
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:6])
        inside = f"a dictionary without weights (keys: {keys})" if content else "an empty dictionary"
    else:
        inside = f"a {type(content).__name__}"
    raise BlurifyError(f"{path} holds {inside}: give a pickled nn.Module or a state_dict")


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(
        isinstance(key, str) and (isinstance(item, torch.Tensor) or key.endswith("_extra_state"))
        for key, item in value.items()
    )


def _search(value: Any, depth: int) -> tuple[Any, str]:
    """The module or state_dict in a value, and under which key it was."""
    if isinstance(value, torch.nn.Module) or _is_state_dict(value):
        return value, ""
    if not isinstance(value, Mapping) or depth == 0:
        return None, ""
    names = [name for name in _WRAPPERS if name in value]
    others = [key for key in value if isinstance(key, str) and key not in names and isinstance(value[key], Mapping)]
    for name in names:
        found, inner = _search(value[name], depth - 1)
        if found is not None:
            return found, f"{name}.{inner}" if inner else name
    hits = [(key, found) for key in others if _is_state_dict(found := value[key]) and "optim" not in key]
    return (hits[0][1], hits[0][0]) if len(hits) == 1 else (None, "")
