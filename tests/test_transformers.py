"""The recipe 'vit': patch embeddings and token merging, however written, are blurred; nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import blurify
from blurify.nn.build import build
from blurify.spec.edits import Blur, edit_from_dict, edit_to_dict
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan

SIZE, PATCH, WIDTH = 32, 8, 24


class ByConv(nn.Module):
    """A patch embedding as a convolution, and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.embed(x).flatten(2).transpose(1, 2).relu().mean(1))


class ByLinear(nn.Module):
    """The same function: pixels of each patch are rearranged, and a linear layer reads them."""

    def __init__(self, like: ByConv):
        super().__init__()
        self.embed = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.head = copy.deepcopy(like.head)
        with torch.no_grad():
            self.embed.weight.copy_(like.embed.weight.permute(0, 2, 3, 1).flatten(1))
            self.embed.bias.copy_(like.embed.bias)

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 3, 5, 1)
        return self.head(self.embed(x.reshape(b, -1, PATCH * PATCH * c)).relu().mean(1))


class ByUnfold(nn.Module):
    """The same by im2col."""

    def __init__(self, like: ByConv):
        super().__init__()
        self.unfold = nn.Unfold(PATCH, stride=PATCH)
        self.embed = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.head = copy.deepcopy(like.head)
        with torch.no_grad():
            self.embed.weight.copy_(like.embed.weight.flatten(1))
            self.embed.bias.copy_(like.embed.bias)

    def forward(self, x):
        return self.head(self.embed(self.unfold(x).transpose(1, 2)).relu().mean(1))


@pytest.mark.parametrize("form", [ByLinear, ByUnfold])
def test_a_rearrangement_is_converted_to_the_same_function_as_a_convolution(form):
    torch.manual_seed(0)
    conv = ByConv().eval()
    other = form(conv).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    torch.testing.assert_close(conv(x), other(x))
    first, second = (blurify.convert(model, "vit", example_inputs=x) for model in (conv, other))
    assert [site.kind for site in blurify.plan_of(second).converted] == ["patches"]
    assert (first(x) - conv(x)).abs().max() > 1e-3
    torch.testing.assert_close(first(x), second(x))


