"""The index behind `--arch auto`: `make architectures` writes blurify/files/sources/known_architectures.json.

Every architecture of timm and torchvision is built without data: as it is, with another number of classes, and with
another number of input channels. What the first changes is its head, what the second changes its stem, and the rest
its trunk, whose digest goes into the index. Architectures that have the same tensors are then given the same weights
and the same input, in double precision: those with the same outputs compute the same function.

Then the index is tried on all of them (`--check` does only that): does the state_dict of an architecture, its shapes
alone, lead back to it, to one that computes the same, or to a refusal that lists it? benchmarks/architectures.json has
what came of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from blurify import zoo
from blurify.errors import BlurifyError
from blurify.files import sources
from blurify.files.sources.auto import find_architecture
from blurify.files.sources.index import Kind, index
from blurify.files.sources.shapes import Shapes, shapes_of
from blurify.graph.copies import without_data
from blurify.graph.inputs import traced
from blurify.graph.structure import tensors_in

HERE = Path(__file__).parent
OUT = HERE.parent / "blurify" / "files" / "sources" / "known_architectures.json"
WORK = HERE.parent / ".cache" / "architectures"
PATTERNS = ["timm/*", "torchvision/*"]
RESULT = HERE / "architectures.json"
CLASSES, CHANNELS = 7, 1
OTHER_CLASSES = 11
TOLERANCE = 1e-9  # relative, in float64
SMALL, ODD = (1, 3, 96, 96), (1, 3, 107, 107)
LARGEST = 250_000_000  # parameters: beyond, comparing takes too long, and those architectures are taken to differ


def measured(spec: str) -> dict[str, Any]:
    """The digest of an architecture's trunk, and what of it depends on options."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plain = shapes_of(spec)
    classes = tried(f"{spec}?num_classes={CLASSES}")
    channels = tried(f"{spec}?in_chans={CHANNELS}") if spec.startswith("timm/") else None
    head = () if classes is None else tuple(sorted(
        name for name in {*plain, *classes} if plain.get(name) != classes.get(name)
    ))  # fmt: skip
    stem = () if channels is None else tuple(sorted(
        name for name in plain if name in channels and only_second(plain[name], channels[name])
    ))  # fmt: skip
    kind = Kind(head, stem)
    whole = Kind((), ())  # with all tensors
    return {
        "model": spec, "head": head, "stem": stem, "trunk": kind.trunk(plain),
        "alike": whole.trunk(classes or plain), "tensors": len(plain),
        "numbers": sum(torch.Size(shape).numel() for shape in plain.values()),
    }  # fmt: skip


def tried(spec: str) -> Shapes | None:
    """The shapes with options; None where the architecture doesn't take them."""
    try:
        return shapes_of(spec)
    except Exception:  # whatever a factory raises
        return None


