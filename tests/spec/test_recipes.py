import dataclasses
import json
import subprocess
import sys
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blurify.errors import BlurifyError
from blurify.spec import recipes
from blurify.spec.recipes import KINDS, PADDINGS, PLACEMENTS, STEMS, Recipe, load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    "zhang2019",
    "aligned",
    "aps",
    "causal",
    "critical-path",
    "decoder",
    "flat",
    "flc",
    "full",
    "gentle",
    "light",
    "pool-only",
    "resampling",
    "vit",
    "published/alexnet",
    "published/densenet",
    "published/mobilenet",
    "published/resnet",
    "published/vgg",
]


def refused(recipe) -> str:
    """The message with which a recipe is refused: one line, always."""
    with pytest.raises(BlurifyError) as caught:
        load_recipe(recipe)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What ships.


def test_the_shipped_recipes_are_these_and_the_default_comes_first():
    assert recipe_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_loads_and_says_what_it_is(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 10 < len(recipe.description) < 90
    own = {"gentle": None, "flat": None, "flc": None, "aligned": 3, "aps": 3, "causal": 3}
    assert recipe.filter_size == own.get(name, 4)
    assert recipe.padding == {"causal": "causal", "aps": "circular"}.get(name, recipe.padding)
    assert recipe.padding == "reflect" or name in ("causal", "aps", "flc")
    assert load_recipe(recipe) is recipe
    assert load_recipe(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_explains_itself_and_cites_the_paper_or_the_default(name):
    text = (ROOT / "configs" / f"{name}.toml").read_text()
    assert text.startswith("# ")
    assert any(word in text for word in ("paper", "Zhang", "CVPR", "ECCV"))


def test_the_default_is_zhang2019_and_the_same_as_the_dataclass():
    assert load_recipe() == load_recipe(None) == load_recipe("zhang2019")
    assert dataclasses.replace(load_recipe(), description="") == Recipe()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("pool-only", "skip_kinds", ("conv", "slice")),
        ("critical-path", "skip_kinds", ("maxpool",)),
        ("light", "conv", "cheap"),
        ("full", "stem", "convert"),
        ("published/alexnet", "stem", "split"),
        ("published/resnet", "maxpool_kernel_size", 2),
    ],
)
def test_each_recipe_departs_from_the_default_in_one_thing(name, field, value):
    recipe = load_recipe(name)
    assert getattr(recipe, field) == value
    same = dataclasses.replace(recipe, name="zhang2019", description="", **{field: getattr(Recipe(), field)})
    assert same == Recipe()


def test_the_gentle_recipe_interpolates_cubics_halfway_and_departs_in_nothing_else():
    recipe = load_recipe("gentle")
    assert dataclasses.replace(recipe, name="zhang2019", description="", filter_size=4, taps=None) == Recipe()
    for power in range(4):  # at 0 of samples at -3/2 .. 3/2: flat to the third order at frequency 0
        at_samples = [position**power for position in (-1.5, -0.5, 0.5, 1.5)]
        assert sum(map(float.__mul__, recipe.resolved_taps, at_samples)) == pytest.approx(0.0**power, abs=1e-12)


def test_the_aligned_recipe_has_an_odd_filter_that_is_centred_and_departs_in_nothing_else():
    recipe = load_recipe("aligned")
    assert recipe.aligned and recipe.filter_size == 3
    assert dataclasses.replace(recipe, name="zhang2019", description="", filter_size=4, aligned=False) == Recipe()
    assert "aligned" not in Recipe().to_dict()["filter"], "recipes that older versions read stay as they are"
    assert "'aligned' in [filter]" in refused({"filter": {"aligned": 1}})


@pytest.mark.parametrize("name", ["published/vgg", "published/densenet", "published/mobilenet"])
def test_the_other_published_models_follow_the_plain_rules(name):
    assert dataclasses.replace(load_recipe(name), name="zhang2019", description="") == Recipe()


def test_every_key_of_a_recipe_is_documented_in_the_default():
    text = (ROOT / "configs" / "zhang2019.toml").read_text()
    for entry in recipes._ENTRIES:
        assert entry.key == "name" or f"{entry.key} = " in text
        assert not entry.table or f"[{entry.table}]" in text
    for word in (*PADDINGS, *PLACEMENTS, *STEMS, *KINDS):
        assert f'"{word}"' in text


# Reading.


