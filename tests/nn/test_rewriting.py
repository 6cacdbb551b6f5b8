"""A forward compiled again with one expression changed: the same function otherwise, in every way it may be written."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import pickle
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import pool2d_same as helpers
from torch import Tensor, nn

import blurify
from blurify.nn.edited import CannotRewriteError, edit_class, edited_class, edited_instance
from blurify.spec.edits import Rewrite
from blurify.spec.plan import Plan
from blurify.surgery.apply import apply_plan

# --- networks. Each subsamples in the middle of a forward, once or more.


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def halve_deeper(x: Tensor, *, scale: float = 1.0) -> Tensor:
    def unrelated() -> None:
        return None

    unrelated()
    return halve(x) * scale


def documented(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that leaves the function what it is."""
    function.is_documented = True  # type: ignore[attr-defined]
    return function


def doubling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return 2 * function(*args, **kwargs)

    return wrapped


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.rate = 2

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)


class Super(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class SuperWithItsOwnPool(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class OldSuper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return super(OldSuper, self).forward(x) + 1  # noqa: UP008


class Helper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return halve(self.conv(x))


class HelperOfHelper(Base):
    def forward(self, x: Tensor) -> Tensor:
        return halve_deeper(self.conv(x), scale=0.5) + halve(x)[:, :1]


class HelperElsewhere(Base):
    def forward(self, x: Tensor) -> Tensor:
        return helpers.avg_pool2d_same(helpers.max_pool2d_same(self.conv(x), [2, 2], [2, 2]), [3, 3], [2, 2])


class Method(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.conv(x), 2)

    def pooled(self, x: Tensor, size: int) -> Tensor:
        return F.max_pool2d(x, size)


class MethodFromOutside(Base):
    """A method that the parent calls, as timm's forward_features."""

    def forward_features(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean((2, 3))


class Static(Base):
    @staticmethod
    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.conv(x))


class Property(Base):
    @property
    def pool(self) -> Callable[[Tensor], Tensor]:
        return halve

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x))


class Comprehension(Base):
    def forward(self, x: Tensor) -> Tensor:
        return sum([F.max_pool2d(self.conv(x * i), 2) for i in (1, 2)])  # type: ignore[return-value]


