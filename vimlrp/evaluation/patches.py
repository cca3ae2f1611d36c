"""The grid of patches that are removed or inserted one after the other."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.errors import InputError

__all__ = ["PatchGrid", "order_of", "patch_size_of", "removal_counts"]

_DEFAULT_SIZE = 16


@dataclass(frozen=True)
class PatchGrid:
    """Square patches in rows and columns.

    Args:
        size: Side of a patch in pixels.
        stride: Distance between patches in pixels.
        shape: Rows and columns.
    """

    size: int
    stride: int
    shape: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "PatchGrid":
        """The patches that touch each other and cover a picture.

        Args:
            height: Of the picture in pixels.
            width: Of the picture.
            size: Side of a patch.

        Raises:
            InputError: If they do not cover it.
        """
        if size < 1 or height % size or width % size:
            raise InputError(
                f"patches of {size} pixels do not cover a picture of {height} x {width}: give a "
                "patch size that divides both sides"
            )
        return cls(size, size, (height // size, width // size))

    @property
    def count(self) -> int:
        """The number of patches M."""
        return self.shape[0] * self.shape[1]

    def scores(self, maps: Tensor) -> Tensor:
        """Sum maps over the patches: (B, H, W) to (B, M) in row-major order."""
        pooled = F.avg_pool2d(maps[:, None].double(), self.size, self.stride) * self.size**2
        return pooled.flatten(1).to(maps.dtype)

    def spread(self, patches: Tensor) -> Tensor:
        """Values of patches that touch each other, (N, M), for every pixel: (N, 1, H, W)."""
        cells = patches.view(-1, 1, *self.shape)
        return cells.repeat_interleave(self.size, 2).repeat_interleave(self.size, 3)


def patch_size_of(model: nn.Module) -> int:
    """The side of a model's patches, or 16 where it has none, or small ones that it merges."""
    size = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = size[0] if isinstance(size, tuple | list) else size
    return side if isinstance(side, int) and side >= _DEFAULT_SIZE // 2 else _DEFAULT_SIZE


def order_of(scores: Tensor) -> Tensor:
    """The place of each patch when the highest score comes first, (B, M); ties in reading order."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def removal_counts(patches: int, steps: int) -> Tensor:
    """How many patches are gone at each step, (S + 1,), from none to all in equal shares.

    Args:
        patches: Their number M; where it is below S, some steps remove none.
        steps: S.

    Raises:
        InputError: If there are fewer than two steps.
    """
    if steps < 2:
        raise InputError(f"steps is {steps}; give 2 or more, such as 20 for steps of 5 %")
    return torch.tensor([round(patches * step / steps) for step in range(steps + 1)])
