"""Conservation as a metric: what the account of an explanation leaves over."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vimlrp.evaluation.measures import (
    NO_CURVES,
    Measured,
    PreparedBatch,
    Statistic,
    column_mean,
    columns,
)
from vimlrp.evaluation.methods import CompositeMethod, Method

__all__ = ["Conservation"]


@dataclass(frozen=True)
class Conservation:
    """What the account of an explanation leaves over, and the share that the pixels received.

    Source: conservation of LRP (Bach et al., PLoS ONE 2015); `residue` is |what no part of the
    account explains| over the sum of its parts' sizes, lower is better. `pixels` is the signed sum
    over the pixels over the same sum of sizes, from -1 to 1: where no part speaks against the
    others, their share of the logit, which itself has no bound as the logit nears 0. It has no
    direction: what biases, class token and position embedding receive is in order. Methods that are
    no composites have neither, nor has a sample whose parts are all 0.
    """

    name: str = "conservation"
    curve_axis: tuple[str, None] = NO_CURVES

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "residue", "residue", "lower"),
            column_mean(self, "pixels", "pixels", "none"),
        )

    def __call__(self, batch: PreparedBatch, method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        if not isinstance(method, CompositeMethod):
            nothing = torch.full((len(batch),), torch.nan, device=maps.device)
            return columns(self.name, residue=nothing, pixels=nothing)
        account = method.relevance(batch.model, batch.x, batch.target).account
        sizes = torch.stack([part.abs() for part in account.parts.values()]).sum(0)
        return columns(
            self.name,
            residue=_ratio(account.residue.abs(), sizes),
            pixels=_ratio(account.parts["pixels"], sizes),
        )


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """A share, (B,); NaN where there is nothing to have a share of."""
    return torch.where(whole == 0, torch.nan, part / whole)
