"""The rules of the design's section 3, each on the least network it applies to; recipes; and what it all costs."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import blurify
from blurify.planning.planner import make_plan
from blurify.planning.reasons import REASONS
from blurify.spec.edits import Blur, BlurOutput, BlurPooling, InsertBlur, Rewrite, SetStride
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import load_recipe

TAPS = (0.125, 0.375, 0.375, 0.125)
IMAGE = torch.zeros(1, 3, 16, 16)


def planned(net: nn.Module, recipe: Any = None, x: Tensor = IMAGE) -> Plan:
    plan = blurify.inspect(net, x, recipe)
    for site in plan.sites:
        if site.action == "skip":
            assert site.rule in REASONS and len(site.reason) > 15 and "{" not in site.reason, site
            assert site.extra_macs == 0 and site.placement == ""
            # A global pool is the one skipped site with an edit: larger inputs are blurred there.
            assert bool(site.edits) == (site.rule == "global-pool" and site.reason.endswith("it is blurred")), site
        else:
            assert site.edits and site.placement and site.reason, site
    return plan


def only(net: nn.Module, recipe: Any = None, x: Tensor = IMAGE) -> Site:
    (site,) = planned(net, recipe, x).sites
    return site


def behind_conv(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules)


def blur(stride: Any = (2, 2), factor: Any = None, shift: Any = (0, 0)) -> Blur:
    return Blur(stride, factor or stride, Taps(TAPS), "reflect", shift)


def dense(conv: str, before: Any = (2, 2), stride: Any = (1, 1)) -> SetStride:
    return SetStride(conv, stride, before)


def after(member: str, blur: Blur, module: str = "") -> InsertBlur:
    return InsertBlur(module, member, True, f"blur_after_{member}", blur)


def before(member: str, blur: Blur, module: str = "") -> InsertBlur:
    return InsertBlur(module, member, False, f"blur_before_{member}", blur)


def wrapped(text: str, blur: Blur, op: str = "wrap", **more: Any) -> Rewrite:
    return Rewrite("", (("forward", text, 0),), op, "blur", blur, **more)  # type: ignore[arg-type]


# --- each rule


def test_max_pool() -> None:
    site = only(behind_conv(nn.MaxPool2d(3, 2, 1)))
    assert (site.rule, site.placement, site.edits) == ("maxpool", "in 1", (BlurPooling("1", blur()),))


def test_conv_followed_by_an_activation_module() -> None:
    site = only(behind_conv(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()))
    assert (site.rule, site.placement) == ("after-activation", "after 3")
    assert site.edits == (dense("1"), after("3", blur()))


def test_activation_module_that_several_use_is_not_blurred_for_all() -> None:
    """Only the call of it that follows the convolution is."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3)
            self.act = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.act(self.conv(self.act(self.first(x)))))

    site = only(Block())
    assert (site.rule, site.placement) == ("after-activation", "in Block.forward")
    assert site.edits == (dense("conv"), wrapped("self.act(self.conv(self.act(self.first(x))))", blur()))


def test_point_in_the_middle_of_a_forward_is_rewritten() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(self.first(x)))
            return self.a(x) + self.b(x)

    site = only(Block())
    assert (site.rule, site.placement) == ("after-activation", "in Block.forward")
    assert site.edits == (dense("conv"), wrapped("F.relu(self.conv(self.first(x)))", blur()))


def test_shared_activation_has_one_blur_for_two_convs() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.conv, self.down, self.act = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.act(self.conv(x) + self.down(x))

    plan = planned(Block())
    assert [site.rule for site in plan.sites] == ["after-activation"] * 2
    assert plan.edits == (
        dense("conv"),
        wrapped("self.act(self.conv(x) + self.down(x))", blur()),
        dense("down"),
    )


def test_pointwise_conv_without_a_nonlinearity_commutes() -> None:
    site = only(behind_conv(nn.Conv2d(4, 8, 1, 2), nn.Conv2d(8, 4, 3)))
    assert (site.rule, site.placement) == ("commuted", "before 1")
    assert site.edits == (dense("1"), before("1", blur()))


def test_larger_conv_without_a_nonlinearity_reads_a_blurred_input() -> None:
    site = only(behind_conv(nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 4, 3)))
    assert (site.rule, site.placement) == ("blurred-input", "before 1")
    assert site.edits == (before("1", blur((1, 1), (2, 2))),)


