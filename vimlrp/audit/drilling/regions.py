"""Where in the pictures a direction of a layer finds its cue."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.changes import closed, grown, remove
from vimlrp.audit.channels import channel_axis
from vimlrp.audit.watching import Watched
from vimlrp.evaluation.data import Sample
from vimlrp.explainer import Explainer

__all__ = [
    "Common",
    "Localisation",
    "common_region",
    "enrichment",
    "joined",
    "localise",
    "mask_of",
]

# The blur before the threshold joins the grains of a relevance map; as a share of the side.
_BLUR = 0.02
# Otsu's threshold of relevance itself keeps the brightest grains of a cue alone.
_POWER = 0.7
# Gaps up to this share of the side belong to a region: a text is its line, not its strokes.
_GAP = 1 / 12
# The power of the cosine by which maps count for one another.
_ALIKE = 4
# A mask of more than this share of the picture names no place.
_LARGEST = 0.4
# So much more of the cue, as the direction measures it, must go with the region than with one of
# its shape elsewhere.
_GONE = 0.5
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Localisation:
    """Where a cue lies.

    Args:
        masks: In the model's input, (n, H, W) bool; empty where a picture shows none of it.
        maps: Positive relevance of the direction, each with sum 1 or 0, (n, H, W) float32.
        gone: Share of the cue that goes when the masks are inpainted, less the same for masks
            moved by half a picture: the median over pictures. The cue is what projections exceed
            those of the reference by, summed over positions, beyond what pictures of the
            reference do so themselves.
        local: Whether the cue lies somewhere in particular: the masks are small, and it goes
            with them.
    """

    masks: NDArray[np.bool_]
    maps: NDArray[np.float32]
    gone: float
    local: bool


def localise(
    model: nn.Module,
    layer: str,
    direction: NDArray[np.floating],
    samples: Sequence[Sample],
    reference: Sequence[Sample],
) -> Localisation:
    """Find where samples show what a direction of a layer stands for.

    Relevance is started at the layer along the direction (Pahde et al., Reveal to Revise, MICCAI
    2023), at each position by the square root of how far its projection exceeds that of the
    reference there: without that, what all pictures of the class share would be shown as well.
    Maps of pictures whose cue lies at the same place support each other (`joined`), and are cut
    (`mask_of`).

    A threshold finds a region in any map. So whether the cue lies there is put to the test: where
    the direction's score does not fall when the region is inpainted, or falls as well when another
    is, the cue is elsewhere too.

    Args:
        model: The model.
        layer: A layer of it.
        direction: (K,).
        samples: Pictures that show the cue, at least one.
        reference: Pictures of the class that do not, at least one.

    Raises:
        InputError: If a picture cannot be read or the layer does not exist.
    """
    watched = Watched(model, layer)
    along = torch.as_tensor(np.asarray(direction, dtype=np.float32))
    usual, floor = _reference(watched, along, reference)
    explainer = Explainer(model)
    batches = [watched.load(samples[i : i + _BATCH]) for i in range(0, len(samples), _BATCH)]
    maps = np.concatenate([_map(explainer, watched, x, along, usual) for x in batches])
    masks = np.stack([mask_of(one) for one in joined(maps)])
    gone = [
        _gone(watched, x, masks[i * _BATCH :][: len(x)], along, usual, floor)
        for i, x in enumerate(batches)
    ]
    shares = np.concatenate(gone)
    median = float(np.median(shares)) if np.isfinite(shares).all() else 0.0
    present = masks.any((1, 2))
    small = present.mean() > 0.5 and float(np.median(masks[present].mean((1, 2)))) < _LARGEST
    return Localisation(masks, maps, median, bool(small and median >= _GONE))


def joined(maps: NDArray[np.floating]) -> NDArray[np.float32]:
    """Maps with the support of those like them.

    Each is brought together, by the geometric mean, with the mean of all maps, in which others
    count by their cosine to it, to the fourth power: what one map leaves out of a cue the others
    show, if they have it at the same place, and what they do not show goes.

    Args:
        maps: Positive relevance, (n, H, W), finite.

    Returns:
        (n, H, W), in units of the maps.
    """
    flat = np.asarray(maps, dtype=np.float32).reshape(len(maps), -1)
    blurred = np.stack([_blurred(one, 2 * _BLUR) for one in maps]).reshape(flat.shape)
    lengths = np.linalg.norm(blurred, axis=1, keepdims=True)
    blurred /= np.where(lengths > 0, lengths, 1)
    weights = (blurred @ blurred.T) ** _ALIKE
    sums = weights.sum(1, keepdims=True)
    mean = weights @ flat / np.where(sums > 0, sums, 1)
    return np.asarray(np.sqrt(flat * mean).reshape(maps.shape), dtype=np.float32)


def mask_of(relevance: NDArray[np.floating]) -> NDArray[np.bool_]:
    """The region of a map: positive part, Gaussian blur, Otsu's threshold (IEEE SMC, 1979).

    The threshold is that of the blurred map to the power of 0.7, and small gaps are closed.

    Args:
        relevance: (H, W).

    Returns:
        (H, W); nothing where no value is positive.
    """
    positive = np.maximum(np.nan_to_num(np.asarray(relevance, dtype=np.float32)), 0)
    if not positive.any():
        return np.zeros(positive.shape, dtype=bool)
    blurred = _blurred(positive, _BLUR)
    levels = np.rint((blurred / blurred.max()) ** _POWER * 255).astype(np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return closed(levels > threshold, _GAP)


def _blurred(relevance: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    width = max(0.5, share * min(relevance.shape))
    return np.asarray(cv2.GaussianBlur(relevance, (0, 0), width), dtype=np.float32)


def enrichment(maps: NDArray[np.floating], regions: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much denser positive relevance lies in regions than it would if spread evenly.

    Args:
        maps: (n, H, W).
        regions: (n, H, W).

    Returns:
        Share of the positive relevance over share of the area, (n,); NaN where a map has none or
        a region is empty.
    """
    positive = np.maximum(np.asarray(maps, dtype=np.float64), 0)
    inside, total = (positive * regions).sum((1, 2)), positive.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(inside / total / regions.mean((1, 2)))


