"""Changes of whole pictures that give them a cue which lies nowhere in particular."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.audit.changes import blurred, jpeg, recoloured
from vimlrp.audit.records import Candidate, Evidence
from vimlrp.audit.watching import Change, Watched
from vimlrp.photos import read_photo

__all__ = ["Imitation", "imitate"]

_QUALITIES = (10, 15, 25, 40, 60)
_SIGMAS = (0.005, 0.01, 0.02, 0.04)  # of the shorter side
# A change imitates the cue if the direction's score goes this much of the way to the carriers'.
_REACHED = 0.4
_STILL = 1e-3  # the least spread of a channel to measure in


@dataclass(frozen=True, eq=False)
class Imitation:
    """A change of whole pictures.

    Args:
        name: In words.
        change: What it does to a photo.
        reached: How far it brings the direction's score of pictures without the cue towards that
            of carriers; 1 is all the way.
        of_file: Whether it is one of the file and not of what is in front of the camera.
        undo: The change in the other direction, where there is one.
    """

    name: str
    change: Change
    reached: float
    of_file: bool = False
    undo: Change | None = None


def imitate(
    watched: Watched,
    evidence: Evidence,
    candidate: Candidate,
    carriers: NDArray[np.int64],
    without: NDArray[np.int64],
) -> Imitation | None:
    """Find the change that makes pictures look like the carriers, as the layer sees them.

    Compression as JPEG (at the carriers' quality where their files tell it), blur, and a move of
    the colours are tried. Of those that raise the direction's score far enough, that one counts
    whose mean pooled activation comes nearest to the carriers'.

    Args:
        watched: The model and the evidence's layer.
        evidence: Of the audited pictures.
        candidate: Whose direction is taken.
        carriers: Samples with the cue, at least one.
        without: Samples of the class without it, at least one.

    Returns:
        The change that comes nearest; None where none goes even near.
    """
    along = torch.as_tensor(candidate.direction)
    shown, plain = (_pooled(watched, evidence, rows) for rows in (carriers, without))
    scale = plain.std(0, correction=0).clamp(min=_STILL)
    distance = float((shown.mean(0) - plain.mean(0)) @ along)
    if not distance > 0:
        return None
    found = []
    for name, change, of_file, undo in _changes(evidence, carriers, without):
        moved = _pooled(watched, evidence, without, change).mean(0)
        reached = float((moved - plain.mean(0)) @ along) / distance
        # Blur and compression may look alike along one direction; over all channels they do not.
        apart = float(((moved - shown.mean(0)) / scale).norm())
        if isfinite(apart) and reached >= _REACHED:
            found.append((apart, Imitation(name, change, reached, of_file, undo)))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _pooled(
    watched: Watched, evidence: Evidence, rows: NDArray[np.int64], change: Change | None = None
) -> Tensor:
    return watched.pooled(watched.load([evidence.samples[i] for i in rows], change))


def _changes(
    evidence: Evidence, carriers: NDArray[np.int64], without: NDArray[np.int64]
) -> Iterator[tuple[str, Change, bool, Change | None]]:
    for quality in dict.fromkeys((*_own_quality(evidence, carriers), *_QUALITIES)):
        yield f"JPEG compression at quality {quality}", jpeg(quality), True, None
    for sigma in _SIGMAS:
        yield f"a blur of {sigma:.1%} of the shorter side", blurred(sigma), False, None
    own, other = (_moments(evidence, rows) for rows in (without, carriers))
    yield "a move of the colours", recoloured(*other, *own), False, recoloured(*own, *other)


def _own_quality(evidence: Evidence, carriers: NDArray[np.int64]) -> tuple[int, ...]:
    if "jpeg_quality" not in evidence.statistic_names:
        return ()
    column = evidence.statistics[carriers, evidence.statistic_names.index("jpeg_quality")]
    known = column[np.isfinite(column)]
    return (int(np.clip(round(float(np.median(known))), 1, 100)),) if len(known) else ()


def _moments(evidence: Evidence, rows: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each colour within photos, averaged over a group."""
    photos = [read_photo(evidence.samples[i].path).pixels.reshape(-1, 3) for i in rows]
    mean = np.mean([pixels.mean(0) for pixels in photos], axis=0)
    std = np.mean([pixels.std(0) for pixels in photos], axis=0)
    return mean.tolist(), std.tolist()
