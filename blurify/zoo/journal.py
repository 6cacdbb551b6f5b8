"""What a directory of converted models holds: its lock, the journal of finished models, and the summary made of it.

The journal (`journal.jsonl`) is the truth: one line a finished model, appended and synced at once, the last line of a
model counts. `summary.json` and `summary.csv` are made from it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from blurify.errors import BlurifyError
from blurify.files import atomic, unfinished
from blurify.metrics.sizes import dimensions
from blurify.versions import versions

Record: TypeAlias = dict[str, Any]
"""What came of one model; plain data. Always has 'model' and 'status': 'inspected' | 'converted' | 'failed'."""

JOURNAL, LOCK, BEGUN, SUMMARY_JSON, SUMMARY_CSV = "journal.jsonl", ".lock", ".begun", "summary.json", "summary.csv"
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
    """One directory of results, locked for as long as this object (or a worker that inherited the lock) lives."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BlurifyError(f"{self.path} can't be made a directory: {error.strerror}") from error
        self.lock = _lock(self.path / LOCK)
        self._journal: io.FileIO | None = None
        self.entries: dict[str, Entry] = {}
        self.begun: set[str] = set()

    def open(self) -> None:
        """Read the journal (mending what a kill tore), remove unfinished files, and be ready to append."""
        path = self.path / JOURNAL
        try:
            if path.exists():
                self._read(path)
            if (begun := self.path / BEGUN).exists():
                self.begun = set(begun.read_text(encoding="utf-8").splitlines())
            self._journal = open(path, "ab", buffering=0)  # noqa: SIM115 (open for as long as the run takes)
        except OSError as error:
            raise BlurifyError(f"{path} can't be read and written: {error.strerror}") from error
        self._tidy()

    def _tidy(self) -> None:
        """Remove what killed workers, of this run or one before, left half written."""
        for folder in (self.path, *(entry for entry in self.path.iterdir() if entry.is_dir())):
            unfinished.remove_left(folder)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))  # the line that was being written when the run was killed
        for line in whole.splitlines():
            try:
                data = json.loads(line)
                entry = Entry(data["record"], data["looked"], data["made"])
                if entry.record["status"] in _STATUSES and isinstance(entry.record["seconds"], dict):
                    self.entries[entry.record["model"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # not a line of ours: that model is done again

    def begin(self, name: str) -> None:
        """Note that a model's file is about to be made: whatever has its name from now on is a run's, not a user's."""
        if name not in self.begun:
            with _writing(self.path / BEGUN), open(self.path / BEGUN, "a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            self.begun.add(name)

    def append(self, entry: Entry) -> None:
        """Write down a finished model, so that it stays written down.

        Raises:
            BlurifyError: it can't be written (a full disk).
        """
        assert self._journal is not None
        data = {"record": entry.record, "looked": entry.looked, "made": entry.made}
        with _writing(self.path / JOURNAL):
            self._journal.write(json.dumps(data, sort_keys=True).encode() + b"\n")
            os.fsync(self._journal.fileno())
        self.entries[entry.record["model"]] = entry

    def summarize(self, selected: Iterable[str]) -> Summary:
        """Write `summary.json` and `summary.csv` and return the same."""
        models = tuple(self.entries[name].record for name in sorted(self.entries))
        summary = Summary(models, tuple(selected))
        for name, text in (
            (SUMMARY_JSON, json.dumps(summary.to_dict(), indent=1) + "\n"),
            (SUMMARY_CSV, to_csv(models)),
        ):
            with _writing(self.path / name):
                atomic.replace_bytes(self.path / name, text.encode("utf-8", "backslashreplace"))
        return summary

    def close(self) -> None:
        """Let go of the directory."""
        with contextlib.suppress(OSError):
            self._tidy()
        if self._journal is not None:
            self._journal.close()
        os.close(self.lock)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what to do where a file can't be written."""
    try:
        yield
    except OSError as error:
        raise BlurifyError(
            f"{path} can't be written ({error.strerror}): make room, and run the same again; what is done is kept"
        ) from error


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


def _lock(path: Path, patience: float = 20.0) -> int:
    """Take the lock. Workers inherit it, so that after a kill it is free only once the last of them has gone."""
    import fcntl

    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise BlurifyError(f"{path.parent} can't be written: {error.strerror}") from error
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(lock, 200, 0).decode(errors="replace").strip()
            if _lives(owner) or time.monotonic() - begin > patience:
                os.close(lock)
                raise BlurifyError(
                    f"another blurify zoo ({owner or 'unknown'}) is at work in {path.parent}: wait for it, or choose "
                    "another directory (one for each shard)"
                ) from None
            time.sleep(0.05)  # its workers are on their way out
            continue
        os.truncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return lock


def _lives(owner: str) -> bool:
    """Whether the process that wrote itself into the lock may still be there."""
    match = re.fullmatch(r"process (\d+) on (.*)", owner)
    if match is None:
        return False
    if match[2] != socket.gethostname():
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
