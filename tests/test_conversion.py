"""The two verbs on all kinds of models: what they take, what they leave alone, what they refuse, and their proof."""

import copy
import dataclasses
import json
import warnings
from collections import OrderedDict, namedtuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import blurify
from blurify import BlurifyError, Plan, VerificationError
from blurify.conversion import rehearsed
from blurify.graph.inputs import given_inputs
from blurify.proof.audit import sites_left
from blurify.proof.verify import verify
from blurify.proof.weights import check_weights, fingerprint
from blurify.spec.edits import BlurOutput, InsertBlur, Rewrite, SetStride
from blurify.spec.recipes import load_recipe
from blurify.surgery.apply import apply_plan


class Net(nn.Module):
    """A convolution and a max pool that subsample, and a head; strides and modules by themselves."""

    def __init__(self, channels=8):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act3 = nn.ReLU()
        self.fc = nn.Linear(channels, 4)

    def features(self, x):
        x = self.pool(self.act(self.norm(self.conv2(F.relu(self.conv1(x))))))
        return self.act3(self.conv3(x))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Functional(Net):
    """The same with its max pool as a call in the forward."""

    def features(self, x):
        x = F.max_pool2d(self.act(self.norm(self.conv2(F.relu(self.conv1(x))))), 3, 2, 1)
        return self.act3(self.conv3(x))


def image(*shape, seed=0):
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def blurred(model):
    return [site.name for site in blurify.plan_of(model).converted]


def is_blurred(model, original, *args, **kwargs):
    """Whether the two models compute different things, of the same shapes."""
    with torch.no_grad():
        a, b = model.eval()(*args, **kwargs), original.eval()(*args, **kwargs)
    assert a.shape == b.shape
    return not torch.allclose(a, b, rtol=1e-4, atol=1e-4)


# --- inspect


def test_inspect_reports_each_site_and_leaves_the_model(net):
    before = repr(net)
    plan = blurify.inspect(net)
    assert isinstance(plan, Plan)
    assert [(site.name, site.kind, site.action) for site in plan.sites] == [
        ("conv2", "conv", "blur"),
        ("pool", "maxpool", "blur"),
    ]
    conv = plan.sites[0]
    assert conv.kernel_size == (3, 3) and conv.stride == (2, 2)
    assert conv.reason and conv.placement == "in Net.features" and conv.extra_macs > 0
    assert repr(net) == before and blurify.plan_of(net) is None


def test_inspect_takes_the_shapes_of_the_example(net):
    conv = blurify.inspect(net, image(1, 3, 40, 24)).sites[0]
    assert conv.input_shape == (1, 8, 40, 24) and conv.output_shape == (1, 8, 20, 12)


def test_inspect_follows_the_recipe(net):
    plan = blurify.inspect(net, recipe="pool-only")
    assert [site.name for site in plan.converted] == ["pool"]
    assert "recipe" in plan.skipped[0].reason


# --- convert: what it gives


def test_convert_gives_another_object_and_leaves_the_original(net):
    net.train()
    x = image()
    before = copy.deepcopy(net).eval()(x)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names, hooks = [name for name, _ in net.named_modules()], [len(m._forward_hooks) for m in net.modules()]
    strides = [getattr(m, "stride", None) for m in net.modules()]

    converted = blurify.convert(net)

    assert converted is not net and isinstance(converted, type(net)) and type(net) is Net
    assert (type(converted).__module__, type(converted).__qualname__) == (Net.__module__, Net.__qualname__)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in converted.modules())
    assert is_blurred(converted, copy.deepcopy(net), x)
    assert blurify.plan_of(net) is None and blurify.proof_of(net) is None and net.training
    assert [name for name, _ in net.named_modules()] == names
    assert [len(m._forward_hooks) for m in net.modules()] == hooks == [0] * len(hooks)
    assert [getattr(m, "stride", None) for m in net.modules()] == strides
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(net.eval()(x), before)
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in converted.parameters()}
    assert not shared, "training the result would train the original"


@pytest.mark.parametrize("cls", [Net, Functional])
def test_convert_in_place_gives_the_model_itself(cls):
    net = cls()
    original, parameters = copy.deepcopy(net), list(net.parameters())
    result = blurify.convert(net, inplace=True)
    assert result is net and blurred(net) and blurify.proof_of(net) is not None
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert is_blurred(net, original, image())


@pytest.mark.parametrize("cls", [Net, Functional])
def test_a_failed_proof_leaves_the_model_as_it_was(cls, monkeypatch):
    def fail(*args):
        raise VerificationError("no")

    monkeypatch.setattr("blurify.proof.verify.verify", fail)
    net = cls()
    before, x = repr(net), image()
    expected = net.eval()(x)
    with pytest.raises(VerificationError):
        blurify.convert(net, inplace=True)
    assert repr(net) == before and type(net) is cls and blurify.plan_of(net) is None
    assert torch.equal(net(x), expected)


def test_the_proof_says_what_was_checked(net):
    proof = blurify.proof_of(blurify.convert(net))
    assert proof.identity_error < 1e-5 and proof.dtype == "float32" and proof.outputs == 1
    assert proof.sites_converted == 2 and proof.sites_left == 0 and proof.tensors_equal == len(net.state_dict())
    assert len(proof.lines()) == 3


