"""`.pt2`: programs of `torch.export`, which run without the model's code and without blurify."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from blurify.errors import BlurifyError, one_line
from blurify.files import exporting, programs
from blurify.files.checkpoint import HEADER, Checkpoint, Reading, Saved
from blurify.files.formats.base import Format
from blurify.spec.plan import Plan


class Pt2File(Format):
    """The converted model as a program, with the plan in its extra files; read as modules again, not by torch's reader.

    A program of a converted model computes the converted model, but the plan's names are of the model that it was
    exported from: so it is neither converted again nor taken back.
    """

    name = "torch.export"
    suffixes = (".pt2",)
    opens_again = False

    def sniff(self, start: bytes, path: Path) -> bool:
        """By what is in the archive."""
        return start.startswith(b"PK") and programs.is_program(path)

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The program as modules. With `trust`, torch reads it first, and runs whatever it holds. See `Format.read`."""
        program = programs.open_program(path, _trusted(path) if reading.trust else None)
        model = programs.build(program)
        note = "an exported program, as modules again"
        if program.header is not None:
            plan = Plan.from_dict(_mapping(program.header.get("plan"), path))
            model.converted = (len(plan.converted), len(plan.sites))
            note = (
                f"an exported program of a model that was converted already ({len(plan.converted)} of "
                f"{len(plan.sites)} sites blurred)"
            )
        return Checkpoint(path, module=model, note=note)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """Export, with sizes left open where the model allows. See `Format.put`."""
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
            raise BlurifyError(f".pt2 files need torch 2.9 or later (this is {torch.__version__}): save it as .pt")
        program, _, note = exporting.program_of(saved)
        with exporting.in_eval_mode(saved.model), _quiet():
            extra = {} if saved.plain else {HEADER: json.dumps(saved.header)}
            content = io.BytesIO()
            try:
                torch.export.save(program, content, extra_files=extra)
            except Exception as error:  # of operators that can't be written down
                raise BlurifyError(
                    f"the {type(saved.model).__name__} can't be saved as a program ({one_line(error)}): save it as .pt"
                ) from error
        if note:
            saved.notes.append(note)
        file.write(content.getbuffer())

    def check(self, path: Path, saved: Saved) -> None:
        """Ask whether what was written computes what the model does, by torch's own reader.

        Args:
            path: what `put` wrote, by whatever name.
            saved: what it was given.

        Raises:
            BlurifyError: it does not, or the header is not in it.
        """
        extra: dict[str, Any] = {HEADER: ""}
        with _quiet(), path.open("rb") as file:
            program = torch.export.load(io.BytesIO(file.read()), extra_files=extra)
        if not saved.plain and json.loads(extra[HEADER] or "null") != saved.header:
            raise BlurifyError(f"{path} lacks its plan after it was written: try again")
        inputs = exporting.inputs_of(saved)
        run = program.module()
        users = {name for spec in program.graph_signature.user_inputs for name in [str(spec)]}
        values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
        opened = tuple(
            {dim: "" for dim, size in enumerate(value.shape) if isinstance(size, torch.SymInt)} for value in values
        )
        with exporting.in_eval_mode(saved.model):
            exporting.compare(
                saved.model, inputs, opened, lambda given: exporting.flat(run(*given)),
                exporting.tolerance_of(saved.model, 1e-5),
            )  # fmt: skip


def _trusted(path: Path) -> bytes:
    """The file as torch reads it, written anew: pickles and older forms are tensors and a graph then."""
    content = io.BytesIO()
    try:
        with _quiet(), path.open("rb") as file:
            torch.export.save(torch.export.load(io.BytesIO(file.read())), content)
            file.seek(0)
    except Exception as error:  # whatever runs there
        raise BlurifyError(f"torch can't read {path} either ({one_line(error)}): get or save it again") from error
    return content.getvalue()


def _mapping(plan: Any, path: Path) -> dict[str, Any]:
    if not isinstance(plan, dict):
        raise BlurifyError(f"{path} carries a plan that can't be read")
    return plan


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns that a buffer doesn't end in .pt2."""
    logger = logging.getLogger("torch.export.pt2_archive._package")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
