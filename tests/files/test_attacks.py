"""Crafted files get through nothing: the kinds that once ran code, and what people tried who were told to win."""

import copyreg
import functools
import importlib
import json
import os
import random
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import blurify
from blurify.cli import main
from blurify.errors import BlurifyError
from blurify.files import checkpoints, opening, rebuilding
from blurify.files.pickled import building
from blurify.files.sources import ModelSource
from blurify.graph import recorder
from tests import warm

FORMATS = [pytest.param({}, id="zip"), pytest.param({"_use_new_zipfile_serialization": False}, id="legacy")]


class Reduced:
    """Pickles as a call of `function(*args)`, with a state."""

    def __init__(self, function, args, *more):
        self.call = (function, args, *more)

    def __reduce__(self):
        return self.call


class State:
    """Pickles as a module of a class with the state that is given, whatever it holds."""

    def __init__(self, cls, state):
        self.call = (copyreg.__newobj__, (cls,), state)

    @property
    def __class__(self):  # pickle asks whether it makes its own kind
        return self.call[1][0]

    def __reduce_ex__(self, protocol):
        return self.call


def state_of(module, **more):
    return {**module.__dict__, **more}


def pickled_instead(path, data):
    """The same archive with another pickle."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in entries.items():
            new.writestr(name, data if name.endswith("data.pkl") else content)


def refused(path, words="", **more):
    with pytest.raises(BlurifyError) as caught:
        opening.open_model(str(path), **more)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value), caught.value
    return str(caught.value)


# 1. Edits in a pickle chose which expression goes through which attribute.


@pytest.mark.parametrize("form", ["call", "wrap", "member"])
def test_edits_without_a_plan_are_refused(tmp_path, form):
    from blurify.nn.edited import edited_instance

    evil = nn.Sequential(nn.Conv2d(3, 4, 3))
    changes = (("expression", (("forward", "module(input)", 0),), "evil", form, 0),)
    model = Reduced(edited_instance, (nn.Sequential, changes), state_of(evil))
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "but not the plan")


def edit_plan(tmp_path, change):
    """A converted model in a file whose plan says something else."""
    model = blurify.convert(timm.create_model("test_resnet").eval(), verify=False)
    change(model.__dict__["_blurify_plan"])
    torch.save(model, tmp_path / "x.pt")


def rewrites(plan):
    return [edit for site in plan["sites"] for edit in site["edits"] if edit["edit"] == "Rewrite"]


@pytest.mark.parametrize(
    "child",
    ["__class__", "forward", "conv1", "import", "a b", "x); import os; os.system('touch ran'); (y", "__deepcopy__", ""],
)
def test_children_that_are_no_names_or_taken(tmp_path, child):
    def change(plan):
        for edit in rewrites(plan):
            edit["child"] = child

    edit_plan(tmp_path, change)
    refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "path",
    [
        [["forward", "x", 0]],
        [["__init__", "nn.Conv2d", 0]],
        [["load_state_dict", "state_dict", 0]],
        [["forward", "__import__('os').system('touch ran')", 0]],
        [["eval", "self.train(False)", 0]],
        [],
        [["forward", "self.forward_features(x)", 10**9]],
    ],
)
def test_rewrites_elsewhere(tmp_path, path):
    def change(plan):
        for edit in rewrites(plan):
            edit["path"] = path

    edit_plan(tmp_path, change)
    refused(tmp_path / "x.pt")
    assert not Path("ran").exists()


def test_a_plan_of_another_model_or_other_places(tmp_path):
    def elsewhere(plan):
        for site in plan["sites"]:
            for edit in site["edits"]:
                edit["module"] = "layer1.0"

    def shifted(plan):
        strided = [site for site in plan["sites"] if site["action"] == "blur"]
        strided[0]["edits"], strided[-1]["edits"] = strided[-1]["edits"], strided[0]["edits"]
        strided[0]["name"] = "nowhere"

    for change in (elsewhere, shifted):
        edit_plan(tmp_path, change)
        refused(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factor", [10**9, 10**9]),
        ("factor", [0, 0]),
        ("factor", [2**70, 2]),
        ("factor", [2]),
        ("stride", [-2, -2]),
        ("stride", [10**6, 10**6]),
        ("stride", "22"),
        ("shift", [10**9, 0]),
        ("padding", "x" * 10**6),
        ("padding", ["reflect"]),
        ("method", {"kind": "taps", "taps": [float("nan")]}),
        ("method", {"kind": "taps", "taps": [1.0] * 10**6}),
        ("method", {"kind": "__import__", "taps": []}),
        ("method", None),
    ],
)
def test_hostile_plan_headers(tmp_path, suffix, field, value):
    source = ModelSource("timm/test_resnet", "factory", "timm/test_resnet")
    model = blurify.convert(timm.create_model("test_resnet").eval(), verify=False)
    path = tmp_path / f"x{suffix}"
    plan = model.__dict__["_blurify_plan"]
    for site in plan["sites"]:
        for edit in site["edits"]:
            if edit.get("blur"):
                edit["blur"][field] = value
    header = {"format": 1, "plan": plan, "source": source.to_dict()}
    if suffix == ".pt":
        torch.save({"state_dict": model.state_dict(), "blurify": header}, path)
    else:
        from safetensors.torch import save_file

        save_file(dict(model.state_dict()), path, {"format": "pt", "blurify": json.dumps({**header, "shared": {}})})
    refused(path)


@pytest.mark.parametrize(
    "arch",
    [
        "python:os:getcwd",
        "timm/hf-hub:somebody/model",
        "timm/local-dir:/tmp",
        "timm/test_resnet?checkpoint_path=x.pth",
        "timm/test_resnet?num_classes=1000000000",
        "timm/test_resnet?pretrained_cfg=x",
        "timm/test_resnet?feature_cls=fx",
        "timm/test_resnet?pretrained=true",
    ],
)
def test_a_file_does_not_choose_where_its_model_comes_from(tmp_path, arch):
    model = blurify.convert(timm.create_model("test_resnet").eval(), verify=False)
    header = {
        "format": 1,
        "plan": blurify.plan_of(model).to_dict(),
        "source": ModelSource(arch, "factory", arch).to_dict(),
    }
    torch.save({"state_dict": model.state_dict(), "blurify": header}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")


# 2. The state of a parameter is a module, whose items() torch calls.


@pytest.mark.parametrize("state", ["module", "dunder", "shadow"])
def test_the_state_of_a_parameter(tmp_path, state):
    states = {
        "module": nn.ModuleDict({"a": nn.ReLU()}),
        "dunder": {"__deepcopy__": 1},
        "shadow": {"backward": 1},
    }
    parameter = Reduced(torch._utils._rebuild_parameter_with_state, (torch.ones(2), True, OrderedDict(), states[state]))
    torch.save({"weight": parameter}, tmp_path / "x.pt")
    with pytest.raises(BlurifyError):
        dict(opening.formats.read_checkpoint(tmp_path / "x.pt").tensors)


# 3. Methods that Python looks up on an instance.


@pytest.mark.parametrize("where", ["__dict__", "_modules", "_buffers", "_parameters"])
@pytest.mark.parametrize(
    "name",
    ["__deepcopy__", "__reduce_ex__", "__class__", "__dict__", "__call__", "forward", "eval", "_call_impl", "to"],
)
def test_names_with_a_meaning(tmp_path, where, name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    state = state_of(model)
    if where == "__dict__":
        state[name] = F.relu
    else:
        value = nn.ReLU() if where == "_modules" else nn.Parameter(torch.ones(1))
        state[where] = {**state[where], name: value}
    torch.save(State(nn.Sequential, state), tmp_path / "x.pt")
    assert name in refused(tmp_path / "x.pt")


# 4. Callables in the state, chained into a program.


@pytest.mark.parametrize(
    "make",
    [
        lambda: functools.partial(os.system, "touch ran"),
        lambda: functools.partial(nn.ParameterDict.update, nn.ParameterDict()),
        lambda: functools.partial(timm.layers.Mlp, act_layer=functools.partial(print, "ran")),
        lambda: functools.partial(nn.LayerNorm, functools.partial(nn.LayerNorm)),
        lambda: functools.partial(F.relu),
        # Named when the test runs: libraries that other tests import put functions of their own in its place.
        lambda: functools.partial(torch.compile, options={"cpp.cxx": "touch ran"}),
        lambda: nn.ParameterDict({"a": nn.Parameter(torch.ones(1))}).get,
        lambda: nn.Conv2d(3, 4, 3).compile,
        lambda: torch.load,
        lambda: torch.hub.load,
        lambda: timm.create_model,
        lambda: getattr,
        lambda: nn.ParameterDict(),
    ],
)
def test_callables_in_the_state(tmp_path, make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.__dict__["act"] = make()
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", sorted(building._HOOKS))
def test_hooks_are_refused_by_name(tmp_path, name):
    state = state_of(nn.Conv2d(3, 4, 3), **{name: OrderedDict({0: F.relu})})
    torch.save(State(nn.Conv2d, state), tmp_path / "x.pt")
    assert "a hook (torch.nn.functional.relu)" in refused(tmp_path / "x.pt")


# 5. An archive with two directories.


def test_a_zip_with_two_directories(tmp_path):
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), script)
    torch.save(nn.Conv2d(3, 4, 3), tmp_path / "plain.pt")
    one, two = script.read_bytes(), (tmp_path / "plain.pt").read_bytes()
    for name, content in {
        "before": one + two,
        "behind": two + one,
        "end": two + one[one.rindex(b"PK\x05\x06") :],
    }.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        refused(tmp_path / f"{name}.pt")


def rezipped(path, change):
    """An archive written again by Python, with changes of one entry or of the whole."""
    with zipfile.ZipFile(path) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, content in entries:
            new.writestr(name, content)
        change(new)


def test_archives_that_torch_never_writes(tmp_path):
    path = tmp_path / "x.pt"

    def doubled(archive):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr(archive.namelist()[0], b"\x80\x02N.")

    def commented(archive):
        archive.comment = b"a comment"

    def compressed(archive):
        archive.writestr("x/data/1", bytes(10**6), zipfile.ZIP_DEFLATED)

    for change in (doubled, commented, compressed):
        torch.save(nn.Conv2d(3, 4, 3), path)
        rezipped(path, change)
        refused(path)
    torch.save(nn.Conv2d(3, 4, 3), path)
    rezipped(path, lambda archive: None)
    assert type(opening.open_model(str(path)).model) is nn.Conv2d  # the change is what was refused
    whole = path.read_bytes()
    for content in (b"x" + whole, whole + b"x", whole[:-1]):
        path.write_bytes(content)
        refused(path)


def test_a_bomb(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("x/data.pkl", bytes(2**27))
    assert path.stat().st_size < 2**20
    refused(path, "compressed")


@pytest.mark.parametrize("as_module", [True, False])
def test_a_flipped_byte_in_a_tensor(tmp_path, as_module):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    path = tmp_path / "x.pt"
    torch.save(model if as_module else model.state_dict(), path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        spots = [
            (
                info.header_offset
                + 30
                + sum(struct.unpack("<HH", whole[info.header_offset + 26 : info.header_offset + 30]))
            )
            for info in archive.infolist()
            if "/data/" in info.filename and info.file_size
        ]
        sizes = [info.file_size for info in archive.infolist() if "/data/" in info.filename and info.file_size]
    dice = random.Random(0)
    for _ in range(40):
        which = dice.randrange(len(spots))
        place = spots[which] + dice.randrange(sizes[which])
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << dice.randrange(8))]) + whole[place + 1 :])
        refused(path, "checksum", arch=None if as_module else "timm/test_resnet")


def test_files_without_checksums_load(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(nn.Conv2d(3, 4, 3), tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert type(opening.open_model(str(tmp_path / "x.pt")).model) is nn.Conv2d


# 6. Callables that take raw pointers.


@pytest.mark.parametrize(
    "call",
    [
        Reduced(torch.Tensor, (1,)),
        Reduced(torch.UntypedStorage, (8,)),
        Reduced(torch.storage.UntypedStorage.from_file, ("x", True, 8)),
        Reduced(functools.partial(torch.Tensor, cdata=1), ()),
        Reduced(torch._utils._rebuild_tensor_v2, (torch.UntypedStorage(8), 0, (2,), (1,), False, OrderedDict())),
    ],
)
def test_raw_memory(tmp_path, call):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.__dict__["x"] = call
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt")


class Rebuilt(Reduced):
    """A tensor with other metadata than its storage has."""

    def __init__(self, offset, size, stride, grad=False, hooks=None):
        self.storage = torch.ones(10).untyped_storage()
        self.rest = (offset, size, stride, grad, OrderedDict() if hooks is None else hooks)

    def __reduce__(self):
        typed = torch.storage.TypedStorage(wrap_storage=self.storage, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (typed, *self.rest)


@pytest.mark.parametrize("options", FORMATS)
@pytest.mark.parametrize(
    "tensor",
    [
        Rebuilt(0, (11,), (1,)),
        Rebuilt(1, (10,), (1,)),
        Rebuilt(-1, (2,), (1,)),
        Rebuilt(0, (2, 2), (9, 9)),
        Rebuilt(0, (-1,), (1,)),
        Rebuilt(0, (2**62, 2**62), (0, 0)),
        Rebuilt(0, (10**12,), (0,)),
        Rebuilt(0, (2,), (-1,)),
        Rebuilt(0, (2.0,), (1,)),
        Rebuilt(0, (True,), (1,)),
        Rebuilt(0, (2,), (1, 1)),
        Rebuilt(0, (1,) * 100, (1,) * 100),
        Rebuilt(0, (2,), (1,), "yes"),
        Rebuilt(0, (2,), (1,), False, OrderedDict({0: F.relu})),
    ],
    ids=lambda tensor: str(tensor.rest[:3]),
)
def test_tensors_beyond_their_storage(tmp_path, tensor, options):
    torch.save({"weight": tensor}, tmp_path / "x.pt", **options)
    with pytest.raises(BlurifyError):
        dict(opening.formats.read_checkpoint(tmp_path / "x.pt").tensors)


# What hung, or ended in a traceback.


def nested(depth, inner, opening_, closing):
    return b"\x80\x02" + opening_ * depth + inner + closing * depth + b"."


@pytest.mark.parametrize(
    "program",
    {
        "tuples": nested(100_000, b"N", b"", b"\x85"),
        "lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "shared": b"\x80\x02N" + b"2\x86" * 60 + b".",
        "shared-keys": b"\x80\x02}N" + b"2\x86" * 60 + b"Ns.",
        "itself": b"\x80\x02]q\x00h\x00a.",
        "number": b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6 + b".",
        "long": b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"x.",
        "memo": b"\x80\x02j\xff\xff\xff\xff.",
        "empty": b"",
        "nothing": b"\x80\x02.",
        "mark": b"\x80\x02((((.",
        "state": b"\x80\x02ctorch.nn.modules.activation\nReLU\n)\x81Nb.",
        "state-list": b"\x80\x02ctorch.nn.modules.activation\nReLU\n)\x81]b.",
        "class": b"\x80\x02ctorch.nn.modules.activation\nReLU\n.",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_programs_end_in_one_line(tmp_path, capsys, program, command):
    path = tmp_path / "x.pt"
    torch.save({}, path)
    pickled_instead(path, program[1])
    assert main([command, str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_modules_that_double(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1))
    for _ in range(40):
        model = nn.Sequential(model, model)
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "shared")


def test_modules_in_modules(tmp_path):
    model = nn.Sequential(nn.ReLU())
    for _ in range(80):
        model = nn.Sequential(model)
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "deep")
    inner = nn.Sequential()
    inner.add_module("inner", inner)
    torch.save(inner, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "contains itself")


def test_outputs_that_double(tmp_path, capsys):
    pair = torch.zeros(1)
    for _ in range(50):
        pair = (pair, pair)
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.pair = pair
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "shared")


def test_a_forward_that_repeats_itself(tmp_path, monkeypatch):
    assert recorder.MAX_STEPS <= 200_000  # some ten seconds
    monkeypatch.setattr(recorder, "MAX_STEPS", 10_000)
    block = nn.Sequential(*[nn.ReLU()] * 100)
    block = nn.Sequential(*[block] * 100)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3, 2), *[block] * 30), tmp_path / "x.pt")
    with pytest.raises(BlurifyError, match="operations"):
        blurify.inspect(opening.open_model(str(tmp_path / "x.pt")).model)


def test_recurrent_modules_say_the_names_of_their_weights(tmp_path):
    model = nn.LSTM(3, 4)
    torch.save(State(nn.LSTM, {**model.__getstate__(), "num_layers": 10**9, "_all_weights": [[1]]}), tmp_path / "x.pt")
    refused(tmp_path / "x.pt")
    torch.save(nn.LSTM(3, 4), tmp_path / "y.pt")
    assert opening.open_model(str(tmp_path / "y.pt")).model(torch.zeros(2, 3))[0].shape == (2, 4)


def test_a_kernel_without_taps_is_no_filter(tmp_path, capsys):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), timm.layers.BlurPool2d(4)).eval()
    model[2].filt = torch.zeros(4, 1, 0, 3)
    torch.save(model, tmp_path / "x.pt")
    assert main(["inspect", str(tmp_path / "x.pt")]) in (0, 2)
    capsys.readouterr()


def test_what_a_state_makes_our_code_raise_is_bad_input(tmp_path, capsys, monkeypatch):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU()), tmp_path / "x.pt")

    def broken(*args, **kwargs):
        raise RuntimeError("of a kind that nobody foresaw")

    monkeypatch.setattr("blurify.conversion.rehearsed", broken)
    assert main(["inspect", str(tmp_path / "x.pt")]) == 2
    assert "x.pt holds a model that can't be handled" in capsys.readouterr().err
    assert main(["inspect", "timm/test_resnet", "--random"]) == 1  # a fault of ours


def test_what_is_missing_where_memory_is_short(tmp_path):
    torch.save(timm.create_model("test_resnet"), tmp_path / "x.pt")
    program = (
        "import sys, resource, torch, timm, blurify.files.opening as opening\n"
        "from blurify.files.pickled import archive\n"
        "from blurify.errors import BlurifyError\n"
        "def full(*args): raise MemoryError\n"
        "archive.UntypedStorage = full\n"
        "try: opening.open_model(sys.argv[1])\n"
        "except BlurifyError as error: print(error)\n"
    )
    run = warm.run([sys.executable, "-c", program, tmp_path / "x.pt"], capture_output=True, text=True)
    assert "not enough memory" in run.stdout and "damaged" not in run.stdout, run


@pytest.mark.parametrize(
    "name", ["x/DATA.PKL", "x/Data/0", "x/data\\0", "y/data.pkl", "x/code/a.py", "x/BYTEORDER", "x/data/0.0"]
)
def test_no_part_that_another_reader_could_take_for_one_of_torchs(tmp_path, name):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr(name, b"x")
    refused(tmp_path / "x.pt")


@pytest.mark.parametrize("make", [dict.fromkeys, set, frozenset, lambda keys: dict.fromkeys((key,) for key in keys)])
def test_keys_that_were_chosen_to_collide(tmp_path, make):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    model.note = make(range(0, 100_000 * (2**20), 2**20))  # as many, of a hash each
    torch.save(model, tmp_path / "good.pt")
    assert opening.open_model(str(tmp_path / "good.pt")).model.note == model.note
    model.note = make(number * (2**61 - 1) for number in range(200))
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "chosen to collide")


@pytest.mark.parametrize("options", FORMATS)
def test_many_tensors_of_one_storage(tmp_path, options):
    model, block = nn.Sequential(nn.Conv2d(3, 4, 3, 2)), torch.zeros(1_000_000)
    for number in range(200):
        model.register_buffer(f"b{number}", block.view(1_000_000))
    torch.save(model, tmp_path / "x.pt", **options)
    refused(tmp_path / "x.pt", "larger than what is stored")


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_a_quantised_dtype_over_plain_bytes(tmp_path, dtype):
    parts = (torch.zeros(16, dtype=torch.int8).untyped_storage(), 0, (4,), (1,), False, OrderedDict(), dtype)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2))
    model.note = Reduced(torch._utils._rebuild_tensor_v3, parts)
    torch.save(model, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", str(dtype))


def test_a_small_file_that_names_a_huge_architecture_does_not_have_it_built(tmp_path, monkeypatch):
    model = blurify.convert(timm.create_model("test_resnet"), verify=False)

    def written(arch):
        path = tmp_path / f"{len(arch)}.safetensors"
        checkpoints.save(model, path, source=ModelSource(arch, "factory", arch))
        return path

    assert blurify.plan_of(opening.open_model(str(written("timm/test_resnet"))).model) is not None
    built, build = [], rebuilding.sources.build

    def watched(*args, **kwargs):
        model, resolved = build(*args, **kwargs)
        built.append({parameter.device.type for parameter in model.parameters()})
        return model, resolved

    monkeypatch.setattr(rebuilding.sources, "build", watched)
    refused(written("timm/vit_base_patch16_224?img_size=100000"), "don't fit")
    assert built == [{"meta"}]


# What helpers tried.

HERE = Path(__file__).parent / "attacks"
TRIED = sorted(
    (path.stem, name)
    for path in HERE.glob("*.py")
    for name in dir(importlib.import_module(f"attacks.{path.stem}"))
    if name.startswith("attack_")
)


def seen(folder):
    """What lies in a folder: kinds and times, and the bytes of what is not huge."""
    found = {one.name: one.lstat() for one in folder.iterdir()}
    small = [name for name, at in found.items() if stat.S_ISREG(at.st_mode) and at.st_size < 2**26]
    return {name: (at.st_mode, at.st_size, at.st_mtime_ns) for name, at in found.items()}, {
        name: (folder / name).read_bytes() for name in small
    }


# One process has imported everything; each file is read in two children of its own.
READ = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hostile import run
run.import_everything()
for line in sys.stdin:
    root = Path(line.rstrip("\\n"))
    for verb, *more in (["inspect"], ["convert", "-o", str(root / "out" / "y.pt")]):
        def work():
            signal.setitimer(signal.ITIMER_PROF, run.SECONDS)  # of the processor: others may need it, too
            signal.alarm(20 * run.SECONDS)
            run.confine(root / verb, root / "here", root / "marker")
            return run.blurify_main([verb, str(root / "in" / "x.pt"), *more])
        print(os.waitstatus_to_exitcode(os.waitpid(run.start(work), 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def reader():
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", READ, str(tests)]
    with warm.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.mark.parametrize(("module", "name"), TRIED)
def test_attacks(tmp_path, reader, module, name):
    folder, here, out, *printed = (tmp_path / name for name in ("in", "here", "out", "inspect", "convert"))
    for made in (folder, here, out, *printed):
        made.mkdir()
    marker = tmp_path / "marker"
    getattr(importlib.import_module(f"attacks.{module}"), name)(folder / "x.pt", marker)
    before = seen(folder)
    print(tmp_path, file=reader.stdin, flush=True)
    codes = [int(reader.stdout.readline()) for _ in printed]
    for verb, code in zip(printed, codes, strict=True):
        said, shown = (verb / "stderr").read_text(), (verb / "stdout").read_text()
        assert "Traceback" not in said + shown, said
        if (name, verb.name) == ("attack_big_endian", "convert"):  # a good file, whose network computes no numbers
            assert code == 1 and "no finite number" in said, (code, said)
        else:
            assert code in (0, 2), (code, said)
        if code:
            assert len(said.strip().splitlines()) == 1, said
    assert not marker.exists() and seen(folder) == before
    assert [one.name for one in out.iterdir()] == ([] if codes[1] else ["y.pt"])
    assert not list(here.iterdir())