def test_without_verification_there_is_no_proof(net, monkeypatch):
    monkeypatch.setattr("blurify.proof.verify.verify", lambda *args: pytest.fail("verified"))
    converted = blurify.convert(net, verify=False)
    assert blurred(converted) == ["conv2", "pool"] and blurify.proof_of(converted) is None
    assert blurify.plan_of(blurify.convert(net, verify=False, inplace=True)) is not None


@pytest.mark.parametrize("inplace", [False, True])
def test_converting_twice_changes_nothing(net, inplace):
    once = blurify.convert(net)
    x, before = image(), repr(once)
    expected = once.eval()(x)
    twice = blurify.convert(once, inplace=inplace)
    assert (twice is once) is inplace
    assert repr(twice) == before and torch.equal(twice(x), expected)
    assert blurify.plan_of(twice) == blurify.plan_of(once)


@pytest.mark.parametrize("inplace", [False, True])
def test_converting_by_another_recipe_is_that_of_the_original(net, inplace):
    once = blurify.convert(net)
    x, before = image(), repr(once)
    expected, wanted = once.eval()(x), blurify.convert(net, "full", filter_size=7).eval()
    twice = blurify.convert(once, "full", filter_size=7, inplace=inplace)
    assert (twice is once) is inplace
    assert repr(twice) == repr(wanted) and torch.equal(twice(x), wanted(x))
    assert blurify.plan_of(twice) == blurify.plan_of(wanted)
    if not inplace:
        assert repr(once) == before and torch.equal(once(x), expected)


def test_a_converted_model_has_no_site_left_to_convert(net):
    plan = blurify.inspect(blurify.convert(net), image())
    assert not plan.converted


@pytest.mark.parametrize("filter_size", [1, 2, 3, 7])
def test_filter_size_replaces_the_recipes(net, filter_size):
    converted = blurify.convert(net, filter_size=filter_size)
    assert len(converted.blur.taps) == filter_size
    assert is_blurred(converted, net, image()) is (filter_size > 1)


def test_recipe_as_mapping_with_own_taps(net):
    converted = blurify.convert(net, {"filter": {"taps": [1, 6, 1]}})
    assert converted.blur.taps == (0.125, 0.75, 0.125)


def test_print_shows_where_the_blur_went(net):
    text = repr(blurify.convert(net))
    blur = "\n  (blur): BlurPool2d(stride=2, filter_size=4)\n"
    pool = text[text.index("(pool)") : text.index("(conv3)")]
    assert text.count(blur) == 1
    assert "(blurpool): BlurPool2d(stride=2, filter_size=4)" in pool
    assert "BlurPool" not in text.replace(blur, "").replace(pool, "")


def test_train_mode_stays_as_it_was_module_by_module(net):
    net.train()
    net.norm.eval()  # frozen batch norm
    net.conv3.requires_grad_(False)
    converted = blurify.convert(net)
    modes = {name: module.training for name, module in net.named_modules()}
    assert {name: converted.get_submodule(name).training for name in modes} == modes
    assert modes["norm"] is False and modes[""] is True
    wants = {name: p.requires_grad for name, p in net.named_parameters()}
    assert {name: p.requires_grad for name, p in converted.named_parameters()} == wants
    assert all(module.training for name, module in converted.named_modules() if "blur" in name)
    assert not any(module.training for module in blurify.convert(Net().eval()).modules())


def test_buffers_and_random_state_are_untouched(net):
    net.train()
    torch.manual_seed(7)
    state, running = torch.get_rng_state(), net.norm.running_mean.clone()
    converted = blurify.convert(net)
    assert torch.equal(torch.get_rng_state(), state)
    for model in (net, converted):
        assert torch.equal(model.norm.running_mean, running) and model.norm.num_batches_tracked == 0


def test_tied_weights_stay_tied(net):
    net.conv3.weight = net.conv2.weight
    converted = blurify.convert(net)
    assert converted.conv3.weight is converted.conv2.weight and converted.conv2.weight is not net.conv2.weight


# --- what it takes: inputs


class TwoInputs(Net):
    def forward(self, left, right, *, scale=1.0, mask=None):
        both = self.features(left) + self.features(right)
        if mask is not None:
            both = both * mask
        return self.fc(both.mean((2, 3)) * scale)


@pytest.mark.parametrize(
    "example",
    [
        (image(), image(seed=1)),
        [image(), image(seed=1)],
        {"left": image(), "right": image(seed=1), "scale": 2.0},
        {"left": image(), "right": image(seed=1), "mask": torch.ones(1, 1, 8, 8)},
        ((image(),), {"right": image(seed=1), "scale": 0.5}),
        None,
    ],
    ids=["tuple", "list", "dict", "dict-mask", "args-kwargs", "inferred"],
)
def test_several_inputs(example):
    model = TwoInputs()
    converted = blurify.convert(model, example_inputs=example)
    assert blurred(converted) == ["conv2", "pool"], "each module is used twice, and is one site"
    args, kwargs = given_inputs(example or (image(), image(seed=1)))
    assert is_blurred(converted, model, *args, **kwargs)


class DictInput(Net):
    def forward(self, batch):
        return super().forward(batch["images"][0] if isinstance(batch["images"], list) else batch["images"])


