"""Pictures: folders of files against a slow obvious reading, labels, choices, errors; and how models want them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

import blurify
from blurify import demo
from blurify.demo import shifts
from blurify.errors import BlurifyError
from blurify.metrics import labels, pictures, preprocessing
from blurify.metrics.pictures import FolderPictures, open_folder, spread_choice
from blurify.metrics.preprocessing import declared, disagreement, preprocessing_of
from blurify.metrics.subject import Preprocessing, TensorPictures

SMALL = Preprocessing((28, 35), (32, 40))
GREY = Preprocessing((28, 35), (32, 40), channels=1, mean=(0.0,), std=(1.0,))


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth random bytes."""
    coarse = torch.rand(1, channels, 5, 6, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (smooth * 255).round().byte().permute(1, 2, 0).numpy()


def save(path: Path, array: np.ndarray, **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array).save(path, **more)
    return path


def only(folder: Path, preprocessing: Preprocessing = SMALL) -> torch.Tensor:
    """The single picture of a folder, (C, H, W)."""
    (batch,) = open_folder(folder, preprocessing).batches(4)
    (canvas,) = batch.canvases
    return canvas


@pytest.mark.parametrize("size", [(32, 40), (64, 80), (50, 47), (33, 200), (150, 41), (9, 7), (1, 1)])
def test_a_picture_covers_the_canvas(tmp_path: Path, size: tuple[int, int]) -> None:
    """Each canvas pixel is a triangle-weighted mean around its place in the middle part of the right proportions."""
    array = noise(*size)
    save(tmp_path / "a.png", array)
    canvas = only(tmp_path)
    assert canvas.shape == (3, 32, 40) and canvas.dtype == torch.float32
    whole = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    scale = min(size[0] / 32, size[1] / 40)  # pixels of the file for one of the canvas
    weights = []
    for pixels, wanted in zip(size, (32, 40), strict=True):
        centres = pixels / 2 + scale * (torch.arange(wanted) + 0.5 - wanted / 2)
        distances = (torch.arange(pixels) + 0.5 - centres[:, None]).abs() / max(scale, 1)
        triangles = (1 - distances).clamp(min=0)
        weights.append(triangles / triangles.sum(1, keepdim=True))
    expected = torch.einsum("yi,xj,cij->cyx", weights[0], weights[1], whole)
    assert torch.allclose(canvas, expected, atol=2.1 / 255)  # each of two passes rounds to 8 bits
    if size == (32, 40):
        assert torch.equal(canvas, whole)  # not touched at all


@pytest.mark.parametrize(("height", "width"), [(32, 41), (35, 40), (32, 42), (32, 57), (63, 40)])
def test_cutting_alone_changes_no_pixel(tmp_path: Path, height: int, width: int) -> None:
    """An odd surplus has no middle: half a pixel to the side would mix neighbours, and blur."""
    array = noise(height, width)
    save(tmp_path / "a.png", array)
    top, left = (height - 32) // 2, (width - 40) // 2
    expected = torch.from_numpy(array[top : top + 32, left : left + 40]).permute(2, 0, 1).float() / 255
    assert torch.equal(only(tmp_path), expected)


def test_a_large_picture_is_reduced_without_aliasing(tmp_path: Path) -> None:
    """A checkerboard of single pixels becomes grey, not another pattern."""
    board = np.indices((320, 400)).sum(0) % 2 * 255
    save(tmp_path / "a.png", board.astype(np.uint8))
    assert (only(tmp_path) - 0.5).abs().max() < 0.02


def test_colours_become_grey_and_grey_becomes_colours(tmp_path: Path) -> None:
    colour = noise(32, 40)
    save(tmp_path / "colour" / "a.png", colour)
    weights = torch.tensor([0.299, 0.587, 0.114])
    expected = (torch.from_numpy(colour).float() / 255 * weights).sum(-1)
    assert torch.allclose(only(tmp_path / "colour", GREY)[0], expected, atol=1.1 / 255)
    grey = noise(32, 40, channels=1)
    save(tmp_path / "grey" / "a.png", grey)
    assert torch.equal(only(tmp_path / "grey"), torch.from_numpy(grey).permute(2, 0, 1).expand(3, -1, -1).float() / 255)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "LA", "RGBA"])
@pytest.mark.parametrize("how", [SMALL, GREY])
def test_every_kind_of_pixel(tmp_path: Path, mode: str, how: Preprocessing) -> None:
    image = Image.fromarray(noise(32, 40)).convert(mode)
    image.save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    wanted = np.array(image.convert("RGB" if how is SMALL else "L"))
    expected = torch.from_numpy(wanted).float().reshape(32, 40, -1).permute(2, 0, 1) / 255
    assert torch.allclose(only(tmp_path, how), expected, atol=1.1 / 255)


