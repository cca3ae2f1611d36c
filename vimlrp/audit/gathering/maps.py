"""Relevance maps of one small size, whatever the size of the input."""

import torch
from torch import Tensor

from vimlrp.audit.records import MAP_SIDE

__all__ = ["area_sums", "shares"]


def area_sums(maps: Tensor, side: int = MAP_SIDE) -> Tensor:
    """Sum maps over a grid of equal cells; a pixel on the edge of two is shared by its area.

    Args:
        maps: (B, H, W), of any height and width.
        side: Cells along each side.

    Returns:
        (B, side, side), with the sum of the map.
    """
    rows, columns = (_overlaps(length, side, maps) for length in maps.shape[1:])
    return rows @ maps @ columns.T


def shares(values: Tensor) -> Tensor:
    """Divide values by the sum of their magnitudes, sample by sample; zeros stay zeros.

    Args:
        values: (B, ...).
    """
    total = values.abs().flatten(1).sum(1).view(-1, *[1] * (values.dim() - 1))
    # NaN stays NaN, to be seen.
    return torch.where(total == 0, torch.zeros_like(values), values / total)


def _overlaps(length: int, side: int, like: Tensor) -> Tensor:
    """How much of each pixel lies in each cell, (side, length)."""
    cells = torch.arange(side + 1, dtype=torch.float64) * length / side
    pixels = torch.arange(length + 1, dtype=torch.float64)
    start = torch.maximum(cells[:-1, None], pixels[None, :-1])
    stop = torch.minimum(cells[1:, None], pixels[None, 1:])
    return (stop - start).clamp(min=0).to(like)