@pytest.mark.parametrize("images", [image(), [image(), image()]])
def test_an_argument_that_is_a_dict(images):
    converted = blurify.convert(DictInput(), example_inputs=({"images": images, "name": "x"},))
    assert blurred(converted) == ["conv2", "pool"]


class Siamese(nn.Module):
    """One backbone, called for each of two inputs that may have different sizes."""

    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, a, b):
        return F.cosine_similarity(self.backbone(a), self.backbone(b))


@pytest.mark.parametrize("size", [32, 48])
def test_a_backbone_called_twice(size):
    model = Siamese()
    inputs = (image(), image(2, 3, size, size, seed=1))
    converted = blurify.convert(model, example_inputs=inputs)
    assert blurred(converted) == ["backbone.conv2", "backbone.pool"]
    with torch.no_grad():
        assert converted.eval()(*inputs).shape == (2,)
        alone = blurify.convert(model.backbone).eval()
        expected = F.cosine_similarity(alone(inputs[0]), alone(inputs[1]))
        assert torch.equal(converted(*inputs), expected)


# --- what it takes: outputs


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    features: torch.Tensor
    loss: torch.Tensor | None = None


Pair = namedtuple("Pair", "logits features")


def _as_dataclass(a, b):
    return Output(a, b)


def _as_dict(a, b):
    return {"logits": a, "features": b, "size": 3}


def _as_tuple(a, b):
    return a, [b], None


class Outputs(Net):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        y = self.features(x)
        return self.form(self.fc(y.mean((2, 3))), y)


@pytest.mark.parametrize("form", [_as_dataclass, _as_dict, _as_tuple, Pair], ids=lambda form: form.__name__)
def test_every_tensor_of_a_structured_output_is_compared(form):
    model = Outputs(form)
    converted = blurify.convert(model)
    assert blurify.proof_of(converted).outputs == 2
    assert type(converted(image())) is type(model(image()))


# --- what it takes: models


class ReadsValues(Net):
    def forward(self, x):
        y = self.features(x)
        if y.abs().max().item() > 1e6:
            y = y / y.abs().max()
        keep = int(torch.count_nonzero(y.mean((0, 2, 3)) > -1))
        return self.fc(y.mean((2, 3)))[:, : max(keep, 1)]


def test_a_forward_that_reads_values():
    model = ReadsValues()
    converted = blurify.convert(model)
    assert blurred(converted) == ["conv2", "pool"] and is_blurred(converted, model, image())
    assert blurify.proof_of(converted).identity_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["inferred", "given"])
def test_other_precisions(net, dtype, given):
    net = net.to(dtype)
    converted = blurify.convert(net, example_inputs=image().to(dtype) if given else None)
    assert {p.dtype for p in converted.parameters()} == {dtype}
    y = converted.eval()(image().to(dtype))
    assert y.dtype == dtype and y.isfinite().all()
    assert is_blurred(converted.double(), net.double(), image().double())


def test_a_model_on_the_meta_device_then_given_weights(net):
    with torch.device("meta"):
        empty = Net()
    converted = blurify.convert(empty)
    proof = blurify.proof_of(converted)
    assert blurred(converted) == ["conv2", "pool"] and proof.identity_error < 1e-5
    identity, _, weights = proof.lines()
    assert proof.made_up and proof.tensors_equal == 0  # there was nothing to compare, and it says so
    assert "weights that were made up" in identity and "not proven: the model is on the meta device" in weights
    assert not blurify.proof_of(blurify.convert(net)).made_up
    assert all(p.is_meta for p in converted.parameters())
    converted.to_empty(device="cpu").load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(converted.eval()(image()), blurify.convert(net).eval()(image()))


