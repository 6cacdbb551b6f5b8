"""Small networks as people write them: one body of strided ops, in every style of writing that body down.

`cases()` enumerates them. The source of a case is written to a real file and imported. `Case.reference` computes what
the converted network must compute, from the list of ops and plain torch functions: it knows nothing of blurify.
`python plain_nets.py --all` checks every case and prints how each class and style fared.
"""

from __future__ import annotations

import argparse
import atexit
import copy
import dataclasses
import importlib.util
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import blurify

IMAGE, WIDTH, CLASSES = 3, 4, 5
SIZES = {
    1: ((40,), (41,), (59,)),
    2: ((20, 23), (21, 18), (33, 26)),
    3: ((9, 10, 12), (8, 11, 13), (10, 9, 15)),
}
TOLERANCE = 1e-9  # relative, in float64


# --- what the networks are made of


@dataclass(frozen=True)
class Op:
    """One convolution (with its norm and activation) or pool."""

    kind: str  # 'conv' | 'max' | 'avg' | 'slice'
    kernel: int
    stride: tuple[int, ...]
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    act: bool = True
    norm: bool = False
    reads: int = WIDTH

    @property
    def rank(self) -> int:
        return len(self.stride)

    @property
    def strided(self) -> bool:
        return max(self.stride) > 1

    @property
    def bare(self) -> Op:
        return replace(self, act=False)

    @property
    def patches(self) -> bool:
        extent = self.dilation * (self.kernel - 1) + 1
        return extent > 1 and all(extent <= s for s in self.stride)

    @property
    def arguments(self) -> str:
        """Stride, padding and so on as somebody would write them: only what is no default."""
        stride = self.stride if len(set(self.stride)) > 1 else self.stride[0]
        words = {"stride": (stride, 1), "padding": (self.padding, 0), "dilation": (self.dilation, 1)}
        return "".join(f", {k}={v}" for k, (v, usual) in {**words, "groups": (self.groups, 1)}.items() if v != usual)

    @property
    def module(self) -> str:
        if self.kind != "conv":
            return f"nn.{self.kind.title()}Pool{self.rank}d({self.kernel}{self.arguments})"
        bias = ", bias=False" * self.norm
        return f"nn.Conv{self.rank}d({self.reads}, {WIDTH}, {self.kernel}{self.arguments}{bias})"

    def call(self, x: str) -> str:
        """The pool as a function."""
        plain = self.padding == 0 and set(self.stride) == {self.kernel}
        return f"F.{self.kind}_pool{self.rank}d({x}, {self.kernel}{'' if plain else self.arguments})"


def conv(kernel: int = 3, stride: int | tuple[int, ...] = 2, rank: int = 2, **options: Any) -> Op:
    options.setdefault("padding", kernel // 2 * options.get("dilation", 1))
    return Op("conv", kernel, stride if isinstance(stride, tuple) else (stride,) * rank, **options)


def pool(kind: str, kernel: int = 2, stride: int = 2, padding: int = 0, rank: int = 2) -> Op:
    return Op(kind, kernel, (stride,) * rank, padding)


def stem(rank: int = 2) -> Op:
    """What reads the image; it subsamples nothing, so that every strided op is to be blurred."""
    return conv(3, 1, rank, reads=IMAGE)


# --- what they must compute when converted

FILTERS = {
    1: (1.0,),
    2: tuple(tap / 8 for tap in (1, 3, 3, 1)),
    3: tuple(tap / 27 for tap in (1, 3, 6, 7, 6, 3, 1)),
}


def blur(x: Tensor, factors: Sequence[int], *, subsample: bool = True, shift: int = 0, size: Any = None) -> Tensor:
    """The binomial filter with reflected borders: window j begins (taps - 1) // 2 samples before stride * j."""
    for number, factor in enumerate(factors):
        dim = x.dim() - len(factors) + number
        n, stride, taps = x.shape[dim], factor if subsample else 1, FILTERS[factor]
        length = -(-n // stride) if size is None else size[number]
        first = torch.arange(length) * stride + shift - (len(taps) - 1) // 2
        x = sum(tap * x.index_select(dim, _reflected(first + t, n)) for t, tap in enumerate(taps))  # type: ignore[assignment]
    return x


def _reflected(index: Tensor, n: int) -> Tensor:
    index = index % max(2 * n - 2, 1)
    return torch.minimum(index, 2 * n - 2 - index).clamp(min=0)


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "leaky": lambda x: F.leaky_relu(x, 0.1),
}  # fmt: skip


class Run:
    """The layers of an unconverted net, in the order of their registration, run by plain torch functions.

    At every site a choice is made, the first option being the preferred one: 'after' (dense, nonlinearity, blur),
    'before' (blur what the op reads, keep its stride), 'left' (as it was).
    """

    def __init__(self, net: nn.Module, choices: Sequence[str], training: bool, act: str) -> None:
        modules = list(net.modules())
        self.convs = [(m.weight, m.bias) for m in modules if isinstance(m, _ConvNd)]
        self.convs = self.convs or [(p, None) for p in net.parameters() if p.dim() > 2]
        self.norms = [m for m in modules if isinstance(m, _BatchNorm)]
        self.linears = [m for m in modules if isinstance(m, nn.Linear)]
        self.choices, self.training, self.act = list(choices), training, ACTS[act]
        self.asked: list[tuple[str, ...]] = []
        self.ran = 0

    def choose(self, *options: str) -> str:
        self.asked.append(options)
        return self.choices[len(self.asked) - 1] if len(self.asked) <= len(self.choices) else options[0]

    def __call__(self, x: Tensor, op: Op, which: int | None = None) -> Tensor:
        """One op, with its activation; `which` convolution, if not the next one."""
        if op.kind == "conv":
            act = self.act if op.act else lambda y: y
            if not op.strided:
                return act(self.conv(x, op, "left", which))
            choice = self.choose(*(["after"] if op.act and not op.patches else []), "before", "left")
            y = act(self.conv(x, op, choice, which))
        elif op.kind == "slice":
            choice = self.choose("after", "left")
            y = x if choice == "after" else x[(..., *(slice(None, None, s) for s in op.stride))]
        elif op.kind == "max":
            choice = self.choose("after", "left")
            strides = (1,) * op.rank if choice == "after" else op.stride
            y = [F.max_pool1d, F.max_pool2d, F.max_pool3d][op.rank - 1](x, op.kernel, strides, op.padding)
        else:
            choice = self.choose("after", "left")
            y = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][op.rank - 1](x, op.kernel, op.stride, op.padding)
            if choice == "after" and op.kernel > 3:  # smooths more than the filter does, and is kept
                dense = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][op.rank - 1](x, op.kernel, 1, op.padding)
                return blur(dense, op.stride, size=y.shape[-op.rank :])
            if choice == "after":
                return blur(x, op.stride, shift=(op.kernel - 1) // 2 - op.padding, size=y.shape[-op.rank :])
        return blur(y, op.stride) if choice == "after" else y

    def conv(self, x: Tensor, op: Op, choice: str, which: int | None = None) -> Tensor:
        """A convolution and its norm: dense for 'after', of a blurred input for 'before'."""
        if which is None:
            which, self.ran = self.ran, self.ran + 1
        if choice == "before":
            x = blur(x, op.stride, subsample=False)
        strides = (1,) * op.rank if choice == "after" else op.stride
        function = [F.conv1d, F.conv2d, F.conv3d][op.rank - 1]
        y = function(x, *self.convs[which], strides, op.padding, op.dilation, op.groups)
        if not op.norm:
            return y
        norm = self.norms[which]
        statistics = (None, None) if self.training else (norm.running_mean, norm.running_var)
        return F.batch_norm(y, *statistics, norm.weight, norm.bias, self.training, 0.1, norm.eps)

    def joint(self, ops: Sequence[Op], combine: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        """Several convolutions that meet in one nonlinearity, where they have one blur together."""
        together = self.choose("after", "apart") == "after"
        ys = []
        for op, x in zip(ops, xs * len(ops) if len(xs) == 1 else xs, strict=True):
            ys.append(self.conv(x, op, "after" if together else self.choose("before", "left")))
        return blur(combine(*ys), ops[0].stride) if together else combine(*ys)

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(2).mean(2), self.linears[-1].weight, self.linears[-1].bias)


# --- a case

_folder: Path | None = None


def _imported(name: str, source: str) -> ModuleType:
    """The module with this source, from a real file: classes need one to be compiled again."""
    global _folder
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="plain_nets_"))
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    name = "plain_net_" + name.replace("/", "__")
    if name not in sys.modules:
        path = _folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass(frozen=True)
