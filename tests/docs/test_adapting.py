"""The examples of docs/adapting.md: quoted as they are, and tried for a few steps each on tiny pictures.

Each must leave the blurs in force and the keys what they were, and what it saves must give the same outputs again.
"""

import importlib
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import _registry as registry
from torch.utils.data import DataLoader, TensorDataset

import blurify

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


@pytest.fixture
def example(monkeypatch):
    """Import an example, as train.py imports a module; afterwards it is gone, and so is what it registers with timm."""
    monkeypatch.syspath_prepend(DOCS / "examples")
    known = set(registry._model_entrypoints)
    yield importlib.import_module
    for path in EXAMPLES:
        sys.modules.pop(path.stem, None)
    for name in set(registry._model_entrypoints) - known:
        del registry._model_entrypoints[name]
        registry._module_to_models.pop(registry._model_to_module.pop(name))


@pytest.fixture
def pictures(tmp_path):
    """A folder with two classes of four pictures each."""
    folder = tmp_path / "pictures"
    for label in ("first", "second"):
        (folder / label).mkdir(parents=True)
        for i in range(4):
            noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
            Image.fromarray(noise.numpy()).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def answers(model):
    batch = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model.eval()(batch)
    return getattr(found, "logits", found)


def small():
    return timm.create_model("mobilenetv3_small_100", num_classes=2)


def moved(before, model):
    """Whether training changed a parameter."""
    return any(not torch.equal(before[name], value) for name, value in model.named_parameters())


def aliased_again(model, trained):
    """Whether a model has no blurs, and the trained model's weights notwithstanding gives other answers."""
    saved = model.state_dict()
    same = all(torch.equal(saved[key], value) for key, value in trained.state_dict().items())
    return blurify.plan_of(model) is None and same and (answers(model) - answers(trained)).abs().max() > 1e-3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_page_quotes_each_example_as_it_is(path):
    code = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "adapting.md").read_text(encoding="utf-8"), re.M | re.S)
    assert code in blocks, f"docs/adapting.md does not quote docs/examples/{path.name} verbatim"
    assert len(code.splitlines()) <= 30


def test_timm(tmp_path, pictures, example):
    original, out = small(), tmp_path / "out"
    out.mkdir()
    before = original.state_dict()
    torch.save(before, tmp_path / "original.pth")
    program = example("timm_train")
    model, average = program.train(
        pictures, tmp_path / "original.pth", out, epochs=2, batch=4, device="cpu", num_classes=2
    )
    assert moved(before, model)
    for kept in (model, average):
        assert blurify.check(kept)
        assert list(kept.state_dict()) == list(before)

    last = out / "last.pth.tar"
    saved = torch.load(last, weights_only=True)
    assert list(saved["state_dict"]) == list(saved["state_dict_ema"]) == list(before)
    # timm reads the averaged weights of a checkpoint that has them.
    again = timm.create_model("blurred_mobilenet", checkpoint_path=last, num_classes=2)
    assert blurify.check(again)
    assert torch.equal(answers(again), answers(average))
    # By its old name, the same file gives a model without blurs, and no complaint.
    assert aliased_again(timm.create_model("mobilenetv3_small_100", checkpoint_path=last, num_classes=2), average)


def test_lightning(tmp_path, example):
    program = example("lightning_train")
    original = small()
    before = {key: value.clone() for key, value in original.state_dict().items()}
    loader = DataLoader(TensorDataset(torch.randn(8, 3, 64, 64)), 4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = program.train(original, loader, tmp_path, max_epochs=2, accelerator="cpu", **quiet)
    trained = trainer.lightning_module
    assert trained.model.training  # in train mode all along
    assert blurify.check(trained.model)
    assert moved(before, trained.model)
    assert list(trained.model.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in original.state_dict().items()), "the teacher changed"

    path = trainer.checkpoint_callback.best_model_path
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert list(saved) == [f"model.{key}" for key in before]  # and no teacher
    again = program.Adapting.load_from_checkpoint(path, original=small())
    assert blurify.check(again.model)
    assert torch.equal(answers(again), answers(trained))
    # The weights alone, in a model as its authors wrote it.
    bare = small()
    bare.load_state_dict({key.removeprefix("model."): value for key, value in saved.items()})
    assert aliased_again(bare, trained.model)
    assert torch.equal(answers(blurify.convert(bare)), answers(trained))


def test_hugging_face(tmp_path, pictures, example):
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    program = example("hf_trainer")
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    original = ResNetForImageClassification(ResNetConfig(**shape, num_labels=2))
    before = original.state_dict()
    original.save_pretrained(tmp_path / "original")
    ConvNextImageProcessor(size={"shortest_edge": 64}).save_pretrained(tmp_path / "original")
    options = {"use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": 4}
    quiet = {"report_to": "none", "disable_tqdm": True}
    trainer = program.train(tmp_path / "original", pictures, tmp_path / "out", **options, **quiet)
    assert blurify.check(trainer.model)
    assert moved(before, trainer.model)
    assert list(trainer.model.state_dict()) == list(before)

    again = program.load(tmp_path / "out")
    assert blurify.check(again)
    assert torch.equal(answers(again), answers(trainer.model))
    # from_pretrained alone, as from any other directory of such a model, makes no blurs.
    assert aliased_again(ResNetForImageClassification.from_pretrained(tmp_path / "out"), trainer.model)
