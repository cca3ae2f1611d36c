"""The site where tokens attend to each other."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.sites.base import Site

__all__ = ["Attention"]


class Attention(Site):
    """Scaled dot-product attention, softmax(q k^T / sqrt(d)) v, over all tokens of a window."""

    kind = "attention"

    def plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend.

        Args:
            q: Queries, (B, ..., L, d), where the axes between are heads and windows.
            k: Keys, of the same shape.
            v: Values, of the same shape.

        Returns:
            (B, ..., L, d).
        """
        # The fused kernels take no more than four axes.
        folded = [x.flatten(0, -4) if x.dim() > 4 else x for x in (q, k, v)]
        return F.scaled_dot_product_attention(folded[0], folded[1], folded[2]).view(q.shape)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Products of queries and keys over sqrt(d), (B, ..., L, L)."""
        return torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
