"""`--arch auto`: the architecture of timm or torchvision that a file's tensors belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blurify.errors import BlurifyError
from blurify.files.sources.fitting import fitted
from blurify.files.sources.index import index
from blurify.files.sources.shapes import Shapes

AUTO = "auto"
_MOST_PREFIXES = 4
_LISTED = 8

# timm's variants with fixed filters: these hold no weights, so the tensors are those of the plain architecture. That
# one is taken, and the note names the others: else there would be no resnet18 and no resnet50 for anybody.
_ANTI_ALIASED = re.compile(r"(resnet|resnext)(aa|blur)\d|_(aa|blur)_")

# The weights of torchvision set an option of these that leaves no trace in the tensors.
_VARIANTS = dict.fromkeys(("torchvision/googlenet", "torchvision/inception_v3"), "transform_input=true")


@dataclass(frozen=True)
class Match:
    """An architecture that a file's tensors fit.

    Attributes:
        spec: the factory spec, with the options that were read off.
        note: what was found, and how surely, in one line.
    """

    spec: str
    note: str


def find_architecture(shapes: Shapes, where: str) -> Match:
    """Find what a file of weights belongs to.

    Args:
        shapes: of its tensors; whatever stands before all of their names is taken off.
        where: the file, for messages.

    Raises:
        BlurifyError: nothing fits, or several architectures do that compute different functions.
    """
    for unwrapped in _unwrapped(shapes):
        found: dict[str, tuple[str, str]] = {}
        for candidate in index().candidates(unwrapped):
            try:
                fit = fitted(candidate, unwrapped)
            except BlurifyError:  # the installed library has no such architecture
                continue
            if fit is not None:
                found[candidate] = fit
        if found:
            return _chosen(found, len(unwrapped), where)
    raise BlurifyError(
        f"no architecture of timm or torchvision that is known here has the {len(shapes)} tensors of {where}: say what "
        "they belong to, with --arch timm/NAME or --arch python:module:factory"
    )


def _chosen(found: dict[str, tuple[str, str]], tensors: int, where: str) -> Match:
    groups = index().by_function(found)
    plain = [group for group in groups if not _ANTI_ALIASED.search(group[0])]
    blurred = [name for group in groups if group not in plain for name in group]
    if len(plain) == 1:
        groups = plain
    else:
        blurred = []
    choices = [found[group[0]][0] for group in groups]
    for spec, option in _VARIANTS.items():
        choices += [
            f"{found[name][0]}{'&' if '?' in found[name][0] else '?'}{option}" for name in found if name == spec
        ]
    if len(choices) > 1:
        listed = " ".join(choices[:_LISTED]) + (f" and {len(choices) - _LISTED} more" if len(choices) > _LISTED else "")
        raise BlurifyError(
            f"the {tensors} names and shapes in {where} fit {len(choices)} architectures that compute different "
            f"functions: give --arch with one of {listed}"
        )
    (group,) = groups
    spec, read_off = found[group[0]]
    note = f"took {group[0]} for it: all {tensors} names and shapes match"
    if read_off:
        note += f" ({read_off})"
    note += _others(group[1:])
    if blurred:
        note += f"; if it is an anti-aliased one, give --arch: {' '.join(blurred)} {_have(blurred)} the same tensors"
    return Match(spec, note)


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _others(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{more} {'computes' if len(names) == 1 else 'compute'} the same)"


def _unwrapped(shapes: Shapes) -> Iterator[Shapes]:
    """The shapes as they are, then without what wrappers put before all names: `module.`, `_orig_mod.`, `model.`."""
    named = {name: shape for name, shape in shapes.items() if name != "n_averaged"}  # of AveragedModel
    for _ in range(_MOST_PREFIXES):
        yield named
        first = next(iter(named), "").partition(".")[0] + "."
        if not all(name.startswith(first) and name != first for name in named):
            return
        named = {name.removeprefix(first): shape for name, shape in named.items()}
