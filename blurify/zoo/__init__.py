"""Many architectures at once: choose them by pattern, convert each in a worker process, keep what came of it.

    from blurify import zoo
    names = zoo.select(["timm/resnet*"], pretrained=False)
    summary = zoo.run(names, "converted", zoo.Settings(pretrained=False, jobs=2))

A directory is worked on by one run at a time; a run that was stopped at any moment is finished by running it again.
Nothing here imports torch: the worker processes do. Linux and macOS.

One direction of flow: names -> tasks (`batch`) -> an engine (`engines`), which gives each to a worker process
(`worker`, `task`) -> records (`journal`) and files (`storage`).
"""

from blurify.zoo.batch import Progress, run
from blurify.zoo.journal import Record, Summary
from blurify.zoo.names import select
from blurify.zoo.settings import Settings

__all__ = ["Progress", "Record", "Settings", "Summary", "run", "select"]
