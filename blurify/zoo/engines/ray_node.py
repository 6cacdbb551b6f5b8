"""What runs on the nodes of a Ray cluster: posts, each of which watches over one worker process."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from blurify.zoo.engines.base import Ended, Site
from blurify.zoo.engines.local import Local, machine_memory
from blurify.zoo.task import Task


class Post:
    """An actor: the same worker process, with the same limits, as on one machine."""

    def __init__(self, told: dict[str, Any]) -> None:
        """Nothing is started yet.

        Args:
            told: 'timeout' in seconds, 'memory' in bytes or None, 'storage' and 'token' as in `Site`.
        """
        # A user's module is looked for in the working directory first where that is nowhere on the path. Here it is
        # that of whoever started the node, and what was sent comes before it.
        sys.path.append(os.getcwd())
        self.site = Site(told["storage"], told["token"], lock=None)
        self.engine = Local(1, told["timeout"], told["memory"] or _share_of_node(), threads=1)

    def node(self) -> str:
        """What to call the node."""
        import ray

        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def carry_out(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do a task; its record, and the seconds that it took.

        Raises:
            BlurifyError: no worker can be started here, or the storage is another one here.
        """
        ended = next(event for event in self.engine.work([Task(**task)], self.site) if isinstance(event, Ended))
        return {"record": ended.record, "seconds": ended.seconds}


def _share_of_node() -> int:
    """The bytes of a worker: what Ray may use of the node's memory, over its CPUs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    found: dict[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
    return int(found.get("memory", 0.9 * machine_memory()) / max(1, found.get("CPU", 1)))
