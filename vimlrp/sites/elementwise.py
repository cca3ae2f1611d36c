"""Sites that act on each value: activations, gates and sums."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.kernels.fused.pointwise import gelu_ratio
from vimlrp.propagation import with_gradients_of
from vimlrp.sites.base import Site, SumFactors

__all__ = ["Activation", "Gate", "Residual"]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_tanh_ratio(x: Tensor) -> Tensor:
    # Hendrycks and Gimpel 2016, section 2: the normal distribution function by a tanh.
    inner = (x * x).mul_(0.044715).add_(1).mul_(x)
    return inner.mul_(math.sqrt(2 / math.pi)).tanh_().add_(1).mul_(0.5)


_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, torch.sigmoid),
    "gelu": (F.gelu, gelu_ratio),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_ratio),
    "relu": (F.relu, lambda x: (x > 0).to(x.dtype)),
}


class Activation(Site):
    """An element-wise non-linearity f with f(0) = 0.

    Args:
        name: "silu", "gelu", "gelu_tanh" (its approximation by a tanh) or "relu".
    """

    kind = "activation"

    def __init__(self, name: str = "silu") -> None:
        super().__init__()
        self.name = name
        self._function, self._ratio = _ACTIVATIONS[name]

    def plain(self, x: Tensor) -> Tensor:
        """Compute f(x)."""
        return self._function(x)

    def ratio(self, x: Tensor) -> Tensor:
        """f(x) / x in closed form, which is f'(0) at 0: sigmoid(x) for SiLU."""
        return self._ratio(x)

    def extra_repr(self) -> str:
        """Name the function."""
        return self.name


class Gate(Site):
    """A branch multiplied by another that depends on the input too."""

    kind = "gate"

    def plain(self, signal: Tensor, gate: Tensor) -> Tensor:
        """Multiply."""
        return signal * gate


class Residual(Site):
    """A branch added to the residual stream, which is kept in float32 at least."""

    kind = "residual"

    def plain(self, residual: Tensor, branch: Tensor) -> Tensor:
        """Add."""
        return residual + branch

    def weighed(self, factors: SumFactors, residual: Tensor, branch: Tensor) -> Tensor:
        """Add, with the gradient of each summand times its factor.

        Args:
            factors: From the values of the summands to a factor of each.
            residual: The stream.
            branch: What is added to it, of the same shape.
        """
        at_residual, at_branch = factors(residual.detach(), branch.detach())
        total = residual.detach() + branch.detach()
        return with_gradients_of(total, (residual, at_residual), (branch, at_branch))
