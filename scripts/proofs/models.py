"""Models that nobody here wrote, with random weights: a name, how it is made, and how it is called."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .comparing import Caller, Maker

TIMM = (
    "resnet10t", "resnetv2_50d_gn", "regnetx_002", "mobilenetv2_035", "mobilenetv3_small_050",
    "mnasnet_small", "efficientnet_lite0", "ghostnet_050", "hardcorenas_a", "rexnetr_100", "densenet121",
    "dla46_c", "dpn48b", "hrnet_w18_small", "inception_next_atto", "cs3darknet_s", "convnext_atto",
    "convnextv2_atto", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientvit_m0", "efficientvit_b0", "fastvit_t8", "repghostnet_050", "repvit_m0_9", "repvgg_a0",
    "starnet_s1", "mambaout_femto", "levit_128s", "pit_ti_224", "poolformer_s12", "pvt_v2_b0",
    "xcit_nano_12_p16_224", "vit_tiny_patch16_224", "selecsls42b", "skresnet18", "legacy_seresnet18",
    "ese_vovnet19b_dw", "hgnetv2_b0", "tiny_vit_5m_224", "swiftformer_xs",
)  # fmt: skip
"""One small model of each of these families."""

CLASSIFICATION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "vgg11", "vit_b_32",
)  # fmt: skip
SIZES = {
    "efficientnet_b0": 128, "mobilenet_v3_small": 128, "inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224,
}  # fmt: skip
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "Linknet", "PSPNet", "PAN", "MAnet", "DeepLabV3Plus")


def _image(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64)


def timm_models() -> Iterator[tuple[str, Maker, Caller]]:
    """One small model a family."""
    import timm

    for name in TIMM:
        fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
        size = timm.models.get_pretrained_cfg(name).input_size[-1] if fixed else 96
        yield (
            name,
            lambda name=name: timm.create_model(name, num_classes=10),
            lambda model, size=size: model(_image(size)),
        )


def torchvision_models() -> Iterator[tuple[str, Maker, Caller]]:
    """Every family of classification, segmentation and detection."""
    from torchvision import models

    for name in CLASSIFICATION:
        size = SIZES.get(name, 64)
        yield (
            name,
            lambda name=name: models.get_model(name, weights=None, num_classes=10),
            lambda model, size=size: model(_image(size)),
        )
    bare = {"weights": None, "weights_backbone": None}
    for name in SEGMENTATION:
        yield (
            name,
            lambda name=name: models.get_model(name, num_classes=5, **bare),
            lambda model: model(_image(64)),
        )
    small = {"min_size": 96, "max_size": 96}
    for name in DETECTION:
        size_options = {} if name.startswith("ssd") else small
        if "rcnn" in name:
            size_options = {**small, "box_batch_size_per_image": 16}
        yield (
            name,
            lambda name=name, options=size_options: models.get_model(name, num_classes=3, **bare, **options),
            lambda model, name=name: model(list(_image(96)), _targets(name)),
        )


def _targets(name: str) -> list[dict[str, Tensor]]:
    target: dict[str, Tensor] = {
        "boxes": torch.tensor([[8.0, 10, 50, 60], [30, 20, 80, 90]], dtype=torch.float64),
        "labels": torch.tensor([1, 2]),
    }
    if name.startswith("mask"):
        target["masks"] = torch.ones(2, 96, 96, dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.tensor([[[20.0, 20, 1]] * 17, [[40.0, 40, 1]] * 17])
        target["labels"] = torch.tensor([1, 1])
    return [target, target]


def diffusers_models() -> Iterator[tuple[str, Maker, Caller]]:
    """The denoiser and the autoencoder of image diffusion, from small configurations."""
    from diffusers import AutoencoderKL, UNet2DModel

    def unet() -> nn.Module:
        made: nn.Module = UNet2DModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        return made

    def autoencoder() -> nn.Module:
        made: nn.Module = AutoencoderKL(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        return made

    yield "UNet2DModel", unet, lambda model: model(_image(16), 10)
    yield "AutoencoderKL", autoencoder, lambda model: model(_image(32))


def segmentation_models() -> Iterator[tuple[str, Maker, Caller]]:
    """Every kind of decoder, on one small encoder."""
    import segmentation_models_pytorch as smp

    for name in ARCHITECTURES:
        yield (
            f"smp.{name}",
            lambda name=name: getattr(smp, name)(encoder_name="resnet18", encoder_weights=None, classes=3),
            lambda model: model(_image(128)),
        )


MODELS = {
    "timm": timm_models,
    "torchvision": torchvision_models,
    "diffusers": diffusers_models,
    "segmentation": segmentation_models,
}
"""What there is, by subject."""
