"""Blur points: behind the nonlinearity, where everything that becomes dense comes together."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

import blurify
from blurify.graph.recorder import trace
from blurify.graph.regions import blur_points
from blurify.graph.sites import find_sites, function_name


class Net(nn.Module):
    """A dense convolution, then a forward given as a function over convolutions a, b (strided), c, d (dense)."""

    def __init__(self, function: Any, width: int = 4, **modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, width, 3, 2, 1)
        self.b = nn.Conv2d(width, width, 5, 2, 2)
        self.shortcut = nn.Conv2d(width, width, 1, 2)
        self.bn = nn.BatchNorm2d(width)
        self.c = nn.Conv2d(width, width, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.first(x))


def points(model: nn.Module, size: int = 16) -> dict[str, Node | None]:
    """The blur point of each strided convolution."""
    seen = trace(model, ((torch.zeros(1, 3, size, size, dtype=next(model.parameters()).dtype),), {}))
    sites = [site for site in find_sites(seen) if site.op.kind == "conv"]
    convs = {op.node: (op.stride, number) for number, site in enumerate(sites) for op in site.ops}
    found = blur_points(seen.graph, convs)
    return {site.name: found[site.op.node] for site in sites}


def described(model: nn.Module, size: int = 16) -> dict[str, str | None]:
    """The same, as the names of functions; and the conversion holds whatever was decided."""
    result = {}
    for name, node in points(model, size).items():
        result[name] = None if node is None else function_name(node)
    proven(model, size)
    return result


def proven(model: nn.Module, size: int) -> None:
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.bias)
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    same = blurify.convert(model, filter_size=1, example_inputs=x)
    blurred = blurify.convert(model, example_inputs=x)
    with torch.no_grad():
        for other in (x, torch.randn(2, 3, size + 3, size + 5, dtype=torch.float64)):
            try:
                expected = model(other)
            except RuntimeError:
                continue
            torch.testing.assert_close(same(other), expected, rtol=1e-12, atol=1e-12)
            assert blurred(other).shape == expected.shape


# --- one convolution


@pytest.mark.parametrize(
    ("between", "point"),
    [
        (lambda self, y: F.relu(y), "relu"),
        (lambda self, y: self.bn(y).relu(), "relu"),
        (lambda self, y: self.bn(y).relu_(), "relu"),
        (lambda self, y: F.leaky_relu(self.bn(y) * 0.5 + 1, 0.1), "leaky_relu"),
        (lambda self, y: F.gelu(F.dropout(y, 0.5, self.training)), "gelu"),
        (lambda self, y: F.relu(F.dropout2d(y, 0.5, self.training)), "relu"),
        (lambda self, y: torch.clamp(y, -1, 1), "clamp"),
        (lambda self, y: y.abs(), "abs"),
        (lambda self, y: y.to(y.dtype, copy=True).contiguous().tanh(), "tanh"),
        # written by hand: the product is the point, not the sigmoid
        (lambda self, y: y * torch.sigmoid(y), "mul"),
        (lambda self, y: self.bn(y) * torch.sigmoid(self.bn(y)), "mul"),
        (lambda self, y: y * F.relu6(y + 3) / 6, "mul"),
        (lambda self, y: y * (F.relu6(y + 3) / 6), "mul"),
        (lambda self, y: y * torch.tanh(F.softplus(y)), "mul"),
        (lambda self, y: 0.5 * y * (1 + torch.erf(y / 1.41)), "mul"),
        (lambda self, y: torch.maximum(y, 0.1 * y), "maximum"),
        (lambda self, y: y * y, "mul"),
        (lambda self, y: torch.cat([y.relu(), (-y).relu()], 1)[:, :4], "cat"),  # CReLU
    ],
)
def test_one_conv(between: Any, point: str) -> None:
    net = Net(lambda self, x: self.c(between(self, self.a(x))))
    assert described(net) == {"a": point}
    assert next(iter(points(net).values())).meta["shape"][-2:] == (8, 8)


@pytest.mark.parametrize(
    "between",
    [
        lambda self, y: y,
        lambda self, y: self.bn(y) * 2,
        lambda self, y: F.dropout(y, 0.5, self.training),
        lambda self, y: F.interpolate(y, scale_factor=2.0).relu(),  # not pointwise, and before the nonlinearity
        lambda self, y: F.layer_norm(y, y.shape[1:]).relu(),
        lambda self, y: y.flatten(2).relu().view(y.shape),
        lambda self, y: y.softmax(-1),
        lambda self, y: y[:, :, 1:-1, 1:-1].relu(),
        lambda self, y: F.avg_pool2d(y, 3, 1, 1).relu(),
    ],
)
def test_no_nonlinearity_before_the_next_consumer_that_is_not_pointwise(between: Any) -> None:
    assert described(Net(lambda self, x: self.c(between(self, self.a(x))))) == {"a": None}


def test_the_first_nonlinearity_counts() -> None:
    net = Net(lambda self, x: self.c(self.bn(self.a(x).relu()).sigmoid()))
    assert described(net) == {"a": "relu"}


def test_batch_norm_vectors_are_no_maps() -> None:
    """Affine vectors are as long as there are channels, whatever the map's width happens to be."""
    assert described(Net(lambda self, x: self.c(self.bn(self.a(x)).relu()), width=8), size=16) == {"a": "relu"}
    frozen = nn.BatchNorm2d(4, affine=False)
    assert described(Net(lambda self, x: self.c(self.norm(self.a(x)).relu()), norm=frozen)) == {"a": "relu"}
    prelu = nn.PReLU(4)
    assert described(Net(lambda self, x: self.c(self.act(self.a(x))), act=prelu)) == {"a": "prelu"}


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), ()])
def test_layer_scale_is_pointwise(shape: tuple[int, ...]) -> None:
    net = Net(lambda self, x: self.c((self.a(x) * self.gamma).relu()))
    net.gamma = nn.Parameter(torch.rand(shape))
    assert described(net) == {"a": "relu"}


