"""Metrics of localisation; see `vimlrp.evaluation.localisation` for the definitions."""

from dataclasses import dataclass

from torch import Tensor

from vimlrp.evaluation import localisation
from vimlrp.evaluation.measures import (
    NO_CURVES,
    Measured,
    PreparedBatch,
    Statistic,
    column_mean,
    columns,
)
from vimlrp.evaluation.methods import Method
from vimlrp.evaluation.patches import patch_size_of

__all__ = ["Localisation", "Pointing", "Segmentation"]


@dataclass(frozen=True)
class _ByRegion:
    """A metric on maps and regions.

    Args:
        kind: Its name, without the level.
        level: "pixels" for maps as they are, "patches" for positive relevance summed over patches
            and enlarged.
    """

    kind: str
    level: str

    @property
    def name(self) -> str:
        """See `Metric`."""
        return f"{self.kind}:{self.level}"

    @property
    def curve_axis(self) -> tuple[str, None]:
        """See `Metric`."""
        return NO_CURVES

    def _maps(self, batch: PreparedBatch, maps: Tensor) -> Tensor:
        if self.level == "pixels":
            return maps
        return localisation.smoothed(
            maps.clamp(min=0), batch.patch_size or patch_size_of(batch.model)
        )


@dataclass(frozen=True)
class Localisation(_ByRegion):
    """Mass and rank accuracy; `area` is the mass of a uniform map."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "mass", "mass", "higher"),
            column_mean(self, "rank", "rank", "higher"),
            column_mean(self, "area", "area", "none"),
        )

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        regions, maps = batch.object_regions(), self._maps(batch, maps)
        return columns(
            self.name,
            mass=localisation.mass_accuracy(maps, regions),
            rank=localisation.rank_accuracy(maps, regions),
            area=localisation.region_share(regions),
        )


@dataclass(frozen=True)
class Pointing(_ByRegion):
    """The pointing game, with the centre of the input beside it."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "hit", "hit", "higher"),
            column_mean(self, "centre", "centre", "none"),
        )

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        regions, maps = batch.object_regions(), self._maps(batch, maps)
        return columns(
            self.name,
            hit=localisation.pointing_hit(maps, regions),
            centre=localisation.centre_hit(regions),
        )


@dataclass(frozen=True)
class Segmentation(_ByRegion):
    """Pixel accuracy, mAP and mIoU in the manner of ImageNet-Segmentation."""

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        pairs = tuple(
            (f"{self.name}/intersection_{side}", f"{self.name}/union_{side}") for side in _SIDES
        )
        return (
            column_mean(self, "pixel accuracy", "pixel_accuracy", "higher"),
            column_mean(self, "mAP", "average_precision", "higher"),
            Statistic(f"{self.name} mIoU", pairs, "higher"),
            Statistic(f"{self.name} object IoU", pairs[1:], "higher"),
        )

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        found = localisation.segmentation(self._maps(batch, maps), batch.object_regions())
        counts = {
            f"{part}_{side}": values[:, i]
            for part, values in (("intersection", found.intersection), ("union", found.union))
            for i, side in enumerate(_SIDES)
        }
        return columns(
            self.name,
            pixel_accuracy=found.pixel_accuracy,
            average_precision=found.average_precision,
            **counts,
        )


_SIDES = ("background", "object")
