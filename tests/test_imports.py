"""What importing and using the library imports besides."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch._dynamo", "timm", "torchvision")


def imported(code: str) -> list[str]:
    code += f"\nimport json, sys; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_layers_and_files_need_no_compiler() -> None:
    """torch's takes longer to import than torch."""
    assert imported("import blurify.nn, blurify.files.opening, blurify.conversion") == []


def test_a_conversion_needs_no_compiler() -> None:
    code = (
        "import torch, blurify; from torch import nn\n"
        "net = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))\n"
        "blurify.convert(net, example_inputs=torch.zeros(1, 3, 32, 32))"
    )
    assert imported(code) == []
