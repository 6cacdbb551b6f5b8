"""What an output is taken for: told from names, values and layers, chosen, or refused; for models of every kind."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.metrics import Measurement, measure, outputs
from blurify.metrics.consistency import consistency
from blurify.metrics.measuring import METRICS
from blurify.metrics.results import Output
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures, logits_of

CROP = (24, 24)
PLAIN = Preprocessing(CROP, (28, 28), 3, (0.0,) * 3, (1.0,) * 3)


def trunk(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    nn.init.normal_(layers[0].weight, std=2.0)
    return layers


class Heads(nn.Module):
    """One trunk and several linear layers; what it returns is up to a function of them all."""

    def __init__(self, make: Callable[[dict[str, Tensor]], Any], **sizes: int) -> None:
        super().__init__()
        self.trunk = trunk()
        self.heads = nn.ModuleDict({name: nn.Linear(8, size) for name, size in sizes.items()})
        for layer in self.heads.values():
            nn.init.normal_(layer.weight, std=2.0)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        features = self.trunk(x)
        return self.make({name: layer(features) for name, layer in self.heads.items()} | {"features": features})


class Function(nn.Module):
    """A function of the picture, with a convolution before it where it has channels."""

    def __init__(self, function: Callable[[Tensor], Any], channels: int | None = None, **attributes: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, channels, 3, 1, 1) if channels else nn.Identity()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x))


Pair = namedtuple("Pair", "logits aux")


def onet(parts: dict[str, Tensor]) -> Any:
    """As MTCNN's O-net: box offsets, landmarks, probabilities."""
    return parts["boxes"], parts["points"], parts["classes"].softmax(1)


TOLD: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "a linear layer": (lambda: nn.Sequential(trunk(), nn.Linear(8, 5)), "classes", ""),
    "a linear layer that embeds": (lambda: Heads(lambda p: p["embedding"], embedding=16), "embedding", ""),
    "a softmax": (lambda: Heads(lambda p: p["fc"].softmax(1), fc=4), "classes", ""),
    "a sigmoid": (lambda: Heads(lambda p: p["fc"].sigmoid(), fc=4), "classes", ""),
    "length 1": (lambda: Heads(lambda p: F.normalize(p["fc"]), fc=16), "embedding", ""),
    "a norm last": (lambda: nn.Sequential(trunk(), nn.Linear(8, 16), nn.BatchNorm1d(16)), "embedding", ""),
    "pooled features": (trunk, "embedding", ""),
    "pooled scores": (lambda: Function(lambda x: x.mean((2, 3)), 5), "classes", ""),
    "r-net": (lambda: Heads(lambda p: (p["a"], p["b"].softmax(1)), a=4, b=2), "classes", "1"),
    "o-net": (lambda: Heads(onet, boxes=4, points=10, classes=2), "classes", "2"),
    "classes and features": (lambda: Heads(lambda p: (p["features"], p["fc"]), fc=5), "classes", "1"),
    "a named tuple": (lambda: Heads(lambda p: Pair(p["a"], p["b"]), a=5, b=5), "classes", "logits"),
    "a dict": (lambda: Heads(lambda p: {"embedding": p["features"], "x": p["a"]}, a=5), "embedding", "embedding"),
    "nested": (lambda: Heads(lambda p: {"a": [{"logits": p["fc"]}, p["features"]]}, fc=5), "classes", "a.0.logits"),
    "says no classes": (lambda: Function(lambda x: 2 * x.mean((2, 3)), 7, num_classes=0), "embedding", ""),
    "says how many": (lambda: Function(lambda x: x.abs().mean((2, 3)), 7, num_classes=7), "classes", ""),
    "a label map": (lambda: nn.Conv2d(3, 4, 1), "label-map", ""),
    "p-net": (lambda: Function(lambda x: (x[:, :4], x[:, 4:].softmax(1)), 6), "label-map", "1"),
    "one number at each pixel": (lambda: nn.Conv2d(3, 1, 1), "dense", ""),
    "features": (lambda: Function(F.relu, 16), "dense", ""),
    "heat maps": (lambda: Function(lambda x: {"heatmaps": x}, 5), "dense", "heatmaps"),
    "channels last": (lambda: Function(lambda x: F.gelu(x[:, :, ::4, ::4].permute(0, 2, 3, 1)), 16), "dense", ""),
    "timm": (lambda: timm.create_model("resnet10t", num_classes=6), "classes", ""),
    "timm without a head": (lambda: timm.create_model("resnet10t", num_classes=0), "embedding", ""),
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(num_classes=7), "classes", ""),
    "lraspp": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None),
        "label-map", "out",
    ),
}  # fmt: skip


