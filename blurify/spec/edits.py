"""Edits: what the surgery does to a model. Immutable data; each knows where its parts are."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from blurify.spec.filters import PADDINGS
from blurify.spec.methods import Method, check_goes_with, method_from_dict, method_to_dict, taps_from
from blurify.spec.phases import Phase, phase_from_dict, phase_to_dict
from blurify.spec.reading import read_fields, require

_LARGEST_STRIDE = 4096  # of what a file says: audio networks stride by some hundred samples
Stride: TypeAlias = "int | tuple[int, ...]"
Step: TypeAlias = tuple[str, str, int]
"""(function, source text of an expression in it, which of the equal expressions)."""


def below(module: str, *names: str) -> str:
    """The path of a part of a module: `below('', 'a')` is 'a', `below('a', 'b')` is 'a.b'."""
    return ".".join(filter(None, (module, *names)))


@dataclass(frozen=True)
class Blur:
    """How one BlurPool is built; one entry a spatial dimension.

    Attributes:
        stride: by how much the blur itself subsamples (1: only filter).
        factor: the subsampling that the filter guards against; equal to `stride` except where a strided op follows.
        method: the filter.
        padding: 'reflect' | 'replicate' | 'zeros' | 'circular' | 'causal' (see `filters.PADDINGS`).
        shift: samples by which the filter's window moves to the right of the published alignment (of its own alignment,
            for kinds of filter that the published models do not have, and of the causal one).
        channels_last: it blurs tensors (N, *spatial, C), as the tokens of transformers are, and not (N, C, *spatial).
        phase: of adaptive polyphase sampling; None subsamples at the first sample, as strided ops do.
        centre: where the filter's centre is to be, in samples to the right of stride * j; () leaves it where its taps
            have it.
    """

    stride: tuple[int, ...]
    factor: tuple[int, ...]
    method: Method
    padding: str = "reflect"
    shift: tuple[int, ...] = ()
    channels_last: bool = False
    phase: Phase | None = None
    centre: tuple[float, ...] = ()


@dataclass(frozen=True)
class SetStride:
    """Set the `stride` attribute of a convolution module; `before` is what it was."""

    module: str
    stride: tuple[int, ...]
    before: Stride = ()
    blur: None = None

    @property
    def dense_path(self) -> str | None:
        """The module that becomes dense, if one does."""
        return self.module

    @property
    def blur_path(self) -> str | None:
        """The BlurPool that the edit brings, if it brings one."""
        return None


@dataclass(frozen=True)
class BlurPooling:
    """Turn a pooling module into its anti-aliased version in place (a child `blurpool`).

    Attributes:
        module: its path.
        blur: the filter, of the pool's stride.
        kernel_size: of a max pool, a kernel (without padding) in place of its own, as some published models have it;
            of an average pool, the part of its own average that is kept before the blur.
        unless_global: the pool covers its whole input at the traced size: average as it is, wherever that is so.
    """

    module: str
    blur: Blur
    kernel_size: tuple[int, ...] | None = None
    unless_global: bool = False

    @property
    def dense_path(self) -> str | None:
        """The module that becomes dense."""
        return self.module

    @property
    def blur_path(self) -> str | None:
        """The BlurPool that the edit brings."""
        return below(self.module, "blurpool")


class _BringsBlur:
    """An edit that only brings a blur: the child `child` of its module."""

    module: str
    child: str

    @property
    def dense_path(self) -> str | None:
        """Nothing becomes dense by this edit."""
        return None

    @property
    def blur_path(self) -> str | None:
        """The BlurPool that the edit brings."""
        return below(self.module, self.child)


@dataclass(frozen=True)
class InsertBlur(_BringsBlur):
    """Put a blur between two members of an `nn.Sequential`: it runs it like any member, and numbers the others alone.

    Attributes:
        module: the path of the Sequential.
        member: the name of the member that it comes before or after.
        after: after that member, else before it.
        child: its own name.
        blur: the filter.
    """

    module: str
    member: str
    after: bool
    child: str
    blur: Blur


@dataclass(frozen=True)
class BlurOutput(_BringsBlur):
    """Blur what a module returns: it moves to a subclass of its class that calls its child `child` at the end."""

    module: str
    blur: Blur
    child: str = "blur_output"


@dataclass(frozen=True)
class BlurInput(_BringsBlur):
    """Blur a module's positional input: it moves to a subclass of its class that calls its child `child` first."""

    module: str
    blur: Blur
    index: int = 0
    child: str = "blur_input"


RewriteOp: TypeAlias = Literal[
    "wrap", "wrap-input", "maxpool", "avgpool", "slice", "conv-dense", "conv-blurred", "member-dense", "member-wrap"
]


