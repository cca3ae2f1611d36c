"""Imagenette in memory, and its augmentation in batches on the device that trains.

The images are small enough to keep decoded as bytes, so that an epoch reads no file. They are
squashed to squares; photos are mostly 4:3, so a crop here is also stretched back by a random
original aspect ratio, since a photo that the model meets later is not squashed.
"""

import io
import math
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

__all__ = ["DataError", "Split", "as_cropped_file", "as_squashed", "augment", "load", "mix"]

SIDE = 128
CLASSES = 10
# Width over height of the originals, upright 3:4 to 16:9, drawn evenly in the logarithm.
ASPECTS = (3 / 4, 16 / 9)


class DataError(Exception):
    """The data file is missing or is not Imagenette."""


Folder = zipfile.Path | Path


@dataclass(frozen=True)
class Split:
    """Decoded images and their classes on one device."""

    images: Tensor  # (M, 3, 128, 128) uint8
    labels: Tensor  # (M,) int64

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of whole size, as floats in 0..1, (B, 3, 128, 128) and (B,)."""
        order = torch.randperm(len(self), generator=generator, device=self.labels.device)
        for first in range(0, len(self) - size + 1, size):
            chosen = order[first : first + size]
            yield self.images[chosen].float() / 255, self.labels[chosen]


def load(path: Path, split: str, device: torch.device) -> Split:
    """Read one split of Imagenette, from a zip file or an extracted folder.

    Args:
        path: Holds `train/` and `val/`, each with one folder per synset.
        split: "train" or "val".
        device: Where the decoded images go.

    Returns:
        The split; classes are numbered in the order of their synsets.

    Raises:
        DataError: If there is no such data at `path`.
    """
    if not path.exists():
        raise DataError(
            f"There is no {path}. Give --data a zip file or a folder of Imagenette with train/ and "
            "val/ in it; fast.ai publishes it as imagenette2-160 (github.com/fastai/imagenette)."
        )
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no zip file. Extract it, and give --data the folder.")
    root: Folder = zipfile.Path(path) if path.is_file() else path
    names = _class_folders(root / split, path, split)
    files = [(file, label) for label, name in enumerate(names) for file in _sorted(name)]
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(_decode, (file.read_bytes() for file, _ in files))))
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor([label for _, label in files], device=device))


def _class_folders(root: Folder, path: Path, split: str) -> list[Folder]:
    folders = _sorted(root) if root.is_dir() else []
    if len(folders) != CLASSES:
        raise DataError(
            f"{path} has {len(folders)} class folders in {split}/; Imagenette has {CLASSES}, "
            "named by synset (n01440764, ...)."
        )
    return folders


def _sorted(folder: Folder) -> list[Folder]:
    entries: list[Folder] = list(folder.iterdir())
    return sorted(entries, key=lambda entry: entry.name)


def _decode(data: bytes) -> np.ndarray:
    """Decode to (128, 128, 3), squashing what has another size."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def as_squashed(images: Tensor, size: int) -> Tensor:
    """Bytes as they are, (B, 3, 128, 128), resized to the model's input and normalised."""
    return normalise(_resize(images, size))


def as_cropped_file(images: Tensor, size: int) -> Tensor:
    """Bytes as the package reads an image file: shorter side to 8/7 of the input, centre crop."""
    margin = round(size / 0.875) - size
    wide = _resize(images, size + margin)
    first = margin // 2
    return normalise(wide[..., first : first + size, first : first + size])


