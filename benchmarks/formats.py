"""Every format in, every format out: `make formats`.

    python benchmarks/formats.py [--only timm,onnx] [--out benchmarks/formats.json] [--page docs/formats.md]

Each input is a real file, made by the library that makes such files (timm, pytorch-lightning, transformers, accelerate,
torch.distributed, torch.export, antialiased-cnns, ultralytics). Each is converted by the command line into each output,
and what was written is opened by what users would open it with: blurify, `torch.load`, `torch.export.load`,
onnxruntime. Its outputs are compared with those of the original model converted in Python. Writes the figures, and the
table of docs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import blurify
from blurify.cli import main as command_line
from blurify.versions import version_of

TOLERANCE = 1e-4  # of a float32 graph that another program runs
TOLERANCE_HALF = 1e-2  # of one in half precision, whose sums others round elsewhere
NAME = "timm/test_resnet?num_classes=10"
SIZE = 64


@dataclass
class Input:
    """A file to convert.

    Attributes:
        path: the file or directory.
        model: the original, which knows nothing of files.
        options: of the command line.
        recipe: that the conversion is made with; None: the default.
        size: of its inputs.
        dtype: of its weights and inputs.
    """

    path: str
    model: nn.Module
    options: list[str] = field(default_factory=list)
    recipe: Any = None
    size: int = SIZE
    dtype: torch.dtype = torch.float32


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(timm.create_model("test_resnet", num_classes=10))


def lively(model: nn.Module) -> nn.Module:
    """Norms that are not as they were made: a fresh network gives nearly the same answer to everything."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def named(path: str, model: nn.Module) -> Input:
    return Input(path, model, ["--arch", NAME])


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()(torch.randn(4, 3, SIZE, SIZE)).square().mean().backward()
    optimizer.step()
    return model.eval(), optimizer


# --- the inputs, by the libraries that make them


def pickled_module() -> Input:
    model = network()
    torch.save(model, "module.pt")
    return Input("module.pt", model)


def state_dict() -> Input:
    model = network()
    torch.save(model.state_dict(), "weights.pth")
    return named("weights.pth", model)


def older_file() -> Input:
    model = network()
    torch.save(model.state_dict(), "older.pth", _use_new_zipfile_serialization=False)
    return named("older.pth", model)


def timm_checkpoint() -> Input:
    from timm.utils import CheckpointSaver, ModelEmaV3

    model, optimizer = trained()
    averaged = ModelEmaV3(network(1))
    arguments = argparse.Namespace(model="test_resnet", lr=0.1)
    saver = CheckpointSaver(model, optimizer, args=arguments, model_ema=averaged, checkpoint_dir="timm")
    os.makedirs("timm", exist_ok=True)
    saver.save_checkpoint(3, metric=0.5)
    return Input(
        "timm/last.pth.tar", averaged.module.eval()
    )  # the architecture is in the file, the classes in its head


def torchvision_checkpoint() -> Input:
    model, optimizer = trained()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    whole = {"model": model.state_dict(), "model_ema": averaged.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**whole, "epoch": 4, "args": argparse.Namespace(lr=0.1)}, "references.pth")
    return named("references.pth", model)


def lightning_checkpoint() -> Input:
    import pytorch_lightning as pl

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3, SIZE, SIZE)), batch_size=4)
    lit = Lit()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(lit, data)
    trainer.save_checkpoint("lightning.ckpt")
    return named("lightning.ckpt", lit.net.eval())


def wrapped() -> Input:
    model = network()
    compiled = torch.compile(model)
    torch.save({f"module.{name}": value for name, value in compiled.state_dict().items()}, "ddp.pth")
    return named("ddp.pth", model)


def averaged_model() -> Input:
    model = network()
    torch.save(torch.optim.swa_utils.AveragedModel(model).state_dict(), "averaged.pth")
    return named("averaged.pth", model)


def safetensors() -> Input:
    from safetensors.torch import save_file

    model = network()
    save_file(model.state_dict(), "weights.safetensors")
    return Input("weights.safetensors", model, ["--arch", "auto"])


def sharded() -> Input:
    from huggingface_hub import save_torch_state_dict

    model = network()
    os.makedirs("sharded")
    save_torch_state_dict(model.state_dict(), "sharded", max_shard_size="400KB")
    return named("sharded/model.safetensors.index.json", model)


def timm_directory() -> Input:
    from timm.models import save_for_hf

    model = network()
    save_for_hf(model, "hub", safe_serialization=True)
    return Input("hub", model)


def transformers_directory() -> Input:
    import transformers

    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_labels=5, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], embedding_size=8
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained("transformers")
    return Input("transformers", model)


