"""The configuration of an instance of hustvl/Vim's `VisionMamba`, read off its parts."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["options", "unsupported"]


def options(model: Any) -> dict[str, Any]:
    """Arguments of `vimlrp.models.VisionMamba` for the same architecture.

    Args:
        model: An official instance without an unsupported option.
    """
    embed, mixer = model.patch_embed, model.layers[0].mixer
    inner, _, width = mixer.conv1d.weight.shape
    return {
        "img_size": tuple(embed.img_size),
        "patch_size": embed.proj.kernel_size[0],
        "stride": embed.proj.stride[0],
        "in_chans": embed.proj.in_channels,
        "num_classes": getattr(model.head, "out_features", 0),
        "global_pool": "token" if model.if_cls_token else "avg",
        "embed_dim": embed.proj.out_channels,
        "depth": len(model.layers),
        "d_state": mixer.A_log.shape[1],
        "d_conv": width,
        "expand": inner // embed.proj.out_channels,
        "class_token": _class_token(model),
        "divide_out": _divides(mixer),
        "eps": model.norm_f.eps,
    }


def unsupported(model: Any) -> Iterator[str]:
    """Name what the instance has and vimlrp's Vim has not.

    Args:
        model: An instance of the official class.
    """
    if model.if_rope:
        yield "a rotary position embedding (if_rope=True)"
    if model.if_bidirectional:
        yield "layers in pairs, one for each direction (if_bidirectional=True)"
    if getattr(model, "flip_img_sequences_ratio", -1) > 0:
        yield "sequences that are flipped at random (flip_img_sequences_ratio)"
    if not model.if_abs_pos_embed:
        yield "no position embedding (if_abs_pos_embed=False)"
    if isinstance(model.norm_f, nn.LayerNorm) or model.norm_f.bias is not None:
        yield "LayerNorm instead of RMSNorm (rms_norm=False)"
    if not isinstance(model.head, nn.Linear | nn.Identity):
        yield f"a {type(model.head).__name__} in the place of the linear classifier"
    yield from _of_pooling(model)
    yield from _of_patches(model.patch_embed)
    mixers = [layer.mixer for layer in model.layers]
    yield from dict.fromkeys(text for mixer in mixers for text in _of_mixer(mixer))
    if len({_divides(mixer) for mixer in mixers}) > 1:
        yield "layers of which some sum and some average their directions (if_divide_out)"


def _of_pooling(model: Any) -> Iterator[str]:
    pool = model.final_pool_type
    if pool == "max" or (not model.if_cls_token and pool != "mean"):
        known = "'none' and 'mean' are" if model.if_cls_token else "without a class token 'mean' is"
        yield f"a final_pool_type of {pool!r} ({known} known)"


def _of_patches(embed: Any) -> Iterator[str]:
    kernel, stride = embed.proj.kernel_size, embed.proj.stride
    if len(set(kernel)) > 1 or len(set(stride)) > 1 or any(embed.proj.padding):
        yield f"patches of {kernel} pixels at distances of {stride} (square ones are known)"
    if not isinstance(embed.norm, nn.Identity):
        yield "a norm after the patch embedding (norm_layer)"


def _of_mixer(mixer: Any) -> Iterator[str]:
    if mixer.bimamba_type != "v2":
        yield f"mixers of bimamba_type {mixer.bimamba_type!r} ('v2' is known)"
    if getattr(mixer, "init_layer_scale", None) is not None:
        yield "a scale of every layer (init_layer_scale)"
    if mixer.in_proj.bias is not None or mixer.out_proj.bias is not None:
        yield "biases of in_proj and out_proj (ssm_cfg's bias=True)"
    if mixer.conv1d.bias is None:
        yield "convolutions without bias (ssm_cfg's conv_bias=False)"
    dim, inner = mixer.in_proj.in_features, mixer.conv1d.weight.shape[0]
    if inner % dim:
        yield f"{inner} channels of the scan over a width of {dim}, no whole multiple (expand)"
    if mixer.dt_proj.in_features != math.ceil(dim / 16):
        yield f"a rank of {mixer.dt_proj.in_features} of the step (dt_rank)"
    if mixer.activation not in ("silu", "swish"):
        yield f"the activation {mixer.activation!r}"


def _class_token(model: Any) -> str:
    if not model.if_cls_token:
        return "none"
    if model.use_double_cls_token:
        return "double"
    return "middle" if model.use_middle_cls_token else "head"


def _divides(mixer: Any) -> bool:
    """Whether the directions are averaged; the flag was misspelt once, and is absent before."""
    return bool(getattr(mixer, "if_divide_out", getattr(mixer, "if_devide_out", False)))
