"""Exported programs: read as data into modules again, converted as the eager model is, and nothing in them is run."""

import io
import json
import pickle
import zipfile

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.export import Dim

import blurify
from blurify import cli
from blurify.errors import BlurifyError
from blurify.files import checkpoints, formats, opening
from blurify.files.checkpoint import Saved, header_of
from blurify.nn.exported import Exported

pytestmark = pytest.mark.filterwarnings("ignore")


def image(*shape):
    return torch.randn(*(shape or (2, 3, 64, 96)), generator=torch.Generator().manual_seed(0))


def small():
    """Every kind of site that the default recipe blurs, and a dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.AvgPool2d(2), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def written(model, path, *, dynamic=True, train=False, decomposed=False, x=None):
    dims = ({0: Dim("batch", min=1, max=64), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) if dynamic else None
    program = torch.export.export(model.train(train), (image() if x is None else x,), dynamic_shapes=dims)
    model.eval()
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def like_eager(model, path, x):
    """What is read computes and converts as the model that was exported."""
    read = opening.open_model(str(path)).model
    assert type(read) is Exported and set(read.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], value)
    with torch.no_grad():
        torch.testing.assert_close(read(x), model(x), rtol=1e-5, atol=1e-6)
    ours, theirs = blurify.convert(read, example_inputs=x), blurify.convert(model, example_inputs=x)
    assert blurify.plan_of(theirs).converted
    with torch.no_grad():
        found, wanted, before = ours(x), theirs(x), model(x)
    largest = wanted.abs().max()
    assert (found - wanted).abs().max() < 1e-5 * largest and (found - before).abs().max() > 1e-3 * largest
    counts = [blurify.plan_of(one).count("rule") for one in (ours, theirs)]
    assert counts[0] == counts[1]
    return ours


@pytest.mark.parametrize("how", ["dynamic", "static", "train", "decomposed"])
def test_a_program_converts_as_its_model_does(how, tmp_path):
    model = small().eval()
    options = {"dynamic": how == "dynamic", "train": how == "train", "decomposed": how == "decomposed"}
    like_eager(model, written(model, tmp_path / "m.pt2", **options), image())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.resnet18(num_classes=5),
        lambda: torchvision.models.MobileNetV2(7, 0.5, [[1, 16, 1, 1], [6, 24, 1, 2], [6, 32, 1, 2]]),
        lambda: torchvision.models.DenseNet(8, (2, 2, 2), 16, num_classes=7),
        lambda: timm.create_model("test_resnet", num_classes=7),
        lambda: timm.create_model("test_convnext", num_classes=7),
        lambda: timm.create_model("resnetv2_50", num_classes=7, layers=(1, 1, 1, 1)),
    ],
    ids=["resnet18", "mobilenet_v2", "densenet", "timm-resnet", "convnext", "standardised-weights"],
)
def test_architectures(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    like_eager(model, written(model, tmp_path / "m.pt2", dynamic=False), image())


class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))[:, :, ::2, ::2]
        return {"map": self.head(x), "mean": x * torch.sigmoid(x)}


def test_slices_and_dictionaries(tmp_path):
    torch.manual_seed(0)
    model = Sliced().eval()
    read = opening.open_model(str(written(model, tmp_path / "m.pt2"))).model
    ours, theirs = (blurify.convert(one, example_inputs=image()) for one in (read, model))
    assert [site.action for site in blurify.plan_of(ours).sites] == ["blur"]
    with torch.no_grad():
        for name, value in theirs(image()).items():
            torch.testing.assert_close(ours(image())[name], value)


def test_the_size_is_that_of_the_export_and_the_model_is_pickled(tmp_path):
    model = small().eval()
    read = opening.open_model(str(written(model, tmp_path / "m.pt2", dynamic=False))).model
    converted = blurify.convert(read)
    assert blurify.plan_of(converted).input_shapes == ((2, 3, 64, 96),)
    checkpoints.save(converted, tmp_path / "m.pt")
    again = blurify.load(tmp_path / "m.pt")
    with torch.no_grad():
        torch.testing.assert_close(again(image()), converted(image()))


def test_an_operator_that_is_not_known_is_named(tmp_path):
    class Net(nn.Module):
        def forward(self, x):
            return torch.linalg.svd(x)[0]

    path = written(Net().eval(), tmp_path / "m.pt2", dynamic=False)
    with pytest.raises(BlurifyError, match=r"torch.ops.aten.linalg_svd.default, which blurify does not know"):
        opening.open_model(str(path))


# --- written


@pytest.fixture(scope="module")
def converted():
    return blurify.convert(small().eval(), example_inputs=image(1, 3, 64, 96))


def checked(model, path):
    notes = []
    checkpoints.save(model, path, notes=notes)
    saved = Saved(model, header_of(blurify.plan_of(model), None))
    formats.for_writing(path).check(path, saved)
    return notes


def test_pt2_out_and_in(converted, tmp_path):
    path = tmp_path / "m.pt2"
    assert checked(converted, path) == []
    program = torch.export.load(str(path)).module()
    for shape in ((1, 3, 64, 96), (3, 3, 97, 71)):
        with torch.no_grad():
            torch.testing.assert_close(program(image(*shape)), converted(image(*shape)), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(blurify.load(path)(image(*shape)), program(image(*shape)), rtol=1e-5, atol=1e-6)
    loaded = opening.open_model(str(path))
    assert "converted already (3 of 3 sites blurred)" in loaded.note
    with pytest.raises(BlurifyError, match="would be blurred twice"):
        blurify.convert(loaded.model)


def test_the_check_sees_another_model(converted, tmp_path):
    for name in ("m.pt2", "m.onnx"):
        pytest.importorskip("onnxruntime")
        path = tmp_path / name
        checkpoints.save(converted, path)
        other = blurify.convert(small().eval(), example_inputs=image(1, 3, 64, 96))
        with torch.no_grad():
            other[-1].bias += 1
        saved = Saved(other, header_of(blurify.plan_of(other), None))
        with pytest.raises(BlurifyError, match="computes something else"):
            formats.for_writing(path).check(path, saved)


def test_onnx_out(converted, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    assert checked(converted, path) == []
    held = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(held["blurify"])["plan"] == json.loads(json.dumps(blurify.plan_of(converted).to_dict()))
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (argument,) = session.get_inputs()
    assert argument.shape == ["batch", 3, "height", "width"]
    x = image(3, 3, 97, 71)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {argument.name: x.numpy()})[0]), converted(x), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(BlurifyError, match="give the PyTorch model that it was exported from"):
        opening.open_model(str(path))


def test_sizes_that_must_stay_are_told(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.fc = small()[:9], nn.Linear(8 * 8 * 8, 5)

        def forward(self, x):
            return self.fc(self.net(x).reshape(x.shape[0], 8 * 8 * 8))

    model = blurify.convert(Fixed().eval(), example_inputs=image(1, 3, 64, 64))
    assert checked(model, tmp_path / "m.pt2") == ["this model can only be exported for the size 64x64"]


def test_onnx_is_quantised_by_onnxruntime_and_keeps_its_blurs(converted, tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    quantization = pytest.importorskip("onnxruntime.quantization")
    checkpoints.save(converted, tmp_path / "m.onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = [{name: image(2, 3, 64, 96).numpy()} for _ in range(2)]

        def get_next(self):
            return self.left.pop() if self.left else None

    name = onnx.load(tmp_path / "m.onnx").graph.input[0].name
    quantization.quantize_static(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), Reader())
    quantised = onnx.load(tmp_path / "q.onnx")
    depthwise = [
        node
        for node in quantised.graph.node
        if "Conv" in node.op_type
        and any(a.name == "group" and a.i == 8 for a in node.attribute)
        and any(a.name == "strides" and list(a.ints) == [2, 2] for a in node.attribute)
    ]
    assert len(depthwise) == 3, "one blur a site"
    session = runtime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    x = image(2, 3, 64, 96)
    with torch.no_grad():
        expected = converted(x)
    (found,) = session.run(None, {name: x.numpy()})
    assert (torch.from_numpy(found) - expected).abs().max() < 0.1 * expected.abs().max()


def test_convert_by_the_command(tmp_path, capsys, victim):
    path = victim
    for ending in (".pt2", ".pt"):
        out = tmp_path / f"out{ending}"
        assert cli.main(["convert", str(path), "-o", str(out)]) == 0, capsys.readouterr().err
        with torch.no_grad():
            torch.testing.assert_close(
                blurify.load(out)(image()), blurify.convert(small().eval())(image()), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize(
    "name", ["m.tflite", "m.pb", "m.h5", "m.mlmodel", "m.engine", "m.npz", "m.onxx", "m.safetensor"]
)
def test_endings_that_are_not_written(name, converted, tmp_path):
    with pytest.raises(BlurifyError, match=r"are not written|there is no format"):
        checkpoints.save(converted, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.pth.tar", "m.v2", "m", "m.bin", "m.ckpt"])
def test_endings_in_which_torch_is_written(name, converted, tmp_path):
    checkpoints.save(converted, tmp_path / name)
    assert blurify.plan_of(blurify.load(tmp_path / name)).converted


# --- attacks


RAN = []


def run():
    RAN.append(1)


class Runs:
    def __reduce__(self):
        return run, ()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return written(small().eval(), tmp_path_factory.mktemp("program") / "v.pt2").read_bytes()


@pytest.fixture
def victim(tmp_path, program):
    (tmp_path / "v.pt2").write_bytes(program)
    return tmp_path / "v.pt2"


def changed(path, change):
    """The archive with its parts changed, written anew as torch has it: nothing compressed."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(parts)).partition("/")[0]
    change(parts, root)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return str(path)