def test_input_of_a_conv_in_a_forward_is_blurred_where_it_is_called() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(self.first(x)))

    site = only(Block())
    assert (site.rule, site.placement) == ("blurred-input", "before conv")
    assert site.edits == (wrapped("self.conv(self.first(x))", blur((1, 1), (2, 2)), "wrap-input"),)


@pytest.mark.parametrize(("kernel", "padding", "shift"), [(2, 0, 0), (3, 1, 0), (3, 0, 1), (4, 1, 0), (1, 0, 0)])
def test_average_pool(kernel: int, padding: int, shift: int) -> None:
    """The filter is centred where the pool's windows are."""
    recipe = {"filter": {"size": 7}}  # which smooths more than each of these windows
    (edit,) = only(behind_conv(nn.AvgPool2d(kernel, 2, padding)), recipe).edits
    filtering = dataclasses.replace(blur(shift=(shift, shift)), method=Taps(load_recipe(recipe).resolved_taps))
    assert edit == BlurPooling("1", filtering)
    site = only(behind_conv(nn.AvgPool2d(kernel, 2, padding)))
    own = 1 / kernel < Taps(TAPS).smoothing(2)
    expected = BlurPooling("1", blur(), (kernel, kernel)) if own else BlurPooling("1", blur(shift=(shift, shift)))
    assert site.edits == (expected,) and own == (kernel == 4)
    assert (site.rule, site.kind) == ("avgpool", "avgpool")


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (75, 15)])
def test_wide_average_pool_keeps_its_own_average(kernel: int, stride: int) -> None:
    """A box that smooths more than the filter would is no noise to let through: it runs densely, then the blur."""
    site = only(behind_conv(nn.AvgPool2d(kernel, stride)), x=torch.zeros(1, 3, 96, 96))
    assert site.edits == (BlurPooling("1", blur((stride, stride)), (kernel, kernel)),)
    assert (site.rule, site.reason) == ("avgpool", "dense average pool, then blur")


def test_global_average_pool() -> None:
    site = only(behind_conv(nn.AvgPool2d(16)))
    assert (site.action, site.rule) == ("skip", "global-pool")
    assert site.edits == (BlurPooling("1", blur((16, 16), shift=(7, 7)), unless_global=True),)
    assert only(behind_conv(nn.AvgPool2d((16, 8)))).rule == "avgpool"


def test_stem() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.ReLU())
    assert only(net).rule == "stem" and "full" in only(net).reason
    assert only(net, "full").edits == (dense("0"), after("1", blur()))


def test_patchify() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.GELU())
    assert only(stem).rule == "patchify-stem" and "full" in only(stem).reason
    assert only(stem, "full").edits == (before("0", blur((1, 1), (4, 4))),)
    inside = behind_conv(nn.Conv2d(4, 8, 2, 2), nn.GELU())
    assert (only(inside).rule, only(inside).edits) == ("blurred-input", (before("1", blur((1, 1), (2, 2))),))


@pytest.mark.parametrize("stride", [(4, 4), (1, 2), (3, 2)])
def test_any_stride_is_the_factor_of_its_filter(stride: tuple[int, int]) -> None:
    site = only(behind_conv(nn.Conv2d(4, 4, 5, stride, 2), nn.ReLU()))
    assert site.edits == (dense("1", stride), after("2", blur(stride)))


def test_split_stem() -> None:
    recipe = {"conv": {"stem": "split"}}
    alexnet = nn.Sequential(nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU())
    site = only(alexnet, recipe, torch.zeros(1, 3, 32, 32))
    assert (site.rule, site.edits) == ("split", (dense("0", (4, 4), (2, 2)), after("1", blur())))
    odd = nn.Sequential(nn.Conv2d(3, 4, 11, 3, 2), nn.ReLU())
    assert only(odd, recipe, torch.zeros(1, 3, 32, 32)).rule == "stem"
    small = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 2), nn.ReLU())
    assert only(small, recipe, torch.zeros(1, 3, 32, 32)).rule == "stem"


def test_converting_twice_plans_nothing() -> None:
    net = behind_conv(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(2))
    converted = blurify.convert(net, example_inputs=IMAGE)
    left = [site for site in planned(converted).sites if site.action == "blur"]
    assert left == []


