"""Write the golden files of this version: what `test_golden.py` will load with every later one.

    python tests/make_golden.py

Run it once a release, when all is in it that belongs to it. It writes tests/golden/VERSION: the network of
`golden_nets.py`, converted, as a whole module and as tensors in both formats, and what it computes. Golden files are
never written again: where the folder is there, it refuses.
"""

import argparse
from pathlib import Path

import golden_nets
import torch
from safetensors.torch import save_file

import blurify
from blurify.files.sources import ModelSource

GOLDEN = Path(__file__).parent / "golden"
SOURCE = ModelSource("python:golden_nets:build", "factory", "python:golden_nets:build")


def make(folder: Path) -> None:
    """Write the golden files into a new folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    original = golden_nets.build().eval()
    x = torch.randn(2, 3, 64, 64)
    converted = blurify.convert(original, example_inputs=x)
    with torch.no_grad():
        expected = {"input": x, "output": converted(x), "original": original(x)}
    blurify.save(converted, folder / "module.pt")
    blurify.save(converted, folder / "weights.pt", source=SOURCE)
    blurify.save(converted, folder / "weights.safetensors", source=SOURCE)
    save_file(expected, folder / "expected.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=GOLDEN, help="the folder that gets a folder named by the version")
    folder = parser.parse_args().out / blurify.__version__
    if folder.exists():
        raise SystemExit(f"{folder} is there: golden files are never written again (raise the version first)")
    make(folder)
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
