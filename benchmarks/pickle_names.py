"""What a pickled model needs to name: `make pickle-names` writes blurify/files/pickled/known.json.

Every architecture of timm and torchvision is built without data and pickled, and the pickle is read as the inert tree
that blurify reads. What it names, and where, is collected: classes of modules, classes that hold settings,
enumerations, functions and classes that stand as values, methods that an instance has chosen as its own, and names in
an instance that hide something of its class. To the modules come the other layers of the same packages, whose source
is looked through for code that runs text, files or programs; and to the values the activations and norms that people
pass to factories.

With --check nothing is written: it fails where the installed libraries need what the list lacks.

With --ultralytics the same is done for the networks that the package ultralytics describes, as they are and fused, and
written to a file of its own, known_ultralytics.json (the package is not needed to use blurify).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import io
import json
import multiprocessing
import pkgutil
import platform
import sys
import types
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from blurify import zoo
from blurify.files import sources
from blurify.files.pickled.names import CONTAINERS, TENSORS
from blurify.files.pickled.tree import Call, DictNode, Name, Stored, children, read_tree, walk

OUT = Path(__file__).parents[1] / "blurify" / "files" / "pickled" / "known.json"
OUT_ULTRALYTICS = OUT.with_name("known_ultralytics.json")
PATTERNS = ["timm/*", "torchvision/*"]
PACKAGES = ("torch.nn.modules", "torchvision.models", "torchvision.ops", "timm.layers", "timm.models")
OWN = ("blurify.nn.aps", "blurify.nn.blurpool", "blurify.nn.pools", "blurify.nn.calls", "blurify.demo")

LEFT_OUT = {
    "torchvision.models.feature_extraction": "runs the source text of a traced graph",
    "timm.models._features_fx": "runs the source text of a traced graph",
    "torch.nn.modules.lazy": "becomes another class when it runs",
    "torch.nn.modules.container.ParameterDict": "gets and sets attributes of any name",
    "torch.nn.modules.container.ParameterList": "gets and sets attributes of any name",
}
RUNS = frozenset("exec eval compile open __import__ input breakpoint globals vars".split())
RUNS_OF = frozenset("load load_library load_state_dict_from_url system popen import_module run Popen".split())

# What people pass to factories as `act_layer=`, `norm_layer=`: classes whose constructors only make a layer.
VALUE_MODULES = (
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.instancenorm",
    "torch.nn.modules.normalization",
    "torch.nn.modules.activation",
    "timm.layers.norm",
    "timm.layers.norm_act",
    "timm.layers.activations",
)
NO_VALUES = frozenset({"torch.nn.modules.activation.MultiheadAttention"})
ACTIVATIONS = (
    "relu relu_ relu6 leaky_relu gelu silu mish elu selu celu glu hardtanh hardswish hardsigmoid softplus softsign "
    "tanh sigmoid logsigmoid softmax log_softmax tanhshrink softshrink hardshrink normalize"
).split()
OPERATORS = "relu relu_ tanh sigmoid softmax selu celu prelu rrelu exp square abs".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("patterns", nargs="*", default=PATTERNS)
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the list lacks something")
    parser.add_argument("--ultralytics", action="store_true", help="the networks of that package")
    options = parser.parse_args()
    if options.ultralytics:
        return of_ultralytics(options.check)
    specs = zoo.select(options.patterns, pretrained=False)
    found: dict[str, set[str]] = defaultdict(set)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=60) as pool:
        for number, (spec, names) in enumerate(pool.imap_unordered(names_in_model, specs), 1):
            print(f"[{number}/{len(specs)}] {spec}", flush=True)
            for kind, some in names.items():
                found[kind] |= set(some)
    needed = {kind: sorted(names) for kind, names in sorted(found.items())}
    names = {**{kind: set(some) for kind, some in needed.items()}}
    layers, left_out = library_modules()
    names["modules"] |= layers | {f"{c.__module__}.{c.__qualname__}" for package in OWN for c in modules_of(package)}
    names["values"] |= common_values()
    names["records"] |= {"timm.models._features.FeatureInfo"}  # of models that were made with features_only
    refused = names["modules"] & {name for name in left_out if name not in found["modules"]}
    assert not refused, refused
    document = {
        "command": "python benchmarks/pickle_names.py",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "torchvision", "timm")},
        "architectures": len(specs),
        "needed": {kind: len(some) for kind, some in needed.items()},
        "left_out": dict(sorted(left_out.items())),
        "names": {kind: sorted(some) for kind, some in sorted(names.items())},
    }
    if options.check:
        return check(OUT, needed)
    OUT.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({key: document[key] for key in ("versions", "architectures", "needed", "left_out")}, indent=1))
    return 0


def check(path: Path, needed: dict[str, list[str]]) -> int:
    """Whether a list has all that is needed."""
    known = json.loads(path.read_text())["names"]
    lacking = {kind: sorted(set(some) - set(known.get(kind, ()))) for kind, some in needed.items()}
    lacking = {kind: some for kind, some in lacking.items() if some}
    print(json.dumps(lacking, indent=1) if lacking else "nothing is lacking")
    return 1 if lacking else 0


def of_ultralytics(only_check: bool) -> int:
    """The list of one package, from the networks that it describes."""
    import ultralytics
    from ultralytics.nn import tasks

    home = Path(ultralytics.__file__).parent / "cfg" / "models"
    general = json.loads(OUT.read_text())["names"]
    found: dict[str, set[str]] = defaultdict(set)
    built, without = 0, {}
    for path in sorted(home.rglob("*.yaml")):
        described = tasks.yaml_model_load(path)
        described["scale"] = described.get("scale") or next(iter(described.get("scales", {"": 0})))
        try:
            model = getattr(tasks, class_of(path.stem))(described, verbose=False)
        except Exception as error:  # its text encoder is fetched, or the description is of another kind
            without[path.stem] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        built += 1
        with torch.no_grad(), contextlib.suppress(Exception):  # some keep what they computed for the last size
            model.eval()(torch.rand(1, 3, 64, 64))
        for one in (model, model.fuse(verbose=False)):
            for kind, some in names_in(one.half()).items():
                found[kind] |= some
    needed = {kind: sorted(some - set(general.get(kind, ()))) for kind, some in sorted(found.items())}
    if only_check:
        return check(OUT_ULTRALYTICS, needed)
    names = {kind: set(some) for kind, some in needed.items()}
    left_out = {}
    for cls in modules_of("ultralytics.nn.modules"):
        full = f"{cls.__module__}.{cls.__qualname__}"
        if why := runs_text(cls):
            left_out[full] = why
        else:
            names["modules"].add(full)
    document = {
        "command": "python benchmarks/pickle_names.py --ultralytics",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "ultralytics")},
        "architectures": built,
        "not_built": without,
        "left_out": left_out,
        "names": {kind: sorted(some) for kind, some in sorted(names.items())},
    }
    OUT_ULTRALYTICS.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))
    return 0


def class_of(name: str) -> str:
    """The class of ultralytics that a description is for."""
    for part, cls in {"world": "WorldModel", "yoloe": "YOLOEModel", "rtdetr": "RTDETRDetectionModel"}.items():
        if part in name:
            return cls
    kinds = {"-seg": "SegmentationModel", "-pose": "PoseModel", "-obb": "OBBModel", "-cls": "ClassificationModel"}
    return next((cls for part, cls in kinds.items() if part in name), "DetectionModel")


def names_in_model(spec: str) -> tuple[str, dict[str, list[str]]]:
    """What the pickle of one architecture names, by what it is for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        with torch.device("meta"):
            model, _ = sources.build(spec, pretrained=False)
    except Exception:  # it reads values while it is made
        model, _ = sources.build(spec, pretrained=False)
    return spec, {kind: sorted(some) for kind, some in names_in(model).items()}


