"""Recipes: what the user wants done to a model. Immutable data, read from a TOML file, a mapping or a shipped name.

A recipe knows nothing of any model. Planning turns a recipe and the sites of one model into a plan. The same nested
form (tables `filter`, `sampling`, `conv`, `patches`, `maxpool`, `resampling`, `skip`, and any number of `[[site]]`) is
used by the files in `configs/`, by mappings and inside plans.
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
from blurify.spec import overrides
from blurify.spec.filters import MAX_FILTER_SIZE, MAX_TAPS, PADDINGS, resolve_taps
from blurify.spec.kinds import KINDS
from blurify.spec.methods import DESIGNED, Fourier, Method, Taps, check_goes_with, method_of_settings, method_to_dict
from blurify.spec.overrides import Facts, Override
from blurify.spec.words import nearest

DEFAULT = "zhang2019"
PLACEMENTS = ("after-activation", "cheap")
STEMS = ("skip", "convert", "split")
MERGING = ("skip", "blur")
RESAMPLINGS = ("skip", "blur")
SAMPLINGS = ("grid", "aps")
_LARGEST_TAP = 1e6  # also keeps nan, inf and integers beyond float out


@dataclass(frozen=True)
class Recipe:
    """What the user wants: the filter, where it goes, and what to leave alone.

    Attributes:
        name: what to call it in reports; a shipped recipe's own name, a file's stem, or 'custom'.
        description: one line for people.
        filter_size: number of binomial taps, 1 to 7; None where `taps` are given. 1 is the identity filter.
        taps: the user's own filter, of any positive sum (they are normalised). They win over `filter_size`.
        padding: 'reflect' | 'replicate' | 'zeros' | 'circular' | 'causal' (see `filters.PADDINGS`).
        aligned: every filter looks where the op looked whose place it takes, so that no feature map is moved; a filter
            that would look between (an even one, at a convolution) gets a tap more for that.
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
        upsampling: 'blur' filters what transposed convolutions, nearest upsampling and pixel shuffles make; 'skip'
            leaves them alone.
        resampling: 'blur' filters what is read by whatever subsamples without being a convolution, pool or slice with
            a stride (shrinking interpolation, adaptive average pools, pixel unshuffles ...); 'skip' leaves it alone.
        skip_kinds: kinds of site to leave alone: 'conv', 'maxpool', 'avgpool', 'slice' ... (`spec.kinds`).
        skip_names: globs on the site's name, such as 'layer4.*', to leave alone.
        min_channels: sites with fewer channels are left alone; 0 takes all.
        sampling: 'aps' subsamples at the phase with the largest norm (`spec.phases`); None (in files 'grid') at the
            first sample, as strided ops do.
        norm: by which norm 'aps' chooses, 1 or 2; None is 2.
        filter: a filter of another kind (`methods.Flat`, `Sinc`, `Wavelet`, `Area`, `Fourier`); it wins over `taps` and
            `filter_size`, which are then None.
        sites: what is wanted at some sites only, in order: later ones win (`[[site]]` tables; mappings are read).

    Raises:
        BlurifyError: for a value that is not among these; the message names it.
    """

    name: str = DEFAULT
    description: str = ""
    filter_size: int | None = 4
    taps: tuple[float, ...] | None = None
    padding: str = "reflect"
    aligned: bool = False
    conv: Literal["after-activation", "cheap"] = "after-activation"
    stem: Literal["skip", "convert", "split"] = "skip"
    merging: Literal["skip", "blur"] = "skip"
    patch_cutoff: int = 1
    maxpool_kernel_size: int | None = None
    upsampling: Literal["skip", "blur"] = "skip"
    resampling: Literal["skip", "blur"] = "skip"
    skip_kinds: tuple[str, ...] = ()
    skip_names: tuple[str, ...] = ()
    min_channels: int = 0
    sampling: Literal["aps"] | None = None
    norm: int | None = None
    filter: Method | None = None
    sites: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.filter, Taps):
            object.__setattr__(self, "taps", self.filter.taps)
            object.__setattr__(self, "filter", None)
        if self.filter is not None:
            if not isinstance(self.filter, Method):
                raise BlurifyError(f"filter {self.filter!r} is no filter of blurify.spec.methods, such as Flat(7)")
            object.__setattr__(self, "filter_size", None)
            object.__setattr__(self, "taps", None)
        elif self.taps is not None:
            object.__setattr__(self, "filter_size", None)
        elif self.filter_size is None:
            raise BlurifyError("a recipe needs a filter: give filter_size (1 to 7) or taps")
        for entry in _ENTRIES:
            value = getattr(self, entry.field)
            if value is not None:
                object.__setattr__(self, entry.field, entry.check(value, f"{entry.field} of a recipe"))
        if self.filter is not None:
            check_goes_with(self.filter, self.padding)
        if self.aligned and (self.padding == "causal" or isinstance(self.filter, Fourier)):
            what = "with causal padding looks back" if self.padding == "causal" else "of kind 'fourier' moves no map"
            raise BlurifyError(f"a filter {what}, so it can't be aligned: leave out 'aligned', or use another filter")
        object.__setattr__(self, "sites", _site_tables(self.sites, "a recipe"))

    @property
    def method(self) -> Method:
        """The filter, of whatever kind."""
        return self.filter if self.filter is not None else Taps(self.resolved_taps)

    @property
    def resolved_taps(self) -> tuple[float, ...]:
        """The taps of a binomial filter or of one's own, normalised to sum 1; other kinds are in `method`.

        Raises:
            BlurifyError: the filter is of another kind.
        """
        return resolve_taps(self.filter_size, self.taps)

    def with_filter(
        self, filter_size: int | None = None, taps: Sequence[float] | None = None, padding: str | None = None
    ) -> Recipe:
        """The same recipe with another filter or padding, at every site; with no argument, the recipe itself.

        Raises:
            BlurifyError: where two filters are given, or one is not a filter, or the padding does not exist.
        """
        if filter_size is not None and taps is not None:
            raise BlurifyError("filter_size and taps are two ways to say the same thing: give one of them")
        if padding is not None:
            other = (
                dataclasses.replace(one, settings=tuple(pair for pair in one.settings if pair[0] != "padding"))
                for one in self.sites
            )
            kept = tuple(one for one in other if one.settings or one.skip is not None)
            return dataclasses.replace(self.with_filter(filter_size, taps), padding=padding, sites=kept)
        if taps is None and filter_size is None:
            return self
        filters = {"filter", *(entry.field for entry in _FILTER)}
        sites = tuple(
            dataclasses.replace(one, settings=tuple(pair for pair in one.settings if pair[0] not in filters))
            for one in self.sites
        )
        sites = tuple(one for one in sites if one.settings or one.skip is not None)
        if taps is not None:
            return dataclasses.replace(self, filter_size=None, taps=tuple(taps), filter=None, sites=sites)
        return dataclasses.replace(self, filter_size=filter_size, taps=None, filter=None, sites=sites)

    def with_sites(self, more: Iterable[Override]) -> Recipe:
        """The same recipe with more `[[site]]` tables behind its own."""
        return dataclasses.replace(self, sites=(*self.sites, *more))

    def pinned(self, names: Sequence[str]) -> Recipe:
        """The same for a model with sites of these names, without regular expressions."""
        return dataclasses.replace(self, sites=tuple(one.pinned(names) for one in self.sites)) if self.sites else self

    def at(self, site: Facts) -> AtSite:
        """What the recipe wants at one site: its `[[site]]` tables applied, in order."""
        fields: dict[str, Any] = {}
        left: str | None = None
        for number, one in enumerate(self.sites, 1):
            if not one.fits(site):
                continue
            fields.update(one.settings)
            if one.skip:
                left = one.because or f"[[site]] table {number}, {one.words()}"
            elif one.skip is not None:
                left = None
                fields.update(skip_kinds=(), skip_names=(), min_channels=0)
                if fields.get("stem", self.stem) == "skip":
                    fields["stem"] = "convert"
        return AtSite(dataclasses.replace(self, sites=(), **fields) if self.sites else self, left)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data, in the form of the TOML files; `from_dict` reads it back."""
        data: dict[str, Any] = {}
        for entry in _ENTRIES:
            value = getattr(self, entry.field)
            if value is not None and value is not False:  # a switch that is off is left out, as older files have it
                table = data.setdefault(entry.table, {}) if entry.table else data
                table[entry.key] = list(value) if isinstance(value, tuple) else value
        if self.filter is not None:
            data["filter"] = {**method_to_dict(self.filter), **data["filter"]}
        if self.sites:
            data["site"] = [override_to_dict(one) for one in self.sites]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "this recipe", name: str = "custom") -> Recipe:
        """Read the form that the TOML files have. What is not given keeps its default.

        Args:
            data: the top-level keys and the tables, as the files in `configs/` have them.
            where: how errors call the source, for example its file.
            name: the recipe's name where the data do not give one.

        Raises:
            BlurifyError: names the unknown key or the bad value, where it is, and the nearest valid one.
        """
        if not isinstance(data, Mapping):
            raise BlurifyError(f"{where} must be a mapping with keys {_or(_SCHEMA)}; got {data!r}")
        fields: dict[str, Any] = {"name": name}
        for key, value in data.items():
            if key == "site":
                fields["sites"] = _site_tables(value, where)
                continue
            if key not in _SCHEMA:
                raise BlurifyError(f"unknown key {key!r} in {where}: {_nearest(key, [*_SCHEMA, 'site'])}")
            entry = _SCHEMA[key]
            if isinstance(entry, _Entry):
                fields[entry.field] = entry.check(value, f"{key!r} in {where}")
                continue
            if not isinstance(value, Mapping):
                raise BlurifyError(f"{key!r} in {where} must be a table, [{key}] with keys {_or(entry)}; got {value!r}")
            if key == "filter" and "kind" in value:
                fields["filter"], value = _of_kind(value, f"[filter] of {where}")
            for inner, setting in value.items():
                if inner not in entry:
                    raise BlurifyError(f"unknown key {inner!r} in [{key}] of {where}: {_nearest(inner, entry)}")
                fields[entry[inner].field] = entry[inner].check(setting, f"{inner!r} in [{key}] of {where}")
        if "taps" in fields:
            if "filter_size" in fields:
                raise BlurifyError(f"[filter] of {where} has both 'size' and 'taps': give one of them")
            fields["filter_size"] = None
        return cls(**fields)


