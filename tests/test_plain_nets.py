"""Plain networks, however they are written: what they compute once converted, against a reference by hand."""

import itertools
import re
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_nets import BODIES, STYLES, Body, Case, Op, alike, cases, check, conv, flat, pool

# Styles in which one expression runs for several convolutions.
LOOPS = ("helper_method", *(style.name for style in STYLES if style.name.startswith("loop")))
# Where a blur cannot go behind the nonlinearity, and may go in front of the convolution.
BEFORE = {
    "size_read_between": "the forward reads the size of what would be dense",
    "shared_conv_two_sizes": "one convolution, called from two expressions or twice from one",
    **dict.fromkeys(LOOPS, "one expression runs for convolutions of two strides, each of which needs its own blur"),
    "sequential_acting": "the nonlinearity stands in the forward of a container, whose children are what others run",
    "second_entry": "another method calls the same convolution and spells what follows it otherwise",
}
# What the report must say there, so that nothing else hides behind it.
SAYS = {
    **dict.fromkeys(LOOPS, "the same expression runs several times with different needs"),
    "sequential_acting": "it stands in a container's forward",
    "second_entry": "uses the same convolution in another way",
}
# What no edit of the model's own objects reaches; the report says so.
UNCONVERTED = {
    "lambda_of_self": "the lambda runs the layers of the original, also in a copy",
}


@cache
def every() -> list[Case]:
    return list(cases())


def sample() -> list[Case]:
    """One case of every style, the bodies in turn."""
    styles = itertools.groupby(every(), key=lambda case: case.style)
    chosen = [(number, list(same)) for number, (_, same) in enumerate(styles)]
    return [same[number % len(same)] for number, same in chosen]


def verify(case: Case) -> None:
    result = check(case)
    allowed = {"after"} | set(["before"] * (case.style in BEFORE) + ["unconverted"] * (case.style in UNCONVERTED))
    assert result.kind in allowed, f"{result.kind}: {result.detail}\n{case.source}"
    if result.kind == "before" and case.style in SAYS:
        assert case.style not in LOOPS or strides_meet(case), result.detail
        said = result.detail.split("; ")
        assert all(SAYS[case.style] in site for site in said), f"{result.detail}\n{case.source}"


def strides_meet(case: Case) -> bool:
    """Whether convolutions of two strides are in one network."""
    body = next((body for body in BODIES if body.name == case.name.partition("/")[2]), None)
    if body is None:  # composed: its name has the strides
        return len(set(re.findall(r"conv[0-9]+s([0-9x]+)", case.name)) - {"1x1", "1x1x1", "1"}) > 1
    return len({op.stride for op in body.ops if op.kind == "conv" and op.strided}) > 1


def test_names_are_unique() -> None:
    names = [case.name for case in every()]
    assert len(names) == len(set(names)) >= 384
    assert len(STYLES) >= 16


def test_reference_without_a_blur_is_the_network() -> None:
    with torch.no_grad():
        for case in sample():
            net = case.build()
            *_, left = case.all_choices(net)
            for number in range(len(case.sizes)):
                actual = flat(net(case.input(number), *case.extra))
                assert alike(actual, case.reference(net, case.input(number), left)), case.name


@pytest.mark.parametrize("case", sample(), ids=lambda case: case.name)
def test_plain_net(case: Case) -> None:
    verify(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("style", sorted({case.style for case in cases()}))
def test_every_plain_net(style: str) -> None:
    for case in every():
        if case.style == style:
            verify(case)


OPS = st.one_of(
    st.builds(conv, st.sampled_from([1, 3, 4, 5]), st.sampled_from([1, 2, 2, 3, (1, 2), (2, 1)])),
    st.builds(pool, st.just("max"), st.sampled_from([2, 3]), st.just(2)),
    st.builds(pool, st.just("avg"), st.sampled_from([2, 3]), st.just(2)),
)


@settings(max_examples=20)
@given(style=st.sampled_from(STYLES), ops=st.lists(OPS, min_size=2, max_size=3), norm=st.booleans())
def test_composed_net(style: Any, ops: list[Op], norm: bool) -> None:
    body = Body("composed_" + "_".join(map(name_of, ops)) + "_norm" * norm, tuple(ops), norm)
    if not any(op.strided for op in ops) or not style.takes(body):
        body = next(body for body in BODIES if style.takes(body))
    verify(style.case(body))


def name_of(op: Op) -> str:
    return f"{op.kind}{op.kernel}s{'x'.join(map(str, op.stride))}"
