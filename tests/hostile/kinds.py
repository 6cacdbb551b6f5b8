"""The kinds of hostile files: each a function that makes one from random choices."""

# ruff: noqa: E501  (tables of odd things)

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn

import blurify
from hostile import templates, values


class Made(NamedTuple):
    """A hostile file, not written yet.

    Attributes:
        name: how it is to be called.
        content: its bytes.
        arch: what `--arch` is to say, '' where nothing.
    """

    name: str
    content: bytes
    arch: str = ""


def _of(name: str, content: bytes) -> Made:
    return Made(name, content, templates.ARCH if templates.needs_arch(name) else "")


def some_bytes(random: Random, marker: Path) -> Made:
    """A good file with some bytes changed, cut, doubled or put in."""
    name, content = random.choice(sorted(templates.files().items()))
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5, 20))):
        # Half of the changes go where the structure is.
        end = len(data) if random.random() < 0.5 else min(len(data), 3000)
        place = random.randrange(end) if random.random() < 0.8 else max(0, len(data) - random.randrange(1, 700))
        match random.randrange(6):
            case 0 | 1:
                data[place] ^= 1 << random.randrange(8)
            case 2:
                data[place] = random.randrange(256)
            case 3:
                del data[place : place + random.randrange(1, 64)]
            case 4:
                data[place:place] = bytes(random.randrange(256) for _ in range(random.randrange(1, 64)))
            case 5:
                del data[place:]
        if not data:
            data = bytearray(b"\x80")
    return _of(name, bytes(data))


def _operations(pickled: bytes) -> list[bytes]:
    places = [position for _, _, position in pickletools.genops(pickled) if position is not None]
    return [pickled[a:b] for a, b in zip(places, [*places[1:], len(pickled)], strict=True)]


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _odd_operation(random: Random, marker: Path) -> bytes:
    module, _, name = random.choice(values.HOSTILE_GLOBALS).partition(" ")
    command = f"touch {marker / 'ran'}"
    return random.choice(
        [
            f"c{module}\n{name}\n".encode(),
            f"c{module}\n{name}\n".encode() + _text(command) + b"\x85R",
            f"c{module}\n{name}\n".encode() + b")\x81",
            f"c{module}\n{name}\n".encode() + b")\x81}b",
            f"(S'{command}'\ni{module}\n{name}\n".encode(),
            f"(c{module}\n{name}\n".encode() + _text(command) + b"o",
            _text(module) + _text(name) + b"\x93",
            b"R", b"b", b"\x81", b"\x92", b"o", b"Q", b"P0\n", b"(", b"0", b"1", b"2", b"a", b"e", b"s", b"u", b"t", b"l", b"d",
            b"\x85", b"\x86", b"\x87", b"}", b"]", b")", b"N", b"\x88", b"\x89", b"\x8f", b"\x90", b"\x91", b"\x94", b"\x97",
            b"\x98", b"h\x00", b"h\xff", b"j\xff\xff\xff\xff", b"q\x00", b"r\xff\xff\xff\x7f", b"\x82\x01", b"\x83\x01\x01",
            b"\x84\x01\x01\x01\x01", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\x7f" * 9, b"\x8b\xff\xff\xff\x7f",
            b"\x8b" + (3000).to_bytes(4, "little") + b"\x01" * 3000, b"I" + b"9" * 5000 + b"\n", b"L9L\n", b"F1e999\n",
            b"G\x7f\xf0\0\0\0\0\0\0", b"X\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x7f" * 8,
            b"\x96" + b"\x7f" * 8, b"\x95" + b"\xff" * 8, b"X\x02\0\0\0\xff\xfe", b"\x80\x05", b"\x80\x00", b"\x80\xff", b".",
            b"V\\ud800\n", b"S'x'\n", b"\x00", b"\xff",
        ]
    )  # fmt: skip


