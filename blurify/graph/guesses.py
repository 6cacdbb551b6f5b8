"""Guess what a model is called with from the names of its parameters, its configuration and its first layers.

The shapes of images come first, elsewhere (`inputs`). Here is what takes something else: waveforms (batch, samples),
features (batch, frames, bins), videos, tokens, time steps, and several of them by name. A guess costs one forward on
tensors without data, and the first that the model takes is used: so the likely ones come first, and there are few.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blurify.graph.structure import Inputs

Shape = tuple[int, ...]

_KINDS: tuple[tuple[str, str], ...] = (
    ("lengths", r"lengths?|.*_lengths?|.*_lens?|lens"),
    ("ids", r"(.*_)?(input_ids|token_ids|tokens|text|texts|caption|phonemes)"),
    ("steps", r"t|(.*_)?time_?steps?|sigmas?|noise_(level|labels?|cond)|gammas?"),
    ("labels", r"labels?|class_labels?|classes|class_ids?"),
    ("context", r"encoder_hidden_states|context|cond_emb"),
    ("video", r"pixel_values_videos|videos?|clips?|frames"),
    ("audio", r"wavs?|waveforms?|(raw_)?audios?|speech|mix|mixture|input_values|raw_speech"),
    ("features", r"(.*_)?(input_features|spec|specs|specgram|spectrograms?|mels?|melspec|mel_specs?|fbanks?|feats?)"),
)
"""What a parameter takes, by its name; any other takes the signal."""

LARGEST_INPUT = 2**28
"""Elements of the largest input that is tried."""

_ALSO = ("input_ids", "pixel_values", "decoder_input_ids")  # beside the main input, where that is not enough
_SECONDS = 16000  # samples of one second of speech
_MOST = 120  # guesses by name


def kind_of(name: str) -> str:
    """What a parameter of a forward takes, by its name: 'audio', 'ids', ..., or 'signal'."""
    return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, name.lower())), "signal")


def by_configuration(model: nn.Module, dtype: torch.dtype) -> Iterator[Inputs]:
    """Inputs by name for models that say what their main one is (`main_input_name`) and have a configuration."""
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    parameters = _parameters(model)
    if not isinstance(main, str) or config is None or main not in parameters:
        return
    others = [
        name for name in ("input_ids", "pixel_values", "decoder_input_ids") if name in parameters and name != main
    ]
    for value in _configured(main, config, model, dtype):
        for count in range(len(others) + 1):
            for chosen in itertools.combinations(others, count):
                more = {name: next(_configured(name, config, model, dtype), None) for name in chosen}
                if all(isinstance(one, Tensor) for one in more.values()):
                    yield (), {main: value, **more}


def by_names(model: nn.Module, shapes: Sequence[Shape], dtype: torch.dtype) -> Iterator[Inputs]:
    """Positional inputs for a forward whose parameters are not all signals, by what their names say.

    Args:
        model: any module.
        shapes: of the signal, the likely ones first.
        dtype: of what holds signals.
    """
    names = [name for name, parameter in _parameters(model).items() if _is_required(parameter)]
    kinds = [kind_of(name) for name in names]
    if "signal" in kinds and "y" in names and "steps" in kinds and _first(model, nn.Embedding) is not None:
        kinds[names.index("y")] = "labels"
    if all(kind == "signal" for kind in kinds):
        return
    if "lengths" in kinds:  # what has a length is heard, not seen
        heard = ((1, _SECONDS), *itertools.islice(_features(model), 16))
        shapes = [*heard, *shapes]
    shapes = [*_sampled(model), *shapes]
    choices = [list(_named(kind, model, shapes, dtype)) for kind in kinds]
    for values in itertools.islice(itertools.product(*choices), _MOST):
        yield tuple(values), {}


def last_resorts(model: nn.Module, dtype: torch.dtype) -> Iterator[Inputs]:
    """Inputs of one signal for models that take no image: waveforms, features, windows of either, videos, tokens."""
    if sum(map(_is_required, _parameters(model).values())) > 1:
        return
    for signal in _signals(_more_shapes(model), dtype):
        yield (signal,), {}
    if _first(model, nn.Embedding) is not None:
        yield (torch.zeros((1, 16), dtype=torch.long),), {}


def possible(shape: tuple[Any, ...]) -> bool:
    """Whether a shape that a model's settings say can be one of an input."""
    return all(type(size) is int and size > 0 for size in shape) and math.prod(shape) <= LARGEST_INPUT