@pytest.mark.parametrize("cls", [Net, Functional])
def test_channels_last(cls):
    torch.manual_seed(0)
    net = cls().eval()
    expected = blurify.convert(net).eval()(image())
    converted = blurify.convert(net.to(memory_format=torch.channels_last))
    x = image().to(memory_format=torch.channels_last)
    assert converted.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(converted(x), expected, atol=1e-6)
    assert converted.features(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("verb", [blurify.inspect, blurify.convert], ids=["inspect", "convert"])
def test_data_parallel_wrapper_says_what_to_convert(net, verb):
    wrapped = nn.DataParallel(net)
    with pytest.raises(BlurifyError, match=r"convert model\.module.*DataParallel again"):
        verb(wrapped)
    again = nn.DataParallel(blurify.convert(wrapped.module))
    assert list(again.state_dict()) == list(wrapped.state_dict())
    assert torch.equal(again.eval()(image()), blurify.convert(net).eval()(image()))


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights(net, normed):
    normed(net.conv2)
    normed(net.conv3)
    net.eval()
    x = image()
    expected = net(x)
    converted = blurify.convert(net)
    assert blurred(converted) == ["conv2", "pool"] and is_blurred(converted, net, x)
    assert list(converted.state_dict()) == list(net.state_dict())
    assert torch.equal(net(x), expected)
    converted.train()(x).sum().backward()
    assert all(p.grad is not None for p in converted.parameters())


def test_old_spectral_norm_by_hook(net):
    nn.utils.spectral_norm(net.conv2)
    converted = blurify.convert(net)
    assert blurred(converted) == ["conv2", "pool"] and is_blurred(converted, net, image())


def test_lazy_modules():
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.LazyConv2d(8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
        )

    with pytest.raises(BlurifyError, match="lazy"):
        blurify.convert(build(), example_inputs=image())
    model = build()
    model(image())
    converted = blurify.convert(model, example_inputs=image())
    assert blurred(converted) == ["2"] and converted(image()).shape == (2, 4)


def test_a_models_own_hooks_keep_working(net):
    calls = []

    def scale(module, args, kwargs):
        return (args[0] * 2,), kwargs

    def record(module, args, output):
        calls.append(output.shape)

    def shift(module, args, output):
        return output + 1

    net.register_forward_pre_hook(scale, with_kwargs=True)
    net.act.register_forward_hook(record)
    plain = blurify.convert(Net())
    plain.load_state_dict(net.state_dict())
    converted = blurify.convert(net).eval()
    assert len(converted.act._forward_hooks) == 1
    calls.clear()
    x = image()
    assert torch.allclose(converted(x), plain.eval()(2 * x), atol=1e-6) and len(calls) == 1
    # A hook that changes what the activation returns: the blur goes in front of the convolution, with the same sizes.
    net.act.register_forward_hook(shift)
    changed = blurify.convert(net).eval()
    assert next(site.rule for site in blurify.plan_of(changed).sites if site.name == "conv2") == "blurred-input"
    calls.clear()
    identity = blurify.convert(net, filter_size=1).eval()
    calls.clear()
    assert torch.allclose(identity(x), net.eval()(x), atol=1e-6) and calls[0] == calls[1] == (2, 8, 16, 16)


def test_a_model_without_sites():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    converted = blurify.convert(model)
    assert converted is not model and blurify.plan_of(converted).sites == ()
    assert torch.equal(converted(image()), model(image()))
    assert blurify.proof_of(converted).sites_converted == 0


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3, 2), nn.ReLU(), nn.MaxPool1d(2)), (1, 2, 65)),
        (nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.Conv3d(4, 4, 3, (1, 2, 2)), nn.ReLU(), nn.AvgPool3d(2)), None),
    ],
    ids=["1d", "3d"],
)
def test_other_ranks(model, shape):
    converted = blurify.convert(model, example_inputs=None if shape is None else torch.randn(shape))
    assert blurred(converted) == ["2", "4"]


# --- what it refuses, or leaves with a reason


def test_scripted_and_compiled_models_are_refused(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted, traced = torch.jit.script(net), torch.jit.trace(net, image())
    for model, words in ((scripted, "torch.jit"), (traced, "torch.jit"), (torch.compile(net), "torch.compile")):
        with pytest.raises(BlurifyError, match=words):
            blurify.convert(model)


def test_a_scripted_part_is_listed_with_its_reason(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.ReLU()))
    model = nn.Sequential(part, nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
    model.insert(0, nn.Conv2d(3, 4, 3))
    plan = blurify.plan_of(blurify.convert(model))
    assert [(site.name, site.action) for site in plan.sites] == [("2", "blur"), ("1", "skip")]
    assert "script" in plan.skipped[0].reason


@pytest.mark.filterwarnings("ignore")
def test_quantized_models_are_refused():
    from torch.ao import quantization

    if "x86" not in torch.backends.quantized.supported_engines:
        pytest.skip("no quantized kernels here")
    model = nn.Sequential(
        quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2), quantization.DeQuantStub()
    ).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(image())
    quantization.convert(model, inplace=True)
    with pytest.raises(BlurifyError, match=r"quantized.*float model"):
        blurify.convert(model, example_inputs=image())


def test_indices_for_unpooling_are_a_reason():
    class Unpool(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x):
            return self.unpool(*self.pool(x))

    model = Unpool()
    converted = blurify.convert(model, example_inputs=image())
    assert not blurred(converted) and "return_indices" in blurify.plan_of(converted).skipped[0].reason
    assert torch.equal(converted(image()), model(image()))


class OnlyTrains(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.extra = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x):
        x = self.body(x)
        return self.extra(x) if self.training else x


def test_a_site_that_does_not_run_is_listed():
    site = blurify.inspect(OnlyTrains()).sites[0]
    assert (site.name, site.action, site.rule) == ("extra", "skip", "not-run")


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (image(2, 5, 32, 32), "2x5x32x32"),
        ((image(), image()), "2x3x32x32, an input"),
        ({"pictures": image()}, "pictures"),
        ("224", "give a tensor"),
        (7, "give a tensor"),
    ],
    ids=["channels", "too-many", "keyword", "text", "number"],
)
@pytest.mark.parametrize("verb", [blurify.inspect, blurify.convert], ids=["inspect", "convert"])
def test_wrong_inputs_are_named(net, verb, example, words):
    with pytest.raises(BlurifyError, match=words) as caught:
        verb(net, example_inputs=example)
    assert "\n" not in str(caught.value)


class Picky(Net):
    def forward(self, x, step):
        if step.shape != (5,):
            raise ValueError("step must have five entries")
        return super().forward(x) + step.sum()