class Generator(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(tuple(F.max_pool2d(y, 2) for y in (self.conv(x), x)), 1)


class Loop(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(2):
            x = F.max_pool2d(x, 2)
        return x


class LoopOfDifferentStrides(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for stride in (2, 1, 3):
            x = F.max_pool2d(x, 3, stride, 1)
        return x


class SameTextTwice(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.max_pool2d(x, 2)
        x = x + 1
        return y + F.max_pool2d(x, 2)


class Strided(Base):
    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(4, 4, 3, 2, 1)


class Augmented(Strided):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.strided(x)
        y *= y.sigmoid()
        return self.conv(y[:, :3]) + self.conv(y[:, 1:])


class AugmentedItem(Strided):
    def forward(self, x: Tensor) -> Tensor:
        kept = {"y": self.strided(self.conv(x))}
        kept["y"] *= kept["y"].sigmoid()
        return self.conv(kept["y"][:, :3]) + self.conv(kept["y"][:, 1:])


class Walrus(Base):
    def forward(self, x: Tensor) -> Tensor:
        if (y := F.max_pool2d(self.conv(x), 2)).shape[-1] > 1:
            y = y + 1
        return y


class Ternary(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.max_pool2d(x, 2) if self.rate == 2 else F.max_pool2d(x, 3)


class Defaults(Base):
    def forward(self, x: Tensor, size: int = 2, *, ceil: bool = True, options: Any = None) -> Tensor:
        assert options is None
        return F.max_pool2d(self.conv(x), size, ceil_mode=ceil)


class Decorated(Base):
    @documented
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)


class Wrapped(Base):
    """A decorator that does something: it must still do it."""

    @doubling
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), 2)


class NoGrad(Base):
    @torch.no_grad()
    def pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(self.conv(x))


class Private(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__size = 2

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(x), self.__size) + self.__size


class PrivateMethod(Base):
    def __pooled(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.__pooled(self.conv(x))


class PositionalOnly(Base):
    def forward(self, x: Tensor, /) -> Tensor:
        return only_positional(self.conv(x))


def only_positional(x: Tensor, /, size: int = 2) -> Tensor:
    return F.max_pool2d(x, size)


class ForwardSelfIsNotCalledSelf(Base):
    def forward(this, x: Tensor) -> Tensor:
        return F.max_pool2d(this.conv(x), 2)


class LambdaInside(Base):
    def forward(self, x: Tensor) -> Tensor:
        pool = lambda y: F.max_pool2d(y, 2)  # noqa: E731
        return pool(self.conv(x))


class Inner(Base):
    def forward(self, x: Tensor) -> Tensor:
        def pool(y: Tensor) -> Tensor:
            return F.max_pool2d(y, self.rate)

        return pool(self.conv(x))


class TryAndWith(Base):
    def forward(self, x: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                x = F.max_pool2d(self.conv(x), 2)
        finally:
            self.rate = 2
        return x


class Conditional(Base):
    """What runs in train mode stays as it is written."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 2)
        if self.training:
            x = x * 0
        return x


class Dictionary(Base):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        options = {"kernel_size": 3, "stride": 2, "padding": 1}
        return {"pooled": F.max_pool2d(self.conv(x), **options), "args": F.max_pool2d(x, *(2, 2))}


def local_class() -> nn.Module:
    size = 2

    class Local(Base):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + F.max_pool2d(x, size)[:, :1]

    return Local()


def closed_over() -> nn.Module:
    class Local(Base):
        def forward(self, x: Tensor) -> Tensor:
            return pool(self.conv(x)) + F.max_pool2d(x, size)[:, :1]

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, size)

    size = 2
    return Local()


class ForwardOnTheInstance(Base):
    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(_forward, self)  # type: ignore[method-assign]


def _forward(self: Base, x: Tensor) -> Tensor:
    return F.max_pool2d(self.conv(x), 2)


CONVERTED: dict[str, int] = {
    "Base": 1, "Super": 1, "SuperWithItsOwnPool": 2, "OldSuper": 1, "Helper": 1, "HelperOfHelper": 2,
    "HelperElsewhere": 2, "Method": 1, "MethodFromOutside": 1, "Comprehension": 2, "Generator": 2, "Loop": 2,
    "SameTextTwice": 2, "Augmented": 1, "AugmentedItem": 1, "Walrus": 1, "Ternary": 1, "Defaults": 1, "Decorated": 1,
    "Private": 1, "PositionalOnly": 1, "ForwardSelfIsNotCalledSelf": 1, "TryAndWith": 1, "Conditional": 1,
    "Dictionary": 2,
}  # fmt: skip
"""Networks that are changed, and how many sites they have."""

MAYBE = (
    Static, Property, LoopOfDifferentStrides, Wrapped, NoGrad, LambdaInside, Inner, ForwardOnTheInstance,
    PrivateMethod, local_class, closed_over,
)  # fmt: skip
"""Networks that may be refused, with a reason; never wrong."""

SIZES = ((16, 16), (15, 13), (9, 22))


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model(x)
    return list(out.values()) if isinstance(out, dict) else [out]


def check(model: nn.Module) -> Plan:
    """Identity filter: the original's values. Any filter: its shapes, and other values where a site was converted."""
    model = model.double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    same = blurify.convert(model, filter_size=1, example_inputs=x)
    blurred = blurify.convert(model, example_inputs=x)
    plan = blurify.plan_of(blurred)
    assert plan is not None and plan.sites
    for site in plan.skipped:
        assert site.rule in ("source", "varies") and len(site.reason) > 20, site
    for size in SIZES:
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        expected = outputs(model, x)
        for a, b, c in zip(outputs(same, x), expected, outputs(blurred, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            assert c.shape == b.shape
            assert torch.allclose(b, c) == (not plan.converted)
    return plan


# --- every way to write it


@pytest.mark.parametrize("name", CONVERTED)
def test_rewritten(name: str) -> None:
    plan = check(globals()[name]())
    assert len(plan.converted) == len(plan.sites) == CONVERTED[name], [site.reason for site in plan.sites]
    assert any(isinstance(edit, Rewrite) for edit in plan.edits)


@pytest.mark.parametrize("make", MAYBE, ids=lambda make: make.__name__)
def test_rewritten_or_refused_with_a_reason(make: Callable[[], nn.Module]) -> None:
    check(make())


@pytest.mark.parametrize("name", ["Super", "HelperOfHelper", "Private", "Augmented", "Comprehension", "SameTextTwice"])
def test_within_another_model(name: str) -> None:
    plan = check(nn.Sequential(globals()[name](), nn.Sigmoid()))
    assert all(edit.module == "0" or edit.module.startswith("0.") for edit in plan.edits)


def test_two_instances_of_one_class_are_independent() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Helper(), Helper()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    net = Two().double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    converted = blurify.convert(net, {"skip": {"names": ["b*"]}}, example_inputs=x)
    assert type(converted.b) is Helper and type(converted.a) is not Helper
    assert torch.equal(converted.b(x), net.b(x)) and not torch.allclose(converted.a(x), net.a(x))
    check(net)


# --- what no source says


def without_source() -> nn.Module:
    namespace: dict[str, Any] = {"Base": Base, "F": F, "__name__": __name__}
    code = "class NoSource(Base):\n    def forward(self, x):\n        return F.max_pool2d(self.conv(x), 2)\n"
    exec(compile(code, "<made up>", "exec"), namespace)
    return namespace["NoSource"]()


def test_no_source_is_a_reason_to_skip() -> None:
    plan = check(without_source())
    (site,) = plan.sites
    assert (site.action, site.rule) == ("skip", "source")
    assert "source" in site.reason and "file" in site.reason


def test_source_that_has_changed_since_is_a_reason_to_skip(tmp_path: Any) -> None:
    import importlib.util
    import linecache

    path = tmp_path / "edited.py"
    text = "import torch.nn as nn, torch.nn.functional as F\n\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
    path.write_text(text + "        return F.max_pool2d(x * 1, 2)\n")
    spec = importlib.util.spec_from_file_location("edited_by_a_test", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    path.write_text("# a line more\n" + text + "        return F.max_pool2d(x * 1, 2)\n")
    linecache.checkcache(str(path))
    plan = blurify.inspect(module.Net(), torch.zeros(1, 3, 8, 8))
    assert [(site.rule, site.action) for site in plan.sites] == [("source", "skip")]
    assert "does not match" in plan.sites[0].reason


def test_plan_for_another_version_of_the_source_is_refused() -> None:
    other = ("expression", (("forward", "F.max_pool2d(self.conv(x), 7)", 0),), "blur_max_pool", "call", 0)
    with pytest.raises(CannotRewriteError, match="convert the original model again"):
        edited_class(Base, (other,))
    gone = ("expression", (("forward_all", "F.max_pool2d(x, 7)", 0),), "blur_max_pool", "call", 0)
    net = Base()
    with pytest.raises(CannotRewriteError, match="forward_all"):
        edit_class(net, [gone])
    assert type(net) is Base


def test_plan_for_another_version_of_the_source_changes_nothing() -> None:
    plan = blurify.inspect(Base(), torch.zeros(1, 3, 16, 16))
    (site,) = plan.sites
    (edit,) = site.edits
    other = dataclasses.replace(edit, path=(("forward", "F.max_pool2d(self.conv(x), 7)", 0),))
    plan = dataclasses.replace(plan, sites=(dataclasses.replace(site, edits=(other,)),))
    net = Base()
    with pytest.raises(CannotRewriteError, match="convert the original model again"):
        apply_plan(net, plan)
    assert type(net) is Base and blurify.plan_of(net) is None
    assert [name for name, _ in net.named_children()] == ["conv"]


# --- the class stays the class


def converted(make: Callable[[], nn.Module] = HelperOfHelper, **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    net = make().double().eval()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    return net, blurify.convert(net, example_inputs=x, **options), x


def test_same_class_by_name_and_isinstance() -> None:
    net, result, _ = converted()
    assert isinstance(result, HelperOfHelper)
    assert type(result).__name__ == "HelperOfHelper" and type(result).__module__ == __name__
    assert list(result.state_dict()) == list(net.state_dict())
    assert type(net) is HelperOfHelper  # the original one is what it was
    assert vars(HelperOfHelper).keys() == {"__module__", "__doc__", "forward"} | (vars(HelperOfHelper).keys() & {
        "__annotations__", "__firstlineno__", "__static_attributes__", "__parameters__"})  # fmt: skip


def test_helpers_stay_what_they_were() -> None:
    code = halve.__code__, halve_deeper.__code__, F.max_pool2d
    _, _, x = converted()
    assert (halve.__code__, halve_deeper.__code__, F.max_pool2d) == code
    assert torch.equal(halve(x), F.max_pool2d(x, 2))


@pytest.mark.parametrize("name", ["Base", "Super", "HelperOfHelper", "Private", "Augmented"])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle_and_deepcopy(name: str, protocol: int) -> None:
    _, result, x = converted(globals()[name])
    for again in (pickle.loads(pickle.dumps(result, protocol)), copy.deepcopy(result), copy.copy(result)):
        assert type(again) is type(result)
        assert torch.equal(again(x), result(x))
    with io.BytesIO() as file:
        torch.save(result, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), result(x))


def test_deepcopies_are_independent() -> None:
    _, result, x = converted()
    other = copy.deepcopy(result)
    nn.init.zeros_(other.conv.weight)
    assert not torch.equal(other(x), result(x))


def test_pickle_of_a_local_class_still_refuses_as_before() -> None:
    """What could not be pickled before need not be now; it must say so itself and not come back as something else."""
    _, result, _ = converted(local_class)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(result)


def test_two_recipes_of_one_class_in_one_process() -> None:
    net, first, x = converted(Super)
    second = blurify.convert(net, {"filter": {"size": 7}}, example_inputs=x)
    third = blurify.convert(net, {"skip": {"kinds": ["maxpool"]}}, example_inputs=x)
    again = blurify.convert(net, example_inputs=x)
    assert torch.equal(first(x), again(x)) and type(first) is type(again)
    assert not torch.allclose(first(x), second(x))
    assert torch.equal(third(x), net(x))
    back = pickle.loads(pickle.dumps([first, second]))
    assert torch.equal(back[0](x), first(x)) and torch.equal(back[1](x), second(x))


def test_training_mode_and_gradients() -> None:
    _, result, x = converted(Conditional)
    result.train()
    assert not result(x).any()
    result.eval()(x).sum().backward()
    assert result.conv.weight.grad is not None and result.conv.weight.grad.abs().sum() > 0


def test_arguments_keep_their_defaults_and_names() -> None:
    net, result, x = converted(Defaults)
    assert result(x[..., :-1]).shape == net(x[..., :-1]).shape == (1, 4, 8, 8)
    assert result(x=x[..., :-1], ceil=False).shape == (1, 4, 8, 7)
    with pytest.raises(TypeError, match="surprise"):
        result(x, surprise=1)
    assert type(result).forward.__defaults__ == (2,) and type(result).forward.__kwdefaults__["ceil"] is True


def test_attributes_that_a_decorator_left_stay() -> None:
    _, result, _ = converted(Decorated)
    assert result.forward.is_documented


def test_call_at_another_stride_passes_through() -> None:
    """The plan is for the stride that was seen; the same expression at another one does what it always did."""
    net, result, x = converted(Defaults)
    assert torch.equal(result(x, 3), net(x, 3))


def test_traceback_points_at_the_original_source() -> None:
    _, result, _ = converted(HelperOfHelper)
    try:
        result(torch.zeros(1, 3, 1, 1, dtype=torch.float64))
    except Exception:
        text = traceback.format_exc()
    else:
        pytest.fail("a pool of one pixel must fail")
    assert __file__ in text
    assert "return halve_deeper(self.conv(x), scale=0.5) + halve(x)[:, :1]" in text
    assert "return F.max_pool2d(x, 2)" in text


def test_child_does_not_take_a_name_in_use() -> None:
    class Taken(Base):
        blur_max_pool = "mine"

    net, result, x = converted(Taken)
    assert result.blur_max_pool == "mine"
    assert [name for name, _ in result.named_children()] == ["conv", "blur_max_pool_2"]
    assert not torch.allclose(result(x), net(x))


def test_instance_of_anything_else_is_refused() -> None:
    """What a file may ask for by way of pickle is a rewritten nn.Module only."""
    good = ("expression", (("forward", "x", 0),), "blur", "wrap", 0)
    with pytest.raises(blurify.BlurifyError, match="not one that blurify wrote"):
        edited_instance(SimpleNamespace, (good,))  # type: ignore[arg-type]
    with pytest.raises(blurify.BlurifyError, match="not one that blurify wrote"):
        edited_instance(Base, (SimpleNamespace(child="os"),))  # type: ignore[arg-type]
    for change in (
        ("output", "a b"),
        (*good[:2], "a b", "wrap", 0),
        ("explode", "blur"),
        good[:3],
        (),
        ("input", 1, 0),
    ):
        with pytest.raises(blurify.BlurifyError, match="not one that blurify wrote"):
            edited_instance(Base, (change,))


def pooled_and_counted(x: Tensor) -> Tensor:
    counted.append(pooled_and_counted)  # as torchvision's functions log their own use
    return F.max_pool2d(x, 2)


counted: list[Any] = []


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return pooled_and_counted(self.conv(x))


def test_a_helper_that_mentions_itself() -> None:
    x = torch.randn(1, 3, 8, 8)
    converted = blurify.convert(Counted(), example_inputs=x)
    assert [site.action for site in blurify.inspect(Counted(), x).sites] == ["blur"]
    counted.clear()
    converted(x)
    assert counted == [pooled_and_counted]
