"""The stages of the audit as the benchmark calls them, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from vimlrp.audit import stages
from vimlrp.audit.drilling import drill
from vimlrp.audit.mitigating import mitigate
from vimlrp.audit.mitigating.head_tuning import HeadTuning, tune_head
from vimlrp.audit.mitigating.mitigation import Mitigation
from vimlrp.audit.planted.mitigating import outcome
from vimlrp.audit.planted.plans import Plan
from vimlrp.audit.planted.planting import Planted
from vimlrp.audit.records import Evidence, Finding, Screening
from vimlrp.audit.screening import screen
from vimlrp.audit.verifying import verify
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet

__all__ = ["METHODS", "Audited", "drill", "gather", "mitigated", "screen", "verify"]

_BATCH = 128


@dataclass(frozen=True, eq=False)
class Audited:
    """A classifier, the pictures it was audited on, and what the audit gathered.

    Args:
        model: The classifier.
        planted: The audited pictures, in the order of the evidence.
        held_out: Pictures of the same kind that were neither trained on nor audited.
        evidence: What was gathered.
        screening: Its classes, ranked.
    """

    model: nn.Module
    planted: Planted
    held_out: Planted
    evidence: Evidence
    screening: Screening

    @property
    def plan(self) -> Plan:
        """What was planted."""
        return self.planted.plan


def gather(model: nn.Module, data: DataSet, folder: Path) -> Evidence:
    """Index, classify and explain pictures, many at a time since they are small."""
    return stages.gather(model, data, folder, batch_size=_BATCH)


def mitigated(audit: Audited, finding: Finding, method: str, *, seed: int) -> dict[str, Any]:
    """Fit one of the audit's mitigations to a finding, and measure it with the artifact itself.

    Args:
        audit: The audit.
        finding: In a class with an artifact.
        method: Of `METHODS`.
        seed: Of the fit.

    Returns:
        What `vimlrp.audit.planted.mitigating.outcome` measured, and the method.

    Raises:
        InputError: If nothing is planted in the class.
        VimLRPError: If the audit declines to mitigate.
    """
    label = finding.candidate.label
    planting = audit.plan.planting_of(label)
    if planting is None:
        raise InputError(f"nothing is planted in class {label}, so there is nothing to undo")
    change = METHODS[method](audit, finding, seed)
    found = outcome(
        audit.model,
        lambda: change.attach(audit.model),
        label,
        planting.artifact,
        audit.held_out,
    )
    return {"method": method, **asdict(found)}


def _projection(audit: Audited, finding: Finding, seed: int) -> Mitigation:
    return mitigate(audit.model, audit.evidence, finding, seed=seed)


def _head(audit: Audited, finding: Finding, seed: int) -> HeadTuning:
    return tune_head(audit.model, audit.evidence, finding.candidate, seed=seed)


METHODS: Mapping[str, Callable[[Audited, Finding, int], Mitigation | HeadTuning]] = (
    MappingProxyType({"P-ClArC": _projection, "last layer fitted anew": _head})
)
"""The audit's mitigations, by name."""
