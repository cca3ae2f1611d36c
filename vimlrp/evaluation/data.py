"""Samples to evaluate on: a folder, a folder of classes, or a CSV file with boxes or masks.

A CSV file has a header and a row a picture, or a row a box. Columns: `path` (of the picture,
relative to the file), and where known `label` (index, name or WordNet id of its class), `x0`, `y0`,
`x1`, `y1` (a box in pixels of the picture, from its upper left corner), `width` and `height` (the
size of the picture that the box was drawn on, where it differs from the file's), and `mask` (path
of a picture whose opaque pixels other than black are the object). Further columns are left alone.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo

from vimlrp.errors import InputError, TargetError
from vimlrp.photos import find_photos
from vimlrp.targets import find_class

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
        mask: A picture of the object, or None.
    """

    path: Path
    name: str
    label: int | None = None
    boxes: tuple[Box, ...] = ()
    mask: Path | None = None


@dataclass(frozen=True)
class Problem:
    """What could not be used or measured.

    Args:
        sample: The name of the sample.
        kind: In a few words, to count by.
        detail: What was wrong with this one.
        method: Whose map it was, or empty where it is the sample itself.
    """

    sample: str
    kind: str
    detail: str
    method: str = ""


@dataclass(frozen=True)
class DataSet:
    """Samples in a fixed order, and what was wrong with them on the way."""

    samples: tuple[Sample, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def has_regions(self) -> bool:
        """Whether any sample has a box or a mask."""
        return any(sample.boxes or sample.mask for sample in self.samples)

    def evenly(self, count: int) -> "DataSet":
        """So many samples out of all, in equal distances, and their problems.

        Args:
            count: At most; all samples if there are fewer.
        """
        total = len(self.samples)
        if count >= total:
            return self
        samples = tuple(self.samples[i * total // count] for i in range(count))
        names = {sample.name for sample in samples}
        return DataSet(samples, tuple(p for p in self.problems if p.sample in names))


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
            label, problem = _label(relative.parts[0], name, names, classes)
        samples.append(Sample(file, name, label))
        problems += [problem] if problem else []
    return DataSet(tuple(samples), tuple(problems))


def _of_csv(file: Path, names: Sequence[str] | None, classes: int) -> DataSet:
    samples: dict[str, Sample] = {}
    problems: list[Problem] = []
    for line, row in _rows(file):
        name = row.get("path", "")
        if not name:
            problems.append(Problem(f"line {line}", "no path", f"{file.name}, line {line}"))
            continue
        if name not in samples:
            text = row.get("label", "")
            label, problem = _label(text, name, names, classes) if text else (None, None)
            mask = row.get("mask", "")
            place = file.parent / mask if mask else None
            samples[name] = Sample(file.parent / name, name, label, mask=place)
            problems += [problem] if problem else []
        box, problem = _box(row, name, line)
        if box is not None:
            samples[name] = replace(samples[name], boxes=(*samples[name].boxes, box))
        problems += [problem] if problem else []
    if not samples:
        raise InputError(f"{file} names no picture; give a row a picture, with its path")
    return DataSet(tuple(samples.values()), tuple(problems))


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


def _label(
    text: str, name: str, names: Sequence[str] | None, classes: int
) -> tuple[int | None, Problem | None]:
    index = _index(text, tuple(names) if names is not None else None, classes)
    if index is None:
        return None, Problem(name, "class missing from the model", text)
    return index, None


@cache
def _index(text: str, names: tuple[str, ...] | None, classes: int) -> int | None:
    if re.fullmatch(r"\d+", text):
        return int(text) if int(text) < classes else None
    for candidate in [text, *_synonyms(text)]:
        try:
            return find_class(candidate, names)
        except TargetError:
            continue
    return None


def _synonyms(text: str) -> list[str]:
    """The words of a WordNet id such as n01440764, as ImageNet has them."""
    if not re.fullmatch(r"n\d{8}", text):
        return []
    try:
        words: str = _imagenet().label_name_to_description(text)
    except KeyError:
        return []
    return [words, *(word.strip() for word in words.split(","))]


@cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo("imagenet-1k")