def _resize(images: Tensor, size: int) -> Tensor:
    """Bytes to floats in 0..1, (B, 3, size, size)."""
    values = images.float() / 255
    return F.interpolate(values, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its deviation, per channel."""
    mean, std = images.new_tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD]).view(2, 3, 1, 1)
    normalised: Tensor = (images - mean) / std
    return normalised


def augment(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random crop, aspect, flip, colour, sharpness and erasing, every image on its own.

    Args:
        images: Floats in 0..1, (B, 3, 128, 128).
        size: Side of the result in pixels.
        generator: Source of all randomness, on the device of the images.

    Returns:
        Normalised images, (B, 3, size, size).
    """
    grid = F.affine_grid(_crops(len(images), generator), [len(images), 3, size, size], False)
    images = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False).clamp(0, 1)
    images = normalise(_sharpness(_colour(images, generator), generator))
    return _erase(images, generator)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _crops(count: int, generator: torch.Generator) -> Tensor:
    """Affine maps from the result to the squashed source, (B, 2, 3)."""
    area = _uniform((count,), 0.25, 1.0, generator)
    original = _uniform((count,), math.log(ASPECTS[0]), math.log(ASPECTS[1]), generator)
    jitter = _uniform((count,), math.log(4 / 5), math.log(5 / 4), generator)
    stretch = ((jitter - original) / 2).exp()
    width = (area.sqrt() * stretch).clamp(max=1)
    height = (area.sqrt() / stretch).clamp(max=1)
    flip = _uniform((count,), -1, 1, generator).sign()
    maps = torch.zeros(count, 2, 3, device=area.device)
    maps[:, 0, 0], maps[:, 1, 1] = width * flip, height
    maps[:, 0, 2] = (1 - width) * _uniform((count,), -1, 1, generator)
    maps[:, 1, 2] = (1 - height) * _uniform((count,), -1, 1, generator)
    return maps


def _colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation within 40 %, and one image in ten in grey."""
    shape = (len(images), 1, 1, 1)
    weights = images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    images = images * _uniform(shape, 0.6, 1.4, generator)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * _uniform(shape, 0.6, 1.4, generator)
    grey = (images * weights).sum(1, keepdim=True)
    amount = _uniform(shape, 0.6, 1.4, generator) * (_uniform(shape, 0, 1, generator) > 0.1)
    return (grey + (images - grey) * amount).clamp(0, 1)


def _sharpness(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur or sharpen: enlarged small images are softer than the photos that users bring."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = _uniform((len(images), 1, 1, 1), -0.5, 1.5, generator)
    return (images + amount * (images - blurred)).clamp(0, 1)


def _erase(images: Tensor, generator: torch.Generator) -> Tensor:
    """Replace a box of up to a third of the area by its mean colour, in one image of four."""
    count, side = len(images), images.shape[-1]
    area = _uniform((count,), 0.02, 0.33, generator)
    inside = _boxes(area, _uniform((count,), -0.7, 0.7, generator).exp(), side, generator)
    chosen = _uniform((count, 1, 1, 1), 0, 1, generator) < 0.25
    return torch.where(inside & chosen, torch.zeros_like(images), images)


def _boxes(area: Tensor, aspect: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Masks of boxes with a share of the area each, placed at random, (B, 1, side, side)."""
    extent = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()]).clamp(max=1)  # (2, B)
    first = (1 - extent) * _uniform((2, len(area)), 0, 1, generator)
    at = (torch.arange(side, device=area.device) + 0.5) / side
    edges = zip(first, first + extent, strict=True)
    x, y = ((at >= low[:, None]) & (at < high[:, None]) for low, high in edges)
    return torch.logical_and(y[:, :, None], x[:, None, :]).unsqueeze(1)


def mix(
    images: Tensor, targets: Tensor, cut: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image with another one of the batch.

    Args:
        images: (B, 3, H, W).
        targets: Class probabilities, (B, C).
        cut: Paste a box of the other image (cutmix) instead of blending the two (mixup).
        generator: Source of all randomness, on the device of the images.

    Returns:
        Mixed images and targets.
    """
    # The squared sine of a uniform angle has the distribution Beta(1/2, 1/2).
    share = torch.sin(_uniform((len(images),), 0, math.pi / 2, generator)).square()
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    if cut:
        box = _boxes(1 - share, torch.ones_like(share), images.shape[-1], generator)
        images = torch.where(box, images[partner], images)
        share = 1 - box.float().mean((1, 2, 3))
    else:
        weight = share.view(-1, 1, 1, 1)
        images = images * weight + images[partner] * (1 - weight)
    share = share.unsqueeze(1)
    return images, targets * share + targets[partner] * (1 - share)
