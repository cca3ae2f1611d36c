"""Whether a classifier relies on what was planted: the truth that an audit is held against.

Artifacts are planted, so every picture has an exact twin without. Only a class whose artifact the
classifier does rely on should be found; one whose artifact it ignores should not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vimlrp.audit.planted.planting import Planted, pasted
from vimlrp.audit.planted.training import logits
from vimlrp.errors import InputError
from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.optional import optional

__all__ = ["FAINT", "GATE", "IGNORED", "Reliance", "mean_interval", "reliance"]

GATE, IGNORED, FAINT = 0.25, 0.1, 0.5
"""The rise of the attacked class from which a classifier relies on an artifact, and up to which it
ignores it if the class's logit also rises by less than FAINT on average; in between neither is
said. The first two after Adebayo et al., ICLR 2022."""

_ATTACKED = 400


@dataclass(frozen=True)
class Reliance:
    """What an artifact does to a classifier, on pictures that it was not trained on.

    Args:
        base: Share of pictures of other classes that are taken for the class.
        attacked: That share once the artifact is on them.
        effect: Rise of the class's logit by the artifact on these pictures, with its interval.
        carried: Rise of the class's logit by the artifact on the class's own audited pictures that
            carry it.
    """

    base: float
    attacked: float
    effect: Estimate
    carried: Estimate

    @property
    def attack(self) -> float:
        """Rise of the share of other classes' pictures taken for the class."""
        return self.attacked - self.base

    @property
    def gated(self) -> bool:
        """Whether the classifier relies on the artifact, so that an audit should find it."""
        return self.attack >= GATE and self.effect.low > 0

    @property
    def ignored(self) -> bool:
        """Whether the classifier ignores the artifact, so that an audit should not blame it."""
        return self.attack <= IGNORED and max(self.effect.value, self.carried.value) < FAINT


def reliance(model: nn.Module, label: int, audited: Planted, held_out: Planted) -> Reliance:
    """Measure how much a classifier relies on a class's artifact.

    Args:
        model: The classifier.
        label: The class.
        audited: Pictures with the artifact and their twins without.
        held_out: Pictures that the classifier was not trained on.

    Raises:
        InputError: If nothing is planted in the class.
    """
    planting = audited.plan.planting_of(label)
    if planting is None:
        raise InputError(f"nothing is planted in class {label}; give a class of the plan's")
    others = np.flatnonzero(held_out.labels != label)
    rows = others[:: max(1, len(others) // _ATTACKED)]
    clean = held_out.twins[rows]
    attacked, _ = pasted(clean, planting.artifact, seed=audited.plan.seed)
    before, after = logits(model, clean), logits(model, attacked)
    own = audited.carriers_of(label)
    gain = logits(model, audited.pictures[own]) - logits(model, audited.twins[own])
    return Reliance(
        float((before.argmax(axis=1) == label).mean()),
        float((after.argmax(axis=1) == label).mean()),
        mean_interval((after - before)[:, label]),
        mean_interval(gain[:, label]),
    )


def mean_interval(values: NDArray[np.floating], confidence: float = 0.95) -> Estimate:
    """A mean and Student's interval for it; the interval of fewer than two values is NaN."""
    if len(values) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(values.mean(dtype=np.float64))
    if len(values) == 1:
        return Estimate(mean, np.nan, np.nan, 1)
    stats = optional("scipy.stats", "scipy", "audit")
    half = stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values.astype(np.float64))
    return Estimate(mean, mean - float(half), mean + float(half), len(values))
