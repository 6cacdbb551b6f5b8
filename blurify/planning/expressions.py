"""From the Python calls of a trace to a path that lasts: which expression of which function made a tensor."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from blurify.graph.recorder import Frame
from blurify.nn.edited import original_class
from blurify.nn.rewriting import Path
from blurify.nn.source import (
    CannotRewriteError,
    Position,
    callee,
    expression_at,
    expressions,
    function_tree,
    method,
    methods_with,
    nested_codes,
    statement_of,
    written_name,
)


def path_of(model: nn.Module, frames: Sequence[Frame]) -> tuple[str, Path, ast.AST]:
    """Describe an expression by the functions down to it, so that it is found again in another process.

    Args:
        model: the model that the frames' module paths are of.
        frames: the Python calls on the way, outermost first.

    Returns:
        the path of the module whose class has to change, the functions from its method to the expression, and the
        expression.

    Raises:
        CannotRewriteError: there is no source, or a function on the way can't be found again.
    """
    frames = without_nested(frames)
    problem = CannotRewriteError("its forward is wrapped or set on the instance")
    # A method that is looked up on the instance is simply overridden: what called it need not change.
    for start in reversed(range(len(frames))):
        code, _, module = frames[start]
        if module is None:
            continue
        instance = model.get_submodule(module)
        for name, function in methods_with(original_class(instance), code):
            if not _looked_up(instance, name, function):
                continue
            try:
                steps, expression = _steps(instance, name, function, frames[start:])
            except CannotRewriteError as error:
                problem = error
                continue
            return module, steps, expression
    raise problem


def _looked_up(instance: nn.Module, name: str, function: FunctionType) -> bool:
    """Whether overriding a method in the class reaches its callers: a copy kept elsewhere would still be called."""
    kept = vars(instance).get(name)
    return kept is None or getattr(kept, "__func__", None) is function


def _steps(instance: nn.Module, name: str, function: FunctionType, frames: Sequence[Frame]) -> tuple[Path, ast.AST]:
    cls = original_class(instance)
    steps: list[tuple[str, str, int]] = []
    for index, (code, position, _) in enumerate(frames):
        if function.__code__ is not code:
            raise CannotRewriteError(f"the function {code.co_name} that it calls can't be found from its source")
        tree = function_tree(code)
        expression = expression_at(tree, position)
        text = ast.unparse(expression)
        equal = [node for node in expressions(tree) if ast.unparse(node) == text]
        steps.append((name, text, equal.index(expression)))
        if index + 1 < len(frames):
            called = callee(cls, function, expression, instance)
            if called is None:
                raise CannotRewriteError(f"what {text!r} calls can't be found from its source")
            function, name = called.function, called.function.__code__.co_name
    return tuple(steps), expression


def without_nested(frames: Sequence[Frame]) -> list[Frame]:
    """Calls of functions, lambdas and comprehensions that stand inside a function count as that function's own."""
    merged: list[Frame] = []
    for frame in frames:
        for index, (code, _, module) in enumerate(merged):
            if any(frame[0] is inner for inner in nested_codes(code)):
                merged[index:] = [(code, frame[1], module)]
                break
        else:
            merged.append(frame)
    return merged


def is_statement(model: nn.Module, module: str, path: Path) -> bool:
    """Whether an expression is a statement of its own that writes to a named tensor, as `F.relu_(x)` is."""
    function = _function_at(model, module, path)
    if function is None:
        return False
    tree = function_tree(function.__code__)
    _, text, which = path[-1]
    expression = [node for node in expressions(tree) if ast.unparse(node) == text][which]
    if isinstance(expression, ast.AugAssign):
        return True
    return statement_of(tree, expression) is not None and written_name(expression, function) is not None


def _function_at(model: nn.Module, module: str, path: Path) -> FunctionType | None:
    """The function that the last step of a path stands in."""
    instance = model.get_submodule(module)
    cls = original_class(instance)
    function = method(cls, path[0][0])
    for _, text, which in path[:-1]:
        if function is None:
            return None
        tree = function_tree(function.__code__)
        expression = [node for node in expressions(tree) if ast.unparse(node) == text][which]
        called = callee(cls, function, expression, instance)
        function = called.function if called is not None else None
    return function


def is_plain_loop(model: nn.Module, frames: Sequence[Frame], container: str) -> bool:
    """Whether a call is all that a loop over a container does: `for layer in self.container: x = layer(x)`."""
    try:
        code, position, _ = without_nested(frames)[-1]
        tree = function_tree(code)
        expression = expression_at(tree, position)
    except (CannotRewriteError, IndexError):
        return False
    for loop in ast.walk(tree):
        if not isinstance(loop, ast.For) or len(loop.body) != 1 or loop.orelse or not isinstance(loop.target, ast.Name):
            continue
        body, over = loop.body[0], loop.iter
        if isinstance(body, ast.Assign) and body.value is expression and len(body.targets) == 1:
            same = isinstance(over, ast.Attribute) and over.attr == container
            return same and ast.unparse(body) == f"{ast.unparse(body.targets[0])} = {loop.target.id}(" + (
                f"{ast.unparse(body.targets[0])})"
            )
    return False


