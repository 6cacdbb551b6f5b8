"""Lie derivatives: against forward-mode derivatives, waves that fold at a stride, and layers that are exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.metrics import Preprocessing, Subject, TensorPictures, measure
from blurify.metrics.differences import differences
from blurify.metrics.equivariance import UnknownLayerError
from blurify.metrics.lie_derivative import lie_derivative


def subject(model: nn.Module, size: int = 16, channels: int = 3) -> Subject:
    return Subject(model, Preprocessing((size, size), (size, size), channels, (0.0,) * channels, (1.0,) * channels))


def pictures(size: int = 16, count: int = 3, channels: int = 3, dtype: torch.dtype = torch.float32) -> TensorPictures:
    return TensorPictures(
        torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(3), dtype=dtype)
    )


def errors(model: nn.Module, shown: TensorPictures, **more: object) -> dict[str, float]:
    size, channels = shown.canvases.shape[-1], shown.canvases.shape[1]
    found = lie_derivative(subject(model, size, channels), shown, **more)  # type: ignore[arg-type]
    return {layer.name: layer.error.value for layer in found.layers}


def test_circular_convolutions_of_stride_1_have_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2), nn.AvgPool2d(3, 1, 1))
    found = errors(model, pictures())
    assert list(found) == ["0", "1", "2"] and max(found.values()) < 2e-5  # float32
    assert max(errors(model.double(), pictures(dtype=torch.float64)).values()) < 1e-12
    # Zero padding shows at once.
    assert errors(model.double(), pictures(dtype=torch.float64), circular=False)["0"] > 1e-2


def wave(frequency: int, size: int = 32) -> TensorPictures:
    """Along x, so many periods over the picture."""
    x = torch.arange(size, dtype=torch.float64)
    row = 0.5 + 0.5 * torch.cos(2 * math.pi * frequency * x / size + 0.3)
    return TensorPictures(row.expand(1, 1, size, size).clone())


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("frequency", [1, 3, 5, 7, 9, 11, 13, 15])
def test_a_wave_that_folds_is_off_by_what_it_folds(frequency: int, stride: int) -> None:
    """Sampled at stride s, f becomes f - k / s: the derivative is 2 pi k / s times the wave's share of the map."""

    class Sampling(nn.Module):
        """Takes every s-th pixel; the picture's mean is taken away first, as it is no wave."""

        def __init__(self) -> None:
            super().__init__()
            self.pick = nn.Conv2d(1, 1, 1, stride, bias=False).double()
            nn.init.ones_(self.pick.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.pick(x - 0.5)

    folds = round(frequency * stride / 32)
    wanted = 2 * math.pi * folds / stride / math.sqrt(2)  # nothing along y: the root of the mean over both axes
    found = errors(Sampling(), wave(frequency), step=1e-4)["pick"]
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-7)
    by_default = errors(Sampling(), wave(frequency))["pick"]
    assert by_default == pytest.approx(wanted, rel=0.02 if stride == 4 else 0.002, abs=1e-9)


