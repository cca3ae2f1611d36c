"""SS2D, the mixer of VMamba: one map scanned along four routes that are summed.

Liu et al., NeurIPS 2024, https://arxiv.org/abs/2401.10166, section 4.2, in the parameter names of
the official code (MzeroMiko/VMamba, `classification/models/vmamba.py`).
"""

import math
from functools import lru_cache

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vimlrp.kernels import ScanOrder
from vimlrp.kernels.products import linear
from vimlrp.sites import Activation, Conv2d, Gate, LayerNorm, Linear, Scan, Step
from vimlrp.tracing import frozen

__all__ = ["SS2D"]

_ROUTES = 4
"""Along rows and along columns, each forwards and backwards."""


class SS2D(nn.Module):
    """Four selective scans over one map, summed and normalised.

    The routes are an index into the map, which all four read in place: nothing is flipped or
    transposed. A route has weights of its own for step, B and C, which are stored side by side.

    Args:
        dim: Width C of the map.
        d_state: Size N of the state of each channel.
        ratio: Channels E of the scans over C.
        gated: Multiply the normalised sum by SiLU(z) of a second branch (the first generation).
        conv_bias: Whether the depthwise convolution has a bias.
        eps: Of the norm.
    """

    def __init__(
        self,
        dim: int,
        d_state: int,
        ratio: float,
        gated: bool = False,
        conv_bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        inner = int(ratio * dim)
        self.rank, self.d_state, self.gated = math.ceil(dim / 16), d_state, gated
        self.in_proj = Linear(dim, 2 * inner if gated else inner, bias=False)
        self.conv2d = Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.act = Activation("silu")
        self.x_proj_weight = nn.Parameter(torch.empty(_ROUTES, self.rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(_ROUTES, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(_ROUTES, inner))
        self.A_logs = nn.Parameter(torch.empty(_ROUTES * inner, d_state))
        self.Ds = nn.Parameter(torch.ones(_ROUTES * inner))
        self.step = Step()
        self.scan = Scan()
        self.out_norm = LayerNorm(inner, eps)
        if gated:
            self.gate_act = Activation("silu")
            self.gate = Gate()
        self.out_proj = Linear(inner, dim, bias=False)
        self._init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        sides, routes = x.shape[1:3], self.routes(x)
        x = self.in_proj(x)
        x, z = x.chunk(2, dim=-1) if self.gated else (x, None)  # (B, H, W, E) each
        u = self.act(self.conv2d(x)).flatten(1, 2)  # (B, L, E)
        y = self.scan(u, *self._scan_parameters(u), routes)  # (B, 4, L, E)
        y = self.out_norm(y.sum(dim=1)).unflatten(1, sides)
        return self.out_proj(y if z is None else self.gate(y, self.gate_act(z)))

    def routes(self, x: Tensor) -> ScanOrder:
        """The routes over a map (B, H, W, C)."""
        return _routes(x.shape[1], x.shape[2], x.device)

    def _scan_parameters(self, u: Tensor) -> tuple[Tensor, ...]:
        """Dt (B, 4, L, E), A (4, E, N), B and C (B, 4, L, N), D (4, E)."""
        source = self.scan.parameter_source(u)
        projected = linear(source, frozen(self.x_proj_weight).flatten(0, 1))
        projected = projected.unflatten(-1, (_ROUTES, -1)).transpose(1, 2)  # (B, 4, L, R + 2N)
        low, b, c = projected.split((self.rank, self.d_state, self.d_state), dim=-1)
        raw = low @ frozen(self.dt_projs_weight).transpose(1, 2)  # (B, 4, L, E)
        dt = self.step(raw, frozen(self.dt_projs_bias).unsqueeze(1))
        a = -torch.exp(frozen(self.A_logs)).unflatten(0, (_ROUTES, -1))
        return dt, a, b, c, frozen(self.Ds).unflatten(0, (_ROUTES, -1))

    @torch.no_grad()
    def _init_weights(self, shortest: float = 1e-3, longest: float = 0.1) -> None:
        """Steps log-uniform between `shortest` and `longest`, A = -1 to -N (Mamba, section 3.6)."""
        bound = 1 / math.sqrt(self.x_proj_weight.shape[-1])
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        bound = 1 / math.sqrt(self.rank)
        nn.init.uniform_(self.dt_projs_weight, -bound, bound)
        low, high = math.log(shortest), math.log(longest)
        step = torch.exp(torch.rand_like(self.dt_projs_bias) * (high - low) + low).clamp(min=1e-4)
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.A_logs.copy_(torch.arange(1.0, self.d_state + 1).log().expand_as(self.A_logs))
        for projection in (self.in_proj, self.out_proj):
            trunc_normal_(projection.weight, std=0.02)


@torch.compiler.disable  # type: ignore[untyped-decorator]
@lru_cache(maxsize=64)
def _routes(height: int, width: int, device: torch.device) -> ScanOrder:
    """The routes over a map, checked, copied to the device once and kept."""
    order = ScanOrder.cross(height, width)
    order.index_on(device)
    return order
