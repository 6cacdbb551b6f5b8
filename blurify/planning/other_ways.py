"""What no trace went through: other methods, other branches, other readers of what an edit changes.

A trace tells what one forward did. An edit that holds for it may not hold for a method beside `forward`, a branch that
a flag or a size decides, or code that numbers the members of a container. Their source tells, as far as it is plain.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from blurify.nn.edited import original_class
from blurify.nn.source import CannotRewriteError, Position, function_tree


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


def _of_self(tree: ast.FunctionDef, path: str) -> str:
    """The text of a module's part inside one of its methods: 'self.block.conv'; '' in a function without arguments."""
    return f"{tree.args.args[0].arg}.{path}" if tree.args.args else ""


def _without_items(expression: ast.expr) -> ast.expr:
    """`self.convs` for `self.convs[1]`."""
    while isinstance(expression, ast.Subscript):
        expression = expression.value
    return expression


@lru_cache(maxsize=16384)
def _calls(code: CodeType, path: str) -> bool:
    """Whether a method calls `self.<path>` or an item of it, by that or by a local name."""
    tree = function_tree(code)
    wanted = _of_self(tree, path)

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
            target = _without_items(node.func)
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
    wanted = _of_self(tree, container)
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
    wanted = _of_self(tree, path)
    read = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "stride")
    return any(ast.unparse(_without_items(value)) == wanted for value in read)


def methods_of(instance: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """The methods of a module's own classes whose source is at hand."""
    return _methods(instance, set())
