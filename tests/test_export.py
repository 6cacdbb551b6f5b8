"""A converted model goes where its original goes: torch.compile, torch.export, ONNX and torch.jit.trace, with batch and
image size left open."""

import shutil
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models.resnet import BasicBlock as TimmBlock
from timm.models.resnet import ResNet as TimmResNet
from torch import nn
from torch.export import Dim
from torchvision.models.resnet import BasicBlock, ResNet

import blurify
from blurify.spec.edits import InsertBlur, Rewrite

pytestmark = pytest.mark.filterwarnings("ignore")


def image(batch, height, width, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


class Functional(nn.Module):
    """Calls in its forward that only a rewrite reaches: a max pool, an average pool, an activation in between."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, stride=2, ceil_mode=True)
        x = F.relu(self.conv2(x))
        gate = self.conv3(x)
        x = F.avg_pool2d(x, 2, ceil_mode=True) + gate * torch.sigmoid(gate)
        return self.fc(x.mean((2, 3)))


def _timm(name, **kwargs):
    return lambda: timm.create_model(name, num_classes=7, **kwargs)


MODELS = {
    # One block a stage: all that a ResNet-18 has, in half the time.
    "timm-resnet": (lambda: TimmResNet(TimmBlock, (1, 1, 1, 1), 7, zero_init_last=False), None),
    "torchvision-resnet": (lambda: ResNet(BasicBlock, [1, 1, 1, 1], 7), "published/resnet"),
    "mobilenetv2": (
        lambda: torchvision.models.MobileNetV2(7, 0.5, [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2]]),
        None,
    ),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=7), None),
    "functional": (Functional, None),
    "tf-same": (_timm("tf_mobilenetv3_small_minimal_100"), None),
    "cheap": (_timm("test_resnet", zero_init_last=False), "light"),
    "patchify": (_timm("test_convnext"), "full"),
}
SHAPES = ((2, 64, 96), (3, 97, 71))


@pytest.fixture(scope="module")
def converted():
    made = {}

    def make(name):
        if name not in made:
            factory, recipe = MODELS[name]
            torch.manual_seed(0)
            original = factory().eval()
            made[name] = original, blurify.convert(original, recipe, example_inputs=inputs()[0], verify=False)
        return made[name]

    return make


def inputs():
    """What to export with, and what to run: another batch, another height and width, odd ones."""
    return [image(*shape) for shape in SHAPES]


def close(actual, expected, tolerance=1e-4):
    assert actual.shape == expected.shape
    error = (torch.as_tensor(actual) - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.1e}"


def test_the_models_have_every_kind_of_edit(converted):
    for name in ("functional", "tf-same"):
        assert any(isinstance(edit, Rewrite) for edit in blurify.plan_of(converted(name)[1]).edits), name
    assert any(getattr(edit, "op", "") == "wrap-input" for edit in blurify.plan_of(converted("cheap")[1]).edits)
    inserted = [edit for edit in blurify.plan_of(converted("patchify")[1]).edits if isinstance(edit, InsertBlur)]
    assert inserted and not any(edit.after for edit in inserted)
    assert any(
        isinstance(edit, InsertBlur) and edit.after for edit in blurify.plan_of(converted("mobilenetv2")[1]).edits
    )


def dynamic():
    return {0: Dim("batch", min=1, max=64), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


# --- torch.export


@pytest.mark.parametrize("name", ["timm-resnet", "torchvision-resnet", "functional", "densenet", "cheap", "patchify"])
def test_export_with_open_batch_and_size(converted, name):
    _, model = converted(name)
    x, other = inputs()
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic(),))
    with torch.no_grad():
        for sample in (x, other):
            close(program.module()(sample), model(sample), 1e-5)


def test_export_of_tf_same_padding(converted):
    """Its padding is computed from the size, so that the original itself is exported for one size."""
    _, model = converted("tf-same")
    x, other = inputs()[0], image(5, 64, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    with torch.no_grad():
        for sample in (x, other):
            close(program.module()(sample), model(sample), 1e-5)


def test_an_exported_program_is_saved_and_loaded(converted, tmp_path):
    _, model = converted("functional")
    x, other = inputs()
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic(),))
    torch.export.save(program, tmp_path / "model.pt2")
    with torch.no_grad():
        close(torch.export.load(tmp_path / "model.pt2").module()(other), model(other), 1e-5)


def test_an_exported_program_keeps_the_names_of_the_weights(converted):
    original, model = converted("timm-resnet")
    program = torch.export.export(model, (inputs()[0],))
    assert set(program.state_dict) == set(original.state_dict())


# --- torch.compile


@pytest.mark.parametrize("name", ["timm-resnet", "torchvision-resnet", "functional", "tf-same", "cheap"])
def test_compile_in_one_graph(converted, name):
    _, model = converted(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    x, other = inputs()
    with torch.no_grad():
        for sample in (x, other):
            close(compiled(sample), model(sample), 1e-5)


def test_compile_in_one_graph_with_open_sizes(converted):
    _, model = converted("functional")
    torch._dynamo.reset()
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 64, 96), (3, 97, 71), (4, 80, 40), (5, 49, 50)):
            close(compiled(image(*shape)), model(image(*shape)), 1e-5)
    assert len(graphs) == 1, "one graph serves every size"


def test_compiled_training(converted):
    """Gradients through the graphs that a compiler makes (forward and backward) are those of the eager model."""
    _, model = converted("functional")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = inputs()[0]
    gradients = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    model.zero_grad()
    for eager, other in zip(*gradients, strict=True):
        assert torch.allclose(eager, other, rtol=1e-4, atol=1e-5)


def test_a_model_compiled_in_place_before_is_converted_too():
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Functional().eval()
    expected = blurify.convert(model)
    model.compile(backend="eager", fullgraph=True)
    x = inputs()[0]
    with torch.no_grad():
        model(x)
        close(blurify.convert(model)(x), expected(x), 1e-5)
        blurify.convert(model, inplace=True)
        close(model(x), expected(x), 1e-5)


@pytest.mark.slow
def test_compile_with_inductor():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)).eval()
    model = blurify.convert(net)
    x = image(1, 32, 33)
    with torch.no_grad():
        close(torch.compile(model, fullgraph=True)(x), model(x))


# --- ONNX


@pytest.mark.parametrize(
    "name", ["timm-resnet", "torchvision-resnet", "mobilenetv2", "densenet", "functional", "cheap"]
)
def test_onnx_with_open_batch_and_size(converted, name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    _, model = converted(name)
    x, other = inputs()
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(
        model, (x,), path, dynamo=True, verbose=False, dynamic_shapes=({0: "batch", 2: "height", 3: "width"},)
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    assert [isinstance(size, str) for size in argument.shape] == [True, False, True, True], "sizes must stay open"
    for sample in (x, other, image(1, 128, 64)):
        with torch.no_grad():
            expected = model(sample)
        (actual,) = session.run(None, {argument.name: sample.numpy()})
        close(torch.from_numpy(actual), expected)


# --- torch.jit.trace


@pytest.mark.parametrize("name", ["timm-resnet", "functional", "tf-same"])
def test_jit_trace(converted, name, tmp_path):
    _, model = converted(name)
    x, _ = inputs()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x)
        traced.save(str(tmp_path / "model.ts"))
        loaded = torch.jit.load(str(tmp_path / "model.ts"))
        sample = image(5, *x.shape[2:], seed=1)
        close(loaded(sample), model(sample), 1e-5)
        if name != "tf-same":
            larger = image(2, 131, 99)
            close(loaded(larger), model(larger), 1e-5)
