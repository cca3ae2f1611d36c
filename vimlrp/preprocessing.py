"""A model's own preprocessing, and which part of the photo its input shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.photos import Photo

__all__ = ["CropMode", "Geometry", "Preprocessing", "denormalise"]

CropMode = Literal["center", "squash", "border"]

_CROP_MODES = ("center", "squash", "border")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

# timm ships it without types.
_resolve_config: Callable[..., dict[str, Any]] = resolve_model_data_config

# A 1 x 4000 photo becomes 256 x 1024000 on its way through a crop_mode of "center". Above this
# many pixels the detour costs gigabytes, and the crop would show next to nothing of the photo.
_MAX_RESIZED_PIXELS = 2**27


@dataclass(frozen=True)
class Geometry:
    """Which rectangle of the photo the model's input shows.

    Points are (x, y) from the upper left corner, and a pixel covers a unit square: the centre of
    the first pixel is (0.5, 0.5), as everywhere in torchvision and Pillow.

    Attributes:
        source: Height and width of the photo.
        input: Height and width of the model's input.
        box: Left, top, right and bottom of the rectangle in pixels of the photo. It reaches
            outside the photo where the preprocessing pads.
    """

    source: tuple[int, int]
    input: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, height: int, width: int) -> "Geometry":
        """The geometry of an input that is the photo itself, such as a tensor given as it is."""
        return cls((height, width), (height, width), (0.0, 0.0, float(width), float(height)))

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the photo to one pixel of the input, along x and y."""
        left, top, right, bottom = self.box
        return (right - left) / self.input[1], (bottom - top) / self.input[0]

    def to_source(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Move points, # (..., 2) of x and y, from the input to the photo."""
        return np.asarray(points, dtype=np.float64) * self.scale + self.box[:2]

    def to_input(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Move points, # (..., 2) of x and y, from the photo to the input."""
        return (np.asarray(points, dtype=np.float64) - self.box[:2]) / self.scale

    def seen(self) -> NDArray[np.bool_]:
        """Which pixels of the photo, # (H, W), have their centre in the box."""
        left, top, right, bottom = self.box
        x = np.arange(self.source[1]) + 0.5
        y = np.arange(self.source[0]) + 0.5
        return ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < right))


