"""See the graph: run the forward once and write down each call with its shapes and the modules that it ran in.

Symbolic tracing needs a forward without shape-dependent control flow and loses one architecture in six. Here the
forward really runs, on meta tensors (shapes without data), under a `TorchFunctionMode` that adds each torch call to a
`torch.fx.Graph`. Whatever Python does in between is simply done.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import CO_VARARGS
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from blurify.errors import BlurifyError
from blurify.graph.copies import copy_model, device_of, meta_copy, to_meta
from blurify.graph.costs import LSTM, MultiplyAdds
from blurify.graph.quiet import quietly
from blurify.graph.shapes import on_meta, writes
from blurify.graph.structure import Inputs, map_tensors, tensors_in
from blurify.graph.watching import watched_strides

Frame = tuple[CodeType, tuple[int, int, int, int], str | None]
"""One Python call on the way to an op: its code, (line, end line, column, end column), and the path of the module
whose method it is, if it is one."""

_TORCH_INSIDES = (
    "torch/nn/functional.py",
    "torch/_jit_internal.py",
    "torch/overrides.py",
    "torch/_tensor.py",
    "torch/nn/modules/module.py",
)


Key = tuple[str | None, int, str, int]
"""Which op of a forward: its module's path, which call of it, the function's name, which of its calls in there."""


@dataclass(eq=False)
class Call:
    """One call of one module.

    Attributes:
        path: the module's name in the model ('' is the model itself; None for a module that is not in the model).
        module: the module that ran (of the traced copy).
        parent: the call that it ran in.
        inputs: the node of each positional argument, None where the argument is no tensor.
        output: the node of its output where that is one tensor.
        number: how many calls of this module came before it.
        frames: the Python calls from the forward of `parent` to this call.
        args, kwargs: what it was called with (meta tensors), to run it again alone; nothing where tensors are real.
    """

    path: str | None
    module: nn.Module
    parent: Call | None
    inputs: tuple[Node | None, ...] = ()
    output: Node | None = None
    number: int = 0
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    has_calls: bool = False
    frames: list[Frame] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def key(self, function: Any) -> Key:
        """The key of the op that this call runs now."""
        name: str = getattr(function, "__name__", "")
        self.counts[name] += 1
        return self.path, self.number, name, self.counts[name]

    def stack(self) -> Iterator[Call]:
        """This call and those that it ran in, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass
class Trace:
    """What one forward did.

    Attributes:
        graph: the calls in order; `node.meta` has 'shape' (None for several outputs), 'dtype', 'call' (the innermost
            module call), 'key' (see `Key`), 'sized' (where the forward reads the tensor's size), 'frames' (the
            Python calls from that module's forward to the op; see `frames_of`); of a tensor that no call made,
            'origin' ('parameter', 'buffer', 'constant', 'unknown') and, of a constant, 'value'.
        calls: every module call, in the order in which they began.
        model: the copy that was run.
        inputs: the (args, kwargs) it was run with.
        real: whether real tensors had to be used.
        macs: multiply-adds of the forward: convolutions and matrix products.
        strides_read: the paths of modules whose `stride` other code than their own methods reads.
    """

    graph: Graph
    calls: list[Call]
    model: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]]
    real: bool = False
    macs: int = 0  # 0 where they were not counted
    strides_read: frozenset[str] = frozenset()


MAX_STEPS = 200_000
"""Operations and module calls of one forward: the largest of timm's architectures run some thousands."""


