"""Filters against their definition in the frequency domain."""

from __future__ import annotations

import cmath
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blurify.errors import BlurifyError
from blurify.spec.filters import binomial_taps, compose_taps, resolve_taps


def response(taps: tuple[float, ...], frequency: float) -> float:
    """The filter's gain at an angular frequency."""
    return abs(sum(tap * cmath.exp(-1j * frequency * k) for k, tap in enumerate(taps)))


def test_binomial_taps_are_the_published_ones() -> None:
    published = [[1], [1, 1], [1, 2, 1], [1, 3, 3, 1], [1, 4, 6, 4, 1], [1, 5, 10, 10, 5, 1], [1, 6, 15, 20, 15, 6, 1]]
    for size, taps in enumerate(published, start=1):
        assert binomial_taps(size) == tuple(tap / sum(taps) for tap in taps)


@pytest.mark.parametrize("size", [0, 8, -1, 2.0, True, "3", None])
def test_other_sizes_are_refused(size: object) -> None:
    with pytest.raises(BlurifyError, match="from 1 to 7"):
        binomial_taps(size)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(size=st.integers(2, 7), factor=st.integers(2, 12))
def test_composed_filter_passes_dc_and_stops_what_would_fold_onto_it(size: int, factor: int) -> None:
    taps = compose_taps(binomial_taps(size), factor)
    assert len(taps) == (size - 1) * (factor - 1) + 1
    assert math.isclose(sum(taps), 1, rel_tol=1e-12)
    assert taps == pytest.approx(taps[::-1])
    assert min(taps) > 0
    for k in range(1, factor):
        assert response(taps, 2 * math.pi * k / factor) < 1e-9
    # The pass band ends near pi / factor: half of it passes better than what lies beyond 3 / 2 of it.
    assert response(taps, math.pi / factor / 2) > 2 * response(taps, 1.5 * math.pi / factor)


def test_factor_4_is_the_filter_after_itself_upsampled() -> None:
    # [1, 1] * [1, 0, 1] = [1, 1, 1, 1]
    assert compose_taps((0.5, 0.5), 4) == (0.25,) * 4
    assert compose_taps((0.25, 0.5, 0.25), 4) == pytest.approx([v / 16 for v in (1, 2, 3, 4, 3, 2, 1)])


def test_factor_3_is_made_of_boxes_of_3() -> None:
    assert compose_taps((0.5, 0.5), 3) == pytest.approx([1 / 3] * 3)
    assert compose_taps((0.25, 0.5, 0.25), 3) == pytest.approx([v / 9 for v in (1, 2, 3, 2, 1)])
    assert compose_taps((0.5, 0.5), 6) == pytest.approx([1 / 6] * 6)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 7, 12])
def test_identity_stays_the_identity(factor: int) -> None:
    assert compose_taps((1.0,), factor) == (1.0,)


def test_factor_1_needs_no_filter() -> None:
    assert compose_taps(binomial_taps(4), 1) == (1.0,)


def test_factor_2_is_the_filter_itself() -> None:
    assert compose_taps((0.1, 0.7, 0.2), 2) == (0.1, 0.7, 0.2)


@pytest.mark.parametrize("factor", [0, -2, 1.5, True, "2"])
def test_other_factors_are_refused(factor: object) -> None:
    with pytest.raises(BlurifyError, match="at least 1"):
        compose_taps((0.5, 0.5), factor)  # type: ignore[arg-type]


def test_own_taps_win_and_are_normalised() -> None:
    assert resolve_taps(4, [1, 2, 1]) == (0.25, 0.5, 0.25)
    assert resolve_taps(None, [3]) == (1.0,)
    assert resolve_taps(3, None) == (0.25, 0.5, 0.25)
    assert sum(resolve_taps(None, [0.3, -0.1, 0.5])) == pytest.approx(1)


@pytest.mark.parametrize("taps", [[], [0, 0], [1, -1], [-1, -2], [math.nan, 1], [math.inf], ["a"], [None], 5])
def test_bad_taps_are_refused(taps: object) -> None:
    with pytest.raises(BlurifyError, match="positive sum"):
        resolve_taps(4, taps)  # type: ignore[arg-type]


def test_no_filter_at_all_is_refused() -> None:
    with pytest.raises(BlurifyError, match="no filter"):
        resolve_taps(None, None)
