"""Change single expressions in one module's own forward, and leave all else in it as its author wrote it.

For what lies in the middle of a forward (`F.max_pool2d(x, 3, 2)`, a padding that a convolution computes itself) no
module can be edited. Baking a graph would freeze `self.training`, shapes and branches; so the *source* of that one
forward is compiled again with the expression routed through a child module, and the instance moves to a subclass (same
name, same `isinstance`) that has it. Helper functions on the way (`conv2d_same(...)`) are cloned, never changed.
"""

from __future__ import annotations

import ast
import copy
import inspect
import linecache
import types
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from blurify.errors import BlurifyError
from blurify.graph.recorder import Frame
from blurify.spec.plan import Rewrite

Path = tuple[tuple[str, str, int], ...]
_COMPREHENSIONS = ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")
_CLONE = "_blurify_"


class CannotRewriteError(BlurifyError):
    """This forward can't be compiled again; the message says why."""


# --- from the Python calls of a trace to a path that lasts


def path_of(model: nn.Module, frames: Sequence[Frame]) -> tuple[str, Path]:
    """Describe an expression by the functions down to it, so that it is found again in another process.

    Args:
        model: the model that the frames' module paths are of.
        frames: the Python calls on the way, outermost first.

    Returns:
        the path of the module whose class has to change, and the functions from its method to the expression.

    Raises:
        CannotRewriteError: there is no source, or a function on the way can't be found again.
    """
    frames = _without_comprehensions(frames)
    # A method that is looked up on the instance is simply overridden: what called it need not change.
    for start in reversed(range(len(frames))):
        code, _, module = frames[start]
        cls = type(model.get_submodule(module)) if module is not None else type(None)
        function = _method(cls, code.co_name, code) if module is not None else None
        if module is not None and function is not None:
            break
    else:
        raise CannotRewriteError("its forward is wrapped or set on the instance")
    steps: list[tuple[str, str, int]] = []
    for index in range(start, len(frames)):
        code, position, _ = frames[index]
        if function is None or function.__code__ is not code:
            raise CannotRewriteError(f"the function {code.co_name} that it calls can't be found from its source")
        if index > start and (function.__name__ != code.co_name or not code.co_argcount):
            raise CannotRewriteError(f"a decorator stands around {function.__name__}, which it calls")
        tree = _function_tree(code)
        expression = _at(tree, position)
        text = ast.unparse(expression)
        equal = [node for node in _expressions(tree) if ast.unparse(node) == text]
        steps.append((code.co_name, text, equal.index(expression)))
        if index + 1 < len(frames):
            function = _callee(cls, function, expression)
    return module, tuple(steps)


def _without_comprehensions(frames: Sequence[Frame]) -> list[Frame]:
    """A comprehension may be a Python call of its own, but its expressions stand in the function around it."""
    merged: list[Frame] = []
    for index, frame in enumerate(frames):
        if index and frame[0].co_name in _COMPREHENSIONS and frame[0] in frames[index - 1][0].co_consts:
            merged[-1] = (merged[-1][0], frame[1], merged[-1][2])
        else:
            merged.append(frame)
    return merged


def _method(cls: type, name: str, code: CodeType | None = None) -> FunctionType | None:
    """The plain function that `instance.name(...)` runs, where it is one (and has that code)."""
    function = inspect.getattr_static(cls, name, None)
    if not isinstance(function, FunctionType) or (code is not None and function.__code__ is not code):
        return None
    return function


def _callee(cls: type, function: FunctionType, expression: ast.AST) -> FunctionType | None:
    """The Python function that a call expression inside `function` runs, as far as its source says."""
    if not isinstance(expression, ast.Call):
        return None
    names: list[str] = []
    target: ast.expr = expression.func
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    names.reverse()
    if isinstance(target, ast.Call) and isinstance(target.func, ast.Name) and target.func.id == "super":
        owner = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)).get("__class__")
        if owner is None or len(names) != 1:
            return None
        mro = cls.__mro__
        for base in mro[mro.index(owner.cell_contents) + 1 :]:
            if names[0] in vars(base):
                return vars(base)[names[0]]
        return None
    if not isinstance(target, ast.Name):
        return None
    if function.__code__.co_argcount and target.id == function.__code__.co_varnames[0] and len(names) == 1:
        return _method(cls, names[0])
    closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    if target.id in closure:
        value = closure[target.id].cell_contents
    else:
        value = function.__globals__.get(target.id)
    for name in names:
        value = getattr(value, name, None)
    return value if isinstance(value, FunctionType) else None


@lru_cache(maxsize=64)
def _file_functions(filename: str, lines: tuple[str, ...]) -> dict[tuple[str, int], ast.FunctionDef]:
    functions = {}
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            functions[node.name, first] = node
    return functions


