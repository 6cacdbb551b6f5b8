"""Libraries of networks for pictures: segmentation, classification, re-identification, features, transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.wild.catalog import Library, Model, image, noise


def _called(module: str, name: str, /, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """A builder: `module.name(*args, **kwargs)`."""

    def build() -> Any:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
        return value(*args, **kwargs)

    return build


def _smp() -> Iterator[Model]:
    import segmentation_models_pytorch as smp

    plain = {"encoder_weights": None, "in_channels": 3, "classes": 2}
    for name in "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer".split():
        if hasattr(smp, name):
            yield Model(
                f"{name}-resnet18",
                _called("segmentation_models_pytorch", name, encoder_name="resnet18", **plain),
                noise(2, 3, 256 if name == "PAN" else 64, 256 if name == "PAN" else 64),
            )
    encoders = (
        "resnet50 resnext50_32x4d timm-skresnet18 se_resnet50 senet154 densenet121 dpn68 "
        "inceptionresnetv2 inceptionv4 efficientnet-b0 timm-efficientnet-b0 timm-tf_efficientnet_lite0 "
        "mit_b0 mobilenet_v2 mobileone_s0 mobileone_s4 vgg11 vgg16_bn xception tu-convnext_nano "
        "tu-resnest14d tu-regnety_002 tu-hrnet_w18_small tu-mobilenetv3_large_100 tu-res2net50_26w_4s "
        "tu-gernet_s tu-maxvit_tiny_rw_224"
    )
    for encoder in encoders.split():
        side = 224 if "maxvit" in encoder else 64
        yield Model(
            f"Unet-{encoder}",
            _called("segmentation_models_pytorch", "Unet", encoder_name=encoder, **plain),
            noise(2, 3, side, side),
        )


def _efficientnet() -> Iterator[Model]:
    for number in range(4):
        yield Model(
            f"efficientnet-b{number}",
            _called("efficientnet_pytorch", "EfficientNet.from_name", f"efficientnet-b{number}"),
            image(128),
        )


def _pretrainedmodels() -> Iterator[Model]:
    import pretrainedmodels

    for name in pretrainedmodels.model_names:
        if name.startswith(("resnet1", "vgg13", "vgg19", "senet154", "densenet16", "densenet2", "dpn1", "dpn9")):
            continue  # larger ones of a family that is there
        if name in ("nasnetalarge", "pnasnet5large", "polynet", "resnext101_64x4d", "se_resnet152", "se_resnet101"):
            continue
        side = {"nasnetamobile": 224, "inceptionv3": 299, "inceptionv4": 299, "inceptionresnetv2": 299, "xception": 299}
        yield Model(name, _called("pretrainedmodels", name, pretrained=None), image(side.get(name, 224)))


def _torchreid() -> Iterator[Model]:
    names = (
        "resnet18 resnet50 resnet50_fc512 resnext50_32x4d se_resnet50 se_resnet50_fc512 "
        "se_resnext50_32x4d densenet121 inceptionresnetv2 inceptionv4 xception resnet50_ibn_a "
        "resnet50_ibn_b mobilenetv2_x1_0 shufflenet squeezenet1_0 squeezenet1_1 "
        "shufflenet_v2_x0_5 mudeep resnet50mid hacnn pcb_p6 mlfn osnet_x0_25 osnet_ibn_x1_0 "
        "osnet_ain_x0_25"
    )
    for name in names.split():
        size = {"hacnn": (160, 64), "mudeep": (256, 128), "inceptionv4": (299, 299), "inceptionresnetv2": (299, 299)}
        build = _called(
            "torchreid.reid.models", "build_model", name, 10, loss="softmax", pretrained=False, use_gpu=False
        )
        if name == "nasnetamobile":
            size[name] = (224, 224)
        if name == "xception":
            size[name] = (299, 299)
        yield Model(name, build, noise(1, 3, *size.get(name, (128, 64))))


def _pytorchcv() -> Iterator[Model]:
    names = (
        "alexnet zfnet vgg11 bn_vgg11 bninception resnet10 preresnet10 resnext14_16x4d seresnet10 "
        "sepreresnet10 senet16 ibn_resnet50 ibnb_resnet50 airnet50_1x64d_r2 bam_resnet18 cbam_resnet18 "
        "resattnet56 sknet50 resnestabc14 diaresnet10 diapreresnet10 pyramidnet101_a360 diracnet18v2 "
        "sharesnet18 densenet121 condensenet74_c4_g4 sparsenet121 peleenet wrn50_2 drnc26 dpn68 "
        "darknet_ref darknet_tiny darknet19 darknet53 cspdarknet53 irevnet301 bagnet9 dla34 "
        "hrnet_w18_small_v1 vovnet27s selecsls42b hardnet39ds squeezenet_v1_0 squeezeresnet_v1_0 "
        "sqnxt23_w1 shufflenet_g1_w1 shufflenetv2_w1 shufflenetv2b_w1 menet108_8x1_g3 mobilenet_w1 "
        "fdmobilenet_w1 mobilenetv2_w1 mobilenetv3_large_w1 igcv3_w1 ghostnet mnasnet_b1 darts "
        "proxylessnas_cpu fbnet_cb xception inceptionv3 inceptionv4 inceptionresnetv1 nasnet_4a1056 "
        "spnasnet efficientnet_b0 mixnet_s rexnet_w1_0 regnetx002 octresnet10_ad2 res2net50_w14_s8 "
        "nin_cifar10 resnet20_cifar10 icnet_resnetd50b_cityscapes fastscnn_cityscapes cgnet_cityscapes "
        "dabnet_cityscapes sinet_cityscapes bisenet_resnet18_celebamaskhq danet_resnetd50b_cityscapes "
        "alphapose_fastseresnet101b_coco simplepose_resnet18_coco simplepose_mobile_resnet18_coco "
        "lwopenpose2d_mobilenet_cmupan_coco ibppose_coco centernet_resnet18_voc lffd20x5s320v2_widerface "
        "lffd25x8s560v1_widerface visemenet20 superpointnet jasperdr10x5_en quartznet5x5_en_ls"
    )
    special = {
        "inceptionv3": image(299), "inceptionv4": image(299), "inceptionresnetv1": image(299), "xception": image(299),
        "nin_cifar10": image(32), "resnet20_cifar10": image(32), "superpointnet": image(64, 1),
        "visemenet20": noise(1, 8, 8), "jasperdr10x5_en": lambda: (torch.randn(1, 64, 160), torch.tensor([160])),
        "quartznet5x5_en_ls": lambda: (torch.randn(1, 64, 160), torch.tensor([160])),
        "bagnet9": image(64), "irevnet301": image(224), "cgnet_cityscapes": image(128), "dabnet_cityscapes": image(128),
    }  # fmt: skip
    for name in names.split():
        options: dict[str, Any] = {"pretrained": False}
        side = 224
        if name.endswith(("cityscapes", "celebamaskhq")):
            side = 480
            options["in_size"] = (480, 480)
        yield Model(
            name, _called("pytorchcv.model_provider", "get_model", name, **options), special.get(name, image(side))
        )


def _vit_pytorch() -> Iterator[Model]:
    plain = {"image_size": 64, "patch_size": 16, "num_classes": 10, "dim": 64, "depth": 2, "heads": 2, "mlp_dim": 64}
    mean = dict(plain)
    rows: list[tuple[str, str, dict[str, Any], Any]] = [
        ("vit", "ViT", plain, image()),
        ("simple_vit", "SimpleViT", mean, image()),
        ("deepvit", "DeepViT", plain, image()),
        ("cait", "CaiT", {**plain, "cls_depth": 1}, image()),
        ("parallel_vit", "ViT", plain, image()),
        ("local_vit", "LocalViT", plain, image()),
        ("vit_for_small_dataset", "ViT", plain, image()),
        ("simple_vit_with_register_tokens", "SimpleViT", mean, image()),
        ("rvt", "RvT", plain, image()),
        ("vit_with_patch_merger", "ViT", {**plain, "patch_merge_layer": 1}, image()),
        (
            "t2t",
            "T2TViT",
            {
                "dim": 64,
                "image_size": 64,
                "depth": 2,
                "heads": 2,
                "mlp_dim": 64,
                "num_classes": 10,
                "t2t_layers": ((7, 4), (3, 2), (3, 2)),
            },
            image(),
        ),
        (
            "cct",
            "CCT",
            {
                "img_size": (64, 64),
                "embedding_dim": 64,
                "n_conv_layers": 2,
                "kernel_size": 7,
                "stride": 2,
                "padding": 3,
                "pooling_kernel_size": 3,
                "pooling_stride": 2,
                "pooling_padding": 1,
                "num_layers": 2,
                "num_heads": 2,
                "mlp_ratio": 2.0,
                "num_classes": 10,
                "positional_embedding": "learnable",
            },
            image(),
        ),
        (
            "cross_vit",
            "CrossViT",
            {"image_size": 64, "num_classes": 10, "depth": 1, "sm_dim": 32, "lg_dim": 64},
            image(),
        ),
        ("pit", "PiT", {**plain, "dim": 64, "depth": (1, 1, 1)}, image()),
        (
            "levit",
            "LeViT",
            {
                "image_size": 64,
                "num_classes": 10,
                "stages": 3,
                "dim": (32, 48, 64),
                "depth": 1,
                "heads": (2, 2, 2),
                "mlp_mult": 2,
            },
            image(),
        ),
        (
            "cvt",
            "CvT",
            {"num_classes": 10, "s1_emb_dim": 32, "s2_emb_dim": 32, "s3_emb_dim": 64, "s3_depth": 1},
            image(),
        ),
        (
            "twins_svt",
            "TwinsSVT",
            {
                "num_classes": 10,
                "s1_emb_dim": 32,
                "s2_emb_dim": 32,
                "s3_emb_dim": 64,
                "s4_emb_dim": 64,
                "s3_depth": 1,
                "s1_local_patch_size": 2,
                "s2_local_patch_size": 2,
                "s3_local_patch_size": 2,
                "s1_global_k": 2,
                "s2_global_k": 2,
                "s3_global_k": 2,
                "s4_global_k": 2,
            },
            image(),
        ),
        (
            "regionvit",
            "RegionViT",
            {"dim": (32, 32, 64, 64), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 10},
            image(64),
        ),
        (
            "crossformer",
            "CrossFormer",
            {
                "num_classes": 10,
                "dim": (32, 32, 64, 64),
                "depth": (1, 1, 1, 1),
                "global_window_size": (4, 4, 2, 1),
                "local_window_size": 2,
            },
            image(),
        ),
        (
            "scalable_vit",
            "ScalableViT",
            {
                "num_classes": 10,
                "dim": 32,
                "heads": (1, 2, 4, 4),
                "depth": (1, 1, 1, 1),
                "ssa_dim_key": (8, 8, 8, 8),
                "reduction_factor": (4, 2, 1, 1),
                "window_size": (8, 8, None, None),
                "ff_expansion": 2,
                "channels": 3,
            },
            image(128),
        ),
        (
            "sep_vit",
            "SepViT",
            {
                "num_classes": 10,
                "dim": 32,
                "dim_head": 16,
                "heads": (1, 2, 4, 4),
                "depth": (1, 1, 1, 1),
                "window_size": 2,
            },
            image(64),
        ),
        (
            "max_vit",
            "MaxViT",
            {
                "num_classes": 10,
                "dim": 32,
                "dim_head": 16,
                "depth": (1, 1),
                "window_size": 4,
                "dim_conv_stem": 16,
                "mbconv_expansion_rate": 2,
                "mbconv_shrinkage_rate": 0.25,
            },
            image(32),
        ),
        (
            "nest",
            "NesT",
            {
                "image_size": 64,
                "patch_size": 4,
                "dim": 32,
                "heads": 2,
                "num_hierarchies": 3,
                "block_repeats": (1, 1, 1),
                "num_classes": 10,
            },
            image(),
        ),
        (
            "mobile_vit",
            "MobileViT",
            {
                "image_size": (64, 64),
                "dims": [32, 48, 64],
                "channels": [16, 16, 24, 24, 32, 32, 48, 48, 64, 64, 128],
                "num_classes": 10,
            },
            image(),
        ),
        ("xcit", "XCiT", {**plain, "cls_depth": 1, "local_patch_kernel_size": 3}, image()),
        (
            "vit_3d",
            "ViT",
            {
                "image_size": 32,
                "image_patch_size": 16,
                "frames": 4,
                "frame_patch_size": 2,
                "num_classes": 10,
                "dim": 64,
                "depth": 2,
                "heads": 2,
                "mlp_dim": 64,
            },
            noise(1, 3, 4, 32, 32),
        ),
        (
            "vivit",
            "ViT",
            {
                "image_size": 32,
                "image_patch_size": 16,
                "frames": 4,
                "frame_patch_size": 2,
                "num_classes": 10,
                "dim": 64,
                "spatial_depth": 1,
                "temporal_depth": 1,
                "heads": 2,
                "mlp_dim": 64,
            },
            noise(1, 3, 4, 32, 32),
        ),
        (
            "vit_1d",
            "ViT",
            {"seq_len": 256, "patch_size": 16, "num_classes": 10, "dim": 64, "depth": 2, "heads": 2, "mlp_dim": 64},
            noise(1, 3, 256),
        ),
        ("ats_vit", "ViT", {**plain, "max_tokens_per_depth": (8, 4)}, image()),
        ("jumbo_vit", "JumboViT", plain, image()),
        ("simple_uvit", "SimpleUViT", mean, image()),
        (
            "look_vit",
            "LookViT",
            {
                "dim": 64,
                "image_size": 64,
                "num_classes": 10,
                "depth": 1,
                "patch_size": 16,
                "highres_patch_size": 8,
                "heads": 2,
                "mlp_factor": 2,
                "dim_head": 16,
            },
            image(),
        ),
    ]
    for module, cls, settings, inputs in rows:
        name = "CvT" if module == "cvt" else cls
        yield Model(f"{module}.{name}", _called(f"vit_pytorch.{module}", cls, **settings), inputs)


def _kornia() -> Iterator[Model]:
    rows: list[tuple[str, str, dict[str, Any], Any]] = [
        ("kornia.feature", "HardNet", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "HardNet8", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "HyNet", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "SOSNet", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "TFeat", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "OriNet", {"pretrained": False}, noise(2, 1, 32, 32)),
        ("kornia.feature", "KeyNet", {"pretrained": False}, image(64, 1)),
        ("kornia.feature", "XFeatModel", {}, image(64, 3)),
        ("kornia.feature", "DISK", {}, image(64)),
        ("kornia.feature", "DeFMO", {"pretrained": False}, noise(1, 6, 64, 64)),
        (
            "kornia.feature",
            "DeDoDe",
            {},
            image(64),
        ),
        ("kornia.feature", "SOLD2_detector", {"pretrained": False}, image(64, 1)),
        ("kornia.feature", "ALIKED", {}, image(64)),
        (
            "kornia.feature",
            "LoFTR",
            {"pretrained": None},
            lambda: ({"image0": torch.rand(1, 1, 64, 64), "image1": torch.rand(1, 1, 64, 64)},),
        ),
        ("kornia.models.dexined", "DexiNed", {"pretrained": False}, image(64)),
        (
            "kornia.models.rrdbnet",
            "RRDBNet",
            {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 1, "scale": 2},
            image(32),
        ),
        ("kornia.models.vit", "VisionTransformer", {"image_size": 64, "patch_size": 16, "depth": 2}, image(64)),
        ("kornia.models.vit_mobile", "MobileViT", {}, image(256)),
        ("kornia.models.tiny_vit", "TinyViT.from_config", {"variant": "5m", "img_size": 64}, image(64)),
        ("kornia.models.efficient_vit.backbone", "efficientvit_backbone_b0", {}, image(64)),
        ("kornia.models.efficient_vit.backbone", "efficientvit_backbone_l0", {}, image(64)),
        ("kornia.models.yunet", "YuNet", {"phase": "test", "pretrained": False}, image(64)),
    ]
    for module, name, settings, inputs in rows:
        yield Model(name.partition(".")[0], _called(module, name, **settings), inputs)


def _others() -> Iterator[Model]:
    yield Model("segment_anything vit_b encoder", lambda: _sam(), image(128))
    for name in "RN50 RN50x4 ViT-B-32 ViT-B-16-SigLIP convnext_base coca_ViT-B-32".split():
        yield Model(
            f"open_clip {name} visual", lambda name=name: _open_clip(name), image(288 if name == "RN50x4" else 224)
        )
    yield Model(
        "facenet InceptionResnetV1",
        _called("facenet_pytorch", "InceptionResnetV1", pretrained=None, classify=True, num_classes=10),
        image(160),
    )
    for name, side in (("PNet", 24), ("RNet", 24), ("ONet", 48)):
        yield Model(
            f"facenet {name}", _called("facenet_pytorch.models.mtcnn", name, pretrained=False), noise(2, 3, side, side)
        )
    yield Model("torchxrayvision DenseNet", _called("torchxrayvision.models", "DenseNet", weights=None), image(224, 1))
    yield Model(
        "torchxrayvision ResNetAE", _called("torchxrayvision.autoencoders", "ResNetAE", weights=None), image(224, 1)
    )


def _sam() -> Any:
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    return ImageEncoderViT(
        img_size=128, depth=2, embed_dim=96, num_heads=3, window_size=4, global_attn_indexes=(1,), use_rel_pos=True,
        qkv_bias=True,
    )  # fmt: skip


def _open_clip(name: str) -> Any:
    import open_clip

    return open_clip.create_model(name, pretrained=None).visual


LIBRARIES = [
    Library("segmentation-models-pytorch", ("segmentation-models-pytorch",), _smp),
    Library("efficientnet-pytorch", ("efficientnet-pytorch",), _efficientnet),
    Library("pretrainedmodels", ("pretrainedmodels", "munch", "six"), _pretrainedmodels),
    Library(
        "torchreid",
        ("torchreid", "gdown", "beautifulsoup4", "soupsieve", "six", "tensorboard", "absl-py", "yacs"),
        _torchreid,
    ),
    Library("pytorchcv", ("pytorchcv",), _pytorchcv),
    Library("vit-pytorch", ("vit-pytorch", "einops"), _vit_pytorch),
    Library("kornia", ("kornia", "kornia-rs"), _kornia),
    Library(
        "others",
        (
            "segment-anything",
            "open-clip-torch",
            "ftfy",
            "wcwidth",
            "facenet-pytorch",
            "torchxrayvision",
            "imageio",
            "lazy-loader",
            "scikit-image",
            "tifffile",
            "pandas",
            "pytz",
        ),
        _others,
    ),
]
