"""Measurements in a file, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blurify.errors import BlurifyError, one_line
from blurify.files import atomic
from blurify.metrics.differences import differences
from blurify.metrics.evidence import Evidence
from blurify.metrics.pareto import ParetoTable
from blurify.metrics.results import Measurement
from blurify.metrics.trade_off import Ranking
from blurify.spec.adapted import Adapted
from blurify.spec.plan import Plan


@dataclass(frozen=True)
class Context:
    """What a file of measurements says besides: enough for a report, and to measure again.

    Attributes:
        plan: of the conversion, done or not; None where it is not known.
        command: the command line that measured; '' where it was none.
        versions: of what took part, by name.
        same_weights: the converted model has the original's weights, bit for bit: it was not fine-tuned.
        ranking: of the sites by what converting each costs; None where they were not ranked.
        adapted: what adapting did to each model, one entry a measurement, None for a model that was not adapted; empty
            where none was.
        pareto: what partial conversions cost and buy; None where they were not measured.
        evidence: what a report shows besides figures; None where it was not gathered.
    """

    plan: Plan | None = None
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    same_weights: bool = False
    ranking: Ranking | None = None
    adapted: tuple[Adapted | None, ...] = ()
    pareto: ParetoTable | None = None
    evidence: Evidence | None = None


def write_measurements(
    path: str | Path, measurements: Sequence[Measurement], *, context: Context | None = None, force: bool = False
) -> Path:
    """Write measurements as JSON: `{"measurements": [...]}`. The file appears complete or not at all.

    Of two measurements there is a "difference" beside it: by the figure's name, how far the second's is above the
    first's (see `differences`). Of three, "differences" is a list of those of the second and the third.

    Args:
        path: the file.
        measurements: what `measure` returned, of one model or several.
        context: what else to write down, beside "measurements": "plan", "command", "versions", "same_weights"
            and, where there are such, "ranking", "adapted", "pareto" and "evidence".
        force: replace a file that is there.

    Returns:
        The path written.

    Raises:
        BlurifyError: the target exists or can't be written.
    """
    path = Path(path).expanduser()
    atomic.check_target(path, force=force)
    text = json.dumps(as_json(measurements) | _context_data(context), indent=1, allow_nan=False) + "\n"

    atomic.write_bytes(path, text.encode(), force=force)
    return path


def as_json(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What `write_measurements` writes and `blurify measure --json` prints."""
    data: dict[str, Any] = {"measurements": [measurement.to_dict() for measurement in measurements]}
    first, *others = measurements
    found = [{name: asdict(item) for name, item in differences(first, other).items()} for other in others]
    if len(found) == 1:
        data["difference"] = found[0]
    elif found:
        data["differences"] = found
    return data


def _context_data(context: Context | None) -> dict[str, Any]:
    if context is None:
        return {}
    plan = context.plan.to_dict() if context.plan else None
    return {
        "plan": plan,
        "command": context.command,
        "versions": dict(context.versions),
        "same_weights": context.same_weights,
        **({"ranking": context.ranking.to_dict()} if context.ranking else {}),
        **({"adapted": [item and item.to_dict() for item in context.adapted]} if any(context.adapted) else {}),
        **({"pareto": context.pareto.to_dict()} if context.pareto else {}),
        **({"evidence": context.evidence.to_dict()} if context.evidence else {}),
    }


def read_measurements(path: str | Path) -> tuple[Measurement, ...]:
    """The measurements in a file that `write_measurements` wrote.

    Raises:
        BlurifyError: there is no such file, or it holds something else.
    """
    return read_all(path)[0]


def read_all(path: str | Path) -> tuple[tuple[Measurement, ...], Context]:
    """The measurements in a file that `write_measurements` wrote, and what else it says.

    Raises:
        BlurifyError: there is no such file, or it holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BlurifyError(f"there is no file {path}: write one with blurify measure MODEL -o {path.name}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        entries = data["measurements"]
        if not isinstance(entries, list) or not entries:
            raise TypeError("no measurements in it")
        plan = Plan.from_dict(data["plan"]) if data.get("plan") is not None else None
        versions = {str(name): str(version) for name, version in data.get("versions", {}).items()}
        same = data.get("same_weights") is True
        ranking = Ranking.from_dict(data["ranking"]) if data.get("ranking") is not None else None
        adapted = tuple(None if item is None else Adapted.from_dict(item) for item in data.get("adapted") or ())
        if adapted and len(adapted) != len(entries):
            raise TypeError(f"{len(adapted)} records of adapting for {len(entries)} measurements")
        pareto = ParetoTable.from_dict(data["pareto"]) if data.get("pareto") is not None else None
        evidence = Evidence.from_dict(data["evidence"]) if data.get("evidence") is not None else None
        context = Context(plan, str(data.get("command", "")), versions, same, ranking, adapted, pareto, evidence)
        return tuple(Measurement.from_dict(entry) for entry in entries), context
    except OSError as error:
        raise BlurifyError(f"{path} can't be read: {error.strerror}") from error
    except BlurifyError as error:
        raise BlurifyError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BlurifyError(
            f"{path} holds no measurements ({one_line(error)}): write one with blurify measure MODEL -o {path.name}"
        ) from error
