"""An activation in one pass with what blurs it, against the two one after the other by torch's own operators."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blurify
from blurify import cli
from blurify.nn import BlurPool2d, MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d, blocks, blurpool
from blurify.nn.joining import Joined, after
from blurify.nn.padding import PADDINGS

ACTIVATIONS = (nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardtanh(-0.5, 0.7))
LAYOUTS = {2: torch.channels_last, 3: torch.channels_last_3d}
POOLS = (MaxBlurPool1d, MaxBlurPool2d, MaxBlurPool3d)


def apart(layer: Any, activation: nn.Module, x: Tensor) -> Tensor:
    """Activation, dense pool and blur by the operators that a tracer is shown."""
    x = activation(x.clone())
    if not isinstance(layer, POOLS):
        return layer._blur(x, (0,) * layer.ndim)  # type: ignore[no-any-return]
    dense = type(layer).__mro__[2](layer.kernel_size, 1, layer.padding, layer.dilation)(x)
    size = (
        type(layer)
        .__mro__[2](layer.kernel_size, layer.stride, layer.padding, layer.dilation, ceil_mode=layer.ceil_mode)(x)
        .shape[2:]
    )
    blur = layer.blurpool
    extend = [s * (m - 1) + 1 - n for m, s, n in zip(size, blur.stride, dense.shape[2:], strict=True)]
    return blur._blur(dense, tuple(extend))  # type: ignore[no-any-return]


def drawn(draw: random.Random) -> tuple[Any, list[int]]:
    ndim = draw.choice([1, 2, 2, 3])
    sizes = [draw.randint(3, (40, 13, 7)[ndim - 1]) for _ in range(ndim)]
    taps = draw.choice([(1, 3, 3, 1), (1, 2, 1), (1, 0.5, 3), (1, -0.1, 2)])
    if draw.random() < 0.4:
        return blurpool(ndim)([draw.randint(2, 3) for _ in sizes], taps=taps, padding=draw.choice(PADDINGS)), sizes
    kernel = draw.randint(1, 3) if draw.random() < 0.9 else 9
    sizes = [max(n, kernel) for n in sizes]
    return POOLS[ndim - 1](kernel, 2, draw.randint(0, kernel // 2), taps=taps), sizes


@pytest.mark.parametrize("seed", range(80))
def test_result_and_gradient_are_those_of_one_after_the_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    monkeypatch.setattr(blocks, "BLOCK", draw.choice([1, 50, 1 << 18]))  # of one map, of some, of all
    monkeypatch.setattr(sys.modules["blurify.nn.blurpool"], "_LARGE", draw.choice([1, 1 << 20]))
    layer, sizes = drawn(draw)
    activation = draw.choice(ACTIVATIONS)
    x = (2 * torch.randn(2, 3, *sizes, dtype=torch.float64)).round(decimals=draw.choice([0, 3])).requires_grad_()
    given = x * 1
    if len(sizes) > 1 and draw.random() < 0.5:
        given = given.contiguous(memory_format=LAYOUTS[len(sizes)])
    expected = apart(layer, activation, x)
    grad = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    found = layer.after(activation, given)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (got,) = torch.autograd.grad(found, x, grad)
    # Which of equal samples gets the gradient is each pool's own affair: there only the sums are the same.
    if x.detach().unique().numel() == x.numel():
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.sum(), wanted.sum(), rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(layer.after(activation, x * 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(30))
def test_other_devices_do_it_by_torchs_operators(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU runs it, on the CPU; and on the meta device, where bytes are counted, codes have the same shapes."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    layer, sizes = drawn(draw)
    activation = draw.choice(ACTIVATIONS)
    x = torch.randn(2, 3, *sizes, dtype=torch.float64, requires_grad=True)
    given = x * 1
    if len(sizes) > 1 and draw.random() < 0.5:
        given = given.contiguous(memory_format=LAYOUTS[len(sizes)])
    ours = layer.after(activation, given)
    grad = torch.randn_like(ours)
    (wanted,) = torch.autograd.grad(ours, x, grad)
    monkeypatch.setattr(sys.modules["blurify.nn.blurpool"], "on_the_cpu", lambda _: False)
    theirs = layer.after(activation, x * 1)
    torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(theirs, x, grad)[0], wanted, rtol=1e-12, atol=1e-12)
    monkeypatch.undo()

    def codes(x: Tensor) -> list[Any]:
        return [(one.shape, one.dtype) for one in kept(lambda x: layer.after(activation, x * 1), x)]

    assert codes(x.detach().to("meta").requires_grad_()) == codes(x)


@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(2), MaxBlurPool2d(3, 2, 1)], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()], ids=str)
def test_derivatives_of_the_gradient(layer: Any, activation: nn.Module) -> None:
    torch.manual_seed(0)
    x = (4 * torch.rand(1, 2, 6, 7, dtype=torch.float64) - 2).requires_grad_()
    grad = torch.randn(layer(x).shape, dtype=torch.float64, requires_grad=True)

    def twice(run: Any) -> Tensor:
        (first,) = torch.autograd.grad(run(x), x, grad, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), grad)
        return second

    torch.testing.assert_close(
        twice(lambda x: layer.after(activation, x)), twice(lambda x: apart(layer, activation, x))
    )
    many = torch.randn(4, *grad.shape, dtype=torch.float64)
    batched = torch.autograd.grad(layer.after(activation, x), x, many, is_grads_batched=True)[0]
    single = [torch.autograd.grad(apart(layer, activation, x), x, one)[0] for one in many]
    torch.testing.assert_close(batched, torch.stack(single))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(3, 2, 1)], ids=str)
def test_dtypes(dtype: torch.dtype, layer: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 20).to(dtype).requires_grad_()
    exact = x.detach().double().requires_grad_()
    expected = apart(layer, nn.ReLU(), exact)
    found = layer.after(nn.ReLU(), x)
    assert found.dtype == dtype
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.double(), expected, **close)
    grads = torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(expected.sum(), exact)[0]
    torch.testing.assert_close(grads[0].double(), grads[1], **close)


def network(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), activation, nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8),
        copy.deepcopy(activation), nn.Conv2d(8, 4, 1),
    )  # fmt: skip


def converted(activation: nn.Module, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    return blurify.convert(network(activation), example_inputs=torch.zeros(1, 3, 32, 32), **more)


def plain(model: nn.Module) -> nn.Module:
    """The same, with a watcher on every module: nothing runs together."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def kept(model: Any, x: Tensor) -> list[Tensor]:
    """What autograd saves of a forward, each storage once, parameters and buffers left out."""
    own = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    found: dict[int, Tensor] = {}

    def pack(one: Tensor) -> Tensor:
        found.setdefault(one.untyped_storage()._cdata, one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        model(x)
    return [one for place, one in found.items() if place not in {one.untyped_storage()._cdata for one in own}]


def size(tensors: list[Tensor]) -> int:
    return sum(one.untyped_storage().nbytes() for one in tensors)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_a_sequential_runs_pairs_together(activation: nn.Module) -> None:
    model = converted(activation).double().train()
    assert isinstance(model, Joined) and type(model).__name__ == "Sequential"
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    other = plain(model)
    one, two = model(x), other(x)
    torch.testing.assert_close(one, two)
    grads = [torch.autograd.grad(y.square().sum(), [x, *m.parameters()]) for y, m in ((one, model), (two, other))]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_relu_that_runs_with_its_pool_keeps_a_byte_a_sample() -> None:
    model = converted(nn.ReLU(inplace=True)).eval()
    x = torch.randn(2, 3, 32, 32)
    together, alone = kept(model, x), kept(plain(model), x)
    dense = (2, 8, 32, 32)
    assert any(one.dtype == torch.float32 and one.shape == dense for one in alone)
    assert not any(one.dtype == torch.float32 and one.shape == dense for one in together)
    # one byte for each maximum of two neighbours in a row, one for each sample of the convolution that is dense now
    assert sorted(one.shape for one in together if one.dtype == torch.uint8) == [(2, 8, 16, 16), (2, 8, 32, 31)]
    assert size(alone) - size(together) == 4 * 2 * 8 * (32 * 32 + 16 * 16) - 2 * 8 * (32 * 31 + 16 * 16)


class Outside(nn.Module):
    """An activation in a Sequential writes to what the Sequential was given, which is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.pool = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x)
        return self.pool(x), x.mean()


def test_in_place_on_what_the_sequential_was_given_is_seen_outside() -> None:
    model = blurify.convert(Outside(), example_inputs=torch.zeros(1, 3, 16, 16))
    assert isinstance(model.pool, Joined)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x)[1], model.conv(x).relu().mean())


class Tap(nn.Module):
    """Keeps what passes, as feature extractors and skip connections do."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


def test_in_place_on_what_somebody_keeps_is_seen_there() -> None:
    model = blurify.convert(
        nn.Sequential(nn.Conv2d(3, 4, 1), Tap(), nn.Dropout(0.0), nn.ReLU(inplace=True), nn.MaxPool2d(2)).eval(),
        example_inputs=torch.zeros(1, 3, 16, 16),
    )
    model(torch.randn(2, 3, 16, 16))
    assert model[1].seen.min() >= 0
    model = converted(nn.ReLU(inplace=True))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda *given: seen.append(given[2]))
    model(torch.randn(2, 3, 32, 32))
    assert seen[0].min() >= 0


