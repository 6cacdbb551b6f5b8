"""Every family of architectures, converted for real: the promises of the design's sections 3 to 5, model by model.

All of timm and torchvision takes hours and is `make zoo-check`; here one small member stands for each family.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import blurify
from blurify.graph.copies import sharing_copy
from blurify.graph.structure import tensors_in
from blurify.planning.planner import make_plan
from blurify.surgery.apply import apply_plan

# Architecture -> an odd size that it takes besides its own; None where it takes no other, or only certain multiples.
TIMM: dict[str, int | None] = {
    # residual: basic and bottleneck blocks, shared and separate activations, pooled shortcuts, pre-activation
    "resnet18": 97,
    "resnet26d": 97,
    "resnext26ts": 97,
    "legacy_seresnet18": 97,
    "skresnet18": 97,
    "resnest14d": 97,
    "res2next50": 97,
    "resnetv2_18": 97,
    "resnetv2_50x1_bit": 97,
    "tresnet_m": None,
    "hrnet_w18_small": None,
    "dla46x_c": None,
    "dpn48b": 97,
    "selecsls42": 97,
    "ese_vovnet19b_slim_dw": 97,
    "halonet_h1": None,
    "test_byobnet": 97,
    # cross-stage partial, dense, plain and re-parameterised
    "cs3darknet_focus_s": 97,
    "cspnext_tiny": 97,
    "cspresnet50": 97,
    "darknet17": 97,
    "densenet121": 97,
    "rdnet_tiny": None,
    "vgg11_bn": 97,
    "repvgg_a0": 97,
    "mobileone_s0": 97,
    "repghostnet_050": 97,
    "repvit_m1": 97,
    "fastvit_t8": 97,
    "fasternet_t0": 97,
    "starnet_s050": 97,
    # inception and xception: functional pools, separable convolutions
    "inception_v3": 147,
    "inception_v4": 147,
    "inception_resnet_v2": 147,
    "legacy_xception": 97,
    "xception41p": 97,
    # mobile: depthwise strides, squeeze and excite, plain and TF "same" padding
    "mobilenetv2_035": 97,
    "mobilenetv3_small_050": 97,
    "tf_mobilenetv3_small_075": 97,
    "mobilenetv4_conv_small_035": 97,
    "efficientnet_lite0": 97,
    "tf_efficientnet_b0": 97,
    "tf_efficientnetv2_b0": 97,
    "test_efficientnet": 97,
    "mixnet_s": 97,
    "tf_mixnet_s": 97,
    "tf_efficientnet_cc_b0_4e": 97,
    "lcnet_050": 97,
    "hardcorenas_b": 97,
    "ghostnet_050": 97,
    "ghostnetv2_100": None,
    "rexnet_100": 97,
    "hgnetv2_b0": 97,
    "regnetx_002": 97,
    "regnety_002": 97,
    "regnetz_005": 97,
    # standardised convolutions
    "test_nfnet": 97,
    "nf_regnet_b0": 97,
    "dm_nfnet_f0": 97,
    # convolutional and hybrid transformers
    "convnext_atto": 97,
    "inception_next_atto": 97,
    "edgenext_xx_small": None,
    "poolformerv2_s12": 97,
    "test_mambaout": 97,
    "focalnet_tiny_srf": None,
    "davit_tiny": None,
    "swin_tiny_patch4_window7_224": None,
    "test_coatnet": None,
    "maxvit_rmlp_pico_rw_256": None,
    "gcvit_xxtiny": None,
    "efficientformer_l1": None,
    "efficientformerv2_s0": None,
    "efficientvit_b0": None,
    "efficientvit_m0": None,
    "efficientvim_m1": None,
    "swiftformer_xs": None,
    "shvit_s1": None,
    "levit_128s": None,
    "lowformer_b0": None,
    "mobilevit_xxs": None,
    "mvitv2_tiny": None,
    "jx_nest_tiny": None,
    "nextvit_small": None,
    "pit_ti_224": None,
    "pvt_v2_b0": None,
    "tiny_vit_5m_224": None,
    "twins_svt_small": None,
    "visformer_tiny": None,
    "coat_tiny": None,
    "xcit_nano_12_p8_224": None,
    "vit_tiny_r_s16_p8_224": None,
    "iformer_t": None,
}
TORCHVISION: dict[str, int | None] = {
    "alexnet": 97,
    "resnet18": 97,
    "resnet50": 97,
    "squeezenet1_1": 97,
    "googlenet": 97,
    "inception_v3": 147,
    "densenet121": 97,
    "mobilenet_v2": 97,
    "mobilenet_v3_small": 97,
    "mnasnet0_5": 97,
    "shufflenet_v2_x0_5": 97,
    "efficientnet_b0": 97,
    "regnet_y_400mf": 97,
    "fcn_resnet50": 97,
    "deeplabv3_mobilenet_v3_large": 97,
    "lraspp_mobilenet_v3_large": 97,
    "r3d_18": None,
    "s3d": None,
}
NOTHING_TO_CONVERT = {"swin_tiny_patch4_window7_224"}  # it only cuts the image into patches, and merges by reshaping
SKIPPED_FOR = {"stem", "patchify-stem", "already-filtered", "global-pool", "slice", "not-run"}
# What resamples without a strided op is only listed: the recipes 'vit', 'decoder' and 'resampling' are for it.
SKIPPED_FOR |= {"merging", "upsampling", "resampling", "interpolates", "spread", "little", "other-resampling"}


def lively(model: nn.Module) -> nn.Module:
    """Random norms and scales, so that no branch of a fresh model is multiplied by (almost) zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or parameter.abs().max() < 1e-2:
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.data = 0.5 + noise if name != "bias" else noise - 0.5
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=generator) - 0.5)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def timm_model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    model = timm.create_model(name)
    return lively(model), (1, *model.pretrained_cfg["input_size"])


