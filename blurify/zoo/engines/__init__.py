"""Where tasks are carried out: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from blurify.zoo.engines.base import Begins, Ended, Engine, Event, Site, Tick
from blurify.zoo.engines.local import Local, default_jobs, machine_memory, share_of_cores
from blurify.zoo.settings import Settings

__all__ = ["Begins", "Ended", "Engine", "Event", "Site", "Tick", "engine_for"]


def engine_for(settings: Settings) -> Engine:
    """The engine that the settings name; it starts nothing before it has work.

    Raises:
        BlurifyError: it needs a package that is not installed.
    """
    if settings.engine == "ray":
        from blurify.zoo.engines.ray import Ray

        return Ray(settings)
    jobs = settings.jobs or default_jobs()
    memory = settings.bytes or int(0.9 * machine_memory() / jobs)
    return Local(jobs, settings.timeout, memory, share_of_cores(jobs))
