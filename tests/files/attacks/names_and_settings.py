"""Attacks on what happens after a checkpoint's pickle is read: names and settings of modules (team c)."""

from pathlib import Path

import torch
from torch import nn


def _net(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), *layers
    )


def attack_surrogate_module_name(path: Path, marker: Path) -> None:
    """A lone surrogate in a module's name (pickle reads text with surrogatepass) can't be printed as UTF-8."""
    net = _net()
    net._modules["\ud800"] = nn.MaxPool2d(2)
    torch.save(net, path)


def attack_terminal_name(path: Path, marker: Path) -> None:
    """Escape sequences, a newline and rich markup in a module's name: they reach the terminal of who inspects."""
    net = _net()
    net._modules["\x1b]0;pwned\x07\x1b[2J\n[bold red]ok[/]\r"] = nn.MaxPool2d(2)
    torch.save(net, path)


def attack_huge_integer_setting(path: Path, marker: Path) -> None:
    """An integer of 5,000 digits as a stride of a layer that doesn't run: Python refuses to print it (ValueError)."""
    net = _net(nn.MaxPool2d(2))
    net[2].aux = nn.Conv2d(8, 8, 3, stride=2)
    net[2].aux.stride = (10**5000, 10**5000)
    torch.save(net, path)


def attack_cyclic_module(path: Path, marker: Path) -> None:
    """A module that contains itself: walks over modules that keep no memo never end."""
    net = _net(nn.MaxPool2d(2))
    net[2]._modules["loop"] = net
    torch.save(net, path)


def attack_training_is_a_tensor(path: Path, marker: Path) -> None:
    """`training` is a tensor of two elements: `if self.training` raises in torch's own code."""
    net = _net(nn.MaxPool2d(2), nn.BatchNorm2d(8))
    net[-1].training = torch.zeros(2)
    net[2].training = torch.zeros(2)
    torch.save(net, path)
