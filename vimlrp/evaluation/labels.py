"""Classes of a data set as those of a model: by name, index or WordNet id."""

import re
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo

from vimlrp.evaluation.problems import Problem

__all__ = ["label_of"]

MISSING, AMBIGUOUS = "class missing from the model", "class of more than one meaning"


def label_of(
    text: str, sample: str, names: Sequence[str] | None, classes: int
) -> tuple[int | None, Problem | None]:
    """The index of a class, or what is wrong with its name.

    Names count in any case, and by each of the synonyms between commas. A name that several classes
    have, as "crane" in ImageNet, stands for none: a WordNet id or an index tells them apart.

    Args:
        text: A name, an index or a WordNet id.
        sample: Whose class it is.
        names: The model's class names, where known.
        classes: Their number.
    """
    found = _indices(text, tuple(names or ()), classes)
    if len(found) == 1:
        return found[0], None
    if not found:
        return None, Problem(sample, MISSING, text)
    meanings = ", ".join(f"{i} ({names[i]})" for i in found) if names else ""
    return None, Problem(sample, AMBIGUOUS, f"{text}: {meanings}; give an index or a WordNet id")


@cache
def _indices(text: str, names: tuple[str, ...], classes: int) -> tuple[int, ...]:
    """All classes that a text may mean."""
    found = _called([text], names)
    if found:
        return found
    if re.fullmatch(r"\d+", text):
        return (int(text),) if int(text) < classes else ()
    return _of_synset(text, names) if re.fullmatch(r"n\d{8}", text) else ()


def _called(texts: Sequence[str], names: tuple[str, ...]) -> tuple[int, ...]:
    """Classes whose name, or one of whose synonyms, is one of the texts."""
    wanted = {text.strip().casefold() for text in texts}
    return tuple(i for i, name in enumerate(names) if wanted & _words(name))


def _words(name: str) -> set[str]:
    return {word.strip().casefold() for word in [name, *name.split(",")]}


def _of_synset(wnid: str, names: tuple[str, ...]) -> tuple[int, ...]:
    info, own = _imagenet()
    if names == own:
        known = info.label_names()
        return (known.index(wnid),) if wnid in known else ()
    try:
        description: str = info.label_name_to_description(wnid)
    except KeyError:
        return ()
    return _called([description], names) or _called(description.split(","), names)


@cache
def _imagenet() -> tuple[ImageNetInfo, tuple[str, ...]]:
    info = ImageNetInfo("imagenet-1k")
    return info, tuple(info.index_to_description(i) for i in range(info.num_classes()))
