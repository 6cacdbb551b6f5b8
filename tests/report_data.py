"""A report with everything on it, built by hand: what the tests of the page and of the browser show."""

from __future__ import annotations

import math
from typing import Any

from blurify.metrics.evidence import (
    Answer,
    Evidence,
    Flip,
    Flips,
    Grid,
    Latency,
    ShiftCurve,
    SiteFeatures,
    SiteMaps,
    SiteSpectra,
    Spectrum,
    Timing,
)
from blurify.metrics.packing import pack
from blurify.metrics.pareto import ParetoPoint, ParetoTable
from blurify.metrics.results import (
    Agreement,
    Aliasing,
    Consistency,
    CorruptionResult,
    Equivariance,
    Estimate,
    FlipRate,
    LayerMap,
    Measurement,
    SiteAliasing,
    Stability,
    WorstCase,
)
from blurify.metrics.trade_off import RankedSite, Ranking, Step
from blurify.spec.edits import Blur, BlurOutput, SetStride
from blurify.spec.methods import Taps
from blurify.spec.plan import Plan, Site
from blurify.spec.recipes import Recipe

STRIDES = (("conv1", 2), ("maxpool", 4), ("layer1", 4), ("layer2", 8), ("layer3", 16), ("layer4", 16))
PERTURBATIONS = ("gaussian-noise", "shot-noise", "motion-blur", "brightness", "translate", "rotate", "tilt", "scale")
CORRUPTIONS = ("gaussian-noise", "defocus-blur", "brightness", "contrast", "pixelate", "jpeg")
IMAGES = 480


def values(mean: float, count: int) -> list[float]:
    """One value a picture, around a mean: most of it the picture's own, the same for all figures."""
    wanted = [0.2 * math.sin(index) + 0.02 * math.sin(1000 * mean * index) for index in range(count)]
    offset = mean - math.fsum(wanted) / count
    return [value + offset for value in wanted]


def estimate(value: float, spread: float = 0.02, count: int = IMAGES) -> Estimate:
    return Estimate(value, max(value - spread, 0.0), min(value + spread, 1.0), count, pack(values(value, count)))


def layer_map(name: str, stride: int, scale: float) -> LayerMap:
    """0 for no shift, most for a shift by half the stride, 0 again where the stride is 1."""
    waves = [math.sin(math.pi * shift / stride) ** 2 for shift in range(stride)]
    rows = tuple(tuple(scale * (1 - (1 - dy) * (1 - 0.7 * dx)) for dx in waves) for dy in waves)
    kind, size = "Conv2d" if name == "conv1" else "Sequential", 224 // stride
    mean = math.fsum(map(math.fsum, rows)) / stride**2
    return LayerMap(name, kind, (stride, stride), (64, size, size), rows, estimate(mean, 0.1, 8))


def measurement(*, converted: bool = False, **changes: Any) -> Measurement:
    """Realistic figures of all sections; those of a converted model are better."""
    gain = 1.0 if converted else 0.0
    parts: dict[str, Any] = {
        "model": "torchvision/resnet18" + (" + blurify (zhang2019)" if converted else ""),
        "data": "pictures/val",
        "images": IMAGES,
        "settings": {"seed": 0, "crop": [224, 224], "canvas": [256, 256], "interpolation": "bilinear", "device": "cpu"},
        "converted": converted,
        "consistency": Consistency(
            agreement=estimate(0.8511 + 0.0725 * gain),
            pixel_change=estimate(0.0612 - 0.0287 * gain, 0.006),
            pixel_flips=estimate(0.0941 - 0.0505 * gain, 0.012),
            accuracy=estimate(0.6974 + 0.0081 * gain, 0.041),
        ),
        "equivariance": Equivariance(
            layers=(
                LayerMap("bn1", "BatchNorm2d", (1, 1), (64, 224, 224), ((0.0,),)),
                *(layer_map(name, stride, (0.08 + 0.022 * stride) * (1 - 0.55 * gain)) for name, stride in STRIDES),
            ),
            images=8,
            input_shape=(3, 224, 224),
            largest_shift=15,
        ),
        "aliasing": Aliasing(
            sites=tuple(
                SiteAliasing(site.name, site.kind, site.stride, converted and site.action == "blur", estimate(share))
                for site, share in zip(
                    plan().sites,
                    (0.1201, 0.2412 - 0.2012 * gain, 0.3127 - 0.2517 * gain, 0.2804 - 0.2014 * gain, 0.0021),
                    strict=True,
                )
            ),
            images=IMAGES,
        ),
        "stability": Stability(
            flip_rates=tuple(
                FlipRate(name, 9, estimate((0.02 + 0.011 * number) * (1 - 0.4 * gain), 0.007))
                for number, name in enumerate(PERTURBATIONS)
            ),
            corruptions=tuple(
                CorruptionResult(
                    name,
                    accuracy=tuple(estimate(0.66 - 0.03 * number - 0.085 * level + 0.03 * gain) for level in range(5)),
                    agreement=tuple(estimate(0.93 - 0.03 * number - 0.1 * level + 0.02 * gain) for level in range(5)),
                )
                for number, name in enumerate(CORRUPTIONS)
            ),
        ),
        "worst_case": WorstCase(
            translations=(-24.0, -12.0, 0.0, 12.0, 24.0),
            rotations=(-30.0, -15.0, 0.0, 15.0, 30.0),
            steady=estimate(0.2371 + 0.0943 * gain, 0.03),
            unmoved=estimate(0.6974 + 0.0081 * gain, 0.041),
            mean=estimate(0.5122 + 0.0314 * gain, 0.02),
            worst=estimate(0.2039 + 0.0642 * gain, 0.035),
        ),
    }  # fmt: skip
    return Measurement(**{**parts, **changes})


