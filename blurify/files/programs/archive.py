"""The parts of a `.pt2` file that are read: the graph and the header (JSON), and tensors (plain bytes)."""

from __future__ import annotations

import io
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blurify.errors import BlurifyError, one_line
from blurify.files.checkpoint import HEADER

_MAX_JSON = 2**28
_MAX_RECORDS = 1_000_000
_SPARE, _TIMES = 2**28, 8  # what tensors may take beyond the file: views share their bytes
_SCHEMA = 8
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
_SAVE = "open it where it was made and save it again, with torch.export.save of torch 2.9 or later"

DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool,
    13: torch.bfloat16,
}  # fmt: skip
"""What the numbers of dtypes mean in a program."""


@dataclass(frozen=True)
class Program:
    """What a file says, as data.

    Attributes:
        path: the file.
        graph: `graph_module` of the program: its calls, inputs and outputs.
        parameters: by name.
        buffers: by name, and constants.
        header: what blurify wrote, as far as the file is one of ours.
    """

    path: Path
    graph: dict[str, Any]
    parameters: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    header: dict[str, Any] | None = None


def is_program(path: Path) -> bool:
    """Whether a zip archive is a `.pt2` file, of today's form or of torch's first one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()[:_MAX_RECORDS]}
            format_name = next((n for n in archive.namelist() if n.endswith("/archive_format")), None)
            pt2 = format_name is not None and archive.getinfo(format_name).file_size < 16
            return "serialized_exported_program.json" in {*names, *archive.namelist()} or (
                pt2 and archive.read(str(format_name)) == b"pt2"
            )
    except Exception:  # zipfile meets hostile bytes with many kinds; whoever reads it next says what is wrong
        return False


def open_program(path: Path, content: bytes | None = None) -> Program:
    """Read a `.pt2` file.

    Args:
        path: the file.
        content: its bytes, where they are not what stands there.

    Raises:
        BlurifyError: it is damaged, holds no program, or something in it that would have to be run or unpickled.
    """
    try:
        with zipfile.ZipFile(path if content is None else io.BytesIO(content)) as archive:
            size = path.stat().st_size if content is None else len(content)
            return _Reader(path, archive, size).program()
    except BlurifyError:
        raise
    except OSError as error:
        raise BlurifyError(f"{path} can't be read: {error.strerror or one_line(error)}") from error
    except Exception as error:  # zipfile, json and torch meet hostile bytes with many kinds
        raise BlurifyError(f"{path} is damaged ({one_line(error)}): get or save it again") from error


class _Reader:
    """One open archive."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path = path
        self.archive = archive
        self.room = _TIMES * size + _SPARE
        infos = archive.infolist()
        if len(infos) > _MAX_RECORDS or len({info.filename for info in infos}) != len(infos):
            raise BlurifyError(f"{path} is damaged (two parts of one name): get or save it again")
        if any(info.filename == "serialized_exported_program.json" for info in infos):
            raise BlurifyError(f"{path} was written by torch before 2.9, with pickles in it: {_SAVE}, or add --trust")
        roots = {info.filename.partition("/")[0] for info in infos}
        if len(roots) != 1:
            raise BlurifyError(f"{path} is damaged (parts of several archives): get or save it again")
        self.root = f"{roots.pop()}/"
        self.names = {info.filename.removeprefix(self.root): info for info in infos}

    def program(self) -> Program:
        """All of it."""
        found = [n for n in self.names if n.startswith("models/") and n.endswith(".json")]
        if not found:
            if any(name.startswith("data/aotinductor/") for name in self.names):
                raise BlurifyError(
                    f"{self.path} holds compiled code (AOTInductor) and no program, which can't be converted: give the "
                    "model it was made from, or what torch.export.save writes of it"
                )
            raise BlurifyError(f"{self.path} holds no exported program: give what torch.export.save wrote")
        if len(found) > 1:
            raise BlurifyError(f"{self.path} holds {len(found)} programs: save the one that is meant, alone")
        name = found[0].removeprefix("models/").removesuffix(".json")
        if self._bytes("byteorder", 16) != b"little":
            raise BlurifyError(f"{self.path} was written on a machine with another order of bytes: {_SAVE}")
        said = self._json(found[0])
        version = said.get("schema_version", {}).get("major")
        if version != _SCHEMA:
            raise BlurifyError(f"{self.path} is of another version ({version!r}) of torch.export's format: {_SAVE}")
        graph = said["graph_module"]
        header = json.loads(self._bytes(f"extra/{HEADER}", _MAX_JSON)) if f"extra/{HEADER}" in self.names else None
        if header is not None and not isinstance(header, dict):
            raise BlurifyError(f"{self.path} carries a plan that can't be read")
        program = Program(self.path, graph, header=header)
        for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
            config = self._json(f"data/{kind}/{name}_{kind}_config.json")["config"]
            for fqn, entry in config.items():
                tensor = self._tensor(fqn, entry, f"data/{kind}/", prefix)
                wanted = kind == "weights" and entry.get("is_param")
                (program.parameters if wanted else program.buffers)[fqn] = tensor
        return program

    def _tensor(self, name: str, entry: dict[str, Any], folder: str, prefix: str) -> Tensor:
        """One tensor, as a view of the bytes that it is stored in."""
        if not _NAME.fullmatch(name):
            raise BlurifyError(f"{self.path} has a tensor of a name that can't be one ({ascii(name)[:80]})")
        part = entry["path_name"]
        if not re.fullmatch(rf"{prefix}[0-9]{{1,9}}", part):
            raise BlurifyError(
                f"{self.path} holds {name} as an object (TorchBind or Python), which would have to be run to be read: "
                "add --trust if you trust its author"
            )
        if entry.get("use_pickle"):
            raise BlurifyError(f"{self.path} holds {name} as a pickle: {_SAVE}, or add --trust if you trust its author")
        meta = entry["tensor_meta"]
        dtype = DTYPES.get(meta["dtype"])
        if dtype is None:
            raise BlurifyError(f"{name} in {self.path} is of a dtype that blurify does not read")
        sizes, strides = ([_whole(one) for one in meta[key]] for key in ("sizes", "strides"))
        offset = _whole(meta["storage_offset"])
        content = bytearray(self._bytes(folder + part, self.room))
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if 0 not in sizes and last >= flat.numel():
            raise BlurifyError(f"{name} in {self.path} is larger than what is stored of it")
        count = 1
        for one in sizes:
            count *= one
        self.room -= max(count * dtype.itemsize, len(content))
        if self.room < 0:
            raise BlurifyError(f"the tensors in {self.path} would take far more memory than the file")
        return flat.as_strided(sizes, strides, offset).clone(memory_format=torch.preserve_format)

    def _json(self, name: str) -> dict[str, Any]:
        found = json.loads(self._bytes(name, _MAX_JSON))
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no object")
        return found

    def _bytes(self, name: str, most: int) -> bytes:
        info = self.names.get(name)
        if info is None:
            raise BlurifyError(f"{self.path} has no {name}: {_SAVE}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > most or info.flag_bits & 1:
            raise BlurifyError(f"{self.path} was packed by another program than torch: unpack it and save it again")
        return self.archive.read(info)


def _whole(said: dict[str, Any]) -> int:
    """A size that is said as a number, and not as an expression."""
    value = said["as_int"]
    if type(value) is not int or not 0 <= value < 2**40:
        raise ValueError("a size that is no whole number")
    return value