def test_transparency_is_black(tmp_path: Path) -> None:
    rgba = np.concatenate([noise(32, 40), np.full((32, 40, 1), 255, np.uint8)], 2)
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 128
    save(tmp_path / "a.png", rgba)
    canvas, original = only(tmp_path), torch.from_numpy(rgba[:, :, :3]).permute(2, 0, 1) / 255
    assert torch.equal(canvas[:, :10], torch.zeros(3, 10, 40))
    assert torch.allclose(canvas[:, 10:20], original[:, 10:20] * 128 / 255, atol=1.1 / 255)
    assert torch.equal(canvas[:, 20:], original[:, 20:])


def test_sixteen_bits_keep_their_depth(tmp_path: Path) -> None:
    values = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 51  # 51/65535 is far below 1/255
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = torch.from_numpy(values.astype(np.float32) / 65535)
    assert torch.allclose(only(tmp_path, GREY)[0], expected, atol=1e-6)
    assert torch.allclose(only(tmp_path), expected.expand(3, -1, -1), atol=1e-6)


def test_floats_are_taken_as_they_are_and_no_others(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 32 * 40, dtype=np.float32).reshape(32, 40)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert torch.equal(only(tmp_path, GREY)[0], torch.from_numpy(values))
    Image.fromarray(values * 300).save(tmp_path / "a.tif")
    with pytest.raises(BlurifyError, match=r"a\.tif can't be read .*300"):
        only(tmp_path, GREY)


def test_the_orientation_that_a_camera_noted(tmp_path: Path) -> None:
    array = noise(40, 32)
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(array, -1).copy()
    assert torch.equal(only(tmp_path), torch.from_numpy(upright).permute(2, 0, 1) / 255)


def test_files_are_found_sorted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    array = noise(8, 8)
    for name in ("b.JPG", "a.png", "z.jpeg", ".hidden.png", "notes.txt", "c.webp", "d.gif", "e.bmp", "f.TIFF"):
        if not name.endswith("txt"):
            save(tmp_path / name, array)
        else:
            (tmp_path / name).write_text("no image")
    save(tmp_path / ".cache" / "x.png", array)
    found = open_folder(tmp_path, SMALL)
    assert [file.path.name for file in found.files] == [
        "a.png",
        "b.JPG",
        "c.webp",
        "d.gif",
        "e.bmp",
        "f.TIFF",
        "z.jpeg",
    ]
    assert len(found) == 7 and not found.labelled


def test_class_folders_may_hold_folders_and_links_that_lead_back(tmp_path: Path) -> None:
    save(tmp_path / "1" / "deep" / "x.png", noise(8, 8))
    save(tmp_path / "0" / "y.png", noise(8, 8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "1" / "back").symlink_to(tmp_path, target_is_directory=True)
    found = open_folder(tmp_path, SMALL, classes=5)
    assert [(file.path.name, file.folder) for file in found.files] == [("y.png", "0"), ("x.png", "1")]
    (batch,) = found.batches(8)
    assert batch.labels.tolist() == [0, 1] and found.labelled


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_are_all_pictures_in_order(tmp_path: Path, size: int) -> None:
    arrays = [noise(32, 40, seed) for seed in range(7)]
    for index, array in enumerate(arrays):
        save(tmp_path / f"{index}.png", array)
    found = open_folder(tmp_path, SMALL)
    for _ in range(2):  # again and again
        batches = list(found.batches(size))
        assert [len(batch.indices) for batch in batches] == [min(size, 7 - at) for at in range(0, 7, size)]
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(7))
        expected = torch.stack([torch.from_numpy(array).permute(2, 0, 1) / 255 for array in arrays])
        assert torch.equal(torch.cat([batch.canvases for batch in batches]), expected)


