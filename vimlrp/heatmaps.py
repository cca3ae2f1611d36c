"""Draw signed relevance: zero-centred colours, on the photo where it belongs.

Red speaks for the class, blue against it, and zero is exactly `NEUTRAL`. Both arms pass through
the same lightness and chroma, so neither looks stronger than the other, and differ in hue along
red and blue, which the common kinds of colour blindness keep apart.

Drawing never changes a number: smoothing, limits and opacity only make the picture.
"""

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.errors import InputError
from vimlrp.files import atomic_write
from vimlrp.preprocessing import Geometry

__all__ = [
    "NEUTRAL",
    "PIXEL_SMOOTHING",
    "check_picture",
    "colourise",
    "overlay",
    "scale_of",
    "smooth",
    "write_png",
]

Picture = NDArray[np.uint8]
Relevance = NDArray[np.floating] | Tensor

PIXEL_SMOOTHING = 2.5
"""Sigma, in input pixels, of the blur that `overlay` gives to maps of single pixels by default."""

# Both arms of the colour table in CIELAB, from zero to the limit.
_STOPS = (0.0, 0.5, 1.0)
_LIGHTNESS = (97.0, 68.0, 40.0)
_CHROMA = (0.0, 38.0, 60.0)
_HUES_FOR, _HUES_AGAINST = (38.0, 36.0, 30.0), (270.0, 272.0, 287.0)  # degrees

_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


def _arm(hues: tuple[float, ...]) -> Picture:
    steps = np.linspace(0, 1, 128)
    lightness, chroma, hue = (np.interp(steps, _STOPS, y) for y in (_LIGHTNESS, _CHROMA, hues))
    angle = np.radians(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    rgb = cv2.cvtColor(lab[None].astype(np.float32), cv2.COLOR_Lab2RGB)[0]
    return np.asarray(np.rint(rgb * 255), dtype=np.uint8)  # (128, 3)


def _table() -> Picture:
    # An odd number of entries has a middle: entry 127 is zero, 0 and 254 are the limits.
    return np.concatenate([_arm(_HUES_AGAINST)[:0:-1], _arm(_HUES_FOR)])  # (255, 3)


_TABLE = _table()

NEUTRAL: tuple[int, int, int] = tuple(_TABLE[127].tolist())
"""The colour of zero: a grey close to white, so that the edge of a map shows on a white page."""


def scale_of(relevance: Relevance, percentile: float = 100.0) -> float:
    """The limit of a symmetric colour scale: the largest |relevance|, or a percentile of it.

    Give all maps of a batch at once, and the limit to each of their pictures, so that equal
    colours mean equal relevance.

    Args:
        relevance: One map or many, of any shape.
        percentile: Below 100, so many percent of the |relevance| are within the limit and the
            rest is drawn in the colour of the limit. 99 keeps a few extreme pixels from bleaching
            the picture.

    Raises:
        InputError: A value is NaN or infinite, there is none, or the percentile is impossible.
    """
    if not 0 < percentile <= 100:
        raise InputError(f"percentile is {percentile}; give one above 0 and up to 100.")
    return float(np.percentile(np.abs(_finite(relevance)), percentile))


def smooth(relevance: Relevance, sigma: float) -> NDArray[np.float32]:
    """Blur a map for display with a Gaussian; its sum stays.

    Args:
        relevance: # (H, W) or (B, H, W).
        sigma: In cells of the map; 0 leaves it as it is.

    Raises:
        InputError: Not such maps, NaN or infinite values, or a negative sigma.
    """
    values = _finite(relevance)
    if values.ndim not in (2, 3):
        raise InputError(f"The maps have shape {values.shape}; give (H, W) or (B, H, W).")
    if not 0 <= sigma < np.inf:
        raise InputError(f"The sigma of the smoothing is {sigma}; give 0 or more, in pixels.")
    if sigma == 0:
        return values
    if values.ndim == 3:
        return np.stack([_blur(image, (sigma, sigma)) for image in values])
    return _blur(values, (sigma, sigma))


def colourise(relevance: Relevance, limit: float | None = None) -> Picture:
    """Colour one map: blue against, `NEUTRAL` at zero, red for.

    Args:
        relevance: # (H, W).
        limit: The |relevance| drawn in full colour, `scale_of` the map by default. More is drawn
            the same.

    Returns:
        # (H, W, 3) in RGB, one pixel a cell.

    Raises:
        InputError: Not one map, NaN or infinite values, or an impossible limit.
    """
    values = _one_map(relevance)
    return _colours(_share(values, _limit(limit, values)))


def overlay(
    pixels: Picture,
    relevance: Relevance,
    geometry: Geometry,
    *,
    limit: float | None = None,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    opacity: float = 0.85,
    smoothing: float | None = None,
) -> Picture:
    """Lay a map over the photo that it explains, where it belongs and at the photo's size.

    The photo turns grey so that colour means relevance alone, and shows through less the stronger
    the relevance. What the preprocessing cropped away is darkened and hatched: the model did not
    see it.

    Example:
        >>> x, geometry = preprocessing(photo)
        >>> picture = overlay(photo.pixels, relevance.pixels[0], geometry)

    Args:
        pixels: The photo, # (H, W, 3) in RGB.
        relevance: # (h, w), a cell for each pixel or patch of the model's input.
        geometry: Where the input lies in the photo.
        limit: The |relevance| drawn in full colour, by default `scale_of` the map as drawn. For
            several maps on one scale, give `scale_of(smooth(maps, sigma))`.
        interpolation: Between cells; "nearest" shows the patches as they are.
        opacity: Of the colour at the limit, within 0 and 1.
        smoothing: Sigma, in pixels of the input, of a blur for display. By default
            `PIXEL_SMOOTHING` where the map has a cell for each pixel, which on its own looks like
            salt and pepper, and 0 for patches.

    Returns:
        # (H, W, 3) in RGB.

    Raises:
        InputError: The photo and the geometry disagree, the relevance is not one finite map, or
            an option is out of its range.
    """
    check_picture(pixels, geometry)
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity is {opacity}; give a share within 0 and 1.")
    shown = _smoothed(_one_map(relevance), geometry, smoothing)
    # Clipped to the limit only after cells are mixed, or the mixture would be wrong.
    share = _share(_placed(shown, geometry, interpolation), _limit(limit, shown))  # (H, W)
    base = _greyed(pixels)
    # Weak relevance is a thin layer of a plain colour, not of a pale one, which would veil the
    # photo; the power lifts it above the texture.
    tint = _colours((share + np.sign(share)) * np.float32(0.5))
    alpha = opacity * np.abs(share)[..., None] ** 0.7
    picture = np.rint(base * (1 - alpha) + tint * alpha).astype(np.uint8)
    return _mark_unseen(picture, pixels, geometry)


def write_png(path: str | Path, image: Picture) -> Path:
    """Write a picture, # (H, W, 3) in RGB or (H, W) grey, to a PNG file in one step.

    Raises:
        InputError: Not such a picture, or `path` is a folder.
    """
    if image.ndim == 3:
        check_picture(image)
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR).astype(np.uint8)
    elif image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise InputError(f"Cannot write {image.dtype} of shape {image.shape} as a picture.")
    _, data = cv2.imencode(".png", image)
    return atomic_write(path, data.tobytes())


