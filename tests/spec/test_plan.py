import json

import pytest

from blurify.errors import BlurifyError
from blurify.spec import plan as plans
from blurify.spec.edits import EDITS as KINDS
from blurify.spec.edits import Blur, BlurInput, BlurOutput, BlurPooling, InsertBlur, Rewrite, SetStride
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe, load_recipe

BLUR = Blur(stride=(2, 1), factor=(2, 1), method=Taps((0.25, 0.5, 0.25)), padding="zeros", shift=(1, 0))
EDITS = [
    SetStride("layer1.conv", (1, 1), (2, 1)),
    SetStride("layer1.conv3", (1, 1), 2),
    InsertBlur("layer1", "act", True, "blur_after_act", BLUR),
    BlurOutput("layer1.act", BLUR),
    BlurInput("layer1.conv2", BLUR, index=1),
    BlurPooling("pool", BLUR),
    BlurPooling("pool2", BLUR, kernel_size=(2, 2), unless_global=True),
    Rewrite("block", (("forward", "F.max_pool2d(x, 2)", 0), ("helper", "g(x)", 1)), "maxpool", "blur_1", BLUR, (1, 1)),
    Rewrite("block", (("forward", "self.conv(x)", 0),), "conv-dense", "blur_2"),
    Rewrite("block", (("forward", "self.conv3(x)", 0),), "wrap-input", "blur_3", BLUR, index=1),
    Rewrite("block", (("forward", "layer(x)", 0),), "member-wrap", "blur_4", BLUR, members=("a", "b.0")),
    Rewrite("block", (("forward", "x[:, ::2]", 0),), "slice", "blur_5", BLUR, dims=(1,), unless_global=True),
]


def site(name="layer1.conv", action="blur", edits=(), **fields):
    given = {
        "kind": "conv",
        "kernel_size": (3, 3),
        "stride": (2, 2),
        "input_shape": (1, 8, 32, 32),
        "output_shape": (1, 16, 16, 16),
        "rule": "after-activation",
        "reason": "blurred behind its activation",
        **fields,
    }
    return Site(name=name, action=action, edits=tuple(edits), **given)


def through_json(plan: Plan) -> Plan:
    return Plan.from_dict(json.loads(json.dumps(plan.to_dict())))


def test_there_is_an_example_of_every_edit():
    assert {type(edit).__name__ for edit in EDITS} == set(KINDS)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_every_edit_survives_json(edit):
    plan = Plan(Recipe(), (site(edits=[edit]),))
    assert through_json(plan) == plan


def test_a_whole_plan_survives_json():
    plan = Plan(
        recipe=load_recipe("published/resnet").with_filter(taps=(1, 2, 1)),
        sites=(
            site(edits=EDITS, placement="behind layer1.act", extra_macs=12_345_678_901),
            site("conv1", "skip", rule="stem", reason="the stem is left alone"),
        ),
        macs=1_800_000_000,
        model="pkg.ResNet",
        input_shapes=((1, 3, 224, 224), (1, 7)),
    )
    again = through_json(plan)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.edits == tuple(EDITS)


def test_an_empty_plan_survives_json():
    plan = Plan(Recipe(), ())
    assert through_json(plan) == plan
    assert (plan.converted, plan.skipped, plan.edits, plan.extra_macs) == ((), (), (), 0)


def test_what_a_plan_counts():
    shared = BlurOutput("act", BLUR)
    plan = Plan(
        Recipe(),
        (
            site("a", edits=[SetStride("a", (1, 1)), shared], extra_macs=10),
            site("b", edits=[SetStride("b", (1, 1)), shared], extra_macs=5),
            site("c", "skip", kind="avgpool", rule="global-pool"),
        ),
    )
    assert [found.name for found in plan.converted] == ["a", "b"]
    assert [found.name for found in plan.skipped] == ["c"]
    assert plan.edits == (SetStride("a", (1, 1)), shared, SetStride("b", (1, 1)))
    assert plan.extra_macs == 15
    assert plan.count() == {"conv": 2, "avgpool": 1}
    assert plan.count("action") == {"blur": 2, "skip": 1}
    assert plan.count("rule") == {"after-activation": 2, "global-pool": 1}


@pytest.mark.parametrize("format", [0, plans.FORMAT + 1, "1", None])
def test_another_format_is_refused_with_what_to_do(format):
    data = Plan(Recipe(), (site(),)).to_dict() | {"format": format}
    with pytest.raises(BlurifyError, match=f"format {format!r}.*convert the original model again"):
        Plan.from_dict(data)


def test_no_format_is_refused():
    with pytest.raises(BlurifyError, match="format None"):
        Plan.from_dict({})


def broken(change):
    data = json.loads(json.dumps(Plan(Recipe(), (site(edits=EDITS),)).to_dict()))
    change(data)
    return data


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("sites"),
        lambda data: data.pop("macs"),
        lambda data: data.update(sites=[3]),
        lambda data: data.update(sites=None),
        lambda data: data.update(macs="many"),
        lambda data: data.update(recipe=None),
        lambda data: data["sites"][0].pop("rule"),
        lambda data: data["sites"][0].pop("edits"),
        lambda data: data["sites"][0].update(colour="red"),
        lambda data: data["sites"][0]["edits"][0].update(edit="Explode"),
        lambda data: data["sites"][0]["edits"][0].pop("stride"),
        lambda data: data["sites"][0]["edits"][2].update(blur=3),
        lambda data: data["sites"][0]["edits"][2].pop("blur"),
        lambda data: data["sites"][0]["edits"][2]["blur"].update(method={"kind": "colour", "taps": [1]}),
        lambda data: data["recipe"].update(filter={"size": 99}),
        lambda data: data["recipe"].update(colour="red"),
    ],
    ids=range(16),
)
def test_a_damaged_plan_is_refused_not_a_traceback(change):
    with pytest.raises(BlurifyError):
        Plan.from_dict(broken(change))


# --- phases


LEADS = {"role": "leads", "groups": ["pool"], "strides": [[2, 2]], "back": [0], "norm": 2}


def a_blur(phase) -> dict:
    blur = {"stride": [2, 2], "factor": [2, 2], "method": {"kind": "taps", "taps": [1.0]}, "padding": "circular"}
    return {"edit": "BlurOutput", "module": "pool", "child": "blur", "blur": {**blur, "shift": [0, 0], "phase": phase}}


def test_a_phase_is_read_back_and_no_phase_is_not_said():
    from blurify.spec.edits import edit_from_dict, edit_to_dict

    edit = edit_from_dict(a_blur(LEADS))
    assert edit_from_dict(json.loads(json.dumps(edit_to_dict(edit)))) == edit and edit.blur.phase.span == (2, 2)
    assert "phase" not in edit_to_dict(edit_from_dict(a_blur(None)))["blur"]


@pytest.mark.parametrize(
    "change",
    [
        {"role": "guesses"}, {"groups": []}, {"groups": ["a", "b"]}, {"strides": [[2]]}, {"strides": [[4, 4]]},
        {"strides": [[2, 2, 2]]}, {"back": [1]}, {"back": [-1], "role": "follows"},
        {"back": [10**9], "role": "follows"},
        {"norm": 3}, {"role": "restores"}, {"strides": [[0, 2]]}, {"extra": 1}, {"groups": [7]},
    ],
)  # fmt: skip
def test_a_phase_that_cannot_be_is_refused(change):
    from blurify.spec.edits import edit_from_dict

    with pytest.raises(ValueError):
        edit_from_dict(a_blur({**LEADS, **change}))
