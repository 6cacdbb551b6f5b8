"""What is no checkpoint, told by its first bytes: web pages, pointers, other programs' files."""

from __future__ import annotations

from pathlib import Path

from blurify.errors import BlurifyError
from blurify.spec.words import did_you_mean, nearest

CHECKPOINTS = frozenset(".pt .pth .bin .ckpt .safetensors .tar .pkl .pt2 .gz".split())
"""Endings of files that hold models."""


WRITTEN = ".pt (torch's format), .safetensors, .pt2 (torch.export) or .onnx, each also with .gz behind it"

_TORCH = frozenset(".pt .pth .bin .ckpt .tar .pkl .pickle .th .chkpt".split())
_OTHERS = {
    ending: program
    for program, endings in {
        "TensorFlow": ".tflite .pb .h5 .hdf5 .keras .savedmodel",
        "Core ML": ".mlmodel .mlpackage",
        "TensorRT": ".engine .trt .plan",
        "NumPy": ".npz .npy",
        "Caffe": ".caffemodel .prototxt",
        "OpenVINO": ".xml",
        "Flax": ".msgpack",
        "llama.cpp": ".gguf .ggml",
        "TorchScript": ".torchscript .ts .ptl .jit",
        "ExecuTorch": ".pte",
        "ncnn": ".param",
        "PaddlePaddle": ".pdmodel .pdparams",
        "MXNet": ".params",
        "another program": ".zip .7z .xz .bz2 .zst .json .yaml .yml .toml .txt .csv .md .py .html .log .png .jpg .pdf",
    }.items()
    for ending in endings.split()
}  # fmt: skip


def refuse_ending(path: Path) -> None:
    """Ask whether a name's ending lets people take the file for what it is: one in torch's format.

    Endings that mean nothing (`model.v2`, `resnet50.a1_in1k`) do.

    Raises:
        BlurifyError: it is another program's, or nearly one that means another format.
    """
    ending = path.suffix.lower()
    if ending in _TORCH:
        return
    if ending in _OTHERS:
        raise BlurifyError(f"{path}: files of {_OTHERS[ending]} ({ending}) are not written: name it {WRITTEN}")
    close = nearest(ending, [".safetensors", ".onnx"], count=1, cutoff=0.75) if len(ending) > 3 else []
    if close:
        raise BlurifyError(f"{path}: there is no format {ending}{did_you_mean([close[0]])}")


def no_model_in(path: Path) -> str:
    """What to say of a directory that is none of a model."""
    names = sorted(entry.name for entry in path.iterdir())
    if "saved_model.pb" in names:
        return f"{path} is a TensorFlow model, which can't be converted: blurify converts PyTorch models"
    files = [name for name in names if Path(name).suffix in CHECKPOINTS]
    if files:
        more = ", ..." if len(files) > 4 else ""
        return f"{path} is a directory with several checkpoints: name one of them ({', '.join(files[:4])}{more})"
    return f"{path} is a directory without a model: give a checkpoint file, or a directory with model.safetensors in it"


def _architecture(name: str) -> str:
    """What to say to a name without its library: the architectures that are called so, or nearly so."""
    from blurify.files.sources import index  # which reads a file of its own

    known = index.names()
    exact = [spec for spec in known if spec.partition("/")[2] == name]
    if exact:
        return did_you_mean(exact)
    inner = {spec.partition("/")[2]: spec for spec in reversed(known)}  # of two libraries' the plainer one
    close = nearest(name, inner, count=2, cutoff=0.8)
    if close:
        return did_you_mean(inner[one] for one in close)
    return f": architectures are written timm/{name} or torchvision/{name}"


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file that may be a checkpoint.

    Raises:
        BlurifyError: there is no such file, it can't be read, or it is something else: the message says what.
    """
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, siblings, count=1, cutoff=0.6)
        if close:
            hint = did_you_mean([str(path.parent / close[0])])
        elif path.suffix == "" and len(path.parts) == 1:
            hint = _architecture(path.name)
        else:
            hint = "" if path.parent.is_dir() else f": the directory {path.parent} doesn't exist either"
        raise BlurifyError(f"there is no file {path}{hint}")
    if not path.is_file():  # a pipe would wait for ever
        raise BlurifyError(f"{path} is no ordinary file: save it to one first")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise BlurifyError(f"{path} can't be read: {error.strerror}") from error
    if not start:
        raise BlurifyError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise BlurifyError(f"{path} is only a Git LFS pointer: run 'git lfs pull' to get the file itself")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BlurifyError(f"{path} is a web page, not a checkpoint: download the file itself")
    if start.startswith(b"\x89HDF"):
        raise BlurifyError(f"{path} is an HDF5 file (Keras?), not a PyTorch checkpoint")
    if start[257:262] == b"ustar":
        raise BlurifyError(f"{path} is a tar archive: unpack it, or save the model again with a current torch")
    return start
