"""Flip rates and corruptions: against loops over single pictures, and classifiers whose answers are known."""

import colorsys
import io
import math

import numpy as np
import pytest
import slow_pictures as slow
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from blurify.errors import BlurifyError
from blurify.metrics.corruptions import CORRUPTIONS
from blurify.metrics.effects import generators
from blurify.metrics.perturbations import PERTURBATIONS, Scene
from blurify.metrics.stability import stability
from blurify.metrics.subject import Preprocessing, Subject, TensorPictures


class Answer(nn.Module):
    """A classifier of two or more classes that answers `choose(pictures)`, (N,) whole numbers."""

    def __init__(self, choose, classes=2):
        super().__init__()
        self.choose, self.classes, self.forwards = choose, classes, 0

    def forward(self, x):
        self.forwards += 1
        return F.one_hot(self.choose(x).long(), self.classes).float()


def subject(model, crop, canvas=None, channels=1):
    return Subject(model, Preprocessing(crop, canvas or crop, channels, mean=(0.0,), std=(1.0,)))


def pictures(count, channels=1, size=12, seed=0):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def linear(features, classes=4, seed=0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def rates(result):
    return {flip.perturbation: flip.rate.value for flip in result.flip_rates}


def frames(name, canvases, crop, count, seed=0):
    kind = PERTURBATIONS[name]
    scene = Scene(canvases, crop, generators(seed, torch.arange(len(canvases)), name))
    return list(kind.draw(scene, kind.numbers(count)))


# The frames


def test_the_default_frames_lie_around_the_unperturbed_picture():
    numbers = {name: list(kind.numbers(9)) for name, kind in PERTURBATIONS.items()}
    from_first, around_15 = list(range(9)), list(range(11, 20))
    assert numbers == {
        "gaussian-noise": from_first,
        "shot-noise": from_first,
        "motion-blur": list(range(22, 31)),
        "zoom-blur": from_first,
        "brightness": around_15,
        "translate": list(range(16, 25)),
        "rotate": around_15,
        "tilt": around_15,
        "scale": list(range(20, 29)),
    }
    canvases = pictures(2, 3, 20)
    clean = canvases[..., 4:16, 4:16]
    for name, kind in PERTURBATIONS.items():
        if name != "motion-blur":
            found = frames(name, canvases, (12, 12), 9)[numbers[name].index(kind.middle)]
            assert torch.allclose(found, clean, atol=1e-4), name


def test_the_longest_sequences_are_the_published_ones():
    lengths = {name: kind.numbers(1000) for name, kind in PERTURBATIONS.items()}
    assert lengths == {name: range(41 if name == "translate" else 31) for name in PERTURBATIONS}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("rotate", lambda i: {"degrees": i - 15}),
        ("translate", lambda i: {"dx": i - 20}),
        ("scale", lambda i: {"scale": 0.4 + 0.025 * i}),
    ],
)
def test_frames_that_move_are_cut_from_the_canvas(name, how):
    canvas = pictures(1, 1, 14)
    found = frames(name, canvas, (9, 9), 1000)
    for i in (0, 7, 15, 24, 30):
        wanted = slow.moved(canvas[0, 0].numpy(), (9, 9), **how(i))
        assert np.allclose(found[i][0, 0].numpy(), wanted, atol=1e-4), i


def test_tilt_frames():
    canvas = pictures(1, 1, 14)
    found = frames("tilt", canvas, (9, 9), 31)
    for i in (0, 13, 30):
        assert np.allclose(found[i][0, 0].numpy(), slow.tilted(canvas[0, 0].numpy(), (9, 9), i - 15), atol=1e-4)


def test_zoom_blur_frames_are_running_means():
    canvas = pictures(1, 1, 14)
    found = frames("zoom-blur", canvas, (9, 9), 31)
    enlarged = [slow.moved(canvas[0, 0].numpy(), (9, 9), scale=1 + 0.004 * i) for i in range(31)]
    for i in (0, 1, 8, 30):
        assert np.allclose(found[i][0, 0].numpy(), np.mean(enlarged[: i + 1], axis=0), atol=1e-4)


