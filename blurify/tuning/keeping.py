"""Keep the state of a training run in a file, and take it up again: exactly where it was."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import torch

from blurify.errors import BlurifyError
from blurify.files import atomic


class Kept:
    """The file that a run's state is kept in.

    Args:
        path: None: nothing is kept.
        settings: JSON's own data; a state that was kept under other settings is not taken up.
        every: seconds between two writes.
        steps: steps between two writes, whichever comes first.

    Attributes:
        beside: what else is to be kept in the next writes.
    """

    def __init__(
        self, path: Path | None, settings: dict[str, Any] | None = None, every: float = 60.0, steps: int = 100
    ) -> None:
        self.path, self._every, self._steps = path, every, steps
        text = json.dumps(settings or {}, sort_keys=True, default=str)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._last = time.monotonic()
        self.beside: dict[str, Any] = {}

    def due(self, step: int) -> bool:
        """Whether it is time to write."""
        return self.path is not None and (step % self._steps == 0 or time.monotonic() - self._last > self._every)

    def write(self, stage: str, state: dict[str, Any]) -> None:
        """Replace what is kept; a kill leaves the old or the new file whole."""
        if self.path is None:
            return
        held = {"format": 1, "key": self._key, "stage": stage, "beside": self.beside, "state": state}
        atomic.write_file(self.path, lambda file: torch.save(held, file), force=True)
        self._last = time.monotonic()

    def found(self) -> tuple[str, dict[str, Any]] | None:
        """The stage that was under way, and what was kept beside it; None where nothing was.

        Raises:
            BlurifyError: it is of another run, or damaged.
        """
        held = self._held()
        return None if held is None else (held["stage"], held["beside"])

    def read(self, stage: str) -> dict[str, Any] | None:
        """What was kept of a stage; None where nothing was.

        Raises:
            BlurifyError: it is of another run, or damaged.
        """
        held = self._held()
        if held is None or held["stage"] != stage:
            return None
        found: dict[str, Any] = held["state"]
        return found

    def _held(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            held: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            key = held["key"]
            held["stage"], held["state"], held["beside"]
        except Exception as error:  # whatever a damaged file makes torch raise
            raise BlurifyError(
                f"{self.path} is no state of a run that can be taken up: delete it to begin anew"
            ) from error
        if key != self._key:
            raise BlurifyError(
                f"{self.path} is the state of a run with other settings: give those again to go on, or delete it to "
                "begin anew"
            )
        return held

    def drop(self) -> None:
        """The run is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
