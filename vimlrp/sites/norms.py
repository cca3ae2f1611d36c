"""Sites that divide by a statistic of their input."""

import torch
from torch import Tensor, nn

from vimlrp.sites.base import Site
from vimlrp.tracing import at_least_float32, frozen

__all__ = ["Norm", "RMSNorm"]


class Norm(Site):
    """A normalisation: centring, division by a statistic, scale."""

    kind = "normalisation"

    def divisor(self, x: Tensor) -> Tensor:
        """The inverse of the statistic that x is multiplied by, (..., 1)."""
        raise NotImplementedError

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Scale x by the given inverse statistic and by the weight."""
        raise NotImplementedError

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistic."""
        return self.normalise(x, self.divisor(x))


class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in float32 at least.

    Args:
        dim: Size of the last axis.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def divisor(self, x: Tensor) -> Tensor:
        """1 / sqrt(mean(x^2) + eps)."""
        x = x.to(at_least_float32(x))
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Scale x, and return it in the weight's type."""
        return (x * inverse * frozen(self.weight)).to(self.weight.dtype)