def names_in(model: nn.Module) -> dict[str, set[str]]:
    """What the pickle of a model names, by what it is for."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    with zipfile.ZipFile(buffer) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        tree = read_tree(io.BytesIO(archive.read(name)))
    found: dict[str, set[str]] = defaultdict(set)
    for node in walk(tree.root):
        if isinstance(node, Call) and isinstance(node.function, Name):
            of_call(node, node.function, found)
        elif not isinstance(node, Stored):  # the kinds of storages are known
            found["values"] |= {one.full for one in children(node) if isinstance(one, Name)}
    return found


def of_call(node: Call, name: Name, found: dict[str, set[str]]) -> None:
    """Sort one object of a pickle."""
    if name.full == "functools.partial":
        found["values"].add(node.state[0][0].full)
    elif name.full not in CONTAINERS | TENSORS:
        cls: Any = getattr(importlib.import_module(name.module), name.name)
        kind = "modules" if issubclass(cls, nn.Module) else "enums" if issubclass(cls, enum.Enum) else "records"
        found[kind].add(name.full)
        for key, value in node.state[0].items if node.state and isinstance(node.state[0], DictNode) else ():
            if isinstance(value, Name):
                found["values"].add(value.full)
            if any(key in vars(base) for base in cls.__mro__) and not dataclasses.is_dataclass(cls):
                full = f"{cls.__module__}.{cls.__qualname__}.{key}"
                method = isinstance(value, Call) and value.function.full == "builtins.getattr"
                found["bound" if method else "keys"].add(full)
                if method:
                    found["methods"].add(f"{full}={value.args[1]}")


def library_modules() -> tuple[set[str], dict[str, str]]:
    """The layers and models of the libraries, and those that are left out with the reason."""
    taken: set[str] = set()
    left: dict[str, str] = {}
    for package in PACKAGES:
        for cls in modules_of(package):
            full = f"{cls.__module__}.{cls.__qualname__}"
            why = LEFT_OUT.get(full) or LEFT_OUT.get(cls.__module__) or runs_text(cls)
            if "Lazy" in cls.__name__:
                why = LEFT_OUT["torch.nn.modules.lazy"]
            if why:
                left[full] = why
            else:
                taken.add(full)
    return taken, left


def modules_of(package: str) -> Iterator[type[nn.Module]]:
    """The classes of modules that are defined in a package or a module."""
    root = importlib.import_module(package)
    below = pkgutil.walk_packages(getattr(root, "__path__", []), package + ".")
    for name in [package, *(info.name for info in below)]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except ImportError:
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == name:
                yield cls


def runs_text(cls: type) -> str:
    """What in a class could run text, files or programs; '' where nothing does."""
    if cls is nn.Module:
        return ""
    for node in ast.walk(source_of(cls)):
        if isinstance(node, ast.Call):
            function = node.func
            plain = isinstance(function, ast.Name) and function.id in RUNS
            if plain or (isinstance(function, ast.Attribute) and function.attr in RUNS_OF):
                return f"calls {ast.unparse(function)}"
    return ""


def source_of(cls: type) -> ast.AST:
    """The statement that defines a class. `inspect.getsource` reads the whole file for each class in it."""
    return classes_in(inspect.getsourcefile(cls) or "")[cls.__qualname__]


@functools.cache
def classes_in(path: str) -> dict[str, ast.ClassDef]:
    """The statements that define classes in a file, by the qualified names of the classes."""
    found: dict[str, ast.ClassDef] = {}

    def look(node: ast.AST, inside: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                found.setdefault(inside + child.name, child)
                look(child, f"{inside}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                look(child, f"{inside}{child.name}.<locals>.")
            else:
                look(child, inside)

    look(ast.parse(Path(path).read_bytes()), "")
    return found


def common_values() -> set[str]:
    """Activations and norms: what people pass to the factories of models."""
    classes = {
        f"{cls.__module__}.{cls.__qualname__}"
        for package in VALUE_MODULES
        for cls in modules_of(package)
        if f"{cls.__module__}.{cls.__qualname__}" not in NO_VALUES and "Lazy" not in cls.__name__
    }
    functions = {f"torch.nn.functional.{name}" for name in ACTIVATIONS if hasattr(F, name)}
    # Some are written in C and pickle under the name of their own module.
    functions |= {pickled_name(getattr(F, name)) for name in ACTIVATIONS if hasattr(F, name)}
    functions |= {f"torch.{name}" for name in OPERATORS}
    ours = vars(importlib.import_module("timm.layers.activations"))
    functions |= {f"timm.layers.activations.{n}" for n, f in ours.items() if of(f, "timm.layers.activations")}
    return classes | functions


def pickled_name(function: Any) -> str:
    """The name that a pickle has for a function."""
    module = getattr(function, "__module__", None) or "torch"
    return f"{module}.{function.__qualname__}" if module != "torch" else f"torch.{function.__name__}"


def of(value: Any, module: str) -> bool:
    """Whether something is a function that a module defines."""
    return isinstance(value, types.FunctionType) and value.__module__ == module and not value.__name__.startswith("_")


if __name__ == "__main__":
    sys.exit(main())
