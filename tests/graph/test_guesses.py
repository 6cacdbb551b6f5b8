"""What a model is called with, guessed: audio, features, videos, several inputs by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError
from blurify.graph.guesses import LARGEST_INPUT, kind_of
from blurify.graph.inputs import traced


def shapes(model: nn.Module) -> Any:
    args, kwargs = traced(model).inputs
    by_name = {name: tuple(value.shape) for name, value in kwargs.items()}
    return by_name or tuple(tuple(value.shape) for value in args)


class Waveform(nn.Module):
    """Takes (batch, samples), and puts the channel there itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 4, 10, 5), nn.GELU(), nn.Conv1d(4, 4, 3, 2), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2, "samples"
        return self.layers(x[:, None])


class Spectrum(nn.Module):
    """Takes a waveform, and reads its spectrogram as an image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.register_buffer("bank", torch.rand(33, 16))
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(waveform, 64, 32, window=self.window, return_complex=True).abs()
        mel = torch.matmul(spectrum.transpose(1, 2), self.bank).log1p()
        return self.conv2(self.conv1(mel[:, None]).relu()).relu()


class Frames(nn.Module):
    """Takes (batch, frames, bins) and how many frames count."""

    def __init__(self, bins: int = 40) -> None:
        super().__init__()
        self.norm, self.convs = nn.LayerNorm(bins), nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU())
        self.n_mels = bins

    def forward(self, feats: Tensor, feat_lengths: Tensor) -> Tensor:
        assert feat_lengths.shape == (1,)
        return self.convs(self.norm(feats)[:, None])


class Encoder(nn.Module):
    """Takes (batch, frames, width) and lengths, and convolves along the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(24, 8), nn.Conv1d(8, 8, 3, 2, 1)

    def forward(self, input: Tensor, lengths: Tensor) -> Tensor:
        assert int(lengths.max()) <= input.shape[1]
        return self.conv(self.linear(input).transpose(1, 2)).relu()


class Stereo(nn.Module):
    """Takes two channels of sound, and reads their complex spectrogram as four."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, (8, 1), (4, 1))

    def forward(self, input: Tensor) -> Tensor:
        n, channels, samples = input.shape
        spectrum = torch.view_as_real(torch.stft(input.view(-1, samples), 64, return_complex=True))
        return self.conv(spectrum.unflatten(0, (n, channels)).movedim(-1, 2).flatten(1, 2))


class Video(nn.Module):
    """Takes (batch, frames, channels, height, width), frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, frames = x.shape[:2]
        assert x.dim() == 5
        return self.conv(x.flatten(0, 1)).unflatten(0, (n, frames)).mean(1)


class Denoiser(nn.Module):
    """Takes an image, a time step and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classes = nn.Conv2d(3, 4, 3, 2, 1), nn.Embedding(10, 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + torch.sin(t.float()).view(-1, 1, 1, 1) + self.classes(y)[:, :, None, None]


class Sampler(nn.Module):
    """Takes a signal of the size and the channels that its configuration says, and more of its own beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"in_channels": 2, "sample_size": 60}
        self.conv = nn.Conv1d(2 + 6, 4, 3, 2, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        waves = torch.sin(timestep.view(-1, 1, 1) * torch.ones(6, 1)).expand(len(sample), 6, sample.shape[-1])
        return self.conv(torch.cat([sample, waves], 1))


class Recording(nn.Module):
    """Takes as many electrodes and samples as it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.n_chans, self.n_times = 21, 500
        self.conv, self.last = nn.Conv2d(1, 4, (1, 5), (1, 2)), nn.Linear(4 * 21 * 248, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.elu(self.conv(x[:, None])).flatten(1))


class Configured(nn.Module):
    """Says its main input and its sizes as transformers' models do."""

    def __init__(self, main: str, **settings: Any) -> None:
        super().__init__()
        self.main_input_name = main
        self.config = SimpleNamespace(**settings)


class Picture(Configured):
    def __init__(self) -> None:
        inner = SimpleNamespace(image_size=[40, 48], num_channels=5, to_dict=dict)
        super().__init__("pixel_values", vision_config=inner)
        self.conv, self.words = nn.Conv2d(5, 4, 3, 2, 1), nn.Embedding(20, 4)

    def forward(self, input_ids: Any = None, pixel_values: Any = None, return_dict: bool = True) -> Tensor:
        assert pixel_values.shape[-2:] == (40, 48)
        return self.conv(pixel_values) + self.words(input_ids).mean(1)[:, :, None, None]


class Speech(Configured):
    def __init__(self) -> None:
        super().__init__("input_features", num_mel_bins=20, max_source_positions=30)
        self.conv1, self.conv2 = nn.Conv1d(20, 4, 3, padding=1), nn.Conv1d(4, 4, 3, 2, 1)
        self.positions = nn.Parameter(torch.zeros(4, 30))

    def forward(self, input_features: Tensor, decoder_input_ids: Any = None) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(input_features)))) + self.positions
        return x.mean() + decoder_input_ids.sum()


CASES: dict[str, tuple[Any, Any]] = {
    "waveform": (Waveform, ((1, 16000),)),
    "spectrum": (Spectrum, ((1, 16000),)),
    "frames and lengths": (Frames, ((1, 100, 40), (1,))),
    "encoder and lengths": (Encoder, ((1, 100, 24), (1,))),
    "stereo": (Stereo, ((1, 2, 48000),)),
    "video": (Video, ((1, 8, 3, 224, 224),)),
    "denoiser": (Denoiser, ((1, 3, 224, 224), (1,), (1,))),
    "sampler": (Sampler, ((1, 2, 60), (1,))),
    "recording": (Recording, ((1, 21, 500),)),
    "picture by configuration": (Picture, {"pixel_values": (1, 5, 40, 48), "input_ids": (1, 8)}),
    "speech by configuration": (Speech, {"input_features": (1, 20, 60), "decoder_input_ids": (1, 8)}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_inputs_are_guessed(name: str) -> None:
    make, expected = CASES[name]
    assert shapes(make()) == expected


def test_what_is_guessed_converts() -> None:
    for make, rules in ((Waveform, ["stem", "after-activation"]), (Spectrum, ["stem", "after-activation"])):
        out = blurify.convert(make().eval())
        assert [site.rule for site in blurify.plan_of(out).sites if site.kind == "conv"] == rules


def test_images_stay_the_first_guess() -> None:
    assert shapes(nn.Conv2d(3, 4, 3, 2)) == ((1, 3, 224, 224),)
    assert shapes(nn.Conv1d(1, 4, 3, 2)) == ((1, 1, 1024),)


def test_settings_of_no_possible_size_are_not_tried() -> None:
    class Endless(Configured):
        def forward(self, pixel_values: Tensor) -> Tensor:
            assert pixel_values.numel() <= LARGEST_INPUT
            raise ValueError("not this")

    for size in (2**40, -1, "large", [10**9, 10**9]):
        with pytest.raises(BlurifyError, match="example_inputs"):
            traced(Endless("pixel_values", image_size=size, num_channels=3, num_frames=10**12))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x", "signal"), ("image", "signal"), ("input_lengths", "lengths"), ("wav", "audio"), ("mel_spec", "features"),
     ("timestep", "steps"), ("decoder_input_ids", "ids"), ("target", "signal"), ("video", "video")],
)  # fmt: skip
def test_names_say_what_is_taken(name: str, kind: str) -> None:
    assert kind_of(name) == kind
