"""Problems as files and text."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vimlrp.evaluation.data import Problem

__all__ = ["csv_of", "problem_counts", "problem_csv"]


def csv_of(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV, with the same line ends everywhere.

    Args:
        rows: The header first.
    """
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def problem_csv(problems: Iterable[Problem]) -> str:
    """A row for each problem, as CSV.

    Args:
        problems: In the order in which they are listed.
    """
    rows = ([p.sample, p.method, p.kind, p.detail] for p in problems)
    return csv_of([["sample", "method", "problem", "detail"], *rows])


def problem_counts(problems: Sequence[Problem]) -> str:
    """How many problems of each kind there were, as Markdown.

    Args:
        problems: To be counted.
    """
    if not problems:
        return "No sample had a problem.\n"
    counts = Counter((problem.kind, problem.method or "the sample") for problem in problems)
    rows = [f"| {kind} | {where} | {count} |" for (kind, where), count in sorted(counts.items())]
    head = ["| problem | of | count |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", "Listed in problems.csv."]) + "\n"
