"""What probes changed, class by class, as data, Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vimlrp.audit.probing.pictures import Probe
from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.evaluation.data import Problem
from vimlrp.files import atomic_write

__all__ = ["ClassChange", "Measure", "Overall", "ProbeTable", "write_probe_table"]


class Measure(StrEnum):
    """What is compared between pictures and their changed twins."""

    ACCURACY = "accuracy"  # share of the class's pictures that are classified rightly
    PROBABILITY = "probability"  # mean of the class over its own pictures
    EVERYWHERE = "probability everywhere"  # mean of the class over all pictures


@dataclass(frozen=True)
class ClassChange:
    """What a probe did to a class.

    Args:
        probe: Name of the probe.
        label: Index of the class.
        measure: What is compared.
        before: On the pictures as they are.
        after: On their changed twins.
        change: The mean difference, with its 95 % paired bootstrap interval and the number of
            pictures.
        p_value: That there is no difference, in (0, 1]; NaN for too few pictures.
        q_value: The false-discovery rate over classes at which it would just be flagged.
        flagged: Whether `q_value` is within the asked rate.
    """

    probe: str
    label: int
    measure: Measure
    before: float
    after: float
    change: Estimate
    p_value: float
    q_value: float
    flagged: bool


@dataclass(frozen=True)
class Overall:
    """What a probe did to the accuracy over all pictures."""

    probe: str
    before: float
    after: float
    change: Estimate


@dataclass(frozen=True)
class ProbeTable:
    """What probes changed.

    Args:
        class_names: Of the model's outputs.
        probes: That were made.
        overall: One for each probe.
        changes: One for each probe, measure and class that has pictures; every output of the
            model for `Measure.EVERYWHERE`.
        images: Pictures that were used.
        unlabelled: Those of them without a label, whose predicted class was taken for it.
        rate: The false-discovery rate asked for.
        seed: Of what is random.
        problems: Pictures that could not be used.
    """

    class_names: tuple[str, ...]
    probes: tuple[Probe, ...]
    overall: tuple[Overall, ...]
    changes: tuple[ClassChange, ...]
    images: int
    unlabelled: int
    rate: float
    seed: int
    problems: tuple[Problem, ...] = ()

    def name_of(self, label: int) -> str:
        """Of a class."""
        return self.class_names[label]

    def flagged(self, probe: str, measure: str, *, gains: bool, most: int = 5) -> list[ClassChange]:
        """Classes that a probe changed beyond chance, the strongest change first.

        Args:
            probe: Its name.
            measure: What is compared.
            gains: Whether to list what rose, or what fell.
            most: How many to list.
        """
        sign = 1 if gains else -1
        found = [
            change
            for change in self.changes
            if change.probe == probe
            and change.measure == measure
            and change.flagged
            and sign * change.change.value > 0
        ]
        return sorted(found, key=lambda change: -sign * change.change.value)[:most]


def write_probe_table(folder: str | Path, table: ProbeTable) -> list[Path]:
    """Write `probes.md`, `probes.csv` and `probes.json`, each whole or not at all.

    Args:
        folder: Where to.
        table: What to write.

    Returns:
        The files.
    """
    texts = {
        "probes.md": "\n".join(_markdown(table)) + "\n",
        "probes.csv": _csv(table),
        "probes.json": json.dumps(_content(table), indent=2, ensure_ascii=False) + "\n",
    }
    return [atomic_write(Path(folder) / name, text.encode()) for name, text in texts.items()]


def _markdown(table: ProbeTable) -> Iterator[str]:
    yield from ("# Probes", "", *_notes(table), "")
    yield "| probe | what it does | accuracy | change | fell most | rose most |"
    yield "|---|---|---|---|---|---|"
    for probe, overall in zip(table.probes, table.overall, strict=True):
        fell = table.flagged(probe.name, Measure.ACCURACY, gains=False, most=3)
        rose = table.flagged(probe.name, Measure.EVERYWHERE, gains=True, most=3)
        cells = [
            probe.name,
            probe.description,
            f"{100 * overall.after:.1f} %",
            _points(overall.change),
            _named(table, fell),
            _named(table, rose),
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    yield "Fell: accuracy on the class's pictures. Rose: mean probability over all pictures."


def _notes(table: ProbeTable) -> Iterator[str]:
    yield (
        f"{table.images} pictures, each compared with its changed twin. Changes are in percentage "
        "points with 95 % bootstrap intervals; classes are listed at a false-discovery rate of "
        f"{100 * table.rate:g} % over classes."
    )
    if table.unlabelled:
        yield (
            f"{table.unlabelled} of the pictures have no label: the class predicted for the "
            "unchanged picture is taken for it, so accuracy there means agreement."
        )
    if table.problems:
        yield f"{len(table.problems)} pictures could not be used."


def _points(change: Estimate) -> str:
    if math.isnan(change.value):
        return "-"
    return f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _named(table: ProbeTable, changes: Sequence[ClassChange]) -> str:
    told = [f"{table.name_of(c.label)} {100 * c.change.value:+.1f}" for c in changes]
    return ", ".join(told) or "-"


_COLUMNS = [
    *("probe", "class", "class_name", "measure", "images"),
    *("before", "after", "change", "low", "high", "p_value", "q_value", "flagged"),
]


def _csv(table: ProbeTable) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in table.changes:
        numbers = (row.before, row.after, row.change.value, row.change.low, row.change.high)
        cells = ["" if math.isnan(x) else f"{x:.6g}" for x in (*numbers, row.p_value, row.q_value)]
        name = table.name_of(row.label)
        first = (row.probe, row.label, name, row.measure.value, row.change.count)
        writer.writerow([*first, *cells, int(row.flagged)])
    return buffer.getvalue()


def _content(table: ProbeTable) -> dict[str, Any]:
    return {
        "format": 1,
        "images": table.images,
        "unlabelled": table.unlabelled,
        "rate": table.rate,
        "seed": table.seed,
        "probes": [
            {
                "name": probe.name,
                "description": probe.description,
                "accuracy_before": _finite(overall.before),
                "accuracy_after": _finite(overall.after),
                **_interval(overall.change),
            }
            for probe, overall in zip(table.probes, table.overall, strict=True)
        ],
        "changes": [
            {
                "probe": row.probe,
                "class": row.label,
                "name": table.name_of(row.label),
                "measure": row.measure.value,
                "before": _finite(row.before),
                "after": _finite(row.after),
                **_interval(row.change),
                "p_value": _finite(row.p_value),
                "q_value": _finite(row.q_value),
                "flagged": row.flagged,
            }
            for row in table.changes
        ],
        "problems": [
            {"sample": p.sample, "kind": p.kind, "detail": p.detail} for p in table.problems
        ],
    }


def _interval(change: Estimate) -> dict[str, float | int | None]:
    return {
        "change": _finite(change.value),
        "low": _finite(change.low),
        "high": _finite(change.high),
        "count": change.count,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
