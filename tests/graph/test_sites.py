"""Sites: what counts as one, how it is called, and why one that is left alone is left alone."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.graph.recorder import trace
from blurify.graph.sites import find_sites

IMAGE = torch.zeros(1, 3, 32, 32)


def found(model: nn.Module, *inputs: Tensor) -> list[Any]:
    return find_sites(trace(model, (inputs or (IMAGE,), {})))


def names(model: nn.Module, *inputs: Tensor) -> list[str]:
    return [site.name for site in found(model, *inputs)]


def rules(model: nn.Module, *inputs: Tensor, recipe: Any = None) -> dict[str, str]:
    plan = blurify.inspect(model, inputs or IMAGE, recipe)
    for site in plan.sites:
        # A global pool is the one skipped site with an edit: larger inputs are blurred there.
        edited = site.action == "blur" or (site.rule == "global-pool" and site.reason.endswith("it is blurred"))
        assert site.reason and (site.action == "blur") == bool(site.placement) and edited == bool(site.edits), site
    return {site.name: site.rule for site in plan.sites}


class Forward(nn.Module):
    """A forward given as a function, behind a dense convolution."""

    def __init__(self, function: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


# --- names, kinds, geometry


def test_modules_are_called_by_their_path() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, (1, 2), (1, 0), 2), nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3)), nn.AvgPool2d(2)
    )
    sites = found(net)
    assert [(site.name, site.op.kind) for site in sites] == [("0", "conv"), ("1.0", "maxpool"), ("2", "avgpool")]
    conv, pool, average = (site.op for site in sites)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 2), (1, 0), (2, 2))
    assert (pool.kernel_size, pool.stride, pool.padding) == ((3, 3), (2, 2), (1, 1))
    assert (average.kernel_size, average.stride) == ((2, 2), (2, 2))
    assert conv.input_shape == (1, 3, 32, 32) and conv.output_shape == (1, 4, 30, 14)


def test_dense_ops_are_no_sites() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1),
        nn.ConvTranspose2d(4, 4, 2, 2),
        nn.Upsample(scale_factor=2),
    )
    assert names(net) == []


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_rank_as_modules_and_as_calls(rank: int) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3, *[3] * rank))

        def forward(self, x: Tensor) -> Tensor:
            x = getattr(F, f"conv{rank}d")(x, self.weight, stride=2)
            return getattr(F, f"avg_pool{rank}d")(getattr(F, f"max_pool{rank}d")(x, 2), 2)

    x = torch.zeros(1, 3, *[20] * rank)
    modules = nn.Sequential(
        getattr(nn, f"Conv{rank}d")(3, 3, 3, 2), getattr(nn, f"MaxPool{rank}d")(2), getattr(nn, f"AvgPool{rank}d")(2)
    )
    assert names(modules, x) == ["0", "1", "2"]
    calls = found(Calls(), x)
    assert [site.op.kind for site in calls] == ["conv", "maxpool", "avgpool"]
    assert [site.name.partition("#")[0] for site in calls][::2] == [f":conv{rank}d", f":avg_pool{rank}d"]
    assert calls[1].name.startswith(f":max_pool{rank}d")


def test_calls_in_a_forward_are_numbered() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(F.max_pool2d(x, 2) + F.max_pool2d(x, 3, 2, 1), 2)

    inner = nn.Sequential(Forward(forward))
    assert names(inner) == ["0:max_pool2d", "0:max_pool2d#2", "0:max_pool2d#3"]


def test_names_are_unique_and_the_same_every_time() -> None:
    net = timm.create_model("inception_v3", aux_logits=False)
    first = names(net, torch.zeros(1, 3, 128, 128))
    assert len(first) == len(set(first)) > 5
    assert names(net, torch.zeros(1, 3, 128, 128)) == first


def test_module_called_twice_is_one_site() -> None:
    shared = nn.Conv2d(4, 4, 3, 2, 1)
    sites = found(Forward(lambda self, x: self.shared(x) + self.shared(x.relu()), shared=shared))
    assert [(site.name, len(site.ops)) for site in sites] == [("shared", 2)]


def test_backbone_called_on_two_images() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.MaxPool2d(2)
            )

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.backbone(a) - self.backbone(b)

    sites = found(Siamese(), IMAGE, IMAGE.clone())
    assert [(site.name, len(site.ops)) for site in sites] == [("backbone.2", 2), ("backbone.4", 2)]
    assert set(rules(Siamese(), IMAGE, IMAGE.clone()).values()) == {"after-activation", "maxpool"}


def test_module_used_in_two_ways_varies() -> None:
    """A layer whose stride follows what it is called with has no single dense version."""

    class Twice(nn.Module):
        def forward(self, x: Tensor, stride: int) -> Tensor:
            return F.avg_pool2d(x, 2, stride)

    net = Forward(lambda self, x: self.twice(self.twice(x, 2), 4), twice=Twice())
    assert rules(net) == {"twice": "varies"}
    once_dense = Forward(lambda self, x: self.twice(self.twice(x, 2), 1), twice=Twice())
    assert rules(once_dense) == {"twice": "varies"}


# --- slices


def test_slice_in_a_lambda_is_replaced_by_the_filter() -> None:
    subsample = lambda x: x[:, :, ::2, ::2]  # noqa: E731
    net = Forward(lambda self, x: subsample(x))
    assert rules(net) == {":slice": "slice-blurred"}
    x = torch.randn(2, 3, 15, 32)
    assert torch.equal(blurify.convert(net, filter_size=1, example_inputs=IMAGE)(x), net(x))
    expected = blurify.BlurPool2d(2)(net.conv(x))
    torch.testing.assert_close(blurify.convert(net, example_inputs=IMAGE)(x), expected)


@pytest.mark.parametrize(
    ("subsample", "rule"),
    [
        (lambda x: x[..., ::2], "slice"),  # one dimension: tokens?
        (lambda x: x[..., None][:, :, ::2, ::3], "slice"),  # two dimensions of three
        (lambda x: x[:, :, 1::2], "slice"),  # not the first phase
        (lambda x: x[:, :, :-1:2], "slice"),  # not to the end
        (lambda x: x[:, :, 2::2, 2::2], "slice"),  # cropped, which a blur at full size is not
        (lambda x: x[:, :, -4::2, -4::2], "slice"),
        (lambda x: x[:, :, ::2, ::2] + x[:, :, 1::2, 1::2], "slice"),  # two phases of four
        (lambda x: x[:, ::2, :, ::2], "slice"),  # channels too, or are they?
        (lambda x: x.flatten(2)[:, :, ::2], "slice"),  # channels or samples
    ],
)
def test_slices_that_drop_phases_are_listed(subsample: Any, rule: str) -> None:
    net = Forward(lambda self, x: subsample(x))
    plan = blurify.inspect(net, IMAGE)
    assert plan.sites and {(site.kind, site.action, site.rule) for site in plan.sites} == {("slice", "skip", rule)}
    assert plan.sites[0].name == ":slice"
    assert "module" in plan.sites[0].reason or "BlurPool" in plan.sites[0].reason


def test_slice_strides_are_per_spatial_dimension() -> None:
    (site,) = found(Forward(lambda self, x: x[:, :, ::2, 1::3]))
    assert site.op.stride == (2, 3) and site.op.output_shape == (1, 4, 16, 11)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1),  # space to depth
        lambda x: x[:, ::2],  # channels
        lambda x: x[::2],  # samples
        lambda x: x[:, :, 1:-1, 4:],  # cropping
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: x + torch.arange(64.0)[::2],  # a table
    ],
)
def test_other_indexing_is_no_site(other: Any) -> None:
    assert names(Forward(lambda self, x: other(x))) == []


# --- stems


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x,
        lambda x: (x - 0.5) / 0.25,
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: x[:, :, 1:],
        lambda x: F.interpolate(x, scale_factor=2.0),
        lambda x: torch.cat([x, x.abs()], 1)[:, :3],
    ],
)
def test_stem_reads_the_image_whatever_comes_first(before: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.next = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.next(self.stem(before(x)).relu()).relu()

    def strided(recipe: Any = None) -> dict[str, str]:
        return {name: rule for name, rule in rules(Model(), recipe=recipe).items() if rule != "upsampling"}

    assert strided() == {"stem": "stem", "next": "after-activation"}
    assert strided("full") == {"stem": "after-activation", "next": "after-activation"}


def test_stem_of_two_branches() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 5, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return (self.a(x) + self.b(x)).relu()

    assert rules(Model()) == {"a": "stem", "b": "stem"}


def test_pool_on_the_image_is_no_stem() -> None:
    assert rules(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3))) == {"0": "maxpool"}


def test_conv_behind_a_linear_layer_is_no_stem() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.Conv2d(3, 4, 3, 2), nn.ReLU())
    assert rules(net) == {"1": "after-activation"}


@pytest.mark.parametrize(
    ("kernel", "stride", "rule"), [(4, 4, "patchify-stem"), (3, 4, "patchify-stem"), (5, 4, "stem")]
)
def test_patchify_stem(kernel: int, stride: int, rule: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, kernel, stride), nn.LayerNorm(8 if kernel != 5 else 7))
    assert rules(net) == {"0": rule}


def test_patchify_within_the_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.ReLU())
    assert rules(net) == {"2": "blurred-input"}


# --- filtered already


class FixedFilter(nn.Module):
    """A user's own blur: a buffer as a depthwise kernel."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0])
        kernel = (taps[:, None] * taps)[None, None] / 16
        if learned:
            self.kernel = nn.Parameter(kernel)
        else:
            self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.expand(x.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), weight, stride=2, groups=x.shape[1])


