"""Bytes that a forward writes, and keeps for its backward: counted call by call, without data where that works.

Both are counts of storages. *Written* is what calls allocate for what they return, once each, when it is allocated: the
traffic of a forward, and not how much of it is alive at once (which Python decides, by what it still has a name for).
*Kept* is what autograd saves, each storage once, parameters and buffers left out. What a kernel uses inside, and lets
go of again, is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from blurify.graph.copies import copy_model, device_of, meta_copy
from blurify.graph.modes import DispatchMode
from blurify.graph.recorder import Key, Recorder, recording
from blurify.graph.structure import Inputs, map_tensors, tensors_in

Place = Key | str
"""Where a tensor comes from: the call that made it, or the name of an input."""


@dataclass(eq=False)
class Stored:
    """One storage of a forward.

    Attributes:
        bytes: its size.
        made_by: the call that allocated it; the name of an input; None where no call is known.
        kept_by: the calls that keep it for the backward.
        written: the forward allocated it; else it was there before.
    """

    bytes: int
    made_by: Place | None = None
    kept_by: set[Key | None] = field(default_factory=set)
    written: bool = False


@dataclass
class Memory:
    """The storages of one forward.

    Attributes:
        stored: all of them, but for parameters and buffers.
        values: the storage of what each call returned, and of each input.
    """

    stored: list[Stored] = field(default_factory=list)
    values: dict[Place, Stored] = field(default_factory=dict)

    @property
    def written(self) -> int:
        """The bytes that calls allocated."""
        return sum(one.bytes for one in self.stored if one.written)

    @property
    def kept(self) -> int:
        """The bytes that are kept for a backward."""
        return sum(one.bytes for one in self.stored if one.kept_by)


class _Counting(DispatchMode):
    """Sees every storage that is allocated, and is told of those that autograd saves.

    Args:
        own: tensors that are not counted.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()
        self.stored: dict[int, Stored] = {}
        self._alive: list[Any] = []  # an address is used again once its storage is gone
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self.made: list[Stored] = []
        self.kept: list[Stored] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tensors_in((args, kwargs)):
            self.of(tensor)
        known = len(self._alive)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            one = self.of(tensor)
            if one is not None and len(self._alive) > known:
                known += 1
                one.written = True
                self.made.append(one)
        return out

    def of(self, tensor: Tensor) -> Stored | None:
        """The storage of a tensor; None for parameters and buffers, and where there is none."""
        if tensor.layout != torch.strided:
            return None
        storage = tensor.untyped_storage()
        if storage._cdata in self._own:
            return None
        if storage._cdata not in self.stored:
            self.stored[storage._cdata] = Stored(storage.nbytes())
            self._alive.append(storage)
        return self.stored[storage._cdata]

    def keep(self, tensor: Tensor) -> Tensor:
        """A hook of `saved_tensors_hooks`."""
        one = self.of(tensor)
        if one is not None:
            self.kept.append(one)
        return tensor