def test_the_next_batch_is_decoded_meanwhile_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(12):
        save(tmp_path / f"{index:02}.png", noise(8, 8))
    begun: list[str] = []
    second_done = threading.Event()
    real = pictures._decode

    def spy(path: Path, *arguments: object) -> None:
        real(path, *arguments)  # type: ignore[arg-type]
        begun.append(path.name)
        if path.name == "05.png":
            second_done.set()

    monkeypatch.setattr(pictures, "_decode", spy)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    batches = open_folder(tmp_path, SMALL).batches(3)
    next(batches)
    assert second_done.wait(20)  # while we do nothing
    assert not any(name > "05.png" for name in begun)
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_a_choice_is_seeded_and_spread(tmp_path: Path) -> None:
    for folder in "abcd":
        for index in range(10):
            save(tmp_path / folder / f"{index}.png", noise(4, 4))
    first, again, other = (open_folder(tmp_path, SMALL, images=8, seed=seed).files for seed in (0, 0, 1))
    assert first == again != other
    assert [file.folder for file in first] == list("aabbccdd")  # a share of each class
    assert len(open_folder(tmp_path, SMALL, images=99)) == 40


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 10), (10, 9), (1000, 7), (3, 2), (5, 1)])
def test_a_choice_has_no_picture_twice_and_reaches_everything(count: int, wanted: int) -> None:
    reached = set()
    for seed in range(200):
        chosen = spread_choice(count, wanted, seed)
        assert len(set(chosen)) == wanted and chosen == sorted(chosen) and set(chosen) <= set(range(count))
        reached |= set(chosen)
    assert count > 100 or reached == set(range(count))


def broken(folder: Path) -> None:
    save(folder / "good.png", noise(64, 64))
    whole = save(folder / "cut.jpg", noise(64, 64)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken(tmp_path)
    with pytest.raises(BlurifyError, match=r"cut\.jpg can't be read \(.*truncated"):
        list(open_folder(tmp_path, SMALL).batches(2))
    (tmp_path / "cut.jpg").write_text("<html>not found</html>")
    with pytest.raises(BlurifyError, match=r"cut\.jpg is not an image: take it out"):
        list(open_folder(tmp_path, SMALL).batches(2))
    (tmp_path / "cut.jpg").write_bytes(b"")
    with pytest.raises(BlurifyError, match=r"cut\.jpg is not an image"):
        list(open_folder(tmp_path, SMALL).batches(2))


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BlurifyError, match=r"no folder .*nowhere"):
        open_folder(tmp_path / "nowhere", SMALL)
    with pytest.raises(BlurifyError, match="no images in"):
        open_folder(tmp_path, SMALL)
    file = save(tmp_path / "a.png", noise(4, 4))
    with pytest.raises(BlurifyError, match="is a file: give --data the folder"):
        open_folder(file, SMALL)


class TestLabels:
    def test_numbers_are_the_classes(self) -> None:
        found, note = labels.class_labels(["3", "007", "12"], 13)
        assert found == {"3": 3, "007": 7, "12": 12} and "numbers" in note

    def test_imagenet(self) -> None:
        """Known lines of the challenge's list: tench is the first class, toilet tissue the last."""
        found, _ = labels.class_labels(["n15075141", "n01440764"], 1000)
        assert found == {"n01440764": 0, "n15075141": 999}
        assert labels.class_labels(["n15075141", "n01440764"], 999)[0] is None
        assert labels.class_labels(["Toilet_tissue", "goldfish"], 1000)[0] == {"Toilet_tissue": 999, "goldfish": 1}
        assert labels.class_labels(["crane", "tench"], 1000)[0] is None  # a bird and a machine

    def test_the_names_of_the_classes(self) -> None:
        found, _ = labels.class_labels(["Great-White_shark", "cat"], 3, ["dog", "great white shark", "Cat"])
        assert found == {"Great-White_shark": 1, "cat": 2}

    def test_sorted_order_where_the_count_fits(self) -> None:
        assert labels.class_labels(["dog", "ant", "cat"], 3)[0] == {"ant": 0, "cat": 1, "dog": 2}
        assert labels.class_labels(["3", "1", "2"], 3)[0] == {"1": 0, "2": 1, "3": 2}

    @pytest.mark.parametrize(
        ("folders", "classes"), [(["ant", "cat"], 3), ([str(n) for n in range(1, 11)], 10), (["2019", "2020"], 10)]
    )
    def test_none_where_nobody_can_tell(self, folders: list[str], classes: int) -> None:
        found, note = labels.class_labels(folders, classes)
        assert found is None and f"0 to {classes - 1}" in note


def test_the_digits_are_those_of_the_demo() -> None:
    """Every crop of their canvas is a placing that the demo's own function makes."""
    geometry = pictures.digit_preprocessing()
    found = pictures.digits(geometry)
    held = demo.held_out()
    assert found.canvases.shape == (120, 1, 46, 46) and found.labels is not None
    assert torch.equal(found.labels, held.labels)
    for y in range(7):
        for x in range(7):
            # A crop further down shows the digit further up.
            assert torch.equal(found.canvases[:, :, y : y + 40, x : x + 40], shifts.place(held.images, 9 - y, 9 - x))
    colours = pictures.digits(Preprocessing((80, 80), (91, 91)), images=30, seed=1)
    assert colours.canvases.shape == (30, 3, 91, 91)
    assert colours.labels is not None and colours.labels.bincount().min() >= 1
    assert torch.equal(colours.canvases[:, 0], colours.canvases[:, 2])
    inside = colours.canvases[:, :, 17:-17, 17:-17]
    assert torch.equal(F.pad(inside, (17,) * 4), colours.canvases)  # 56 pixels in the middle of 91


