"""`.onnx`: the converted model for other programs. Written, and never read: it is no model of PyTorch any more."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from blurify.errors import BlurifyError, one_line
from blurify.files import exporting
from blurify.files.checkpoint import HEADER, Checkpoint, Reading, Saved
from blurify.files.formats.base import Format

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = 2_000_000_000  # protobuf's limit is 2 GiB for the whole file


class OnnxFile(Format):
    """One self-contained file, compared with the model by onnxruntime before it is done; the plan is in its metadata.

    Weights of 2 GB and more are refused: ONNX keeps them in files beside, and one file is what was asked for.
    """

    name = "ONNX"
    suffixes = (".onnx",)
    opens_again = False

    def require(self) -> None:
        """Ask whether the packages are there.

        Raises:
            BlurifyError: one is not.
        """
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise BlurifyError(f"writing ONNX needs {' and '.join(missing)}: pip install 'blurify[onnx]'")

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the ending, or by the exporter's name at the beginning."""
        return path.suffix.lower() in self.suffixes or (start.startswith(b"\x08") and b"pytorch" in start[:24])

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """Refused. See `Format.read`."""
        raise BlurifyError(
            f"{path} is an ONNX model, which can't be converted: give the PyTorch model that it was exported from"
        )

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """Export, with sizes left open where the model allows. See `Format.put`."""
        self.require()
        model = saved.model
        size = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
        if size >= _MOST_BYTES:
            raise BlurifyError(
                f"the model's weights take {size / 1e9:.1f} GB, and one ONNX file holds less than 2: save it as .pt2"
            )
        exported, opened, note = exporting.program_of(saved)
        names: Any = exporting.by_parameter(model, tuple(own or None for own in opened)) if any(opened) else None
        with exporting.in_eval_mode(model), _quiet():
            try:
                program: Any = torch.onnx.export(exported, dynamo=True, verbose=False, dynamic_shapes=names)
            except Exception as error:  # of operators that ONNX does not have
                raise BlurifyError(
                    f"the {type(model).__name__} can't be written as ONNX ({one_line(error)}): save it as .pt2"
                ) from error
        if not saved.plain:
            program.model.metadata_props[HEADER] = json.dumps(saved.header)
        if note:
            saved.notes.append(note)
        file.write(program.model_proto.SerializeToString())

    def check(self, path: Path, saved: Saved) -> None:
        """Ask whether what was written computes what the model does, by onnxruntime.

        Args:
            path: what `put` wrote, by whatever name.
            saved: what it was given.

        Raises:
            BlurifyError: it does not, or the header is not in it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        held = session.get_modelmeta().custom_metadata_map.get(HEADER)
        if not saved.plain and json.loads(held or "null") != saved.header:
            raise BlurifyError(f"{path} lacks its plan after it was written: try again")
        arguments = session.get_inputs()
        opened = tuple({dim: "" for dim, n in enumerate(one.shape) if isinstance(n, str)} for one in arguments)

        def run(given: exporting.Inputs) -> list[torch.Tensor]:
            fed = {one.name: value.cpu().numpy() for one, value in zip(arguments, given, strict=True)}
            return [torch.as_tensor(out) for out in session.run(None, fed)]

        with exporting.in_eval_mode(saved.model):
            exporting.compare(
                saved.model, exporting.inputs_of(saved), opened, run, exporting.tolerance_of(saved.model, 1e-4)
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress, and logs what it tries."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
