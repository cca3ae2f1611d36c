"""What the stages of an audit hand to each other, as plain data.

index -> predict -> explain give an `Evidence`; screening turns it into a `Screening`; drilling
turns a class of it into a `Candidate`; verifying turns that into a `Finding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vimlrp.evaluation.data import Problem, Sample

__all__ = [
    "MAP_SIDE",
    "Candidate",
    "Channel",
    "ClassScore",
    "Effect",
    "Evidence",
    "Finding",
    "PlaceShare",
    "Screening",
    "Verdict",
]

# The side of the kept relevance maps: fine enough for a corner mark, small enough for a million
# images, and what the area sum of a 14 x 14 or 28 x 28 grid of patches still resolves.
MAP_SIDE = 16


class Channel(StrEnum):
    """Where a difference was seen: between samples of one class, or between classes."""

    RELEVANCE = "relevance"  # maps of pixel relevance
    LATENT = "latent"  # relevance of the channels of a layer
    STATISTICS = "statistics"  # properties of picture and file, whatever the model does
    COMPARISON = "comparison"  # of classes with each other, at fixed places of the maps


class Verdict(StrEnum):
    """What the proof of effect gave."""

    CAUSAL = "causal"  # removing lowers and inserting raises the class, intervals off zero
    ASSOCIATIVE = "associative"  # the samples share it and relevance lies on it; no effect proven
    UNUSED = "visible but unused"  # present, and the model does not react
    NON_LOCAL = "non-local"  # an effect of a property of the whole picture
    NOT_ENOUGH = "not enough images"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an audit knows of each of N samples; row i of every array is sample i.

    Args:
        samples: The pictures, with boxes and masks where known.
        class_names: Of the model's C outputs.
        labels: Index of the audited class of each sample, (N,) int64; it was the target explained.
        predictions: Index of the predicted class, (N,) int64.
        probabilities: Of the label, (N,) float32.
        maps: Signed pixel relevance, area-summed to MAP_SIDE x MAP_SIDE, (N, 16, 16) float16,
            divided by the sum of its magnitudes.
        latent: Relevance of each channel of the recorded layer, summed over positions and divided
            like the maps, (N, K) float16.
        activations: Greatest activation of each channel of that layer over positions, (N, K)
            float16.
        statistics: Of picture and file, (N, S) float32; NaN where one does not exist.
        statistic_names: What the S columns are.
        originals: Index of the first sample that shows the same picture, (N,) int64; a sample that
            is no copy has its own.
        layer: Name of the recorded layer in the model.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    maps: NDArray[np.float16]
    latent: NDArray[np.float16]
    activations: NDArray[np.float16]
    statistics: NDArray[np.float32]
    statistic_names: tuple[str, ...]
    originals: NDArray[np.int64]
    layer: str

    def __len__(self) -> int:
        return len(self.samples)

    def of_class(self, label: int) -> NDArray[np.int64]:
        """Indices of a class's samples without copies of one another, ascending."""
        own = np.arange(len(self))
        return own[(self.labels == label) & (self.originals == own)]


@dataclass(frozen=True)
class PlaceShare:
    """How much of the relevance along the border lies at a place, in a class and elsewhere.

    Args:
        name: Of the place, in `vimlrp.audit.screening.places.PLACES`.
        share: Median over the pictures of the class, as `vimlrp.audit.screening.places.shares`
            counts it.
        usual: Median over the other classes of the same. Pictures above it show the cue.
    """

    name: str
    share: float
    usual: float


