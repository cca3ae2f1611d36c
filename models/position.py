"""Position embeddings on another grid of patches."""

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from vimlrp.tokens import TokenLayout

__all__ = ["resample_position"]


def resample_position(position: Tensor, old: TokenLayout, new: TokenLayout) -> Tensor:
    """Interpolate the patches' part of a position embedding; class tokens keep theirs.

    Args:
        position: (1, L, D) in sequence order.
        old: Its layout.
        new: The layout wanted, with the same class tokens.

    Returns:
        (1, L', D) in the new sequence order.
    """
    if old == new:
        return position
    grid = resample_abs_pos_embed(
        old.patches_of(position),
        new_size=list(new.grid),
        old_size=list(old.grid),
        num_prefix_tokens=0,
    )
    return new.insert(grid, old.special_of(position))
