"""Augmentation of Imagenette in batches, on the device that trains, every image on its own.

The pictures are squashed to squares; photos are mostly 4:3, so a crop here is also stretched back
by a random original aspect ratio, since a photo that the model meets later is not squashed.
"""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from training_data import normalise

__all__ = ["augment", "mix"]

# Width over height of the originals, upright 3:4 to 16:9, drawn evenly in the logarithm.
ASPECTS = (3 / 4, 16 / 9)
# Largest rotation and shear, in radians; those of TrivialAugment (Müller and Hutter, ICCV 2021)
# are larger, for images that fill their frame less than a crop does.
TILT = 0.2


def augment(
    images: Tensor, size: int, generator: torch.Generator, smallest: float = 0.25, three: float = 0
) -> Tensor:
    """Random crop, aspect, tilt, flip, colour, sharpness, one of three, and erasing.

    Args:
        images: Floats in 0..1, (B, 3, S, S).
        size: Side of the result in pixels.
        generator: Source of all randomness, on the device of the images.
        smallest: Least share of the area that a crop keeps.
        three: Probability of one of grey, solarisation and blur (3-Augment of DeiT III, Touvron
            et al., ECCV 2022).

    Returns:
        Normalised images, (B, 3, size, size).
    """
    crops = _crops(len(images), smallest, generator)
    grid = F.affine_grid(crops, [len(images), 3, size, size], False)
    images = F.grid_sample(images, grid, "bicubic", "reflection", align_corners=False).clamp(0, 1)
    images = _sharpness(_colour(images, generator), generator)
    images = _one_of_three(images, three, generator) if three else images
    return _erase(normalise(images), generator)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _crops(count: int, smallest: float, generator: torch.Generator) -> Tensor:
    """Affine maps from the result to the squashed source, (B, 2, 3)."""
    area = _uniform((count,), smallest, 1.0, generator)
    original = _uniform((count,), math.log(ASPECTS[0]), math.log(ASPECTS[1]), generator)
    jitter = _uniform((count,), math.log(4 / 5), math.log(5 / 4), generator)
    stretch = ((jitter - original) / 2).exp()
    width = (area.sqrt() * stretch).clamp(max=1)
    height = (area.sqrt() / stretch).clamp(max=1)
    flip = _uniform((count,), -1, 1, generator).sign()
    x = (1 - width) * _uniform((count,), -1, 1, generator)
    y = (1 - height) * _uniform((count,), -1, 1, generator)
    scale = torch.diag_embed(torch.stack([width * flip, height], 1))
    return torch.cat([scale @ _tilts(count, generator), torch.stack([x, y], 1)[..., None]], 2)


def _tilts(count: int, generator: torch.Generator) -> Tensor:
    """A rotation in half of the images and a shear in half of them, (B, 2, 2)."""
    chosen = (_uniform((2, count), 0, 1, generator) < 0.5).float()
    angle, shear = _uniform((2, count), -TILT, TILT, generator) * chosen
    cosine, sine = angle.cos(), angle.sin()
    rows = [cosine, shear * cosine - sine, sine, shear * sine + cosine]
    return torch.stack(rows, 1).view(count, 2, 2)


def _colour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation within 40 %, and one image in ten in grey."""
    shape = (len(images), 1, 1, 1)
    images = images * _uniform(shape, 0.6, 1.4, generator)
    centre = images.mean((1, 2, 3), keepdim=True)
    images = centre + (images - centre) * _uniform(shape, 0.6, 1.4, generator)
    grey = _grey(images)
    amount = _uniform(shape, 0.6, 1.4, generator) * (_uniform(shape, 0, 1, generator) > 0.1)
    return (grey + (images - grey) * amount).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of Rec. 601, (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _sharpness(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur or sharpen: enlarged small images are softer than the photos that users bring."""
    amount = _uniform((len(images), 1, 1, 1), -0.5, 1.5, generator)
    return (images + amount * (images - _blur(images))).clamp(0, 1)


def _one_of_three(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Grey, solarised above one half, or blurred; each a third of `probability`."""
    grey = _grey(images).expand_as(images)
    solarised = torch.where(images < 0.5, images, 1 - images)
    drawn = _uniform((len(images), 1, 1, 1), 0, 3 / probability, generator)
    images = torch.where(drawn < 1, grey, images)
    images = torch.where((drawn >= 1) & (drawn < 2), solarised, images)
    return torch.where((drawn >= 2) & (drawn < 3), _blur(_blur(images)), images)


def _blur(images: Tensor) -> Tensor:
    """The mean over 3 x 3 pixels."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


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
