"""Names of classes."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from timm.data import ImageNetInfo
from torch import nn

from vimlrp.errors import InputError

__all__ = ["IMAGENETTE", "class_names", "name_classes"]

_GIVEN = "given_class_names"

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

    They are those given by `name_classes`, else those in the model's pretrained configuration, once
    its weights are loaded (another classifier of the same size would be given names that are not
    its own), or ImageNet's for a classifier of 1,000 classes whose configuration names no others.

    Args:
        model: A timm model, one of vimlrp's among them.
    """
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    count = getattr(model, "num_classes", None)
    given: tuple[str, ...] | None = vars(model).get(_GIVEN)
    if given is not None and len(given) == count:
        return given
    names = config.get("label_names")
    if names is not None and len(names) == count:
        loaded = getattr(model, "weights_source", None) == config.get("tag")
        return tuple(names) if loaded else None
    return _imagenet() if count == 1000 and names is None else None


def name_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Tell a model the names of its classes, such as those of a checkpoint of one's own.

    They count until the model is given another number of classes.

    Args:
        model: A classifier with `num_classes`, as timm's have.
        names: In the order of the logits, each different from the others.

    Raises:
        InputError: If there are more or fewer names than classes, or two are the same.
    """
    count = getattr(model, "num_classes", None)
    if len(names) != count:
        raise InputError(
            f"{len(names)} class names were given for a model of {count} classes; give one each, "
            "in the order of the logits"
        )
    if not all(name.strip() for name in names):
        raise InputError("a class name is empty; give every class a name")
    for name, number in Counter(name.strip().casefold() for name in names).items():
        if number > 1:
            raise InputError(
                f"the class name {name!r} was given {number} times, case aside: give every class a "
                "name of its own"
            )
    vars(model)[_GIVEN] = tuple(names)


@cache
def _imagenet() -> tuple[str, ...]:
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(info.num_classes()))