class Backwards(nn.Sequential):
    """Runs some of its members."""

    def __iter__(self) -> Any:
        return iter([one for one in self._modules.values() if not isinstance(one, nn.Tanh)])


def test_a_sequential_that_runs_its_members_in_its_own_way() -> None:
    model = blurify.convert(
        Backwards(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.ReLU(), nn.MaxPool2d(2)), example_inputs=torch.zeros(1, 3, 16, 16)
    )
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(x), model[3](model[0](x).relu()))


class Holds(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.pool = part, nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.part(x))  # type: ignore[no-any-return]


def test_a_part_with_a_plan_of_its_own_stays_as_it_is() -> None:
    x = torch.zeros(1, 3, 64, 64)
    part = blurify.convert(network(nn.ReLU()), example_inputs=x)
    whole = blurify.convert(Holds(part), example_inputs=x)
    before = whole(x)
    original = blurify.revert(whole)
    assert type(original.pool) is nn.MaxPool2d and isinstance(original.part, Joined) and len(original.part) == 7
    assert blurify.check(original.part).problems == ()
    torch.testing.assert_close(whole(x), before)
    assert type(blurify.revert(original.part)) is nn.Sequential


def test_a_part_of_a_converted_model_is_read(tmp_path: Any) -> None:
    model = blurify.convert(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)),
        example_inputs=torch.zeros(1, 3, 16, 16),
    )
    torch.save(model[:3], tmp_path / "part.pt")
    assert cli.main(["inspect", str(tmp_path / "part.pt"), "--input-shape", "1,3,16,16"]) == 0


