"""Samples of a class as points: near one another where the model, or the file, treats them alike.

Relevance, L1-normalised, is a distribution over positions; the square root of its parts makes the
Euclidean distance that of Hellinger, under which one bright cell does not drown all others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vimlrp.audit.records import Channel, Evidence
from vimlrp.errors import InputError
from vimlrp.optional import optional

__all__ = [
    "Points",
    "coordinates",
    "embedding_2d",
    "features",
    "latent_features",
    "map_features",
    "spreads",
    "statistic_features",
]

Points = NDArray[np.float64]

_LEVELS = 3  # of the pyramid: sides S, S/2 and S/4
# Standard deviations, beyond which a statistic is as far out as it gets: a rare property, such as
# being a grey picture, is no more of a group for being rare.
_GREATEST = 3.0
_TINY = 1e-9  # relative; what float16 sums leave of a constant


def map_features(maps: NDArray[np.floating[Any]]) -> Points:
    """Relevance maps as points.

    Positive and negative relevance are kept apart. Each is summed at three scales, so that a mark
    that moves by a cell or two still falls into the same coarse cell.

    Args:
        maps: Signed relevance, (n, S, S), S a multiple of 4.

    Returns:
        (n, d), of length 1; a map of zeros is all zeros.

    Raises:
        InputError: If the maps are not square or their side is no multiple of 4.
    """
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or maps.shape[1] % 2 ** (_LEVELS - 1):
        raise InputError(
            f"maps have shape {maps.shape}; give (n, S, S) with a side S that is a multiple of "
            f"{2 ** (_LEVELS - 1)}"
        )
    shares = _shares(maps.reshape(len(maps), -1)).reshape(maps.shape)
    parts = (np.maximum(shares, 0), np.maximum(-shares, 0))
    cells = [_pooled(part, 2**level) for part in parts for level in range(_LEVELS)]
    return np.sqrt(np.concatenate(cells, axis=1) / _LEVELS)


def latent_features(latent: NDArray[np.floating[Any]]) -> Points:
    """Relevance of a layer's channels as points: signed square roots of their shares.

    Args:
        latent: Signed relevance, (n, K).

    Returns:
        (n, K), of length 1; zeros stay zeros.
    """
    shares = _shares(latent)
    return np.sign(shares) * np.sqrt(np.abs(shares))


def statistic_features(values: NDArray[np.floating[Any]], spread: Points) -> Points:
    """Statistics as points: standard deviations from the class's median.

    A value that does not exist is put at the median, and that it does not exist is a feature of its
    own: some PNG files among JPEG files are a group.

    Args:
        values: (n, S), NaN where one does not exist.
        spread: Of the values and of their absence, (2, S), as `spreads` gives it.

    Returns:
        (n, d), without the columns that are constant everywhere.
    """
    residuals, absent = _residuals(values)
    columns = [
        np.clip(part[:, scale > 0] / scale[scale > 0], -_GREATEST, _GREATEST)
        for part, scale in zip((residuals, absent), spread, strict=True)
    ]
    return np.concatenate(columns, axis=1)


def spreads(evidence: Evidence) -> Points:
    """How far the statistics of samples lie from the median of their class.

    Over all classes: a class's own spread would hide a group within it, since the group widens it.

    Returns:
        Of each statistic and of its absence, (2, S): the greater of the standard deviation and the
        scaled median absolute deviation; 0 for one that is constant within every class.
    """
    own = [evidence.of_class(int(label)) for label in np.unique(evidence.labels)]
    parts = [_residuals(evidence.statistics[i]) for i in own if len(i)]
    if not parts or not evidence.statistics.shape[1]:
        return np.zeros((2, evidence.statistics.shape[1]))
    residuals, absent = (np.concatenate(part) for part in zip(*parts, strict=True))
    size = np.abs(np.nan_to_num(evidence.statistics)).max(0, initial=0.0)
    scale = np.maximum(residuals.std(0), 1.4826 * np.median(np.abs(residuals), axis=0))
    # Files that lack several statistics lack them together: counted once.
    _, first = np.unique(absent, axis=1, return_index=True)
    missing = np.zeros_like(scale)
    missing[first] = absent.std(0)[first]
    return np.stack([np.where(scale > _TINY * size, scale, 0), missing])


def features(
    evidence: Evidence, channel: Channel, indices: NDArray[np.int64], spread: Points | None = None
) -> Points:
    """Samples of one class as points in a channel.

    Args:
        evidence: What is known of them.
        channel: What to look at.
        indices: Of the samples, (n,).
        spread: Of `spreads`, to measure it once for many classes; only for statistics.

    Returns:
        (n, d), finite.

    Raises:
        InputError: If a sample's relevance is not finite.
    """
    if channel is Channel.STATISTICS:
        found = statistic_features(
            evidence.statistics[indices], spreads(evidence) if spread is None else spread
        )
    elif channel is Channel.LATENT:
        found = latent_features(evidence.latent[indices])
    else:
        found = map_features(evidence.maps[indices])
    return _finite(found, channel, indices)


def coordinates(points: Points) -> Points:
    """The same points in as few dimensions as hold them: distances do not change.

    Args:
        points: (n, d).

    Returns:
        Principal coordinates, (n, r), centred, of falling variance; r is the rank, at most
        min(n - 1, d), and 0 where all points coincide.
    """
    centred = points - points.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    size = max(1.0, float(np.abs(points).max(initial=0.0)))
    kept = values > _TINY * size * np.sqrt(max(points.size, 1))
    return left[:, kept] * values[kept]


def embedding_2d(
    points: Points, seed: int = 0, *, method: Literal["pca", "umap"] = "pca"
) -> NDArray[np.float64]:
    """Two coordinates for each sample, to draw it by.

    Args:
        points: (n, d).
        seed: Of UMAP's drawing.
        method: "pca", the first two principal coordinates, in milliseconds; or "umap" (McInnes et
            al., 2018), in seconds, for classes that somebody will look at.

    Returns:
        (n, 2); zeros where there is nothing to tell samples apart by.

    Raises:
        InputError: If the method is another.
        MissingDependencyError: If umap-learn is wanted and not installed.
    """
    if method not in ("pca", "umap"):
        raise InputError(f"method is {method!r}; give 'pca' or 'umap'")
    found = coordinates(points)
    if method == "umap" and len(found) > 3 and found.shape[1] > 1:  # fewer make no neighbourhood
        with _threads_kept():
            return _by_umap(optional("umap", "umap-learn", "audit"), found, seed)
    return np.pad(found[:, :2], ((0, 0), (0, max(0, 2 - found.shape[1]))))


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Leave PyTorch its number of threads, which numba changes for the process when it starts."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _by_umap(umap: Any, points: Points, seed: int) -> NDArray[np.float64]:
    # A random start: the spectral one fails on the small and on the disconnected graphs.
    drawn = umap.UMAP(
        n_neighbors=min(15, len(points) - 1),
        init="random",
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(drawn.fit_transform(points), dtype=np.float64)


def _shares(values: NDArray[np.floating[Any]]) -> Points:
    """Values over the sum of their magnitudes, (n, d); float16 rounded that sum."""
    wide = values.astype(np.float64)
    total = np.abs(wide).sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinite ones become NaN, which is refused later
        return np.divide(wide, total, out=np.zeros_like(wide), where=total != 0)


def _pooled(parts: Points, factor: int) -> Points:
    """Cells of (n, S, S) summed in squares, (n, (S / factor)^2)."""
    n, side, _ = parts.shape
    cut = parts.reshape(n, side // factor, factor, side // factor, factor)
    return cut.sum((2, 4)).reshape(n, -1)


def _residuals(values: NDArray[np.floating[Any]]) -> tuple[Points, Points]:
    """Distances from the column's median, 0 where there is no value, and where there is none."""
    wide = values.astype(np.float64)
    absent = ~np.isfinite(wide)
    present = np.where(absent, np.nan, wide)
    present[:, absent.all(0)] = 0.0
    median = np.nanmedian(present, axis=0)
    return np.where(absent, 0.0, wide - median), absent - absent.mean(0)


def _finite(found: Points, channel: Channel, indices: NDArray[np.int64]) -> Points:
    bad = ~np.isfinite(found).all(1)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(found)} samples have no finite {channel} (the first is "
            f"number {int(indices[bad.argmax()])}): explain them again, or leave them out"
        )
    return found
