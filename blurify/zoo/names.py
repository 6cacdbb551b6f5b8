"""Which architectures a user means: globs over the names that timm and torchvision have."""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Iterable, Sequence

from blurify.errors import BlurifyError
from blurify.spec.words import did_you_mean, nearest

LIBRARIES = ("timm", "torchvision")


def select(patterns: Sequence[str], *, pretrained: bool = True, shard: tuple[int, int] | None = None) -> list[str]:
    """The specs that the patterns name, each once, in alphabetical order.

    Args:
        patterns: globs such as 'resnet*' (both libraries), 'timm/resnet*', 'torchvision/*'. A '.' in a pattern for timm
            and a ':' in one for torchvision choose among pretrained weights ('resnet50.*', 'vgg16:*'); without, an
            architecture stands for itself. '?num_classes=10' at the end gives options to each. What starts with
            'python:' is taken as it is.
        pretrained: leave out what has no pretrained weights (unless it is named in full).
        shard: (i, n): every n-th of them, from the i-th (1-based) on; the n shards together are all, each once.

    Raises:
        BlurifyError: a pattern matches nothing (the message has the nearest names), or there is no such shard.
    """
    if not patterns:
        raise BlurifyError("no pattern: name architectures, as in 'timm/resnet*' (quote it for the shell)")
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise BlurifyError(f"there is no shard {shard[0]} of {shard[1]}: give 1/{shard[1]} to {shard[1]}/{shard[1]}")
    chosen: set[str] = set()
    for pattern in patterns:
        chosen.update([pattern] if pattern.startswith("python:") else _matches(pattern, pretrained))
    names = sorted(chosen)
    return names if shard is None else names[shard[0] - 1 :: shard[1]]


def file_stem(spec: str) -> str:
    """Where a model's file goes inside the directory, without its ending: each spec has a place of its own."""
    library, _, rest = spec.partition(":" if spec.startswith("python:") else "/")
    plain = rest.replace(":", "-")
    safe = re.sub(r"[^A-Za-z0-9._+-]", "-", plain)[:150]
    return f"{library}/{safe}" + ("" if safe == plain else f"-{zlib.crc32(spec.encode()):08x}")


def _matches(pattern: str, pretrained: bool) -> list[str]:
    glob, options = _split_options(pattern)
    library, slash, inner = glob.partition("/")
    if slash and library not in LIBRARIES:
        raise BlurifyError(f"{pattern!r} is no pattern over architectures: start it with timm/ or torchvision/")
    found: list[str] = []
    weightless = 0
    known: list[str] = []
    for name in LIBRARIES if not slash else (library,):
        every, with_weights = _timm(inner or glob) if name == "timm" else _torchvision(inner or glob)
        known += [f"{name}/{item}" for item in every]
        hits = fnmatch.filter(every, inner or glob)
        kept = [item for item in hits if not pretrained or item in with_weights or item == (inner or glob)]
        weightless += len(hits) - len(kept)
        found += [f"{name}/{item}{options}" for item in kept]
    if not found and weightless:
        raise BlurifyError(f"{pattern!r} matches {weightless} architectures, none has pretrained weights: use --random")
    if not found:
        raise BlurifyError(f"no architecture matches {pattern!r}{_nearest(glob, known)}")
    return found


def _split_options(pattern: str) -> tuple[str, str]:
    """'resnet1?' is a glob, 'resnet18?num_classes=10' has options."""
    head, mark, tail = pattern.rpartition("?")
    return (head, mark + tail) if "=" in tail else (pattern, "")


def _timm(glob: str) -> tuple[list[str], set[str]]:
    import timm

    tagged = timm.list_models(pretrained=True)
    if "." in glob:
        return tagged, set(tagged)
    return timm.list_models(), {name.partition(".")[0] for name in tagged}


def _torchvision(glob: str) -> tuple[list[str], set[str]]:
    from torchvision.models import get_model_weights, list_models

    names = [name for name in list_models() if not name.startswith("quantized_")]
    if ":" in glob:
        tagged = [f"{name}:{weights.name}" for name in names for weights in get_model_weights(name)]
        return tagged, set(tagged)
    return names, {name for name in names if len(get_model_weights(name))}


def _nearest(glob: str, known: Iterable[str]) -> str:
    """': did you mean ...?' with the names that a pattern without its wildcards is most like, where there are any."""
    names = list(known)
    stem = re.sub(r"[*?]|\[[^]]*\]", "", glob)
    inner = {name.partition("/")[2]: name for name in reversed(names)}
    return did_you_mean(inner[match] for match in nearest(stem.rpartition("/")[2], inner))
