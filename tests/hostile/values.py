"""Values that no model has: objects that pickle as hostile calls, and odd numbers, texts and structures."""

# ruff: noqa: E501  (tables of odd things)

from __future__ import annotations

import builtins
import functools
import importlib
import os
import subprocess
from collections import OrderedDict
from pathlib import Path
from random import Random
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn


class Call:
    """Pickles as `function(*args)` with a state, items to append and items to set."""

    def __init__(self, function: Any, args: tuple[Any, ...], *more: Any) -> None:
        self.call = (function, args, *more)

    def __reduce__(self) -> Any:
        return self.call


def commands(marker: Path) -> list[Any]:
    """Calls that leave a trace where they run."""
    text = f"touch {marker / 'ran'}"
    return [
        Call(os.system, (text,)),
        Call(subprocess.check_output, (["touch", str(marker / "ran")],)),
        Call(subprocess.Popen, (["touch", str(marker / "ran")],)),
        Call(eval, (f"open({str(marker / 'ran')!r}, 'w')",)),
        Call(exec, (f"open({str(marker / 'ran')!r}, 'w')",)),
        Call(open, (str(marker / "ran"), "w")),
        Call(Path.touch, (marker / "ran",)),
        Call(importlib.import_module, ("antigravity",)),
        Call(builtins.__import__, ("os",)),
        Call(torch.save, (1, str(marker / "ran"))),
        Call(torch.load, (str(marker / "ran"),)),
        Call(torch.from_file, (str(marker / "ran"), True, 8)),
        Call(torch.hub.load, ("nobody/nothing", "x")),
        Call(torch.hub.load_state_dict_from_url, ("https://localhost:9/x.pth",)),
        Call(torch.jit.load, (str(marker / "ran"),)),
        Call(timm.create_model, ("test_resnet", True)),
        Call(functools.partial(os.system, text), ()),
        Call(functools.reduce, (getattr, ["__class__"], nn.ReLU())),
        Call(getattr, (os, "system")),
        Call(nn.Module.load_state_dict, (nn.ReLU(), {})),
        Call(nn.ModuleDict, ({"a": nn.ReLU()},)),
        Call(torch.Tensor, (10**11,)),
        Call(torch.UntypedStorage, (10**11,)),
        Call(bytearray, (10**11,)),
        Call(range, (10**11,)),
        Call(list, (range(10**10),)),
        Call(str.join, ("x" * 100, ["y"] * 100)),
    ]


def callables() -> list[Any]:
    """Functions, methods and partials that stand as values."""
    return [
        os.system,
        eval,
        getattr,
        setattr,
        torch.load,
        torch.compile,
        torch.hub.load,
        F.relu,
        F.linear,
        nn.Linear,
        nn.Conv2d,
        nn.ParameterDict,
        timm.create_model,
        timm.layers.Mlp,
        functools.partial(nn.LayerNorm, eps=1e-6),
        functools.partial(nn.LayerNorm, os.system),
        functools.partial(F.relu),
        functools.partial(os.system, "true"),
        functools.partial(functools.partial, os.system),
        nn.ReLU().forward,
        nn.Conv2d(1, 1, 1).compile,
        nn.Sequential(nn.ReLU()).apply,
        torch.relu,
        torch.ones(2).backward,
        Path("x"),
        nn.ParameterDict(),
    ]


def plain(random: Random) -> Any:
    """An odd number, text or structure."""
    shared: Any = ()
    for _ in range(random.randrange(1, 60)):
        shared = (shared, shared)
    key: Any = ()
    for _ in range(random.randrange(1, 14)):  # a key is hashed, branch by branch
        key = (key, key)
    deep: Any = None
    for _ in range(random.choice((5, 90, 150, 400))):
        deep = random.choice(((deep,), [deep], {"a": deep}))
    return random.choice(
        [
            None, True, False, 0, 1, -1, 2, 3, 7, 10**3, 10**6, 10**9, 2**31, 2**63, 2**64, 10**400, -(10**9), 0.0, -0.5,
            float("nan"), float("inf"), 1e308, 1 + 2j, "", "x", "reflect", "valid", "same", "\x00", "\x1b[31m\x1b]0;x\x07",
            "[red]x[/]", "[/nothing]", "a.b", "../../x", "/etc/passwd", "é" * 100, "x" * 10**5, b"", b"\xff" * 100, (), [],
            {}, set(), (0,), (1, 1), (10**9, 10**9), [1, 2, 3], {"a": 1}, {1: 2}, frozenset({1}), slice(None), range(10**9),
            OrderedDict(a=1), torch.float16, torch.Size([1, -1]), torch.device("cuda:9"), torch.zeros(0), torch.zeros(()),
            torch.zeros(1, 3, 4, 4), torch.ones(5, dtype=torch.int64), torch.full((4,), float("nan")), nn.ReLU(),
            nn.Sequential(), nn.Linear(1, 1), nn.Parameter(torch.ones(1)), shared, deep, {key: 1},
        ]
    )  # fmt: skip


NAMES = (
    "__class__ __dict__ __deepcopy__ __copy__ __reduce__ __reduce_ex__ __setstate__ __getstate__ __getattr__ __call__ "
    "__del__ __init__ __repr__ __torch_function__ forward eval train named_modules children _call_impl to apply "
    "_compiled_call_impl _apply state_dict load_state_dict training _parameters _buffers _modules _forward_hooks "
    "_forward_pre_hooks _state_dict_hooks _load_state_dict_pre_hooks _non_persistent_buffers_set _version "
    "_blurify_plan _blurify_proof _blurify_changes _blurify_base _blurify_forward _backward_hooks stride kernel_size "
    "padding dilation groups weight bias in_channels out_channels num_features eps momentum inplace affine "
    "ceil_mode output_size p normalized_shape num_groups start_dim end_dim in_features padding_mode "
    "output_padding transposed _reversed_padding_repeated_twice track_running_stats act drop "
    "pretrained_cfg default_cfg x a.b 0"
).split()

HOSTILE_GLOBALS = (
    "os system|posix system|subprocess Popen|builtins eval|builtins exec|builtins getattr|builtins open|nt system|"
    "importlib import_module|functools partial|functools reduce|operator attrgetter|operator methodcaller|copyreg "
    "_reconstructor|copyreg __newobj__|torch load|torch.hub load|torch.jit load|torch._utils _rebuild_qtensor|"
    "torch._utils _rebuild_sparse_tensor|torch.fx.graph_module reduce_graph_module|torch.nn.modules.module Module|"
    "torch.nn.modules.container ParameterDict|timm.models create_model|timm.models._features_fx GraphExtractNet|"
    "torchvision.ops.roi_align lazy_compile|blurify.nn.edited edited_instance|blurify.nn.legacy rewritten_instance|"
    "blurify.nn.calls BlurredMaxPool|blurify.files.checkpoints save|blurify.cli main|numpy.core.multiarray "
    "_reconstruct|numpy load|codecs decode|_codecs encode|torch.storage _load_from_bytes|torch.serialization "
    "_get_layout|torch Size|torch device|torch.package package_importer|torch.distributed init_process_group|"
    "torch.ops load_library|torch._dynamo.eval_frame OptimizedModule|__main__ Net|no.such.package Net|a\nb c| |.. ..|"
    "torch.nn.modules.conv Conv2d|collections OrderedDict|torch.nn.modules.activation ReLU"
).split("|")