def test_where_nothing_can_be_inferred_the_message_says_what_to_give():
    with pytest.raises(BlurifyError, match=r"five entries.*example_inputs"):
        blurify.convert(Picky())
    assert blurred(blurify.convert(Picky(), example_inputs=(image(), torch.ones(5)))) == ["conv2", "pool"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"recipe": "zhang2018"}, "zhang2019"), ({"filter_size": 9}, "1.*7"), ({"recipe": {"filtr": {}}}, "filter")],
)
def test_wrong_recipes_are_named(net, arguments, words):
    with pytest.raises(BlurifyError, match=words):
        blurify.convert(net, **arguments)


def test_a_failing_forward_leaves_torch_as_it_was(net):
    call = nn.Module.__call__
    with pytest.raises(BlurifyError):
        blurify.convert(net, example_inputs=image(2, 5, 32, 32))
    blurify.convert(net)
    assert nn.Module.__call__ is call and torch.is_grad_enabled()


def test_a_name_that_the_model_uses_itself(net):
    plan = blurify.inspect(net)
    net.blur = 3
    with pytest.raises(BlurifyError, match="already an attribute 'blur'"):
        apply_plan(net, plan)
    assert type(net) is Net and blurify.plan_of(net) is None
    converted = blurify.convert(net)
    assert converted.blur == 3 and isinstance(converted.blur_2, blurify.BlurPool2d)
    assert is_blurred(converted, net, image())


def test_a_plan_for_another_model_is_refused(net):
    plan = blurify.inspect(net)
    other = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(BlurifyError, match=r"another model.*no 'conv2'"):
        apply_plan(other, plan)
    assert blurify.plan_of(other) is None


# --- the plan


@pytest.mark.parametrize("cls", [Net, Functional])
def test_a_plan_goes_through_json_and_onto_a_fresh_model(cls):
    net = cls().eval()
    converted = blurify.convert(net)
    text = json.dumps(blurify.plan_of(converted).to_dict())
    plan = Plan.from_dict(json.loads(text))
    assert plan == blurify.plan_of(converted)
    fresh = cls().eval()
    fresh.load_state_dict(net.state_dict())
    apply_plan(fresh, plan)
    assert torch.equal(fresh(image()), converted(image())) and is_blurred(fresh, net, image())


# --- the proof fails where something is wrong


class Map(Net):
    """Gives its feature map away, so that nothing averages over a wrong position."""

    def forward(self, x):
        return self.features(x)


class SequentialMap(nn.Sequential):
    """The same as members of a container."""

    def __init__(self):
        net = Net()
        parts = [net.conv1, nn.ReLU(), net.conv2, net.norm, net.act, net.pool, net.conv3, net.act3]
        super().__init__(*parts)


class FunctionalMap(Functional):
    def forward(self, x):
        return self.features(x)


def changed(plan, change):
    """The plan with `change(edit)` in place of each edit; None drops it."""
    sites = [
        dataclasses.replace(site, edits=tuple(new for edit in site.edits if (new := change(edit)) is not None))
        for site in plan.sites
    ]
    return dataclasses.replace(plan, sites=tuple(sites))


def on(kind, **changes):
    """A change of the edits of one kind, or of one op; changes of the blur are given as `blur_...`."""

    def change(edit):
        if not is_of(edit, kind):
            return edit
        blur = {name.removeprefix("blur_"): value for name, value in changes.items() if name.startswith("blur_")}
        own = {name: value for name, value in changes.items() if not name.startswith("blur_")}
        return dataclasses.replace(edit, **own, **({"blur": dataclasses.replace(edit.blur, **blur)} if blur else {}))

    return change


def without(kind):
    return lambda edit: None if is_of(edit, kind) else edit


def is_of(edit, kind):
    return getattr(edit, "op", None) == kind if isinstance(kind, str) else isinstance(edit, kind)


def decided_for(model):
    return rehearsed(model, load_recipe(None), image())


def prove(model, plan, decided=None):
    """Prove a plan, also a wrong one, with the sites where they are."""
    decided = dataclasses.replace(decided or decided_for(model), plan=plan)
    before, converted = fingerprint(model), copy.deepcopy(model)
    apply_plan(converted, plan)
    return verify(model, converted, decided, given_inputs(image()), before)


class Averages(nn.Module):
    """Sites that the one-tap filter leaves as they are: pools as functions and slices, in both layouts."""

    def __init__(self, op):
        super().__init__()
        self.conv, self.op = nn.Conv2d(3, 8, 3, padding=1), op

    def forward(self, x):
        return self.op(torch.relu(self.conv(x)))


LEFT_AS_THEY_ARE = {
    "function": lambda x: F.avg_pool2d(x, 2),
    "function, wide": lambda x: F.avg_pool2d(x, kernel_size=7, stride=2, padding=3, count_include_pad=False),
    "function, 4 by (4, 2)": lambda x: torch.nn.functional.avg_pool2d(x, (4, 4), stride=(4, 2), ceil_mode=True),
    "function that sums": lambda x: F.avg_pool2d(x, 3, 3, divisor_override=1),
    "module": nn.AvgPool2d(2),
    "module, one dimension without a stride": nn.AvgPool2d((4, 2), (1, 2), (1, 0)),
    "slice": lambda x: x[:, :, ::2, ::2],
    "slice, with an ellipsis": lambda x: x[..., ::3, ::3],
    "slice of tokens": lambda x: x.permute(0, 2, 3, 1)[:, ::2, ::2],
}


