"""Sites that divide by a statistic of their input."""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.kernels.fused import maps
from vimlrp.sites.base import Site
from vimlrp.tracing import active, at_least_float32, constant, frozen

__all__ = ["LayerNorm", "Norm", "RMSNorm"]


class Norm(Site):
    """Division by a statistic of the input, perhaps after a centring and before a shift."""

    kind = "normalisation"

    def held(self, x: Tensor) -> Tensor:
        """Normalise x by its own statistic, held constant; a centring is kept."""
        raise NotImplementedError


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
        """1 / sqrt(mean(x^2) + eps), (..., 1)."""
        x = x.to(at_least_float32(x))
        return torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    def held(self, x: Tensor) -> Tensor:
        """Scale x by its own inverse statistic, held constant, and by the weight."""
        return self._scaled(x, constant(self.divisor(x.detach())))

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistic."""
        return self._scaled(x, self.divisor(x))

    def _scaled(self, x: Tensor, inverse: Tensor) -> Tensor:
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

    def held(self, x: Tensor) -> Tensor:
        """Centre, scale and shift x by its own statistic, held constant."""
        # Under autocast x may be narrower than the weights, and PyTorch's kernel takes one type.
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        weight, bias = self.weight.detach().to(dtype), self.bias.detach().to(dtype)
        return self._noted(_CentredByConstant.apply(x.to(dtype), weight, bias, self.eps), bias)

    def plain(self, x: Tensor) -> Tensor:
        """Normalise by the input's own statistics."""
        weight, bias = frozen(self.weight), frozen(self.bias)
        return self._noted(F.layer_norm(x, weight.shape, weight, bias, self.eps), bias)

    def extra_repr(self) -> str:
        """Say the size."""
        return f"{len(self.weight)}, eps={self.eps}"

    def _noted(self, out: Tensor, bias: Tensor) -> Tensor:
        """Note in the account what the bias takes of an output."""
        trace = active()
        if trace is not None:
            trace.absorb(f"bias: {self.kind}", out, bias)
        return out


class _CentredByConstant(torch.autograd.Function):
    """Layer normalisation whose gradient knows the centring, and takes the divisor for a constant.

    It needs one number a row from the forward pass, and no copy of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = _rows(x)
        normed, inverse = maps.layer_norm(rows.unsqueeze(1), weight, bias, eps)
        ctx.save_for_backward(weight, bias, inverse)
        return normed.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        arriving = gradients[0]
        at_rows, *_ = maps.layer_norm_relevance(_rows(arriving), None, *ctx.saved_tensors)
        return at_rows.view(arriving.shape), None, None, None


def _rows(x: Tensor) -> Tensor:
    """(..., C) as (B, L, C), as the kernels take it."""
    batch, *inner = x.shape[:-1] or (1,)
    return x.reshape(batch, math.prod(inner), x.shape[-1])