def plan(first: str = "conv1") -> Plan:
    """Five sites of a ResNet, with the name of the first to choose."""
    blur = Blur((2, 2), (2, 2), Taps((0.125, 0.375, 0.375, 0.125)))

    def site(name: str, kind: str, kernel: int, size: int, channels: tuple[int, int], **more: Any) -> Site:
        return Site(
            name,
            kind,
            (kernel, kernel),
            (2, 2),
            (1, channels[0], size, size),
            (1, channels[1], size // 2, size // 2),
            **more,
        )

    def blurred(rule: str, where: str, macs: int) -> dict[str, Any]:
        edits = (SetStride("x", (1, 1)), BlurOutput("y", blur))
        reason = "the blur goes behind the nonlinearity"
        return {
            "action": "blur",
            "rule": rule,
            "reason": reason,
            "placement": where,
            "extra_macs": macs,
            "edits": edits,
        }

    stem = {
        "action": "skip",
        "rule": "stem",
        "reason": "reads the image: its dense version would cost most; the recipe 'full' converts it",
    }
    whole = {"action": "skip", "rule": "already-filtered", "reason": "its kernel is a constant low-pass filter"}
    return Plan(
        recipe=Recipe(),
        sites=(
            site(first, "conv", 7, 224, (3, 64), **stem),
            site("maxpool", "maxpool", 3, 112, (64, 64), **blurred("maxpool", "in maxpool", 12_845_056)),
            site("layer2.0.conv1", "conv", 3, 56, (64, 128), **blurred("after-activation", "in layer2.0", 175_000_000)),
            site("layer3.0.conv1", "conv", 3, 28, (128, 256), **blurred("after-activation", "in layer3.0", -2_000)),
            site("pool", "avgpool", 2, 14, (256, 256), **whole),
        ),
        macs=1_814_073_344,
        model="torchvision.models.resnet.ResNet",
        input_shapes=((1, 3, 224, 224),),
    )  # fmt: skip


def ranking(*, classes: bool = True, first: str = "maxpool") -> Ranking:
    """The three sites of the plan that are blurred, with the name of the first to choose; one step removes nothing."""

    def agreement(kept: float) -> Agreement:
        if not classes:
            return Agreement(100, relative_error=1 - kept)
        return Agreement(100, same=estimate(kept, 0.06, 100), divergence=Estimate(2 - 2 * kept, 0.0, 2.0, 100))

    def site(name: str, kind: str, kept: float, before: float, after: float) -> RankedSite:
        return RankedSite(name, kind, agreement(kept), estimate(before, count=32), estimate(after, count=32))

    return Ranking(
        "torchvision/resnet18",
        "pictures/val",
        Recipe(name="gentle"),
        (
            site(first, "maxpool", 0.97, 0.2412, 0.0412),
            site("layer2.0.conv1", "conv", 0.88, 0.3127, 0.1127),
            site("layer3.0.conv1", "conv", 0.93, 0.2804, 0.2904),
        ),
        (Step(1, agreement(0.97), 0.2397), Step(2, agreement(0.84), 0.4794), Step(3, agreement(0.86), 0.4674)),
        32,
    )


def pareto(*, measured: bool = True, classes: bool = True, first: str = "maxpool") -> ParetoTable:
    """Six partial conversions: the third dominated by the second, the last one off the way, and the present one."""

    def agreement(kept: float) -> Agreement | None:
        if not measured:
            return None
        if not classes:
            return Agreement(100, relative_error=1 - kept)
        return Agreement(100, same=estimate(kept, 0.06, 100), divergence=Estimate(2 - 2 * kept, 0.0, 2.0, 100))

    def point(steps: int | None, what: tuple[str, ...], sites: int, macs: int, size: int, kept: float, left: float,
              *, present: bool = False) -> ParetoPoint:  # fmt: skip
        recipe = Recipe(name="zhang2019, in part", skip_names=tuple("abc"[sites:]))
        return ParetoPoint(steps, what, sites, macs, size, agreement(kept), 0.5 * left, recipe, present)

    return ParetoTable(
        "torchvision/resnet18",
        "pictures/val" if measured else "",
        Recipe(),
        1_000_000,
        200_000,
        3,
        7,
        (
            point(0, ("nothing",), 0, 0, 0, 1.0, 1.0),
            point(1, (f"{first}: average of two samples",), 1, 0, -20_000, 0.9, 0.7),
            point(2, ("layer2.0.conv1: before the convolution",), 2, 12_300, -20_000, 0.9, 0.71),
            point(6, ("layer2.0.conv1: as the recipe says", "b: as the recipe says", "c: as the recipe says",
                      "d: as the recipe says"), 3, 160_000, 50_000, 0.7, 0.3),
            point(7, ("e: as the recipe says",), 3, 300_000, 80_000, 0.72, 0.1),
            point(None, ("the present conversion",), 2, 90_000, 10_000, 0.95, 0.4, present=True),
        ),
        32 if measured else 0,
        3 if measured else 0,
    )  # fmt: skip


PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGP8z8DAwMDAxAADCBYAGBEBA0G3u0AA"
    "AAAASUVORK5CYII="
)
NAMES = ("tiger cat", "Egyptian cat", "crane", "drilling platform", "palace")