class Case:
    """One network: its source, and what it must compute once it is converted.

    Attributes:
        name: 'style/body', unique.
        source: a module with a class `Net`.
        compute: what each entry point computes: (run, x, entry) -> tensors.
        sizes: spatial sizes that the network takes; it is converted at the first.
        act: the nonlinearity, a key of ACTS.
        extra: arguments of the entry points behind the image.
        entries: the methods to call.
    """

    name: str
    source: str
    compute: Callable[[Run, Tensor, str], Any]
    sizes: tuple[tuple[int, ...], ...]
    act: str = "relu"
    extra: tuple[Any, ...] = ()
    entries: tuple[str, ...] = ("forward",)

    @property
    def style(self) -> str:
        return self.name.partition("/")[0]

    def build(self) -> nn.Module:
        """The network in eval mode and float64, with numbers that hide no mistake."""
        net = _imported(self.name, self.source).Net()
        generator = torch.Generator().manual_seed(len(self.name))
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if tensor.is_floating_point():
                data = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                if tensor.dim() > 1:  # no filter has a preferred sign: some of each map is negative
                    data = F.normalize((data - data.flatten(1).mean(1).view(-1, *[1] * (data.dim() - 1))).flatten(1))
                    data = 2 * data.view(tensor.shape)
                else:
                    data = data.abs() * 0.2 + (0.8 if "var" in name or "weight" in name else 0.1)
                tensor.data = data
        return net.eval()

    def input(self, number: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(2, IMAGE, *self.sizes[number], generator=generator, dtype=torch.float64)

    def reference(
        self, net: nn.Module, x: Tensor, choices: Sequence[str] = (), entry: str = "forward", training: bool = False
    ) -> list[Tensor]:
        """What an entry point of the converted `net` (given as it was before) must return, with these choices."""
        return flat(self.compute(Run(net, choices, training, self.act), x, entry))

    def all_choices(self, net: nn.Module) -> Iterator[tuple[str, ...]]:
        """Every way in which the sites may be treated, the preferred one first."""
        todo: list[tuple[str, ...]] = [()]
        while todo:
            choices = todo.pop()
            run = Run(net, choices, False, self.act)
            self.compute(run, self.input(), "forward")
            if len(run.asked) == len(choices):
                yield choices
            else:
                todo += [(*choices, option) for option in reversed(run.asked[len(choices)])]


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, dict):
        output = list(output.values())
    return [tensor for item in output or () for tensor in flat(item)]


def alike(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(actual) == len(expected) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1e-3))
        for a, b in zip(actual, expected, strict=True)
    )


# --- the check


@dataclass(frozen=True)
class Result:
    """How a conversion fared: 'after' (all as preferred) | 'before' | 'unconverted' | 'wrong' | 'error'."""

    case: Case
    kind: str
    detail: str
    seconds: float


def check(case: Case) -> Result:
    begin = time.perf_counter()
    with torch.no_grad():
        kind, detail = _fared(case)
    return Result(case, kind, detail, time.perf_counter() - begin)


def _fared(case: Case) -> tuple[str, str]:
    net = case.build()
    every = list(case.all_choices(net))
    assert _computes(case, net, net, every[-1]), "the reference is not this network"
    assert not _computes(case, net, net, every[0]), "the filter can't be seen"
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    try:
        converted, unverified, identity = (
            blurify.convert(net, example_inputs=(case.input(), *case.extra), **options)
            for options in ({}, {"verify": False}, {"filter_size": 1})
        )
    except Exception as error:
        return "error", f"{type(error).__name__}: {str(error)[:150]}"
    state = converted.state_dict()
    if list(state) != list(before) or not all(torch.equal(state[name], before[name]) for name in before):
        return "wrong", "state_dict"
    plan = blurify.plan_of(converted)
    assert plan is not None
    why = "; ".join(f"{site.name}: {site.rule}: {site.reason}" for site in plan.sites if "can't" in site.reason)
    try:
        found = next((c for c in every if _computes(case, net, converted, c)), None)
        if found is None:
            return "wrong", f"values in eval mode ({_rules(plan)})"
        fault = _fault(case, net, found, converted, unverified, identity)
    except Exception as error:
        return "wrong", f"does not run: {type(error).__name__}: {str(error)[:120]} ({_rules(plan)})"
    if fault:
        return "wrong", f"{fault} ({_rules(plan)})"
    if found == every[0]:
        return "after", ""
    if "left" in found:
        if not plan.skipped:
            return "wrong", f"a site is as it was and the plan says nothing of it ({_rules(plan)})"
        return "unconverted", "; ".join(f"{site.name}: {site.rule}: {site.reason}" for site in plan.skipped)
    return "before", why or _rules(plan)


def _computes(case: Case, net: nn.Module, converted: nn.Module, choices: tuple[str, ...]) -> bool:
    """Whether the converted net is what these choices make of it, at every size."""
    return all(
        alike(flat(converted(case.input(number), *case.extra)), case.reference(net, case.input(number), choices))
        for number in range(len(case.sizes))
    )


def _rules(plan: Any) -> str:
    return ", ".join(f"{site.name} {site.rule} {site.placement}" for site in plan.sites)


def _fault(
    case: Case, net: nn.Module, found: tuple[str, ...], converted: nn.Module, unverified: nn.Module, same: nn.Module
) -> str:
    """What is wrong at other sizes, in other entry points and in training, if anything is."""
    normed = any(isinstance(module, _BatchNorm) for module in net.modules())
    for training in (False, True):
        original = copy.deepcopy(net)
        for model in (original, converted, unverified, same):
            model.train(training)
        for entry in case.entries:
            for number in range(len(case.sizes)):
                x = case.input(number)
                where = f"{entry}, size {case.sizes[number]}, {'train' if training else 'eval'} mode"
                expected, actual, plain, unfiltered = (
                    flat(getattr(model, entry)(x, *case.extra) if entry != "forward" else model(x, *case.extra))
                    for model in (original, converted, unverified, same)
                )
                if [t.shape for t in actual] != [t.shape for t in expected]:
                    return f"shape: {where}"
                if [t.shape for t in unfiltered] != [t.shape for t in expected]:
                    return f"shape with one tap: {where}"
                # A norm in training takes the statistics of the dense map, which no filter makes those of the strided.
                if not (training and normed) and not alike(unfiltered, expected):
                    return f"identity: {where}"
                if not alike(actual, case.reference(net, x, found, entry, training)):
                    return f"values: {where}"
                if not alike(plain, actual):
                    return f"verify=False differs: {where}"
    return ""


# --- bodies: what is computed, in whatever style


@dataclass(frozen=True)
class Body:
    name: str
    ops: tuple[Op, ...]
    norm: bool = False
    head: bool = False  # mean and linear layer at the end

    @property
    def rank(self) -> int:
        return self.ops[0].rank

    @property
    def net(self) -> tuple[Op, ...]:
        """With the stem, and the norms."""
        ops = (stem(self.rank), *self.ops)
        return tuple(replace(op, norm=self.norm and op.kind == "conv") for op in ops)


