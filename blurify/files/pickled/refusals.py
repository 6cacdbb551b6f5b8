"""What a file needs and does not get, in one line that says what to do."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

_STATE_DICT = "save its weights with torch.save(model.state_dict(), PATH), and give the architecture with --arch"

# What no --allow makes work, by what its names begin with, and what does.
_OTHERWISE = {
    # The compiler's settings come along, and may name anything.
    ("torch._dynamo.", "torch._inductor.", "torch._TorchCompileInductorWrapper"): (
        "is a model compiled by torch.compile ({name}): save the one inside, with torch.save(model._orig_mod, PATH)"
    ),
    (
        "torch.ao.", "torch.nn.quantized.", "torch.nn.intrinsic.", "torch.nn.qat.", "torch.quantization.",
        "torch._utils._rebuild_qtensor", "torch.per_tensor_affine", "torch.per_channel_affine", "torchao.",
    ): (
        "is a quantised model ({name}), which can't be converted: convert the float model that it was made from, and "
        "quantise the converted one"
    ),
    ("torch.fx.", "torch.export."): (
        "is a model traced by torch.fx ({name}), whose code is made when it is read: give the model that it was traced "
        "from; or add --trust, if the file is your own"
    ),
    ("torch.distributed.", "torch.nn.parallel."): (
        "needs {name}, as it was wrapped for training on several processes: save the model inside, with "
        "torch.save(model.module, PATH)"
    ),
    ("torch.nn.utils.prune.",): (
        "is pruned by hooks ({name}): make that permanent with torch.nn.utils.prune.remove(layer, 'weight'), and save "
        "it again"
    ),
    ("torch.nn.utils.",): (
        "has hooks of torch.nn.utils ({name}): remove them (torch.nn.utils.remove_weight_norm, remove_spectral_norm), "
        "and save it again"
    ),
    ("torch.optim.",): "holds an optimizer ({name}) and no model: give the file with the model or its weights",
    ("numpy.",): (
        "holds numbers of numpy ({name}), which are no part of a model here: " + _STATE_DICT + "; or add --trust, if "
        "the file is your own"
    ),
}  # fmt: skip


def explain_missing(path: Path, missing: Mapping[str, str], *, nothing: bool = False) -> str:
    """One line: which classes the file needs, and what the user can do about each.

    Args:
        path: the file.
        missing: full name -> why it can't be made, '' where it is only not on the list.
        nothing: the file has neither a module nor weights, as far as can be told.
    """
    if nothing and any(name.startswith("numpy.") for name in missing):
        return (
            f"{path} holds arrays of numpy, and neither a model nor tensors: save them as tensors, with "
            "torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, PATH)"
        )
    for prefixes, what in _OTHERWISE.items():
        for name in missing:
            if name.startswith(prefixes):
                return f"{path} {what.format(name=printable(name))}"
    absent = {name: why for name, why in missing.items() if why}
    if absent:
        name, why = next(iter(absent.items()))
        top = name.partition(".")[0]
        version = getattr(sys.modules.get(top), "__version__", "")
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        return (
            f"{path} needs {printable(name)}{more}, {why} ({version}): install the version of {top} that the model "
            "was saved with"
        )
    script = [name for name in missing if name.startswith("__main__.")]
    if script:
        return defined_in_script(path, script[0])
    functions = [name for name in missing if is_no_class(name)]
    if functions:
        module, _, name = functions[0].rpartition(".")
        top = module.partition(".")[0]
        own = top not in sys.stdlib_module_names and top not in ("torch", "torchvision", "timm")
        source = f"add --source {printable(module.rpartition('.')[2])}.py, the file that defines it; or " if own else ""
        return (
            f"{path} needs {printable(functions[0])}, which is no class, and --allow is for classes: {source}"
            f"{_STATE_DICT}; or add --trust, if the file is your own"
        )
    names = [printable(name) for name in missing]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    options = " ".join(f"--allow {name}" for name in names[:8])
    what = "the class" if len(names) == 1 else "the classes"
    those = "that class" if len(names) == 1 else "them"
    return (
        f"{path} needs {what} {listed}: add {options} if you trust {those} (run from the directory of the package, or "
        "add --source FILE.py with the file that defines it)"
    )


def defined_in_script(path: Path, name: str) -> str:
    """What to do about a class whose module was the program that saved it."""
    return (
        f"{path} needs {printable(name)}, which was defined in the script that saved it: add --source "
        "SCRIPT.py with that file (its code is run), or save its state_dict and give the model with "
        "--arch python:module:factory"
    )


def is_no_class(name: str) -> bool:
    """Whether a name is known to stand for something else than a class; nothing is imported or run to find out."""
    module, _, attribute = name.rpartition(".")
    loaded = sys.modules.get(module)
    if loaded is not None:
        found = vars(loaded).get(attribute)
        return found is not None and not isinstance(found, type)
    home = Path(*module.split("."))
    for folder in [Path.cwd(), *map(Path, sys.path)]:
        for file in (folder / home.with_suffix(".py"), folder / home / "__init__.py"):
            if file.is_file():
                return attribute in _functions(file)
    return False


def _functions(file: Path) -> set[str]:
    """The functions that a Python file defines, by its text."""
    try:
        tree = ast.parse(file.read_text())
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def printable(name: str) -> str:
    """A name from a file, such that it can be shown."""
    return ascii(name)[1:-1][:200]
