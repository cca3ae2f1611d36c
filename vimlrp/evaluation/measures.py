"""What metrics have in common: a prepared batch, what is measured on it, what becomes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.evaluation.curves import Curves, flipping_curves
from vimlrp.evaluation.methods import Method
from vimlrp.evaluation.replacement import Canvas, canvas_of
from vimlrp.inference import Inference

__all__ = [
    "NO_CURVES",
    "Direction",
    "Measured",
    "Metric",
    "PreparedBatch",
    "Statistic",
    "column_mean",
    "columns",
    "even_steps",
]

Direction = Literal["higher", "lower", "none"]

NO_CURVES: tuple[str, None] = ("", None)
"""The `curve_axis` of a metric without curves."""


@dataclass(eq=False)
class PreparedBatch:
    """Samples on the device, with all that methods do not change.

    Args:
        model: The classifier that is explained.
        inference: Its plain passes.
        x: Preprocessed images, (B, 3, H, W), of the model's type.
        target: The class that is explained of each, (B,).
        regions: Where the object is, (B, H, W) of bool, or None where the data do not say.
        seeds: A number for each sample, (B,) int64 on the CPU: its place in the data set.
        patch_size: Side of the patches that are removed; None for the model's own.
        label: The true class of each, (B,), -1 where it is not known; None if none is.
    """

    model: nn.Module
    inference: Inference
    x: Tensor
    target: Tensor
    regions: Tensor | None = None
    seeds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    patch_size: int | None = None
    label: Tensor | None = None
    _canvases: dict[str, Canvas] = field(default_factory=dict, init=False, repr=False)
    _curves: dict[tuple[str, int], tuple[Curves, Curves]] = field(
        default_factory=dict, init=False, repr=False
    )
    _maps: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.seeds) == 0:
            self.seeds = torch.arange(len(self.x))
        if self.target.shape != (len(self.x),):
            raise InputError(
                f"targets of shape {tuple(self.target.shape)} were given for {len(self.x)} images; "
                "give one each"
            )
        if self.label is not None and self.label.shape != self.target.shape:
            raise InputError(
                f"labels of shape {tuple(self.label.shape)} were given for {len(self.x)} images; "
                "give one each, -1 where it is not known"
            )

    def __len__(self) -> int:
        return len(self.x)

    def true_class(self) -> Tensor:
        """The label of each sample, or its target where there is no label, (B,)."""
        if self.label is None:
            return self.target
        return torch.where(self.label >= 0, self.label, self.target)

    def row(self, index: int) -> "PreparedBatch":
        """A batch of one of the samples.

        Args:
            index: Which.
        """
        one = slice(index, index + 1)
        return replace(
            self,
            x=self.x[one],
            target=self.target[one],
            regions=None if self.regions is None else self.regions[one],
            seeds=self.seeds[one],
            label=None if self.label is None else self.label[one],
        )

    def canvas(self, protocol: str) -> Canvas:
        """The images under a replacement protocol, prepared once for all methods."""
        if protocol not in self._canvases:
            self._canvases[protocol] = canvas_of(protocol, self.inference, self.x, self.patch_size)
        return self._canvases[protocol]

    def curves(self, protocol: str, maps: Tensor, steps: int) -> tuple[Curves, Curves]:
        """Flipping curves of maps, run once for all metrics that read them."""
        if maps is not self._maps:
            self._maps, self._curves = maps, {}
        key = (protocol, steps)
        if key not in self._curves:
            self._curves[key] = flipping_curves(self.canvas(protocol), maps, self.target, steps)
        return self._curves[key]

    def object_regions(self) -> Tensor:
        """The regions, (B, H, W) of bool.

        Raises:
            InputError: If there are none.
        """
        if self.regions is None:
            raise InputError(
                "localisation needs boxes or masks, and the data have none: see "
                "docs/evaluation.md for the columns of a CSV file that names them"
            )
        return self.regions


@dataclass(frozen=True)
class Measured:
    """What a metric found, sample by sample.

    Args:
        values: (B,) each, by column; NaN where a sample has no value.
        curves: (B, S) each, by name.
        points: What share is removed at the points of the curves, (S,); None where there are none.
    """

    values: Mapping[str, Tensor]
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    points: Tensor | None = None


@dataclass(frozen=True)
class Statistic:
    """A number over the data set: the mean of ratios of sums, and so of plain means too.

    Args:
        name: As it heads a column of the table.
        pairs: Columns of numerators and denominators; None counts the samples.
        direction: Whether "higher" or "lower" is better, or "none".
    """

    name: str
    pairs: tuple[tuple[str, str | None], ...]
    direction: Direction

    @classmethod
    def mean(cls, name: str, column: str, direction: Direction) -> "Statistic":
        """The mean of a column over the samples that have a value."""
        return cls(name, ((column, None),), direction)


class Metric(Protocol):
    """Measures maps of one method on one batch."""

    @property
    def name(self) -> str:
        """As the command line has it, such as "flipping:mean"."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """What the table shows."""

    @property
    def curve_axis(self) -> tuple[str, tuple[float, ...] | None]:
        """What the points of its curves lie on, and where they are meant to lie.

        Patches and pixels are whole, so that a step of 5 % removes 10 of 196: where points really
        lie is in `Measured.points`. None where it has no curves.
        """

    def __call__(self, batch: PreparedBatch, method: Method, maps: Tensor, /) -> Measured:
        """Measure.

        Args:
            batch: The samples.
            method: What made the maps, to be asked again.
            maps: (B, H, W).
        """


def columns(name: str, **values: Tensor) -> Measured:
    """Values of a metric under the names of their columns.

    Args:
        name: Of the metric.
        **values: (B,) each, by what follows the metric's name.
    """
    return Measured({f"{name}/{column}": value for column, value in values.items()})


def column_mean(metric: Metric, title: str, column: str, direction: Direction) -> Statistic:
    """The mean of a metric's column.

    Args:
        metric: Gives both names their first part.
        title: The rest of the statistic's name.
        column: The rest of the column's.
        direction: See `Statistic`.
    """
    return Statistic.mean(f"{metric.name} {title}", f"{metric.name}/{column}", direction)


def even_steps(steps: int) -> tuple[float, ...]:
    """Shares from 0 to 1 in equal steps, one more than there are steps."""
    return tuple(step / steps for step in range(steps + 1))
