"""`--arch auto`: tensors lead back to what they are of, to what computes the same, or to a refusal that lists it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.files import opening
from blurify.files.sources import auto
from blurify.files.sources.auto import find_architecture
from blurify.files.sources.index import Index, Kind, index

# One or two of every family of timm, and torchvision's; what `make architectures` does for all.
SAMPLE = """
timm/beit_base_patch16_384 timm/cait_xxs24_224 timm/convmixer_768_32 timm/convnext_tiny timm/cspdarknet53
timm/davit_tiny timm/deit3_small_patch16_224 timm/dla34 timm/dm_nfnet_f0 timm/edgenext_small
timm/efficientformer_l1 timm/focalnet_tiny_srf timm/ghostnet_100 timm/hrnet_w18 timm/inception_v4 timm/levit_128
timm/mixer_b16_224 timm/mobilenetv2_100 timm/mobilevit_s timm/mvitv2_tiny timm/nfnet_l0 timm/poolformer_s12
timm/pvt_v2_b0 timm/regnety_008 timm/repvgg_a0 timm/resmlp_12_224 timm/resnet10t timm/resnet26d timm/resnetv2_50
timm/rexnet_100 timm/seresnet50 timm/skresnet18 timm/swin_tiny_patch4_window7_224 timm/tresnet_m
timm/twins_svt_small timm/vgg16 timm/visformer_tiny timm/vit_small_patch32_224 timm/volo_d1_224 timm/xception41
torchvision/alexnet torchvision/convnext_tiny torchvision/deeplabv3_resnet50 torchvision/fasterrcnn_resnet50_fpn
torchvision/mobilenet_v2 torchvision/mobilenet_v3_small torchvision/r3d_18 torchvision/shufflenet_v2_x1_0
torchvision/squeezenet1_1 torchvision/swin_t torchvision/vgg16_bn torchvision/vit_b_16
""".split()


def shapes(spec: str, **options: object) -> dict[str, tuple[int, ...]]:
    """Of the model as its library builds it."""
    library, _, name = spec.partition("/")
    with torch.device("meta"):
        if library == "timm":
            model = timm.create_model(name, **options)
        else:
            more = {"weights_backbone": None} if any(part in name for part in ("rcnn", "lab", "fcn")) else {}
            model = torchvision.models.get_model(name, weights=None, **more, **options)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("spec", SAMPLE)
def test_tensors_lead_back(spec: str) -> None:
    found = find_architecture(shapes(spec), "it")
    assert found.spec == spec
    assert found.note.startswith(f"took {spec} for it: all {len(shapes(spec))} names and shapes match")


@pytest.mark.parametrize("spec", [spec for spec in SAMPLE if spec.startswith("timm/")][::4])
def test_another_head_and_stem_are_read_off(spec: str) -> None:
    found = find_architecture(shapes(spec, num_classes=11, in_chans=1), "it")
    assert found.spec == f"{spec}?num_classes=11&in_chans=1"
    assert "num_classes=11, read off" in found.note and "in_chans=1, read off" in found.note


def test_a_head_that_is_gone() -> None:
    assert (
        find_architecture(shapes("timm/convnext_tiny", num_classes=0), "it").spec == "timm/convnext_tiny?num_classes=0"
    )


def lively(model: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics with which every layer has an effect."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: value if not value.is_floating_point()
        else torch.rand(value.shape, generator=generator) + 0.5 if value.dim() == 1
        else torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        for name, value in model.state_dict().items()
    }  # fmt: skip


def outputs(names: list[str]) -> list[Tensor]:
    """What architectures compute with the same weights."""
    weights: dict[str, Tensor] = {}
    found = []
    for spec in names:
        library, _, name = spec.partition("/")
        build = timm.create_model if library == "timm" else torchvision.models.get_model
        model = build(name).eval()
        weights = weights or lively(model)
        model.load_state_dict(weights)
        with torch.no_grad():
            found.append(model(torch.randn(1, 3, 97, 97, generator=torch.Generator().manual_seed(1))))
    return found


def test_the_plainest_of_those_that_compute_the_same() -> None:
    found = find_architecture(shapes("torchvision/resnet34"), "it")
    assert found.spec == "timm/resnet34"
    assert found.note == (
        "took timm/resnet34 for it: all 218 names and shapes match (torchvision/resnet34 computes the same)"
    )
    one, other = outputs(["timm/resnet34", "torchvision/resnet34"])
    assert torch.allclose(one, other, rtol=1e-4)


def test_several_functions_are_refused() -> None:
    with pytest.raises(BlurifyError) as caught:
        find_architecture(shapes("timm/mobilenetv3_small_100", num_classes=3), "w.pt")
    said = str(caught.value)
    assert "different functions" in said and "w.pt" in said and "\n" not in said
    assert "timm/mobilenetv3_small_100?num_classes=3" in said and "timm/tf_mobilenetv3_small_100?num_classes=3" in said
    one, other = outputs(["timm/mobilenetv3_small_100", "timm/tf_mobilenetv3_small_100"])
    assert not torch.allclose(one, other, rtol=1e-2)


def test_those_with_fixed_filters_are_named() -> None:
    found = find_architecture(shapes("timm/resnet18"), "it")
    assert found.spec == "timm/resnet18" and "torchvision/resnet18 computes the same" in found.note
    assert "give --arch: timm/resnetblur18 has the same tensors" in found.note
    one, other = outputs(["timm/resnet18", "timm/resnetblur18"])
    assert not torch.allclose(one, other, rtol=1e-2)


def test_an_option_that_leaves_no_trace_is_asked_for() -> None:
    with pytest.raises(BlurifyError, match=r"torchvision/googlenet torchvision/googlenet\?transform_input=true"):
        find_architecture(shapes("torchvision/googlenet"), "it")


def test_nothing_is_found() -> None:
    with pytest.raises(
        BlurifyError, match="no architecture of timm or torchvision that is known here has the 1 tensors"
    ):
        find_architecture({"a.weight": (3, 4)}, "it")
    more = shapes("timm/resnet10t") | {"more.weight": (3,)}
    with pytest.raises(BlurifyError, match="no architecture"):
        find_architecture(more, "it")


def test_a_wrong_index_finds_less_and_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = shapes("timm/resnet10t")
    for wrong in ("timm/resnet14t", "timm/no_such_architecture"):
        stale = Index((Kind((), ()),), {Kind((), ()).trunk(theirs): (wrong,)}, ())
        monkeypatch.setattr(auto, "index", lambda stale=stale: stale)
        with pytest.raises(BlurifyError, match="no architecture"):
            find_architecture(theirs, "it")


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_file_is_opened(tmp_path: Path, prefix: str) -> None:
    theirs = timm.create_model("test_efficientnet", num_classes=6).eval()
    named = OrderedDict((prefix + name, value) for name, value in theirs.state_dict().items())
    torch.save({"state_dict": named, "epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(BlurifyError, match="add --arch auto to look for it"):
        opening.open_model(str(tmp_path / "w.pt"))
    loaded = opening.open_model(str(tmp_path / "w.pt"), arch="auto")
    assert loaded.source.arch == "timm/test_efficientnet?num_classes=6"
    assert "took timm/test_efficientnet for it" in loaded.note and "num_classes=6, read off" in loaded.note
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(x), theirs(x))


def test_the_index_knows_what_is_installed() -> None:
    known = {spec for specs in index().trunks.values() for spec in specs}
    assert len(known) > 1400
    # Other versions have others: this is about the index, not about them.
    assert len(known & {f"timm/{name}" for name in timm.list_models()}) > 1200
