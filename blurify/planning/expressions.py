"""From the Python calls of a trace to a path that lasts: which expression of which function made a tensor."""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType

from torch import nn

from blurify.graph.recorder import Frame
from blurify.nn.edited import original_class
from blurify.nn.rewriting import Path
from blurify.nn.source import (
    CannotRewriteError,
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
from blurify.nn.wrapped import WRAPPED, held_functions


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
    # What a decorator holds is changed inside of it, however that calls it.
    for start in reversed(range(len(frames))):
        code, _, module = frames[start]
        if module is None:
            continue
        instance = model.get_submodule(module)
        for name, which, function in _wrapped_with(original_class(instance), code):
            if name in vars(instance):
                continue
            try:
                steps, expression = _steps(instance, function.__code__.co_name, function, frames[start:])
            except CannotRewriteError as error:
                problem = error
                continue
            return module, ((name, WRAPPED, which), *steps), expression
    raise problem


def _wrapped_with(cls: type, code: CodeType) -> Iterator[tuple[str, int, FunctionType]]:
    """The decorated methods of a class that hold a function with that code: by which name, which one of theirs."""
    seen = set()
    for base in cls.__mro__:
        if base.__module__.startswith("torch.nn.") or base is object:
            continue
        for name, value in vars(base).items():
            if name in seen or name.startswith("__") or isinstance(value, type | nn.Module | property):
                continue
            seen.add(name)
            for which, function in enumerate(held_functions(value)):
                if function.__code__ is code:
                    yield name, which, function


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
        steps.append((name, text, _equal(tree, text).index(expression)))
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
    found = _expression_of(model, module, path)
    if found is None:
        return False
    function, tree, expression = found
    if isinstance(expression, ast.AugAssign):
        return True
    return statement_of(tree, expression) is not None and written_name(expression, function) is not None


def _equal(tree: ast.AST, text: str) -> list[ast.AST]:
    """The expressions of a function that have a text, in the order of the source."""
    return [node for node in expressions(tree) if ast.unparse(node) == text]


def _expression_of(model: nn.Module, module: str, path: Path) -> tuple[FunctionType, ast.FunctionDef, ast.AST] | None:
    """The function that the last step of a path stands in, its tree, and the expression."""
    function = _function_at(model, module, path)
    if function is None:
        return None
    tree = function_tree(function.__code__)
    _, text, which = path[-1]
    return function, tree, _equal(tree, text)[which]


def _function_at(model: nn.Module, module: str, path: Path) -> FunctionType | None:
    """The function that the last step of a path stands in."""
    instance = model.get_submodule(module)
    cls = original_class(instance)
    function = method(cls, path[0][0])
    for name, text, which in path[:-1]:
        if text == WRAPPED:
            held = held_functions(inspect.getattr_static(cls, name, None))
            function = held[which] if which < len(held) else None
            continue
        if function is None:
            return None
        expression = _equal(function_tree(function.__code__), text)[which]
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


def argument_of_forward(model: nn.Module, module: str, path: Path, names: Sequence[str]) -> bool:
    """Whether an expression gives one of these parameters of its call what its forward was given for it."""
    found = _expression_of(model, module, path) if len(path) == 1 else None
    if found is None:
        return False
    _, tree, expression = found
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
    count = sum(ast.unparse(node) == text for node in there)
    if count in (of, 1):
        return ((name, text, which if count == of else 0),)
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
    found = _expression_of(model, module, path)
    return len(_equal(found[1], path[-1][1])) if found is not None else 0
