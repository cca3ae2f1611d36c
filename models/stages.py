"""What makes the maps of VMamba coarser: its two stems, and what stands between its stages.

Maps are (B, H, W, C). The places inside a stem or a downsampling are numbered as in the official
code, whose numbers leave room for the permutations that channels-last maps do without.
"""

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vimlrp.sites import Activation, Conv2d, LayerNorm, Linear, PatchEmbedding

__all__ = ["Generation", "PatchMerging", "downsampling", "stem"]

Generation = Literal["v0", "v2"]
"""The first published architecture, or that of all others."""


class ChannelsLast(nn.Module):
    """(B, C, H, W) seen as (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Permute, without a copy."""
        return x.permute(0, 2, 3, 1)


def stem(generation: Generation, in_chans: int, dim: int, eps: float) -> nn.Sequential:
    """Images (B, 3, H, W) to the first map, (B, H / 4, W / 4, C).

    Args:
        generation: "v0": patches of 4 x 4 pixels; "v2": two convolutions of stride 2.
        in_chans: Channels of the image.
        dim: Width C.
        eps: Of the norms.
    """
    if generation == "v0":
        parts: dict[str, nn.Module] = {
            "0": PatchEmbedding(in_chans, dim, 4, 4),
            "1": ChannelsLast(),
            "2": LayerNorm(dim, eps),
        }
    else:
        parts = {
            "0": PatchEmbedding(in_chans, dim // 2, 3, 2, padding=1, cells=2),
            "1": ChannelsLast(),
            "2": LayerNorm(dim // 2, eps),
            "4": Activation("gelu"),
            "5": Conv2d(dim // 2, dim, 3, stride=2, padding=1),
            "7": LayerNorm(dim, eps),
        }
    return nn.Sequential(OrderedDict(parts))


def downsampling(generation: Generation, dim: int, eps: float) -> nn.Module:
    """A map (B, H, W, C) to one of half the sides and twice the width.

    Args:
        generation: "v0": patch merging; "v2": a convolution of stride 2.
        dim: Width C.
        eps: Of the norm.
    """
    if generation == "v0":
        return PatchMerging(dim, eps)
    parts = {"1": Conv2d(dim, 2 * dim, 3, stride=2, padding=1), "3": LayerNorm(2 * dim, eps)}
    return nn.Sequential(OrderedDict(parts))


class PatchMerging(nn.Module):
    """Squares of 2 x 2 cells side by side in the channels, normalised and projected.

    Liu et al., Swin Transformer, ICCV 2021, section 3.1. A map of odd sides gets a row or column
    of zeros at its end, as in the official classification code.

    Args:
        dim: Width C of the input; the output has twice as much.
        eps: Of the norm.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim, eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        trunc_normal_(self.reduction.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, 2C), rounded up."""
        height, width = x.shape[1:3]
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))
