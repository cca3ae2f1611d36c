"""Results as files: samples, problems and curves as CSV, tables as Markdown, and pictures."""

import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.evaluation.measures import Statistic
from vimlrp.evaluation.outputs import MANIFEST, PICTURES, TABLES, remove_pictures
from vimlrp.evaluation.plots import draw_curves, require_matplotlib
from vimlrp.evaluation.problem_tables import csv_of, problem_counts, problem_csv
from vimlrp.evaluation.results import Cost, Results
from vimlrp.files import atomic_write, sha256_of

__all__ = ["cost_table", "problem_summary", "result_table", "write"]

_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}


def write(
    results: Results, folder: str | Path, *, command: str = "", draw: bool = False
) -> list[Path]:
    """Write everything, each file whole or not at all.

    `samples.csv` has a row for each sample and method, `table.md` the statistics, `cost.md` time
    and memory, `problems.csv` what could not be used or measured, `curves.csv` the mean curves,
    `curves/` pictures of them, and `manifest.json` versions, settings and hashes. The manifest goes
    first and comes back last: where there is one, all that it names is there and of one run.
    Pictures of an earlier run are removed; no other file is.

    Args:
        results: What to write.
        folder: Where to.
        command: The command that was given, for the manifest.
        draw: Draw pictures.

    Returns:
        The files.

    Raises:
        MissingDependencyError: If pictures are asked for and matplotlib is missing.
    """
    folder = Path(folder)
    if draw:
        require_matplotlib()
    (folder / MANIFEST).unlink(missing_ok=True)
    texts = (
        csv_of(_sample_rows(results)),
        csv_of(_curve_rows(results)),
        problem_csv(results.problems),
        result_table(results) + "\n" + problem_summary(results),
        cost_table(results),
    )
    tables = zip(TABLES, texts, strict=True)
    written = [atomic_write(folder / name, text.encode()) for name, text in tables]
    drawn = draw_curves(results, folder / PICTURES) if draw else []
    remove_pictures(folder, but=drawn)
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in [*written, *drawn]}
    manifest = json.dumps(_manifest(results, hashes, command), indent=2, ensure_ascii=False)
    return [*written, *drawn, atomic_write(folder / MANIFEST, f"{manifest}\n".encode())]


def result_table(results: Results) -> str:
    """The statistics as Markdown: a table for each metric, a row for each method.

    Args:
        results: What to show.
    """
    plan = results.plan
    used = len(plan.data.samples) - results.lost()
    lines = [
        f"{plan.model_name}, {used} of {len(plan.data.samples)} samples, {plan.target} class. Mean "
        "and 95 % bootstrap interval over samples; the arrow says which direction is better.",
    ]
    found = {name: results.estimates(name) for name in results.methods}
    start = 0
    for metric in plan.metrics:
        statistics = metric.statistics
        rows = {name: row[start : start + len(statistics)] for name, row in found.items()}
        lines += ["", *_metric_table(metric.name, statistics, rows)]
        start += len(statistics)
    return "\n".join(lines) + "\n"


def _metric_table(
    name: str, statistics: Sequence[Statistic], rows: dict[str, list[Estimate]]
) -> Iterator[str]:
    titles = [
        statistic.name.removeprefix(f"{name} ") + _ARROWS[statistic.direction]
        for statistic in statistics
    ]
    yield f"| {name} | {' | '.join(titles)} | samples |"
    yield "|---|" + "---|" * (len(titles) + 1)
    for method, estimates in rows.items():
        cells = [_cell(estimate) for estimate in estimates]
        count = min(estimate.count for estimate in estimates)
        yield f"| {method} | {' | '.join(cells)} | {count} |"


def _cell(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def cost_table(results: Results) -> str:
    """What every method cost on each device, as Markdown; timings differ from run to run.

    Args:
        results: What to show.
    """
    lines = [
        f"Milliseconds an image, {results.plan.batch_size} images at a time: medians over batches, "
        "so that those which compile and warm up do not count, unless there are but one or two. "
        "The first method of a batch also pays for what metrics share.",
        "",
        "| method | on | batches | explain (ms) | metrics (ms) | peak memory (MiB a batch) |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.methods.items():
        lines += [_cost_row(name, cost) for cost in found.costs]
    return "\n".join(lines) + "\n"


def _cost_row(name: str, cost: Cost) -> str:
    memory = "-" if math.isnan(cost.peak_bytes) else f"{cost.peak_bytes / 2**20:.0f}"
    times = f"{1e3 * cost.seconds:.4g} | {1e3 * cost.metric_seconds:.4g}"
    return f"| {name} | {cost.device} | {cost.batches} | {times} | {memory} |"


def problem_summary(results: Results) -> str:
    """How many problems of each kind there were, as text.

    Args:
        results: What to count in.
    """
    return problem_counts(results.problems)


def _sample_rows(results: Results) -> Iterator[list[Any]]:
    columns = list(dict.fromkeys(key for m in results.methods.values() for key in m.values))
    classified = ("predicted", "probability", "target")
    yield ["sample", "label", *classified, "method", *columns]
    for i, sample in enumerate(results.plan.data.samples):
        known = [_number(results.classified[key][i]) for key in classified]
        label = "" if sample.label is None else sample.label
        for name, found in results.methods.items():
            values = [_number(found.values[c][i]) if c in found.values else "" for c in columns]
            yield [sample.name, label, *known, name, *values]


def _curve_rows(results: Results) -> Iterator[list[Any]]:
    yield ["method", "curve", "axis", "at", "mean"]
    for name, found in results.methods.items():
        for metric in results.plan.metrics:
            axis, points = metric.curve_axis[0], found.points_of(metric)
            own = {k: v for k, v in found.curves.items() if k.startswith(f"{metric.name}/")}
            for curve, values in own.items():
                for point, mean in zip(points, _means(values), strict=True):
                    yield [name, curve, axis, f"{point:.6g}", _number(mean)]


def _means(values: Any) -> Any:
    present = values[np.isfinite(values).all(axis=1)]
    return present.mean(axis=0) if len(present) else np.full(values.shape[1], np.nan)


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 2**53
    return str(int(value)) if whole else f"{value:.9g}"


def _manifest(results: Results, hashes: Mapping[str, str], command: str) -> dict[str, Any]:
    plan = results.plan
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": plan.settings(),
        "methods": list(plan.methods),
        "problems": len(results.problems),
        "files_sha256": hashes,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vimlrp", "torch", "timm", "numpy")},
        },
    }
