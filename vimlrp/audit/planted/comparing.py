"""What an audit says of one class beside what is true of it, as records of plain numbers."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.planted.artifacts import ARTIFACTS
from vimlrp.audit.planted.auditing import Audited
from vimlrp.audit.planted.measures import class_rank, localisation, overlap, retrieval
from vimlrp.audit.planted.plans import Kind
from vimlrp.audit.planted.reliance import Reliance
from vimlrp.audit.planted.training import as_input
from vimlrp.audit.records import Candidate, ClassScore, Effect, Finding
from vimlrp.explainer import Explainer

__all__ = ["compared_class", "compared_finding"]

_EXPLAINED = 64


def compared_class(audit: Audited, label: int, truths: Mapping[int, Reliance]) -> dict[str, Any]:
    """How a class was screened, beside what it holds.

    Args:
        audit: The audit.
        label: The class.
        truths: What classifiers make of the planted classes' artifacts.
    """
    plan, screening = audit.plan, audit.screening
    calm = {
        other
        for other in range(plan.classes)
        if plan.kind_of(other) in (Kind.CLEAN, Kind.TWO_POSES)
    }
    rank, of = class_rank(screening.ranking(), label, calm)
    scores = [score for score in screening.scores if score.label == label]
    return {
        **_truth(audit, label, truths.get(label)),
        "rank": rank,
        "of": of,
        "flagged": any(score.flagged for score in scores),
        "scores": [
            {
                "channel": str(score.channel),
                "p": score.p_value,
                "q": score.q_value,
                "flagged": score.flagged,
                "connectivity": score.connectivity,
                "separability": score.separability,
                "contrast": score.contrast,
            }
            for score in scores
        ],
    }


def compared_finding(
    audit: Audited, score: ClassScore, finding: Finding, truth: Reliance | None
) -> dict[str, Any]:
    """What was found in a class, beside what it holds.

    Args:
        audit: The audit.
        score: What the class was drilled by.
        finding: What came of it.
        truth: What the classifier makes of the class's artifact; None where nothing is planted.
    """
    candidate = finding.candidate
    record = {
        **_truth(audit, candidate.label, truth),
        "channel": str(candidate.channel),
        "verdict": str(finding.verdict),
        "clever_hans": finding.clever_hans,
        "off_object": finding.off_object,
        "local": candidate.local,
        "carriers": len(candidate.carriers),
        "effects": [_effect(effect) for effect in finding.effects],
        "notes": list(finding.notes),
    }
    if truth is None:
        return record
    return {
        **record,
        "retrieval": _retrieval(audit, score, candidate),
        "localisation": _localisation(audit, candidate),
    }


def _truth(audit: Audited, label: int, truth: Reliance | None) -> dict[str, Any]:
    planting = audit.plan.planting_of(label)
    known = {"label": label, "kind": str(audit.plan.kind_of(label))}
    if planting is None or truth is None:
        return {**known, "artifact": None, "prevalence": 0.0, "gated": False, "ignored": True}
    return {
        **known,
        "artifact": planting.artifact,
        "prevalence": planting.prevalence,
        "gated": truth.gated,
        "ignored": truth.ignored,
        "attack": truth.attack,
        "effect": asdict(truth.effect),
        "carried": asdict(truth.carried),
    }


def _effect(effect: Effect) -> dict[str, Any]:
    return asdict(effect)


def _retrieval(audit: Audited, score: ClassScore, candidate: Candidate) -> dict[str, Any]:
    wanted = audit.planted.carriers[candidate.members]
    taken = np.isin(candidate.members, candidate.carriers)
    cluster = np.isin(candidate.members, score.cluster)
    return asdict(retrieval(candidate.scores, wanted, taken, cluster))


def _localisation(audit: Audited, candidate: Candidate) -> dict[str, Any]:
    """Of plain relevance on pictures that carry the artifact, and of the regions found."""
    planting = audit.plan.planting_of(candidate.label)
    if planting is None or not ARTIFACTS[planting.artifact].local:
        return {"artifact_local": False, "found_local": candidate.local}
    rows = audit.planted.carriers_of(candidate.label)[:_EXPLAINED]
    plain = localisation(_relevance(audit, rows, candidate.label), audit.planted.masks[rows])
    # Regions belong to the first carriers found, of which some may carry nothing.
    found = candidate.carriers[: len(candidate.regions)]
    true = audit.planted.carriers[found]
    masks = audit.planted.masks[found[true]]
    return {
        "artifact_local": True,
        "found_local": candidate.local,
        **asdict(plain),
        "iou": overlap(candidate.regions[true], masks),
        "regions": int(true.sum()),
    }


def _relevance(audit: Audited, rows: NDArray[np.int64], label: int) -> NDArray[np.float32]:
    x = as_input(audit.planted.pictures[rows], audit.model)
    relevance = Explainer(audit.model, batch_size=32)(x, target=label)
    return relevance.pixels.float().cpu().numpy()
