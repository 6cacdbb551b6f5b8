"""Models on other devices and of other numbers than the CPU's float32."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import blurify
from blurify.nn import BlurPool2d


def test_filters_go_where_the_model_is():
    """Shown on the meta device, the only other one that every machine has."""
    with torch.device("meta"):
        model = timm.create_model("test_resnet")
    converted = blurify.convert(model, verify=False)
    kernels = [buffer for name, buffer in converted.named_buffers() if "kernel" in name]
    assert kernels and all(kernel.is_meta for kernel in kernels)
    assert all(isinstance(value.device, torch.device) and value.is_meta for value in converted.state_dict().values())


def test_built_without_data_and_filled_by_assignment():
    torch.manual_seed(0)
    original = timm.create_model("test_resnet").eval()
    with torch.device("meta"):
        empty = timm.create_model("test_resnet").eval()
    converted = blurify.convert(empty, verify=False)
    converted.load_state_dict(original.state_dict(), strict=True, assign=True)
    image = torch.randn(1, 3, 64, 64)
    expected = blurify.convert(original, verify=False)(image)
    assert torch.equal(converted(image), expected)
    assert not torch.equal(original(image), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_with_the_inputs_of_input_shape(dtype):
    model = timm.create_model("test_resnet").eval().to(dtype)
    converted = blurify.convert(model, example_inputs=torch.randn(1, 3, 64, 64))
    assert converted(torch.randn(1, 3, 64, 64, dtype=dtype)).dtype == dtype
    assert blurify.proof_of(converted) is not None


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, dtype=torch.complex64)
        self.conv = nn.Conv2d(8, 8, 3, 2, 1, dtype=torch.complex64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.conv(torch.complex(x.real.relu(), x.imag.relu()))
        return torch.complex(x.real.relu(), x.imag.relu())


@pytest.mark.parametrize("inputs", [None, torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32, dtype=torch.complex64)])
def test_complex_weights(inputs):
    model = Complex().eval()
    converted = blurify.convert(model, example_inputs=inputs)
    x = torch.randn(1, 3, 33, 33, dtype=torch.complex64)
    with torch.no_grad():
        y = model.stem(x)
        y = torch.complex(y.real.relu(), y.imag.relu())
        y = F.conv2d(y, model.conv.weight, model.conv.bias, 1, 1)
        blur = BlurPool2d(2)  # the activation is made of two halves: the blur goes behind both
        torch.testing.assert_close(converted(x), torch.complex(blur(y.real.relu()), blur(y.imag.relu())))


def test_an_optimizer_made_before_goes_on_with_inplace():
    model = timm.create_model("test_resnet")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    converted = blurify.convert(model, inplace=True)
    assert converted is model
    before = [parameter.clone() for parameter in converted.parameters()]
    converted(torch.randn(4, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(one, other) for one, other in zip(before, converted.parameters(), strict=True))
    assert "optimizer" in (blurify.convert.__doc__ or "")
