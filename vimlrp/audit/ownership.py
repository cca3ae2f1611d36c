"""Evidence on whether a cue belongs to the object."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Candidate
from vimlrp.evaluation.data import Sample
from vimlrp.evaluation.regions import region_of
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Preprocessing

__all__ = ["by_nature", "off_object"]

# How well a statistic must tell carriers from the rest for the cue to be that statistic.
_TELLS = 0.9
_FRAMES = ("frame_top", "frame_bottom", "frame_left", "frame_right")
_BAND = 0.1  # of the side, in which a frame lies


def off_object(
    samples: Sequence[Sample], regions: NDArray[np.bool_], preprocessing: Preprocessing
) -> float | None:
    """Share of the regions' area off the object, by the samples' boxes or masks.

    Args:
        samples: With boxes or masks where known.
        regions: In the model's input, (n, H, W).
        preprocessing: Of the model.

    Returns:
        The mean over samples whose object is known and in the picture; None if there is none.
    """
    shares = []
    for sample, region in zip(samples, regions, strict=True):
        if not (sample.boxes or sample.masks) or not region.any():
            continue
        photo = read_photo(sample.path, sample.name)
        _, geometry = preprocessing(photo)
        thing, _ = region_of(sample, photo, geometry)
        if thing.any():
            shares.append(float((region & ~thing).sum() / region.sum()))
    return float(np.mean(shares)) if shares else None


def by_nature(candidate: Candidate) -> bool:
    """Whether the cue is a frame around the picture, which is part of no object.

    The statistics of plain frames must tell its carriers, and its regions lie along the edges.

    Args:
        candidate: With its regions.
    """
    tells = any(name in _FRAMES and area >= _TELLS for name, area in candidate.statistics)
    if not tells or not candidate.regions.any():
        return False
    height, width = candidate.regions.shape[1:]
    band = np.ones((height, width), dtype=bool)
    rows, columns = (max(1, round(_BAND * side)) for side in (height, width))
    band[rows:-rows, columns:-columns] = False
    inside = candidate.regions & band
    return bool(inside.sum() / candidate.regions.sum() >= 0.5)
