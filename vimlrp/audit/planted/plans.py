"""Which artifact is planted in which class, and how often."""

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from vimlrp.audit.planted.artifacts import ARTIFACTS, artifact_named
from vimlrp.errors import InputError

__all__ = ["PREVALENCES", "Kind", "Plan", "Planting", "plan_for"]

PREVALENCES = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
"""Shares of a class that carry its artifact."""

_STRONG, _WEAK = PREVALENCES[:3], PREVALENCES[3:]
_INERT_RATE = 0.2
_UNLEARNT_RATE = 0.25


class Kind(StrEnum):
    """What an audit should say of a class."""

    PLANTED = "planted"  # has an artifact that a classifier can learn
    UNLEARNT = "unlearnt"  # shows an artifact that the classifier never saw
    TWO_POSES = "two poses"  # falls into two legitimate kinds of pictures
    CLEAN = "clean"


@dataclass(frozen=True)
class Planting:
    """One artifact in one class.

    Args:
        label: Index of the class.
        artifact: Name in `vimlrp.audit.planted.artifacts.ARTIFACTS`.
        prevalence: Share of the class's pictures that carry it, within 0 to 1.
        learnt: Whether the classifier is trained on pictures with it; if not, it is trained on the
            same pictures without it, and only the audited ones carry it.
    """

    label: int
    artifact: str
    prevalence: float
    learnt: bool = True

    def __post_init__(self) -> None:
        artifact_named(self.artifact)
        if not 0 < self.prevalence <= 1:
            raise InputError(
                f"the prevalence of {self.artifact!r} in class {self.label} is {self.prevalence}; "
                "give a share above 0 and up to 1"
            )


@dataclass(frozen=True)
class Plan:
    """All that is planted for one classifier.

    Args:
        classes: Their number.
        seed: Chooses the pictures that carry an artifact, and how it looks on each.
        plantings: At most one for each class and for each artifact: an artifact in two classes
            would speak for neither.
        inert: Name of an artifact that pictures of all classes carry alike, so that it tells
            nothing; None for none.
        inert_rate: Share of the pictures that carry it.
        two_poses: Classes that are drawn in two poses; none of those with an artifact.
    """

    classes: int
    seed: int
    plantings: tuple[Planting, ...]
    inert: str | None = None
    inert_rate: float = _INERT_RATE
    two_poses: frozenset[int] = field(default=frozenset())

    def __post_init__(self) -> None:
        if self.inert is not None:
            artifact_named(self.inert)
        labels = [planting.label for planting in self.plantings]
        names = [planting.artifact for planting in self.plantings]
        names += [] if self.inert is None else [self.inert]
        beyond = [label for label in {*labels, *self.two_poses} if not 0 <= label < self.classes]
        if beyond:
            raise InputError(
                f"the plan names class {beyond[0]} of {self.classes}; give 0 to {self.classes - 1}"
            )
        if len(set(labels)) < len(labels) or self.two_poses & set(labels):
            raise InputError("a class has two plantings or poses in the plan; give it one of them")
        if len(set(names)) < len(names):
            raise InputError(
                f"an artifact is planted twice ({', '.join(sorted(names))}); plant each once"
            )

    def planting_of(self, label: int) -> Planting | None:
        """What is planted in a class, or None."""
        return next((one for one in self.plantings if one.label == label), None)

    def kind_of(self, label: int) -> Kind:
        """What an audit should say of a class."""
        planting = self.planting_of(label)
        if planting is not None:
            return Kind.PLANTED if planting.learnt else Kind.UNLEARNT
        return Kind.TWO_POSES if label in self.two_poses else Kind.CLEAN


def plan_for(seed: int, classes: int = 20) -> Plan:
    """The benchmark's plan of one seed: seven artifacts in seven classes, and the controls.

    Over five seeds every artifact is planted at each of 0.5, 0.25 and 0.1 of a class at least
    once, and at one or two of the smaller prevalences. The eighth artifact of a seed is a control:
    inert in all classes for even seeds, unlearnt in one class for odd ones. One more class has two
    poses; all others are clean.

    Args:
        seed: 0 or more.
        classes: At least as many as needed for some to stay clean.

    Raises:
        InputError: If there are too few classes.
    """
    names = list(ARTIFACTS)
    if classes < len(names) + 2 or seed < 0:
        raise InputError(
            f"classes is {classes} and seed {seed}; give at least {len(names) + 2} classes, of "
            "which one stays clean, and a seed from 0"
        )
    labels = np.random.default_rng([seed, classes]).permutation(classes).tolist()
    spared = seed % len(names)
    plantings = [
        Planting(labels[i], name, _prevalence(i, seed))
        for i, name in enumerate(names)
        if i != spared
    ]
    inert = names[spared] if seed % 2 == 0 else None
    if inert is None:
        plantings.append(Planting(labels[spared], names[spared], _UNLEARNT_RATE, learnt=False))
    two_poses = frozenset(labels[len(names) : len(names) + 1])
    return Plan(classes, seed, tuple(plantings), inert, two_poses=two_poses)


def _prevalence(artifact: int, seed: int) -> float:
    """That of an artifact, by its number, in a seed: each level in turn, beginning anywhere."""
    earlier = sum(s % len(ARTIFACTS) != artifact for s in range(seed))
    turn = earlier + artifact
    levels = len(_STRONG) + 1
    if turn % levels < len(_STRONG):
        return _STRONG[turn % levels]
    return _WEAK[(turn // levels + artifact) % len(_WEAK)]