def _finite(relevance: Relevance) -> NDArray[np.float32]:
    if isinstance(relevance, Tensor):
        relevance = relevance.detach().cpu().float().numpy()
    values = np.asarray(relevance, dtype=np.float32)
    if values.size == 0:
        raise InputError(f"The relevance has shape {values.shape}, without a value to draw.")
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise InputError(
            f"The relevance has {broken} values of {values.size} that are NaN or infinite, and "
            "no picture of it would be true; find out where they come from."
        )
    return values


def _one_map(relevance: Relevance) -> NDArray[np.float32]:
    values = _finite(relevance)
    if values.ndim != 2:
        raise InputError(f"The relevance has shape {values.shape}; give one map of shape (H, W).")
    return values


def _limit(limit: float | None, values: NDArray[np.float32]) -> float:
    if limit is None:
        return scale_of(values)
    if not 0 <= limit < np.inf:
        raise InputError(f"The limit is {limit}; give a finite |relevance| of 0 or more.")
    return float(limit)


def _share(values: NDArray[np.float32], limit: float) -> NDArray[np.float32]:
    # In double precision, where the smallest float32 too can be divided by; a limit of zero,
    # that of a map of zeros, becomes 1 and leaves it neutral.
    bounded = np.clip(values.astype(np.float64), -limit, limit)
    return np.asarray(bounded / (limit or 1.0), dtype=np.float32)


def _colours(share: NDArray[np.float32]) -> Picture:
    index = (np.rint(share * 127) + 127).astype(np.uint8)
    return _TABLE[index]


