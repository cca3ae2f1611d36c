"""Metrics that remove and insert patches; see `vimlrp.evaluation.curves` for the definitions."""

from dataclasses import dataclass

from torch import Tensor

from vimlrp.evaluation.curves import (
    Curves,
    area,
    black_accuracy,
    black_counts,
    delta_flipping,
    delta_insertion,
    symmetric_relevance_gain,
)
from vimlrp.evaluation.localisation import smoothed
from vimlrp.evaluation.measures import (
    Measured,
    PreparedBatch,
    Statistic,
    column_mean,
    even_steps,
)
from vimlrp.evaluation.methods import Method
from vimlrp.evaluation.patches import patch_size_of

__all__ = ["Black", "Flipping", "Insertion"]


@dataclass(frozen=True)
class Flipping:
    """Areas under the curves of removal, and the gain between both orders.

    Columns: `morf_logit`, `lerf_logit`, `delta_logit` (dA^F), and the same of the probability,
    whose delta is the symmetric relevance gain.

    Args:
        protocol: What replaces a removed patch.
        steps: Of equal size, from the whole input to none.
    """

    protocol: str
    steps: int = 20

    @property
    def name(self) -> str:
        """See `Metric`."""
        return f"flipping:{self.protocol}"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "ΔA^F", "delta_logit", "higher"),
            column_mean(self, "SRG", "delta_probability", "higher"),
            column_mean(self, "A MoRF (logit)", "morf_logit", "lower"),
            column_mean(self, "A LeRF (logit)", "lerf_logit", "higher"),
        )

    @property
    def curve_axis(self) -> tuple[str, tuple[float, ...]]:
        """See `Metric`."""
        return "share of patches removed", even_steps(self.steps)

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        logit, probability = batch.curves(self.protocol, maps, self.steps)
        deltas = delta_flipping(logit), symmetric_relevance_gain(probability)
        return _areas(self.name, logit, probability, deltas)


@dataclass(frozen=True)
class Insertion:
    """The same for insertion; its delta of the logit is dA^I.

    Args:
        protocol: What stands in the place of a patch that is not inserted yet.
        steps: Of equal size.
    """

    protocol: str
    steps: int = 20

    @property
    def name(self) -> str:
        """See `Metric`."""
        return f"insertion:{self.protocol}"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "ΔA^I", "delta_logit", "higher"),
            column_mean(self, "A MoRF (probability)", "morf_probability", "higher"),
        )

    @property
    def curve_axis(self) -> tuple[str, tuple[float, ...]]:
        """See `Metric`."""
        return "share of patches inserted", even_steps(self.steps)

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        curves = batch.curves(self.protocol, maps, self.steps)
        logit, probability = (c.backwards() for c in curves)
        deltas = delta_insertion(logit), delta_insertion(probability)
        return _areas(self.name, logit, probability, deltas)


@dataclass(frozen=True)
class Black:
    """100 times the area under the accuracy, over 0 to 90 % of the pixels turned black.

    90 is the most that there can be, where the class stays the top one at every step. Accuracy is
    that of the true class, whichever class the map explains; of the explained class where a sample
    has no label. Columns: `positive`, `negative`.

    Args:
        level: "pixels" orders pixels by the map as it is, "patches" by the map summed over patches
            and enlarged, as the maps of tokens were that the protocol was made for.
    """

    level: str = "pixels"
    shares: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(10))

    @property
    def name(self) -> str:
        """See `Metric`."""
        return f"black:{self.level}"

    @property
    def statistics(self) -> tuple[Statistic, ...]:
        """See `Metric`."""
        return (
            column_mean(self, "positive", "positive", "lower"),
            column_mean(self, "negative", "negative", "higher"),
        )

    @property
    def curve_axis(self) -> tuple[str, tuple[float, ...]]:
        """See `Metric`."""
        return "share of pixels removed", self.shares

    def __call__(self, batch: PreparedBatch, _method: Method, maps: Tensor) -> Measured:
        """See `Metric`."""
        if self.level == "patches":
            maps = smoothed(maps, batch.patch_size or patch_size_of(batch.model))
        hits = black_accuracy(batch.inference, batch.x, maps, batch.true_class(), self.shares)
        pixels = maps.flatten(1).shape[1]
        shares = (black_counts(pixels, self.shares) / pixels).to(maps.device)
        signed = dict(zip(("positive", "negative"), hits, strict=True))
        areas = {f"{self.name}/{sign}": 100 * area(hit, shares) for sign, hit in signed.items()}
        curves = {f"{self.name}/{sign}_accuracy": hit for sign, hit in signed.items()}
        return Measured(areas, curves, shares)


def _areas(
    name: str, logit: Curves, probability: Curves, deltas: tuple[Tensor, Tensor]
) -> Measured:
    curves = {
        f"{name}/{order}_{reading}": getattr(of, order)
        for reading, of in (("logit", logit), ("probability", probability))
        for order in ("morf", "lerf")
    }
    values = {key: area(curve, logit.share) for key, curve in curves.items()}
    for reading, delta in zip(("logit", "probability"), deltas, strict=True):
        values[f"{name}/delta_{reading}"] = delta
    return Measured(values, curves, logit.share)
