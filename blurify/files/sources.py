"""Models by name or file: `timm/NAME`, `torchvision/NAME`, `python:module:factory`, checkpoint files.

A model comes with its `ModelSource`, which says how to build the same architecture again, so that a converted
checkpoint can hold only tensors. Heavy packages are imported where they are used: the command line starts without them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
import sys
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blurify.errors import BlurifyError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADER = "blurify"  # the entry of a file, or of its metadata, that carries the plan

# Where training programs keep the weights, the averaged ones first (as timm's own loader does).
_WRAPPERS = (
    "state_dict_ema model_ema ema_state_dict ema params_ema state_dict model_state_dict model_state model module net "
    "network"
    " params weights"
).split()
_WRITTEN_BY_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and DDP; torch.compile


@dataclass(frozen=True)
class ModelSource:
    """How to build a model's architecture again.

    Attributes:
        spec: what the user wrote; of a file only its name.
        kind: 'factory' (`arch` builds it), 'weights' (a file's tensors in what `arch` builds) or 'module' (it only
            exists as a pickled module).
        arch: the factory spec, with the choices that were left open filled in; None for 'module'.
    """

    spec: str
    kind: Literal["factory", "weights", "module"]
    arch: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Plain data for JSON."""
        return {"spec": self.spec, "kind": self.kind, "arch": self.arch}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSource:
        """Read what `to_dict` wrote. Raises BlurifyError where it is something else."""
        kind, arch = data.get("kind"), data.get("arch")
        if kind not in ("factory", "weights", "module") or not (arch is None or isinstance(arch, str)):
            raise BlurifyError(
                "the file doesn't say how its model is built in a way that this blurify knows: give --arch"
            )
        return cls(str(data.get("spec", "")), kind, arch)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, and where it came from.

    Attributes:
        model: on the CPU, in eval mode.
        source: how to build it again.
        note: what a user may want to know about how it was read ('' mostly), e.g. which of several weights were taken.
    """

    model: nn.Module
    source: ModelSource
    note: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a module, or tensors by name; and blurify's header where blurify wrote it."""

    path: Path
    module: nn.Module | None = None
    tensors: dict[str, Tensor] | None = None
    header: dict[str, Any] | None = None
    note: str = ""


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    pretrained: bool = True,
    allow: Sequence[str] = (),
    trust: bool = False,
    rebuild: Callable[[Checkpoint, str | None], LoadedModel] | None = None,
) -> LoadedModel:
    """The model that the user means.

    Args:
        spec: `timm/NAME[.TAG]`, `torchvision/NAME[:WEIGHTS]`, `python:package.module:factory`, or a file. The first
            three take options of the factory, as in `timm/resnet18?num_classes=10`.
        arch: for a file that holds only weights: one of the factory specs.
        pretrained: False gives random weights (nothing is downloaded).
        allow: classes (`mypkg.nets.Net`) that a pickled module may consist of besides those of torch, torchvision and
            timm.
        trust: run whatever a pickled file contains.
        rebuild: makes the model of a file in which blurify wrote tensors and a plan (see `checkpoints.open_model`).

    Raises:
        BlurifyError: there is no such model or file, its weights can't be had, or the file is not safe or not a model.
    """
    if is_factory(spec):
        if arch is not None:
            raise BlurifyError(f"--arch goes with a file of weights; {spec} is an architecture itself")
        model, resolved = build(spec, pretrained=pretrained)
        return LoadedModel(model.eval(), ModelSource(spec, "factory", resolved))
    checkpoint = read_checkpoint(spec, allow=allow, trust=trust)
    name = checkpoint.path.name
    if checkpoint.module is not None:
        return LoadedModel(checkpoint.module.eval(), ModelSource(name, "module"), checkpoint.note)
    if checkpoint.header is not None:
        if rebuild is None:
            raise BlurifyError(f"{checkpoint.path} holds a converted model: open it with blurify.load")
        return rebuild(checkpoint, arch)
    if arch is None:
        raise BlurifyError(
            f"{checkpoint.path} holds only weights ({len(checkpoint.tensors or {})} tensors): say what they belong "
            f"to, with "
            "--arch timm/NAME, --arch torchvision/NAME or --arch python:module:factory"
        )
    model, resolved = build(arch, pretrained=False)
    fill(model, checkpoint.tensors or {}, where=str(checkpoint.path), arch=arch)
    return LoadedModel(model.eval(), ModelSource(name, "weights", resolved), checkpoint.note)