def operations(random: Random, marker: Path) -> Made:
    """A good pickle with operations taken out, doubled, swapped or put in, in a good archive."""
    name = random.choice(["module.pt", "resnet.pt", "weights.pt", "protocol4.pt", "converted.pt", "planned.pt"])
    archive = templates.files()[name]
    ops = _operations(templates.pickle_in(archive))
    for _ in range(random.choice((1, 1, 2, 4))):
        place = random.randrange(1, len(ops))
        match random.randrange(6):
            case 0:
                del ops[place]
            case 1:
                ops.insert(place, ops[place])
            case 2:
                other = random.randrange(1, len(ops))
                ops[place], ops[other] = ops[other], ops[place]
            case 3 | 4:
                ops.insert(place, _odd_operation(random, marker))
            case 5:
                named = [number for number, op in enumerate(ops) if op[:1] == b"c"]
                if named:
                    module, _, function = random.choice(values.HOSTILE_GLOBALS).partition(" ")
                    ops[random.choice(named)] = f"c{module}\n{function}\n".encode()
        if len(ops) < 2:
            break
    return _of(name, templates.with_pickle(archive, b"".join(ops)))


def programs(random: Random, marker: Path) -> Made:
    """A pickle of random operations."""
    ops = [_odd_operation(random, marker) for _ in range(random.randrange(1, 40))]
    content = b"\x80" + bytes([random.choice((0, 1, 2, 3, 4, 5))]) + b"".join(ops) + random.choice((b".", b".", b""))
    if random.random() < 0.2:
        return Made("x.pt", content)
    return Made("x.pt", templates.with_pickle(templates.files()["module.pt"], content))


def nesting(random: Random, marker: Path) -> Made:
    """Structures that are too deep, or that double at every level."""
    depth = random.choice((30, 60, 99, 101, 500, 3000, 100_000))
    program = random.choice(
        [
            b"N" + b"\x85" * depth,
            b"]" * depth + b"a" * (depth - 1),
            b"}" + b"".join(b"N}" for _ in range(depth)) + b"s" * depth,
            b"N" + b"2\x86" * min(depth, 500),
            b"}N" + b"2\x86" * min(depth, 500) + b"Ns",
            b"\x8fN" + b"2\x86" * min(depth, 500) + b"(0\x90",
            b"]q\x00h\x00a",
            b"}q\x00" + _text("a") + b"h\x00s",
            b"(" * depth + b"t" * depth,
            b"ctorch\nSize\n" * min(depth, 500) + (b"\x85R" * min(depth, 499)),
        ]
    )
    if random.random() < 0.5:  # as an attribute of a module, and as a state_dict with a module in it
        model = templates.small_model()
        inner: Any = model
        for _ in range(min(depth, 150)):
            inner = random.choice((nn.Sequential(inner), nn.ModuleDict({"a": inner}), nn.Sequential(inner, inner)))
            if random.random() < 0.01:
                inner.again = [inner]
        return Made("x.pt", templates.saved(inner))
    return Made("x.pt", templates.with_pickle(templates.files()["module.pt"], b"\x80\x02" + program + b"."))


def calls(random: Random, marker: Path) -> Made:
    """A hostile call somewhere in a model or beside its weights."""
    call = random.choice(values.commands(marker))
    if random.random() < 0.3:
        call = values.Call(random.choice(values.callables()), tuple(_value(random) for _ in range(random.randrange(3))))
    model = deepcopy(templates.models()["small"])
    module = random.choice(list(model.modules()))
    match random.randrange(7):
        case 0:
            content: Any = call
        case 1:
            content = {"state_dict": model.state_dict(), "args": call}
        case 2:
            content = {"state_dict": {**model.state_dict(), "x": call}}
        case 3:
            module.__dict__[random.choice(values.NAMES)] = call
            content = model
        case 4:
            module.__dict__[random.choice(("_modules", "_parameters", "_buffers"))][random.choice(values.NAMES)] = call
            content = model
        case 5:
            module.__dict__["_forward_hooks"] = OrderedDict({0: call})
            content = model
        case _:
            content = values.Call(
                torch._utils._rebuild_parameter_with_state, (torch.ones(1), True, OrderedDict(), call)
            )
            content = {"weight": content}
    return _saved(random, content)


def _saved(random: Random, content: Any) -> Made:
    options: dict[str, Any] = random.choice(({}, {}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}))
    arch = random.choice(("", templates.ARCH)) if isinstance(content, dict) else ""
    return Made("x.pt", templates.saved(content, **options), arch)


def _value(random: Random) -> Any:
    return random.choice(values.callables()) if random.random() < 0.3 else values.plain(random)


