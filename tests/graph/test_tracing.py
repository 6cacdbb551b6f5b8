"""Value tracing: every torch call and module call of one forward, and nothing of the model changed."""

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blurify.errors import BlurifyError
from blurify.graph.copies import meta_copy
from blurify.graph.recorder import Trace, frames_of, trace
from blurify.graph.sites import function_name
from blurify.graph.structure import map_tensors, tensors_in

MODULE_CALL = nn.Module.__call__


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Trace:
    return trace(model, (args, kwargs))


def ops(seen: Trace) -> list[str]:
    return [function_name(node) for node in seen.graph.nodes if node.op == "call_function"]


def node_of(seen: Trace, name: str) -> Any:
    return next(node for node in seen.graph.nodes if function_name(node) == name)


def behind(node: Any) -> set[Any]:
    """All that a node depends on."""
    found, todo = set(), [node]
    while todo:
        for arg in todo.pop().all_input_nodes:
            if arg not in found:
                found.add(arg)
                todo.append(arg)
    return found


def calls_of(seen: Trace) -> list[str | None]:
    return [call.path for call in seen.calls]


class Forward(nn.Module):
    """A forward given as a function, with one convolution to call."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


IMAGE = torch.zeros(1, 3, 8, 8)


# --- what is recorded


def test_ops_shapes_and_module_calls() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten())
    seen = run(net, IMAGE)
    assert ops(seen) == ["conv2d", "batch_norm", "relu", "flatten"]
    assert calls_of(seen) == ["", "0", "1", "1.0", "1.1", "2"]
    conv, relu = node_of(seen, "conv2d"), node_of(seen, "relu")
    assert conv.meta["shape"] == (1, 4, 3, 3)
    assert [call.path for call in relu.meta["call"].stack()] == ["1.1", "1", ""]
    norm_and_act = seen.calls[3 - 1]
    assert norm_and_act.path == "1"
    assert norm_and_act.inputs == (conv,)
    assert norm_and_act.output is relu
    assert norm_and_act.has_calls and not seen.calls[1].has_calls
    assert seen.calls[1].nodes == [conv]
    assert not seen.real


def test_inputs_and_output_are_nodes() -> None:
    seen = run(Forward(lambda self, x: (self.conv(x), {"a": x + 1})), IMAGE)
    placeholders = [node for node in seen.graph.nodes if node.op == "placeholder"]
    assert [node.meta["shape"] for node in placeholders] == [(1, 3, 8, 8)]
    output = next(node for node in seen.graph.nodes if node.op == "output")
    assert [function_name(node) for node in output.args[0]] == ["conv2d", "add"]


def test_operators_have_one_name_however_they_are_written() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x + 1
        y += x
        y = y.add(x)
        y = torch.add(y, x)
        y.add_(x)
        y = 2 + y
        return 1 - y * 2 / 3

    names = ops(run(Forward(forward), IMAGE))
    assert names == ["add"] * 6 + ["mul", "div", "sub"] or names == ["add"] * 6 + ["mul", "truediv", "rsub"]


def test_keywords_are_recorded() -> None:
    seen = run(Forward(lambda self, x: F.conv2d(input=x, weight=self.conv.weight, stride=2)), IMAGE)
    conv = node_of(seen, "conv2d")
    given = dict(conv.kwargs)
    positional = dict(zip(("input", "weight"), conv.args, strict=False))
    assert (given | positional)["input"].op == "placeholder"
    assert (given | positional)["weight"].meta["origin"] == "parameter"
    assert given["stride"] == 2


@pytest.mark.parametrize("how", ["chunk", "split", "unbind", "tensor_split"])
def test_several_outputs(how: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        parts = {
            "chunk": lambda: y.chunk(2, 1), "split": lambda: torch.split(y, 2, dim=1),
            "unbind": lambda: y.unbind(1), "tensor_split": lambda: torch.tensor_split(y, 2, dim=1),
        }[how]()  # fmt: skip
        return parts[0] * parts[1].sigmoid()

    seen = run(Forward(forward), IMAGE)
    node = node_of(seen, how)
    assert node.meta["shape"] is None
    items = [user for user in node.users if function_name(user) == "_getitem"]
    assert [item.args for item in items] == [(node, i) for i in range(len(items))]
    assert [item.meta["shape"][1] for item in items] == ([2, 2] if how != "unbind" else [8] * 4)
    assert {function_name(user) for user in items[0].users} == {"mul"}


def test_views_are_calls() -> None:
    seen = run(Forward(lambda self, x: self.conv(x).view(1, 4, -1).transpose(1, 2)[:, ::2]), IMAGE)
    assert ops(seen) == ["conv2d", "view", "transpose", "getitem"]
    assert node_of(seen, "getitem").meta["shape"] == (1, 32, 4)


def test_parameters_buffers_and_constants() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 1, 1))
            self.register_buffer("mean", torch.zeros(3, 1, 1))
            self.table = torch.ones(3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return (x - self.mean) * self.weight + self.table

    seen = run(Model(), IMAGE)
    attributes = {n.target: n.meta["origin"] for n in seen.graph.nodes if n.op == "get_attr"}
    values = [n.meta["value"] for n in seen.graph.nodes if n.meta.get("origin") == "constant"]
    assert attributes.pop("weight") == "parameter"
    assert attributes.pop("mean") == "buffer"
    # A tensor that the model just holds is none of them: it has data where no signal has any.
    assert list(attributes.values()) == ["constant"] and torch.equal(values[0], torch.ones(3, 1, 1))
    assert ops(seen)[:3] == ["sub", "mul", "add"] or "unseen" in ops(seen)


def test_tied_parameters_are_one_node() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    net = Tied()
    seen = run(net, IMAGE)
    first, second = (node for node in seen.graph.nodes if function_name(node) == "conv2d")
    assert first.args[1] is second.args[1]
    assert seen.model.a.weight is seen.model.b.weight


def test_control_flow_on_shapes_really_runs() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        while y.shape[-1] > 2:
            y = F.avg_pool2d(y, 2)
        return y.relu() if y.shape[1] == 4 else y.tanh()

    assert ops(run(Forward(forward), IMAGE)) == ["conv2d", "avg_pool2d", "avg_pool2d", "relu"]
    assert ops(run(Forward(forward), torch.zeros(1, 3, 32, 32))).count("avg_pool2d") == 4


def test_module_called_twice_is_two_calls() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.conv(x) + self.conv(x * 2)

    seen = run(Forward(forward), IMAGE)
    assert calls_of(seen) == ["", "conv", "conv"]
    assert seen.calls[1].output is not seen.calls[2].output


def test_module_that_is_not_in_the_model() -> None:
    seen = run(Forward(lambda self, x: nn.ReLU()(self.conv(x))), IMAGE)
    assert calls_of(seen) == ["", "conv", None]


def test_keyword_inputs_and_dataclass_outputs() -> None:
    @dataclass
    class Out:
        logits: Tensor
        hidden: list[Tensor]

    class Model(nn.Module):
        def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Out:
            return Out(x.relu(), [x * mask if mask is not None else x])

    seen = trace(Model(), ((IMAGE,), {"mask": torch.ones(1, 1, 8, 8)}))
    output = next(node for node in seen.graph.nodes if node.op == "output")
    assert [function_name(node) for node in output.args[0]] == ["relu", "mul"]
    assert [n.name for n in seen.graph.nodes if n.op == "placeholder"] == ["input_0", "input_1"]


# --- in-place ops


def stale(seen: Trace) -> list[str]:
    return [function_name(node) for node in seen.graph.nodes if node.meta.get("stale")]


def test_augmented_assignment_is_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += 1
        return y.relu()

    seen = run(Forward(forward), IMAGE)
    conv, add, relu = (node_of(seen, name) for name in ("conv2d", "add", "relu"))
    assert add.args[0] is conv and relu.args[0] is add
    assert stale(seen) == []


@pytest.mark.parametrize("how", ["method", "function", "module", "functional-underscore"])
def test_in_place_op_whose_result_is_ignored(how: str) -> None:
    """The old name sees the new values: the graph follows them, and says that the result itself is not what is read."""

    class Model(nn.Module):
        def __init__(self, use: bool) -> None:
            super().__init__()
            self.conv, self.act, self.use = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), use

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if how == "method":
                result = y.relu_()
            elif how == "function":
                result = F.relu(y, inplace=True)
            elif how == "module":
                result = self.act(y)
            else:
                result = torch.relu_(y)
            return (result if self.use else y) * 2

    used, ignored = run(Model(True), IMAGE), run(Model(False), IMAGE)
    for seen in (used, ignored):
        assert node_of(seen, "mul").args[0] is node_of(seen, "relu")
    assert stale(used) == []
    assert stale(ignored) == ["relu"]


def test_item_assignment_is_followed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0] = 0.0
        return y.relu()

    seen = run(Forward(forward), IMAGE)
    assert function_name(node_of(seen, "relu").args[0]) == "setitem"


def test_dropped_tensors_do_not_lend_their_identity() -> None:
    """ids are reused when tensors die; each op must still read what it really read."""

    def forward(self: Any, x: Tensor) -> Tensor:
        for _ in range(50):
            (x * 2).sigmoid()  # dies at once
        return self.conv(x)

    assert node_of(run(Forward(forward), IMAGE), "conv2d").args[0].op == "placeholder"


# --- what tracing cannot look into


@torch.jit.script
def scripted_double(x: Tensor) -> Tensor:
    return x * 2


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


@pytest.mark.parametrize("how", ["script", "autograd", "numpy"])
def test_opaque_code_may_depend_on_all_before_it(how: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if how == "script":
            y = scripted_double(y)
        elif how == "autograd":
            y = Double.apply(y)
        else:
            y = torch.from_numpy(np.asarray(y.detach()) * 2)
        return y.relu()

    seen = run(Forward(forward), IMAGE)
    assert seen.real == (how == "numpy")
    assert node_of(seen, "conv2d") in behind(node_of(seen, "relu"))
    assert node_of(seen, "relu").args[0] is not node_of(seen, "conv2d")


def test_scripted_submodule_is_opaque() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scripted(self.conv(x)).sigmoid()

    seen = run(Model(), IMAGE)
    # (Some of its ops show on meta tensors, where PyTorch runs Python for them.)
    assert ops(seen).count("conv2d") == 1
    assert node_of(seen, "conv2d") in behind(node_of(seen, "sigmoid"))


def test_tensors_made_on_the_cpu_meet_meta_tensors() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        grid = torch.arange(8, dtype=torch.float32, device="cpu").view(1, 1, 1, 8)
        return torch.cat([y + grid, torch.zeros(1, 1, 8, 8, device="cpu")], dim=1).relu()

    seen = run(Forward(forward), IMAGE)
    assert not seen.real
    assert node_of(seen, "relu").meta["shape"] == (1, 5, 8, 8)


def test_forward_that_reads_values_runs_on_real_tensors() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() if y.sum().item() > -1e9 else y.tanh()

    seen = run(Forward(forward), IMAGE)
    assert seen.real
    assert node_of(seen, "relu").args[0] is node_of(seen, "conv2d")
    assert next(seen.model.parameters()).device.type == "cpu"


def test_what_the_forward_raises_comes_through() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        raise ValueError("needs 7 channels")

    with pytest.raises(ValueError, match="needs 7 channels"):
        run(Forward(forward), IMAGE)
    with pytest.raises(RuntimeError, match="channel"):
        run(Forward(lambda self, x: self.conv(x)), torch.zeros(1, 5, 8, 8))


def test_lazy_modules_are_refused_with_advice() -> None:
    with pytest.raises(BlurifyError, match="run it once"):
        meta_copy(nn.Sequential(nn.LazyConv2d(4, 3)))


def test_model_that_cannot_be_copied_is_refused_with_advice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net.lock = threading.Lock()
    with pytest.raises(BlurifyError, match="deepcopy"):
        run(net, IMAGE)


# --- nothing changes


def snapshot(model: nn.Module) -> Any:
    return [
        (
            name,
            type(m),
            m.training,
            sorted(vars(m)),
            {k: id(v) for k, v in (*m._parameters.items(), *m._buffers.items())},
        )
        for name, m in model.named_modules()
    ]


@pytest.mark.parametrize("real", [False, True])
def test_model_is_left_untouched(real: bool) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4, momentum=1.0)
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            self.last = self.norm(self.conv(x))
            return self.last.relu_()

    net = Counts().train()
    before, values = snapshot(net), {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.ones(2, 3, 8, 8)
    trace(net, ((x,), {}), real=real)
    assert snapshot(net) == before
    assert net.seen == 0 and not hasattr(net, "last")
    assert all(torch.equal(v, values[k]) for k, v in net.state_dict().items())
    assert torch.equal(x, torch.ones(2, 3, 8, 8))
    assert all(p.grad is None and p.requires_grad and not p.is_meta for p in net.parameters())


def test_input_that_the_forward_writes_to_is_left_untouched() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.sum().item() < 0:
            return x
        return self.conv(x.add_(1))

    x = torch.zeros(1, 3, 8, 8)
    assert run(Forward(forward), x).real
    assert torch.equal(x, torch.zeros(1, 3, 8, 8))


def test_module_call_is_restored() -> None:
    run(nn.ReLU(), IMAGE)
    assert nn.Module.__call__ is MODULE_CALL

    def forward(self: Any, x: Tensor) -> Tensor:
        assert nn.Module.__call__ is not MODULE_CALL  # else this test tests nothing
        self.conv(x)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        run(Forward(forward), IMAGE)
    assert nn.Module.__call__ is MODULE_CALL


def test_another_thread_is_not_recorded() -> None:
    other = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid())
    results: list[Tensor] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        thread = threading.Thread(target=lambda: results.append(other(torch.zeros(1, 3, 2, 2))))
        thread.start()
        thread.join()
        return y.relu()

    seen = run(Forward(forward), IMAGE)
    assert ops(seen) == ["conv2d", "relu"]
    assert calls_of(seen) == ["", "conv"]
    assert len(results) == 1 and not results[0].is_meta


def test_two_threads_may_trace_at_once() -> None:
    begun = [threading.Event(), threading.Event()]
    done = threading.Event()
    seen: dict[int, Trace] = {}

    def make(which: int) -> nn.Module:
        def forward(self: Any, x: Tensor) -> Tensor:
            begun[which].set()
            begun[1 - which].wait(10)  # both run now
            y = self.conv(x).relu()
            if which == 1:
                done.wait(10)  # the first one ends first, though it began first
            return y

        model = Forward(None)
        model.function = forward
        return model

    def work(which: int) -> None:
        try:
            seen[which] = _trace_shared(models[which])
        finally:
            if which == 0:
                done.set()

    models = [make(0), make(1)]
    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for which, thread in enumerate(threads):
        thread.start()
        if which == 0:
            begun[0].wait(10)
    for thread in threads:
        thread.join(30)
    try:
        assert [ops(seen[which]) for which in (0, 1)] == [["conv2d", "relu"]] * 2
        assert [calls_of(seen[which]) for which in (0, 1)] == [["", "conv"]] * 2
        assert nn.Module.__call__ is MODULE_CALL
    finally:
        nn.Module.__call__ = MODULE_CALL  # type: ignore[method-assign]


def _trace_shared(model: nn.Module) -> Trace:
    return trace(model, ((IMAGE,), {}))


def test_hooks_run_and_are_recorded() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].register_forward_hook(lambda module, args, out: out.relu())
    seen = run(net, IMAGE)
    assert ops(seen) == ["conv2d", "relu"]
    assert seen.calls[1].output is node_of(seen, "relu")


# --- frames


def test_frames_say_where_an_op_stands() -> None:
    def helper(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return helper(x)

    seen = trace(nn.Sequential(Inner()), ((IMAGE,), {}))
    node = node_of(seen, "max_pool2d")
    (call, frames), *outer = frames_of(node)
    assert node.meta["frames"] == frames
    assert call.path == "0" and outer[0][0].path == ""
    assert [(code.co_name, module) for code, _, module in frames] == [("forward", "0"), ("helper", None)]
    assert all(position[0] > 0 for _, position, _ in frames)


# --- nested structures


def test_map_tensors_keeps_structures() -> None:
    x = torch.zeros(2)
    value = {"a": [x, (x, 3)], "b": "text", "c": None}
    mapped = map_tensors(value, lambda tensor: tensor + 1)
    assert mapped["a"][1][1] == 3 and isinstance(mapped["a"][1], tuple) and mapped["b"] == "text"
    assert torch.equal(mapped["a"][0], torch.ones(2)) and torch.equal(x, torch.zeros(2))
    assert len(tensors_in(value)) == 2


def test_meta_copy_takes_no_memory_and_keeps_ties() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[0].tied = net[0].weight
    copied = meta_copy(net)
    assert all(t.is_meta for t in (*copied.parameters(), *copied.buffers()))
    assert copied[0].tied is copied[0].weight
    assert [tuple(t.shape) for t in copied.state_dict().values()] == [tuple(t.shape) for t in net.state_dict().values()]


def test_known_shapes_are_checked() -> None:
    for norm in (nn.LayerNorm([3, 4, 4]), nn.BatchNorm2d(5), nn.GroupNorm(1, 5), nn.InstanceNorm2d(5, affine=True)):
        with pytest.raises((RuntimeError, ValueError)):
            run(nn.Sequential(norm), torch.zeros(1, 3, 8, 8))


def test_dataclass_inputs_stay_dataclasses() -> None:
    @dataclass(frozen=True)
    class Batch:
        image: Tensor
        count: int = 2

    seen = run(Forward(lambda self, batch: Batch(batch.image * batch.count)), Batch(torch.zeros(1, 3, 8, 8)))
    assert ops(seen) == ["mul"]


def test_a_trace_on_real_tensors_lets_go_of_features_while_it_runs() -> None:
    """All features of a forward at once are gigabytes; ids of those that are gone are those of others then."""
    alive: list[int] = []

    def forward(self: Any, x: Tensor) -> Tensor:
        total = self.conv(x).sum()
        if float(total) == 0.5:  # reads a value
            return total
        seen = []
        for step in range(20):
            features = x * step
            seen.append(weakref.ref(features))
            total = total + features.relu().mean()
            alive.append(sum(one() is not None for one in seen))
        return total

    traced = run(Forward(forward), torch.ones(1, 3, 8, 8))
    assert traced.real and max(alive[-20:]) == 1
    names = [function_name(node) for node in behind(traced.graph.find_nodes(op="output")[0])]
    assert names.count("relu") == names.count("mul") == names.count("mean") == 20


def test_a_trace_on_real_tensors_keeps_no_features() -> None:
    """They are gigabytes of a detector's, and each trace is a cycle that lives until it is collected."""
    features: list[Any] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            features.append(weakref.ref(x))
            if float(x.sum()) > 1e9:  # reads a value
                x = x + 1
            return self.second(x)

    seen = run(Net(), torch.ones(1, 3, 8, 8))
    assert seen.real and features and all(feature() is None for feature in features)
    assert [call.path for call in seen.calls] == ["", "first", "second"]
    assert seen.graph.nodes


def test_a_tensor_that_the_forward_makes_may_be_the_value_of_masked_fill():
    """transformers' SEW-D: the error says 'on same device', and nothing of meta tensors."""

    class Masking(nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0, torch.tensor(0.5))

    assert not trace(Masking(), ((torch.zeros(2, 3),), {})).real
