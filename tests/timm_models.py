"""Small models of timm's with random weights in which every branch matters."""

import timm
import torch
from helpers import seeded
from timm.models.vision_transformer import VisionTransformer
from torch import nn

TINY_VIT = {
    "img_size": 24,
    "patch_size": 8,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2,
    "num_classes": 5,
}
TINY_SWIN = {
    "img_size": 40,
    "depths": (2, 2),
    "embed_dim": 12,
    "num_heads": (2, 3),
    "window_size": 4,
}

# Name, arguments, side of the image.
FAMILIES = {
    "test_resnet": ({}, 36),
    "resnet18": ({}, 33),
    "resnet26d": ({}, 36),
    "seresnet33ts": ({}, 36),
    "ecaresnet26t": ({}, 40),
    "resnetaa34d": ({}, 64),
    "resnetv2_50": ({}, 40),
    "resnetv2_50x1_bit": ({}, 40),
    "test_convnext": ({}, 44),
    "test_convnext2": ({}, 44),
    "test_convnext3": ({}, 44),
    "convnextv2_atto": ({}, 44),
    "test_vit": ({"img_size": 32}, 32),
    "test_vit2": ({"img_size": 32}, 32),
    "test_vit3": ({"img_size": 32}, 32),
    "test_vit4": ({"img_size": 32}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 48, "depth": 2}, 48),
    "deit3_small_patch16_224": ({"img_size": 48, "depth": 2}, 48),
    "swin_tiny_patch4_window7_224": (TINY_SWIN, 40),
    "test_mambaout": ({}, 44),
    "mambaout_femto": ({"depths": (1, 1, 2, 1)}, 64),
    "efficientvim_m1": ({}, 64),
    "efficientvim_m1_dist": ({}, 64),
    "test_efficientnet": ({}, 36),
    "test_efficientnet_gn": ({}, 36),
    "test_efficientnet_ln": ({}, 36),
    "mobilenetv3_small_050": ({}, 36),
    "tf_mobilenetv3_small_minimal_100": ({}, 37),
    "regnetx_002": ({}, 36),
    "regnety_002": ({}, 36),
    "densenet121": ({}, 36),
    "mixer_s32_224": ({"img_size": 64}, 64),
    "inception_next_atto": ({}, 64),
    "poolformer_s12": ({}, 64),
}

VARIANTS = {
    "plain": {},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 2},
    "registers and no class token": {
        "class_token": False,
        "reg_tokens": 3,
        "global_pool": "avg",
    },
    "position after the tokens": {"no_embed_class": True, "reg_tokens": 1},
    "no position": {"pos_embed": "none"},
    "normalised queries": {"qk_norm": True},
    "layer scale": {"init_values": 0.5},
    "attention pool": {"class_token": False, "global_pool": "map"},
    "norm before": {"pre_norm": True},
    "norm after the pool": {"global_pool": "avg", "fc_norm": True},
    "any size": {"dynamic_img_size": True},
}


def family(name, dtype=torch.float64):
    """A model of a family, and the side of the images for it."""
    options, size = FAMILIES[name]
    with seeded():
        model = timm.create_model(name, num_classes=5, **options).to(dtype).eval()
    return alive(model), size


def vit(dtype=torch.float64, **options):
    with seeded():
        model = VisionTransformer(**TINY_VIT | options).to(dtype).eval()
    return alive(model)


def alive(model):
    """Move every weight, and the running statistics, away from where they start."""
    generator = torch.Generator().manual_seed(1)

    def noise(like):
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.dim() in (2, 4) else 10
            parameter.add_(noise(parameter) * fan**-0.5)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.add_(0.3 * noise(module.running_mean))
                module.running_var.add_(noise(module.running_var).abs())
    return model