def test_motion_blur_frames_turn_and_scale_with_the_crop():
    # On a crop of 112 the published radius 10 and sigma 3 are 5 and 1.5.
    canvas = torch.zeros(1, 1, 112, 112)
    canvas[0, 0, 56, 56] = 1
    found = frames("motion-blur", canvas, (112, 112), 31)
    weights = [math.exp(-(k**2) / (2 * 1.5**2)) for k in range(11)]
    centre = sum(k * weight for k, weight in enumerate(weights)) / sum(weights)
    for i in (0, 10, 30):
        angle = math.radians(4 * (i - 30))
        mass = found[i][0, 0]
        y, x = (mass.sum(1) * torch.arange(112)).sum().item(), (mass.sum(0) * torch.arange(112)).sum().item()
        # A pixel looks along the line, so that a point spreads against it.
        assert (y - 56, x - 56) == pytest.approx((-centre * math.sin(angle), -centre * math.cos(angle)), abs=1e-3)


def test_noise_frames_have_the_published_strength_and_differ():
    canvas = torch.full((2, 3, 64, 64), 0.5)
    for name, deviation in (("gaussian-noise", 0.03), ("shot-noise", math.sqrt(0.5 / 300))):
        first, *others = frames(name, canvas, (64, 64), 31)
        assert torch.equal(first, canvas)
        for frame in others:
            assert (frame - canvas).std().item() == pytest.approx(deviation, rel=0.03)
        assert not torch.equal(others[0], others[1])


# The flip rate


def test_flips_of_a_threshold_on_brightness_are_where_the_arithmetic_says():
    greys = [0.1, 0.19, 0.413, 0.487, 0.61, 0.79, 0.9]
    canvases = torch.tensor(greys).reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6)
    threshold = Answer(lambda x: x.mean((1, 2, 3)) > 0.5)
    for count, reach in ((9, 4), (31, 15)):
        found = stability(
            subject(threshold, (6, 6)),
            TensorPictures(canvases),
            perturbations=["brightness"],
            corruptions=[],
            frames=count,
        ).flip_rates[0]
        crossings = [abs(grey - 0.5) < 0.02 * reach for grey in greys]
        assert 0 < sum(crossings) < len(greys)
        assert found.frames == count
        assert found.rate.count == len(greys)
        assert found.rate.value == pytest.approx(sum(crossings) / (count - 1) / len(greys))


def test_every_frame_of_a_translation_flips_a_classifier_of_the_position():
    canvases = torch.zeros(2, 1, 20, 60)
    canvases[0, :, :, 30] = 1
    canvases[1, :, :, 26] = 1
    where = Answer(lambda x: x.sum((1, 2)).argmax(1), classes=40)
    found = stability(
        subject(where, (20, 40), (20, 60)), TensorPictures(canvases), perturbations=["translate"], corruptions=[]
    )
    assert rates(found) == {"translate": 1.0}


def test_noise_is_compared_with_the_unperturbed_frame_and_the_others_with_the_one_before():
    flat = torch.full((3, 1, 8, 8), 0.4)
    noticed = Answer(lambda x: x.amax((1, 2, 3)) - x.amin((1, 2, 3)) > 1e-3)
    found = stability(
        subject(noticed, (8, 8)),
        TensorPictures(flat),
        perturbations=["gaussian-noise", "shot-noise", "brightness"],
        corruptions=[],
    )
    # The frame before would give 1/8: only the first frame is without noise.
    assert rates(found) == {"gaussian-noise": 1.0, "shot-noise": 1.0, "brightness": 0.0}


@pytest.mark.parametrize(
    ("name", "first", "how"),
    [
        ("rotate", 11, lambda i: {"degrees": i - 15}),
        ("translate", 16, lambda i: {"dx": i - 20}),
        ("scale", 20, lambda i: {"scale": 0.4 + 0.025 * i}),
    ],
)
def test_flip_rates_against_a_loop_over_frames(name, first, how):
    canvases, model = pictures(6, 1, 14), linear(81)
    found = stability(subject(model, (9, 9), (14, 14)), TensorPictures(canvases), perturbations=[name], corruptions=[])
    flips = comparisons = 0
    for canvas in canvases[:, 0].numpy():
        before = None
        for i in range(first, first + 9):
            frame = torch.from_numpy(slow.moved(canvas, (9, 9), **how(i))).float()
            answer = model(frame[None, None]).argmax().item()
            if before is not None:
                flips, comparisons = flips + (answer != before), comparisons + 1
            before = answer
    assert 0 < flips < comparisons == 48
    assert rates(found)[name] == pytest.approx(flips / comparisons)


