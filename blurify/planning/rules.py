"""The rules of conversion: for each site, the ways in which it can be anti-aliased, the best one first.

Let y be the dense version's output, so that the original op's output is y[..., ::s, ::s]. Source of the rules: Zhang,
"Making Convolutional Networks Shift-Invariant Again", ICML 2019, section 3; docs/how-it-works.md has them in a table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.fx import Node

from blurify.graph.filters import reads_image
from blurify.graph.sites import Found, Op, function_name
from blurify.planning.patches import before_patches
from blurify.planning.placement import Placed, Placer, conv_size
from blurify.spec.edits import Blur
from blurify.spec.methods import Method
from blurify.spec.recipes import Recipe


@dataclass(frozen=True)
class Way:
    """One way to anti-alias a site.

    Attributes:
        rule: its short code.
        reason: the same in words.
        extra_macs: multiply-adds that it adds, for the traced shapes.
        place: finds the edits; raises NoWay or CannotRewriteError where there are none.
    """

    rule: str
    reason: str
    extra_macs: int
    place: Callable[[], Placed]


class Rules:
    """The rules for one recipe.

    Args:
        recipe: what the user wants.
        method: its filter.
        placer: finds the edits.
    """

    def __init__(self, recipe: Recipe, method: Method, placer: Placer) -> None:
        self.recipe = recipe
        self.method = method
        self.placer = placer

    @property
    def _choosing(self) -> bool:
        """Whether the phase of a subsampling is chosen: an average that no filter replaces is then taken densely."""
        return self.recipe.sampling is not None

    def ways(self, site: Found, points: tuple[Node, ...] | None) -> Iterator[Way]:
        """All feasible ways for a site, the best first.

        Args:
            site: it is to be converted.
            points: where its blur goes after a nonlinearity, one a run; None where there is no such place.
        """
        op = site.op
        if op.kind == "slice":
            yield self._slice(site)
        elif op.kind == "patches":
            yield self._patches(site)
        elif op.kind == "maxpool":
            yield self._maxpool(site)
        elif op.kind == "avgpool":
            yield self.avgpool(site)
        else:
            if points is not None:
                yield self._after_activation(site, points, local=site.name in self.placer.local)
            # What pads, pads for the size that it sees: there the blur may not subsample first.
            padded = any(op.padding) or any(function_name(other.source) == "pad" for other in site.ops)
            if max(op.kernel_size) == 1 and not padded:
                yield self._commuted(site)
            yield self._blurred_input(site)

    def after_blur(self, op: Op) -> Blur:
        """The blur that goes behind a convolution's nonlinearity."""
        return self._blur(halves(op.stride) if self.splits(op) else op.stride)

    def splits(self, op: Op) -> bool:
        """Whether the recipe splits this convolution's stride in two."""
        return self.recipe.stem == "split" and reads_image(op, self.placer.model)

    def _blur(
        self,
        stride: tuple[int, ...],
        factor: tuple[int, ...] | None = None,
        shift: tuple[int, ...] = (),
        looked: tuple[float, ...] = (),
    ) -> Blur:
        """A blur; where the recipe is aligned, centred where the op looked (by default at sample stride * j)."""
        none = (0,) * len(stride)
        if self.recipe.aligned:
            centre = looked or (0.0,) * len(stride)
            return Blur(stride, factor or stride, self.method, self.recipe.padding, none, centre=centre)
        return Blur(stride, factor or stride, self.method, self.recipe.padding, shift or none)

    def counts(self, node: Node) -> bool:
        """Whether a node is of the forward whose costs are counted: the one in eval mode."""
        return node.graph is self.placer.traces[0].graph

    def runs(self, site: Found) -> list[Op]:
        """The runs of a site in that forward."""
        return [op for op in site.ops if self.counts(op.node)]

    def macs(self, blur: Blur, shape: Sequence[int]) -> int:
        """Multiply-adds of a blur whose output has this shape."""
        times = math.prod(blur.stride) if self._choosing else 1  # a phase is chosen of all samples
        return times * blur.method.cost(shape, blur.stride, blur.factor, blur.centre)

    def _after_activation(self, site: Found, points: tuple[Node, ...], *, local: bool) -> Way:
        """Dense convolution, nonlinearity, blur and subsample; of a stem's large stride, half in each."""
        op, blur = site.op, self.after_blur(site.op)
        keep = tuple(s // b for s, b in zip(op.stride, blur.stride, strict=True))
        macs = sum(self.macs(blur, point.meta["shape"]) for point in dict.fromkeys(points) if self.counts(point))
        for run in self.runs(site):
            size, dense = (math.prod(one) for one in (run.output_shape[-op.rank :], conv_size(run, keep)))
            macs += run.macs // max(size, 1) * (dense - size)

        def place() -> Placed:
            edits = self.placer.strided(site, keep)
            where, blurring = self.placer.after(points, blur, local=local)
            return where, (*edits, *blurring)

        if blur.stride != op.stride:
            return Way("split", "stride split into conv and blur", macs, place)
        return Way("after-activation", "dense conv, blur after its nonlinearity", macs, place)

    def _commuted(self, site: Found) -> Way:
        """A pointwise convolution commutes with the blur, so blur and subsample first: the same function, cheaper."""
        op = site.op
        blur, dense = self._blur(op.stride), (1,) * op.rank
        macs = sum(
            self.macs(blur, (*run.input_shape[: -op.rank], *run.output_shape[-op.rank :])) for run in self.runs(site)
        )
        reason = "1x1 conv: the same as blurring its output, and cheaper"
        return Way("commuted", reason, macs, lambda: self.placer.before(site, blur, dense))

    def _blurred_input(self, site: Found) -> Way:
        """Blur what the strided convolution reads."""
        op, blur = site.op, self.input_blur(site.op)
        reason = "no nonlinearity before what mixes positions: blur before it"
        if is_patchify(op):
            reason = "patchify conv: blur before it"
        elif self.recipe.conv == "cheap":
            reason = "cheap form: blur before it"
        macs = sum(self.macs(blur, run.input_shape) for run in self.runs(site))
        return Way("blurred-input", reason, macs, lambda: self.placer.before(site, blur, op.stride))

    def input_blur(self, op: Op) -> Blur:
        """The blur of what a strided convolution reads."""
        return self._blur((1,) * op.rank, self._guarded(op))

    def _guarded(self, op: Op) -> tuple[int, ...]:
        """The subsampling that the blur in front of a strided op guards against: its stride, or less for patches."""
        times = self.recipe.patch_cutoff if op.kind == "patches" or is_patchify(op) else 1
        return tuple(max(-(-s // times), min(s, 2)) for s in op.stride)

    def patch_blur(self, op: Op) -> Blur:
        """The blur of what is cut into patches: of tokens, where these have their channels last."""
        return dataclasses.replace(self._blur((1,) * op.rank, self._guarded(op)), channels_last=op.dims[0] == 1)

    def _patches(self, site: Found) -> Way:
        """Blur what is cut into patches by a rearrangement: as a strided convolution, it reads a blurred input."""
        blur = self.patch_blur(site.op)
        macs = sum(self.macs(blur, run.input_shape) for run in self.runs(site))
        reason = "patches cut by a rearrangement: blur before it"
        return Way("blurred-input", reason, macs, lambda: before_patches(self.placer, site, blur))

    def _maxpool(self, site: Found) -> Way:
        """Dense max pool, then blur and subsample."""
        op, size = site.op, self.recipe.maxpool_kernel_size
        kernel = None if size is None else (size,) * op.rank
        reason = "dense max pool, then blur" if kernel is None else f"dense max pool of kernel {size}, then blur"
        if size is not None and self.recipe.padding == "causal" and looks_ahead(op) < op.dilation[-1] * (size - 1):
            kernel, reason = None, f"dense max pool, then blur (a kernel of {size} without padding would look ahead)"
        looked = () if kernel is None else tuple(-move for move in window_moves(op, kernel))
        blur = self._blur(op.stride, looked=looked)
        macs = sum(self.macs(blur, run.output_shape) for run in self.runs(site))
        return Way("maxpool", reason, macs, lambda: self.placer.pooling(site, blur, kernel))

    def avgpool(self, site: Found, *, unless_global: bool = False) -> Way:
        """The filter takes the average's place; of a window that smooths more than it would, the average is kept.

        Replacing a wide window (7 at stride 2, 75 at 15) by a narrow filter would let through noise that the network
        never saw; so it runs densely, and what it still aliases is blurred. So does what it averages without a stride.
        """
        op = site.op
        padding = op.padding if isinstance(op.padding, tuple) else (0,) * op.rank
        kept = tuple(
            k
            if s == 1 or (self._choosing if self.method.is_identity else k > s and 1 / k < self.method.smoothing(s))
            else 1
            for k, s in zip(op.kernel_size, op.stride, strict=True)
        )
        # The filter is centred where the pool's windows are centred; a causal one ends where they end.
        shift = [
            0 if own > 1 else self._centred(*dim)
            for own, *dim in zip(kept, op.kernel_size, op.stride, padding, strict=True)
        ]
        if self.recipe.padding == "causal" and kept[-1] == 1:
            shift[-1] = op.kernel_size[-1] - 1 - padding[-1]
        looked = tuple(0.0 if own > 1 else at for own, at in zip(kept, window_centres(op), strict=True))
        blur = self._blur(op.stride, shift=tuple(shift), looked=looked)
        kernel = kept if max(kept) > 1 else None
        reason = "average pool replaced by the filter" if kernel is None else "dense average pool, then blur"
        macs = sum(self.macs(blur, run.output_shape) for run in self.runs(site))
        return Way("avgpool", reason, macs, lambda: self.placer.pooling(site, blur, kernel, unless_global))

    def _centred(self, kernel: int, stride: int, padding: int) -> int:
        """The shift that brings the filter to the middle of a pool's window, as near as whole samples allow."""
        shift = (kernel - 1) // 2 - padding
        # Of two places half a sample to either side, the published one.
        return shift + round((kernel - 1) / 2 - padding - shift - self.method.offset(stride))

    def _slice(self, site: Found) -> Way:
        """A strided slice is a subsampling and nothing else: the blur takes its place."""
        op = site.op
        blur = self._blur(op.stride)
        macs = sum(self.macs(blur, run.output_shape) for run in self.runs(site))
        reason = "strided slice replaced by the filter"
        return Way("slice-blurred", reason, macs, lambda: self.placer.stand_in(site, "slice", blur, dims=op.dims))


def window_centres(op: Op) -> tuple[float, ...]:
    """Where a pool's window j has its centre, in samples to the right of sample stride * j, one a dimension."""
    padding = op.padding if isinstance(op.padding, tuple) else (0,) * op.rank
    return tuple(d * (k - 1) / 2 - p for k, d, p in zip(op.kernel_size, op.dilation, padding, strict=True))


def window_moves(op: Op, kernel: tuple[int, ...]) -> tuple[float, ...]:
    """How far right of a pool's own windows those of another kernel, without padding, have their centres."""
    own = window_centres(op)
    return tuple(d * (k - 1) / 2 - at for k, d, at in zip(kernel, op.dilation, own, strict=True))


def halves(stride: tuple[int, ...]) -> tuple[int, ...]:
    """What the blur takes of a split stride: 2 of every strided dimension."""
    return tuple(2 if s > 1 else 1 for s in stride)


def looks_ahead(op: Op) -> int:
    """The last sample that window j of an op reads, in samples after stride * j, along the last dimension."""
    padding = op.padding[-1] if isinstance(op.padding, tuple) else 0
    return op.dilation[-1] * (op.kernel_size[-1] - 1) - padding


def is_patchify(op: Op) -> bool:
    """Whether a convolution's windows do not overlap."""
    extent = [d * (k - 1) + 1 for d, k in zip(op.dilation, op.kernel_size, strict=True)]
    return op.kind == "conv" and max(extent) > 1 and all(e <= s for e, s in zip(extent, op.stride, strict=True))
