"""What a mitigation does to a classifier, on pictures that neither it nor the audit has seen."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vimlrp.audit.planted.planting import Planted, pasted
from vimlrp.audit.planted.training import logits

__all__ = ["Outcome", "outcome"]

_ATTACKED = 400
_LEAST_DROP = 0.05
"""A smaller loss by the attack is no measure for what was regained of it."""


@dataclass(frozen=True)
class Outcome:
    """A classifier before and after a mitigation.

    Args:
        clean: Accuracy on pictures without artifacts, all classes.
        clean_after: The same with the mitigation.
        attacked: Accuracy on pictures of other classes with the artifact pasted on.
        attacked_after: The same with the mitigation.
        regained: Share of the accuracy that the attack cost which is back; NaN where it cost
            little.
        recovery: R = 1 - median |effect after| / median |effect before|, of the artifact on the
            class's logit; below 0 if it grew.
        selectivity: Mean change of the class's logit on its own pictures without the artifact;
            closer to 0 is better.
    """

    clean: float
    clean_after: float
    attacked: float
    attacked_after: float
    regained: float
    recovery: float
    selectivity: float


def outcome(
    model: nn.Module,
    attach: Callable[[], AbstractContextManager[object]],
    label: int,
    artifact: str,
    held_out: Planted,
) -> Outcome:
    """Measure a mitigation with the artifact itself, which the audit never knew.

    Args:
        model: The classifier.
        attach: Gives a context in which the mitigation acts.
        label: The class whose artifact it is.
        artifact: Its name.
        held_out: Pictures that were neither trained on nor audited.
    """
    clean, labels = held_out.twins, held_out.labels
    others = np.flatnonzero(labels != label)
    rows = others[:: max(1, len(others) // _ATTACKED)]
    attacked, _ = pasted(clean[rows], artifact, seed=held_out.plan.seed)
    before, before_attacked = logits(model, clean), logits(model, attacked)
    with attach():
        after, after_attacked = logits(model, clean), logits(model, attacked)

    shown = labels[rows]
    lost = _accuracy(before[rows], shown) - _accuracy(before_attacked, shown)
    back = _accuracy(after_attacked, shown) - _accuracy(before_attacked, shown)
    effects = [
        float(np.median(np.abs((with_it - without[rows])[:, label])))
        for with_it, without in ((before_attacked, before), (after_attacked, after))
    ]
    own = labels == label
    return Outcome(
        clean=_accuracy(before, labels),
        clean_after=_accuracy(after, labels),
        attacked=_accuracy(before_attacked, shown),
        attacked_after=_accuracy(after_attacked, shown),
        regained=back / lost if lost >= _LEAST_DROP else float("nan"),
        recovery=1 - effects[1] / effects[0] if effects[0] else float("nan"),
        selectivity=float((after - before)[own, label].mean()),
    )


def _accuracy(found: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float(np.mean(found.argmax(axis=1) == labels))
