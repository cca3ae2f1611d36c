"""Confidence intervals of statistics over samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.measures import Statistic

__all__ = ["Estimate", "estimates"]


@dataclass(frozen=True)
class Estimate:
    """A statistic and its confidence interval.

    Args:
        value: Over all samples; NaN where none has a value.
        low: The interval's lower end.
        high: Its upper end.
        count: How many samples had a value.
    """

    value: float
    low: float
    high: float
    count: int


def estimates(
    statistics: Sequence[Statistic],
    columns: Mapping[str, NDArray[np.float64]],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Estimate]:
    """Estimate statistics, with percentile bootstrap intervals (Efron, 1979).

    Samples are drawn again with replacement, the same ones for every statistic and, with one seed,
    for every method, so that methods can be compared.

    Args:
        statistics: What to estimate.
        columns: Values of each sample, (n,), NaN where it has none.
        resamples: How often samples are drawn.
        confidence: Of the interval, within 0 to 1.
        seed: Of the drawing.

    Raises:
        InputError: If the numbers make no interval.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise InputError(
            f"resamples is {resamples} and confidence {confidence}; give at least 1, and a share "
            "between 0 and 1"
        )
    count = len(next(iter(columns.values()), ()))
    if count == 0:
        return [Estimate(np.nan, np.nan, np.nan, 0) for _ in statistics]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    weights = np.concatenate([np.ones((1, count)), drawn])  # the sample itself comes first
    tail = 50 * (1 - confidence)
    return [_estimate(statistic, columns, weights, tail) for statistic in statistics]


def _estimate(
    statistic: Statistic,
    columns: Mapping[str, NDArray[np.float64]],
    weights: NDArray[np.float64],
    tail: float,
) -> Estimate:
    ratios, present = [], np.ones(weights.shape[1], dtype=bool)
    for top, bottom in statistic.pairs:
        numerator = columns[top]
        denominator = np.ones_like(numerator) if bottom is None else columns[bottom]
        valid = np.isfinite(numerator) & np.isfinite(denominator)
        present &= valid
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios.append(
                (weights @ np.where(valid, numerator, 0))
                / (weights @ np.where(valid, denominator, 0))
            )
    values = np.mean(ratios, axis=0)
    count = int(present.sum())
    drawn = values[1:][np.isfinite(values[1:])]
    if count == 0 or not len(drawn):
        return Estimate(np.nan, np.nan, np.nan, count)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(values[0]), float(low), float(high), count)
