"""The plan: what happens to one given model, site by site. Immutable data that reads and writes as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from blurify.errors import BlurifyError
from blurify.spec.recipes import Recipe

FORMAT = 1


@dataclass(frozen=True)
class Blur:
    """How one BlurPool is built; one entry a spatial dimension.

    Attributes:
        stride: by how much the blur itself subsamples (1: only filter).
        factor: the subsampling that the filter guards against; equal to `stride` except where a strided op follows.
        taps: the filter designed for factor 2 (section 3 of the design composes it for larger factors).
        padding: 'reflect' | 'replicate' | 'zeros' | 'circular'.
        shift: samples by which the filter's window moves to the right of the published alignment.
    """

    stride: tuple[int, ...]
    factor: tuple[int, ...]
    taps: tuple[float, ...]
    padding: str = "reflect"
    shift: tuple[int, ...] = ()


@dataclass(frozen=True)
class SetStride:
    """Set the `stride` attribute of a convolution module."""

    module: str
    stride: tuple[int, ...]


@dataclass(frozen=True)
class BlurOutput:
    """Blur what a module returns (a child `blur_output`, run by a forward hook)."""

    module: str
    blur: Blur


@dataclass(frozen=True)
class BlurInput:
    """Blur a module's positional input (a child `blur_input`, run by a forward pre-hook)."""

    module: str
    blur: Blur
    index: int = 0


@dataclass(frozen=True)
class BlurPooling:
    """Turn a pooling module into its anti-aliased version in place (a child `blurpool`).

    `kernel_size` replaces the kernel of a max pool (then without padding), as some published models do.
    """

    module: str
    blur: Blur
    kernel_size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rewrite:
    """Route one expression of a module's own forward through a child module called `child`.

    Attributes:
        module: the module whose forward is rewritten.
        path: the functions from the forward to the expression, outermost first. Each step is
            (qualified name, source text of the expression, which of the equal expressions).
        op: 'wrap' (blur the expression's value), 'maxpool', 'avgpool', 'slice', 'conv-dense', 'conv-blurred'.
        child: the name of the child module that does it.
        blur: the filter; None where the op only becomes dense.
        stride: the stride that the op itself keeps.
        kernel_size: replaces the kernel of a max pool.
        dims: the spatial dimensions of what a slice is of.
    """

    module: str
    path: tuple[tuple[str, str, int], ...]
    op: Literal["wrap", "maxpool", "avgpool", "slice", "conv-dense", "conv-blurred"]
    child: str
    blur: Blur | None = None
    stride: tuple[int, ...] = ()
    kernel_size: tuple[int, ...] | None = None
    dims: tuple[int, ...] = ()


Edit: TypeAlias = SetStride | BlurOutput | BlurInput | BlurPooling | Rewrite
_EDITS: dict[str, type[Edit]] = {cls.__name__: cls for cls in (SetStride, BlurOutput, BlurInput, BlurPooling, Rewrite)}


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
        edits: what the surgery does to the model for this site.
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


@dataclass(frozen=True)
class Plan:
    """What will happen (or has happened) to one model; also the report of `blurify.inspect`.

    Attributes:
        recipe: what the user wanted.
        sites: every site found, in the order in which the model runs them.
        macs: multiply-adds of one forward of the original, convolutions and matrix products counted.
        model: the class of the model.
        input_shapes: the shapes of the tensors that it was traced with.
    """

    recipe: Recipe
    sites: tuple[Site, ...]
    macs: int = 0
    model: str = ""
    input_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def converted(self) -> tuple[Site, ...]:
        """The sites that get a blur."""
        return tuple(site for site in self.sites if site.action == "blur")

    @property
    def skipped(self) -> tuple[Site, ...]:
        """The sites that stay as they are, each with its reason."""
        return tuple(site for site in self.sites if site.action == "skip")

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, each once (sites that share an activation share its blur)."""
        return tuple(dict.fromkeys(edit for site in self.sites for edit in site.edits))

    @property
    def extra_macs(self) -> int:
        """Multiply-adds that the whole conversion adds to one forward."""
        return sum(site.extra_macs for site in self.sites)

    def count(self, field: str = "kind") -> dict[str, int]:
        """How many sites have each value of a field ('kind', 'action', 'rule')."""
        return dict(Counter(getattr(site, field) for site in self.sites))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data for JSON; `from_dict` reads it back."""
        data = dataclasses.asdict(dataclasses.replace(self, sites=()))
        data["recipe"] = self.recipe.to_dict()
        data["sites"] = [_site_to_dict(site) for site in self.sites]
        return {"format": FORMAT, **data}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read a plan that `to_dict` wrote. Raises BlurifyError where the data is not such a plan."""
        if data.get("format") != FORMAT:
            raise BlurifyError(
                f"this plan has format {data.get('format')!r}, this blurify reads format {FORMAT}: "
                "convert the original model again with the blurify that is installed"
            )
        try:
            return cls(
                recipe=Recipe.from_dict(data["recipe"]),
                sites=tuple(_site_from_dict(site) for site in data["sites"]),
                macs=int(data["macs"]),
                model=str(data["model"]),
                input_shapes=_tuples(data["input_shapes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BlurifyError(f"this is not a plan that blurify wrote ({error}): convert the model again") from error


def _site_to_dict(site: Site) -> dict[str, Any]:
    data = dataclasses.asdict(dataclasses.replace(site, edits=()))
    data["edits"] = [{"edit": type(edit).__name__, **dataclasses.asdict(edit)} for edit in site.edits]
    return data


def _site_from_dict(data: Mapping[str, Any]) -> Site:
    fields = {key: _tuples(value) for key, value in data.items() if key != "edits"}
    return Site(**fields, edits=tuple(_edit_from_dict(edit) for edit in data["edits"]))


def _edit_from_dict(data: Mapping[str, Any]) -> Edit:
    fields = {key: _tuples(value) for key, value in data.items() if key not in ("edit", "blur")}
    if data.get("blur") is not None:
        fields["blur"] = Blur(**{key: _tuples(value) for key, value in data["blur"].items()})
    return _EDITS[data["edit"]](**fields)


def _tuples(value: Any) -> Any:
    """Lists, as JSON gives them, back to the tuples that a frozen plan holds."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