def only_second(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes differ in their second dimension alone."""
    return len(one) == len(other) > 1 and one != other and one[:1] + one[2:] == other[:1] + other[2:]


def worked(
    function: Callable[[Any], dict[str, Any]], items: Iterable[Any], name: str, jobs: int
) -> list[dict[str, Any]]:
    """What a function says about every item; a run that was stopped goes on where it was."""
    WORK.mkdir(parents=True, exist_ok=True)
    journal = WORK / f"{name}.jsonl"
    known = {}
    if journal.exists():
        known = {entry["key"]: entry["found"] for entry in map(json.loads, journal.read_text().splitlines())}
    items = list(items)
    todo = [item for item in items if json.dumps(item) not in known]
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=40) as pool, journal.open("a") as file:
        for number, (item, found) in enumerate(pool.imap_unordered(_Keyed(function), todo), 1):
            known[json.dumps(item)] = found
            file.write(json.dumps({"key": json.dumps(item), "found": found}) + "\n")
            file.flush()
            print(f"[{name} {number}/{len(todo)}] {item}", flush=True)
    return [known[json.dumps(item)] for item in items]


class _Keyed:
    """A function, with what it was given."""

    def __init__(self, function: Callable[[Any], dict[str, Any]]) -> None:
        self.function = function

    def __call__(self, item: Any) -> tuple[Any, dict[str, Any]]:
        return item, self.function(item)


def same_function(specs: list[str]) -> dict[str, Any]:
    """Which of some architectures with the same tensors compute the same function.

    Returns:
        'groups' of them, and what the comparison was made with.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first = shapes_of(classified(specs[0]))
    numbers = sum(torch.Size(shape).numel() for shape in first.values())
    if numbers > LARGEST:
        return {"groups": [[spec] for spec in specs], "how": f"not compared: {numbers / 1e6:.0f} M numbers"}
    weights: dict[str, torch.Tensor] = {}
    sizes = [SMALL, ODD]
    results: dict[str, list[list[torch.Tensor] | None]] = {}
    for spec in specs:
        model = built(spec)
        weights = weights or lively(model)
        model.load_state_dict(weights)
        if not results and outputs(model, SMALL) is None:  # it takes one size alone
            sizes = sorted({input_size(spec) for spec in specs})
        results[spec] = [outputs(model, size) for size in sizes]
        del model
    groups: list[list[str]] = []
    for spec in specs:
        for group in groups:
            if equal(results[spec], results[group[0]]):
                group.append(spec)
                break
        else:
            groups.append([spec])
    return {"groups": groups, "how": f"float64, inputs {' '.join('x'.join(map(str, size)) for size in sizes)}"}


def classified(spec: str) -> str:
    """An architecture with the number of classes at which all are compared."""
    with_classes = f"{spec}?num_classes={CLASSES}"
    return spec if tried(with_classes) is None else with_classes


def built(spec: str) -> torch.nn.Module:
    torch.manual_seed(0)  # some keep more than their state_dict says
    model, _ = sources.build(classified(spec), pretrained=False)
    return model.double().eval()


def lively(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights, with which no layer is without effect; whole numbers as they are."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            weights[name] = value
        elif value.dim() > 1:
            fan_in = value[0].numel()
            weights[name] = torch.randn(value.shape, generator=generator, dtype=value.dtype) / fan_in**0.5
        elif name.endswith(("weight", "running_var", "gamma", "scale")):
            weights[name] = torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5
        else:
            weights[name] = torch.randn(value.shape, generator=generator, dtype=value.dtype) / 5
    return weights


def input_size(spec: str) -> tuple[int, ...]:
    """The shape of an architecture's input."""
    if spec.startswith("timm/"):
        return (1, *timm.get_pretrained_cfg_value(spec.removeprefix("timm/"), "input_size"))
    with without_data():
        model, _ = sources.build(spec, pretrained=False)
    return next(tuple(value.shape) for value in traced(model).inputs[0] if isinstance(value, torch.Tensor))


def outputs(model: torch.nn.Module, size: tuple[int, ...]) -> list[torch.Tensor] | None:
    """What a model gives for two inputs; None where it takes none of this size."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn((2, *size[1:]), generator=generator, dtype=torch.float64)
    try:
        with torch.no_grad():
            return tensors_in(model(inputs))
    except Exception:  # whatever a forward raises
        return None


def equal(one: list[list[torch.Tensor] | None], other: list[list[torch.Tensor] | None]) -> bool:
    """Whether outputs are the same to the rounding of float64 at every size that both take; there has to be one."""
    compared = False
    for mine, theirs in zip(one, other, strict=True):
        if mine is None or theirs is None:
            continue
        if [value.shape for value in mine] != [value.shape for value in theirs]:
            return False
        for value, another in zip(mine, theirs, strict=True):
            scale = value.abs().max()
            moves = value.shape[0] == 2 and (value[0] - value[1]).abs().max() > 1e-3 * scale  # by its input
            if not torch.isfinite(value).all() or not moves or (value - another).abs().max() > TOLERANCE * scale:
                return False
            compared = True
    return compared


def led_back(spec: str) -> dict[str, Any]:
    """Where the shapes of an architecture lead, as they are; of one in eight also with other options."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    queries = {"plain": ""}
    if zlib.crc32(spec.encode()) % 8 == 0:
        queries |= {"classes": f"?num_classes={OTHER_CLASSES}", "no head": "?num_classes=0"}
        if spec.startswith("timm/"):
            queries["channels"] = f"?num_classes={OTHER_CLASSES}&in_chans={CHANNELS}"
    found = {"model": spec}
    for what, query in queries.items():
        shapes = tried(spec + query)
        found[what] = "is refused by the factory" if not shapes else outcome(spec, shapes)
    return found


def outcome(spec: str, shapes: Shapes) -> str:
    """In words; those that should not be begin with WRONG."""
    try:
        match = find_architecture(shapes, "it")
    except BlurifyError as error:
        if "different functions" not in str(error):
            return "nothing found"
        listed = [word.partition("?")[0] for word in str(error).split()]
        alike = next((group for group in index().same if spec in group), {spec})
        return "refused, listed" if alike & set(listed) else "WRONG: refused without it"
    named = match.spec.partition("?")[0]
    if dict(shapes_of(match.spec)) != dict(shapes):
        return f"WRONG: {match.spec} has other shapes"
    if named == spec:
        return "itself"
    if spec in match.note:
        alike = any({named, spec} <= group for group in index().same)
        return "the same function" if alike else "the plain one, named in the note"
    return "the same function" if any({named, spec} <= alike for alike in index().same) else f"WRONG: {match.spec}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-j", "--jobs", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="only try the index that is there")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(WORK, ignore_errors=True)
    specs = zoo.select(PATTERNS, pretrained=False)
    if not options.check:
        write_index(worked(measured, specs, "measured", options.jobs), options.jobs)
    (WORK / "led_back.jsonl").unlink(missing_ok=True)
    rows = worked(led_back, specs, "led_back", options.jobs)
    totals = {what: dict(Counter(row[what] for row in rows if what in row).most_common())
              for what in ("plain", "classes", "channels", "no head")}  # fmt: skip
    document = {
        "command": "python benchmarks/architectures.py", "versions": versions(), "architectures": len(rows),
        "totals": totals,
        "not itself": {row["model"]: row["plain"] for row in rows if row["plain"] != "itself"},
        "others": [row for row in rows if "WRONG" in str(row) or "nothing" in str(row)],
    }  # fmt: skip
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(totals, indent=1))
    return 1 if "WRONG" in json.dumps(totals) or "nothing found" in totals["plain"] else 0


def write_index(rows: list[dict[str, Any]], jobs: int) -> None:
    """The file that is shipped."""
    kinds = sorted({(tuple(row["head"]), tuple(row["stem"])) for row in rows})
    trunks: dict[str, list[str]] = defaultdict(list)
    alike: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        trunks[row["trunk"]].append(row["model"])
        alike[row["alike"]].append(row["model"])
    sets = [sorted(group) for group in alike.values() if len(group) > 1]
    compared = worked(same_function, sets, "compared", jobs)
    document = {
        "command": "python benchmarks/architectures.py",
        "versions": versions(),
        "architectures": len(rows),
        "same tensors": [{"how": found["how"], "groups": found["groups"]} for found in compared],
        "same": [group for found in compared for group in found["groups"] if len(group) > 1],
        "kinds": [{"head": head, "stem": stem} for head, stem in kinds],
        "trunks": {digest: sorted(group) for digest, group in sorted(trunks.items())},
    }
    OUT.write_text(json.dumps(document, separators=(",", ":")).replace('],"', '],\n"') + "\n")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "torchvision", "timm")}


if __name__ == "__main__":
    sys.exit(main())
