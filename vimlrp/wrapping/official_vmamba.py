"""The configuration of an instance of MzeroMiko/VMamba's `VSSM`, read off its parts.

Both copies of the official code are read, that of its classification folder and the standalone
file, with maps in either layout.
"""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

__all__ = ["options", "unsupported"]

_STEMS = {((4, 4),): "v1", ((3, 2), (3, 2)): "v2"}
"""Kernel and stride of a stem's convolutions, and its patchembed_version."""

_GENERATIONS = {("v1", "v1", True, True): "v0", ("v2", "v3", False, False): "v2"}
"""Stem, downsampling, gate and bias of the depthwise convolution of what was published."""

_CROSS = ("cross2d", 0)


def options(model: Any) -> dict[str, Any]:
    """Arguments of `vimlrp.models.VMamba` for the same architecture.

    Args:
        model: An official instance without an unsupported option.
    """
    block = model.layers[-1].blocks[-1]
    width, channels = block.norm.weight.shape[0], block.op.conv2d.weight.shape[0]
    stem = _convolutions(model.patch_embed)
    return {
        "in_chans": stem[0].in_channels,
        "num_classes": model.classifier.head.out_features,
        "dim": stem[-1].out_channels,
        "depths": tuple(len(layer.blocks) for layer in model.layers),
        "generation": _GENERATIONS[_traits(model)],
        "d_state": block.op.A_logs.shape[1],
        "ssm_ratio": _ratio(channels, width),
        "mlp_ratio": _ratio(block.mlp.fc1.out_features, width) if block.mlp_branch else 0.0,
        "eps": model.classifier.norm.eps,
    }


def unsupported(model: Any) -> Iterator[str]:
    """Name what the instance has and vimlrp's VMamba has not.

    Args:
        model: An instance of the official class.
    """
    if hasattr(model, "out_indices"):
        yield "maps of several stages instead of a classifier (Backbone_VSSM)"
        return
    if model.pos_embed is not None:
        yield "a position embedding (posembed=True)"
    if not isinstance(model.classifier.head, nn.Linear):
        yield f"a {type(model.classifier.head).__name__} in the place of the linear classifier"
    if not isinstance(model.classifier.norm, nn.LayerNorm):
        yield f"{type(model.classifier.norm).__name__} as its norm (norm_layer; LN is known)"
    elif not any(isinstance(part, nn.LayerNorm) for part in model.patch_embed):
        yield "a stem without norms (patch_norm=False)"
    blocks = [block for layer in model.layers for block in layer.blocks]
    faults = list(dict.fromkeys(text for block in blocks for text in _of_block(block)))
    yield from faults
    if not faults and _traits(model) not in _GENERATIONS:
        stem, down, gated, bias = _traits(model)
        yield (
            f"a stem {stem!r} (patchembed_version), a downsampling {down!r} (downsample_version) "
            f"and mixers {'with' if gated else 'without'} gate and {'with' if bias else 'without'} "
            "bias of their convolution, together (v1, v1, with, with and v2, v3, without, without "
            "are known)"
        )


def _of_block(block: Any) -> Iterator[str]:
    if not block.ssm_branch:
        yield "blocks without a mixer (ssm_ratio=0)"
        return
    if block.post_norm:
        yield "norms after the branches (post_norm=True)"
    yield from _of_mixer(block.op)
    if block.mlp_branch:
        if block.mlp.fc1.out_features != block.mlp.fc2.in_features:
            yield "gated MLPs (gmlp=True)"
        if not _is_gelu(block.mlp.act):
            yield f"the activation {block.mlp.act} in its MLPs (mlp_act_layer; gelu is known)"


def _of_mixer(op: Any) -> Iterator[str]:
    kind = _forward_of(op)
    if kind not in ("forwardv0", "forwardv2"):
        yield f"mixers of another kind ({kind}: a forward_type that begins with xv or m)"
        return
    if kind == "forwardv2":
        yield from _of_forward_type(op)
    if not isinstance(op.act, nn.SiLU):
        yield f"the activation {op.act} in its mixers (ssm_act_layer; silu is known)"
    conv = getattr(op, "conv2d", None)
    if conv is None or conv.weight.shape[-2:] != (3, 3):
        yield "mixers without a 3 x 3 convolution (ssm_conv)"
    if op.in_proj.bias is not None or op.out_proj.bias is not None:
        yield "biases of in_proj and out_proj (bias=True)"
    if getattr(op, "x_proj_bias", None) is not None:
        yield "a bias of x_proj (x_proj_bias)"
    rank = (op.dt_projs.weight if hasattr(op, "dt_projs") else op.dt_projs_weight).shape[-1]
    if rank != math.ceil(op.in_proj.weight.shape[1] / 16):
        yield f"a rank of {rank} of the step (ssm_dt_rank)"


def _of_forward_type(op: Any) -> Iterator[str]:
    """What the postfixes and the core of a forward_type ask for."""
    if op.oact:
        yield "a GELU after the scans (forward_type with _oact)"
    if op.disable_z_act and not op.disable_z:
        yield "a gate without activation (forward_type with _nozact)"
    if not isinstance(op.out_norm, nn.LayerNorm):
        kind = type(op.out_norm).__name__
        yield f"{kind} in the place of LayerNorm after the scans (forward_type with _on...)"
    mode = getattr(op.forward_core, "keywords", {}).get("scan_mode", "cross2d")
    if mode not in _CROSS:
        yield f"routes of the kind {mode!r} (forward_type v051d to v052d3; cross2d is known)"


def _traits(model: Any) -> tuple[str, str, bool, bool]:
    convolutions = tuple((c.kernel_size[0], c.stride[0]) for c in _convolutions(model.patch_embed))
    op = model.layers[0].blocks[0].op
    gated = not getattr(op, "disable_z", False)
    stem = _STEMS.get(convolutions, f"with convolutions {convolutions}")
    return stem, _downsampling(model.layers[0].downsample), gated, op.conv2d.bias is not None


def _downsampling(module: Any) -> str:
    kernels = [c.kernel_size[0] for c in _convolutions(module)]
    if kernels:
        return "v3" if kernels == [3] else "v2"
    linear = any(isinstance(part, nn.Linear) for part in module.modules())
    return "v1" if linear else "none"


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def _forward_of(op: Any) -> str:
    """The name of the forward that the official constructor has chosen."""
    chosen = getattr(op.forward, "func", op.forward)
    return str(getattr(chosen, "__name__", chosen))


def _is_gelu(act: nn.Module) -> bool:
    return isinstance(act, nn.GELU) and act.approximate == "none"


def _ratio(hidden: int, width: int) -> float:
    """A ratio that gives `hidden` again, however its product with `width` is rounded."""
    return hidden / width if hidden % width == 0 else (hidden + 0.5) / width
