"""Is a change by a probe more than chance? Paired intervals, p-values, false discoveries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.probing.pictures import Probe
from vimlrp.audit.probing.tables import ClassChange, Measure, Overall
from vimlrp.evaluation.bootstrap import Estimate, estimates
from vimlrp.evaluation.measures import Statistic
from vimlrp.optional import optional

__all__ = ["Observations", "class_changes", "false_discovery", "overall_changes"]

_FEWEST = 5  # pairs: below, no p-value is given


@dataclass(frozen=True, eq=False)
class Observations:
    """What was seen of n pictures and of their twins under P probes.

    Args:
        labels: (n,).
        hits: Whether each is classified as its label, (1 + P, n); the picture itself comes first,
            here and below.
        own: Probability of the label, (1 + P, n).
        groups: Group of each picture, (n,) in 0 .. G - 1, none of them empty.
        sums: Probability of every output, summed over the pictures of a group, (1 + P, G, C).
    """

    labels: NDArray[np.int64]
    hits: NDArray[np.bool_]
    own: NDArray[np.float64]
    groups: NDArray[np.int64]
    sums: NDArray[np.float64]


def overall_changes(
    seen: Observations, probes: Sequence[Probe], resamples: int, seed: int
) -> tuple[Overall, ...]:
    """The change of accuracy over all pictures, a row for each probe."""
    sizes = np.bincount(seen.groups).astype(np.float64)
    hits = [np.bincount(seen.groups, weights=row) for row in seen.hits.astype(np.float64)]
    columns: dict[str, NDArray[np.float64]] = {"size": sizes}
    columns |= {str(v): np.asarray(hits[v] - hits[0], np.float64) for v in range(1, len(hits))}
    statistics = [_ratio(str(v)) for v in range(1, len(hits))]
    changes = estimates(statistics, columns, resamples=resamples, seed=seed)
    before = float(seen.hits[0].mean())
    return tuple(
        Overall(p.name, before, float(seen.hits[v].mean()), _over(change, len(seen.labels)))
        for v, (p, change) in enumerate(zip(probes, changes, strict=True), start=1)
    )


def class_changes(
    seen: Observations, probes: Sequence[Probe], rate: float, resamples: int, seed: int
) -> tuple[ClassChange, ...]:
    """All changes of classes, flagged at a false-discovery rate for each probe and measure."""
    tests = _Tests()
    own = {
        int(label): _own(seen, seen.labels == label, tests, resamples, seed)
        for label in np.unique(seen.labels)
    }
    rows: list[ClassChange] = []
    for v, probe in enumerate(probes, start=1):
        for measure in (Measure.ACCURACY, Measure.PROBABILITY):
            found = {label: by_probe[measure, v] for label, by_probe in own.items()}
            rows += _flagged(probe.name, measure, found, rate)
        everywhere = _everywhere(seen, v, tests, resamples, seed)
        rows += _flagged(probe.name, Measure.EVERYWHERE, everywhere, rate)
    return tuple(rows)


def false_discovery(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rates at which each would just be flagged (Benjamini and Hochberg, 1995).

    Args:
        p_values: (m,); those that are NaN stay so and do not count.
    """
    adjusted = np.full(p_values.shape, np.nan)
    present = np.isfinite(p_values)
    if present.any():
        control = optional("scipy.stats", "scipy", "audit").false_discovery_control
        adjusted[present] = control(p_values[present])
    return adjusted


@dataclass(frozen=True)
class _Found:
    before: float
    after: float
    change: Estimate
    p_value: float


class _Tests:
    """Of the hypothesis that a probe changes nothing; NaN for too few pairs."""

    def __init__(self) -> None:
        self._stats = optional("scipy.stats", "scipy", "audit")

    def of_hits(self, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
        """Exact, over pairs of which only one is right (McNemar, 1947)."""
        if len(before) < _FEWEST:
            return float("nan")
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        if lost + won == 0:
            return 1.0
        return float(self._stats.binomtest(won, lost + won, 0.5).pvalue)

    def of_differences(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        """Student's, for the mean of each column, (n, m) to (m,)."""
        count = len(differences)
        if count < _FEWEST:
            return np.full(differences.shape[1], np.nan)
        mean, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(mean) / (spread / np.sqrt(count))
        # A column without any difference has no spread either, and no t.
        p = np.where(mean == 0, 1.0, 2 * self._stats.t.sf(t, count - 1))
        return np.maximum(p, np.finfo(float).tiny)


def _own(
    seen: Observations, chosen: NDArray[np.bool_], tests: _Tests, resamples: int, seed: int
) -> dict[tuple[Measure, int], _Found]:
    """What all probes did on the pictures of one class."""
    measured = {
        Measure.ACCURACY: seen.hits[:, chosen].astype(np.float64),
        Measure.PROBABILITY: seen.own[:, chosen],
    }
    keys = [(measure, v) for measure in measured for v in range(1, len(seen.hits))]
    columns = {f"{measure} {v}": measured[measure][v] - measured[measure][0] for measure, v in keys}
    statistics = [Statistic.mean(name, name, "none") for name in columns]
    changes = estimates(statistics, columns, resamples=resamples, seed=seed)
    found = {}
    for key, name, change in zip(keys, columns, changes, strict=True):
        measure, v = key
        before, after = measured[measure][0], measured[measure][v]
        if measure is Measure.ACCURACY:
            p_value = tests.of_hits(before > 0, after > 0)
        else:
            p_value = float(tests.of_differences(columns[name][:, None])[0])
        found[key] = _Found(float(before.mean()), float(after.mean()), change, p_value)
    return found


def _everywhere(
    seen: Observations, v: int, tests: _Tests, resamples: int, seed: int
) -> dict[int, _Found]:
    """What a probe did to every output over all pictures."""
    sizes = np.bincount(seen.groups).astype(np.float64)
    differences = seen.sums[v] - seen.sums[0]  # (G, C)
    classes, count = differences.shape[1], len(seen.labels)
    columns = {str(c): differences[:, c] for c in range(classes)} | {"size": sizes}
    changes = estimates(
        [_ratio(str(c)) for c in range(classes)], columns, resamples=resamples, seed=seed
    )
    p_values = tests.of_differences(differences / sizes[:, None])
    before, after = (seen.sums[w].sum(axis=0) / count for w in (0, v))
    return {
        c: _Found(float(before[c]), float(after[c]), _over(changes[c], count), float(p_values[c]))
        for c in range(classes)
    }


def _flagged(
    probe: str, measure: Measure, found: dict[int, _Found], rate: float
) -> list[ClassChange]:
    rates = false_discovery(np.array([entry.p_value for entry in found.values()]))
    return [
        ClassChange(
            probe,
            label,
            measure,
            entry.before,
            entry.after,
            entry.change,
            entry.p_value,
            float(q),
            bool(q <= rate),
        )
        for (label, entry), q in zip(found.items(), rates, strict=True)
    ]


def _ratio(column: str) -> Statistic:
    """The mean over pictures, from sums over groups of them."""
    return Statistic(column, ((column, "size"),), "none")


def _over(change: Estimate, count: int) -> Estimate:
    """The estimate with the number of pictures for that of groups."""
    return Estimate(change.value, change.low, change.high, count)
