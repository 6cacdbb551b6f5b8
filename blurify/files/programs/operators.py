"""Which operators a program may call, and what each becomes. Nothing is looked up by a name that a file says."""

from __future__ import annotations

import re

from blurify.nn.exported import OPS

_TARGET = re.compile(r"torch\.ops\.aten\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)", re.ASCII)

# ATen's names where they are not torch's.
_RENAMED = {
    "sym_size": "size",
    "_to_copy": "to_copy",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "special_erf": "erf",
    "silu": "silu",
    "convolution": "convolution",
    "lift_fresh_copy": "clone",
    "detach_": "alias",
    "detach": "alias",
    "_unsafe_view": "reshape",
    "view_copy": "view",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "concat": "cat",
    "concatenate": "cat",
    "true_divide": "div",
    "feature_dropout": "feature_dropout",
    "bernoulli_": "bernoulli_",
}
_ONE_OVERLOAD = {"to": ("dtype",), "size": ("int",), "bernoulli_": ("float",), "add": ("Tensor", "Scalar")}

IGNORED = frozenset(
    {
        "torch.ops.aten._assert_scalar.default",
        "torch.ops.aten._assert_tensor_metadata.default",
        "torch.ops.aten._assert_async.msg",
        "torch.ops.aten.sym_constrain_range.default",
        "torch.ops.aten.sym_constrain_range_for_size.default",
    }
)
"""Calls that only check what the program was exported with."""

SUBSTITUTED = frozenset(
    "convolution max_pool2d_with_indices max_pool3d_with_indices _native_batch_norm_legit_no_training "
    "_native_batch_norm_legit native_layer_norm native_group_norm native_dropout".split()
)
"""Operators that `building` writes as others."""

_NUMBERS = {
    **{f"_operator.{name}": f"number_{name}" for name in "add sub mul floordiv truediv mod pow neg".split()},
    **{f"_operator.{name}": f"number_{name}" for name in "eq ne lt le gt ge and_ or_ not_ getitem".split()},
    "torch.sym_max": "number_max",
    "torch.sym_min": "number_min",
    "torch.sym_not": "number_not_",
}


def function_of(target: str) -> str | None:
    """What a call's target is in `nn.exported`'s table, or in `SUBSTITUTED`; None for what blurify does not know."""
    if target in _NUMBERS:
        return _NUMBERS[target]
    match = _TARGET.fullmatch(target)
    if match is None:
        return None
    name, overload = match[1], match[2]
    if overload in _ONE_OVERLOAD.get(name, (overload,)):
        name = _RENAMED.get(name, name)
        if (name in OPS and not name.startswith("number_")) or name in SUBSTITUTED:
            return name
    return None