BODIES = (
    Body("plain", (conv(), conv())),
    Body("norm", (conv(), conv(3, 1), conv()), norm=True),
    Body("dilated", (conv(dilation=2), conv(5, (1, 2)), conv(1)), head=True),
    Body("third", (conv(5, 3), conv(groups=2)), norm=True, head=True),
    Body("line", (conv(3, 2, 1), conv(4, 2, 1, padding=1), conv(3, 1, 1))),
    Body("volume", (conv(3, 2, 3), conv(3, (1, 2, 2))), norm=True),
    Body("pools", (conv(), pool("max"), conv(groups=4), conv(1, 1)), head=True),
    Body("mixed", (conv(), pool("max", 3, 2, 1), pool("avg")), norm=True),
    Body("wide", (conv(4, padding=1), pool("avg", 7, 2, 3), conv(1))),
    Body("line_pools", (pool("max", 3, 2, 1, 1), conv(5, 2, 1), pool("avg", rank=1))),
    Body("bare", (conv(act=False), conv(), conv(1, act=False))),
    Body("patches", (conv(2, 2, padding=0), conv())),
)


# --- styles: how it is written

SOURCE = Template('''"""A small network."""

import functools
import operator
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

$top


class $name(nn.Module):
$body
    def __init__(self):
        super().__init__()
$init

$decorator
    def $method(self, x$parameters):
$forward

$after


$end
''')


