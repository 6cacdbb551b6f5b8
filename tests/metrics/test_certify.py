"""The certificate: what adaptive polyphase sampling reaches on whole networks, and the operations that break it.

Here also what the plan says of phases, because a network that is exact is the test of who follows whom.
"""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet, mobilenetv2

import blurify
from blurify.cli import main
from blurify.demo import held_out, trained_network
from blurify.metrics.certify import certify
from blurify.proof.filters import wrong_filters
from blurify.spec.plan import Plan

IMAGE = torch.zeros(1, 3, 32, 32)


def resnet() -> nn.Module:
    block = timm.models.resnet.BasicBlock
    return timm.models.resnet.ResNet(block, (1, 1, 1, 1), channels=(4, 6, 8, 8), stem_width=4, num_classes=5)


def vgg(positions: int = 1) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 4), (4, 6), (6, 8)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(positions), nn.Flatten(), nn.Linear(8 * positions**2, 5))


class UNet(nn.Module):
    """Three levels; one max pool for all of them; upsampling by transposed convolutions, or F.interpolate."""

    def __init__(self, up: str = "transposed", mode: str = "nearest") -> None:
        super().__init__()
        widths, self.mode = (4, 6, 8), mode
        self.down = nn.ModuleList(self.block(a, b) for a, b in ((3, 4), (4, 6), (6, 8)))
        self.pool = nn.MaxPool2d(2)
        transposed = (nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in range(2))
        self.up = nn.ModuleList(transposed if up == "transposed" else ())
        extra = 0 if up == "transposed" else 2
        self.out = nn.ModuleList(self.block(2 * widths[i] + extra, widths[i]) for i in range(2))
        self.head = nn.Conv2d(4, 2, 1)

    @staticmethod
    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    def larger(self, x: Tensor, level: int) -> Tensor:
        return self.up[level](x) if len(self.up) else F.interpolate(x, scale_factor=2, mode=self.mode)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x)
        b = self.down[1](self.pool(a))
        c = self.down[2](self.pool(b))
        if len(self.up):
            b = self.out[1](torch.cat([self.up[1](c), b], 1))
            return self.head(self.out[0](torch.cat([self.up[0](b), a], 1)))
        b = self.out[1](torch.cat([F.interpolate(c, scale_factor=2, mode=self.mode), b], 1))
        return self.head(self.out[0](torch.cat([F.interpolate(b, scale_factor=2, mode=self.mode), a], 1)))


NETWORKS = {
    "resnet": resnet,
    "mobilenet": lambda: mobilenetv2.MobileNetV2(num_classes=5, width_mult=0.2),
    "vgg": vgg,
    "densenet": lambda: densenet.DenseNet(4, (1, 1, 1, 1), 8, num_classes=5),
    "unet": UNet,
    "unet-interpolate": lambda: UNet("interpolate"),
    "unet-bilinear": lambda: UNet("interpolate", "bilinear"),
}


def with_weights(model: nn.Module) -> nn.Module:
    """Random weights, and statistics of batch norms that differ by channel."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # also the last ones of blocks, which begin at zero
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.3)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_adaptive_sampling_is_exact_for_a_thousand_circular_shifts(name):
    model = with_weights(NETWORKS[name]())
    exact = blurify.convert(model, "aps", example_inputs=IMAGE, verify=name in ("resnet", "unet"))
    found = certify(exact, circular=True, shifts=100 if "-" in name else 1000, batch=250)
    assert found and found.equal == found.shifts and found.worst <= 1e-5, found.lines()
    assert found.in_float64 == 0
    blurred = blurify.convert(model, "full", example_inputs=IMAGE, verify=False)
    blurred = certify(blurred, circular=True, shifts=20)
    assert not blurred and blurred.worst > 1e-4


def test_the_demos_trained_network_is_exact_on_digits():
    digits = held_out().images[:6].float() / 16
    images = F.interpolate(F.pad(digits[:, None], (6, 6, 6, 6)), scale_factor=2)
    model = trained_network()
    exact = blurify.convert(model, "aps", example_inputs=images[:1])
    found = certify(exact, images=images, circular=True, shifts=1000, batch=250)
    assert found and found.same_answer == 1000, found.lines()
    original = certify(model, images=images, circular=True, shifts=100)
    assert not original and original.same_answer < 100


def test_a_model_whose_own_padding_is_circular_needs_no_help():
    model = with_weights(vgg())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    exact = blurify.convert(model, "aps", example_inputs=IMAGE)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for shift in ((1, 0), (5, 30), (17, 3)):
            assert torch.allclose(exact(torch.roll(x, shift, (2, 3))), exact(x), rtol=0, atol=1e-6)
    assert certify(exact, shifts=50)


# --- who follows whom


def test_the_shortcut_follows_the_main_path():
    plan = blurify.inspect(resnet(), IMAGE, "aps")
    phases = {s.name: e.blur.phase for s in plan.converted for e in s.edits if e.blur is not None}
    main = next(iter(next(s for s in plan.sites if s.name == "layer2.0.conv1").blur_paths))
    assert phases["layer2.0.conv1"].role == "leads"
    assert (phases["layer2.0.downsample.0"].role, phases["layer2.0.downsample.0"].groups) == ("follows", (main,))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_without_the_shared_phase_a_resnet_is_not_exact():
    model = with_weights(resnet())
    exact = blurify.convert(model, "aps", example_inputs=IMAGE)
    follower = next(m for m in exact.modules() if getattr(m, "role", "") == "follows")
    follower.role = "leads"
    follower.phase0 = type(follower.phase0)()
    found = certify(exact, circular=True, shifts=40)
    assert not found and "different phases" in str(found.found)


def test_each_upsampling_restores_the_phase_of_its_own_level():
    plan = blurify.inspect(UNet(), IMAGE, "aps")
    restored = [(s.name, e.blur.phase) for s in plan.sites if s.kind == "upsample" for e in s.edits]
    assert [(name, phase.groups, phase.back) for name, phase in restored] == [
        ("up.1", ("pool.blurpool",), (0,)),
        ("up.0", ("pool.blurpool",), (1,)),
    ]


class Looped(nn.Module):
    """A U-Net whose levels are enlarged by one call in a loop: of a function, or of one module."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.down = nn.ModuleList([UNet.block(3, 4), *(UNet.block(4, 4) for _ in range(3))])
        self.up = nn.ModuleList(UNet.block(4, 4) for _ in range(3))
        modules = {"module": nn.Upsample(scale_factor=2), "transposed": nn.ConvTranspose2d(4, 4, 2, 2)}
        self.enlarge = modules.get(how)

    def forward(self, x: Tensor) -> Tensor:
        levels = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            levels.append(x)
        x = levels.pop()
        for block in self.up:
            skip = levels.pop()
            x = F.interpolate(x, skip.shape[2:]) if self.enlarge is None else self.enlarge(x)
            x = block(x + skip)
        return x


