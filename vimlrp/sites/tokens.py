"""The site where a sequence begins."""

import torch
from torch import Tensor

from vimlrp.sites.base import Site
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import TokenRecord, active

__all__ = ["TokenSum"]


class TokenSum(Site):
    """Patches, class tokens and position embedding summed into the sequence.

    Token relevances are read here, after the sum, as the official MambaLRP reads them; what the
    class tokens and the position embedding take of them stands in the account.
    """

    kind = "residual"

    def plain(
        self, patches: Tensor, special: Tensor, position: Tensor | None, layout: TokenLayout
    ) -> Tensor:
        """Insert the class tokens and add the position embedding.

        Args:
            patches: (B, M, D).
            special: (B, S, D).
            position: (1, L, D) or None.
            layout: Where the class tokens go.
        """
        sequence = layout.insert(patches, special)
        trace = active()
        if trace is None:
            return sequence if position is None else sequence + position
        tokens = sequence if position is None else sequence + position.detach()
        trace.tokens = TokenRecord(tokens, layout)
        trace.absorb("class token", tokens, layout.insert(torch.zeros_like(patches), special))
        if position is not None:
            trace.absorb("position embedding", tokens, position)
        return tokens
