"""From what a user holds (paths, pictures, arrays, tensors) to a batch for the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vimlrp.errors import InputError
from vimlrp.photos import Photo, read_photo
from vimlrp.preprocessing import Geometry, Preprocessing, denormalise

__all__ = [
    "Batch",
    "Images",
    "Source",
    "batches",
    "check_tensor",
    "device_and_dtype",
    "preprocessing_of",
]

Image_ = str | Path | Image.Image | NDArray[Any] | Photo
Images = Image_ | Sequence[Image_] | Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """Where one sample came from, so that its map can be drawn over it.

    Args:
        name: Of the file, or "image 0".
        geometry: Which part of the picture the model saw.
        photo: The picture, if the sample came from one.
        tensor: The model's input (3, H, W) otherwise, with the mean and std that undo its
            normalisation.
    """

    name: str
    geometry: Geometry
    photo: Photo | None = None
    tensor: tuple[Tensor, tuple[float, ...], tuple[float, ...]] | None = None

    def to(self, device: torch.device | str) -> "Source":
        """Move the tensor, if the source is one, to a device."""
        if self.tensor is None:
            return self
        x, mean, std = self.tensor
        return replace(self, tensor=(x.to(device), mean, std))

    def picture(self) -> NDArray[np.uint8]:
        """The picture to draw on, (H, W, 3)."""
        if self.photo is not None:
            return self.photo.pixels
        if self.tensor is None:
            raise InputError(f"{self.name} has no picture to draw on; give one as `picture=`")
        x, mean, std = self.tensor
        return np.asarray(denormalise(x.detach().float().cpu(), mean, std))


@dataclass(frozen=True, eq=False)
class Batch:
    """Prepared samples: `x` (B, 3, H, W) on the model's device and of its type."""

    x: Tensor
    sources: tuple[Source, ...]


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """The model's preprocessing, at the input size that the model has now."""
    preprocessing = Preprocessing.of(model)
    size = getattr(model, "img_size", None)
    return preprocessing if size is None else replace(preprocessing, size=tuple(size))


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model is and which floating-point type it computes in, by its first parameter."""
    # As `model.parameters()`, in a fraction of the time: this runs for every batch.
    waiting = [model]
    while waiting:
        own = waiting.pop().__dict__
        for p in own["_parameters"].values():
            if p is not None and p.is_floating_point():
                return p.device, p.dtype
        waiting.extend(child for child in reversed(own["_modules"].values()) if child is not None)
    return torch.device("cpu"), torch.float32


def batches(images: Images, model: nn.Module, size: int | None) -> Iterator[Batch]:
    """Prepare images, a batch at a time.

    Args:
        images: A path, PIL image or array, a sequence of them, or a preprocessed tensor
            (B, 3, H, W) or (3, H, W).
        model: Says how to prepare them, and where to.
        size: Samples in a batch; None for 16 pictures, or a tensor as it is.

    Raises:
        InputError: If an image cannot be read or a tensor is not what the model takes.
    """
    if isinstance(images, Tensor):
        yield from _tensor_batches(images, model, size)
        return
    single = isinstance(images, str | Path | Image.Image | np.ndarray | Photo)
    pictures: Sequence[Any] = [images] if single else images  # type: ignore[assignment]
    _check_pictures(pictures)
    step = size or 16
    for start in range(0, len(pictures), step):
        yield _picture_batch(pictures[start : start + step], start, model)


def _check_pictures(pictures: Any) -> None:
    if not isinstance(pictures, Sequence):
        raise InputError(
            f"cannot explain a {type(pictures).__name__}: give a path, a PIL image, an array, a "
            "list of them, or a tensor (B, 3, H, W); a DataLoader goes to Explainer(model).stream"
        )
    if not pictures:
        raise InputError("no image was given")


def _picture_batch(pictures: Sequence[Image_], start: int, model: nn.Module) -> Batch:
    preprocessing = preprocessing_of(model)
    device, dtype = device_and_dtype(model)
    prepared, sources = [], []
    for i, picture in enumerate(pictures):
        name = None if isinstance(picture, str | Path) else f"image {start + i}"
        photo = picture if isinstance(picture, Photo) else read_photo(picture, name)
        x, geometry = preprocessing(photo)
        prepared.append(x)
        sources.append(Source(photo.name, geometry, photo=photo))
    return Batch(torch.stack(prepared).to(device, dtype), tuple(sources))


def _tensor_batches(x: Tensor, model: nn.Module, size: int | None) -> Iterator[Batch]:
    x = x[None] if x.dim() == 3 else x
    check_tensor(x, model)
    x = x.detach().clone()  # the sources keep their picture, whatever becomes of the user's tensor
    preprocessing = preprocessing_of(model)
    geometry = Geometry.whole(*x.shape[-2:])
    step = size or len(x)
    for start in range(0, len(x), step):
        part = x[start : start + step]
        sources = tuple(
            Source(
                f"image {start + i}", geometry, tensor=(row, preprocessing.mean, preprocessing.std)
            )
            for i, row in enumerate(part.unbind())
        )
        yield Batch(part, sources)


def check_tensor(x: Tensor, model: nn.Module) -> None:
    """Refuse a tensor that is no batch of images for a model.

    Args:
        x: Should be (B, 3, H, W), finite, on the model's device and of its type.
        model: Will be given it.

    Raises:
        InputError: Saying what does not fit.
    """
    device, dtype = device_and_dtype(model)
    if x.dim() != 4 or x.shape[1] != 3:
        raise InputError(
            f"a tensor of shape {tuple(x.shape)} is no batch of images: give (B, 3, H, W), "
            "colours in the second place"
        )
    if len(x) == 0:
        raise InputError("the tensor holds no image")
    if x.device != device:
        raise InputError(
            f"the images are on {x.device}, the model is on {device}: move one of them"
        )
    if x.dtype != dtype:
        raise InputError(
            f"the images are {x.dtype}, the model computes in {dtype}: give normalised images as "
            f"x.to({dtype}), or a picture for vimlrp to prepare"
        )
    if not x.isfinite().all():
        raise InputError("the images hold NaN or infinite values")
