"""Modules of a program's calls: torch's own layers under the names that the model had for them, ops for the rest."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from blurify.errors import BlurifyError, one_line
from blurify.files.programs.archive import DTYPES, Program
from blurify.files.programs.operators import IGNORED, SUBSTITUTED, function_of
from blurify.nn.exported import Exported, Op, Part, Slice, read_by

_END = 2**62
_MOST_STEPS = 100_000
_WORD = re.compile(r"(?!__)[A-Za-z0-9_]+", re.ASCII)
_CONVS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_POOLS: dict[str, Callable[..., nn.Module]] = {
    "max_pool1d": nn.MaxPool1d, "max_pool2d": nn.MaxPool2d, "max_pool3d": nn.MaxPool3d,
    "avg_pool1d": nn.AvgPool1d, "avg_pool2d": nn.AvgPool2d, "avg_pool3d": nn.AvgPool3d,
}  # fmt: skip
_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_DTYPE_NAMES = {number: str(dtype).removeprefix("torch.") for number, dtype in DTYPES.items()}

Value = tuple[str, Any]


class _Call:
    """One call, its arguments by their names in ATen's schema."""

    def __init__(self, function: str, named: dict[str, Any], keywords: set[str], stack: list[str]) -> None:
        self.function = function
        self.named = named
        self.keywords = keywords
        self.stack = stack
        self.outputs: tuple[str, ...] = ()
        self.name = ""

    def positional(self) -> tuple[Any, ...]:
        return tuple(value for name, value in self.named.items() if name not in self.keywords)

    def by_keyword(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, value) for name, value in self.named.items() if name in self.keywords)


def build(program: Program) -> Exported:
    """The model that computes what a program does.

    Raises:
        BlurifyError: it calls what blurify does not know (by name), or can't be read.
    """
    try:
        return _Builder(program).model
    except BlurifyError:
        raise
    except Exception as error:  # what somebody else wrote
        raise BlurifyError(f"{program.path} is damaged ({one_line(error)}): get or save it again") from error


