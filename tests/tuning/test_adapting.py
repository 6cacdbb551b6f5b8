"""The verb: any data, any output structure, what is odd is said, and the result is still the converted model."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image
from torch import nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics.subject import Preprocessing, TensorPictures
from tests.tuning.networks import Small, pair, pictures, trained

QUICK = {"steps": 30, "batch_size": 16, "learning_rate": 1e-3, "device": "cpu"}


def _answers(model: nn.Module, x: torch.Tensor):
    with torch.no_grad():
        return model(x)


@pytest.fixture(scope="module")
def models():
    return pair()


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "pictures"
    found.mkdir()
    for index, picture in enumerate(pictures(24, 3, size=32)):
        array = ((picture - picture.min()) / (picture.max() - picture.min()) * 255).to(torch.uint8)
        Image.fromarray(array.permute(1, 2, 0).numpy()).save(found / f"{index:02d}.png")
    return found


def test_the_result_answers_more_like_the_original_and_is_still_converted(models):
    original, converted = models
    before = {name: value.clone() for name, value in converted.state_dict().items()}
    adapted = blurify.adapt(original, converted, pictures(128, 5), **QUICK)
    held = pictures(256, 88)
    wanted = _answers(original, held)
    near, far = ((_answers(model, held) - wanted).square().sum() for model in (adapted, converted))
    assert near < 0.75 * far
    assert type(adapted) is type(converted)
    assert list(adapted.state_dict()) == list(original.state_dict())
    assert blurify.plan_of(adapted) == blurify.plan_of(converted)
    assert blurify.check(adapted)
    assert blurify.proof_of(adapted) is None, "it says that the weights are the original's"
    assert all(torch.equal(value, before[name]) for name, value in converted.state_dict().items()), "not a copy"
    record = blurify.adapted_of(adapted)
    assert [stage.name for stage in record.stages] == ["converted", "recalibrate", "reconstruct", "refine", "distil"]
    assert record.stages[-1].distance < record.stages[0].distance
    for line in record.lines():
        assert "same answer on" in line


def test_each_stage_is_usable_alone(models):
    original, converted = models
    for stage in ("recalibrate", "reconstruct", "refine", "distil"):
        adapted = blurify.adapt(original, converted, pictures(64, 5), stages=(stage,), **QUICK)
        names = [one.name for one in blurify.adapted_of(adapted).stages]
        assert names == ["converted", stage]


def test_without_the_original_it_is_reverted(models):
    original, converted = models
    one = blurify.adapt(original, converted, pictures(64, 5), stages=("reconstruct",), device="cpu")
    other = blurify.adapt(None, converted, pictures(64, 5), stages=("reconstruct",), device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_stage_that_makes_things_worse_is_taken_back(models):
    original, converted = models
    adapted = blurify.adapt(
        original, converted, pictures(64, 5), stages=("distil",), steps=5, learning_rate=10.0, decay=0.0, device="cpu"
    )
    stage = blurify.adapted_of(adapted).stages[-1]
    assert not stage.kept
    assert "taken back" in stage.line
    assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), converted.parameters(), strict=True))


def test_a_folder_with_damaged_and_odd_pictures(models, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no jpeg")
    Image.new("I;16", (40, 90), 30000).save(folder / "deep.png")
    Image.new("P", (5, 5)).save(folder / "tiny.gif")
    original, converted = models
    adapted = blurify.adapt(
        original, converted, folder, crops=60, preprocessing=Preprocessing((16, 16), (20, 20)),
        stages=("recalibrate", "reconstruct"), device="cpu",
    )  # fmt: skip
    record = blurify.adapted_of(adapted)
    assert any("broken.jpg" in note and "left out" in note for note in record.notes)
    assert record.stages[-1].distance < record.stages[0].distance
    assert re.match(r"\d+ crops of 26 pictures", record.data)


def test_class_folders_teach_too(folder):
    """The head forgot a class; labels bring it back, the original alone can't."""
    for label in range(2):
        (folder / f"{label}").mkdir()
        for index in range(8):
            shade = Image.new("RGB", (32, 32), (230, 20, 20) if label else (20, 20, 230))
            shade.putpixel((index, index), (255, 255, 255))
            shade.save(folder / f"{label}" / f"{index}.png")
    for path in folder.glob("*.png"):
        path.unlink()
    original, converted = pair(Small(classes=2))
    geometry = Preprocessing((16, 16), (18, 18))
    options = {
        **QUICK, "steps": 80, "learning_rate": 2e-2, "stages": ("distil",), "decay": 0.0, "preprocessing": geometry,
        "crops": 16,
    }  # fmt: skip
    with torch.no_grad():
        original.head.bias.copy_(torch.tensor([9.0, -9.0]))
        converted.head.bias.copy_(original.head.bias)
    from blurify.tuning.adapting import _Run

    # Labels contradict the teacher here, which the check on held-back pictures would take back.
    kept, _Run._agreement = _Run._agreement, lambda self: _improving()  # type: ignore[method-assign]
    try:
        told = blurify.adapt(original, converted, folder, **options)
        untold = blurify.adapt(original, converted, folder, labels=False, **options)
    finally:
        _Run._agreement = kept  # type: ignore[method-assign]
    assert any("labels" in note for note in blurify.adapted_of(told).notes)
    red = (torch.tensor([230.0, 20.0, 20.0]) / 255 - torch.tensor(geometry.mean)) / torch.tensor(geometry.std)
    x = red[None, :, None, None].expand(1, 3, 16, 16)
    # What the labels say of it, and what the teacher says.
    assert _answers(told, x).softmax(1)[0, 1] > 10 * _answers(untold, x).softmax(1)[0, 1]