def takes_argument(expression: ast.AST, index: int) -> bool:
    """Whether a call expression gives its positional argument `index` as such."""
    if not isinstance(expression, ast.Call) or index >= len(expression.args):
        return False
    return not any(isinstance(argument, ast.Starred) for argument in expression.args[: index + 1])


# --- other ways into a module


def entries_that_call(instance: nn.Module, attribute: str, known: set[Any]) -> Iterator[tuple[str, FunctionType]]:
    """Methods that call `self.<attribute>` themselves, and that no trace has gone through.

    Args:
        instance: the module.
        attribute: the name of a child, or the path of a module further down.
        known: the code objects that ran.
    """
    for name, function in _methods(instance, known):
        if _calls(function.__code__, attribute):
            yield name, function


def _methods(instance: nn.Module, known: set[Any]) -> Iterator[tuple[str, FunctionType]]:
    """The methods of a module's own classes whose code is not among the known, and is at hand."""
    seen = set()
    for base in original_class(instance).__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        for name, function in vars(base).items():
            if name in seen:
                continue
            seen.add(name)
            if not isinstance(function, FunctionType) or name.startswith("__") or function.__code__ in known:
                continue
            try:
                function_tree(function.__code__)
            except CannotRewriteError:
                continue
            yield name, function


@lru_cache(maxsize=16384)
def _calls(code: CodeType, path: str) -> bool:
    """Whether a method calls `self.<path>` or an item of it, by that or by a local name."""
    tree = function_tree(code)
    if not tree.args.args:
        return False
    wanted = f"{tree.args.args[0].arg}.{path}"

    def mentions(value: ast.AST) -> bool:
        # Not `self.conv.weight`: that is only looked at.
        looked_at = {id(node.value) for node in ast.walk(value) if isinstance(node, ast.Attribute)}
        return any(
            ast.unparse(node) == wanted and id(node) not in looked_at
            for node in ast.walk(value)
            if isinstance(node, ast.Attribute)
        )

    names: set[str] = set()
    for node in ast.walk(tree):
        bound = (
            [(node.value, node.targets)] if isinstance(node, ast.Assign)
            else [(node.iter, [node.target])] if isinstance(node, ast.For | ast.comprehension)
            else [(node.value, [node.target])] if isinstance(node, ast.NamedExpr)
            else []
        )  # fmt: skip
        for value, targets in bound:
            if not isinstance(value, ast.Call) and mentions(value):
                names |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            target: ast.expr = node.func
            while isinstance(target, ast.Subscript):
                target = target.value
            if ast.unparse(target) == wanted or (isinstance(target, ast.Name) and target.id in names):
                return True
    return False


def numbers_members(instance: nn.Module, container: str, known: set[Any]) -> bool:
    """Whether a method that no trace went through runs the members of a container by their numbers.

    `self.net[3](x)`, `for i in range(len(self.net))`, `for i, m in enumerate(self.net)`: a blur between them would be
    missed, or taken for the next one.
    """
    return any(_numbers(function.__code__, container) for _, function in _methods(instance, known))


@lru_cache(maxsize=4096)
def _numbers(code: CodeType, container: str) -> bool:
    tree = function_tree(code)
    if not tree.args.args:
        return False
    wanted = f"{tree.args.args[0].arg}.{container}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            found = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("enumerate", "len"):
            found = node.args
        elif isinstance(node, ast.Attribute) and node.attr in ("_modules", "named_children"):
            found = [node.value]
        else:
            continue
        if any(ast.unparse(one) == wanted for one in found):
            return True
    return False


def may_pass_by(code: CodeType, begin: Position, end: Position) -> bool:
    """Whether a run of a function may take another way from one expression on than past another.

    A branch that depends on what the function was given (a flag, a size) may use what is dense before it is blurred, or
    leave with it. One that depends on the module alone (`if self.act is not None`) goes the same way in every run.

    Args:
        code: of the function.
        begin: what becomes dense.
        end: what is blurred.
    """
    tree = function_tree(code)
    arguments = tree.args
    this = {arguments.args[0].arg} if arguments.args else set()
    given = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} - this
    given |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    given = _derived(tree, given)
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            if all(isinstance(n, ast.Raise | ast.Assert) for part in _parts(node) for n in part):
                continue
            depends = any(isinstance(n, ast.Name) and n.id in given for n in ast.walk(node.test))
            within = [any(_covers(part, place) for part in _parts(node)) for place in (begin, end)]
            between = begin[0] < node.lineno < end[0] or (within[1] and not within[0])
            apart = all(within) and not any(_covers(p, begin) and _covers(p, end) for p in _parts(node))
            if depends and (between or apart):
                return True
        elif isinstance(node, ast.Return) and begin[0] < node.lineno < end[0]:
            around = [
                n for n in ast.walk(tree) if isinstance(n, ast.If) and any(_covers_line(p, node) for p in _parts(n))
            ]
            if not around:
                return True
    return False


