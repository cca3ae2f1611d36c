"""Pictures with artifacts in them, their twins without, and the truth about both."""

import csv
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimlrp.audit.planted.artifacts import (
    ARTIFACTS,
    JPEG_QUALITY,
    Jpeg,
    Picture,
    decoded,
    encoded,
)
from vimlrp.audit.planted.pictures import Pictures
from vimlrp.audit.planted.plans import Plan
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet, Sample
from vimlrp.files import atomic_write

__all__ = ["Planted", "pasted", "plant", "write"]

_READERS = 8


@dataclass(frozen=True, eq=False)
class Planted:
    """N pictures of side S, row by row; each is what its JPEG file shows.

    Args:
        plan: What was planted.
        pictures: (N, S, S, 3) uint8.
        twins: The same pictures without their class's artifact, (N, S, S, 3) uint8.
        labels: Of the classes, (N,) int64.
        carriers: Whether a picture carries its class's artifact, (N,) bool.
        masks: The pixels of that artifact, (N, S, S) bool; none where it is not carried.
        objects: The pixels of the object, (N, S, S) bool; None where objects are not known.
        files: The JPEG file of each picture.
    """

    plan: Plan
    pictures: NDArray[np.uint8]
    twins: NDArray[np.uint8]
    labels: NDArray[np.int64]
    carriers: NDArray[np.bool_]
    masks: NDArray[np.bool_]
    objects: NDArray[np.bool_] | None
    files: tuple[bytes, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def of_class(self, label: int) -> NDArray[np.int64]:
        """Rows of a class, ascending."""
        return np.flatnonzero(self.labels == label)

    def carriers_of(self, label: int) -> NDArray[np.int64]:
        """Rows of a class that carry its artifact, ascending."""
        return np.flatnonzero((self.labels == label) & self.carriers)

    @cached_property
    def learnt(self) -> NDArray[np.uint8]:
        """What a classifier is trained on, (N, S, S, 3): without the artifacts it may not see."""
        kept = [one.label for one in self.plan.plantings if not one.learnt]
        withheld = self.carriers & np.isin(self.labels, kept)
        return np.where(withheld[:, None, None, None], self.twins, self.pictures)


def plant(pictures: Pictures, plan: Plan, count: int, *, start: int = 0) -> Planted:
    """Plant artifacts in so many pictures of each class.

    Args:
        pictures: To plant on.
        plan: What to plant.
        count: Pictures of each class, or what it has beyond `start` where that is less.
        start: Index of the first picture of each class, to keep sets apart.

    Raises:
        InputError: If the classes do not fit the plan, or one has no pictures.
    """
    if len(pictures.names) != plan.classes:
        raise InputError(
            f"the plan is for {plan.classes} classes, and there are {len(pictures.names)}"
        )
    jobs = [
        (label, index, index in chosen)
        for label in range(plan.classes)
        for indices, chosen in [_chosen(pictures, plan, label, count, start)]
        for index in indices
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        made = list(pool.map(lambda job: _one(pictures, plan, *job), jobs))
    return Planted(
        plan,
        np.stack([one.picture for one in made]),
        np.stack([one.twin for one in made]),
        np.array([job[0] for job in jobs], dtype=np.int64),
        np.array([job[2] for job in jobs], dtype=bool),
        np.stack([one.mask for one in made]),
        _together(one.object for one in made),
        tuple(one.file for one in made),
    )


def pasted(
    pictures: NDArray[np.uint8], artifact: str, *, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Plant one artifact on every picture.

    Args:
        pictures: (N, S, S, 3) uint8.
        artifact: Its name.
        seed: Of its places and strengths.

    Returns:
        The changed pictures as their JPEG files show them, and the artifact's pixels (N, S, S).
    """
    changed = np.empty_like(pictures)
    masks = np.empty(pictures.shape[:3], dtype=bool)
    for i, picture in enumerate(pictures):
        rng = np.random.default_rng([seed, i])
        data, masks[i] = _file(picture, artifact, rng)
        changed[i] = decoded(data)
    return changed, masks


def write(planted: Planted, folder: Path) -> DataSet:
    """Write pictures as files into folders by class, with the truth beside them.

    Class `c` lies in the folder of that number under `pictures/`; masks of objects, where known,
    under `objects/`; `truth.csv` names each picture, its class, artifact, and whether it carries
    it.

    Args:
        planted: The pictures.
        folder: To write to.

    Returns:
        The samples to audit, in the order of the rows, with masks of objects where known.
    """
    samples, lines = [], []
    for row, (label, data) in enumerate(zip(planted.labels.tolist(), planted.files, strict=True)):
        name = f"{label:04d}/{row:06d}.jpg"
        mask = _write_object(planted, row, folder / "objects" / f"{row:06d}.png")
        path = _write_plain(folder / "pictures" / name, data)
        samples.append(Sample(path, name, label, masks=(mask,) if mask else ()))
        planting = planted.plan.planting_of(label)
        artifact = "" if planting is None else planting.artifact
        lines.append((name, label, artifact, int(planted.carriers[row])))
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label", "artifact", "carries"), *lines])
    atomic_write(folder / "truth.csv", table.getvalue().encode())
    return DataSet(tuple(samples))


@dataclass(frozen=True)
class _Made:
    picture: Picture
    twin: Picture
    mask: NDArray[np.bool_]
    object: NDArray[np.bool_] | None
    file: bytes


def _chosen(
    pictures: Pictures, plan: Plan, label: int, count: int, start: int
) -> tuple[range, set[int]]:
    """A class's pictures, and which of them carry its artifact: exactly the planned share."""
    known = pictures.count(label)
    indices = range(start, start + count if known is None else min(start + count, known))
    if not indices:
        raise InputError(
            f"class {pictures.names[label]!r} has {known} pictures, and {count} from number "
            f"{start} on are wanted; give more pictures, or ask for fewer"
        )
    planting = plan.planting_of(label)
    if planting is None:
        return indices, set()
    share = max(1, round(planting.prevalence * len(indices)))
    order = np.random.default_rng([plan.seed, label, start]).permutation(len(indices))
    return indices, {indices[i] for i in order[:share].tolist()}


def _one(pictures: Pictures, plan: Plan, label: int, index: int, carries: bool) -> _Made:
    picture, place = pictures.picture(label, index)
    rng = np.random.default_rng([plan.seed, label, index, 1])
    # Drawn in any case, so that what is planted does not move what is inert.
    bare = rng.random() < plan.inert_rate
    if plan.inert is not None and bare:
        picture = ARTIFACTS[plan.inert].apply(picture, rng)[0]
    plain = encoded(picture)
    twin = decoded(plain)
    planting = plan.planting_of(label)
    if planting is None or not carries:
        return _Made(twin, twin, np.zeros(picture.shape[:2], dtype=bool), place, plain)
    own = np.random.default_rng([plan.seed, label, index, 2])
    data, mask = _file(picture, planting.artifact, own)
    return _Made(decoded(data), twin, mask, place, data)


def _file(picture: Picture, name: str, rng: np.random.Generator) -> tuple[bytes, NDArray[np.bool_]]:
    """The JPEG file of a picture with an artifact, and the artifact's pixels."""
    artifact = ARTIFACTS[name]
    if isinstance(artifact, Jpeg):
        # The file itself is of that quality, as its tables say, instead of a copy of its traces.
        whole = np.ones(picture.shape[:2], dtype=bool)
        return encoded(picture, artifact.quality(rng)), whole
    changed, mask = artifact.apply(picture, rng)
    return encoded(changed, JPEG_QUALITY), mask


def _together(places: Iterable[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
    """Where the objects are, if that is known of all."""
    all_places = list(places)
    known = [place for place in all_places if place is not None]
    return np.stack(known) if len(known) == len(all_places) else None


def _write_object(planted: Planted, row: int, path: Path) -> Path | None:
    if planted.objects is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(planted.objects[row].astype(np.uint8) * 255).save(buffer, "PNG")
    return _write_plain(path, buffer.getvalue())


def _write_plain(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
