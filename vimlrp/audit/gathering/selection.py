"""Which of the samples an audit looks at: those of some classes, and so many of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet, Problem, Sample
from vimlrp.targets import find_class

__all__ = ["class_indices", "drawn", "labels_of", "with_labels"]


def class_indices(
    classes: Sequence[str | int] | None, names: Sequence[str] | None, count: int
) -> list[int] | None:
    """The indices of classes, ascending; None, for all, stays None.

    Args:
        classes: By name or index.
        names: Of the model's classes, where known.
        count: Of the model's classes.

    Raises:
        TargetError: If there is no class of a name.
        InputError: If there is none of an index, or no class was given.
    """
    if classes is None:
        return None
    if not classes:
        raise InputError("no classes were given; give at least one, or none at all for every class")
    known = None if names is None else tuple(names)
    found = [int(c) if _is_index(c) else find_class(str(c), known) for c in classes]
    for index in found:
        if not 0 <= index < count:
            raise InputError(f"the model has no class {index}; it has {count}, from 0")
    return sorted({*found})


def drawn(
    labels: NDArray[np.int64], classes: Sequence[int] | None, per_class: int | None, seed: int
) -> NDArray[np.int64]:
    """Rows of some classes, and of each at most so many, drawn at random.

    What is drawn of a class does not depend on the other classes.

    Args:
        labels: Of each row, (n,); -1 for rows that are left out.
        classes: Their indices; None for all.
        per_class: At most; None for all rows.
        seed: Of the draw.

    Returns:
        Places in `labels`, ascending.
    """
    wanted = np.unique(labels[labels >= 0]) if classes is None else np.asarray(classes)
    chosen = []
    for label in wanted.tolist():
        rows = np.flatnonzero(labels == label)
        if per_class is not None and len(rows) > per_class:
            rows = np.random.default_rng([seed, label]).choice(rows, per_class, replace=False)
        chosen.append(rows)
    return np.sort(np.concatenate(chosen or [np.zeros(0, np.int64)])).astype(np.int64)


def labels_of(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Labels of samples, (n,); -1 where unknown.

    Args:
        samples: The n samples.
    """
    labels = [-1 if sample.label is None else sample.label for sample in samples]
    return np.array(labels, dtype=np.int64)


def with_labels(
    data: DataSet, classes: Sequence[int] | None, per_class: int | None, seed: int
) -> DataSet:
    """The samples that an audit looks at; those without a label stay where none has one.

    Args:
        data: All samples.
        classes: See `drawn`.
        per_class: See `drawn`.
        seed: See `drawn`.

    Returns:
        The samples, and the problems that concern no sample that was left out by choice.

    Raises:
        InputError: If the data have classes, and none of them is one of the model's, or one of
            `classes`.
    """
    labels = labels_of(data.samples)
    if (labels < 0).all():
        missing = sorted({p.detail for p in data.problems if p.kind == _MISSING})
        if not missing:
            return data
        raise InputError(
            f"none of the {len(missing)} classes of the data is one of the model's "
            f"(the first is {missing[0]!r}): name the folders by the model's classes, their "
            "indices or WordNet ids, or load the model that knows them"
        )
    rows = drawn(labels, classes, per_class, seed)
    if not len(rows):
        raise InputError("the data have no picture of the classes asked for")
    samples = tuple(data.samples[row] for row in rows)
    left_out = {s.name for s in data.samples if s.label is not None} - {s.name for s in samples}
    problems = [problem for problem in data.problems if problem.sample not in left_out]
    known = {problem.sample for problem in problems}
    problems += [
        Problem(s.name, "no label", "others have one, so it was left out")
        for s in data.samples
        if s.label is None and s.name not in known
    ]
    return DataSet(samples, tuple(problems))


_MISSING = "class missing from the model"


def _is_index(given: str | int) -> bool:
    return isinstance(given, int) or given.isdigit()
