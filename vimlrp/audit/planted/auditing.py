"""The stages of the audit as the benchmark calls them, in one place."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vimlrp.audit import stages
from vimlrp.audit.drilling import drill
from vimlrp.audit.mitigating import mitigate
from vimlrp.audit.planted.mitigating import outcome
from vimlrp.audit.planted.plans import Plan
from vimlrp.audit.planted.planting import Planted
from vimlrp.audit.records import Evidence, Finding, Screening
from vimlrp.audit.screening import screen
from vimlrp.audit.verifying import verify
from vimlrp.evaluation.data import DataSet

__all__ = ["Audited", "drill", "gather", "mitigated", "screen", "verify"]

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


def mitigated(audit: Audited, finding: Finding, *, seed: int) -> list[dict[str, Any]]:
    """Fit the audit's mitigations to a finding, and measure them with the artifact itself.

    Args:
        audit: The audit.
        finding: In a class with an artifact.
        seed: Of the fit.

    Returns:
        For each method its name and what `vimlrp.audit.planted.mitigating.outcome` measured.

    Raises:
        VimLRPError: If the audit declines to mitigate.
    """
    label = finding.candidate.label
    planting = audit.plan.planting_of(label)
    if planting is None:
        return []
    mitigation = mitigate(audit.model, audit.evidence, finding, seed=seed)
    found = outcome(
        audit.model,
        lambda: mitigation.attach(audit.model),
        label,
        planting.artifact,
        audit.held_out,
    )
    reactive = "reactive" if mitigation.reactive else "always"
    rank = len(mitigation.directions)
    return [{"method": "P-ClArC", "variant": f"{reactive}, rank {rank}", **asdict(found)}]