def accelerate_directory() -> Input:
    from accelerate import Accelerator

    model = network()
    accelerator = Accelerator(cpu=True)
    accelerator.save_model(accelerator.prepare(model), "accelerate")
    return named("accelerate", model)


def distributed_directory() -> Input:
    import torch.distributed.checkpoint as dcp

    model = network()
    dcp.save({"model": model.state_dict(), "epoch": 3}, checkpoint_id="distributed")
    return named("distributed", model)


def exported() -> Input:
    model = network()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, "exported.pt2")
    return Input("exported.pt2", model)


def compressed() -> Input:
    found = state_dict()
    Path("weights.pth.gz").write_bytes(gzip.compress(Path(found.path).read_bytes()))
    return named("weights.pth.gz", found.model)


def published() -> Input:
    import antialiased_cnns

    torch.manual_seed(0)
    model = antialiased_cnns.resnet18(filter_size=4).eval()
    torch.save(model.state_dict(), "published.pth")
    # The original is anti-aliased already: what comes out has to compute what it computes.
    return Input("published.pth", model, ["--arch", "torchvision/resnet18"], recipe="as it is")


def ultralytics_checkpoint() -> Input:
    from ultralytics import YOLO

    torch.manual_seed(0)
    yolo = YOLO("yolov8n.yaml")
    for module in lively(yolo.model).modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 1:
            nn.init.kaiming_normal_(module.weight)  # as torch makes them, features die out behind SiLU
    yolo.save("yolo.pt")
    model = torch.load("yolo.pt", weights_only=False)["model"].eval()
    return Input("yolo.pt", model, dtype=torch.float16)  # as they are published


