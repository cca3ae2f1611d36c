"""The fused operations on maps as their equations say it: the twins of the fast programs.

Plain PyTorch, any device, any floating dtype; `maps` documents arguments and results. Arithmetic is
float32, or float64 where any input is float64.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.kernels.dtypes import compute_dtype

__all__ = [
    "add_layer_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gelu_relevance",
    "layer_norm",
    "layer_norm_relevance",
]


def layer_norm(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`maps.layer_norm`."""
    total = y.to(compute_dtype(y, weight, bias)).sum(1)  # (B, L, C)
    return _normalised(total, weight, bias, eps)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, after: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.add_layer_norm`."""
    total = x.to(compute_dtype(x, branch, weight, bias, after)) + branch
    stream = total if after is None else total + after
    return stream.to(x.dtype).contiguous(), *_normalised(total, weight, bias, eps)


def layer_norm_relevance(
    at_normed: Tensor,
    at_stream: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    inverse: Tensor,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.layer_norm_relevance`: `rules.ConstantNormaliser` by hand."""
    dtype = compute_dtype(at_normed, at_stream, weight, bias, inverse, after)
    at = at_normed.to(dtype)
    absorbed = _absorbed(at, bias)
    scaled = at * weight
    at = (scaled - scaled.mean(-1, keepdim=True)) * inverse.unsqueeze(-1)
    by_after = torch.zeros_like(absorbed)
    if at_stream is not None:
        at = at + at_stream
        by_after = by_after if after is None else _absorbed(at_stream.to(dtype), after)
    return at.to(at_normed.dtype).contiguous(), absorbed, by_after


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`maps.conv_silu`."""
    dtype = compute_dtype(x, weight, bias)
    return F.silu(_convolve(x.to(dtype), weight, bias)).to(x.dtype).contiguous()


def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: float,
    out_x: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`maps.conv_silu_relevance`: `rules.Identity` of SiLU, then `rules.Gamma`, by hand."""
    dtype = compute_dtype(at_u, x, weight, bias)
    wide, half = x.to(dtype), 0.5 * gamma
    c = _convolve(wide, weight, bias)  # (B, H, W, C)
    magnitude = _convolve(wide.abs(), weight.abs(), None if bias is None else bias.abs())
    # An input of the sign of c counts 1 + gamma times: 1 + gamma / 2 of its share and gamma / 2 of
    # its size, with the product of both signs. In place, since fresh memory is what costs time.
    none, sign, plain = c == 0, c.sign(), c.sigmoid()
    carrier = magnitude.mul_(sign).add_(c).mul_(half).add_(c)
    plain.mul_(c.div_(carrier).mul_(1 + half).masked_fill_(none, 1.0)).mul_(at_u.to(dtype).sum(1))
    signed = sign.mul_(plain).mul_(half / (1 + half))
    # The adjoint of a centred convolution is the convolution with its taps in reverse.
    taps = weight.flip(1, 2)
    at_x = _convolve(plain, taps, None)
    at_x.addcmul_(wide.sign(), _convolve(signed, taps.abs(), None))
    absorbed = plain.new_zeros(len(x))
    if bias is not None:
        absorbed = _absorbed(plain, bias) + _absorbed(signed, bias.abs())
    at_x = at_x.to(x.dtype if out_x is None else out_x.dtype)
    return at_x.contiguous() if out_x is None else out_x.copy_(at_x), absorbed


def gelu_relevance(at: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`maps.gelu_relevance`: `rules.Identity` of GELU, whose ratio is Phi(x)."""
    dtype = compute_dtype(at, x, bias)
    ratio = (x.to(dtype) * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
    at_x = ratio.mul_(at)
    return at_x.to(x.dtype).contiguous(), _absorbed(at_x, bias)


def _normalised(total: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise rows; the result in the dtype of weight, and the inverse deviations (B, L)."""
    dtype = total.dtype
    normed, _, inverse = torch.native_layer_norm(
        total, weight.shape, weight.to(dtype), bias.to(dtype), eps
    )
    return normed.to(weight.dtype).contiguous(), inverse.squeeze(-1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) with taps (C, 3, 3), a border of zeros around the map."""
    taps, shift = weight.to(x.dtype).unsqueeze(1), None if bias is None else bias.to(x.dtype)
    out = F.conv2d(x.permute(0, 3, 1, 2), taps, shift, padding=1, groups=len(taps))
    return out.permute(0, 2, 3, 1)


def _absorbed(at: Tensor, bias: Tensor) -> Tensor:
    """What a bias takes of a gradient (B, ..., C) in each sample, (B,)."""
    return (at @ bias.to(at.dtype)).flatten(1).sum(1)
