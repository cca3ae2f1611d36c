"""Batch normalisation as a site: a fixed affine map once training is over."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.sites.affine import AffineSite
from vimlrp.tracing import at_least_float32

__all__ = ["BatchNorm2d"]


class BatchNorm2d(AffineSite):
    """Batch normalisation of maps that keep their channels last (Ioffe and Szegedy 2015).

    In evaluation mode, in which explanations run, it is x * s + t with s = weight / sqrt(var + eps)
    and t = bias - mean * s: relevance passes the scale, and the whole shift is a bias in the
    account, the running mean's part of it too. In training it normalises by the batch.

    Args:
        dim: Channels C.
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics.
    """

    kind = "batch_norm"
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def plain(self, x: Tensor) -> Tensor:
        """(B, H, W, C), by the batch's own statistics in training and the running ones after."""
        if self.training:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        x = x.permute(0, 3, 1, 2)
        x = F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)
        return x.permute(0, 2, 3, 1)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Scale each channel."""
        return x * weight.to(x.dtype)

    def constants(self) -> tuple[Tensor, Tensor]:
        """The scale s and the shift t, (C,) each."""
        precise = at_least_float32(self.weight)
        weight, bias = self.weight.detach().to(precise), self.bias.detach().to(precise)
        scale = weight * (self.running_var.to(precise) + self.eps).rsqrt()
        shift = bias - self.running_mean.to(precise) * scale
        return scale.to(self.weight.dtype), shift.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Say the size."""
        return f"{len(self.weight)}, eps={self.eps}"
