"""Pickled modules are read without running what the file chooses; each attack here works against plain torch.load."""

import copy
import functools
import io
import os
import pickle
import subprocess
import warnings
import zipfile
from collections import OrderedDict

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.files import opening
from blurify.files.pickled.names import MOVED, Names
from blurify.files.pickled.tree import Name

FORMATS = [pytest.param({}, id="zip"), pytest.param({"_use_new_zipfile_serialization": False}, id="legacy")]


class Reduced:
    """Pickles as a call of `function(*args)`, with a state."""

    def __init__(self, function, args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


class Other(Own):
    pass


def raw_zip(path, data):
    """A checkpoint whose pickle is written by hand."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in entries.items():
            new.writestr(name, data if name.endswith("data.pkl") else content)


def unsafe_load(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=False)
        except Exception as error:
            print("plain torch.load:", error)


def attack(path, marker):
    """The file must be refused, its code not run; and the code does run under plain torch.load."""
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(str(path))
    assert not marker.exists()
    assert "\n" not in str(caught.value)
    unsafe_load(path)
    assert marker.exists(), "the attack is no attack: this test could not fail"
    return str(caught.value)


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize("function", [os.system, subprocess.check_output])
def test_reduce(tmp_path, options, function):
    marker = tmp_path / "ran"
    argument = f"touch {marker}" if function is os.system else ["touch", str(marker)]
    torch.save(Reduced(function, (argument,)), tmp_path / "x.pt", **options)
    assert "may be an attack" in attack(tmp_path / "x.pt", marker)


@pytest.mark.parametrize("options", FORMATS)
def test_reduce_inside_a_module(tmp_path, options):
    model, marker = timm.create_model("resnet10t"), tmp_path / "ran"
    model.extra = Reduced(eval, (f"open({str(marker)!r}, 'w')",))
    torch.save(model, tmp_path / "x.pt", **options)
    assert "builtins.eval" in attack(tmp_path / "x.pt", marker)


def test_reduce_beside_weights(tmp_path):
    marker = tmp_path / "ran"
    content = {"state_dict": {"w": torch.zeros(1)}, "args": Reduced(os.system, (f"touch {marker}",))}
    torch.save(content, tmp_path / "x.pt")
    attack(tmp_path / "x.pt", marker)


def test_functions_that_are_known_are_not_called(tmp_path):
    marker = tmp_path / "ran"
    # Called while loading: functions that may be referred to, constructors, functions of torch that write or fetch.
    functions = [
        Reduced(F.relu, (torch.zeros(1),)),
        Reduced(torch.from_file, (str(marker), True, 10)),
        Reduced(functools.partial(F.relu), (torch.zeros(1),)),
        Reduced(nn.Linear, (3, 4)),
        Reduced(torch.hub.load, ("a/b", "c")),
        Reduced(getattr, (nn.Module(), "__class__")),
        Reduced(getattr, (torch.nn.Conv2d, "forward")),
    ]
    for number, function in enumerate(functions):
        path = tmp_path / f"f{number}.pt"
        torch.save({"model": nn.Conv2d(3, 4, 3), "x": function}, path)
        assert type(opening.open_model(str(path)).model) is nn.Conv2d  # what is beside the model is not even made
        model = nn.Conv2d(3, 4, 3)
        model.x = function
        torch.save(model, path)
        with pytest.raises(BlurifyError):
            opening.open_model(str(path))
    assert not marker.exists()


def test_constructors_do_not_run(tmp_path, monkeypatch):
    model = nn.ReLU()
    model.x = Reduced(nn.Linear, (3, 4))
    torch.save(model, tmp_path / "x.pt")
    monkeypatch.setattr(nn.Linear, "__init__", lambda self, *args: pytest.fail("the constructor ran"))
    with pytest.raises(BlurifyError, match="a call of the class Linear"):
        opening.open_model(str(tmp_path / "x.pt"))


def test_setstate_planted_in_the_instance_is_not_called(tmp_path):
    # BUILD twice: the first puts a function under the name that pickle then calls with the second state.
    marker = tmp_path / "ran"

    def pickled(module, name):
        return (
            b"\x80\x02ctorch.nn.modules.activation\nReLU\n)\x81"
            + b"}X\x0c\x00\x00\x00__setstate__"
            + f"c{module}\n{name}\n".encode()
            + b"sb"
            + pickle.dumps(f"touch {marker}", 2)[2:-1]
            + b"b."
        )

    raw_zip(tmp_path / "x.pt", pickled("posix", "system"))
    attack(tmp_path / "x.pt", marker)
    raw_zip(tmp_path / "y.pt", pickled("torch.nn.functional", "relu"))
    with pytest.raises(BlurifyError, match="damaged"):
        opening.open_model(str(tmp_path / "y.pt"))


def test_other_opcodes(tmp_path):
    marker = tmp_path / "ran"
    text = f"touch {marker}"
    short = b"\x8c" + bytes([len(text)]) + text.encode()
    programs = {
        "inst": b"(" + f"S'{text}'\n".encode() + b"iposix\nsystem\n.",
        "obj": b"\x80\x02(cposix\nsystem\n" + b"X" + len(text).to_bytes(4, "little") + text.encode() + b"o.",
        "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + short + b"\x85R.",
    }
    for name, program in programs.items():
        path = tmp_path / f"{name}.pt"
        raw_zip(path, program)
        attack(path, marker)
        marker.unlink()
    raw_zip(tmp_path / "newobj_ex.pt", b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.")
    with pytest.raises(BlurifyError, match="NEWOBJ_EX"):
        opening.open_model(str(tmp_path / "newobj_ex.pt"))


def test_constructors_that_execute_source_text_are_refused(tmp_path):
    # torch.fx writes the names of submodules into source text unescaped; `eval` is what blurify calls on every model.
    marker = tmp_path / "ran"
    command = "touch ran"
    name = f'[",0),getattr(__import__("os"),"system")("{command}") #]'
    inner, root = nn.Sequential(), nn.Sequential(nn.Conv2d(3, 4, 3))
    inner._modules[name], inner._modules["y"] = nn.ReLU(), nn.Identity()
    make = functools.partial(timm.models._features_fx.GraphExtractNet, inner, ["y"])
    root.__dict__["eval"] = make
    torch.save(root, tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match=r"needs the class timm\.models\._features_fx\.GraphExtractNet: "):
        opening.open_model(str(tmp_path / "x.pt"))
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        make()(torch.zeros(1, 3, 4, 4))
    finally:
        os.chdir(before)
    assert marker.exists(), "the attack is no attack: this test could not fail"


@pytest.mark.parametrize("function", [getattr, torch._utils._rebuild_tensor_v2, functools.partial])
def test_what_loading_calls_is_not_for_the_model_to_hold(tmp_path, function):
    # With `partial(getattr, F.relu, "__globals__")` as a hook, a forward would get at everything.
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.act = functools.partial(function, F.relu, "__globals__")
    torch.save(model, tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match=r"functools\.partial of"):
        opening.open_model(str(tmp_path / "x.pt"))


def test_what_nn_module_does_is_not_for_the_file_to_replace(tmp_path):
    for method in (nn.Conv2d(3, 4, 3).compile, nn.Conv2d(3, 4, 3).apply, timm.create_model("test_vit").load_pretrained):
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        model.act = method
        torch.save(model, tmp_path / "x.pt")
        with pytest.raises(BlurifyError, match=method.__name__):
            opening.open_model(str(tmp_path / "x.pt"))
    for name in ("eval", "train", "named_modules", "_call_impl", "_compiled_call_impl"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
        content = {"model": model, "x": F.relu}
        raw_state = dict(model.__dict__)
        model.__class__.__getstate__ = lambda self, raw=raw_state, name=name: {**raw, name: F.relu}
        try:
            torch.save(content, tmp_path / "x.pt")
        finally:
            del nn.Sequential.__getstate__
        with pytest.raises(BlurifyError, match=rf"with {name} of its own|a call of its own"):
            opening.open_model(str(tmp_path / "x.pt"))


def test_persistent_ids(tmp_path):
    marker = tmp_path / "ran"
    inner = pickle.dumps(Reduced(os.system, (f"touch {marker}",)), 2)[2:-1]
    raw_zip(tmp_path / "nested.pt", b"\x80\x02(X\x07\x00\x00\x00storage" + inner + b"X\x01\x00\x00\x000tQ.")
    attack(tmp_path / "nested.pt", marker)
    raw_zip(tmp_path / "text.pt", b"Psomething\n.")
    raw_zip(tmp_path / "kind.pt", b"\x80\x02X\x05\x00\x00\x00thing\x85Q.")
    for name in ("text.pt", "kind.pt"):
        with pytest.raises(BlurifyError, match=r"damaged|holds a reference"):
            opening.open_model(str(tmp_path / name))


def test_appending_to_objects_is_no_method_call(tmp_path):
    # APPEND on a module calls its `append`, SETITEM its `__setitem__`.
    for tail in (b"K\x01a.", b"K\x01K\x02s.", b"(K\x01K\x02u.", b"(K\x01e."):
        raw_zip(tmp_path / "x.pt", b"\x80\x02ctorch.nn.modules.container\nModuleList\n)\x81" + tail)
        with pytest.raises(BlurifyError, match="a call of the class ModuleList"):
            opening.open_model(str(tmp_path / "x.pt"))


def test_reexports_and_private_paths_are_refused():
    names = Names()
    for module, name in [
        ("timm.models._builder", "os"),
        ("timm.models._builder", "os.system"),
        ("timm.models._helpers", "load_checkpoint"),
        ("timm.models", "create_model"),
        ("timm.models._builder", "load_state_dict_from_url"),
        ("torch.nn.functional", "importlib"),
        ("torch.nn.modules.module", "functools.partial"),
        ("torch.nn.functional", "torch.load"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.jit", "load"),
        ("torch.fx.graph_module", "GraphModule"),
        ("torch.fx.graph_module", "reduce_graph_module"),
        ("torch.jit._script", "RecursiveScriptModule"),
        ("torch.storage", "_load_from_bytes"),
        ("copyreg", "_reconstructor"),
        ("operator", "attrgetter"),
        ("builtins", "eval"),
        ("blurify.cli", "main"),
        ("blurify.files.checkpoints", "save"),
        ("torch.nn.parallel.distributed", "DistributedDataParallel"),
        ("timm.models._features_fx", "FeatureGraphNet"),
        ("torchvision.models.feature_extraction", "DualGraphModule"),
        ("torchvision.ops.roi_align", "lazy_compile"),
        ("blurify.nn.rewriting", "_method"),
        ("blurify.surgery.apply", "apply_plan"),
    ]:
        name = Name(module, name)
        made = (names.module(name), names.record(name), names.enumeration(name), names.value(name))
        assert made == (None, None, None, None), name.full
    assert names.module(Name("torch.nn.modules.conv", "Conv2d")) is nn.Conv2d
    assert names.value(Name("torch.nn.functional", "relu")) is F.relu
    assert names.value(Name("torch.nn.functional", "pad")) is None


def test_a_package_named_in_a_file_is_not_imported(tmp_path, monkeypatch):
    marker = tmp_path / "ran"
    (tmp_path / "evilpkg.py").write_text(f"open({str(marker)!r}, 'w')\nclass Net: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    raw_zip(tmp_path / "x.pt", b"\x80\x02cevilpkg\nNet\n)\x81.")
    assert "--allow evilpkg.Net" in attack(tmp_path / "x.pt", marker)


@pytest.mark.parametrize("options", FORMATS)
def test_own_classes_need_allow(tmp_path, options):
    model = nn.Sequential(Own(), Other())
    torch.save(model, tmp_path / "own.pt", **options)
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in (Own, Other)]
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(str(tmp_path / "own.pt"))
    assert all(f"--allow {name}" in str(caught.value) for name in names)
    loaded = opening.open_model(str(tmp_path / "own.pt"), allow=names)
    assert type(loaded.model[1]) is Other and loaded.source.kind == "module"
    with pytest.raises(BlurifyError, match="Other"):
        opening.open_model(str(tmp_path / "own.pt"), allow=names[:1])
    assert type(opening.open_model(str(tmp_path / "own.pt"), trust=True).model[0]) is Own


def test_allow_that_cannot_be(tmp_path):
    torch.save(nn.ReLU(), tmp_path / "x.pt")
    for name, words in [
        ("nopkg.Net", "importable"),
        ("Net", "package"),
        ("torch.nn.Nonsense", "has no"),
        ("os.system", "not a class"),
    ]:
        with pytest.raises(BlurifyError, match=words):
            opening.open_model(str(tmp_path / "x.pt"), allow=[name])


def test_class_of_the_saving_script(tmp_path):
    raw_zip(tmp_path / "x.pt", b"\x80\x02c__main__\nNet\n)\x81}b.")
    with pytest.raises(BlurifyError, match="the script that saved it"):
        opening.open_model(str(tmp_path / "x.pt"))


def test_class_of_another_version(tmp_path):
    raw_zip(tmp_path / "x.pt", b"\x80\x02ctimm.models.resnet\nNoSuchNet\n)\x81}b.")
    with pytest.raises(BlurifyError, match=r"installed timm doesn't have \("):
        opening.open_model(str(tmp_path / "x.pt"))


FAMILIES = [
    ("timm", "resnet10t", 64),
    ("timm", "test_efficientnet", 64),
    ("timm", "test_vit", 160),
    ("timm", "test_nfnet", 64),
    ("timm", "test_convnext", 64),
    ("timm", "mobilenetv3_small_050", 64),
    ("timm", "regnetx_002", 64),
    ("timm", "fasternet_t0", 64),
    ("timm", "lcnet_035", 64),
    ("timm", "repghostnet_050", 64),
    ("timm", "levit_128s", 224),
    ("torchvision", "squeezenet1_1", 64),
    ("torchvision", "mnasnet0_5", 64),
    ("torchvision", "shufflenet_v2_x0_5", 64),
    ("torchvision", "googlenet", 96),
]


@pytest.mark.parametrize(("library", "name", "size"), FAMILIES)
@pytest.mark.parametrize("options", FORMATS)
def test_architectures_come_back(tmp_path, library, name, size, options):
    model = opening.open_model(f"{library}/{name}", pretrained=False).model
    torch.save(model, tmp_path / "m.pt", **options)
    loaded = opening.open_model(str(tmp_path / "m.pt")).model
    assert type(loaded) is type(model) and not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_what_modules_hold(tmp_path):
    model = nn.Sequential(
        OrderedDict(a=nn.Conv2d(3, 4, 3), b=nn.MultiheadAttention(4, 2), c=nn.GELU(),
        d=torchvision.ops.StochasticDepth(0.1, "row"))
    )  # fmt: skip
    model.a.act = torch.relu
    model.a.f = F.gelu
    model.a.norm = functools.partial(nn.LayerNorm, eps=1e-6)
    model.a.shape = torch.Size([1, 2])
    model.a.kind = torch.float16
    model.a.flags = {1, 2}
    model.a.big = 2**70
    model.a.raw = b"bytes"
    model.a.weight.note = "a parameter with an attribute"
    model.half()
    torch.save(model, tmp_path / "m.pt")
    loaded = opening.open_model(str(tmp_path / "m.pt")).model
    assert loaded.a.act is not None and loaded.a.act(torch.tensor(-1.0)) == 0
    assert loaded.a.f is F.gelu and loaded.a.norm.keywords == {"eps": 1e-6} and loaded.a.norm.func is nn.LayerNorm
    assert (loaded.a.shape, loaded.a.kind, loaded.a.flags, loaded.a.big) == (
        torch.Size([1, 2]),
        torch.float16,
        {1, 2},
        2**70,
    )
    assert loaded.a.raw == b"bytes"
    assert loaded.a.weight.note == "a parameter with an attribute" and loaded.a.weight.dtype == torch.float16


def test_protocol_4(tmp_path):
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "m.pt", pickle_protocol=4)
    assert type(opening.open_model(str(tmp_path / "m.pt")).model) is nn.Conv2d


def test_damaged_pickles_end_in_one_line(tmp_path):
    buffer = io.BytesIO()
    torch.save(timm.create_model("test_convnext"), buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    for cut in (1, 10, 100, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:cut])
        with pytest.raises(BlurifyError) as caught:
            opening.open_model(str(tmp_path / "cut.pt"))
        assert "\n" not in str(caught.value)


def test_old_names_go_through_the_list_under_their_new_ones():
    for old in MOVED:
        assert Names().missing(Name(*old.rsplit(".", 1))) is None, old
    for module, name in [("blurify.surgery", "apply_plan"), ("blurify.layers", "os"), ("blurify.models", "build")]:
        assert Names().missing(Name(module, name)) == ""


class Stored(nn.Module):
    """A function that only the instance has is on the way to the blur."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, 2)
        self.act_fn = silu_of

    def forward(self, x):
        return self.act_fn(self.conv2(F.relu(self.conv1(x)))).mean((2, 3))


def silu_of(x):
    return F.silu(x) + 1


class Chosen(Own):
    """An instance that has chosen one of its own methods."""

    def __init__(self):
        super().__init__()
        self.forward = self.forward_twice

    def forward_twice(self, x):
        return 2 * self.conv(x)


def test_a_function_that_the_instance_stores(tmp_path):
    model = Stored().eval()
    converted = blurify.convert(model)
    x = torch.randn(1, 3, 16, 16)
    torch.save(converted, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=False)
    assert torch.equal(loaded(x), converted(x)) and not torch.equal(loaded(x), model(x))
    assert torch.equal(copy.deepcopy(converted)(x), converted(x))
    # The function itself is none that a file may name, and no --allow is for functions.
    with pytest.raises(BlurifyError, match="silu_of"):
        blurify.load(tmp_path / "x.pt", allow=[f"{__name__}.Stored"])
    assert torch.equal(blurify.load(tmp_path / "x.pt", trust=True)(x), converted(x))
    converted.act_fn = None
    model.act_fn = F.silu
    known = blurify.convert(model)
    blurify.save(known, tmp_path / "y.pt")
    assert torch.equal(blurify.load(tmp_path / "y.pt", allow=[f"{__name__}.Stored"])(x), known(x))


def test_a_class_that_is_allowed_may_have_chosen_one_of_its_methods(tmp_path):
    torch.save(Chosen(), tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"), allow=[f"{__name__}.Chosen"]).model
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded(x), 2 * loaded.conv(x)) and loaded.forward.__self__ is loaded
    model = Chosen()
    model.forward = model.load_state_dict
    torch.save(model, tmp_path / "y.pt")
    with pytest.raises(BlurifyError, match="load_state_dict"):
        opening.open_model(str(tmp_path / "y.pt"), allow=[f"{__name__}.Chosen"])


class Tagged(nn.Module):
    """As YOLOv5 and its kin build their layers: each is told its place and the text of its class, as `type`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.i, self.conv.type, self.type = 0, "torch.nn.Conv2d", "Tagged"

    def forward(self, x):
        return self.conv(x)


def test_a_layer_may_keep_a_text_as_its_type_and_nothing_else(tmp_path):
    torch.save(Tagged(), tmp_path / "x.pt")
    loaded = opening.open_model(str(tmp_path / "x.pt"), allow=[f"{__name__}.Tagged"]).model
    assert (loaded.type, loaded.conv.type) == ("Tagged", "torch.nn.Conv2d")
    for value in (nn.ReLU(), torch.nn.functional.relu):
        model = Tagged()
        model.type = "Tagged"
        model.conv.__dict__["type"] = value
        torch.save(model, tmp_path / "y.pt")
        with pytest.raises(BlurifyError, match="type of its own"):
            opening.open_model(str(tmp_path / "y.pt"), allow=[f"{__name__}.Tagged"])
