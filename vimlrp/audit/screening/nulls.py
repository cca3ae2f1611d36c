"""What a class without groups would have scored.

A null must keep the covariance of the features: neighbouring cells of a map are correlated, and a
null that shuffles columns finds groups in every class. Here the sample is rotated at random among
all samples of the same mean and covariance, to the last digit (Langsrud, "Rotation tests", 2005).
For a class whose features are Gaussian, whatever their covariance and be they more than samples,
the test is exact; groups, which no Gaussian has, are smeared out.
"""

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.embedding import Points
from vimlrp.optional import optional

__all__ = ["either", "excess_p_value", "of_distance", "positive", "rotated"]

_WIDE = np.pi / np.sqrt(6)  # the standard deviation of a standard Gumbel distribution


def rotated(points: Points, rng: np.random.Generator) -> Points:
    """Other points with exactly the same mean and covariance, else at random.

    Args:
        points: Principal coordinates, (n, r), centred and orthogonal, of rank r below n.
        rng: To draw from.

    Returns:
        (n, r).
    """
    drawn = rng.standard_normal(points.shape)
    # An orthonormal frame, uniform among those orthogonal to the constant vector.
    frame, corner = np.linalg.qr(drawn - drawn.mean(0))
    signs = np.where(np.diag(corner) < 0, -1.0, 1.0)
    return frame * signs * np.linalg.norm(points, axis=0)


def of_distance(distance: float, freedom: float, *, maximum: bool = False) -> float:
    """The p-value of a distance from what is expected, in standard deviations of the prediction.

    The separation of the most separable of many clusters is a maximum, and the logarithm of it is
    skewed as Gumbel's distribution is (1935): a normal tail would call one of a hundred classes
    without groups one of a thousand, which among a thousand classes drowns what is there.

    Args:
        distance: Above what is expected.
        freedom: Degrees of freedom of Student's t.
        maximum: Whether the statistic is a maximum; Gumbel's tail counts where it is the heavier.

    Returns:
        Within (0, 1].
    """
    stats = optional("scipy.stats", "scipy", "audit")
    found = float(stats.t.sf(distance, freedom))
    if maximum:
        # Of mean 0 and variance 1.
        found = max(found, float(stats.gumbel_r.sf(distance, -np.euler_gamma / _WIDE, 1 / _WIDE)))
    return positive(found)


def excess_p_value(value: float, draws: NDArray[np.float64], *, maximum: bool = False) -> float:
    """How likely a further draw would reach a value, if draws are normal.

    Student's t of the prediction, exact for any number of normal draws, so that twenty of them
    tell 1e-2 from 1e-6; counting those beyond would end at 1/21.

    Args:
        value: Observed.
        draws: Under the null, (b,), b at least 2.
        maximum: See `of_distance`.

    Returns:
        Within (0, 1]; 1 where the draws do not vary and the value is not beyond them.
    """
    spread = float(draws.std(ddof=1)) * np.sqrt(1 + 1 / len(draws))
    distance = value - float(draws.mean())
    if spread == 0:
        return 1.0 if distance <= 0 else float(np.finfo(float).tiny)
    return of_distance(distance / spread, len(draws) - 1, maximum=maximum)


def either(*p_values: float) -> float:
    """The p-value of the least of several (Sidak, 1967); conservative if they go together."""
    least = min(p_values)
    if least >= 1:
        return 1.0
    return positive(float(-np.expm1(len(p_values) * np.log1p(-least))))


def positive(p_value: float) -> float:
    """A p-value that did not underflow."""
    return float(np.clip(p_value, np.finfo(float).tiny, 1.0))
