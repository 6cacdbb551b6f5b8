"""The plan as a file that people edit: for each site, what is done, and below `is`, what the site is.

`blurify inspect MODEL --plan plan.json` writes it, `blurify convert MODEL --plan plan.json` follows it. The edits of
the model (`blurify.spec.edits`) are not in it: they are made again from what it says, so that it can't say any that do
not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from blurify.errors import BlurifyError
from blurify.spec import kinds
from blurify.spec.edits import tuples
from blurify.spec.filters import resolve_taps
from blurify.spec.overrides import Override, facts_of, nearest_site
from blurify.spec.plan import Plan, Site
from blurify.spec.reading import LONGEST, fits
from blurify.spec.recipes import Recipe, filter_table, override_from_dict

FORMAT = 1
WHY = "the plan file"
"""The reason of a site that a plan file leaves alone and its recipe does not."""
_TAG = "plan"
_LONGEST_ERROR = 600  # characters
_HELP = (
    "Edit action (blur | skip), filter (size 1..7 or taps, padding) and placement (after | before, of convolutions); "
    "what is left out is as the recipe says. Below 'is' stands what the site is: nothing there is followed. Then: "
    "blurify convert MODEL --plan FILE -o OUT"
)
_SIDES = {"after-activation": "after", "split": "after", "commuted": "before", "blurred-input": "before"}
_SIDES |= {kinds.AFTER: "after", kinds.BEFORE: "before"}
_KNOWN = ("site", "action", "filter", "placement", "stem", "is")
_FACTS: dict[str, Any] = {
    "kind": str, "kernel_size": tuple[int, ...], "stride": tuple[int, ...], "input_shape": tuple[int, ...],
    "output_shape": tuple[int, ...], "rule": str, "reason": str, "where": str, "extra_macs": int,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One site of a plan file.

    Attributes:
        site: its name.
        action: 'blur' | 'skip'.
        filter: in the form of a recipe's `[filter]` table; None: as the recipe says.
        placement: 'after' the convolution's nonlinearity or 'before' the convolution; '' as the recipe says, or a pool.
        stem: 'split' where the stride is split in two; '' elsewhere.
        facts: what the site is, and what was planned: kind, kernel_size, stride, input_shape, output_shape, rule,
            reason, where, extra_macs.
    """

    site: str
    action: str
    filter: dict[str, Any] | None = None
    placement: str = ""
    stem: str = ""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PlanFile:
    """What a plan file holds.

    Attributes:
        recipe: what the plan was made by; it says what the lines leave out.
        lines: one a site, in running order.
        model: the class of the model.
        input_shapes: what it was traced with.
        macs: of the original.
    """

    recipe: Recipe
    lines: tuple[Line, ...]
    model: str = ""
    input_shapes: tuple[tuple[int, ...], ...] = ()
    macs: int = 0

    @property
    def extra_macs(self) -> int | None:
        """Multiply-adds that the plan adds; None where lines were edited, so that they are not known."""
        return None if self.edited else sum(line.facts.get("extra_macs", 0) for line in self.lines)

    @functools.cached_property
    def edited(self) -> frozenset[str]:
        """The sites whose lines say otherwise than was planned when the file was written."""
        given = [
            (line.site, *(line.facts.get(name, ()) for name in ("kind", "stride", "input_shape")))
            for line in self.lines
        ]
        found = set()
        for line, facts in zip(self.lines, facts_of((n, k or "", s, i) for n, k, s, i in given), strict=True):
            rule, planned = line.facts.get("rule", ""), "blur" if line.facts.get("where") else "skip"
            same = line.action == planned
            if same and line.action == "blur":
                recipe = self.recipe.at(facts).recipe
                same = line.placement in ("", _SIDES.get(rule, "")) and bool(line.stem) == (rule == "split")
                same = same and (line.filter is None or same_filter(line.filter, filter_table(recipe)))
            if not same:
                found.add(line.site)
        return frozenset(found)

    @classmethod
    def of(cls, plan: Plan) -> PlanFile:
        """The file of a plan."""
        lines = []
        for site, facts in zip(plan.sites, plan.facts(), strict=True):
            blurred = site.action == "blur"
            known = {name: getattr(site, name) for name in _FACTS if name != "where"} | {"where": site.placement}
            lines.append(
                Line(
                    site.name, site.action, filter_table(plan.recipe.at(facts).recipe) if blurred else None,
                    side(site) if blurred else "", "split" if site.rule == "split" else "", known,
                )
            )  # fmt: skip
        return cls(plan.recipe, tuple(lines), plan.model, plan.input_shapes, plan.macs)

    def to_text(self) -> str:
        """The file: JSON, each site in two lines, what can be edited and what it is."""
        head = {
            "blurify": _TAG, "format": FORMAT, "help": _HELP, "model": self.model,
            "input_shapes": [list(shape) for shape in self.input_shapes], "macs": self.macs,
            "recipe": self.recipe.to_dict(),
        }  # fmt: skip
        text = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
        sites = []
        for line in self.lines:
            edited: dict[str, Any] = {"site": line.site, "action": line.action}
            edited |= {name: value for name in ("filter", "placement", "stem") if (value := getattr(line, name))}
            sites.append(f'    {json.dumps(edited)[:-1]},\n     "is": {json.dumps(line.facts)}}}')
        return "{\n" + text + '  "sites": [\n' + ",\n".join(sites) + "\n  ]\n}\n"

    @classmethod
    def from_text(cls, text: str, where: str) -> PlanFile:
        """Read what `to_text` wrote and somebody edited.

        Args:
            text: the file.
            where: how errors call it.

        Raises:
            BlurifyError: it is no such file, or something in it can't be; the message says where.
        """
        try:
            data = json.loads(text, object_pairs_hook=_no_twins)
        except (ValueError, RecursionError) as error:
            raise BlurifyError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(data, dict) or data.get("blurify") != _TAG or "sites" not in data:
            raise BlurifyError(f"{where} is no plan file: blurify inspect MODEL --plan FILE writes one")
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"{where} has format {str(data.get('format'))[:40]!r}, this blurify reads {FORMAT}: write it again"
            )
        if not isinstance(data["sites"], list) or len(data["sites"]) > LONGEST:
            raise BlurifyError(f"'sites' in {where} must be a list, one entry a site")
        with _briefly():
            recipe = Recipe.from_dict(data.get("recipe", {}), where=f"the recipe in {where}")
        if any(one.regex for one in recipe.sites):
            raise BlurifyError(f"the recipe in {where} has a regular expression, which no plan holds: use match there")
        with _briefly():
            lines = tuple(_line(one, f"site {number} of {where}") for number, one in enumerate(data["sites"], 1))
        names: set[str] = set()
        for line in lines:
            if line.site in names:
                raise BlurifyError(f"{where} has {line.site!r} twice: keep one of them")
            names.add(line.site)
        shapes = tuples(data.get("input_shapes", []))
        model, macs = data.get("model", ""), data.get("macs", 0)
        if not fits(shapes, tuple[tuple[int, ...], ...]) or not fits(model, str) or not fits(macs, int):
            raise BlurifyError(f"model, macs or input_shapes in {where} are not what blurify writes: write it again")
        return cls(recipe, lines, model, shapes, macs)


