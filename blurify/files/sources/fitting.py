"""Read off a file's tensors what was left open of an architecture: its number of classes, its input channels, ..."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from blurify.errors import BlurifyError
from blurify.files.sources.options import parse_options
from blurify.files.sources.shapes import Shapes, shapes_of

_USUAL_CLASSES = (1000, 91, 21, 400, 101)  # ImageNet, COCO, Pascal VOC, Kinetics, UCF
_AUX_HEADS = ("AuxLogits.", "aux1.", "aux2.")
_AUX_LOSS = "aux_classifier."
_MOST_GUESSES = 12

_Choice = tuple[dict[str, str], str]
"""Options, and what they were read off."""


def fitted(arch: str, theirs: Shapes) -> tuple[str, str] | None:
    """The architecture with those options that give it the tensors of a file.

    Args:
        arch: a factory spec of timm or torchvision; options that it has stay.
        theirs: the shapes in the file, under the architecture's own names.

    Returns:
        The spec with the options, and what they were read off ('' where none are needed); None where no options help.

    Raises:
        BlurifyError: the architecture can't be built.
    """
    if not arch.startswith(("timm/", "torchvision/")):
        return None
    own = shapes_of(arch)
    if dict(own) == dict(theirs):
        return arch, ""
    given = parse_options(arch, arch.partition("?")[2])
    for choice in itertools.islice(_choices(arch, given, own, theirs), _MOST_GUESSES):
        options = {key: value for part in choice for key, value in part[0].items()}
        if not options or given.keys() & options.keys():
            continue  # what the user said is not for the file to change
        spec = f"{arch}{'&' if '?' in arch else '?'}{'&'.join(f'{key}={value}' for key, value in options.items())}"
        try:
            found = shapes_of(spec)
        except BlurifyError:  # it takes no such option
            continue
        if dict(found) == dict(theirs):
            return spec, ", ".join(why for _, why in choice if why)
    return None


def _choices(arch: str, given: dict[str, object], own: Shapes, theirs: Shapes) -> Iterator[tuple[_Choice, ...]]:
    nothing: _Choice = ({}, "")
    aux = _aux(own, theirs)
    channels = list(_channels(given, own, theirs)) if arch.startswith("timm/") else []
    classes = list(_classes(own, theirs))
    yield from itertools.product(classes or [nothing], channels or [nothing], [aux or nothing])


def _aux(own: Shapes, theirs: Shapes) -> _Choice | None:
    """Heads that only help in training: there in one and not in the other."""
    for name in own:
        if name.startswith(_AUX_HEADS) and name not in theirs:
            return {"aux_logits": "false"}, f"aux_logits=false, as there is no {name}"
    for name in theirs:
        if name.startswith(_AUX_LOSS) and name not in own:
            return {"aux_loss": "true"}, f"aux_loss=true, read off {name}"
    return None


def _classes(own: Shapes, theirs: Shapes) -> Iterator[_Choice]:
    """Numbers of classes that may be meant, the likeliest first."""
    missing = [name for name in own if name not in theirs and not name.startswith(_AUX_HEADS)]
    unexpected = [name for name in theirs if name not in own and not name.startswith(_AUX_LOSS)]
    if missing and not unexpected:
        yield {"num_classes": "0"}, f"num_classes=0, as there is no {missing[-1].rpartition('.')[0] or missing[-1]}"
    guesses: dict[int, str] = {}
    for name in unexpected:  # of an architecture that comes without a head
        if theirs[name]:
            guesses.setdefault(theirs[name][0], name)
    scaled: dict[int, str] = {}
    for name in sorted(own, key=lambda name: not name.endswith("weight")):
        mine, other = own[name], theirs.get(name, ())
        if mine and len(mine) == len(other) and mine[0] != other[0] and mine[1:] == other[1:]:
            guesses.setdefault(other[0], name)
            for usual in _USUAL_CLASSES:  # some heads have a number of anchors for each class
                if mine[0] % usual == 0 and other[0] % (mine[0] // usual) == 0:
                    scaled.setdefault(other[0] // (mine[0] // usual), name)
    for number, name in {**scaled, **guesses}.items() if len(guesses) > 1 else {**guesses, **scaled}.items():
        yield {"num_classes": str(number)}, f"num_classes={number}, read off {name}"


def _channels(given: dict[str, object], own: Shapes, theirs: Shapes) -> Iterator[_Choice]:
    """Numbers of input channels that may be meant."""
    for name, mine in own.items():
        other = theirs.get(name, ())
        if len(mine) == len(other) > 1 and mine[1] != other[1] and mine[:1] + mine[2:] == other[:1] + other[2:]:
            # A stem may see several pixels as channels, or all of them.
            now = given.get("in_chans", 3)
            number = other[1] * now // mine[1] if isinstance(now, int) else other[1]
            yield {"in_chans": str(number)}, f"in_chans={number}, read off {name}"
            return
