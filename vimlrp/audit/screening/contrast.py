"""Does a class come in two kinds along one of its principal axes?

A cue that half of a class shares is hard to see in its graph of neighbours: a cloud without groups
that is as long is cut in the middle about as cheaply. Along the axis itself the two kinds show, by
the gap between them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.embedding import Points
from vimlrp.audit.screening.separability import SMALLEST

__all__ = ["Division", "most_divided"]

_AXES = 10  # of the leading ones; a cue that explains less than a tenth axis is no cue of half
# Of an axis's variance that counts as within in any case: two values alone give no infinity.
_LEAST_WITHIN = 1e-3


@dataclass(frozen=True, eq=False)
class Division:
    """A class in two parts.

    Args:
        members: Which of the n samples are in the smaller part, (n,) bool.
        contrast: Variance between the parts over the variance within them, along the axis.
    """

    members: NDArray[np.bool_]
    contrast: float


def most_divided(points: Points) -> Division:
    """The cut across one of the leading axes that explains most of the axis's variance.

    The criterion is that of Otsu ("A threshold selection method from gray-level histograms", 1979),
    over all cuts that leave five samples on either side. A normal distribution, cut in the middle,
    gives 2 / (pi - 2) = 1.75.

    Args:
        points: Principal coordinates, (n, r), centred, of falling variance; n at least 10 and r at
            least 1.
    """
    axes = points[:, :_AXES]
    order = np.argsort(axes, axis=0, kind="stable")
    sums = np.cumsum(np.take_along_axis(axes, order, axis=0), axis=0)[SMALLEST - 1 : -SMALLEST]
    below = np.arange(SMALLEST, len(axes) - SMALLEST + 1)[:, None]
    between = sums**2 * (1 / below + 1 / (len(axes) - below))  # (cuts, axes)
    total = (axes**2).sum(0)
    contrasts = between / (np.maximum(total - between, 0) + _LEAST_WITHIN * total)
    cut, axis = np.unravel_index(contrasts.argmax(), contrasts.shape)
    members = np.zeros(len(axes), dtype=np.bool_)
    members[order[: below[cut, 0], axis]] = True
    smaller = members if 2 * members.sum() <= len(members) else ~members
    return Division(smaller, float(contrasts[cut, axis]))
