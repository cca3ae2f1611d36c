"""Small pictures for a report: what the model saw, its relevance and a cue's region over it."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem, Sample
from vimlrp.heatmaps import Picture, colourise, overlay
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Geometry, Preprocessing, denormalise

__all__ = [
    "Darkroom",
    "heat",
    "map_picture",
    "mean_crop",
    "mean_picture",
    "outlined",
    "palette",
    "shrunk",
    "uri",
]

_QUALITY = 72  # of WebP: 3 to 5 kB for a photo of 128 pixels
_OUTLINE = (255, 214, 10)
_MARGIN = 0.15  # around a region, as a share of its longer side, so that its edge shows


class Darkroom:
    """Makes pictures of samples as the model saw them, and remembers what could not be read.

    Args:
        preprocessing: The model's, whose crop the maps and regions refer to.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self._failed: dict[str, Problem] = {}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Samples that could not be shown, and why."""
        return tuple(self._failed.values())

    def develop(self, sample: Sample) -> Picture | None:
        """The model's input as a picture, (H, W, 3) in RGB, or None if the file cannot be read."""
        try:
            x, _ = self._preprocessing(read_photo(sample.path))
        except InputError as error:
            self._failed[sample.name] = Problem(sample.name, "cannot be shown", str(error))
            return None
        return denormalise(x, self._preprocessing.mean, self._preprocessing.std)


def shrunk(picture: Picture, side: int) -> Picture:
    """Make a picture smaller, never larger, so that its longer side is at most `side` pixels."""
    height, width = picture.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return resized.astype(np.uint8, copy=False)


def heat(picture: Picture, relevance: NDArray[np.floating], limit: float) -> Picture:
    """Lay a kept map over a picture of the same crop, cells mixed bilinearly.

    Args:
        picture: (H, W, 3) in RGB.
        relevance: (16, 16), signed.
        limit: The |relevance| in full colour.
    """
    whole = Geometry.whole(*picture.shape[:2])
    return overlay(picture, relevance.astype(np.float32), whole, limit=limit)


def map_picture(relevance: NDArray[np.floating], limit: float, side: int) -> Picture:
    """A map alone, enlarged bilinearly to `side` pixels, (side, side, 3) in RGB."""
    values = np.clip(relevance.astype(np.float32), -limit, limit)
    large = cv2.resize(values, (side, side), interpolation=cv2.INTER_LINEAR)
    return colourise(large.astype(np.float32, copy=False), limit)


def outlined(picture: Picture, region: NDArray[np.bool_]) -> Picture:
    """Show a region: the rest of the picture is dark, and a line runs around it.

    Args:
        picture: (H, W, 3) in RGB.
        region: (S, S) of the model's input, which the picture shows at any size.
    """
    height, width = picture.shape[:2]
    inside = _resized(region, (height, width))
    rim = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~inside
    shown = np.where(inside[..., None], picture, (picture * 0.35).astype(np.uint8))
    return np.where(rim[..., None], np.array(_OUTLINE, np.uint8), shown).astype(np.uint8)


def mean_picture(pictures: Sequence[Picture]) -> Picture:
    """The mean of pictures of one size, (H, W, 3)."""
    total = np.zeros(pictures[0].shape, dtype=np.float64)
    for picture in pictures:
        total += picture
    return np.rint(total / len(pictures)).astype(np.uint8)


def mean_crop(
    pictures: Sequence[Picture], regions: Sequence[NDArray[np.bool_]], side: int
) -> Picture | None:
    """The mean of what lies in the regions, each brought to a square of `side` pixels.

    Every region is cut out as the square around it, with a margin, so that the cue comes to lie
    at the same place and its shape stays.

    Returns:
        (side, side, 3), or None where every region is empty.
    """
    crops = [
        _square(picture, region, side)
        for picture, region in zip(pictures, regions, strict=True)
        if region.any()
    ]
    return mean_picture(crops) if crops else None


def palette() -> list[str]:
    """Colours from the strongest relevance against a class to the strongest for it, as CSS."""
    colours = colourise(np.linspace(-1, 1, 9, dtype=np.float32)[None])[0]
    return [f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist()]


def uri(picture: Picture) -> str:
    """A picture as the address of itself, in WebP."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _resized(region: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    share = cv2.resize(region.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    return share >= 0.5 if (share >= 0.5).any() else share > 0


def _square(picture: Picture, region: NDArray[np.bool_], side: int) -> Picture:
    height, width = picture.shape[:2]
    scale = np.array([height, width]) / region.shape
    rows, columns = np.nonzero(region)
    low = np.array([rows.min(), columns.min()]) * scale
    high = np.array([rows.max() + 1, columns.max() + 1]) * scale
    half = (high - low).max() * (0.5 + _MARGIN)
    centre = (low + high) / 2
    # From a pixel of the square to one of the picture, both counted from their centres.
    step = 2 * half / side
    start = centre - half + step / 2 - 0.5
    to_picture = np.array([[step, 0, start[1]], [0, step, start[0]]])
    crop = cv2.warpAffine(
        picture,
        to_picture,
        (side, side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop.astype(np.uint8, copy=False)
