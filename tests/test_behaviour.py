"""What the user's model stays: section 4 of the design, on models of timm and torchvision and on our own."""

import copy
import os
import sys
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import blurify
from blurify.spec.edits import InsertBlur, Rewrite
from tests import warm

BLURS = (blurify.BlurPool1d, blurify.BlurPool2d, blurify.BlurPool3d)


def blurs(model):
    return sum(isinstance(module, BLURS) for module in model.modules())


def rewrites(model):
    return [edit for edit in blurify.plan_of(model).edits if isinstance(edit, Rewrite)]


def image(*shape, seed=0):
    return torch.randn(*(shape or (2, 3, 64, 64)), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18", num_classes=10, zero_init_last=False).eval()


@pytest.fixture(scope="module")
def converted(resnet):
    return blurify.convert(resnet)


@pytest.fixture(scope="module")
def pairs(resnet, converted):
    """Models of each kind of edit, by name: (original, converted)."""
    torch.manual_seed(0)
    found = {"resnet18": (resnet, converted)}
    for name, library in (
        ("inception_v3", timm),  # max pools that its forward calls itself
        ("tf_efficientnet_b0", timm),  # padding that depends on the stride
        ("test_efficientnet", timm),
        ("mobilenet_v3_small", torchvision),
    ):
        create = timm.create_model if library is timm else torchvision.models.get_model
        model = create(name, num_classes=10).eval()
        found[name] = model, blurify.convert(model, verify=False)
    return found


PAIRS = ["resnet18", "inception_v3", "tf_efficientnet_b0", "test_efficientnet", "mobilenet_v3_small"]
SIZES = {"inception_v3": 128}


def sample(name, batch=1):
    size = SIZES.get(name, 64)
    return image(batch, 3, size, size)


def test_the_pairs_are_what_they_are_here_for(pairs):
    assert "maxpool" in {edit.op for edit in rewrites(pairs["inception_v3"][1])}
    assert "conv-dense" in {edit.op for edit in rewrites(pairs["tf_efficientnet_b0"][1])}
    assert {edit.op for edit in rewrites(pairs["resnet18"][1])} == {"wrap"}
    assert any(isinstance(edit, InsertBlur) for edit in blurify.plan_of(pairs["mobilenet_v3_small"][1]).edits)
    for original, model in pairs.values():
        assert blurs(model) > 2 and blurs(original) == 0


# --- class


def test_type_and_isinstance(resnet, converted):
    assert type(converted) is type(resnet) is timm.models.resnet.ResNet
    assert type(converted.maxpool) is blurify.MaxBlurPool2d and isinstance(converted.maxpool, nn.MaxPool2d)
    for name, module in resnet.named_modules():
        assert isinstance(converted.get_submodule(name), type(module)), name
    block = timm.models.resnet.BasicBlock  # a blur in the first of layer2, none in layer1 and in the second
    assert type(converted.layer1[0]) is type(converted.layer2[1]) is type(resnet.layer2[0]) is block
    assert type(converted.layer2[0]).__mro__[1] is block
    assert (type(converted.layer2[0]).__module__, type(converted.layer2[0]).__qualname__) == (
        block.__module__, block.__qualname__
    )  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_rewritten_modules_are_instances_of_their_class(pairs, name):
    original, model = pairs[name]
    assert isinstance(model, type(original)) and type(model).__qualname__ == type(original).__qualname__
    for path, module in original.named_modules():
        assert isinstance(model.get_submodule(path), type(module)), path
        if any(edit.module == path for edit in rewrites(model)):
            assert type(model.get_submodule(path)).__name__ == type(module).__name__


@pytest.mark.parametrize("name", PAIRS)
def test_state_dict_loads_strictly_both_ways(pairs, name):
    original, model = pairs[name]
    assert list(model.state_dict()) == list(original.state_dict())
    torch.manual_seed(1)
    noise = {
        key: torch.randn_like(tensor) if "running" not in key and tensor.is_floating_point() else tensor.clone()
        for key, tensor in original.state_dict().items()
    }
    model, original = copy.deepcopy(model), copy.deepcopy(original)
    model.load_state_dict(noise, strict=True)
    original.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(original.state_dict()[key], tensor) for key, tensor in noise.items())


# --- timm


def test_forward_features_and_head(resnet, converted):
    x = image()
    features = converted.forward_features(x)
    assert features.shape == resnet.forward_features(x).shape == (2, 512, 2, 2)
    assert (features - resnet.forward_features(x)).abs().max() > 1e-2 * features.abs().max()
    assert torch.equal(converted.forward_head(features), converted(x))


