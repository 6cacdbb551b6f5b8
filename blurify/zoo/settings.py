"""How a run works."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from blurify.errors import BlurifyError
from blurify.spec.recipes import Recipe, load_recipe

FORMATS = ("safetensors", "pt")
ENGINES = ("local", "ray")
GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """How a run works.

    Attributes:
        inspect_only: only list the sites, on weightless models; nothing is downloaded or written but the results.
        pretrained: convert pretrained weights; False takes random ones (the same in every run).
        recipe: what to do at the sites.
        format: 'safetensors' | 'pt', the files that are written.
        jobs: worker processes; None: one for each core, at most 4, or one for each CPU of a cluster.
        timeout: seconds that one model may take.
        memory: GiB that one worker may take; None shares nine tenths of the machine's among them, on a cluster each
            node's by its CPUs.
        force: do again what is done, and replace files.
        write: write a file for each converted model; False only converts and proves.
        proof_macs: prove on a smaller input where one forward takes more multiply-adds than this; None never does.
        measure: also time one bare forward of each model.
        positions: also measure how far the converted model's features drifted (`blurify.proof.positions`).
        engine: 'local' | 'ray', where the workers run.
        address: of the Ray cluster; None: what RAY_ADDRESS says, else the one that runs on this machine.
        retries: how often a model is done again whose node was lost.
    """

    inspect_only: bool = False
    pretrained: bool = True
    recipe: Recipe = field(default_factory=load_recipe)
    format: str = "safetensors"
    jobs: int | None = 1
    timeout: float = 900.0
    memory: float | None = None
    force: bool = False
    write: bool = True
    proof_macs: int | None = None
    measure: bool = False
    positions: bool = False
    engine: str = "local"
    address: str | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise BlurifyError(f"there is no format {self.format!r}: choose {' or '.join(FORMATS)}")
        if self.jobs is not None and self.jobs < 1:
            raise BlurifyError(f"-j {self.jobs} is no number of processes: give 1 or more")
        if not self.timeout > 0:
            raise BlurifyError(f"--timeout {self.timeout:g} is no time: give seconds")
        if self.memory is not None and not 0 < self.memory < 2**20:
            raise BlurifyError(f"--memory {self.memory:g} is no amount: give GiB")
        if self.engine not in ENGINES:
            raise BlurifyError(f"there is no engine {self.engine!r}: choose {' or '.join(ENGINES)}")
        if self.address is not None and self.engine != "ray":
            raise BlurifyError(f"--engine-address {self.address} is that of a Ray cluster: add --engine ray")
        if self.retries < 0:
            raise BlurifyError(f"--retries {self.retries} is no number of times: give 0 or more")

    @property
    def writes(self) -> bool:
        """Whether converted models get files."""
        return self.write and not self.inspect_only

    @property
    def looked(self) -> str:
        """A fingerprint of all that an inspection depends on."""
        return _fingerprint(self.recipe.to_dict())

    @property
    def made(self) -> str:
        """A fingerprint of all that a converted file depends on."""
        more = ["positions"] * self.positions
        return _fingerprint([self.recipe.to_dict(), self.pretrained, self.format if self.write else None, *more])

    @property
    def bytes(self) -> int | None:
        """The memory of one worker in bytes, where it was said."""
        return int(self.memory * GIB) if self.memory is not None else None


def _fingerprint(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