def test_constant_depthwise_filter_is_left_alone() -> None:
    net = Forward(lambda self, x: self.blur(x), blur=FixedFilter())
    assert rules(net) == {"blur": "already-filtered"}
    learned = Forward(lambda self, x: self.blur(x), blur=FixedFilter(learned=True))
    assert rules(learned) == {"blur": "blurred-input"}


def test_frozen_weights_are_no_constant_filter() -> None:
    conv = nn.Conv2d(4, 4, 3, 2, groups=4).requires_grad_(False)
    assert rules(nn.Sequential(nn.Conv2d(3, 4, 1), conv)) == {"1": "blurred-input"}


def test_strided_op_behind_our_own_blur_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), blurify.BlurPool2d(1, factor=2), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
    assert rules(net) == {"2": "already-filtered"}
    assert rules(nn.Sequential(nn.Conv2d(3, 4, 1), blurify.BlurPool2d(2), blurify.MaxBlurPool2d(2))) == {}


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50"])
def test_timm_models_with_an_anti_aliasing_layer(name: str) -> None:
    net = timm.create_model(name)
    plan = blurify.inspect(net, torch.zeros(1, 3, 64, 64))
    assert plan.sites
    filters = [site for site in plan.sites if site.rule == "already-filtered"]
    if name == "resnetblur50":  # its filter is a constant; resnetaa50 has average pools
        assert len(filters) >= 3 and all(site.action == "skip" for site in filters)
        assert all("aa" in site.name or "maxpool" in site.name for site in filters), filters
    else:
        assert not filters and any(site.kind == "avgpool" and site.action == "blur" for site in plan.sites)


