"""Complexity: on how little an explanation rests."""

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
from vimlrp.evaluation.methods import Method

__all__ = ["Complexity", "entropy", "gini"]


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the shares of |relevance|, in nats, (B,); lower is less complex.

    Source: Bhatt, Weller and Moura, IJCAI 2020. NaN for a map of zeros.

    Args:
        maps: (B, H, W).
    """
    share = _shares(maps)
    return torch.special.entr(share).sum(1)


def gini(maps: Tensor) -> Tensor:
    """Gini index of |relevance|, (B,), 0 for a uniform map up to 1; higher is sparser.

    Source: Chalasani et al., ICML 2020. NaN for a map of zeros.

    Args:
        maps: (B, H, W).
    """
    share = _shares(maps).sort(dim=1).values
    count = share.shape[1]
    weight = 2 * torch.arange(1, count + 1, device=maps.device, dtype=share.dtype) - count - 1
    return (share * weight).sum(1) / count


def _shares(maps: Tensor) -> Tensor:
    size = maps.flatten(1).abs().double()
    return size / size.sum(1, keepdim=True)


@dataclass(frozen=True)
class Complexity:
    """Entropy and Gini index of |relevance|."""

    name: str = "complexity"
    curve_axis: tuple[str, None] = NO_CURVES

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "entropy", "entropy", "lower"),
            column_mean(self, "Gini", "gini", "higher"),
        )

    def __call__(self, _batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        return columns(self.name, entropy=entropy(maps), gini=gini(maps))
