"""Autograd functions with a prescribed backward: the grammar in which the rules are written.

LRP runs here as gradient x input: a rule leaves the value of its site alone and changes only the
gradient, so that activation times gradient is the relevance (Jafari et al., MambaLRP, section 4).
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["share_product", "with_gradient_of", "with_gradients_of"]


class _WithGradientsOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *terms: Tensor) -> Tensor:
        ctx.save_for_backward(*terms[count:])
        ctx.dtypes = [carrier.dtype for carrier in terms[:count]]
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        passed = [(gradients[0] * factor).to(dtype) for factor, dtype in pairs]
        return None, None, *passed, *(None for _ in passed)


class _ShareProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, share_a: float, share_b: float) -> Tensor:
        ctx.save_for_backward(a if share_b else None, b if share_a else None)
        ctx.shares = share_a, share_b
        return a * b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, b = ctx.saved_tensors
        share_a, share_b = ctx.shares
        to_a = None if b is None else gradients[0] * b * share_a
        to_b = None if a is None else gradients[0] * a * share_b
        return to_a, to_b, None, None


def with_gradient_of(value: Tensor, carrier: Tensor, factor: Tensor) -> Tensor:
    """`value`, whose gradient is `factor` times that of `carrier`.

    Args:
        value: What the site computes; its own gradient is dropped.
        carrier: The tensor through which relevance flows, of the same shape.
        factor: A constant of the same shape.
    """
    return with_gradients_of(value, (carrier, factor))


def with_gradients_of(value: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """`value`, whose gradient is the sum over all terms of factor times that of carrier.

    Args:
        value: What the site computes; its own gradient is dropped.
        *terms: A carrier through which relevance flows and its factor, a constant; both of the
            shape of `value`.
    """
    carriers, factors = zip(*terms, strict=True)
    constants = (factor.detach() for factor in factors)
    out: Tensor = _WithGradientsOf.apply(value.detach(), len(terms), *carriers, *constants)
    return out


def share_product(a: Tensor, b: Tensor, share_a: float, share_b: float) -> Tensor:
    """`a * b`, whose relevance goes to its factors in the given shares.

    Under gradient x input each factor of a product receives the whole relevance of the product.

    Args:
        a: First factor.
        b: Second factor, of the same shape.
        share_a: What part of the product's relevance `a` receives.
        share_b: What part of the product's relevance `b` receives.
    """
    out: Tensor = _ShareProduct.apply(a, b, share_a, share_b)
    return out
