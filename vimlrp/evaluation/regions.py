"""Boxes and masks in the geometry of the model's input."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box, Problem, Sample
from vimlrp.photos import Photo, read_photo
from vimlrp.preprocessing import Geometry

__all__ = ["region_of"]

# How far the aspects of a mask and its picture may lie apart, for one to be a resized other.
_ASPECT = 0.02


def region_of(
    sample: Sample, photo: Photo, geometry: Geometry
) -> tuple[NDArray[np.bool_], list[Problem]]:
    """Where the object of a sample lies in the model's input.

    An input pixel belongs to it if its centre does, in any of the boxes or masks.

    Args:
        sample: Says so.
        photo: Its picture.
        geometry: Which part of it the input shows.

    Returns:
        (H, W), with nothing in it where the sample has no usable object; and what was wrong.
    """
    problems: list[Problem] = []
    points = _centres(geometry)  # (H, W, 2)
    region = np.zeros(points.shape[:2], dtype=bool)
    for box in sample.boxes:
        corners, found = _in_photo(box, sample.name, photo)
        problems += found
        if corners is not None:
            low, high = np.array(corners[:2]), np.array(corners[2:])
            region |= ((points >= low) & (points < high)).all(axis=2)
    for file in sample.masks:
        mask, found = _mask(file, sample.name, photo)
        problems += found
        if mask is not None:
            region |= _look_up(mask, points, photo)
    usable = len(sample.boxes) + len(sample.masks) - sum(p.kind in _LOST for p in problems)
    if usable and not region.any():
        detail = "the model's crop shows nothing of it"
        problems.append(Problem(sample.name, "object outside the crop", detail))
    return region, problems


_FULL_MASK = "mask covers everything"
_OUTSIDE, _EMPTY_BOX, _EMPTY_MASK = "box outside the picture", "empty box", "empty mask"
_UNREADABLE, _MISFIT = "mask cannot be read", "mask of another shape"
_LOST = {_OUTSIDE, _EMPTY_BOX, _EMPTY_MASK, _UNREADABLE, _MISFIT}


def _centres(geometry: Geometry) -> NDArray[np.float64]:
    """The centres of the input's pixels in the photo, (H, W, 2) of x and y."""
    height, width = geometry.input
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return geometry.to_source(np.stack([x, y], axis=-1))


def _in_photo(
    box: Box, name: str, photo: Photo
) -> tuple[tuple[float, float, float, float] | None, list[Problem]]:
    """The corners in pixels of the photo, clipped to it."""
    height, width = photo.size
    frame = box.frame or (float(width), float(height))
    scale = (width / frame[0], height / frame[1]) * 2
    x0, y0, x1, y1 = (value * factor for value, factor in zip(box.corners, scale, strict=True))
    text = f"{box.corners} in {frame[0]:g} x {frame[1]:g}"
    if not (x1 > x0 and y1 > y0):
        return None, [Problem(name, _EMPTY_BOX, text)]
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (clipped[2] > clipped[0] and clipped[3] > clipped[1]):
        return None, [Problem(name, _OUTSIDE, text)]
    # A corner on the last pixel's far side is a common way to count, and no fault.
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    return clipped, [Problem(name, "box clipped", text)] if beyond > 1 else []


def _mask(file: Path, name: str, photo: Photo) -> tuple[NDArray[np.bool_] | None, list[Problem]]:
    """The object's pixels in a file, (h, w), if it fits the photo."""
    try:
        mask = _object_pixels(file)
    except InputError as error:
        return None, [Problem(name, _UNREADABLE, str(error))]
    aspects = [shape[1] / shape[0] for shape in (mask.shape, photo.size)]
    if abs(aspects[0] / aspects[1] - 1) > _ASPECT:
        sizes = " and ".join(f"{w} x {h}" for h, w in (mask.shape, photo.size))
        return None, [Problem(name, _MISFIT, f"{file.name} and the picture are {sizes}")]
    if not mask.any():
        return None, [Problem(name, _EMPTY_MASK, file.name)]
    return mask, [Problem(name, _FULL_MASK, file.name)] if mask.all() else []


def _object_pixels(path: Path) -> NDArray[np.bool_]:
    """Pixels that are neither black nor transparent, (h, w)."""
    pixels = read_photo(path).pixels  # says what is wrong with a file
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if image.mode[0] in "IF":  # in 8 bits the first of 65,535 objects would be black
            return np.asarray(upright) != 0
        if not image.has_transparency_data:
            return np.asarray(pixels.any(axis=2))
        colours = np.asarray(upright.convert("RGBA"))
    return np.asarray(colours[..., :3].any(axis=2) & (colours[..., 3] > 0))


def _look_up(
    mask: NDArray[np.bool_], points: NDArray[np.float64], photo: Photo
) -> NDArray[np.bool_]:
    """The mask's pixels at points of the photo; outside of it nothing is."""
    height, width = photo.size
    within = (points >= 0).all(axis=2) & (points < (width, height)).all(axis=2)
    row, column = (
        np.clip(index, 0, limit - 1)
        for index, limit in zip(_cells(mask, points, photo), mask.shape, strict=True)
    )
    return np.asarray(mask[row, column] & within)


def _cells(
    mask: NDArray[np.bool_], points: NDArray[np.float64], photo: Photo
) -> Iterator[NDArray[np.intp]]:
    for axis, limit, size in ((1, mask.shape[0], photo.size[0]), (0, mask.shape[1], photo.size[1])):
        yield np.floor(points[..., axis] * (limit / size)).astype(np.intp)
