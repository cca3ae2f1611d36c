"""Initial weights of selective scans (Gu and Dao 2023, https://arxiv.org/abs/2312.00752, 3.6)."""

import math

import torch
from torch import Tensor, nn

from vimlrp.sites import Linear

__all__ = ["init_step", "initial_a_log"]


def initial_a_log(channels: int, states: int) -> Tensor:
    """S4D-real: A = -1, ..., -N in every channel, (E, N)."""
    return torch.log(torch.arange(1, states + 1, dtype=torch.float32)).repeat(channels, 1)


def init_step(projection: Linear, shortest: float = 1e-3, longest: float = 0.1) -> None:
    """Make softplus(bias) log-uniform.

    Args:
        projection: From the low rank of the step to the channels.
        shortest: Least step.
        longest: Greatest step.
    """
    spread = projection.in_features**-0.5
    nn.init.uniform_(projection.weight, -spread, spread)
    low, high = math.log(shortest), math.log(longest)
    step = torch.exp(torch.rand(projection.out_features) * (high - low) + low).clamp(min=1e-4)
    projection.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