# Corruptions


def corrupted(name, severity, x):
    return CORRUPTIONS[name](x, severity, generators(0, torch.arange(len(x)), name))


@pytest.mark.parametrize(("severity", "sigma"), enumerate((0.08, 0.12, 0.18, 0.26, 0.38), start=1))
def test_gaussian_noise_of_each_severity(severity, sigma):
    found = corrupted("gaussian-noise", severity, torch.full((1, 1, 128, 128), 0.5))
    # Clipping does not move the quartiles.
    low, high = found.quantile(0.25).item(), found.quantile(0.75).item()
    assert high - low == pytest.approx(2 * 0.67449 * sigma, rel=0.03)


@pytest.mark.parametrize(("severity", "photons"), enumerate((60, 25, 12, 5, 3), start=1))
def test_shot_noise_of_each_severity(severity, photons):
    found = corrupted("shot-noise", severity, torch.full((1, 1, 128, 128), 0.2))
    assert torch.allclose(found * photons, (found * photons).round(), atol=1e-4)
    assert (found == 0).float().mean().item() == pytest.approx(math.exp(-0.2 * photons), rel=0.1, abs=0.002)


@pytest.mark.parametrize(("severity", "share"), enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1))
def test_impulse_noise_of_each_severity(severity, share):
    found = corrupted("impulse-noise", severity, torch.full((1, 3, 256, 256), 0.5))
    deviation = math.sqrt(share * (1 - share) / found.numel())
    assert (found != 0.5).float().mean().item() == pytest.approx(share, abs=4 * deviation)


