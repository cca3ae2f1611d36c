"""All that an evaluation found, joined from its parts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.evaluation.bootstrap import Estimate, estimates
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.measures import Statistic
from vimlrp.evaluation.running import Plan
from vimlrp.evaluation.store import Store

__all__ = ["MethodResult", "Results", "collect"]

_Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class MethodResult:
    """What was measured of one method.

    Args:
        values: (n,) each, by column; NaN where a sample has no value.
        curves: (n, S) each, by name.
        seconds: To explain all images, beside what metrics took.
        metric_seconds: What these took.
        images: How many were explained.
        peak_bytes: Largest memory that a batch took beside its input; NaN off a GPU.
    """

    values: _Columns
    curves: _Columns
    seconds: float
    metric_seconds: float
    images: int
    peak_bytes: float


@dataclass(frozen=True)
class Results:
    """What was measured of all methods.

    Args:
        plan: What was to be measured.
        classified: Of each sample, (n,): `predicted`, `probability` and `target`; NaN where its
            picture could not be used.
        methods: By name.
        problems: In the order of the samples.
    """

    plan: Plan
    classified: _Columns
    methods: Mapping[str, MethodResult]
    problems: tuple[Problem, ...]

    def statistics(self) -> list[Statistic]:
        """The columns of the table."""
        return [one for metric in self.plan.metrics for one in metric.statistics]

    def estimates(self, method: str) -> list[Estimate]:
        """The statistics of a method, with confidence intervals.

        Args:
            method: Its name.
        """
        return estimates(self.statistics(), self.methods[method].values)

    def lost(self) -> int:
        """How many samples could not be used at all."""
        return int(np.isnan(self.classified["target"]).sum())


def collect(plan: Plan, store: Store) -> Results:
    """Join the parts of a finished evaluation.

    Args:
        plan: What was measured.
        store: Where.

    Raises:
        InputError: If a part is missing or damaged.
    """
    count = len(plan.data.samples)
    classified: _Columns = {}
    problems = list(plan.data.problems)
    for i, (first, _) in enumerate(plan.batches()):
        part = store[i, ""]
        place = first + part.arrays["place"].astype(int)
        problems += part.problems
        _put(classified, {k: v for k, v in part.arrays.items() if k != "place"}, place, count)
    for key in ("predicted", "probability", "target"):
        classified.setdefault(key, np.full(count, np.nan))
    methods = {}
    for name in plan.methods:
        methods[name], found = _method(plan, name, store)
        problems += found
    rank = {sample.name: i for i, sample in enumerate(plan.data.samples)}
    problems.sort(key=lambda p: (rank.get(p.sample, -1), p.method, p.kind))
    return Results(plan, classified, methods, tuple(problems))


def _method(plan: Plan, name: str, store: Store) -> tuple[MethodResult, list[Problem]]:
    count = len(plan.data.samples)
    values: _Columns = {}
    curves: _Columns = {}
    problems: list[Problem] = []
    facts: list[Mapping[str, float]] = []
    for i, (first, _) in enumerate(plan.batches()):
        part = store[i, plan.key_of(name)]
        place = first + part.arrays["place"].astype(int)
        problems += part.problems
        facts.append(part.facts)
        for prefix, columns in (("value ", values), ("curve ", curves)):
            own = {k[len(prefix) :]: v for k, v in part.arrays.items() if k.startswith(prefix)}
            _put(columns, own, place, count)
    for column in _columns_of(plan):  # no part has one if no sample could be explained
        values.setdefault(column, np.full(count, np.nan))
    result = MethodResult(
        values,
        curves,
        seconds=sum(fact.get("seconds", 0.0) for fact in facts),
        metric_seconds=sum(fact.get("metric_seconds", 0.0) for fact in facts),
        images=int(sum(fact.get("images", 0) for fact in facts)),
        peak_bytes=max((fact.get("bytes", np.nan) for fact in facts), default=np.nan),
    )
    return result, problems


def _columns_of(plan: Plan) -> list[str]:
    statistics = [one for metric in plan.metrics for one in metric.statistics]
    pairs = [column for one in statistics for pair in one.pairs for column in pair]
    return [column for column in pairs if column is not None]


def _put(
    columns: _Columns,
    part: Mapping[str, NDArray[np.float64]],
    place: NDArray[np.intp],
    count: int,
) -> None:
    """Write a part's rows into columns of all samples."""
    for key, values in part.items():
        if key not in columns:
            columns[key] = np.full((count, *values.shape[1:]), np.nan)
        columns[key][place] = values
