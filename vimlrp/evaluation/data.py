"""Samples to evaluate on: a folder, a folder of classes, or a CSV file with boxes or masks.

A CSV file has a header and a row a picture, a box or a mask; rows of one picture add up, and its
object is the union of all boxes and masks. Columns: `path` (of the picture, relative to the file),
and where known `label` (name, index or WordNet id of its class), `x0`, `y0`, `x1`, `y1` (a box in
pixels of the picture, from its upper left corner), `width` and `height` (the size of the picture
that the box was drawn on, where it differs from the file's), and `mask` (path of a picture whose
opaque pixels other than black are the object). Further columns are left alone.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vimlrp.errors import InputError
from vimlrp.evaluation.labels import label_of
from vimlrp.evaluation.problems import Problem
from vimlrp.photos import find_photos

__all__ = ["Box", "DataSet", "Problem", "Sample", "read_data"]


@dataclass(frozen=True)
class Box:
    """A rectangle around an object.

    Args:
        corners: Left, top, right and bottom in pixels.
        frame: Width and height of the picture that these refer to; None for the file itself.
    """

    corners: tuple[float, float, float, float]
    frame: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """A picture and what is known of it.

    Args:
        path: Of the file.
        name: What outputs call it: the path within the data.
        label: Index of its class, or None.
        boxes: Around its objects.
        masks: Pictures of its objects.
    """

    path: Path
    name: str
    label: int | None = None
    boxes: tuple[Box, ...] = ()
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """Samples in a fixed order, and what was wrong with them on the way."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def has_regions(self) -> bool:
        """Whether any sample has a box or a mask."""
        return any(sample.boxes or sample.masks for sample in self.samples)

    def evenly(self, count: int) -> "DataSet":
        """So many samples out of all, in equal distances.

        Problems stay, but for those of samples that are left out.

        Args:
            count: At most; all samples if there are fewer.
        """
        total = len(self.samples)
        if count >= total:
            return self
        samples = tuple(self.samples[i * total // count] for i in range(count))
        left_out = {sample.name for sample in self.samples} - {sample.name for sample in samples}
        return DataSet(samples, tuple(p for p in self.problems if p.sample not in left_out))


def read_data(path: str | Path, names: Sequence[str] | None, classes: int) -> DataSet:
    """List the samples of a folder or of a CSV file.

    Args:
        path: A folder of pictures (in folders by class where those are known), or a CSV file; see
            the module.
        names: The model's class names, where known.
        classes: Number of the model's classes.

    Raises:
        InputError: If there is nothing to read, or a CSV file has no `path`.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _of_csv(path, names, classes)
    if path.is_file():
        raise InputError(f"{path} is neither a folder nor a CSV file; give one of these")
    return _of_folder(path, names, classes)


def _of_folder(folder: Path, names: Sequence[str] | None, classes: int) -> DataSet:
    samples, problems = [], []
    for file in find_photos([folder]):
        relative = file.relative_to(folder)
        name = relative.as_posix()
        label, problem = None, None
        if len(relative.parts) > 1:
            label, problem = label_of(relative.parts[0], name, names, classes)
        samples.append(Sample(file, name, label))
        problems += [problem] if problem else []
    return DataSet(tuple(samples), tuple(problems))


def _of_csv(file: Path, names: Sequence[str] | None, classes: int) -> DataSet:
    samples: dict[str, Sample] = {}
    labels: dict[str, dict[str, str]] = {}
    problems: list[Problem] = []
    for line, row in _rows(file):
        name = row.get("path", "")
        if not name:
            problems.append(Problem(f"line {line}", "no path", f"{file.name}, line {line}"))
            continue
        sample = samples.setdefault(name, Sample(file.parent / name, name))
        if text := row.get("label", ""):
            labels.setdefault(name, {}).setdefault(text, f"{text} in line {line}")
        samples[name], found = _with_objects(sample, row, line, file.parent)
        problems += found
    if not samples:
        raise InputError(f"{file} names no picture; give a row a picture, with its path")
    for name, texts in labels.items():
        label, found = _one_label(texts, name, names, classes)
        samples[name] = replace(samples[name], label=label)
        problems += found
    return DataSet(tuple(samples.values()), tuple(problems))


def _with_objects(
    sample: Sample, row: Mapping[str, str], line: int, folder: Path
) -> tuple[Sample, list[Problem]]:
    """A sample with the box and the mask of a row."""
    box, problem = _box(row, sample.name, line)
    boxes = sample.boxes if box is None else (*sample.boxes, box)
    masks = [folder / row["mask"]] if row.get("mask", "") else []
    union = tuple(dict.fromkeys([*sample.masks, *masks]))
    return replace(sample, boxes=boxes, masks=union), [problem] if problem else []


def _one_label(
    texts: Mapping[str, str], name: str, names: Sequence[str] | None, classes: int
) -> tuple[int | None, list[Problem]]:
    """The class of a picture, if its rows agree on one; they may call it by different names."""
    found = [label_of(text, name, names, classes) for text in texts]
    problems = [problem for _, problem in found if problem is not None]
    labels = {label for label, _ in found}
    if len(labels) > 1:
        detail = f"{'; '.join(texts.values())}: the picture has no label"
        return None, [*problems, Problem(name, "conflicting labels", detail)]
    return labels.pop(), problems


def _rows(file: Path) -> list[tuple[int, Mapping[str, str]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error
    reader = csv.DictReader(text.splitlines())
    fields = [field.strip().lower() for field in reader.fieldnames or ()]
    if "path" not in fields:
        given = ", ".join(fields) or "none"
        raise InputError(f"{file} has no column 'path'; its columns are {given}")
    reader.fieldnames = fields
    return [
        (reader.line_num, {k: (v or "").strip() for k, v in row.items() if isinstance(k, str)})
        for row in reader
    ]


_CORNERS = ("x0", "y0", "x1", "y1")


def _box(row: Mapping[str, str], name: str, line: int) -> tuple[Box | None, Problem | None]:
    given = [row.get(key, "") for key in _CORNERS]
    if not any(given):
        return None, None
    frame = [row.get(key, "") for key in ("width", "height")]
    detail = f"line {line}: {', '.join(given + frame)}"
    if any(frame) and not all(frame):
        return None, Problem(name, "width without height, or height without width", detail)
    try:
        x0, y0, x1, y1 = map(float, given)
        size = (float(frame[0]), float(frame[1])) if any(frame) else None
    except ValueError:
        return None, Problem(name, "box is no numbers", detail)
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None, Problem(name, "box is not finite", detail)
    if size is not None and not all(0 < side < math.inf for side in size):
        return None, Problem(name, "box on a picture without a size", detail)
    return Box((x0, y0, x1, y1), size), None
