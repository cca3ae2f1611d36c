"""Localisation: does relevance lie on the object.

Maps are (B, H, W), signed; regions are (B, H, W) of bool in the input's geometry. A sample whose
region is empty has no score, which is NaN.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.errors import InputError

__all__ = [
    "Segmentation",
    "average_precision",
    "centre_hit",
    "mass_accuracy",
    "pointing_hit",
    "rank_accuracy",
    "region_share",
    "segmentation",
    "smoothed",
]


def mass_accuracy(maps: Tensor, regions: Tensor) -> Tensor:
    """The share of positive relevance that lies in the region, (B,); higher is better.

    Source: relevance mass accuracy of Arras, Osman and Samek (CLEVR-XAI), Information Fusion 2022,
    on the positive part, which is what speaks for the class. A uniform map has `region_share`.
    """
    _check(maps, regions)
    positive = maps.clamp(min=0).double()
    inside = (positive * regions).flatten(1).sum(1)
    return _where_any(regions, inside / positive.flatten(1).sum(1))


def rank_accuracy(maps: Tensor, regions: Tensor) -> Tensor:
    """The share of the region's K pixels among the K highest of the map, (B,); higher is better.

    Source: relevance rank accuracy of Arras, Osman and Samek, Information Fusion 2022. Ties are
    broken in reading order.
    """
    _check(maps, regions)
    inside = regions.flatten(1)
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    size = inside.sum(1, keepdim=True)
    first = torch.arange(inside.shape[1], device=maps.device) < size
    hits = (inside.gather(1, order) & first).sum(1)
    return _where_any(regions, hits / size.squeeze(1))


def pointing_hit(maps: Tensor, regions: Tensor) -> Tensor:
    """Whether the highest pixel lies in the region, (B,) of 0 or 1; higher is better.

    Source: the pointing game of Zhang et al., IJCV 2018, without its margin. Photographers centre
    their objects, so a score means little without that of the centre beside it: `centre_hit`.
    """
    _check(maps, regions)
    highest = maps.flatten(1).argmax(1, keepdim=True)
    return _where_any(regions, regions.flatten(1).gather(1, highest).squeeze(1))


def centre_hit(regions: Tensor) -> Tensor:
    """Whether the input's centre lies in the region, (B,) of 0 or 1: what pointing must beat."""
    height, width = regions.shape[-2:]
    return _where_any(regions, regions[:, height // 2, width // 2])


def region_share(regions: Tensor) -> Tensor:
    """The share of the input that the region covers, (B,): the mass of a uniform map."""
    return _where_any(regions, regions.flatten(1).double().mean(1))


@dataclass(frozen=True)
class Segmentation:
    """How a thresholded map agrees with regions; over a data set, sums are divided, not ratios.

    Args:
        pixel_accuracy: Share of pixels on the right side, (B,); higher is better.
        average_precision: Of both sides, (B,); higher is better.
        intersection: Of background and object, (B, 2), in pixels.
        union: The same.
    """

    pixel_accuracy: Tensor
    average_precision: Tensor
    intersection: Tensor
    union: Tensor


def segmentation(maps: Tensor, regions: Tensor) -> Segmentation:
    """Threshold maps at their mean and compare them with regions, pixel by pixel.

    Source: ImageNet-Segmentation as Chefer et al., CVPR 2021, measure it: a map is scaled to 0 to
    1, its object is what exceeds its mean; average precision is taken over the scores of the object
    and, as one minus these, of the background; intersection over union is that of sums over the
    data set, averaged over background and object. Pixel accuracy, mAP and mIoU: higher is better.
    Their maps are positive and of patches, enlarged; see `smoothed`. A constant map has no object.
    """
    _check(maps, regions)
    low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    span = (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    scores = (maps - low[:, None, None]) / span[:, None, None]
    found = scores > scores.flatten(1).double().mean(1).to(scores.dtype)[:, None, None]
    sides = [(found == side, regions == side) for side in (False, True)]
    count = [[(a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)] for a, b in sides]
    both = torch.stack([1 - scores, scores], 1).flatten(1)
    wanted = torch.stack([~regions, regions], 1).flatten(1)
    return Segmentation(
        _where_any(regions, (found == regions).flatten(1).double().mean(1)),
        _where_any(regions, average_precision(both, wanted)),
        torch.stack([_where_any(regions, c[0]) for c in count], 1),
        torch.stack([_where_any(regions, c[1]) for c in count], 1),
    )


def average_precision(scores: Tensor, wanted: Tensor) -> Tensor:
    """The area under precision over recall, as scikit-learn sums it; higher is better.

    Equal scores count as one threshold.

    Args:
        scores: (B, N).
        wanted: (B, N) of bool.

    Returns:
        (B,), NaN where nothing is wanted.
    """
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    hits = wanted.gather(1, order)
    place = torch.arange(scores.shape[1], device=scores.device)
    # Within a tie, the precision is that at its last place.
    is_last = F.pad(ranked[:, 1:] != ranked[:, :-1], (0, 1), value=True)
    ends = torch.where(is_last, place, len(place)).flip(1).cummin(1).values.flip(1)
    precision = hits.double().cumsum(1).gather(1, ends) / (ends + 1)
    return (precision * hits).sum(1) / hits.sum(1)


def smoothed(maps: Tensor, size: int) -> Tensor:
    """Sum maps over patches and enlarge them bilinearly, as maps of tokens are drawn.

    Where patches do not cover the map, as many as come nearest to it do, of about that size: the
    sides are cut into equal lengths, and a patch is the mean of the pixels that it touches.

    Args:
        maps: (B, H, W).
        size: Side of a patch.

    Returns:
        (B, H, W).

    Raises:
        InputError: If a patch has no size, or is larger than the map.
    """
    sides = maps.shape[-2:]
    if not 1 <= size <= min(sides):
        raise InputError(
            f"patches of {size} pixels do not fit a map of {sides[0]} x {sides[1]}: give a patch "
            "size from 1 to its smaller side"
        )
    cells = round(sides[0] / size), round(sides[1] / size)
    patches = F.adaptive_avg_pool2d(maps[:, None], cells) * size**2
    return F.interpolate(patches, sides, mode="bilinear").squeeze(1)


def _where_any(regions: Tensor, values: Tensor) -> Tensor:
    return torch.where(regions.flatten(1).any(1), values.double(), torch.nan)


def _check(maps: Tensor, regions: Tensor) -> None:
    if maps.dim() != 3 or maps.shape != regions.shape or regions.dtype != torch.bool:
        raise InputError(
            f"maps of shape {tuple(maps.shape)} and regions of {tuple(regions.shape)} and type "
            f"{regions.dtype} were given: give (B, H, W) both, regions of bool"
        )
