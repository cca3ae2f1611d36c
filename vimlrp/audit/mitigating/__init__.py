"""A model that does without the cue, and what that costs."""

from vimlrp.audit.mitigating.projecting import (
    RANKS,
    MitigationReport,
    Outcome,
    evaluate_mitigation,
    mitigate,
)

__all__ = ["RANKS", "MitigationReport", "Outcome", "evaluate_mitigation", "mitigate"]