# --- recipes


ALL = (nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(2))


@pytest.mark.parametrize(("kind", "name"), [("conv", "1"), ("maxpool", "3"), ("avgpool", "5")])
def test_kinds_to_skip(kind: str, name: str) -> None:
    plan = planned(behind_conv(*ALL), {"skip": {"kinds": [kind]}})
    assert [site.name for site in plan.skipped] == [name]
    assert plan.skipped[0].rule == "recipe" and kind in plan.skipped[0].reason
    assert len(plan.converted) == 2


@pytest.mark.parametrize(("glob", "skipped"), [("1", ["1"]), ("[13]", ["1", "3"]), ("*", ["1", "3", "5"])])
def test_names_to_skip(glob: str, skipped: list[str]) -> None:
    plan = planned(behind_conv(*ALL), {"skip": {"names": [glob]}})
    assert [site.name for site in plan.skipped] == skipped
    assert all(glob in site.reason for site in plan.skipped)


@pytest.mark.parametrize(
    ("glob", "nearest"), [("x*", "blurify inspect lists the sites"), ("1.", "the nearest site is '1'")]
)
def test_name_to_skip_that_matches_no_site_is_an_error(glob: str, nearest: str) -> None:
    """What it was to leave alone would be converted in silence."""
    with pytest.raises(blurify.BlurifyError) as caught:
        planned(behind_conv(*ALL), {"skip": {"names": ["1", glob]}})
    assert repr(glob) in str(caught.value) and nearest in str(caught.value)


@pytest.mark.parametrize(("least", "skipped"), [(4, []), (5, ["1"]), (8, ["1"]), (9, ["1", "3", "5"])])
def test_least_channels(least: int, skipped: list[str]) -> None:
    """The channels that a site subsamples: those it reads."""
    plan = planned(behind_conv(*ALL), {"skip": {"min_channels": least}})
    assert [site.name for site in plan.skipped] == skipped
    assert all(str(least) in site.reason for site in plan.skipped)


def test_cheap_placement() -> None:
    plan = planned(behind_conv(nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, 2), nn.ReLU()), "light")
    assert [site.rule for site in plan.sites] == ["blurred-input", "commuted"]
    assert plan.edits == (before("1", blur((1, 1), (2, 2))), dense("3"), before("3", blur()))


def test_max_pool_kernel() -> None:
    site = only(behind_conv(nn.MaxPool2d(3, 2, 1)), {"maxpool": {"kernel_size": 2}})
    assert site.edits == (BlurPooling("1", blur(), (2, 2)),) and "2" in site.reason


def test_filter_and_padding() -> None:
    recipe = {"filter": {"taps": [1, 2, 1], "padding": "zeros"}}
    site = only(behind_conv(nn.MaxPool2d(2)), recipe)
    assert site.edits == (BlurPooling("1", Blur((2, 2), (2, 2), Taps((0.25, 0.5, 0.25)), "zeros", (0, 0))),)
    recipe = load_recipe("zhang2019").with_filter(2)
    assert only(behind_conv(nn.MaxPool2d(2)), recipe).edits[0].blur.method == Taps((0.5, 0.5))  # type: ignore[union-attr]


def test_plan_says_what_it_was_made_for() -> None:
    plan = planned(behind_conv(*ALL))
    assert plan.input_shapes == ((1, 3, 16, 16),)
    assert plan.model.endswith("Sequential")
    assert [site.output_shape for site in plan.sites] == [(1, 8, 8, 8), (1, 8, 4, 4), (1, 8, 2, 2)]
    assert Plan.from_dict(plan.to_dict()) == plan


# --- the same edits wherever a site stands