def test_a_file_takes_its_name_from_its_stem_and_defaults_for_the_rest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[filter]\ntaps = [1, 2, 1]\npadding = "zeros"\n[skip]\nnames = ["layer4.*"]\nmin_channels = 32\n')
    expected = Recipe(
        name="mine", filter_size=None, taps=(1.0, 2.0, 1.0), padding="zeros", skip_names=("layer4.*",), min_channels=32
    )
    assert load_recipe(path) == load_recipe(str(path)) == expected


def test_an_empty_mapping_is_the_default_under_another_name():
    assert load_recipe({}) == Recipe(name="custom")


def test_own_taps_win_over_the_default_size():
    assert Recipe(taps=(1, 2, 1)).filter_size is None
    assert Recipe(taps=[1, 2, 1]).taps == (1.0, 2.0, 1.0)


def test_resolved_taps_are_normalised():
    assert Recipe().resolved_taps == (0.125, 0.375, 0.375, 0.125)
    assert Recipe(taps=(1, 2, 1)).resolved_taps == (0.25, 0.5, 0.25)
    assert Recipe(filter_size=1).resolved_taps == (1.0,)


def test_with_filter_changes_the_filter_and_nothing_else():
    recipe = load_recipe("published/resnet")
    assert recipe.with_filter() is recipe
    assert recipe.with_filter(2) == dataclasses.replace(recipe, filter_size=2)
    taps = recipe.with_filter(taps=[1, 1])
    assert (taps.filter_size, taps.taps) == (None, (1.0, 1.0))
    assert taps.with_filter(4) == recipe
    with pytest.raises(BlurifyError, match="give one of them"):
        recipe.with_filter(3, [1, 2, 1])


def test_a_recipe_is_immutable_and_hashable():
    recipe = load_recipe()
    assert {recipe: 1}[load_recipe()] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.padding = "zeros"


numbers = st.floats(0.01, 100)
any_recipe = st.builds(
    Recipe,
    name=st.text(max_size=8),
    description=st.text(max_size=8),
    filter_size=st.integers(1, 7),
    taps=st.none() | st.lists(numbers, min_size=1, max_size=9).map(tuple),
    padding=st.sampled_from(PADDINGS),
    conv=st.sampled_from(PLACEMENTS),
    stem=st.sampled_from(STEMS),
    maxpool_kernel_size=st.none() | st.integers(1, 9),
    skip_kinds=st.lists(st.sampled_from(KINDS), max_size=3).map(tuple),
    skip_names=st.lists(st.text(min_size=1, max_size=5), max_size=3).map(tuple),
    min_channels=st.integers(0, 1000),
)


@given(any_recipe)
def test_a_recipe_survives_json(recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
known_keys = [word for entry in recipes._ENTRIES for word in (entry.table, entry.key)]
keys = st.sampled_from(known_keys) | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@given(st.dictionaries(keys, values, max_size=4))
def test_a_mapping_is_read_or_refused_never_a_traceback(data):
    try:
        recipe = load_recipe(data)
    except BlurifyError as error:
        assert "\n" not in str(error)
    else:
        assert Recipe.from_dict(recipe.to_dict()) == recipe


# Refusing. Each message names the thing, where it is, and the nearest valid one.


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("lite", ["'lite'", "'light'", ".toml"]),
        ("resnet", ["'resnet'", "'published/resnet'"]),
        ("Zhang2019", ["'Zhang2019'", "mean 'zhang2019'"]),
        ("published/resnets", ["mean 'published/resnet'"]),
        ("../configs/light", ["unknown recipe '../configs/light'"]),
        ("", ["unknown recipe ''"]),
        ("light.toml", ["no recipe file 'light.toml'", "ships is called 'light'"]),
        (Path("nowhere.toml"), ["no recipe file 'nowhere.toml'"]),
        (7, ["int", "mapping"]),
        ({"filtre": {}}, ["unknown key 'filtre'", "mean 'filter'"]),
        ({"filter": {"sice": 3}}, ["unknown key 'sice' in [filter]", "mean 'size'"]),
        ({"qqq": 1}, ["unknown key 'qqq'", "'filter'", "'skip'"]),
        ({"filter": 3}, ["'filter'", "[filter]", "got 3"]),
        ({"filter": {"size": 0}}, ["'size' in [filter]", "1 to 7", "got 0", "nearest: 1"]),
        ({"filter": {"size": 9}}, ["got 9", "nearest: 7"]),
        ({"filter": {"size": 3.0}}, ["an integer from 1 to 7", "got 3.0"]),
        ({"filter": {"size": True}}, ["got True"]),
        ({"filter": {"size": None}}, ["got None"]),
        ({"filter": {"taps": None}}, ["got None"]),
        ({"filter": {"size": 3, "taps": [1, 2, 1]}}, ["[filter]", "both 'size' and 'taps'"]),
        ({"filter": {"taps": []}}, ["'taps' in [filter]", "empty"]),
        ({"filter": {"taps": [1, -1]}}, ["'taps' in [filter]", "positive sum", "[1, -1]"]),
        ({"filter": {"taps": [1, "2"]}}, ["an entry of 'taps'", "'2'"]),
        ({"filter": {"taps": [float("nan")]}}, ["nan"]),
        ({"filter": {"taps": "121"}}, ["must be a list such as [1, 2, 1]"]),
        ({"filter": {"padding": "reflct"}}, ["'padding' in [filter]", "'reflct'", "mean 'reflect'"]),
        ({"filter": {"padding": "zero"}}, ["mean 'zeros'"]),
        ({"conv": {"placement": "before"}}, ["'placement' in [conv]", "'after-activation' or 'cheap'"]),
        ({"conv": {"stem": "splitt"}}, ["'stem' in [conv]", "mean 'split'"]),
        ({"maxpool": {"kernel_size": 0}}, ["'kernel_size' in [maxpool]", "1 or more"]),
        ({"skip": {"kinds": ["max-pool"]}}, ["an entry of 'kinds' in [skip]", "mean 'maxpool'"]),
        ({"skip": {"kinds": "conv"}}, ["must be a list", "got 'conv'"]),
        ({"skip": {"names": [3]}}, ["an entry of 'names' in [skip]", "got 3"]),
        ({"skip": {"names": [""]}}, ["empty"]),
        ({"skip": {"min_channels": -1}}, ["'min_channels' in [skip]", "0 or more"]),
        ({"description": 3}, ["'description'", "must be a string"]),
    ],
    ids=str,
)
def test_errors_name_the_thing_where_it_is_and_the_nearest(recipe, said):
    message = refused(recipe)
    for words in said:
        assert words in message