class TestPreprocessing:
    def test_timm_says_it(self) -> None:
        model = timm.create_model("vit_tiny_patch16_224")
        found = preprocessing_of(model, "timm/vit_tiny_patch16_224")
        assert found == Preprocessing((224, 224), (256, 256), 3, (0.5,) * 3, (0.5,) * 3, "bicubic")

    def test_grey_where_the_model_is(self) -> None:
        model = timm.create_model("resnet10t", in_chans=1)
        found = preprocessing_of(model)
        assert found.channels == 1 and found.crop == tuple(model.pretrained_cfg["input_size"][1:])
        assert found.mean == pytest.approx((0.449,)) and found.std == pytest.approx((0.226,))

    def test_the_weights_of_torchvision_say_it(self) -> None:
        says = declared(nn.Identity(), "torchvision/inception_v3:IMAGENET1K_V1")
        assert says.size == (299, 299) and says.categories[:2] == ("tench", "goldfish") and says.channels == 3
        model = torchvision.models.squeezenet1_1(weights=None)
        for arch in ("torchvision/squeezenet1_1:NONE", "torchvision/squeezenet1_1:IMAGENET1K_V1?num_classes=10"):
            assert preprocessing_of(model, arch) == Preprocessing((224, 224), (256, 256))
        assert declared(nn.Identity(), "torchvision/lraspp_mobilenet_v3_large").size == (520, 520)

    def test_a_converted_model_and_its_source_are_alike(self) -> None:
        model = timm.create_model("resnet10t")
        assert preprocessing_of(blurify.convert(model, verify=False)) == preprocessing_of(model)

    def test_a_model_that_says_nothing(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        assert preprocessing_of(net) == Preprocessing((224, 224), (256, 256), 1, (0.0,), (1.0,))
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))  # 32 pixels and no others
        assert preprocessing_of(net) == Preprocessing((32, 32), (37, 37))

    def test_what_is_given_wins(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        found = preprocessing_of(net, size=(20, 30), canvas=(21, 40), mean=(0.5,), std=(0.1, 0.2, 0.3))
        assert found == Preprocessing((20, 30), (21, 40), 3, (0.5,) * 3, (0.1, 0.2, 0.3))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": (20, 20), "canvas": (30, 19)}, "canvas of 30x19 is smaller than the model's input of 20x20"),
            ({"size": (2, 2)}, "takes no pictures of 2x2"),
            ({"mean": (0.1, 0.2)}, "--mean has 2 numbers"),
            ({"std": (0.0,)}, "--std must be above 0"),
        ],
    )
    def test_what_cannot_be(self, options: dict, message: str) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with pytest.raises(BlurifyError, match=message):
            preprocessing_of(net, **options)

    @pytest.mark.parametrize(
        "net", [nn.Sequential(nn.Conv1d(1, 4, 3)), nn.Sequential(nn.Conv3d(3, 4, 3)), nn.Conv2d(5, 4, 3)]
    )
    def test_models_of_other_things(self, net: nn.Module) -> None:
        with pytest.raises(BlurifyError, match="not pictures"):
            preprocessing_of(net)

    def test_a_disagreement_in_words(self) -> None:
        says = preprocessing.Declared((224, 224), 3, (0.5,), (0.5,))
        used = Preprocessing((192, 192), (219, 219), 3, (0.5,) * 3, (0.25,) * 3)
        assert disagreement(says, used) == "--size 224,224, not 192,192; --std 0.5,0.5,0.5, not 0.25,0.25,0.25"
        assert disagreement(says, used, ["size", "std"]) == "" == disagreement(preprocessing.Declared(), used)


def test_pictures_in_memory_and_in_files_are_the_same_kind(tmp_path: Path) -> None:
    save(tmp_path / "1" / "a.png", noise(32, 40))
    for found in (
        open_folder(tmp_path, SMALL, classes=2),
        TensorPictures(torch.zeros(1, 3, 32, 40), torch.ones(1).long()),
    ):
        assert isinstance(found, FolderPictures | TensorPictures)
        (batch,) = found.batches(1)
        assert batch.labels.tolist() == [1] and batch.indices.tolist() == [0] and found.labelled and found.name