def states(random: Random, marker: Path) -> Made:
    """A module with a name or a value in its state that is not its own."""
    model = deepcopy(templates.models()[random.choice(("small", "resnet", "recurrent"))])
    for _ in range(random.choice((1, 1, 2))):
        module = random.choice(list(model.modules()))
        where = random.choice(("", "", "", "_modules", "_parameters", "_buffers"))
        target = module.__dict__[where] if where and isinstance(module.__dict__.get(where), dict) else module.__dict__
        name = random.choice(values.NAMES) if random.random() < 0.7 else random.choice(list(target) or ["x"])
        target[name] = _value(random)
    return _saved(random, model)


def settings(random: Random, marker: Path) -> Made:
    """A module whose own settings are numbers that no layer has."""
    model = deepcopy(templates.models()[random.choice(("small", "resnet", "recurrent"))])
    for _ in range(random.choice((1, 1, 1, 3))):
        module = random.choice(list(model.modules()))
        own = [key for key in vars(module) if not key.startswith("_") and key != "training"]
        if own:
            old = vars(module)[random.choice(own)]
            odd = random.choice((0, -1, 1, 2, 5, 10**5, 10**9, 2**40, 2**63, float("nan"), None, "x", True, [], (1,)))
            value = tuple(odd for _ in old) if isinstance(old, tuple) and random.random() < 0.7 else odd
            module.__dict__[random.choice(own)] = value
    return _saved(random, model)


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Conv2d(4, 4, 3, groups=2),
    lambda: nn.ConvTranspose2d(4, 4, 3, 2),
    lambda: nn.MaxPool2d(3, 2, 1),
    lambda: nn.AvgPool2d(3, 2, 1),
    lambda: nn.LPPool2d(2, 3, 2),
    lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5),
    lambda: nn.AdaptiveMaxPool2d(3),
    lambda: nn.MaxUnpool2d(2),
    lambda: nn.Unfold(3, stride=2),
    lambda: nn.Fold((4, 4), 2),
    lambda: nn.PixelShuffle(2),
    lambda: nn.PixelUnshuffle(2),
    lambda: nn.ChannelShuffle(2),
    lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    lambda: nn.ReflectionPad2d(1),
    lambda: nn.CircularPad2d(1),
    lambda: nn.ConstantPad2d(1, 0.0),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.GroupNorm(2, 4),
    lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    lambda: nn.LocalResponseNorm(2),
    lambda: nn.CrossMapLRN2d(2),
    lambda: nn.LayerNorm(16),
    lambda: nn.RMSNorm(16),
    lambda: nn.PReLU(4),
    lambda: nn.Bilinear(16, 16, 2),
    lambda: nn.Linear(16, 4),
    lambda: nn.LSTM(16, 4, 2),
    lambda: nn.GRU(16, 4, bidirectional=True),
    lambda: nn.MultiheadAttention(16, 2),
    lambda: nn.TransformerEncoderLayer(16, 2, 8),
    lambda: nn.Embedding(10, 4),
    lambda: nn.EmbeddingBag(10, 4),
    lambda: nn.Unflatten(1, (2, 2)),
    lambda: nn.Softmax2d(),
    lambda: nn.GLU(1),
    lambda: nn.Threshold(0.1, 0.0),
    lambda: blurify.BlurPool2d(2),
    lambda: blurify.nn.pools.MaxBlurPool2d(3, 2, 1),
    lambda: blurify.nn.pools.AvgBlurPool2d(2, 2),
    lambda: timm.layers.EcaModule(4),
    lambda: timm.layers.SEModule(4),
    lambda: timm.layers.BlurPool2d(4),
    lambda: timm.layers.AttentionPool2d(4, feat_size=16),
    lambda: timm.layers.SelectAdaptivePool2d(),
    lambda: torchvision.ops.DeformConv2d(4, 4, 3),
    lambda: torchvision.ops.DropBlock2d(0.1, 3),
    lambda: torchvision.ops.FrozenBatchNorm2d(4),
    lambda: torchvision.ops.StochasticDepth(0.1, "row"),
)


