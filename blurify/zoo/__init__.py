"""Many architectures at once: choose them by pattern, convert each in a worker process, keep what came of it.

    from blurify import zoo
    names = zoo.select(["timm/resnet*"], pretrained=False)
    summary = zoo.run(names, "converted", zoo.Settings(pretrained=False, jobs=2))

A directory is worked on by one run at a time; a run that was stopped at any moment is finished by running it again.
Nothing here imports torch: the worker processes do. Linux and macOS.
"""

from blurify.zoo.batch import Progress, Settings, run
from blurify.zoo.journal import Record, Summary
from blurify.zoo.names import select

__all__ = ["Progress", "Record", "Settings", "Summary", "run", "select"]