class _Builder:
    """Makes one model."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model = Exported()
        self.tensors: dict[str, str] = {}  # by the name of an input, the path of the parameter or buffer
        self.taken: set[str] = set()  # paths of modules
        self.layers: dict[str, tuple[Any, ...]] = {}  # what is known of a layer with weights, by its path
        self.counters: set[str] = set()
        graph = program.graph["graph"]
        signature = program.graph["signature"]
        inputs = self._inputs(graph, signature)
        calls = [call for node in graph["nodes"] if (call := self._call(node)) is not None]
        if len(calls) > _MOST_STEPS:
            raise BlurifyError(f"{program.path} runs more than {_MOST_STEPS:,} operations, which no model does")
        outputs = self._outputs(signature)
        self.ranks = {name: len(meta["sizes"]) for name, meta in graph["tensor_values"].items()}
        self._place_tensors(calls)
        self.uses = Counter(
            name for call in calls for value in call.named.values() for name in read_by(value)
        ) + Counter(name for one in outputs for name in read_by(one))
        self.model.inputs, self.model.keywords = inputs
        self.model.output = self._spec(self._root_signature()["out_spec"], iter(outputs))
        for call in _merged_slices(calls, self.uses):
            self._add(call)
        self._free()
        for module in self.model.modules():
            module.eval()

    # --- what goes in and comes out

    def _root_signature(self) -> dict[str, Any]:
        for entry in self.program.graph["module_call_graph"]:
            if entry["fqn"] == "" and entry["signature"]:
                found: dict[str, Any] = entry["signature"]
                return found
        raise ValueError("no signature")

    def _inputs(
        self, graph: dict[str, Any], signature: dict[str, Any]
    ) -> tuple[list[tuple[str, tuple[int, ...], str]], int]:
        users: list[str] = []
        for spec in signature["input_specs"]:
            ((kind, said),) = spec.items()
            if kind == "user_input":
                if "as_tensor" not in said["arg"]:
                    raise BlurifyError(
                        f"{self.program.path} takes inputs that are no tensors: export the model with tensors alone"
                    )
                users.append(said["arg"]["as_tensor"]["name"])
            elif kind in ("parameter", "buffer", "tensor_constant"):
                self.tensors[said["arg"]["name"]] = said[f"{kind}_name"]
            else:
                raise BlurifyError(f"{self.program.path} takes a {_cut(kind)}, which blurify does not know")
        spec = json.loads(self._root_signature()["in_spec"])[1]
        args, kwargs = spec["children_spec"]
        leaves = [*args["children_spec"], *kwargs["children_spec"]]
        if any(leaf["type"] is not None for leaf in leaves) or len(leaves) != len(users):
            raise BlurifyError(f"{self.program.path} takes nested inputs: export the model with tensors alone")
        names = [_word(name) for name in self._root_signature().get("forward_arg_names") or users]
        keywords = json.loads(kwargs["context"])
        if len(names) != len(users):
            names = list(users)
        if keywords:
            names = [*names[: len(args["children_spec"])], *map(_word, keywords)]
        found = []
        for name, value in zip(names, users, strict=True):
            meta = graph["tensor_values"][value]
            shape = tuple(_hint(size) for size in meta["sizes"])
            found.append((name, shape, _DTYPE_NAMES[meta["dtype"]]))
            self.renamed = getattr(self, "renamed", {}) | {value: name}
        return found, len(keywords)

    def _outputs(self, signature: dict[str, Any]) -> list[Any]:
        found = []
        for spec in signature["output_specs"]:
            ((kind, said),) = spec.items()
            if kind == "buffer_mutation":
                raise BlurifyError(
                    f"{self.program.path} was exported in train mode and decomposed: export model.eval(), or save what "
                    "torch.export.export gives as it is"
                )
            if kind != "user_output":
                raise BlurifyError(f"{self.program.path} returns a {_cut(kind)}, which blurify does not know")
            found.append(self._argument(said["arg"]))
        return found

    def _spec(self, text: str, leaves: Any) -> Any:
        """The nesting of what is returned, as `Exported.output`."""

        def made(spec: dict[str, Any]) -> Any:
            kind, children = spec["type"], spec["children_spec"]
            if kind is None:
                return next(leaves)
            if kind in ("builtins.tuple", "builtins.list"):
                return ("tuple" if kind.endswith("tuple") else "list", tuple(map(made, children)))
            if kind in ("builtins.dict", "collections.OrderedDict"):
                keys = json.loads(spec["context"])
                if not all(isinstance(key, str) for key in keys):
                    raise ValueError("keys that are no text")
                return "dict", tuple((key, made(child)) for key, child in zip(keys, children, strict=True))
            raise BlurifyError(
                f"{self.program.path} returns a {_cut(kind)}: export a model that returns tensors, or tuples, lists or "
                "dictionaries of them"
            )

        return made(json.loads(text)[1])

    # --- calls and their arguments

    def _call(self, node: dict[str, Any]) -> _Call | None:
        target = node["target"]
        if target in IGNORED:
            return None
        function = function_of(target) if isinstance(target, str) else None
        if function is None:
            raise BlurifyError(
                f"{self.program.path} calls {_cut(target)}, which blurify does not know: convert the model that it was "
                "exported from"
            )
        named = {one["name"] or str(i): self._argument(one["arg"]) for i, one in enumerate(node["inputs"])}
        keywords = {one["name"] for one in node["inputs"] if one.get("kind") == 2}
        if not all(_WORD.fullmatch(name) for name in keywords):
            raise ValueError("a keyword that is no name")
        stack = []
        for entry in node["metadata"].get("nn_module_stack", "").split(";"):
            parts = entry.split(",")
            if len(parts) >= 3:
                stack.append(parts[1])
        call = _Call(function, named, keywords, stack)
        call.outputs = tuple(name for one in node["outputs"] for name in _returned(one))
        single = len(node["outputs"]) == 1 and "as_tensors" not in node["outputs"][0]
        if len(call.outputs) == 1 and not single:
            raise BlurifyError(f"{self.program.path} calls {_cut(target)} for a list of one: export it without")
        call.name = (_WORD.fullmatch(str(node.get("name") or "")) and node["name"]) or function
        return _substituted(call) if function in SUBSTITUTED else call

    def _argument(self, said: dict[str, Any]) -> Any:
        ((kind, what),) = said.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self._tensor(what["name"])
            case "as_int" | "as_bool" | "as_string" | "as_float" if isinstance(what, int | float | str):
                if kind == "as_float":
                    return float(what)  # JSON has no infinity: torch writes it as text
                return what
            case "as_sym_int" | "as_sym_float" | "as_sym_bool":
                ((form, value),) = what.items()
                return ("value", _word(value)) if form == "as_name" else value
            case "as_ints" | "as_floats" | "as_bools" if all(isinstance(one, int | float) for one in what):
                return "list", tuple(what)
            case "as_sym_ints" | "as_sym_floats":
                return "list", tuple(self._argument({"as_sym_int": one}) for one in what)
            case "as_tensors":
                return "list", tuple(self._tensor(one["name"]) for one in what)
            case "as_optional_tensors":
                return "list", tuple(self._argument(one) for one in what)
            case "as_optional_tensor":
                return self._argument(what)
            case "as_scalar_type":
                return "dtype", _DTYPE_NAMES[what]
            case "as_memory_format":
                return "layout", _FORMATS[what]
            case "as_layout" if what == 7:
                return None
            case "as_device":
                return "device", ""
        raise BlurifyError(f"{self.program.path} has a {_cut(kind)}, which blurify does not know")

    def _tensor(self, name: str) -> Value:
        if name in self.tensors:
            return "tensor", self.tensors[name]
        return "value", getattr(self, "renamed", {}).get(name, _word(name))

    # --- modules

    def _place_tensors(self, calls: Iterable[_Call]) -> None:
        """Parameters and buffers under their names; those that the state_dict leaves out as they were."""
        transient = {
            one["buffer"]["buffer_name"]
            for one in self.program.graph["signature"]["input_specs"]
            if "buffer" in one and not one["buffer"]["persistent"]
        } | {
            one["tensor_constant"]["tensor_constant_name"]
            for one in self.program.graph["signature"]["input_specs"]
            if "tensor_constant" in one
        }
        made: dict[str, Tensor] = {}
        for name, tensor in self.program.parameters.items():
            owner, last = self._owner(name)
            parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())
            owner.register_parameter(last, parameter)
            made[name] = parameter
        for name, tensor in self.program.buffers.items():
            owner, last = self._owner(name)
            owner.register_buffer(last, tensor, persistent=name not in transient)
            made[name] = tensor
        missing = set(self.tensors.values()) - set(made)
        if missing:
            raise BlurifyError(f"{self.program.path} lacks the tensor {_cut(min(missing))}: get or save it again")

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        """The module of a tensor, made where there is none yet."""
        path, _, last = name.rpartition(".")
        owner: nn.Module = self.model
        for part in path.split(".") if path else ():
            if part not in owner._modules:
                owner.add_module(_word(part), Part())
            owner = owner.get_submodule(part)
        return owner, _word(last)

    def _add(self, call: _Call) -> None:
        """One call as a step."""
        if call.function == "add_" and self._counts(call):
            return
        path, given = self._layer(call) or (None, ())
        named: tuple[tuple[str, Any], ...] = ()
        if path is None:
            module, given, named = self._plain(call)
            path = self._put(module, call)
        self.model.steps.append((path, given, named, call.outputs, ()))

    def _layer(self, call: _Call) -> tuple[str, tuple[Any, ...]] | None:
        """The layer of torch whose weights a call takes, where it is one: its path, and what it is called with."""
        if call.function in _CONVS:
            return self._weighted(call, ("weight", "bias"), self._conv)
        if call.function == "linear":
            return self._weighted(call, ("weight", "bias"), self._linear)
        if call.function == "batch_norm":
            return self._weighted(call, ("weight", "bias", "running_mean", "running_var"), self._norm)
        return None

    def _weighted(
        self, call: _Call, names: tuple[str, ...], make: Callable[[_Call, dict[str, Tensor]], nn.Module]
    ) -> tuple[str, tuple[Any, ...]] | None:
        held: dict[str, str] = {}
        for name in names:
            value = call.named.get(name)
            if value is None:
                continue
            if not (isinstance(value, tuple) and value[0] == "tensor" and value[1].rpartition(".")[2] == name):
                return None
            held[name] = value[1].rpartition(".")[0]
        paths = set(held.values())
        if len(paths) != 1 or "" in paths:
            return None
        (path,) = paths
        rest = tuple((k, v) for k, v in call.named.items() if k not in ("input", *names) and k != "cudnn_enabled")
        if any(read_by(value) for _, value in rest):
            return None
        source = call.named["input"]
        alike = (call.function, tuple(sorted(held)), rest)
        if path in self.taken:
            return (path, (source,)) if self.layers.get(path) == alike else None
        owner = self.model.get_submodule(path)
        if type(owner) is not Part or owner._modules:
            return None
        own = {**owner._parameters, **owner._buffers}
        if set(own) - {"num_batches_tracked"} != set(held):
            return None
        layer = make(call, {name: own[name] for name in held})  # type: ignore[misc]
        if set(layer.state_dict()) != set(owner.state_dict()):
            return None
        layer._parameters.update(owner._parameters)
        for name, buffer in owner._buffers.items():
            layer._buffers[name] = buffer
        self._set(path, layer)
        self.layers[path] = alike
        if "num_batches_tracked" in own:
            self.counters.add(f"{path}.num_batches_tracked")
        return path, (source,)

    def _conv(self, call: _Call, held: dict[str, Tensor]) -> nn.Module:
        weight, said = held["weight"], call.named
        groups = said.get("groups", 1)
        options = {name: said[name] for name in ("stride", "padding", "dilation") if name in said}
        kernel: Any = tuple(weight.shape[2:])
        return _CONVS[call.function](
            weight.shape[1] * groups,
            weight.shape[0],
            kernel,
            groups=groups,
            bias="bias" in held,
            device="meta",
            **{name: _plain(value) for name, value in options.items()},
        )

    def _linear(self, call: _Call, held: dict[str, Tensor]) -> nn.Module:
        weight = held["weight"]
        return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in held, device="meta")

    def _norm(self, call: _Call, held: dict[str, Tensor]) -> nn.Module:
        said = call.named
        source = said["input"]
        rank = self.ranks.get(source[1], 4) if source[0] == "value" else 4
        return _NORMS[rank](
            next(iter(held.values())).shape[0],
            eps=said["eps"],
            momentum=said["momentum"],
            affine="weight" in held,
            track_running_stats="running_mean" in held,
            device="meta",
        )

    def _plain(self, call: _Call) -> tuple[nn.Module, tuple[Any, ...], tuple[tuple[str, Any], ...]]:
        """The module of a call without weights of its own, and what it is called with."""
        source = next(iter(call.named.values()), None)
        rest = dict(list(call.named.items())[1:])
        if call.function == "slices":
            return Slice(call.named["slices"]), (call.named["self"],), ()
        if not any(read_by(value) for value in rest.values()):
            given = {name: _plain(value) for name, value in rest.items()}
            if call.function in _POOLS and given.get("stride") != ():
                return _POOLS[call.function](**given), (source,), ()
            if call.function in ("dropout", "dropout_"):
                return nn.Dropout(given["p"]), (source,), ()
            if call.function == "feature_dropout":
                return nn.Dropout2d(given["p"]), (source,), ()
        return Op(call.function), call.positional(), call.by_keyword()

    def _counts(self, call: _Call) -> bool:
        """Whether a call counts the batches of a norm, which the layer does itself."""
        target = next(iter(call.named.values()))
        return bool(target[0] == "tensor" and target[1].rpartition(".")[2] == "num_batches_tracked")

    def _put(self, module: nn.Module, call: _Call) -> str:
        """Give a module without weights the name that the model had for it, or one beside its neighbours."""
        inner = call.stack[-1] if call.stack else ""
        if not all(_WORD.fullmatch(part) for part in inner.split(".")):
            inner = ""
        names = [inner, f"{inner}.{call.name}", call.name] if inner else [call.name]
        for name in [*names, *(f"{call.name}_{number}" for number in range(2, 10))]:
            if self._is_free(name):
                self._owner(f"{name}._")
                self._set(name, module)
                return name
        name = f"step_{len(self.model.steps)}"
        self._set(name, module)
        return name

    def _is_free(self, path: str) -> bool:
        owner: nn.Module = self.model
        parts = path.split(".")
        for position, part in enumerate(parts):
            found = owner._modules.get(part)
            if found is None:
                return type(owner) in (Part, Exported) and not any(
                    hasattr(owner, p) for p in parts[position : position + 1]
                )
            owner = found
        return (
            type(owner) is Part
            and path not in self.taken
            and not (owner._modules or owner._parameters or owner._buffers)
        )

    def _set(self, path: str, module: nn.Module) -> None:
        owner, _, last = path.rpartition(".")
        self.model.get_submodule(owner)._modules[last] = module
        self.taken.add(path)

    def _free(self) -> None:
        """Say after which step each value may go."""
        kept = read_by(self.model.output)
        steps = []
        for path, given, named, returned, _ in reversed(self.model.steps):
            used = {*read_by(given), *(name for _, value in named for name in read_by(value)), *returned}
            steps.append((path, given, named, returned, tuple(sorted(used - kept))))
            kept |= used
        self.model.steps = steps[::-1]


def _substituted(call: _Call) -> _Call:
    """Operators of decomposed programs as those that they came from."""
    said = call.named
    order: tuple[str, ...]
    match call.function:
        case "convolution":
            if said.get("transposed"):
                rank = len(said["stride"][1])
                order = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
                return _changed(call, f"conv_transpose{rank}d", {name: said[name] for name in order})
            rank = len(said["stride"][1])
            order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            return _changed(call, f"conv{rank}d", {name: said[name] for name in order})
        case "max_pool2d_with_indices" | "max_pool3d_with_indices":
            return _changed(call, call.function.removesuffix("_with_indices"), said, only=1)
        case "_native_batch_norm_legit_no_training":
            order = ("input", "weight", "bias", "running_mean", "running_var")
            named = {**{name: said[name] for name in order}, "training": False}
            return _changed(call, "batch_norm", {**named, "momentum": said["momentum"], "eps": said["eps"]}, only=1)
        case "native_layer_norm":
            return _changed(call, "layer_norm", said, only=1)
        case "native_group_norm":
            named = {"input": said["input"], "num_groups": said["group"], "weight": said.get("weight")}
            return _changed(call, "group_norm", {**named, "bias": said.get("bias"), "eps": said["eps"]}, only=1)
    raise BlurifyError(f"a program calls {call.function}, which blurify does not know: export model.eval()")


def _changed(call: _Call, function: str, named: dict[str, Any], only: int | None = None) -> _Call:
    made = _Call(function, named, set(), call.stack)
    made.name, made.outputs = call.name, call.outputs[:only]
    return made


def _merged_slices(calls: Iterable[_Call], uses: Counter[str]) -> list[_Call]:
    """`x[:, :, ::2, ::2]` is exported as a slice of each dimension: made one again, as blurs need it."""
    found: list[_Call] = []
    known: dict[str, _Call] = {}
    for call in calls:
        if call.function != "slice" or any(read_by(v) for v in list(call.named.values())[1:]):
            found.append(call)
            continue
        said = dict(zip(("self", "dim", "start", "end", "step"), call.named.values(), strict=False))
        for name in call.named:
            if name in ("dim", "start", "end", "step"):
                said[name] = call.named[name]
        dim, source = said.get("dim", 0), call.named["self"]
        end = said.get("end")
        part = (said.get("start") or None, None if end is None or end >= _END else end, said.get("step", 1))
        before = known.get(source[1]) if source[0] == "value" else None
        slices: dict[int, Any] = {}
        if before is not None and uses[source[1]] == 1 and dim not in before.named["by_dim"] and dim >= 0:
            slices, source = dict(before.named["by_dim"]), before.named["self"]
            found.remove(before)
        if dim < 0:
            found.append(call)
            continue
        slices[dim] = part
        index = tuple(slices.get(at, (None, None, None)) for at in range(max(slices) + 1))
        made = _Call("slices", {"self": source, "slices": index, "by_dim": slices}, set(), call.stack)
        made.name, made.outputs = call.name, call.outputs
        known[call.outputs[0]] = made
        found.append(made)
    return found


def _plain(value: Any) -> Any:
    """An argument that is a constant, as torch's constructors take it."""
    if isinstance(value, tuple):
        return tuple(value[1]) if value[0] == "list" else None
    return value


def _returned(said: dict[str, Any]) -> list[str]:
    ((kind, what),) = said.items()
    if kind == "as_tensor":
        return [_word(what["name"])]
    if kind == "as_tensors":
        return [_word(one["name"]) for one in what]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return [_word(what["as_name"])]
    if kind == "as_none":
        return ["_"]
    raise ValueError(f"a call that returns {kind}")


def _hint(size: dict[str, Any]) -> int:
    """A size of an input: the number itself, or for an open one that with which it was exported."""
    value = size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"]
    if type(value) is not int or not 0 <= value < 2**32 or math.isnan(value):
        raise ValueError("a size that is no number")
    return value


def _word(name: Any) -> str:
    if not isinstance(name, str) or not _WORD.fullmatch(name):
        raise ValueError(f"{ascii(name)[:80]} is no name")
    return name


def _cut(text: Any) -> str:
    return ascii(text)[1:-1][:120] if isinstance(text, str) else ascii(text)[:120]


__all__ = ["build"]