def _as_on_cpu(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call on meta tensors; an attention by the kernel that the CPU would take: in one, and not step by step."""
    if func is F.scaled_dot_product_attention:
        given = dict(zip(_ATTENTION, args, strict=False)) | kwargs
        query, dropout = given["query"], given.get("dropout_p", 0.0)
        shapes = {given[name].shape[-1] for name in ("query", "key", "value")}
        if query.dim() == 4 and len(shapes) == 1 and not dropout and not given.get("enable_gqa"):
            with suppress(RuntimeError):
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query, given["key"], given["value"], 0.0, bool(given.get("is_causal")),
                    attn_mask=given.get("attn_mask"), scale=given.get("scale"),
                )[0]  # fmt: skip
    return func(*args, **kwargs)


_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class _Accountant(Recorder):
    """A recorder that also writes down, for each call, which storages it makes and keeps."""

    def __init__(self, model: nn.Module, meta: bool) -> None:
        super().__init__(model, meta, run=_as_on_cpu)
        self.counting = _Counting((*model.parameters(), *model.buffers()))
        self.values: dict[Place, Stored] = {}
        self._now: Node | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._now = None
        self.settle(None)  # what happened outside of torch calls
        out = super().__torch_function__(func, types, args, kwargs)
        self.settle(None if self._now is None else self._now.meta.get("key"))
        return out

    def settle(self, key: Key | None) -> None:
        """Put what was made and kept since the last time down to a call."""
        for one in self.counting.made:
            one.made_by = key
        for one in self.counting.kept:
            one.kept_by.add(key)
        self.counting.made.clear()
        self.counting.kept.clear()

    def _record(self, func: Callable[..., Any], args: Any, kwargs: Any, shape: tuple[int, ...] | None) -> Node:
        self._now = super()._record(func, args, kwargs, shape)
        return self._now

    def _keep(self, tensor: Tensor, node: Node) -> None:
        super()._keep(tensor, node)
        place = node.name if node.op == "placeholder" else node.meta.get("key")
        one = self.counting.of(tensor)
        if place is not None and one is not None:
            if node.op == "placeholder":
                one.made_by = place
            self.values[place] = one


def memory_of(model: nn.Module, inputs: Inputs, *, training: bool, kept: bool, real: bool = False) -> Memory:
    """Run a model once and say what its forward writes and keeps; the model itself is not touched.

    Args:
        model: any module; it runs without data, on the meta device.
        inputs: (args, kwargs) for its forward.
        training: in train mode, else in eval mode.
        kept: with gradients, as in a training step: without, nothing is kept.
        real: run on real tensors, for a forward that reads values.

    Raises:
        Exception: whatever the forward raises.
    """
    copy = copy_model(model) if real else meta_copy(model)
    copy.train(training)
    for parameter in copy.parameters() if kept else ():
        with suppress(RuntimeError):  # whole numbers
            parameter.requires_grad_(True)
    device = device_of(copy) if real else torch.device("meta")
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().to(device, copy=True))
    accountant = _Accountant(copy, not real)
    for index, tensor in enumerate(tensors_in((args, kwargs))):
        accountant.placeholder(f"input_{index}", tensor)
    hooks = torch.autograd.graph.saved_tensors_hooks(accountant.counting.keep, lambda tensor: tensor)
    with recording(accountant), accountant.counting, hooks, torch.set_grad_enabled(kept):
        copy(*args, **kwargs)
    accountant.settle(None)
    return Memory(list(accountant.counting.stored.values()), accountant.values)


@dataclass(frozen=True)
class LayerBytes:
    """What one layer costs by itself.

    Attributes:
        written: bytes that its forward allocates, in inference.
        output: the bytes of what it returns.
        kept: bytes that it keeps for its backward, but for its input and its output.
        keeps_input, keeps_output: whether it keeps these.
    """

    written: int
    output: int
    kept: int
    keeps_input: bool
    keeps_output: bool


_SMALL = ((1, 2), (1, 4), (2, 2))  # of one channel, a layer can't tell channels_last from NCHW


def bytes_of_layer(
    layer: nn.Module, run: Callable[[Tensor], Any], shape: tuple[int, ...], dtype: torch.dtype, channel: int
) -> LayerBytes:
    """Ask a layer: it runs on the CPU and is counted, with few samples and channels, by which all else grows.

    What it allocates may be a constant of the map's size (a window of frequencies), something a sample (which phase is
    the strongest), or something a sample and channel (the map itself).

    Args:
        layer: its parameters and buffers are not counted.
        run: runs it.
        shape: of what it reads, batch first.
        dtype: the same.
        channel: which dimension has the channels.
    """
    found = []
    for batch, channels in _SMALL:
        small = [channels if dim == channel else batch if dim == 0 else size for dim, size in enumerate(shape)]
        found.append(_asked(layer, run, torch.zeros(small, dtype=dtype, device="cpu")))
    batch = shape[0] if channel else 1
    counts = []
    for one, wider, more in zip(*((each.written, each.output, each.kept) for each in found), strict=True):
        each = (wider - one) / 2
        sample = more - one - 2 * each
        counts.append(round(one - sample - 2 * each + batch * (sample + shape[channel] * each)))
    written, output, kept = counts
    return LayerBytes(written, output, kept, found[0].keeps_input, found[0].keeps_output)


def _asked(layer: nn.Module, run: Callable[[Tensor], Any], x: Tensor) -> LayerBytes:
    """What a layer costs on this very map."""
    own = [*layer.parameters(), *layer.buffers()]
    with torch.no_grad(), _Counting(own) as counting:
        run(x)
    written = sum(one.bytes for one in counting.made)
    x.requires_grad_(True)
    counting = _Counting(own)
    hooks = torch.autograd.graph.saved_tensors_hooks(counting.keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks:
        out = tensors_in(run(x))[0]
    kept = {id(one): one for one in counting.kept}
    has_source, has_made = (kept.pop(id(counting.of(one)), None) is not None for one in (x, out))
    rest = sum(one.bytes for one in kept.values())
    return LayerBytes(written, out.numel() * out.element_size(), rest, has_source, has_made)