def _function_tree(code: CodeType) -> ast.FunctionDef:
    lines = linecache.getlines(code.co_filename)
    if not lines:
        raise CannotRewriteError(f"the source of {code.co_name} is not at hand (define the class in a file)")
    try:
        return _file_functions(code.co_filename, tuple(lines))[code.co_name, code.co_firstlineno]
    except (KeyError, SyntaxError):
        raise CannotRewriteError(
            f"the source of {code.co_name} does not match what runs (was the file edited?)"
        ) from None


def _expressions(tree: ast.FunctionDef) -> Iterator[ast.AST]:
    """All expressions and augmented assignments of a function, in the order of the source."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.expr | ast.AugAssign)]
    return iter(sorted(found, key=lambda node: (node.lineno, node.col_offset, -(node.end_col_offset or 0))))


def _at(tree: ast.FunctionDef, position: tuple[int, int, int, int]) -> ast.AST:
    for node in _expressions(tree):
        if (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset) == position:  # type: ignore[attr-defined]
            return node
    raise CannotRewriteError(f"the expression at line {position[0]} can't be found in the source of {tree.name}")


# --- from paths to a class


class _Tree:
    """What changes in one function: expressions that go through a child, and calls of helpers that change too."""

    def __init__(self) -> None:
        self.children: dict[tuple[str, int], tuple[str, bool]] = {}  # expression -> (child, wrap its value)
        self.helpers: dict[tuple[str, int], tuple[str, _Tree]] = {}  # expression -> (function name, its changes)

    def add(self, path: Path, child: str, wrap: bool) -> None:
        (_, text, which), *rest = path
        if rest:
            _, helper = self.helpers.setdefault((text, which), (rest[0][0], _Tree()))
            helper.add(tuple(rest), child, wrap)
        else:
            self.children[text, which] = (child, wrap)


class _Substitute(ast.NodeTransformer):
    def __init__(self, replace: dict[ast.AST, Callable[[Any], Any]]) -> None:
        self.replace = replace

    def visit(self, node: ast.AST) -> Any:
        replacement = self.replace.get(node)
        visited = self.generic_visit(node)
        return visited if replacement is None else replacement(visited)


class _Writer:
    """Compiles the changed functions of one class."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.cls = cls
        self.methods: dict[str, Callable[..., Any]] = {}

    def write(self, function: FunctionType, tree: _Tree, name: str, self_name: str | None) -> None:
        """Compile `function` with its changes as the method `name`; `self_name` is given for what is no method yet."""
        source = copy.deepcopy(_function_tree(function.__code__))
        source.decorator_list, source.returns = [], None
        if self_name is None:
            arguments = [*source.args.posonlyargs, *source.args.args]
            self_name = arguments[0].arg
        else:
            source.args.posonlyargs.insert(0, ast.arg(self_name))
            if source.args.args and len(source.args.posonlyargs) == 1:
                source.args.args.insert(0, source.args.posonlyargs.pop())
        texts: dict[str, list[ast.AST]] = {}
        for node in _expressions(source):
            texts.setdefault(ast.unparse(node), []).append(node)
        replace: dict[ast.AST, Callable[[Any], Any]] = {}
        for (text, which), (child, wrap) in tree.children.items():
            replace[self._find(texts, text, which, source)] = _through(self_name, child, wrap)
        for number, ((text, which), (helper_name, helper)) in enumerate(tree.helpers.items()):
            node = self._find(texts, text, which, source)
            callee = _callee(self.cls, function, node)
            if callee is None or callee.__name__ != helper_name:
                raise CannotRewriteError(f"{function.__qualname__} no longer calls {helper_name} there")
            clone = f"{_CLONE}{name.removeprefix(_CLONE)}_{number}_{helper_name}"
            is_method = not isinstance(node.func, ast.Name) and _is_on_self(node.func, function)  # type: ignore[attr-defined]
            self.write(callee, helper, clone, None if is_method else "__blurify_self__")
            replace[node] = _instead(self_name, clone)
        source = _Substitute(replace).visit(source)
        self.methods[name] = _compiled(function, source, name)

    @staticmethod
    def _find(texts: dict[str, list[ast.AST]], text: str, which: int, source: ast.FunctionDef) -> Any:
        try:
            return texts[text][which]
        except (KeyError, IndexError):
            raise CannotRewriteError(
                f"{source.name} has no longer the expression {text!r}: "
                "the library that defines the model has changed; convert the original model again"
            ) from None


def _is_on_self(target: ast.expr, function: FunctionType) -> bool:
    """Whether a callee is `self.name` or `super().name` (then it takes the instance by itself)."""
    if not isinstance(target, ast.Attribute):
        return False
    value = target.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id == function.__code__.co_varnames[0]


def _attribute(self_name: str, name: str) -> ast.Attribute:
    return ast.Attribute(ast.Name(self_name, ast.Load()), name, ast.Load())