def _signals(shapes: Iterable[Shape], dtype: torch.dtype) -> Iterator[Tensor]:
    for shape in shapes:
        if possible(shape):
            yield torch.zeros(shape, dtype=dtype)


# --- what a configuration says


def _configured(name: str, config: Any, model: nn.Module, dtype: torch.dtype) -> Iterator[Tensor]:
    """What a parameter may be called with by a configuration, the likely one first."""
    if name.endswith("input_ids"):
        yield torch.ones((1, 8), dtype=torch.long)
        return
    if name == "pixel_values" or name == "pixel_values_videos":
        yield from _signals(_pictured(name, config), dtype)
        return
    kind = kind_of(name)
    if kind in ("audio", "features"):
        yield from _signals(_heard(config, model), dtype)


def _pictured(name: str, config: Any) -> Iterator[Shape]:
    size = _setting(config, "image_size", "crop_size", "img_size", "input_size")
    if isinstance(size, Mapping):
        size = [size.get("height", 224), size.get("width", 224)]
    height, width = _pair(size) or (224, 224)
    channels = _number(config, "num_channels", "in_channels", "in_chans") or 3
    frames = _number(config, "num_frames", "frames_per_clip")
    if frames or name.endswith("videos"):
        yield (1, frames or 16, channels, height, width)
    yield (1, channels, height, width)
    if size is None:  # some want more, or less
        yield from ((1, channels, other, other) for other in (384, 512, 64))


def _heard(config: Any, model: nn.Module) -> Iterator[Shape]:
    """Waveforms, or features where the configuration has a number of bins."""
    bins = _number(
        config, "num_mel_bins", "n_mels", "num_mels", "input_feat_per_channel", "feature_projection_input_dim",
        "spectrogram_num_mel_bins", "input_dim",
    )  # fmt: skip
    if bins:
        positions, frames = _number(config, "max_source_positions"), _number(config, "max_length")
        if positions:
            yield (1, bins, 2 * positions)  # halved by the second convolution
        yield (1, frames or 1024, bins)
        yield (1, bins, frames or 1024)
        yield (1, 1, frames or 1024, bins)
        yield (1, 1, 1001, 64)
    rate = _number(config, "sampling_rate", "sample_rate") or _SECONDS
    channels = _number(config, "audio_channels", "num_channels", "in_channels") or 1
    yield (1, rate)
    yield (1, channels, rate)
    yield (1, 1, rate)


def _setting(config: Any, *names: str) -> Any:
    """The first of these settings that a configuration, or one inside it, has; None without any."""
    inner = [value for value in _values(config).values() if hasattr(value, "to_dict") or isinstance(value, Mapping)]
    for one in (config, *inner):
        for name in names:
            value = _values(one).get(name, getattr(one, name, None) if hasattr(one, "to_dict") else None)
            if value is not None:
                return value
    return None


def _sampled(model: nn.Module) -> Iterator[Shape]:
    """The signal of a model whose configuration says its channels and its size, as diffusion models' do."""
    config, first = getattr(model, "config", None), _first(model, nn.Conv1d, nn.Conv2d)
    channels, size = _number(config, "in_channels"), _setting(config, "sample_size")
    if channels and first is not None and (pair := _pair(size)):
        yield (1, channels, *(pair if isinstance(first, nn.Conv2d) else pair[-1:]))


