"""Run a model on many batches in lockstep: every batch waits before a layer, so that the layer can be changed once.

A refit of a layer wants all batches' inputs to it, as they are after every earlier refit. One forward of each batch
does for the whole model: each runs in a thread of its own that pauses where a watched module is called. Only one of
the threads runs at a time, in the order of the batches, so the result does not depend on timing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blurify.graph.structure import Inputs

Visit = Callable[[str, list[Tensor]], None]
"""Told (path of a watched module, its first input in each batch) before any batch goes through it."""


class _Abandoned(BaseException):
    """Ends a forward that nobody waits for any more; no `except Exception` of the model's catches it."""


@dataclass
class _Forward:
    """One batch under way."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    paused: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    at: str | None = None
    given: Tensor | None = None
    done: bool = False
    output: Any = None
    error: BaseException | None = None
    abandoned: bool = False


def in_lockstep(model: nn.Module, batches: Sequence[Inputs], watched: Iterable[str], visit: Visit) -> list[Any]:
    """Run a model on all batches, without gradients, and pause before each watched module.

    The inputs of all batches to the paused layer are in memory at once, with whatever their forwards still need.

    Args:
        model: run as it is; set its mode before.
        batches: what to call it with.
        watched: paths of modules whose first positional argument is a tensor.
        visit: may change the module; it is called again where the forward calls the module again, and once for each
            group where batches take different ways.

    Returns:
        what the model returned for each batch.
    """
    modules = dict(model.named_modules())
    running = threading.local()
    forwards = [_Forward() for _ in batches]

    def pause(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            forward: _Forward | None = getattr(running, "forward", None)
            if forward is None or not args or not isinstance(args[0], Tensor):
                return
            forward.at, forward.given = path, args[0]
            forward.paused.release()
            forward.turn.acquire()
            forward.at = forward.given = None
            if forward.abandoned:
                raise _Abandoned

        return hook

    def run(forward: _Forward, inputs: Inputs) -> None:
        forward.turn.acquire()
        running.forward = forward
        try:
            if not forward.abandoned:
                with torch.no_grad():
                    forward.output = model(*inputs[0], **inputs[1])
        except BaseException as error:
            forward.error = error
        forward.done = True
        forward.paused.release()

    def go_on(forward: _Forward) -> None:
        forward.turn.release()
        forward.paused.acquire()
        if forward.error is not None:
            raise forward.error

    threads = [
        threading.Thread(target=run, args=(forward, inputs), daemon=True, name=f"batch {index}")
        for index, (forward, inputs) in enumerate(zip(forwards, batches, strict=True))
    ]
    with contextlib.ExitStack() as stack:
        for path in watched:
            stack.callback(modules[path].register_forward_pre_hook(pause(path)).remove)
        stack.callback(_abandon, forwards, threads)
        for thread, forward in zip(threads, forwards, strict=True):
            thread.start()
            go_on(forward)
        while waiting := [forward for forward in forwards if not forward.done]:
            at = waiting[0].at
            assert at is not None
            here = [forward for forward in waiting if forward.at == at]
            visit(at, [forward.given for forward in here if forward.given is not None])
            for forward in here:
                go_on(forward)
    return [forward.output for forward in forwards]


def _abandon(forwards: list[_Forward], threads: list[threading.Thread]) -> None:
    """End what still waits, after an error."""
    for forward, thread in zip(forwards, threads, strict=True):
        if thread.is_alive() and not forward.done:
            forward.abandoned = True
            forward.turn.release()
            thread.join()
