"""All that an evaluation found, joined from its parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from numpy.typing import NDArray

from vimlrp.evaluation.bootstrap import Estimate, estimates
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.measures import Metric, Statistic
from vimlrp.evaluation.running import CURVE, POINTS, VALUE, Plan
from vimlrp.evaluation.store import Part, Store

__all__ = ["Cost", "MethodResult", "Results", "collect"]

_Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Cost:
    """What a method took on one device.

    Times are medians over batches, so that the first ones, which compile and warm up, do not count.

    Args:
        device: Its kind and name.
        batches: How many were measured there.
        images: How many these held.
        seconds: To explain an image.
        metric_seconds: To measure it.
        peak_bytes: Largest memory that a batch took beside its input; NaN off a GPU.
    """

    device: str
    batches: int
    images: int
    seconds: float
    metric_seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class MethodResult:
    """What was measured of one method.

    Args:
        values: (n,) each, by column; NaN where a sample has no value.
        curves: (n, S) each, by name.
        points: Where their points lie, (S,) each, by metric.
        costs: What it took, by device; none where no image could be explained.
    """

    values: _Columns
    curves: _Columns
    points: _Columns
    costs: tuple[Cost, ...]

    def points_of(self, metric: Metric) -> NDArray[np.float64]:
        """Where the points of a metric's curves lie, (S,)."""
        return self.points.get(metric.name, np.array(metric.curve_axis[1] or ()))


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
    _estimated: dict[str, list[Estimate]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def statistics(self) -> list[Statistic]:
        """The columns of the table."""
        return [one for metric in self.plan.metrics for one in metric.statistics]

    def estimates(self, method: str) -> list[Estimate]:
        """The statistics of a method, with confidence intervals.

        Args:
            method: Its name.
        """
        if method not in self._estimated:  # tens of seconds for 50,000 samples
            self._estimated[method] = estimates(self.statistics(), self.methods[method].values)
        return self._estimated[method]

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
    points: _Columns = {}
    problems: list[Problem] = []
    parts = [store[i, plan.key_of(name)] for i in range(len(plan.batches()))]
    for (first, _), part in zip(plan.batches(), parts, strict=True):
        place = first + part.arrays["place"].astype(int)
        problems += part.problems
        _put(values, _of_kind(VALUE, part), place, count)
        _put(curves, _of_kind(CURVE, part), place, count)
        points |= _of_kind(POINTS, part)
    for column in _columns_of(plan):  # no part has one if no sample could be explained
        values.setdefault(column, np.full(count, np.nan))
    return MethodResult(values, curves, points, tuple(_costs(parts))), problems


def _of_kind(kind: str, part: Part) -> _Columns:
    """Arrays of a part by their names alone."""
    return {key[len(kind) :]: v for key, v in part.arrays.items() if key.startswith(kind)}


def _costs(parts: Sequence[Part]) -> Iterator[Cost]:
    used = [part for part in parts if part.facts.get("images", 0) > 0]
    for device in sorted({part.device for part in used}):
        facts = [part.facts for part in used if part.device == device]
        yield Cost(
            device,
            len(facts),
            int(sum(fact["images"] for fact in facts)),
            median(fact["seconds"] / fact["images"] for fact in facts),
            median(fact["metric_seconds"] / fact["images"] for fact in facts),
            max(fact.get("bytes", np.nan) for fact in facts),
        )


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
