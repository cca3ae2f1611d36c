"""The two mixers of MambaVision: a selective scan beside a convolution, and self-attention.

Hatamizadeh and Kautz, CVPR 2025, https://arxiv.org/abs/2407.08083, figure 3, in the parameter names
of the official code. Sequences are windows of a map: (B, W, L, D), W windows of L cells each.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder
from vimlrp.models.initial import init_step, initial_a_log
from vimlrp.sites import Activation, Attention, CentredConv1d, Linear, Scan, Step
from vimlrp.tracing import frozen

__all__ = ["MambaMixer", "SelfAttention"]


class WindowScan(Scan):
    """One forward scan over each window, every window a sequence of its own."""

    def __init__(self) -> None:
        super().__init__(ScanOrder.forward())

    def scan(
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        order: ScanOrder | None = None,
        *,
        grad: Any,
    ) -> Tensor:
        """Scan u and dt (B, W, L, E) with A (E, N), B and C (B, W, L, N) and D (E,)."""
        shape = u.shape
        u, dt, B, C = (x.flatten(0, 1).unsqueeze(1) for x in (u, dt, B, C))
        y = super().scan(u, dt, A.unsqueeze(0), B, C, D.unsqueeze(0), order, grad=grad)
        return y.view(shape)


class MambaMixer(nn.Module):
    """A scan of one half of the channels beside a convolution of the other, without a gate.

    Args:
        dim: Width D; each half has E = D / 2 channels.
        d_state: Size N of the state of each channel.
        d_conv: Width of the centred convolutions.
    """

    def __init__(self, dim: int, d_state: int = 8, d_conv: int = 3) -> None:
        super().__init__()
        inner, rank = dim // 2, math.ceil(dim / 16)
        self.sizes = (rank, d_state, d_state)
        self.in_proj = Linear(dim, dim, bias=False)
        self.conv1d_x = CentredConv1d(inner, d_conv)
        self.conv1d_z = CentredConv1d(inner, d_conv)
        self.act_x = Activation("silu")
        self.act_z = Activation("silu")
        self.x_proj = Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = Linear(rank, inner)
        self.step = Step()
        self.A_log = nn.Parameter(initial_a_log(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.scan = WindowScan()
        self.out_proj = Linear(dim, dim, bias=False)
        init_step(self.dt_proj)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, L, D) to (B, W, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, W, L, E) each
        u = self.act_x(self.conv1d_x(x))
        z = self.act_z(self.conv1d_z(z))
        y = self.scan(u, *self._scan_parameters(u))
        return self.out_proj(torch.cat([y, z], dim=-1))

    def _scan_parameters(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dt (B, W, L, E), A (E, N), B and C (B, W, L, N), D (E,)."""
        low, b, c = self.x_proj(self.scan.parameter_source(u)).split(self.sizes, dim=-1)
        # The official code counts this bias twice: in the projection and again in the step.
        bias = self.dt_proj.bias
        dt = self.step(self.dt_proj(low), None if bias is None else frozen(bias))
        return dt, -torch.exp(frozen(self.A_log)), b, c, frozen(self.D)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each window.

    Args:
        dim: Width D.
        num_heads: Heads, each of D / heads channels.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.attention = Attention()
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, L, D) to (B, W, L, D)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # (B, W, heads, L, d) each
        return self.proj(self.attention(q, k, v).transpose(2, 3).flatten(3))
