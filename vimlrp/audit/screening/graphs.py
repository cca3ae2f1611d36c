"""Which samples are neighbours of which."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.embedding import Points
from vimlrp.errors import InputError
from vimlrp.optional import optional

__all__ = ["affinity", "neighbour_count", "neighbours"]

_FEWEST, _MOST = 5, 10
_ROWS = 2048  # of the distances held at a time


def neighbour_count(n: int) -> int:
    """Neighbours of each of n samples: ln n, which keeps a graph of one cloud just connected."""
    return int(np.clip(round(np.log(max(n, 1))), _FEWEST, _MOST))


def neighbours(points: Points, k: int) -> NDArray[np.int64]:
    """The k nearest other points of each point, by Euclidean distance.

    A point is left out of its own neighbours by its index, not by its distance, so that points that
    coincide do not leave one another out.

    Args:
        points: (n, d).
        k: Of 1 to n - 1.

    Returns:
        Indices in no particular order, (n, k).

    Raises:
        InputError: If there are not enough points.
    """
    n = len(points)
    if not 1 <= k < n:
        raise InputError(f"{n} points have {n - 1} neighbours each; {k} were asked for")
    squares = np.einsum("nd,nd->n", points, points)
    found = [_nearest(points, squares, start, k) for start in range(0, n, _ROWS)]
    return np.concatenate(found)


def _nearest(points: Points, squares: Points, start: int, k: int) -> NDArray[np.int64]:
    """Of the points from `start` on, (at most _ROWS, k)."""
    rows = points[start : start + _ROWS]
    # Squared distances, less the row's own square, which does not change their order.
    distances = squares - 2 * (rows @ points.T)
    own = np.arange(len(rows))
    distances[own, start + own] = np.inf
    return np.argpartition(distances, k - 1, axis=1)[:, :k]


def affinity(points: Points, k: int | None = None) -> Any:
    """The symmetric graph of nearest neighbours.

    Args:
        points: (n, d).
        k: Neighbours of each; None for `neighbour_count`.

    Returns:
        A sparse array (n, n), float64: 1 where two points are neighbours of each other, 1/2 where
        one is the other's.
    """
    sparse = optional("scipy.sparse", "scipy", "audit")
    n = len(points)
    k = neighbour_count(n) if k is None else k
    columns = neighbours(points, k).ravel()
    directed = sparse.csr_array((np.ones(n * k), (np.repeat(np.arange(n), k), columns)), (n, n))
    return (directed + directed.T) / 2