def test_position_dependent_scale_is_not() -> None:
    net = Net(lambda self, x: self.c((self.a(x) * self.gamma).relu()))
    net.gamma = nn.Parameter(torch.rand(4, 8, 8))
    assert described(net) == {"a": None}


# --- residual blocks


def test_residual_with_shared_activation() -> None:
    """Both branches strided and linear up to the sum: one blur behind the activation they share."""
    net = Net(lambda self, x: self.c(F.relu(self.bn(self.a(x)) + self.shortcut(x))))
    found = points(net)
    assert found["a"] is found["shortcut"] and function_name(found["a"]) == "relu"
    described(net)


def test_residual_with_an_activation_within() -> None:
    """The block's own activation takes the blur; the shortcut has none before the sum, which is subsampled there."""
    net = Net(lambda self, x: self.c(F.relu(self.c(F.relu(self.a(x))) + self.shortcut(x))))
    assert described(net) == {"a": "relu", "shortcut": None}
    assert points(net)["a"].meta["call"].path == "" and len(points(net)["a"].users) == 1


def test_pre_activation() -> None:
    net = Net(lambda self, x: self.c(F.relu(self.bn(self.a(F.relu(self.first2(x)))))), first2=nn.Conv2d(4, 4, 1))
    assert described(net) == {"a": "relu"}
    two = Net(lambda self, x: self.c(F.relu(self.bn(self.c(F.relu(self.a(F.relu(x)))) + self.shortcut(F.relu(x))))))
    assert described(two) == {"a": "relu", "shortcut": None}