def _through(self_name: str, child: str, wrap: bool) -> Callable[[Any], Any]:
    """`f(x)` -> `self.child(f(x))` (wrap), or `f(x)` -> `self.child(f, x)`, `x[i]` -> `self.child(x, i)`."""

    def replace(node: Any) -> Any:
        if isinstance(node, ast.AugAssign):
            value = copy.deepcopy(node.target)
            value.ctx = ast.Load()
            again = ast.Assign([copy.deepcopy(node.target)], ast.Call(_attribute(self_name, child), [value], []))
            return [node, ast.copy_location(again, node)]
        if wrap:
            new = ast.Call(_attribute(self_name, child), [node], [])
        elif isinstance(node, ast.Subscript):
            new = ast.Call(_attribute(self_name, child), [node.value, _index(node.slice)], [])
        else:
            new = ast.Call(_attribute(self_name, child), [node.func, *node.args], node.keywords)
        return ast.copy_location(new, node)

    return replace


def _index(node: ast.expr) -> ast.expr:
    """What stands between brackets, as an expression of its own: `::2` -> `slice(None, None, 2)`."""
    if isinstance(node, ast.Tuple):
        return ast.Tuple([_index(item) for item in node.elts], ast.Load())
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.Call(ast.Name("slice", ast.Load()), parts, [])
    return node


def _instead(self_name: str, clone: str) -> Callable[[Any], Any]:
    def replace(node: Any) -> Any:
        return ast.copy_location(ast.Call(_attribute(self_name, clone), node.args, node.keywords), node)

    return replace


def _compiled(function: FunctionType, source: ast.FunctionDef, name: str) -> FunctionType:
    """A function with the changed body and everything else (globals, closure, defaults) of the original."""
    original = source.name
    code = function.__code__
    body: ast.stmt = source
    owner = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    if owner and owner != "<locals>":  # private names (self.__x) are spelled by class
        body = ast.ClassDef(owner, [], [], [source], [])
    cells = [ast.arg(cell) for cell in code.co_freevars if cell != "__class__"]
    factory = ast.FunctionDef("factory", ast.arguments([], cells, None, [], [], None, []), [body], [], None)
    if not isinstance(body, ast.ClassDef) and "__class__" in code.co_freevars:
        raise CannotRewriteError(f"{function.__qualname__} uses super() outside of a class")
    module = ast.fix_missing_locations(ast.Module([factory], []))
    compiled = _code_named(compile(module, code.co_filename, "exec", dont_inherit=True, flags=_future(code)), original)
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


def _code_named(code: CodeType, name: str) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                return constant
            if constant.co_name not in _COMPREHENSIONS:
                try:
                    return _code_named(constant, name)
                except LookupError:
                    continue
    raise LookupError(name)


_classes: dict[tuple[type, tuple[Rewrite, ...]], type[nn.Module]] = {}


def rewritten_class(base: type[nn.Module], rewrites: tuple[Rewrite, ...]) -> type[nn.Module]:
    """A subclass of `base`, of the same name, whose forward routes the given expressions through child modules.

    Raises:
        CannotRewriteError: the source is not at hand, or no longer has these expressions.
    """
    key = (base, rewrites)
    if key in _classes:
        return _classes[key]
    trees: dict[str, _Tree] = {}
    for rewrite in rewrites:
        trees.setdefault(rewrite.path[0][0], _Tree()).add(rewrite.path, rewrite.child, rewrite.op == "wrap")
    writer = _Writer(base)
    for name, tree in trees.items():
        function = _method(base, name)
        if function is None:
            raise CannotRewriteError(f"{base.__qualname__} has no longer a method {name}")
        writer.write(function, tree, name, None)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        reduced: Any = base.__reduce_ex__(self, 2)
        return (rewritten_instance, (base, rewrites), *reduced[2:])

    namespace: dict[str, Any] = {
        **writer.methods,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": __reduce_ex__,
        "_blurify_base": base,
        "_blurify_rewrites": rewrites,
    }
    cls = types.new_class(base.__name__, (base,), exec_body=lambda target: target.update(namespace))
    _classes[key] = cls
    return cls


def rewritten_instance(base: type[nn.Module], rewrites: tuple[Rewrite, ...]) -> nn.Module:
    """An empty instance of the rewritten class (how pickle and deepcopy bring one back)."""
    if not (isinstance(base, type) and issubclass(base, nn.Module)) or not all(
        isinstance(rewrite, Rewrite) and rewrite.child.isidentifier() for rewrite in rewrites
    ):
        raise BlurifyError(
            "this file's rewritten module is not one that blurify wrote: convert the original model again"
        )
    cls = rewritten_class(base, tuple(rewrites))
    return cls.__new__(cls)


def rewrite_module(module: nn.Module, rewrites: Sequence[Rewrite]) -> None:
    """Move one module to the class that has these rewrites (and those that it already has)."""
    base = getattr(type(module), "_blurify_base", type(module))
    before = getattr(type(module), "_blurify_rewrites", ())
    module.__class__ = rewritten_class(base, tuple(before) + tuple(rewrites))
