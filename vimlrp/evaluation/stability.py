"""Stability: how far a map moves when the input hardly does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.evaluation.measures import (
    NO_CURVES,
    Measured,
    PreparedBatch,
    Statistic,
    column_mean,
    columns,
)
from vimlrp.evaluation.methods import Method, explained_by

__all__ = ["Stability", "noise_like", "sensitivity"]


def sensitivity(
    method: Method,
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    maps: Tensor,
    *,
    radius: float = 0.02,
    draws: int = 4,
    seeds: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean and the largest relative change of a map under small noise; lower is more stable.

    Source: Yeh et al., NeurIPS 2019 (max-sensitivity, within a ball of the maximum norm), divided
    by the norm of the map, so that methods of different scales compare.

    Args:
        method: See `Method`.
        model: A classifier.
        x: Preprocessed images, (B, 3, H, W).
        target: Classes, (B,), which stay the same under noise.
        maps: Of the method on `x`, (B, H, W).
        radius: Largest change of an input value, in units of the normalised input.
        draws: How often noise is drawn.
        seeds: Of each sample's noise, (B,); by default its place in the batch.

    Returns:
        (B,) each; NaN for maps of zeros.

    Raises:
        InputError: If the radius or the number of draws is not positive.
    """
    if draws < 1 or radius <= 0:
        raise InputError(f"draws is {draws} and radius {radius}; give both above 0")
    seeds = torch.arange(len(x)) if seeds is None else seeds
    scale = maps.flatten(1).double().norm(dim=1)
    scale[scale == 0] = torch.nan  # no change is relative to nothing
    changes = []
    for draw in range(draws):
        noisy = x + radius * noise_like(x, seeds * draws + draw)
        moved = explained_by(method, model, noisy, target)
        changes.append((moved - maps).flatten(1).double().norm(dim=1) / scale)
    change = torch.stack(changes)
    return change.mean(0), change.amax(0)


def noise_like(x: Tensor, seeds: Tensor) -> Tensor:
    """Uniform noise from -1 to 1 that depends on each sample's seed alone, (B, ...).

    Args:
        x: Gives shape, type and device.
        seeds: (B,) int64.
    """
    rows = [
        torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)) * 2 - 1
        for seed in seeds.tolist()
    ]
    return torch.stack(rows).to(x)


@dataclass(frozen=True)
class Stability:
    """Mean and largest relative change under small noise."""

    name: str = "stability"
    radius: float = 0.02
    draws: int = 4
    curve_axis: tuple[str, None] = NO_CURVES

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "mean change", "mean", "lower"),
            column_mean(self, "largest change", "largest", "lower"),
        )

    def __call__(self, batch: PreparedBatch, method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        mean, largest = sensitivity(
            method,
            batch.model,
            batch.x,
            batch.target,
            maps,
            radius=self.radius,
            draws=self.draws,
            seeds=batch.seeds,
        )
        return columns(self.name, mean=mean, largest=largest)