@pytest.mark.parametrize(
    ("severity", "radius", "softness"), [(1, 3, 0.1), (2, 4, 0.5), (3, 6, 0.5), (4, 8, 0.5), (5, 10, 0.5)]
)
def test_defocus_of_each_severity_scales_with_the_crop(severity, radius, softness):
    edge = math.exp(-1 / (2 * softness**2))  # a Gaussian of three taps: its variance is 2 * edge / (1 + 2 * edge)
    for side in (224, 112):
        point = torch.zeros(1, 1, side, side)
        point[0, 0, side // 2, side // 2] = 1
        found = corrupted("defocus-blur", severity, point)[0, 0]
        variance = (found.sum(0) * (torch.arange(side) - side // 2) ** 2).sum().item()
        # A disc's variance along an axis is a quarter of the squared radius, a pixel's own is 1/12; counting in whole
        # pixels is off by less than 0.15.
        wanted = (radius * side / 224) ** 2 / 4 + 2 * edge / (1 + 2 * edge) + 1 / 12
        assert variance == pytest.approx(wanted, abs=0.15)


def test_motion_blur_of_each_severity_has_its_reach_and_an_angle_of_its_own():
    points = torch.zeros(12, 1, 224, 224)
    points[:, :, 112, 112] = 1
    for severity, (radius, sigma) in enumerate(((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), start=1):
        found = corrupted("motion-blur", severity, points)
        weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(2 * radius + 1)]
        centre = sum(k * weight for k, weight in enumerate(weights)) / sum(weights)
        y = (found.sum((1, 3)) * torch.arange(224)).sum(1) - 112
        x = (found.sum((1, 2)) * torch.arange(224)).sum(1) - 112
        assert torch.allclose(torch.hypot(y, x), torch.tensor(centre), atol=0.01)
        angles = torch.rad2deg(torch.atan2(-y, -x))
        assert angles.abs().max() <= 45.01
        assert angles.min() < -5
        assert angles.max() > 5
        assert len(set(angles.tolist())) == 12


def test_zoom_blur_of_each_severity():
    x = pictures(1, 1, 10)
    zooms = (np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.02))
    zooms += (np.arange(1, 1.26, 0.02), np.arange(1, 1.31, 0.03))
    plane = x[0, 0].numpy()
    for severity, factors in enumerate(zooms, start=1):
        wanted = np.mean([plane, *(slow.moved(plane, (10, 10), scale=factor) for factor in factors)], axis=0)
        assert np.allclose(corrupted("zoom-blur", severity, x)[0, 0].numpy(), wanted, atol=1e-4)


def test_brightness_contrast_and_pixelate_of_each_severity():
    x = pictures(1, 3, 28)
    plane = x[0].numpy()
    mean = plane.mean((1, 2), keepdims=True)
    strengths = zip((0.1, 0.2, 0.3, 0.4, 0.5), (0.4, 0.3, 0.2, 0.1, 0.05), (16, 14, 11, 8, 7), strict=True)
    for severity, (amount, factor, side) in enumerate(strengths, start=1):
        h, s, v = colorsys.rgb_to_hsv(*plane[:, 3, 5].tolist())
        wanted = colorsys.hsv_to_rgb(h, s, min(v + amount, 1))
        assert corrupted("brightness", severity, x)[0, :, 3, 5].tolist() == pytest.approx(wanted, abs=1e-5)
        assert np.allclose(corrupted("contrast", severity, x)[0].numpy(), mean + (plane - mean) * factor, atol=1e-5)
        image = Image.fromarray(plane[1])
        small = image.resize((side, side), Image.Resampling.BOX)
        wanted = np.asarray(small.resize((28, 28), Image.Resampling.BOX))
        assert np.allclose(corrupted("pixelate", severity, x)[0, 1].numpy(), wanted, atol=1e-5)


def test_jpeg_of_each_severity():
    x = F.avg_pool2d(pictures(1, 1, 52), 5, 1)
    for severity, quality in enumerate((25, 18, 15, 10, 7), start=1):
        buffer = io.BytesIO()
        Image.fromarray((x[0, 0] * 255).round().byte().numpy()).save(buffer, "JPEG", quality=quality)
        wanted = np.asarray(Image.open(buffer), dtype=np.float32) / 255
        difference = np.abs(corrupted("jpeg", severity, x)[0, 0].numpy() - wanted)
        assert difference.mean() < 1 / 255  # two builds of libjpeg may round differently


def test_all_corruptions_grow_with_severity_and_stay_within_0_and_1():
    x = F.avg_pool2d(pictures(2, 3, 116), 5, 1)
    x = (x - x.amin()) / (x.amax() - x.amin())
    for name in CORRUPTIONS:
        strength = []
        for severity in (1, 2, 3, 4, 5):
            found = corrupted(name, severity, x)
            assert found.shape == x.shape
            assert found.dtype == x.dtype
            assert found.min() >= 0, name
            assert found.max() <= 1 + 1e-6, name
            strength.append((found - x).square().mean().item())
        assert strength[0] > 0
        if name == "zoom-blur":  # published so: 16 small steps blur as much as 11 larger ones
            assert strength[4] > strength[0]
        else:
            assert strength == sorted(strength), name


def test_agreement_and_accuracy_of_a_threshold_under_brightness():
    greys = [0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65]
    labels = [0, 1, 0, -1, -1, 1, 0]
    canvases = torch.tensor(greys).reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6)
    found = stability(
        subject(Answer(lambda x: x.mean((1, 2, 3)) > 0.5), (6, 6)),
        TensorPictures(canvases, torch.tensor(labels)),
        perturbations=[],
        corruptions=["brightness"],
        severities=(5, 2),
        batch_size=3,
    )
    assert found.flip_rates == ()
    (result,) = found.corruptions
    assert result.corruption == "brightness"
    for amount, accuracy, agreement in zip((0.5, 0.2), result.accuracy, result.agreement, strict=True):
        answers = [int(grey + amount > 0.5) for grey in greys]
        agrees = [answer == (grey > 0.5) for grey, answer in zip(greys, answers, strict=True)]
        right = [answer == label for answer, label in zip(answers, labels, strict=True) if label >= 0]
        assert (agreement.value, agreement.count) == (pytest.approx(sum(agrees) / 7), 7)
        assert (accuracy.value, accuracy.count) == (pytest.approx(sum(right) / 5), 5)


# Both


def test_a_constant_classifier_never_flips():
    labels = torch.tensor([1, 0, 1, -1])
    found = stability(
        subject(Answer(lambda x: torch.ones(len(x))), (8, 8), (12, 12), channels=3),
        TensorPictures(pictures(4, 3), labels),
    )
    assert rates(found) == dict.fromkeys(PERTURBATIONS, 0.0)
    assert [result.corruption for result in found.corruptions] == list(CORRUPTIONS)
    for result in found.corruptions:
        assert [agreement.value for agreement in result.agreement] == [1.0] * 5
        assert [accuracy.value for accuracy in result.accuracy] == [pytest.approx(2 / 3)] * 5


def test_without_labels_there_is_no_accuracy():
    found = stability(subject(linear(64), (8, 8)), TensorPictures(pictures(2, 1, 8)), perturbations=[])
    assert all(result.accuracy == () and len(result.agreement) == 5 for result in found.corruptions)


@pytest.fixture(scope="module")
def network():
    """Answers by small differences between pixels, so that little noise shows."""
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 5))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model[0].weight.data -= model[0].weight.data.mean((1, 2, 3), keepdim=True)
    model[3].bias.data *= 0.1  # decides on pictures that JPEG made flat
    return subject(model, (12, 12), (16, 16), channels=3)


