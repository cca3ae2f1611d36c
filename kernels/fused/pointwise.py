"""Element-wise factors that rules take from a forward pass, in one pass over memory each.

For float32 in C++ on a CPU and in Triton on a GPU, in plain PyTorch for all else. None records a
gradient.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vimlrp.kernels.backends import choose
from vimlrp.kernels.fused import maps_native

__all__ = ["gamma_shares", "gelu_ratio"]


@torch.no_grad()
def gamma_shares(z: Tensor, magnitude: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The factors of a gradient at z, and at the sum of magnitudes, by generalised LRP-gamma.

    With half = gamma / 2 these are (1 + half) q and half sign(z) q, where
    q = |z| / (|z| + half (|z| + magnitude)); 1 and 0 where z is 0 (MambaLRP, appendix C.2).

    Args:
        z: Outputs of a layer, of any shape.
        magnitude: The sum of the magnitudes of all contributions to each.
        gamma: How much more the contributions of the winning sign count.

    Returns:
        Both factors, in the shape of z.
    """
    if _is_dense(z, magnitude) and choose("auto", z.device, z.dtype) == "triton":
        # Imported at first use: Triton is absent on most machines without a GPU.
        from vimlrp.kernels.fused import pointwise_triton

        return pointwise_triton.gamma_shares(z, magnitude, gamma)
    restore = _restore(z, magnitude)
    if restore is not None:
        rows = (_rows(z), _rows(magnitude))
        at_z, at_magnitude = map(restore, maps_native.gamma_shares(*rows, gamma))
        return at_z, at_magnitude
    half, none, sign = 0.5 * gamma, z == 0, z.sign()
    # In place, since fresh memory is what costs time.
    carrier = (sign * magnitude).mul_(half).add_(z, alpha=1 + half)
    ratio = torch.div(z, carrier, out=carrier).masked_fill_(none, 0.0)
    at_magnitude = sign.mul_(ratio).mul_(half)
    return ratio.mul_(1 + half).masked_fill_(none, 1.0), at_magnitude


@torch.no_grad()
def gelu_ratio(x: Tensor) -> Tensor:
    """GELU(x) / x, which is the normal distribution function.

    Args:
        x: Of any shape.

    Returns:
        The ratio, in the shape and dtype of x.
    """
    restore = _restore(x)
    if restore is not None:
        return restore(maps_native.gelu_ratio(_rows(x)))
    # In place on the first product: four passes over memory are most of its time.
    return (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)


def _restore(first: Tensor, *others: Tensor) -> Callable[[Tensor], Tensor] | None:
    """How rows become a tensor like the first again; None where the C++ cannot take them."""
    if not _is_dense(first, *others) or choose("auto", first.device, first.dtype) != "native":
        return None
    last = _with_channels_last(first)
    if last is first:
        return lambda rows: rows.view(first.shape)
    return lambda rows: rows.view(last.shape).permute(0, 3, 1, 2)


def _is_dense(first: Tensor, *others: Tensor) -> bool:
    """Whether these are float32, fill their memory and lie in it alike."""
    tensors = (first, *others)
    if torch.compiler.is_compiling() or any(x.dtype != torch.float32 for x in tensors):
        return False
    if any(x.shape != first.shape or x.stride() != first.stride() for x in others):
        return False
    last = _with_channels_last(first)
    return last.is_contiguous() and 0 not in last.shape[-1:]  # rows of nothing cannot be counted


def _with_channels_last(x: Tensor) -> Tensor:
    """The tensor itself, or the view in which a map (B, C, H, W) lies in memory."""
    if x.dim() == 4 and not x.is_contiguous():
        return x.permute(0, 2, 3, 1)
    return x


def _rows(x: Tensor) -> Tensor:
    """The values as they lie in memory, (1, L, C)."""
    x = _with_channels_last(x)
    return x.reshape(1, -1, x.shape[-1] if x.dim() else 1)
