"""Properties of a picture and of its file, whatever a model makes of them.

What relevance maps cannot show, because it lies everywhere (blur, compression, a tint), is seen
here, as is what a crop hides from the model (frames, the shape of the picture).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimlrp.audit.gathering.jpeg import chroma_share, quality
from vimlrp.photos import Photo, read_photo

__all__ = ["NAMES", "describe", "measure"]

_GREATEST_SIDE = 1024  # of what is measured; larger pictures are cut out or made smaller


@dataclass(frozen=True, eq=False)
class _Views:
    """A photo as the measurements take it.

    Args:
        photo: Itself.
        pixels: At most `_GREATEST_SIDE` wide and high, made smaller, (h, w, 3) uint8.
        grey: The luma of `pixels`, (h, w) float32 within 0 and 255.
        detail: The luma of the middle at full resolution, (h, w) float32.
    """

    photo: Photo
    pixels: NDArray[np.uint8]
    grey: NDArray[np.float32]
    detail: NDArray[np.float32]

    @classmethod
    def of(cls, photo: Photo) -> "_Views":
        pixels = _smaller(photo.pixels)
        return cls(photo, pixels, _luma(pixels), _luma(_middle(photo.pixels)))


def measure(path: str | Path) -> NDArray[np.float32]:
    """Measure a picture and its file.

    Args:
        path: Of the file.

    Returns:
        A number for each of `NAMES`, (S,); NaN where the file has none, as a PNG has no JPEG
        quality.

    Raises:
        InputError: If the picture cannot be read.

    Example:
        >>> dict(zip(NAMES, measure("photo.jpg")))["jpeg_quality"]  # doctest: +SKIP
    """
    return describe(read_photo(path), Path(path))


def describe(photo: Photo, path: Path) -> NDArray[np.float32]:
    """Measure a picture that was read.

    Args:
        photo: The upright picture.
        path: Of its file.

    Returns:
        As `measure`, (S,).
    """
    values = {**_of_file(photo, path), **_of_picture(_Views.of(photo))}
    return np.array([values[name] for name in NAMES], dtype=np.float32)


def _of_file(photo: Photo, path: Path) -> dict[str, float]:
    height, width = photo.size
    with Image.open(path) as image:  # reads the header alone
        return {
            "width": float(width),
            "height": float(height),
            "aspect": width / height,
            "bytes_per_pixel": path.stat().st_size / (width * height),
            "jpeg_quality": quality(image),
            "chroma_share": chroma_share(image),
            "exif": float(len(image.getexif()) > 0),
        }


def _of_picture(views: _Views) -> dict[str, float]:
    groups: tuple[Callable[[_Views], dict[str, float]], ...] = (
        _frames,
        _colours,
        _sharpness,
        _lines,
    )
    return {name: value for group in groups for name, value in group(views).items()}


def _smaller(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _GREATEST_SIDE / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _middle(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    cuts = [max(0, side - _GREATEST_SIDE) // 2 for side in pixels.shape[:2]]
    rows, columns = (slice(cut, cut + _GREATEST_SIDE) for cut in cuts)
    return np.ascontiguousarray(pixels[rows, columns])


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.float32)


# How far the pixels of a frame may differ: JPEG leaves some ringing in a plain margin.
_FRAME_SPREAD = 6.0
_FRAME_DRIFT = 8.0


def _frames(views: _Views) -> dict[str, float]:
    """The share of the picture's height or width that a plain frame takes, on each side."""
    pixels = views.pixels
    turned = pixels.transpose(1, 0, 2)
    sides = {"top": pixels, "bottom": pixels[::-1], "left": turned, "right": turned[::-1]}
    return {f"frame_{side}": _frame(lines) for side, lines in sides.items()}


def _frame(lines: NDArray[np.uint8]) -> float:
    """The share of lines, (n, m, 3), from the first on that are plain and of one colour."""
    means = lines.mean(1, dtype=np.float32)  # (n, 3)
    plain = lines.std(1, dtype=np.float32).max(1) <= _FRAME_SPREAD
    alike = np.abs(means - means[0]).max(1) <= _FRAME_DRIFT
    inside = ~(plain & alike)
    return float(inside.argmax() if inside.any() else len(lines)) / len(lines)


def _colours(views: _Views) -> dict[str, float]:
    pixels = views.pixels
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    spread = pixels.max(2).astype(np.int16) - pixels.min(2)
    brightest = np.maximum(pixels.max(2), 1)
    return {
        # Compression leaves a little colour at single pixels of a grey picture.
        "grey": float(np.percentile(spread, 99) <= 6),
        "brightness": float(views.grey.mean()) / 255,
        "contrast": float(views.grey.std()) / 255,
        "saturation": float((spread / brightest).mean()),
        "tint_a": float(lab[..., 1].mean()),
        "tint_b": float(lab[..., 2].mean()),
        "black": float((views.grey <= 8).mean()),
        "white": float((views.grey >= 247).mean()),
    }