def test_errors_in_a_file_name_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[filter]\nsice = 3\n")
    assert f"unknown key 'sice' in [filter] of recipe file '{path}'" in refused(path)


def test_a_syntax_error_names_file_and_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[filter]\nsize = = 3\n")
    message = refused(path)
    assert str(path) in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"x = " + b"9" * 5000, "not valid TOML"),
        (b"x = " + b"[" * 100_000, "not valid TOML"),
        (b"[filter]\ntaps = [1" + b"0" * 400 + b"]", "ordinary size"),
    ],
    ids=["binary", "long-integer", "deep", "large-tap"],
)
def test_hostile_files_are_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert said in refused(path)


def test_a_folder_is_not_a_recipe(tmp_path):
    folder = tmp_path / "mine.toml"
    folder.mkdir()
    assert "cannot be read" in refused(folder)
    assert "cannot be read" in refused("a\0b.toml")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"filter_size": 8}, "filter_size of a recipe"),
        ({"filter_size": None}, "needs a filter"),
        ({"padding": "mirror"}, "padding of a recipe"),
        ({"skip_kinds": ("pool",)}, "skip_kinds of a recipe"),
        ({"conv": "dense"}, "conv of a recipe"),
    ],
)
def test_a_recipe_built_by_hand_is_checked_too(fields, said):
    with pytest.raises(BlurifyError, match=said):
        Recipe(**fields)


# Shipping.


def test_reading_recipes_needs_no_torch():
    code = "import sys, blurify.spec.recipes as r; r.load_recipe('light'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_recipes_inside_the_package_win_over_those_beside_it(monkeypatch, tmp_path):
    # As in an installed wheel, where the folder is a part of the package.
    (tmp_path / "configs" / "deep").mkdir(parents=True)
    (tmp_path / "configs" / "deep" / "mine.toml").write_text("[filter]\nsize = 3\n")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert recipe_names() == ["deep/mine"]
    assert load_recipe("deep/mine").filter_size == 3


def test_the_wheel_carries_recipes_types_and_data_and_reads_them(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {f"blurify/configs/{name}.toml" for name in SHIPPED} <= names
    assert "blurify/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    package = {f"blurify/{path.relative_to(ROOT / 'blurify').as_posix()}" for path in (ROOT / "blurify").rglob("*.*")}
    assert {name for name in package if "__pycache__" not in name and not name.endswith("/configs")} <= names

    code = "from blurify.spec import recipes as r; print(r.__file__, *r.recipe_names(), r.load_recipe('light').conv)"
    read = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path / "site", capture_output=True, text=True
    ).stdout.split()
    assert Path(read[0]).is_relative_to(tmp_path)
    assert read[1:] == [*SHIPPED, "cheap"]
