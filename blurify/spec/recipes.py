"""Recipes: what the user wants done to a model. Immutable data, read from a TOML file, a mapping or a shipped name.

A recipe knows nothing of any model. Planning turns a recipe and the sites of one model into a plan. The same nested
form (tables `filter`, `conv`, `patches`, `maxpool`, `skip`) is used by the files in `configs/`, by mappings and inside
plans.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from blurify.errors import BlurifyError
from blurify.spec.filters import MAX_FILTER_SIZE, MAX_TAPS, PADDINGS, resolve_taps
from blurify.spec.words import nearest

DEFAULT = "zhang2019"
PLACEMENTS = ("after-activation", "cheap")
STEMS = ("skip", "convert", "split")
MERGING = ("skip", "blur")
KINDS = ("conv", "maxpool", "avgpool", "slice", "patches")
_LARGEST_TAP = 1e6  # also keeps nan, inf and integers beyond float out


@dataclass(frozen=True)
class Recipe:
    """What the user wants: the filter, where it goes, and what to leave alone.

    Attributes:
        name: what to call it in reports; a shipped recipe's own name, a file's stem, or 'custom'.
        description: one line for people.
        filter_size: number of binomial taps, 1 to 7; None where `taps` are given. 1 is the identity filter.
        taps: the user's own filter, of any positive sum (they are normalised). They win over `filter_size`.
        padding: 'reflect' | 'replicate' | 'zeros' | 'circular'.
        conv: where the blur of a strided convolution goes. 'after-activation' runs the convolution densely and blurs
            behind its nonlinearity (Zhang 2019, section 3); 'cheap' keeps its stride and blurs its input.
        stem: what happens to the convolution that reads the image: 'skip' it, 'convert' it like any other, or
            'split' an even stride into a strided convolution and a blur of stride 2.
        merging: what happens where the network itself merges tokens by a rearrangement and a linear layer (Swin):
            'skip' it, or 'blur' what is merged.
        patch_cutoff: where patches are cut (kernel <= stride: a vision transformer's stem, token merging), the blur
            cuts off at so many times pi / stride, though never above pi / 2. A linear layer that reads all samples of
            a patch loses none of them, so that pi / stride (1) may take more than aliases (docs/transformers.md).
        maxpool_kernel_size: replaces the kernel of the max pools, which then have no padding; None keeps theirs.
        skip_kinds: kinds of site to leave alone: 'conv', 'maxpool', 'avgpool', 'slice', 'patches'.
        skip_names: globs on the site's name, such as 'layer4.*', to leave alone.
        min_channels: sites with fewer channels are left alone; 0 takes all.

    Raises:
        BlurifyError: for a value that is not among these; the message names it.
    """

    name: str = DEFAULT
    description: str = ""
    filter_size: int | None = 4
    taps: tuple[float, ...] | None = None
    padding: str = "reflect"
    conv: Literal["after-activation", "cheap"] = "after-activation"
    stem: Literal["skip", "convert", "split"] = "skip"
    merging: Literal["skip", "blur"] = "skip"
    patch_cutoff: int = 1
    maxpool_kernel_size: int | None = None
    skip_kinds: tuple[str, ...] = ()
    skip_names: tuple[str, ...] = ()
    min_channels: int = 0

    def __post_init__(self) -> None:
        if self.taps is not None:
            object.__setattr__(self, "filter_size", None)
        elif self.filter_size is None:
            raise BlurifyError("a recipe needs a filter: give filter_size (1 to 7) or taps")
        for entry in _ENTRIES:
            value = getattr(self, entry.field)
            if value is not None:
                object.__setattr__(self, entry.field, entry.check(value, f"{entry.field} of a recipe"))

    @property
    def resolved_taps(self) -> tuple[float, ...]:
        """The taps of the filter, normalised to sum 1."""
        return resolve_taps(self.filter_size, self.taps)

    def with_filter(self, filter_size: int | None = None, taps: Sequence[float] | None = None) -> Recipe:
        """The same recipe with another filter; with neither argument, the recipe itself.

        Raises:
            BlurifyError: where both are given, or either is not a filter.
        """
        if filter_size is not None and taps is not None:
            raise BlurifyError("filter_size and taps are two ways to say the same thing: give one of them")
        if taps is not None:
            return dataclasses.replace(self, filter_size=None, taps=tuple(taps))
        if filter_size is not None:
            return dataclasses.replace(self, filter_size=filter_size, taps=None)
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, in the form of the TOML files; `from_dict` reads it back."""
        data: dict[str, Any] = {}
        for entry in _ENTRIES:
            value = getattr(self, entry.field)
            if value is not None:
                table = data.setdefault(entry.table, {}) if entry.table else data
                table[entry.key] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "this recipe", name: str = "custom") -> Recipe:
        """Read the form that the TOML files have. What is not given keeps its default.

        Args:
            data: the top-level keys and the tables `filter`, `conv`, `patches`, `maxpool`, `skip`.
            where: how errors call the source, for example its file.
            name: the recipe's name where the data do not give one.

        Raises:
            BlurifyError: names the unknown key or the bad value, where it is, and the nearest valid one.
        """
        if not isinstance(data, Mapping):
            raise BlurifyError(f"{where} must be a mapping with keys {_or(_SCHEMA)}; got {data!r}")
        fields: dict[str, Any] = {"name": name}
        for key, value in data.items():
            if key not in _SCHEMA:
                raise BlurifyError(f"unknown key {key!r} in {where}: {_nearest(key, _SCHEMA)}")
            entry = _SCHEMA[key]
            if isinstance(entry, _Entry):
                fields[entry.field] = entry.check(value, f"{key!r} in {where}")
                continue
            if not isinstance(value, Mapping):
                raise BlurifyError(f"{key!r} in {where} must be a table, [{key}] with keys {_or(entry)}; got {value!r}")
            for inner, setting in value.items():
                if inner not in entry:
                    raise BlurifyError(f"unknown key {inner!r} in [{key}] of {where}: {_nearest(inner, entry)}")
                fields[entry[inner].field] = entry[inner].check(setting, f"{inner!r} in [{key}] of {where}")
        if "taps" in fields:
            if "filter_size" in fields:
                raise BlurifyError(f"[filter] of {where} has both 'size' and 'taps': give one of them")
            fields["filter_size"] = None
        return cls(**fields)


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe | None = None) -> Recipe:
    """Find and read a recipe.

    Args:
        recipe: None for the default, the name of a shipped recipe ('light', 'published/resnet'), a path that ends in
            '.toml', a mapping in the form of those files, or a Recipe, which is returned as it is.

    Raises:
        BlurifyError: for an unknown name, a file that cannot be read, and all that `Recipe.from_dict` refuses.
    """
    if recipe is None:
        recipe = DEFAULT
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    if isinstance(recipe, Path) or (isinstance(recipe, str) and recipe.endswith(".toml")):
        path = Path(recipe)
        return _parse(_read(path), where=f"recipe file {str(path)!r}", name=path.stem)
    if not isinstance(recipe, str):
        raise BlurifyError(
            "a recipe is a name, a path ending in .toml, a mapping or a blurify.spec.recipes.Recipe; "
            f"got {type(recipe).__name__}"
        )
    names = recipe_names()
    if recipe not in names:
        raise BlurifyError(f"unknown recipe {recipe!r}: {_nearest(recipe, names)}, or a path ending in .toml")
    text = _configs().joinpath(*f"{recipe}.toml".split("/")).read_text(encoding="utf-8")
    return _parse(text, where=f"shipped recipe {recipe!r}", name=recipe)


