"""What the templates of a report show, prepared: text, addresses of pictures and drawings."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import (
    Candidate,
    ClassScore,
    Evidence,
    Finding,
    Screening,
    Verdict,
)
from vimlrp.audit.reporting.decisions import identities
from vimlrp.audit.reporting.pictures import (
    Darkroom,
    heat,
    map_picture,
    mean_crop,
    mean_picture,
    outlined,
    shrunk,
    uri,
)
from vimlrp.audit.reporting.planes import plane
from vimlrp.audit.reporting.plots import Intervals, Scatter, intervals
from vimlrp.audit.reporting.words import EXPLANATIONS, GRADES, in_words, location, percent
from vimlrp.heatmaps import Picture, scale_of

__all__ = ["Card", "Gallery", "Row", "Shot", "cards", "gallery", "rows"]

_CARRIERS, _OTHERS = 12, 6  # shown
_AVERAGED = 24  # of each kind, for the means
_ORDER = (
    Verdict.CAUSAL,
    Verdict.NON_LOCAL,
    Verdict.ASSOCIATIVE,
    Verdict.UNUSED,
    Verdict.NOT_ENOUGH,
)


@dataclass(frozen=True)
class Row:
    """A class in the ranking, with its most suspicious channel.

    Args:
        rank: From 1.
        name: Of the class.
        score: Of the most suspicious channel.
        p_values: Of every channel that was screened.
        cards: Findings on the class.
    """

    rank: int
    name: str
    score: ClassScore
    p_values: dict[str, float]
    cards: tuple["Card", ...]


@dataclass(frozen=True)
class Card:
    """A finding without its pictures.

    Args:
        identity: By which decisions refer to it.
        finding: What was found.
        name: Of the class.
        score: Of the class in this channel, where it was screened.
        grade: Of confidence.
        words: The finding in a sentence.
        explanation: Of the verdict.
        location: Where the cue lies.
        prevalence: Share of carriers, as text.
        plot: Of the effects.
        page: Address of the page with its pictures, or empty where they are beside it.
    """

    identity: str
    finding: Finding
    name: str
    score: ClassScore | None
    grade: str
    words: str
    explanation: str
    location: str
    prevalence: str
    plot: Intervals | None
    page: str = ""

    @property
    def label(self) -> int:
        """Index of the class."""
        return self.finding.candidate.label

    @property
    def kind(self) -> str:
        """The verdict as a word for the style sheet."""
        return self.finding.verdict.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Shot:
    """A sample in a grid: the addresses of its pictures, empty where there is none."""

    name: str
    score: str
    picture: str
    heat: str
    region: str


@dataclass(frozen=True)
class Gallery:
    """The pictures of a finding.

    Args:
        carriers: Samples that show the cue, strongest first.
        others: Samples of the class that show it least.
        means: Captions and addresses of mean pictures and maps.
        scatter: The class in the plane.
        hidden: Carriers that are not among those shown.
    """

    carriers: tuple[Shot, ...]
    others: tuple[Shot, ...]
    means: tuple[tuple[str, str], ...]
    scatter: Scatter | None
    hidden: int


def cards(
    evidence: Evidence, screening: Screening, findings: Sequence[Finding]
) -> tuple[Card, ...]:
    """The findings in the order in which they matter: proven ones first, then by rank."""
    scores = {(score.label, score.channel): score for score in screening.scores}
    ranks = {label: rank for rank, label in enumerate(screening.ranking())}

    def importance(card: Card) -> tuple[bool, int, int]:
        verdict = _ORDER.index(card.finding.verdict)
        return not card.finding.clever_hans, verdict, ranks.get(card.label, len(ranks))

    made = [
        _card(
            evidence,
            finding,
            name,
            scores.get((finding.candidate.label, finding.candidate.channel)),
        )
        for finding, name in zip(findings, identities(findings), strict=True)
    ]
    return tuple(sorted(made, key=importance))


def rows(evidence: Evidence, screening: Screening, shown: Sequence[Card]) -> tuple[Row, ...]:
    """The ranking of classes, one row each."""
    first: dict[int, ClassScore] = {}
    p_values: dict[int, dict[str, float]] = {}
    for score in screening.scores:
        first.setdefault(score.label, score)
        p_values.setdefault(score.label, {})[score.channel.value] = score.p_value
    return tuple(
        Row(
            rank,
            evidence.class_names[label],
            score,
            p_values[label],
            tuple(card for card in shown if card.label == label),
        )
        for rank, (label, score) in enumerate(first.items(), start=1)
    )


def gallery(evidence: Evidence, candidate: Candidate, darkroom: Darkroom, side: int) -> Gallery:
    """Make the pictures of a finding.

    Args:
        evidence: What is known of the samples.
        candidate: What was found.
        darkroom: Reads the samples' files.
        side: Of the pictures, in pixels.
    """
    carriers, others = _chosen(evidence, candidate)
    pictures = {
        i: picture
        for i in (*carriers, *others)
        if (picture := darkroom.develop(evidence.samples[i])) is not None
    }
    shown = carriers[:_CARRIERS], others[:_OTHERS]
    maps = evidence.maps[[*shown[0], *shown[1]]]
    limit = scale_of(maps, 99) if len(maps) else 0.0
    regions = dict(zip(candidate.carriers.tolist(), candidate.regions, strict=False))
    scores = dict(zip(candidate.members.tolist(), candidate.scores.tolist(), strict=True))

    def shot(i: int) -> Shot:
        score = f"{scores[i]:.2f}" if i in scores else ""
        return _shot(evidence, i, pictures.get(i), regions.get(i), score, limit, side)

    return Gallery(
        tuple(map(shot, shown[0])),
        tuple(map(shot, shown[1])),
        tuple(_means(evidence, pictures, regions, (carriers, others), side)),
        plane(evidence, candidate),
        len(candidate.carriers) - len(shown[0]),
    )


def _chosen(evidence: Evidence, candidate: Candidate) -> tuple[list[int], list[int]]:
    """The carriers and the others that are looked at, the clearest of each first."""
    carriers = _distinct(evidence, candidate.carriers)[:_AVERAGED]
    rest = candidate.members[~np.isin(candidate.members, candidate.carriers)]
    # By rising score: what looks least like the cue is what a reader compares with.
    return carriers, _distinct(evidence, rest[::-1])[:_AVERAGED]


def _card(evidence: Evidence, finding: Finding, name: str, score: ClassScore | None) -> Card:
    candidate = finding.candidate
    members = len(candidate.members)
    return Card(
        identity=name,
        finding=finding,
        name=evidence.class_names[candidate.label],
        score=score,
        grade=GRADES[finding.verdict],
        words=in_words(finding, evidence),
        explanation=EXPLANATIONS[finding.verdict],
        location=location(finding),
        prevalence=percent(len(candidate.carriers) / members) if members else "-",
        plot=intervals(finding.effects),
    )


def _distinct(evidence: Evidence, samples: NDArray[np.int64]) -> list[int]:
    """Samples in their order, the first of each picture alone."""
    return list({int(evidence.originals[i]): int(i) for i in samples[::-1]}.values())[::-1]


def _shot(
    evidence: Evidence,
    i: int,
    picture: Picture | None,
    region: NDArray[np.bool_] | None,
    score: str,
    limit: float,
    side: int,
) -> Shot:
    name = evidence.samples[i].name
    if picture is None:
        return Shot(name, score, "", "", "")
    small = shrunk(picture, side)
    return Shot(
        name,
        score,
        uri(small),
        uri(heat(small, evidence.maps[i], limit)),
        uri(outlined(small, region)) if region is not None else "",
    )


def _means(
    evidence: Evidence,
    pictures: dict[int, Picture],
    regions: dict[int, NDArray[np.bool_]],
    averaged: tuple[list[int], list[int]],
    side: int,
) -> list[tuple[str, str]]:
    framed = [i for i in averaged[0] if i in pictures and i in regions]
    crop = mean_crop([pictures[i] for i in framed], [regions[i] for i in framed], side)
    means = [(f"Mean of the regions, {len(framed)} pictures", crop)] if crop is not None else []
    kinds = [kind for kind in zip(("carriers", "others"), averaged, strict=True) if kind[1]]
    for kind, samples in kinds:
        readable = [pictures[i] for i in samples if i in pictures]
        if readable:
            mean = shrunk(mean_picture(readable), side)
            means.append((f"Mean of {len(readable)} {kind}", mean))
    maps = [evidence.maps[samples].astype(np.float64).mean(axis=0) for _, samples in kinds]
    limit = scale_of(np.stack(maps)) if maps else 0.0
    for (kind, _), relevance in zip(kinds, maps, strict=True):
        means.append((f"Mean relevance of {kind}", map_picture(relevance, limit, side)))
    return [(caption, uri(picture)) for caption, picture in means]