# --- what cannot be done


@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        (nn.LPPool2d(2, 2), "lppool"),
        (nn.FractionalMaxPool2d(2, output_ratio=0.5), "fractionalmaxpool"),
    ],
)
def test_other_pools_are_listed(pool: nn.Module, kind: str) -> None:
    plan = blurify.inspect(nn.Sequential(nn.Conv2d(3, 4, 1), pool), IMAGE)
    # An LPPool is made of an average pool, which must not be taken for one: x^p is not what may be filtered.
    assert {(site.kind, site.action, site.rule) for site in plan.sites} == {(kind, "skip", "other-pool")}


def test_masks_and_whole_numbers_are_not_blurred() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
            return F.max_pool2d(x, 2) * mask[:, :, ::2, ::2] * F.max_pool2d(ids, 2)

    inputs = (IMAGE, torch.ones(1, 1, *IMAGE.shape[2:], dtype=torch.bool), torch.ones(1, 1, *IMAGE.shape[2:]).int())
    converted = blurify.convert(Masked(), example_inputs=inputs)
    assert [site.rule for site in blurify.plan_of(converted).sites] == ["maxpool", "whole-numbers", "whole-numbers"]
    assert torch.equal(converted(*inputs), blurify.BlurPool2d()(F.max_pool2d(IMAGE, 2, 1)))


