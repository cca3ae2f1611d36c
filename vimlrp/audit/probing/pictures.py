"""Changes of a picture that a right classifier should hardly mind, each the same for all pictures.

They are made on what the model sees, after the crop and before the normalisation.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vimlrp.errors import InputError
from vimlrp.heatmaps import Picture

__all__ = ["PROBES", "Change", "Probe", "probes_named", "watermark"]

Change = Callable[[Picture, np.random.Generator], Picture]
"""From a picture, (H, W, 3) of uint8 in RGB, to a changed one; chance comes from the generator."""


@dataclass(frozen=True)
class Probe:
    """A change with a name.

    Args:
        name: Short, for tables.
        description: What it does, for readers.
        change: Does it.
    """

    name: str
    description: str
    change: Change


def watermark(text: str = "WATERMARK", font: str | Path | None = None) -> Probe:
    """A large half-transparent text across the picture, placed and sized as in ImageNet-W.

    White at an opacity of 0.5, its upper left corner at 0.01 of the width and 0.4 of the height,
    in a font of 1/6.22 of the side (Li et al., "A Whac-A-Mole Dilemma", CVPR 2023). ImageNet-W has
    Chinese characters, which Pillow's own font lacks: give a font that has them, with their text,
    to measure just that.

    Args:
        text: To write.
        font: A font file; None for Pillow's own.

    Raises:
        InputError: The font cannot be read.
    """
    if font is not None:
        _font(10, font)

    def change(picture: Picture, _: np.random.Generator) -> Picture:
        height, width = picture.shape[:2]
        size = max(1, round(min(height, width) / 6.22))
        return _written(picture, text, (0.01 * width, 0.4 * height), size, 0.5, font)

    return Probe("watermark", f"“{text}” across the picture, white, half transparent", change)


def _font(size: int, path: str | Path | None) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if path is None:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(str(path), size)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a font ({error}); give a font file") from error


def _written(
    picture: Picture,
    text: str,
    place: tuple[float, float],
    size: int,
    opacity: float,
    font: str | Path | None = None,
) -> Picture:
    ink = Image.new("L", picture.shape[1::-1], 0)
    ImageDraw.Draw(ink).text(place, text, fill=255, font=_font(size, font))
    share = np.asarray(ink, dtype=np.float64)[..., None] / 255 * opacity
    return _rounded(picture * (1 - share) + 255 * share)


def _corner_text(picture: Picture, _: np.random.Generator) -> Picture:
    height, width = picture.shape[:2]
    size = max(1, round(min(height, width) / 14))
    return _written(picture, "Photo 2004", (0.04 * width, 0.96 * height - 1.2 * size), size, 0.9)


def _border(picture: Picture, _: np.random.Generator) -> Picture:
    width = max(1, round(min(picture.shape[:2]) / 20))
    framed = np.zeros_like(picture)
    inside = (slice(width, -width), slice(width, -width))
    framed[inside] = picture[inside]
    return framed


def _letterbox(picture: Picture, _: np.random.Generator) -> Picture:
    bar = round(picture.shape[0] / 8)
    boxed = picture.copy()
    boxed[:bar] = boxed[picture.shape[0] - bar :] = 0
    return boxed


def _jpeg(quality: int) -> Change:
    def change(picture: Picture, _: np.random.Generator) -> Picture:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            return np.array(image.convert("RGB"))

    return change


def _tint(picture: Picture, _: np.random.Generator) -> Picture:
    return _rounded(0.8 * picture + 0.2 * np.array([255.0, 170.0, 60.0]))


def _blur(picture: Picture, _: np.random.Generator) -> Picture:
    sigma = min(picture.shape[:2]) / 112
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


def _shuffle(picture: Picture, rng: np.random.Generator) -> Picture:
    """Deal the 16 patches of a 4 x 4 grid anew; a rest at the lower and right edge stays."""
    height, width = (side // 4 for side in picture.shape[:2])
    grid = picture[: 4 * height, : 4 * width].reshape(4, height, 4, width, 3).swapaxes(1, 2)
    dealt = grid.reshape(16, height, width, 3)[rng.permutation(16)].reshape(grid.shape)
    shuffled = picture.copy()
    shuffled[: 4 * height, : 4 * width] = dealt.swapaxes(1, 2).reshape(4 * height, 4 * width, 3)
    return shuffled


def _grayscale(picture: Picture, _: np.random.Generator) -> Picture:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8, copy=False)


def _rounded(values: np.ndarray) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


PROBES: tuple[Probe, ...] = (
    watermark(),
    Probe("corner text", "“Photo 2004” in the lower left corner, white", _corner_text),
    Probe("border", "a black frame of a twentieth of the side", _border),
    Probe("letterbox", "black bars above and below, an eighth of the height each", _letterbox),
    *(Probe(f"jpeg {q}", f"compressed as JPEG of quality {q}", _jpeg(q)) for q in (40, 20, 10)),
    Probe("tint", "a fifth of orange over everything", _tint),
    Probe("blur", "a Gaussian blur of 1/112 of the side", _blur),
    Probe("shuffle", "the patches of a 4 x 4 grid in random order", _shuffle),
    Probe("grayscale", "without colour", _grayscale),
)
"""The probes that are made where none are named."""


def probes_named(names: Sequence[str]) -> tuple[Probe, ...]:
    """Those of `PROBES` that have these names.

    Raises:
        InputError: There is no such probe.
    """
    known = {probe.name: probe for probe in PROBES}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"there is no probe {', '.join(missing)}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)
