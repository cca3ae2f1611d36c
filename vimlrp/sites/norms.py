"""Sites that divide by a statistic of their input."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.sites.base import Site
from vimlrp.tracing import active, at_least_float32, frozen

__all__ = ["LayerNorm", "Norm", "RMSNorm"]


class Norm(Site):
    """A normalisation: centring, division by a statistic, scale, shift."""

    kind = "normalisation"

    def divisor(self, x: Tensor) -> Tensor:
        """The inverse of the statistic that x is multiplied by, (..., 1)."""
        raise NotImplementedError

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Centre x, scale it by the given inverse statistic and by the weight, and shift it."""
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


class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016).

    The mean stays a function of x, so the rule with a constant divisor is linear up to the bias,
    whose share stands in the account.

    Args:
        dim: Size of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def divisor(self, x: Tensor) -> Tensor:
        """1 / sqrt(variance + eps)."""
        x = x.to(at_least_float32(x))
        return torch.rsqrt(x.var(-1, correction=0, keepdim=True) + self.eps)

    def normalise(self, x: Tensor, inverse: Tensor) -> Tensor:
        """Centre, scale and shift x, and return it in the weight's type."""
        bias = frozen(self.bias)
        wide = x.to(at_least_float32(x))
        centred = wide - wide.mean(-1, keepdim=True)
        out = centred * inverse * frozen(self.weight) + bias
        trace = active()
        if trace is not None:
            trace.absorb(f"bias: {self.kind}", out, bias)
        return out.to(self.weight.dtype)

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistics."""
        if active() is not None:
            return super().plain(x)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Say the size."""
        return f"{len(self.weight)}, eps={self.eps}"
