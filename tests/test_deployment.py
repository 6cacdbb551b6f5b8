"""What other people's tools do to a converted model before it is deployed: ultralytics fuses it, torchao quantises it,
the tracing ONNX exporter exports it. Every blur is still there, and the outputs are right."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile

import PIL.Image
import pytest
import torch
import torchvision
from torch import nn

import blurify
from blurify.cli import main
from blurify.spec.recipes import load_recipe

IMAGE = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def lively(model: nn.Module) -> nn.Module:
    """Fresh norms that keep features at size, and are no identity that fusing could lose without a trace."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
    return model.eval()


def blurs(model: nn.Module) -> int:
    return sum(isinstance(module, blurify.BlurPool2d) for module in model.modules())


def outputs(model: nn.Module, image: torch.Tensor = IMAGE) -> list[torch.Tensor]:
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(model(image))
    return [leaf.float() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def distance(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(some, others, strict=True))


@pytest.fixture(scope="module")
def yolo():
    """Their package, which puts functions of its own in the place of others' when it is imported."""
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())  # else it writes into the user's home
    replaced = [(PIL.Image, "open"), (torch, "load"), (torch, "save")]
    before = [getattr(holder, name) for holder, name in replaced]
    yield pytest.importorskip("ultralytics", exc_type=ImportError).YOLO
    for (holder, name), own in zip(replaced, before, strict=True):
        setattr(holder, name, own)


@pytest.mark.parametrize("name", ["yolov5nu", "yolov8n", "yolo11n-seg"])
def test_fuse_of_ultralytics(yolo, name):
    torch.manual_seed(0)
    model = lively(yolo(f"{name}.yaml").model)
    converted = blurify.convert(model, example_inputs=IMAGE)
    before, wanted = outputs(converted), blurs(converted)
    assert wanted > 0 and distance(before, outputs(model)) > 0.05
    fused = copy.deepcopy(converted).fuse(verbose=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert blurs(fused) == wanted
    assert distance(outputs(fused), before) < 1e-4
    check = blurify.check(fused)
    assert check and check.ran == wanted


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["yolov8n", "yolov3-tiny"])
def test_files_of_ultralytics_need_no_allow(yolo, name, fused, tmp_path):
    torch.manual_seed(0)
    model = yolo(f"{name}.yaml")
    lively(model.model)(torch.rand(1, 3, 64, 64))  # which leaves anchors in the head
    path = tmp_path / "yolo.pt"
    if fused:
        torch.save({"model": model.model.fuse(verbose=False).half(), "ema": None, "epoch": 3}, path)
    else:
        model.save(path)  # in half precision
    out = tmp_path / "out.pt"
    assert main(["convert", str(path), "-o", str(out), "--input-shape", "1,3,128,128"]) == 0
    original = torch.load(path, weights_only=False)["model"].float()
    loaded = blurify.load(out)
    assert blurs(loaded) > 0
    assert next(loaded.parameters()).dtype == torch.float16
    recipe = blurify.plan_of(loaded).recipe
    assert distance(outputs(loaded.float()), outputs(blurify.convert(original, recipe, example_inputs=IMAGE))) < 1e-5


def test_pt2e_quantisation_keeps_every_blur():
    pytest.importorskip("torchao", exc_type=ImportError)
    from torchao.quantization.pt2e import quantize_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(0)
    model = lively(torchvision.models.resnet18())
    image = torch.rand(2, 3, 64, 64)
    converted = blurify.convert(model, example_inputs=image)

    def quantised(module: nn.Module) -> nn.Module:
        graph = torch.export.export(module, (image,), strict=True).module()
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = quantize_pt2e.prepare_pt2e(graph, quantizer)
        for _ in range(4):
            prepared(torch.rand(2, 3, 64, 64))
        return quantize_pt2e.convert_pt2e(prepared)

    result = quantised(converted)

    def convolutions(module: nn.Module) -> int:
        return sum(node.target is torch.ops.aten.conv2d.default for node in module.graph.nodes)

    assert convolutions(result) == sum(isinstance(m, nn.Conv2d) for m in model.modules()) + blurs(converted)
    gap = distance(outputs(result, image), outputs(converted, image))
    lost = distance(outputs(quantised(model), image), outputs(model, image))
    assert gap < 3 * lost  # of what the original loses when it is quantised
    assert gap < distance(outputs(model, image), outputs(converted, image)) / 3


def narrow_vgg() -> nn.Module:
    """VGG-11, but for its numbers of channels."""
    layers = torchvision.models.vgg.make_layers([8, "M", 16, "M", 32, 32, "M", 64, 64, "M", 64, 64, "M"])
    model = torchvision.models.VGG(layers)
    model.classifier = nn.Linear(64 * 7 * 7, 5)
    return model


@pytest.mark.parametrize(
    ("name", "padding"),
    [
        ("resnet18", "reflect"), ("mobilenet_v2", "replicate"), ("densenet121", "zeros"), ("resnet18", "circular"),
        ("vgg11", "reflect"), ("vgg11", "zeros"), ("vgg11", "circular"),
    ],
)  # fmt: skip
def test_the_tracing_onnx_exporter(name, padding, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = lively(narrow_vgg() if name == "vgg11" else torchvision.models.get_model(name, num_classes=5))
    # The exporter can't pool to 7 x 7 from any other size, blurred or not: VGG is given the one that needs no pooling.
    vgg = name == "vgg11"
    sizes = [(2, 224, 224), (3, 224, 224)] if vgg else [(2, 64, 64), (3, 64, 64), (1, 96, 64)]
    axes = {0: "batch"} if vgg else {0: "batch", 2: "height", 3: "width"}
    image = torch.rand(sizes[0][0], 3, *sizes[0][1:])
    recipe = dataclasses.replace(load_recipe("zhang2019"), padding=padding)
    converted = blurify.convert(model, recipe, example_inputs=image)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(converted, (image,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": axes})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, height, width in sizes:
        other = torch.rand(batch, 3, height, width)
        found = torch.from_numpy(session.run(None, {"x": other.numpy()})[0])
        assert distance([found], outputs(converted, other)) < 1e-4