@pytest.mark.parametrize("op", LEFT_AS_THEY_ARE)
def test_what_the_identity_filter_leaves_is_shown_by_where_it_looks(op):
    torch.manual_seed(0)
    model = Averages(LEFT_AS_THEY_ARE[op]).eval()
    decided = decided_for(model)
    proof = prove(model, decided.plan, decided)
    assert proof.sites_shown == proof.sites_compared == 1 and proof.unshown == ()

    def shifted(edit):
        shift = tuple(
            one + (2 if stride > 1 else 0) for one, stride in zip(edit.blur.shift, edit.blur.stride, strict=True)
        )
        return dataclasses.replace(edit, blur=dataclasses.replace(edit.blur, shift=shift))

    with pytest.raises(VerificationError, match="samples beside where the"):
        prove(model, changed(decided.plan, shifted), decided)


def test_a_dimension_that_an_average_does_not_subsample_is_averaged_as_before():
    torch.manual_seed(0)
    model = Averages(nn.AvgPool2d((5, 2), (1, 2), (1, 0))).eval()
    for recipe in ("zhang2019", "aligned"):
        converted = blurify.convert(model, recipe, example_inputs=image())
        x = torch.relu(model.conv(image()))
        rows = F.avg_pool2d(x, (5, 1), 1, (1, 0))
        filtered = blurify.BlurPool2d((1, 2), 4, centre=(0, 0.5) if recipe == "aligned" else None)
        torch.testing.assert_close(converted(image()), filtered(rows))