def test_squeeze_and_excite_before_the_activation() -> None:
    """The gate averages over the map, which is no pointwise use: the blur cannot wait for the activation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.bn(self.a(x))
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return self.c(y.relu())

    assert described(Net(forward, gate=nn.Conv2d(4, 4, 1))) == {"a": None}


def test_squeeze_and_excite_behind_the_activation() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.bn(self.a(x)).relu()
        return self.c(y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid())

    assert described(Net(forward, gate=nn.Conv2d(4, 4, 1))) == {"a": "relu"}


def test_gate_from_elsewhere_is_broadcast() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c((self.a(x) * x.mean((2, 3), keepdim=True)).relu())

    assert described(Net(forward)) == {"a": "relu"}


def test_gate_beside_a_map_of_one_sample_is_not_taken_for_broadcast() -> None:
    """At 1x1 a feature map looks like a gate: taking it for one would be wrong at every other size."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return (self.a(x) * F.avg_pool2d(x, 2, ceil_mode=True)).relu()

    assert described(Net(forward), size=2)["a"] is None
    assert described(Net(forward), size=16)["a"] is None


def test_added_branches_of_a_reparameterised_block() -> None:
    net = Net(lambda self, x: self.c(F.relu(self.a(x) + self.b(x) + self.bn(self.shortcut(x)))))
    found = points(net)
    assert len(set(found.values())) == 1 and function_name(found["a"]) == "relu"
    described(net)


def test_branch_that_is_not_dense() -> None:
    """Pooled elsewhere: the sum cannot become dense, and none of its parts either."""
    net = Net(lambda self, x: self.c(F.relu(self.a(x) + F.max_pool2d(x, 2))))
    assert described(net) == {"a": None}
    both = Net(lambda self, x: self.c(F.relu(self.a(x) + F.relu(self.b(x)))))
    assert described(both) == {"a": None, "b": "relu"}


def test_branches_of_different_strides() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + F.interpolate(self.far(x), scale_factor=2.0)))

    assert described(Net(forward, far=nn.Conv2d(4, 4, 3, 4, 1))) == {"a": None, "far": None}

    def straight(self: Any, x: Tensor) -> Tensor:
        return self.c(F.relu(self.wide(x) + self.tall(x).mT))

    net = Net(straight, wide=nn.Conv2d(4, 4, 3, (1, 2), 1), tall=nn.Conv2d(4, 4, 3, (2, 1), 1))
    assert set(points(net).values()) == {None}


def test_output_used_twice() -> None:
    """Every use must pass the blur: here the tensor before the activation is read by another convolution too."""
    net = Net(lambda self, x: (lambda y: self.c(F.relu(y)) + self.c(y))(self.a(x)))
    assert described(net) == {"a": None}
    joined = Net(lambda self, x: (lambda y: self.c(F.relu(y) + y))(self.a(x)))
    assert described(joined) == {"a": "add"}
    behind = Net(lambda self, x: (lambda y: self.c(y) + y)(F.relu(self.a(x))))
    assert described(behind) == {"a": "relu"}


def test_dense_branch_that_ends_in_the_output() -> None:
    """A feature that the model returns before its activation has to have the original's size."""

    class Returns(Net):
        def forward(self, x: Tensor) -> Any:
            y = self.a(self.first(x))
            return torch.cat([y.flatten(1), self.c(F.relu(y)).flatten(1)], 1)

    assert described(Returns(None)) == {"a": None}
    assert described(Net(lambda self, x: F.relu(self.a(x)))) == {"a": "relu"}
    assert described(Net(lambda self, x: self.bn(self.a(x)))) == {"a": None}


def test_several_outputs_of_the_model() -> None:
    net = Net(lambda self, x: (lambda y: (y, F.relu(y)))(self.a(x)))
    assert points(net) == {"a": None}


def test_unused_result_does_not_hide_the_point() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y.sigmoid()
        return self.c(y)

    assert described(Net(forward)) == {"a": "relu"}


# --- channels


def test_concatenated_branches() -> None:
    net = Net(
        lambda self, x: self.wide(F.relu(torch.cat([self.a(x), self.b(x)], 1))), wide=nn.Conv2d(8, 4, 3, padding=1)
    )
    found = points(net)
    assert found["a"] is found["b"] and function_name(found["a"]) == "relu"
    described(net)
    own = Net(
        lambda self, x: self.wide(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)),
        wide=nn.Conv2d(8, 4, 3, padding=1),
    )
    first, second = points(own).values()
    assert function_name(first) == function_name(second) == "relu" and first is not second
    described(own)


