"""What a model's output is: classes, a label map, an embedding, a dense map or detections; told, chosen, or refused.

A model returns whatever its author liked: a tensor, a tuple, a dict, an object. What it is can be seen from names (of
entries, of the layers that they come from), from values (probabilities sum to 1, normalised embeddings have length 1),
from what the model says of itself (how many classes), and from its last operations. Where these don't tell, nothing is
guessed: the user says which entry it is, and as what it is to be taken.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import boxes, origins
from blurify.metrics.origins import Origin
from blurify.metrics.results import KIND_WORDS, Output
from blurify.metrics.sizes import dimensions

KINDS = tuple(KIND_WORDS)

_CLASSES = r"(.*_)?(logits?|probs|probabilities)|out|scores|classes"
_EMBEDDING = r"(.*_)?(embeddings?|embeds?|embedded|descriptors?|pooler_output|pooled(_output)?|feature_vector)"
_DENSE = (
    r"(.*_)?(depths?|disparity|disp|flows?|heat_?maps?|keypoints?|features?|feature_maps?|feats?|last_hidden_state|"
    r"reconstruction|sample|waveform|audio_values|alpha|pixel_values)(_?\d+)?"
)
_ASIDE = r"((.*_)?(hidden_states|attentions|past_key_values)|aux.*|(.*_)?loss)(\..*)?"  # never what is meant
_EMBEDDING_LAYER = r"(.*_)?(embed\w*|proj\w*|feat\w*|neck|bottleneck)"
_CLASSIFIER = r"(.*_)?(classifiers?|cls\w*|logits?|heads?|fc\d*|scores?)"
_TOKENS = r"(.*_)?(hidden_state|tokens?|sequence_output)"
_SHORT_VECTOR = 8  # a vector of fewer numbers may have length 1 without being an embedding
_MOST_PREFIX = 5  # tokens that are no part of the picture: class, distillation, registers
_MOST_LISTED = 5
_UNKNOWN = ("nothing known",)


@dataclass(frozen=True)
class Entry:
    """One tensor in what a model returned for one picture.

    Attributes:
        name: where it lies: '1', 'logits', 'a.0.b'; '' where the model returns it alone.
        tensor: of one picture, (1, ...).
        origin: the operation that it comes from, where that is known.
        longer: its shape for a longer signal; None for pictures, or where that is not known.
    """

    name: str
    tensor: Tensor
    origin: Origin | None = None
    longer: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """For one picture."""
        return tuple(self.tensor.shape[1:])

    @property
    def last_name(self) -> str:
        """The last word of its name."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        return f"{self.name or 'the output'} ({dimensions(self.shape) or 'one number'})"


@dataclass(frozen=True)
class Known:
    """What is known besides the output.

    Attributes:
        crop: (height, width) of the model's input; (1, samples) of signals.
        channels: of the input.
        signal: the input is a signal.
        classes: how many the model says that it tells apart; 0 where it says that it has no such layer.
        folders: how many class folders the pictures lie in, None where there are none or nobody looked.
        labelled: the pictures have labels.
    """

    crop: tuple[int, int]
    channels: int = 3
    signal: bool = False
    classes: int | None = None
    folders: int | None = None
    labelled: bool = False


@dataclass(frozen=True)
class _Told:
    """What an entry is, and why."""

    kind: str
    layout: str
    why: str
    values: str = "scores"


def entries_of(output: Any) -> list[tuple[str, Tensor]]:
    """All tensors in nested tuples, lists, dicts and dataclasses with their names, as `tensors_in` orders them."""
    found: list[tuple[str, Tensor]] = []
    _walk(output, (), found)
    return found


