"""The blocks of MambaVision: its stem, convolutions on maps (B, H, W, C), and tokens of windows.

Hatamizadeh and Kautz, CVPR 2025, https://arxiv.org/abs/2407.08083, section 3, in the parameter
names of the official code.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from vimlrp.sites import (
    Activation,
    BatchNorm2d,
    Conv2d,
    LayerNorm,
    Linear,
    PatchEmbedding,
    Residual,
)
from vimlrp.tracing import frozen

__all__ = ["ConvBlock", "Stem", "TokenBlock"]


class Stem(nn.Module):
    """Two strided convolutions: images to maps of a quarter of the side.

    Args:
        in_chans: Channels of the image.
        hidden: Channels between the convolutions.
        dim: Channels of the map.
    """

    def __init__(self, in_chans: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.conv_down = nn.Sequential(
            PatchEmbedding(in_chans, hidden, 3, 2, padding=1, bias=False, cells=2),
            BatchNorm2d(hidden, eps=1e-4),
            Activation("relu"),
            Conv2d(hidden, dim, 3, 2, padding=1, bias=False),
            BatchNorm2d(dim, eps=1e-4),
            Activation("relu"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, h, w, C)."""
        first, *others = self.conv_down
        x = first(x).permute(0, 2, 3, 1)
        for layer in others:
            x = layer(x)
        return x


class ConvBlock(nn.Module):
    """A residual block of two convolutions.

    Args:
        dim: Channels C.
        drop_path: Probability of dropping the branch in training.
    """

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = Conv2d(dim, dim, 3, padding=1)
        self.norm1 = BatchNorm2d(dim)
        self.act = Activation("gelu_tanh")
        self.conv2 = Conv2d(dim, dim, 3, padding=1)
        self.norm2 = BatchNorm2d(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = Residual()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        branch = self.act(self.norm1(self.conv1(x)))
        return self.residual(x, self.drop_path(self.norm2(self.conv2(branch))))


class Mlp(nn.Module):
    """Two linear layers with a GELU between.

    Args:
        dim: Width D.
        hidden: Width between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = Activation("gelu")
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.fc2(self.act(self.fc1(x)))


class TokenBlock(nn.Module):
    """Mix the tokens of each window, then the channels of each token.

    Args:
        dim: Width D.
        mixer: Mixes tokens, (B, W, L, D) to the same.
        mlp_ratio: Hidden channels of the MLP over D.
        drop_path: Probability of dropping a branch in training.
        layer_scale: Initial factor of every channel of both branches; None for no factors.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float | None,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.mixer = mixer
        self.residual1 = Residual()
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.residual2 = Residual()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.gamma_1 = _layer_scale(dim, layer_scale)
        self.gamma_2 = _layer_scale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, L, D) to (B, W, L, D)."""
        x = self.residual1(x, self._branch(self.mixer(self.norm1(x)), self.gamma_1))
        return self.residual2(x, self._branch(self.mlp(self.norm2(x)), self.gamma_2))

    def _branch(self, x: Tensor, scale: nn.Parameter | None) -> Tensor:
        return self.drop_path(x if scale is None else x * frozen(scale))


def _layer_scale(dim: int, start: float | None) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full((dim,), start))