def test_forward_intermediates(resnet, converted):
    outputs = converted.forward_intermediates(image(), indices=[1, 2], intermediates_only=True)
    expected = resnet.forward_intermediates(image(), indices=[1, 2], intermediates_only=True)
    assert [o.shape for o in outputs] == [o.shape for o in expected]


def test_reset_classifier(converted):
    model = copy.deepcopy(converted)
    before = model.forward_features(image())
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3) and model.num_classes == 3
    assert torch.equal(model.forward_features(image()), before)
    model.reset_classifier(0, "max")
    assert model(image()).shape == (2, 512)


def test_get_classifier_and_pretrained_cfg(resnet, converted):
    assert converted.get_classifier() is converted.fc
    told = {
        key: value for key, value in converted.pretrained_cfg.items() if key != "notes"
    }  # the plan: docs/ecosystem.md
    assert told == resnet.pretrained_cfg and converted.num_features == 512


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_b0", "test_convnext"])
def test_features_only(name):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    converted = blurify.convert(model, example_inputs=image())
    assert type(converted) is type(model) and blurs(converted)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert converted.feature_info.channels() == model.feature_info.channels()
    outputs, expected = converted(image()), model(image())
    assert [o.shape for o in outputs] == [o.shape for o in expected]
    assert (outputs[-1] - expected[-1]).abs().max() > 1e-3 * expected[-1].abs().max()
    assert blurify.proof_of(converted).outputs == len(expected)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_b0"])
def test_grad_checkpointing(pairs, name):
    model = copy.deepcopy(pairs[name][1]).eval()
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(sample(name)).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert any(getattr(module, "grad_checkpointing", False) for module in model.modules())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_layer_decay_groups(resnet, converted):
    def groups(model):
        names = {id(p): name for name, p in model.named_parameters()}
        found = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
        return [(sorted(names[id(p)] for p in g["params"]), g["lr_scale"], g["weight_decay"]) for g in found]

    assert groups(converted) == groups(resnet) and len(groups(resnet)) > 4
    matcher = converted.group_matcher()
    assert timm.models.group_parameters(converted, matcher) == timm.models.group_parameters(resnet, matcher)


# --- train and eval


class Stochastic(nn.Module):
    """A block with dropout and drop path, and a strided convolution before them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout2d(0.5)
        self.path = timm.layers.DropPath(0.5)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.drop(self.norm(self.conv(F.relu(self.stem(x)))))), 2)
        x = x + self.path(self.conv2(x))
        return self.fc(F.dropout(x.mean((2, 3)), 0.5, self.training))


@pytest.mark.parametrize("was_training", [True, False])
def test_dropout_and_drop_path_follow_the_mode(was_training):
    model = blurify.convert(Stochastic().train(was_training))
    assert model.training is was_training and rewrites(model)
    x = image(8, 3, 16, 16)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        for module in (model.drop, model.path, model):  # each by itself makes it stochastic
            model.eval()
            module.training = True
            assert not torch.equal(model(x), model(x)), type(module).__name__


def test_batch_norm_statistics_are_those_of_the_dense_signal():
    model = blurify.convert(Stochastic(), example_inputs=image())
    model.train()
    x = image(4, 3, 16, 16)
    model(x)
    dense = F.conv2d(F.relu(model.stem(x)), model.conv.weight, model.conv.bias, padding=1)
    assert model.norm.num_batches_tracked == 1
    assert torch.allclose(model.norm.running_mean, 0.1 * dense.mean((0, 2, 3)), atol=1e-6)
    frozen = model.norm.running_mean.clone()
    model.eval()(x)
    assert torch.equal(model.norm.running_mean, frozen)


def test_timm_drop_path_rates_survive(resnet):
    model = timm.create_model("test_resnet", drop_rate=0.3, drop_path_rate=0.5)
    converted = blurify.convert(model, example_inputs=image())

    def rates(m):
        return [module.drop_prob for module in m.modules() if isinstance(module, timm.layers.DropPath)]

    assert rates(converted) == rates(model) and max(rates(model)) > 0 and converted.drop_rate == 0.3
    converted.train()
    assert not torch.equal(converted(image()), converted(image()))
    converted.eval()
    assert torch.equal(converted(image()), converted(image()))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "functional"])
def test_training_reaches_every_parameter_and_learns(name):
    torch.manual_seed(0)
    extra = {"zero_init_last": False} if name == "test_resnet" else {}
    model = Stochastic() if name == "functional" else timm.create_model(name, num_classes=4, **extra)
    model = blurify.convert(model, example_inputs=image())
    if name == "functional":
        model.drop, model.path = nn.Identity(), nn.Identity()
    x, y = image(8, 3, 48, 48), torch.arange(8) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        if not losses:
            silent = [name for name, p in model.named_parameters() if not p.grad.any()]
            assert silent == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_an_optimizer_holds_the_parameters_of_a_model_converted_in_place():
    model = Stochastic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    converted = blurify.convert(model, example_inputs=image(), inplace=True)
    before = [p.detach().clone() for p in converted.parameters()]
    converted(image()).sum().backward()
    optimizer.step()
    assert [id(p) for p in converted.parameters()] == [id(p) for p in optimizer.param_groups[0]["params"]]
    changed = [not torch.equal(a, b) for a, b in zip(before, converted.parameters(), strict=True)]
    assert sum(changed) >= len(changed) - 1  # batch norm undoes the bias before it


def test_autocast(converted):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = converted(image())
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.float(), converted(image()), atol=0.1)


# --- copies and files


@pytest.mark.parametrize("name", PAIRS)
def test_deepcopy(pairs, name):
    model = pairs[name][1]
    twin = copy.deepcopy(model)
    x = sample(name)
    with torch.no_grad():
        assert torch.equal(twin(x), model(x))
        before = model(x)
        for p in twin.parameters():
            p.zero_()
        for module in twin.modules():  # a copy that shared a blur with its original would change that
            for buffer in module._buffers.values():
                if isinstance(module, BLURS):
                    buffer.zero_()
        assert torch.equal(model(x), before)
        assert not torch.equal(twin(x), before)
    assert blurify.plan_of(twin) == blurify.plan_of(model)


_LOAD = """
import sys, torch
torch.set_num_threads(1)
model = torch.load(sys.argv[1], weights_only=False)
x, expected = torch.load(sys.argv[2])
assert "blurify" in sys.modules
import blurify
assert blurify.plan_of(model) is not None
with torch.no_grad():
    y = model(x)
