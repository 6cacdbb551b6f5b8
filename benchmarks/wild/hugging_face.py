"""transformers (vision, video and audio classes from their configurations, made small) and diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.wild.catalog import Library, Model, image, noise

# What makes a configuration small, where it has it.
SMALL = {
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}

# class: (what it is called with, settings). Sizes are such that every stage of the network still has something to do.
VISION: dict[str, tuple[Any, dict[str, Any]]] = {
    "ViTForImageClassification": (64, {"image_size": 64}),
    "DeiTForImageClassification": (64, {"image_size": 64}),
    "BeitForImageClassification": (64, {"image_size": 64}),
    "Data2VecVisionForImageClassification": (64, {"image_size": 64}),
    "BitForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "ConvNextForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "ConvNextV2ForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "CvtForImageClassification": (64, {}),
    "DinatForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "Dinov2ForImageClassification": (56, {"image_size": 56}),
    "Dinov2WithRegistersForImageClassification": (56, {"image_size": 56}),
    "DINOv3ViTModel": (64, {"image_size": 64}),
    "DINOv3ConvNextModel": (64, {"depths": [1, 1, 1, 1]}),
    "DonutSwinForImageClassification": (128, {"image_size": 128, "depths": [1, 1, 1, 1], "window_size": 4}),
    "EfficientNetForImageClassification": (
        64,
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    "FocalNetForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1, 1]}),
    "HGNetV2ForImageClassification": (64, {}),
    "HieraForImageClassification": (64, {"image_size": [64, 64], "depths": [1, 1, 1, 1]}),
    "IJepaForImageClassification": (56, {"image_size": 56, "hidden_size": 192, "num_attention_heads": 3}),
    "LevitForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1]}),
    "MobileNetV1ForImageClassification": (64, {}),
    "MobileNetV2ForImageClassification": (64, {}),
    "MobileNetV2ForSemanticSegmentation": (64, {}),
    "MobileViTForImageClassification": (64, {"image_size": 64}),
    "MobileViTForSemanticSegmentation": (64, {"image_size": 64}),
    "MobileViTV2ForImageClassification": (64, {"image_size": 64}),
    "PoolFormerForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "PPLCNetForImageClassification": (64, {}),
    "PPLCNetV3Backbone": (64, {}),
    "PPLCNetV4Backbone": (64, {}),
    "PvtForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1, 1]}),
    "PvtV2ForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1, 1]}),
    "RegNetForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "ResNetForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "RTDetrResNetBackbone": (64, {"depths": [1, 1, 1, 1]}),
    "SegformerForImageClassification": (64, {"depths": [1, 1, 1, 1]}),
    "SegformerForSemanticSegmentation": (64, {"depths": [1, 1, 1, 1]}),
    "SwiftFormerForImageClassification": (64, {"image_size": 64}),
    "SwinForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1, 1], "window_size": 2}),
    "Swinv2ForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1, 1], "window_size": 2}),
    "Swin2SRForImageSuperResolution": (64, {"image_size": 64, "depths": [1, 1], "num_heads": [2, 2]}),
    "MaskFormerSwinBackbone": (64, {"image_size": 64, "depths": [1, 1, 1, 1], "window_size": 2}),
    "TextNetForImageClassification": (64, {}),
    "ViTMAEModel": (64, {"image_size": 64}),
    "ViTMSNForImageClassification": (64, {"image_size": 64}),
    "VitDetBackbone": (64, {"image_size": 64, "pretrain_image_size": 64}),
    "VitPoseBackbone": ((1, 3, 64, 48), {"image_size": [64, 48]}),
    "SiglipVisionModel": (64, {"image_size": 64}),
    "CLIPVisionModel": (64, {"image_size": 64}),
    "BlipVisionModel": (64, {"image_size": 64}),
    "Aimv2VisionModel": (56, {"image_size": 56}),
    "MLCDVisionModel": (56, {"image_size": 56}),
    "PixioModel": (64, {"image_size": 64}),
    "Sapiens2Backbone": (64, {"image_size": [64, 64]}),
    "UVDocModel": ((1, 3, 128, 128), {}),
    "YolosForObjectDetection": ((1, 3, 64, 64), {"image_size": [64, 64], "num_detection_tokens": 10}),
    "DetrForObjectDetection": (
        64,
        {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18"},
    ),
    "ConditionalDetrForObjectDetection": (
        64,
        {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18"},
    ),
    "DeformableDetrForObjectDetection": (
        64,
        {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18"},
    ),
    "DabDetrForObjectDetection": (
        64,
        {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18"},
    ),
    "TableTransformerForObjectDetection": (
        64,
        {"use_timm_backbone": True, "use_pretrained_backbone": False, "backbone": "resnet18"},
    ),
    "RTDetrForObjectDetection": (128, {"num_queries": 20}),
    "RTDetrV2ForObjectDetection": (128, {"num_queries": 20}),
    "DFineForObjectDetection": (128, {"num_queries": 20}),
    "Deimv2ForObjectDetection": (128, {"num_queries": 20}),
    "LwDetrForObjectDetection": (128, {"num_queries": 20, "group_detr": 1}),
    "RfDetrForObjectDetection": (128, {"num_queries": 20, "group_detr": 1}),
    "MaskFormerForInstanceSegmentation": (128, {}),
    "Mask2FormerForUniversalSegmentation": (128, {}),
    "UperNetForSemanticSegmentation": (64, {}),
    "DPTForSemanticSegmentation": (64, {"image_size": 64, "num_hidden_layers": 12, "is_hybrid": False}),
    "DPTForDepthEstimation": (64, {"image_size": 64, "num_hidden_layers": 12, "is_hybrid": False}),
    "DepthAnythingForDepthEstimation": (56, {}),
    "ZoeDepthForDepthEstimation": (64, {}),
    "GLPNForDepthEstimation": (64, {"depths": [1, 1, 1, 1]}),
    "SuperPointForKeypointDetection": (64, {}),
    "EfficientLoFTRModel": ((1, 2, 3, 64, 64), {}),
    "SamVisionModel": (128, {"image_size": 128, "window_size": 2}),
    "Sam2VisionModel": (128, {}),
    "SamHQVisionModel": (128, {"image_size": 128, "window_size": 2}),
    "EdgeTamVisionModel": (128, {}),
    "VitMatteForImageMatting": ((1, 4, 64, 64), {}),
    "SegGptModel": ("seggpt", {"image_size": [128, 64], "pretrain_image_size": 64}),
    "PPOCRV5MobileDetForObjectDetection": (128, {}),
    "PPOCRV5ServerDetForObjectDetection": (128, {}),
    "VideoMAEForVideoClassification": ((1, 4, 3, 32, 32), {"image_size": 32, "num_frames": 4}),
    "VivitForVideoClassification": ((1, 4, 3, 32, 32), {"image_size": 32, "num_frames": 4}),
    "TimesformerForVideoClassification": ((1, 4, 3, 32, 32), {"image_size": 32, "num_frames": 4}),
    "VJEPA2Model": (
        (1, 4, 3, 32, 32),
        {
            "crop_size": 32,
            "frames_per_clip": 4,
            "hidden_size": 192,
            "num_attention_heads": 3,
            "pred_hidden_size": 96,
            "pred_num_attention_heads": 3,
            "pred_num_hidden_layers": 1,
        },
    ),
    "Mask2FormerModel": (128, {}),
    "OneFormerModel": ("oneformer", {}),
    "PerceiverForImageClassificationConvProcessing": ("perceiver", {"num_self_attends_per_block": 2, "num_blocks": 1}),
    "GroupViTVisionModel": (64, {"image_size": 64}),
    "Owlv2VisionModel": (64, {"image_size": 64}),
    "AlignVisionModel": (64, {"image_size": 64}),
    "FlavaImageModel": (64, {"image_size": 64}),
    "Pix2StructVisionModel": ("flat", {}),
    "BridgeTowerVisionModel": (64, {"image_size": 64}),
    "ChineseCLIPVisionModel": (64, {"image_size": 64}),
    "IdeficsVisionModel": (64, {"image_size": 64}),
    "InternVLVisionModel": (56, {"image_size": [56, 56]}),
    "PixtralVisionModel": (64, {"image_size": 64}),
}
AUDIO: dict[str, tuple[Any, dict[str, Any]]] = {
    "Wav2Vec2Model": ((1, 8000), {}),
    "Wav2Vec2ForSequenceClassification": ((1, 8000), {"hidden_size": 192, "num_attention_heads": 3}),
    "Wav2Vec2ConformerModel": ((1, 8000), {}),
    "Wav2Vec2BertModel": ((1, 100, 160), {"add_adapter": True}),
    "HubertModel": ((1, 8000), {}),
    "WavLMModel": ((1, 8000), {}),
    "UniSpeechModel": ((1, 8000), {}),
    "UniSpeechSatModel": ((1, 8000), {}),
    "SEWModel": ((1, 8000), {}),
    "SEWDModel": ((1, 8000), {}),
    "Data2VecAudioModel": ((1, 8000), {}),
    "ASTForAudioClassification": ((1, 128, 128), {"max_length": 128}),
    "WhisperForAudioClassification": ((1, 80, 200), {"max_source_positions": 100}),
    "WhisperModel": ("whisper", {"max_source_positions": 100}),
    "Speech2TextModel": ("speech2text", {}),
    "ClapAudioModel": ("clap", {}),
    "EncodecModel": ((1, 1, 6000), {}),
    "DacModel": ((1, 1, 5120), {}),
    "MimiModel": ((1, 1, 5760), {"num_hidden_layers": 1}),
    "UnivNetModel": ((1, 20, 100), {}),
    "VitsModel": ("tokens", {}),
    "SpeechT5HifiGan": ((1, 20, 80), {}),
    "FastSpeech2ConformerHifiGan": ((1, 20, 80), {}),
    "MoonshineModel": ("moonshine", {}),
    "ParakeetEncoder": ((1, 200, 80), {}),
    "XcodecModel": ((1, 1, 8000), {}),
    "InformerModel": ("informer", {"prediction_length": 4, "context_length": 24, "lags_sequence": [1, 2]}),
    "PatchTSTModel": ((1, 64, 2), {"context_length": 64, "num_input_channels": 2}),
}


def _special(kind: str) -> Any:
    whole = torch.randint(0, 100, (1, 12))
    if kind == "seggpt":
        return {name: torch.randn(1, 3, 64, 64) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}
    if kind == "oneformer":
        return {"pixel_values": torch.randn(1, 3, 128, 128), "task_inputs": torch.randint(0, 100, (1, 77))}
    if kind == "perceiver":
        return {"inputs": torch.randn(1, 3, 224, 224)}
    if kind == "flat":
        return torch.randn(1, 16, 770)
    if kind == "tokens":
        return whole % 30
    if kind == "whisper":
        return {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": whole}
    if kind == "speech2text":
        return {"input_features": torch.randn(1, 100, 80), "decoder_input_ids": whole}
    if kind == "moonshine":
        return {"input_values": torch.randn(1, 8000), "decoder_input_ids": whole}
    if kind == "clap":
        return {"input_features": torch.randn(1, 1, 1001, 64)}
    assert kind == "informer"
    return {
        "past_values": torch.randn(1, 26), "past_time_features": torch.randn(1, 26, 1),
        "past_observed_mask": torch.ones(1, 26), "future_values": torch.randn(1, 4),
        "future_time_features": torch.randn(1, 4, 1),
    }  # fmt: skip


def _built(name: str, settings: dict[str, Any]) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        cls = getattr(transformers, name)
        plain = cls.config_class()
        # Where there are stages, the number of layers counts them.
        few = {} if hasattr(plain, "depths") or hasattr(plain, "depth_coefficient") else SMALL
        known = {key: value for key, value in {**few, **settings}.items() if hasattr(plain, key)}
        if name == "InformerModel":
            known["num_time_features"] = 1
        config = cls.config_class(**known)
        config.return_dict = True
        return cls(config)

    return build


def _transformers() -> Iterator[Model]:
    import transformers

    for name, (kind, settings) in {**VISION, **AUDIO}.items():
        if not hasattr(transformers, name):
            continue  # of another release of the library
        inputs: Any = image(kind) if isinstance(kind, int) else (
            noise(*kind) if isinstance(kind, tuple) else lambda kind=kind: _special(kind)
        )  # fmt: skip
        yield Model(name, _built(name, settings), inputs)


# class: (settings, what it is called with)
_CROSS = {"cross_attention_dim": 16, "attention_head_dim": 8, "norm_num_groups": 8}
_TWO = (16, 32)
DIFFUSERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "UNet2DModel": (
        {
            "sample_size": 32,
            "block_out_channels": (16, 32, 32),
            "norm_num_groups": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": 8,
        },
        lambda: (torch.randn(1, 3, 32, 32), 1),
    ),
    "UNet2DModel-resnet": (
        {
            "sample_size": 32,
            "block_out_channels": _TWO,
            "norm_num_groups": 8,
            "down_block_types": ("ResnetDownsampleBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "ResnetUpsampleBlock2D"),
            "attention_head_dim": 8,
        },
        lambda: (torch.randn(1, 3, 32, 32), 1),
    ),
    "UNet2DModel-skip": (
        {
            "sample_size": 32,
            "block_out_channels": _TWO,
            "norm_num_groups": 8,
            "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
            "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            "attention_head_dim": 8,
        },
        lambda: (torch.randn(1, 3, 32, 32), 1),
    ),
    "UNet1DModel": (
        {"sample_size": 128, "in_channels": 2, "out_channels": 2, "block_out_channels": (32, 32, 64)},
        lambda: (torch.randn(1, 2, 128), 1),
    ),
    "UNet2DConditionModel": (
        {
            "sample_size": 32,
            "block_out_channels": _TWO,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            **_CROSS,
        },
        lambda: (torch.randn(1, 4, 32, 32), 1, torch.randn(1, 4, 16)),
    ),
    "UNet3DConditionModel": (
        {
            "sample_size": 32,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
        },
        lambda: (torch.randn(1, 4, 4, 32, 32), 1, torch.randn(1, 4, 16)),
    ),
    "UNetSpatioTemporalConditionModel": (
        {
            "sample_size": 32,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "cross_attention_dim": 32,
            "num_attention_heads": 8,
            "layers_per_block": 2,
            "projection_class_embeddings_input_dim": 96,
            "addition_time_embed_dim": 32,
            "in_channels": 8,
        },
        lambda: (torch.randn(1, 2, 8, 32, 32), 1, torch.randn(1, 2, 32), torch.ones(1, 3)),
    ),
    "UNetMotionModel": (
        {
            "sample_size": 16,
            "block_out_channels": _TWO,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "cross_attention_dim": 16,
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
            "motion_max_seq_length": 8,
        },
        lambda: (torch.randn(1, 4, 4, 16, 16), 1, torch.randn(1, 4, 16)),
    ),
    "Kandinsky3UNet": (
        {
            "time_embedding_dim": 16,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": 1,
            "block_out_channels": _TWO,
            "cross_attention_dim": (None, 16),
            "encoder_hid_dim": 16,
        },
        lambda: (torch.randn(1, 4, 16, 16), 1, torch.randn(1, 4, 16), torch.ones(1, 4)),
    ),
    "UVit2DModel": (
        {
            "hidden_size": 32,
            "cond_embed_dim": 32,
            "micro_cond_encode_dim": 8,
            "micro_cond_embed_dim": 40,
            "encoder_hidden_size": 32,
            "vocab_size": 32,
            "codebook_size": 32,
            "in_channels": 32,
            "block_out_channels": 32,
            "num_res_blocks": 1,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "block_num_heads": 2,
            "intermediate_size": 64,
            "sample_size": 8,
            "downsample": True,
            "upsample": True,
            "add_cond_embeds": True,
        },
        lambda: (torch.randint(0, 32, (1, 8, 8)), torch.randn(1, 4, 32), torch.randn(1, 32), torch.randn(1, 5)),
    ),
    "ControlNetModel": (
        {
            "block_out_channels": _TWO,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "conditioning_embedding_out_channels": (16, 32),
            **_CROSS,
        },
        lambda: (torch.randn(1, 4, 16, 16), 1, torch.randn(1, 4, 16), torch.randn(1, 3, 32, 32)),
    ),
    "T2IAdapter": ({"channels": [16, 32, 32, 32], "num_res_blocks": 1}, image(64)),
    "T2IAdapter-xl": (
        {"channels": [16, 32, 32, 32], "num_res_blocks": 1, "adapter_type": "full_adapter_xl", "downscale_factor": 16},
        image(64),
    ),
    "T2IAdapter-light": (
        {"channels": [16, 32, 32, 32], "num_res_blocks": 1, "adapter_type": "light_adapter"},
        image(64),
    ),
    "AutoencoderKL": (
        {
            "block_out_channels": _TWO,
            "norm_num_groups": 8,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        image(32),
    ),
    "AsymmetricAutoencoderKL": (
        {
            "norm_num_groups": 8,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "down_block_out_channels": _TWO,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "up_block_out_channels": _TWO,
        },
        image(32),
    ),
    "AutoencoderKLTemporalDecoder": (
        {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2},
        lambda: {"sample": torch.randn(2, 3, 32, 32), "num_frames": 2},
    ),
    "AutoencoderTiny": (
        {
            "encoder_block_out_channels": (16,) * 4,
            "decoder_block_out_channels": (16,) * 4,
            "num_encoder_blocks": (1, 1, 1, 1),
            "num_decoder_blocks": (1, 1, 1, 1),
        },
        image(32),
    ),
    "AutoencoderDC": (
        {
            "encoder_block_types": ("ResBlock",) * 3,
            "decoder_block_types": ("ResBlock",) * 3,
            "encoder_block_out_channels": (8, 16, 32),
            "decoder_block_out_channels": (8, 16, 32),
            "encoder_layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()),
            "decoder_qkv_multiscales": ((), (), ()),
            "attention_head_dim": 8,
            "latent_channels": 4,
            "decoder_act_fns": "silu",
            "decoder_norm_types": "rms_norm",
        },
        image(32),
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 4, 4],
            "channel_multiples": [1, 2, 4],
            "decoder_channels": 8,
            "decoder_input_channels": 8,
            "audio_channels": 2,
        },
        noise(1, 2, 1024),
    ),
    "VQModel": (
        {
            "block_out_channels": _TWO,
            "norm_num_groups": 8,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        image(32),
    ),
    "AutoencoderKLCogVideoX": (
        {
            "block_out_channels": (8, 8, 8, 8),
            "norm_num_groups": 2,
            "layers_per_block": 1,
            "sample_height": 32,
            "sample_width": 32,
        },
        noise(1, 3, 9, 32, 32),
    ),
    "AutoencoderKLMochi": (
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
        },
        noise(1, 3, 7, 16, 16),
    ),
    "AutoencoderKLWan": (
        {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        noise(1, 3, 5, 16, 16),
    ),
    "AutoencoderKLHunyuanVideo": (
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1},
        noise(1, 3, 9, 16, 16),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "latent_channels": 8,
        },
        noise(1, 3, 9, 32, 32),
    ),
    "AutoencoderKLAllegro": (
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1},
        noise(1, 3, 8, 32, 32),
    ),
    "AutoencoderKLMagvit": (
        {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 2, "layers_per_block": 1},
        noise(1, 3, 9, 32, 32),
    ),
    "AutoencoderKLQwenImage": (
        {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        noise(1, 3, 1, 16, 16),
    ),
    "DiTTransformer2DModel": (
        {
            "num_layers": 1,
            "sample_size": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_embeds_ada_norm": 10,
        },
        lambda: (torch.randn(1, 4, 16, 16), torch.tensor([1]), torch.tensor([1])),
    ),
    "SD3Transformer2DModel": (
        {
            "num_layers": 1,
            "sample_size": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "caption_projection_dim": 16,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 16,
        },
        lambda: (torch.randn(1, 16, 16, 16), torch.randn(1, 4, 16), torch.randn(1, 16), torch.tensor([1])),
    ),
    "PixArtTransformer2DModel": (
        {
            "num_layers": 1,
            "sample_size": 16,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        lambda: {
            "hidden_states": torch.randn(1, 4, 16, 16),
            "encoder_hidden_states": torch.randn(1, 4, 16),
            "timestep": torch.tensor([1]),
        },
    ),
    "CogVideoXTransformer3DModel": (
        {
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "text_embed_dim": 16,
            "max_text_seq_length": 4,
            "time_embed_dim": 4,
        },
        lambda: (torch.randn(1, 2, 16, 8, 8), torch.randn(1, 4, 16), torch.tensor([1])),
    ),
    "WanTransformer3DModel": (
        {
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 32,
        },
        lambda: {
            "hidden_states": torch.randn(1, 16, 2, 16, 16),
            "timestep": torch.tensor([1]),
            "encoder_hidden_states": torch.randn(1, 4, 16),
        },
    ),
}


def _diffusers() -> Iterator[Model]:
    import diffusers

    for name, (settings, inputs) in DIFFUSERS.items():
        cls = getattr(diffusers, name.partition("-")[0], None)
        if cls is None:
            continue

        def build(cls: Any = cls, settings: dict[str, Any] = settings) -> Any:
            known = inspect.signature(cls.__init__).parameters
            return cls(**{key: value for key, value in settings.items() if key in known})

        yield Model(name, build, inputs)


LIBRARIES = [
    Library("transformers", ("transformers",), _transformers),
    Library("diffusers", ("diffusers",), _diffusers),
]