def layers(random: Random, marker: Path) -> Made:
    """A layer of any kind, with settings and parameters of other sizes than its own, behind a convolution."""
    layer = random.choice(LAYERS)().eval()
    for module in layer.modules():
        tensors = [(group, name) for group in ("_parameters", "_buffers") for name in module.__dict__[group]]
        for group, name in tensors:
            old = module.__dict__[group][name]
            if old is not None and random.random() < 0.5:
                size = tuple(
                    random.choice((0, 1, 2, 3, 4, 16, 1000)) for _ in range(random.choice((old.dim(), old.dim(), 1)))
                )
                new = torch.randn(size) if old.is_floating_point() else torch.zeros(size, dtype=old.dtype)
                module.__dict__[group][name] = nn.Parameter(new) if group == "_parameters" else new
        own = [
            key
            for key, value in vars(module).items()
            if not key.startswith("_") and isinstance(value, int | float | tuple)
        ]
        for key in own:
            if key != "training" and random.random() < 0.3:
                old = vars(module)[key]
                odd = random.choice((0, -1, 1, 2, 3, 7, 64, 10**4, 2**31 - 1, 2**31, 2**62, 0.0, -0.5, 1e30))
                module.__dict__[key] = tuple(odd for _ in old) if isinstance(old, tuple) else odd
    stem = nn.Conv2d(3, 4, 3, random.choice((1, 2)), 1)
    pool = nn.AdaptiveAvgPool2d(16)
    return _saved(random, nn.Sequential(stem, nn.ReLU(), nn.MaxPool2d(2), pool, layer).eval())