def is_factory(spec: str) -> bool:
    """Whether a spec names a factory (and not a file)."""
    return spec.startswith(("timm/", "torchvision/", "python:"))


def build(spec: str, *, pretrained: bool, weightless: bool = False) -> tuple[nn.Module, str]:
    """Run a factory.

    Args:
        spec: a factory spec.
        pretrained: with the weights that it names, or its default ones.
        weightless: the architecture exactly as it is with those weights, but without downloading them.

    Returns:
        The model, and the spec with the choices that it left open filled in.
    """
    if not is_factory(spec):
        raise BlurifyError(f"{spec!r} is no architecture: write timm/NAME, torchvision/NAME or python:module:factory")
    plain, _, query = spec.partition("?")
    options = _options(spec, query)
    if plain.startswith("python:"):
        return _python(plain, options), spec
    library, _, name = plain.partition("/")
    if not name:
        raise BlurifyError(f"{spec!r} lacks the name of the architecture, as in timm/resnet50")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # about initialisation, deprecated names: nothing that a user of blurify can act on
        if library == "timm":
            model, resolved = _timm(plain, name, options, pretrained)
        else:
            model, resolved = _torchvision(plain, name, options, pretrained, weightless)
    return model, f"{library}/{resolved}" + (f"?{query}" if query else "")


def _options(spec: str, query: str) -> dict[str, Any]:
    """`num_classes=10&in_chans=1` as keyword arguments: ints, floats, true / false / none, else strings."""
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise BlurifyError(f"{item!r} in {spec!r} is no option: write ?num_classes=10&in_chans=1")
        if key in ("pretrained", "checkpoint_path", "weights", "weights_backbone", "cache_dir"):
            raise BlurifyError(
                f"{key} in {spec!r} can't be set there: weights are chosen by the name, --random, or a file"
            )
        options[key] = _value(text)
    return options


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _timm(spec: str, name: str, options: dict[str, Any], pretrained: bool) -> tuple[nn.Module, str]:
    import timm
    from timm.models import get_arch_pretrained_cfgs, is_model, is_model_pretrained, split_model_name_tag

    hosted = ":" in name  # hf-hub:org/name, local-dir:path
    if not hosted:
        arch, tag = split_model_name_tag(name)
        if not is_model(arch):
            raise BlurifyError(f"timm {timm.__version__} has no {arch!r}{_nearest(arch, timm.list_models(), 'timm/')}")
        tagged = list(get_arch_pretrained_cfgs(arch))
        if tag and tagged and name not in tagged and tag not in tagged:
            raise BlurifyError(f"timm's {arch} has no weights {tag!r}{_nearest(name, tagged, 'timm/')}")
        if pretrained and not is_model_pretrained(name):
            raise BlurifyError(
                f"timm has no pretrained weights for {name}: use --random for random ones, or {_own(spec)}"
            )
    with _factory_errors(spec, pretrained), _fail_fast(pretrained):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    tag = "" if hosted or not pretrained else (getattr(model, "pretrained_cfg", None) or {}).get("tag", "")
    return model, f"{name}.{tag}" if tag and "." not in name else name


def _torchvision(
    spec: str, name: str, options: dict[str, Any], pretrained: bool, weightless: bool
) -> tuple[nn.Module, str]:
    import torchvision
    from torchvision.models import get_model_builder, get_model_weights, list_models

    name, colon, tag = name.partition(":")
    if name.startswith("quantized_"):
        raise BlurifyError(f"{spec} is a quantized model, which can't be converted: use torchvision/{name[10:]}")
    known = list_models()
    if name not in known:
        plain = [other for other in known if not other.startswith("quantized_")]
        raise BlurifyError(
            f"torchvision {torchvision.__version__} has no {name!r}{_nearest(name, plain, 'torchvision/')}"
        )
    builder = get_model_builder(name)
    weights: Any = None
    if tag.upper() == "NONE":
        pretrained = weightless = False
    offered = list(get_model_weights(name))
    if colon and tag.upper() not in ("NONE", "DEFAULT"):
        found = [entry for entry in offered if entry.name == tag]
        if not found:
            raise BlurifyError(
                f"torchvision's {name} has no weights {tag!r}: {', '.join(w.name for w in offered) or 'none'}"
            )
        weights = found[0]
    elif (pretrained or weightless) and offered:
        weights = get_model_weights(name).DEFAULT
    if pretrained and weights is None:
        raise BlurifyError(f"torchvision has no pretrained weights for {name}: use --random, or {_own(spec)}")
    parameters = inspect.signature(builder).parameters
    arguments = dict(options)
    if not (pretrained or weightless):
        weights = None
        if "weights_backbone" in parameters:
            arguments["weights_backbone"] = None
        if _asks_for_init(builder):
            arguments.setdefault("init_weights", False)
    with _factory_errors(spec, pretrained), _no_download(weightless):
        model: nn.Module = builder(
            weights=weights, **({"progress": False} if "progress" in parameters else {}), **arguments
        )
    return model, f"{name}:{weights.name if weights is not None else 'NONE'}"


