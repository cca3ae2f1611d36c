"""Probes without a data set: known changes of the user's pictures, and what they do to classes."""

from vimlrp.audit.probing.probes import (
    PROBES,
    Probe,
    ProbeTable,
    Progress,
    probe,
    probes_named,
    write_probe_table,
)

__all__ = [
    "PROBES",
    "Probe",
    "ProbeTable",
    "Progress",
    "probe",
    "probes_named",
    "write_probe_table",
]
