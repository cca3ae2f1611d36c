"""How far one class falls apart in one channel, and how far its copies without groups do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.contrast import Division, most_divided
from vimlrp.audit.screening.embedding import Points, coordinates
from vimlrp.audit.screening.graphs import affinity
from vimlrp.audit.screening.nulls import either, excess_p_value, rotated
from vimlrp.audit.screening.separability import Cluster, most_separable
from vimlrp.audit.screening.spectral import Spectrum, spectrum

__all__ = ["FEWEST_DRAWS", "MAXIMUM", "STATISTICS", "Measurement", "measure"]

FEWEST_DRAWS = 8
"""From the null; a class that is within these is let go without further ones."""

STATISTICS = ("connectivity", "separation", "contrast")
"""By which a class falls apart, in the order of everything that holds one value for each."""

MAXIMUM = (False, True, True)
"""Whether a statistic is a maximum: separation is, over clusters, and contrast over cuts."""

_WITHIN = 0.5  # p-value from which on it is
# The graph has fallen apart: how far the parts lie from one another is for separation to tell.
_LEAST_CONNECTIVITY = 0.01
_LEAST_SEPARATION = 0.1  # also of a class without a cluster of a fitting size
_NOBODY = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Measurement:
    """A class in one channel, before it is compared with others.

    Args:
        count: Samples.
        connectivity: Second eigenvalue of the normalised Laplacian.
        ratio: Fisher's ratio of the most separable cluster, 0 where there is none.
        contrast: Of the class's most contrasting division.
        eigengap: Clusters by the eigenvalues.
        groups: Samples that a statistic points to, ascending, for each of `STATISTICS`: the most
            separable cluster twice, and the smaller part of the division.
        statistics: Logarithms of 1 / connectivity, of separation and of contrast, (3,).
        draws: The same for copies without groups, (b, 3).
    """

    count: int
    connectivity: float
    ratio: float
    contrast: float
    eigengap: int
    groups: tuple[NDArray[np.int64], ...]
    statistics: NDArray[np.float64]
    draws: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """Of the statistics over their mean under the null, (3,)."""
        return self.statistics - self.draws.mean(0)

    @property
    def standardised(self) -> float:
        """The greatest excess, in standard deviations of the null."""
        return float((self.excess / np.maximum(self.draws.std(0, ddof=1), 1e-9)).max())

    @property
    def p_values(self) -> list[float]:
        """Of the statistics under the null."""
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
    found = _analysed(points, start)
    drawn: list[NDArray[np.float64]] = []
    while len(drawn) < draws and not _within(found.statistics, drawn):
        drawn.append(_analysed(rotated(points, rng), start).statistics)
    return found.measurement(np.stack(drawn))


@dataclass(frozen=True, eq=False)
class _Analysis:
    """What the statistics of a class or a copy of it are taken from."""

    spectrum: Spectrum
    cluster: Cluster | None
    division: Division

    @property
    def statistics(self) -> NDArray[np.float64]:
        connectivity = max(self.spectrum.connectivity, _LEAST_CONNECTIVITY)
        separation = max(self.cluster.separation if self.cluster else 0.0, _LEAST_SEPARATION)
        return np.log([1 / connectivity, separation, self.division.contrast])

    def measurement(self, draws: NDArray[np.float64]) -> Measurement:
        cluster = np.flatnonzero(self.cluster.members) if self.cluster else _NOBODY
        return Measurement(
            len(self.division.members),
            self.spectrum.connectivity,
            self.cluster.ratio if self.cluster else 0.0,
            self.division.contrast,
            self.spectrum.eigengap,
            (cluster, cluster, np.flatnonzero(self.division.members)),
            self.statistics,
            draws,
        )


def _analysed(points: Points, seed: int) -> _Analysis:
    found = spectrum(affinity(points))
    return _Analysis(found, most_separable(found, seed), most_divided(points))


def _within(statistics: NDArray[np.float64], drawn: Sequence[NDArray[np.float64]]) -> bool:
    if len(drawn) != FEWEST_DRAWS:
        return False
    return either(*_p_values(statistics, np.stack(drawn))) > _WITHIN


def _p_values(statistics: NDArray[np.float64], draws: NDArray[np.float64]) -> list[float]:
    return [
        excess_p_value(float(value), column, maximum=maximum)
        for value, column, maximum in zip(statistics, draws.T, MAXIMUM, strict=True)
    ]