def written(
    init: str, forward: str, *, top: str = "", body: str = "", after: str = "", decorator: str = "",
    method: str = "forward", parameters: str = "", name: str = "Net", end: str = "",
) -> str:  # fmt: skip
    """The source of a module with a class `Net`."""
    inner, body, after = textwrap.indent(init, " " * 8), textwrap.indent(body, " " * 4), textwrap.dedent(after)
    return SOURCE.substitute(
        top=textwrap.dedent(top), name=name, end=end, method=method, parameters=parameters, body=body, init=inner,
        forward=textwrap.indent(forward, " " * 8), decorator=textwrap.indent(decorator, " " * 4),
        after=textwrap.indent(after, " " * 4),
    )  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a body is written down.

    A style with `step` has one layer an attribute (conv1, bn1, pool1, ...) and writes a convolution with its
    activation as `step` says; one with `forward` writes the whole of it. In a step, $y is the convolution and its
    norm of $x, $c the convolution, $args both layers, $i their number, $o the name of what the step makes; elsewhere
    stand what `_words` gives.

    Attributes:
        init: further lines of __init__, once for each convolution if there is a $i in it.
        pool: a pool; $call is the function call, $self the module call.
        only: which bodies can be written so: 'any', 'acts' (every convolution has an activation), 'convs' (no pools).
        norm: whether the body must have norms (True) or none (False).
        last: the last convolution has no activation.
        all_outputs: the result is a list of what every op gives.
        more: what else `written` takes.
    """

    name: str
    step: str = ""
    init: str = ""
    pool: str = "$o = $call"
    forward: str = ""
    only: str = "any"
    norm: bool | None = None
    act: str = "relu"
    var: str = "x"
    nested: bool = False
    functional: bool = False
    last: bool = False
    all_outputs: bool = False
    top: str = ""
    more: tuple[tuple[str, str], ...] = ()

    def takes(self, body: Body) -> bool:
        convs = [op for op in body.ops if op.kind == "conv"]
        fits = self.only == "any" or all(op.act for op in convs)
        fits &= self.only != "convs" or len(convs) == len(body.ops)
        fits &= not (self.all_outputs and body.head)
        return fits and self.norm in (None, body.norm)

    def case(self, body: Body) -> Case:
        ops = list(body.net)
        if self.last:
            ops[-1] = ops[-1].bare
        head = "$r = x.flatten(2).mean(2)\nreturn self.fc($r)" if body.head else "return $r"
        words = {**_words(ops), "rank": str(body.rank)}
        if self.forward:
            init, forward, result = self.init, self.forward, "x"
        else:
            init, forward, result = self._steps(ops)
        init += f"\nself.fc = nn.Linear({WIDTH}, {CLASSES})" * body.head
        if "return" not in forward.splitlines()[-1] or body.head:
            head = head.replace("= x", f"= {result}") if body.head else head
            forward += "\n" + Template(head).substitute(r="x" if body.head else result)
        more = {key: Template(text).safe_substitute(words) for key, text in self.more}
        source = written(
            Template(init).safe_substitute(words), Template(forward).safe_substitute(words),
            top=Template(textwrap.dedent(self.top)).safe_substitute(words), **more,
        )  # fmt: skip

        def compute(run: Run, x: Tensor, entry: str) -> Any:
            outputs = []
            for op in ops:
                x = run(x, op)
                outputs.append(x)
            return outputs if self.all_outputs else run.head(x) if body.head else x

        return Case(f"{self.name}/{body.name}", source, compute, SIZES[body.rank], self.act)

    def _steps(self, ops: Sequence[Op]) -> tuple[str, str, str]:
        init, forward, x = [], [], "x"
        inits = self.init.split("\n---\n")
        for i, op in enumerate(ops):
            o = self.var.replace("$i", str(i))
            words = {"i": str(i), "x": x, "o": o, "args": f"self.conv{i}" + f", self.bn{i}" * op.norm}
            if op.kind == "conv":
                weight = f"self.w{i}" if self.functional else f"self.conv{i}.weight"
                bias = "None" if self.functional or op.norm else f"self.conv{i}.bias"
                shape = (WIDTH, op.reads // op.groups, *(op.kernel,) * op.rank)
                y = f"self.conv{i}({x})"
                words["c"] = y
                words["function"] = f"F.conv{op.rank}d({x}, {weight}, {bias}{op.arguments})"
                y = words["function"] if self.functional else y
                words["y"] = f"self.bn{i}({y})" if op.norm else y
                words["n"] = f"{o} = self.bn{i}({o})\n" if op.norm else ""
                init.append(
                    f"self.w{i} = nn.Parameter(torch.randn{shape})"
                    if self.functional
                    else f"self.conv{i} = {op.module}"
                )
                init += [f"self.bn{i} = nn.BatchNorm{op.rank}d({WIDTH})"] * op.norm
                init += [Template(line).substitute(words) for line in inits if "$i" in line and "$call" not in line]
                text = self.step if op.act else ("$y" if self.nested else "$o = $y")
            else:
                words |= {"call": op.call(x), "self": f"self.pool{i}({x})"}
                init += [f"self.pool{i} = {op.module}"] * ("$self" in self.pool)
                init += [Template(line).substitute(words) for line in inits if "$call" in line]
                text = self.pool.removeprefix("$o = ") if self.nested else self.pool
            text = Template(text).substitute(words)
            if self.nested:
                x = text
            else:
                forward.append(text)
                x = o
        init += [line for line in inits if line and "$i" not in line]
        return "\n".join(init), "\n".join(forward) or "pass", x


def _words(ops: Sequence[Op]) -> dict[str, str]:
    """The layers of a whole body, as lists."""
    convs = [op for op in ops if op.kind == "conv"]
    norm = f"nn.BatchNorm{ops[0].rank}d({WIDTH})"
    steps = [
        [op.module, *[norm] * op.norm, *["nn.ReLU()"] * op.act] if op.kind == "conv" else [op.module] for op in ops
    ]
    blocks = [f"Block({op.module})" if op.kind == "conv" and op.act else op.module for op in ops]
    conv_norm = "self.bn(self.conv(x))" if ops[0].norm else "self.conv(x)"
    return {
        "convs": ", ".join(op.module for op in convs),
        "norms": ", ".join(norm for _ in convs),
        "acts": ", ".join("nn.ReLU()" for _ in convs),
        "named": ", ".join(f'("conv{i}", {op.module})' for i, op in enumerate(convs)),
        "attributes": "\n".join(f"self.conv{i} = {op.module}" for i, op in enumerate(convs)),
        "flat": ", ".join(layer for step in steps for layer in step),
        "flat_named": ", ".join(f'("l{i}", {m})' for i, m in enumerate(layer for step in steps for layer in step)),
        "pairs": ", ".join(f"nn.Sequential({', '.join(step)})" for step in steps),
        "shared": ", ".join("act" if m == "nn.ReLU()" else m for step in steps for m in step),
        "blocks": ", ".join(blocks),
        "bn": f"self.bn = {norm}" if ops[0].norm else "pass",
        "layers": "conv, bn" if ops[0].norm else "conv",
        "yy": "bn(conv(x))" if ops[0].norm else "conv(x)",
        "block_y": conv_norm,
        "norm": norm,
        "n": str(len(convs)),
        "half": str(len(convs) // 2),
    }


BLOCK = """
class Block(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        $bn

    def forward(self, x):
"""
DECORATOR = """
def checked(function):
    @functools.wraps(function)
    def inner(self, x):
        assert x.dim() > 2
        return function(self, x)
    return inner
"""
MODULES = "$o = $self"
EACH = "self.convs = nn.ModuleList([$convs])"
EACH_NORM = EACH + "\nself.bns = nn.ModuleList([$norms])"

STYLES = (
    # one statement after the other
    Style("attributes", "$o = $c\n${n}$o = self.act$i($o)", "self.act$i = nn.ReLU()", MODULES),
    Style("attributes_gelu", "$o = $c\n${n}$o = self.act$i($o)", "self.act$i = nn.GELU()", MODULES, act="gelu"),
    Style("attributes_inplace", "$o = $c\n${n}$o = self.act$i($o)", "self.act$i = nn.ReLU(inplace=True)", MODULES),
    Style("nested_call", "$o = F.relu($y)"),
    Style("nested_leaky", "$o = F.leaky_relu($y, 0.1)", act="leaky"),
    Style("shared_act", "$o = self.act($y)", "self.act = nn.ReLU()", MODULES),
    Style("shared_act_inplace", "$o = self.act($y)", "self.act = nn.ReLU(inplace=True)", MODULES),
    Style("shared_act_dropped", "$o = $y\nself.act($o)", "self.act = nn.ReLU(inplace=True)", MODULES),
    Style("class_act", "$o = self.act($y)", more=(("body", "act = nn.ReLU()\n"),)),
    Style("class_static_act", "$o = self.act($y)", more=(("body", "act = staticmethod(F.relu)\n"),)),
    Style("torch_relu", "$o = torch.relu($y)"),
    Style("method_relu", "$o = $y.relu()"),
    Style("f_relu_dropped", "$o = $y\nF.relu_($o)"),
    Style("method_relu_dropped", "$o = $y\n$o.relu_()"),
    Style("method_relu_inplace", "$o = $y.relu_()"),
    Style("f_relu_inplace", "$o = F.relu($y, inplace=True)"),
    Style("f_relu_inplace_dropped", "$o = $y\nF.relu($o, inplace=True)"),
    Style("swish_augmented", "$o = $y\n$o *= torch.sigmoid($o)", act="silu"),
    Style("swish_product", "$o = $y\n$o = $o * torch.sigmoid($o)", act="silu"),
    Style("swish_mul_dropped", "$o = $y\n$o.mul_($o.sigmoid())", act="silu"),
    Style("clamp", "$o = $y.clamp(min=0)"),
    Style("one_expression", "F.relu($y)", nested=True),
    Style("one_expression_methods", "$y.relu()", nested=True),
    Style("new_names", "$o = F.relu($y)", var="h$i"),
    Style("new_names_twice", "out$i = $y\n$o = F.relu(out$i)", var="h$i"),
    Style("tuple_assignment", "$o, _ = F.relu($y), None"),
    Style("conditional", "$o = F.relu($y) if self.use else $y", "self.use = True"),
    Style("if_statement", "$o = $y\nif self.use:\n    $o = F.relu($o)", "self.use = True"),
    Style("walrus", "if ($o := F.relu($y)) is None:\n    raise ValueError"),
    Style("annotated", "$o: Tensor = F.relu($y)"),
    Style("size_read", "$o = F.relu($y)\nassert min($o.shape[2:]) > 0"),
    Style("size_read_between", "$o = $y\nassert min($o.shape[2:]) > 0\n$o = F.relu($o)"),
    Style("stored_function", "$o = self.act($y)", "self.act = F.relu"),
    Style("stored_partial", "$o = self.act($y)", "self.act = functools.partial(F.relu, inplace=True)"),
    Style("stored_lambda", "$o = self.act($y)", "self.act = lambda x: F.relu(x)"),
    Style("lambda_pool", "$o = F.relu($y)", "self.down$i = lambda x: $call", "$o = self.down$i($x)"),
    Style("act_table", '$o = ACTS["relu"]($y)', top='ACTS = {"relu": F.relu}'),
    Style("with_block", "with torch.enable_grad():\n    $o = F.relu($y)"),
    Style("try_block", "try:\n    $o = F.relu($y)\nfinally:\n    pass"),
    Style("functional_conv", "$o = F.relu($function)", functional=True, norm=False),
    Style("functional_of_module", "$o = F.relu($function)", norm=False),
    # helpers
    Style("helper", "$o = cbr($args, $x)", top="def cbr($layers, x):\n    return F.relu($yy)"),
    Style("helper_lines", "$o = cbr($args, $x)", top="def cbr($layers, x):\n    x = $yy\n    F.relu_(x)\n    return x"),
    Style("helper_act", "$o = act($y)", top="def act(x):\n    return F.relu(x)"),
    Style(
        "helper_defaults", "$o = cbr($x, $args)",
        top="def cbr(x, conv, bn=None, act=F.relu):\n    x = conv(x)\n    return act(x if bn is None else bn(x))",
    ),
    Style(
        "helper_star", "$o = cbr($x, $args)",
        top="def cbr(x, *layers):\n    for layer in layers:\n        x = layer(x)\n    return F.relu(x)",
    ),
    Style(
        "helper_method", "$o = self._cbr($args, $x)",
        more=(("after", "def _cbr(self, $layers, x):\n    return F.relu($yy)"),),
    ),
    Style(
        "helper_static", "$o = self._cbr($args, $x)",
        more=(("after", "@staticmethod\ndef _cbr($layers, x):\n    return F.relu($yy)"),),
    ),
    Style("helper_closure", "$o = cbr($args, $x)", top=(
        "def make(act):\n    def cbr($layers, x):\n        return act($yy)\n    return cbr\n\n\ncbr = make(F.relu)"
    )),
    Style("helper_lambda", "$o = act($y)", top="act = lambda x: F.relu(x)"),
    Style("helper_swish", "$o = swish($y)", act="silu", top="def swish(x):\n    return x * torch.sigmoid(x)"),
    # around the forward
    Style("decorated", "$o = F.relu($y)", top=DECORATOR, more=(("decorator", "@checked"),)),
    Style("no_grad_decorator", "$o = F.relu($y)", more=(("decorator", "@torch.no_grad()"),)),
    Style(
        "forward_impl", "$o = F.relu($y)",
        more=(("method", "_forward_impl"), ("after", "def forward(self, x):\n    return self._forward_impl(x)")),
    ),
    Style(
        "stored_forward", "$o = F.relu($y)", "self.fn = self._forward_impl",
        more=(("method", "_forward_impl"), ("after", "def forward(self, x):\n    return self.fn(x)")),
    ),
    Style("alias_forward", "$o = F.relu($y)", more=(("method", "_run"), ("after", "forward = _run"))),
    Style("star_arguments", "$o = F.relu($y)", more=(("parameters", ", *args, **kwargs"),)),
    Style(
        "super_forward", "$o = F.relu($y)",
        more=(("name", "O"), ("end", "class Net(O):\n    def forward(self, y):\n        return super().forward(y)")),
    ),
    # loops
    Style("loop", forward="for conv in self.convs:\n    x = F.relu(conv(x))", init=EACH, only="convs", norm=False),
    Style(
        "loop_inplace", forward="for conv in self.convs:\n    x = F.relu_(conv(x))",
        init=EACH, only="convs", norm=False,
    ),
    Style(
        "loop_module_act", forward="for conv in self.convs:\n    x = self.act(conv(x))",
        init=EACH + "\nself.act = nn.ReLU()", only="convs", norm=False,
    ),
    Style(
        "loop_acts", forward="for conv, act in zip(self.convs, self.acts):\n    x = act(conv(x))",
        init=EACH + "\nself.acts = nn.ModuleList([$acts])", only="convs", norm=False,
    ),
    Style(
        "loop_zip", forward="for conv, bn in zip(self.convs, self.bns):\n    x = F.relu(bn(conv(x)))",
        init=EACH_NORM, only="convs", norm=True,
    ),
    Style(
        "loop_index", forward="for i in range(len(self.convs)):\n    x = F.relu(self.bns[i](self.convs[i](x)))",
        init=EACH_NORM, only="convs", norm=True,
    ),
    Style(
        "loop_enumerate", forward="for i, conv in enumerate(self.convs):\n    x = conv(x)\n"
        "    if i < len(self.convs) - 1:\n        x = F.relu(x)",
        init=EACH, only="convs", norm=False, last=True,
    ),
    Style(
        "loop_children", forward="for m in self.children():\n    if hasattr(m, 'stride'):\n        x = F.relu(m(x))",
        init="$attributes", only="convs", norm=False,
    ),
    Style(
        "loop_dict", forward="for conv in self.convs.values():\n    x = torch.relu(conv(x))",
        init="self.convs = nn.ModuleDict([$named])", only="convs", norm=False,
    ),
    Style(
        "loop_items", forward="for name, conv in self.convs.items():\n    x = conv(x)\n"
        "    if name.startswith('conv'):\n        x = x.relu()",
        init="self.convs = nn.ModuleDict([$named])", only="convs", norm=False,
    ),
    Style(
        "loop_while", forward="i = 0\nwhile i < len(self.convs):\n    x = F.relu(self.convs[i](x))\n    i += 1",
        init=EACH, only="convs", norm=False,
    ),
    Style(
        "loop_getattr", forward="for i in range($n):\n    x = F.relu(getattr(self, f'conv{i}')(x))",
        init="$attributes", only="convs", norm=False,
    ),
    Style(
        "loop_iterator", forward="layers = iter(self.convs)\nx = next(layers)(x).relu()\n"
        "for conv in layers:\n    x = F.relu(conv(x))",
        init=EACH, only="convs", norm=False,
    ),
    Style(
        "loop_reduce", forward="x = functools.reduce(lambda x, conv: F.relu(conv(x)), self.convs, x)",
        init=EACH, only="convs", norm=False,
    ),
    Style(
        "loop_comprehension", forward="x = [x := F.relu(conv(x)) for conv in self.convs][-1]",
        init=EACH, only="convs", norm=False,
    ),
    Style(
        "loop_recursion", forward="x = self._run(x, 0)", init=EACH, only="convs", norm=False,
        more=(("after", "def _run(self, x, i):\n    if i == len(self.convs):\n        return x\n"
               "    return self._run(F.relu(self.convs[i](x)), i + 1)"),),
    ),
    Style(
        "loop_generator", forward="for x in self._maps(x):\n    pass", init=EACH, only="convs", norm=False,
        more=(("after", "def _maps(self, x):\n    for conv in self.convs:\n"
               "        x = F.relu(conv(x))\n        yield x"),),
    ),
    Style(
        "loop_outputs", forward="maps = []\nfor conv in self.convs:\n    x = F.relu(conv(x))\n    maps.append(x)\n"
        "return maps",
        init=EACH, only="convs", norm=False, all_outputs=True,
    ),
    Style(
        "loop_helper", forward="for conv in self.convs:\n    x = cr(conv, x)", init=EACH, only="convs", norm=False,
        top="def cr(conv, x):\n    return F.relu(conv(x))",
    ),
    Style(
        "loop_swish", forward="for conv in self.convs:\n    x = conv(x)\n    x = x * x.sigmoid()",
        init=EACH, only="convs", norm=False, act="silu",
    ),
    # sequences and blocks
    Style("sequential", forward="x = self.layers(x)", init="self.layers = nn.Sequential($flat)"),
    Style(
        "sequential_named", forward="x = self.layers(x)",
        init="self.layers = nn.Sequential(OrderedDict([$flat_named]))",
    ),
    Style("sequential_nested", forward="x = self.layers(x)", init="self.layers = nn.Sequential($pairs)"),
    Style(
        "sequential_shared_act", forward="x = self.layers(x)",
        init="act = nn.ReLU(inplace=True)\nself.layers = nn.Sequential($shared)",
    ),
    Style(
        "sequential_loop", forward="for layer in self.layers:\n    x = layer(x)",
        init="self.layers = nn.Sequential($flat)",
    ),
    Style(
        "sequential_slices", forward="x = self.layers[:2](x)\nx = self.layers[2:](x)",
        init="self.layers = nn.Sequential($flat)",
    ),
    Style("sequential_subclass", forward="x = self.layers(x)", init="self.layers = Layers($flat)", top="""
        class Layers(nn.Sequential):
            def forward(self, x):
                for layer in self:
                    x = layer(x)
                return x
    """),
    Style(
        "sequential_acting", forward="x = self.layers(x)", init="self.layers = Layers($convs)",
        only="convs", norm=False, top="""
        class Layers(nn.Sequential):
            def forward(self, x):
                for layer in self:
                    x = F.relu(layer(x))
                return x
    """),
    Style("stages", forward="x = self.layers(x)", init="self.layers = nn.Sequential(Stage([$flat]))", top="""
        class Stage(nn.Module):
            def __init__(self, layers):
                super().__init__()
                self.layers = nn.ModuleList(layers)

            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                return x
    """),
    Style("blocks", forward="x = self.layers(x)", init="self.layers = nn.Sequential($blocks)",
          top=BLOCK + "        return F.relu($block_y)"),
    Style("blocks_inplace", forward="x = self.layers(x)", init="self.layers = nn.Sequential($blocks)",
          top=BLOCK + "        x = $block_y\n        x.relu_()\n        return x"),
    Style("blocks_swish", forward="x = self.layers(x)", init="self.layers = nn.Sequential($blocks)", act="silu",
          top=BLOCK + "        x = $block_y\n        return x * torch.sigmoid(x)"),
)  # fmt: skip


# --- networks that are no chain, each with what it must compute; `run` takes the layers in the order of __init__


@dataclass(frozen=True)
class Geometry:
    """The strided convolution of a special network, and others that fit beside it."""

    down: Op

    @property
    def short(self) -> Op:
        return conv(1, self.down.stride, act=False)

    @property
    def words(self) -> dict[str, str]:
        ops = {"down": self.down, "short": self.short, "stem": STEM, "same": SAME, "wide": WIDE, "point": POINT}
        padless = replace(self.down, padding=0)
        stride = self.down.stride if len(set(self.down.stride)) > 1 else self.down.stride[0]
        steps = ", ".join(f"::{s}" if s > 1 else ":" for s in self.down.stride)
        return {
            **{name: op.module for name, op in ops.items()}, "padless": padless.module, "pad": str(self.down.padding),
            "pool": f"3, stride={stride}, padding=1", "slice": f":, :, {steps}",
        }  # fmt: skip

    @property
    def pool(self) -> Op:
        return Op("max", 3, self.down.stride, 1)


STEM, SAME, WIDE, POINT = stem(), conv(3, 1), conv(3, 1, reads=2 * WIDTH), conv(1, 1, act=False)
GEOMETRIES = {
    "k3s2": Geometry(conv()),
    "k5s3": Geometry(conv(5, 3)),
    "row": Geometry(conv(3, (1, 2))),
    "dilated": Geometry(conv(dilation=2)),
}
_specials: list[Callable[[], Iterator[Case]]] = []


def special(
    init: str, forward: str, *, variants: dict[str, str] | None = None, only: Sequence[str] = tuple(GEOMETRIES),
    sizes: Any = SIZES[2], entries: tuple[str, ...] = ("forward",), extra: tuple[Any, ...] = (), act: str = "relu",
    **more: str,
) -> Callable[[Any], Any]:  # fmt: skip
    """Make cases of a network: its source with $down, $same, ... filled in, and below it what it must compute."""

    def register(compute: Callable[[Run, Tensor, Geometry, str], Any]) -> Any:
        def made() -> Iterator[Case]:
            for geometry in only:
                g = GEOMETRIES[geometry]
                for variant, text in (variants or {"": ""}).items():
                    words = {**g.words, "v": Template(text).safe_substitute(g.words)}
                    parts = [Template(textwrap.dedent(t).strip()).safe_substitute(words) for t in (init, forward)]
                    rest = {key: Template(t).safe_substitute(words) for key, t in more.items()}
                    yield Case(
                        f"{compute.__name__}/{geometry}{'-' * bool(variant)}{variant}", written(*parts, **rest),
                        lambda run, x, entry, g=g: compute(run, x, g, entry), sizes, act, extra, entries,
                    )  # fmt: skip

        _specials.append(made)
        return compute

    return register


TWO = "self.stem, self.a, self.b = $stem, $down, $down"
RELU_STEM = "x = F.relu(self.stem(x))\n"


@special(
    "self.stem, self.a, self.b, self.short = $stem, $down, $same, $short",
    RELU_STEM + "y = F.relu(self.a(x))\ny = self.b(y)\n$v",
    variants={
        "sum": "return F.relu(y + self.short(x))",
        "augmented": "y += self.short(x)\nreturn F.relu(y)",
        "dropped": "y += self.short(x)\nF.relu_(y)\nreturn y",
    },
)
def residual(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    y = run(run(x, g.down), SAME.bare)
    return F.relu(y + run(x, g.short))


@special(
    "self.stem, self.a, self.short = $stem, $down, $short",
    RELU_STEM + "$v",
    variants={
        "sum": "return F.relu(self.a(x) + self.short(x))",
        "augmented": "y = self.a(x)\ny += self.short(x)\nreturn F.relu(y)",
        "dropped": "y = self.a(x)\ny += self.short(x)\ny.relu_()\nreturn y",
        "add": "return torch.relu(torch.add(self.a(x), self.short(x)))",
    },
)
def residual_joint(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run.joint([g.down, g.short], lambda a, b: F.relu(a + b), run(x, STEM))


@special(
    "self.stem, self.a, self.b = $stem, $down, $same\n$v",
    RELU_STEM + "y = self.b(F.relu(self.a(x)))\nreturn F.relu(y + self.short(x))",
    variants={
        "lambda": "self.short = lambda x: x[$slice]",
        "module": "self.short = Lambda(lambda x: x[$slice])",
        "sequential": "self.short = nn.Sequential(Lambda(lambda x: x[$slice]))",
        "named": "self.short = Subsample()",
    },
    only=("k3s2",),
    top="""
        class Lambda(nn.Module):
            def __init__(self, function):
                super().__init__()
                self.function = function

            def forward(self, x):
                return self.function(x)


        class Subsample(nn.Module):
            def forward(self, x):
                return x[$slice]
    """,
)
def residual_sliced(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    y = run(run(x, g.down), SAME.bare)
    return F.relu(y + run(x, Op("slice", 1, g.down.stride)))


@special(
    "self.stem, self.a = $stem, $down",
    RELU_STEM + "h = F.relu(x[$slice])\nreturn h + F.relu(self.a(x))",
    only=("k3s2",),
)
def slice_inline(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    return F.relu(run(x, Op("slice", 1, g.down.stride))) + run(x, g.down)


@special(
    TWO, RELU_STEM + "$v",
    variants={
        "list": "return torch.cat([F.relu(self.a(x)), F.relu(self.b(x)), F.max_pool2d(x, $pool)], 1)",
        "names": "a = F.relu(self.a(x))\nb = F.relu(self.b(x))\nc = F.max_pool2d(x, $pool)\n"
        "return torch.cat((a, b, c), dim=1)",
        "comprehension": "maps = [F.relu(branch(x)) for branch in (self.a, self.b)]\n"
        "maps.append(F.max_pool2d(x, $pool))\nreturn torch.cat(maps, 1)",
    },
)  # fmt: skip
def inception(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    return torch.cat([run(x, g.down), run(x, g.down), run(x, g.pool)], 1)


@special(TWO, RELU_STEM + "return F.relu(torch.cat([self.a(x), self.b(x)], 1))")
def inception_late(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run.joint([g.down, g.down], lambda a, b: F.relu(torch.cat([a, b], 1)), run(x, STEM))


@special(
    "self.stem, self.a = $stem, $down", RELU_STEM + "$v",
    variants={
        "lines": "x = F.relu(self.a(x))\nx = F.relu(self.a(x))\nreturn x",
        "loop": "for _ in range(2):\n    x = F.relu(self.a(x))\nreturn x",
        "once": "return F.relu(self.a(F.relu(self.a(x))))",
    },
)  # fmt: skip
def shared_conv(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    return run(run(x, g.down, 1), g.down, 1)


@special(
    "self.stem, self.a = $stem, $down", RELU_STEM + "$v",
    variants={
        "lines": "a = F.relu(self.a(x))\nb = F.relu(self.a(x[:, :, 2:, 3:]))\nreturn a, b",
        "helper": "return self.one(x), self.one(x[:, :, 2:, 3:])",
    },
    after="def one(self, x):\n    return F.relu(self.a(x))",
)  # fmt: skip
def shared_conv_two_sizes(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    return run(x, g.down, 1), run(x[:, :, 2:, 3:], g.down, 1)


@special(
    "self.stem, self.a, self.b, self.c = $stem, $down, $same, $same",
    RELU_STEM + "h = $v\nreturn self.b(h) + self.c(h)",
    variants={"relu": "F.relu(self.a(x))", "method": "self.a(x).relu_()", "swish": "self.swish(self.a(x))"},
    after="def swish(self, x):\n    return F.relu(x)",
)
def two_consumers(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    h = run(run(x, STEM), g.down)
    return run(h, SAME.bare) + run(h, SAME.bare)


@special(TWO, RELU_STEM + "h = F.relu(self.a(x))\nreturn F.relu(self.b(h)), F.max_pool2d(h, $pool)")
def two_strided_consumers(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    h = run(run(x, STEM), g.down)
    return run(h, g.down), run(h, g.pool)


@special(
    TWO, RELU_STEM + "h = F.relu(self.a(x))\n$v",
    variants={
        "tuple": "return h, F.relu(self.b(h))",
        "dict": "return {'c2': h, 'c3': F.relu(self.b(h))}",
        "dict_lines": "out = {}\nout['c2'] = h\nout['c3'] = F.relu(self.b(out['c2']))\nreturn out",
        "list": "maps = [h]\nmaps.append(F.relu(self.b(maps[-1])))\nreturn maps",
        "dataclass": "return Output(h, F.relu(self.b(h)))",
        "namedtuple": "return Pair(first=h, second=F.relu(self.b(h)))",
        "ordered": "return OrderedDict(c2=h, c3=self.b(h).relu_())",
        "attribute": "self.kept = h\nreturn h, F.relu(self.b(self.kept))",
    },
    top="""
        Pair = namedtuple("Pair", "first second")


        @dataclass
        class Output:
            first: Tensor
            second: Tensor
    """,
)  # fmt: skip
def two_outputs(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    h = run(run(x, STEM), g.down)
    return h, run(h, g.down)


@special(
    TWO, RELU_STEM + "x = F.relu(self.a(x))\nif double:\n    x = 2 * x\nx = F.relu(self.b(x)) * scale\nreturn x",
    parameters=", scale=1.0, double=False", extra=(0.5, True),
)  # fmt: skip
def extra_arguments(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run(2 * run(run(x, STEM), g.down), g.down) * 0.5


@special(
    TWO + "\nself.aux = nn.Linear(4, 5)",
    RELU_STEM + "$v",
    variants={
        "behind": "x = F.relu(self.a(x))\naux = None\nif self.training:\n    aux = self.aux(x.mean((2, 3)))\n"
        "x = F.relu(self.b(x))\nreturn (x, aux) if self.training else x",
        "early": "x = F.relu(self.a(x))\ny = F.relu(self.b(x))\nif self.training:\n"
        "    return y, self.aux(x.flatten(2).mean(2))\nreturn y",
        "inplace": "x = self.a(x)\nx.relu_()\ny = F.relu(self.b(x))\nif self.training:\n"
        "    return y, self.aux(x.flatten(2).mean(2))\nreturn y",
        "module": "x = self.act(self.a(x))\ny = self.act(self.b(x))\nif self.training:\n"
        "    return y, self.aux(x.flatten(2).mean(2))\nreturn y",
    },
    body="act = nn.ReLU()\n",
)
def auxiliary(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    h = run(run(x, STEM), g.down)
    y = run(h, g.down)
    return (y, run.head(h)) if run.training else y


@special(
    TWO, "$v", entries=("forward", "features"),
    variants={
        "called": "return F.relu(self.b(self.features(x)))",
        "beside": RELU_STEM + "x = F.relu(self.a(x))\nreturn F.relu(self.b(x))",
        "beside_once": "return F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))",
        "inplace": RELU_STEM + "x = self.a(x)\nF.relu_(x)\nreturn F.relu(self.b(x))",
    },
    after="def features(self, x):\n    x = F.relu(self.stem(x))\n    return F.relu(self.a(x))",
)  # fmt: skip
def second_entry(run: Run, x: Tensor, g: Geometry, entry: str) -> Any:
    h = run(run(x, STEM), g.down)
    return run(h, g.down) if entry == "forward" else h


@special(
    "self.stem, self.a = $stem, $down\nself.pool = nn.MaxPool2d($pool)", "$v", entries=("forward", "features"),
    variants={
        "called": "return F.relu(self.a(self.features(x)))",
        "beside": RELU_STEM + "return F.relu(self.a(self.pool(x)))",
    },
    after="def features(self, x):\n    return self.pool(F.relu(self.stem(x)))",
)  # fmt: skip
def second_entry_pool(run: Run, x: Tensor, g: Geometry, entry: str) -> Any:
    h = run(run(x, STEM), g.pool)
    return run(h, g.down) if entry == "forward" else h


MERGE = """
    class Merge(nn.Module):
        def forward(self, a, b):
            $v
"""


@special(
    TWO + "\nself.merge = Merge()", RELU_STEM + "return self.merge(self.a(x), self.b(x))", top=MERGE,
    variants={"sum": "return F.relu(a + b)", "augmented": "a += b\n            return F.relu(a)"},
)  # fmt: skip
def merged_sum(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run.joint([g.down, g.down], lambda a, b: F.relu(a + b), run(x, STEM))


@special(
    TWO + "\nself.merge = Merge()", RELU_STEM + "return self.merge(self.a(x), self.b(x))", top=MERGE,
    variants={"gate": "return a * torch.sigmoid(b)"},
)  # fmt: skip
def merged_gate(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    a, run.act = run(x, g.down.bare), torch.sigmoid  # the first join behind a nonlinearity is that of the gate alone
    return a * run(x, g.down)


@special(
    TWO + "\nself.merge = Merge()", RELU_STEM + "return self.merge(F.relu(self.a(x)), F.relu(self.b(x)))", top=MERGE,
    variants={"matmul": "return a @ b.transpose(2, 3)"},
)  # fmt: skip
def merged_acts(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return correlated(run, x, g, _)


@special(TWO, RELU_STEM + "a, b = F.relu(self.a(x)), F.relu(self.b(x))\nreturn torch.matmul(a, b.transpose(2, 3))")
def correlated(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    a, b = run(x, g.down), run(x, g.down)
    return a @ b.transpose(2, 3)


@special(
    TWO + "\nself.head = $v", RELU_STEM + "return self.head(F.relu(self.a(x))), self.head(F.relu(self.b(x)))",
    variants={"conv": "$same", "sequential": "nn.Sequential($same)"},
)  # fmt: skip
def shared_head(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    a, b = run(x, g.down), run(x, g.down)
    return run(a, SAME.bare, 3), run(b, SAME.bare, 3)


@special(
    "self.stem, self.a = $stem, $down\nself.fc = nn.Linear(120, 5)\nself.head = nn.Sequential(nn.Flatten(), self.fc)",
    RELU_STEM + "x = F.max_pool2d(F.relu(self.a(x)), 2)\nreturn $v",
    variants={
        "view": "self.fc(x.view(x.size(0), -1))", "view_number": "self.fc(x.view(-1, 120))",
        "view_features": "self.fc(x.view(-1, self.features(x)))", "reshape": "self.fc(x.reshape(x.shape[0], -1))",
        "flatten": "self.fc(torch.flatten(x, 1))", "method": "self.fc(x.flatten(1))", "module": "self.head(x)",
    },
    only=("k3s2", "dilated"), sizes=((20, 23),),
    after="def features(self, x):\n    n = 1\n    for s in x.size()[1:]:\n        n *= s\n    return n",
)  # fmt: skip
def lenet(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(run(run(x, STEM), g.down), pool("max"))
    return F.linear(x.flatten(1), run.linears[0].weight, run.linears[0].bias)


@special(
    "self.stem, self.a = $stem, $down\nself.fc = nn.Linear(480, 5)",
    RELU_STEM + "x = F.relu(self.a(x))\nreturn $v",
    variants={
        "view": "self.fc(x.view(x.size(0), -1))", "view_number": "self.fc(x.view(-1, 480))",
        "flatten": "self.fc(torch.flatten(x, 1))", "late": "self.fc(F.relu(x.flatten(1)))",
    },
    only=("k3s2", "dilated"), sizes=((20, 23),),
)  # fmt: skip
def conv_flattened(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(run(x, STEM), g.down)
    return F.linear(x.flatten(1), run.linears[0].weight, run.linears[0].bias)


@special(
    "self.stem, self.a, self.b = $stem, $padless, $same\n$v",
    RELU_STEM + "x = F.relu(self.a(self.pad(x)))\nreturn self.b(x)",
    variants={
        "function": "self.pad = lambda x: F.pad(x, ($pad,) * 4)",
        "module": "self.pad = nn.ZeroPad2d($pad)",
    },
)  # fmt: skip
def padded(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = F.pad(run(x, STEM), (g.down.padding,) * 4)
    return run(run(x, replace(g.down, padding=0)), SAME.bare)


@special(
    "self.stem, self.a, self.b = $stem, $padless, $same",
    RELU_STEM + "$v\nreturn self.b(x)",
    variants={
        "same": "x = F.pad(x, (0, 1, 0, 1))\nx = F.relu(self.a(x))",
        "inline": "x = F.relu(self.a(F.pad(x, (0, 1, 0, 1))))",
        "inplace": "x = self.a(F.pad(x, [0, 1, 0, 1]))\nx.relu_()",
    },
    only=("k3s2", "row"),
)
def padded_one_side(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = F.pad(run(x, STEM), (0, 1, 0, 1))
    return run(run(x, replace(g.down, padding=0)), SAME.bare)


@special(
    "self.stem, self.a, self.b = $stem, Same(4, 4, 3, 2), $same", RELU_STEM + "return self.b($v)", only=("k3s2",),
    variants={"relu": "F.relu(self.a(x))", "method": "self.a(x).relu_()"},
    top="""
        class Same(nn.Conv2d):
            def forward(self, x):
                total = [max((-(-n // s) - 1) * s + k - n, 0)
                         for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride)]
                (h, w) = total
                x = F.pad(x, (w // 2, w - w // 2, h // 2, h - h // 2))
                return F.conv2d(x, self.weight, self.bias, self.stride)
    """,
)  # fmt: skip
def same_class(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(x, STEM)
    h, w = (max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:])
    pads = (w // 2, w - w // 2, h // 2, h - h // 2)
    choice = run.choose("after", "before", "before the padding", "left")
    x = F.pad(blur(x, g.down.stride, subsample=False) if choice == "before the padding" else x, pads)
    y = F.relu(run.conv(x, replace(g.down, padding=0), choice))
    return run(blur(y, g.down.stride) if choice == "after" else y, SAME.bare)


@special(
    TWO + "\nself.up, self.out = $same, $wide",
    RELU_STEM
    + "e = F.relu(self.a(x))\nd = F.relu(self.b(e))\nd = self.up(d)\n$v\nreturn self.out(torch.cat([e, d], 1))",
    variants={
        "size": "d = F.interpolate(d, size=e.shape[2:])",
        "names": "h, w = e.size(2), e.size(3)\nd = F.interpolate(d, (h, w))",
    },
)
def unet(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    e = run(run(x, STEM), g.down)
    d = run(run(e, g.down), SAME.bare)
    return run(torch.cat([e, F.interpolate(d, size=e.shape[2:])], 1), WIDE.bare)


@special(
    "self.stem, self.a, self.gate, self.b = $stem, $down, $point, $same",
    RELU_STEM + "x = F.relu(self.a(x))\n$v\nreturn self.b(x)",
    variants={
        "product": "x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))",
        "augmented": "x *= torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))",
        "view": "b, c, _, _ = x.size()\nw = F.adaptive_avg_pool2d(x, 1).view(b, c)\n"
        "x = x * torch.sigmoid(self.gate(w.view(b, c, 1, 1))).expand_as(x)",
    },
)
def squeeze_excite(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(run(x, STEM), g.down)
    return run(x * torch.sigmoid(run(x.mean((2, 3), keepdim=True), POINT)), SAME.bare)


@special(
    "self.stem, self.a = $stem, $down", RELU_STEM + "$v\nreturn x",
    variants={
        "chunk": "a, b = self.a(x).chunk(2, dim=1)\nx = a * torch.sigmoid(b)",
        "split": "a, b = torch.split(self.a(x), 2, 1)\nx = a * b.sigmoid()",
        "glu": "x = F.glu(self.a(x), 1)",
    },
)  # fmt: skip
def gated_halves(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run.joint([g.down], lambda y: F.glu(y, 1), run(x, STEM))


@special(
    "self.stem, self.a, self.b, self.c = $stem, $down, $same, $down",
    "x = self.stem(x)\nx = self.a(F.relu(x))\nx = x + self.b(F.relu(x))\nreturn self.c(F.relu(x))",
)
def preactivation(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(run(x, STEM), g.down.bare)
    return run(F.relu(x + run(F.relu(x), SAME.bare)), g.down.bare)


@special(
    "self.stem, self.a = $stem, $down\nself.b, self.c = $same, $wide\nself.pool = nn.AvgPool2d(2, 2)",
    RELU_STEM + "x = F.relu(self.a(x))\n$v\nreturn self.pool(F.relu(self.c(x)))",
    variants={
        "lines": "x = torch.cat([x, F.relu(self.b(x))], 1)",
        "list": "maps = [x]\nmaps.append(F.relu(self.b(torch.cat(maps, 1))))\nx = torch.cat(maps, 1)",
    },
)
def dense_block(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    x = run(run(x, STEM), g.down)
    return run(run(torch.cat([x, run(x, SAME)], 1), WIDE), pool("avg"))


@special(
    "self.stem, self.a = $stem, $down\nself.pool = nn.AvgPool2d(8)", RELU_STEM + "x = F.relu(self.a(x))\nreturn $v",
    variants={"module": "self.pool(x)", "function": "F.avg_pool2d(x, 8)", "size": "F.avg_pool2d(x, x.shape[-1])"},
    only=("k3s2", "dilated"), sizes=((16, 16), (15, 15)),
)  # fmt: skip
def global_pool(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return F.avg_pool2d(run(run(x, STEM), g.down), 8)


@special(
    TWO, "$v",
    variants={
        "conv": "return self.f(F.relu(self.stem(x)))",
        "each": "return self.g(self.b, self.g(self.a, F.relu(self.stem(x))))",
    },
    only=("k3s2",), after="def f(self, x):\n    return self.g(self.b, self.g(self.a, x))",
    body="g = staticmethod(lambda layer, x: F.relu(layer(x)))\n",
)  # fmt: skip
def stored_class_lambda(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run(run(run(x, STEM), g.down), g.down)


@special(TWO + "\nself.f = lambda x: F.relu(self.b(x))", RELU_STEM + "return self.f(F.relu(self.a(x)))")
def lambda_of_self(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run(run(run(x, STEM), g.down), g.down)


@special(
    TWO, RELU_STEM + "$v\nreturn x",
    variants={
        "nested": "def cr(layer, x):\n    return F.relu(layer(x))\nx = cr(self.b, cr(self.a, x))",
        "closure": "def cr(layer):\n    return F.relu(layer(x))\nx = cr(self.a)\nx = cr(self.b)",
        "lambda": "cr = lambda layer, x: F.relu(layer(x))\nx = cr(self.b, cr(self.a, x))",
        "act": "act = F.relu\nx = act(self.b(act(self.a(x))))",
    },
)  # fmt: skip
def local_function(run: Run, x: Tensor, g: Geometry, _: str) -> Any:
    return run(run(run(x, STEM), g.down), g.down)


def cases() -> Iterator[Case]:
    """Every network, in a fixed order."""
    for style in STYLES:
        for body in BODIES:
            if style.takes(body):
                yield style.case(body)
    for made in _specials:
        yield from made()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="check every case")
    parser.add_argument("--style", default="", help="only styles whose name has this in it")
    parser.add_argument("--source", help="print the source of this case")
    given = parser.parse_args()
    if given.source:
        print(next(case.source for case in cases() if case.name == given.source))
        return
    begin, by_style = time.perf_counter(), defaultdict(list)
    for case in cases():
        if given.style in case.style and (given.all or given.style):
            by_style[case.style].append(check(case))
    for style, results in by_style.items():
        counts = Counter(result.kind for result in results)
        print(f"{style:24}", "  ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
        causes = defaultdict(list)
        for result in results:
            causes[result.kind, result.detail[:60]].append(result)
        for (kind, _), alike_ones in causes.items():
            if kind != "after":
                bodies = " ".join(result.case.name.partition("/")[2] for result in alike_ones)
                print(f"    {kind}: {bodies}\n        {alike_ones[0].detail[:400]}")
    every = [result for results in by_style.values() for result in results]
    print(f"{len(every)} cases, {len(by_style)} styles:", dict(Counter(result.kind for result in every)), end=" ")
    print(f"in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
