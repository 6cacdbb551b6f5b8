"""Embeddings under shifts: how far they move, and whether a picture's nearest neighbour is still itself."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from blurify.errors import BlurifyError
from blurify.metrics.consistency import amounts, places_of, sights
from blurify.metrics.kept import Kept, steps_for
from blurify.metrics.packing import pack, unpack
from blurify.metrics.results import EmbeddingDrift, Estimate
from blurify.metrics.subject import Pictures, Subject, Watch, not_finite

_AT_A_TIME = 1024  # rows of the table of all distances


def embedding_drift(
    subject: Subject,
    pictures: Pictures,
    *,
    seed: int = 0,
    batch_size: int = 64,
    circular: bool = False,
    watch: Watch | None = None,
    kept: Kept | None = None,
) -> EmbeddingDrift:
    """How far a model's embedding (N, D) of a picture moves when the picture shifts.

    Each picture is seen as `consistency` shows it, by the same seed: through two random crops, and through the first
    of them moved by one pixel. With e the embedding, the drift is the cosine distance 1 - <e, e'> / (|e| |e'|) of two
    sights (0 the same, 1 at right angles, 2 opposite; of a vector of zeros 1). What it is to be compared with is the
    mean distance to the other pictures, `apart`. The nearest neighbour is kept where the second sight's embedding is
    nearer to the first sight of its own picture than to that of every other picture: recall at 1, as retrieval and
    face recognition measure it (Musgrave et al., "A Metric Learning Reality Check", ECCV 2020); a tie is a loss.

    Args:
        subject: a model whose output is taken for an embedding.
        pictures: canvases larger than the model's input, unless `circular`.
        seed: of the crops.
        batch_size: pictures a forward.
        circular: shift the centre crop around instead, as in `consistency`.
        watch: told of each batch.
        kept: where each batch is written down (see `kept`).

    Raises:
        BlurifyError: there is no room to shift, or outputs are not finite.
    """
    geometry = subject.preprocessing
    places = places_of(len(pictures), geometry, seed, circular=circular)
    total = math.ceil(len(pictures) / batch_size)
    steps = steps_for(kept, "embedding", total, seed=seed, batch_size=batch_size, circular=circular)
    for number, batch in steps.batches(pictures, batch_size):
        found = [_unit(subject.values(seen)) for seen in sights(subject, batch, places, circular=circular)]
        steps.done(number, [[list(vectors.shape), pack(vectors.flatten().tolist())] for vectors in found])
        if watch is not None:
            watch("embedding drift", number + 1, total)
    first, second, beside = (torch.cat([_unpacked(*step[index]) for step in steps.results]) for index in range(3))
    several = len(first) > 1
    return EmbeddingDrift(
        crops=_distances(first, second),
        pixel=_distances(first, beside),
        crops_nearest=Estimate.of(nearest_is_own(second, first)) if several else None,
        pixel_nearest=Estimate.of(nearest_is_own(beside, first)) if several else None,
        apart=_apart(first) if several else None,
        circular=circular,
    )


def _unpacked(shape: list[int], packed: str) -> Tensor:
    rows, width = shape
    try:
        values = unpack(packed, rows * width)
    except BlurifyError as error:  # a line that was written by somebody else
        raise ValueError(str(error)) from error
    return torch.tensor(values, dtype=torch.float64).reshape(rows, width)


def _unit(vectors: Tensor) -> Tensor:
    """(N, D) of length 1, float64 on the CPU; zeros stay zeros. Raises BlurifyError where they are not finite."""
    precise = vectors.detach().cpu().double()
    if not bool(precise.isfinite().all()):
        raise not_finite("the model's output is")
    return F.normalize(precise, dim=1, eps=torch.finfo(torch.float64).tiny)


def _distances(one: Tensor, other: Tensor) -> Estimate:
    """Of each row, the cosine distance: half the squared distance of unit vectors, exact near 0."""
    half_squared = (one - other).square().sum(1) / 2
    empty = (one == 0).all(1) | (other == 0).all(1)
    values = half_squared.where(~empty, torch.ones(()).double()).tolist()
    return amounts(values)


def nearest_is_own(queries: Tensor, gallery: Tensor) -> list[float]:
    """Of each query, whether the gallery's vector of its own number is nearer than every other: 1 or 0.

    Args:
        queries, gallery: (N, D) of length 1.
    """
    found: list[float] = []
    for start in range(0, len(queries), _AT_A_TIME):
        likeness = queries[start : start + _AT_A_TIME] @ gallery.T
        rows = torch.arange(len(likeness))
        own = likeness[rows, start + rows].clone()
        likeness[rows, start + rows] = -math.inf
        found += (own > likeness.amax(1)).double().tolist()
    return found


def _apart(vectors: Tensor) -> Estimate:
    """Of each vector, the mean cosine distance to the others: 1 less its likeness to their sum."""
    others = (vectors @ vectors.sum(0) - vectors.square().sum(1)) / (len(vectors) - 1)
    return amounts((1 - others).tolist())
