"""The factors of `pointwise` on a CUDA GPU, in one pass over memory each."""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimlrp.kernels.fused.launching import launch

__all__ = ["gamma_shares"]

_BLOCK = 1024


@triton.jit
def gamma_shares_kernel(z, magnitude, at_z, at_magnitude, half, count, BLOCK: tl.constexpr):
    """`pointwise.gamma_shares` with half of gamma."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    value = tl.load(z + at, inside, 1.0)
    size = tl.abs(value)
    total = size + half * (size + tl.load(magnitude + at, inside, 0.0))
    ratio = size / total
    none = value == 0.0
    tl.store(at_z + at, tl.where(none, 1.0, (1.0 + half) * ratio), inside)
    signed = tl.where(value > 0.0, half * ratio, -half * ratio)
    tl.store(at_magnitude + at, tl.where(none, 0.0, signed), inside)


def gamma_shares(z: Tensor, magnitude: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`pointwise.gamma_shares` for float32 tensors of one layout in memory."""
    at_z, at_magnitude = torch.empty_like(z), torch.empty_like(z)
    launch(
        gamma_shares_kernel, triton.cdiv(z.numel(), _BLOCK), z, magnitude, at_z, at_magnitude,
        0.5 * gamma, z.numel(), BLOCK=_BLOCK,
    )  # fmt: skip
    return at_z, at_magnitude