def test_indices_in_use_are_a_reason_to_skip() -> None:
    class Unpools(nn.Module):
        def __init__(self, use: bool) -> None:
            super().__init__()
            self.conv, self.pool, self.use = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, return_indices=True), use

        def forward(self, x: Tensor) -> Tensor:
            y, indices = self.pool(self.conv(x))
            return F.max_unpool2d(y, indices, 2) if self.use else y

    assert rules(Unpools(True)) == {"pool": "returns-indices", ":max_unpool2d": "other-resampling"}
    assert "return_indices=False" in blurify.inspect(Unpools(True), IMAGE).sites[0].reason
    net = Unpools(False)
    converted = blurify.convert(net, filter_size=1, example_inputs=IMAGE)  # whatever is decided, it must still run
    assert torch.equal(converted(IMAGE), net(IMAGE))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(32), nn.AvgPool2d(40, ceil_mode=True, padding=4)])
def test_global_pool_does_not_alias(pool: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), pool)
    assert rules(net) == {"1": "global-pool"}
    converted, x = blurify.convert(net, example_inputs=IMAGE), torch.randn(1, 3, 32, 32)
    assert torch.equal(converted(x), net(x))


def test_pool_that_is_global_at_one_size_is_blurred_at_larger_ones() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(32))
    x = torch.randn(1, 3, 96, 64)
    converted = blurify.convert(net, example_inputs=IMAGE)
    assert converted(x).shape == net(x).shape and not torch.allclose(converted(x), net(x))


def test_adaptive_pools_are_no_sites() -> None:
    assert names(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))) == []


def test_modules_that_do_not_run_are_listed() -> None:
    class Aux(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux = (
                nn.Conv2d(3, 4, 1),
                nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.body(x)
            return self.aux(y) if self.training else y

    assert rules(Aux()) == {"aux.0": "not-run", "aux.1": "not-run"}


def test_scripted_submodule_is_listed_and_nothing_crashes() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3, 2), nn.ReLU()))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), scripted, nn.MaxPool2d(2))
    assert rules(net) == {"3": "maxpool", "2": "scripted"}
    converted = blurify.convert(net, example_inputs=IMAGE)
    assert converted(IMAGE).shape == net(IMAGE).shape


def test_scripted_submodule_that_does_not_subsample_may_pass() -> None:
    net = nn.Sequential(torch.jit.script(nn.ReLU()), nn.Conv2d(3, 4, 1), nn.MaxPool2d(2))
    assert rules(net) == {"2": "maxpool"}


# --- multiply-adds


def test_multiply_adds() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, groups=1), nn.Conv2d(4, 8, 1, groups=2), nn.Flatten(), nn.Linear(2048, 5)
    )
    assert trace(net, ((IMAGE,), {}), count=True).macs == 4 * 256 * 27 + 8 * 256 * 2 + 2048 * 5


def test_multiply_adds_of_calls_with_keywords() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.conv_transpose2d(input=x, weight=torch.ones(4, 4, 2, 2), stride=2)
        return F.scaled_dot_product_attention(query=x, key=x, value=x)

    plan = blurify.inspect(Forward(forward), torch.zeros(1, 3, 8, 8))
    conv, transposed, attention = 4 * 8 * 8 * 3 * 3 * 3, 4 * 8 * 8 * 4 * 2 * 2, 2 * 4 * 16 * 16 * 16
    assert plan.macs == conv + transposed + attention
