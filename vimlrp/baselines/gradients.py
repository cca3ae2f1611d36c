"""Maps out of one gradient of the target's logit at the pixels."""

import torch
from torch import Tensor, nn

from vimlrp.baselines.frozen import TargetLogit, frozen_copy
from vimlrp.errors import UnsupportedModelError

__all__ = ["gradient", "gradient_x_input", "saliency"]


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The plain gradient, summed over colours with its sign.

    Args:
        model: A differentiable classifier.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        Logit per unit of the input, (B, H, W).

    Raises:
        UnsupportedModelError: If no gradient reaches the pixels.
    """
    return _slope(model, x, target).sum(1)


def saliency(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The size of the gradient, its maximum over colours.

    Simonyan, Vedaldi and Zisserman 2014, https://arxiv.org/abs/1312.6034, section 3.1.

    Args:
        model: As for `gradient`, as are the arguments that follow.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        Logit per unit of the input, not negative, (B, H, W).
    """
    return _slope(model, x, target).abs().amax(1)


def gradient_x_input(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient times the preprocessed input, summed over colours.

    Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713, section 3.1. The composite of this
    name, under which `vimlrp.explain` also accounts for everything but pixels, gives the same.

    Args:
        model: As for `gradient`, as are the arguments that follow.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        Shares of the logit, (B, H, W).
    """
    return (_slope(model, x, target) * x).sum(1)


def _slope(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The gradient at the input, (B, 3, H, W)."""
    logit = TargetLogit(frozen_copy(model))
    with torch.enable_grad():
        pixels = x.detach().requires_grad_()
        value = logit(pixels, target).sum()
        if not value.requires_grad:
            raise UnsupportedModelError(
                f"the logits of the {type(model).__name__} have no gradient at the pixels: take "
                "detach() and no_grad() out of its forward"
            )
        return torch.autograd.grad(value, pixels)[0]
