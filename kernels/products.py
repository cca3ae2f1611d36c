"""Matrix products in float32 where PyTorch takes a slower library than there is.

On a CPU PyTorch gives plain products to MKL, whose fastest loops some processors do not get; its
own compiler calls oneDNN for them, and so does this module: twice as fast on an AMD EPYC of 2024.
On a CUDA GPU float32 is multiplied outside the matrix units; in three TF32 products, whose sum has
float32's precision (see `products_triton`), it takes half the time.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from vimlrp.errors import KernelError

__all__ = ["input_linear", "is_fast", "linear", "product", "product_each"]

# Multiplications on a CPU up to which the overhead of a call counts for more.
_SMALL = 1 << 18
# Rows on a GPU below which splitting the weights costs as much as it saves.
_FEWEST_ROWS = 1024
# The first generation of GPUs with TF32.
_AMPERE = (8, 0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, on a CPU by the fastest library.

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
    multiply = _operator()
    if wanted or multiply is None or not (_fit(*tensors) and is_fast(*tensors)):
        return F.linear(x, weight, bias)
    # The operator reads a bias as if its elements were neighbours.
    bias = None if bias is None else bias.contiguous()
    out: Tensor = multiply(x, weight, bias, "none", [], "")
    return out


def input_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear`, by the fastest library also where x alone is differentiated, and on a GPU.

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
    fast = _fit(x, *constants) and (is_fast(x, *constants) or _is_split(x, *constants))
    if not wanted or any(t.requires_grad for t in constants) or not fast:
        return linear(x, weight, bias)
    # As rows, so that what comes out is an ordinary view, which a caller may change in place.
    out: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.unflatten(0, x.shape[:-1])


@torch.no_grad()
def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """`linear` without a graph, for callers that arrange their own backward.

    Args:
        x: (..., C).
        weight: (D, C), in any layout.
        bias: (D,), or None.
        backend: "triton" for float32 in three TF32 products; or "auto", which takes these on a CUDA
            GPU for many rows, unless PyTorch is set to multiply float32 as TF32.

    Returns:
        The product, (..., D), in the dtype of x. In float32 its relative error is of the order of
        1e-7, whoever computes it; three products make NaN of infinite values.

    Raises:
        KernelError: If the backend does not exist or cannot take the call.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if backend not in ("auto", "triton"):
        raise KernelError(f"Products have no backend {backend!r}; choose 'auto' or 'triton'.")
    if backend == "triton" and any(t.dtype != torch.float32 for t in tensors):
        raise KernelError(
            f"The triton backend of products takes float32 alone, and was given {x.dtype} and "
            f"{weight.dtype}: convert both, or take 'auto'."
        )
    if backend == "triton" and not _fit(*tensors):
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise KernelError(f"x, weight and bias are {shapes}; give (..., C), (D, C) and (D,).")
    if backend == "auto" and not (_fit(*tensors) and _is_split(*tensors)):
        return linear(x, weight, bias)
    # Imported at first use: Triton is absent on most machines without a GPU.
    from vimlrp.kernels import products_triton

    return products_triton.linear(x, weight, bias)


def product_each(x: Tensor, weight: Tensor) -> Tensor:
    """`product` of K pairs of matrices: (K, M, C) and (K, D, C) to (K, M, D)."""
    if len(x) and _fit(x[0], weight[0]) and _is_split(x[0], weight[0]):
        return torch.stack([product(*pair) for pair in zip(x, weight, strict=True)])
    return torch.bmm(x, weight.transpose(1, 2))


class _Linear(torch.autograd.Function):
    """In the form that PyTorch's function transforms take."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 (its name)
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        at = gradients[0]
        graph = torch.is_grad_enabled() and at.requires_grad
        return (input_linear if graph else product)(at, weight.t()), None, None


def is_fast(x: Tensor, *others: Tensor) -> bool:
    """Whether `linear` has a faster library for these than PyTorch's own choice.

    Args:
        x: (..., C).
        *others: The weight, and perhaps the bias.
    """
    if x.dim() < 2 or x.numel() * others[0].shape[0] <= _SMALL:
        return False
    if not _is_ordinary("cpu", x, *others):
        return False
    return bool(torch.backends.mkldnn.enabled) and _operator() is not None


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the shapes are those of a product; PyTorch says what is wrong with others."""
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return False
    return bool(weight.shape[1]) and (bias is None or bias.shape == weight.shape[:1])


def _is_split(x: Tensor, *others: Tensor) -> bool:
    """Whether a GPU multiplies these in three TF32 products."""
    if not x.is_cuda or x.numel() < _FEWEST_ROWS * x.shape[-1]:
        return False
    if not _is_ordinary("cuda", x, *others):
        return False
    # Where TF32 is wished for, one product is faster than three.
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return exact and torch.cuda.get_device_capability(x.device) >= _AMPERE


def _is_ordinary(device: str, *tensors: Tensor) -> bool:
    """Whether these are float32 on such a device, and a call computes nothing but the product."""
    if any(t.dtype != torch.float32 or t.device.type != device for t in tensors):
        return False
    # A compiler chooses for itself, and a traced model may run elsewhere.
    if torch.compiler.is_compiling() or torch._C._get_tracing_state():
        return False
    # Function transforms and dispatch modes (counters of operations, say) know PyTorch's product.
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_autocast_enabled(device):
        return False
    # The libraries would drop the tangents of forward-mode differentiation.
    return all(unpack_dual(t).tangent is None for t in tensors)


@functools.cache
def _operator() -> Callable[..., Any] | None:
    """The operator that PyTorch's compiler calls, or None in a PyTorch without it."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
