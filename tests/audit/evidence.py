"""Evidence made of numbers alone, for tests of what comes after explaining."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vimlrp.audit.records import MAP_SIDE, Evidence
from vimlrp.evaluation.data import Sample

CHANNELS = 24
STATISTICS = ("brightness", "contrast", "sharpness", "jpeg_quality", "exif")


def evidence_of(maps, latent, statistics, labels, *, originals=None):
    """Evidence of given arrays, whose names and predictions go with the labels."""
    labels = np.asarray(labels, dtype=np.int64)
    n = len(labels)
    names = tuple(f"class {i}" for i in range(int(labels.max(initial=0)) + 1))
    return Evidence(
        samples=tuple(
            Sample(Path(f"{i}.png"), f"{i}.png", int(label)) for i, label in enumerate(labels)
        ),
        class_names=names,
        labels=labels,
        predictions=labels.copy(),
        probabilities=np.full(n, 0.9, dtype=np.float32),
        maps=_shares(np.asarray(maps)).astype(np.float16),
        latent=_shares(np.asarray(latent)).astype(np.float16),
        activations=np.abs(latent).astype(np.float16),
        statistics=np.asarray(statistics, dtype=np.float32),
        statistic_names=STATISTICS[: np.shape(statistics)[1]],
        originals=np.arange(n) if originals is None else np.asarray(originals, dtype=np.int64),
        layer="layers.8",
    )


def clean_evidence(classes=6, per_class=50, seed=0):
    """Classes of one blob of relevance each, correlated latents and plain statistics."""
    rng = np.random.default_rng(seed)
    counts = [per_class] * classes if isinstance(per_class, int) else list(per_class)
    labels = np.repeat(np.arange(len(counts)), counts)
    mixing = rng.standard_normal((CHANNELS, CHANNELS)) / np.sqrt(CHANNELS)
    latent = rng.standard_normal((len(labels), CHANNELS)) @ mixing
    return evidence_of(
        _blobs(labels, rng),
        latent + rng.standard_normal((labels.max() + 1, CHANNELS))[labels],
        _statistics(labels, rng),
        labels,
    )


def with_corner_mark(evidence, label, share, *, strength=0.25):
    """The same, but a mark in the corner takes a share of the relevance of some of a class.

    Returns:
        Evidence, and the indices of the samples with the mark.
    """
    marked = _first(evidence, label, share)
    maps = evidence.maps.astype(np.float64)
    maps[marked] *= 1 - strength
    maps[marked, :2, :2] += strength / 4
    return replace(evidence, maps=maps.astype(np.float16)), marked


def with_channels(evidence, label, share, *, strength=0.4, seed=0):
    """The same, but a few latent channels take a share of the relevance of some of a class."""
    marked = _first(evidence, label, share)
    rng = np.random.default_rng(seed)
    latent = evidence.latent.astype(np.float64)
    latent[marked] *= 1 - strength
    latent[np.ix_(marked, [1, 5, 7])] += strength / 3 * rng.uniform(0.8, 1.2, (len(marked), 3))
    return replace(evidence, latent=latent.astype(np.float16)), marked


def with_compression(evidence, label, share):
    """The same, but some of a class were saved at low quality."""
    marked = _first(evidence, label, share)
    statistics = evidence.statistics.copy()
    statistics[marked, 3] = 20
    return replace(evidence, statistics=statistics), marked


def _first(evidence, label, share):
    own = evidence.of_class(label)
    return own[: round(share * len(own))]


def _shares(values):
    total = np.abs(values).reshape(len(values), -1).sum(1)
    total = np.where(total == 0, 1, total).reshape(-1, *[1] * (values.ndim - 1))
    return values / total


def _blobs(labels, rng):
    """Objects of varying place and size on a noisy ground, (n, 16, 16)."""
    grid = np.arange(MAP_SIDE)
    place = 7.5 + 1.5 * rng.standard_normal((len(labels), 2))
    size = rng.uniform(2, 4, len(labels))
    rows, columns = (
        np.exp(-((grid - place[:, [axis]]) ** 2) / (2 * size[:, None] ** 2)) for axis in (0, 1)
    )
    noise = 0.15 * rng.standard_normal((len(labels), MAP_SIDE, MAP_SIDE))
    return rows[:, :, None] * columns[:, None, :] + noise


def _statistics(labels, rng):
    free = rng.standard_normal((len(labels), 3)) * [0.1, 0.05, 0.3] + [0.45, 0.2, 3.2]
    quality = rng.choice([90, 92, 95], len(labels), p=[0.2, 0.3, 0.5])
    return np.column_stack([free, quality, np.zeros(len(labels))])
