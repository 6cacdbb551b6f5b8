"""Volumes and videos: monai, nnU-Net's architectures, pytorchvideo."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.wild.catalog import Library, Model, image, noise


def _net(name: str, **settings: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module("monai.networks.nets"), name)(**settings)


def _monai() -> Iterator[Model]:
    two, three = image(64, 1), noise(1, 1, 32, 32, 32)
    io2 = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    io3 = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    for at, io, x in (("2d", io2, two), ("3d", io3, three)):
        yield Model(f"UNet {at}", _net("UNet", **io, channels=(4, 8, 16), strides=(2, 2), num_res_units=2), x)
        yield Model(f"BasicUNet {at}", _net("BasicUNet", **io, features=(8, 8, 16, 16, 16, 8)), x)
        yield Model(f"BasicUNetPlusPlus {at}", _net("BasicUNetPlusPlus", **io, features=(8, 8, 16, 16, 16, 8)), x)
        yield Model(f"AttentionUnet {at}", _net("AttentionUnet", **io, channels=(4, 8, 16), strides=(2, 2)), x)
        yield Model(
            f"DynUNet {at}",
            _net(
                "DynUNet",
                **io,
                kernel_size=[3, 3, 3],
                strides=[1, 2, 2],
                upsample_kernel_size=[2, 2],
                filters=[8, 8, 16],
            ),
            x,
        )
        yield Model(f"SegResNet {at}", _net("SegResNet", **io, init_filters=8), x)
        yield Model(f"SegResNetDS {at}", _net("SegResNetDS", **io, init_filters=8), x)
        yield Model(f"VNet {at}", _net("VNet", **io), x)
        yield Model(f"HighResNet {at}", _net("HighResNet", **io), x)
        yield Model(f"DenseNet121 {at}", _net("DenseNet121", **io), x)
        yield Model(
            f"ResNetFeatures {at}",
            _net(
                "ResNet",
                block="basic",
                layers=[1, 1, 1, 1],
                block_inplanes=[8, 8, 16, 16],
                spatial_dims=io["spatial_dims"],
                n_input_channels=1,
                num_classes=2,
            ),
            x,
        )
        yield Model(f"EfficientNetBN {at}", _efficientnet(io), x)
        yield Model(
            f"UNETR {at}",
            _net(
                "UNETR",
                in_channels=1,
                out_channels=2,
                img_size=(32,) * io["spatial_dims"],
                feature_size=4,
                hidden_size=48,
                mlp_dim=64,
                num_heads=4,
                spatial_dims=io["spatial_dims"],
            ),
            noise(1, 1, *(32,) * io["spatial_dims"]),
        )
        yield Model(
            f"SwinUNETR {at}",
            _net("SwinUNETR", **io, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)),
            noise(1, 1, *(64,) * io["spatial_dims"]),
        )
        yield Model(f"AutoEncoder {at}", _net("AutoEncoder", **io, channels=(4, 8), strides=(2, 2)), x)
        yield Model(
            f"ViT {at}",
            _net(
                "ViT",
                in_channels=1,
                img_size=(32,) * io["spatial_dims"],
                patch_size=(16,) * io["spatial_dims"],
                hidden_size=48,
                mlp_dim=64,
                num_layers=2,
                num_heads=4,
                classification=True,
                spatial_dims=io["spatial_dims"],
            ),
            noise(1, 1, *(32,) * io["spatial_dims"]),
        )
        yield Model(
            f"ViTAutoEnc {at}",
            _net(
                "ViTAutoEnc",
                in_channels=1,
                img_size=(32,) * io["spatial_dims"],
                patch_size=(16,) * io["spatial_dims"],
                hidden_size=48,
                mlp_dim=64,
                num_layers=2,
                num_heads=4,
                spatial_dims=io["spatial_dims"],
            ),
            noise(1, 1, *(32,) * io["spatial_dims"]),
        )
        yield Model(
            f"AutoencoderKL {at}",
            _net(
                "AutoencoderKL",
                **io,
                num_res_blocks=(1, 1),
                channels=(8, 16),
                attention_levels=(False, True),
                latent_channels=4,
                norm_num_groups=4,
            ),
            x,
        )
        yield Model(
            f"VQVAE {at}",
            _net(
                "VQVAE",
                **io,
                channels=(8, 16),
                num_res_channels=(8, 16),
                num_res_layers=1,
                downsample_parameters=((2, 4, 1, 1),) * 2,
                upsample_parameters=((2, 4, 1, 1, 0),) * 2,
            ),
            x,
        )
        yield Model(
            f"DiffusionModelUNet {at}",
            _net(
                "DiffusionModelUNet",
                **io,
                num_res_blocks=1,
                channels=(8, 8),
                attention_levels=(False, True),
                norm_num_groups=4,
                num_head_channels=8,
            ),
            lambda x=x: (x(), torch.tensor([1])),
        )
        yield Model(
            f"PatchDiscriminator {at}",
            _net("PatchDiscriminator", spatial_dims=io["spatial_dims"], channels=8, in_channels=1),
            x,
        )
        yield Model(
            f"MultiScalePatchDiscriminator {at}",
            _net(
                "MultiScalePatchDiscriminator",
                num_d=2,
                num_layers_d=2,
                spatial_dims=io["spatial_dims"],
                channels=8,
                in_channels=1,
            ),
            x,
        )
        yield Model(f"MedNeXt {at}", _net("MedNeXt", **io, init_filters=8), noise(1, 1, *(32,) * io["spatial_dims"]))
    yield Model("SegResNetVAE 3d", _net("SegResNetVAE", input_image_size=(32, 32, 32), **io3, init_filters=8), three)
    yield Model("AHNet 3d", _net("AHNet", spatial_dims=3, in_channels=1, out_channels=2), noise(1, 1, 64, 64, 32))
    yield Model("AHNet 2d", _net("AHNet", spatial_dims=2, in_channels=1, out_channels=2), image(64, 1))
    yield Model("SENet154 2d", _net("SENet154", spatial_dims=2, in_channels=1, num_classes=2), two)
    yield Model("SEResNet50 3d", _net("SEResNet50", spatial_dims=3, in_channels=1, num_classes=2), three)
    yield Model("SEResNext50 2d", _net("SEResNext50", spatial_dims=2, in_channels=1, num_classes=2), two)
    yield Model(
        "FlexibleUNet 2d",
        _net("FlexibleUNet", in_channels=1, out_channels=2, backbone="efficientnet-b0", spatial_dims=2),
        two,
    )
    yield Model(
        "Regressor 2d",
        _net("Regressor", in_shape=[1, 64, 64], out_shape=[1], channels=(4, 8, 16), strides=(2, 2, 2)),
        two,
    )
    yield Model(
        "Classifier 2d",
        _net("Classifier", in_shape=[1, 64, 64], classes=2, channels=(4, 8, 16), strides=(2, 2, 2)),
        two,
    )
    yield Model(
        "Discriminator 2d", _net("Discriminator", in_shape=[1, 64, 64], channels=(4, 8, 16), strides=(2, 2, 2)), two
    )
    yield Model("Critic 2d", _net("Critic", in_shape=[1, 64, 64], channels=(4, 8, 16), strides=(2, 2, 2)), two)
    yield Model(
        "VarAutoEncoder 2d",
        _net(
            "VarAutoEncoder",
            spatial_dims=2,
            in_shape=(1, 64, 64),
            out_channels=1,
            latent_size=4,
            channels=(4, 8),
            strides=(2, 2),
        ),
        two,
    )
    yield Model(
        "GlobalNet 3d",
        _net("GlobalNet", image_size=[32, 32, 32], spatial_dims=3, in_channels=1, num_channel_initial=4, depth=2),
        three,
    )
    yield Model(
        "LocalNet 3d",
        _net(
            "LocalNet", spatial_dims=3, in_channels=1, out_channels=3, num_channel_initial=4, extract_levels=(0, 1, 2)
        ),
        three,
    )
    yield Model("RegUNet 3d", _net("RegUNet", spatial_dims=3, in_channels=1, num_channel_initial=4, depth=2), three)
    yield Model(
        "VoxelMorphUNet 3d",
        _net(
            "VoxelMorphUNet",
            spatial_dims=3,
            in_channels=2,
            unet_out_channels=8,
            channels=(8, 8, 8, 8, 8, 8),
            final_conv_channels=(8, 8),
        ),
        noise(1, 2, 32, 32, 32),
    )
    yield Model("HoVerNet", _net("HoVerNet", mode="fast", in_channels=3, out_classes=5), image(256))
    yield Model("DAF3D", _net("DAF3D", in_channels=1, out_channels=2), noise(1, 1, 32, 32, 32))
    yield Model("Quicknat", _net("Quicknat", num_classes=2, num_channels=1, num_filters=8), two)
    yield Model("MILModel", _net("MILModel", num_classes=2, pretrained=False, mil_mode="att"), noise(1, 2, 3, 64, 64))
    yield Model(
        "MaskedAutoEncoderViT",
        _net(
            "MaskedAutoEncoderViT",
            in_channels=1,
            img_size=32,
            patch_size=16,
            hidden_size=48,
            mlp_dim=64,
            num_layers=2,
            num_heads=4,
            decoder_hidden_size=48,
            decoder_mlp_dim=64,
            decoder_num_layers=1,
            decoder_num_heads=4,
            spatial_dims=2,
        ),
        image(32, 1),
    )
    yield Model(
        "SPADENet",
        _net(
            "SPADENet",
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            label_nc=2,
            input_shape=[32, 32],
            num_channels=[8, 16],
            z_dim=4,
        ),
        lambda: (torch.randn(1, 2, 32, 32), torch.randn(1, 1, 32, 32)),
    )


def _efficientnet(io: dict[str, int]) -> Callable[[], Any]:
    return _net(
        "EfficientNetBN",
        model_name="efficientnet-b0",
        pretrained=False,
        spatial_dims=io["spatial_dims"],
        in_channels=1,
        num_classes=2,
    )


def _nnunet() -> Iterator[Model]:
    module = "dynamic_network_architectures.architectures.unet"
    for rank, conv, norm in ((2, nn.Conv2d, nn.InstanceNorm2d), (3, nn.Conv3d, nn.InstanceNorm3d)):
        shared = {
            "input_channels": 1,
            "n_stages": 4,
            "features_per_stage": (8, 16, 16, 16),
            "conv_op": conv,
            "kernel_sizes": 3,
            "strides": (1, 2, 2, 2),
            "num_classes": 2,
            "n_conv_per_stage_decoder": 1,
            "conv_bias": True,
            "norm_op": norm,
            "norm_op_kwargs": {"affine": True},
            "nonlin": nn.LeakyReLU,
            "nonlin_kwargs": {"inplace": True},
        }
        x = noise(1, 1, *(32,) * rank)
        for deep in (False, True):
            more = {**shared, "deep_supervision": deep}
            end = f"{rank}d" + " deep supervision" * deep
            yield Model(
                f"PlainConvUNet {end}", lambda more=more: _of(module, "PlainConvUNet")(**more, n_conv_per_stage=2), x
            )
        yield Model(
            f"ResidualEncoderUNet {rank}d",
            lambda s=shared: _of(module, "ResidualEncoderUNet")(**s, n_blocks_per_stage=1),
            x,
        )
        yield Model(f"ResidualUNet {rank}d", lambda s=shared: _of(module, "ResidualUNet")(**s, n_blocks_per_stage=1), x)
        wide = {**shared, "strides": (1, (1, *(2,) * (rank - 1)), 2, 2)}
        yield Model(
            f"PlainConvUNet {rank}d anisotropic",
            lambda s=wide: _of(module, "PlainConvUNet")(**s, n_conv_per_stage=1),
            x,
        )
    primus = "dynamic_network_architectures.architectures.primus"
    for name in ("PrimusS", "PrimusV2S"):
        yield Model(name, lambda name=name: _of(primus, name)(1, 2, (8, 8, 8), (32, 32, 32)), noise(1, 1, 32, 32, 32))


def _of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _pytorchvideo() -> Iterator[Model]:
    clip = noise(1, 3, 8, 64, 64)
    m = "pytorchvideo.models"
    yield Model(
        "resnet", lambda: _of(f"{m}.resnet", "create_resnet")(model_num_class=5, head_pool_kernel_size=(8, 2, 2)), clip
    )
    yield Model(
        "acoustic_resnet",
        lambda: _of(f"{m}.resnet", "create_acoustic_resnet")(model_num_class=5, head_pool_kernel_size=(2, 1, 2)),
        noise(1, 1, 64, 1, 64),
    )
    yield Model(
        "slowfast",
        lambda: _of(f"{m}.slowfast", "create_slowfast")(
            model_num_class=5, head_pool_kernel_sizes=((2, 2, 2), (8, 2, 2))
        ),
        lambda: ([torch.randn(1, 3, 2, 64, 64), torch.randn(1, 3, 8, 64, 64)],),
    )
    yield Model(
        "x3d",
        lambda: _of(f"{m}.x3d", "create_x3d")(input_clip_length=4, input_crop_size=64, model_num_class=5),
        noise(1, 3, 4, 64, 64),
    )
    yield Model(
        "csn",
        lambda: _of(f"{m}.csn", "create_csn")(model_num_class=5, model_depth=50, head_pool_kernel_size=(1, 2, 2)),
        clip,
    )
    yield Model(
        "r2plus1d",
        lambda: _of(f"{m}.r2plus1d", "create_r2plus1d")(model_num_class=5, head_pool_kernel_size=(2, 2, 2)),
        noise(1, 3, 16, 64, 64),
    )
    yield Model(
        "mvit",
        lambda: _of(f"{m}.vision_transformers", "create_multiscale_vision_transformers")(
            spatial_size=64,
            temporal_size=4,
            depth=4,
            head_num_classes=5,
            embed_dim_mul=[[1, 2.0], [3, 2.0]],
            atten_head_mul=[[1, 2.0], [3, 2.0]],
            pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]],
            pool_kv_stride_adaptive=[1, 4, 4],
            pool_kvq_kernel=[3, 3, 3],
        ),
        noise(1, 3, 4, 64, 64),
    )
    yield Model(
        "mvit 2d",
        lambda: _of(f"{m}.vision_transformers", "create_multiscale_vision_transformers")(
            spatial_size=64,
            temporal_size=1,
            depth=4,
            head_num_classes=5,
            use_2d_patch=True,
            conv_patch_embed_kernel=(7, 7),
            conv_patch_embed_stride=(4, 4),
            conv_patch_embed_padding=(3, 3),
            embed_dim_mul=[[1, 2.0], [3, 2.0]],
            atten_head_mul=[[1, 2.0], [3, 2.0]],
            pool_q_stride_size=[[1, 1, 2, 2], [3, 1, 2, 2]],
            pool_kv_stride_adaptive=[1, 4, 4],
            pool_kvq_kernel=[1, 3, 3],
        ),
        image(64),
    )


LIBRARIES = [
    Library("monai", ("monai",), _monai),
    Library("dynamic-network-architectures", ("dynamic-network-architectures",), _nnunet),
    Library(
        "pytorchvideo",
        ("pytorchvideo", "fvcore", "iopath", "portalocker", "parameterized", "yacs", "termcolor", "tabulate"),
        _pytorchvideo,
    ),
]
