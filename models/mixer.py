"""The mixer of Vim: bidirectional selective scans behind a gate.

Zhu et al., ICML 2024, https://arxiv.org/abs/2401.09417, algorithm 1, in the parameter names of the
official code's `bimamba_type="v2"`.
"""

import math

import torch
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder
from vimlrp.models.initial import init_step, initial_a_log
from vimlrp.sites import Activation, CausalConv1d, Gate, Linear, Scan, Step
from vimlrp.tracing import frozen

__all__ = ["BidirectionalMixer"]


class BidirectionalMixer(nn.Module):
    """Two selective scans over one sequence, forwards and backwards, behind one gate.

    Args:
        dim: Width D.
        d_state: Size N of the state of each channel.
        d_conv: Width of the causal convolution.
        expand: Channels E of the scan are `expand` times D.
        divide_out: Average the two directions instead of summing them.
    """

    def __init__(
        self, dim: int, d_state: int, d_conv: int, expand: int, divide_out: bool = True
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.rank, self.d_state, self.divide_out = math.ceil(dim / 16), d_state, divide_out
        self.in_proj = Linear(dim, 2 * inner, bias=False)
        self.conv1d = CausalConv1d(inner, d_conv)
        self.conv1d_b = CausalConv1d(inner, d_conv, reverse=True)
        self.act = Activation("silu")
        self.x_proj = Linear(inner, self.rank + 2 * d_state, bias=False)
        self.x_proj_b = Linear(inner, self.rank + 2 * d_state, bias=False)
        self.dt_proj = Linear(self.rank, inner)
        self.dt_proj_b = Linear(self.rank, inner)
        self.step = Step()
        self.A_log = nn.Parameter(initial_a_log(inner, d_state))
        self.A_b_log = nn.Parameter(initial_a_log(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.scan = Scan(ScanOrder.bidirectional())
        self.gate_act = Activation("silu")
        self.gate = Gate()
        self.out_proj = Linear(inner, dim, bias=False)
        for projection in (self.dt_proj, self.dt_proj_b):
            init_step(projection)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, L, E) each
        u = self.act(torch.stack([self.conv1d(x), self.conv1d_b(x)], dim=1))  # (B, 2, L, E)
        y = self.scan(u, *self._scan_parameters(u))  # (B, 2, L, E)
        # The official code gates each direction and then averages; the gate is the same for both,
        # so averaging first gives the same output and, by linearity, the same relevance.
        y = y.mean(dim=1) if self.divide_out else y.sum(dim=1)
        return self.out_proj(self.gate(y, self.gate_act(z)))

    def _scan_parameters(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dt (B, 2, L, E), A (2, E, N), B and C (B, 2, L, N), D (2, E)."""
        source = self.scan.parameter_source(u)
        sizes = (self.rank, self.d_state, self.d_state)
        forward = self.x_proj(source[:, 0]).split(sizes, dim=-1)
        backward = self.x_proj_b(source[:, 1]).split(sizes, dim=-1)
        dt = torch.stack([self.dt_proj(forward[0]), self.dt_proj_b(backward[0])], dim=1)
        b, c = (torch.stack(pair, dim=1) for pair in zip(forward[1:], backward[1:], strict=True))
        a_log = torch.stack([frozen(self.A_log), frozen(self.A_b_log)])
        d = torch.stack([frozen(self.D), frozen(self.D_b)])
        return self.step(dt), -torch.exp(a_log), b, c, d
