"""A Python file of the user's own (`--source net.py`), which defines the classes of a model."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from blurify.errors import BlurifyError, one_line

_IMPORTED: dict[str, ModuleType] = {}


def look_here() -> None:
    """Import from the working directory, too: the path of a console script does not begin there."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def import_from_here(module: str) -> ModuleType:
    """Import a module, from the working directory too."""
    look_here()
    return importlib.import_module(module)


def import_source(path: Path) -> ModuleType:
    """Run a file of the user's own as the module that it is, with its directory on the path.

    Args:
        path: a `.py` file; in a package, it is imported as its part.

    Returns:
        The module. Asked again for the same file, the same one.

    Raises:
        BlurifyError: there is no such file, its name is that of another module, or it fails.
    """
    path = path.expanduser().resolve()
    if not path.is_file() or path.suffix != ".py" or not path.stem.isidentifier():
        what = "is no file" if not path.is_file() else "is no module that can be imported"
        raise BlurifyError(f"--source {path} {what}: give the .py file that defines the model's classes")
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        parts.insert(0, root.name)
        root = root.parent
    full = ".".join(parts)
    for name in {full: None, path.stem: None}:
        present = sys.modules.get(name)
        if present is None:
            continue
        if getattr(present, "__file__", None) and Path(str(present.__file__)).resolve() == path:
            return present
        if _IMPORTED.get(name) is not present:
            raise BlurifyError(
                f"--source {path}: {name} is the name of another module ({getattr(present, '__file__', 'built in')}): "
                "give the file another name"
            )
        del sys.modules[name]  # another file of this name, that was opened before
    for folder in (str(path.parent), str(root)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module = _run(path, full)
    for name in (full, path.stem):  # `python:net:Net` finds it without the package, too
        sys.modules[name] = _IMPORTED[name] = module
    return module


def _run(path: Path, name: str) -> ModuleType:
    try:
        importlib.invalidate_caches()
        if "." in name:
            return importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    except SystemExit as error:
        sys.modules.pop(name, None)
        raise BlurifyError(
            f"--source {path} ends the program when it is imported: put what it runs under if __name__ == '__main__'"
        ) from error
    except Exception as error:  # whatever the user's own file raises
        sys.modules.pop(name, None)
        raise BlurifyError(f"--source {path} can't be imported: {type(error).__name__}: {one_line(error)}") from error
