"""From a cluster that stands out to all samples of the class that show its cue.

A cluster of relevance maps holds the samples whose cue lies at one place; the direction of the cue
on activations pooled over positions knows no place, and finds the others.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vimlrp.audit.drilling.concepts import cross_fitted, pattern, split, unit
from vimlrp.audit.drilling.place_cues import drill_place
from vimlrp.audit.drilling.regions import localise
from vimlrp.audit.records import Candidate, Channel, ClassScore, Evidence
from vimlrp.errors import InputError
from vimlrp.inputs import preprocessing_of
from vimlrp.optional import optional

__all__ = ["FEWEST_SEEDS", "REGIONS", "drill", "expand"]

FEWEST_SEEDS = 3
"""Samples of a cluster, and of the rest of its class, that a direction is taken from."""

REGIONS = 64
"""Carriers whose region is kept."""

# Another round must not lose the seeds: more of a drop of their ROC area is a drift to another cue.
_DRIFT = 0.05
_LEVEL = 0.05
_NEARLY_ALL = 0.95  # of the other classes
# Samples of other classes that tell what is ordinary: their mean needs no million.
_OTHERS = 4096


def drill(model: nn.Module, evidence: Evidence, score: ClassScore, *, seed: int = 0) -> Candidate:
    """Expand the cluster of a flagged class to all samples that share its cue, and localise it.

    A class that stands out among others has its place already: see
    `vimlrp.audit.drilling.place_cues.drill_place`.

    Args:
        model: That the evidence was gathered with.
        evidence: Of the audited pictures.
        score: A class and the cluster that stands out in it.
        seed: Of everything drawn.

    Returns:
        The candidate. Where the cluster or the rest of the class has under `FEWEST_SEEDS` samples,
        or no score tells them apart, it has no direction (zeros), no carriers and no regions.

    Raises:
        InputError: If the cluster is not of the class, the layer is not the model's, or a picture
            cannot be read.
    """
    if score.channel is Channel.COMPARISON:
        return drill_place(model, evidence, score, most=REGIONS, seed=seed)
    candidate = expand(evidence, score, seed=seed)
    without = np.setdiff1d(evidence.of_class(score.label), candidate.carriers)
    if not len(candidate.carriers) or not len(without):
        return replace(candidate, regions=_nowhere(model))
    shown = candidate.carriers[:REGIONS]
    reference = np.random.default_rng(seed).permutation(without)[:REGIONS]
    found = localise(
        model,
        evidence.layer,
        candidate.direction,
        [evidence.samples[i] for i in shown],
        [evidence.samples[i] for i in reference],
    )
    regions = found.masks if found.local else _nowhere(model)
    return replace(candidate, regions=regions, local=found.local)


def expand(evidence: Evidence, score: ClassScore, *, seed: int = 0) -> Candidate:
    """Find the samples that show a cluster's cue; no picture is read.

    Scores come from cross-fitted patterns (`vimlrp.audit.drilling.concepts.cross_fitted`), so that
    no sample's score is in the direction it is measured by: of activations and of the layer's
    relevance together, or of the statistics for a cluster that was found by those. A second round
    takes the carriers of the first for the seeds, unless it would lose these. Of two groups that
    differ by a cue, the one that nearly every other class is more like is taken to lack it.

    Args:
        evidence: Of the audited pictures.
        score: A class and the cluster that stands out in it.
        seed: Of the division into folds.

    Returns:
        A candidate without regions.

    Raises:
        InputError: If the cluster is not of the class.
    """
    rows = evidence.of_class(score.label)
    seeds = _seeds(evidence, score)
    is_seed = np.isin(rows, seeds)
    if min(is_seed.sum(), (~is_seed).sum()) < FEWEST_SEEDS:
        return _nothing(evidence, score, seeds)
    scores, shows = _shown(evidence, score.channel, rows, is_seed, seed)
    if _is_ordinary(evidence, score, rows, shows, seed):
        # The cluster is what lacks the cue, as happens where half of the class carries it.
        is_seed, seeds = ~shows, rows[~shows]
        scores, shows = _shown(evidence, score.channel, rows, is_seed, seed)
    if not shows.any():
        return _nothing(evidence, score, seeds)
    # Values beyond the range of float16 were kept as infinite: they are at least its greatest.
    values = np.nan_to_num(evidence.activations[rows]).astype(np.float64)
    direction = unit(pattern(values, shows))
    members, member_scores = _with_copies(evidence, score.label, rows, scores)
    carriers = members[np.isin(evidence.originals[members], rows[shows])]
    return Candidate(
        label=score.label,
        channel=score.channel,
        seeds=seeds,
        direction=direction,
        members=members,
        scores=member_scores,
        carriers=carriers,
        regions=np.zeros((0, 1, 1), dtype=bool),
        local=False,
        statistics=_differing(evidence, rows, shows),
    )


def _seeds(evidence: Evidence, score: ClassScore) -> NDArray[np.int64]:
    cluster = np.asarray(score.cluster, dtype=np.int64)
    if len(cluster) and not (cluster.min() >= 0 and cluster.max() < len(evidence)):
        raise InputError(
            f"the cluster names samples {cluster.min()} to {cluster.max()}, and the evidence has "
            f"{len(evidence)}: give the evidence that was screened"
        )
    if (evidence.labels[cluster] != score.label).any():
        raise InputError(f"the cluster holds samples of other classes than {score.label}")
    return np.unique(evidence.originals[cluster])


def _shown(
    evidence: Evidence,
    channel: Channel,
    rows: NDArray[np.int64],
    is_seed: NDArray[np.bool_],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of the rows, and which of them show the cue."""
    blocks = _blocks(evidence, channel, rows)
    if not blocks:
        return np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    scores, shows = _round(blocks, is_seed, is_seed, seed)
    if min(shows.sum(), (~shows).sum()) < FEWEST_SEEDS:
        return scores, shows
    again, then = _round(blocks, shows, is_seed, seed)
    lost = _area(scores, is_seed) - _area(again, is_seed)
    return (scores, shows) if lost > _DRIFT or not then.any() else (again, then)


