"""Directions of a concept in feature space, and how strongly samples show it.

A **pattern** is what changes with the concept, cov(a, t) / var(t) (Haufe et al., NeuroImage 2014;
as concept direction: Pahde et al., "Navigating Neural Space", ICLR 2025). A **filter** is what
tells samples apart best, such as the normal of a support vector machine (Kim et al., TCAV, ICML
2018); it also turns away from whatever else varies, and so is no direction to move along.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.optional import optional

__all__ = ["FilterKind", "cross_fitted", "filter_direction", "pattern", "split", "unit"]

FilterKind = Literal["svm", "ridge", "logistic"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_FOLDS = 5
# A sum of squares below this share of the others' median is rounding, and no channel to judge by.
_DEAD = 1e-3
# How many standard deviations a single channel may speak with: one broken value is no concept.
_LOUDEST = 8.0


def pattern(values: NDArray[np.floating], target: NDArray[Any]) -> Floats:
    """The pattern direction: covariance of values with the target over the target's variance.

    For a target of two values it is the difference of the two groups' means.

    Args:
        values: Activations, (n, K).
        target: Whether, or how strongly, each sample shows the concept, (n,).

    Returns:
        (K,), in units of the activations for one unit of the target.

    Raises:
        InputError: If shapes do not fit, a value is not finite, or the target is constant.
    """
    x, t = _varying(values, target)
    t = t - t.mean()
    return np.asarray(t @ (x - x.mean(0)) / (t @ t))


def filter_direction(
    values: NDArray[np.floating],
    target: NDArray[Any],
    *,
    kind: FilterKind = "svm",
    strength: float = 1.0,
    seed: int = 0,
) -> Floats:
    """A filter direction: the weights of a linear classifier of standardised values.

    Args:
        values: Activations, (n, K).
        target: Whether each sample shows the concept, (n,) of two values.
        kind: The classifier: a linear support vector machine, ridge regression, or logistic
            regression, with both groups weighted alike.
        strength: Of its regularisation, relative to scikit-learn's default.
        seed: Of the solver.

    Returns:
        (K,), such that values times it, but for a constant, is the classifier's score.

    Raises:
        InputError: As for `pattern`, or if there is no such classifier.
        MissingDependencyError: If scikit-learn is missing.
    """
    x, t = _varying(values, target)
    if kind not in get_args(FilterKind) or not strength > 0:
        raise InputError(
            f"kind is {kind!r} and strength {strength}; give one of {get_args(FilterKind)} and a "
            "strength above 0"
        )
    linear = optional("sklearn.linear_model", "scikit-learn", "audit")
    if kind == "svm":
        svm = optional("sklearn.svm", "scikit-learn", "audit")
        model = svm.LinearSVC(C=1 / strength, class_weight="balanced", random_state=seed)
    elif kind == "ridge":
        model = linear.RidgeClassifier(alpha=strength, class_weight="balanced", random_state=seed)
    else:
        model = linear.LogisticRegression(C=1 / strength, class_weight="balanced", max_iter=1000)
    spread = _spread(x)
    model.fit((x - x.mean(0)) / spread, t > t.mean())
    return np.asarray(np.ravel(model.coef_) / spread, dtype=np.float64)  # some give (1, K)


def unit(direction: NDArray[np.floating]) -> NDArray[np.float32]:
    """A direction of length 1; zeros stay zeros."""
    length = float(np.linalg.norm(direction))
    return np.asarray(direction / (length or 1.0), dtype=np.float32)


def cross_fitted(
    values: NDArray[np.floating], shows: Bools, *, folds: int = _FOLDS, seed: int = 0
) -> Floats:
    """How strongly each sample shows a concept, by patterns fitted without that sample.

    In every fold the channels are standardised by the samples without the concept, the pattern is
    taken there, and the projections are standardised by those of the samples without it, so that
    folds share one scale. Standardised channels keep a few loud ones from drowning the concept; a
    whitening by all covariances, which a filter is, loses to them with few seeds.

    Args:
        values: Activations or other features, (n, K).
        shows: Which samples are taken to show the concept, (n,), at least 2 of each.
        folds: At most; no more than there are samples of either kind.
        seed: Of the division into folds.

    Returns:
        (n,); 0 and 1 are mean and standard deviation of the samples without it.

    Raises:
        InputError: If shapes do not fit, a value is not finite, or one kind has under 2 samples.
    """
    x, _ = _checked(values, shows)
    few = int(min(shows.sum(), (~shows).sum()))
    if few < 2:
        raise InputError(
            f"{int(shows.sum())} of {len(shows)} samples show the concept; give at least 2 that "
            "do and 2 that do not"
        )
    fold = _folds(shows, min(folds, few), seed)
    scores = np.empty(len(x))
    for k in range(fold.max() + 1):
        scores[fold == k] = _scores(x, shows, fold != k)[fold == k]
    return scores


def split(scores: NDArray[np.floating], seeds: Bools, *, fewest: int = 3) -> float:
    """The threshold between samples that show a concept and those that do not.

    Scores are taken for two normal distributions of a mean and a variance each, and the threshold
    is that of minimum error (Kittler and Illingworth, Pattern Recognition, 1986). Otsu's, which
    takes equal variances and favours equal sizes, cuts into the greater group when carriers are
    few. The upper group must hold at least half of the seeds, since it is theirs that is sought.

    Args:
        scores: (n,).
        seeds: Which samples the concept was found by, (n,).
        fewest: Samples on either side.

    Returns:
        Samples with greater scores show it; infinite where no threshold is possible.

    Raises:
        InputError: If shapes do not fit or a score is not finite.
    """
    s, _ = _checked(np.asarray(scores)[:, None], seeds)
    order = np.sort(s[:, 0])
    cuts = np.arange(fewest, len(order) - fewest + 1)  # so many lie below
    limit = np.median(order if not seeds.any() else s[seeds, 0])
    cuts = cuts[(order[cuts - 1] < order[np.minimum(cuts, len(order) - 1)])]
    cuts = cuts[order[cuts - 1] < limit]
    if len(cuts) == 0:
        return float("inf")
    best = cuts[int(np.argmin([_error(order, int(cut)) for cut in cuts]))]
    return float((order[best - 1] + order[best]) / 2)


def _scores(x: Floats, shows: Bools, fitted: Bools) -> Floats:
    """Projections of all samples on the pattern of some."""
    without = x[fitted & ~shows]
    z = np.clip((x - without.mean(0)) / _spread(without), -_LOUDEST, _LOUDEST)
    projection = z @ unit(z[fitted & shows].mean(0) - z[fitted & ~shows].mean(0))
    own = projection[fitted & ~shows]
    return np.asarray((projection - own.mean()) / (own.std() or 1.0))


def _spread(x: Floats) -> Floats:
    """Standard deviations, with a floor for channels that hardly vary."""
    spread = x.std(0)
    floor = _DEAD * (np.median(spread[spread > 0]) if (spread > 0).any() else 1.0)
    return np.asarray(np.maximum(spread, max(floor, np.finfo(np.float64).tiny)))


def _folds(shows: Bools, count: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(shows), dtype=np.int64)
    for group in (shows, ~shows):
        drawn = rng.permutation(np.flatnonzero(group))
        fold[drawn] = np.arange(len(drawn)) % count
    return fold


def _error(ordered: Floats, cut: int) -> float:
    """Kittler and Illingworth's criterion, their equation 15, for a cut of ordered scores."""
    # A group of equal values would have an error of minus infinity.
    floor = 1e-3 * float(ordered.std()) or 1.0
    total = 0.0
    for part in (ordered[:cut], ordered[cut:]):
        share = len(part) / len(ordered)
        total += share * (np.log(max(float(part.std()), floor)) - np.log(share))
    return total


def _checked(values: NDArray[np.floating], target: NDArray[Any]) -> tuple[Floats, Floats]:
    x, t = np.asarray(values, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if x.ndim != 2 or t.shape != (len(x),) or x.size == 0:
        raise InputError(
            f"values have shape {x.shape} and the target {t.shape}; give (n, K) and (n,)"
        )
    if not (np.isfinite(x).all() and np.isfinite(t).all()):
        raise InputError("values or target hold NaN or infinite numbers; leave such samples out")
    return x, t


def _varying(values: NDArray[np.floating], target: NDArray[Any]) -> tuple[Floats, Floats]:
    x, t = _checked(values, target)
    if t.min() == t.max():
        raise InputError(f"the target is {t[0]:g} for every sample; give samples of both kinds")
    return x, t
