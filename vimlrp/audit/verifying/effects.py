"""Paired differences of a class's logit, with their intervals."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.audit.records import Effect
from vimlrp.errors import InputError
from vimlrp.evaluation.bootstrap import estimates
from vimlrp.evaluation.measures import Statistic

__all__ = ["Pairs", "attack_rate", "effect_of", "probability_change"]

_RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Pairs:
    """Logits of the same pictures before and after a change.

    Args:
        before: (n, C) float64.
        after: (n, C) float64.
    """

    before: Tensor
    after: Tensor

    def differences(self, label: int) -> NDArray[np.float64]:
        """What the change did to a class's logit, (n,)."""
        return np.asarray((self.after - self.before)[:, label].numpy())


def effect_of(
    kind: str,
    differences: NDArray[np.floating],
    *,
    groups: NDArray[np.int64] | None = None,
    attacked: float = float("nan"),
    seed: int = 0,
) -> Effect:
    """Summarise paired differences.

    The interval is a percentile bootstrap of the mean at 95 % (Efron, 1979). Pairs that share a
    picture are no independent evidence: they are averaged first, and groups are drawn again.

    Args:
        kind: Of `vimlrp.audit.records.Effect`.
        differences: (n,); those that are not finite are left out.
        groups: Which pairs share a picture, (n,); None if none do.
        attacked: The attack rate.
        seed: Of the drawing.

    Returns:
        The effect; NaN throughout where no pair has a difference. Its count is that of groups.

    Raises:
        InputError: If shapes do not fit.
    """
    values = np.asarray(differences, dtype=np.float64)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if values.ndim != 1 or groups.shape != values.shape:
        raise InputError(
            f"differences have shape {values.shape} and groups {groups.shape}; give (n,) of both"
        )
    finite = np.isfinite(values)
    _, own = np.unique(groups[finite], return_inverse=True)
    sums = np.bincount(own, values[finite])
    means: NDArray[np.float64] = np.asarray(sums / np.maximum(np.bincount(own), 1), np.float64)
    mean = Statistic.mean("difference", "difference", "none")
    columns = {"difference": means}
    (found,) = estimates([mean], columns, resamples=_RESAMPLES, seed=seed)
    return Effect(kind, found.value, found.low, found.high, found.count, attacked)


def attack_rate(pairs: Pairs, label: int) -> float:
    """Share of changed pictures that are classified as a class and were not before.

    Args:
        pairs: Of all pictures changed.
        label: The class.

    Returns:
        NaN where every picture was of the class before.
    """
    other = pairs.before.argmax(1) != label
    turned = pairs.after.argmax(1)[other] == label
    return float(turned.double().mean())


def probability_change(pairs: Pairs, label: int) -> float:
    """Mean change of a class's probability.

    Args:
        pairs: At least one.
        label: The class.
    """
    before, after = (torch.softmax(x, dim=1)[:, label] for x in (pairs.before, pairs.after))
    return float((after - before).mean())
