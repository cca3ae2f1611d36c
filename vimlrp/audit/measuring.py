"""How far one class falls apart in one channel, and how far its copies without groups do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.embedding import Points, coordinates
from vimlrp.audit.graphs import affinity
from vimlrp.audit.nulls import either, excess_p_value, rotated
from vimlrp.audit.separability import Cluster, most_separable
from vimlrp.audit.spectral import Spectrum, spectrum

__all__ = ["FEWEST_DRAWS", "MAXIMUM", "Measurement", "measure"]

FEWEST_DRAWS = 8
"""From the null; a class that is within these is let go without further ones."""

MAXIMUM = (False, True)
"""Whether a statistic is a maximum: separation is, over clusters."""

_WITHIN = 0.5  # p-value from which on it is
# The graph has fallen apart: how far the parts lie from one another is for separation to tell.
_LEAST_CONNECTIVITY = 0.01
_LEAST_SEPARATION = 0.1  # also of a class without a cluster of a fitting size


@dataclass(frozen=True, eq=False)
class Measurement:
    """A class in one channel, before it is compared with others.

    Args:
        count: Samples.
        connectivity: Second eigenvalue of the normalised Laplacian.
        ratio: Fisher's ratio of the most separable cluster, 0 where there is none.
        eigengap: Clusters by the eigenvalues.
        members: Samples of that cluster, (k,) int64, ascending.
        statistics: Logarithms of 1 / connectivity and of separation, (2,).
        draws: The same for copies without groups, (b, 2).
    """

    count: int
    connectivity: float
    ratio: float
    eigengap: int
    members: NDArray[np.int64]
    statistics: NDArray[np.float64]
    draws: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """Of the statistics over their mean under the null, (2,)."""
        return self.statistics - self.draws.mean(0)

    @property
    def standardised(self) -> float:
        """The greater excess, in standard deviations of the null."""
        return float((self.excess / np.maximum(self.draws.std(0, ddof=1), 1e-9)).max())

    @property
    def p_values(self) -> tuple[float, float]:
        """Of the two statistics under the null."""
        return _p_values(self.statistics, self.draws)


def measure(features: Points, draws: int, seed: Sequence[int]) -> Measurement | None:
    """Measure a class.

    Draws stop after `FEWEST_DRAWS` where the class is within the null by then. That can only take
    large p-values out of the running, so it makes none too small.

    Args:
        features: Its samples as points, (n, d), n at least 20.
        draws: From the null, at least `FEWEST_DRAWS`.
        seed: Of every drawing, not negative.

    Returns:
        None where all samples coincide.
    """
    points = coordinates(features)
    if not points.shape[1]:
        return None
    rng = np.random.default_rng(list(seed))
    start = int(rng.integers(2**31))  # of k-means: one for the class and its copies
    found, cluster = _analysed(points, start)
    statistics = _statistics(found, cluster)
    drawn: list[NDArray[np.float64]] = []
    while len(drawn) < draws and not _within(statistics, drawn):
        drawn.append(_statistics(*_analysed(rotated(points, rng), start)))
    return Measurement(
        len(points),
        found.connectivity,
        cluster.ratio if cluster else 0.0,
        found.eigengap,
        np.flatnonzero(cluster.members) if cluster else np.empty(0, dtype=np.int64),
        statistics,
        np.stack(drawn),
    )


def _analysed(points: Points, seed: int) -> tuple[Spectrum, Cluster | None]:
    found = spectrum(affinity(points))
    return found, most_separable(found, seed)


def _statistics(found: Spectrum, cluster: Cluster | None) -> NDArray[np.float64]:
    connectivity = max(found.connectivity, _LEAST_CONNECTIVITY)
    separation = max(cluster.separation if cluster else 0.0, _LEAST_SEPARATION)
    return np.log([1 / connectivity, separation])


def _within(statistics: NDArray[np.float64], drawn: Sequence[NDArray[np.float64]]) -> bool:
    if len(drawn) != FEWEST_DRAWS:
        return False
    return either(*_p_values(statistics, np.stack(drawn))) > _WITHIN


def _p_values(statistics: NDArray[np.float64], draws: NDArray[np.float64]) -> tuple[float, float]:
    first, second = (
        excess_p_value(float(statistics[i]), draws[:, i], maximum=MAXIMUM[i]) for i in (0, 1)
    )
    return first, second
