"""The fused operations on sequences as their equations say it: the twins of the fast programs.

Plain PyTorch, any device, any floating dtype; `sequences` documents arguments and results.
Arithmetic is float32, or float64 where any input is float64.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.kernels.dtypes import compute_dtype

__all__ = [
    "add_rms_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gate",
    "gate_relevance",
    "norm_relevance",
    "step",
]


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`sequences.add_rms_norm`."""
    dtype = compute_dtype(hidden, residual, weight)
    stream = hidden.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if residual is not None:
        stream = stream + residual
    inverse = torch.rsqrt(stream.square().mean(-1) + eps)  # (B, L)
    normed = stream * inverse.unsqueeze(-1) * weight
    return stream.contiguous(), normed.to(weight.dtype).contiguous(), inverse


def norm_relevance(
    at_normed: Tensor, at_stream: Tensor | None, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """`sequences.norm_relevance`."""
    dtype = compute_dtype(at_normed, at_stream, weight, inverse)
    out = at_normed.to(dtype) * weight * inverse.unsqueeze(-1)
    out = (out if at_stream is None else at_stream + out).contiguous()
    return out, out.to(at_normed.dtype)


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...]) -> Tensor:
    """`sequences.conv_silu`."""
    products = _products(x, weight, bias, reverse)  # (B, K, L, E, W)
    return F.silu(_total(products, bias)).to(x.dtype)


def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: tuple[bool, ...],
    gamma: float,
    out_x: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sequences.conv_silu_relevance`: `rules.Identity` of SiLU, then `rules.Gamma`, by hand."""
    products = _products(x, weight, bias, reverse)  # (B, K, L, E, W)
    c = _total(products, bias)
    magnitude = _total(products.abs(), None if bias is None else bias.abs())
    sign, emphasis = c.sign(), 0.5 * gamma * (c != 0)
    carrier = c + emphasis * (c + sign * magnitude)
    s = at_u * torch.sigmoid(c) * torch.where(c == 0, 1.0, c / carrier)  # (B, K, L, E)
    # The slope of a magnitude |w x| is w times the sign of the product, and 0 where x is 0.
    taps = _taps(weight.to(s.dtype), reverse)  # (K, 1, E, W)
    agree = sign.unsqueeze(-1) * products.sign()  # (B, K, L, E, W)
    slopes = taps * (1 + emphasis.unsqueeze(-1) * (1 + agree))
    at_x = _gather(s.unsqueeze(-1) * slopes, reverse).to(x.dtype if out_x is None else out_x.dtype)
    absorbed = s.new_zeros(len(x))
    if bias is not None:
        b = bias.to(s.dtype).unsqueeze(1)  # (K, 1, E)
        share = s * (b + emphasis * (b + sign * b.abs()))
        absorbed = share.flatten(1).sum(1)
    return at_x if out_x is None else out_x.copy_(at_x), absorbed


def gate(y: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`sequences.gate`."""
    dtype = compute_dtype(y, z)
    signal = scale * y.to(dtype).sum(1)  # (B, L, E)
    gated = (signal * F.silu(z.to(dtype))).to(y.dtype)
    return gated.contiguous(), signal.to(y.dtype).contiguous()


def gate_relevance(
    at_gated: Tensor,
    signal: Tensor,
    z: Tensor,
    share_signal: float,
    share_gate: float,
    scale: float,
    out_z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sequences.gate_relevance`: `rules.Share` of the gate, `rules.Identity` of its SiLU."""
    dtype = compute_dtype(at_gated, signal, z)
    at, wide = at_gated.to(dtype), z.to(dtype)
    at_y = (at * F.silu(wide) * (share_signal * scale)).to(signal.dtype)
    at_z = at * signal * share_gate * torch.sigmoid(wide)
    if out_z is not None:
        return at_y.contiguous(), out_z.copy_(at_z)
    return at_y.contiguous(), at_z.to(z.dtype).contiguous()


def step(low: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`sequences.step`."""
    dtype = compute_dtype(low, weight, bias)
    raw = low.to(dtype) @ weight.to(dtype).transpose(1, 2) + bias.to(dtype).unsqueeze(1)
    return F.softplus(raw).to(low.dtype).contiguous()


def _windows(x: Tensor, width: int, reverse: tuple[bool, ...]) -> Tensor:
    """The `width` inputs that every output sees, in memory order, (B, K, L, E, W)."""
    pads = [(0, 0, 0, width - 1) if back else (0, 0, width - 1, 0) for back in reverse]
    return torch.stack([F.pad(x, pad).unfold(1, width, 1) for pad in pads], 1)


def _taps(weight: Tensor, reverse: tuple[bool, ...]) -> Tensor:
    """The weights of those inputs, (K, 1, E, W)."""
    rows = [w.flip(-1) if back else w for w, back in zip(weight, reverse, strict=True)]
    return torch.stack(rows).unsqueeze(1)


def _products(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...]) -> Tensor:
    dtype = compute_dtype(x, weight, bias)
    return _windows(x.to(dtype), weight.shape[2], reverse) * _taps(weight.to(dtype), reverse)


def _total(products: Tensor, bias: Tensor | None) -> Tensor:
    """Sum the contributions of an output, (B, K, L, E)."""
    return products.sum(-1) if bias is None else products.sum(-1) + bias.unsqueeze(1)


def _gather(shares: Tensor, reverse: tuple[bool, ...]) -> Tensor:
    """Sum what every output passes to its inputs, (B, K, L, E, W), per input, (B, L, E)."""
    batch, _, length, channels, width = shares.shape
    out = shares.new_zeros((batch, length + 2 * (width - 1), channels))
    for k, back in enumerate(reverse):
        first = width - 1 if back else 0
        for tap in range(width):
            out[:, first + tap : first + tap + length] += shares[:, k, ..., tap]
    return out[:, width - 1 : width - 1 + length].contiguous()