@pytest.mark.parametrize("layer", [BlurPool2d(), MaxBlurPool2d(3, 2, 1)], ids=str)
@pytest.mark.parametrize("joined", [False, True])
def test_what_comes_out_may_be_written_to(layer: Any, joined: bool) -> None:
    x = torch.randn(1, 4, 12, 12, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    x = x.requires_grad_() * 1
    y = layer.after(nn.ReLU(), x) if joined else layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.relu_().sum().backward()


def test_pairs_behind_other_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() / 255

    model = nn.Sequential(Scaled(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2))
    model = blurify.convert(model, example_inputs=torch.zeros(1, 3, 16, 16))
    x = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    assert any(one.dtype == torch.uint8 and one.shape == (2, 4, 16, 15) for one in kept(model, x))
    with torch.autocast("cpu", torch.bfloat16):
        assert any(one.dtype == torch.uint8 and one.shape == (2, 4, 16, 15) for one in kept(model, x))


def test_a_class_that_was_patched_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted(nn.ReLU())
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)
    assert not torch.allclose(model(x), before)


def test_a_watched_member_runs_by_itself() -> None:
    model = converted(nn.ReLU())
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda *given: seen.append(given[2]))
    x = torch.randn(2, 3, 32, 32)
    model(x)
    torch.testing.assert_close(seen[0], model[0](x).relu())


def test_a_member_that_was_replaced_runs() -> None:
    model = converted(nn.ReLU())
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    model[1] = nn.Tanh()
    assert not torch.allclose(model(x), before)
    torch.testing.assert_close(model(x), plain(model)(x))
    model[1] = nn.Identity()
    torch.testing.assert_close(model(x), plain(model)(x))


def test_it_travels() -> None:
    model = converted(nn.ReLU()).eval()
    x = torch.randn(2, 3, 32, 32)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert isinstance(other, Joined)
        torch.testing.assert_close(other(x), model(x))
    original = blurify.revert(model)
    assert type(original) is nn.Sequential and not any(isinstance(one, Joined) for one in original.modules())


def test_a_transform_of_something_else() -> None:
    model = converted(nn.ReLU()).eval()
    x = torch.randn(2, 3, 32, 32)

    def loss(weight: Tensor, model: nn.Module) -> Tensor:
        return torch.func.functional_call(model, {"6.weight": weight}, (x,)).square().sum()  # type: ignore[no-any-return]

    weight = model[6].weight.detach()
    torch.testing.assert_close(torch.func.grad(loss)(weight, model), torch.func.grad(loss)(weight, plain(model)))
    one = torch.func.vmap(lambda weight: loss(weight, model))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(one, torch.stack([loss(weight, plain(model)), loss(2 * weight, plain(model))]))


def test_tracers_and_compilers_see_one_after_the_other() -> None:
    model = converted(nn.ReLU()).eval()
    x = torch.randn(2, 3, 32, 32)
    graph = torch.fx.symbolic_trace(model)
    assert any(node.target == "1" for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), model(x))
    program = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(program(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


class Block(nn.Module):
    """As a residual block has it: one activation, called more than once."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.relu = nn.BatchNorm2d(8), nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.two(self.relu(self.norm(self.one(x)))))


@pytest.mark.parametrize("inplace", [False, True])
def test_an_expression_of_a_forward(inplace: bool) -> None:
    recipe = {"conv": {"stem": "convert"}}
    model = blurify.convert(Block(inplace), recipe, example_inputs=torch.zeros(1, 3, 32, 32)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    other = plain(model)
    torch.testing.assert_close(model(x), other(x))
    grads = [torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (model, other)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert size(kept(model, x)) < size(kept(other, x))


def test_what_stands_in_place_of_a_blur_is_called() -> None:
    seen = []

    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.min())
            return x

    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(after(Other(), nn.ReLU(), x), x.relu())
    assert seen[0] >= 0