def _sharpness(views: _Views) -> dict[str, float]:
    laplacian = np.asarray(cv2.Laplacian(views.detail, cv2.CV_32F))
    return {
        "sharpness": float(np.log10(1 + laplacian.var())),
        "fine_detail": _fine_detail(views.detail),
        "blockiness": _blockiness(views.detail),
    }


def _fine_detail(grey: NDArray[np.float32]) -> float:
    """The share of the spectrum's energy beyond a quarter of the sampling rate."""
    side = min(256, *grey.shape)
    top, left = ((length - side) // 2 for length in grey.shape)
    window = np.hanning(side + 2)[1:-1]
    cut = grey[top : top + side, left : left + side]
    energy = np.abs(np.fft.fft2((cut - cut.mean()) * np.outer(window, window))) ** 2
    rate = np.abs(np.fft.fftfreq(side))
    fine = np.maximum.outer(rate, rate) > 0.25
    total = float(energy.sum())
    return float(energy[fine].sum()) / total if total > 0 else 0.0


_BLOCK = 8


def _blockiness(grey: NDArray[np.float32]) -> float:
    """How much steeper the picture is at the seams of a grid of 8 pixels than between them.

    The logarithm of a ratio, 0 without a grid. The grid may begin anywhere: a crop moves it, and
    a picture that was compressed, cropped and compressed again has two.
    """
    ratios = [_seams(lines) for lines in (grey, grey.T)]
    return float(np.mean(ratios))


def _seams(lines: NDArray[np.float32]) -> float:
    """Of the seams across the second dimension, (n, m)."""
    steps = np.abs(np.diff(lines, axis=1)).mean(0)
    # A seam is a step greater than its neighbours: a smooth picture has seams too.
    if len(steps) < 3 * _BLOCK:
        return 0.0
    excess = np.maximum(steps[1:-1] - (steps[:-2] + steps[2:]) / 2, 0)
    phases = np.array([excess[start::_BLOCK].mean() for start in range(_BLOCK)])
    rest = float(np.median(phases))
    return float(np.log((phases.max() + 0.05) / (rest + 0.05)))


def _lines(views: _Views) -> dict[str, float]:
    edges = np.asarray(cv2.Canny(views.pixels, 100, 200)) > 0
    height, width = edges.shape
    high, wide = max(1, height // 5), max(1, width // 5)
    corners = {
        "top_left": edges[:high, :wide],
        "top_right": edges[:high, -wide:],
        "bottom_left": edges[-high:, :wide],
        "bottom_right": edges[-high:, -wide:],
    }
    return {
        "edges": float(edges.mean()),
        "text": _text(views.grey),
        **{f"edges_{corner}": float(cut.mean()) for corner, cut in corners.items()},
    }


def _text(grey: NDArray[np.float32]) -> float:
    """The share of the picture that looks like lines of letters.

    Strokes are what a morphological gradient shows; joined sideways, those of a line of letters
    give a box that is wider than high, not too high, and well filled.
    """
    eight_bits = grey.astype(np.uint8)
    strokes = cv2.morphologyEx(eight_bits, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    _, mask = cv2.threshold(strokes, 60, 255, cv2.THRESH_BINARY)
    reach = max(5, grey.shape[1] // 50) | 1
    joined = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((1, reach), np.uint8))
    _, _, boxes, _ = cv2.connectedComponentsWithStats(joined)
    width, height, area = (boxes[1:, column] for column in (2, 3, 4))
    like = (width >= 2.5 * height) & (height >= 5) & (height <= grey.shape[0] / 5)
    like &= area >= 0.5 * width * height
    return float((width * height)[like].sum()) / grey.size


NAMES: tuple[str, ...] = (
    *("width", "height", "aspect", "bytes_per_pixel", "jpeg_quality", "chroma_share", "exif"),
    *("frame_top", "frame_bottom", "frame_left", "frame_right"),
    *("grey", "brightness", "contrast", "saturation", "tint_a", "tint_b", "black", "white"),
    *("sharpness", "fine_detail", "blockiness"),
    *("edges", "text", "edges_top_left", "edges_top_right"),
    *("edges_bottom_left", "edges_bottom_right"),
)
"""What is measured, in this order.

- width, height: of the upright picture in pixels; aspect is their ratio.
- bytes_per_pixel: size of the file over the number of pixels.
- jpeg_quality: 1 to 100, the setting of libjpeg whose quantisation table is nearest.
- chroma_share: samples of a colour to those of brightness: 1, 1/2 or 1/4; both NaN but for JPEG.
- exif: 1 if the file holds such tags.
- frame_...: the share of height or width that a plain frame takes on that side.
- grey: 1 if there is no colour. brightness, contrast: mean and deviation of the luma, 0 to 1.
- saturation: mean of HSV's, 0 to 1. tint_a, tint_b: mean of CIELAB's a (red) and b (yellow).
- black, white: the share of pixels that are.
- sharpness: log10(1 + variance of the Laplacian). fine_detail: energy beyond a quarter of the
  sampling rate over all. blockiness: the seams of 8 x 8 blocks, 0 for none; all three in the middle
  of the picture, at its own resolution.
- edges: the share of pixels on an edge, of the whole and of a fifth of each side at the corners.
- text: the share of the picture that looks like lines of letters.
"""
