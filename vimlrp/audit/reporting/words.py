"""What a report says in words."""

import math
from collections.abc import Sequence

import numpy as np

from vimlrp.audit.records import Effect, Evidence, Finding, PlaceShare, Screening, Verdict
from vimlrp.audit.screening.graphs import neighbour_count

__all__ = [
    "EXPLANATIONS",
    "GRADES",
    "accuracy",
    "detectable",
    "in_words",
    "location",
    "percent",
    "sizes",
    "summary",
]

EXPLANATIONS = {
    Verdict.CAUSAL: (
        "Taking the cue away lowers the class's logit, putting it in raises it, and both intervals "
        "stay clear of zero: the model uses it."
    ),
    Verdict.ASSOCIATIVE: (
        "These samples share the cue and relevance lies on it, but it is not proven that the model "
        "uses it: it may only accompany what the model uses, or no change imitates it."
    ),
    Verdict.UNUSED: (
        "The cue is there to be seen, and the model does not react to it. It matters once another "
        "model is trained on these pictures."
    ),
    Verdict.NON_LOCAL: (
        "The model reacts to a property of the whole picture, such as compression, blur or colour, "
        "so no region can be shown for it."
    ),
    Verdict.NOT_ENOUGH: (
        "Too few pictures show the cue for a verdict either way. More pictures of the class would "
        "decide it."
    ),
}

GRADES = {
    Verdict.CAUSAL: "A: effect proven",
    Verdict.NON_LOCAL: "A: effect proven",
    Verdict.ASSOCIATIVE: "B: association only",
    Verdict.UNUSED: "C: cosmetic",
    Verdict.NOT_ENOUGH: "open",
}

# Neighbours of a sample in the graph that screening clusters, by the size of the class.


def percent(share: float) -> str:
    """A share as text, such as "12 %" or "0.4 %" with a space that does not break; "-" for NaN."""
    if math.isnan(share):
        return "-"
    value = 100 * share
    return f"{value:.0f}\u00a0%" if value >= 9.95 or value == 0 else f"{value:.2g}\u00a0%"


def accuracy(evidence: Evidence) -> tuple[float, int]:
    """Share of right predictions over the samples whose label the data give, and their number."""
    known = np.array([sample.label is not None for sample in evidence.samples], dtype=bool)
    count = int(known.sum())
    right = evidence.predictions[known] == evidence.labels[known]
    return (float(right.mean()) if count else float("nan")), count


def sizes(evidence: Evidence, screening: Screening) -> list[int]:
    """Numbers of samples that classes were screened with for groups, ascending.

    Where none was screened so, the numbers of samples of the classes that have any, without copies.
    """
    counts = [score.count for score in screening.scores if score.place is None]
    if counts:
        return sorted(counts)
    own = evidence.originals == np.arange(len(evidence))
    return sorted(np.unique(evidence.labels[own], return_counts=True)[1].tolist())


def detectable(count: int) -> tuple[int, float]:
    """The smallest group of samples that can stand alone in a class, and its share.

    In a graph in which every sample has k neighbours, a group of k or fewer is tied to others
    whatever it looks like; k is the logarithm of the class's size, within 5 to 10. A smaller group
    may be noticed if its ties are weak, and a larger one is not for sure.

    Args:
        count: Samples of the class.
    """
    group = 1 + neighbour_count(count)
    return group, min(1.0, group / max(count, 1))


def summary(evidence: Evidence, screening: Screening, findings: Sequence[Finding]) -> list[str]:
    """The outcome in a few sentences, a list of paragraphs.

    Args:
        evidence: What was audited.
        screening: What stood out.
        findings: What was verified.
    """
    flagged = {score.label for score in screening.flagged()}
    screened = len(screening.ranking())
    rate = percent(screening.rate)
    classes = _count(screened, "screened class", "screened classes")
    if flagged:
        verb = "stands" if len(flagged) == 1 else "stand"
        first = (
            f"{len(flagged)} of {classes} {verb} out from what chance gives, at a false-discovery "
            f"rate of {rate}."
        )
        return [
            f"{first} {_verdicts(findings)}",
            _performance(evidence),
            _limits(evidence, screening),
            *screening.notes,
        ]
    if screened:
        first = (
            f"None of {classes} stands out from what chance gives, at a false-discovery rate of "
            f"{rate}. That is no proof that the model is right for the right reasons, "
            "only that nothing was seen, within the limits that are told here too."
        )
    else:
        first = "No class could be screened, so this report says nothing about the model's reasons."
    found = [_verdicts(findings)] if findings else []
    return [
        " ".join([first, *found]),
        _performance(evidence),
        _limits(evidence, screening),
        *screening.notes,
    ]


