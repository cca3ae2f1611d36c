"""Changes of pictures that take a cue away or put one in.

Changes in a region act on the model's input, where regions are known; those of whole pictures act
on photos before the model's preprocessing, as a camera or an archive would have.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from vimlrp.errors import InputError
from vimlrp.photos import Photo
from vimlrp.preprocessing import Preprocessing, denormalise

__all__ = [
    "REMOVALS",
    "blurred",
    "closed",
    "grown",
    "jpeg",
    "paste",
    "recoloured",
    "remove",
]

_SMALLEST = 1e-6


def remove(x: Tensor, regions: Tensor, kind: str, preprocessing: Preprocessing) -> Tensor:
    """Take what lies in regions out of pictures; other pixels stay exactly as they are.

    Args:
        x: Preprocessed pictures, (B, 3, H, W).
        regions: (B, H, W) bool, on any device.
        kind: A name of `REMOVALS`.
        preprocessing: That of the pictures.

    Returns:
        (B, 3, H, W). A picture whose region is empty stays; one whose region is everything
        becomes the mean colour of the model's training pictures.

    Raises:
        InputError: If there is no such removal, or shapes do not fit.
    """
    if kind not in REMOVALS:
        raise InputError(f"there is no removal {kind!r}; the removals are {', '.join(REMOVALS)}")
    regions = _fitting(x, regions)
    filled = REMOVALS[kind](x, regions, preprocessing)
    return torch.where(regions[:, None], filled, x)


def paste(x: Tensor, source: Tensor, regions: Tensor) -> Tensor:
    """Put regions of some pictures onto others, at the same place.

    Args:
        x: Onto these, (B, 3, H, W).
        source: From these, (B, 3, H, W).
        regions: (B, H, W) bool.

    Raises:
        InputError: If shapes do not fit.
    """
    if source.shape != x.shape:
        raise InputError(f"pictures are {tuple(x.shape)} and sources {tuple(source.shape)}")
    return torch.where(_fitting(x, regions)[:, None], source.to(x), x)


def grown(regions: NDArray[np.bool_], share: float = 0.015) -> NDArray[np.bool_]:
    """Regions grown on all sides, so that a removal leaves no rim of the cue.

    Args:
        regions: (B, H, W).
        share: Of the shorter side, by which to grow; at least one pixel.
    """
    radius = max(1, round(share * min(regions.shape[1:])))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    layers = [cv2.dilate(region.astype(np.uint8), kernel) > 0 for region in regions]
    return np.stack(layers) if layers else regions


def closed(mask: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """A mask without small gaps.

    Args:
        mask: (H, W).
        share: Of the shorter side; gaps up to about this width are closed.
    """
    size = 2 * max(1, round(share * min(mask.shape) / 2)) + 1  # odd, not to move the mask
    kernel = np.ones((size, size), np.uint8)
    # Padded, since OpenCV's erosion takes what lies outside of a picture for part of the mask.
    padded = np.pad(mask.astype(np.uint8), size)
    whole = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel)
    return whole[size:-size, size:-size].astype(bool)


def _surroundings(x: Tensor, regions: Tensor, _: Preprocessing) -> Tensor:
    """A Gaussian mean of the pixels outside, wide enough to reach the middle of the region."""
    kept = (~regions)[:, None].to(x)
    sigma = max(1.0, float(regions.flatten(1).sum(1).double().mean().sqrt()) / 2)
    size = [2 * min(round(3 * sigma), side - 1) + 1 for side in (x.shape[-1], x.shape[-2])]
    weight = gaussian_blur(kept, size, [sigma, sigma])
    spread = gaussian_blur(x * kept, size, [sigma, sigma])
    return torch.where(weight > _SMALLEST, spread / weight.clamp(min=_SMALLEST), _mean(x, kept))


def _mean_colour(x: Tensor, regions: Tensor, _: Preprocessing) -> Tensor:
    """The mean colour of the picture outside the region."""
    return _mean(x, (~regions)[:, None].to(x)).expand_as(x)


def _mean(x: Tensor, kept: Tensor) -> Tensor:
    total = (x * kept).sum((2, 3), keepdim=True)
    return total / kept.sum((2, 3), keepdim=True).clamp(min=1)


def _inpainted(x: Tensor, regions: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Inpainting by fast marching (Telea, Journal of Graphics Tools, 2004)."""
    pictures = denormalise(x, preprocessing.mean, preprocessing.std)  # (B, H, W, 3)
    radius = max(3, min(x.shape[-2:]) // 64)
    filled = [
        cv2.inpaint(picture, region, radius, cv2.INPAINT_TELEA) if not region.all() else None
        for picture, region in zip(pictures, regions.cpu().numpy().astype(np.uint8), strict=True)
    ]
    nothing = torch.zeros_like(x[:1])
    layers = [nothing if f is None else _normalised(f, preprocessing).to(x)[None] for f in filled]
    return torch.cat([*layers, nothing])[: len(x)]


def _normalised(picture: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    x = torch.from_numpy(np.asarray(picture)).movedim(-1, 0).double() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


_Removal = Callable[[Tensor, Tensor, Preprocessing], Tensor]

REMOVALS: Mapping[str, _Removal] = MappingProxyType(
    {"inpaint": _inpainted, "blur": _surroundings, "mean": _mean_colour}
)
"""Removals by name: inpainting, the blurred surroundings, the picture's mean colour."""


def jpeg(quality: int) -> Callable[[Photo], Photo]:
    """A photo after compression as JPEG.

    Args:
        quality: As Pillow has it, 1 to 100.

    Raises:
        InputError: If there is no such quality.
    """
    if not 1 <= quality <= 100:
        raise InputError(f"the quality is {quality}; give one from 1 to 100")

    def change(photo: Photo) -> Photo:
        buffer = io.BytesIO()
        Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            return replace(photo, pixels=np.array(image.convert("RGB")))

    return change


def blurred(sigma: float) -> Callable[[Photo], Photo]:
    """A photo after a Gaussian blur.

    Args:
        sigma: As a share of the photo's shorter side, so that photos of all sizes lose the same.

    Raises:
        InputError: If it is not above 0.
    """
    if not 0 < sigma < np.inf:
        raise InputError(f"the sigma is {sigma}; give a share of the shorter side above 0")

    def change(photo: Photo) -> Photo:
        width = sigma * min(photo.size)
        pixels = cv2.GaussianBlur(photo.pixels, (0, 0), width, borderType=cv2.BORDER_REFLECT)
        return replace(photo, pixels=np.asarray(pixels, dtype=np.uint8))

    return change


def recoloured(
    mean: Sequence[float], std: Sequence[float], own_mean: Sequence[float], own_std: Sequence[float]
) -> Callable[[Photo], Photo]:
    """A photo whose colours are moved as one group's are to another's.

    Every colour goes through v -> (v - own_mean) / own_std * std + mean (Reinhard et al., IEEE CG&A
    2001, in RGB), with the moments of groups, so that differences within a group stay.

    Args:
        mean: Of each colour in the other group, in units of 8 bits.
        std: The same for the standard deviation within a photo.
        own_mean: Of the group the photo is from.
        own_std: The same for the standard deviation.
    """
    target, source = np.array([mean, std]), np.array([own_mean, own_std])
    gain = target[1] / np.maximum(source[1], _SMALLEST)
    shift = target[0] - source[0] * gain

    def change(photo: Photo) -> Photo:
        pixels = np.clip(np.rint(photo.pixels * gain + shift), 0, 255)
        return replace(photo, pixels=pixels.astype(np.uint8))

    return change


def _fitting(x: Tensor, regions: Tensor) -> Tensor:
    if regions.shape != (len(x), *x.shape[-2:]) or regions.dtype != torch.bool:
        raise InputError(
            f"pictures are {tuple(x.shape)} and regions {tuple(regions.shape)} of {regions.dtype}; "
            "give (B, H, W) of bool for (B, 3, H, W)"
        )
    return regions.to(x.device)