def side(site: Site) -> str:
    """On which side of its convolution a site is blurred: 'after' | 'before'; '' for others and skipped sites."""
    return _SIDES.get(site.rule, "") if site.action == "blur" else ""


def same_filter(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two tables say the same filter and padding: 3 and [1, 2, 1] are the same; what is left out is unknown."""
    padding = {table["padding"] for table in (one, other) if "padding" in table}
    return len(padding) < 2 and as_taps(one) == as_taps(other)


def as_taps(table: Mapping[str, Any]) -> dict[str, Any]:
    """A filter's table with its taps, without its padding."""
    if table.get("kind", "taps") not in ("taps", "binomial"):  # whose size is another thing
        return {key: value for key, value in table.items() if key != "padding"}
    rest = {key: value for key, value in table.items() if key not in ("kind", "size", "taps", "padding")}
    if "size" not in table and "taps" not in table:
        return rest
    return {"taps": [round(tap, 12) for tap in resolve_taps(table.get("size"), table.get("taps"))]} | rest


def followed(file: PlanFile, base: Plan, where: str) -> Recipe:
    """The recipe by which a model's plan becomes what a plan file says.

    Args:
        file: the file.
        base: the model's plan by the file's recipe.
        where: how errors call the file.

    Returns:
        the file's recipe, with a `[[site]]` table for each site that was edited: none, none.

    Raises:
        BlurifyError: the file is of another model, or wants what no site has.
    """
    sites = {site.name: site for site in base.sites}
    said = {line.site for line in file.lines}
    for line in file.lines:
        if line.site not in sites:
            raise BlurifyError(f"{where} has a site {line.site[:200]!r}, which the model does not have: "
                               f"{nearest_site(line.site, list(sites))}")  # fmt: skip
    for name in sites:
        if name not in said:
            raise BlurifyError(f"{where} says nothing of the site {name!r}: add {{\"site\": {json.dumps(name)}, "
                               '"action": "skip"}, or write the file again')  # fmt: skip
    facts = {one.name: one for one in base.facts()}
    more = []
    for line in file.lines:
        site = sites[line.site]
        for name in ("kind", "stride"):
            if name in line.facts and line.facts[name] != getattr(site, name):
                raise BlurifyError(
                    f"{where} is of another model: {site.name!r} is a {site.kind} of stride {list(site.stride)} here"
                )
        if line.placement and site.kind != "conv":
            raise BlurifyError(
                f"{where}: placement is for convolutions, and {site.name!r} is a {site.kind}: leave it out"
            )
        override = _override(line, site, base.recipe.at(facts[site.name]).recipe, where)
        if override is not None:
            more.append(override)
    if not more:
        return file.recipe
    return dataclasses.replace(file.recipe.with_sites(more), name=_edited(file.recipe.name))


def check_followed(file: PlanFile, plan: Plan, where: str) -> None:
    """Refuse a plan that does not do what the file wants: not every form can be had at every site.

    Raises:
        BlurifyError: names the site, and what can be had there.
    """
    sites = {site.name: site for site in plan.sites}
    for line in file.lines:
        site = sites[line.site]
        if line.action != site.action:
            raise BlurifyError(f"{where}: {site.name!r} can't be blurred, {site.reason}: leave its action at 'skip'")
        if line.action == "blur" and line.placement and line.placement != side(site):
            raise BlurifyError(
                f"{where}: the blur of {site.name!r} can't go {line.placement} it ({site.reason}): "
                f"write placement {side(site)!r} there"
            )


def _override(line: Line, site: Site, now: Recipe, where: str) -> Override | None:
    """The table that makes of a site what a line says; None where it is so already."""
    if line.action == "skip":
        return Override.exactly(site.name, skip=True, because=WHY) if site.action == "blur" else None
    wanted: dict[str, Any] = {"skip": False}
    if line.filter is not None:
        wanted["filter"] = line.filter
    if line.placement and (site.action == "skip" or line.placement != side(site)):
        wanted["placement"] = line.placement
    if line.stem and site.rule != "split":
        wanted["stem"] = line.stem
    read = override_from_dict(wanted, f"{site.name!r} in {where}")
    settings = dict(read.settings)
    then = dataclasses.replace(now, sites=(), **settings)
    if filter_table(then) == filter_table(now):
        settings = {name: value for name, value in settings.items() if name in ("conv", "stem")}
    if site.action == "blur" and not settings:
        return None
    skip = False if site.action == "skip" else None
    return Override.exactly(site.name, skip=skip, settings=tuple(sorted(settings.items())))


@contextmanager
def _briefly() -> Iterator[None]:
    """Cut errors that show what stands in the file: it may be long."""
    try:
        yield
    except BlurifyError as error:
        if len(str(error)) <= _LONGEST_ERROR:
            raise
        raise BlurifyError(f"{str(error)[:_LONGEST_ERROR]}...") from error


def _edited(name: str) -> str:
    return name if name.endswith(", edited") else f"{name}, edited"


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys stand once: of two, an editor can't see which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twin = next(key for number, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:number]))
        raise ValueError(f"the key {twin[:80]!r} stands there twice")
    return found


def _line(data: Any, where: str) -> Line:
    if not isinstance(data, Mapping) or not fits(data.get("site"), str):
        raise BlurifyError(f'{where} must be a table with the name of its site: {{"site": "layer2.0.conv1", ...}}')
    where = f"{data['site'][:200]!r}, {where}"
    for key in data:
        if key not in _KNOWN:
            raise BlurifyError(f"unknown key {key[:80]!r} in {where}: use {', '.join(_KNOWN)}")
    action, placement, stem = data.get("action"), data.get("placement"), data.get("stem")
    if action not in ("blur", "skip"):
        raise BlurifyError(f"the action of {where} can't be {str(action)[:80]!r}: give 'blur' or 'skip'")
    if placement not in ("", None, "after", "before"):
        raise BlurifyError(f"the placement of {where} can't be {str(placement)[:80]!r}: give 'after' or 'before'")
    if stem not in ("", None, "split"):
        raise BlurifyError(f"the stem of {where} can't be {str(stem)[:80]!r}: give 'split', or leave it out")
    chosen = data.get("filter")
    if chosen is not None:
        if not isinstance(chosen, Mapping) or not chosen:
            raise BlurifyError(f'the filter of {where} must be a table such as {{"size": 4}}; got {str(chosen)[:80]!r}')
        override_from_dict({"filter": chosen}, where)  # refuses what is no filter
    known = data.get("is", {})
    if not isinstance(known, Mapping):
        raise BlurifyError(f"'is' of {where} must be a table, as blurify writes it")
    facts = {name: tuples(known[name]) for name in _FACTS if name in known}
    for name, value in facts.items():
        if not fits(value, _FACTS[name]):
            raise BlurifyError(f"{name} of {where} can't be {str(value)[:80]!r}")
    return Line(data["site"], action, dict(chosen) if chosen is not None else None, placement or "", stem or "", facts)