@dataclass(frozen=True)
class AtSite:
    """What a recipe wants at one site.

    Attributes:
        recipe: the recipe there, without `[[site]]` tables.
        left: why such a table leaves the site alone; None where none does.
    """

    recipe: Recipe
    left: str | None = None


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
    return _parse(recipe_text(recipe), where=f"shipped recipe {recipe!r}", name=recipe)


def recipe_text(name: str) -> str:
    """The file of a shipped recipe, with its comments.

    Raises:
        BlurifyError: there is none of that name.
    """
    names = recipe_names()
    if name not in names:
        raise BlurifyError(f"unknown recipe {name!r}: {_nearest(name, names)}, or a path ending in .toml")
    return _configs().joinpath(*f"{name}.toml".split("/")).read_text(encoding="utf-8")


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


_SIMPLE_KINDS = {"binomial": "size", "taps": "taps"}
"""Kinds that are said by a key alone; to name them as well does no harm."""


def _of_kind(table: Mapping[str, Any], where: str) -> tuple[Method | None, Mapping[str, Any]]:
    """The filter that a table with a 'kind' says, and what of the table is left to be read."""
    kind = _choice(*_SIMPLE_KINDS, *DESIGNED)(table["kind"], f"'kind' in {where}")
    rest = {key: value for key, value in table.items() if key != "kind"}
    if kind in _SIMPLE_KINDS:
        other = {"size", "taps"} - {_SIMPLE_KINDS[kind]}
        if other & set(rest) or (kind == "taps" and "taps" not in rest):
            raise BlurifyError(f"{where} has kind {kind!r}: give {_SIMPLE_KINDS[kind]!r}, and nothing else of a filter")
        return None, rest
    own = {key: value for key, value in rest.items() if key != "padding"}
    return method_of_settings(kind, own, where), {key: value for key, value in rest.items() if key == "padding"}


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