def archives(random: Random, marker: Path) -> Made:
    """The archive itself: its directory, its headers, its entries."""
    name = random.choice(["module.pt", "weights.pt", "converted.pt", "planned.pt"])
    content = templates.files()[name]
    match random.randrange(10):
        case 0:  # a field of a record
            data = bytearray(content)
            mark = random.choice((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"))
            places = [place for place in range(len(data) - 4) if data[place : place + 4] == mark]
            place = random.choice(places) + 4 + 2 * random.randrange(20)
            data[place : place + 2] = random.choice((b"\xff\xff", b"\0\0", b"\1\0", b"\x08\0", b"\0\x80", b"\x01\x08"))
            return _of(name, bytes(data[: len(content)]))
        case 1:
            return _of(name, random.choice((b"x", b"PK\x03\x04", content, bytes(100))) + content)
        case 2:
            other = templates.files()[random.choice(["module.pt", "weights.pt"])]
            return _of(name, content + random.choice((b"x", bytes(22), other, content[-22:], content[-400:])))
        case 3:
            packed = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            buffer = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", packed) as new:
                for info in old.infolist():
                    new.writestr(zipfile.ZipInfo(info.filename), old.read(info), packed)  # not the time of day
            return _of(name, buffer.getvalue())
        case 4:  # a bomb
            buffer = io.BytesIO()
            part = "x/" + random.choice(("data.pkl", "data/0", "byteorder", "version"))
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new, new.open(part, "w") as entry:
                for _ in range(64):
                    entry.write(bytes(2**20))
            return Made("x.pt", buffer.getvalue())
        case 5:  # without an entry, or with another name for it
            gone = random.choice(("data.pkl", "data/0", "data/1", "byteorder", "version"))
            return _of(name, templates.with_entries(content, lambda n, c: None if n.endswith(gone) else c))
        case 6:  # a storage of another size, another order of bytes
            part = random.choice(("data/0", "data/1", "byteorder", "version", "data.pkl", ".format_version"))
            odd = random.choice((b"", b"x", b"big", b"middle", bytes(3), bytes(10**5)))
            return _of(name, templates.with_entries(content, lambda n, c: odd if n.endswith(part) else c))
        case 7:  # more entries
            buffer = io.BytesIO(content)
            with zipfile.ZipFile(buffer, "a") as more:
                part = random.choice(("x", "../x", "/x", "a\\b", "a\0b", "x/constants.pkl", "y/data.pkl"))
                more.writestr(zipfile.ZipInfo(part), b"x")
            return _of(name, buffer.getvalue())
        case 8:  # written by Python with a comment, or with a link among the entries
            buffer = io.BytesIO(templates.with_entries(content, lambda n, c: c))
            with zipfile.ZipFile(buffer, "a") as more:
                if random.random() < 0.5:
                    more.comment = b"x" * random.randrange(1, 60000)
                else:
                    info = zipfile.ZipInfo("x/data/9")
                    info.external_attr = 0o120777 << 16
                    more.writestr(info, "/etc/passwd")
            return _of(name, buffer.getvalue())
        case _:
            return _of(name, content[: random.randrange(len(content))])


def tensors(random: Random, marker: Path) -> Made:
    """Tensors whose size, strides, place or kind is not that of what is stored."""
    numbers = (0, 1, 2, 3, 9, 10, 11, 100, -1, 2**31, 2**62, 2**63, 2**64, 10**12, True, 1.0, None, "1")

    def count() -> Any:
        return random.choice(numbers) if random.random() < 0.6 else random.randrange(5)

    rank = random.choice((0, 1, 1, 2, 4, 40, 100))
    size, stride = tuple(count() for _ in range(rank)), tuple(count() for _ in range(random.choice((rank, rank, 1))))
    kind = random.choice((torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8))
    stored = torch.ones(10, dtype=kind).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=stored, dtype=kind, _internal=True)
    hooks = random.choice((OrderedDict(), OrderedDict(), None, {1: 2}, [], "x"))
    grad = random.choice((False, True, 1, None))
    utils = torch._utils
    made = random.choice(
        [
            values.Call(utils._rebuild_tensor_v2, (typed, count(), size, stride, grad, hooks)),
            values.Call(utils._rebuild_tensor_v2, (typed, 0, size, stride, grad, hooks, {"conj": True, "x": 1})),
            values.Call(
                utils._rebuild_tensor_v3, (stored, count(), size, stride, grad, hooks, random.choice((kind, "x")))
            ),
            values.Call(utils._rebuild_tensor, (typed, count(), size, stride)),
            values.Call(utils._rebuild_meta_tensor_no_storage, (kind, size, stride, grad)),
            values.Call(utils._rebuild_parameter, (_value(random), grad, hooks)),
            values.Call(utils._rebuild_parameter_with_state, (torch.ones(2), grad, hooks, _value(random))),
            values.Call(torch._tensor._rebuild_from_type_v2, (utils._rebuild_tensor_v2, torch.Tensor, (typed,), {})),
            values.Call(
                torch._tensor._rebuild_from_type_v2,
                (random.choice(values.callables()), torch.Tensor, (typed, 0, (1,), (1,)), _value(random)),
            ),
            values.Call(utils._rebuild_sparse_tensor, (torch.sparse_coo, (torch.ones(1, 1), torch.ones(1), (2,)))),
            values.Call(
                utils._rebuild_qtensor, (typed, 0, size, stride, (torch.per_tensor_affine, 0.1, 0), grad, hooks)
            ),
            torch.zeros(1).expand(10**9),
        ]
    )
    if random.random() < 0.4:
        model = deepcopy(templates.models()["small"])
        model[0].__dict__[random.choice(("_parameters", "_buffers"))][random.choice(("weight", "bias", "x"))] = made
        return _saved(random, model)
    if random.random() < 0.3:
        weights = dict(templates.models()["resnet"].state_dict())
        return _saved(random, {**weights, random.choice(list(weights)): made})
    return _saved(random, {"weight": made})


def safetensors(random: Random, marker: Path) -> Made:
    """The header of a safetensors file."""
    name = random.choice(["planned.safetensors", "weights.safetensors"])
    content = templates.files()[name]
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    entry = header[random.choice(list(header))]
    odd = random.choice(
        (0, -1, 2**40, 2**63, 2**64, 1.5, None, "x", [], [0], [0, 2**62], [2**62, 2**62], [-1, 5], {}, True)
    )
    match random.randrange(8):
        case 0 | 1 | 2:
            entry[random.choice(("dtype", "shape", "data_offsets", "x"))] = odd
        case 3:
            header[random.choice(("x", "", "__metadata__", "a" * 10**5))] = odd
        case 4:
            header["__metadata__"] = random.choice(
                ({"blurify": "x"}, {"blurify": "[" * 10**5}, {"blurify": "{}"}, {"a": 1})
            )
        case 5:
            raw = random.choice((b"[" * 10**5, b'{"a":' * 10**4, b"{}", b"", b'{"a":1', b"\xff" * 50, b'{"a":1,"a":2}'))
            return _of(name, len(raw).to_bytes(8, "little") + raw + data)
        case 6:
            wrong = random.choice((0, 1, length - 1, length + 8, 2**31, 2**63, 2**64 - 1))
            return _of(name, wrong.to_bytes(8, "little") + content[8:])
        case _:
            return _of(name, content[: random.randrange(len(content))])
    raw = json.dumps(header).encode()
    return _of(name, len(raw).to_bytes(8, "little") + raw + data)


ODD = (
    0, -1, 1, 2, 10**9, 2**63, 2**70, 1.5, float("nan"), float("inf"), None, True, "", "x", "blur", "forward", "__class__", "import",
    "__import__('os').system('touch ran')", "conv1", "layer1.0", "a.b", "\x1b[31m", "[/x]", "*", "[", "x" * 10**5, [], {}, [1], [0, 0],
    [10**9, 10**9], ["a"], [[1]], [1.0] * 10**5, {"kind": "taps", "taps": []}, {"edit": "Rewrite"},
    "python:os:getcwd", "timm/hf-hub:a/b", "timm/local-dir:/tmp", "timm/test_resnet?checkpoint_path=x",
    "timm/test_resnet?num_classes=1000000000", "timm/test_resnet?in_chans=100000000", "torchvision/resnet18:x",
    "timm/nosuch", "timm/", "torchvision/?", "x", "timm/test_vit", "timm/test_resnet?depth=9&x",
)  # fmt: skip


def plans(random: Random, marker: Path) -> Made:
    """What a file says of a conversion: the plan, the recipe, the edits, where the model comes from."""
    model, header = templates.converted()
    header = deepcopy(header)
    for _ in range(random.choice((1, 1, 2, 6))):
        _change(random, header)
    form = random.randrange(3)
    if form == 2:
        carried = deepcopy(model)
        carried.__dict__["_blurify_plan"] = header.get("plan")
        if random.random() < 0.2:
            carried.__dict__["_blurify_proof"] = random.choice(ODD)
        return Made("x.pt", templates.saved(carried))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if form == 1:
        return Made("x.pt", templates.saved({"state_dict": weights, "blurify": header}))
    text = json.dumps({**header, "shared": random.choice(({}, {}, {"x": "conv1.weight"}, {"x": "y"}, [], None))})
    return Made("x.safetensors", templates.safetensors_bytes(weights, {"blurify": text}))


def _change(random: Random, value: Any) -> None:
    """Change one place in plain data."""
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        places += [(one, key) for key in keys]
        waiting += [one[key] for key in keys if isinstance(one[key], dict | list)]
    if not places:
        return
    target, key = random.choice(places)
    match random.randrange(6):
        case 0 if isinstance(target, dict):
            del target[key]
        case 1 if isinstance(target, dict):
            target[random.choice(("x", "__class__", "format"))] = random.choice(ODD)
        case 2 if isinstance(target, list):
            target.append(deepcopy(target[key]))
        case 3:  # what stands elsewhere
            other, place = random.choice(places)
            target[key] = deepcopy(other[place])
        case _:
            target[key] = deepcopy(random.choice(ODD))


def endings(random: Random, marker: Path) -> Made:
    """Something else under the name of a checkpoint."""
    content = random.choice(
        [b"", b"\x80", b"PK", b"PK\x03\x04", b"\x80\x02.", b"hello\n" * 50, bytes(1000), b"\x89HDF\r\n\x1a\n" + bytes(100),
         b"\x1f\x8b\x08" + bytes(50), b"{}", b"(" * 10**5, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", b"ustar".rjust(262) * 2,
         b"#!/bin/sh\ntouch ran\n", b"RIFF" + bytes(40), struct.pack("<Q", 2**40) + b"{" + bytes(40)]
    )  # fmt: skip
    return Made(
        random.choice(("x.pt", "x.pth", "x.safetensors", "x.bin", "x", "x.onnx")),
        content,
        random.choice(("", templates.ARCH)),
    )


KINDS: dict[str, Callable[[Random, Path], Made]] = {
    kind.__name__: kind
    for kind in (
        some_bytes, operations, programs, nesting, calls, states, settings, layers, archives, tensors, safetensors, plans, endings
    )
}  # fmt: skip
ORDER = tuple(KINDS)


def make(seed: int, marker: Path) -> tuple[str, Made]:
    """The hostile file of a number: its kind and itself."""
    kind = ORDER[seed % len(ORDER)]
    random = Random(seed)
    torch.manual_seed(seed)
    while True:
        try:
            return kind, KINDS[kind](random, marker)
        except Exception:  # what is too odd to be pickled at all
            continue
