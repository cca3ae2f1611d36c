"""Element-wise runs of a VMamba block as single operations, forward and in the relevance pass.

What `sequences` is to Vim, on maps that keep their channels last: depthwise 3 x 3 convolutions,
layer norms, and the MLP's activation. Each function is one pass over memory. None records a
gradient: a `..._relevance` function is the backward that the MambaLRP rules prescribe (Jafari et
al., NeurIPS 2024), for a caller that arranges the whole block.

Inputs may be float32, bfloat16 or float16 in any mixture, with float32 arithmetic inside, or
float64 for the twin alone. They may be strided views; results have neighbouring channels side by
side. `backend` is "auto", "reference" for the plain PyTorch twin, "native" for C++ on a CPU, which
takes float32 alone, or "triton".
"""

import math
from types import ModuleType

import torch
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.fused import maps_native, maps_reference
from vimlrp.kernels.fused.checks import check_kinds, check_rank, check_room, check_shape
from vimlrp.kernels.fused.choosing import programs_for

__all__ = [
    "add_layer_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gelu_relevance",
    "layer_norm",
    "layer_norm_relevance",
]


@torch.no_grad()
def layer_norm(
    y: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Sum the routes of a scan and normalise the sum (Ba et al., 2016).

    Args:
        y: Summands, (B, K, L, C).
        weight: The norm's scale, (C,).
        bias: The norm's shift, (C,).
        eps: Added to the variance.
        backend: See the module.

    Returns:
        The normalised sum, (B, L, C), in the dtype of weight; and the inverse standard deviation
        that it was multiplied by, (B, L), float32 at least.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(y=y, weight=weight, bias=bias)
    check_rank("y", y, "B, K, L, C")
    check_shape("weight", weight, y.shape[3:], "y")
    check_shape("bias", bias, y.shape[3:], "y")
    return _programs(backend, y, weight, bias).layer_norm(y, weight, bias, eps)


@torch.no_grad()
def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    after: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum (Ba et al., 2016).

    Args:
        x: The stream, (B, L, C).
        branch: (B, L, C).
        weight: The norm's scale, (C,).
        bias: The norm's shift, (C,).
        eps: Added to the variance.
        after: Added to the sum once it is normalised, (C,), or None; such as the bias of a layer
            whose product is still to be added.
        backend: See the module.

    Returns:
        The sum, (B, L, C), in the dtype of x; and both results of `layer_norm`.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(x=x, branch=branch, weight=weight, bias=bias, after=after)
    check_rank("x", x, "B, L, C")
    check_shape("branch", branch, x.shape, "x")
    for name, row in (("weight", weight), ("bias", bias), ("after", after)):
        check_shape(name, row, x.shape[2:], "x")
    run = _programs(backend, x, branch, weight, bias, after)
    return run.add_layer_norm(x, branch, weight, bias, eps, after)


@torch.no_grad()
def layer_norm_relevance(
    at_normed: Tensor,
    at_stream: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    inverse: Tensor,
    *,
    after: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Pass a gradient through either norm with a constant divisor (Ali et al., ICML 2022).

    The centring stays a function of the input, so that a row's gradient at the normalised sum,
    times weight, loses its mean.

    Args:
        at_normed: The gradient at the normalised sum, (B, L, C).
        at_stream: The gradient at the sum from elsewhere, (B, L, C), or None for zeros.
        weight: The norm's scale, (C,).
        bias: The norm's shift, (C,).
        inverse: As returned by the norm, (B, L).
        after: As given to `add_layer_norm`.
        backend: See the module.

    Returns:
        The gradient at every summand, (B, L, C), in the dtype of at_normed; the relevance that
        `bias` absorbs in each sample, (B,), float32 at least; and what `after` absorbs likewise.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(
        at_normed=at_normed, at_stream=at_stream, weight=weight, bias=bias, inverse=inverse,
        after=after,
    )  # fmt: skip
    check_rank("at_normed", at_normed, "B, L, C")
    check_shape("at_stream", at_stream, at_normed.shape, "at_normed")
    for name, row in (("weight", weight), ("bias", bias), ("after", after)):
        check_shape(name, row, at_normed.shape[2:], "at_normed")
    check_shape("inverse", inverse, at_normed.shape[:2], "at_normed")
    run = _programs(backend, at_normed, at_stream, weight, bias, inverse, after)
    return run.layer_norm_relevance(at_normed, at_stream, weight, bias, inverse, after)


@torch.no_grad()
def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, *, backend: str = "auto") -> Tensor:
    """Convolve each channel of a map with 3 x 3 taps, zeros around the map, and take SiLU.

    Args:
        x: Input, (B, H, W, C).
        weight: Taps, (C, 3, 3).
        bias: (C,), or None.
        backend: See the module.

    Returns:
        The output, (B, H, W, C), in the dtype of x.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(x=x, weight=weight, bias=bias)
    _check_convolution(x, weight, bias)
    return _programs(backend, x, weight, bias).conv_silu(x, weight, bias)


@torch.no_grad()
def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: float,
    *,
    out_x: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pass a gradient through `conv_silu`: identity rule of SiLU, then generalised LRP-gamma.

    The equations are those of `sequences.conv_silu_relevance`.

    Args:
        at_u: Summands of the gradient at the output of `conv_silu`, one a route of the scan that
            reads it, (B, K, H, W, C).
        x: Its input, (B, H, W, C).
        weight: Its taps, (C, 3, 3).
        bias: Its bias, (C,), or None.
        gamma: How much more the contributions of the winning sign count, 0 or more.
        out_x: Where to put the gradient at x, (B, H, W, C), apart from all inputs; cells may be
            strided.
        backend: See the module.

    Returns:
        The gradient at x, (B, H, W, C), which is `out_x` or in the dtype of x; and the relevance
        that the bias absorbs in each sample, (B,), float32 at least.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(x=x, at_u=at_u, weight=weight, bias=bias, out_x=out_x)
    _check_convolution(x, weight, bias)
    check_rank("at_u", at_u, "B, K, H, W, C")
    check_shape("at_u", at_u, (len(x), at_u.shape[1], *x.shape[1:]), "x")
    check_room("out_x", out_x, x.shape)
    if not 0 <= gamma < math.inf:
        raise KernelError(f"gamma is {gamma}; give a finite number of 0 or more.")
    run = _programs(backend, x, at_u, weight, bias, out_x)
    return run.conv_silu_relevance(at_u, x, weight, bias, gamma, out_x)


@torch.no_grad()
def gelu_relevance(
    at: Tensor, x: Tensor, bias: Tensor, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Pass a gradient through GELU by the identity rule (Eq. 4), and on to a bias before it.

    The forward pass is `torch.nn.functional.gelu`, which is one pass over memory already.

    Args:
        at: The gradient at GELU(x), (B, L, C).
        x: The input of GELU, (B, L, C).
        bias: What the layer before added to make x, (C,).
        backend: See the module.

    Returns:
        The gradient at x, which is `at` times Phi(x), (B, L, C), in the dtype of x; and the
        relevance that the bias absorbs in each sample, (B,), float32 at least.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(at=at, x=x, bias=bias)
    check_rank("at", at, "B, L, C")
    check_shape("x", x, at.shape, "at")
    check_shape("bias", bias, at.shape[2:], "at")
    return _programs(backend, at, x, bias).gelu_relevance(at, x, bias)


def _programs(backend: str, *tensors: Tensor | None) -> ModuleType:
    """The module whose functions take the call."""
    chosen = programs_for("The fused operations on maps", backend, *tensors)
    if chosen != "triton":
        return maps_native if chosen == "native" else maps_reference
    # Imported at first use: Triton is absent on most machines without a GPU.
    from vimlrp.kernels.fused import maps_triton

    return maps_triton


def _check_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_rank("x", x, "B, H, W, C")
    check_shape("weight", weight, (x.shape[3], 3, 3), "x")
    check_shape("bias", bias, x.shape[3:], "x")