def test_containers_hold_the_blur_among_their_members() -> None:
    """So that it is run where its members are called one by one too (features_only, slicing)."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()))
    assert planned(net).edits == (dense("1.0"), after("2", blur(), "1"))
    x = torch.randn(1, 3, 16, 16)
    converted = blurify.convert(net, example_inputs=x)
    y = x
    for member in converted:
        for inner in member if isinstance(member, nn.Sequential) else [member]:
            y = inner(y)
    assert torch.equal(y, converted(x))
    assert [name for name, _ in converted[1].named_children()] == ["0", "1", "2", "blur_after_2"]
    assert type(converted[1][2]) is nn.ReLU and len(converted[1]) == len(net[1])


def test_activation_whose_result_is_ignored() -> None:
    """In place, and read under its old name: an edit of what the module returns would be lost."""

    class Ignores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.act, self.last = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(self.first(x))
            self.act(y)
            return self.last(y)

    net = Ignores()
    plan = planned(net)
    assert BlurOutput("act", blur()) not in plan.edits
    x = torch.randn(1, 3, 15, 16)
    blurred = blurify.convert(net, example_inputs=x)
    assert blurred(x).shape == net(x).shape and not torch.allclose(blurred(x), net(x))


def test_two_strided_convs_into_one_activation_of_two_strides() -> None:
    """One blur cannot serve strides 2 and (2, 1)."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()
            self.a, self.b = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, (2, 1), 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.b(self.act(self.a(self.first(x)))))

    net = Net()
    plan = planned(net)
    assert all(site.action == "blur" for site in plan.sites)
    x = torch.randn(1, 3, 13, 14)
    assert blurify.convert(net, example_inputs=x)(x).shape == net(x).shape


def test_size_that_is_read_between_the_activation_and_its_consumer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()
            self.last = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.first(x))
            y = self.act(self.conv(x))
            size = y.shape[-2:]
            return self.last(y) + F.interpolate(x, size=size)

    net, x = Net(), torch.randn(1, 3, 13, 14)
    site = next(site for site in blurify.inspect(net, x).sites if site.kind == "conv")
    assert site.placement != "before last"
    assert blurify.convert(net, example_inputs=x)(x).shape == net(x).shape


# --- what it costs


def flops(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def test_extra_multiply_adds_by_hand() -> None:
    pixels = 8 * 8
    net = behind_conv(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    # dense: three times the strided one on top; the blur: 16 taps for each sample that it keeps
    dense = 3 * pixels * 8 * 4 * 9
    assert only(net).extra_macs == dense + pixels * 8 * 16
    assert only(behind_conv(nn.Conv2d(4, 8, 1, 2))).extra_macs == pixels * 4 * 16
    assert only(behind_conv(nn.Conv2d(4, 8, 3, 2, 1))).extra_macs == 4 * pixels * 4 * 16
    assert only(behind_conv(nn.MaxPool2d(2))).extra_macs == pixels * 4 * 16
    assert only(behind_conv(nn.AvgPool2d(2))).extra_macs == pixels * 4 * 16
    assert only(behind_conv(nn.MaxPool2d(2)), load_recipe(None).with_filter(1)).extra_macs == 0


CASES = {
    "dense": (nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU()),
    "dense, grouped": (nn.Conv2d(4, 8, 3, 2, 1, groups=4), nn.SiLU()),
    "dense, stride (1, 2)": (nn.Conv2d(4, 8, 3, (1, 2), 1), nn.ReLU()),
    "commuted": (nn.Conv2d(4, 8, 1, 2), nn.Conv2d(8, 4, 3)),
    "blurred input": (nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 4, 3)),
    "patchify": (nn.Conv2d(4, 8, 2, 2),),
    "max pool": (nn.MaxPool2d(3, 2, 1),),
    "average pool": (nn.AvgPool2d(2),),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_extra_multiply_adds_are_those_of_the_converted_model(case: str, padding: str) -> None:
    net = behind_conv(*CASES[case]).eval()
    plan = planned(net, {"filter": {"padding": padding}})
    converted = blurify.convert(net, {"filter": {"padding": padding}}, example_inputs=IMAGE)
    assert plan.extra_macs > 0
    assert 2 * plan.extra_macs == flops(converted, IMAGE) - flops(net, IMAGE)


def test_multiply_adds_of_the_original() -> None:
    class Attends(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).mT
            return F.scaled_dot_product_attention(x, x, x) @ x.mT

    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 4, 2, 2), nn.AdaptiveAvgPool2d(4),
        Attends(), nn.Flatten(), nn.Linear(256, 5),
    ).eval()  # fmt: skip
    assert 2 * planned(net).macs == flops(net, IMAGE)


