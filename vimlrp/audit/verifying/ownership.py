"""Evidence on whether a cue belongs to the object."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.changes import grown
from vimlrp.audit.records import Candidate
from vimlrp.evaluation.data import Sample
from vimlrp.evaluation.regions import region_of
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Preprocessing

__all__ = ["by_nature", "note_on_lost_masks", "off_object", "without_objects"]

# How well a statistic must tell carriers from the rest for the cue to be that statistic.
_TELLS = 0.9
_FRAMES = ("frame_top", "frame_bottom", "frame_left", "frame_right")
_BAND = 0.1  # of the side, in which a frame lies
# Around a mask, as a share of the side: edges of the object belong to it.
_EDGE = 0.05
# A smaller share of a region off the object is a rim of it.
_LEFT = 0.05


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
        thing = _object(sample, preprocessing) if region.any() else None
        if thing is not None:
            shares.append(float((region & ~thing).sum() / region.sum()))
    return float(np.mean(shares)) if shares else None


def without_objects(
    samples: Sequence[Sample], regions: NDArray[np.bool_], preprocessing: Preprocessing
) -> NDArray[np.bool_]:
    """What of regions lies off the object and its edges.

    Masks alone say where an object is, pixel by pixel; a box also holds what is around it.

    Args:
        samples: With masks where known.
        regions: In the model's input, (n, H, W).
        preprocessing: Of the model.

    Returns:
        (n, H, W); nothing where no mask is known, or less than a twentieth of the region is left.
    """
    left = np.zeros_like(regions)
    for i, (sample, region) in enumerate(zip(samples, regions, strict=True)):
        thing = _object(sample, preprocessing) if sample.masks and region.any() else None
        if thing is not None:
            rest = region & ~grown(thing[None], _EDGE)[0]
            left[i] = rest if rest.sum() >= _LEFT * region.sum() else False
    return left


def note_on_lost_masks(samples: Sequence[Sample]) -> tuple[str, ...]:
    """A line for the reader where files of masks are gone since the audit began; else nothing."""
    lost = [mask for sample in samples for mask in sample.masks if not mask.is_file()]
    if not lost:
        return ()
    return (
        f"{len(lost)} masks of carriers are not there any more ({lost[0].name}, for example): "
        "whether the cue lies off the object is judged without them",
    )


def _object(sample: Sample, preprocessing: Preprocessing) -> NDArray[np.bool_] | None:
    """The pixels of a sample's object in the model's input; None where it is not known."""
    if not (sample.boxes or sample.masks):
        return None
    photo = read_photo(sample.path, sample.name)
    _, geometry = preprocessing(photo)
    thing, _ = region_of(sample, photo, geometry)
    return np.asarray(thing) if thing.any() else None


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
