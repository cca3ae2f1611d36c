"""Which classes look as if some of their samples were recognised by something else?"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Channel, ClassScore, Evidence, Screening
from vimlrp.audit.screening.comparing import FEWEST_CLASSES, Standing, standings
from vimlrp.audit.screening.embedding import Points, features, spreads
from vimlrp.audit.screening.measuring import FEWEST_DRAWS, MAXIMUM, Measurement, measure
from vimlrp.audit.screening.nulls import either
from vimlrp.audit.screening.peers import NATURAL, peer_p_values
from vimlrp.audit.screening.places import shares
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.optional import optional

__all__ = ["FEWEST", "Progress", "equal_count", "screen", "with_one_thread"]

Progress = Callable[[int, int, str], None]
"""Is told how many of how many measurements are done, and the class of the last one."""

FEWEST = 20
"""Samples of a class that can be screened: of fewer, a quarter is no cluster of five."""

_MOST = 400  # samples of a class by default, at a fifth of the cost of 1300
_SHARE_BELOW = 0.1  # of the classes may have fewer than the equal number
_AHEAD = 8  # measurements for each process that are prepared at a time


@dataclass(frozen=True, eq=False)
class _Task:
    """A class to measure in a channel, by the indices of its samples."""

    label: int
    channel: Channel
    indices: NDArray[np.int64]
    seed: tuple[int, ...]


_Measured = tuple[_Task, Measurement]
_Ranked = tuple[ClassScore, float]


def screen(
    evidence: Evidence,
    *,
    rate: float = 0.1,
    draws: int = 20,
    per_class: int | None = None,
    channels: Sequence[Channel] = tuple(Channel),
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Screening:
    """Rank the classes of a data set by how far their samples fall apart.

    Three statistics count: how easily a class's graph of nearest neighbours is cut in two, how far
    the most separable cluster in it stands apart, and how far the two sides of a cut across one of
    the class's principal axes do. Each has to exceed both what copies of the class without groups
    give and what the other classes give; the larger of these two p-values is its own. The smallest
    of the three statistics', corrected for the choice, is that of the class in the channel. False
    discoveries are controlled over all classes and channels by Benjamini & Hochberg (1995), whose
    bound holds for channels of one class that err together. It is done twice: what was flagged
    counts as no other class the second time.

    The comparison of classes with each other (`vimlrp.audit.screening.comparing`) looks for cues
    that nearly all samples of a class share, which make no groups. Its false discoveries are
    controlled apart, over classes: joined, either family would move the threshold of the other.

    Args:
        evidence: What is known of the samples.
        rate: Share of false alarms to allow among the flagged, within 0 and 1.
        draws: From the null for each class and channel, at least 8.
        per_class: Samples of a class to use at most, at least 20; None for `equal_count`. Classes
            with fewer are screened with what they have.
        channels: What to look at.
        seed: Of every drawing, not negative; that of a class depends on it and the class alone.
        workers: Processes to measure in. The result is the same for any number.
        progress: Is told how far it is.

    Returns:
        A score for each class of 20 or more samples and each channel in which they differ. What
        could not be screened is listed as problems; with fewer than 20 such classes there is no
        comparison of them, and a note says so.

    Raises:
        InputError: If an argument is outside its range.
        MissingDependencyError: If SciPy or scikit-learn is not installed.
    """
    _check(rate, draws, per_class, seed, workers)
    wanted = _in_order(channels)
    within = [channel for channel in wanted if channel is not Channel.COMPARISON]
    tasks, problems = _tasks(evidence, within, per_class, seed)
    measured: list[_Measured] = []
    done = 0
    for task, found in _measurements(evidence, tasks, draws, workers):
        done, name = done + 1, evidence.class_names[task.label]
        if found is None:
            detail = f"all {len(task.indices)} samples are alike in {task.channel}"
            problems.append(Problem(name, "nothing to compare", detail))
        else:
            measured.append((task, found))
        if progress:
            progress(done, len(tasks), name)
    ranked = _scores(measured, rate)
    notes: tuple[str, ...] = ()
    if Channel.COMPARISON in wanted:
        compared, lacking, notes = _comparison(evidence, rate)
        problems += [problem for problem in lacking if problem not in problems]
        ranked = sorted([*ranked, *compared], key=_suspicion)
    return Screening(tuple(score for score, _ in ranked), rate, tuple(problems), notes)


def equal_count(counts: Sequence[int]) -> int:
    """Samples to use of each class, so that classes are compared at equal numbers.

    Both statistics depend on the number of samples, and more samples show finer structure. Nine of
    ten classes have the number; the number of the smallest class would blind the rest.

    Args:
        counts: Samples of the classes.

    Returns:
        Within 20 and 400.
    """
    usable = sorted(count for count in counts if count >= FEWEST)
    return min(usable[int(_SHARE_BELOW * len(usable))], _MOST) if usable else FEWEST


def _check(rate: float, draws: int, per_class: int | None, seed: int, workers: int) -> None:
    if not 0 < rate < 1:
        raise InputError(f"rate is {rate}; give a share of false alarms between 0 and 1")
    if draws < FEWEST_DRAWS:
        raise InputError(f"draws is {draws}; give {FEWEST_DRAWS} or more")
    if per_class is not None and per_class < FEWEST:
        raise InputError(f"per_class is {per_class}; give {FEWEST} or more, or None")
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    if workers < 1:
        raise InputError(f"workers is {workers}; give 1 or more")


def _in_order(channels: Sequence[Channel]) -> list[Channel]:
    known = list(Channel)
    if not channels or any(channel not in known for channel in channels):
        raise InputError(f"channels are {list(channels)}; give one or more of {', '.join(known)}")
    return [channel for channel in known if channel in channels]


def _tasks(
    evidence: Evidence, channels: Sequence[Channel], per_class: int | None, seed: int
) -> tuple[list[_Task], list[Problem]]:
    own = {int(label): evidence.of_class(int(label)) for label in np.unique(evidence.labels)}
    count = equal_count([len(i) for i in own.values()]) if per_class is None else per_class
    tasks, problems = [], []
    for number, channel in enumerate(channels):
        finite = _finite(evidence, channel)
        for label, indices in own.items():
            name, usable = evidence.class_names[label], indices[finite[indices]]
            if len(usable) < len(indices):
                lost = len(indices) - len(usable)
                detail = f"{lost} of {len(indices)} samples have no finite {channel}"
                problems.append(Problem(name, "left out", detail))
            if len(usable) >= FEWEST:
                chosen = _drawn(usable, count, (seed, label))
                tasks.append(_Task(label, channel, chosen, (seed, label, number)))
            elif number == 0 or len(usable) < len(indices):
                detail = f"{len(usable)}, needs {FEWEST}"
                problems.append(Problem(name, "not enough images", detail))
    return tasks, problems


def _finite(evidence: Evidence, channel: Channel) -> NDArray[np.bool_]:
    """Which samples can be seen in a channel, (N,); statistics may be missing one by one."""
    if channel is Channel.STATISTICS:
        return np.ones(len(evidence), dtype=np.bool_)
    values = evidence.maps if channel is Channel.RELEVANCE else evidence.latent
    return np.asarray(np.isfinite(values.reshape(len(evidence), -1)).all(1))


def _drawn(indices: NDArray[np.int64], count: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """At most `count` of the indices, ascending; the same ones in every channel.

    One subsample, since a mean of p-values of several is no p-value.
    """
    if len(indices) <= count:
        return indices
    rng = np.random.default_rng(list(seed))
    return np.sort(rng.choice(indices, count, replace=False))


def _measurements(
    evidence: Evidence, tasks: Sequence[_Task], draws: int, workers: int
) -> Iterator[tuple[_Task, Measurement | None]]:
    spread = spreads(evidence)

    def prepared(task: _Task) -> tuple[Points, int, tuple[int, ...]]:
        return features(evidence, task.channel, task.indices, spread), draws, task.seed

    # Each process starts afresh: a copy of one that holds threads may hang.
    pool = (
        ProcessPoolExecutor(workers, get_context("spawn"), with_one_thread)
        if workers > 1
        else nullcontext()
    )
    with pool as executor:
        apply = executor.map if executor else map
        for start in range(0, len(tasks), _AHEAD * workers):
            batch = tasks[start : start + _AHEAD * workers]
            arguments = zip(*map(prepared, batch), strict=True)
            yield from zip(batch, apply(measure, *arguments), strict=True)


def with_one_thread() -> None:
    """Keep a worker to one core: there are others on the rest."""
    # Libraries that are loaded already are told, and those still to come read it at their start.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    optional("threadpoolctl", "scikit-learn", "audit").threadpool_limits(1)


def _suspicion(ranked: _Ranked) -> tuple[float, float]:
    """The order of scores: by p-value, then by standardised score."""
    score, standardised = ranked
    return score.p_value, -standardised


def _comparison(
    evidence: Evidence, rate: float
) -> tuple[list[_Ranked], list[Problem], tuple[str, ...]]:
    """Scores of classes among each other, classes left out, and why there are none."""
    known = shares(evidence.maps)
    classes, problems = _comparable(evidence, np.isfinite(known[:, 0]))
    if len(classes) < FEWEST_CLASSES:
        note = (
            f"Classes were not compared with each other: {len(classes)} have the "
            f"{FEWEST} pictures that this needs, and {FEWEST_CLASSES} classes are needed. A cue "
            "that nearly all pictures of a class share cannot be seen without."
        )
        return [], problems, (note,)
    stats = optional("scipy.stats", "scipy", "audit")
    found = standings(known, classes)
    q_values = stats.false_discovery_control([one.p_value for one in found], method="bh")
    ranked = [
        (_compared(one, float(q), rate), one.deviation)
        for one, q in zip(found, q_values, strict=True)
    ]
    return ranked, problems, ()


def _comparable(
    evidence: Evidence, has_share: NDArray[np.bool_]
) -> tuple[list[tuple[int, NDArray[np.int64]]], list[Problem]]:
    """Classes with enough pictures that have relevance, and what keeps the others out."""
    classes, problems = [], []
    for label in np.unique(evidence.labels).tolist():
        indices = evidence.of_class(label)
        usable, name = indices[has_share[indices]], evidence.class_names[label]
        if len(usable) >= FEWEST:
            classes.append((label, usable))
        elif len(usable) < len(indices):
            lost = len(indices) - len(usable)
            detail = f"{lost} of {len(indices)} samples have no positive relevance to compare"
            problems.append(Problem(name, "left out", detail))
        else:
            detail = f"{len(usable)}, needs {FEWEST}"
            problems.append(Problem(name, "not enough images", detail))
    return classes, problems


def _compared(found: Standing, q_value: float, rate: float) -> ClassScore:
    return ClassScore(
        label=found.label,
        channel=Channel.COMPARISON,
        count=found.count,
        connectivity=float("nan"),
        separability=float("nan"),
        contrast=float("nan"),
        eigengap=None,
        p_value=found.p_value,
        q_value=q_value,
        flagged=q_value <= rate,
        cluster=found.members,
        place=found.place,
    )


def _scores(measured: Sequence[_Measured], rate: float) -> list[_Ranked]:
    """Scores of the groups of all channels, most suspicious first, with standardised scores."""
    if not measured:
        return []
    stats = optional("scipy.stats", "scipy", "audit")
    nulls = np.array([found.p_values for _, found in measured])  # (N, 3)
    first, _ = _p_values(measured, nulls, np.zeros(len(measured), dtype=np.bool_))
    # A class that is flagged tells nothing of how far classes fall apart anyway.
    flagged = stats.false_discovery_control(first, method="bh") <= rate
    p_values, leading = _p_values(measured, nulls, flagged)
    q_values = stats.false_discovery_control(p_values, method="bh")
    scores = [
        (_score(*one, int(lead), float(p), float(q), rate), one[1].standardised)
        for one, lead, p, q in zip(measured, leading, p_values, q_values, strict=True)
    ]
    return sorted(scores, key=_suspicion)


def _p_values(
    measured: Sequence[_Measured], nulls: NDArray[np.float64], apart: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Of every measurement, and which statistic it is by; those apart are no peers of others."""
    p_values = nulls.copy()
    for channel in Channel:
        places = [i for i, (task, _) in enumerate(measured) if task.channel is channel]
        if places:
            excess = np.stack([measured[i][1].excess for i in places])
            peers = _among_peers(channel, excess, apart[places])
            p_values[places] = np.maximum(peers, nulls[places])
    return np.array([either(*row) for row in p_values]), p_values.argmin(1)


def _among_peers(
    channel: Channel, excess: NDArray[np.float64], apart: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """P-values of all classes among the others in a channel, by every statistic, (m, 3)."""
    found = [
        peer_p_values(column, natural, maximum=maximum, apart=apart)
        for column, natural, maximum in zip(excess.T, NATURAL[channel], MAXIMUM, strict=True)
    ]
    return np.stack(found, axis=1)


def _score(
    task: _Task, found: Measurement, leading: int, p: float, q: float, rate: float
) -> ClassScore:
    return ClassScore(
        label=task.label,
        channel=task.channel,
        count=found.count,
        connectivity=found.connectivity,
        separability=found.ratio,
        contrast=found.contrast,
        eigengap=found.eigengap,
        p_value=p,
        q_value=q,
        flagged=q <= rate,
        cluster=task.indices[found.groups[leading]],
    )
