"""Clusters in the spectrum of a class, and how far they stand apart."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.embedding import Points
from vimlrp.audit.screening.spectral import Spectrum
from vimlrp.optional import optional

__all__ = ["SMALLEST", "Cluster", "clusters", "fisher_ratio", "most_separable"]

SMALLEST = 5
"""Samples of the smallest cluster: as many as a sample has neighbours, at the least."""

_SHARES = 0.01, 0.5  # of the class that a cluster may hold
_COUNTS = range(2, 9)  # of the clusters that k-means looks for
_DENSITY_DIMENSIONS = 4
# Ridge of the scatter, whose coordinates have mean square 1: clusters of no extent are finite.
_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Cluster:
    """Samples of a class that stand together.

    Args:
        members: Which of the n samples, (n,) bool.
        ratio: Fisher's discriminant ratio of the members against the rest.
        separation: The ratio weighted by both shares, share (1 - share) ratio: variance between
            the two groups over variance within them, which does not favour the smallest cluster.
    """

    members: NDArray[np.bool_]
    ratio: float
    separation: float


def fisher_ratio(points: Points, members: NDArray[np.bool_]) -> float:
    """Fisher's linear discriminant ratio of a group against the rest (Anders et al., 2022).

    tau = d^T (S + eps 1)^-1 d, d the difference of the means and S the pooled covariance within
    the two groups.

    Args:
        points: (n, d), coordinates of mean square 1.
        members: Of the group, (n,), neither none nor all.
    """
    n, inside = len(points), int(members.sum())
    means = points[members].mean(0), points[~members].mean(0)
    scatter = points.T @ points
    for mean, count in zip(means, (inside, n - inside), strict=True):
        scatter -= count * np.outer(mean, mean)
    difference = means[0] - means[1]
    ridged = scatter / max(n - 2, 1) + _RIDGE * np.eye(len(difference))
    return float(difference @ np.linalg.solve(ridged, difference))


def clusters(spectrum: Spectrum, seed: int = 0) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Groups of samples that k-means and HDBSCAN find in the leading eigenvectors.

    k clusters show in the k - 1 eigenvectors after the first; further ones would only add noise.
    HDBSCAN (Campello et al., 2013) finds groups among samples that belong to none.

    Args:
        spectrum: Of the class.
        seed: Of k-means' starts.

    Yields:
        Members (n,) of 1 to 50 % of the class and at least five samples, and the number of
        eigenvectors that they were found in.
    """
    n, available = len(spectrum.vectors), spectrum.vectors.shape[1] - 1
    fewest = max(SMALLEST, _SHARES[0] * n)
    for dimensions, labels in _partitions(spectrum, available, seed):
        for label in np.unique(labels[labels >= 0]):
            members = labels == label
            if fewest <= members.sum() <= _SHARES[1] * n:
                yield members, dimensions


def most_separable(spectrum: Spectrum, seed: int = 0) -> Cluster | None:
    """The cluster of greatest separation, or None where there is no cluster of a fitting size.

    Args:
        spectrum: Of the class.
        seed: Of k-means' starts.
    """
    best: Cluster | None = None
    for members, dimensions in clusters(spectrum, seed):
        share = float(members.mean())
        ratio = fisher_ratio(spectrum.embedding(dimensions), members)
        found = Cluster(members, ratio, share * (1 - share) * ratio)
        if best is None or found.separation > best.separation:
            best = found
    return best


def _partitions(
    spectrum: Spectrum, available: int, seed: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Dimensions and labels, (n,), -1 for samples in no cluster."""
    for count in _COUNTS:
        labels = (
            _k_means(spectrum.embedding(count - 1), count, seed) if count <= available else None
        )
        if labels is not None:
            yield count - 1, labels
    dimensions = min(_DENSITY_DIMENSIONS, available)
    cluster = optional("sklearn.cluster", "scikit-learn", "audit")
    density = cluster.HDBSCAN(min_cluster_size=SMALLEST, copy=True)
    yield dimensions, density.fit_predict(spectrum.embedding(dimensions))


def _k_means(points: Points, count: int, seed: int) -> NDArray[np.int64] | None:
    """Labels, (n,), or None where there are fewer distinct points than clusters.

    By SciPy, which has less to set up than scikit-learn: most classes are small, and many.
    """
    vq = optional("scipy.cluster.vq", "scipy", "audit")
    try:
        _, labels = vq.kmeans2(points, count, minit="++", missing="raise", rng=seed)
    except vq.ClusterError:
        return None
    return labels
