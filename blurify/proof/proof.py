"""The proof that a conversion leaves on a model: what was compared, and how far apart it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.spec.reading import read_fields

_PROOF = "_blurify_proof"
FORMAT = 1


@dataclass(frozen=True)
class Proof:
    """What was checked after a conversion.

    Attributes:
        identity_error: largest relative error, at the sites and in the outputs, when the same plan is carried out with
            the one-tap filter.
        dtype: the precision in which that was computed ('float32', or 'float64' where float32 was too noisy).
        outputs: how many output tensors were compared.
        sites_converted: the sites that the plan converts.
        sites_left: those of them that tracing the converted model still finds (0).
        tensors_equal: the tensors of the state_dict, all with the same name and the same bits.
        seconds: how long the proof took.
        sites_compared: the converted sites whose own values were compared with the original's.
        sites_shown: those of them at which a blur that is off by one sample was seen to make a difference.
        unshown: the names of those at which it made none (features that are constant there).
        train: what was checked in train mode: 'values', 'shapes', or why it could not be.
        adaptive: blurs that choose, follow or restore a phase; the identity is computed with all of them at the first.
        made_up: the model is on the meta device: the weights that it was run with were made up, and none compared.
    """

    identity_error: float
    dtype: str
    outputs: int
    sites_converted: int
    sites_left: int
    tensors_equal: int
    seconds: float
    sites_compared: int = 0
    sites_shown: int = 0
    unshown: tuple[str, ...] = ()
    train: str = ""
    made_up: bool = False
    adaptive: int = 0

    def lines(self) -> list[str]:
        """The proof in words, one line a check."""
        if not self.sites_converted:
            identity = "identity: no site is converted, so there is nothing to compare"
        else:
            identity = (
                f"identity: the surgery is right: with the one-tap filter, so without any blur, all values are the "
                f"original's (relative error {self.identity_error:.1e} in {self.dtype}, at {self.sites_compared} of "
                f"{self.sites_converted} sites and in {self.outputs} outputs; at {self.sites_shown} a blur off by one "
                "sample would show); with the blur the answers are others"
            )
        if self.sites_converted and self.adaptive:
            identity += (
                f"; the {self.adaptive} layers of adaptive polyphase sampling were held at the first phase for it, and "
                "pools padded as the original's (blurify certify looks at the phases)"
            )
        if self.sites_converted and self.train:
            identity += f"; train mode: {self.train}"
        weights = f"weights: all {self.tensors_equal} tensors of the state_dict keep their names and bits"
        if self.made_up:
            if self.sites_converted:
                identity = identity.replace("identity:", "identity, with weights that were made up:", 1)
            weights = (
                "weights: not proven: the model is on the meta device and has none (convert it with its weights to "
                "have them compared)"
            )
        return [
            identity,
            f"audit: tracing the result finds {self.sites_left} of the {self.sites_converted} converted sites "
            "still aliasing",
            weights,
        ]

    def to_dict(self) -> dict[str, Any]:
        """The proof as plain versioned data; `from_dict` reads it back."""
        return {"format": FORMAT, **dataclasses.asdict(self), "unshown": list(self.unshown)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Proof:
        """Read what `to_dict` wrote, in this version or an earlier one. Raises BlurifyError for anything else."""
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in data.items() if name in names}
        try:
            return read_fields(cls, {**fields, "unshown": tuple(fields.get("unshown", ()))})
        except (ValueError, TypeError) as error:
            raise BlurifyError(f"this is not a proof that blurify wrote ({error}): convert the model again") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a versioned dict: classes may change, files stay."""
        return read_proof, (self.to_dict(),)


def read_proof(data: Mapping[str, Any]) -> Proof:
    """`Proof.from_dict`, by a name that pickles can hold."""
    return Proof.from_dict(data)


def proof_of(model: nn.Module) -> Proof | None:
    """The proof that a verified conversion leaves on the model, else None."""
    carried: Any = vars(model).get(_PROOF)
    if isinstance(carried, Proof):  # as 0.1.0 pickled it
        return carried
    return Proof.from_dict(carried) if isinstance(carried, dict) else None


def carry_proof(model: nn.Module, proof: Proof) -> None:
    """Let a model carry its proof, as plain data."""
    model.__dict__[_PROOF] = proof.to_dict()


@contextmanager
def without_time(model: nn.Module) -> Iterator[None]:
    """Within it, the proof that a model carries says nothing of how long it took: equal conversions are equal then."""
    proof = proof_of(model)
    if proof is None:
        yield
        return
    carry_proof(model, dataclasses.replace(proof, seconds=0.0))
    try:
        yield
    finally:
        carry_proof(model, proof)


def drop_proof(model: nn.Module) -> None:
    """Let a model carry no proof any more."""
    model.__dict__.pop(_PROOF, None)
