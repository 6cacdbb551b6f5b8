"""Activations of complex numbers: written by their parts, they are one nonlinearity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify

SIGNAL = torch.randn(1, 2, 17, 14, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))

BY_PARTS = {
    "two relus": lambda x: torch.complex(x.real.relu(), x.imag.relu()),
    "functions": lambda x: torch.complex(F.relu(torch.real(x)), F.relu(torch.imag(x))),
    "by the imaginary unit": lambda x: F.relu(x.real) + 1j * F.relu(x.imag),
    "as a last dimension": lambda x: torch.view_as_complex(F.relu(torch.view_as_real(x))),
}


class Net(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.complex128)
        self.down = nn.Conv2d(3, 3, 3, 2, 1, dtype=torch.complex128)
        self.last = nn.Conv2d(3, 3, 3, dtype=torch.complex128)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.down(self.first(x))))


@pytest.mark.parametrize("name", BY_PARTS)
def test_the_blur_goes_behind_both_parts(name: str) -> None:
    torch.manual_seed(0)
    net = Net(BY_PARTS[name]).eval()
    out = blurify.convert(net, example_inputs=SIGNAL)
    assert [site.rule for site in blurify.plan_of(out).sites] == ["after-activation"]
    with torch.no_grad():
        net.down.stride = (1, 1)
        dense = BY_PARTS[name](net.down(net.first(SIGNAL)))
        blur = blurify.BlurPool2d(2)
        expected = net.last(torch.complex(blur(dense.real), blur(dense.imag)))
    torch.testing.assert_close(out(SIGNAL), expected)


def test_parts_without_an_activation_bend_nothing() -> None:
    net = Net(lambda x: torch.complex(x.real, -x.imag))
    assert [site.rule for site in blurify.inspect(net, SIGNAL).sites] == ["blurred-input"]
