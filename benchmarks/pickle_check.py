"""Every architecture through the reader of pickles: `make pickle-check`.

Each of timm's and torchvision's architectures is built with weights that can be told apart, pickled as a whole module,
and opened as a stranger's file, without --allow and --trust. The loaded model must be the original: classes, modules,
attributes, tensors bit for bit; its plan must be the same; converted, saved and loaded again it must carry the same
plan, classes and bits, and compute the same outputs where a forward is small. Models of more than a number of
parameters have no data (the meta device) and are compared by shapes.

Each model runs in a process of its own kind, which is replaced when it fails; results go into a journal, so that a run
that was stopped goes on where it was. Writes benchmarks/pickle_check.json.
"""

from __future__ import annotations

import argparse
import enum
import functools
import json
import multiprocessing
import platform
import shutil
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import blurify
from blurify import zoo
from blurify.files import opening, sources
from blurify.nn.edited import changes_of, original_class

HERE = Path(__file__).parent
WORK = HERE.parent / ".cache" / "pickle-check"
PATTERNS = ["timm/*", "torchvision/*"]
LARGEST = 100_000_000  # parameters with data
GMACS = 0.3  # of a forward whose outputs are compared
Record = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("patterns", nargs="*", default=PATTERNS, help="as for blurify zoo (default: everything)")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    parser.add_argument("--work", type=Path, default=WORK, help="where the journal is (default .cache/pickle-check)")
    parser.add_argument("--out", type=Path, default=HERE, help="where pickle_check.json goes (default benchmarks/)")
    options = parser.parse_args()
    if options.out == HERE and options.patterns != PATTERNS:
        parser.error("benchmarks/ holds the result of everything: give --out for a part of it")
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    specs = zoo.select(options.patterns, pretrained=False)
    records = run(specs, options.work / "journal.jsonl", options.jobs)
    report = {
        "command": "python benchmarks/pickle_check.py",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("blurify", "torch", "torchvision", "timm")},
        "models": len(specs),
        **{
            what: sum(bool(records[spec].get(what)) for spec in specs)
            for what in (
                "loaded",
                "equal",
                "same_plan",
                "with_sites",
                "converted_again",
                "outputs_equal",
                "without_data",
            )
        },
        "tensors": sum(records[spec].get("tensors", 0) for spec in specs),
        "failed": {spec: records[spec]["error"] for spec in specs if "error" in records[spec]},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pickle_check.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if report["failed"] else 0


