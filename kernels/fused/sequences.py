"""Element-wise runs of a Vim block as single operations, forward and in the relevance pass.

Between its projections and its scan a block adds, normalises, convolves, activates and gates; one
small PyTorch operation each, that is most of the time on a GPU. Each function here is one pass
over memory. None records a gradient: a `..._relevance` function is the backward that the MambaLRP
rules prescribe (Jafari et al., NeurIPS 2024), for a caller that arranges the whole block.

Inputs may be float32, bfloat16 or float16 in any mixture, with float32 arithmetic inside, or
float64 for the twin alone. They may be strided views, such as halves of one tensor; results have
neighbouring channels side by side. `backend` is "auto", "reference" for the plain PyTorch twin,
"native" for C++ on a CPU, which takes float32 alone, or "triton".
"""

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.fused import sequences_native, sequences_reference
from vimlrp.kernels.fused.checks import check_kinds, check_rank, check_room, check_shape
from vimlrp.kernels.fused.choosing import programs_for

__all__ = [
    "add_rms_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gate",
    "gate_relevance",
    "norm_relevance",
    "step",
]

_WIDEST = 8


@torch.no_grad()
def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, backend: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a branch to the residual stream and normalise the sum (Zhang and Sennrich, 2019).

    Args:
        hidden: The branch, (B, L, D).
        residual: The stream, (B, L, D), or None for zeros.
        weight: The norm's scale, (D,).
        eps: Added to the mean square.
        backend: See the module.

    Returns:
        The sum, (B, L, D), float32 at least; the normalised sum, (B, L, D), in the dtype of
        weight; and the inverse root mean square that it was multiplied by, (B, L), float32 at
        least.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(hidden=hidden, residual=residual, weight=weight)
    check_rank("hidden", hidden, "B, L, D")
    check_shape("residual", residual, hidden.shape, "hidden")
    check_shape("weight", weight, hidden.shape[2:], "hidden")
    run = _programs(backend, hidden, residual, weight)
    return run.add_rms_norm(hidden, residual, weight, eps)


