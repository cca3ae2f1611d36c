"""Batches of any size in pieces that fit into memory."""

import torch
from torch import Tensor, nn

from vimlrp.baselines.contract import Function

__all__ = ["in_chunks"]


def in_chunks(function: Function, model: nn.Module, x: Tensor, target: Tensor, size: int) -> Tensor:
    """Compute the maps of a batch, some samples at a time.

    Args:
        function: From a model, images and classes to maps, each sample on its own.
        model: Is explained.
        x: (B, 3, H, W).
        target: (B,).
        size: Samples to take at a time.

    Returns:
        (B, H, W).
    """
    pieces = zip(x.split(size), target.split(size), strict=True)
    return torch.cat([function(model, images, classes) for images, classes in pieces])
