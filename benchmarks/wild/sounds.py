"""Sound and signals: torchaudio, speechbrain, braindecode."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.wild.catalog import Library, Model, noise


def _of(module: str, name: str, /, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), name)(*args, **kwargs)


def _torchaudio() -> Iterator[Model]:
    m = "torchaudio.models"
    wave = noise(1, 8000)
    extractor = {
        "extractor_mode": "group_norm", "extractor_conv_layer_config": None, "extractor_conv_bias": False,
        "encoder_embed_dim": 48, "encoder_projection_dropout": 0.0, "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4, "encoder_num_layers": 1, "encoder_num_heads": 4, "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 64, "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.0,
        "encoder_layer_norm_first": False, "encoder_layer_drop": 0.0, "aux_num_out": 10,
    }  # fmt: skip
    yield Model("wav2vec2_model", _of(m, "wav2vec2_model", **extractor), wave)
    wavlm = {**extractor, "encoder_num_buckets": 320, "encoder_max_distance": 800}
    yield Model("wavlm_model", _of(m, "wavlm_model", **wavlm), wave)
    yield Model(
        "Conformer", _of(m, "Conformer", 80, 4, 64, 1, 31), lambda: (torch.randn(1, 50, 80), torch.tensor([50]))
    )
    yield Model(
        "ConvTasNet",
        _of(
            m,
            "ConvTasNet",
            enc_num_feats=32,
            msk_num_feats=16,
            msk_num_hidden_feats=32,
            msk_num_layers=2,
            msk_num_stacks=1,
        ),
        noise(1, 1, 4000),
    )
    yield Model("DeepSpeech", _of(m, "DeepSpeech", 40, 64, 10), noise(1, 1, 50, 40))
    yield Model(
        "Emformer",
        _of(m, "Emformer", 32, 4, 64, 1, 4, right_context_length=1),
        lambda: (torch.randn(1, 17, 32), torch.tensor([17])),
    )
    yield Model("HDemucs", _of(m, "hdemucs_low", sources=["a", "b"]), noise(1, 2, 44100))
    yield Model(
        "Wav2Letter", _of(m, "Wav2Letter", num_classes=10, input_type="waveform", num_features=1), noise(1, 1, 16000)
    )
    yield Model(
        "Wav2Letter mfcc", _of(m, "Wav2Letter", num_classes=10, input_type="mfcc", num_features=13), noise(1, 13, 200)
    )
    yield Model(
        "WaveRNN",
        _of(
            m,
            "WaveRNN",
            upsample_scales=[2, 2, 3],
            n_classes=16,
            hop_length=12,
            n_res_block=1,
            n_rnn=16,
            n_fc=16,
            n_freq=20,
            n_hidden=16,
            n_output=16,
        ),
        lambda: (torch.randn(1, 1, 12 * 6), torch.randn(1, 1, 20, 10)),
    )
    yield Model("SquimObjective", _of(m, "squim_objective_base"), noise(1, 8000))
    yield Model(
        "Tacotron2",
        _of(m, "Tacotron2"),
        lambda: (torch.randint(0, 100, (1, 10)), torch.tensor([10]), torch.randn(1, 80, 12), torch.tensor([12])),
    )
    yield Model(
        "RNNT",
        _of(m, "emformer_rnnt_base", num_symbols=20),
        lambda: (
            torch.randn(1, 160 + 4, 80),
            torch.tensor([160], dtype=torch.int32),
            torch.ones(1, 5, dtype=torch.int32),
            torch.tensor([5], dtype=torch.int32),
        ),
    )


def _speechbrain() -> Iterator[Model]:
    m = "speechbrain.lobes.models"
    mel = noise(1, 120, 80)
    yield Model(
        "ECAPA_TDNN", _of(f"{m}.ECAPA_TDNN", "ECAPA_TDNN", 80, channels=[32, 32, 32, 32, 96], lin_neurons=16), mel
    )
    yield Model("Xvector", _of(f"{m}.Xvector", "Xvector", in_channels=80, tdnn_channels=[32] * 5), mel)
    yield Model(
        "CRDNN",
        _of(
            f"{m}.CRDNN",
            "CRDNN",
            input_shape=[1, 120, 80],
            cnn_channels=(8, 8),
            rnn_layers=1,
            rnn_neurons=16,
            dnn_neurons=16,
        ),
        mel,
    )
    yield Model(
        "ContextNet",
        _of(
            f"{m}.ContextNet",
            "ContextNet",
            input_shape=(1, 120, 80),
            out_channels=32,
            conv_channels=[16] * 22,
            num_layers=2,
        ),
        mel,
    )
    yield Model("Cnn14", _of(f"{m}.Cnn14", "Cnn14", mel_bins=64, emb_dim=64), noise(1, 1, 120, 64))
    yield Model(
        "ResNet",
        _of(f"{m}.ResNet", "ResNet", in_channels=1, input_size=80, channels=[16, 16, 32, 32], lin_neurons=16),
        noise(1, 120, 80),
    )
    yield Model(
        "SEResNet",
        _of(f"{m}.ResNet", "ResNet", block="SE", channels=[16, 16, 32, 32], lin_neurons=16),
        noise(1, 120, 80),
    )
    yield Model(
        "HifiganGenerator",
        _of(
            f"{m}.HifiGAN",
            "HifiganGenerator",
            in_channels=80,
            out_channels=1,
            resblock_type="1",
            resblock_dilation_sizes=[[1, 3]],
            resblock_kernel_sizes=[3],
            upsample_kernel_sizes=[16, 4],
            upsample_initial_channel=32,
            upsample_factors=[8, 2],
        ),
        noise(1, 80, 20),
    )
    yield Model("HifiganDiscriminator", _of(f"{m}.HifiGAN", "HifiganDiscriminator"), noise(1, 1, 4096))
    yield Model("EnhanceResnet", _of(f"{m}.EnhanceResnet", "EnhanceResnet"), noise(1, 8000))
    yield Model(
        "CNNTransformerSE",
        _of(
            f"{m}.transformer.TransformerSE",
            "CNNTransformerSE",
            d_model=32,
            nhead=2,
            num_layers=1,
            d_ffn=32,
            output_size=80,
            output_activation=torch.nn.ReLU,
        ),
        noise(1, 50, 80),
    )
    yield Model(
        "wav2vec EncoderFeatures", _of(f"{m}.wav2vec", "W2VLatentExtractor", out_channels=[32] * 7), noise(1, 8000)
    )
    yield Model(
        "segan Generator",
        _of(f"{m}.segan_model", "Generator", kernel_size=31, latent_vecs=16, z_prob=False),
        noise(1, 16384, 1),
    )
    yield Model("segan Discriminator", _of(f"{m}.segan_model", "Discriminator", kernel_size=31), noise(2, 16384, 2))
    yield Model("MetricDiscriminator", _of(f"{m}.MetricGAN", "MetricDiscriminator"), noise(1, 2, 60, 60))
    yield Model("dual_path Encoder", _of(f"{m}.dual_path", "Encoder", kernel_size=16, out_channels=32), noise(1, 8000))
    yield Model(
        "ConvolutionFrontEnd",
        _of(
            f"{m}.convolution",
            "ConvolutionFrontEnd",
            input_shape=(1, 120, 80),
            num_blocks=2,
            out_channels=[16, 16],
            strides=[2, 2],
        ),
        mel,
    )
    yield Model(
        "DiffWave",
        _of(
            f"{m}.DiffWave",
            "DiffWave",
            input_channels=80,
            residual_layers=2,
            residual_channels=16,
            dilation_cycle_length=2,
            total_steps=50,
        ),
        lambda: (torch.randn(1, 1, 2560), torch.tensor([1]), torch.randn(1, 80, 10)),
    )
    yield Model("FastSpeech2 PostNet", _of(f"{m}.FastSpeech2", "PostNet", n_mel_channels=80), noise(1, 30, 80))
    yield Model("PIQ ResBlockAudio", _of(f"{m}.PIQ", "ResBlockAudio", 8), noise(1, 8, 20, 20))
    yield Model("Conv2dEncoder_v2", _of(f"{m}.PIQ", "Conv2dEncoder_v2", dim=16), noise(1, 1, 80, 80))
    yield Model("L2I Psi", _of(f"{m}.L2I", "NMFDecoderAudio"), noise(1, 100, 20))


def _braindecode() -> Iterator[Model]:
    from braindecode.models.util import _init_models_dict, models_dict

    if not models_dict:
        _init_models_dict()
    for name, cls in sorted(models_dict.items()):
        yield Model(name, lambda cls=cls: _signal_model(cls), lambda: torch.randn(2, 22, 1000))


def _signal_model(cls: Any) -> Any:
    import inspect

    known = inspect.signature(cls.__init__).parameters
    channels = [{"ch_name": f"EEG{i}", "kind": "eeg", "loc": [0.01 * i] * 12} for i in range(22)]
    given = {"n_chans": 22, "n_outputs": 4, "n_times": 1000, "sfreq": 250, "input_window_seconds": 4.0}
    try:
        return cls(**{key: value for key, value in given.items() if key in known and key != "input_window_seconds"})
    except (ValueError, TypeError):
        return cls(n_chans=22, n_outputs=4, n_times=1000, sfreq=250, chs_info=channels)


LIBRARIES = [
    Library("torchaudio", ("torchaudio",), _torchaudio),
    Library("speechbrain", ("speechbrain", "hyperpyyaml", "ruamel.yaml", "sentencepiece"), _speechbrain),
    Library(
        "braindecode",
        (
            "braindecode",
            "mne",
            "skorch",
            "tabulate",
            "einops",
            "torchinfo",
            "pooch",
            "decorator",
            "pandas",
            "pytz",
            "docstring_inheritance",
            "h5py",
            "mne-bids",
            "linear-attention-transformer",
            "axial-positional-embedding",
            "lazy-loader",
            "local-attention",
            "wfdb",
            "linformer",
            "colt5-attention",
            "product-key-memory",
            "platformdirs",
            "hyper-connections",
            "torch-einops-utils",
        ),
        _braindecode,
    ),
]
