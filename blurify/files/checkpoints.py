"""Converted models in files, and back.

- `.safetensors`: tensors, with the plan and how to build the architecture in the metadata.
- anything else, by torch.save: for an architecture that can be built by name `{"state_dict": ..., "blurify": {...}}`,
  which is plain data (`torch.load(weights_only=True)` reads it, and the state_dict loads into the original class, too);
  for any other model the whole module, as it came.

A file appears under its name complete or not at all.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blurify.errors import BlurifyError, one_line
from blurify.files import sources as models
from blurify.files.sources import HEADER, Checkpoint, LoadedModel, ModelSource
from blurify.spec.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADER_FORMAT = 1


def save(model: nn.Module, path: str | Path, *, source: ModelSource | None = None, force: bool = False) -> Path:
    """Write a converted model.

    Args:
        model: converted by blurify (it carries its plan).
        path: `.safetensors` for tensors only; any other ending for torch's format.
        source: how to build the unconverted model, as `models.load_model` tells; None: the model exists only in memory.
        force: replace a file that is there.

    Returns:
        The path written.

    Raises:
        BlurifyError: the model carries no plan, the target exists or can't be written, or the model can't be pickled.
            Nothing is left behind then.
    """
    from blurify.surgery import apply as surgery

    path = Path(path).expanduser()
    plan = surgery.plan_of(model)
    if plan is None:
        raise BlurifyError(f"the model carries no plan, so it is not converted: convert it before saving it to {path}")
    check_target(path, force=force)
    by_name = source is not None and source.arch is not None
    if path.suffix == ".safetensors":
        write = _safetensors_writer(model, plan, source if by_name else None)
    else:
        write = _torch_writer(model, plan, source if by_name else None)
    write_file(path, write, force=force)
    return path


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    arch: str | None = None,
    allow: Sequence[str] = (),
    trust: bool = False,
) -> nn.Module:
    """The converted model in a file that `save` wrote, in eval mode on the CPU.

    Args:
        path: the file.
        model: the unconverted model, where the file doesn't say how to build it; it is left as it is.
        arch: instead of `model`, what builds it: `timm/NAME`, `torchvision/NAME`, `python:module:factory`.
        allow, trust: as for `models.load_model`.

    Raises:
        BlurifyError: the file is no converted model, or the model can't be built.
    """
    from blurify.surgery import apply as surgery

    checkpoint = models.read_checkpoint(path, allow=allow, trust=trust)
    if checkpoint.module is not None and surgery.plan_of(checkpoint.module) is not None:
        return checkpoint.module.eval()
    if checkpoint.module is not None or checkpoint.header is None:
        raise BlurifyError(f"{path} carries no plan: it is not a model that blurify converted (convert it first)")
    return _rebuild(checkpoint, model=model, arch=arch)[0].eval()


def open_model(
    spec: str, *, arch: str | None = None, pretrained: bool = True, allow: Sequence[str] = (), trust: bool = False
) -> LoadedModel:
    """`models.load_model` that also opens the files which `save` wrote: whatever a user may name as MODEL."""

    def rebuild(checkpoint: Checkpoint, arch: str | None) -> LoadedModel:
        model, source = _rebuild(checkpoint, arch=arch)
        return LoadedModel(model.eval(), source, checkpoint.note)

    return models.load_model(spec, arch=arch, pretrained=pretrained, allow=allow, trust=trust, rebuild=rebuild)


def _rebuild(
    checkpoint: Checkpoint, *, model: nn.Module | None = None, arch: str | None = None
) -> tuple[nn.Module, ModelSource]:
    """The converted model of a file in which blurify wrote tensors and a plan.

    Args:
        checkpoint: with a header.
        model: the unconverted model; it is left as it is.
        arch: what builds the unconverted model, instead of what the file says.

    Raises:
        BlurifyError: the file doesn't say how to build the model, or the parts don't fit.
    """
    from blurify.surgery import apply as surgery

    header, path = checkpoint.header or {}, checkpoint.path
    if header.get("format") != HEADER_FORMAT or not isinstance(header.get("plan"), dict):
        raise BlurifyError(
            f"{path} was written by another version of blurify (format {header.get('format')!r}): convert the model "
            f"again"
        )
    plan = Plan.from_dict(header["plan"])
    recorded = header.get("source")
    source = ModelSource.from_dict(recorded) if isinstance(recorded, dict) else ModelSource(path.name, "module")
    if model is not None:
        model = copy.deepcopy(model)
    elif arch is not None:
        model, resolved = models.build(arch, pretrained=False)
        source = ModelSource(path.name, "weights", resolved)
    elif source.arch is not None:
        if not source.arch.startswith("torchvision/") and ":" in source.arch:
            # Code of the user's; or hf-hub:NAME, local-dir:PATH, which fetch or read what they name.
            what = "run that code" if source.arch.startswith("python:") else "fetch it from there"
            raise BlurifyError(
                f"{path} was made from {source.arch}: add --arch {source.arch} to {what} (in Python: arch=..., or "
                "model=the original model)"
            )
        model, _ = models.build(source.arch, pretrained=False, weightless=source.arch.startswith("torchvision/"))
    else:
        raise BlurifyError(
            f"{path} holds tensors and a plan, but not how to build the model: give load(path, model=the original "
            f"model), or"
            " --arch timm/NAME, torchvision/NAME or python:module:factory"
        )
    where = arch or source.arch or f"the {type(model).__name__} that was given"
    applied = surgery.plan_of(model)
    if applied is None:
        models.check_fit(model, checkpoint.tensors or {}, str(path), where)
        try:
            surgery.apply_plan(model, plan)
        except BlurifyError:
            raise
        except Exception as error:  # a plan that somebody else wrote
            raise BlurifyError(
                f"{path} carries a plan that can't be carried out ({one_line(error)}): convert the original model again"
            ) from error
    elif applied != plan:
        raise BlurifyError(f"the model given for {path} was converted by another plan: give the original model")
    models.fill(model, checkpoint.tensors or {}, where=str(path), arch=where)
    return model, source


def check_target(path: str | Path, *, force: bool = False) -> None:
    """Raise BlurifyError where `path` can't become a file: worth asking before the work is done."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise BlurifyError(f"{path} is a directory: name a file in it")
    if path.exists() and not path.is_file():
        raise BlurifyError(f"{path} is no ordinary file: choose another name")
    if path.exists() and not force:
        raise BlurifyError(f"{path} exists: add --force to replace it, or choose another name")
    if not path.parent.is_dir():
        what = "is not a directory" if path.parent.exists() else "doesn't exist"
        raise BlurifyError(f"{path} can't be written: {path.parent} {what}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BlurifyError(f"{path} can't be written: the directory {path.parent} is not writable")


def _header(plan: Plan, source: ModelSource | None, **more: Any) -> dict[str, Any]:
    # Through JSON, so that both formats hold the same plain data (lists, no tuples).
    header = {"format": HEADER_FORMAT, "plan": plan.to_dict(), "source": source and source.to_dict(), **more}
    plain: dict[str, Any] = json.loads(json.dumps(header))
    return plain


def _torch_writer(model: nn.Module, plan: Plan, source: ModelSource | None) -> Callable[[BinaryIO], None]:
    import torch

    content: Any = model
    if source is not None:
        content = {"state_dict": dict(model.state_dict()), HEADER: _header(plan, source)}

    def write(file: BinaryIO) -> None:
        try:
            torch.save(content, file)
        except OSError:
            raise
        except Exception as error:  # pickling runs the model's own code
            raise BlurifyError(
                f"the {type(model).__name__} can't be pickled ({one_line(error)}): save it as .safetensors instead"
            ) from error

    return write


def _safetensors_writer(model: nn.Module, plan: Plan, source: ModelSource | None) -> Callable[[BinaryIO], None]:
    import torch
    from safetensors.torch import save as serialize

    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise BlurifyError(f"{name} is not a plain tensor, which safetensors can't hold: save as .pt")
        tensor = value.detach().cpu()
        same = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.device)
        if value.numel() and same in first:
            shared[name] = first[same]  # tied: one copy in the file, and `load` gives it to both names
            continue
        first[same] = name
        # Its own memory: safetensors takes no views, and other names may look at the same storage.
        tensors[name] = tensor.contiguous().clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        if not tensors[name].is_contiguous():
            tensors[name] = tensors[name].contiguous()
    if not tensors:
        raise BlurifyError("the model has no tensors to save: save it as .pt")
    metadata = {"format": "pt", HEADER: json.dumps(_header(plan, source, shared=shared))}

    def write(file: BinaryIO) -> None:
        file.write(serialize(tensors, metadata))

    return write


def write_file(path: Path, write: Callable[[BinaryIO], None], *, force: bool) -> None:
    """Write beside the target, then take its name: the file appears complete or not at all.

    Raises:
        BlurifyError: the target exists (and not `force`), or can't be written.
    """
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and not force:
            raise BlurifyError(f"{path} exists: add --force to replace it, or choose another name")
        os.replace(temporary, path)
    except OSError as error:
        raise BlurifyError(f"{path} can't be written: {error.strerror or one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    with contextlib.suppress(OSError):  # not every file system lets a directory be synced
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
