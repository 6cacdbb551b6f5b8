"""Change single expressions in one module's own forward, and leave all else in it as its author wrote it.

For what lies in the middle of a forward (`F.max_pool2d(x, 3, 2)`, the call of an activation that others call too) no
module can be edited. Baking a graph would freeze `self.training`, shapes and branches; so the *source* of that one
forward is compiled again with the expression routed through a child module. Helper functions on the way
(`conv2d_same(...)`, what a decorator calls) are cloned, never changed.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

from torch import nn

from blurify.nn.source import (
    CannotRewriteError,
    callee,
    expressions,
    function_tree,
    is_on_self,
    method,
    nested_codes,
    statement_of,
    written_name,
)
from blurify.nn.wrapped import WRAPPED, held_functions, holding

Path = tuple[tuple[str, str, int], ...]
_CLONE, _OWED = "_blurify_", "_blurify_owed"
AFTER = "_blurify_after"
"""The name by which a rewritten function finds `joining.after`."""


class Expression(NamedTuple):
    """An expression of a forward, and how it goes through a child.

    Attributes:
        path: the functions from the forward to it, outermost first: (name, source text, which of the equal ones). The
            text `wrapped.WRAPPED` stands for what a decorator does with the function that it holds.
        child: the name of the child module.
        form: 'wrap' `f(x)` -> `after(self.child, f, x)`, other expressions `y` -> `self.child(y)`; 'input' `f(x)` ->
            `f(self.child(x))`; 'call' `f(x)` -> `self.child(f, x)` and `x[i]` -> `self.child(x, i)`. In a loop over
            modules, 'member' makes of `f(x)` `self.child.run(owed, self, f, x)` and 'owed' of `g(y)`
            `self.child(g(y), owed)`, where `owed` is a list that is made anew in every run of the function: it is of
            one run, and so of one thread.
        argument: the positional one that 'input' is about.
    """

    path: Path
    child: str
    form: str
    argument: int = 0


class _Tree:
    """What changes in one function: expressions that go through a child, and calls of helpers that change too."""

    def __init__(self) -> None:
        self.children: dict[tuple[str, int], list[Expression]] = {}
        self.helpers: dict[tuple[str, int], tuple[str, _Tree]] = {}  # expression -> (function name, its changes)

    def add(self, path: Path, wanted: Expression) -> None:
        (_, text, which), *rest = path
        if rest:
            _, helper = self.helpers.setdefault((text, which), (rest[0][0], _Tree()))
            helper.add(tuple(rest), wanted)
        else:
            self.children.setdefault((text, which), []).append(wanted)

    @property
    def is_wrapped(self) -> bool:
        """Whether what changes is inside of what a decorator holds."""
        return any(text == WRAPPED for text, _ in self.helpers)


class Rewritten(NamedTuple):
    """The methods that change in a class.

    Attributes:
        methods: those to override and the clones of helpers, by name.
        overridden: the names of the first.
        stored: the functions that were cloned though only the instance has them (`self.act_fn = F.gelu`), by its names
            for them: the methods serve instances with these alone.
    """

    methods: dict[str, Any]
    overridden: frozenset[str]
    stored: dict[str, FunctionType]


def rewrite(cls: type[nn.Module], wanted: Iterable[Expression], instance: nn.Module | None = None) -> Rewritten:
    """Compile the methods of a class anew, with these expressions going through children.

    Args:
        cls: the class as its author wrote it.
        wanted: the expressions.
        instance: whose own functions (`self.pool = lambda x: ...`) may be on the way.

    Raises:
        CannotRewriteError: the source is not at hand, or no longer has these expressions.
    """
    trees: dict[str, _Tree] = {}
    for expression in wanted:
        trees.setdefault(expression.path[0][0], _Tree()).add(expression.path, expression)
    writer = _Writer(cls, instance)
    for name, tree in trees.items():
        static = inspect.getattr_static(cls, name, None)
        if tree.is_wrapped:
            writer.write_wrapped(static, tree, name)
        else:
            function = method(cls, name)
            if function is None:
                raise CannotRewriteError(f"{cls.__qualname__} has no longer a method {name}")
            writer.write(function, tree, name, own=True)
        # `forward = _run` in the class: the same function by another name.
        aliases = [other for base in cls.__mro__ for other, value in vars(base).items() if value is static]
        same = {other for other in aliases if inspect.getattr_static(cls, other, None) is static}
        writer.methods |= dict.fromkeys(same, writer.methods[name])
    return Rewritten(writer.methods, frozenset(n for n in writer.methods if not n.startswith(_CLONE)), writer.stored)


class _Writer:
    """Compiles the changed functions of one class."""

    def __init__(self, cls: type[nn.Module], instance: nn.Module | None) -> None:
        self.cls = cls
        self.instance = instance
        self.methods: dict[str, Any] = {}
        self.stored: dict[str, FunctionType] = {}

    def write_wrapped(self, value: Any, tree: _Tree, name: str) -> None:
        """Make the method `name` anew as its decorator made it, around a changed function."""
        held = held_functions(value)
        rest = _Tree()
        rest.children = tree.children
        for number, ((text, which), (inner_name, inner)) in enumerate(tree.helpers.items()):
            if text != WRAPPED:
                rest.helpers[text, which] = inner_name, inner
                continue
            if not 0 <= which < len(held) or held[which].__code__.co_name != inner_name:
                raise CannotRewriteError(f"{self.cls.__qualname__}.{name} no longer holds {inner_name}")
            clone = f"{_CLONE}{name}_wrapped_{number}_{inner_name.strip('<>')}"
            self.write(held[which], inner, clone, own=True)
            value = holding(value, held[which], self.methods[clone])
        self.methods[name] = value
        if rest.children or rest.helpers:
            if not isinstance(value, FunctionType):
                raise CannotRewriteError(f"{self.cls.__qualname__}.{name} is no plain function")
            self.write(value, rest, name, own=True)

    def write(self, function: FunctionType, tree: _Tree, name: str, *, own: bool) -> None:
        """Compile `function` with its changes as the method `name`; `own` where it takes the instance by itself."""
        source = copy.deepcopy(function_tree(function.__code__))
        source.decorator_list, source.returns = [], None
        if own:
            this = _first_argument(source)
        else:
            this = ast.Name("__blurify_self__", ast.Load())
            source.args.posonlyargs.insert(0, ast.arg(this.id))
            if source.args.args and len(source.args.posonlyargs) == 1:
                source.args.args.insert(0, source.args.posonlyargs.pop())
        texts: dict[str, list[ast.AST]] = {}
        for node in expressions(source):
            texts.setdefault(ast.unparse(node), []).append(node)
        replace: dict[ast.AST, Callable[[Any], Any]] = {}
        owing = False
        for (text, which), wanted in tree.children.items():
            node = _find(texts, text, which, source)
            statement = statement_of(source, node)
            key = node if statement is None or written_name(node, function) is None else statement
            replace[key] = _through(this, sorted(wanted, key=lambda one: one.form in _VALUES), function)
            if any(one.form in ("member", "owed") for one in wanted):
                owing = True
        for number, ((text, which), (helper_name, helper)) in enumerate(tree.helpers.items()):
            node = _find(texts, text, which, source)
            called = callee(self.cls, function, node, self.instance)
            if called is None or called.function.__code__.co_name != helper_name:
                raise CannotRewriteError(f"{function.__qualname__} no longer calls {helper_name} there")
            clone = f"{_CLONE}{name.removeprefix(_CLONE)}_{number}_{helper_name.strip('<>')}"
            if called.stored:
                self.stored[called.stored] = called.function
            bound = called.bound and is_on_self(node.func, function)
            self.write(called.function, helper, clone, own=bound)
            replace[node] = _instead(this, clone)
        source = _Substitute(replace).visit(source)
        if owing:
            source.body.insert(0, ast.Assign([ast.Name(_OWED, ast.Store())], ast.List([], ast.Load())))
        self.methods[name] = _compiled(function, source, name)


def _first_argument(source: ast.FunctionDef) -> ast.Name | ast.Subscript:
    """The expression for the instance inside a method: its first argument, also where it takes `*args`."""
    arguments = [*source.args.posonlyargs, *source.args.args]
    if arguments:
        return ast.Name(arguments[0].arg, ast.Load())
    if source.args.vararg is None:
        raise CannotRewriteError(f"{source.name} takes no argument, not even the module")
    return ast.Subscript(ast.Name(source.args.vararg.arg, ast.Load()), ast.Constant(0), ast.Load())


def _find(texts: dict[str, list[ast.AST]], text: str, which: int, source: ast.FunctionDef) -> Any:
    try:
        return texts[text][which]
    except (KeyError, IndexError):
        raise CannotRewriteError(
            f"{source.name} has no longer the expression {text!r}: "
            "the library that defines the model has changed; convert the original model again"
        ) from None


class _Substitute(ast.NodeTransformer):
    def __init__(self, replace: dict[ast.AST, Callable[[Any], Any]]) -> None:
        self.replace = replace

    def visit(self, node: ast.AST) -> Any:
        replacement = self.replace.get(node)
        visited = self.generic_visit(node)
        return visited if replacement is None else replacement(visited)


def _attribute(this: ast.expr, *names: str) -> ast.expr:
    value: ast.expr = copy.deepcopy(this)
    for name in names:
        value = ast.Attribute(value, name, ast.Load())
    return value


def _through(this: ast.expr, wanted: list[Expression], function: FunctionType) -> Callable[[Any], Any]:
    def replace(node: Any) -> Any:
        for expression in wanted:
            node = _routed(this, expression, node, function)
        return node

    return replace


def _routed(this: ast.expr, expression: Expression, node: Any, function: FunctionType) -> Any:
    """The node that sends this one through the child of an expression (see `Expression`)."""
    child = _attribute(this, expression.child)
    owed: list[ast.expr] = [ast.Name(_OWED, ast.Load())] if expression.form in ("member", "owed") else []
    if expression.form in _VALUES and isinstance(node, ast.AugAssign):
        return [node, _assigned(node.target, child, owed, node)]
    if expression.form in _VALUES and isinstance(node, ast.Expr):
        # `F.relu_(x)` as a statement: what follows uses the name of what it wrote to.
        name = written_name(node.value, function)
        assert name is not None  # or the statement would not have been chosen
        return _assigned(name, child, owed, node, value=node.value)
    new: ast.expr
    if expression.form == "wrap" and takes_one(node):
        new = ast.Call(_attribute(this, AFTER), [child, node.func, *node.args], [])
    elif expression.form in _VALUES:
        new = ast.Call(child, [node, *owed], [])
    elif expression.form == "input":
        node.args[expression.argument] = ast.Call(child, [node.args[expression.argument]], [])
        return node
    elif expression.form == "member":
        run = _attribute(this, expression.child, "run")
        new = ast.Call(run, [*owed, copy.deepcopy(this), node.func, *node.args], node.keywords)
    elif isinstance(node, ast.Subscript):
        new = ast.Call(child, [node.value, _index(node.slice)], [])
    else:
        new = ast.Call(child, [node.func, *node.args], node.keywords)
    return ast.copy_location(new, node)


def takes_one(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether an expression is a call with one positional argument and nothing else."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return False
    return not isinstance(node.args[0], ast.Starred)


_VALUES = ("wrap", "owed")  # what goes through a child once it is computed


def _assigned(
    target: ast.expr, child: ast.expr, owed: list[ast.expr], at: ast.AST, value: ast.expr | None = None
) -> ast.Assign:
    """`target = child(target)`, or `target = child(value)`."""
    name, read = copy.deepcopy(target), copy.deepcopy(target)
    name.ctx, read.ctx = ast.Store(), ast.Load()  # type: ignore[attr-defined]
    return ast.copy_location(ast.Assign([name], ast.Call(child, [value or read, *owed], [])), at)


def _index(node: ast.expr) -> ast.expr:
    """What stands between brackets, as an expression of its own: `::2` -> `slice(None, None, 2)`."""
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(item) for item in node.elts], ast.Load())
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), parts, [])
    return node


def _instead(this: ast.expr, clone: str) -> Callable[[Any], Any]:
    def replace(node: Any) -> Any:
        return ast.copy_location(ast.Call(_attribute(this, clone), node.args, node.keywords), node)

    return replace


def _compiled(function: FunctionType, source: ast.FunctionDef, name: str) -> FunctionType:
    """A function with the changed body and everything else (globals, closure, defaults) of the original."""
    code = function.__code__
    body: ast.stmt = source
    owner = code.co_qualname.rpartition(".")[0].rpartition(".")[2]
    if owner and owner != "<locals>":  # private names (self.__x) are spelled by class
        body = ast.ClassDef(owner, [], [], [source], [])
    cells = [ast.arg(cell) for cell in code.co_freevars if cell != "__class__"]
    # A function that mentions itself by its global name means the one of its module, not this one.
    own: list[ast.stmt] = [] if source.name in code.co_freevars else [ast.Global([source.name])]
    body_of_factory = [*(own if source.name in code.co_names and body is source else []), body]
    factory = ast.FunctionDef("factory", ast.arguments([], cells, None, [], [], None, []), body_of_factory, [], None)
    if not isinstance(body, ast.ClassDef) and "__class__" in code.co_freevars:
        raise CannotRewriteError(f"{function.__qualname__} uses super() outside of a class")
    module = ast.fix_missing_locations(ast.Module([factory], []))
    whole = compile(module, code.co_filename, "exec", dont_inherit=True, flags=_future(code))
    compiled = next(found for found in nested_codes(whole) if found.co_name == source.name)
    closure = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    cells_used = tuple(closure[cell] for cell in compiled.co_freevars)
    new = FunctionType(compiled, function.__globals__, name, function.__defaults__, cells_used)
    new.__kwdefaults__ = copy.copy(function.__kwdefaults__)
    new.__module__, new.__qualname__, new.__doc__ = function.__module__, function.__qualname__, function.__doc__
    new.__dict__.update(function.__dict__)
    return new


def _future(code: CodeType) -> int:
    """The `from __future__` flags that the original was compiled with."""
    import __future__

    flags = 0
    for feature in __future__.all_feature_names:
        flags |= code.co_flags & getattr(__future__, feature).compiler_flag
    return flags