class Smooth(nn.Module):
    """Strides of both kinds, and nonlinearities with derivatives."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(3, 5, 3, (1, 2), 1, padding_mode="circular")
        self.act = nn.Tanh()
        self.down = nn.Conv2d(5, 4, 3, (3, 2), 1, padding_mode="circular")
        self.last = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.act(self.wide(x))))


def derivative(count: int) -> Tensor:
    """(n, n): the derivative of the function through n periodic samples; the frequency n / 2 has none at its peaks."""
    frequencies = torch.fft.fftfreq(count, dtype=torch.float64)
    if count % 2 == 0:
        frequencies[count // 2] = 0
    factors = 2j * math.pi * frequencies[:, None]
    return torch.fft.ifft(torch.fft.fft(torch.eye(count, dtype=torch.float64), dim=0) * factors, dim=0).real


def test_against_the_derivative_in_double_precision() -> None:
    """d/dt S(-t / s) F(S(t) x) = DF(x) [-x'] + F(x)' / s, by forward-mode differentiation and spectral derivatives."""
    model = Smooth().double()
    shown = pictures(12, 4, dtype=torch.float64)
    x = shown.canvases
    parts = {"wide": model.wide, "act": lambda x: model.act(model.wide(x)), "last": model}
    strides = {"wide": (1, 2), "act": (1, 2), "last": (3, 4)}
    found = lie_derivative(subject(model, 12), shown, step=1e-4)
    assert {layer.name: layer.stride for layer in found.layers} == strides | {"down": (3, 4)}
    for layer in found.layers:
        if layer.name == "down":
            continue
        part = parts[layer.name]
        moving = {0: derivative(12) @ x, 1: x @ derivative(12).T}
        squares = torch.zeros(4, dtype=torch.float64)
        for axis, tangent in moving.items():
            y, change = torch.func.jvp(part, (x,), (-tangent,))
            own = derivative(y.shape[2]) @ y if axis == 0 else y @ derivative(y.shape[3]).T
            squares += (change + own / layer.stride[axis]).square().sum((1, 2, 3))
        wanted = (squares / 2 / part(x).square().sum((1, 2, 3))).sqrt().tolist()
        assert min(wanted) > 1e-2
        assert layer.error.values == pytest.approx(wanted, rel=1e-6), layer.name
    # The default step is close, and single precision does not drown in rounding.
    coarse = lie_derivative(subject(Smooth(), 12), TensorPictures(x.float()))
    for layer, exact in zip(coarse.layers, found.layers, strict=True):
        assert layer.error.value == pytest.approx(exact.error.value, rel=0.02)


def test_a_stride_costs_and_a_blur_takes_most_of_it_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2))
    for module in (model[0], model[1]):
        nn.init.uniform_(module.weight)  # low-pass, as trained filters mostly are
    converted = blurify.convert(model.eval(), example_inputs=torch.zeros(1, 3, 16, 16), verify=False)
    before, after = errors(model, pictures()), errors(converted, pictures())
    assert before["0"] < 1e-4 and before["1"] > 0.01
    for name in ("2", "3"):
        assert after[name] < 0.6 * before[name], name


def test_a_map_of_zeros_has_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Threshold(100.0, 0.0))
    assert errors(model, pictures())["1"] == 0


def test_batches_and_the_choice_of_pictures_and_layers() -> None:
    shown, model = pictures(12, 9), Smooth()
    one, many = (lie_derivative(subject(model, 12), shown, batch_size=size) for size in (2, 64))
    for a, b in zip(one.layers, many.layers, strict=True):
        assert a.error.values == pytest.approx(b.error.values, rel=1e-3)
    assert many.images == 9 and many.input_shape == (3, 12, 12)
    few = lie_derivative(subject(model, 12), shown, images=4, layers=["d*"])
    assert few.images == few.layers[0].error.count == 4 and [layer.name for layer in few.layers] == ["down"]
    told = []
    lie_derivative(subject(model, 12), shown, watch=lambda *said: told.append(said))
    assert told == [("lie-derivative", number, 10) for number in range(1, 11)]


def test_it_is_a_metric_like_the_others() -> None:
    torch.manual_seed(0)

    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    first, second = (measure(subject(net()), pictures(), ["lie-derivative"]) for _ in range(2))
    assert first.consistency is None and first.lie_derivative is not None
    assert type(first).from_dict(first.to_dict()) == first
    found = differences(first, second)["lie_derivative.0"]
    assert found.paired and found.value == pytest.approx(
        second.lie_derivative.layers[0].error.value - first.lie_derivative.layers[0].error.value
    )


def test_bad_input() -> None:
    with pytest.raises(BlurifyError, match=r"bfloat16, which rounds too coarsely.*give the model in float32"):
        errors(Smooth().bfloat16(), pictures())
    for wrong in ({"images": 0}, {"step": 0.0}, {"step": 1.0}):
        with pytest.raises(BlurifyError, match="images must be at least 1, and the step"):
            errors(Smooth(), pictures(), **wrong)
    with pytest.raises(UnknownLayerError, match="no layer with maps is called 'none'"):
        errors(Smooth(), pictures(12), layers=["none"])
    broken = Smooth()
    nn.init.constant_(broken.wide.weight, float("nan"))
    with pytest.raises(BlurifyError, match="not finite"):
        errors(broken, pictures(12))