def _smoothed(
    values: NDArray[np.float32], geometry: Geometry, smoothing: float | None
) -> NDArray[np.float32]:
    if smoothing is None:
        smoothing = PIXEL_SMOOTHING if values.shape == geometry.input else 0.0
    if not 0 <= smoothing < np.inf:
        raise InputError(f"smoothing is {smoothing}; give a sigma of 0 or more, in input pixels.")
    if smoothing == 0:
        return values
    rows, columns = (smoothing * n / m for n, m in zip(values.shape, geometry.input, strict=True))
    return _blur(values, (rows, columns))


def _blur(values: NDArray[np.float32], sigmas: tuple[float, float]) -> NDArray[np.float32]:
    # Reflection at the border keeps the sum.
    blurred = cv2.GaussianBlur(
        values, (0, 0), sigmaX=sigmas[1], sigmaY=sigmas[0], borderType=cv2.BORDER_REFLECT
    )
    return blurred.astype(np.float32, copy=False)


def _placed(
    values: NDArray[np.float32], geometry: Geometry, interpolation: str
) -> NDArray[np.float32]:
    if interpolation not in _INTERPOLATIONS:
        raise InputError(f"interpolation is {interpolation!r}; give 'bilinear' or 'nearest'.")
    values = _not_finer_than_the_photo(values, geometry)
    left, top, right, bottom = geometry.box
    step_x, step_y = values.shape[1] / (right - left), values.shape[0] / (bottom - top)
    # From the centre of a pixel of the photo to cells, both counted from their centres.
    to_cell = np.array(
        [
            [step_x, 0, (0.5 - left) * step_x - 0.5],
            [0, step_y, (0.5 - top) * step_y - 0.5],
        ]
    )
    placed = cv2.warpAffine(
        values,
        to_cell,
        geometry.source[::-1],
        flags=_INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.where(geometry.seen(), placed, 0).astype(np.float32, copy=False)


def _not_finer_than_the_photo(
    values: NDArray[np.float32], geometry: Geometry
) -> NDArray[np.float32]:
    # Sampling would skip cells where several fall into one pixel of a small photo.
    left, top, right, bottom = geometry.box
    rows = min(values.shape[0], max(1, round(bottom - top)))
    columns = min(values.shape[1], max(1, round(right - left)))
    if (rows, columns) == values.shape:
        return values
    shrunk = cv2.resize(values, (columns, rows), interpolation=cv2.INTER_AREA)
    return shrunk.astype(np.float32, copy=False)


def _greyed(pixels: Picture) -> NDArray[np.float32]:
    # Lightened, so that both arms of the colour table stand out from the shadows too.
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return (255 - 0.7 * (255 - grey))[..., None]  # (H, W, 1)


def _mark_unseen(picture: Picture, pixels: Picture, geometry: Geometry) -> Picture:
    seen = geometry.seen()
    if seen.all():
        return picture
    unit = max(geometry.source) / 640  # of a line's width, so that photos of all sizes look alike
    y, x = np.ogrid[: seen.shape[0], : seen.shape[1]]
    distance = np.abs((x + y) % (14 * unit) - 7 * unit)
    stripe = np.clip(unit - distance, 0, 1)[..., None]
    dark = _greyed(pixels) * 0.6
    hatched = np.rint(dark + (200 - dark) * 0.35 * stripe).astype(np.uint8)
    marked = np.where(seen[..., None], picture, hatched)
    return _outlined(marked, seen, max(1, round(unit)))


def _outlined(picture: Picture, seen: NDArray[np.bool_], thickness: int) -> Picture:
    # The frame lies outside of what was seen, and never hides relevance.
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    frame = cv2.dilate(seen.astype(np.uint8), kernel).astype(bool) & ~seen
    return np.where(frame[..., None], np.uint8(255), picture)


def check_picture(pixels: Picture, geometry: Geometry | None = None) -> None:
    """Refuse what is no picture (H, W, 3) of uint8, or not the photo of a geometry.

    Args:
        pixels: The picture.
        geometry: Whose photo it should be.

    Raises:
        InputError: It is not.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InputError(
            f"The picture is {pixels.dtype} of shape {pixels.shape}; give uint8 of shape (H, W, 3)."
        )
    if geometry is not None and pixels.shape[:2] != geometry.source:
        raise InputError(
            f"The photo has shape {pixels.shape}, but the geometry belongs to one of "
            f"{geometry.source[0]} x {geometry.source[1]}; give both from the same photo."
        )