BROKEN = {
    "a blur that does not subsample": (Map, on("wrap", blur_stride=(1, 1))),
    "a conv of the wrong stride": (Map, on(SetStride, stride=(2, 1))),
    "a conv that was not made dense": (Map, without(SetStride)),
    "a blur that is missing": (Map, without("wrap")),
    "a blur behind the next convolution": (Map, on("wrap", path=(("features", "self.act3(self.conv3(x))", 0),))),
    "a blur that is shifted": (Map, on("wrap", blur_shift=(1, 1))),
    "a member that does not subsample": (SequentialMap, on(InsertBlur, blur_stride=(1, 1))),
    "a member's conv that was not made dense": (SequentialMap, without(SetStride)),
    "a member that is missing": (SequentialMap, without(InsertBlur)),
    "a member behind the next convolution": (SequentialMap, on(InsertBlur, member="7")),
    "a member before the activation": (SequentialMap, on(InsertBlur, member="3", blur_shift=(1, 0))),
    "a member that is shifted": (SequentialMap, on(InsertBlur, blur_shift=(1, 1))),
    "a rewritten pool that is missing": (FunctionalMap, without(Rewrite)),
    "a rewritten pool that is shifted": (FunctionalMap, on(Rewrite, blur_shift=(0, 1))),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_plan_does_not_pass(broken):
    cls, change = BROKEN[broken]
    torch.manual_seed(0)
    model = cls().eval()
    plan = blurify.inspect(model, image())
    proof = prove(model, plan)
    assert proof.identity_error < 1e-5 and proof.sites_shown == proof.sites_compared == proof.sites_converted == 2
    wrong = changed(plan, change)
    assert wrong != plan
    with pytest.raises(VerificationError):
        prove(model, wrong)


@pytest.mark.parametrize("changes", [{}, {"stride": (1, 1)}, {"shift": (1, 1)}], ids=["right", "stride", "shift"])
def test_a_blur_of_a_modules_output_is_proved_as_well(changes):
    """The form for where nothing else can be changed."""
    torch.manual_seed(0)
    model = Map().eval()

    def change(edit):
        blur = edit.blur and dataclasses.replace(edit.blur, **changes)
        return BlurOutput("act", blur) if is_of(edit, "wrap") else edit

    plan = changed(blurify.inspect(model, image()), change)
    assert any(isinstance(edit, BlurOutput) for edit in plan.edits)
    if not changes:
        assert prove(model, plan).identity_error < 1e-5
    else:
        with pytest.raises(VerificationError):
            prove(model, plan)


class Amplify(nn.Module):
    """Rounds otherwise in every call, and makes each difference some ten times larger."""

    calls = 0

    def forward(self, x):
        Amplify.calls += 1
        return torch.sin(20 * (x * (1 + Amplify.calls % 7 * torch.finfo(x.dtype).eps)))


def chaotic(cls):
    """A model whose outputs even float64 can't reproduce, as those of deep networks with random weights."""

    class Chaotic(cls):
        def __init__(self):
            super().__init__()
            self.deep = nn.Sequential(*(Amplify() for _ in range(40)))

        def forward(self, x):
            return self.deep(super().forward(x))

    return Chaotic


@pytest.mark.parametrize("broken", [name for name, (cls, _) in BROKEN.items() if cls is Map])
def test_models_that_amplify_rounding_are_compared_site_by_site(broken):
    cls, change = BROKEN[broken]
    torch.manual_seed(0)
    model = chaotic(cls)().eval()
    plan = blurify.inspect(model, image())
    proof = prove(model, plan)
    assert proof.sites_shown == proof.sites_compared == 2 and proof.identity_error < 1e-10
    with pytest.raises(VerificationError):
        prove(model, changed(plan, change))


@pytest.mark.parametrize("name", ["legacy_seresnet18", "repvgg_a0", "tf_efficientnet_b0", "hrnet_w18_small"])
def test_every_kind_of_blur_point_is_compared_at_its_site(name):
    """Before the next convolution, behind a sum of branches, in the middle of a forward, at a join."""
    torch.manual_seed(0)
    model = nn.Sequential(timm.create_model(name), *(Amplify() for _ in range(40))).eval()
    proof = prove(model, blurify.inspect(model, image()))
    assert proof.sites_compared == proof.sites_converted > 0
    assert proof.sites_shown >= proof.sites_compared - 1  # the last maps may be of one sample
    assert proof.identity_error < 1e-5  # rounding depends on the processor


class FindsNothing(nn.Module):
    """As a detector on noise: what it returns is empty, and the strided part is the last that runs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        self.head(self.act(self.down(self.first(x))))
        return {"boxes": x.new_zeros(0, 4)}


@pytest.mark.parametrize("change", [without("wrap"), on("wrap", blur_shift=(1, 1)), on(SetStride, stride=(2, 2))])
def test_a_broken_plan_does_not_pass_where_the_outputs_are_empty(change):
    torch.manual_seed(0)
    model = FindsNothing().eval()
    plan = blurify.inspect(model, image())
    proof = prove(model, plan)
    assert proof.sites_shown == proof.sites_compared == 1 and proof.identity_error < 1e-5
    with pytest.raises(VerificationError):
        prove(model, changed(plan, change))


class Named(OrderedDict):
    """Entries that are attributes too, as transformers' outputs have them."""

    def __getattr__(self, name):
        return self[name]


class Wraps(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = Map()

    def forward(self, x):
        return Named(feature=self.map(x))


class NamedOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.wraps = Wraps()
        self.same = nn.Identity()

    def forward(self, x):
        x = self.wraps(x).feature
        self.same(x).mul_(2)  # writes to x as well
        return x.new_zeros(0, 4) * x.sum()


def test_outputs_with_attributes_and_aliases_are_left_as_they_are():
    torch.manual_seed(0)
    model = NamedOutputs().eval()
    proof = prove(model, blurify.inspect(model, image()))
    assert proof.sites_shown == proof.sites_compared == 2 and proof.identity_error < 1e-5


@pytest.mark.parametrize("cls", [Map, FindsNothing])
def test_proving_leaves_the_random_numbers_of_the_user_alone(cls):
    model = cls().eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    blurify.convert(model, example_inputs=image())
    assert torch.equal(torch.rand(3), expected)


def test_a_site_that_still_aliases_is_found(net):
    plan = blurify.inspect(net, image())
    inputs = given_inputs(image())
    assert sites_left(blurify.convert(net), plan, inputs) == []
    assert sites_left(net, plan, inputs) == ["conv2", "pool"]


@pytest.mark.parametrize("forgotten", ["forward", "blur", "stride", "pool", "filter"])
def test_an_edit_that_was_not_carried_out_is_found(net, forgotten):
    """The identity check is about the plan; this is about the very model that the user gets."""
    decided, before = decided_for(net), fingerprint(net)
    converted = copy.deepcopy(net)
    apply_plan(converted, decided.plan)
    inputs = given_inputs(image())
    verify(net, converted, decided, inputs, before)
    if forgotten == "forward":
        converted.__class__ = Net
    elif forgotten == "blur":
        converted.blur = nn.Identity()
    elif forgotten == "stride":
        converted.conv2.stride = (2, 2)
    elif forgotten == "pool":
        converted.pool = nn.MaxPool2d(3, 2, 1)
    else:
        converted.pool.blurpool = blurify.BlurPool2d(2, 3)
    with pytest.raises(VerificationError):
        verify(net, converted, decided, inputs, before)


class TwoPools(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return F.max_pool2d(F.relu(x - 0.1), 2)


@pytest.mark.parametrize("skipped", [":max_pool2d", ":max_pool2d#2"])
def test_the_audit_tells_calls_of_one_forward_apart(skipped):
    model = TwoPools()
    converted = blurify.convert(model, {"skip": {"names": [skipped]}}, example_inputs=image())
    assert set(blurred(converted)) == {":max_pool2d", ":max_pool2d#2"} - {skipped}
    both = blurify.inspect(model, image())
    assert sites_left(model, both, given_inputs(image())) == [":max_pool2d", ":max_pool2d#2"]


@pytest.mark.parametrize("there", [True, False])
def test_a_convolution_that_stays_strided_must_read_a_blur(there):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Conv2d(8, 4, 1))
    plan = blurify.inspect(model, image())
    assert [site.rule for site in plan.sites] == ["blurred-input"]
    apply_plan(model, plan)
    if not there:
        del model.blur_before_2
    assert sites_left(model, plan, given_inputs(image())) == ([] if there else ["2"])


def test_one_changed_bit_is_found(net):
    converted = blurify.convert(net)
    assert check_weights(fingerprint(net), fingerprint(converted)) == len(net.state_dict())
    bits = converted.conv3.weight.detach().view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    with pytest.raises(VerificationError, match=r"conv3\.weight"):
        check_weights(fingerprint(net), fingerprint(converted))


def test_other_keys_and_values_are_found(net):
    converted = blurify.convert(net)
    converted.register_buffer("taps", torch.ones(1))
    with pytest.raises(VerificationError, match="taps"):
        check_weights(fingerprint(net), fingerprint(converted))
    converted = blurify.convert(net)
    converted.norm.num_batches_tracked += 1
    with pytest.raises(VerificationError, match=r"norm\.num_batches_tracked"):
        check_weights(fingerprint(net), fingerprint(converted))


def test_weights_that_are_not_numbers_are_equal_to_themselves(net):
    net.conv3.bias.data[0] = float("nan")
    assert check_weights(fingerprint(net), fingerprint(copy.deepcopy(net))) == len(net.state_dict())


def test_branches_that_a_fresh_model_multiplies_by_zero_are_checked():
    class Residual(Map):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(8, 1, 1))
            self.down = nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, x):
            x = F.relu(self.conv1(x))
            return self.act(self.scale * self.norm(self.conv2(x))) + F.avg_pool2d(x, 2)

    model = Residual().eval()
    plan = blurify.inspect(model, image())
    wrong = changed(plan, on(BlurOutput, blur_shift=(1, 1)))  # `features` calls the same convolution otherwise
    assert wrong != plan
    with pytest.raises(VerificationError):
        prove(model, wrong)


