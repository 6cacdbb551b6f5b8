"""Find the module or the tensors in what a pickle holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.files import upgrading
from blurify.files.checkpoint import HEADER, Checkpoint, Reading
from blurify.files.pickled import Content
from blurify.files.replanning import edit_again
from blurify.files.rest import Rest
from blurify.surgery.marking import mark_of_metadata

# Where training programs keep the weights, the averaged ones first (as timm's own loader does).
_AVERAGED = "state_dict_ema model_ema ema_state_dict ema params_ema averaging_state".split()
_PLAIN = ("state_dict model_state_dict model_state model module net network params weights current_model_state").split()
_DEPTH = 3

Place = tuple[str, ...]


def interpret(path: Path, content: Content, reading: Reading) -> Checkpoint:
    """Find the module or the tensors in what a file holds.

    Args:
        path: the file, for messages.
        content: of which only what is found is made.
        reading: which of several weights the user wants.

    Raises:
        BlurifyError: there is neither, there are not the weights that were asked for, or it needs what is not allowed.
    """
    top = _by_name(content, content.root)
    weights = None if reading.prefix is not None else reading.weights
    if HEADER in top and weights is None:
        ours = _ours(path, content, top)
        if ours is not None:
            return ours
    hits = _hits(content, content.root, _DEPTH)
    if weights is not None:
        hits = _chosen(path, content, hits, weights)
    if not hits:
        raise BlurifyError(content.explain() or _holds_nothing(path, content, top))
    place, found = hits[0]
    note = _note(content, hits)
    rest = Rest(content.entries(content.root), place) if place and len(top) > 1 else None
    if not content.is_module(found):
        tensors = content.tensors(list(_by_name(content, found).items()))
        return Checkpoint(
            path, tensors=tensors, note=note, arch=_named_by(content, top), rest=rest, prefix=reading.prefix,
            mark=mark_of_metadata(content.metadata(found)),
        )  # fmt: skip
    if isinstance(found, torch.jit.ScriptModule):
        raise BlurifyError(f"{path} is a TorchScript model, which can't be converted: give the model it was made from")
    outer, inside = found, content.inside(found)
    while inside is not None and content.is_module(inside):
        found, inside = inside, content.inside(inside)
    if outer is not found:
        note = "; ".join(part for part in (note, f"took the module inside a {content.kind(outer)}") if part)
    module, edited = content.module(found)
    if edited is not None:
        edit_again(module, edited, path)
    upgrading.upgrade(module)
    return Checkpoint(path, module=module, note=note, rest=rest)


def _ours(path: Path, content: Content, top: dict[str, Any]) -> Checkpoint | None:
    """What blurify wrote: a header, and the weights where it says."""
    header = content.plain(top[HEADER])
    if not isinstance(header, dict):
        raise BlurifyError(f"{path} carries a plan that can't be read")
    said = header.get("weights") or {}
    place, prefix = tuple(said.get("place", ("state_dict",))), str(said.get("prefix", ""))
    found = _at(content, place)
    if found is None or not _is_state_dict(content, found):
        return None
    named = {name.removeprefix(prefix): value for name, value in _by_name(content, found).items()
             if name.startswith(prefix)}  # fmt: skip
    entries = {name: value for name, value in content.entries(content.root).items() if name != HEADER} if said else {}
    rest = Rest(entries, place, prefix) if said else None
    return Checkpoint(path, tensors=content.tensors(list(named.items())), header=header, rest=rest)


def _holds_nothing(path: Path, content: Content, top: dict[str, Any]) -> str:
    if content.items(content.root) is not None:
        keys = ", ".join(ascii(key)[:80] for key in list(top)[:6])
        held = f"a dictionary without weights (keys: {keys})" if top else "an empty dictionary"
    else:
        held = f"a {content.kind(content.root)}"
    return f"{path} holds {held}: give a pickled nn.Module or a state_dict"


def _by_name(content: Content, value: Any) -> dict[str, Any]:
    """The entries of a dictionary whose keys are text."""
    return {key: item for key, item in content.items(value) or () if isinstance(key, str)}


def _is_state_dict(content: Content, value: Any) -> bool:
    items = content.items(value)
    return bool(items) and all(
        isinstance(key, str) and (content.is_tensor(item) or key.endswith("_extra_state")) for key, item in items or ()
    )


def _hits(content: Content, value: Any, depth: int) -> list[tuple[Place, Any]]:
    """Every module and state_dict in a value by the keys that lead to it, the one to take first."""
    if content.is_module(value) or _is_state_dict(content, value):
        return [((), value)]
    if content.items(value) is None or depth == 0:
        return []
    entries = _by_name(content, value)
    hits: list[tuple[Place, Any]] = []
    for name in (*_AVERAGED, *_PLAIN):
        if name in entries:
            hits += [((name, *inner), found) for inner, found in _hits(content, entries[name], depth - 1)]
    if hits:
        return hits
    others = [key for key in entries if "optim" not in key and _is_state_dict(content, entries[key])]
    return [((others[0],), entries[others[0]])] if len(others) == 1 else []


def _chosen(path: Path, content: Content, hits: list[tuple[Place, Any]], weights: str) -> list[tuple[Place, Any]]:
    """Those of the weights that were asked for."""
    exact = _at(content, tuple(weights.split(".")))
    if exact is not None and (content.is_module(exact) or _is_state_dict(content, exact)):
        return [(tuple(weights.split(".")), exact)]
    if weights in ("ema", "model"):
        wanted = [hit for hit in hits if hit[0] and (hit[0][0] in _AVERAGED) == (weights == "ema")]
        if wanted:
            return wanted
    kinds = {"ema": "averaged weights", "model": "weights beside the averaged ones"}
    which = kinds.get(weights, f"weights under {weights!r}")
    there = ", ".join(repr(".".join(place)) for place, _ in hits if place)
    raise BlurifyError(f"{path} has no {which}: " + (f"it has {there}" if there else "leave --weights out"))


def _at(content: Content, place: Place) -> Any:
    """What stands under a row of keys; None where nothing does."""
    value = content.root
    for key in place:
        value = _by_name(content, value).get(key) if content.items(value) is not None else None
        if value is None:
            return None
    return value


def _note(content: Content, hits: list[tuple[Place, Any]]) -> str:
    """Which of several was taken, and how to take another."""
    place, found = hits[0]
    if not place:
        return ""
    what = "module" if content.is_module(found) else "weights"
    averaged = place[0] in _AVERAGED
    note = f"took the {'averaged ' * averaged}{what} under {'.'.join(place)!r}"
    other = next((one for one, _ in hits if (one[0] in _AVERAGED) != averaged), None)
    if other is not None:
        note += f" (--weights {'model' if averaged else 'ema'} takes {'.'.join(other)!r})"
    return note


def _named_by(content: Content, top: dict[str, Any]) -> str | None:
    """The architecture that a training program wrote into its checkpoint: timm's own script, or torch's example."""
    arch = top.get("arch")
    if not isinstance(arch, str) or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", arch, re.ASCII):
        return None
    return f"timm/{arch}" if "version" in top or "state_dict_ema" in top else f"torchvision/{arch}"