@pytest.mark.parametrize("how", ["function", "module", "transposed"])
def test_one_upsampling_in_a_loop_restores_the_phase_of_each_level(how, tmp_path):
    exact = blurify.convert(with_weights(Looped(how)), "aps", example_inputs=IMAGE)
    (site,) = (site for site in blurify.plan_of(exact).sites if site.kind == "upsample")
    assert site.action == "blur"
    blurify.save(exact, tmp_path / "net.pt")
    exact = blurify.load(tmp_path / "net.pt", allow=[f"{__name__}.Looped"])
    for images in (None, torch.randn(2, 3, 48, 16)):  # whatever the size
        found = certify(exact, images=images, circular=True, shifts=60)
        assert found, found.lines()
    plan = blurify.plan_of(exact)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert not wrong_filters(exact, plan)
    exact.get_submodule(next(iter(site.blur_paths))).parts = (2, 1)
    assert "sample adaptively" in wrong_filters(exact, plan)[0]


# --- what breaks it


class Apart(nn.Module):
    """Two branches of one size that one expression enlarges, and that choose phases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(UNet.block(3, 4), nn.MaxPool2d(2)) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.interpolate(branch(x), scale_factor=2) for branch in self.branches]


def test_an_upsampling_that_can_not_restore_its_phase_is_named():
    exact = blurify.convert(with_weights(Apart()), "aps", example_inputs=IMAGE)
    found = certify(exact, circular=True, shifts=20)
    assert not found and (found.found.path, found.found.operation) == ("", "interpolate"), found.lines()
    assert "can't be restored" in found.found.why


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
        self.table = nn.Parameter(torch.randn(1, 4, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.table).relu().mean((2, 3))


def circular(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
    return model


def padded() -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


BREAKS = {
    "zeros": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), "0", "pads with zeros"),
    "pad": (padded, "1", "padded with zeros"),
    "stride": (lambda: circular(vgg()), "3", "fixed phase"),
    "table": (Positions, "", "position embedding"),
    "flatten": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), "2", "global pooling"),
    "odd": (lambda: nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), "0", "whole number"),
    "uneven": (lambda: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(7)), "1", "windows are not alike"),
    "stretched": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), "", "beyond its border"),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 4, 2, 1), "", "beyond its border"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_operation_that_breaks_it_is_named(name):
    make, path, why = BREAKS[name]
    found = certify(with_weights(make()), example_inputs=torch.zeros(1, 3, 32, 32), shifts=20)
    assert not found and found.found is not None
    assert (found.found.path, why in found.found.why) == (path, True), found.lines()


def test_a_blurred_model_is_told_what_would_help():
    model = blurify.convert(circular(vgg()), "full", example_inputs=IMAGE)
    found = certify(with_weights(model), shifts=20)
    assert found.found.path == "3" and "'aps'" in found.found.why


def test_a_convolution_alone_is_certified_and_so_is_a_constant():
    assert certify(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), shifts=20)
    assert certify(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), images=torch.randn(2, 3, 8, 8), shifts=20)


# --- the command


def test_the_command_certifies_says_what_it_does_not_cover_and_exits_by_it(capsys, tmp_path):
    file = tmp_path / "net.pt"
    blurify.save(blurify.convert(trained_network(), "aps", example_inputs=torch.zeros(1, 1, 40, 40)), file)
    command = ["certify", str(file), "--shifts", "40", "--device", "cpu"]
    assert main([*command, "--circular", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["certified"] and said["equal"] == said["shifts"] == 40 and "one-pixel shifts" in said["not_covered"]
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("not certified: ") and any("stem.0 (conv2d)" in line for line in lines)
    assert main(["certify", str(tmp_path / "none.pt")]) == 2