class Merging(nn.Module):
    """Two stages of tokens (N, H, W, C), merged in between; the first stage is read by a second head too."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.merge = Merge(8, how)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        return self.head(self.merge(x).relu()).mean((1, 2)), x.mean((1, 2))


class Merge(nn.Module):
    """Swin's token merging, in three ways of writing it."""

    def __init__(self, channels: int, how: str):
        super().__init__()
        self.how = how
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        b, h, w, c = x.shape
        if self.how == "reshape":
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).flatten(3)
        elif self.how == "slices":
            x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        else:  # of tokens in a row
            x = x.view(b, h * w, c)
            y = x.view(b, h, w, c)
            x = torch.cat([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        return self.reduction(x)


@pytest.mark.parametrize("how", ["reshape", "slices", "row"])
def test_merged_tokens_are_blurred_in_space_and_what_else_reads_them_is_not(how):
    torch.manual_seed(0)
    model = Merging(how).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    recipe = {"conv": {"stem": "skip"}, "patches": {"merging": "blur"}}
    converted = blurify.convert(model, recipe, example_inputs=x)
    assert [(site.name, site.rule) for site in blurify.plan_of(converted).converted] == [
        ("merge:patches", "blurred-input")
    ]
    tokens = model.embed(x)
    # The slow obvious way: 4 taps in each direction over every channel's map, reflected at the borders.
    taps = torch.tensor([1.0, 3, 3, 1]) / 8
    kernel = (taps[:, None] * taps).expand(8, 1, 4, 4)
    blurred = F.conv2d(F.pad(tokens, (1, 2, 1, 2), mode="reflect"), kernel, groups=8).permute(0, 2, 3, 1)
    expected = model.head(model.merge(blurred).relu()).mean((1, 2))
    merged, first = converted(x)
    torch.testing.assert_close(merged, expected)
    torch.testing.assert_close(first, model(x)[1], rtol=0, atol=0)


def test_the_default_recipe_leaves_them_alone_and_says_so():
    model = Merging("slices")
    x = torch.zeros(1, 3, SIZE, SIZE)
    plan = blurify.inspect(model, x)
    assert {site.name: site.rule for site in plan.sites} == {"embed": "patchify-stem", "merge:patches": "merging"}
    plan = blurify.inspect(ByLinear(ByConv()), x)
    assert [(site.kind, site.rule) for site in plan.sites] == [("patches", "patchify-stem")]


def test_the_filter_cuts_off_where_the_recipe_says():
    plan = blurify.inspect(ByConv(), torch.zeros(1, 3, SIZE, SIZE), "vit")
    assert plan.converted[0].edits[0].blur.factor == (PATCH // 2, PATCH // 2)
    for cutoff, factor in ((1, PATCH), (3, 3), (4, 2), (64, 2)):
        recipe = {"conv": {"stem": "convert"}, "patches": {"cutoff": cutoff}}
        plan = blurify.inspect(ByConv(), torch.zeros(1, 3, SIZE, SIZE), recipe)
        assert plan.converted[0].edits[0].blur.factor == (factor, factor)


def test_one_whose_tokens_are_read_elsewhere_is_left_alone_with_a_reason():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, 4)
            self.reduction = nn.Linear(32, 5)

        def forward(self, x):
            x = self.embed(x).permute(0, 2, 3, 1)
            merged = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
            return self.reduction(merged).mean((1, 2)) + x.mean()

    plan = blurify.inspect(Both(), torch.zeros(1, 3, SIZE, SIZE), "vit")
    site = next(site for site in plan.sites if site.kind == "patches")
    assert site.action == "skip" and "used for something else" in site.reason


def test_a_blur_of_tokens_is_that_of_maps_in_another_layout():
    torch.manual_seed(0)
    first = Blur((1, 1), (2, 2), Taps((0.25, 0.5, 0.25)))
    x = torch.randn(2, 5, 6, 3)
    last = build(Blur((1, 1), (2, 2), Taps((0.25, 0.5, 0.25)), channels_last=True))
    torch.testing.assert_close(last(x), build(first)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert "channels_last" in repr(last) and "channels_last" not in repr(build(first))


def test_a_plan_with_tokens_reads_back_and_one_of_before_too(tmp_path):
    x = torch.zeros(1, 3, SIZE, SIZE)
    model = Merging("reshape").eval()
    plan = blurify.inspect(model, x, "vit")
    assert Plan.from_dict(plan.to_dict()) == plan
    edit = plan.converted[-1].edits[0]
    data = edit_to_dict(edit)
    assert edit.blur.channels_last
    del data["blur"]["channels_last"]
    assert not edit_from_dict(data).blur.channels_last  # of a file that was written before
    converted = blurify.convert(model, "vit", example_inputs=x)
    torch.save(converted, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    picture = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(again(picture), converted(picture), rtol=0, atol=0)
    torch.testing.assert_close(blurify.revert(converted)(picture), model(picture), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "settings", "sites", "stride"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}, 1, (16, 16)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}, 4, (32, 32)),
        ("swinv2_cr_tiny_224", {"img_size": 64, "depths": (1, 1, 1, 1)}, 4, (32, 32)),
        ("pvt_v2_b0", {"depths": (1, 1, 1, 1)}, 7, (32, 32)),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, 4, (32, 32)),
    ],
)
def test_families_of_timm_are_proven(name, settings, sites, stride):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, **settings).eval()
    x = torch.zeros(1, 3, 64, 64)
    converted = blurify.convert(model, "vit", example_inputs=x)  # with its proof
    plan = blurify.plan_of(converted)
    assert len(plan.converted) == sites and not plan.skipped
    assert plan.total_stride == stride


@pytest.mark.parametrize("compiler", ["export"])
def test_it_exports(compiler):
    model = blurify.convert(Merging("reshape").eval(), "vit", example_inputs=torch.zeros(1, 3, SIZE, SIZE))
    x = torch.randn(2, 3, SIZE, SIZE)
    program = torch.export.export(model, (x,))
    for one, other in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(one, other)
