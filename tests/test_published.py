"""The published models, exactly (a sample: `make parity` runs all 23, taps 2 to 5, two sizes)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("antialiased_cnns")


def load_parity() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = load_parity()


@pytest.mark.parametrize(
    ("name", "taps", "size"),
    [
        ("alexnet", [2, 5], 224),
        ("vgg11_bn", [3], 224),
        ("resnet18", [4, 5], 256),
        ("resnext50_32x4d", [2, 3], 224),
        ("densenet121", [4, 3], 224),
        ("mobilenet_v2", [5], 224),
    ],
)
def test_converted_torchvision_model_computes_the_published_function(name: str, taps: list[int], size: int) -> None:
    rows = list(parity.compare(name, taps, [size]))
    assert [row["taps"] for row in rows] == taps
    for row in rows:
        assert row["error"] <= 1e-5
        assert row["file_error"] <= 1e-5
        assert row["unconverted"] > 1e-5  # else the comparison would show nothing


def test_every_published_model_is_in_the_full_comparison() -> None:
    import antialiased_cnns

    # The functions that build a model are the lower-case callables that take `filter_size`.
    builders = {
        name
        for name, value in vars(antialiased_cnns).items()
        if name.islower() and callable(value) and name not in ("copy_params", "copy_buffers", "copy_params_buffers")
    }
    assert set(parity.MODELS) == {name for name in builders if not name.startswith("get_pad_layer")}
    assert len(parity.MODELS) == 23
