"""Recipes that name a kind of filter, and what a filter does in figures."""

from __future__ import annotations

import dataclasses
import math

import pytest

from blurify.errors import BlurifyError
from blurify.spec.methods import Area, Flat, Fourier, Sinc, Taps, Wavelet
from blurify.spec.recipes import Recipe, load_recipe
from blurify.spec.responses import response_of


@pytest.mark.parametrize(
    ("table", "method"),
    [
        ({"kind": "flat"}, Flat()),
        ({"kind": "flat", "size": 11, "padding": "zeros"}, Flat(11)),
        ({"kind": "sinc", "size": 12, "cutoff": 1, "beta": 5}, Sinc(12, 1.0, "kaiser", 5.0)),
        ({"kind": "sinc", "window": "hann"}, Sinc(window="hann")),
        ({"kind": "wavelet", "wavelet": "db3"}, Wavelet("db3")),
        ({"kind": "area", "padding": "causal"}, Area()),
        ({"kind": "fourier", "window": "hamming", "padding": "circular"}, Fourier("hamming")),
    ],
)
def test_a_recipe_names_a_kind(table, method):
    recipe = Recipe.from_dict({"filter": table})
    assert recipe == Recipe(name="custom", filter=method, padding=table.get("padding", "reflect"))
    assert (recipe.method, recipe.filter_size, recipe.taps) == (method, None, None)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.with_filter(filter_size=3) == Recipe(name="custom", filter_size=3, padding=recipe.padding)
    assert recipe.with_filter(taps=[1, 1]).method == Taps((0.5, 0.5))


def test_binomial_and_own_taps_may_be_named_too():
    assert Recipe.from_dict({"filter": {"kind": "binomial", "size": 3}}) == Recipe.from_dict({"filter": {"size": 3}})
    assert Recipe.from_dict({"filter": {"kind": "taps", "taps": [1, 2]}}) == Recipe.from_dict(
        {"filter": {"taps": [1, 2]}}
    )
    assert Recipe(filter=Taps((0.5, 0.5))) == Recipe(taps=(0.5, 0.5))
    assert "kind" not in Recipe().to_dict()["filter"], "older versions read what they can do"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"kind": "flut"}, "did you mean 'flat'"),
        ({"kind": "flat", "cutoff": 1}, "unknown key 'cutoff' in .*'flat' has 'size'"),
        ({"kind": "sinc", "cut-off": 1}, "did you mean 'cutoff'"),
        ({"kind": "flat", "size": 5}, "from 6 to 31"),
        ({"kind": "flat", "taps": [1]}, "unknown key 'taps'"),
        ({"kind": "sinc", "cutoff": "low"}, "must be a number from 0.05 to 2"),
        ({"kind": "sinc", "window": "hann", "beta": 5}, "no 'beta'"),
        ({"kind": "wavelet", "wavelet": "db22"}, "did you mean 'db2'"),
        ({"kind": "fourier", "padding": "causal"}, "looks at the whole signal"),
        ({"kind": "fourier", "padding": "replicate"}, "padding can't be 'replicate'"),
        ({"kind": "binomial", "taps": [1]}, "give 'size'"),
        ({"kind": "taps"}, "give 'taps'"),
        ({"kind": 3}, "'kind'"),
        ({"kind": "area", "padding": "mirror"}, "'padding'"),
    ],
)
def test_what_can_not_be_is_refused_with_the_way_out(table, says):
    with pytest.raises(BlurifyError, match=says):
        Recipe.from_dict({"filter": table})


def test_taps_of_another_kind_are_not_asked_for():
    with pytest.raises(BlurifyError):
        _ = Recipe(filter=Fourier()).resolved_taps
    with pytest.raises(BlurifyError, match="no filter"):
        Recipe(filter="flat")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flat", {"filter_size": None, "filter": Flat(7)}),
        ("flc", {"filter_size": None, "filter": Fourier()}),
        ("causal", {"filter_size": 3, "padding": "causal"}),
    ],
)
def test_shipped_recipes_differ_from_the_default_in_their_filter_alone(name, changes):
    recipe = load_recipe(name)
    assert dataclasses.replace(recipe, name="zhang2019", description="") == Recipe(**changes)


# Responses.


def test_figures_of_a_known_filter():
    # [1, 2, 1] / 4 passes cos(w / 2)**2; the new Nyquist frequency of 2 is pi / 2.
    found = response_of(Taps((0.25, 0.5, 0.25)), 2)
    assert (found.dc, found.taps) == (pytest.approx(1), (0.25, 0.5, 0.25))
    assert found.nyquist == pytest.approx(20 * math.log10(0.5))
    assert found.half == pytest.approx(40 * math.log10(math.cos(math.pi / 8)))
    assert found.droop == found.half
    assert found.half_power == pytest.approx(2 * math.acos(0.5**0.25) / (math.pi / 2), abs=1e-6)
    # The integral of cos(w / 2)**4 is 3 w / 8 + sin(w) / 2 + sin(2 w) / 16.
    below, whole = 3 * math.pi / 16 + 0.5, 3 * math.pi / 8
    assert found.aliased == pytest.approx(1 - below / whole, abs=1e-5)


def test_figures_of_the_ideal_filter():
    found = response_of(Fourier(), 3)
    assert (found.taps, found.droop, found.aliased) == (None, 0, 0)
    assert found.half_power == pytest.approx(1)
    assert found.nyquist == pytest.approx(20 * math.log10(0.5))
    assert found.gains(3, 6)[-1] == (3, 0)


def test_a_passband_that_swells_is_told():
    assert response_of(Wavelet("cdf5/3"), 2).droop > 0.8


def test_the_figures_in_the_comments_of_recipes_are_right():
    flat, published, three = (
        response_of(Flat(7), 2),
        response_of(Taps((0.125, 0.375, 0.375, 0.125)), 2),
        response_of(Taps((0.25, 0.5, 0.25)), 2),
    )
    said = [f"{100 * found.aliased:.2g}" for found in (flat, published, three, response_of(Area(), 2))]
    assert said == ["4.7", "3.3", "7.6", "18"]
    assert (round(published.half, 1), round(flat.half, 1)) == (-2.1, -0.5)
    assert Fourier("hamming").gain(2, 0.5) == pytest.approx(0.54)