def _asks_for_init(builder: Any) -> bool:
    """Whether a class wants to be told to initialise itself: left open, it warns and takes its slow way."""
    try:
        cls = typing.get_type_hints(builder).get("return")
        parameter = inspect.signature(cls).parameters.get("init_weights") if isinstance(cls, type) else None
    except (NameError, TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is None


class _NoWeights(dict[str, Any]):
    """Stands for weights that come later."""


@contextmanager
def _no_download(active: bool) -> Iterator[None]:
    """Build a torchvision model as with its weights, which decide about transforms and norms, but without them."""
    if not active:
        yield
        return
    import torch
    from torchvision.models import WeightsEnum

    fetch, load = WeightsEnum.get_state_dict, torch.nn.Module.load_state_dict

    @functools.wraps(load)
    def load_later(self: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state_dict, _NoWeights) else load(self, state_dict, *args, **kwargs)

    WeightsEnum.get_state_dict = lambda self, *args, **kwargs: _NoWeights()
    torch.nn.Module.load_state_dict = load_later  # type: ignore[method-assign]
    try:
        yield
    finally:
        WeightsEnum.get_state_dict = fetch
        torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]


@contextmanager
def _fail_fast(active: bool) -> Iterator[None]:
    """Without a network, look only into the cache: the client of the hub would try for most of a minute, noisily."""
    if not active:
        yield
        return
    import logging
    import socket
    import urllib.parse
    import urllib.request

    from huggingface_hub import constants

    client = logging.getLogger("huggingface_hub")
    level, offline = client.level, constants.HF_HUB_OFFLINE
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    reason: OSError | None = None
    if not offline and not urllib.request.getproxies():  # behind a proxy, names are resolved there
        try:
            socket.getaddrinfo(url.hostname, url.port or 443)
        except OSError as error:
            reason = error
            constants.HF_HUB_OFFLINE = True
    client.setLevel(logging.CRITICAL)
    try:
        yield
    except Exception as error:
        if reason is None:
            raise
        raise reason from error
    finally:
        client.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


@contextmanager
def _factory_errors(spec: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except BlurifyError:
        raise
    except Exception as error:
        chain = list(_chain(error))
        if pretrained and any(_is_network(link) for link in chain):
            raise BlurifyError(
                f"the pretrained weights of {spec} can't be downloaded ({_cause(chain)}): use --random for random "
                f"weights, or " + _own(spec)
            ) from error
        raise BlurifyError(f"{spec} can't be built: {one_line(error)}") from error


def _own(spec: str) -> str:
    return f"give a checkpoint file with --arch {spec.partition(':')[0] if spec.startswith('torchvision/') else spec}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in (
        "urllib", "urllib3", "http", "requests", "httpx", "httpcore", "huggingface_hub", "socket", "ssl"
    )  # fmt: skip


def _cause(chain: Sequence[BaseException]) -> str:
    """The innermost reason, which is the short one ('Name or service not known')."""
    texts = [one_line(error.strerror if isinstance(error, OSError) and error.strerror else error) for error in chain]
    return min((text for text in texts if text), key=len, default="no network")[:160]


def _nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return ": did you mean " + " or ".join(prefix + match for match in close) + "?" if close else ""


def _python(spec: str, options: dict[str, Any]) -> nn.Module:
    import torch

    module_name, colon, attribute = spec.removeprefix("python:").partition(":")
    if not colon or not module_name or not attribute:
        raise BlurifyError(f"{spec!r} must name a module and what makes the model in it: python:package.module:factory")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BlurifyError(
            f"{spec}: there is no module {error.name!r} here: run from the directory that holds it, or install it"
        ) from error
    except Exception as error:  # whatever the user's own module raises
        raise BlurifyError(
            f"{spec}: importing {module_name} failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")]
            raise BlurifyError(f"{spec}: {module_name} has no {part!r}{_nearest(part, names)}")
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module) and not options:
        return found
    if not callable(found) or isinstance(found, torch.nn.Module):
        raise BlurifyError(f"{spec} is a {type(found).__name__}: name a function or class that makes an nn.Module")
    try:
        model = found(**options)
    except Exception as error:
        raise BlurifyError(f"{spec} failed: {type(error).__name__}: {one_line(error)}") from error
    if not isinstance(model, torch.nn.Module):
        raise BlurifyError(f"{spec} gave a {type(model).__name__}, not an nn.Module")
    return model