def run(specs: list[str], journal: Path, jobs: int) -> dict[str, Record]:
    """Check what the journal does not have, and what failed there."""
    records: dict[str, Record] = {}
    if journal.is_file():
        records = {record["model"]: record for line in journal.open() if "error" not in (record := json.loads(line))}
    with journal.open("a") as file:

        def keep(record: Record) -> None:
            records[record["model"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            line = record.get("error", f"{record.get('tensors')} tensors, {record.get('seconds')} s")
            print(f"[{len(records)}/{len(specs)}] {record['model']}: {line}", flush=True)

        left = [spec for spec in specs if spec not in records]
        for workers in (jobs, 1):  # what failed beside another is tried once more alone
            for record in checked(left, workers):
                keep(record)
            left = [spec for spec in left if "error" in records[spec]]
            for spec in left if workers > 1 else ():
                del records[spec]
    return records


def checked(specs: list[str], jobs: int) -> Iterator[Record]:
    """Check models in processes that are replaced now and then, and when one dies."""
    left = list(specs)
    while left:
        batch, left = left[: 40 * jobs], left[40 * jobs :]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            waiting = {pool.submit(check, spec): spec for spec in batch}
            for done in as_completed(waiting):
                try:
                    yield done.result()
                except BrokenProcessPool as error:
                    yield {"model": waiting[done], "error": f"its process died: {error}"}


def check(spec: str) -> Record:
    """Pickle one architecture, read it back, convert it, and read that back."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    begin = time.monotonic()
    record: Record = {"model": spec}
    folder = Path(tempfile.mkdtemp(prefix="pickle-check-"))
    try:
        model, record["without_data"] = built(spec)
        torch.save(model, folder / "model.pt")
        loaded = opening.open_model(str(folder / "model.pt")).model
        record["loaded"] = True
        record["tensors"] = same(model, loaded)
        record["equal"] = True
        plan = blurify.inspect(model)
        if blurify.inspect(loaded).to_dict() != plan.to_dict():
            raise AssertionError("the plans differ")
        record["same_plan"] = True
        if plan.converted:
            record["with_sites"] = True
            converted = blurify.convert(loaded, inplace=True, verify=False)
            blurify.save(converted, folder / "converted.pt")
            again = blurify.load(folder / "converted.pt")
            same(converted.eval(), again)
            if blurify.plan_of(again) != plan:
                raise AssertionError("the plan of the converted model is another one")
            record["converted_again"] = True
            if not record["without_data"] and plan.macs <= GMACS * 1e9:
                record["outputs_equal"] = outputs_equal(converted, again, plan)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record["seconds"] = round(time.monotonic() - begin, 1)
    return record


def built(spec: str) -> tuple[nn.Module, bool]:
    """A model whose tensors can be told apart, and whether it has no data."""
    try:
        with torch.device("meta"):
            model, _ = sources.build(spec, pretrained=False)
        if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
            return model.eval(), True
    except Exception:  # its code reads values while it is made
        pass
    with _WithoutInitialisation():
        model, _ = sources.build(spec, pretrained=False)
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point() and tensor.numel():
                flat = torch.linspace(-0.1, 0.1, tensor.numel()).add_(number * 1e-4).reshape(tensor.shape)
                tensor.copy_(flat.abs() + 0.5 if "var" in str(number) else flat)
    return model.eval(), False


class _WithoutInitialisation:
    """Random numbers would only be written over."""

    names = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_", "normal_")

    def __enter__(self) -> None:
        self.kept = {name: getattr(nn.init, name) for name in self.names}
        for name in self.names:
            setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)

    def __exit__(self, *error: object) -> None:
        for name, function in self.kept.items():
            setattr(nn.init, name, function)


def outputs_equal(one: nn.Module, other: nn.Module, plan: Any) -> bool:
    """Whether two models compute the same bits."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in plan.input_shapes]
    with torch.no_grad():
        found = [flat_tensors(model(*inputs)) for model in (one, other)]
    for a, b in zip(*found, strict=True):
        if not torch.equal(a.nan_to_num(), b.nan_to_num()):
            raise AssertionError("the outputs differ")
    return True


def flat_tensors(value: Any) -> list[Tensor]:
    """The tensors in an output."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in flat_tensors(item)]


def same(one: nn.Module, other: nn.Module) -> int:
    """Ask whether two models are the same in all that they hold; the number of tensors that were compared."""
    compare = _Compare()
    compare.values(one, other, "model")
    return compare.tensors


class _Compare:
    def __init__(self) -> None:
        self.tensors = 0
        self.seen: dict[int, int] = {}

    def values(self, one: Any, other: Any, where: str) -> None:
        edited = isinstance(one, nn.Module) and (original_class(one), changes_of(one))
        if type(one) is not type(other) and (
            not edited or not changes_of(one) or edited != (original_class(other), changes_of(other))
        ):
            raise AssertionError(f"{where}: {type(one).__name__} and {type(other).__name__}")
        if isinstance(one, Tensor | nn.Module):
            if id(one) in self.seen:  # what is shared must be shared alike
                if self.seen[id(one)] != id(other):
                    raise AssertionError(f"{where} is shared otherwise")
                return
            self.seen[id(one)] = id(other)
        match one:
            case Tensor():
                self.tensors += 1
                same = one.shape == other.shape and one.dtype == other.dtype and one.stride() == other.stride()
                same = same and one.requires_grad == other.requires_grad and one.device == other.device
                if not same or not (one.is_meta or torch.equal(one, other)):
                    raise AssertionError(f"{where} is another tensor")
                self.values(vars(one), vars(other), f"{where}.__dict__")
            case nn.Module():
                # Recurrent modules make references to their weights anew, and so in another order.
                made_anew = "_flat_weight_refs"
                state, loaded = ({k: v for k, v in sorted(vars(m).items()) if k != made_anew} for m in (one, other))
                self.values(state, loaded, where)
            case dict():
                if list(one) != list(other):
                    raise AssertionError(f"{where} has other keys")
                for key in one:
                    self.values(one[key], other[key], f"{where}.{key}")
            case list() | tuple():
                if len(one) != len(other):
                    raise AssertionError(f"{where} has another length")
                for number, (a, b) in enumerate(zip(one, other, strict=True)):
                    self.values(a, b, f"{where}[{number}]")
            case functools.partial():
                self.values((one.func, one.args, one.keywords), (other.func, other.args, other.keywords), where)
            case types.MethodType():
                self.values((one.__func__, one.__self__), (other.__func__, other.__self__), where)
            case types.FunctionType() | types.BuiltinFunctionType() | type():
                if one is not other:
                    raise AssertionError(f"{where} is another function")
            case _ if hasattr(one, "__dict__") and not isinstance(one, enum.Enum):
                self.values(vars(one), vars(other), where)
            case _:
                if one != other and not (one != one and other != other):
                    raise AssertionError(f"{where}: {one!r} and {other!r}")


if __name__ == "__main__":
    sys.exit(main())