def _switch(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise BlurifyError(f"{where} must be true or false; got {value!r}")
    return value


def _choice(*allowed: str) -> Check:
    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise BlurifyError(f"{where} cannot be {value!r}: {_nearest(value, allowed)}")
        return value

    return check


def _sampling(value: Any, where: str) -> str | None:
    # The default is not said in plans, so that those of other recipes stay as they were.
    chosen: str = _choice(*SAMPLINGS)(value, where)
    return None if chosen == "grid" else chosen


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
    _Entry("sampling", "method", "sampling", _sampling),
    _Entry("sampling", "norm", "norm", _integer(1, 2)),
    _Entry("filter", "aligned", "aligned", _switch),
    _Entry("conv", "placement", "conv", _choice(*PLACEMENTS)),
    _Entry("conv", "stem", "stem", _choice(*STEMS)),
    _Entry("patches", "merging", "merging", _choice(*MERGING)),
    _Entry("patches", "cutoff", "patch_cutoff", _integer(1, 64)),
    _Entry("maxpool", "kernel_size", "maxpool_kernel_size", _integer(1)),
    _Entry("resampling", "up", "upsampling", _choice(*RESAMPLINGS)),
    _Entry("resampling", "down", "resampling", _choice(*RESAMPLINGS)),
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


# What a [[site]] table may say: matchers, and the settings of the tables above but `skip`, by their keys.

_MATCHERS: dict[str, Check] = {
    "match": overrides.patterns,
    "regex": overrides.regular_expression,
    "kind": lambda value, where: _list_of(_choice(*KINDS), '["conv"]')(
        value if isinstance(value, list | tuple) else [value], where
    ),
    "stride": overrides.strides,
    "depth": overrides.span,
    "channels": overrides.span,
}
_SETTINGS = {entry.key: entry for entry in _ENTRIES if entry.table not in ("", "skip") and entry.key not in _MATCHERS}
_FILTER = [entry for entry in _ENTRIES if entry.table == "filter" and entry.key not in ("padding", "aligned")]
_SITE_KEYS = (*_MATCHERS, "skip", "because", "filter", *_SETTINGS)
_SIDES = {"after": "after-activation", "before": "cheap"}


def _site_tables(value: Any, where: str) -> tuple[Override, ...]:
    if not isinstance(value, list | tuple):
        raise BlurifyError(f"'site' in {where} must be a list of tables, each [[site]]; got {str(value)[:80]!r}")
    if len(value) > overrides.MOST:
        raise BlurifyError(f"{where} has {len(value)} [[site]] tables: give at most {overrides.MOST}")
    return tuple(
        one if isinstance(one, Override) else override_from_dict(one, f"[[site]] table {number} of {where}")
        for number, one in enumerate(value, 1)
    )


def override_from_dict(data: Any, where: str) -> Override:
    """Read a `[[site]]` table.

    Args:
        data: matchers (`match`, `regex`, `kind`, `stride`, `depth`, `channels`), `skip`, `because`, and settings: those
            of the tables `conv` and `maxpool`, `filter` (a table) or its keys; `taps` may be a number of taps,
            `placement` 'after' or 'before'.
        where: how errors call the table.

    Raises:
        BlurifyError: names the unknown key or the bad value.
    """
    if not isinstance(data, Mapping):
        raise BlurifyError(f"{where} must be a table with keys {_or(_SITE_KEYS)}; got {str(data)[:80]!r}")
    fields: dict[str, Any] = {}
    filtering: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in data.items():
        named = f"{key!r} in {where}"
        if key in _MATCHERS:
            fields[key] = _MATCHERS[key](value, named)
        elif key == "skip":
            if not isinstance(value, bool):
                raise BlurifyError(f"{named} must be true or false; got {str(value)[:80]!r}")
            fields[key] = value
        elif key == "because":
            fields[key] = " ".join(_text(value, named).split())[: overrides.LONGEST]
        elif key == "filter":
            if not isinstance(value, Mapping):
                raise BlurifyError(f"{named} must be a table such as {{ size = 3 }}; got {str(value)[:80]!r}")
            filtering.update(value)
        elif key not in _SETTINGS:
            raise BlurifyError(f"unknown key {key!r} in {where}: {_nearest(key, _SITE_KEYS)}")
        elif _SETTINGS[key].table == "filter":
            a_number = key == "taps" and not isinstance(value, list | tuple)
            if a_number and "size" in data:
                raise BlurifyError(f"{where} has both 'size' and 'taps': give one of them")
            filtering["size" if a_number else key] = value
        else:
            side = _SIDES.get(value, value) if key == "placement" and isinstance(value, str) else value
            if key == "placement" and side not in PLACEMENTS:
                raise BlurifyError(f"{named} cannot be {str(value)[:80]!r}: {_nearest(value, _SIDES)}")
            settings[_SETTINGS[key].field] = _SETTINGS[key].check(side, named)
    if filtering:
        read = Recipe.from_dict({"filter": filtering}, where=where)
        if set(filtering) - {"padding", "aligned"}:  # another filter takes nothing over from the recipe's
            settings.update({entry.field: getattr(read, entry.field) for entry in _FILTER}, filter=read.filter)
        settings.update({key: getattr(read, key) for key in ("padding", "aligned") if key in filtering})
    if not settings and "skip" not in fields:
        raise BlurifyError(f"{where} changes nothing: give skip, taps, padding or placement")
    return Override(**fields, settings=tuple(sorted(settings.items())))


def override_to_dict(one: Override) -> dict[str, Any]:
    """A `[[site]]` table as plain data; `override_from_dict` reads it back."""
    data: dict[str, Any] = {}
    for key in ("match", "kind", "stride"):
        value = getattr(one, key)
        if value:
            data[key] = value[0] if len(value) == 1 else list(value)
    if one.regex:
        data["regex"] = one.regex
    data |= {key: overrides.range_to_plain(v) for key in ("depth", "channels") if (v := getattr(one, key)) is not None}
    data |= {key: getattr(one, key) for key in ("skip", "because") if getattr(one, key) not in (None, "")}
    for field, value in one.settings:
        if field == "filter":  # of another kind than taps
            data.setdefault("filter", {}).update({} if value is None else method_to_dict(value))
            continue
        entry = next(entry for entry in _ENTRIES if entry.field == field)
        table = data.setdefault("filter", {}) if entry.table == "filter" else data
        if value is not None:
            side = next((side for side, word in _SIDES.items() if word == value), value)
            table[entry.key] = list(value) if isinstance(value, tuple) else side if field == "conv" else value
    return data


def filter_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe's filter, padding included, as plain data in the form of the `[filter]` table."""
    table: dict[str, Any] = recipe.to_dict()["filter"]
    return table


def _or(words: Iterable[str]) -> str:
    quoted = [repr(word) for word in words]
    return " or ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))


def _nearest(word: Any, known: Iterable[str]) -> str:
    """'did you mean ...?' and all that is known, for the end of an error message."""
    known = list(known)
    close = nearest(str(word).lower(), known, count=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}Use {_or(known)}" if guess else f"use {_or(known)}"