def read_checkpoint(path: str | Path, *, allow: Sequence[str] = (), trust: bool = False) -> Checkpoint:
    """What a file holds, read on the CPU without running code that it chooses (unless trusted).

    Raises:
        BlurifyError: no such file, damaged, of another kind, or it needs classes that are not allowed.
    """
    path = Path(path).expanduser()
    start = _check_file(path)
    if path.suffix == ".safetensors" or _is_safetensors(start, path):
        return _read_safetensors(path)
    from blurify.files import unpickling

    content, refused = unpickling.load(path, allow=allow, trust=trust)
    return _interpret(path, content, refused)


def _check_file(path: Path) -> bytes:
    """The first bytes of a file that may be a checkpoint. Raises BlurifyError with what it is instead."""
    if path.is_dir():
        raise BlurifyError(f"{path} is a directory: name a checkpoint file in it")
    if not path.exists():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
        if close:
            hint = f": did you mean {path.parent / close[0]}?"
        elif path.suffix == "" and len(path.parts) == 1:
            hint = f": architectures are written timm/{path.name} or torchvision/{path.name}"
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
    if start.startswith(b"PK"):
        _check_zip(path)
    elif not start.startswith(b"\x80") and not _is_safetensors(start, path) and path.suffix != ".safetensors":
        raise BlurifyError(f"{path} is not a checkpoint: neither torch.save nor safetensors wrote it")
    return start


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise BlurifyError(f"{path} is damaged or cut off ({one_line(error)}): get or save it again") from error
    if "constants.pkl" in names:
        raise BlurifyError(
            f"{path} is a TorchScript model, which can't be converted: give the model it was made from (a pickled "
            f"nn.Module, or"
            " its state_dict with --arch)"
        )
    if "data.pkl" not in names:
        raise BlurifyError(
            f"{path} is a zip archive, but no checkpoint (it has no data.pkl): give what torch.save wrote"
        )


def _is_safetensors(start: bytes, path: Path) -> bool:
    # Eight bytes of header length, then JSON.
    return len(start) > 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors has its own error class, not exported everywhere
        raise BlurifyError(
            f"{path} is damaged, cut off or not safetensors ({one_line(error)}): get or save it again"
        ) from error
    header = None
    if HEADER in metadata:
        try:
            header = json.loads(metadata[HEADER])
            shared = header.get("shared", {})
            tensors |= {name: tensors[kept] for name, kept in shared.items()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise BlurifyError(f"{path} carries a plan that can't be read ({one_line(error)})") from error
    if not tensors:
        raise BlurifyError(f"{path} holds no tensors")
    return Checkpoint(path, tensors=tensors, header=header)


def _interpret(path: Path, content: Any, refused: dict[str, str]) -> Checkpoint:
    """Find the module or the tensors in what a file held."""
    import torch

    from blurify.files import unpickling

    if isinstance(content, Mapping) and HEADER in content and _is_state_dict(content.get("state_dict")):
        header = content[HEADER]
        if not isinstance(header, dict):
            raise BlurifyError(f"{path} carries a plan that can't be read")
        return Checkpoint(path, tensors=dict(content["state_dict"]), header=header)
    found, where = _search(content, 3)
    if isinstance(found, torch.jit.ScriptModule):
        raise BlurifyError(f"{path} is a TorchScript model, which can't be converted: give the model it was made from")
    if isinstance(found, torch.nn.Module):
        if refused:
            raise BlurifyError(unpickling.explain_refused(path, refused))
        return Checkpoint(path, module=found, note=where and f"took the module under {where!r}")
    if found is not None:
        return Checkpoint(path, tensors=dict(found), note=where and f"took the weights under {where!r}")
    if refused:
        raise BlurifyError(unpickling.explain_refused(path, refused))
    if isinstance(content, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:6])
        inside = f"a dictionary without weights (keys: {keys})" if content else "an empty dictionary"
    else:
        inside = f"a {type(content).__name__}"
    raise BlurifyError(f"{path} holds {inside}: give a pickled nn.Module or a state_dict")


