"""The sites where tokens attend to each other, and where channels are weighed."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.sites.base import Site

__all__ = ["Attention", "Excitation"]


class Attention(Site):
    """Scaled dot-product attention, softmax(q k^T / sqrt(d) + b) v, over all tokens of a window."""

    kind = "attention"

    def plain(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            q: Queries, (B, ..., L, d), where the axes between are heads and windows.
            k: Keys, of the same shape but for the number of tokens, M.
            v: Values, of the shape of the keys but for their width.
            bias: Constants added to the scores, such as those of relative positions and a mask,
                broadcastable to (B, ..., L, M).

        Returns:
            (B, ..., L, width of the values).
        """
        if bias is not None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        # The fused kernels take no more than four axes.
        folded = [x.flatten(0, -4) if x.dim() > 4 else x for x in (q, k, v)]
        out = F.scaled_dot_product_attention(folded[0], folded[1], folded[2])
        return out.view(*q.shape[:-1], v.shape[-1])

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Products of queries and keys over sqrt(d), (B, ..., L, M)."""
        return torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))


class Excitation(Site):
    """A map multiplied by factors that are computed from it, such as squeeze-and-excitation.

    Hu et al. 2018, https://arxiv.org/abs/1709.01507. A subclass writes `factor`.
    """

    kind = "excitation"

    def factor(self, x: Tensor) -> Tensor:
        """The factors, broadcastable to x."""
        raise NotImplementedError

    def scaled(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiply x by its factors."""
        return x * factor

    def plain(self, x: Tensor) -> Tensor:
        """Multiply by factors of the input's own."""
        return self.scaled(x, self.factor(x))
