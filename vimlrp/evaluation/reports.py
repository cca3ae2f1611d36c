"""Results as files: samples and problems as CSV, tables as Markdown, curves as pictures."""

import json
import math
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.evaluation.measures import Statistic
from vimlrp.evaluation.problem_tables import csv_of, problem_counts, problem_csv
from vimlrp.evaluation.results import Results
from vimlrp.files import atomic_write, sha256_of

__all__ = ["cost_table", "problem_summary", "result_table", "write"]

_ARROWS = {"higher": " ↑", "lower": " ↓", "none": ""}


def write(results: Results, folder: str | Path, *, command: str = "") -> list[Path]:
    """Write everything but the pictures, each file whole or not at all.

    `samples.csv` has a row for each sample and method, `table.md` the statistics, `cost.md` time
    and memory, `problems.csv` what could not be used or measured, `curves.csv` the mean curves, and
    `manifest.json` versions, settings and hashes.

    Args:
        results: What to write.
        folder: Where to.
        command: The command that was given, for the manifest.

    Returns:
        The files.
    """
    folder = Path(folder)
    texts = {
        "samples.csv": csv_of(_sample_rows(results)),
        "curves.csv": csv_of(_curve_rows(results)),
        "problems.csv": problem_csv(results.problems),
        "table.md": result_table(results) + "\n" + problem_summary(results),
        "cost.md": cost_table(results),
    }
    written = [atomic_write(folder / name, text.encode()) for name, text in texts.items()]
    manifest = json.dumps(_manifest(results, written, command), indent=2, ensure_ascii=False)
    return [*written, atomic_write(folder / "manifest.json", f"{manifest}\n".encode())]


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
    """What every method cost, as Markdown; timings differ from run to run.

    Args:
        results: What to show.
    """
    device = next(results.plan.model.parameters(), torch.empty(0)).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [
        f"On {device.type} ({machine}), {results.plan.batch_size} images at a time.",
        "",
        "| method | explain (ms an image) | peak memory (MiB a batch) | metrics (s) |",
        "|---|---|---|---|",
    ]
    for name, found in results.methods.items():
        per_image = 1e3 * found.seconds / max(found.images, 1)
        memory = "-" if math.isnan(found.peak_bytes) else f"{found.peak_bytes / 2**20:.0f}"
        lines.append(f"| {name} | {per_image:.3g} | {memory} | {found.metric_seconds:.1f} |")
    return "\n".join(lines) + "\n"


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
            axis, points = metric.curve_axis
            own = {k: v for k, v in found.curves.items() if k.startswith(f"{metric.name}/")}
            for curve, values in own.items():
                for point, mean in zip(points or (), _means(values), strict=True):
                    yield [name, curve, axis, f"{point:.6g}", _number(mean)]


def _means(values: Any) -> Any:
    present = values[np.isfinite(values).all(axis=1)]
    return present.mean(axis=0) if len(present) else np.full(values.shape[1], np.nan)


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 2**53
    return str(int(value)) if whole else f"{value:.9g}"


def _manifest(results: Results, written: Sequence[Path], command: str) -> dict[str, Any]:
    plan = results.plan
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": plan.settings(),
        "methods": list(plan.methods),
        "problems": len(results.problems),
        "files_sha256": {path.name: sha256_of(path) for path in written},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("vimlrp", "torch", "timm", "numpy")},
        },
    }