def recipe_names() -> list[str]:
    """The names of the shipped recipes, the default first, those in folders last."""
    names = list(_toml_names(_configs()))
    return sorted(names, key=lambda name: (name != DEFAULT, "/" in name, name))


# Reading.


def _configs() -> Traversable:
    """The folder of shipped recipes: inside an installed wheel's package, beside the package in a checkout."""
    shipped = resources.files("blurify") / "configs"
    return shipped if shipped.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def _toml_names(folder: Traversable, prefix: str = "") -> Iterable[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _toml_names(item, f"{prefix}{item.name}/")
        elif item.name.endswith(".toml"):
            yield prefix + item.name.removesuffix(".toml")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        stem = str(path).removesuffix(".toml")
        shipped = f"; the recipe that blurify ships is called {stem!r}" if stem in recipe_names() else ""
        raise BlurifyError(f"no recipe file {str(path)!r}{shipped}") from error
    except UnicodeDecodeError as error:
        raise BlurifyError(f"recipe file {str(path)!r} is not UTF-8 text, so it is not TOML") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BlurifyError(f"recipe file {str(path)!r} cannot be read: {reason}") from error


def _parse(text: str, *, where: str, name: str) -> Recipe:
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        raise BlurifyError(f"{where} is not valid TOML: {error}") from error
    return Recipe.from_dict(data, where=where, name=name)


# Checks: each takes a value and how to call it, and returns the value in the form that Recipe holds.

Check: TypeAlias = Callable[[Any, str], Any]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BlurifyError(f"{where} must be a string; got {value!r}")
    return value


def _integer(low: int, high: int | None = None) -> Check:
    allowed = f"an integer from {low} to {high}" if high is not None else f"an integer, {low} or more"

    def check(value: Any, where: str) -> int:
        # bool is an int to Python, never to a reader of the file.
        if isinstance(value, bool) or not isinstance(value, int):
            raise BlurifyError(f"{where} must be {allowed}; got {value!r}")
        if value < low or (high is not None and value > high):
            nearest = low if value < low else high
            raise BlurifyError(f"{where} must be {allowed}; got {value!r} (nearest: {nearest})")
        return value

    return check


def _choice(*allowed: str) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise BlurifyError(f"{where} cannot be {value!r}: {_nearest(value, allowed)}")
        return value

    return check


def _list_of(item: Check, example: str) -> Check:
    def check(value: Any, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise BlurifyError(f"{where} must be a list such as {example}; got {value!r}")
        return tuple(item(entry, f"an entry of {where}") for entry in value)

    return check


def _glob(value: Any, where: str) -> str:
    if not _text(value, where):
        raise BlurifyError(f"{where} is empty and would match nothing; '*' matches every site")
    return str(value)


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST_TAP:
        raise BlurifyError(f"{where} must be a number of ordinary size; got {value!r}")
    return float(value)


def _taps(value: Any, where: str) -> tuple[float, ...]:
    taps: tuple[float, ...] = _list_of(_number, "[1, 2, 1]")(value, where)
    if not taps:
        raise BlurifyError(f"{where} is empty; the identity filter is [1]")
    if len(taps) > MAX_TAPS:
        raise BlurifyError(f"{where} has {len(taps)} taps: give at most {MAX_TAPS}")
    try:
        resolve_taps(None, taps)
    except BlurifyError as error:
        raise BlurifyError(f"{where} must have a positive sum, as a low-pass filter has; got {value!r}") from error
    return taps


@dataclass(frozen=True)
class _Entry:
    """One setting: its table ('' for the top level) and key in a file, its field in Recipe, and its check."""

    table: str
    key: str
    field: str
    check: Check


_ENTRIES = (
    _Entry("", "name", "name", _text),
    _Entry("", "description", "description", _text),
    _Entry("filter", "size", "filter_size", _integer(1, MAX_FILTER_SIZE)),
    _Entry("filter", "taps", "taps", _taps),
    _Entry("filter", "padding", "padding", _choice(*PADDINGS)),
    _Entry("conv", "placement", "conv", _choice(*PLACEMENTS)),
    _Entry("conv", "stem", "stem", _choice(*STEMS)),
    _Entry("patches", "merging", "merging", _choice(*MERGING)),
    _Entry("patches", "cutoff", "patch_cutoff", _integer(1, 64)),
    _Entry("maxpool", "kernel_size", "maxpool_kernel_size", _integer(1)),
    _Entry("skip", "kinds", "skip_kinds", _list_of(_choice(*KINDS), '["conv"]')),
    _Entry("skip", "names", "skip_names", _list_of(_glob, '["layer4.*"]')),
    _Entry("skip", "min_channels", "min_channels", _integer(0)),
)


def _schema() -> dict[str, _Entry | dict[str, _Entry]]:
    schema: dict[str, _Entry | dict[str, _Entry]] = {entry.key: entry for entry in _ENTRIES if not entry.table}
    for table in dict.fromkeys(entry.table for entry in _ENTRIES if entry.table):
        schema[table] = {entry.key: entry for entry in _ENTRIES if entry.table == table}
    return schema


_SCHEMA = _schema()


def _or(words: Iterable[str]) -> str:
    quoted = [repr(word) for word in words]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _nearest(word: Any, known: Iterable[str]) -> str:
    """'did you mean ...?' and all that is known, for the end of an error message."""
    known = list(known)
    close = nearest(str(word).lower(), known, count=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}Use {_or(known)}" if guess else f"use {_or(known)}"
