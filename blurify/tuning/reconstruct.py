"""Stage 2: refit what makes and what reads blurred features, towards the original's activations, without gradients.

The convolution of a site is refitted *through its blur*: its kernel is chosen so that blurred and subsampled
responses come as near as they can to the original's strided ones. Then the layers that read blurred features are
refitted to what the original gives there. Each is a linear least squares problem in the layer's own weights, with a
ridge towards the weights that it had (as in post-training quantisation: Nagel et al., "Up or Down?", 2020; Li et al.,
"BRECQ", 2021), solved by a few steps of conjugate gradients, all output channels at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from blurify.graph.inputs import traced
from blurify.graph.structure import Inputs
from blurify.nn.build import build
from blurify.surgery.carrying import plan_of
from blurify.tuning.lockstep import in_lockstep
from blurify.tuning.reading import Layer, layers_to_refit
from blurify.tuning.statistics import Tally, move, moments_of, running_norms

RIDGE = 1e-2
STEPS = 12


@dataclass(frozen=True)
class Refit:
    """One layer: its path, and the part of its output's variance that was off, before and after."""

    path: str
    before: float
    after: float
