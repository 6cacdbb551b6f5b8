"""Find the module or the tensors in what a pickle holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.files import upgrading
from blurify.files.checkpoint import HEADER, Checkpoint
from blurify.files.pickled import Content
from blurify.files.replanning import edit_again

# Where training programs keep the weights, the averaged ones first (as timm's own loader does).
_WRAPPERS = (
    "state_dict_ema model_ema ema_state_dict ema params_ema state_dict model_state_dict model_state model module net "
    "network params weights"
).split()


def interpret(path: Path, content: Content) -> Checkpoint:
    """Find the module or the tensors in what a file holds.

    Args:
        path: the file, for messages.
        content: of which only what is found is made.

    Raises:
        BlurifyError: there is neither, or it needs what is not allowed.
    """
    top = _by_name(content, content.root)
    if HEADER in top and _is_state_dict(content, top.get("state_dict")):
        header = content.plain(top[HEADER])
        if not isinstance(header, dict):
            raise BlurifyError(f"{path} carries a plan that can't be read")
        return Checkpoint(
            path, tensors=content.tensors(list(_by_name(content, top["state_dict"]).items())), header=header
        )
    found, where = _search(content, content.root, 3)
    if found is not None and content.is_module(found):
        if isinstance(found, torch.jit.ScriptModule):
            raise BlurifyError(
                f"{path} is a TorchScript model, which can't be converted: give the model it was made from"
            )
        inside = content.inside(found)
        while inside is not None and content.is_module(inside):
            where = f"{where} ({content.kind(found)})" if where else content.kind(found)
            found, inside = inside, content.inside(inside)
        module, edited = content.module(found)
        if edited is not None:
            edit_again(module, edited, path)
        upgrading.upgrade(module)
        return Checkpoint(path, module=module, note=where and f"took the module under {where!r}")
    if found is not None:
        tensors = content.tensors(list(_by_name(content, found).items()))
        return Checkpoint(path, tensors=tensors, note=where and f"took the weights under {where!r}")
    explained = content.explain()
    if explained is not None:
        raise BlurifyError(explained)
    if content.items(content.root) is not None:
        keys = ", ".join(ascii(key)[:80] for key in list(top)[:6])
        held = f"a dictionary without weights (keys: {keys})" if top else "an empty dictionary"
    else:
        held = f"a {content.kind(content.root)}"
    raise BlurifyError(f"{path} holds {held}: give a pickled nn.Module or a state_dict")


def _by_name(content: Content, value: Any) -> dict[str, Any]:
    """The entries of a dictionary whose keys are text."""
    return {key: item for key, item in content.items(value) or () if isinstance(key, str)}


def _is_state_dict(content: Content, value: Any) -> bool:
    items = content.items(value)
    return bool(items) and all(
        isinstance(key, str) and (content.is_tensor(item) or key.endswith("_extra_state")) for key, item in items or ()
    )


def _search(content: Content, value: Any, depth: int) -> tuple[Any, str]:
    """The module or state_dict in a value, and under which key it was."""
    if content.is_module(value) or _is_state_dict(content, value):
        return value, ""
    if content.items(value) is None or depth == 0:
        return None, ""
    entries = _by_name(content, value)
    for name in _WRAPPERS:
        if name in entries:
            found, inner = _search(content, entries[name], depth - 1)
            if found is not None:
                return found, f"{name}.{inner}" if inner else name
    others = [key for key in entries if key not in _WRAPPERS and "optim" not in key]
    hits = [(key, entries[key]) for key in others if _is_state_dict(content, entries[key])]
    return (hits[0][1], hits[0][0]) if len(hits) == 1 else (None, "")
