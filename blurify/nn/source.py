"""The source of a function: its syntax tree, its expressions, and which functions they call."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from blurify.errors import BlurifyError

Position = tuple[int, int, int, int]
"""(line, end line, column, end column), as code objects have it."""

LAMBDA = "<lambda>"


class CannotRewriteError(BlurifyError):
    """This forward can't be compiled again; the message says why."""


def function_tree(code: CodeType) -> ast.FunctionDef:
    """The syntax tree of the function that a code object was compiled from; of a lambda, as a function that returns.

    Raises:
        CannotRewriteError: there is no source, or it is not what runs.
    """
    lines = linecache.getlines(code.co_filename)
    if not lines:
        raise CannotRewriteError(f"the source of {code.co_name} is not at hand (define the class in a file)")
    try:
        functions, lambdas = _file_functions(code.co_filename, tuple(lines))
        if code.co_name == LAMBDA:
            return _lambda_tree(code, lambdas)
        return functions[code.co_name, code.co_firstlineno]
    except (KeyError, SyntaxError):
        raise CannotRewriteError(
            f"the source of {code.co_name} does not match what runs (was the file edited?)"
        ) from None


@lru_cache(maxsize=64)
def _file_functions(
    filename: str, lines: tuple[str, ...]
) -> tuple[dict[tuple[str, int], ast.FunctionDef], tuple[ast.Lambda, ...]]:
    functions, lambdas = {}, []
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            functions[node.name, first] = node
        elif isinstance(node, ast.Lambda):
            lambdas.append(node)
    return functions, tuple(lambdas)


def _lambda_tree(code: CodeType, lambdas: tuple[ast.Lambda, ...]) -> ast.FunctionDef:
    """Several lambdas may begin in one line: it is the smallest whose body has all that the code runs."""
    spots = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
    fitting = []
    for node in lambdas:
        body = node.body
        begin, end = (body.lineno, body.col_offset), (body.end_lineno or 0, body.end_col_offset or 0)
        names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
        if names != list(code.co_varnames[: code.co_argcount]):
            continue
        inside = sum(begin <= spot <= end for spot in spots)
        if inside and node.lineno == code.co_firstlineno:
            fitting.append((inside, -(end[1] - begin[1] if end[0] == begin[0] else 10**6), node))
    if not fitting:
        raise KeyError(LAMBDA)
    node = max(fitting, key=lambda found: found[:2])[2]
    result = ast.copy_location(ast.Return(node.body), node.body)
    function = ast.FunctionDef("lambda_", node.args, [result], [], None, None)
    return ast.copy_location(function, node)


def expressions(tree: ast.AST) -> list[ast.AST]:
    """All expressions and augmented assignments of a function, in the order of the source."""
    found: list[Any] = [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.AugAssign)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset, -(node.end_col_offset or 0)))


def expression_at(tree: ast.FunctionDef, position: Position) -> ast.AST:
    """The expression at a place. Raises CannotRewriteError where there is none."""
    for node in expressions(tree):
        if (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) == position:  # type: ignore[attr-defined]
            return node
    raise CannotRewriteError(f"the expression at line {position[0]} can't be found in the source of {tree.name}")


def statement_of(tree: ast.FunctionDef, expression: ast.AST) -> ast.Expr | None:
    """The statement that an expression is, where its value is not used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and node.value is expression:
            return node
    return None


def written_name(expression: ast.AST, function: FunctionType) -> ast.Name | ast.Attribute | None:
    """The name of the tensor that an in-place call writes to: `F.relu_(x)`, `self.act(x)`, `x.mul_(y)`."""
    if not isinstance(expression, ast.Call):
        return None
    target = expression.func
    own: ast.expr | None = None
    if isinstance(target, ast.Attribute) and target.attr.endswith("_") and not target.attr.endswith("__"):
        root: ast.expr = target.value
        while isinstance(root, ast.Attribute):
            root = root.value
        known = isinstance(root, ast.Name) and isinstance(function.__globals__.get(root.id), ModuleType)
        own = None if known else target.value  # a tensor's method, unless it is a function of a package
    first = own if own is not None else expression.args[0] if expression.args else None
    return first if isinstance(first, ast.Name | ast.Attribute) else None


def nested_codes(code: CodeType) -> Iterator[CodeType]:
    """The code of functions, lambdas and comprehensions that stand inside a function, at any depth."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested_codes(constant)


def method(cls: type, name: str, code: CodeType | None = None) -> FunctionType | None:
    """The plain function that `instance.name(...)` runs, where it is one (and has that code)."""
    function = inspect.getattr_static(cls, name, None)
    if not isinstance(function, FunctionType) or (code is not None and function.__code__ is not code):
        return None
    return function


def methods_with(cls: type, code: CodeType) -> Iterator[tuple[str, FunctionType]]:
    """The names under which a class has a function with that code (a decorator's code may be that of several)."""
    seen = set()
    for base in cls.__mro__:
        for name, value in vars(base).items():
            if name not in seen:
                seen.add(name)
                if isinstance(value, FunctionType) and value.__code__ is code:
                    yield name, value


def is_on_self(target: ast.expr, function: FunctionType) -> bool:
    """Whether a callee is `self.name` or `super().name` (then it takes the instance by itself)."""
    if not isinstance(target, ast.Attribute):
        return False
    value = target.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return bool(function.__code__.co_argcount) and isinstance(value, ast.Name) and value.id == _self_name(function)


def _self_name(function: FunctionType) -> str:
    return function.__code__.co_varnames[0]


class Callee:
    """The Python function that a call expression runs, as far as the source around it says.

    Attributes:
        function: that function.
        bound: it takes the instance by itself.
        stored: the name under which the instance (and not its class) has it, '' elsewhere.
    """

    def __init__(self, function: FunctionType, *, bound: bool = False, stored: str = "") -> None:
        self.function = function
        self.bound = bound
        self.stored = stored


def callee(cls: type, function: FunctionType, expression: ast.AST, instance: nn.Module | None = None) -> Callee | None:
    """What a call expression inside `function`, a method of `instance` of class `cls`, calls; None if unknown."""
    if not isinstance(expression, ast.Call):
        return None
    names: list[str] = []
    target: ast.expr = expression.func
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    names.reverse()
    if isinstance(target, ast.Call) and isinstance(target.func, ast.Name) and target.func.id == "super":
        return _inherited(cls, function, names)
    if not isinstance(target, ast.Name):
        return None
    if function.__code__.co_argcount and target.id == _self_name(function) and len(names) == 1:
        own = method(cls, names[0])
        if own is not None:
            return Callee(own, bound=True)
        static = inspect.getattr_static(cls, names[0], None)
        if isinstance(static, staticmethod) and isinstance(static.__func__, FunctionType):
            return Callee(static.__func__)
        value = vars(instance).get(names[0]) if instance is not None else None
        return Callee(value, stored=names[0]) if isinstance(value, FunctionType) else None
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    try:
        value = closure[target.id].cell_contents if target.id in closure else function.__globals__.get(target.id)
    except ValueError:  # a cell that is still empty
        return None
    for name in names:
        value = getattr(value, name, None)
    return Callee(value) if isinstance(value, FunctionType) else None


def _inherited(cls: type, function: FunctionType, names: list[str]) -> Callee | None:
    owner = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)).get("__class__")
    if owner is None or len(names) != 1:
        return None
    mro = cls.__mro__
    for base in mro[mro.index(owner.cell_contents) + 1 :]:
        if names[0] in vars(base):
            value: Any = vars(base)[names[0]]
            return Callee(value, bound=True) if isinstance(value, FunctionType) else None
    return None