def test_the_batch_size_changes_nothing_and_the_seed_the_noise(network):
    data = TensorPictures(0.45 + 0.1 * pictures(7, 3, 16), torch.arange(7) % 5)
    found = stability(network, data, seed=5)
    assert stability(network, data, seed=5, batch_size=3) == found
    assert stability(network, data, seed=5, batch_size=1) == found
    other = stability(network, data, seed=6)
    changed = {name for name, rate in rates(found).items() if rates(other)[name] != rate}
    assert changed == {"gaussian-noise", "shot-noise"}
    pairs = zip(found.corruptions, other.corruptions, strict=True)
    changed = {before.corruption for before, after in pairs if before != after}
    assert {"gaussian-noise"} <= changed <= {"gaussian-noise", "shot-noise", "impulse-noise", "motion-blur"}


def test_a_selection_gives_the_figures_of_the_whole(network):
    data = TensorPictures(0.45 + 0.1 * pictures(5, 3, 16))
    whole = stability(network, data)
    part = stability(network, data, perturbations=["shot-noise"], corruptions=["impulse-noise"], severities=(4,))
    assert part.flip_rates == (whole.flip_rates[1],)
    assert part.corruptions[0].agreement == (whole.corruptions[2].agreement[3],)


def test_watch_counts_forwards():
    model = Answer(lambda x: x.mean((1, 2, 3)) > 0.5)
    told = []
    data = TensorPictures(pictures(5, 1, 8))
    stability(
        subject(model, (8, 8)), data, severities=(1, 2), batch_size=2, watch=lambda *progress: told.append(progress)
    )
    assert told == [("stability", done, model.forwards) for done in range(1, model.forwards + 1)]
    assert model.forwards == 3 * (1 + 9 * 9 + 10 * 2)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"perturbations": ["snow"]}, "no perturbation 'snow': give some of gaussian-noise, "),
        ({"corruptions": ["fog"]}, "no corruption 'fog': give some of gaussian-noise, "),
        ({"severities": (1, 6)}, "severity 6: give severities of 1 to 5"),
        ({"frames": 1}, "1 frames: give at least 2"),
    ],
)
def test_wrong_choices_are_one_clear_line(wrong, says):
    with pytest.raises(BlurifyError, match=says) as caught:
        stability(subject(linear(64), (8, 8)), TensorPictures(pictures(2, 1, 8)), **wrong)
    assert "\n" not in str(caught.value)


def test_a_dense_model_is_refused():
    with pytest.raises(BlurifyError, match="stability is measured on classifiers only, Conv2d gives a label map"):
        stability(subject(nn.Conv2d(1, 3, 1), (8, 8)), TensorPictures(pictures(2, 1, 8)))