class Stack(nn.Module):
    """Linear layers and other weights, and a function of the pooled features and them."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk = trunk()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(8, 5))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("texts", F.normalize(torch.randn(5, 8), dim=1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.trunk(x))


def by_texts(self: Any, features: Tensor) -> Tensor:
    """As CLIP classifies without a classifier: scaled cosines with the embeddings of texts."""
    return self.scale.exp() * F.normalize(self.layers[0](features)) @ self.texts.t()


TOLD |= {
    "a product with weights": (lambda: Stack(lambda self, x: x @ self.weight + 1), "classes", ""),
    "a learned temperature": (lambda: Stack(lambda self, x: self.layers[0](x) / self.scale.clamp(0.1)), "classes", ""),
    "texts": (lambda: Stack(by_texts), "classes", ""),
    "distances to prototypes": (lambda: Stack(lambda self, x: -torch.cdist(x, self.texts)), "classes", ""),
    "an ensemble": (lambda: Stack(lambda self, x: sum(layer(x) for layer in self.layers) / 3), "classes", ""),
    "two ways to pool": (lambda: Function(lambda x: torch.cat([F.relu(x).mean((2, 3))] * 2, 1), 8), "embedding", ""),
}


def subject_of(model: nn.Module, crop: tuple[int, int] = CROP, output: str | None = None) -> Subject:
    canvas = (crop[0] + 4, crop[1] + 4)
    return Subject(model.eval(), Preprocessing(crop, canvas, 3, (0.0,) * 3, (1.0,) * 3), "it", output=output)


@pytest.mark.parametrize("name", TOLD)
def test_what_it_is_told_to_be(name: str) -> None:
    make, kind, entry = TOLD[name]
    large = name in ("squeezenet", "lraspp", "timm", "timm without a head")
    found = subject_of(make(), (64, 64) if large else CROP).output
    assert (found.kind, found.name) == (kind, entry)
    assert found.why and found.layout and (found.values != "") == (kind in ("classes", "label-map"))


def transformer(name: str) -> nn.Module:
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    if name == "vit":
        return t.ViTModel(t.ViTConfig(**small, intermediate_size=16))
    if name == "tokens":
        return t.ViTModel(t.ViTConfig(**small, intermediate_size=16), add_pooling_layer=False)
    if name == "vit-classes":
        return t.ViTForImageClassification(t.ViTConfig(**small, intermediate_size=16, num_labels=5))
    if name == "segformer":
        config = t.SegformerConfig(
            depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=5
        )
        return t.SegformerForSemanticSegmentation(config)
    assert name == "depth"
    backbone = t.Dinov2Config(**small, out_features=["stage1", "stage2"], reshape_hidden_states=False)
    config = t.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    return t.DepthAnythingForDepthEstimation(config)


@pytest.mark.parametrize(
    ("name", "kind", "entry", "shape"),
    [
        ("vit", "embedding", "pooler_output", (16,)),
        ("tokens", "dense", "last_hidden_state", (16, 4, 4)),
        ("vit-classes", "classes", "logits", (5,)),
        ("segformer", "label-map", "logits", (5, 14, 14)),
        ("depth", "dense", "predicted_depth", (1, 56, 56)),
    ],
)
def test_what_transformers_give(name: str, kind: str, entry: str, shape: tuple[int, ...]) -> None:
    """Also in order: tokens as the grid of their patches, without the class token."""
    model = transformer(name)
    subject = subject_of(model, (56, 56))
    assert (subject.output.kind, subject.output.name) == (kind, entry)
    picture = torch.rand(1, 3, 56, 56)
    assert tuple(subject.values(picture).shape[1:]) == shape
    if name == "tokens":
        with torch.no_grad():
            tokens = model(picture).last_hidden_state
        assert torch.equal(subject.values(picture)[0, :, 2, 3], tokens[0, 1 + 2 * 4 + 3])


REFUSED: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "two linear layers": (
        lambda: Heads(lambda p: (p["a"], p["b"]), a=4, b=2),
        ["0 (4: classes or embedding)", "1 (2: classes or embedding)", "--output 0:classes"],
    ),
    "the mean of the pixels": (lambda: Function(lambda x: x.mean((2, 3))), ["it (3: classes or embedding)"]),
    "a picture, or three classes": (lambda: nn.Conv2d(3, 3, 3, 1, 1), ["it (3x24x24: label-map or dense)"]),
    "a pyramid": (
        lambda: Function(lambda x: [x, x[:, :, ::2, ::2]], 8),
        ["0 (8x24x24: label-map or dense)", "1 (8x12x12"],
    ),
    "heads in one vector": (
        lambda: Heads(lambda p: torch.cat([p["boxes"], p["scores"]], 1), boxes=4, scores=2),
        ["it (6: classes or embedding)"],
    ),
    "heads in one map": (
        lambda: Function(lambda x: torch.concat([F.conv2d(x, torch.ones(n, 8, 1, 1)) for n in (4, 2)], 1), 8),
        ["it (6x24x24: label-map or dense)"],
    ),
    "a residual": (
        lambda: Stack(lambda self, x: (lambda y: y + self.layers[1](y))(self.layers[0](x))),
        ["it (8: classes or embedding)"],
    ),
    "one number": (
        lambda: Function(lambda x: x.mean((1, 2, 3))[:, None]),
        ["it (1: dense)", "two classes apart", "--output 0:dense"],
    ),
    "no tensor": (lambda: Function(lambda x: "a cat"), ["returns str", "a wrapper"]),
    "whole numbers": (lambda: Function(lambda x: x.argmax(1), 5), ["without a tensor of floats"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_in_one_line(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(BlurifyError) as caught:
        measure(subject_of(make()), TensorPictures(torch.rand(2, 3, 28, 28)))
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text and len(text) < 400


def test_labels_tell() -> None:
    """The mean of each colour: nothing, but classes of pictures that have labels or lie in three folders."""
    model = Function(lambda x: x.mean((2, 3)))
    canvases = torch.rand(4, 3, 28, 28)
    found = measure(subject_of(model), TensorPictures(canvases, torch.tensor([0, 1, 2, -1])), ["consistency"])
    assert found.output is not None and found.output.why == "the pictures have labels"
    assert found.consistency is not None and found.consistency.accuracy is not None
    assert subject_of(model).decide(folders=3).kind == "classes"
    with pytest.raises(BlurifyError):
        subject_of(model).decide(folders=4)


@pytest.mark.parametrize(
    ("wanted", "kind", "entry"),
    [("1", "classes", "1"), ("0:embedding", "embedding", "0"), ("1:dense", "dense", "1"), ("2", "embedding", "2")],
)
def test_the_entry_that_is_chosen(wanted: str, kind: str, entry: str) -> None:
    model = Heads(lambda p: (p["a"], p["b"], p["features"]), a=4, b=3)
    subject = subject_of(model, output=wanted)
    assert (subject.output.kind, subject.output.name) == (kind, entry) and subject.output.why.startswith("chosen")
    picture = torch.rand(1, 3, *CROP)
    with torch.no_grad():
        assert torch.equal(subject.values(picture), model(picture)[int(entry)])


def test_names_and_numbers_reach_nested_entries() -> None:
    model = Heads(lambda p: {"a": [{"b": p["x"]}], "c": p["y"]}, x=4, y=5)
    for wanted, name in (("a.0.b", "a.0.b"), ("c", "c"), ("1", "c"), ("0:embedding", "a.0.b")):
        assert subject_of(model, output=wanted).output.name == name
    bare = nn.Sequential(trunk(), nn.Linear(8, 5))
    for wanted, kind in (("embedding", "embedding"), ("0", "classes"), (":embedding", "embedding")):
        assert subject_of(bare, output=wanted).output.kind == kind


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("3", "there is no entry '3' in what it returns: give one of 0 (4), 1 (2)"),
        ("logits", "there is no entry 'logits'"),
        ("0:label-map", "0 (4) can't be a label map: it may be classes or embedding"),
        ("0:boxes", "'boxes' is no kind of output: give one of classes, label-map, embedding, dense, detections"),
        ("0:detections", "gives no boxes with scores and labels"),
        ("", "--output is empty"),
        (" : ", "no kind of output"),
    ],
)
def test_what_cannot_be_chosen(wanted: str, message: str) -> None:
    with pytest.raises(BlurifyError) as caught:
        subject_of(Heads(lambda p: (p["a"], p["b"]), a=4, b=2), output=wanted).decide()
    assert message in str(caught.value)


def test_classes_beside_box_offsets_are_what_is_measured() -> None:
    """As MTCNN's R-net: the figures are those of the probabilities alone, and not those of the offsets."""
    both, alone, offsets = (
        Heads(make, a=4, b=2)
        for make in (
            lambda p: (p["a"], p["b"].softmax(1)), lambda p: p["b"].softmax(1), lambda p: p["a"],
        )
    )  # fmt: skip
    for model in (alone, offsets):
        model.load_state_dict(both.state_dict())
    coarse = torch.rand(30, 3, 7, 7, generator=torch.Generator().manual_seed(3))
    pictures = TensorPictures(F.interpolate(coarse, (28, 28)))
    found, wanted, wrong = (
        measure(subject_of(model), pictures, ["consistency"]).consistency for model in (both, alone, offsets)
    )
    assert found == wanted and found != wrong
    assert consistency(subject_of(both), pictures) == wanted  # also where nobody decided