def agreement(same: float = 0.38, count: int = 40) -> Agreement:
    answers = [float(index < round(same * count)) for index in range(count)]
    return Agreement(
        count,
        same=Estimate.of(answers),
        divergence=Estimate(2.1, 1.5, 2.7, count),
        sure=Estimate.of(answers),
        confidence=Estimate(0.62, 0.55, 0.69, count),
        confidence_other=Estimate(0.4, 0.33, 0.47, count),
    )


def evidence(models: int = 2, *, name: str = "chelsea.png", first: str = NAMES[0], kept: float = 0.38) -> Evidence:
    """Evidence of some models: those after the first are steadier; with the name of a picture and a class to choose."""
    shown = (PNG, PNG)

    def flip(number: int, picture: str) -> Flip:
        one, other = Answer(number, 0.43, first if number == 0 else NAMES[number]), Answer(number + 1, 0.41, NAMES[1])
        return Flip(picture, ((0, number - 1), (0, number)), ((one, other), *[(one, one)] * (models - 1)), shown)

    shifts = tuple(range(-8, 9))

    def curve(picture: str, depth: float) -> ShiftCurve:
        waves = [
            tuple(round(0.6 + depth * math.sin(2.1 * shift) / (1 + 4 * model), 6) for shift in shifts)
            for model in range(models)
        ]
        return ShiftCurve(picture, "x", shifts, (Answer(0, 0.6, first),) * models, tuple(waves), PNG)

    def maps(model: int) -> SiteMaps:
        def grid(part: int) -> Grid:
            cells = [[math.sin(0.3 * y + part) * math.cos(0.2 * x) for x in range(28)] for y in range(28)]
            return Grid.of(cells, -1.0, 1.0)

        return SiteMaps(grid(0), grid(1), grid(2), 0.44 / (1 + 5 * model))

    edges = tuple(index / 8 for index in range(17))
    power = [
        tuple(10.0 / (1 + edge) ** (3 + 9 * min(model, 1) * (edge > 0.5)) for edge in edges[:-1])
        for model in range(models)
    ]
    times = [
        Timing(0.02 * (1 + 0.3 * m), 0.019, 0.031, 0.02 * (1 + 0.3 * m), 1 + 0.3 * m, 1.0, 1.5) for m in range(models)
    ]
    return Evidence(
        flips=Flips(24, 16, (12, 5, 4)[:models], tuple(flip(n, name if n == 0 else f"{n}.png") for n in range(4))),
        curves=(curve(name, 0.35), curve("b.png", 0.2), curve("c.png", 0.1)),
        features=SiteFeatures("maxpool", name, 2, 60, tuple(map(maps, range(models))), PNG),
        spectra=SiteSpectra(
            "maxpool", (2, 2), edges, 8, tuple(Spectrum(p, 0.24 / (1 + 5 * m)) for m, p in enumerate(power))
        ),
        latency=Latency(tuple(times), 15, 1, (3, 224, 224), "cpu", "A Processor"),
        agreements=tuple(agreement(kept if index == 0 else 0.93) for index in range(models - 1)),
    )
