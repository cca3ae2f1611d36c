"""Curves as pictures."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimlrp.evaluation.measures import Metric
from vimlrp.evaluation.outputs import MARK
from vimlrp.evaluation.results import Results
from vimlrp.files import atomic_write, distinct_names
from vimlrp.optional import optional

__all__ = ["draw_curves", "require_matplotlib"]

# The orders of a perturbation differ by line, methods by colour.
_LINES = ("-", "--", ":", "-.")
_ORDERS = {"morf": "MoRF", "lerf": "LeRF"}
_OF_TARGET = ("logit", "probability")
_INCHES = (6.0, 5.2)


def require_matplotlib() -> None:
    """Check that curves can be drawn.

    Raises:
        MissingDependencyError: If matplotlib is missing.
    """
    optional("matplotlib", "matplotlib", "plot")


def draw_curves(results: Results, folder: str | Path) -> list[Path]:
    """Draw the mean curves of every metric that has some, a PNG for each reading.

    The band is the 95 % interval of the mean under a normal distribution.

    Args:
        results: What to draw.
        folder: Where to.

    Returns:
        The files.

    Raises:
        MissingDependencyError: If matplotlib is missing.
    """
    require_matplotlib()
    drawn = []
    for metric in results.plan.metrics:
        for reading, curves in _readings(results, metric).items():
            stem = distinct_names([f"{metric.name} {reading}".strip()])[0]
            data = _picture(results, metric, reading, curves)
            drawn.append(atomic_write(Path(folder) / f"{stem}.png", data))
    return drawn


def _readings(results: Results, metric: Metric) -> dict[str, list[str]]:
    """Names of a metric's curves by what is read: "morf_logit" and "lerf_logit" belong together."""
    names: dict[str, list[str]] = {}
    for found in results.methods.values():
        for key in found.curves:
            if key.startswith(f"{metric.name}/"):
                reading = key.rpartition("/")[2].partition("_")[2]
                names.setdefault(reading, [])
                if key not in names[reading]:
                    names[reading].append(key)
    return names


def _picture(results: Results, metric: Metric, reading: str, names: list[str]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    for i, (method, found) in enumerate(results.methods.items()):
        curves = {name: found.curves[name] for name in names if name in found.curves}
        _lines(axes, method, curves, found.points_of(metric), f"C{i % 10}")
    axes.set_xlabel(metric.curve_axis[0])
    axes.set_ylabel(f"{reading} of the target" if reading in _OF_TARGET else reading)
    axes.set_title(f"{results.plan.model_name}\n{metric.name}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", fontsize="x-small", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata=MARK)
    return buffer.getvalue()


def _lines(
    axes: Any,
    method: str,
    curves: Mapping[str, NDArray[np.float64]],
    points: NDArray[np.float64],
    colour: str,
) -> None:
    for (name, values), line in zip(curves.items(), _LINES, strict=False):
        present = values[np.isfinite(values).all(axis=1)]
        if not len(present):
            continue
        mean = present.mean(axis=0)
        margin = 1.96 * present.std(axis=0) / np.sqrt(len(present))
        first = name.rpartition("/")[2].partition("_")[0]
        order = _ORDERS.get(first, first)
        axes.plot(points, mean, line, color=colour, label=f"{method}, {order}", linewidth=1.4)
        axes.fill_between(points, mean - margin, mean + margin, color=colour, alpha=0.1, lw=0)
