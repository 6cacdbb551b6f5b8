"""How shift-invariant a model is, and where it breaks: the paper's evidence for the user's own model.

One metric a file, each a function of a `Subject` (a model, and how pictures become its input) and `Pictures`:

    consistency     random crops, one-pixel shifts, accuracy; label maps of dense models
    embeddings, dense, detections   the same crops and shifts for models that give no classes (see `outputs`)
    equivariance    per layer, how far shifting the picture is from shifting the feature map
    aliasing        per site, the share of energy above the new Nyquist frequency
    stability       perturbation sequences and corruptions
    half_patch      shifts by half a patch of a vision transformer, and by quarters
    worst_case      the worst of a grid of translations and rotations
    fractional      shifts by half a pixel and by quarters, with an ideal resampler, and the worst of them
    lie_derivative  per layer, the equivariance error for shifts that go to 0

Of two models:

    agreement       how far one answers as the other does, such as a converted one as its original
    differences     how far the second's figures are above the first's, picture by picture, and
    caveats         when such a difference is neither better nor worse
    normalised      flip rates and errors as multiples of a reference's: mFR and mCE
    trade_off       of conversions site by site, and
    pareto          of partial conversions by cost: what is kept of the answers and left of the aliasing

What a model's output is, is told by `outputs`, or said: `Subject(..., output="NAME:KIND")`. Models of signals are
measured like those of pictures, on `signals`.

What a report shows besides figures (`evidence`, all of it by `gathering`):

    shift_curves   answers and their probability while a picture shifts
    flips          pictures whose answer changes when they move by one pixel
    site_features  what a site keeps of a picture, and of the same picture moved
    spectra        the power of what is subsampled, by frequency
    latency        the time of a picture, models in turn

`results` is what they return: plain data, which reads and writes as JSON. `measure` runs several on one model:

    subject = metrics.Subject(model, metrics.preprocessing_of(model))
    print(metrics.measure(subject, metrics.open_folder("photos", subject.preprocessing)).consistency)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blurify.metrics.files import read_measurements, write_measurements
    from blurify.metrics.measuring import measure
    from blurify.metrics.pictures import digits, open_folder
    from blurify.metrics.preprocessing import preprocessing_of
    from blurify.metrics.results import Agreement, Estimate, Measurement, Output
    from blurify.metrics.signals import open_signals, signal_preprocessing
    from blurify.metrics.subject import Preprocessing, Subject, TensorPictures

__all__ = [
    "Agreement",
    "Estimate",
    "Measurement",
    "Output",
    "Preprocessing",
    "Subject",
    "TensorPictures",
    "digits",
    "measure",
    "open_folder",
    "open_signals",
    "preprocessing_of",
    "read_measurements",
    "signal_preprocessing",
    "write_measurements",
]

_HOMES = {
    **dict.fromkeys(("read_measurements", "write_measurements"), "files"),
    **dict.fromkeys(("digits", "open_folder"), "pictures"),
    "measure": "measuring",
    "preprocessing_of": "preprocessing",
    **dict.fromkeys(("Agreement", "Estimate", "Measurement", "Output"), "results"),
    **dict.fromkeys(("open_signals", "signal_preprocessing"), "signals"),
    **dict.fromkeys(("Preprocessing", "Subject", "TensorPictures"), "subject"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: plain results need no torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'blurify.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"blurify.metrics.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
