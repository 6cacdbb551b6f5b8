"""What `blurify demo` shows: a small trained network, held-out images, and how often a shift changes the answer.

`training/train_demo.py` makes the data files here:

    digitnet.safetensors    DigitNet, trained
    finetuned.safetensors   the same network, converted by blurify and trained for a few more epochs
    heldout.safetensors     120 digits that were kept out of all training, with labels
    training.json           how all that was made, and what came out
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from blurify.demo.network import DigitNet

FOLDER = Path(__file__).parent
TRAINED, FINETUNED, HELD_OUT, RECORD = (
    FOLDER / name for name in ("digitnet.safetensors", "finetuned.safetensors", "heldout.safetensors", "training.json")
)


@dataclass(frozen=True)
class HeldOut:
    """Digits that no training saw.

    Attributes:
        images: (N, 8, 8) uint8, 0 to 16, as scikit-learn's `load_digits` has them.
        labels: (N,) int64.
        samples: (N,) int64, their indices in `load_digits`.
    """

    images: Tensor
    labels: Tensor
    samples: Tensor


def held_out() -> HeldOut:
    """The held-out images that are shipped."""
    from safetensors.torch import load_file

    return HeldOut(**load_file(HELD_OUT))


def trained_network(weights: Path = TRAINED) -> DigitNet:
    """DigitNet with its trained weights, in eval mode."""
    from safetensors.torch import load_file

    from blurify.demo.network import DigitNet

    model = DigitNet()
    model.load_state_dict(load_file(weights))
    return model.eval()


def finetuned_network() -> DigitNet:
    """DigitNet with the weights that were fine-tuned after its conversion: convert it before use."""
    return trained_network(FINETUNED)


def training_record() -> dict[str, Any]:
    """How the network was trained, and what came out."""
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record
