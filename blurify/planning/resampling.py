"""The rules for what resamples without a stride that could be set: a low-pass after upsampling, or before subsampling.

Upsampling by s, by zeros put in between, by repeating samples or from channels, leaves images of the spectrum above
pi / s, which show as checkerboards (Odena, Dumoulin and Olah, "Deconvolution and Checkerboard Artifacts", Distill 2016)
and keep a generator's details glued to the pixel grid (Karras et al., "Alias-Free Generative Adversarial Networks",
NeurIPS 2021). What remains below pi / s is the signal: so the map is filtered by the filter that guards a subsampling
by s, of sum 1, before anything else reads it; before the nonlinearity, too, which would fold the images back.
"""

from __future__ import annotations

from typing import Any

from blurify.graph.resampling import Resampler
from blurify.graph.sites import Found
from blurify.planning.placement import NoWay, Placed, Placer
from blurify.planning.rules import Rules, Way
from blurify.spec.edits import Blur
from blurify.spec.filters import binomial_taps
from blurify.spec.kinds import AFTER, BEFORE
from blurify.spec.methods import Method, Taps

_SAME = 1e-9


def resampling_way(rules: Rules, site: Found) -> Way:
    """The one way to filter a resampling site.

    Args:
        rules: whose recipe, filter and placer are used.
        site: its op is a `Resampler`; it is to be converted.
    """
    op = site.op
    assert isinstance(op, Resampler)
    blur = resampling_blur(rules, op)
    if op.is_upsampling:
        macs = sum(rules.macs(blur, run.output_shape) for run in rules.runs(site))
        return Way(AFTER, f"{_WORDS[op.kind]}: low-pass after it", macs, lambda: rules.placer.after(_nodes(site), blur))
    macs = sum(rules.macs(blur, run.input_shape) for run in rules.runs(site))
    return Way(BEFORE, f"{op.detail}: blur before it", macs, lambda: _before(rules.placer, site, blur))


_WORDS = {
    "convtranspose": "transposed conv",
    "upsample": "nearest upsampling",
    "pixelshuffle": "pixel shuffle",
    "repeat": "repeated samples",
}


def resampling_blur(rules: Rules, op: Resampler) -> Blur:
    """The blur for a resampling site: it only filters, in the dimensions that change, and moves nothing."""
    ones = (1,) * op.rank
    return Blur(ones, op.stride, without_shift(rules.method), rules.recipe.padding, (0,) * op.rank)


def without_shift(method: Method) -> Method:
    """The filter with an odd number of taps that goes with a method: it has a sample at its centre.

    An even filter would move the map by half a sample; it needs not, for a symmetric one is the box of two samples and
    an odd filter in turn: (1, 3, 3, 1) = (1, 1) * (1, 2, 1). The box is what repeating samples did already, so that
    nearest upsampling and the odd rest are zeros put in between and the whole filter: linear interpolation, for these
    taps. An average pool, likewise, is the box.
    """
    if not isinstance(method, Taps) or len(method.taps) % 2:
        return method
    taps = method.taps
    if len(taps) == 2:
        return Taps(binomial_taps(3))
    if any(abs(a - b) > _SAME for a, b in zip(taps, reversed(taps), strict=True)):
        return method
    rest, before = [], 0.0
    for tap in taps[:-1]:  # the division by (1, 1), which leaves no remainder for a symmetric filter
        before = tap - before
        rest.append(before)
    total = sum(rest)
    return Taps(tuple(one / total for one in rest))


def _nodes(site: Found) -> tuple[Any, ...]:
    return tuple(op.node for op in site.ops)


def _before(placer: Placer, site: Found, blur: Blur) -> Placed:
    if any(op.returns_indices for op in site.ops):
        raise NoWay("it returns indices")
    return placer.before(site, blur, site.op.stride)
