"""What a reader of a report accepted and rejected, as the report exports it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vimlrp.audit.records import Finding
from vimlrp.errors import InputError

__all__ = ["CHOICES", "FORMAT", "identities", "read_decisions"]

FORMAT = 1
CHOICES = ("accept", "reject", "open")


def identities(findings: Sequence[Finding]) -> list[str]:
    """A name for each finding by which decisions refer to it, such as "497-relevance".

    It is the class's index and the channel, with a number where both occur again, and so the same
    in every report on the same findings.
    """
    seen: dict[str, int] = {}
    names = []
    for finding in findings:
        name = f"{finding.candidate.label}-{finding.candidate.channel.value}"
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def read_decisions(path: str | Path, findings: Sequence[Finding]) -> dict[str, str]:
    """Read the decisions that somebody exported from a report.

    Args:
        path: The JSON file.
        findings: Those of the report.

    Returns:
        "accept", "reject" or "open" by the identity of each finding, in the order given; those
        that the file does not mention are open.

    Raises:
        InputError: The file cannot be read, is no export of a report, or is one on other findings.
    """
    given = _entries(Path(path))
    known = identities(findings)
    strange = sorted(set(given) - set(known))
    if strange:
        raise InputError(
            f"{path} decides on {', '.join(strange)}, which are not among the findings "
            f"({', '.join(known) or 'there are none'}); give the export of this audit's report"
        )
    return {name: _choice(given.get(name, {}), name, path) for name in known}


def _entries(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    entries = content.get("decisions") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path} holds no decisions: use the button “Export decisions” of a report"
        )
    return entries


def _choice(entry: object, name: str, path: str | Path) -> str:
    choice = entry.get("decision", "open") if isinstance(entry, Mapping) else None
    if choice not in CHOICES:
        raise InputError(
            f"{path} says {choice!r} on {name}; a decision is one of {', '.join(CHOICES)}"
        )
    return str(choice)