class Recorder(TorchFunctionMode):
    """Writes each torch call of one forward into a graph."""

    def __init__(self, model: nn.Module, meta: bool = True, *, run: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.graph = Graph()
        self.calls: list[Call] = []
        self.current: Call | None = None
        self.thread = threading.get_ident()
        self._meta = meta
        self._run = run
        self.costs = MultiplyAdds()
        self._steps = 0
        self._numbers: Counter[str | None] = Counter()
        self._nodes: dict[int, Node] = {}
        # Ids are only unique among tensors that live: those without data are kept, of those with data is noted when
        # they go. All features of a forward at once would be gigabytes.
        self._alive: list[Tensor] = []
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._stale: set[int] = set()
        self._constants: dict[int, Node] = {}
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._owned: dict[int, tuple[str, str]] = {}
        for name, parameter in model.named_parameters():
            self._owned[id(parameter)] = (name, "parameter")
        for name, buffer in model.named_buffers():
            self._owned.setdefault(id(buffer), (name, "buffer"))

    # --- torch calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._step()
        if self._meta:
            try:
                if self._run is None:
                    out = on_meta(func, args, kwargs, self.costs)
                else:
                    out = self._run(func, args, kwargs)
                if func is LSTM:
                    self.costs.add_recurrent(args[0], args[2])
            except RuntimeError as error:
                if not _of_meta(error):
                    raise
                # A tensor that the forward made on another device meets a meta tensor: only its shape matters here.
                args, kwargs = map_tensors(args, to_meta), map_tensors(kwargs, to_meta)
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            node = self._record(func, args, kwargs, tuple(out.shape))
            if args and out is args[0] and writes(func, args, kwargs):
                # A name that still holds the tensor that was written to sees the new values, but not what a module
                # returns in its place; give the result another identity to tell the two apart.
                self._stale.add(id(out))
                self._keep(out, node)
                with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                    out = out.view_as(out)
            self._keep(out, node)
        elif func in _SIZES and id(args[0]) in self._nodes:
            self._nodes[id(args[0])].meta["sized"] = True
        elif isinstance(out, tuple | list):
            if any(isinstance(item, Tensor) for item in out):
                node = self._record(func, args, kwargs, None)
                for index, item in enumerate(out):
                    if isinstance(item, Tensor):
                        self._keep(item, self._add("call_function", _getitem, (node, index), {}, tuple(item.shape)))
        elif out is None and getattr(func, "__name__", "") == "__setitem__" and isinstance(args[0], Tensor):
            self._keep(args[0], self._record(func, args, kwargs, tuple(args[0].shape)))
        return out

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise BlurifyError(
                f"the forward runs more than {MAX_STEPS:,} operations and modules, which no model does: see what it "
                "repeats"
            )

    def _record(self, func: Callable[..., Any], args: Any, kwargs: Any, shape: tuple[int, ...] | None) -> Node:
        return self._add("call_function", func, self._to_nodes(args), self._to_nodes(kwargs), shape)

    def _add(self, op: str, target: Any, args: Any, kwargs: Any, shape: tuple[int, ...] | None) -> Node:
        node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        node.meta["shape"] = shape
        node.meta["call"] = self.current
        if self.current is not None:
            self.current.nodes.append(node)
            node.meta["key"] = self.current.key(target)
            node.meta["frames"] = _frames(sys._getframe(1), self._paths)
        return node

    def _keep(self, tensor: Tensor, node: Node) -> None:
        node.meta["dtype"] = tensor.dtype
        name = id(tensor)
        self._nodes[name] = node
        if self._meta:
            self._alive.append(tensor)
        elif name not in self._watched:
            self._watched[name] = weakref.ref(tensor, lambda _: self._forget(name))

    def _forget(self, name: int) -> None:
        """A tensor is gone: another one may get its id."""
        self._nodes.pop(name, None)
        self._stale.discard(name)
        del self._watched[name]

    def _to_nodes(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._node(value)
        if isinstance(value, tuple | list):
            return (
                type(value)([self._to_nodes(item) for item in value])
                if type(value) in (tuple, list)
                else tuple(self._to_nodes(item) for item in value)
            )
        if isinstance(value, dict):
            return {key: self._to_nodes(item) for key, item in value.items()}
        return value

    def _node(self, tensor: Tensor) -> Node:
        node = self._nodes.get(id(tensor))
        if node is not None:
            if id(tensor) in self._stale:
                node.meta["stale"] = True
            return node
        name, origin = self._owned.get(id(tensor), ("", ""))
        value = None
        if not origin and self._meta and not (tensor.is_meta or tensor.requires_grad):
            # It has data where no signal has any: a constant, kept beside the module or made of Python numbers.
            origin, name, value = "constant", f"_constant{len(self._constants)}", tensor
        if not origin:
            # Made by code that torch functions do not show (a scripted function, numpy), or before the forward. To be
            # safe it may depend on all that is known here.
            origin = "unknown"
            name = f"_unknown{len(self._constants)}"
            if self.current is not None and (self.current.nodes or any(self.current.inputs)):
                args = [n for n in (*self.current.inputs, *self.current.nodes) if n is not None]
                node = self._add("call_function", unseen, (args,), {}, tuple(tensor.shape))
                self._keep(tensor, node)
                return node
        node = self.graph.create_node("get_attr", name)
        node.meta.update(shape=tuple(tensor.shape), call=None, origin=origin, value=value)
        self._constants[id(tensor)] = node
        self._keep(tensor, node)
        return node

    # --- module calls

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """A module is called."""
        inputs = tuple(self._node(arg) if isinstance(arg, Tensor) else None for arg in args)
        self._step()
        path = self._paths.get(id(module))
        # From whoever called `_run_module`, which called this.
        frames = _frames(sys._getframe(2), self._paths) if self.current is not None else []
        call = Call(path, module, self.current, inputs, number=self._numbers[path], frames=frames)
        self._numbers[path] += 1
        if self._meta:  # real features would stay as long as the trace does: gigabytes of a detector's
            call.args, call.kwargs = args, kwargs
        if self.current is not None:
            self.current.has_calls = True
        self.calls.append(call)
        self.current = call
        return call

    def leave(self, call: Call, out: Any) -> None:
        """A module call returns."""
        if isinstance(out, Tensor):
            if id(out) not in self._nodes and id(out) not in self._owned:
                args = [n for n in (*call.inputs, *call.nodes) if n is not None]
                self._keep(out, self._add("call_function", unseen, (args,), {}, tuple(out.shape)))
            call.output = self._node(out)

    def placeholder(self, name: str, tensor: Tensor) -> Node:
        """The node of an input."""
        node = self.graph.placeholder(name)
        node.meta.update(shape=tuple(tensor.shape), call=None)
        self._keep(tensor, node)
        return node

    def finish(self, out: Any) -> None:
        """The forward returned."""
        self.graph.output(tuple(self._node(tensor) for tensor in tensors_in(out)))


_SIZES = (torch.Tensor.shape.__get__, torch.Tensor.size)  # type: ignore[attr-defined]


def _getitem(value: Any, index: int) -> Any:
    """The element of an op's several outputs (a target for graph nodes; never run)."""
    return value[index]


def unseen(inputs: list[Any]) -> Any:
    """Stands in the graph for code that tracing cannot look into; never run."""
    return inputs


def structure_of(seen: Trace) -> list[Key]:
    """The ops of a forward, but for those by which norms keep their statistics: the same where nothing else differs."""
    ops = (node for node in seen.graph.nodes if "key" in node.meta)
    return [node.meta["key"] for node in ops if not isinstance(node.meta["call"].module, _NORMS)]


_NORMS = (nn.modules.batchnorm._NormBase,)


def frames_of(node: Node) -> list[tuple[Call, list[Frame]]]:
    """The Python calls on the way to an op, by the module call that they belong to.

    The innermost module comes first; within a module they go from its forward downwards.
    """
    call: Call | None = node.meta.get("call")
    if call is None:
        return []
    found = [(call, node.meta["frames"])]
    while call.parent is not None:
        found.append((call.parent, call.frames))
        call = call.parent
    return found


def _frames(frame: FrameType | None, paths: Mapping[int, str]) -> list[Frame]:
    """The Python calls from the forward of the innermost module call down to a frame."""
    found: list[Frame] = []
    while frame is not None and frame.f_code is not _RUN_MODULE_CODE:
        if not _is_inside(frame.f_code):
            found.append((frame.f_code, _position(frame.f_code, frame.f_lasti), _module_of(frame, paths)))
        frame = frame.f_back
    return found[::-1]


@lru_cache(maxsize=4096)
def _is_inside(code: CodeType) -> bool:
    """Whether a Python call is torch's own or the recorder's, and no step of the model's."""
    return code.co_filename == __file__ or code.co_filename.replace("\\", "/").endswith(_TORCH_INSIDES)


@lru_cache(maxsize=65536)
def _position(code: CodeType, instruction: int) -> tuple[int, int, int, int]:
    position = next(itertools.islice(code.co_positions(), instruction // 2, None))
    return tuple(value or 0 for value in position)  # type: ignore[return-value]


def _module_of(frame: FrameType, paths: Mapping[int, str]) -> str | None:
    """The path of the module whose method runs in a frame, also where that takes `*args`."""
    code = frame.f_code
    if not code.co_varnames:
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    if not code.co_argcount:
        first = first[0] if code.co_flags & CO_VARARGS and isinstance(first, tuple) and first else None
    return paths.get(id(first)) if isinstance(first, nn.Module) else None


_original_call = _saved_call = nn.Module.__call__
_active: list[Any] = []  # recorders and observers
_lock = threading.Lock()


def _run_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    thread = threading.get_ident()
    recorder = next((recorder for recorder in reversed(_active) if recorder.thread == thread), None)
    if recorder is None:
        return _original_call(module, *args, **kwargs)
    call = recorder.enter(module, args, kwargs)
    try:
        out = _original_call(module, *args, **kwargs)
        recorder.leave(call, out)
    finally:
        recorder.current = call.parent
    return out


_RUN_MODULE_CODE = _run_module.__code__


@contextmanager
def recording(recorder: Any) -> Iterator[None]:
    """Let a recorder (or an observer) see module calls too, as torch.fx's tracer does: by `nn.Module.__call__`."""
    global _saved_call
    with _lock:  # several threads may trace at once: the first patches, the last restores
        if not _active:
            _saved_call = nn.Module.__call__
            nn.Module.__call__ = _run_module  # type: ignore[method-assign, assignment]
        _active.append(recorder)
    try:
        with torch.no_grad(), quietly(), recorder:
            yield
    finally:
        with _lock:
            _active.remove(recorder)
            if not _active:
                nn.Module.__call__ = _saved_call  # type: ignore[method-assign]


def trace(
    model: nn.Module, inputs: Inputs, *, real: bool = False, training: bool = False, count: bool = False
) -> Trace:
    """Run `model` once and return the graph of what it did; the model itself is not touched.

    Meta tensors are tried first (no data, no memory); a forward that reads values is run on real ones.

    Args:
        model: any module.
        inputs: (args, kwargs) for its forward.
        real: do not even try meta tensors.
        training: in train mode, else in eval mode.
        count: count multiply-adds too.

    Raises:
        Exception: whatever the forward raises on these inputs.
    """
    if not real:
        try:
            return _trace(meta_copy(model), inputs, training, count, meta=True)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            if not needs_values(error):
                raise
    return _trace(copy_model(model), inputs, training, count, meta=False)


def _trace(model: nn.Module, inputs: Inputs, training: bool, count: bool, *, meta: bool) -> Trace:
    model.train(training)
    device = torch.device("meta") if meta else device_of(model)
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().to(device, copy=True))
    recorder = Recorder(model, meta)
    for index, (tensor, given) in enumerate(zip(tensors_in((args, kwargs)), tensors_in(inputs), strict=True)):
        recorder.placeholder(f"input_{index}", tensor).meta["zeros_and_ones"] = _is_mask(given)
    with watched_strides(model) as read, recording(recorder), recorder.costs if count else nullcontext():
        out = model(*args, **kwargs)
    recorder.finish(out)
    return Trace(
        recorder.graph,
        recorder.calls,
        model,
        (args, kwargs),
        real=not meta,
        macs=recorder.costs.total if count else 0,
        strides_read=frozenset(read),
    )


def _is_mask(tensor: Tensor) -> bool:
    """Whether an input holds zeros and ones, and both of them."""
    if tensor.is_meta or not tensor.is_floating_point():
        return False
    return bool(tensor.any()) and bool(((tensor == 0) | (tensor == 1)).all()) and not bool(tensor.all())


def needs_values(error: Exception) -> bool:
    """Whether a forward failed only because meta tensors have no values."""
    return isinstance(error, NotImplementedError) or _of_meta(error) or "data-dependent" in str(error).lower()


def _of_meta(error: Exception) -> bool:
    """Whether an error is about meta tensors: some ops say only that two tensors are not on the same device."""
    text = str(error).lower()
    return "meta" in text or "on same device" in text or "on the same device" in text