def test_concatenation_with_a_pool() -> None:
    """Inception's reduction: its branches have their own activations, the pool is another site."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.wide(torch.cat([F.relu(self.a(x)), F.max_pool2d(x, 3, 2, 1)], 1))

    assert described(Net(forward, wide=nn.Conv2d(8, 4, 3, padding=1))) == {"a": "relu"}

    def late(self: Any, x: Tensor) -> Tensor:
        return self.wide(F.relu(torch.cat([self.a(x), F.max_pool2d(x, 3, 2, 1)], 1)))

    assert described(Net(late, wide=nn.Conv2d(8, 4, 3, padding=1))) == {"a": None}


def test_concatenation_along_another_dimension_is_not_pointwise() -> None:
    net = Net(lambda self, x: self.c(F.relu(torch.cat([self.a(x), self.b(x)], 2))))
    assert described(net) == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("between", "point"),
    [
        (lambda y: F.glu(y, 1), "glu"),
        (lambda y: y.chunk(2, 1)[0] * y.chunk(2, 1)[1].sigmoid(), "mul"),
        (lambda y: (lambda a, b: a * torch.sigmoid(b))(*y.chunk(2, dim=1)), "mul"),
        (lambda y: (lambda a, b: a * b)(*torch.split(y, 2, 1)), "mul"),
        (lambda y: (lambda a, b: torch.maximum(a, b))(*torch.split(y, [2, 2], dim=1)), "maximum"),
        (lambda y: (lambda a, b: torch.cat([a.relu(), b], 1)[:, :2])(*y.chunk(2, 1)), "cat"),
    ],
)
def test_gates_over_halves_of_the_channels(between: Any, point: str) -> None:
    net = Net(lambda self, x: self.halved(between(self.a(x))), halved=nn.Conv2d(2, 4, 3, padding=1))
    assert described(net) == {"a": point}


def test_halves_of_the_width_are_not_pointwise() -> None:
    net = Net(lambda self, x: self.c((lambda a, b: a * b.sigmoid())(*self.a(x).chunk(2, -1))))
    assert described(net) == {"a": None}


# --- modules called more than once


def test_all_calls_of_a_module_or_none() -> None:
    net = Net(lambda self, x: self.c(F.relu(self.a(x))) + self.c(self.a(x * 2)))
    assert described(net) == {"a": None}
    alike = Net(lambda self, x: self.c(F.relu(self.a(x))) + self.c(F.relu(self.a(x * 2))))
    assert described(alike) == {"a": "relu"}


def test_cascade_of_strided_convs() -> None:
    """Each has its own point: a blurred and subsampled tensor is not dense any more."""
    net = Net(lambda self, x: self.c(F.relu(self.b(F.relu(self.a(x))))))
    first, second = points(net).values()
    assert function_name(first) == function_name(second) == "relu" and first is not second
    assert (first.meta["shape"][-1], second.meta["shape"][-1]) == (8, 4)
    described(net)


def test_view_of_channels_is_not_known_to_be_pointwise() -> None:
    """A channel shuffle by views keeps its function: refused or handled, the conversion must hold."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        return self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w).relu())

    proven(Net(forward), 16)


class ReadsSize(nn.Module):
    """Reads the size of what the strided convolution returns before the nonlinearity, for use elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()
        self.last = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.a(x)
        size = y.shape[-2:]
        return self.last(self.act(y) + F.interpolate(x, size=size))


class ReadsSizeBehind(ReadsSize):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.act(self.a(x))
        return self.last(y + F.interpolate(x, size=y.shape[-2:]))


def test_size_that_is_read_behind_the_point() -> None:
    assert described(ReadsSizeBehind()) == {"a": "relu"}


def test_size_that_is_read_before_the_point() -> None:
    """Dense, it is another size: such a convolution has to keep its stride."""
    assert described(ReadsSize()) == {"a": None}
