"""What a directory of converted models holds: the journal of finished models, and the summary made of it.

The journal (`journal.jsonl`) is the truth: one line a finished model, appended and synced at once, the last line of a
model counts. `summary.json` and `summary.csv` are made from it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from blurify.errors import BlurifyError, one_line
from blurify.metrics.sizes import dimensions
from blurify.versions import versions
from blurify.zoo.storage import storage_at

Record: TypeAlias = dict[str, Any]
"""What came of one model; plain data. Always has 'model' and 'status': 'inspected' | 'converted' | 'failed'."""

JOURNAL, BEGUN, SUMMARY_JSON, SUMMARY_CSV = "journal.jsonl", ".begun", "summary.json", "summary.csv"
_STATUSES = ("inspected", "converted", "failed")
FORMAT = 1
_COLUMNS = (
    "model", "status", "error", "stage", "class", "weights", "recipe", "file", "bytes", "input_shapes", "sites",
    "converted", "skipped", "macs", "extra_macs", "identity_error", "identity_dtype", "sites_left", "tensors_equal",
    "proof_input_shapes", "sites_compared", "sites_shown", "drift", "meetings", "drift_measured", "drift_modules",
    "drift_error",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of the journal: a record, and fingerprints of the settings that it was made under."""

    record: Record
    looked: str
    made: str


@dataclass(frozen=True)
class Summary:
    """What a directory holds after a run.

    Attributes:
        models: the records of all models that were ever done there, by name.
        selected: the names that this run was about.
    """

    models: tuple[Record, ...]
    selected: tuple[str, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of this run's selection."""
        wanted = set(self.selected)
        return tuple(record for record in self.models if record["model"] in wanted)

    @property
    def failed(self) -> tuple[Record, ...]:
        """The records of this run's selection that failed."""
        return tuple(record for record in self.records if record["status"] == "failed")

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data: what `summary.json` holds. Only 'seconds' and versions vary between equal runs."""
        return {
            "format": FORMAT,
            "versions": versions(),
            "totals": totals(self.models),
            "models": list(self.models),
        }


class Directory:
    """What the runs of one directory or URL have made; nobody else's for as long as this object lives."""

    def __init__(self, where: str | Path) -> None:
        self.storage = storage_at(where)
        self.token = self.storage.take()
        self.entries: dict[str, Entry] = {}
        self.begun: set[str] = set()

    def open(self) -> None:
        """Read the journal (mending what a kill tore), remove unfinished files, and be ready to append.

        Raises:
            BlurifyError: it can't be read or written.
        """
        try:
            self._read(self.storage.lines(JOURNAL))
            self.begun = {line.decode(errors="replace") for line in self.storage.lines(BEGUN)}
            self.storage.append(JOURNAL, b"")
            self.storage.tidy()
        except OSError as error:
            raise BlurifyError(f"{self.storage.at(JOURNAL)} can't be read and written: {_reason(error)}") from error

    def _read(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                data = json.loads(line)
                entry = Entry(data["record"], data["looked"], data["made"])
                if entry.record["status"] in _STATUSES and isinstance(entry.record["seconds"], dict):
                    self.entries[entry.record["model"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # not a line of ours: that model is done again

    def sizes(self) -> dict[str, int]:
        """The bytes of all files of models that are there; -1 for what is no file.

        Raises:
            BlurifyError: it can't be read.
        """
        try:
            return self.storage.sizes()
        except OSError as error:
            raise BlurifyError(f"{self.storage.at('')} can't be read: {_reason(error)}") from error

    def remove(self, name: str) -> None:
        """Remove a model's file.

        Raises:
            BlurifyError: it can't be removed.
        """
        with self._writing(name):
            self.storage.remove(name)

    def begin(self, name: str) -> None:
        """Note that a model's file is about to be made: whatever has its name from now on is a run's, not a user's."""
        if name not in self.begun:
            with self._writing(BEGUN):
                self.storage.append(BEGUN, name.encode())
            self.begun.add(name)

    def append(self, entry: Entry) -> None:
        """Write down a finished model, so that it stays written down.

        Raises:
            BlurifyError: it can't be written (a full disk).
        """
        data = {"record": entry.record, "looked": entry.looked, "made": entry.made}
        name, before = entry.record["model"], dict(self.entries)
        # Known first: a signal that comes once the line is on the disk must find it in the summary, too.
        self.entries[name] = entry
        try:
            with self._writing(JOURNAL):
                self.storage.append(JOURNAL, json.dumps(data, sort_keys=True).encode())
        except BlurifyError:
            self.entries = before
            raise

    def summarize(self, selected: Iterable[str]) -> Summary:
        """Write `summary.json` and `summary.csv` and return the same."""
        models = tuple(self.entries[name].record for name in sorted(self.entries))
        summary = Summary(models, tuple(selected))
        for name, text in (
            (SUMMARY_JSON, json.dumps(summary.to_dict(), indent=1) + "\n"),
            (SUMMARY_CSV, to_csv(models)),
        ):
            with self._writing(name):
                self.storage.replace(name, text.encode("utf-8", "backslashreplace"))
        return summary

    def close(self) -> None:
        """Let go of the directory."""
        with contextlib.suppress(OSError):
            self.storage.tidy()
        self.storage.let_go()

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Say what to do where a file can't be written."""
        try:
            yield
        except OSError as error:
            raise BlurifyError(
                f"{self.storage.at(name)} can't be written ({_reason(error)}): put that right (make room), and run the "
                "same again; what is done is kept"
            ) from error


def _reason(error: OSError) -> str:
    return error.strerror or one_line(error)


def totals(models: Iterable[Record]) -> dict[str, Any]:
    """How many models have each status, and their sites by kind and by what is done with them."""
    keys = ("models", "inspected", "converted", "failed", "sites", "sites_converted")
    result: dict[str, Any] = dict.fromkeys(keys, 0)
    kinds: dict[str, int] = {}
    rules: dict[str, int] = {}
    for record in models:
        result["models"] += 1
        result[record["status"]] += 1
        result["sites"] += record.get("sites", 0)
        result["sites_converted"] += record.get("converted", 0)
        for field, into in (("kinds", kinds), ("skipped_by_rule", rules)):
            for key, count in record.get(field, {}).items():
                into[key] = into.get(key, 0) + count
    return result | {"kinds": dict(sorted(kinds.items())), "skipped_by_rule": dict(sorted(rules.items()))}


def to_csv(models: Iterable[Record]) -> str:
    """One row a model; the counts by kind and by rule, and the times, in columns of their own."""
    rows = list(models)
    groups = {"kinds": "sites", "converted_by_rule": "converted", "skipped_by_rule": "skipped", "seconds": "seconds"}
    extra = [
        (field, key, f"{prefix}_{key.replace('-', '_')}")
        for field, prefix in groups.items()
        for key in sorted({key for row in rows for key in row.get(field) or {}})
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(name for _, _, name in extra)])
    for row in rows:
        counts = [(row.get(field) or {}).get(key, 0 if field != "seconds" else "") for field, key, _ in extra]
        if "sites" not in row:  # nothing is known about it
            counts = [""] * len(counts)
        writer.writerow([*(_cell(row.get(column)) for column in _COLUMNS), *counts])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(dimensions, value))
    return value