# --- found in review


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("best", torch.tensor(float("nan")))

    def forward(self, x):
        self.calls += 1
        return self.pool(self.conv(x)) * self.calls


@pytest.mark.parametrize("inplace", [False, True])
def test_buffers_that_a_forward_writes_to_stay(inplace):
    model = Counts()
    converted = blurify.convert(model, inplace=inplace)
    assert model.calls == converted.calls == 0
    assert blurify.proof_of(converted).identity_error == 0


def test_inputs_are_guessed_past_a_norm_of_fixed_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LayerNorm([4, 32, 32]), nn.MaxPool2d(2))
    assert blurify.plan_of(blurify.convert(model)).input_shapes == ((1, 3, 32, 32),)


def test_original_that_fails_on_real_inputs_is_said_in_words():
    class Picky(Net):
        def forward(self, x):
            if not x.is_meta:
                raise RuntimeError("not today")
            return super().forward(x)

    with pytest.raises(BlurifyError, match=r"not today.*example_inputs"):
        blurify.convert(Picky())


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrized_convolution_is_blurred_after_its_activation(wrap):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), wrap(nn.Conv2d(4, 8, 4, 2, 1)), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
    (site,) = blurify.plan_of(blurify.convert(model)).sites
    dense, blur = site.edits
    assert dense == SetStride("1", (1, 1), (2, 2)) and isinstance(blur, InsertBlur) and blur.member == "3"


def test_unused_pool_with_a_list_of_strides_is_listed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model[0].unused = nn.MaxPool2d(2, [2, 2])
    assert [site.rule for site in blurify.inspect(model).sites] == ["not-run"]


@pytest.mark.parametrize("functional", [False, True])
def test_sum_pool_keeps_its_scale(functional):
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.AvgPool2d(2, divisor_override=1)

        def forward(self, x):
            return F.avg_pool2d(x, 2, divisor_override=1) if functional else self.pool(x)

    x = torch.ones(1, 3, 8, 8)
    assert torch.allclose(blurify.convert(Sums(), example_inputs=x)(x), torch.full((1, 3, 4, 4), 4.0))


def test_forward_of_a_symbolic_trace_is_left_alone():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2)

        def forward(self, x):
            return F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2)

    converted = blurify.convert(torch.fx.symbolic_trace(Calls()), example_inputs=torch.rand(1, 3, 32, 32))
    conv, pool = blurify.plan_of(converted).sites
    assert conv.rule == "blurred-input" and "after its nonlinearity it can't" in conv.reason
    assert pool.rule == "source" and "torch.fx" in pool.reason


def test_dict_inputs_meant_as_one_argument():
    class Takes(Net):
        def forward(self, batch):
            return super().forward(batch["image"])

    batch = {"image": torch.rand(1, 3, 32, 32)}
    with pytest.raises(BlurifyError, match="give a tuple with that dict"):
        blurify.inspect(Takes(), batch)
    assert blurify.inspect(Takes(), (batch,)).converted


class Saturated(Map):
    """As a detector whose boxes are all clipped at the picture's edge, with scores of 1: nothing shows in them."""

    def forward(self, x):
        x = super().forward(x)
        return (x.mean((1, 2, 3)).abs() * 1e6 + 1).clamp(max=1), (x.amax((1, 2, 3)).abs() * 1e6 + 50).clamp(max=32)


@pytest.mark.parametrize("filter_size", [1, 4])
def test_few_outputs_that_show_the_filter_are_proof_enough(filter_size):
    torch.manual_seed(0)
    proof = blurify.proof_of(blurify.convert(Net().eval(), filter_size=filter_size, example_inputs=image()))
    assert proof.outputs == 1 and proof.sites_shown == proof.sites_compared == 2


@pytest.mark.parametrize("broken", [name for name, (cls, _) in BROKEN.items() if cls is Map])
def test_outputs_that_show_nothing_are_no_proof(broken):
    torch.manual_seed(0)
    model = Saturated().eval()
    plan = blurify.inspect(model, image())
    proof = prove(model, plan)
    assert proof.sites_shown == proof.sites_compared == 2 and proof.identity_error < 1e-5
    with pytest.raises(VerificationError):
        prove(model, changed(plan, BROKEN[broken][1]))