print(type(model).__module__, type(model).__qualname__, float((y - expected).abs().max()))
torch.save(model, sys.argv[1])
"""


@pytest.mark.parametrize("name", ["resnet18", "inception_v3", "tf_efficientnet_b0"])
def test_torch_save_and_load_in_a_new_process(pairs, name, tmp_path):
    original, model = pairs[name]
    x = sample(name)
    with torch.no_grad():
        expected = model(x)
    torch.save(model, tmp_path / "model.pt")
    torch.save((x, expected), tmp_path / "sample.pt")
    root = os.path.dirname(os.path.dirname(blurify.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = warm.run(
        [sys.executable, "-c", _LOAD, tmp_path / "model.pt", tmp_path / "sample.pt"],
        capture_output=True, text=True, env=environment, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    module, qualname, error = done.stdout.split()
    assert (module, qualname) == (type(original).__module__, type(original).__qualname__)
    assert float(error) <= 1e-5
    again = torch.load(tmp_path / "model.pt", weights_only=False)  # what that process saved
    assert isinstance(again, type(original))
    with torch.no_grad():
        assert torch.allclose(again(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_converting_twice_changes_nothing(pairs, name):
    model = pairs[name][1]
    again = blurify.convert(model)
    assert repr(again) == repr(model)
    with torch.no_grad():
        assert torch.equal(again(sample(name)), model(sample(name)))


def test_print_shows_where_the_blur_went(pairs):
    text = repr(pairs["resnet18"][1])
    layer2 = text[text.index("(layer2)") : text.index("(layer3)")]
    assert layer2.count("(blur): BlurPool2d(stride=2, filter_size=4)") == 1
    assert layer2.index("(0): BasicBlock") < layer2.index("(blur)") < layer2.index("(1): BasicBlock")
    assert "BlurPool" not in text[text.index("(layer1)") : text.index("(layer2)")]
    text = repr(pairs["inception_v3"][1])
    assert text.startswith("InceptionV3(") and "BlurredMaxPool(" in text


# --- parallel


def replicas_agree(model, x):
    """Run replicas as DataParallel does, without the devices that it needs."""
    network = [model._replicate_for_data_parallel() for _ in range(2)]
    for copy_ in network:
        _replicate(model, copy_)
    with torch.no_grad():
        return [copy_(x) for copy_ in network]


def _replicate(module, replica):
    """torch.nn.parallel.replicate on one device: the same attributes, own `_modules`, plain tensors for parameters."""
    for name, child in module._modules.items():
        if child is None:
            continue
        twin = child._replicate_for_data_parallel()
        _replicate(child, twin)
        replica._modules[name] = twin
        setattr(replica, name, twin)
    for name, parameter in module._parameters.items():
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter.detach().clone())
    for name, buffer in module._buffers.items():
        if buffer is not None:
            replica._buffers[name] = buffer.clone()


@pytest.mark.parametrize("name", PAIRS)
def test_data_parallel_replicas_run_their_own_blurs(pairs, name):
    """Replicas are shallow copies: a blur that a hook or a rewritten forward found by the original would be shared."""
    model, x = pairs[name][1], sample(name)
    with torch.no_grad():
        expected = model(x)
    assert all(torch.equal(y, expected) for y in replicas_agree(model, x))
    seen = []
    handles = [m.register_forward_hook(lambda m, *_: seen.append(m)) for m in model.modules() if isinstance(m, BLURS)]
    try:
        replicas_agree(model, x)
    finally:
        for handle in handles:
            handle.remove()
    originals = {id(module) for module in model.modules()}
    assert len(seen) == 2 * len(handles) and not originals & {id(module) for module in seen}


def test_data_parallel_wraps_a_converted_model(converted):
    wrapped = nn.DataParallel(converted)
    assert torch.equal(wrapped(image()), converted(image()))
    assert all(key.startswith("module.") for key in wrapped.state_dict())


_DDP = """
import datetime, sys, tempfile, os
import torch, timm, blurify
import torch.distributed as dist
torch.set_num_threads(1)
file = os.path.join(tempfile.mkdtemp(), "store")
try:
    dist.init_process_group("gloo", init_method="file://" + file, rank=0, world_size=1,
                            timeout=datetime.timedelta(seconds=300))
