"""Confidence intervals of statistics over samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.measures import Statistic

__all__ = ["Estimate", "estimates"]

_Values = NDArray[np.float64]

_MOST = 1 << 22
"""Counts of samples to hold at a time: 64 MiB as they are drawn and as they are summed."""


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
    columns: Mapping[str, _Values],
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
    tables = [_table(statistic, columns) for statistic in statistics]
    sums = _drawn_sums(np.concatenate(tables, axis=1), resamples, seed)
    tail, start, found = 50 * (1 - confidence), 0, []
    for table in tables:
        width = table.shape[1]
        found.append(_estimate(table, sums[:, start : start + width], tail))
        start += width
    return found


def _table(statistic: Statistic, columns: Mapping[str, _Values]) -> _Values:
    """Numerator, denominator and whether both are there, of each pair of columns, (n, 3 P)."""
    table = []
    for top, bottom in statistic.pairs:
        numerator = columns[top]
        denominator = np.ones_like(numerator) if bottom is None else columns[bottom]
        valid = np.isfinite(numerator) & np.isfinite(denominator)
        table += [np.where(valid, numerator, 0), np.where(valid, denominator, 0), valid]
    return np.stack(table, axis=1, dtype=np.float64)


def _drawn_sums(table: _Values, resamples: int, seed: int) -> _Values:
    """Sums over the samples themselves and over each drawing, (1 + resamples, columns)."""
    count = len(table)
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    rows = max(1, _MOST // count)
    sums = [table.sum(axis=0, keepdims=True)]
    for start in range(0, resamples, rows):
        # Drawn bit by bit they are what they would be at once.
        drawn = generator.multinomial(count, shares, min(rows, resamples - start))
        sums.append(drawn.astype(np.float64) @ table)
    return np.concatenate(sums)


def _estimate(table: _Values, sums: _Values, tail: float) -> Estimate:
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.mean(sums[:, 0::3] / sums[:, 1::3], axis=1)
    count = int((table[:, 2::3] > 0).all(axis=1).sum())
    drawn = values[1:][np.isfinite(values[1:])]
    if count == 0 or not len(drawn):
        return Estimate(np.nan, np.nan, np.nan, count)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(values[0]), float(low), float(high), count)
