"""The report of an audit: a page for people, tables for programs.

`write_report` writes it, `read_decisions` reads what a reader accepted and rejected in it.
"""

from vimlrp.audit.reporting.decisions import identities, read_decisions
from vimlrp.audit.reporting.writing import write_report

__all__ = ["identities", "read_decisions", "write_report"]
