"""Rules that the search tries and the package does not have."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimlrp.propagation import with_gradient_of
from vimlrp.rules import ConstantFactors, Rule

__all__ = ["RouteShares"]


@dataclass(frozen=True)
class RouteShares(Rule):
    """The paper's rule of the scan, and generalised LRP-gamma at the sum of its routes.

    A model adds what its directions or routes y_k give: z = sum_k y_k, of which LRP-0 gives each
    y_k / z. Here a route of the sign of z counts 1 + gamma_k times:
    f_k = (1 + gamma_k [y_k z > 0]) z / (z + sum_j gamma_j [y_j z > 0] y_j). The shares sum to the
    whole, sum_k f_k y_k = z, and the denominator is never nearer to zero than z, which freely
    chosen weights of the routes would not warrant. A z of exactly 0 is left to LRP-0.

    Args:
        gammas: Of the routes, in the model's order.
    """

    gammas: tuple[float, ...]
    kinds = frozenset({"scan"})

    @property
    def free(self) -> tuple[str, ...]:
        """The input alone, as in the paper's rule."""
        return ("u",)

    def run(self, site: Any, *args: Any) -> Tensor:
        """Scan, with the gradient at each route scaled by its factor."""
        y = ConstantFactors().run(site, *args)  # (B, K, L, E)
        value = y.detach()
        z = value.sum(1, keepdim=True)
        gammas = torch.tensor(self.gammas).to(value)[:, None, None]
        favoured = torch.where(value * z > 0, gammas, 0)
        carrier = z + (favoured * value).sum(1, keepdim=True)
        ratio = torch.where(z == 0, 1, z / torch.where(z == 0, 1, carrier))
        return with_gradient_of(value, y, (1 + favoured) * ratio)
