"""A copy of a model to run plain methods on, so that nothing is left behind on the user's own."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.engine import check_eager
from vimlrp.errors import TargetError, UnsupportedModelError

__all__ = ["TargetLogit", "frozen_copy"]


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copy a model's modules in evaluation mode around its own, frozen parameters and buffers.

    Hooks, gradients and flags that a method sets are those of the copy. As its parameters take no
    gradient, a backward pass to the pixels computes and keeps none for them.

    Args:
        model: Any module; it is only read.

    Raises:
        UnsupportedModelError: If the model is compiled or cannot be copied.
    """
    check_eager(model)
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    stand_ins: dict[int, Any] = {id(x): _stand_in(x) for x in tensors}
    try:
        return copy.deepcopy(model, stand_ins).eval()
    except (TypeError, RuntimeError, copy.Error) as error:
        raise UnsupportedModelError(
            f"the {type(model).__name__} cannot be copied ({error}), and plain methods run on a "
            "copy: let copy.deepcopy(model) work"
        ) from error


def _stand_in(x: Tensor) -> Tensor:
    frozen = x.detach()
    return nn.Parameter(frozen, requires_grad=False) if isinstance(x, nn.Parameter) else frozen


class TargetLogit(nn.Module):
    """The logit of one class a sample, as a function of the pixels.

    Args:
        model: Returns logits (B, classes).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) and (B,) to (B,).

        Raises:
            UnsupportedModelError: If the model returns no logits.
            TargetError: If the model has no such class.
        """
        logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
            given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModelError(
                f"the model returned {given} for {len(x)} images; a classifier returns (B, C)"
            )
        wrong = target[(target < 0) | (target >= logits.shape[1])]
        if wrong.numel():
            raise TargetError(
                f"target {int(wrong[0])} is out of range: the model has classes 0 to "
                f"{logits.shape[1] - 1}"
            )
        return torch.gather(logits, 1, target.unsqueeze(1)).squeeze(1)
