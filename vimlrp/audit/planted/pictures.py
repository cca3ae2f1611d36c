"""Pictures to plant on: drawn ones, or those of a user's folder of classes."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vimlrp.audit.planted.artifacts import Picture
from vimlrp.errors import InputError
from vimlrp.photos import find_photos, read_photo

__all__ = ["DrawnPictures", "FolderPictures", "Pictures"]


class Pictures(Protocol):
    """Pictures by class, of one size.

    Attributes:
        names: Of the classes.
        side: Height and width in pixels.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        ...

    @property
    def side(self) -> int:
        """Height and width in pixels."""
        ...

    def count(self, label: int) -> int | None:
        """How many pictures a class has; None for as many as wanted."""
        ...

    def picture(self, label: int, index: int) -> tuple[Picture, NDArray[np.bool_] | None]:
        """One picture of a class, (side, side, 3), and where its object is, if that is known."""
        ...


_HUES = {"red": 0, "green": 80, "blue": 150, "violet": 215}
"""In degrees of a circle, unevenly on purpose: neighbours are taken for each other."""

_SHAPES = ("disc", "square", "triangle", "cross", "ring", "star", "bar", "crescent")


@dataclass(frozen=True)
class DrawnPictures:
    """Coloured shapes, transparent, on correlated noise: a class is a shape in a hue.

    They are made hard on purpose, by what makes photographs hard: little contrast, hues that
    overlap, other things in the picture, and grain. Every label is right. A classifier that can do
    without an artifact ignores it.

    Args:
        classes: Up to 32.
        side: Height and width in pixels.
        seed: Each picture is drawn from this, its class and its index alone.
        contrast: Opacity of the shape, lower and upper end.
        hue_spread: Standard deviation of the hue of a class's shapes, in degrees; classes of one
            shape lie 65 degrees apart or more.
        clutter: Small shapes of any kind and hue behind that of the class, which tell nothing.
        grain: Standard deviation of the noise that neighbouring pixels do not share, in 0..255.
        two_poses: Classes with two legitimate kinds of pictures: small, light and upright on the
            left, or large, dark and turned on the right.
    """

    classes: int = 20
    side: int = 64
    seed: int = 0
    contrast: tuple[float, float] = (0.35, 0.75)
    hue_spread: float = 20.0
    clutter: int = 3
    grain: float = 10.0
    two_poses: frozenset[int] = field(default=frozenset())

    def __post_init__(self) -> None:
        most = len(_HUES) * len(_SHAPES)
        if not 2 <= self.classes <= most or self.side < 16:
            raise InputError(
                f"classes is {self.classes} and side {self.side}; give 2 to {most} classes, and a "
                "side of at least 16"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Hue and shape of each class."""
        return tuple(" ".join(_look(label)) for label in range(self.classes))

    def count(self, label: int) -> None:
        """As many as wanted."""

    def picture(self, label: int, index: int) -> tuple[Picture, NDArray[np.bool_]]:
        """Draw one picture of a class, (side, side, 3), and say where its object is."""
        rng = np.random.default_rng([self.seed, label, index])
        picture = _noise(self.side, rng)
        for _ in range(self.clutter):
            shape = _SHAPES[rng.integers(len(_SHAPES))]
            picture, _ = self._with_shape(picture, shape, rng.uniform(0, 360), _small(rng), rng)
        hue, shape = _look(label)
        pose = _pose(rng, index % 2 if label in self.two_poses else None)
        degrees = _HUES[hue] + rng.normal(0, self.hue_spread)
        picture, cover = self._with_shape(picture, shape, degrees, pose, rng)
        picture = picture + rng.normal(0, self.grain, picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8), cover > 0.5

    def _with_shape(
        self,
        picture: NDArray[np.float64],
        shape: str,
        hue: float,
        pose: "_Pose",
        rng: np.random.Generator,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A picture with one more shape over it, and how much of each pixel that covers."""
        cover = _cover(shape, pose, self.side)
        alpha = rng.uniform(*self.contrast) * cover[..., None]
        return picture + alpha * (_colour(hue, pose.lightness) - picture), cover


@dataclass(frozen=True)
class FolderPictures:
    """Pictures of a folder of folders by class, cut to squares and brought to one size.

    Args:
        folder: Holds a folder for each class.
        side: Height and width in pixels.
    """

    folder: Path
    side: int = 64

    @property
    def names(self) -> tuple[str, ...]:
        """Of the class folders, in alphabetical order."""
        return tuple(self._files)

    def count(self, label: int) -> int:
        """How many pictures a class has."""
        return len(self._files[self.names[label]])

    def picture(self, label: int, index: int) -> tuple[Picture, None]:
        """Read one picture of a class, (side, side, 3)."""
        pixels = read_photo(self._files[self.names[label]][index]).pixels
        height, width = pixels.shape[:2]
        short = min(height, width)
        top, left = (height - short) // 2, (width - short) // 2
        image = Image.fromarray(pixels[top : top + short, left : left + short])
        return np.array(image.resize((self.side, self.side), Image.Resampling.BICUBIC)), None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in find_photos([self.folder]):
            parts = path.relative_to(self.folder).parts
            if len(parts) > 1:
                files.setdefault(parts[0], []).append(path)
        if len(files) < 2:
            raise InputError(
                f"{self.folder} holds pictures of {len(files)} classes; give a folder with a "
                "folder for each of at least 2 classes"
            )
        return dict(sorted(files.items()))


@dataclass(frozen=True)
class _Pose:
    """Where and how a shape stands: lengths are shares of the side, the angle is in radians."""

    x: float
    y: float
    radius: float
    angle: float
    lightness: float


def _look(label: int) -> tuple[str, str]:
    return list(_HUES)[label % len(_HUES)], _SHAPES[label // len(_HUES)]


def _pose(rng: np.random.Generator, kind: int | None) -> _Pose:
    x, y = rng.uniform(0.3, 0.7, 2)
    radius, angle, light = rng.uniform(0.15, 0.3), rng.uniform(-0.35, 0.35), rng.uniform(0.35, 0.85)
    if kind == 0:
        return _Pose(x - 0.12, y, 0.17 + 0.2 * (radius - 0.17), angle, 0.75 + 0.2 * (light - 0.35))
    if kind == 1:
        return _Pose(x + 0.12, y, 0.27 + 0.2 * (radius - 0.17), angle + 0.8, 0.8 * light)
    return _Pose(x, y, radius, angle, light)


def _small(rng: np.random.Generator) -> _Pose:
    """Of a shape that belongs to no class, anywhere."""
    x, y = rng.uniform(0, 1, 2)
    radius, angle, light = rng.uniform(0.05, 0.1), rng.uniform(0, np.pi), rng.uniform(0.35, 0.85)
    return _Pose(x, y, radius, angle, light)


def _noise(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth correlated noise of three colours around grey, (side, side, 3)."""
    total = np.full((side, side, 3), rng.uniform(85, 170))
    for cells, strength in ((3, 30), (8, 18), (20, 11)):
        coarse = rng.normal(0, strength, (cells, cells, 3))
        total += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return total


def _colour(hue: float, lightness: float) -> NDArray[np.float64]:
    angles = np.deg2rad(hue - np.array([0, 120, 240]))
    return 255 * np.clip(lightness * (0.55 + 0.45 * np.cos(angles)) + 0.1, 0, 1)


_FINE = 4
"""Shapes are drawn this much larger and averaged, for smooth edges."""


def _cover(shape: str, pose: _Pose, side: int) -> NDArray[np.float64]:
    """How much of each pixel a shape covers, (side, side) in 0..1."""
    fine = side * _FINE
    canvas = np.zeros((fine, fine), np.float32)
    radius = pose.radius * fine
    centre = np.array([pose.x, pose.y]) * fine
    if shape in ("disc", "ring", "crescent"):
        _round(canvas, shape, centre, radius, pose.angle)
    else:
        points = _turned(_corners(shape), pose.angle) * radius + centre
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1.0)
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float64)


def _round(
    canvas: NDArray[np.float32],
    shape: str,
    centre: NDArray[np.float64],
    radius: float,
    angle: float,
) -> None:
    x, y = (int(value) for value in np.rint(centre))
    cv2.circle(canvas, (x, y), round(radius), 1.0, -1)
    if shape == "ring":
        cv2.circle(canvas, (x, y), round(0.55 * radius), 0.0, -1)
    if shape == "crescent":
        dx, dy = np.rint(_turned(np.array([[0.55, 0.0]]), angle)[0] * radius)
        cv2.circle(canvas, (x + int(dx), y + int(dy)), round(0.8 * radius), 0.0, -1)


def _turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _corners(shape: str) -> NDArray[np.float64]:
    """Of a shape within the unit circle, (n, 2)."""
    if shape == "bar":
        return np.array([[-1, -0.3], [1, -0.3], [1, 0.3], [-1, 0.3]])
    if shape == "cross":
        a = 0.33
        quarter = np.array([[a, -1], [a, -a], [1, -a]])
        return np.concatenate([_turned(quarter, i * np.pi / 2) for i in range(4)])
    count = {"triangle": 3, "square": 4, "star": 10}[shape]
    angles = 2 * np.pi * np.arange(count) / count + (np.pi / 4 if shape == "square" else np.pi / 6)
    radii = np.where(np.arange(count) % 2, 0.45, 1.0) if shape == "star" else np.ones(count)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