def _walk(value: Any, path: tuple[str, ...], found: list[tuple[str, Tensor]]) -> None:
    if isinstance(value, Tensor):
        found.append((".".join(path), value))
        return
    for name, item in _parts(value):
        _walk(item, (*path, name), found)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return [(str(index), item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in fields if hasattr(value, name)]
    return []


def says_classes(model: nn.Module) -> int | None:
    """How many classes a model says that it tells apart: timm's `num_classes`, transformers' configuration."""
    count = getattr(model, "num_classes", None)
    if not isinstance(count, int) or isinstance(count, bool):
        heads = "ForImageClassification" in type(model).__name__ or "For" in type(model).__name__
        count = getattr(getattr(model, "config", None), "num_labels", None) if heads else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def parse_choice(text: str) -> tuple[str, str]:
    """'1:embedding' -> ('1', 'embedding'), 'logits' -> ('logits', ''), 'embedding' -> ('embedding', '').

    Raises:
        BlurifyError: there is nothing in it, or the kind is none.
    """
    name, colon, kind = text.strip().rpartition(":")
    if not colon:
        name, kind = kind, ""
    if colon and kind not in KINDS:
        raise BlurifyError(f"--output {text!r}: {kind!r} is no kind of output: give one of {', '.join(KINDS)}")
    if not name and not kind:
        raise BlurifyError("--output is empty: give an entry's name or number, as in 1, logits or 0:embedding")
    return name, kind


def decide(
    model: nn.Module,
    output: Any,
    known: Known,
    *,
    found_in: Sequence[Origin | None] = (),
    longer: Any = None,
    wanted: str | None = None,
    name: str = "the model",
) -> Output:
    """What a model's output is.

    Args:
        model: what gave it; only what it says of itself counts.
        output: what it returned for one picture (1, ...).
        known: what is known besides.
        found_in: the origin of each tensor in it, as `origins.origins` has them.
        longer: what it returned for a longer signal.
        wanted: --output, as `parse_choice` reads it.
        name: what to call the model.

    Raises:
        BlurifyError: there is no such entry, or the entry is not of that kind; or, where nothing is wanted, what the
            output is can't be told. The message lists the entries.
    """
    where, kind = parse_choice(wanted) if wanted is not None else ("", "")
    if boxes.is_listed(output) or boxes.has_queries(output) or boxes.is_ultralytics(model, output):
        if kind in ("", "detections") and where in ("", "detections", "0"):
            return _detections(model, output)
    elif kind == "detections" or where == "detections":
        raise BlurifyError(
            f"--output {wanted}: {name} gives no boxes with scores and labels in a form that is known: give a wrapper "
            "whose output is a list of dicts with 'boxes', 'scores' and 'labels', one a picture"
        )
    entries = _entries(output, found_in, longer)
    if wanted is not None:
        return _chosen(entries, where, kind, known, name, wanted)
    told = {entry.name: _tell(entry, known) for entry in entries}
    best = _best(entries, told, known)
    if best is None:
        _refuse(entries, known, name, type(output).__name__)
    found = told[best.name]
    assert found is not None
    return _as_output(best, found, entries)


def _detections(model: nn.Module, output: Any) -> Output:
    if boxes.is_listed(output):
        return Output("detections", why="a list of dicts with boxes, scores and labels", layout="torchvision")
    if boxes.has_queries(output):
        return Output("detections", "logits and pred_boxes", why="the entries pred_boxes and logits", layout="queries")
    return Output("detections", why="ultralytics' detection head", layout="ultralytics")


def _entries(output: Any, found_in: Sequence[Origin | None], longer: Any) -> list[Entry]:
    """The entries that may be meant: floats, one row for the picture."""
    tensors = entries_of(output)
    places = found_in if len(found_in) == len(tensors) else [None] * len(tensors)
    longs = [tuple(tensor.shape) for _, tensor in entries_of(longer)] if longer is not None else []
    lengths = longs if len(longs) == len(tensors) else [None] * len(tensors)
    return [
        Entry(name, tensor, origin, length)
        for (name, tensor), origin, length in zip(tensors, places, lengths, strict=True)
        if tensor.is_floating_point() and tensor.ndim > 0 and len(tensor) == 1
    ]


def _as_output(entry: Entry, told: _Told, entries: Sequence[Entry]) -> Output:
    others = tuple(str(other) for other in entries if other.name != entry.name)
    if len(others) > _MOST_LISTED:
        others = (*others[:_MOST_LISTED], f"and {len(others) - _MOST_LISTED} more")
    values = told.values if told.kind in ("classes", "label-map") else ""
    return Output(told.kind, entry.name, entry.shape, told.why, told.layout, values, others)


def _chosen(entries: Sequence[Entry], where: str, kind: str, known: Known, name: str, wanted: str) -> Output:
    """The entry that the user wants."""
    entry = next((one for one in entries if one.name == where), None)
    if entry is None and where.isdecimal() and int(where) < len(entries):
        entry = entries[int(where)]
    if entry is None and len(entries) == 1 and where in ("", *KINDS):  # 'embedding' alone says what it is
        entry, kind = entries[0], kind or where
    if entry is None:
        listed = ", ".join(map(str, entries[:_MOST_LISTED])) + ", ..." * (len(entries) > _MOST_LISTED)
        raise BlurifyError(
            f"--output {wanted}: there is no entry {where!r} in what {name} returns: give one of {listed or 'none'}"
        )
    told = _tell(entry, known)
    if not kind:
        if told is None:
            _refuse([entry], known, name, "", given=True)
        kind, why = told.kind, f"chosen, and {told.why}"
    else:
        why = "chosen"
    if told is not None and told.kind == kind:
        return _as_output(entry, dataclasses.replace(told, why=why), entries)
    layout = _layout_for(entry, kind, known)
    if layout is None:
        raise BlurifyError(
            f"--output {wanted}: {entry} can't be {_with_article(kind)}: it may be {' or '.join(_may_be(entry, known))}"
        )
    values = "probabilities" if are_probabilities(entry.tensor, 1) else "scores"
    return _as_output(entry, _Told(kind, layout, why, values), entries)


def _with_article(kind: str) -> str:
    return {"classes": "classes", "detections": "detections"}.get(
        kind, f"{'an' if kind[0] in 'aeiou' else 'a'} {kind.replace('-', ' ')}"
    )


def _best(entries: Sequence[Entry], told: Mapping[str, _Told | None], known: Known) -> Entry | None:
    """The entry that is meant; None where that can't be told."""
    meant = [entry for entry in entries if not re.fullmatch(_ASIDE, entry.name)] or list(entries)
    for pattern in (_CLASSES, _EMBEDDING, _DENSE):
        named = [entry for entry in meant if re.fullmatch(pattern, entry.last_name)]
        if len(named) > 1:
            named = [
                entry
                for entry in named
                if entry.last_name == entry.name and entry.name in ("logits", "out", "last_hidden_state")
            ]
        if len(named) == 1 and told[named[0].name] is not None:
            return named[0]
    if len(meant) == 1:
        return meant[0] if told[meant[0].name] is not None else None
    sure = [entry for entry in meant if (found := told[entry.name]) is not None and found.values == "probabilities"]
    if len(sure) == 1:
        return sure[0]
    for count in (known.classes, known.folders):
        fitting = [entry for entry in meant if count and entry.shape == (count,)]
        if len(fitting) == 1 and told[fitting[0].name] is not None:
            return fitting[0]
    if len(meant) > 1 and all(entry.shape == meant[0].shape and len(entry.shape) == 3 for entry in meant):
        return meant[0] if told[meant[0].name] is not None else None  # outputs of several depths, the last one first
    scoring = [entry for entry in meant if (found := told[entry.name]) is not None and _scores(found.kind)]
    rest = [entry for entry in meant if entry not in scoring]
    if len(scoring) == 1 and all(told[entry.name] is not None for entry in rest):  # its features go with it
        return scoring[0]
    return None


def _scores(kind: str) -> bool:
    return kind in ("classes", "label-map")


def _refuse(entries: Sequence[Entry], known: Known, name: str, returned: str, *, given: bool = False) -> NoReturn:
    """Raise BlurifyError with what the entries could be."""
    if not entries:
        raise BlurifyError(
            f"the model's output is not classes, nor anything else that can be measured: {name} returns "
            f"{returned or 'nothing'} without a tensor of floats that has a row for each picture; give a wrapper that "
            "returns one"
        )
    shown = [
        f"{entry.name or 'it'} ({dimensions(entry.shape) or 'one number'}: {' or '.join(_may_be(entry, known))})"
        for entry in entries[:_MOST_LISTED]
    ]
    more = ", ..." * (len(entries) > _MOST_LISTED)
    first = next((entry for entry in entries if _may_be(entry, known) != _UNKNOWN), None)
    if first is None:
        raise BlurifyError(
            f"the model's output is not classes, nor anything else that can be measured: of one picture {name} gives "
            f"{', '.join(shown)}{more}; give a wrapper that returns what is meant"
        )
    example, kind = first.name or "0", _may_be(first, known)[0]
    what = "kind, as in" if given or len(entries) == 1 else "entry, and as what, as in"
    apart = ""
    if first.shape in ((), (1,)):  # nobody can tell a class of two from a quantity
        apart = ", or, if that tells two classes apart, give a wrapper with a score for each, such as (0, score)"
    raise BlurifyError(
        f"the model's output is not classes, or can't be told from other things: of one picture {name} gives "
        f"{', '.join(shown)}{more}; say which {what} --output {example}:{kind}{apart}"
    )


# --- one entry


def _may_be(entry: Entry, known: Known) -> tuple[str, ...]:
    """What an entry can be by its shape."""
    found = [kind for kind in KINDS[:-1] if _layout_for(entry, kind, known) is not None]
    if "classes" in found and _map_layout(entry, known) is None:
        found.remove("dense")  # it may be, but hardly is
    return tuple(found) or _UNKNOWN


def _layout_for(entry: Entry, kind: str, known: Known) -> str | None:
    """What the entry's dimensions are if it is of a kind; None where it can't be."""
    shape = entry.shape
    if kind in ("classes", "embedding"):
        flat = len(shape) == 1 or (len(shape) == 3 and shape[1:] == (1, 1) and max(known.crop) > 1)
        return ("N,K" if len(shape) == 1 else "N,K,1,1") if flat and shape[0] >= 2 else None
    layout = _map_layout(entry, known)
    if kind == "dense":
        return layout or {0: "N", 1: "N,K"}.get(len(shape))
    if kind == "label-map" and layout not in (None, "N,h,w", "N,T"):
        return layout if _channels_in(shape, layout or "") >= 2 else None
    return None


def _channels_in(shape: tuple[int, ...], layout: str) -> int:
    return shape[-1] if layout.endswith(",K") else shape[0]


def _map_layout(entry: Entry, known: Known) -> str | None:
    """What the dimensions of a map are; None where it is none."""
    shape, (height, width) = entry.shape, known.crop
    if known.signal:
        grows = None
        if entry.longer is not None and len(entry.longer) == len(shape) + 1:
            changed = [
                place for place, (now, then) in enumerate(zip(shape, entry.longer[1:], strict=True)) if now != then
            ]
            grows = changed[0] if len(changed) == 1 else None
        if len(shape) == 1:
            return "N,T" if grows == 0 else None
        if len(shape) == 2:
            return "N,T,K" if grows == 0 else "N,K,T"
        return "N,K,h,w" if len(shape) == 3 and 1 in shape[1:] else None
    if len(shape) == 3:
        first, last = (_of_picture(part, (height, width)) for part in (shape[1:], shape[:2]))
        return "N,h,w,K" if last and not first else "N,K,h,w"
    if len(shape) == 2:
        if _of_picture(shape, (height, width)) and not re.fullmatch(_TOKENS, entry.last_name):
            return "N,h,w"
        return "N,T,K" if _grid(shape[0], known.crop) is not None else None
    return None


def _of_picture(size: tuple[int, ...], crop: tuple[int, int]) -> bool:
    """Whether a map may be of a picture: of its proportions, within a step or two for what padding leaves out."""
    return min(size) > 1 and abs(size[0] / crop[0] - size[1] / crop[1]) <= 2 / max(crop) + 0.02 * size[0] / crop[0]


def _grid(tokens: int, crop: tuple[int, int]) -> tuple[int, int, int] | None:
    """(tokens before them, rows, columns) of the tokens of square patches; None where there are no such patches."""
    for side in range(2, min(crop) + 1):
        rows, columns = crop[0] // side, crop[1] // side
        if crop[0] % side == 0 and crop[1] % side == 0 and 0 <= tokens - rows * columns <= _MOST_PREFIX:
            return (tokens - rows * columns, rows, columns) if rows * columns > 1 else None
    return None


def _tell(entry: Entry, known: Known) -> _Told | None:
    """What an entry is, by its name, its values, what the model says, and what it comes from; None where not known."""
    flat = _layout_for(entry, "classes", known)
    found = _tell_vector(entry, known, flat) if flat is not None else _tell_map(entry, known)
    return found


def _tell_vector(entry: Entry, known: Known, layout: str) -> _Told | None:
    """What one vector a picture is."""
    count, word, values = entry.shape[0], entry.last_name, entry.tensor.flatten(1).float()
    if known.signal and _map_layout(entry, known) == "N,T":
        return _Told("dense", "N,T", "it is as long as the signal")
    probable = "probabilities" if are_probabilities(values, 1) else "scores"
    if re.fullmatch(_CLASSES, word):
        return _Told("classes", layout, f"it is called {word}", probable)
    if re.fullmatch(_EMBEDDING, word):
        return _Told("embedding", layout, f"it is called {word}")
    if probable == "probabilities":
        return _Told("classes", layout, "its values are probabilities, they sum to 1", probable)
    tolerance = 1e-3 if entry.tensor.dtype in (torch.float32, torch.float64) else 2e-2
    if count >= _SHORT_VECTOR and abs(float(values.norm()) - 1) < tolerance:
        return _Told("embedding", layout, "it has length 1, as normalised embeddings have")
    if known.classes == count:
        return _Told("classes", layout, f"the model says that it has {count} classes")
    if known.classes == 0:
        return _Told("embedding", layout, "the model says that it has no classes")
    if known.folders == count:
        return _Told("classes", layout, f"there are {count} classes of pictures")
    return _by_origin(entry, layout, known)


def _by_origin(entry: Entry, layout: str, known: Known) -> _Told | None:
    """What one vector a picture is by what the model does last."""
    origin = entry.origin
    if origin is None:
        return _labelled(layout, known)
    path, where = origin.path, f" of {origin.path}" if origin.path else ""
    if origin.function in origins.SOFTMAX:
        return _Told("classes", layout, f"it comes from a {origin.function}")
    if origin.function == "sigmoid":
        return _Told(
            "classes",
            layout,
            "each value is a probability of its own, by a sigmoid (shown as shares of their sum)",
            "probabilities",
        )
    if origin.function in origins.NORMALISED:
        return _Told("embedding", layout, f"the last layer{where} normalises, none scores classes")
    if origin.function in origins.SCORING:
        if re.fullmatch(_EMBEDDING_LAYER, _layer(path)):
            return _Told("embedding", layout, f"it comes from the layer {path}")
        return _Told("classes", layout, f"the last layer{where} is linear, with a score for each of {entry.shape[0]}")
    if origin.function in origins.POOLED:
        if re.fullmatch(_CLASSIFIER, _layer(path)) or origin.before in origins.SCORING:
            return _Told("classes", layout, f"the last layer{where} averages scores over positions")
        if origin.before and not known.labelled:
            return _Told("embedding", layout, f"it is pooled features, after {origin.before}: no layer scores classes")
        return _labelled(layout, known)
    if origin.function in origins.ACTIVATED | {"tanh"}:
        return _Told("embedding", layout, f"it comes from {origin.function}{where}: no layer scores classes after it")
    return _labelled(layout, known)


def _layer(path: str) -> str:
    """The last word of a module's path that is no number: 'classifier' of 'net.classifier.1'."""
    return next((word for word in reversed(path.split(".")) if not word.isdecimal()), "")


def _labelled(layout: str, known: Known) -> _Told | None:
    return _Told("classes", layout, "the pictures have labels") if known.labelled else None


def _tell_map(entry: Entry, known: Known) -> _Told | None:
    """What a map is."""
    layout, shape, word = _map_layout(entry, known), entry.shape, entry.last_name
    if layout is None or (len(shape) == 3 and shape[1:] == (1, 1) and max(known.crop) > 1):
        return None
    if layout == "N,K,h,w" and not known.signal and not _of_picture(shape[1:], known.crop):
        return None
    if known.signal and len(shape) == 2 and entry.longer is None:  # which of them is time?
        return None
    count = _channels_in(shape, layout)
    axis = -1 if layout.endswith(",K") else 1
    if layout in ("N,h,w", "N,T") or count == 1:
        return _Told("dense", layout, "it has one number at each position")
    probable = "probabilities" if are_probabilities(entry.tensor, axis) else "scores"
    if re.fullmatch(_CLASSES, word):
        return _Told("label-map", layout, f"it is called {word}", probable)
    if re.fullmatch(f"{_DENSE}|{_EMBEDDING}", word):
        return _Told("dense", layout, f"it is called {word}")
    if probable == "probabilities":
        return _Told("label-map", layout, "at each position the values are probabilities, they sum to 1", probable)
    if known.classes == count:
        return _Told("label-map", layout, f"the model says that it has {count} classes")
    origin = entry.origin
    if origin is None:
        return None
    where = f" of {origin.path}" if origin.path else ""
    if origin.function in origins.SOFTMAX:
        return _Told("label-map", layout, f"it comes from a {origin.function}")
    if origin.function in origins.SQUASHED | origins.ACTIVATED | origins.NORMALISED | origins.POOLED | {"max_pool2d"}:
        return _Told("dense", layout, f"it comes from {origin.function}{where}: no layer scores classes after it")
    if origin.function in ("add", "mul") or (origin.function == "cat" and not origin.before):
        return _Told("dense", layout, f"it comes from {origin.function}{where}: no layer scores classes after it")
    if origin.function in origins.SCORING:
        if re.fullmatch(_EMBEDDING_LAYER, _layer(origin.path)):
            return _Told("dense", layout, f"it comes from the layer {origin.path}")
        if count == known.channels:  # a picture, as denoisers give, or that many classes
            return None
        return _Told("label-map", layout, f"the last layer{where} scores {count} classes at each position")
    return None


def are_probabilities(values: Tensor, axis: int = 1) -> bool:
    """Whether the values along an axis are at least 0 and sum to 1."""
    if values.ndim < 2 or values.shape[axis] < 2:
        return False
    tolerance = 1e-3 if values.dtype in (torch.float32, torch.float64) else 2e-2
    found = values.detach().float()
    return bool((found >= 0).all()) and bool(((found.sum(axis) - 1).abs() < tolerance).all())


# --- an output, as it was taken


def entry_in(output: Any, taken: Output, count: int) -> Tensor:
    """The entry that was taken, in what the model returned for `count` pictures.

    Raises:
        BlurifyError: it is not there, or has not a row for each picture.
    """
    for name, tensor in entries_of(output):
        if name == taken.name:
            if tensor.ndim and len(tensor) == count:
                return tensor
            raise BlurifyError(
                f"the output{f' {name}' if name else ''} of shape {dimensions(tensor.shape)} has not one row for each "
                f"of {count} pictures: give --batch-size 1, or another --output"
            )
    raise BlurifyError(f"the output {taken.name!r} is not in what the model returns now: give another --output")


def in_order(tensor: Tensor, taken: Output, crop: tuple[int, int]) -> Tensor:
    """An entry as (N, K), or (N, K, h, w): (N, K, 1, T) of signals, the grid of the patches' tokens of pictures."""
    layout = taken.layout
    if layout in ("N,K", "N,K,h,w"):
        return tensor
    if layout == "N":
        return tensor[:, None]
    if layout == "N,K,1,1":
        return tensor[:, :, 0, 0]
    if layout == "N,h,w":
        return tensor[:, None]
    if layout == "N,h,w,K":
        return tensor.permute(0, 3, 1, 2)
    if layout == "N,T":
        return tensor[:, None, None]
    if layout == "N,K,T":
        return tensor[:, :, None]
    if crop[0] == 1:  # a signal's
        return tensor.transpose(1, 2)[:, :, None]
    grid = _grid(tensor.shape[1], crop)
    if grid is None:
        raise BlurifyError(
            f"{tensor.shape[1]} tokens are no grid of patches of {dimensions(crop)}: give another --size"
        )
    before, rows, columns = grid
    return tensor[:, before:].transpose(1, 2).unflatten(2, (rows, columns))


def as_scores(tensor: Tensor, taken: Output) -> Tensor:
    """Class scores whose softmax are the probabilities: of probabilities, their logarithms."""
    return logarithms(tensor.float()) if taken.values == "probabilities" else tensor.float()


def logarithms(probabilities: Tensor) -> Tensor:
    """Their logarithms, in the same precision; 0 has that of the smallest number there is."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def boxes_in(output: Any, taken: Output, model: nn.Module, crop: tuple[int, int]) -> list[boxes.Boxes]:
    """The boxes in what a detector returned, of each picture."""
    if taken.layout == "torchvision":
        found = boxes.listed(output)
    elif taken.layout == "queries":
        labels = getattr(getattr(model, "config", None), "num_labels", None)
        found = boxes.of_queries(output, crop, labels)
    else:
        found = boxes.of_ultralytics(output, boxes.labels_of(model))
    return [one.cut(crop) for one in found]