@pytest.mark.parametrize("dense", [False, True])
def test_probabilities_are_not_made_probabilities_again(dense: bool) -> None:
    """The change of the top probability is that of what the model gives, by a loop over its own forwards."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        values = (8 * (x if dense else x[:, :, 3:9, 2:7].mean((2, 3)))).softmax(1)
        seen.append(values.clone())
        return values

    model = Function(keep, 4)
    subject = subject_of(model)
    assert subject.output.values == "probabilities"
    pictures = TensorPictures(torch.rand(20, 3, 28, 28))
    seen.clear()
    found = consistency(subject, pictures, circular=False)
    if dense:  # the whole map of one model against its logits
        logits = subject_of(Function(lambda x: 8 * x, 4))
        assert found.pixel_change.value == pytest.approx(consistency(logits, pictures).pixel_change.value, abs=1e-6)
        return
    first, _, beside = seen
    changes = []
    for one, other in zip(first, beside, strict=True):
        top = int(one.argmax())
        changes.append(abs(float(one[top]) - float(other[top])))
    assert found.pixel_change.value == pytest.approx(sum(changes) / 20, abs=1e-6) and sum(changes) > 0


def test_logits_of_probabilities() -> None:
    scores = torch.randn(5, 7)
    assert torch.equal(logits_of(scores, 5), scores)
    probabilities = scores.softmax(1)
    assert torch.allclose(logits_of(probabilities, 5).softmax(1), probabilities, atol=1e-6)
    assert torch.equal(logits_of((torch.randn(5, 4), probabilities), 5), logits_of(probabilities, 5))
    certain = torch.eye(7)[:5]
    assert torch.allclose(logits_of(certain, 5).softmax(1), certain) and bool(logits_of(certain, 5).isfinite().all())


def test_every_measurement_says_what_was_taken() -> None:
    pictures = TensorPictures(torch.rand(3, 3, 28, 28))
    for name, field in (("a linear layer", "consistency"), ("pooled features", "embedding"), ("features", "dense")):
        found = measure(subject_of(TOLD[name][0]()), pictures, ["consistency"])
        assert found.output is not None and getattr(found, field) is not None
        parts = {part: getattr(found, part) for part in ("consistency", "embedding", "dense", "detections")}
        assert [part for part, value in parts.items() if value is not None] == [field]
        assert Measurement.from_dict(found.to_dict()) == found
    assert Measurement.from_dict(Measurement("m", "d", 3).to_dict()).output is None
    old = Measurement("m", "d", 3).to_dict()
    for new in ("output", "embedding", "dense", "detections"):
        del old[new]
    assert Measurement.from_dict(old) == Measurement("m", "d", 3)
    taken = Output("classes", "1", (2,), "they sum to 1", "N,K", "probabilities", ("0 (4)",))
    assert str(taken) == "output 1 (2) taken for classes: they sum to 1; left aside: 0 (4)"


def test_metrics_that_are_not_defined_are_skipped_or_refused() -> None:
    subject, pictures = subject_of(trunk()), TensorPictures(torch.rand(3, 3, 28, 28))
    found = measure(subject, pictures, ["all"])
    assert set(found.skipped) == {"stability", "worst-case", "half-patch", "fractional"}
    assert all("gives an embedding" in reason for reason in found.skipped.values())
    assert found.embedding is not None and found.aliasing is not None and found.equivariance is not None
    for name in METRICS:
        if name in found.skipped:
            with pytest.raises(BlurifyError, match=f"leave {name} out"):
                measure(subject, pictures, [name])
    with pytest.raises(BlurifyError, match="gives no classes"):
        subject(torch.rand(1, 3, *CROP))


def test_entries_are_named_in_the_order_of_the_tensors() -> None:
    from blurify.graph.structure import tensors_in

    output = {"a": [torch.zeros(1), (torch.ones(1), "x")], "b": Pair(torch.ones(2), None)}
    names = [name for name, _ in outputs.entries_of(output)]
    assert names == ["a.0", "a.1.0", "b.logits"]
    assert all(one is other for (_, one), other in zip(outputs.entries_of(output), tensors_in(output), strict=True))


@pytest.mark.parametrize(("name", "entry", "size"), [("RNet", "1", 24), ("ONet", "2", 48), ("PNet", "1", 32)])
def test_the_trained_networks_of_mtcnn(name: str, entry: str, size: int) -> None:
    mtcnn = pytest.importorskip("facenet_pytorch.models.mtcnn", reason="facenet-pytorch (pip install --no-deps)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = subject_of(getattr(mtcnn, name)(), (size, size)).output
    assert (found.kind, found.name) == ("label-map" if name == "PNet" else "classes", entry)
    assert found.values == "probabilities"
