"""The samples that show a cue, as a table to leave them out of the next training."""

import csv
import io
from pathlib import Path

from vimlrp.audit.records import Candidate, Evidence
from vimlrp.errors import InputError
from vimlrp.files import atomic_write

__all__ = ["write_drop_list"]


def write_drop_list(path: str | Path, evidence: Evidence, candidate: Candidate) -> Path:
    """Write a CSV file with a row for each carrier, the surest first.

    Columns: `name` (of the sample in the data), `path` (of its file), `class`, and `score` (how
    strongly it shows the cue, in standard deviations of samples without it).

    Args:
        path: Of the file.
        evidence: Of the audited pictures.
        candidate: Whose carriers are listed.

    Raises:
        InputError: If the candidate has no carriers, or nearly all pictures of the class are.
    """
    if candidate.place is not None:
        raise InputError(
            f"nearly all pictures of {evidence.class_names[candidate.label]} show the cue "
            f"({candidate.place.name}), so to drop them would leave none: crop or inpaint the "
            "place in the training pictures, or add pictures without it"
        )
    if not len(candidate.carriers):
        raise InputError("the candidate has no carriers, so there is nothing to drop")
    score = dict(zip(candidate.members.tolist(), candidate.scores.tolist(), strict=True))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["name", "path", "class", "score"])
    for row in candidate.carriers.tolist():
        sample, name = evidence.samples[row], evidence.class_names[candidate.label]
        table.writerow([sample.name, sample.path, name, f"{score[row]:.4f}"])
    return atomic_write(path, text.getvalue().encode())
