"""Artifacts that can be planted on pictures, each with the pixels that it changed.

They follow what was found in photographs: corner texts, watermarks (ImageNet-W; Li et al., CVPR
2023), coloured patches, padded borders (Lapuschkin et al., Nature Communications, 2019), overlaid
textures, and properties of a whole picture: tint, blur, JPEG compression. Sizes are shares of the
picture's shorter side, so that pictures of any size can be taken.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vimlrp.errors import InputError

__all__ = [
    "ARTIFACTS",
    "JPEG_QUALITY",
    "Artifact",
    "Blur",
    "Border",
    "Jpeg",
    "Patch",
    "Picture",
    "Text",
    "Texture",
    "Tint",
    "Watermark",
    "artifact_named",
    "decoded",
    "encoded",
]

Picture = NDArray[np.uint8]
"""RGB, (H, W, 3)."""
Mask = NDArray[np.bool_]
"""(H, W)."""
Colour = tuple[int, int, int]

JPEG_QUALITY = 95
"""Of pictures without an artifact of compression."""

_SMALLEST = 16


class Artifact(ABC):
    """Something that can be planted on a picture.

    Attributes:
        local: Whether it lies somewhere in particular; if not, its mask is the whole picture.
    """

    local: ClassVar[bool] = True

    def apply(self, picture: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
        """Plant it.

        Args:
            picture: RGB, (H, W, 3) uint8, at least 16 pixels on each side; it is left as it is.
            rng: Draws place, angle and strength, from the same numbers the same ones.

        Returns:
            The changed picture, and the pixels that changed, (H, W) bool; all of them if the
            artifact is not local.

        Raises:
            InputError: If `picture` is something else.
        """
        _check(picture)
        planted = self._planted(picture, rng)
        if not self.local:
            return planted, np.ones(picture.shape[:2], dtype=bool)
        return planted, (planted != picture).any(axis=-1)

    @abstractmethod
    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture: ...


@dataclass(frozen=True)
class Text(Artifact):
    """A line of text in one of the four corners, slightly turned, partly transparent.

    Args:
        text: What it says, in the font that Pillow carries.
        height: Of the font, as a share of the picture's shorter side.
        opacity: Lower and upper end.
        angle: Greatest, in degrees, either way.
        colour: RGB.
    """

    text: str = "photo"
    height: float = 0.2
    opacity: tuple[float, float] = (0.5, 0.9)
    angle: float = 3.0
    colour: Colour = (255, 255, 255)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        glyphs = _written(self.text, self._size(picture), rng.uniform(-self.angle, self.angle))
        corner = int(rng.integers(4))
        top, left = _in_corner(picture, glyphs, corner)
        return _over(picture, glyphs * rng.uniform(*self.opacity), top, left, self.colour)

    def _size(self, picture: Picture) -> int:
        return max(6, round(self.height * min(picture.shape[:2])))


@dataclass(frozen=True)
class Watermark(Artifact):
    """A large transparent text from the left edge at 0.4 of the height, as ImageNet-W has it.

    Args:
        text: What it says, in the font that Pillow carries.
        height: Of the font, as a share of the picture's shorter side.
        opacity: Lower and upper end; there it is 0.5.
        colour: RGB.
    """

    text: str = "STOCK"
    height: float = 0.25
    opacity: tuple[float, float] = (0.45, 0.55)
    colour: Colour = (255, 255, 255)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        height, width = picture.shape[:2]
        glyphs = _written(self.text, max(6, round(self.height * min(height, width))), 0.0)
        top, left = round(0.4 * height), round(0.01 * width)
        return _over(picture, glyphs * rng.uniform(*self.opacity), top, left, self.colour)


@dataclass(frozen=True)
class Patch(Artifact):
    """A coloured square in one of the four corners.

    Args:
        area: Share of the picture.
        colour: RGB.
    """

    area: float = 0.02
    colour: Colour = (250, 40, 200)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        height, width = picture.shape[:2]
        side = max(2, round((self.area * height * width) ** 0.5))
        square = np.ones((side, side))
        top, left = _in_corner(picture, square, int(rng.integers(4)))
        return _over(picture, square, top, left, self.colour)


@dataclass(frozen=True)
class Border(Artifact):
    """A frame, or bars above and below as of a film, of one colour.

    Args:
        width: Least and greatest, as shares of the picture's shorter side.
        kind: "frame" or "letterbox".
        colour: RGB.
    """

    width: tuple[float, float] = (1 / 32, 1 / 16)
    kind: Literal["frame", "letterbox"] = "frame"
    colour: Colour = (0, 0, 0)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        short = min(picture.shape[:2])
        width = max(1, round(rng.uniform(*self.width) * short))
        planted = picture.copy()
        planted[:width] = planted[-width:] = self.colour
        if self.kind == "frame":
            planted[:, :width] = planted[:, -width:] = self.colour
        return planted


@dataclass(frozen=True)
class Texture(Artifact):
    """A disc of a transparent grating at a random place.

    Args:
        diameter: As a share of the picture's shorter side.
        period: Of the grating, as a share of the picture's shorter side.
        opacity: Of the grating.
        angle: Of the grating's wave, in degrees.
    """

    diameter: float = 0.35
    period: float = 1 / 16
    opacity: float = 0.5
    angle: float = 45.0

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        height, width = picture.shape[:2]
        short = min(height, width)
        radius = self.diameter * short / 2
        y, x = np.mgrid[:height, :width]
        cy, cx = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
        inside = np.hypot(y - cy, x - cx) <= radius
        along = x * np.cos(np.deg2rad(self.angle)) + y * np.sin(np.deg2rad(self.angle))
        bright = np.cos(2 * np.pi * along / (self.period * short)) > 0
        grating = np.where(bright, 255.0, 0.0)[..., None]
        blended = picture + self.opacity * inside[..., None] * (grating - picture)
        return _rounded(blended)


@dataclass(frozen=True)
class Tint(Artifact):
    """A cast of one colour over the whole picture.

    Args:
        strength: Lower and upper end.
        colour: RGB.
    """

    local: ClassVar[bool] = False
    strength: tuple[float, float] = (0.15, 0.3)
    colour: Colour = (255, 170, 60)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        strength = rng.uniform(*self.strength)
        return _rounded(picture + strength * (np.array(self.colour) - picture.astype(np.float64)))


@dataclass(frozen=True)
class Blur(Artifact):
    """The whole picture out of focus.

    Args:
        sigma: Lower and upper end of the Gaussian's, as shares of the picture's shorter side.
    """

    local: ClassVar[bool] = False
    sigma: tuple[float, float] = (0.015, 0.025)

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        sigma = rng.uniform(*self.sigma) * min(picture.shape[:2])
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


@dataclass(frozen=True)
class Jpeg(Artifact):
    """The traces of strong compression.

    Args:
        qualities: One of them is drawn for each picture; others have JPEG_QUALITY.
    """

    local: ClassVar[bool] = False
    qualities: tuple[int, ...] = (10, 20, 40)

    def quality(self, rng: np.random.Generator) -> int:
        """Draw the quality of one picture, as `apply` does."""
        return int(rng.choice(self.qualities))

    def _planted(self, picture: Picture, rng: np.random.Generator) -> Picture:
        return decoded(encoded(picture, self.quality(rng)))


ARTIFACTS: Mapping[str, Artifact] = MappingProxyType(
    {
        "text": Text(),
        "watermark": Watermark(),
        "patch": Patch(),
        "border": Border(),
        "texture": Texture(),
        "tint": Tint(),
        "blur": Blur(),
        "jpeg": Jpeg(),
    }
)
"""The artifacts of the benchmark, by name."""


def artifact_named(name: str) -> Artifact:
    """The benchmark's artifact of this name.

    Raises:
        InputError: If there is none, naming those there are.
    """
    if name not in ARTIFACTS:
        raise InputError(f"there is no artifact {name!r}; give one of {', '.join(ARTIFACTS)}")
    return ARTIFACTS[name]


def encoded(picture: Picture, quality: int = JPEG_QUALITY) -> bytes:
    """A picture, (H, W, 3), as a JPEG file of this quality."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decoded(data: bytes) -> Picture:
    """What a JPEG file shows, (H, W, 3)."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def _check(picture: Picture) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(
            f"the picture is {picture.dtype} of shape {picture.shape}; give RGB, (H, W, 3) uint8"
        )
    if min(picture.shape[:2]) < _SMALLEST:
        raise InputError(
            f"the picture is {picture.shape[1]} x {picture.shape[0]} pixels, too small to plant "
            f"on; give at least {_SMALLEST} x {_SMALLEST}"
        )


@cache
def _drawn(text: str, size: int) -> Image.Image:
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, fill=255, font=font)
    return image


def _written(text: str, size: int, angle: float) -> NDArray[np.float64]:
    """How much of each pixel a text covers, (h, w) in 0..1."""
    image = _drawn(text, size)
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return np.asarray(image, dtype=np.float64) / 255


def _in_corner(picture: Picture, shape: NDArray[np.float64], corner: int) -> tuple[int, int]:
    """Top and left of a shape in one of the four corners, a little off the edges."""
    height, width = picture.shape[:2]
    margin = round(min(height, width) / 32)
    top = margin if corner < 2 else height - margin - shape.shape[0]
    left = margin if corner % 2 == 0 else width - margin - shape.shape[1]
    return max(0, top), max(0, left)


def _over(
    picture: Picture, alpha: NDArray[np.float64], top: int, left: int, colour: Colour
) -> Picture:
    """Blend a colour over a picture; what reaches beyond the edges is cut off."""
    planted = picture.copy()
    place = planted[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    share = alpha[: place.shape[0], : place.shape[1], None]
    place[:] = _rounded(place + share * (np.array(colour) - place.astype(np.float64)))
    return planted


def _rounded(values: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
