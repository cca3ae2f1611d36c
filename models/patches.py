"""The patch embedding of Vim."""

from einops import rearrange
from torch import Tensor, nn

from vimlrp.sites import PatchEmbedding

__all__ = ["PatchEmbed"]


class PatchEmbed(nn.Module):
    """Images to a row-major sequence of patches.

    Args:
        in_chans: Channels of the image.
        embed_dim: Width D.
        patch_size: Side of a patch in pixels.
        stride: Distance between patches in pixels.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.patch_size, self.stride = patch_size, stride
        self.proj = PatchEmbedding(in_chans, embed_dim, patch_size, stride)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        return tuple((side - self.patch_size) // self.stride + 1 for side in (height, width))  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, M, D)."""
        return rearrange(self.proj(x), "b d h w -> b (h w) d")
