"""Classes compared with each other: cues that nearly all pictures of a class share.

Such a cue makes no group within its class, so no screening within classes can see it. What it does
is to bring relevance to a place where pictures of other classes have little.

Classes differ for good reasons too: some objects stand on the ground, others fill the picture. How
much they do is the null, and it is taken from the classes themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import PlaceShare
from vimlrp.audit.screening.nulls import either, positive
from vimlrp.audit.screening.places import PLACES
from vimlrp.optional import optional

__all__ = ["FEWEST_CLASSES", "Standing", "standings"]

Floats = NDArray[np.float64]

FEWEST_CLASSES = 20
"""Of fewer, to be the first of all is no event of 5 %, whatever the null looks like."""

_TO_DEVIATION = 1.4826  # from the median magnitude of normal values to their standard deviation
_OF_MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal values
# Of the median absolute deviation: as many observations as a standard deviation of this share.
_EFFICIENCY = 0.37
# In standard deviations over pictures: classes that differ less are not told apart.
_LEAST_SPREAD = 0.1
_FREEDOMS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0, 50.0, 100.0)


@dataclass(frozen=True, eq=False)
class Standing:
    """A class among the others, at the place where it stands out most.

    Args:
        label: Index of the class.
        count: Pictures that were compared.
        place: Where, and how much of the relevance along the border lies there.
        members: Those of the pictures whose share is above that of other classes, (k,) int64.
        deviation: Its distance from the other classes, in their spread.
        p_value: That a further class like the others stands out so much at one of the places.
    """

    label: int
    count: int
    place: PlaceShare
    members: NDArray[np.int64]
    deviation: float
    p_value: float


def standings(known: Floats, classes: Sequence[tuple[int, NDArray[np.int64]]]) -> list[Standing]:
    """Compare classes at all places.

    The share of each picture (`vimlrp.audit.screening.places.shares`) becomes its normal score
    among all pictures, classes weighted alike, so that neither the scale nor the skew of shares
    matters. A class's median is compared with the medians of the other classes: their median is the
    location, the spread the greater one of the median absolute deviation and that of the upper
    half, so that a skew of classes is no finding. From its square the sampling error of a typical
    median is taken, and that of the class's own is added. The reference is Student's t. Its degrees
    of freedom are those of greatest likelihood for what the other classes have *below* the median,
    where no artifact pulls, at all places together; and no more than the spread is known by. The
    class itself is left out: a cue that draws relevance to one place takes it from the others.

    A place counts only if most pictures share it: the lower quartile of the class lies above the
    median of other classes, which it does where more than half carry the cue. The least p-value
    over places is corrected for their number (Sidak).

    Args:
        known: Of `vimlrp.audit.screening.places.shares`, (N, P).
        classes: Index of each of the M classes, and its pictures, none of them NaN, at least 2.

    Returns:
        One for each class; none if there are fewer than `FEWEST_CLASSES` classes.
    """
    if len(classes) < FEWEST_CLASSES:
        return []
    own = [known[rows] for _, rows in classes]
    middles = np.stack([np.median(part, axis=0) for part in own])  # (M, P)
    usual = np.stack([np.median(np.delete(middles, i, axis=0), axis=0) for i in range(len(own))])
    shared = np.stack([np.quantile(part, 0.25, axis=0) for part in own]) > usual
    medians, errors = _medians(own)
    above, below = _deviations(medians, errors)
    p_values = _tails(above, _freedoms(below))
    p_values[~shared] = 1.0
    found = []
    for i, (label, rows) in enumerate(classes):
        k = int(np.lexsort((-above[i], p_values[i]))[0])
        place = PlaceShare(tuple(PLACES)[k], float(middles[i, k]), float(usual[i, k]))
        members = rows[own[i][:, k] > place.usual]
        p_value = either(*p_values[i].tolist())
        found.append(Standing(label, len(rows), place, members, float(above[i, k]), p_value))
    return found


def _medians(own: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Of the normal scores of each class, and the variances of these medians, (M, P) each."""
    sizes = [len(part) for part in own]
    weights = np.concatenate([np.full(size, 1 / size) for size in sizes])
    table = np.concatenate(own)
    scores = np.stack([_normal_scores(column, weights) for column in table.T], axis=1)
    parts = np.split(scores, np.cumsum(sizes)[:-1])
    medians = np.stack([np.median(part, axis=0) for part in parts])
    spreads = [
        _TO_DEVIATION * np.median(np.abs(part - median), axis=0)
        for part, median in zip(parts, medians, strict=True)
    ]
    errors = (_OF_MEDIAN * np.stack(spreads)) ** 2 / np.array(sizes)[:, None]
    return medians, errors


def _normal_scores(values: Floats, weights: Floats) -> Floats:
    """Quantiles of the normal distribution at the weighted ranks; equal values share theirs."""
    stats = optional("scipy.stats", "scipy", "audit")
    _, which = np.unique(values, return_inverse=True)
    mass = np.bincount(which, weights)
    ranks = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.asarray(stats.norm.ppf(ranks))[which]


def _deviations(medians: Floats, errors: Floats) -> tuple[Floats, Floats]:
    """Distances of each class from the others, (M, P) each.

    Returns:
        In the spread that counts for what lies above, and in that of the lower half.
    """
    above, below = np.empty(medians.shape), np.empty(medians.shape)
    for i, own in enumerate(medians):
        others = np.delete(medians, i, axis=0)  # (M - 1, P)
        apart = others - np.median(others, axis=0)
        typical = np.median(np.delete(errors, i, axis=0), axis=0)
        magnitudes = np.abs(apart)
        upper, lower = (
            np.nanmedian(np.where(side, magnitudes, np.nan), axis=0)
            for side in (apart >= 0, apart <= 0)
        )
        widest = np.maximum(upper, np.median(magnitudes, axis=0))
        for found, spread in ((above, widest), (below, lower)):
            natural = (_TO_DEVIATION * spread) ** 2 - typical
            total = np.maximum(natural, _LEAST_SPREAD**2) + errors[i]
            found[i] = (own - np.median(others, axis=0)) / np.sqrt(total)
    return above, below


def _freedoms(deviations: Floats) -> Floats:
    """Degrees of freedom of greatest likelihood for the other classes' deviations below 0, (M,)."""
    stats = optional("scipy.stats", "scipy", "audit")
    most = _EFFICIENCY * (len(deviations) - 1)
    tried = np.array([*(freedom for freedom in _FREEDOMS if freedom < most), most])
    depths = np.maximum(-deviations, 0)
    likelihoods = np.empty((len(tried), len(deviations)))
    for k, freedom in enumerate(tried):
        density = stats.t.logpdf(depths * _scale(freedom), freedom) + np.log(_scale(freedom))
        likelihoods[k] = np.where(deviations < 0, density, 0).sum(1)
    of_others = likelihoods.sum(1, keepdims=True) - likelihoods
    return np.asarray(tried[of_others.argmax(0)])


def _tails(deviations: Floats, freedoms: Floats) -> Floats:
    stats = optional("scipy.stats", "scipy", "audit")
    scales = np.array([_scale(freedom) for freedom in freedoms])
    found = stats.t.sf(deviations * scales[:, None], freedoms[:, None])
    return np.vectorize(positive, otypes=[np.float64])(found)


def _scale(freedom: float) -> float:
    """From deviations in units of the median magnitude to values of Student's t."""
    stats = optional("scipy.stats", "scipy", "audit")
    return float(stats.t.ppf(0.75, freedom) * _TO_DEVIATION)