def _values(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else getattr(config, "__dict__", {})


def _number(config: Any, *names: str) -> int | None:
    for name in names:
        value = _setting(config, name)
        if type(value) is int and value > 0:
            return value
    return None


def _pair(size: Any) -> tuple[int, int] | None:
    if type(size) is int:
        return size, size
    if isinstance(size, list | tuple) and len(size) >= 2 and all(type(one) is int for one in size):
        return size[-2], size[-1]
    return None


# --- what names and layers say


def _named(kind: str, model: nn.Module, shapes: Sequence[Shape], dtype: torch.dtype) -> Iterator[Any]:
    """What a parameter of a kind may be called with."""
    if kind == "lengths":
        yield from (torch.tensor([number]) for number in (_SECONDS, 100))
        yield torch.ones(1)  # of the whole
    elif kind == "ids":
        yield torch.ones((1, 8), dtype=torch.long)
    elif kind == "steps":
        yield torch.ones(1, dtype=torch.long)
        yield torch.ones(1, dtype=dtype)
        yield torch.ones((1, 1), dtype=dtype)
    elif kind == "labels":
        yield torch.zeros(1, dtype=torch.long)
    elif kind == "context":
        width = _number(getattr(model, "config", {}), "cross_attention_dim", "encoder_hid_dim", "context_dim")
        yield from _signals([(1, 8, width or 768)], dtype)
    elif kind == "video":
        yield from _signals(_videos(model), dtype)
    elif kind == "audio":
        yield from _signals(((1, _SECONDS), (1, 1, _SECONDS), (1, 2, _SECONDS)), dtype)
    elif kind == "features":
        yield from _signals(_features(model), dtype)
    else:
        yield from _signals(shapes, dtype)


def _more_shapes(model: nn.Module) -> Iterator[Shape]:
    """Shapes beside those of images, by the first layer and the settings that a model keeps as attributes."""
    channels, times = _attribute(model, "n_chans"), _attribute(model, "n_times")
    if channels and times:  # recordings of several electrodes
        yield (1, channels, times)
    size = _pair(getattr(model, "img_size", None) or getattr(model, "image_size", None))
    first = _first(model, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    if size and isinstance(first, nn.Conv2d):
        yield (1, first.in_channels, *size)
    if isinstance(first, nn.Conv1d):
        if first.in_channels == 1:
            yield from ((1, _SECONDS), (1, 3 * _SECONDS))
        yield from ((1, frames, first.in_channels) for frames in (100, 1024))
    elif isinstance(first, nn.Conv2d):
        if first.in_channels <= 2:
            yield from ((1, _SECONDS), (1, 1, _SECONDS), (1, 3 * _SECONDS))
            yield from _features(model)
        yield from _videos(model)
        yield from ((1, 2, 3 * _SECONDS), (1, 1, 3 * _SECONDS))  # a spectrogram of it is what the convolution reads
    elif isinstance(first, nn.Conv3d):
        yield from _videos(model)
        if first.in_channels == 1:
            yield (1, 32, 64, 64)
    elif isinstance(first, nn.Linear):
        yield (1, 16, first.in_features)
        yield from ((1, _SECONDS), (1, 1, _SECONDS))
        yield from _features(model)
    else:
        yield from ((1, _SECONDS), (1, 1, _SECONDS))


def _features(model: nn.Module) -> Iterator[Shape]:
    """Frames of so many bins, in every order."""
    given = [_attribute(model, name) for name in ("num_mel_bins", "n_mels", "num_features", "n_feature", "input_dim")]
    first = _first(model, nn.Conv1d, nn.Linear)
    if isinstance(first, nn.Conv1d):
        given.append(first.in_channels)
    elif isinstance(first, nn.Linear):
        given.append(first.in_features)
    for bins in list(dict.fromkeys([number for number in given if number] + [80, 64, 128]))[:4]:
        for frames in (100, 1024):
            yield from ((1, frames, bins), (1, bins, frames), (1, 1, frames, bins), (1, 1, bins, frames))


def _videos(model: nn.Module) -> Iterator[Shape]:
    first = _first(model, nn.Conv2d, nn.Conv3d)
    channels = first.in_channels if first is not None else 3
    frames = _attribute(model, "num_frames") or 8
    for size in (224, 112):
        yield (1, frames, channels, size, size)
        yield (1, channels, frames, size, size)


def _attribute(model: nn.Module, name: str) -> int | None:
    value = getattr(model, name, None)
    return value if type(value) is int and value > 0 else None


def _first(model: nn.Module, *classes: type[Any]) -> Any:
    return next((module for module in model.modules() if isinstance(module, classes)), None)


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}


def _is_required(parameter: inspect.Parameter) -> bool:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return parameter.kind in kinds and parameter.default is inspect.Parameter.empty
