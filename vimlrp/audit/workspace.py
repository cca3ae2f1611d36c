"""The folder of an audit: what is audited, and what its stages have computed so far."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vimlrp.ahead import read_ahead
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box, DataSet, Problem, Sample
from vimlrp.evaluation.parts import Part, Parts, joined
from vimlrp.evaluation.running import Progress
from vimlrp.files import sha256_of

__all__ = ["Workspace"]

_WHAT = "an audit"
_SAMPLES = "samples"

Read = TypeVar("Read")


@dataclass(frozen=True, eq=False)
class Workspace:
    """A folder with the settings, the samples and the parts of one audit.

    Args:
        parts: In the folder, each written whole. The chunks of a stage are called
            "index/00000" and so on; `settings` of it are all that the first stages depend on.
    """

    parts: Parts

    @classmethod
    def create(
        cls,
        folder: str | Path,
        data: DataSet,
        settings: Mapping[str, Any],
        *,
        class_names: Sequence[str],
        overwrite: bool = False,
    ) -> "Workspace":
        """Make a folder for an audit, or go on with the one that it holds.

        Args:
            folder: Is made where it is missing.
            data: What is audited.
            settings: All that depends neither on the data nor on vimlrp.
            class_names: Of the model's outputs.
            overwrite: Remove an audit of other settings, all of it, instead of refusing.

        Raises:
            InputError: If the folder holds an audit of other settings or data, or something else,
                or cannot be written to.
        """
        listing = [_listed(sample) for sample in data.samples]
        settings = {
            **settings,
            "vimlrp": version("vimlrp"),
            "class_names": list(class_names),
            "samples": len(listing),
            "data_sha256": _digest(listing),
        }
        parts = Parts(folder, settings, what=_WHAT, overwrite=overwrite)
        # Written anew each time: the data may have moved.
        facts = {"samples": [_kept(sample) for sample in data.samples]}
        parts[_SAMPLES] = Part({}, data.problems, facts)
        return cls(parts)

    @classmethod
    def existing(cls, folder: str | Path) -> "Workspace":
        """The audit that a folder holds.

        Args:
            folder: Where one was begun.

        Raises:
            InputError: If none was.
        """
        return cls(Parts(folder, None, what=_WHAT))

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.parts.folder

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the first stages depend on."""
        return self.parts.settings

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Of the model's outputs."""
        return tuple(self.settings["class_names"])

    @cached_property
    def samples(self) -> tuple[Sample, ...]:
        """All that is audited, unreadable ones too."""
        return tuple(map(_sample, self._listing.facts["samples"]))

    @property
    def data_problems(self) -> tuple[Problem, ...]:
        """What was wrong with the data on reading the list of them."""
        return tuple(self._listing.problems)

    @cached_property
    def labelled(self) -> bool:
        """Whether any sample has a class; where none has, the predicted classes are audited."""
        return any(sample.label is not None for sample in self.samples)

    @cached_property
    def _listing(self) -> Part:
        return self.parts[_SAMPLES]

    def run(
        self,
        stage: str,
        rows: NDArray[np.int64],
        size: int,
        read: Callable[[NDArray[np.int64]], Read],
        compute: Callable[[Read], Part],
        progress: Progress | None = None,
    ) -> None:
        """Compute the chunks of a stage that are missing.

        Args:
            stage: Its name.
            rows: Indices of the samples that it looks at, (n,).
            size: Samples in a chunk.
            read: Gives what `compute` needs of a chunk's rows; reads one chunk ahead.
            compute: Gives the chunk's part; its array `row` are the indices of the samples that
                could be used.
            progress: Is told how many samples are done, how many there are, and the stage.

        Raises:
            InputError: If a part cannot be written.
        """
        tell = progress or (lambda *_: None)
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        names = [_chunk(stage, i) for i in range(len(chunks))]
        missing = [i for i, name in enumerate(names) if name not in self.parts]
        done = len(rows) - sum(len(chunks[i]) for i in missing)
        reads = read_ahead(read, (chunks[i] for i in missing))
        tell(done, len(rows), stage)
        for i, content in zip(missing, reads, strict=True):
            self.parts[names[i]] = compute(content)
            done += len(chunks[i])
            tell(done, len(rows), stage)

    def joined(self, stage: str, rows: int, size: int) -> Part:
        """All chunks of a stage as one.

        Args:
            stage: Its name.
            rows: How many samples it looks at.
            size: Samples in a chunk.

        Raises:
            InputError: If the stage is not finished, or a part is damaged.
        """
        names = [_chunk(stage, i) for i in range(-(-rows // size))]
        lacking = [name for name in names if name not in self.parts]
        if lacking:
            raise InputError(
                f"{self.folder} lacks {len(lacking)} of {len(names)} chunks of the stage {stage!r}:"
                " run the audit again, and it goes on from there"
            )
        if not names:
            raise InputError(f"no sample is left for the stage {stage!r}")
        return joined([self.parts[name] for name in names])

    def finished(self, stage: str) -> Iterator[Part]:
        """The chunks of a stage that there are, in order.

        Args:
            stage: Its name.
        """
        for path in sorted((self.folder / "parts" / stage).glob("*.npz")):
            yield self.parts[f"{stage}/{path.stem}"]


def _chunk(stage: str, i: int) -> str:
    return f"{stage}/{i:05d}"


def _listed(sample: Sample) -> list[Any]:
    """What tells a sample from another, without where it lies and without reading it."""
    try:
        size = sample.path.stat().st_size
    except OSError:
        size = -1
    return [size, *_kept(sample)[1:]]


def _digest(listing: Sequence[Any]) -> str:
    return sha256_of(json.dumps(listing).encode())


def _kept(sample: Sample) -> list[Any]:
    boxes = [[list(box.corners), box.frame and list(box.frame)] for box in sample.boxes]
    masks = [str(mask.absolute()) for mask in sample.masks]
    return [str(sample.path.absolute()), sample.name, sample.label, boxes, masks]


def _sample(kept: Sequence[Any]) -> Sample:
    path, name, label, boxes, masks = kept
    return Sample(
        Path(path),
        name,
        label,
        tuple(Box(tuple(corners), frame and tuple(frame)) for corners, frame in boxes),
        tuple(Path(mask) for mask in masks),
    )
