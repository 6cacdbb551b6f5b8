"""What calls return on meta tensors is kept by shapes, strides and dtypes: it must be what torch makes, each time."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from blurify.graph.copies import copy_model
from blurify.graph.costs import MultiplyAdds
from blurify.graph.recorder import trace
from blurify.graph.shapes import on_meta


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def images(size: int, channels: int = 8) -> list[Tensor]:
    x = meta(2, channels, size, size + 1)
    return [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x.half(), x[:1]]


CALLS = {
    "conv2d": lambda x: (F.conv2d, (x, meta(4, 8, 3, 3, dtype=x.dtype), None, 2, 1), {}),
    "linear": lambda x: (F.linear, (x, meta(5, x.shape[-1], dtype=x.dtype), meta(5, dtype=x.dtype)), {}),
    "matmul": lambda x: (torch.matmul, (x, x.transpose(-1, -2)), {}),
    "attention": lambda x: (F.scaled_dot_product_attention, (x, x, x), {}),
    "max_pool2d": lambda x: (F.max_pool2d, (x, 3), {"stride": 2, "padding": 1}),
    "mean": lambda x: (Tensor.mean, (x, (2, 3)), {"keepdim": True}),
    "cat": lambda x: (torch.cat, ([x, x],), {"dim": 1}),
    "reshape": lambda x: (Tensor.reshape, (x, x.shape[0], -1), {}),
    "contiguous": lambda x: (Tensor.contiguous, (x,), {}),
    "dropout that does nothing": lambda x: (F.dropout, (x, 0.0, True), {}),
    "relu in place": lambda x: (F.relu, (x,), {"inplace": True}),
    "pad": lambda x: (F.pad, (x, (1, 2, 0, 1)), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_kept_result_is_what_torch_makes(name: str) -> None:
    for x, _ in itertools.product(images(9), range(3)):  # the first time it is made, then it is kept
        func, args, kwargs = CALLS[name](x)
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            expected = func(*args, **kwargs)
        costs = MultiplyAdds()
        with torch.no_grad():
            actual = on_meta(func, args, kwargs, costs)
        assert (actual.shape, actual.stride(), actual.dtype) == (expected.shape, expected.stride(), expected.dtype)
        assert (actual is x) == (expected is x)
        assert costs.total == flops.get_total_flops() // 2


def test_equal_numbers_of_other_types_are_other_arguments() -> None:
    x = meta(3, dtype=torch.int64)
    made = [on_meta(torch.mul, (x, factor), {}, MultiplyAdds()).dtype for factor in (1, 1.0, True, 1)]
    assert made == [torch.int64, torch.float32, torch.int64, torch.int64]


def test_the_default_dtype_is_an_argument_too() -> None:
    x = meta(3, dtype=torch.int64)
    assert on_meta(torch.mul, (x, 2.5), {}, MultiplyAdds()).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert on_meta(torch.mul, (x, 2.5), {}, MultiplyAdds()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_a_call_refuses_it_refuses_again() -> None:
    x = meta(1, 4, 1, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            on_meta(F.batch_norm, (x, None, None, None, None, True), {}, MultiplyAdds())
        with pytest.raises(RuntimeError):
            on_meta(F.conv2d, (x, meta(4, 3, 1, 1)), {}, MultiplyAdds())


def test_tensors_with_data_are_computed() -> None:
    for value in (1.0, 2.0):
        made = on_meta(torch.mul, (torch.full((2,), value), 3.0), {}, MultiplyAdds())
        assert made.tolist() == [3 * value] * 2


def network(channels: int, stride: int) -> nn.Module:
    class Net(nn.Module):  # the same name each time, another class
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, channels, 3, stride=stride)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).relu() if stride == 1 else torch.sigmoid(self.conv(x))

    return Net()


def test_nothing_is_kept_of_a_model() -> None:
    """Models of one name follow each other, as where a class is defined again; each has its own shapes and costs."""
    x = torch.zeros(1, 3, 8, 8)
    for channels, stride in ((4, 1), (6, 2), (4, 1), (4, 2)):
        seen = trace(network(channels, stride), ((x,), {}), count=True)
        size = 6 if stride == 1 else 3
        names = [node.target.__name__ for node in seen.graph.nodes if node.op == "call_function"]
        last = list(seen.graph.nodes)[-2]
        assert last.meta["shape"] == (1, channels, size, size)
        assert names == ["conv2d", "relu" if stride == 1 else "sigmoid"]
        assert seen.macs == channels * size * size * 27


class Odd(nn.Module):
    """A module with what a copy may get wrong: cycles, shared parts, a hook, an own way to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = self.one
        self.__dict__["outer"] = self  # not a child
        self.lists = [[1, 2], {"part": self.one}]
        self.calls: list[str] = []
        self.register_buffer("table", torch.arange(3.0))
        self.own = Own()
        self.one.register_forward_hook(self.hook)

    def hook(self, module: nn.Module, args: object, out: Tensor) -> None:
        self.calls.append("hook")

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.table


class Own(nn.Module):
    def __deepcopy__(self, memo: dict) -> nn.Module:
        copied = Own()
        copied.was_copied = True
        return copied


def test_a_copy_is_a_deep_copy() -> None:
    model = Odd()
    for made in (copy_model(model), copy.deepcopy(model)):
        assert made is not model and made.one is not model.one and made.one is made.two
        assert made.outer is made and made.lists[1]["part"] is made.one and made.lists[0] is not model.lists[0]
        assert made.one.weight is not model.one.weight and torch.equal(made.one.weight, model.one.weight)
        assert made.own.was_copied and not hasattr(model.own, "was_copied")
        assert type(made.one.weight) is nn.Parameter and made.one.weight.requires_grad
        made(torch.zeros(1, 3))
        assert made.calls == ["hook"] and model.calls == []
        assert list(vars(made)) == list(vars(model)) and list(vars(made.one)) == list(vars(model.one))


def test_a_copy_follows_a_class_that_changed() -> None:
    class Part(nn.Module):
        pass

    assert not hasattr(copy_model(Part()), "was_copied")
    Part.__deepcopy__ = Own.__deepcopy__  # type: ignore[attr-defined]
    assert copy_model(Part()).was_copied