def test_multiply_adds_of_a_whole_model() -> None:
    import torchvision

    net = torchvision.models.resnet18(weights=None).eval()
    x = torch.zeros(1, 3, 64, 64)
    plan = planned(net, None, x)
    assert 2 * plan.macs == flops(net, x)
    converted = blurify.convert(net, example_inputs=x, verify=False)
    assert 2 * plan.extra_macs == flops(converted, x) - flops(net, x)


class SliceFirst(nn.Module):
    """Subsamples features by slicing, with the channels after the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::3] * 1.0


class SliceLast(nn.Module):
    """The same with the channels last, and the first two of them only."""

    step = 2

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)[:, :: self.step, :: self.step, :2].permute(0, 3, 1, 2)


@pytest.mark.parametrize(("net", "stride", "kept"), [(SliceFirst(), (2, 3), 4), (SliceLast(), (2, 2), 2)])
def test_strided_slice_is_replaced_by_the_filter(net: nn.Module, stride: tuple[int, int], kept: int) -> None:
    for size in ((16, 18), (15, 17), (1, 2)):
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        example = torch.zeros(1, 4, 16, 18)
        converted = blurify.convert(net, example_inputs=example)
        (site,) = blurify.plan_of(converted).sites
        assert (site.kind, site.rule, site.stride) == ("slice", "slice-blurred", stride)
        assert torch.allclose(converted(x), blurify.BlurPool2d(stride)(x)[:, :kept], atol=1e-12)
        assert torch.equal(blurify.convert(net, filter_size=1, example_inputs=example)(x), net(x))
    assert make_plan(converted, load_recipe(None), example).converted == ()


def test_a_stride_of_numpys_numbers_becomes_pythons_in_a_plan():
    """pytorchvideo computes strides with numpy: a plan with such numbers could not be read back."""
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    conv.stride = tuple(np.array([2, 2]))
    net = nn.Sequential(nn.Conv2d(3, 3, 3), conv, nn.ReLU())
    converted = blurify.convert(net, example_inputs=torch.zeros(1, 3, 16, 16))
    edit = next(edit for edit in blurify.plan_of(converted).edits if isinstance(edit, SetStride))
    assert edit.before == (2, 2) and all(type(one) is int for one in edit.before)
    assert blurify.revert(converted)[1].stride == (2, 2)


def test_a_pool_over_more_than_any_filter_covers_is_global_and_no_error():
    """transformers' AlignVisionModel: an average pool of 2,560 pixels, so that it covers any picture."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(2560, ceil_mode=True))
    sites = blurify.inspect(net, torch.zeros(1, 3, 16, 16)).sites
    assert [(site.rule, site.edits) for site in sites] == [("global-pool", ())]


@pytest.mark.parametrize("net", [
    nn.AvgPool1d(3000), nn.MaxPool1d(3000), nn.Conv1d(2, 2, 3000, 3000),
    nn.Sequential(nn.Conv1d(2, 2, 3, 3000), nn.ReLU()), nn.AvgPool1d(3000, ceil_mode=True),
])  # fmt: skip
@pytest.mark.parametrize("recipe", ["zhang2019", "flat"])
def test_a_stride_against_which_no_filter_is_short_enough_is_skipped_with_that_reason(net, recipe):
    x = torch.randn(1, 2, 9002)
    net = nn.Sequential(nn.Conv1d(2, 2, 3), net, nn.MaxPool1d(2))
    long, short = planned(net, recipe, x).sites
    assert long.rule == "too-long" and "a subsampling by 3000" in long.reason and short.action == "blur"
    assert blurify.convert(net, recipe, example_inputs=x)(x).shape == net(x).shape  # proven, the other site blurred


def test_a_branch_beside_one_whose_filter_would_be_too_long_stays_too():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv1d(2, 2, 3)
            self.conv, self.pool = nn.Conv1d(2, 2, 1, 3000), nn.AvgPool1d(3000, ceil_mode=True)

        def forward(self, x):
            x = self.first(x).relu()
            return (self.conv(x) + self.pool(x)).relu()

    recipe = {"filter": {"size": 2}, "site": [{"match": "conv", "taps": 4}]}  # against 3000, two taps fit
    sites = planned(Branches(), recipe, torch.randn(1, 2, 9002)).sites
    assert {site.name: site.rule for site in sites} == {"conv": "too-long", "pool": "branch"}