def in_json(part, edit):
    def change(parts, root):
        name = f"{root}/{part}"
        said = json.loads(parts[name])
        edit(said)
        parts[name] = json.dumps(said).encode()

    return change


EVIL = "__import__('sys').modules['test_programs'].RAN.append(1)"


def test_torch_itself_runs_what_the_file_says(victim, monkeypatch):
    """So that the attacks below are none that would not work."""
    import sys

    monkeypatch.setitem(sys.modules, "test_programs", sys.modules[__name__])
    content = io.BytesIO()
    torch.save(Runs(), content)
    path = changed(
        victim, lambda parts, root: parts.update({f"{root}/data/sample_inputs/model.pt": content.getvalue()})
    )
    RAN.clear()
    with pytest.raises(Exception):  # noqa: B017
        opening.open_model(path, trust=True)
    assert RAN


def attacks():
    pickled = io.BytesIO()
    torch.save(Runs(), pickled)

    def expression(said):
        graph = said["graph_module"]["graph"]
        for meta in graph["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = EVIL
        graph["sym_int_values"]["s"] = {"as_expr": {"expr_str": EVIL, "hint": {"as_int": 2}}}

    def guards(said):
        said["guards_code"] = [EVIL]

    def target(name):
        def edit(said):
            said["graph_module"]["graph"]["nodes"][0]["target"] = name

        return edit

    def weight(edit):
        def change(said):
            edit(next(iter(said["config"].values())))

        return change

    def constant(path_name, use_pickle):
        def change(said):
            said["config"]["evil"] = {
                "path_name": path_name, "is_param": False, "use_pickle": use_pickle, "tensor_meta": None
            }  # fmt: skip

        return change

    weights, constants = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
    return {
        "sample-inputs": (lambda p, r: p.update({f"{r}/data/sample_inputs/model.pt": pickled.getvalue()}), None),
        "expression": (in_json("models/model.json", expression), None),
        "guards": (in_json("models/model.json", guards), None),
        "system": (in_json("models/model.json", target("os.system")), "os.system"),
        "builtin": (in_json("models/model.json", target("builtins.eval")), "builtins.eval"),
        "from-file": (in_json("models/model.json", target("torch.ops.aten.from_file.default")), "from_file"),
        "custom-op": (in_json("models/model.json", target("torch.ops.evil.run.default")), "evil"),
        "dunder": (in_json("models/model.json", target("torch.ops.aten.__class__.default")), "__class__"),
        "pickled-weight": (in_json(weights, weight(lambda e: e.update(use_pickle=True))), "as a pickle"),
        "path": (in_json(weights, weight(lambda e: e.update(path_name="../../etc/passwd"))), "TorchBind"),
        "outside": (
            in_json(weights, weight(lambda e: e["tensor_meta"].update(storage_offset={"as_int": 10**6}))),
            "larger than what is stored",
        ),
        "torchbind": (in_json(constants, constant("custom_obj_0", True)), "TorchBind"),
        "opaque": (in_json(constants, constant("opaque_obj_0", True)), "TorchBind"),
        "dunder-name": (
            in_json(weights, lambda said: said["config"].update({"__class__": next(iter(said["config"].values()))})),
            "damaged|no name",
        ),
    }


@pytest.mark.parametrize("name", list(attacks()))
def test_nothing_of_a_file_is_run(name, victim, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "test_programs", sys.modules[__name__])

    def never(*args, **kwargs):
        raise AssertionError("called while reading a file")

    for owner, function in ((pickle, "loads"), (pickle, "load"), (torch, "load"), (torch.export, "load")):
        monkeypatch.setattr(owner, function, never)
    change, refused = attacks()[name]
    path = changed(victim, change)
    RAN.clear()
    if refused is None:  # what torch would run is not looked at
        model = opening.open_model(path).model
        with torch.no_grad():
            torch.testing.assert_close(model(image()), small().eval()(image()), rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(BlurifyError, match=refused):
            opening.open_model(path)
    assert not RAN


def test_compiled_code_and_old_files_are_refused(victim, tmp_path):
    def compiled(parts, root):
        for name in [n for n in parts if "/models/" in n]:
            del parts[name]
        parts[f"{root}/data/aotinductor/model/code.so"] = b"\x7fELF"

    with pytest.raises(BlurifyError, match="AOTInductor"):
        opening.open_model(changed(victim, compiled))
    old = tmp_path / "old.pt2"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Runs()))
    RAN.clear()
    with pytest.raises(BlurifyError, match="written by torch before 2"):
        opening.open_model(str(old))
    assert not RAN