def in_words(finding: Finding, evidence: Evidence) -> str:
    """A finding in a sentence or two, with its figures."""
    candidate = finding.candidate
    name = evidence.class_names[candidate.label]
    carriers, members = len(candidate.carriers), len(candidate.members)
    share = percent(carriers / members) if members else "-"
    pictures = _count(members, "picture", "pictures")
    parts = [f"{carriers} of {pictures} of “{name}” ({share}) are taken to show this cue."]
    if candidate.place is not None:
        parts.append(_stands_out(candidate.place))
    parts += [_effect(effect, name) for effect in finding.effects]
    return " ".join(parts)


def _stands_out(place: PlaceShare) -> str:
    whole = "of all positive relevance" if place.name == "ring" else "of that along the border"
    return (
        f"Positive relevance at “{place.name}” is {percent(place.share)} {whole} (median), and "
        f"{percent(place.usual)} in other classes."
    )


def location(finding: Finding) -> str:
    """What is known of where the cue lies in relation to the object."""
    if not finding.candidate.local:
        return "The cue lies nowhere in particular."
    if finding.off_object is None:
        return (
            "Neither boxes nor masks of the objects are known, so whether the cue is part of the "
            "object is yours to judge: look at the regions below."
        )
    share = percent(finding.off_object)
    return f"{share} of the regions' area lies off the object, by the boxes or masks of the data."


def _verdicts(findings: Sequence[Finding]) -> str:
    if not findings:
        return "None of them has been examined further."
    counts = {verdict: sum(f.verdict is verdict for f in findings) for verdict in Verdict}
    told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    sentence = f"{_count(len(findings), 'cue was', 'cues were')} examined: {told}."
    proven = sum(finding.clever_hans for finding in findings)
    if proven:
        sentence += (
            f" For {proven} of them the effect is proven and lies off the object: a Clever Hans, "
            "by the evidence of the data."
        )
    return sentence


def _performance(evidence: Evidence) -> str:
    share, count = accuracy(evidence)
    if not count:
        return (
            "The pictures have no labels, so the predicted class of each was audited and no "
            "accuracy is known."
        )
    pictures = _count(count, "labelled picture", "labelled pictures")
    unlabelled = len(evidence) - count
    rest = f"; {unlabelled} more have no label, and their predicted class was audited"
    return (
        f"The model classifies {percent(share)} of {pictures} rightly{rest if unlabelled else ''}. "
        "A cue that helps on these pictures does not lower that figure."
    )


def _limits(evidence: Evidence, screening: Screening) -> str:
    counts = sizes(evidence, screening)
    if not counts:
        return "There are no samples."
    typical = counts[len(counts) // 2]
    group, share = detectable(typical)
    return (
        f"What could have been seen: a class was looked at with {typical} different pictures (the "
        f"median), among which a group of fewer than {group} is tied to the rest whatever it looks "
        f"like. So a cue on less than about {percent(share)} of a class's pictures is likely to go "
        "unnoticed; more pictures a class lower that limit."
    )


_CHANGES = {
    "removal": "Removing it",
    "insertion": "Inserting it",
    "transplant": "Transplanting it onto other classes, less the same with other regions,",
}


def _effect(effect: Effect, name: str) -> str:
    change = _CHANGES.get(effect.kind, f"The change “{effect.kind}”")
    if not math.isfinite(effect.mean):
        return f"{change} could not be measured."
    verb = "raises" if effect.mean > 0 else "lowers"
    sentence = f"{change} {verb} the logit by {abs(effect.mean):.2f}"
    if math.isfinite(effect.attack_rate):
        sentence += f" and turns {percent(effect.attack_rate)} of the pictures into “{name}”"
    proven = effect.low > 0 or effect.high < 0
    return sentence + ("." if proven else ", no more than chance could.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
