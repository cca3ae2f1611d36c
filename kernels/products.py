"""Matrix products in float32 on a CPU by oneDNN, where PyTorch takes a slower library.

PyTorch gives plain products to MKL, whose fastest loops some processors do not get; its own
compiler calls oneDNN for them, and so does this module. On an AMD EPYC of 2024 that is twice as
fast.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = ["input_linear", "is_fast", "linear"]

# Multiplications up to which the overhead of a call counts for more.
_SMALL = 1 << 18


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, by the fastest library.

    Gradients flow as in PyTorch's function, which does the work wherever one is asked for.

    Args:
        x: (..., C).
        weight: (D, C), perhaps a transposed view.
        bias: (D,), or None.

    Returns:
        The product, (..., D).
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    multiply = _product()
    if wanted or multiply is None or not is_fast(*tensors):
        return F.linear(x, weight, bias)
    # The operator reads a bias as if its elements were neighbours.
    bias = None if bias is None else bias.contiguous()
    out: Tensor = multiply(x, weight, bias, "none", [], "")
    return out


def input_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear`, by the fastest library also where x alone is differentiated.

    It is a custom autograd Function then, which an explanation allows inside its sites only.

    Args:
        x: (..., C).
        weight: (D, C), perhaps a transposed view.
        bias: (D,), or None.

    Returns:
        The product, (..., D).
    """
    constants = (weight,) if bias is None else (weight, bias)
    wanted = torch.is_grad_enabled() and x.requires_grad
    if not wanted or any(t.requires_grad for t in constants) or not is_fast(x, *constants):
        return linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


class _Linear(torch.autograd.Function):
    """In the form that PyTorch's function transforms take."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 (its name)
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return input_linear(gradients[0], weight.t()), None, None


def is_fast(x: Tensor, *others: Tensor) -> bool:
    """Whether `linear` has a faster library for these than PyTorch's own choice.

    Args:
        x: (..., C).
        *others: The weight, and perhaps the bias.
    """
    if x.dim() < 2 or x.numel() * others[0].shape[0] <= _SMALL:
        return False
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (x, *others)):
        return False
    # A compiler chooses for itself, and a traced model may run elsewhere.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    # The operator would drop the tangents of forward-mode differentiation.
    if any(unpack_dual(t).tangent is not None for t in (x, *others)):
        return False
    return bool(torch.backends.mkldnn.enabled) and _product() is not None


@functools.cache
def _product() -> Callable[..., Any] | None:
    """The operator that PyTorch's compiler calls, or None in a PyTorch without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
