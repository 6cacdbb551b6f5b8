"""`--source net.py`: a file of the user's own, whose classes a pickled model is made of."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from blurify.errors import BlurifyError
from blurify.files import opening
from blurify.files.sources.own_file import import_source
from tests import warm

NET = """
import enum
import torch
from torch import nn

class Mode(enum.Enum):
    FAST = 1

def swish(x):
    return x * torch.sigmoid(x)

class Block(nn.Sequential):
    pass

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.mode, self.act = Mode.FAST, swish
        self.block = Block(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))

    def forward(self, x):
        return self.act(self.block(x))
"""
_NUMBERS = itertools.count()


def saved(folder: Path, module: str, *, main: bool = False, weights: bool = False) -> Path:
    """A model that another process saved, as the user's own training script does."""
    path = folder / "model.pt"
    what = "model.state_dict()" if weights else "model"
    script = f"import torch; torch.manual_seed(0); model = Net(); torch.save({what}, {str(path)!r})"
    program = f"{NET}\n{script}" if main else f"from {module} import Net; {script}"
    (folder / "save.py").write_text(program)
    warm.run([sys.executable, "save.py"], cwd=folder, check=True)
    return path


@pytest.fixture
def name() -> str:
    """The name of a module that no other test has imported."""
    return f"own_net_{os.getpid()}_{next(_NUMBERS)}"


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The import path and the working directory of a console script."""
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])


def test_classes_of_the_module(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"{name}.py"
    source.write_text(NET)
    path = str(saved(tmp_path, name))
    with pytest.raises(BlurifyError, match=rf"{name}\.swish, which is no class.*--source {name}\.py"):
        sys.path.append(str(tmp_path))
        opening.open_model(path)
    sys.path.remove(str(tmp_path))
    model = opening.open_model(path, source=source).model
    assert type(model).__module__ == name and model.act is sys.modules[name].swish
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 4, 4, 4)
    assert type(opening.open_model(path, source=source, trust=True).model) is type(model)


@pytest.mark.parametrize("trust", [False, True])
def test_classes_of_the_script_that_saved_it(tmp_path: Path, name: str, trust: bool) -> None:
    path = str(saved(tmp_path, name, main=True))
    with pytest.raises(BlurifyError, match=r"__main__\.\w+, which was defined in the script that saved it") as caught:
        opening.open_model(path, trust=trust)
    assert "damaged" not in str(caught.value)
    source = tmp_path / f"{name}.py"
    source.write_text(NET)
    assert type(opening.open_model(path, source=source, trust=trust).model).__qualname__ == "Net"


def test_a_module_of_a_package(tmp_path: Path, name: str) -> None:
    package = tmp_path / f"pkg_{name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "parts.py").write_text("from torch import nn\n")
    (package / f"{name}.py").write_text(NET.replace("from torch import nn", "from .parts import nn"))
    path = str(saved(tmp_path, f"pkg_{name}.{name}"))
    model = opening.open_model(path, source=package / f"{name}.py").model
    assert type(model).__module__ == f"pkg_{name}.{name}"


def test_a_module_that_left_its_package(tmp_path: Path, name: str) -> None:
    package = tmp_path / f"pkg_{name}"
    package.mkdir()
    (package / f"{name}.py").write_text(NET)
    path = str(saved(tmp_path, f"pkg_{name}.{name}"))
    source = tmp_path / f"{name}.py"
    source.write_text(NET)
    assert type(opening.open_model(path, source=source).model).__module__ == name


def test_python_finds_it(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"{name}.py"
    source.write_text(NET)
    path = str(saved(tmp_path, name, weights=True))
    with pytest.raises(BlurifyError, match=r"--source FILE\.py"):
        opening.open_model(path, arch=f"python:{name}:Net")
    model = opening.open_model(path, arch=f"python:{name}:Net", source=source).model
    torch.manual_seed(0)
    assert torch.equal(model.block[0].weight, sys.modules[name].Net().block[0].weight)
    assert opening.open_model(f"python:{name}:Net?width=6", source=source).model.block[0].out_channels == 6


def test_another_file_of_the_same_name_is_another_module(tmp_path: Path, name: str) -> None:
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b")):
        folder.mkdir()
        (folder / f"{name}.py").write_text(f"number = {number}")
        module = import_source(folder / f"{name}.py")
        assert module.number == number and import_source(folder / f"{name}.py") is module


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("absent.py", None, "is no file"),
        ("net.txt", "", "no module that can be imported"),
        ("two words.py", "", "no module that can be imported"),
        ("torch.py", "", "is the name of another module"),
        ("broken_own.py", "1 / 0", "ZeroDivisionError"),
        ("wrong_own.py", "def", "SyntaxError"),
        ("ends_own.py", "raise SystemExit(3)", "__main__"),
    ],
)
def test_files_that_are_no_source(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    torch.save(nn.ReLU(), tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match=words) as caught:
        opening.open_model(str(tmp_path / "x.pt"), source=tmp_path / file)
    assert "\n" not in str(caught.value)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as its console script runs it: the working directory is not on the path."""
    program = "import sys; sys.argv[0] = 'blurify'; from blurify.cli import main; sys.exit(main())"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return warm.run(
        [sys.executable, "-P", "-c", program, *arguments], cwd=folder, env=here, capture_output=True, text=True
    )


def test_the_directory_of_the_user(tmp_path: Path) -> None:
    """--allow and --trust find a module where the user is, as python: does."""
    (tmp_path / "net.py").write_text(NET.replace("self.mode, self.act = Mode.FAST, swish", "self.act = nn.ReLU()"))
    saved(tmp_path, "net")
    for options in (["--allow", "net.Net", "--allow", "net.Block"], ["--trust"]):
        ran = run(tmp_path, "inspect", "model.pt", "--input-shape", "1,3,32,32", *options)
        assert ran.returncode == 0 and "block.2" in ran.stdout, ran.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = run(elsewhere, "inspect", "../model.pt", "--trust")
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1 and "damaged" not in ran.stderr
    assert "needs the module net: run from its directory, install it, or add --source net.py" in ran.stderr
    ran = run(elsewhere, "inspect", "../model.pt", "--source", "../net.py", "--input-shape", "1,3,32,32")
    assert ran.returncode == 0 and "block.2" in ran.stdout, ran.stderr
