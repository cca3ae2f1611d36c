"""From a cluster to all samples that show its cue, and to where in them it lies."""

from vimlrp.audit.drilling.expanding import (
    FEWEST_SEEDS,
    REGIONS,
    drill,
    expand,
)

__all__ = ["FEWEST_SEEDS", "REGIONS", "drill", "expand"]