@dataclass(frozen=True)
class Rewrite:
    """Route one expression of a module's own forward through a child module called `child`.

    Attributes:
        module: the module whose forward is rewritten.
        path: the functions from the forward to the expression, outermost first, each a step
            (name, source text of the expression, which of the equal expressions); or (name, '<wrapped>', which), for
            what a decorated method holds (see `nn.wrapped`).
        op: what the child does with the expression. 'wrap' blurs its value, 'wrap-input' the call's positional argument
            `index`; 'maxpool', 'avgpool', 'slice', 'conv-blurred' run the call anti-aliased; 'conv-dense' runs it at
            `stride`. In a loop over modules of which some become dense, 'member-dense' marks the call of a member and
            'member-wrap' blurs the value where a member among `members` was run.
        child: the name of the child module that does it.
        blur: the filter; None where the op only becomes dense.
        stride: the stride that the op itself keeps.
        kernel_size: see `BlurPooling`.
        dims: the spatial dimensions of what a slice is of.
        index: the positional argument that 'wrap-input' blurs.
        members: the paths, below the module, of those that a loop's blur is for.
        unless_global: see `BlurPooling`.
    """

    module: str
    path: tuple[Step, ...]
    op: RewriteOp
    child: str
    blur: Blur | None = None
    stride: tuple[int, ...] = ()
    kernel_size: tuple[int, ...] | None = None
    dims: tuple[int, ...] = ()
    index: int = 0
    members: tuple[str, ...] = ()
    unless_global: bool = False

    @property
    def part(self) -> str:
        """The path of the child that the edit brings."""
        return below(self.module, self.child)

    @property
    def dense_path(self) -> str | None:
        """The stand-in that runs the op densely, if it is one."""
        return self.part if self.op in ("conv-dense", "maxpool", "avgpool", "slice") else None

    @property
    def blur_path(self) -> str | None:
        """The BlurPool that the edit brings, if it brings one."""
        if self.blur is None:
            return None
        return self.part if self.op in ("wrap", "wrap-input") else below(self.part, "blurpool")


Edit: TypeAlias = SetStride | BlurPooling | InsertBlur | BlurOutput | BlurInput | Rewrite
EDITS: dict[str, type[Edit]] = {
    cls.__name__: cls for cls in (SetStride, BlurPooling, InsertBlur, BlurOutput, BlurInput, Rewrite)
}
"""The kinds of edit, by the name that stands in files."""


def edit_to_dict(edit: Edit) -> dict[str, Any]:
    """The edit as plain data for JSON."""
    data = {"edit": type(edit).__name__, **dataclasses.asdict(edit)}
    if edit.blur is not None:
        data["blur"] = {**dataclasses.asdict(edit.blur), "method": method_to_dict(edit.blur.method)}
        del data["blur"]["phase"]  # said where there is one: plans of other blurs stay as they were
        if edit.blur.phase is not None:
            data["blur"]["phase"] = phase_to_dict(edit.blur.phase)
        if not edit.blur.channels_last:
            del data["blur"]["channels_last"]
        if not edit.blur.centre:  # which earlier versions do not know
            del data["blur"]["centre"]
    elif isinstance(edit, SetStride):
        del data["blur"]
    return data


def edit_from_dict(data: Mapping[str, Any]) -> Edit:
    """Read what `edit_to_dict` wrote, in this version or in 0.1.0 (whose blurs had taps and no method)."""
    fields = {key: tuples(value) for key, value in data.items() if key not in ("edit", "blur")}
    if data.get("blur") is not None:
        blur = {key: tuples(value) for key, value in data["blur"].items() if key not in ("method", "taps", "phase")}
        method = data["blur"].get("method")
        taps = data["blur"].get("taps", ())
        blur["method"] = method_from_dict(method) if method is not None else taps_from(taps)
        if data["blur"].get("phase") is not None:
            blur["phase"] = phase_from_dict(data["blur"]["phase"], blur["factor"], blur["stride"])
        fields["blur"] = _possible(read_fields(Blur, blur))
    require(str(data["edit"]) in EDITS, f"unknown edit {str(data['edit'])[:80]!r}")
    edit: Any = read_fields(EDITS[str(data["edit"])], fields)
    child = getattr(edit, "child", "blurpool")
    require(child.isidentifier() and not keyword.iskeyword(child) and not child.startswith("__"), f"child {child!r}")
    for value in (getattr(edit, "stride", ()), getattr(edit, "kernel_size", None) or ()):
        require(len(value) <= 3 and all(1 <= one <= _LARGEST_STRIDE for one in value), f"{value} in an edit")
    found: Edit = edit
    return found


def _possible(blur: Blur) -> Blur:
    """A blur that a file says, if it is one that can be built."""
    rank = len(blur.stride)
    require(1 <= rank <= 3 and len(blur.factor) == rank and len(blur.shift) in (0, rank), "a blur of odd dimensions")
    counts = (*blur.stride, *blur.factor, *(abs(one) + 1 for one in blur.shift))
    require(all(1 <= one <= _LARGEST_STRIDE for one in counts), f"a blur of {blur.stride}, {blur.factor}, {blur.shift}")
    require(len(blur.centre) in (0, rank), "a centre of odd dimensions")
    require(all(abs(one) <= _LARGEST_STRIDE for one in blur.centre), f"a blur centred at {blur.centre}")
    for one in blur.factor:
        blur.method.smoothing(one)  # refuses a filter that is too long
    require(blur.padding in PADDINGS, f"padding {blur.padding[:80]!r}")
    check_goes_with(blur.method, blur.padding)
    return blur


def tuples(value: Any) -> Any:
    """Lists, as JSON gives them, back to the tuples that frozen data hold."""
    return tuple(tuples(item) for item in value) if isinstance(value, list | tuple) else value
