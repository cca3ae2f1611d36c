"""The block of Vim; parameter names are those of the official code (hustvl/Vim)."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vimlrp.models.fused import Plan, run
from vimlrp.models.mixer import BidirectionalMixer
from vimlrp.sites import Residual, RMSNorm

__all__ = ["Block"]


class Block(nn.Module):
    """Add, normalise, mix: the mixer's output is added by the next block.

    Args:
        dim: Width D.
        drop_path: Probability of dropping the incoming branch in training.
        eps: Of the RMSNorm.
        **mixer: Arguments of `BidirectionalMixer`.
    """

    def __init__(self, dim: int, drop_path: float, eps: float, **mixer: Any) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = Residual()
        self.norm = RMSNorm(dim, eps)
        self.mixer = BidirectionalMixer(dim, **mixer)

    def forward(
        self, hidden: Tensor, residual: Tensor | None, plan: Plan | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take branch and stream, (B, L, D) each; the first block has no stream yet.

        With a plan the block runs as one operation.
        """
        if plan is not None:
            return run(plan, self, hidden, residual)
        residual = self.join(hidden, residual)
        return self.mixer(self.norm(residual)), residual

    def join(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        """Add a branch to the stream, in float32 at least."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return wide if residual is None else self.residual(residual, self.drop_path(wide))