def _derived(tree: ast.FunctionDef, names: set[str]) -> set[str]:
    """The names in a function whose values come from those of others: not the index of a loop over `self.layers`."""
    bindings: list[tuple[ast.AST, list[Any]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bindings.append((node.value, list(node.targets)))
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            bindings.append((node.value, [node.target]))
        elif isinstance(node, ast.For | ast.comprehension):
            bindings.append((node.iter, [node.target]))
    found = set(names)
    while True:
        more = {
            target.id
            for value, targets in bindings
            if any(isinstance(n, ast.Name) and n.id in found for n in ast.walk(value))
            for one in targets
            for target in ast.walk(one)
            if isinstance(target, ast.Name)
        } - found
        if not more:
            return found
        found |= more


def _parts(node: ast.If | ast.IfExp | ast.While) -> list[list[ast.AST]]:
    if isinstance(node, ast.IfExp):
        return [[node.body], [node.orelse]]
    return [list(node.body), list(node.orelse)]


def _covers(part: list[ast.AST], place: Position) -> bool:
    """Whether a place lies within the statements (or the expression) of a branch."""
    return any(
        (n.lineno, n.col_offset) <= (place[0], place[2]) and (place[1], place[3]) <= (n.end_lineno, n.end_col_offset)  # type: ignore[attr-defined]
        for n in part
    )


def _covers_line(part: list[ast.AST], inner: ast.Return) -> bool:
    return any(n.lineno <= inner.lineno <= n.end_lineno for n in part)  # type: ignore[attr-defined]


@lru_cache(maxsize=16384)
def reads_stride(code: CodeType, path: str) -> bool:
    """Whether a method reads `self.<path>.stride`, also by an item of a list."""
    tree = function_tree(code)
    if not tree.args.args:
        return False
    wanted = f"{tree.args.args[0].arg}.{path}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "stride":
            target: ast.expr = node.value
            while isinstance(target, ast.Subscript):
                target = target.value
            if ast.unparse(target) == wanted:
                return True
    return False


def methods_of(instance: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """The methods of a module's own classes whose source is at hand."""
    return _methods(instance, set())


def argument_of_forward(model: nn.Module, module: str, path: Path, names: Sequence[str]) -> bool:
    """Whether an expression gives one of these parameters of its call what its forward was given for it."""
    function = _function_at(model, module, path)
    if function is None or len(path) > 1:
        return False
    tree = function_tree(function.__code__)
    _, text, which = path[-1]
    expression = [node for node in expressions(tree) if ast.unparse(node) == text][which]
    if not isinstance(expression, ast.Call):
        return False
    given = {argument.arg for argument in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)}
    values = [keyword.value for keyword in expression.keywords if keyword.arg in names]
    return any(isinstance(n, ast.Name) and n.id in given for value in values for n in ast.walk(value))


def same_expression(
    function: FunctionType, step: tuple[str, str, int], of: int, name: str, expression: ast.AST, attribute: str
) -> Path | None:
    """The path of the expression in another method that does the same as a step's; None where that is not clear.

    It has the same text, or the same but for what `self.<attribute>` is called with.

    Args:
        function: the other method.
        step: the expression's step.
        of: how many equal expressions there are where the step stands.
        name: the other method's name.
        expression: the expression itself.
        attribute: the child that becomes dense.
    """
    _, text, which = step
    there = expressions(function_tree(function.__code__))
    equal = [node for node in there if ast.unparse(node) == text]
    if len(equal) == of:
        return ((name, text, which),)
    if len(equal) == 1:
        return ((name, text, 0),)
    calls = _without_arguments(expression, attribute)
    alike = [node for node in there if calls is not None and _without_arguments(node, attribute) == calls]
    if len(alike) != 1:
        return None
    text = ast.unparse(alike[0])
    return ((name, text, [node for node in there if ast.unparse(node) == text].index(alike[0])),)


def _without_arguments(expression: ast.AST, attribute: str) -> str | None:
    """The text of an expression with nothing between the brackets of `self.<attribute>(...)`; None without that."""
    blank = copy.deepcopy(expression)
    found = False
    for node in ast.walk(blank):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == attribute:
            node.args, node.keywords, found = [], [], True
    return ast.unparse(blank) if found else None


def count_equal(model: nn.Module, module: str, path: Path) -> int:
    """How many expressions equal to the last step's there are in its function."""
    function = _function_at(model, module, path)
    if function is None:
        return 0
    return sum(ast.unparse(node) == path[-1][1] for node in expressions(function_tree(function.__code__)))
