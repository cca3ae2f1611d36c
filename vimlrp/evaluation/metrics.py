"""The metrics of an evaluation by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from vimlrp.errors import InputError
from vimlrp.evaluation.account import Conservation
from vimlrp.evaluation.complexity import Complexity
from vimlrp.evaluation.faithfulness import Black, Flipping, Insertion
from vimlrp.evaluation.measures import Metric
from vimlrp.evaluation.objects import Localisation, Pointing, Segmentation
from vimlrp.evaluation.replacement import PROTOCOLS
from vimlrp.evaluation.sanity import OtherClass, Randomisation
from vimlrp.evaluation.stability import Stability

__all__ = ["METRICS", "metric_named", "metrics_named"]

_PROTOCOLS = tuple(PROTOCOLS)
_LEVELS = ("pixels", "patches")

METRICS: Mapping[str, tuple[tuple[str, ...], Callable[[str], Metric]]] = MappingProxyType(
    {
        "flipping": (_PROTOCOLS, Flipping),
        "insertion": (_PROTOCOLS, Insertion),
        "black": (_LEVELS, Black),
        "localisation": (_LEVELS, lambda level: Localisation("localisation", level)),
        "pointing": (_LEVELS, lambda level: Pointing("pointing", level)),
        "segmentation": (_LEVELS[::-1], lambda level: Segmentation("segmentation", level)),
        "complexity": ((), lambda _: Complexity()),
        "stability": ((), lambda _: Stability()),
        "conservation": ((), lambda _: Conservation()),
        "randomisation": ((), lambda _: Randomisation()),
        "other_class": ((), lambda _: OtherClass()),
    }
)
"""Metrics by name: the variants that may stand behind a colon, the default first, and what makes
one of them."""


def metric_named(text: str) -> Metric:
    """A metric such as "flipping:mean", "segmentation" or "black".

    Args:
        text: A name of `METRICS`, with one of its variants behind a colon if it has any.

    Raises:
        InputError: If there is no such metric or variant.
    """
    name, colon, variant = text.strip().partition(":")
    if name not in METRICS:
        raise InputError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")
    variants, make = METRICS[name]
    if colon and variant not in variants:
        has = f"its variants are {', '.join(variants)}" if variants else "it has no variants"
        raise InputError(f"{name} has no variant {variant!r}; {has}")
    return make(variant or next(iter(variants), ""))


def metrics_named(texts: Sequence[str], protocols: Sequence[str], steps: int = 20) -> list[Metric]:
    """Metrics by name, where one that replaces patches and names no protocol stands for several.

    Args:
        texts: As for `metric_named`.
        protocols: Protocols to take where none is named.
        steps: Of metrics that replace patches.

    Raises:
        InputError: If there is no such metric or variant, or fewer than two steps.
    """
    if steps < 2:
        raise InputError(f"steps is {steps}; give 2 or more, such as 20 for steps of 5 %")
    full = [one for text in texts for one in _variants(text, protocols)]
    metrics = [metric_named(text) for text in full]
    stepped = [
        replace(metric, steps=steps) if isinstance(metric, Flipping | Insertion) else metric
        for metric in metrics
    ]
    return list({metric.name: metric for metric in stepped}.values())


def _variants(text: str, protocols: Sequence[str]) -> list[str]:
    if text not in ("flipping", "insertion"):
        return [text]
    return [f"{text}:{protocol}" for protocol in protocols]