_scores = iter(range(1000, 0, -1))


def _improving():
    from blurify.tuning.answers import Agreement

    return Agreement(1, "classes", float(next(_scores)), 0.5)


class Two(Small):
    """Boxes and probabilities, as MTCNN's networks."""

    def forward(self, x):
        found = super().forward(x)
        return {"boxes": found[:, :3], "probabilities": found[:, 3:].softmax(1)}


class Embedding(Small):
    def forward(self, x):
        return nn.functional.normalize(super().forward(x), dim=1)


class Dense(Small):
    def forward(self, x):
        x = self.norm1(self.stem(x)).relu()
        x = self.norm2(self.down(x)).relu()
        return (self.norm3(self.mix(x)).relu(), [x])


class Detector(Small):
    """As many boxes as answers are above zero: another number for every model."""

    def forward(self, x):
        found = super().forward(x)
        return [{"scores": row[row > 0], "labels": (row > 0).nonzero()} for row in found]


@pytest.mark.parametrize("make", [Two, Embedding, Dense, Detector])
def test_whatever_the_model_answers_is_the_target(make):
    original, converted = pair(make())
    data = [(batch, torch.arange(16)) for batch in pictures(160, 5).split(16)]  # as a data loader gives it
    adapted = blurify.adapt(original, converted, data, **QUICK)
    record = blurify.adapted_of(adapted)
    assert record.outputs == "values"
    assert record.stages[-1].distance < 0.6 * record.stages[0].distance
    held = pictures(64, 99)
    kept = []
    for model in (original, converted, adapted):
        handle = model.mix.register_forward_hook(lambda _, __, out: kept.append(out.clone()))
        _answers(model, held)
        handle.remove()
    assert (kept[2] - kept[0]).square().sum() < (kept[1] - kept[0]).square().sum()


def test_classes_are_told_from_values():
    import timm
    import torchvision

    from blurify.tuning.answers import kind_of

    x = ((torch.zeros(1, 3, 64, 64),), {})
    assert kind_of(timm.create_model("resnet18").eval(), x) == "classes"
    assert kind_of(torchvision.models.mobilenet_v2().eval(), x) == "classes"
    assert kind_of(torchvision.models.squeezenet1_1().eval(), x) == "classes"
    assert kind_of(timm.create_model("resnet18", num_classes=0).eval(), x) == "values"
    assert (
        kind_of(torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None).eval(), x) == "values"
    )
    assert kind_of(trained(Embedding()), ((pictures(1),), {})) == "values"


def test_few_examples_no_norms_and_frozen_parameters_are_said():
    original, converted = pair(Small(norms=False))
    converted.head.weight.requires_grad_(False)
    adapted = blurify.adapt(original, converted, pictures(6, 5), steps=2, batch_size=4, device="cpu")
    record = blurify.adapted_of(adapted)
    assert any("few" in note for note in record.notes)
    assert any("frozen" in note for note in record.notes)
    assert "no batch norms" in record.lines()[1]
    assert torch.equal(adapted.head.weight, converted.head.weight)


def test_models_that_do_not_belong_together_are_refused(models):
    original, converted = models
    x = pictures(8)
    with pytest.raises(BlurifyError, match="no plan"):
        blurify.adapt(original, original, x)
    with pytest.raises(BlurifyError, match="original is converted"):
        blurify.adapt(converted, converted, x)
    with pytest.raises(BlurifyError, match="other tensors"):
        blurify.adapt(trained(Small(classes=7)), converted, x)
    for wrong in ({"stages": ("distill",)}, {"steps": 0}, {"minutes": 0.0}, {"batch_size": 0}, {"outputs": "logits"}):
        with pytest.raises(BlurifyError):
            blurify.adapt(original, converted, x, **wrong)


