"""`[[site]]` tables: what they match, what they set, and what they refuse."""

import json
import tomllib

import pytest

from blurify.errors import BlurifyError
from blurify.spec.overrides import Override, facts_of
from blurify.spec.plan import Plan
from blurify.spec.recipes import Recipe, load_recipe

SITES = facts_of(
    [
        ("conv1", "conv", (2, 2), (1, 3, 64, 64)),
        ("pool", "maxpool", (2, 2), (1, 64, 32, 32)),
        ("layer2.0.conv1", "conv", (2, 2), (1, 64, 16, 16)),
        ("layer2.0.audio", "conv", (1, 2), (1, 64, 16, 16)),
        ("layer3.0.conv[a]", "conv", (4, 4), (1, 256, 16, 16)),
        ("head", "conv", (2, 2), ()),  # did not run
    ]
)


def matched(**matchers) -> list[str]:
    recipe = Recipe(sites=({**matchers, "skip": True},))
    return [site.name for site in SITES if recipe.at(site).left is not None]


@pytest.mark.parametrize(
    ("matchers", "names"),
    [
        ({"match": "layer2.*"}, ["layer2.0.conv1", "layer2.0.audio"]),
        ({"match": ["pool", "conv?"]}, ["conv1", "pool"]),
        ({"regex": r"layer[23]\.0\.conv.*"}, ["layer2.0.conv1", "layer3.0.conv[a]"]),
        ({"kind": "maxpool"}, ["pool"]),
        ({"kind": ["maxpool", "avgpool"]}, ["pool"]),
        ({"stride": 4}, ["layer3.0.conv[a]"]),
        ({"stride": 2, "match": "layer*"}, ["layer2.0.conv1", "layer2.0.audio"]),  # in every strided dimension
        ({"stride": [1, 2]}, ["layer2.0.audio"]),
        ({"channels": 256}, ["layer3.0.conv[a]"]),
        ({"channels": [3, 64], "kind": "conv"}, ["conv1", "layer2.0.conv1", "layer2.0.audio"]),
        ({"channels": "65.."}, ["layer3.0.conv[a]"]),
        ({"depth": 1}, ["conv1"]),
        ({"depth": "..2"}, ["conv1", "pool"]),
        ({"depth": -1}, ["layer3.0.conv[a]"]),  # what did not run has no depth
        ({"depth": [-2, -1], "kind": "conv", "stride": 4}, ["layer3.0.conv[a]"]),
        ({}, [site.name for site in SITES]),
    ],
)
def test_all_given_matchers_must_hold(matchers, names):
    assert matched(**matchers) == names


def test_later_tables_win_and_settings_of_several_add_up():
    recipe = Recipe(
        sites=(
            {"match": "layer2.*", "taps": 3, "padding": "zeros"},
            {"kind": "conv", "taps": [1, 9, 1]},
            {"stride": [1, 2], "placement": "before", "size": 2},
        )
    )
    at = {site.name: recipe.at(site).recipe for site in SITES}
    assert at["pool"] == Recipe()
    assert (at["conv1"].taps, at["conv1"].filter_size, at["conv1"].padding) == ((1.0, 9.0, 1.0), None, "reflect")
    assert (at["layer2.0.conv1"].taps, at["layer2.0.conv1"].padding) == ((1.0, 9.0, 1.0), "zeros")
    audio = at["layer2.0.audio"]
    assert (audio.filter_size, audio.taps, audio.padding, audio.conv) == (2, None, "zeros", "cheap")


def test_skip_false_takes_back_what_the_recipe_leaves_alone_and_the_stem():
    recipe = Recipe(skip_kinds=("conv",), min_channels=64, sites=({"skip": True}, {"match": "conv1", "skip": False}))
    stem, other = recipe.at(SITES[0]), recipe.at(SITES[2])
    assert stem.left is None and other.left is not None
    assert (stem.recipe.skip_kinds, stem.recipe.min_channels, stem.recipe.stem) == ((), 0, "convert")


def test_another_filter_for_all_is_one_for_all():
    recipe = Recipe(sites=({"match": "a", "taps": 5}, {"match": "b", "taps": 3, "padding": "zeros"})).with_filter(2)
    assert [dict(one.settings) for one in recipe.sites] == [{"padding": "zeros"}]
    assert recipe.filter_size == 2


def test_tables_survive_toml_and_json():
    text = """
[[site]]
match = "layer4.*"
taps = 3
placement = "before"
[[site]]
regex = 'a\\.(b|c)'
kind = ["conv", "maxpool"]
stride = [1, 2]
depth = [-3, -1]
channels = "64.."
skip = true
because = "too   dear"
[[site]]
filter = { taps = [1, 2, 1], padding = "zeros" }
stem = "split"
kernel_size = 2
"""
    recipe = load_recipe(tomllib.loads(text))
    assert recipe.sites[1].because == "too dear" and recipe.sites[1].channels == (64, None)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert "site" not in Recipe().to_dict()  # as older versions wrote it


def test_names_with_brackets_are_meant_as_they_are():
    override = Override.exactly("layer3.0.conv[a]", skip=True)
    assert [site.name for site in SITES if override.fits(site)] == ["layer3.0.conv[a]"]


def test_regular_expressions_are_replaced_by_the_names_that_they_match():
    pinned = Recipe(sites=({"regex": r"layer\d\.0\.c.*", "taps": 3},)).pinned([site.name for site in SITES])
    assert [site.name for site in SITES if pinned.sites[0].fits(site)] == ["layer2.0.conv1", "layer3.0.conv[a]"]
    assert not pinned.sites[0].regex


def test_a_plan_in_a_file_holds_no_regular_expression():
    """One may take for ever, and files come from anybody."""
    data = Plan(Recipe(sites=({"regex": "(a+)+b", "skip": True},)), ()).to_dict()
    with pytest.raises(BlurifyError, match="regular expression"):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"match": "a"}, "changes nothing"),
        ({"mach": "a", "skip": True}, "did you mean 'match'"),
        ({"match": "", "skip": True}, "pattern"),
        ({"match": "a" * 2000, "skip": True}, "at most 1000"),
        ({"regex": "(", "skip": True}, "no regular expression"),
        ({"kind": "pool", "skip": True}, "maxpool"),
        ({"stride": 0, "skip": True}, "stride such as"),
        ({"stride": True, "skip": True}, "stride such as"),
        ({"depth": "..", "skip": True}, "range"),
        ({"channels": [5, 2], "skip": True}, "range"),
        ({"channels": 10**30, "skip": True}, "range"),
        ({"skip": 1}, "true or false"),
        ({"taps": 9}, "1 to 7"),
        ({"taps": 3, "size": 3}, "one of them"),
        ({"taps": [1, 2], "size": 3}, "one of them"),
        ({"padding": "mirror"}, "reflect"),
        ({"placement": "under"}, "'after' or 'before'"),
        ({"filter": 3}, "must be a table"),
        ({"filter": {"sise": 3}}, "did you mean 'size'"),
        (7, "must be a table"),
    ],
)
def test_what_is_refused_is_named_in_one_line(table, words):
    with pytest.raises(BlurifyError, match="table 1 of") as caught:
        Recipe.from_dict({"site": [table]})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    for wrong in ({"site": table}, {"site": "x"}):
        with pytest.raises(BlurifyError):
            Recipe.from_dict(wrong)
