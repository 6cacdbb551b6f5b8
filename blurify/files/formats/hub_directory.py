"""Directories as the Hugging Face hub keeps them: `config.json`, and the weights beside it."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from blurify.errors import BlurifyError
from blurify.files import atomic, formats
from blurify.files.checkpoint import Checkpoint, Reading, Saved
from blurify.files.formats.base import Format
from blurify.files.formats.refusals import CHECKPOINTS
from blurify.files.formats.safetensors_file import Safetensors
from blurify.files.model_card import model_card
from blurify.files.sources import configs
from blurify.surgery.marking import FORMAT, mark_of_configuration_file

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
"""What the libraries call the weights; the first that is there is taken, as they do."""


class HubDirectory(Format):
    """A model of timm or transformers with its configuration, or any one file of weights that they would find."""

    name = "a directory of the Hugging Face hub"

    def sniff(self, start: bytes, path: Path) -> bool:
        """By the file of weights."""
        return path.is_dir() and _weights(path) is not None

    def read(self, path: Path, reading: Reading) -> Checkpoint:
        """The weights, and the architecture that config.json names. See `Format.read`."""
        file = _weights(path)
        assert file is not None
        found = formats.read_checkpoint(file, reading)
        config = configs.read_config(path) if found.header is None else {}  # ours says itself what it is
        named = configs.architecture_of(config, str(path / configs.CONFIG))
        note = "; ".join(part for part in (found.note, f"read {file.name}") if part)
        if named is not None and found.module is None:
            found = dataclasses.replace(found, arch=named[0], config=named[1])
        if found.module is None and found.header is None and found.mark is None:
            found = dataclasses.replace(found, mark=mark_of_configuration_file(config))
        return dataclasses.replace(found, path=path, note=note)

    def check_target(self, path: Path, *, force: bool = False) -> None:
        """A directory of other things is not written into, whatever is forced. See `Format.check_target`."""
        atomic.check_directory(path, force=force)
        if path.is_dir() and any(path.iterdir()) and not (path / _WEIGHTS[0]).is_file():
            raise BlurifyError(f"{path} is a directory of other files than a model's: choose another name")

    def write(self, path: Path, saved: Saved, *, force: bool) -> None:
        """The weights with the plan, config.json as the model's own library writes it, and a card. See `Format.write`.

        timm's `create_model("local-dir:...")` and transformers' `from_pretrained` take the directory, and build the
        original architecture; `blurify.load` builds the converted model.
        """
        atomic.write_directory(
            path, lambda folder: _fill(folder, saved), force=force, check=lambda written: self.check(written, saved)
        )

    def check(self, path: Path, saved: Saved) -> None:
        """The weights in it. See `Format.check`."""
        Safetensors().check(path / _WEIGHTS[0], saved)

    def put(self, file: BinaryIO, saved: Saved) -> None:
        """See `write`."""
        raise BlurifyError("a directory is no file")


def _fill(folder: Path, saved: Saved) -> None:
    """Write a model's files into an empty directory."""
    with (folder / _WEIGHTS[0]).open("wb") as file:
        Safetensors().put(file, saved)
    library, config = _config(saved.model)
    plan = saved.header["plan"]
    source = saved.header.get("source") or {}
    # What reads config.json alone can tell that there is more to this model, and by what.
    about = {"recipe": plan["recipe"], "arch": source.get("arch"), "load": "blurify.load"}
    config["blurify"] = {**about, "format": FORMAT, "plan": plan}  # as `save_pretrained` keeps it: `blurify.reload`
    (folder / configs.CONFIG).write_text(json.dumps(config, indent=2, default=str) + "\n")
    (folder / "README.md").write_text(model_card(saved, library))


def _config(model: nn.Module) -> tuple[str | None, dict[str, Any]]:
    """What the library that a model is of would write into its config.json, and what the hub calls that library."""
    own: Any = getattr(model, "config", None)
    if hasattr(own, "to_diff_dict") and hasattr(own, "model_type"):
        found = {**own.to_diff_dict(), "architectures": [type(model).__name__]}
        return "transformers", json.loads(json.dumps(found, default=str))
    described: Any = getattr(model, "pretrained_cfg", None)
    if isinstance(described, dict) and "architecture" in described and hasattr(model, "num_classes"):
        from timm.models._hub import save_config_for_hf

        with tempfile.TemporaryDirectory() as folder:
            save_config_for_hf(model, f"{folder}/{configs.CONFIG}")
            return "timm", configs.read_config(Path(folder))
    return None, {}


def _weights(path: Path) -> Path | None:
    known = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if known:
        return known[0]
    only = [file for file in sorted(path.iterdir()) if file.suffix in CHECKPOINTS and file.is_file()]
    return only[0] if len(only) == 1 else None
