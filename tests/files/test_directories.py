"""Models that are kept in several files: of the hub, sharded, of many processes; and compressed ones."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed.checkpoint as dcp
from timm.models._hub import save_for_hf
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.files import checkpoints, formats, opening
from tests import warm

ROOT = Path(__file__).parents[2]
ARCH = "timm/test_resnet?num_classes=10"
IMAGE = (1, 3, 64, 64)


def network(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", **{"num_classes": 10, **options}).eval()


def outputs(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(image)
    return getattr(found, "logits", found)


def agree(one: nn.Module, other: nn.Module) -> bool:
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(5))
    return torch.equal(outputs(one, image), outputs(other, image))


def comes_back(path: Path | str, reference: nn.Module, tmp_path: Path, **options: Any) -> None:
    """Read, convert, write, read: the outputs are those of the reference, converted."""
    loaded = opening.open_model(str(path), **options)
    assert agree(loaded.model, reference)
    expected = blurify.convert(reference, verify=False)
    assert not agree(expected, reference)
    for name in ("out.pt", "out.safetensors"):
        result = blurify.convert(loaded.model, verify=False)
        checkpoints.save(result, tmp_path / name, source=loaded.source, rest=loaded.rest, force=True)
        assert agree(opening.open_model(str(tmp_path / name)).model, expected)


def test_a_directory_of_timm(tmp_path):
    model = network(in_chans=1)
    save_for_hf(model, tmp_path / "hub", safe_serialization=True, model_args={"in_chans": 1, "num_classes": 10})
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["pretrained_cfg"].update(input_size=[1, 96, 96], mean=[0.25], std=[0.125])
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    loaded = opening.open_model(str(tmp_path / "hub"))
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values(),
                                                 strict=True))  # fmt: skip
    assert "config.json says" in loaded.note
    result = blurify.convert(loaded.model)
    assert blurify.plan_of(result).input_shapes == ((1, 1, 96, 96),)
    checkpoints.save(result, tmp_path / "x.safetensors", source=loaded.source)
    again = opening.open_model(str(tmp_path / "x.safetensors")).model
    assert again.pretrained_cfg["mean"] == [0.25]  # how pictures become inputs, which the file took along


def hugging_face(folder: Path, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_labels=5, depths=[1, 1, 1, 1], hidden_sizes=[16, 16, 32, 32], embedding_size=8,
        id2label={i: f"a label, {i}" for i in range(5)},
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_a_directory_of_transformers(tmp_path, shards):
    model = hugging_face(tmp_path / "hf", max_shard_size=shards)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shards == "20KB")
    comes_back(tmp_path / "hf", model, tmp_path)
    file = "model.safetensors.index.json" if shards == "20KB" else "model.safetensors"
    comes_back(tmp_path / "hf" / file, model, tmp_path)


def test_a_model_of_the_hub_from_the_cache(tmp_path, monkeypatch):
    """As the client of the hub lays it out; without a network it is found there."""
    from huggingface_hub import constants

    model = network()
    home = tmp_path / "cache" / "models--some--net"
    save_for_hf(model, home / "snapshots" / "abc", safe_serialization=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    comes_back("hf-hub:some/net", model, tmp_path)
    assert opening.open_model("hf-hub:some/net").source.arch == "timm/test_resnet"
    assert opening.open_model("hf-hub:some/net", pretrained=False).model.num_classes == 10
    with pytest.raises(BlurifyError, match="hf-hub:some/other can't be had"):
        opening.open_model("hf-hub:some/other")
    with pytest.raises(BlurifyError, match="names no model of the hub"):
        opening.open_model("hf-hub:../etc/passwd")


def test_a_distributed_checkpoint(tmp_path):
    model = network()
    dcp.save({"model": model.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, checkpoint_id=tmp_path / "dcp")
    loaded = opening.open_model(str(tmp_path / "dcp"), arch=ARCH)
    assert "'model'" in loaded.note and loaded.rest.others == ["epoch", "optimizer"]
    result = blurify.convert(loaded.model, verify=False)
    checkpoints.save(result, tmp_path / "x.pt", source=loaded.source, rest=loaded.rest)
    assert all("stays in" in why for why in loaded.rest.made[1].values()) and loaded.rest.made[1]
    comes_back(tmp_path / "dcp", model, tmp_path, arch=ARCH)


def _process(rank: int, folder: str) -> None:
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )  # fmt: skip
    mesh = DeviceMesh("cpu", [0, 1])
    model = network()
    state = {
        name: distribute_tensor(value, mesh, [Shard(0)]) if value.dim() > 1 else value
        for name, value in model.state_dict().items()
    }
    dcp.save(state, checkpoint_id=f"{folder}/dcp")
    torch.distributed.destroy_process_group()


def test_a_distributed_checkpoint_of_two_processes(tmp_path):
    program = "import sys; from tests.files.test_directories import _process; _process(int(sys.argv[1]), sys.argv[2])"
    processes = [warm.Popen([sys.executable, "-c", program, str(rank), str(tmp_path)], cwd=ROOT) for rank in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    comes_back(tmp_path / "dcp", network(), tmp_path, arch=ARCH)


class Ran:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("hostile", ["runs", "outside", "huge", "missing", "truncated", "packed"])
def test_a_distributed_checkpoint_that_lies(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    dcp.save({"model": network().state_dict()}, checkpoint_id="dcp")
    index = pickle.loads((tmp_path / "dcp" / ".metadata").read_bytes())
    file = tmp_path / "dcp" / "__0_0.distcp"
    place, stored = next((key, value) for key, value in index.storage_data.items() if "conv1.0" in key.fqn)
    if hostile == "runs":
        index.storage_meta = Ran()
    elif hostile == "outside":
        shutil.copy(file, tmp_path / "elsewhere")
        object.__setattr__(stored, "relative_path", "../elsewhere")
    elif hostile == "huge":
        object.__setattr__(index.state_dict_metadata[place.fqn], "size", torch.Size([10**6, 10**6]))
    elif hostile == "missing":
        del index.storage_data[place]
    elif hostile == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        object.__setattr__(stored, "transform_descriptors", ["zstd"])
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(index))
    if hostile == "runs":  # it is only named, and nothing of it is needed
        opening.open_model("dcp", arch=ARCH)
    else:
        with pytest.raises(BlurifyError, match="dcp"):
            opening.open_model("dcp", arch=ARCH)
    assert not Path("ran").exists()


def test_shards_lie_beside_their_index(tmp_path):
    hugging_face(tmp_path / "hf", max_shard_size="20KB")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    shutil.copy(tmp_path / "hf" / shard, tmp_path / "elsewhere.safetensors")
    for changed, said in ((shard, ""), ("../elsewhere.safetensors", "another directory"), ("gone.safetensors", "gone")):
        names = {name: changed if file == shard else file for name, file in content["weight_map"].items()}
        index.write_text(json.dumps({"weight_map": names}))
        if not said:
            opening.open_model(str(tmp_path / "hf"))
            continue
        with pytest.raises(BlurifyError, match=said):
            opening.open_model(str(tmp_path / "hf"))
    for broken in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(BlurifyError, match="is no index"):
            opening.open_model(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "../x"},
        {"architecture": "hf-hub:x/y"},
        {"architecture": "test_resnet", "model_args": {"checkpoint_path": "x.pt"}},
        {"architecture": "test_resnet", "model_args": {"pretrained": True}},
        {"architecture": "test_resnet", "model_args": {"norm_layer": "os/system"}},
        {"architectures": ["ResNetForImageClassification"], "auto_map": {"AutoModel": "code.Model"}},
        {"architectures": ["ResNetForImageClassification"], "quantization_config": {"quant_method": "x"}},
        {"architectures": ["ResNetForImageClassification"], "backbone": "some/repository"},
        {"architectures": ["Trainer"]},
        {"architectures": ["logging"]},
        {"architectures": ["PreTrainedModel"]},
    ],
)
def test_a_configuration_chooses_sizes_and_no_code(tmp_path, config):
    save_for_hf(network(), tmp_path / "hub", safe_serialization=True)
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BlurifyError):
        opening.open_model(str(tmp_path / "hub"))
    for source in ({"arch": "timm/test_resnet", "config": {"arguments": {"checkpoint_path": "x"}}},
                   {"arch": "transformers/ResNetModel", "config": {"auto_map": {"AutoModel": "x"}}}):  # fmt: skip
        with pytest.raises(BlurifyError):
            opening.sources.build(source["arch"], pretrained=False, config=source["config"])


def test_settings_of_transformers_that_fetch_kernels_are_left_out(tmp_path):
    model = hugging_face(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"_attn_implementation": "some/kernels", "attn_implementation": "some/kernels", "_name_or_path": "a/b"}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    assert agree(opening.open_model(str(tmp_path / "hf")).model, model)


@pytest.mark.parametrize("ending", [".pth.gz", ".safetensors.gz"])
def test_compressed_files_both_ways(tmp_path, ending):
    model = network()
    loaded = opening.open_model(ARCH, pretrained=False)
    loaded.model.load_state_dict(model.state_dict())
    result = blurify.convert(loaded.model, verify=False)
    for name in ("one", "other"):
        checkpoints.save(result, tmp_path / (name + ending), source=loaded.source)
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"other{ending}").read_bytes()
    inner = gzip.decompress((tmp_path / f"one{ending}").read_bytes())
    (tmp_path / f"plain{ending.removesuffix('.gz')}").write_bytes(inner)
    for path in (tmp_path / f"one{ending}", tmp_path / f"plain{ending.removesuffix('.gz')}"):
        assert agree(opening.open_model(str(path)).model, result)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    (tmp_path / "w.pth.gz").write_bytes(gzip.compress((tmp_path / "w.pth").read_bytes()))
    comes_back(tmp_path / "w.pth.gz", model, tmp_path, arch=ARCH)


def test_compressed_files_that_are_none(tmp_path, monkeypatch):
    from blurify.files.formats import gzipped

    monkeypatch.setattr(gzipped, "_SPARE", 1000)
    (tmp_path / "bomb.pt.gz").write_bytes(gzip.compress(bytes(10**6)))
    with pytest.raises(BlurifyError, match="unpacks to over 100 times"):
        opening.open_model(str(tmp_path / "bomb.pt.gz"))
    (tmp_path / "cut.pt.gz").write_bytes(gzip.compress(b"abc" * 100)[:-9])
    with pytest.raises(BlurifyError, match=r"cut\.pt\.gz is damaged or cut off"):
        opening.open_model(str(tmp_path / "cut.pt.gz"))
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(BlurifyError) as refused:
        opening.open_model(str(tmp_path / "text.gz"))
    assert str(tmp_path / "text.gz") in str(refused.value)


def test_directories_that_are_no_model(tmp_path):
    for files, said in (
        ((), "without a model"),
        (("a.pth", "b.pth"), "name one of them (a.pth, b.pth)"),
        (("saved_model.pb",), "TensorFlow"),
    ):
        folder = tmp_path / "".join(files or ("empty",))
        folder.mkdir()
        for name in files:
            torch.save({}, folder / name)
        with pytest.raises(BlurifyError) as refused:
            formats.read_checkpoint(folder)
        assert said in str(refused.value)


def test_a_directory_for_timm(tmp_path):
    """timm builds the architecture and takes the weights; blurify builds the converted model."""
    from huggingface_hub import ModelCard

    torch.save(network().state_dict(), tmp_path / "x.pth")
    loaded = opening.open_model(str(tmp_path / "x.pth"), arch=ARCH)
    result = blurify.convert(loaded.model)
    measured = ["on 100 pictures: 7 answers change"]
    checkpoints.save(result, f"{tmp_path}/hub/", source=loaded.source, measured=measured)
    assert sorted(file.name for file in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    theirs = timm.create_model(f"local-dir:{tmp_path}/hub", pretrained=True).eval()
    assert agree(theirs, loaded.model) and not agree(theirs, result)
    assert agree(blurify.load(tmp_path / "hub"), result)
    assert agree(opening.open_model(str(tmp_path / "hub")).model, result)
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.library_name == "timm" and "blurify" in card.data.tags
    plan, proof = blurify.plan_of(result), blurify.proof_of(result)
    assert all(f"| `{site.name}` |" in card.text for site in plan.sites)
    assert all(line in card.text for line in (*proof.lines(), *measured, "Not ready for use"))


def test_a_directory_for_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = hugging_face(tmp_path / "hf")
    loaded = opening.open_model(str(tmp_path / "hf"))
    result = blurify.convert(loaded.model, verify=False)
    checkpoints.save(result, f"{tmp_path}/out/", source=loaded.source)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    image = torch.randn(IMAGE)
    torch.testing.assert_close(outputs(theirs, image), outputs(model, image))  # from memory that is aligned otherwise
    assert agree(blurify.load(tmp_path / "out"), result)


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    loaded = opening.open_model(ARCH, pretrained=False)
    result = blurify.convert(loaded.model, verify=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    for force in (False, True):
        with pytest.raises(BlurifyError):
            checkpoints.save(result, f"{tmp_path}/mine/", source=loaded.source, force=force)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["README.md"]
    with pytest.raises(BlurifyError, match="is a directory"):
        checkpoints.save(result, tmp_path / "mine", source=loaded.source, force=True)
