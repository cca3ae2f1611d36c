"""Samples of a class in the plane, by what a channel holds of them."""

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Candidate, Channel, Evidence
from vimlrp.audit.reporting.plots import Scatter, scatter
from vimlrp.optional import optional

__all__ = ["features", "placed", "plane"]

_MOST = 300  # points: t-SNE of them takes about a second
_FEWEST = 12  # below that neighbours say nothing, and the principal plane is shown
_DIMENSIONS = 30


def plane(evidence: Evidence, candidate: Candidate) -> Scatter | None:
    """The samples of the candidate's class, placed by t-SNE (van der Maaten and Hinton, 2008).

    At most 300, carriers first and the others in equal distances; fewer than 12 are placed on
    their first two principal components. The same samples always get the same places.

    Args:
        evidence: What is known of all samples.
        candidate: Whose class and channel to show.

    Returns:
        The drawing, or None where fewer than three samples, or no differences, are known.

    Raises:
        MissingDependencyError: scikit-learn is missing.
    """
    carriers = set(candidate.carriers.tolist())
    chosen = _chosen(evidence, candidate)
    if len(chosen) < 3:
        return None
    places, method = placed(features(evidence, chosen, candidate.channel))
    if not np.ptp(places, axis=0).all():
        return None
    seeds = set(candidate.seeds.tolist())
    roles = ["seed" if i in seeds else "carrier" if i in carriers else "other" for i in chosen]
    names = [evidence.samples[i].name for i in chosen]
    return scatter(places, names, roles, method)


def features(
    evidence: Evidence, samples: NDArray[np.int64], channel: Channel
) -> NDArray[np.float64]:
    """What a channel holds of samples, (n, F): signed roots of relevance, standardised statistics.

    A statistic that a sample lacks counts as the mean.
    """
    if channel is Channel.STATISTICS:
        return _standardised(evidence.statistics[samples].astype(np.float64))
    values = evidence.latent if channel is Channel.LATENT else evidence.maps
    kept = values[samples].reshape(len(samples), -1).astype(np.float64)
    return np.sign(kept) * np.sqrt(np.abs(kept))


def placed(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """Put samples into the plane by their features, (n, F) to (n, 2).

    Returns:
        The places, and "t-SNE" or, for fewer than 12 samples or differences in fewer than two
        directions, "principal components".

    Raises:
        MissingDependencyError: scikit-learn is missing.
    """
    reduced = _principal(values)
    if len(values) < _FEWEST or reduced.shape[1] < 2:
        spare = max(0, 2 - reduced.shape[1])
        return np.pad(reduced, ((0, 0), (0, spare)))[:, :2], "principal components"
    return _neighbours(reduced), "t-SNE"


def _chosen(evidence: Evidence, candidate: Candidate) -> NDArray[np.int64]:
    first = candidate.carriers[: _MOST // 2]
    others = np.setdiff1d(evidence.of_class(candidate.label), candidate.carriers)
    count = min(len(others), _MOST - len(first))
    spread = others[np.arange(count) * len(others) // max(count, 1)]
    return np.sort(np.concatenate([first, spread]))


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    present = np.isfinite(values)
    count = np.maximum(present.sum(axis=0), 1)
    centred = np.where(present, values - np.where(present, values, 0).sum(axis=0) / count, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / count)
    return np.asarray(centred / np.where(spread > 0, spread, 1))


def _principal(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Principal components with a spread, (n, <= 30), signs fixed."""
    left, spread, right = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    kept = min(int((spread > 1e-9 * max(spread[0], 1e-30)).sum()), _DIMENSIONS)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    return np.asarray((left * spread * signs)[:, :kept])


def _neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    manifold = optional("sklearn.manifold", "scikit-learn", "audit")
    perplexity = min(30.0, (len(values) - 1) / 3)
    tsne = manifold.TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=500)
    # Threads only wait for each other over so few points, on a busy machine for minutes.
    with optional("threadpoolctl", "scikit-learn", "audit").threadpool_limits(1):
        return np.asarray(tsne.fit_transform(values), dtype=np.float64)
