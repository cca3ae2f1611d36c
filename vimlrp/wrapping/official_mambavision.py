"""The configuration of an instance of NVlabs/MambaVision's `MambaVision`, read off its parts."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from vimlrp.models.mambavision_levels import CONV_LEVELS

__all__ = ["options", "unsupported"]


def options(model: Any) -> dict[str, Any]:
    """Arguments of `vimlrp.models.MambaVision` for the same architecture.

    Args:
        model: An official instance without an unsupported option.
    """
    stem, block = model.patch_embed.conv_down, model.levels[-1].blocks[0]
    hidden, width = block.mlp.fc1.weight.shape
    scale = block.gamma_1
    return {
        "in_chans": stem[0].in_channels,
        "num_classes": getattr(model.head, "out_features", 0),
        "dim": stem[3].out_channels,
        "in_dim": stem[0].out_channels,
        "depths": tuple(len(level.blocks) for level in model.levels),
        "num_heads": tuple(_heads(level) for level in model.levels),
        "window_size": tuple(level.window_size for level in model.levels),
        "mlp_ratio": hidden / width if hidden % width == 0 else (hidden + 0.5) / width,
        "d_state": block.mixer.A_log.shape[1],
        "d_conv": block.mixer.conv1d_x.weight.shape[-1],
        "layer_scale": 1.0 if isinstance(scale, nn.Parameter) else None,
    }


def unsupported(model: Any) -> Iterator[str]:
    """Name what the instance has and vimlrp's MambaVision has not.

    Args:
        model: An instance of the official class.
    """
    if not isinstance(model.head, nn.Linear | nn.Identity):
        yield f"a {type(model.head).__name__} in the place of the linear classifier"
    convs = [block for level in model.levels[:CONV_LEVELS] for block in level.blocks]
    if any(getattr(block, "gamma", None) is not None for block in convs):
        yield "a scale of the convolutional blocks (layer_scale_conv)"
    blocks = [block for level in model.levels[CONV_LEVELS:] for block in level.blocks]
    yield from dict.fromkeys(text for block in blocks for text in _of_block(block))


def _of_block(block: Any) -> Iterator[str]:
    act = block.mlp.act
    if not isinstance(act, nn.GELU) or act.approximate != "none":
        yield f"the activation {act} in its MLPs (act_layer)"
    mixer = block.mixer
    if hasattr(mixer, "qkv"):
        yield from _of_attention(mixer)
    elif mixer.in_proj.weight.shape[0] != mixer.in_proj.weight.shape[1]:
        yield "mixers that are wider than their block (expand)"
    elif mixer.in_proj.bias is not None or mixer.conv1d_x.bias is not None:
        yield "biases in its mixers (bias, conv_bias)"


def _of_attention(mixer: Any) -> Iterator[str]:
    if mixer.qkv.bias is None:
        yield "attention without biases (qkv_bias=False)"
    if not isinstance(mixer.q_norm, nn.Identity):
        yield "norms of queries and keys (qk_scale)"
    if mixer.fused_attn and mixer.attn_drop.p > 0:
        yield "attention that drops weights in evaluation too (attn_drop_rate)"


def _heads(level: Any) -> int:
    """Heads of a level's attention; 1 where none attends."""
    heads = (getattr(getattr(b, "mixer", None), "num_heads", None) for b in level.blocks)
    return next((int(count) for count in heads if count is not None), 1)