@dataclass(frozen=True, eq=False)
class ClassScore:
    """How far a class falls apart, or stands out, in one channel, against what chance gives.

    A comparison of classes knows no groups: `connectivity`, `separability` and `contrast` are NaN
    and `eigengap` is None there. Elsewhere it is `place` that is None.

    Args:
        label: Index of the class.
        channel: What was looked at.
        count: Samples used, after copies were merged and, for groups, classes brought to equal
            numbers.
        connectivity: Second eigenvalue of the normalised Laplacian; small means that the samples
            fall into groups.
        separability: Fisher discriminant ratio of the most separable cluster against the rest;
            0 without one.
        contrast: Variance between the two parts of the class over the variance within them, along
            the principal axis where it is greatest; 1.75 for one normal distribution.
        eigengap: Number of clusters that the greatest gap of eigenvalues suggests.
        p_value: Of the score under the null, in (0, 1].
        q_value: The false-discovery rate at which it would just be flagged, in (0, 1].
        flagged: Whether `q_value` is within the asked rate.
        cluster: Indices into the evidence of the cluster that stands out most, of the smaller part
            where the contrast is what stands out, or of the samples that show more than is usual at
            the place; may be empty.
        place: Where the class differs most from the others.
    """

    label: int
    channel: Channel
    count: int
    connectivity: float
    separability: float
    contrast: float
    eigengap: int | None
    p_value: float
    q_value: float
    flagged: bool
    cluster: NDArray[np.int64]
    place: PlaceShare | None = None


@dataclass(frozen=True, eq=False)
class Screening:
    """Classes ranked by suspicion.

    Args:
        scores: One for each class and channel, most suspicious first (by p-value, then by
            standardised score).
        rate: The false-discovery rate asked for.
        problems: Classes that could not be screened, and why.
        notes: What was not looked at in any class, and why.
    """

    scores: tuple[ClassScore, ...]
    rate: float
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def ranking(self) -> list[int]:
        """Classes by their most suspicious channel, most suspicious first."""
        return list(dict.fromkeys(score.label for score in self.scores))

    def flagged(self) -> list[ClassScore]:
        """Scores within the false-discovery rate, most suspicious first."""
        return [score for score in self.scores if score.flagged]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A cue that some samples of a class share, or nearly all of them.

    Args:
        label: Index of the class.
        channel: Where it was found.
        seeds: Indices of the samples of the cluster that it was found by, (k,) int64.
        direction: Pattern direction in the recorded layer, (K,) float32, of unit length, pointing
            towards the cue.
        members: Indices of all the class's samples, copies too, (n,) int64, by falling score.
        scores: How strongly each member shows the cue, (n,) float32.
        carriers: Those of the members that are taken to show it, (m,) int64, by falling score.
        regions: Where it lies on the first carriers, (r, S, S) bool in the model's input, r <= m;
            empty (0, S, S) for a cue that is nowhere in particular.
        local: Whether it lies somewhere in particular.
        statistics: Names of the statistics in which carriers differ from the rest, with the area
            under the ROC curve of each, in falling order.
        place: Where the class differs from the others, if it was found by comparing classes. What
            lacks the cue is then to be sought in other classes.
    """

    label: int
    channel: Channel
    seeds: NDArray[np.int64]
    direction: NDArray[np.float32]
    members: NDArray[np.int64]
    scores: NDArray[np.float32]
    carriers: NDArray[np.int64]
    regions: NDArray[np.bool_]
    local: bool
    statistics: tuple[tuple[str, float], ...] = ()
    place: PlaceShare | None = None


@dataclass(frozen=True)
class Effect:
    """A change of the class's logit when a cue is removed or put in, with its interval.

    Args:
        kind: "removal", "insertion", or "transplant" (onto other classes, less the same with
            regions of samples without the cue).
        mean: Of the paired differences of the logit; a used cue is negative for removal and
            positive for the others.
        low: Lower end of the 95 % bootstrap interval of the mean.
        high: Upper end.
        count: Pairs.
        attack_rate: Share of the changed pictures that are classified as the class and were not
            before; NaN for removal.
    """

    kind: str
    mean: float
    low: float
    high: float
    count: int
    attack_rate: float = float("nan")


@dataclass(frozen=True, eq=False)
class Finding:
    """A candidate with its proof of effect and what may be done.

    Args:
        candidate: What was found.
        effects: What removing and inserting it did.
        verdict: What they prove.
        off_object: Share of the regions' area off the object, by boxes or masks; None where
            neither is known.
        clever_hans: Whether it is causal and lies off the object by evidence; a causal cue without
            such evidence stays a candidate until somebody accepts it.
        action: What to do next, for a reader.
        notes: What a reader should know, such as that few images stood behind it.
    """

    candidate: Candidate
    effects: tuple[Effect, ...]
    verdict: Verdict
    off_object: float | None
    clever_hans: bool
    action: str
    notes: Sequence[str] = field(default=())
