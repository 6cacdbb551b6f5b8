"""The plan: what happens to one given model, site by site. Immutable data that reads and writes as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from blurify.errors import BlurifyError
from blurify.spec import notebook
from blurify.spec.alignment import Alignment, Drift, drift_from
from blurify.spec.edits import Edit, SetStride, edit_from_dict, edit_to_dict, tuples
from blurify.spec.methods import Method
from blurify.spec.overrides import Facts, facts_of
from blurify.spec.reading import LONGEST, read_fields, require
from blurify.spec.recipes import Recipe

FORMAT = 2
READABLE = (1, FORMAT)
_LARGEST_INPUT = 2**28  # elements


@dataclass(frozen=True)
class Site:
    """One place where the network subsamples, and what is done there.

    Attributes:
        name: the module's path; a call inside a forward adds ':function' (and '#2' for the second such call).
        kind: 'conv' | 'maxpool' | 'avgpool' | 'slice' | other kinds that are only listed.
        kernel_size, stride: one entry a spatial dimension.
        input_shape, output_shape: as traced, batch first.
        action: 'blur' | 'skip'.
        rule: short code of the rule that decided, e.g. 'after-activation', 'stem', 'already-filtered'.
        reason: the same in words that a user can act on.
        placement: where the blur goes, in words; '' for a skipped site.
        extra_macs: multiply-adds that the conversion adds here, for the traced shapes.
        extra_written, extra_kept: bytes by which it changes `Plan.written` and `Plan.kept`; None where not asked for.
        edits: what the surgery does to the model for this site.
        drift: where the features that it hands on lie beside the original's, in input pixels (see `Drift`).
    """

    name: str
    kind: str
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    action: Literal["blur", "skip"]
    rule: str
    reason: str
    placement: str = ""
    extra_macs: int = 0
    edits: tuple[Edit, ...] = ()
    drift: Drift = ()
    extra_written: int | None = field(default=None, compare=False)
    extra_kept: int | None = field(default=None, compare=False)

    @property
    def blur_paths(self) -> frozenset[str]:
        """The paths of the BlurPools that its edits bring."""
        return frozenset(path for edit in self.edits if (path := edit.blur_path) is not None)


@dataclass(frozen=True)
class Plan:
    """What will happen (or has happened) to one model; also the report of `blurify.inspect`.

    Attributes:
        recipe: what the user wanted.
        sites: every site found, in the order in which the model runs them.
        macs: multiply-adds of one forward of the original, convolutions and matrix products counted.
        model: the class of the model.
        input_shapes: the shapes of the tensors that it was traced with.
        alignment: where features end up beside the original's; None where the graph could not be followed, and in
            older plans.
        written: bytes that one forward of the original allocates for what its calls return, in eval mode and without
            gradients: each when it is allocated, whether or not others are still in use. None where not asked for.
        kept: bytes that a training step of it keeps for the backward: each storage once, parameters and buffers left
            out; in eval mode where it does not run in train mode on these inputs. None where not asked for.
    """

    recipe: Recipe
    sites: tuple[Site, ...]
    macs: int = 0
    model: str = ""
    input_shapes: tuple[tuple[int, ...], ...] = ()
    alignment: Alignment | None = None
    written: int | None = field(default=None, compare=False)
    kept: int | None = field(default=None, compare=False)

    @property
    def converted(self) -> tuple[Site, ...]:
        """The sites that get a blur."""
        return tuple(site for site in self.sites if site.action == "blur")

    @property
    def skipped(self) -> tuple[Site, ...]:
        """The sites that stay as they are, each with its reason."""
        return tuple(site for site in self.sites if site.action == "skip")

    @property
    def filters(self) -> bool:
        """Whether any site is filtered: not so where nothing is converted, or with one tap everywhere."""
        return any(
            edit.blur is not None and not edit.blur.method.is_identity for site in self.converted for edit in site.edits
        )

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, each once (sites that share an activation share its blur)."""
        return tuple(dict.fromkeys(edit for site in self.sites for edit in site.edits))

    @property
    def idle_blurs(self) -> frozenset[str]:
        """The paths of blurs that never run: a one-tap filter leaves an average pool or a slice as it was."""
        return frozenset(
            path
            for site in self.sites
            for edit in site.edits
            if site.kind in ("avgpool", "slice")
            and edit.blur is not None
            and edit.blur.method.is_identity
            and edit.blur.phase is None
            if (path := edit.blur_path) is not None
        )

    def facts(self) -> tuple[Facts, ...]:
        """What the matchers of a recipe ask of each site."""
        return facts_of((site.name, site.kind, site.stride, site.input_shape) for site in self.sites)

    @property
    def extra_macs(self) -> int:
        """Multiply-adds that the whole conversion adds to one forward."""
        return sum(site.extra_macs for site in self.sites)

    @property
    def extra_written(self) -> int | None:
        """By how many bytes the whole conversion changes `written`; None where not asked for."""
        return None if self.written is None else sum(site.extra_written or 0 for site in self.sites)

    @property
    def extra_kept(self) -> int | None:
        """By how many bytes the whole conversion changes `kept`; None where not asked for."""
        return None if self.kept is None else sum(site.extra_kept or 0 for site in self.sites)

    @property
    def total_stride(self) -> tuple[int, int]:
        """(y, x): pixels of the picture for one step on the coarsest map that a two-dimensional site gives.

        (1, 1) where the model was not traced on pictures, or has no such site.
        """
        shape = next((shape for shape in self.input_shapes if len(shape) >= 4), None)
        found = (1, 1)
        for site in self.sites if shape is not None else ():
            if len(site.stride) != 2 or len(site.output_shape) != 4 or site.rule == "global-pool":
                continue
            first = 1 if _channels_last(site) else 2
            sizes = site.output_shape[first : first + 2]
            if min(sizes) > 0:
                ratios = (round(n / size) for n, size in zip(shape[-2:], sizes, strict=True))  # type: ignore[index]
                found = tuple(map(max, zip(found, ratios, strict=True)))  # type: ignore[assignment]
        return found

    def count(self, field: str = "kind") -> dict[str, int]:
        """How many sites have each value of a field ('kind', 'action', 'rule')."""
        return dict(Counter(getattr(site, field) for site in self.sites))

    def _repr_html_(self) -> str:
        """The plan as a notebook shows it: what becomes of each site."""
        rows = [
            (
                site.name,
                site.action,
                f"{site.kind} {notebook.times(site.kernel_size)} / {notebook.times(site.stride)}",
                f"{notebook.times(site.input_shape[1:])} → {notebook.times(site.output_shape[1:])}",
                site.placement if site.action == "blur" and site.placement else site.reason,
            )
            for site in self.sites
        ]  # fmt: skip
        counted = f"{len(self.sites)} site{'s' * (len(self.sites) != 1)}"
        says = f"{counted}: {len(self.converted)} blurred, {len(self.skipped)} skipped"
        if self.macs:
            total = self.macs + self.extra_macs
            says += (
                f"; multiply-adds {notebook.amount(self.macs)} → {notebook.amount(total)} "
                f"({self.extra_macs / self.macs:+.0%})"
            )
        name = f"{self.model or 'model'}, recipe {self.recipe.name}, filter {self.recipe.method.words()}"
        headings = ("site", "action", "what", "sizes", "where the blur goes, or why not")
        return notebook.table(name, headings, rows, says=says)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON; `from_dict` reads it back."""
        data = dataclasses.asdict(dataclasses.replace(self, sites=()))
        data["recipe"] = self.recipe.to_dict()
        data["sites"] = [_site_to_dict(site) for site in self.sites]
        return {"format": FORMAT, **data}

    def with_method(self, method: Callable[[Method], Method]) -> Plan:
        """The same plan with other filters (a function of each edit's own), first phases and unchanged kernels."""

        def changed(edit: Any) -> Any:
            changes: dict[str, Any] = {}
            if edit.blur is not None:
                changes["blur"] = dataclasses.replace(edit.blur, method=method(edit.blur.method), phase=None)
                if getattr(edit, "kernel_size", None) is not None:
                    changes["kernel_size"] = None
            return dataclasses.replace(edit, **changes)

        sites = tuple(dataclasses.replace(site, edits=tuple(map(changed, site.edits))) for site in self.sites)
        return dataclasses.replace(self, sites=sites)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a versioned dict: classes may change, files stay."""
        return read_plan, (self.to_dict(),)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan that `to_dict` wrote. Raises BlurifyError where the data is not such a plan."""
        if data.get("format") not in READABLE:
            raise BlurifyError(
                f"this plan has format {data.get('format')!r}, this blurify reads format {FORMAT}: "
                "convert the original model again with the blurify that is installed"
            )
        try:
            require(len(data["sites"]) <= LONGEST, "more sites than a model has")
            plan = read_fields(
                cls,
                {
                    "recipe": Recipe.from_dict(data["recipe"]),
                    "sites": tuple(_site_from_dict(site) for site in data["sites"]),
                    "macs": data["macs"],
                    "model": data["model"],
                    "input_shapes": tuples(data["input_shapes"]),
                    "alignment": Alignment.from_dict(data["alignment"]) if data.get("alignment") else None,
                    "written": data.get("written"),
                    "kept": data.get("kept"),
                },
            )
            require(not any(one.regex for one in plan.recipe.sites), "a regular expression, which no plan holds")
            for shape in plan.input_shapes:
                require(all(size >= 0 for size in shape) and math.prod(shape) <= _LARGEST_INPUT, "inputs that can't be")
            return plan
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BlurifyError(f"this is not a plan that blurify wrote ({error}): convert the model again") from error


def _channels_last(site: Site) -> bool:
    """Whether a site of patches cuts (N, H, W, C): then it is the last dimension that grows."""
    if site.kind != "patches" or len(site.input_shape) != 4:
        return False
    return site.output_shape[3] == site.input_shape[3] * math.prod(site.kernel_size)


def read_plan(data: Mapping[str, Any]) -> Plan:
    """`Plan.from_dict`, by a name that pickles can hold."""
    return Plan.from_dict(data)


def _site_to_dict(site: Site) -> dict[str, Any]:
    data = dataclasses.asdict(dataclasses.replace(site, edits=()))
    data["edits"] = [edit_to_dict(edit) for edit in site.edits]
    return data


def _site_from_dict(data: Mapping[str, Any]) -> Site:
    fields = {key: tuples(value) for key, value in data.items() if key != "edits"}
    edits = [edit_from_dict(edit) for edit in data["edits"]]
    # Format 1 did not say what a stride was before: the site's own.
    before = fields["stride"]
    edits = [dataclasses.replace(e, before=before) if isinstance(e, SetStride) and not e.before else e for e in edits]
    return read_fields(Site, {**fields, "edits": tuple(edits), "drift": drift_from(data.get("drift", ()))})
