"""A run: what there is to do, who does it, and what came of each model, written down at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blurify.errors import BlurifyError
from blurify.zoo.engines import Begins, Ended, Engine, Site, engine_for
from blurify.zoo.journal import Directory, Entry, Record, Summary
from blurify.zoo.names import file_stem
from blurify.zoo.settings import Settings
from blurify.zoo.task import Task


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        done, total: models of this run's selection.
        running: the models in work.
        finished: the record of a model that has just been finished, else None.
    """

    done: int
    total: int
    running: tuple[str, ...]
    finished: Record | None = None


def run(
    names: Sequence[str],
    directory: str | Path,
    settings: Settings | None = None,
    *,
    watch: Callable[[Progress], None] | None = None,
) -> Summary:
    """Inspect or convert models, each in a worker process, into one directory.

    What is done already is not done again: a model counts as done where the journal says so and its file is there. A
    model that failed is tried again.

    Args:
        names: specs, as `select` gives them.
        directory: gets a file for each converted model (`timm/resnet18.safetensors`), `journal.jsonl`, `summary.json`
            and `summary.csv`. Made where it does not exist. Or a URL that fsspec knows, such as `s3://bucket/prefix`.
        settings: how, and where the workers run; the defaults where None.
        watch: told about the progress, several times a second.

    Returns:
        What the directory holds now. A model that failed is a record there, not an exception.

    Raises:
        BlurifyError: another run is at work in the directory, it holds models converted with other settings or files
            that no run made (`force` does them again), it can't be read or written, or workers can't be started.
        KeyboardInterrupt: passed on, after the workers were ended and the summary written.
    """
    settings = settings or Settings()
    names = list(dict.fromkeys(names))
    engine = engine_for(settings)
    place = Directory(directory)
    try:
        targets = {name: f"{file_stem(name)}.{settings.format}" for name in names}
        place.open()
        sizes = place.sizes()
        if settings.writes and not settings.force:
            _refuse_strangers(place, targets, sizes)
        _refuse_other_settings(place, settings, names)
        tasks = [
            Task(
                model=name, recipe=settings.recipe.to_dict(), inspect_only=settings.inspect_only,
                pretrained=settings.pretrained, target=targets[name] if settings.writes else None,
                proof_macs=settings.proof_macs, measure=settings.measure, positions=settings.positions,
            )
            for name in names
            if settings.force or not _is_done(place.entries.get(name), sizes, settings)
        ]  # fmt: skip
        try:
            _carry_out(engine, tasks, len(names), place, settings, watch or (lambda progress: None))
        finally:
            summary = place.summarize(names)
        return summary
    finally:
        place.close()


def _carry_out(
    engine: Engine,
    tasks: Sequence[Task],
    total: int,
    place: Directory,
    settings: Settings,
    watch: Callable[[Progress], None],
) -> None:
    done, running = total - len(tasks), dict[str, None]()
    site = Site(place.storage.where if settings.writes else None, place.token, place.storage.lock)
    try:
        with contextlib.closing(engine.work(tasks, site)) as events:
            for event in events:
                finished = None
                place.storage.beat()
                match event:
                    case Begins(task):
                        running[task.model] = None
                        if task.target is not None:
                            place.begin(task.model)
                    case Ended(task, record, seconds):
                        running.pop(task.model, None)
                        done += 1
                        finished = _written_down(task, record, seconds, place, settings)
                watch(Progress(done, total, tuple(running), finished))
        watch(Progress(done, total, ()))
    finally:
        engine.close()


def _written_down(task: Task, record: Record, seconds: float, place: Directory, settings: Settings) -> Record:
    record["seconds"]["total"] = round(seconds, 4)
    before = place.entries.get(task.model)
    old = before.record.get("file") if before is not None and task.target is not None else None
    if old is not None and old != record.get("file") and old in place.sizes():
        if record["status"] == "converted":  # in another format, which takes its place
            place.remove(old)
        else:
            record["error"] = f"{record.get('error', 'nothing to convert')} ({old} of an earlier run is left)"
    place.append(Entry(record, settings.looked, settings.made))
    return record


def _refuse_strangers(place: Directory, targets: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Refuse to replace files that no run made, here or in a run that was killed before it wrote that down."""
    ours = {entry.record.get("file") for entry in place.entries.values()}
    for name, target in targets.items():
        if name not in place.begun and target not in ours and target in sizes:
            raise BlurifyError(
                f"{place.storage.at(target)} exists and no run made it: choose another directory, or --force to "
                "replace it"
            )


def _refuse_other_settings(place: Directory, settings: Settings, names: Sequence[str]) -> None:
    where = place.storage.at("").rstrip("/")
    converted = [entry for entry in place.entries.values() if entry.record["status"] == "converted"]
    if settings.inspect_only:
        for entry in converted:
            if entry.record["model"] in names and (settings.force or entry.looked != settings.looked):
                raise BlurifyError(
                    f"{where} holds {entry.record['model']} converted (recipe {entry.record.get('recipe')}), "
                    "which an inspection would forget: choose another directory to inspect into"
                )
        return
    if settings.force:
        return
    for entry in converted:
        if entry.made != settings.made:
            raise BlurifyError(
                f"{where} holds models converted with other settings (recipe {entry.record.get('recipe')}, "
                f"{entry.record.get('weights')} weights): choose another directory, or --force to do them again"
            )


def _is_done(entry: Entry | None, sizes: Mapping[str, int], settings: Settings) -> bool:
    if entry is None or entry.record["status"] == "failed":
        return False
    record = entry.record
    if record["status"] == "inspected":
        # Without a site to convert there is nothing more to do.
        return entry.looked == settings.looked and (settings.inspect_only or not record["converted"])
    if settings.inspect_only:
        return entry.looked == settings.looked
    if entry.made != settings.made:
        return False
    return record.get("file") is None or sizes.get(record["file"]) == record["bytes"]
