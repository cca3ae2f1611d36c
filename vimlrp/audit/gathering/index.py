"""The first stage: does every file decode, is it a copy of another, what are its properties."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.gathering.duplicates import THUMBNAIL, first_copies, perceptual_hash, thumbnail
from vimlrp.audit.gathering.statistics import NAMES, describe
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem, Sample
from vimlrp.evaluation.parts import Part
from vimlrp.evaluation.running import Progress
from vimlrp.files import sha256_of
from vimlrp.optional import optional
from vimlrp.photos import read_photo

__all__ = ["Index", "index", "read_index"]

_STAGE = "index"
_CHUNK = 256
_READERS = 8


@dataclass(frozen=True, eq=False)
class Index:
    """What is known of the files of N samples.

    Args:
        readable: Whether each decodes, (N,) bool.
        statistics: Of `vimlrp.audit.gathering.statistics.NAMES`, (N, S) float32; NaN for unreadable
            files.
        originals: Index of the first sample that shows the same picture, (N,) int64.
        problems: Files that cannot be read, and copies with another label.
    """

    readable: NDArray[np.bool_]
    statistics: NDArray[np.float32]
    originals: NDArray[np.int64]
    problems: tuple[Problem, ...]


def index(workspace: Workspace, progress: Progress | None = None) -> Index:
    """Read and measure what is not yet in the workspace.

    Args:
        workspace: Of the audit.
        progress: Is told how many samples are done.

    Raises:
        InputError: If a file has changed since it was indexed, or a part cannot be written.
        MissingDependencyError: If imagehash or scipy is missing.
    """
    for module, package in (("imagehash", "imagehash"), ("scipy.sparse", "scipy")):
        optional(module, package, "audit")
    _check_unchanged(workspace)
    rows = np.arange(len(workspace.samples))
    with ThreadPoolExecutor(_READERS) as pool:

        def read(chunk: NDArray[np.int64]) -> Part:
            looks = list(pool.map(_look, [workspace.samples[i] for i in chunk]))
            return _joined(chunk, looks)

        workspace.run(_STAGE, rows, _CHUNK, read, lambda part: part, progress)
    return read_index(workspace)


def read_index(workspace: Workspace) -> Index:
    """What the finished stage found.

    Args:
        workspace: Of the audit.

    Raises:
        InputError: If the stage is not finished.
    """
    part = workspace.joined(_STAGE, len(workspace.samples), _CHUNK)
    readable = part.arrays["readable"]
    originals = np.arange(len(readable))
    own = np.flatnonzero(readable)
    if len(own):
        prints = (part.arrays[key][own] for key in ("digest", "hash", "thumbnail"))
        originals[own] = own[first_copies(*prints)]
    problems = [*part.problems, *_contradictions(workspace.samples, originals)]
    return Index(readable, part.arrays["statistics"], originals, tuple(problems))


_Look = tuple[dict[str, NDArray[np.generic]], Problem | None]


def _look(sample: Sample) -> _Look:
    """What a chunk keeps of one sample."""
    kept = _unread()
    try:
        kept |= _state(sample)
        photo = read_photo(sample.path)
        kept |= {
            "statistics": describe(photo, sample.path),
            "hash": np.asarray(perceptual_hash(photo)),
            "thumbnail": thumbnail(photo),
            "readable": np.array(True),
        }
    except (InputError, OSError) as error:
        return kept, Problem(sample.name, "picture cannot be read", str(error))
    return kept, None


def _unread() -> dict[str, NDArray[np.generic]]:
    return {
        "statistics": np.full(len(NAMES), np.nan, np.float32),
        "hash": np.zeros((), np.uint64),
        "thumbnail": np.zeros((THUMBNAIL, THUMBNAIL, 3), np.uint8),
        "readable": np.array(False),
        "digest": np.zeros(32, np.uint8),
        "changed": np.array(-1, np.int64),
    }


def _state(sample: Sample) -> dict[str, NDArray[np.generic]]:
    digest = bytes.fromhex(sha256_of(sample.path))
    changed = sample.path.stat().st_mtime_ns
    return {"digest": np.frombuffer(digest, np.uint8), "changed": np.array(changed, np.int64)}


def _joined(rows: NDArray[np.int64], looks: Sequence[_Look]) -> Part:
    arrays = {key: np.stack([kept[key] for kept, _ in looks]) for key in looks[0][0]}
    return Part({"row": rows, **arrays}, [problem for _, problem in looks if problem is not None])


def _check_unchanged(workspace: Workspace) -> None:
    """Refuse parts of pictures that were replaced; sizes are among the workspace's settings."""
    for part in workspace.finished(_STAGE):
        known = (part.arrays[key] for key in ("row", "changed", "digest"))
        for row, changed, digest in zip(*known, strict=True):
            sample = workspace.samples[row]
            if not _is_same(sample, int(changed), digest):
                raise InputError(
                    f"{sample.name} is not the picture that it was when {workspace.folder} was "
                    "begun: put it back, or begin an audit in another folder"
                )


def _is_same(sample: Sample, changed: int, digest: NDArray[np.uint8]) -> bool:
    try:
        if sample.path.stat().st_mtime_ns == changed:
            return True
        return bytes.fromhex(sha256_of(sample.path)) == digest.tobytes()
    except (InputError, OSError):
        return changed == -1


def _contradictions(samples: Sequence[Sample], originals: NDArray[np.int64]) -> list[Problem]:
    """Copies whose label is not that of their original."""
    pairs = [
        (samples[i], samples[first]) for i, first in enumerate(originals.tolist()) if i != first
    ]
    return [
        Problem(copy.name, "copy with another label", f"it shows what {first.name} shows")
        for copy, first in pairs
        if copy.label is not None and first.label is not None and copy.label != first.label
    ]
