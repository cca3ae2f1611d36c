"""Small pictures in memory, as bytes on the device that trains, so that an epoch reads no file."""

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from team import Team
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

__all__ = ["DataError", "Split", "as_cropped_file", "as_squashed", "load", "normalise"]

SIDE = 128
ALONE = Team()


class DataError(Exception):
    """The data is missing or has no folders of classes."""


Folder = zipfile.Path | Path


@dataclass(frozen=True)
class Split:
    """Decoded images and their classes on one device; names are those of the class folders."""

    images: Tensor  # (M, 3, 128, 128) uint8
    labels: Tensor  # (M,) int64
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, generator: torch.Generator, repeats: int = 1, team: Team = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches, as floats in 0..1, (B, 3, 128, 128) and (B,), of B = size / team.size.

        With `repeats` every image of a batch is there so many times, and an epoch sees fewer.
        """
        order = torch.randperm(len(self), generator=generator, device=self.labels.device)
        order = order[: len(self) // repeats].repeat_interleave(repeats)
        for first in range(0, len(order) - size + 1, size):
            chosen = team.part(order[first : first + size])
            yield self.images[chosen].float() / 255, self.labels[chosen]


def load(path: Path, split: str, device: torch.device) -> Split:
    """Read one split, from a zip file or an extracted folder.

    Args:
        path: Holds `train/` and `val/`, each with one folder a class.
        split: "train" or "val".
        device: Where the decoded images go.

    Returns:
        The split; classes are numbered in the order of their folders.

    Raises:
        DataError: If there is no such data at `path`.
    """
    if not path.exists():
        raise DataError(
            f"There is no {path}. Give --data a zip file or a folder with train/ and val/ in it, "
            "and a folder a class in both. fast.ai publishes Imagenette as imagenette2-160 "
            "(github.com/fastai/imagenette)."
        )
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no zip file. Extract it, and give --data the folder.")
    root: Folder = zipfile.Path(path) if path.is_file() else path
    names = _class_folders(root / split, path, split)
    files = [(file, label) for label, name in enumerate(names) for file in _sorted(name)]
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(_decode, (file.read_bytes() for file, _ in files))))
    images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for _, label in files], device=device)
    return Split(images, labels, tuple(name.name for name in names))


def _class_folders(root: Folder, path: Path, split: str) -> list[Folder]:
    folders = _sorted(root) if root.is_dir() else []
    if len(folders) < 2:
        raise DataError(
            f"{path} has {len(folders)} class folders in {split}/; give two at least, with "
            "pictures in each."
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
    mean, std = _statistics(images.device)
    normalised: Tensor = (images - mean) / std
    return normalised


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (3, 1, 1) each; kept, since a copy to a GPU waits for all its work."""
    both = torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD]).view(2, 3, 1, 1).to(device)
    return both[0], both[1]
