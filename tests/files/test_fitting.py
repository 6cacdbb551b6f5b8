"""What is read off a file's tensors: classes, input channels, heads that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from blurify.errors import BlurifyError
from blurify.files import opening
from blurify.files.sources.fitting import fitted


def shapes(library: str, name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Of the model as its library builds it."""
    with torch.device("meta"):
        if library == "timm":
            model = timm.create_model(name, **options)
        else:
            if any(part in name for part in ("rcnn", "fcn", "retinanet")):
                options["weights_backbone"] = None
            model = torchvision.models.get_model(name, weights=None, **options)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("library", "name", "options", "query", "words"),
    [
        ("timm", "resnet18", {"num_classes": 10}, "num_classes=10", "num_classes=10, read off fc.weight"),
        ("timm", "resnet18", {"in_chans": 1}, "in_chans=1", "in_chans=1, read off conv1.weight"),
        ("timm", "resnet18", {"num_classes": 2, "in_chans": 4}, "num_classes=2&in_chans=4", "in_chans=4"),
        ("timm", "resnet18", {"num_classes": 0}, "num_classes=0", "num_classes=0, as there is no fc"),
        ("timm", "tresnet_m", {"num_classes": 7, "in_chans": 1}, "num_classes=7&in_chans=1", "body.conv1.conv.weight"),
        ("timm", "vit_tiny_patch16_224", {"num_classes": 5, "in_chans": 2}, "num_classes=5&in_chans=2", "head.weight"),
        ("timm", "vit_small_patch14_dinov2", {"num_classes": 5}, "num_classes=5", "head.weight"),
        ("timm", "deit_tiny_distilled_patch16_224", {"num_classes": 5}, "num_classes=5", "head"),
        ("torchvision", "resnet18", {"num_classes": 10}, "num_classes=10", "fc.weight"),
        ("torchvision", "squeezenet1_1", {"num_classes": 10}, "num_classes=10", "classifier.1.weight"),
        ("torchvision", "inception_v3", {"aux_logits": False}, "aux_logits=false", "no AuxLogits."),
        (
            "torchvision", "googlenet", {"aux_logits": False, "num_classes": 3},
            "num_classes=3&aux_logits=false", "no aux1.",
        ),
        ("torchvision", "googlenet", {"num_classes": 3}, "num_classes=3", "num_classes=3"),
        (
            "torchvision", "fcn_resnet50", {"num_classes": 4, "aux_loss": True},
            "num_classes=4&aux_loss=true", "aux_loss",
        ),
        ("torchvision", "fasterrcnn_resnet50_fpn", {"num_classes": 2}, "num_classes=2", "num_classes=2"),
        ("torchvision", "retinanet_resnet50_fpn", {"num_classes": 2}, "num_classes=2", "cls_logits"),
        ("torchvision", "r3d_18", {"num_classes": 11}, "num_classes=11", "fc.weight"),
    ],
)  # fmt: skip
def test_options_are_read_off(library: str, name: str, options: dict[str, Any], query: str, words: str) -> None:
    found = fitted(f"{library}/{name}", shapes(library, name, **options))
    assert found is not None
    spec, why = found
    assert spec == f"{library}/{name}?{query}" and words in why


@pytest.mark.parametrize(
    ("arch", "theirs"),
    [
        ("timm/resnet18", shapes("timm", "resnet34")),
        ("timm/resnet50", shapes("timm", "wide_resnet50_2")),
        ("timm/resnet18", shapes("timm", "resnet18") | {"more": (3,)}),
        ("timm/resnet18", shapes("timm", "resnet18") | {"layer1.0.bn1.weight": (65,)}),
        ("torchvision/resnet18", shapes("timm", "resnet18", in_chans=1)),  # takes no such option
        ("timm/resnet18?num_classes=5", shapes("timm", "resnet18", num_classes=10)),  # the user's word stands
    ],
)
def test_nothing_is_made_to_fit(arch: str, theirs: dict[str, tuple[int, ...]]) -> None:
    assert fitted(arch, theirs) is None


def test_what_fits_needs_nothing() -> None:
    assert fitted("timm/resnet18", shapes("timm", "resnet18")) == ("timm/resnet18", "")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_a_file_with_another_head_and_stem(tmp_path: Path, prefix: str) -> None:
    theirs = timm.create_model("test_convnext", num_classes=10, in_chans=1).eval()
    torch.save({prefix + name: value for name, value in theirs.state_dict().items()}, tmp_path / "w.pt")
    loaded = opening.open_model(str(tmp_path / "w.pt"), arch="timm/test_convnext")
    assert loaded.source.arch == "timm/test_convnext?num_classes=10&in_chans=1"
    assert loaded.note.startswith("num_classes=10, read off head.fc.weight, in_chans=1, read off stem.0.weight")
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(loaded.model(x), theirs(x)) and loaded.model(x).shape == (1, 10)


def test_a_head_of_other_widths_is_refused(tmp_path: Path) -> None:
    theirs = timm.create_model("test_convnext")
    theirs.head.fc = nn.Linear(32, 10)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    with pytest.raises(BlurifyError, match=r"head\.fc\.weight \(10, 32\) in the file, \(1000, 64\)"):
        opening.open_model(str(tmp_path / "w.pt"), arch="timm/test_convnext")
