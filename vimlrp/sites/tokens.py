"""The site where a sequence begins."""

import torch
from torch import Tensor

from vimlrp.propagation import with_gradient_of
from vimlrp.sites.base import Site, SumFactors
from vimlrp.tokens import TokenLayout
from vimlrp.tracing import TokenRecord, active, frozen

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
        tokens = sequence if position is None else sequence + frozen(position)
        _note(tokens, layout.insert(torch.zeros_like(patches), special), position, layout)
        return tokens

    def weighed(
        self,
        factors: SumFactors,
        patches: Tensor,
        special: Tensor,
        position: Tensor | None,
        layout: TokenLayout,
    ) -> Tensor:
        """The same, with the gradient of each summand times its factor.

        Args:
            factors: From the values of sequence and position embedding to a factor of each.
            patches: As for `plain`, as are the arguments that follow.
            special: (B, S, D).
            position: (1, L, D) or None.
            layout: Where the class tokens go.
        """
        if position is None:
            return self.plain(patches, special, position, layout)
        sequence = layout.insert(patches, special)
        position = frozen(position).expand_as(sequence)
        at_sequence, at_position = factors(sequence.detach(), position)
        tokens = with_gradient_of(sequence.detach() + position, sequence, at_sequence)
        class_tokens = layout.insert(torch.zeros_like(patches), special)
        _note(tokens, class_tokens * at_sequence, position * at_position, layout)
        return tokens


def _note(tokens: Tensor, special: Tensor, position: Tensor | None, layout: TokenLayout) -> None:
    """Let the trace read the tokens, and what the constants among their summands take."""
    trace = active()
    if trace is None:
        return
    trace.tokens = TokenRecord(tokens, layout)
    trace.absorb("class token", tokens, special)
    if position is not None:
        trace.absorb("position embedding", tokens, position)