def torchvision_model(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    options: dict[str, object] = {"weights": None}
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    size = {"inception_v3": (299, 299), "r3d_18": (8, 64, 64), "s3d": (16, 224, 224)}.get(name, (224, 224))
    if name.startswith(("fcn", "deeplab", "lraspp")):
        size = (160, 160)
    return lively(torchvision.models.get_model(name, **options)), (1, 3, *size)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors_in(model(x))


def distance(expected: list[Tensor], actual: list[Tensor]) -> float:
    assert [t.shape for t in expected] == [t.shape for t in actual]
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(expected, actual, strict=True))


CASES = [(timm_model, name, odd) for name, odd in TIMM.items()] + [
    (torchvision_model, name, odd) for name, odd in TORCHVISION.items()
]


@pytest.mark.parametrize(("build", "name", "odd"), CASES, ids=[f"{b.__name__[:-6]}-{n}" for b, n, _ in CASES])
def test_architecture(build: Callable[[str], tuple[nn.Module, tuple[int, ...]]], name: str, odd: int | None) -> None:
    torch.manual_seed(0)
    model, shape = build(name)
    x = torch.randn(shape)
    expected = run(model, x)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    converted = blurify.convert(model, example_inputs=x)  # the identity check and the audit run here

    plan, proof = blurify.plan_of(converted), blurify.proof_of(converted)
    assert plan is not None and proof is not None
    assert proof.identity_error <= {"float32": 1e-4, "float64": 1e-9}[proof.dtype]
    assert bool(plan.converted) == (name not in NOTHING_TO_CONVERT)
    assert {site.rule for site in plan.skipped} <= SKIPPED_FOR, list(plan.skipped)

    # Same class, same weights, and the original as it was.
    assert isinstance(converted, type(model)) and type(converted).__qualname__ == type(model).__qualname__
    after = converted.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert distance(expected, run(model, x)) == 0
    converted.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(after, strict=True)

    # Same shapes, other values: the blur is there.
    blurred = run(converted, x)
    if plan.converted:
        assert distance(expected, blurred) > 0
    else:
        assert distance(expected, blurred) == 0

    # A second conversion changes nothing: neither by the plan that the model carries, nor by what is seen in it.
    again = blurify.convert(converted)
    assert [name for name, _ in again.named_modules()] == [name for name, _ in converted.named_modules()]
    assert distance(blurred, run(again, x)) == 0
    assert make_plan(converted, plan.recipe, x).converted == ()

    # Planned at one size, right at another.
    if odd is not None:
        y = torch.randn(*shape[:2], *(odd + 2 * dim for dim in range(len(shape) - 2)))
        unfiltered = sharing_copy(model)
        apply_plan(unfiltered, plan.with_method(lambda method: method.identity()))
        other = run(model, y)
        assert distance(other, run(unfiltered, y)) <= 1e-4
        assert [t.shape for t in run(converted, y)] == [t.shape for t in other]


def test_detection_backbone_with_its_pyramid() -> None:
    torch.manual_seed(0)
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    images = [torch.rand(3, 160, 160)]
    converted = blurify.convert(lively(model), example_inputs=(images,))
    plan = blurify.plan_of(converted)
    assert plan is not None
    assert any("fpn" in site.name and site.kind == "maxpool" for site in plan.converted)
    x = torch.rand(1, 3, 97, 161)
    with torch.no_grad():
        expected, actual = model.backbone(x), converted.backbone(x)
        unfiltered = sharing_copy(model)
        apply_plan(unfiltered, plan.with_method(lambda method: method.identity()))
        same = unfiltered.backbone(x)
    assert {k: v.shape for k, v in actual.items()} == {k: v.shape for k, v in expected.items()}
    assert distance(list(expected.values()), list(same.values())) <= 1e-4
    assert list(converted.state_dict()) == list(model.state_dict())


def test_there_are_enough_families() -> None:
    assert len(CASES) >= 80