def test_modes_devices_and_gradients_are_as_they_were(models):
    original, converted = (model.train() for model in pair())
    adapted = blurify.adapt(original, converted, pictures(32, 5), **{**QUICK, "steps": 2})
    assert all(module.training for model in (original, converted, adapted) for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in adapted.parameters())
    assert all(parameter.requires_grad for parameter in original.parameters())


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_files_carry_what_was_done(tmp_path, ending):
    import timm

    from blurify.files.sources import ModelSource

    torch.manual_seed(0)
    original = timm.create_model("test_resnet", num_classes=10).eval()
    converted = blurify.convert(original)
    adapted = blurify.adapt(original, converted, torch.randn(24, 3, 64, 64), stages=("reconstruct",), device="cpu")
    path = tmp_path / f"adapted.{ending}"
    from blurify.files import checkpoints

    checkpoints.save(
        adapted,
        path,
        source=ModelSource.from_dict({"spec": "x", "kind": "weights", "arch": "timm/test_resnet?num_classes=10"}),
    )
    found = blurify.load(path)
    assert blurify.adapted_of(found) == blurify.adapted_of(adapted)
    assert all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), adapted.state_dict().values(), strict=True)
    )
    whole = tmp_path / "whole.pt"
    blurify.save(adapted, whole)
    assert blurify.adapted_of(blurify.load(whole)) == blurify.adapted_of(adapted)
    assert blurify.adapted_of(blurify.revert(adapted)) is None


def test_the_log_has_a_line_for_every_stage_and_step(models, tmp_path):
    original, converted = models
    log = tmp_path / "log.jsonl"
    blurify.adapt(original, converted, pictures(64, 5), **{**QUICK, "steps": 4}, log=log)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["event"] for entry in entries] == [
        "start",
        *["stage"] * 3,
        *["step"] * 2,
        "stage",
        *["step"] * 2,
        "stage",
        "end",
    ]
    steps = [entry for entry in entries if entry["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2, 1, 2]
    assert steps[-1]["left"] == 0


def test_pictures_in_memory(models):
    original, converted = models
    shown = TensorPictures(torch.rand(40, 3, 20, 20))
    adapted = blurify.adapt(
        original,
        converted,
        shown,
        stages=("recalibrate",),
        preprocessing=Preprocessing((16, 16), (20, 20)),
        device="cpu",
    )
    assert blurify.adapted_of(adapted).data == "40 crops of 40 pictures"
    with pytest.raises(BlurifyError, match="canvas"):
        blurify.adapt(original, converted, shown, preprocessing=Preprocessing((16, 16), (24, 24)))


def test_half_precision_training_and_models(models):
    original, converted = models
    adapted = blurify.adapt(original, converted, pictures(32, 5), **{**QUICK, "steps": 4}, precision="bf16")
    assert all(parameter.dtype == torch.float32 for parameter in adapted.parameters())
    whole = blurify.convert(original.to(torch.bfloat16), example_inputs=pictures(1).bfloat16(), verify=False)
    try:
        half = blurify.adapt(original, whole, pictures(32, 5).bfloat16(), **{**QUICK, "steps": 4})
    finally:
        original.float()
    assert all(parameter.dtype == torch.bfloat16 for parameter in half.parameters())
    assert blurify.check(half)


def test_outputs_of_other_sizes_in_every_batch_are_compared_with_the_originals():
    """Not with themselves: a map of another size a batch, and a single number, of a model that answers twice that."""
    from blurify.tuning.answers import agreement

    def answer(scale: float):
        return lambda inputs: [inputs[0][0] * scale, inputs[0][0].sum() * scale]

    batches = [((torch.randn(2, 3, size, size),), {}) for size in (4, 6)]
    found = agreement(answer(1.0), answer(2.0), [(batch, (batch,)) for batch in batches], "values")
    slow = []
    for (x,), _ in batches:
        slow.append(float(x.square().sum() / (x - x.mean(0)).square().sum()))
    number = 1e6  # one number has no spread: its error is over a millionth of its square
    assert found.distance == pytest.approx((sum(slow) / 2 + number) / 2, rel=1e-3)
    assert found.count == 4
    same = agreement(answer(1.0), answer(1.0), [(batch, (batch,)) for batch in batches], "values")
    assert same.distance == 0


def test_where_nothing_can_learn_stages_say_so_and_the_rest_goes_on():
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2)

        def forward(self, x):
            return self.pool(self.conv(x).relu()).mean((2, 3))

    original, converted = pair(Pools())
    lines = blurify.adapted_of(blurify.adapt(original, converted, pictures(40, 5), **QUICK)).lines()
    assert len(lines) == 5 and "none can learn" in lines[3]
    frozen = Small()
    original, converted = pair(frozen)
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    lines = blurify.adapted_of(blurify.adapt(original, converted, pictures(40, 5), **QUICK)).lines()
    assert "frozen" in lines[3] and "frozen" in lines[4]
