"""The levels of MambaVision: blocks on maps of one size, or on the windows of a map.

Hatamizadeh and Kautz, CVPR 2025, https://arxiv.org/abs/2407.08083, section 3, in the parameter
names of the official code.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimlrp.models.mambavision_blocks import ConvBlock, TokenBlock
from vimlrp.models.mambavision_mixer import MambaMixer, SelfAttention
from vimlrp.sites import Conv2d

__all__ = ["CONV_LEVELS", "Level", "conv_blocks", "drop_rates", "token_blocks"]

CONV_LEVELS = 2
"""How many levels come before those on windows."""


class Level(nn.Module):
    """Blocks on maps of one size, and a convolution to the next size.

    Args:
        dim: Channels C.
        blocks: `ConvBlock`s on the map, or `TokenBlock`s on its windows.
        window: Side of a window, for `TokenBlock`s.
        downsample: Whether to halve the sides and double the channels at the end.
    """

    def __init__(
        self, dim: int, blocks: Sequence[nn.Module], window: int | None, downsample: bool
    ) -> None:
        super().__init__()
        self.window, self.grad_checkpointing = window, False
        self.blocks = nn.ModuleList(blocks)
        self.downsample = Downsample(dim) if downsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H / 2, W / 2, 2 C), or to the same shape without `downsample`."""
        return self.downsample(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Run the blocks alone, (B, H, W, C) to (B, H, W, C)."""
        if self.window is None:
            return self._run(x)
        height, width = x.shape[1:3]
        windows = self._run(split_windows(x, self.window))
        return join_windows(windows, self.window, height, width)

    def _run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class Downsample(nn.Module):
    """A strided convolution to half the side and twice the channels.

    Args:
        dim: Channels C of the input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(Conv2d(dim, 2 * dim, 3, 2, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        return self.reduction(x)


def split_windows(x: Tensor, side: int) -> Tensor:
    """Cut a map into square windows, zeros below and to the right where they do not fit.

    Args:
        x: (B, H, W, C).
        side: Of a window.

    Returns:
        (B, W, side * side, C), windows and the cells of each in row-major order.
    """
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    return rearrange(x, "b (i p) (j q) c -> b (i j) (p q) c", p=side, q=side)


def join_windows(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    """Put the windows of `split_windows` together and cut off what was added.

    Args:
        windows: (B, W, side * side, C).
        side: Of a window.
        height: Rows H of the map.
        width: Columns W of the map.

    Returns:
        (B, H, W, C).
    """
    rows = -(-height // side)
    x = rearrange(windows, "b (i j) (p q) c -> b (i p) (j q) c", i=rows, p=side)
    return x[:, :height, :width]


def drop_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Drop rates of the blocks of each level, growing linearly over all blocks.

    Args:
        depths: Blocks of each level.
        last: Rate of the last block.
    """
    count = sum(depths)
    rates = [last * i / max(count - 1, 1) for i in range(count)]
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def conv_blocks(dim: int, rates: Sequence[float]) -> list[nn.Module]:
    """The blocks of a level on a map.

    Args:
        dim: Channels C.
        rates: Drop rate of each block.
    """
    return [ConvBlock(dim, rate) for rate in rates]


def token_blocks(
    dim: int,
    rates: Sequence[float],
    num_heads: int,
    scan: dict[str, int],
    block: dict[str, Any],
) -> list[nn.Module]:
    """The blocks of a level on windows: scans first, then attention in the second half.

    Args:
        dim: Width D.
        rates: Drop rate of each block; of an odd number of blocks the smaller half attends.
        num_heads: Heads of the attention.
        scan: Arguments of every `MambaMixer`.
        block: Arguments of every `TokenBlock`.
    """
    scans = (len(rates) + 1) // 2
    mixers = [
        MambaMixer(dim, **scan) if i < scans else SelfAttention(dim, num_heads)
        for i in range(len(rates))
    ]
    return [TokenBlock(dim, m, drop_path=r, **block) for m, r in zip(mixers, rates, strict=True)]