except Exception as error:
    print("no gloo:", error)
    sys.exit(77)
torch.manual_seed(0)
for name in ("test_resnet", "tf_efficientnet_b0"):
    model = blurify.convert(timm.create_model(name, num_classes=4), example_inputs=torch.zeros(1, 3, 64, 64))
    twin = __import__("copy").deepcopy(model)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    x = torch.randn(2, 3, 64, 64)
    for m in (ddp, twin):
        torch.manual_seed(1)
        m.train()
        m(x).square().mean().backward()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    grads = [torch.allclose(a.grad, b.grad, atol=1e-5) for a, b in pairs]
    assert all(grads), name
    print(name, len(grads))
dist.destroy_process_group()
"""


def test_distributed_data_parallel():
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch is built without gloo")
    root = os.path.dirname(os.path.dirname(blurify.__file__))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = warm.run([sys.executable, "-c", _DDP], capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2


# --- torch.fx by others


@pytest.mark.parametrize(
    ("name", "recipe", "nodes"),
    [
        ("resnet18", None, ["layer2", "layer4.1.relu_1", "avgpool"]),
        ("resnet18", "published/resnet", ["layer2", "avgpool"]),
        ("googlenet", None, ["inception4a", "avgpool"]),
        ("inception_v3", None, ["Mixed_6a", "avgpool"]),
    ],
)
def test_torchvision_feature_extractor(name, recipe, nodes):
    """Symbolic tracing by torchvision: goes through the hooks, and sees each blur as one module."""
    extra = {} if name == "resnet18" else {"init_weights": False, "aux_logits": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(name, num_classes=10, **extra).eval()
        converted = blurify.convert(model, recipe, verify=False)
        extractor = create_feature_extractor(converted, nodes).eval()
    expected = {}
    for node in nodes:
        if ".relu" not in node:
            module = converted.get_submodule(node)
            module.register_forward_hook(lambda m, args, out, node=node: expected.__setitem__(node, out.clone()))
    for size in (96, 131):
        x = image(2, 3, size, size)
        with torch.no_grad():
            converted(x)
            outputs = extractor(x)
        assert list(outputs) == nodes
        for node, out in expected.items():
            # Not to the bit: what a tracer reads is a convolution, and what runs by itself sums of slices.
            assert (outputs[node] - out).norm() < 1e-5 * out.norm(), (node, size)
    blurs_seen = [n for n in extractor.graph.nodes if n.op == "call_module" and "blur" in str(n.target)]
    assert blurs_seen


@pytest.mark.parametrize(
    "pool",
    [
        blurify.MaxBlurPool2d(3, 2, 1),
        blurify.MaxBlurPool2d(3, 2, 1, dense_kernel_size=2),
        blurify.MaxBlurPool2d(2, ceil_mode=True),
        blurify.AvgBlurPool2d(2),
        blurify.BlurPool2d(2, 5),
    ],
    ids=lambda pool: str(pool).replace("\n", " ")[:60],
)
def test_symbolic_tracing_keeps_sizes_open(pool):
    traced = torch.fx.symbolic_trace(nn.Sequential(pool))
    for size in (8, 9, 33):
        x = image(1, 2, size, size + 1)
        torch.testing.assert_close(traced(x), pool(x))
