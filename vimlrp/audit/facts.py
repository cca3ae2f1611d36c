"""What a reader should know of an audit before its findings."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from vimlrp.audit.gathering.predicting import Agreement, agreement
from vimlrp.audit.stages import Gathered
from vimlrp.evaluation.data import Problem

__all__ = ["about", "agreement_of", "warnings"]


def about(gathered: Gathered, **more: object) -> dict[str, object]:
    """Facts of an audit, in the order in which a reader wants them.

    Args:
        gathered: What its first stages found.
        **more: Facts to put first.
    """
    settings = gathered.workspace.settings
    return {
        **more,
        "model": settings["model"],
        "weights (SHA-256)": settings["weights_sha256"],
        **_pictures(gathered),
        "audited class": _audited(gathered),
        "accuracy": _accuracy(gathered),
        "recorded layer": f"{settings['layer']}, {gathered.explained.latent.shape[1]} channels",
        "chosen": _chosen(settings),
        "seed": settings["seed"],
        "versions": ", ".join(f"{name} {version(name)}" for name in ("vimlrp", "torch", "timm")),
    }


def agreement_of(gathered: Gathered) -> Agreement | None:
    """How often predictions are the labels; None where the data have no labels.

    Args:
        gathered: What the first stages found.
    """
    if not gathered.workspace.labelled:
        return None
    return agreement(gathered.explained.labels, gathered.explained.predictions)


def warnings(gathered: Gathered) -> list[Problem]:
    """What makes all findings doubtful: a model that classifies by chance.

    Args:
        gathered: What the first stages found.
    """
    found = agreement_of(gathered)
    if found is None or not found.by_chance:
        return []
    detail = (
        f"{found.accuracy:.1%} of {found.count} pictures, where chance gives {found.chance:.1%}: "
        "it has no reasons that an audit could judge; are its weights, its preprocessing and the "
        "classes of the folders the right ones?"
    )
    return [Problem("the model", "accuracy at chance", detail)]


def _pictures(gathered: Gathered) -> dict[str, object]:
    readable, originals = gathered.index.readable, gathered.index.originals
    count = len(readable)
    return {
        "pictures": count,
        "explained": len(gathered.explained.rows),
        "unreadable": int(count - readable.sum()),
        "copies of other pictures": int((originals != np.arange(count)).sum()),
    }


def _audited(gathered: Gathered) -> str:
    if gathered.workspace.labelled:
        return "the label of each picture"
    return "the class that the model predicts for each picture, as the data have no labels"


def _accuracy(gathered: Gathered) -> str:
    found = agreement_of(gathered)
    if found is None:
        return "unknown, as the data have no labels"
    text = f"{found.accuracy:.1%}, by chance {found.chance:.1%}"
    return f"{text}: the model classifies no better than chance" if found.by_chance else text


def _chosen(settings: Mapping[str, Any]) -> str:
    classes, per_class = settings["classes"], settings["per_class"]
    which = "all classes" if classes is None else f"{len(classes)} classes that were asked for"
    return which if per_class is None else f"{which}, at most {per_class} pictures of each"