@dataclass(frozen=True, eq=False)
class Common:
    """What the regions of several pictures have in common.

    Args:
        frequency: How many of them cover each pixel, as a share, (H, W) float32.
        agreement: Mean share of a region's area that at least half of the regions cover; 1 for a
            cue at one place, near 0 for one that lies anywhere.
        area: Median share of the picture.
    """

    frequency: NDArray[np.float32]
    agreement: float
    area: float


def common_region(masks: NDArray[np.bool_]) -> Common:
    """Summarise regions.

    Args:
        masks: (n, H, W); empty ones are left out.
    """
    masks = masks[masks.any((1, 2))]
    if len(masks) == 0:
        return Common(np.zeros(masks.shape[1:], dtype=np.float32), float("nan"), 0.0)
    frequency = masks.mean(0, dtype=np.float32)
    shared = masks & (frequency >= 0.5)
    agreement = float((shared.sum((1, 2)) / masks.sum((1, 2))).mean())
    return Common(frequency, agreement, float(np.median(masks.mean((1, 2)))))


def _reference(watched: Watched, along: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, float]:
    """Mean projection at each position, (P,), and the mean excess of pictures without the cue."""
    parts = []
    for start in range(0, len(samples), _BATCH):
        x = watched.load(samples[start : start + _BATCH])
        parts += [part @ along for part in watched.activations(x)]
    projections = torch.cat(parts)  # (n, P)
    usual = projections.mean(0)
    return usual, float(_excess(projections, usual).sum(1).mean())


def _excess(projections: Tensor, usual: Tensor) -> Tensor:
    return (projections - usual).clamp(min=0)


def _map(
    explainer: Explainer,
    watched: Watched,
    x: Tensor,
    along: Tensor,
    usual: Tensor,
) -> NDArray[np.float32]:
    activation = torch.cat(list(watched.activations(x)))  # (b, P, K)
    excess = _excess(activation @ along, usual).sqrt()  # (b, P)
    start = excess[..., None] * along  # (b, P, K)
    _, like = next(watched.run(x[:1]))
    start = _as_activation(watched, start, like)
    pixels = explainer(x, start=(watched.layer, start.to(x))).pixels
    positive = np.maximum(pixels.float().cpu().numpy(), 0)
    total = positive.sum((1, 2), keepdims=True)
    return np.asarray(positive / np.where(total > 0, total, 1), dtype=np.float32)


def _as_activation(watched: Watched, start: Tensor, like: Tensor) -> Tensor:
    """(b, P, K) in the layout of the layer's activation."""
    axis = channel_axis(watched.model, watched.layer, like.dim())
    places = [side for k, side in enumerate(like.shape) if k not in (0, axis)]
    return start.reshape(len(start), *places, -1).movedim(-1, axis)


def _gone(
    watched: Watched,
    x: Tensor,
    masks: NDArray[np.bool_],
    along: Tensor,
    usual: Tensor,
    floor: float,
) -> NDArray[np.float64]:
    """Share of the cue that goes with the masks more than with moved ones, (b,)."""
    regions = torch.from_numpy(grown(masks))
    half = tuple(side // 2 for side in regions.shape[1:])
    activation = torch.cat(list(watched.activations(x)))  # (b, P, K)
    before = _excess(activation @ along, usual).sum(1)
    falls = []
    for gone in (regions, regions.roll(half, dims=(1, 2))):
        changed = remove(x, gone, "inpaint", watched.preprocessing)
        after = torch.cat(list(watched.activations(changed))) @ along
        falls.append(before - _excess(after, usual).sum(1))
    standing = before - floor
    share = (falls[0] - falls[1].clamp(min=0)) / standing.clamp(min=1e-12)
    return np.asarray(torch.where(standing > 0, share, 0.0).double().numpy())
