"""The selective scan as the equations say it: the twin that every backend is tested against.

One plain PyTorch step per position, any device, any floating dtype. The gradient is autograd's,
through the factors that the caller names; the other factors are detached, which is the
MambaLRP rule for a selective scan (Jafari et al., 2024, section 4).
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vimlrp.kernels.dtypes import compute_dtype
from vimlrp.kernels.scan.order import visited

__all__ = ["FACTORS", "scan"]

FACTORS = ("u", "A", "B", "C")


def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    factors: Collection[str],
) -> Tensor:
    """Scan every direction, one step at a time.

    Args:
        u: Input, (B, K, L, D), or (B, 1, L, D) read by every direction.
        dt: Step, after softplus and bias, (B, K, L, D).
        A: Decay rates, (K, D, N).
        B: Input projection, (B, K, L, G, N).
        C: Output projection, (B, K, L, G, N).
        D: Skip weights, (K, D), or None.
        index: Positions per direction, (K, L), or None for raster order.
        reverse: One flag per direction.
        factors: Members of `FACTORS` that the gradient goes through.

    Returns:
        The output in the positions of u, (B, K, L, D), in the dtype of u.
    """
    dtype = compute_dtype(u, dt, A, B, C, D)
    steps = visited(index, reverse, dt.shape[2], dt.device)
    ys, h = [], dt.new_zeros((), dtype=dtype)
    ordered = (_in_order(x.to(dtype), steps) for x in (u, dt, B, C))
    for u_t, dt_t, B_t, C_t in zip(*ordered, strict=True):
        step = dt_t.unsqueeze(-1)  # (B, K, D, 1)
        decay = _keep((step * A.to(dtype)).exp(), "A" in factors)  # (B, K, D, N)
        drive = _keep(step * _per_channel(B_t, dt), "B" in factors)  # (B, K, D, N)
        h = decay * h + drive * _keep(u_t, "u" in factors).unsqueeze(-1)
        ys.append((_keep(_per_channel(C_t, dt), "C" in factors) * h).sum(-1))
    y = _in_place(torch.stack(ys, 2), steps)  # (B, K, L, D)
    if D is not None:
        weights = _keep(D, set(factors) == set(FACTORS)).to(dtype).unsqueeze(1)  # (K, 1, D)
        y = y + weights * _keep(u, "u" in factors).to(dtype)
    return y.to(u.dtype)


def _keep(x: Tensor, differentiable: bool) -> Tensor:
    return x if differentiable else x.detach()


def _per_channel(x: Tensor, dt: Tensor) -> Tensor:
    """Repeat the groups of one step (B, K, G, N) for their channels, (B, K, D, N)."""
    return x.repeat_interleave(dt.shape[-1] // x.shape[2], dim=2)


def _in_order(x: Tensor, steps: Tensor) -> tuple[Tensor, ...]:
    """The slices (B, K, ...) of x (B, K or 1, L, ...) in the order of visit."""
    rows = torch.arange(len(steps), device=steps.device).unsqueeze(1)
    return x[:, rows if x.shape[1] > 1 else 0 * rows, steps].unbind(2)


def _in_place(y: Tensor, steps: Tensor) -> Tensor:
    """Undo the order of visit of y (B, K, L, D)."""
    rows = torch.arange(len(steps), device=steps.device).unsqueeze(1)
    return y[:, rows, steps.argsort(dim=1)]
