"""Where the marks of a report's drawings lie; the templates draw them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Effect

__all__ = ["Interval", "Intervals", "Point", "Scatter", "intervals", "scatter"]

_WIDTH, _ROW, _LEFT, _RIGHT, _FOOT = 420.0, 34.0, 96.0, 24.0, 30.0
_SCATTER, _PAD = 320.0, 14.0


@dataclass(frozen=True)
class Interval:
    """A row of the plot of effects: its text, and the places of the mean and of both ends."""

    kind: str
    text: str
    middle: float
    low: float
    high: float
    y: float


@dataclass(frozen=True)
class Intervals:
    """Means with their intervals over one axis, in units of the drawing.

    Args:
        rows: One for each effect.
        ticks: Values of the axis and where they lie.
        zero: Where 0 lies.
        width: Of the drawing.
        height: Of the drawing.
        axis: Where the axis lies.
    """

    rows: tuple[Interval, ...]
    ticks: tuple[tuple[str, float], ...]
    zero: float
    width: float
    height: float
    axis: float


@dataclass(frozen=True)
class Point:
    """A sample in the plane: where it lies, its name, its role ("seed", "carrier" or "other")."""

    x: float
    y: float
    name: str
    role: str


@dataclass(frozen=True)
class Scatter:
    """Samples of a class in a square of `size` units, the others first so that carriers show."""

    points: tuple[Point, ...]
    size: float
    method: str


def intervals(effects: Sequence[Effect]) -> Intervals | None:
    """Lay out the effects over one axis that holds zero; None if there is none to show."""
    shown = [e for e in effects if all(map(math.isfinite, (e.mean, e.low, e.high)))]
    if not shown:
        return None
    low = min(0.0, *(e.low for e in shown))
    high = max(0.0, *(e.high for e in shown))
    spare = 0.06 * ((high - low) or 1.0)
    low, high = low - spare, high + spare

    def place(value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low), 1)

    rows = tuple(
        Interval(e.kind, _text(e), place(e.mean), place(e.low), place(e.high), (i + 0.5) * _ROW)
        for i, e in enumerate(shown)
    )
    axis = len(rows) * _ROW
    ticks = tuple((f"{value:g}", place(value)) for value in _ticks(low, high))
    return Intervals(rows, ticks, place(0.0), _WIDTH, axis + _FOOT, axis)


def scatter(
    places: NDArray[np.float64], names: Sequence[str], roles: Sequence[str], method: str
) -> Scatter:
    """Fit points into the square, with one scale for both directions.

    Args:
        places: (n, 2).
        names: Of the samples.
        roles: See `Point`.
        method: What gave the places.
    """
    middle = (places.max(axis=0) + places.min(axis=0)) / 2
    extent = float(np.ptp(places, axis=0).max()) or 1.0
    fitted = _SCATTER / 2 + (places - middle) * ((_SCATTER - 2 * _PAD) / extent)
    points = [
        Point(round(float(x), 1), round(float(y), 1), name, role)
        for (x, y), name, role in zip(fitted, names, roles, strict=True)
    ]
    points.sort(key=lambda point: ("other", "carrier", "seed").index(point.role))
    return Scatter(tuple(points), _SCATTER, method)


def _text(effect: Effect) -> str:
    return f"{effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"


def _ticks(low: float, high: float) -> list[float]:
    """Round values within a range, 1, 2 or 5 times a power of ten apart, three to seven of them."""
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(i * step, 10) for i in range(first, last + 1)]