def _is_ordinary(
    evidence: Evidence,
    score: ClassScore,
    rows: NDArray[np.int64],
    shows: NDArray[np.bool_],
    seed: int,
) -> bool:
    """Whether nearly every other class is more like those that show it than like the rest."""
    others = np.flatnonzero(evidence.labels != score.label)
    others = np.random.default_rng(seed).permutation(others)[:_OTHERS]
    if not len(others) or min(shows.sum(), (~shows).sum()) < FEWEST_SEEDS:
        return False
    statistics = score.channel is Channel.STATISTICS and len(evidence.statistic_names)
    source = evidence.statistics if statistics else evidence.activations
    values = _complete(source[np.r_[rows, others]].astype(np.float64))
    values /= values.std(0)
    projected = values @ pattern(values[: len(rows)], shows)
    own, theirs = projected[: len(rows)], projected[len(rows) :]
    _, kinds = np.unique(evidence.labels[others], return_inverse=True)
    elsewhere = np.bincount(kinds, theirs) / np.bincount(kinds)  # of each class
    here, there = own[shows].mean(), own[~shows].mean()
    # Classes differ along any direction: that most of them lie nearer to one group says nothing.
    alike = np.abs(elsewhere - here) < np.abs(elsewhere - there)
    return bool(alike.mean() > _NEARLY_ALL)


def _round(
    blocks: list[NDArray[np.float64]],
    shows: NDArray[np.bool_],
    is_seed: NDArray[np.bool_],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    parts = [cross_fitted(block, shows, seed=seed) for block in blocks]
    scores = np.mean(parts, axis=0)
    return scores, scores > split(scores, is_seed)


def _blocks(
    evidence: Evidence, channel: Channel, rows: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """The features that say who shows the cue, one scale each."""
    if channel is Channel.STATISTICS:
        statistics = _complete(evidence.statistics[rows].astype(np.float64))
        if statistics.shape[1]:
            return [statistics]
    both = (evidence.activations, evidence.latent)
    blocks = [_complete(block[rows].astype(np.float64)) for block in both]
    return [block for block in blocks if block.shape[1]]


def _complete(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns that vary, with the median where a value is missing."""
    finite = np.where(np.isfinite(values), values, np.nan)
    known = np.isfinite(finite).any(0)
    finite = finite[:, known]
    filled = np.where(np.isnan(finite), np.nanmedian(finite, axis=0), finite)
    return np.asarray(filled[:, filled.std(0) > 0])


def _area(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve."""
    above = scores[positive][:, None] - scores[~positive][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def _with_copies(
    evidence: Evidence, label: int, rows: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All samples of the class by falling score; a copy has its original's."""
    members = np.flatnonzero(evidence.labels == label)
    members = members[np.isin(evidence.originals[members], rows)]
    own = scores[np.searchsorted(rows, evidence.originals[members])]
    order = np.lexsort((members, -own))
    return members[order], own[order].astype(np.float32)


def _differing(
    evidence: Evidence, rows: NDArray[np.int64], shows: NDArray[np.bool_]
) -> tuple[tuple[str, float], ...]:
    """Statistics whose difference chance would not give (Mann-Whitney, Bonferroni)."""
    if not evidence.statistic_names:
        return ()
    stats = optional("scipy.stats", "scipy", "audit")
    found = []
    for name, column in zip(evidence.statistic_names, evidence.statistics.T, strict=True):
        values = column[rows].astype(np.float64)
        carriers, rest = (values[group & np.isfinite(values)] for group in (shows, ~shows))
        if min(len(carriers), len(rest)) < FEWEST_SEEDS or np.ptp(np.r_[carriers, rest]) == 0:
            continue
        test = stats.mannwhitneyu(carriers, rest)
        area = test.statistic / (len(carriers) * len(rest))
        if test.pvalue * len(evidence.statistic_names) < _LEVEL:
            found.append((name, float(max(area, 1 - area))))
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _nothing(evidence: Evidence, score: ClassScore, seeds: NDArray[np.int64]) -> Candidate:
    members = np.flatnonzero(evidence.labels == score.label)
    return Candidate(
        label=score.label,
        channel=score.channel,
        seeds=seeds,
        direction=np.zeros(evidence.activations.shape[1], dtype=np.float32),
        members=members,
        scores=np.zeros(len(members), dtype=np.float32),
        carriers=np.zeros(0, dtype=np.int64),
        regions=np.zeros((0, 1, 1), dtype=bool),
        local=False,
    )


def _nowhere(model: nn.Module) -> NDArray[np.bool_]:
    return np.zeros((0, *preprocessing_of(model).size), dtype=bool)
