"""The blocks and stages of VMamba (Liu et al., NeurIPS 2024, figure 3), on maps (B, H, W, C)."""

from collections.abc import Sequence
from typing import Any, cast

from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimlrp.models.fused_ss2d import Plan, plans_of, run
from vimlrp.models.ss2d import SS2D
from vimlrp.sites import Activation, LayerNorm, Linear, Residual

__all__ = ["Block", "Blocks", "Mlp", "Stage"]


class Mlp(nn.Module):
    """Two linear layers with a GELU between them.

    Args:
        dim: Width C.
        hidden: Width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = Activation("gelu")
        self.fc2 = Linear(hidden, dim)
        for layer in (self.fc1, self.fc2):
            trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A mixer and an MLP, each normalised before and added to the stream.

    Args:
        dim: Width C.
        drop_path: Probability of dropping either branch in training.
        mlp_ratio: Hidden width of the MLP over C; 0 for none.
        eps: Of the norms.
        **mixer: Arguments of `SS2D`.
    """

    def __init__(
        self, dim: int, drop_path: float, mlp_ratio: float, eps: float, **mixer: Any
    ) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm = LayerNorm(dim, eps)
        self.op = SS2D(dim, eps=eps, **mixer)
        self.residual = Residual()
        self.mlp: nn.Module | None = None
        if mlp_ratio:
            self.norm2 = LayerNorm(dim, eps)
            self.mlp = Mlp(dim, int(mlp_ratio * dim))
            self.residual2 = Residual()

    def forward(self, x: Tensor, plan: Plan | None = None) -> Tensor:
        """(B, H, W, C) to (B, H, W, C); with a plan the block runs as one operation."""
        if plan is not None:
            return run(plan, self, x, self.op.routes(x))
        x = self.residual(x, self.drop_path(self.op(self.norm(x))))
        if self.mlp is None:
            return x
        return self.residual2(x, self.drop_path(self.mlp(self.norm2(x))))


class Blocks(nn.Sequential):
    """Blocks one after the other, each as one operation where an explanation's rules allow it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        blocks = cast("list[Block]", list(self))
        for block, plan in zip(blocks, plans_of(blocks), strict=True):
            x = block(x) if plan is None else block(x, plan)
        return x


class Stage(nn.Module):
    """Blocks at one resolution, and the step down to the next.

    Args:
        blocks: At least one.
        downsample: To the next stage's map; the identity in the last stage.
    """

    def __init__(self, blocks: Sequence[Block], downsample: nn.Module) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = Blocks(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the next stage's map."""
        return self.downsample(self.own_map(x))

    def own_map(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the stage's map before it is made coarser."""
        if not (self.grad_checkpointing and self.training):
            return self.blocks(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x
