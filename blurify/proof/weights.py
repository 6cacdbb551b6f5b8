"""Weights: every tensor of the state_dict keeps its name and its bits."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from blurify.errors import VerificationError

Fingerprint = dict[str, tuple[str, tuple[int, ...], str]]
"""Each entry of a state_dict by name: its dtype, shape and a digest of its bits."""


def fingerprint(model: nn.Module) -> Fingerprint:
    """Take the fingerprint of a model's weights: to be compared later, when the tensors themselves may have changed."""
    return {name: digest_of(value) for name, value in model.state_dict().items()}


def check_weights(before: Fingerprint, after: Fingerprint) -> int:
    """Count the tensors, after checking that each has the name and the bits that it had.

    Raises:
        VerificationError: a name or a tensor is another one.
    """
    if list(before) != list(after):
        odd = sorted(set(before) ^ set(after)) or ["their order"]
        raise VerificationError(f"the state_dict has other keys than the original's: {odd[0]}")
    for name, was in before.items():
        if was != after[name]:
            raise VerificationError(f"the tensor {name} is not the original's")
    return sum(dtype != "" for dtype, _, _ in before.values())


def digest_of(value: Any) -> tuple[str, tuple[int, ...], str]:
    """An entry of a fingerprint: dtype, shape and a digest of the bits; of what is no tensor, its type."""
    if not isinstance(value, Tensor):
        return "", (), repr(type(value))
    shape = tuple(value.shape)
    if value.is_meta:
        return str(value.dtype), shape, "meta"
    plain = value.detach()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    if plain.is_quantized:
        plain = plain.int_repr()
    plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    raw = plain.resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    return str(value.dtype), shape, hashlib.sha256(raw.numpy().data).hexdigest()
