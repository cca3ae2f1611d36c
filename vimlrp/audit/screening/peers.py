"""How far classes fall apart anyway: a class measured by the others.

Real classes are no Gaussian clouds. Poses, backgrounds and product pictures make natural groups,
which a test against a null rightly finds and nobody wants to hear of. What asks for an explanation
is a class that falls apart more than classes of this data and this model do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Channel
from vimlrp.audit.screening.nulls import of_distance

__all__ = ["NATURAL", "Natural", "peer_p_values"]

_REACH = 3.0  # robust deviations from the median, beyond which a class counts as this far out


@dataclass(frozen=True)
class Natural:
    """How far real classes without artifacts are known to go.

    Args:
        mean: Of the excess over the null.
        spread: Its standard deviation over classes.
        weight: How many classes this knowledge counts as.
    """

    mean: float
    spread: float
    weight: float = 5.0


NATURAL = {
    Channel.RELEVANCE: (Natural(0.0, 0.2), Natural(0.1, 0.35), Natural(0.0, 0.15)),
    Channel.LATENT: (Natural(0.0, 0.45), Natural(0.1, 0.35), Natural(0.0, 0.2)),
    Channel.STATISTICS: (Natural(0.3, 0.4), Natural(0.35, 0.4), Natural(0.1, 0.2)),
}
"""Excess of connectivity, separation and contrast in ten classes of photographs, two models."""


def peer_p_values(
    excess: NDArray[np.float64],
    natural: Natural,
    *,
    maximum: bool = False,
    apart: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """How likely a further class like the others would reach each class's excess.

    Mean and variance of the others are brought together with what is known of real classes, as
    that many classes more (conjugate prior of a normal distribution): two classes are judged by
    prior knowledge, a thousand by themselves. Classes far out are brought in to three robust
    deviations before, so that several with artifacts do not hide one another.

    Args:
        excess: Logarithm of each class's statistic over its mean under the null, (m,).
        natural: Prior knowledge.
        maximum: Whether the statistic is one (`vimlrp.audit.screening.nulls.of_distance`).
        apart: Classes that are no peers of others, (m,): such as are known to hold something.

    Returns:
        Of Student's t, (m,), within (0, 1].
    """
    found = np.empty(len(excess))
    peers = np.ones(len(excess), dtype=np.bool_) if apart is None else ~apart
    for i, value in enumerate(excess):
        others = _brought_in(excess[peers & (np.arange(len(excess)) != i)])
        centre, spread, freedom = _posterior(others, natural)
        found[i] = of_distance((value - centre) / spread, freedom, maximum=maximum)
    return found


def _brought_in(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) < 3:
        return values
    median = np.median(values)
    reach = _REACH * 1.4826 * np.median(np.abs(values - median))
    return np.clip(values, median - reach, median + reach)


def _posterior(others: NDArray[np.float64], natural: Natural) -> tuple[float, float, float]:
    """Centre, spread and degrees of freedom of the prediction for one more class."""
    m, weight = len(others), natural.weight
    mean = float(others.mean()) if m else natural.mean
    total = m + weight
    centre = (m * mean + weight * natural.mean) / total
    squares = float(((others - mean) ** 2).sum()) + weight * natural.spread**2
    squares += m * weight / total * (mean - natural.mean) ** 2
    return centre, float(np.sqrt(squares / total * (1 + 1 / total))), total
