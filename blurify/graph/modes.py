"""A mode that sees torch's operators, without torch's compiler."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Base of modes that nobody compiles under.

    torch wraps `__torch_dispatch__` of others, so that its compiler lets it alone: at the first call it imports that
    whole compiler, which takes longer than importing torch.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Asked by torch when a class is made."""
        return False