def _is_state_dict(value: Any) -> bool:
    import torch

    if not isinstance(value, Mapping) or not value:
        return False
    return all(
        isinstance(key, str) and (isinstance(item, torch.Tensor) or key.endswith("_extra_state"))
        for key, item in value.items()
    )


def _search(value: Any, depth: int) -> tuple[Any, str]:
    """The module or state_dict in a value, and under which key it was."""
    import torch

    if isinstance(value, torch.nn.Module) or _is_state_dict(value):
        return value, ""
    if not isinstance(value, Mapping) or depth == 0:
        return None, ""
    names = [name for name in _WRAPPERS if name in value]
    others = [key for key in value if isinstance(key, str) and key not in names and isinstance(value[key], Mapping)]
    for name in names:
        found, inner = _search(value[name], depth - 1)
        if found is not None:
            return found, f"{name}.{inner}" if inner else name
    hits = [(key, found) for key in others if _is_state_dict(found := value[key]) and "optim" not in key]
    return (hits[0][1], hits[0][0]) if len(hits) == 1 else (None, "")


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, arch: str) -> None:
    """Load tensors into a model, bit by bit and in their own dtypes.

    Args:
        model: gets them; shared parameters stay shared.
        tensors: by name; the prefixes that DataParallel and torch.compile put before every name are taken off.
        where, arch: what both are called in messages.

    Raises:
        BlurifyError: names or shapes don't fit; it says which.
    """
    import torch

    tensors = _match_names(model, tensors)
    check_fit(model, tensors, where, arch)
    own = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and own[name].dtype != tensor.dtype:
            own[name].data = torch.empty_like(own[name], dtype=tensor.dtype)
    try:
        with torch.no_grad():
            model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise BlurifyError(f"the weights in {where} don't fit {arch}: {one_line(error)}") from error


def _match_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = set(model.state_dict())
    names = dict(tensors)
    names.pop("n_averaged", None) if "n_averaged" not in own else None  # torch.optim.swa_utils.AveragedModel
    changed = True
    while changed and names and not own.intersection(names):
        changed = False
        first = next(iter(names)).partition(".")[0] + "."
        for prefix in (*_WRITTEN_BY_WRAPPERS, first):
            stripped = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
            useful = prefix in _WRITTEN_BY_WRAPPERS or own.intersection(stripped)
            if useful and all(name.startswith(prefix) and name != prefix for name in names):
                names, changed = stripped, True
                break
    if any("_orig_mod." in name for name in names) and not any("_orig_mod." in name for name in own):
        names = {name.replace("_orig_mod.", ""): tensor for name, tensor in names.items()}
    return names


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, arch: str) -> None:
    """Raise BlurifyError, saying which, where names or shapes of tensors are not the model's."""
    own = {name: tuple(value.shape) if hasattr(value, "shape") else () for name, value in model.state_dict().items()}
    theirs = {name: tuple(value.shape) if hasattr(value, "shape") else () for name, value in tensors.items()}
    missing = [name for name in own if name not in theirs]
    unexpected = [name for name in theirs if name not in own]
    other = [name for name in own if name in theirs and own[name] != theirs[name]]
    if not (missing or unexpected or other):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} are missing in the file ({_few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} are not in the architecture ({_few(unexpected)})")
    if other:
        shapes = [f"{name} {theirs[name]} in the file, {own[name]} in the architecture" for name in other]
        parts.append(f"{len(other)} have other shapes ({_few(shapes, 2)})")
    hint = "" if missing or unexpected else _shape_hint(arch, [(own[name], theirs[name]) for name in other])
    raise BlurifyError(f"the weights in {where} don't fit {arch}: {'; '.join(parts)}{hint}")


def _few(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _shape_hint(arch: str, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """What to add to --arch where only the number of classes or of input channels differs."""
    if not arch.startswith(("timm/", "torchvision/")):
        return ""
    joint = "&" if "?" in arch else "?"
    same_rank = all(len(mine) == len(theirs) and mine for mine, theirs in pairs)
    if same_rank and all(mine[1:] == theirs[1:] for mine, theirs in pairs):
        classes = {theirs[0] for _, theirs in pairs}
        if len(classes) == 1:
            return f": add --arch '{arch}{joint}num_classes={classes.pop()}'"
    if same_rank and len(pairs) == 1 and len(pairs[0][0]) > 2 and arch.startswith("timm/"):
        mine, theirs = pairs[0]
        if mine[0] == theirs[0] and mine[2:] == theirs[2:]:
            return f": add --arch '{arch}{joint}in_chans={theirs[1]}'"
    return ""
