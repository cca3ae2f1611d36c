"""Attribution methods by name: every composite, and the baselines."""

import torch
from torch import Tensor, nn

from vimlrp.baselines import METHODS, method
from vimlrp.baselines.contract import Function
from vimlrp.baselines.lrp import CompositeMethod
from vimlrp.composites import COMPOSITES
from vimlrp.errors import InputError

__all__ = ["CompositeMethod", "Method", "explained_by", "method_named", "method_names"]

Method = Function
"""From a model, preprocessed images (B, 3, H, W) on its device and classes (B,) int64 to signed
maps (B, H, W) in float32: positive where a pixel speaks for the class."""


_PLAIN = ("gradient_x_input",)
"""Composites whose maps any model has, by automatic differentiation and without rules."""


def method_names() -> tuple[str, ...]:
    """The names that `method_named` takes."""
    return tuple(dict.fromkeys([*COMPOSITES, *METHODS]))


def method_named(name: str) -> Method:
    """A method by its name.

    "gradient_x_input" is the baseline, which takes any model; for its account, take
    `CompositeMethod("gradient_x_input")`.

    Args:
        name: Of a composite (`vimlrp.COMPOSITES`) or of a baseline (`vimlrp.baselines.METHODS`).

    Raises:
        InputError: If there is no such method.
    """
    return CompositeMethod(name) if name in COMPOSITES and name not in _PLAIN else method(name)


def explained_by(method: Method, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Run a method and check what it returns.

    Args:
        method: See `Method`, as for the arguments that follow.
        model: A classifier.
        x: (B, 3, H, W).
        target: (B,).

    Returns:
        Maps (B, H, W) in float32, without gradients.

    Raises:
        InputError: If the method returns something else.
    """
    maps = method(model, x, target)
    wanted = (len(x), *x.shape[-2:])
    if not isinstance(maps, Tensor) or tuple(maps.shape) != wanted:
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise InputError(f"a method returned {given}; it must return a tensor of shape {wanted}")
    return maps.detach().to(x.device, torch.float32)