@dataclass(frozen=True)
class Preprocessing:
    """What turns a photo into a model's input, as timm evaluates the model.

    Attributes:
        size: Height and width of the input.
        mean: Mean of each colour, within [0, 1].
        std: Standard deviation of each colour.
        interpolation: How the photo is resized, for example "bicubic".
        crop_pct: The share of the resized photo's edge that the crop keeps.
        crop_mode: "center" keeps the aspect and loses the sides, "squash" loses the aspect,
            "border" keeps all and pads.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("crop_mode", self.crop_mode, _CROP_MODES),
            ("interpolation", self.interpolation, _INTERPOLATIONS),
        ):
            if value not in accepted:
                raise InputError(f"{name} is {value!r}; give one of {', '.join(accepted)}.")
        if not self.crop_pct > 0:
            raise InputError(f"crop_pct is {self.crop_pct}; give a share above 0, mostly 0.8 to 1.")
        if len(self.mean) != 3 or len(self.std) != 3 or not min(self.std) > 0:
            raise InputError(
                f"mean is {self.mean} and std is {self.std}; give one number a colour, std above 0."
            )

    @classmethod
    def of(cls, model: nn.Module) -> "Preprocessing":
        """The preprocessing that a model was evaluated with, from its timm configuration.

        A model without one gets timm's defaults: 224 pixels, ImageNet's colours, bicubic, 0.875.

        Raises:
            UnsupportedModelError: The model does not take three colours.
        """
        config = _resolve_config(model)
        channels, height, width = config["input_size"]
        if channels != 3:
            raise UnsupportedModelError(
                f"{type(model).__name__} takes {channels} channels, and photos have 3; prepare "
                "its input yourself and give it as a tensor."
            )
        return cls(
            size=(height, width),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @cached_property
    def transform(self) -> Any:
        """The torchvision `Compose` that timm makes: resize, crop, to tensor, normalise."""
        return self._transform(self.interpolation)

    def __call__(self, photo: Photo) -> tuple[Tensor, Geometry]:
        """Prepare one photo.

        Example:
            >>> from vimlrp.photos import read_photo
            >>> photo = read_photo(np.zeros((448, 896), np.uint8))
            >>> x, geometry = Preprocessing(crop_pct=1.0)(photo)
            >>> x.shape, geometry.box
            (torch.Size([3, 224, 224]), (224.0, 0.0, 672.0, 448.0))

        Returns:
            The model's input, # (3, H, W) of float32, and which part of the photo it shows.

        Raises:
            InputError: The photo is so narrow that its short side would vanish, or its long side
                would grow out of bounds.
        """
        geometry = self._geometry(photo)
        x: Tensor = self.transform(Image.fromarray(photo.pixels))
        return x, geometry

    def _geometry(self, photo: Photo) -> Geometry:
        resized = _resized(self._resize_probe, photo)
        return Geometry(photo.size, self.size, _box(photo.size, resized, self.size))

    @cached_property
    def _resize_probe(self) -> Any:
        # Sizes do not depend on the interpolation, and not every one resizes tensors.
        return self._transform("bilinear").transforms[0]

    def _transform(self, interpolation: str) -> Any:
        return create_transform(
            input_size=(3, *self.size),
            is_training=False,
            mean=self.mean,
            std=self.std,
            interpolation=interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
        )


def denormalise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Turn a model's input back into pictures that can be shown.

    Args:
        x: Normalised inputs, # (3, H, W) or (B, 3, H, W).
        mean: The mean that was taken from each colour.
        std: The standard deviation that each colour was divided by.

    Returns:
        # (H, W, 3) or (B, H, W, 3) in RGB; values beyond black and white are clipped.

    Raises:
        InputError: Another shape, or a value that is NaN or infinite.
    """
    if x.ndim not in (3, 4) or x.shape[-3] != 3:
        raise InputError(
            f"The tensor has shape {tuple(x.shape)}; give one of shape (3, H, W) or (B, 3, H, W)."
        )
    values = x.detach().to("cpu", torch.float64).movedim(-3, -1)  # (..., H, W, 3)
    if not values.isfinite().all():
        raise InputError("The tensor holds NaN or infinite values; give a finite one.")
    colours = values * torch.tensor(std, dtype=values.dtype) + torch.tensor(mean)
    pixels: NDArray[np.uint8] = colours.mul(255).round().clamp(0, 255).byte().numpy()
    return pixels


def _resized(resize: Callable[[Tensor], Tensor], photo: Photo) -> tuple[int, int]:
    # The step itself says how it rounds: it is asked with a tensor that has no memory.
    height, width = photo.size
    try:
        new_height, new_width = resize(torch.empty((3, height, width), device="meta")).shape[-2:]
    except RuntimeError as error:
        raise InputError(
            f"{photo.name} is {width} x {height} pixels, so narrow that its short side vanishes "
            'when it is resized; crop it first, or use crop_mode="squash".'
        ) from error
    if new_height * new_width > _MAX_RESIZED_PIXELS:
        raise InputError(
            f"{photo.name} is {width} x {height} pixels and would be enlarged to "
            f"{new_width} x {new_height}, of which the model sees a sliver; crop it first, or use "
            'crop_mode="squash".'
        )
    return new_height, new_width


def _box(
    source: tuple[int, int], resized: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    top, bottom = _span(source[0], resized[0], size[0])
    left, right = _span(source[1], resized[1], size[1])
    return left, top, right, bottom


def _span(source: int, resized: int, size: int) -> tuple[float, float]:
    # Both kinds of crop round half to even what they cut in front, and pad less in front.
    cut = round((resized - size) / 2) if resized >= size else -((size - resized) // 2)
    scale = source / resized
    return cut * scale, (cut + size) * scale
