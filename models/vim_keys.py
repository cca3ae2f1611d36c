"""Fitting the tensors of Vim's checkpoints to a model."""

import math
from typing import Any

from torch import Tensor, nn

from vimlrp.models.position import resample_position
from vimlrp.tokens import TokenLayout

__all__ = ["fit_state_dict"]


def fit_state_dict(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit a checkpoint to a model: unwrap training files, interpolate position embeddings.

    Args:
        state: Weights, or a training checkpoint that holds them under "model".
        model: The model that will load them.
    """
    state = dict(state.get("model", state))
    layout: Any = model.layout
    position = state.get("pos_embed")
    if position is not None and position.shape[1] != layout.length:
        old = _square_layout(position.shape[1], layout.class_token)
        if old is not None:
            state["pos_embed"] = resample_position(position, old, layout)
    return state


def _square_layout(length: int, class_token: str) -> TokenLayout | None:
    count = length - len(TokenLayout((0, 0), class_token).special)
    side = math.isqrt(max(count, 0))
    return TokenLayout((side, side), class_token) if side * side == count else None
