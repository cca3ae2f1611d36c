"""How well an audit found what was planted: classes, samples, and places.

Definitions follow those of slice discovery (precision at k: Domino, Eyuboglu et al., ICLR 2022) and
of localisation (`vimlrp.evaluation.localisation`), so that numbers can be compared.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vimlrp.audit.changes import closed
from vimlrp.errors import InputError
from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.evaluation.localisation import (
    average_precision,
    mass_accuracy,
    pointing_hit,
    region_share,
)
from vimlrp.optional import optional

__all__ = [
    "Localisation",
    "Retrieval",
    "auroc",
    "class_rank",
    "filled",
    "localisation",
    "overlap",
    "proportion",
    "retrieval",
]

_CLOSING = 1 / 12
"""Gaps within an artifact up to this share of the picture count as part of its place."""


def proportion(hits: int, count: int, *, exact: bool = False, confidence: float = 0.95) -> Estimate:
    """A share with its binomial confidence interval.

    Args:
        hits: How often something happened.
        count: How often it could have; 0 gives NaN.
        exact: Clopper and Pearson's interval (1934), which never covers too little, for rates
            close to 0 or 1; else Wilson's (1927).
        confidence: Within 0 to 1.

    Raises:
        InputError: If there are more hits than tries.
    """
    if not 0 <= hits <= count:
        raise InputError(f"{hits} of {count} is no share; give 0 to {count} hits")
    if count == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    test = optional("scipy.stats", "scipy", "audit").binomtest(hits, count)
    interval = test.proportion_ci(confidence, "exact" if exact else "wilson")
    return Estimate(hits / count, float(interval.low), float(interval.high), count)


def class_rank(ranking: Sequence[int], label: int, rivals: Collection[int]) -> tuple[int, int]:
    """The place of one class among those that should not be suspected.

    Other planted classes stand aside: a place behind them is no fault.

    Args:
        ranking: Classes, most suspicious first; a class that is missing counts as last.
        label: The class.
        rivals: Those it should stand before.

    Returns:
        Its place from 1, and the last place there is.
    """
    places = {other: place for place, other in enumerate(ranking)}
    last = len(places)
    own = places.get(label, last)
    # A class that was not ranked stands behind every one that was, and beside others like it.
    before = sum(places.get(other, last) <= own for other in rivals if other != label)
    return 1 + before, 1 + len(set(rivals) - {label})


def auroc(scores: NDArray[np.floating], wanted: NDArray[np.bool_]) -> float:
    """The area under the ROC curve; NaN where one side is empty.

    Args:
        scores: (n,), higher for what is wanted.
        wanted: (n,) bool.
    """
    if wanted.all() or not wanted.any():
        return float("nan")
    return float(optional("sklearn.metrics", "scikit-learn", "audit").roc_auc_score(wanted, scores))


@dataclass(frozen=True)
class Retrieval:
    """How well the pictures that carry an artifact were found among those of their class.

    Args:
        auroc: Of the scores.
        average_precision: Of the scores.
        precision_at_10: Share of carriers among the ten highest scores (of all, if fewer).
        precision_at_25: Among the 25 highest.
        best_f1: Greatest harmonic mean of precision and recall over all thresholds.
        f1: That of the pictures taken for carriers.
        purity: Share of carriers in the cluster that it was found by; NaN for an empty one.
        recall: Share of the carriers that are in that cluster.
        prevalence: Share of carriers, which is the average precision of chance.
        carriers: Their number; of fewer than ten, a precision at 10 of 1 is out of reach.
        to_view: Pictures to look at, in falling order of score, until nine in ten carriers were
            seen.
    """

    auroc: float
    average_precision: float
    precision_at_10: float
    precision_at_25: float
    best_f1: float
    f1: float
    purity: float
    recall: float
    prevalence: float
    carriers: int
    to_view: int


def retrieval(
    scores: NDArray[np.floating],
    wanted: NDArray[np.bool_],
    taken: NDArray[np.bool_],
    cluster: NDArray[np.bool_],
) -> Retrieval:
    """Measure how well carriers were found.

    Args:
        scores: Of the class's n pictures, (n,).
        wanted: Which of them carry the artifact, (n,) bool.
        taken: Which of them are taken to, (n,) bool.
        cluster: Which of them are in the cluster that it was found by, (n,) bool.

    Raises:
        InputError: If no picture carries the artifact, or the shapes differ.
    """
    if not scores.shape == wanted.shape == taken.shape == cluster.shape or not wanted.any():
        raise InputError(
            f"shapes are {scores.shape}, {wanted.shape}, {taken.shape} and {cluster.shape}, with "
            f"{int(wanted.sum())} carriers; give equal ones, with at least one carrier"
        )
    metrics = optional("sklearn.metrics", "scikit-learn", "audit")
    ordered = wanted[np.argsort(-scores, kind="stable")]
    precision, recall, _ = metrics.precision_recall_curve(wanted, scores)
    hits = int((cluster & wanted).sum())
    return Retrieval(
        auroc(scores, wanted),
        float(metrics.average_precision_score(wanted, scores)),
        float(ordered[:10].mean()),
        float(ordered[:25].mean()),
        float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))),
        float(metrics.f1_score(wanted, taken, zero_division=0.0)),
        hits / int(cluster.sum()) if cluster.any() else float("nan"),
        hits / int(wanted.sum()),
        float(wanted.mean()),
        int(wanted.sum()),
        int(np.searchsorted(np.cumsum(ordered), 0.9 * wanted.sum() - 1e-9) + 1),
    )


@dataclass(frozen=True)
class Localisation:
    """How well an artifact was located, as means over pictures.

    Args:
        enrichment: Share of positive relevance on the artifact over its share of the picture's
            area; 1 for relevance that does not know it.
        pointing: Share of pictures whose highest relevance lies on it.
        pixel_precision: Average precision of the pixels by relevance.
        area: Its share of the picture, which is the pixel precision of chance.
        count: Pictures.
    """

    enrichment: float
    pointing: float
    pixel_precision: float
    area: float
    count: int


def localisation(maps: NDArray[np.floating], masks: NDArray[np.bool_]) -> Localisation:
    """Measure how well relevance locates an artifact.

    Args:
        maps: Signed relevance, (n, H, W).
        masks: Its pixels, (n, H, W); gaps between them, as within letters, are `filled` first.

    Raises:
        InputError: If there are no pictures, or shapes differ.
    """
    if maps.shape != masks.shape or len(maps) == 0:
        raise InputError(
            f"maps are {maps.shape} and masks {masks.shape}; give the same shape, not empty"
        )
    relevance = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))
    places = torch.from_numpy(np.stack([filled(mask) for mask in masks]))
    area = region_share(places)
    return Localisation(
        _mean(mass_accuracy(relevance, places) / area),
        _mean(pointing_hit(relevance, places).double()),
        _mean(average_precision(relevance.flatten(1), places.flatten(1))),
        _mean(area),
        len(maps),
    )


def overlap(regions: NDArray[np.bool_], masks: NDArray[np.bool_]) -> float:
    """Mean intersection over union of regions (n, H, W) and `filled` masks; NaN for none."""
    if len(regions) == 0:
        return float("nan")
    places = np.stack([filled(mask) for mask in masks])
    both = (regions & places).sum(axis=(1, 2))
    return float((both / np.maximum((regions | places).sum(axis=(1, 2)), 1)).mean())


def filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask (H, W) without small gaps: a text's place is its line, more than its strokes."""
    return closed(mask, _CLOSING)


def _mean(values: torch.Tensor) -> float:
    return float(values.nanmean())