@torch.no_grad()
def norm_relevance(
    at_normed: Tensor,
    at_stream: Tensor | None,
    weight: Tensor,
    inverse: Tensor,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pass a gradient through `add_rms_norm` with a constant normaliser (Ali et al., ICML 2022).

    Args:
        at_normed: The gradient at the normalised sum, (B, L, D).
        at_stream: The gradient at the sum from elsewhere, (B, L, D), or None for zeros.
        weight: The norm's scale, (D,).
        inverse: As returned by `add_rms_norm`, (B, L).
        backend: See the module.

    Returns:
        The gradient at both summands, (B, L, D), float32 at least for the stream; and once more in
        the dtype of at_normed for the branch.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(at_normed=at_normed, at_stream=at_stream, weight=weight, inverse=inverse)
    check_rank("at_normed", at_normed, "B, L, D")
    check_shape("at_stream", at_stream, at_normed.shape, "at_normed")
    check_shape("weight", weight, at_normed.shape[2:], "at_normed")
    check_shape("inverse", inverse, at_normed.shape[:2], "at_normed")
    run = _programs(backend, at_normed, at_stream, weight, inverse)
    return run.norm_relevance(at_normed, at_stream, weight, inverse)


@torch.no_grad()
def conv_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: Sequence[bool],
    *,
    backend: str = "auto",
) -> Tensor:
    """Convolve depthwise and causally along the sequence, once a direction, and take SiLU.

    Args:
        x: Input, (B, L, E).
        weight: Taps, (K, E, W) with W from 1 to 8; the last one meets the output's own position.
        bias: (K, E), or None.
        reverse: One flag a direction: whether the sequence is walked from its end.
        backend: See the module.

    Returns:
        The output, (B, K, L, E), in the dtype of x.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(x=x, weight=weight, bias=bias)
    _check_convolution(x, weight, bias, reverse)
    run = _programs(backend, x, weight, bias)
    return run.conv_silu(x, weight, bias, tuple(map(bool, reverse)))


@torch.no_grad()
def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: Sequence[bool],
    gamma: float,
    *,
    out_x: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pass a gradient through `conv_silu`: identity rule of SiLU, then generalised LRP-gamma.

    With c the convolution's output and p + n = c the sums of its positive and its negative
    contributions, the gradient at c is that at u times sigmoid(c), and input j receives it times
    c / (c + gamma v) times w_j + gamma w_j where w_j x_j has the sign of c, w_j elsewhere; v is p
    or n, whichever has the sign of c (MambaLRP, Eq. 4 and appendix C.2). Where c is 0 this is
    the plain gradient, as it is with gamma 0.

    Args:
        at_u: The gradient at the output of `conv_silu`, (B, K, L, E).
        x: Its input, (B, L, E).
        weight: Its taps, (K, E, W).
        bias: Its bias, (K, E), or None.
        reverse: Its flags.
        gamma: How much more the contributions of the winning sign count, 0 or more.
        out_x: Where to put the gradient at x, (B, L, E), apart from all inputs; rows may be
            strided.
        backend: See the module.

    Returns:
        The gradient at x, (B, L, E), which is `out_x` or in the dtype of x; and the relevance that
        the bias absorbs in each sample, (B,), float32 at least.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(x=x, at_u=at_u, weight=weight, bias=bias, out_x=out_x)
    _check_convolution(x, weight, bias, reverse)
    check_shape("at_u", at_u, (x.shape[0], len(weight), *x.shape[1:]), "x and weight")
    check_room("out_x", out_x, x.shape)
    if not 0 <= gamma < math.inf:
        raise KernelError(f"gamma is {gamma}; give a finite number of 0 or more.")
    run = _programs(backend, x, at_u, weight, bias, out_x)
    flags = tuple(map(bool, reverse))
    return run.conv_silu_relevance(at_u, x, weight, bias, flags, gamma, out_x)


@torch.no_grad()
def gate(y: Tensor, z: Tensor, scale: float, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Sum the directions of a scan and gate the sum with SiLU(z).

    Args:
        y: The scan's output, (B, K, L, E).
        z: The gate's input, (B, L, E).
        scale: Factor of the sum, such as 1 / K for a mean.
        backend: See the module.

    Returns:
        The gated signal and the signal before the gate, which is the scaled sum; (B, L, E) each,
        in the dtype of y.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(y=y, z=z)
    check_rank("y", y, "B, K, L, E")
    check_shape("z", z, (y.shape[0], *y.shape[2:]), "y")
    return _programs(backend, y, z).gate(y, z, scale)


@torch.no_grad()
def gate_relevance(
    at_gated: Tensor,
    signal: Tensor,
    z: Tensor,
    share_signal: float,
    share_gate: float,
    scale: float,
    *,
    out_z: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Pass a gradient through `gate`: fixed shares, and the identity rule of SiLU (Eqs. 9 and 4).

    Args:
        at_gated: The gradient at the gated signal, (B, L, E).
        signal: As returned by `gate`, (B, L, E).
        z: The gate's input, (B, L, E).
        share_signal: What part of the product's relevance the signal receives.
        share_gate: What part of it the gate receives.
        scale: As given to `gate`.
        out_z: Where to put the gradient at z, (B, L, E), apart from all inputs; rows may be
            strided.
        backend: See the module.

    Returns:
        The gradient at y, the same for every direction, (B, L, E), in the dtype of signal; and the
        gradient at z, (B, L, E), which is `out_z` or in the dtype of z.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(at_gated=at_gated, signal=signal, z=z, out_z=out_z)
    check_rank("at_gated", at_gated, "B, L, E")
    check_shape("signal", signal, at_gated.shape, "at_gated")
    check_shape("z", z, at_gated.shape, "at_gated")
    check_room("out_z", out_z, z.shape)
    run = _programs(backend, at_gated, signal, z, out_z)
    return run.gate_relevance(at_gated, signal, z, share_signal, share_gate, scale, out_z)


@torch.no_grad()
def step(low: Tensor, weight: Tensor, bias: Tensor, *, backend: str = "auto") -> Tensor:
    """The step of a scan, softplus(low @ weight^T + bias) per direction, linear above 20.

    Args:
        low: The low-rank input of the step, (B, K, L, R).
        weight: (K, E, R).
        bias: (K, E).
        backend: See the module.

    Returns:
        The step, (B, K, L, E), in the dtype of low.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_kinds(low=low, weight=weight, bias=bias)
    check_rank("low", low, "B, K, L, R")
    check_rank("weight", weight, "K, E, R")
    channels = weight.shape[1]
    check_shape("weight", weight, (low.shape[1], channels, low.shape[3]), "low")
    check_shape("bias", bias, (low.shape[1], channels), "weight")
    return _programs(backend, low, weight, bias).step(low, weight, bias)


def _programs(backend: str, *tensors: Tensor | None) -> ModuleType:
    """The module whose functions take the call."""
    chosen = programs_for("The fused operations", backend, *tensors)
    if chosen != "triton":
        return sequences_native if chosen == "native" else sequences_reference
    # Imported at first use: Triton is absent on most machines without a GPU.
    from vimlrp.kernels.fused import sequences_triton

    return sequences_triton


def _check_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: Sequence[bool]
) -> None:
    check_rank("x", x, "B, L, E")
    channels = x.shape[2]
    if weight.dim() != 3 or weight.shape[1] != channels or not 1 <= weight.shape[2] <= _WIDEST:
        raise KernelError(
            f"weight has shape {tuple(weight.shape)}; with x as given it must be "
            f"(K, {channels}, W) with W from 1 to {_WIDEST}."
        )
    if len(weight) < 1 or len(reverse) != len(weight):
        raise KernelError(
            f"There are {len(reverse)} flags in reverse and {len(weight)} directions in weight "
            "(its first dimension); give one flag a direction, and at least one direction."
        )
    check_shape("bias", bias, (len(weight), channels), "weight")