def own_class() -> Input:
    Path("net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(\n"
        "            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),\n"
        "            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    sys.path.insert(0, os.getcwd())
    import net

    torch.manual_seed(0)
    model = net.Net().eval()
    torch.save(model, "own.pt")
    return Input("own.pt", model, ["--source", "net.py"])


INPUTS: dict[str, Callable[[], Input]] = {
    "pickled module": pickled_module,
    "state_dict": state_dict,
    "state_dict, torch < 1.6": older_file,
    "timm's training checkpoint (averaged weights)": timm_checkpoint,
    "torchvision's training checkpoint": torchvision_checkpoint,
    "Lightning checkpoint": lightning_checkpoint,
    "DDP around a compiled model": wrapped,
    "AveragedModel": averaged_model,
    "safetensors (--arch auto)": safetensors,
    "sharded safetensors": sharded,
    "hub directory of timm": timm_directory,
    "hub directory of transformers": transformers_directory,
    "directory of accelerate": accelerate_directory,
    "torch.distributed.checkpoint": distributed_directory,
    "torch.export (.pt2)": exported,
    "gzip'd state_dict": compressed,
    "antialiased-cnns": published,
    "ultralytics (yolov8n)": ultralytics_checkpoint,
    "own class (--source)": own_class,
}
OUTPUTS = (".pt", ".safetensors", ".pt.gz", "DIR/", ".pt2", ".onnx", "--plain .pt")


# --- what was written, opened by what users would open it with


def opened(given: Input, output: str, path: str, converted: nn.Module) -> Callable[[Tensor], Any]:
    """What computes the outputs of a file that was written."""
    if output == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    if output == ".pt2":
        return torch.export.load(path).module()
    if output.startswith("--plain"):
        fresh = blurify.convert(blurify.revert(converted), blurify.plan_of(converted).recipe, verify=False)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        fresh.load_state_dict(torch.load(path, weights_only=True), strict=True)
        return fresh.eval()
    try:
        return blurify.load(path.rstrip("/"), allow=_classes(converted) if "own" in given.path else ())
    except blurify.BlurifyError as error:
        if "model=" not in str(error):
            raise
        from blurify.files import opening  # tensors of a model that has no name

        source = Path(given.options[1]) if "--source" in given.options else None
        return blurify.load(path.rstrip("/"), model=opening.open_model(given.path, source=source).model)


def _classes(model: nn.Module) -> list[str]:
    found = {f"{type(module).__module__}.{type(module).__qualname__}" for module in blurify.revert(model).modules()}
    return sorted(name for name in found if not name.startswith(("torch.", "timm.", "torchvision.")))


def tensor_of(value: Any) -> Tensor:
    value = getattr(value, "logits", value)
    while isinstance(value, tuple | list):
        value = value[0]
    return next(iter(value.values())) if isinstance(value, dict) else value


def case(given: Input, output: str, expected: nn.Module, converted: nn.Module) -> dict[str, Any]:
    """One input into one output."""
    folder = Path("out")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = "out/model/" if output == "DIR/" else f"out/model{output.removeprefix('--plain ')}"
    options = [*given.options, "--no-verify", "--input-shape", f"1,3,{given.size},{given.size}"]
    options += ["--plain"] if output.startswith("--plain") else []
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = command_line(["convert", given.path, *options, "-o", path])
    if code:
        return {"error": None, "said": errors.getvalue().strip().removeprefix("error: ")}
    image = torch.randn(2, 3, given.size, given.size, generator=torch.Generator().manual_seed(3)).to(given.dtype)
    with torch.no_grad():
        wanted = tensor_of(expected(image))
        found = tensor_of(opened(given, output, path, converted)(image))
    wanted, found = wanted.float(), found.float()
    return {"error": ((wanted - found).abs().max() / wanted.abs().max()).item(), "said": ""}


def measure(only: str) -> dict[str, dict[str, Any]]:
    """All cases, one line each as they come."""
    words = [word for word in only.split(",") if word]
    rows: dict[str, dict[str, Any]] = {}
    for name, make in INPUTS.items():
        if words and not any(word in name for word in words):
            continue
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            given = make()
        if given.recipe == "as it is":
            from blurify.files import opening

            loaded = opening.open_model(given.path, arch=given.options[1])
            converted = blurify.convert(loaded.model, loaded.recipe, verify=False)
            expected = given.model
        else:
            converted = blurify.convert(
                given.model, verify=False, example_inputs=torch.randn(1, 3, SIZE, SIZE).to(given.dtype)
            )
            expected = converted
            image = torch.randn(2, 3, given.size, given.size).to(given.dtype)
            with torch.no_grad():
                apart = (tensor_of(given.model(image)) - tensor_of(expected(image))).float().norm()
                assert apart > 1e-3 * tensor_of(expected(image)).float().norm(), (
                    "blurs that change nothing show nothing"
                )
        rows[name] = {}
        bound = TOLERANCE if given.dtype == torch.float32 else TOLERANCE_HALF
        for output in OUTPUTS:
            rows[name][output] = found = case(given, output, expected, converted)
            found["right"] = found["error"] is not None and found["error"] <= bound
            shown = f"{found['error']:.1e}" if found["error"] is not None else f"refused: {found['said']}"
            print(f"{name:46} {output:12} {shown}", flush=True)
    return rows


def page(result: dict[str, Any]) -> str:
    """The page of docs."""
    notes: list[str] = []

    def cell(found: dict[str, Any]) -> str:
        if found["error"] is not None:
            return "0" if found["error"] == 0 else f"{found['error']:.0e}"
        if found["said"] not in notes:
            notes.append(found["said"])
        return f"no ({notes.index(found['said']) + 1})"

    head = "| in | " + " | ".join(f"`{output}`" for output in OUTPUTS) + " |"
    lines = [head, "| --- |" + " --- |" * len(OUTPUTS)]
    lines += [
        f"| {name} | " + " | ".join(cell(row[output]) for output in OUTPUTS) + " |"
        for name, row in result["rows"].items()
    ]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    said = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(
        [
            "# Formats",
            "",
            "<!-- written by benchmarks/formats.py (make formats) -->",
            "",
            "Each row is a real file, made by the library that makes such files, and converted by",
            "`blurify convert FILE -o OUT`; each column is what was written. It is opened by what users would open",
            "it with (blurify, `torch.load`, `torch.export.load`, onnxruntime), and the figure is how far its",
            "outputs are from those of the original model converted in Python: the largest difference over the",
            "largest output.",
            "",
            *lines,
            "",
            *said,
            *([""] if said else []),
            f"Measured with {versions}.",
            "",
        ]
    )


def main() -> int:
    """Measure, keep the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="words of the inputs to try")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None)
    options = parser.parse_args()
    out, docs = (path and path.absolute() for path in (options.out, options.page))
    warnings.simplefilter("ignore")
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            rows = measure(options.only)
        finally:
            os.chdir(home)
    packages = "torch timm torchvision transformers pytorch-lightning accelerate safetensors onnxruntime ultralytics"
    result = {
        "command": "python benchmarks/formats.py",
        "versions": {"python": platform.python_version()} | {name: version_of(name) for name in packages.split()},
        "rows": rows,
    }
    cases = [found for row in rows.values() for found in row.values()]
    wrong = [found for found in cases if found["error"] is not None and not found["right"]]
    refused = [found for found in cases if found["error"] is None]
    right = len(cases) - len(wrong) - len(refused)
    print(f"{len(cases)} cases: {right} right, {len(refused)} refused, {len(wrong)} wrong")
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if docs is not None:
        docs.write_text(page(result))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
