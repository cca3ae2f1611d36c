"""The stages of the audit as the benchmark calls them, in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vimlrp.audit import stages
from vimlrp.audit.drilling import drill
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
    """Placeholder."""
    return []
