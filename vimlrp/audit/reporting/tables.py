"""What a report holds for programs: `findings.json` and `samples.csv`."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vimlrp.audit.records import (
    ClassScore,
    Effect,
    Evidence,
    Finding,
    PlaceShare,
    Screening,
)
from vimlrp.audit.reporting.decisions import identities
from vimlrp.audit.reporting.words import accuracy, detectable, sizes
from vimlrp.evaluation.data import Problem

__all__ = ["findings_json", "plain", "samples_csv"]

_FORMAT = 1


def findings_json(
    evidence: Evidence,
    screening: Screening,
    findings: Sequence[Finding],
    about: Mapping[str, object],
    problems: Sequence[Problem],
) -> str:
    """All that the report says, but for pictures; docs/audit-report.md describes the structure.

    What is not a number (a probability without samples, say) is null.
    """
    content = {
        "format": _FORMAT,
        "about": plain(about),
        "data": _data(evidence, screening),
        "screening": {
            "rate": screening.rate,
            "classes": [_score(score, evidence) for score in screening.scores],
            "notes": list(screening.notes),
        },
        "findings": [
            _finding(finding, name, evidence)
            for finding, name in zip(findings, identities(findings), strict=True)
        ],
        "problems": [{"sample": p.sample, "kind": p.kind, "detail": p.detail} for p in problems],
    }
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def samples_csv(evidence: Evidence, findings: Sequence[Finding]) -> str:
    """A row for each sample: what it is, how it is classified, and which cues it shows.

    The cues stand in as many groups of columns (`cue_1`, `cue_1_score`, `cue_1_carrier`, ...) as
    the class with most findings has.
    """
    cues = _cues(evidence, findings)
    width = max(map(len, cues), default=0)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["sample", "path", "class", "class_name", "labelled", "predicted", "predicted_name"]
    slots = [f"cue_{n + 1}{part}" for n in range(width) for part in ("", "_score", "_carrier")]
    writer.writerow([*head, "probability", "duplicate_of", *slots])
    for i in range(len(evidence)):
        cells = [cell for cue in cues[i] for cell in cue]
        writer.writerow([*_sample(evidence, i), *cells, *[""] * (3 * width - len(cells))])
    return buffer.getvalue()


def plain(value: object) -> Any:
    """A value as JSON knows it: mappings, lists, text and finite numbers; else null or its text."""
    if value is None or isinstance(value, bool | int | str):
        # A StrEnum or a boolean of numpy would not do.
        return str(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(entry) for entry in value]
    return str(value)


def _data(evidence: Evidence, screening: Screening) -> dict[str, Any]:
    share, labelled = accuracy(evidence)
    counts = sizes(evidence, screening)
    group, prevalence = detectable(counts[len(counts) // 2]) if counts else (0, math.nan)
    copies = int((evidence.originals != np.arange(len(evidence))).sum())
    return {
        "samples": len(evidence),
        "labelled": labelled,
        "copies": copies,
        "classes": len(np.unique(evidence.labels)),
        "accuracy": share,
        "layer": evidence.layer,
        "smallest_group": group,
        "detectable_prevalence": prevalence,
    }


def _score(score: ClassScore, evidence: Evidence) -> dict[str, Any]:
    entry = {
        "class": score.label,
        "name": evidence.class_names[score.label],
        "channel": score.channel.value,
        "count": score.count,
        "connectivity": score.connectivity,
        "separability": score.separability,
        "contrast": score.contrast,
        "eigengap": score.eigengap,
        "p_value": score.p_value,
        "q_value": score.q_value,
        "flagged": score.flagged,
        "place": _place(score.place),
        "cluster_size": len(score.cluster),
    }
    # Those of a thousand unsuspicious classes would fill the file.
    if score.flagged:
        entry["cluster"] = [evidence.samples[i].name for i in score.cluster]
    return entry


def _finding(finding: Finding, name: str, evidence: Evidence) -> dict[str, Any]:
    candidate = finding.candidate
    scores = dict(zip(candidate.members.tolist(), candidate.scores.tolist(), strict=True))
    members = len(candidate.members)
    return {
        "id": name,
        "class": candidate.label,
        "name": evidence.class_names[candidate.label],
        "channel": candidate.channel.value,
        "verdict": finding.verdict.value,
        "clever_hans": finding.clever_hans,
        "members": members,
        "prevalence": len(candidate.carriers) / members if members else math.nan,
        "local": candidate.local,
        "place": _place(candidate.place),
        "off_object": finding.off_object,
        "effects": [_effect(effect) for effect in finding.effects],
        "statistics": [{"name": key, "auc": area} for key, area in candidate.statistics],
        "seeds": [evidence.samples[i].name for i in candidate.seeds],
        "carriers": [
            {"sample": evidence.samples[i].name, "score": scores.get(i, math.nan)}
            for i in candidate.carriers.tolist()
        ],
        "action": finding.action,
        "notes": list(finding.notes),
    }


def _place(place: PlaceShare | None) -> dict[str, Any] | None:
    return None if place is None else asdict(place)


def _effect(effect: Effect) -> dict[str, Any]:
    return {
        "kind": effect.kind,
        "mean": effect.mean,
        "low": effect.low,
        "high": effect.high,
        "count": effect.count,
        "attack_rate": effect.attack_rate,
    }


def _cues(evidence: Evidence, findings: Sequence[Finding]) -> list[list[tuple[str, str, int]]]:
    """Of each sample: identity of the finding, score, and whether it carries the cue."""
    cues: list[list[tuple[str, str, int]]] = [[] for _ in range(len(evidence))]
    for finding, name in zip(findings, identities(findings), strict=True):
        candidate = finding.candidate
        carriers = set(candidate.carriers.tolist())
        for i, score in zip(candidate.members.tolist(), candidate.scores.tolist(), strict=True):
            cues[i].append((name, _number(score), int(i in carriers)))
    return cues


def _sample(evidence: Evidence, i: int) -> Iterator[object]:
    sample, label, predicted = evidence.samples[i], evidence.labels[i], evidence.predictions[i]
    original = int(evidence.originals[i])
    yield from (sample.name, sample.path, label, evidence.class_names[label])
    yield int(sample.label is not None)
    yield from (predicted, evidence.class_names[predicted], _number(evidence.probabilities[i]))
    yield evidence.samples[original].name if original != i else ""


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
