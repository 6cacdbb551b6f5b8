"""ultralytics' YOLO 3 to 26 and RT-DETR, from their YAML files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.wild.catalog import Library, Model

_TASKS = {"cls": "ClassificationModel", "seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
_TASKS |= {"sem": "SemanticSegmentationModel", "depth": "DepthModel"}


def _models() -> Iterator[Model]:
    import ultralytics

    for path in sorted((Path(ultralytics.__file__).parent / "cfg" / "models").glob("*/*.yaml")):
        if path.parent.name in ("rt-detr", "v3", "v5", "v6", "v8", "v9", "v10", "11", "12", "26"):
            yield Model(path.stem, lambda path=path: _built(path), lambda: torch.randn(1, 3, 128, 128))


def _built(path: Path) -> Any:
    from ultralytics.nn import tasks

    stem = path.stem
    if stem.startswith("yoloe"):
        name = "YOLOESegModel" if stem.endswith("seg") else "YOLOEModel"
    elif "world" in stem:
        name = "WorldModel"
    elif "rtdetr" in stem:
        name = "RTDETRDetectionModel"
    else:
        name = next((cls for part, cls in _TASKS.items() if part in stem.split("-")), "DetectionModel")
    return getattr(tasks, name)(_smallest(path), verbose=False)


def _smallest(path: Path) -> str:
    """The file's name as the library takes it, with the letter of its smallest scale where it has scales."""
    import re

    text = path.read_text()
    if re.search(r"^scales:", text, re.M) and re.search(r"^  n:", text, re.M):
        return str(path.with_name(re.sub(r"^(yolo(?:e-)?v?\d+)", r"\1n", path.stem) + ".yaml"))
    return str(path)


LIBRARIES = [Library("ultralytics", ("ultralytics", "ultralytics-thop"), _models)]
