"""Names of classes."""

from functools import cache
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

__all__ = ["IMAGENETTE", "class_names"]

IMAGENETTE = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)
"""The ten classes of Imagenette in the order of their synsets."""


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """The names of a model's classes, or None where nobody knows them.

    They are those in the model's pretrained configuration, once its weights are loaded (another
    classifier of the same size would be given names that are not its own), or ImageNet's for a
    classifier of 1,000 classes whose configuration names no others.

    Args:
        model: A timm model, one of vimlrp's among them.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    count = getattr(model, "num_classes", None)
    names = config.get("label_names")
    if names is not None and len(names) == count:
        loaded = getattr(model, "weights_source", None) == config.get("tag")
        return tuple(names) if loaded else None
    return _imagenet() if count == 1000 and names is None else None


@cache
def _imagenet() -> tuple[str, ...]:
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
