"""The fast scan and its gradients as operators of PyTorch's dispatcher.

Registered operators are opaque to `torch.compile`, visible by name to dispatch modes, and free
of an autograd graph inside. `grad="input"` keeps the factors and not u: the relevance pass needs
neither input nor states.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vimlrp.kernels.scan import blocked, blocked_full, mamba_ssm, native

__all__ = ["scan"]

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class _Implementation(NamedTuple):
    """The three functions of a backend; `blocked` and `blocked_full` document them."""

    forward: Callable[..., Tensor]
    input_backward: Callable[..., Tensor]
    full_backward: Callable[..., tuple[Tensor | None, ...]]


def _implementation(backend: str) -> _Implementation:
    if backend == "cpu":
        return _Implementation(blocked.forward, blocked.input_backward, blocked_full.full_backward)
    if backend == "native":
        return _Implementation(native.forward, native.input_backward, blocked_full.full_backward)
    if backend == "mamba_ssm":
        return _Implementation(mamba_ssm.forward, mamba_ssm.input_backward, mamba_ssm.full_backward)
    # Imported at first use: Triton is absent on most machines without a GPU.
    from vimlrp.kernels.scan import triton

    return _Implementation(triton.forward, triton.input_backward, triton.full_backward)


@torch.library.custom_op("vimlrp::selective_scan", mutates_args=())
def scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    _factors: str,
    backend: str,
) -> Tensor:
    """The scan on a fast backend; arguments and result as in `reference.scan`.

    The factors concern the backward alone, which reads them from the saved arguments.
    """
    if dt.numel() == 0:
        return _empty_output(u, dt)
    return _implementation(backend).forward(u, dt, A, B, C, D, index, reverse).contiguous()


@torch.library.custom_op("vimlrp::selective_scan_relevance", mutates_args=())
def relevance(
    dy: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    shared: bool,
    backend: str,
) -> Tensor:
    """The gradient to u with every factor constant, as in `blocked.input_backward`."""
    if dy.numel() == 0:
        return _empty_input(dy, shared)
    run = _implementation(backend).input_backward
    return run(dy, dt, A, B, C, D, index, reverse, shared).contiguous()


@torch.library.custom_op("vimlrp::selective_scan_gradient", mutates_args=())
def gradient(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    factors: str,
    backend: str,
) -> Gradients:
    """The gradient through the named factors, as in `blocked_full.full_backward`.

    Without D the last tensor is empty, since an operator returns no None.
    """
    if dy.numel() == 0:
        return _like_inputs(u, dt, A, B, C, D)
    *first, dD = _implementation(backend).full_backward(
        dy, u, dt, A, B, C, D, index, reverse, factors
    )
    # The strides are a promise to the compiler, made by the fake kernel.
    du, ddt, dA, dB, dC = (x.contiguous() for x in first if x is not None)
    return du, ddt, dA, dB, dC, A.new_empty(0) if dD is None else dD


def _empty_output(u: Tensor, dt: Tensor) -> Tensor:
    return dt.new_empty(dt.shape, dtype=u.dtype)


def _empty_input(dy: Tensor, shared: bool) -> Tensor:
    batch, k, length, channels = dy.shape
    return dy.new_empty((batch, 1 if shared else k, length, channels))


def _like_inputs(*inputs: Tensor | None) -> Gradients:
    """Zeros in the shapes of u, dt, A, B, C and D: the gradients of an empty batch."""
    zeros = [None if x is None else x.new_zeros(x.shape) for x in inputs]
    first = [z for z in zeros if z is not None]
    u, dt, A, B, C = first[:5]
    return u, dt, A, B, C, A.new_empty(0) if zeros[5] is None else zeros[5]


@scan.register_fake
def _(u: Tensor, dt: Tensor, *_: Any) -> Tensor:
    return _empty_output(u, dt)


@relevance.register_fake
def _(dy: Tensor, *rest: Any) -> Tensor:
    return _empty_input(dy, shared=rest[-2])


@gradient.register_fake
def _(_dy: Tensor, *rest: Any) -> Gradients:
    return _like_inputs(*rest[:6])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 (its name)
    """Keep what the backward reads: for the relevance pass that is not u."""
    u, dt, A, B, C, D, index, ctx.reverse, ctx.factors, ctx.backend = inputs
    ctx.shared = u.shape[1] < dt.shape[1]
    ctx.save_for_backward(None if ctx.factors == "u" else u, dt, A, B, C, D, index)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    u, dt, A, B, C, D, index = ctx.saved_tensors
    if u is None:
        du = relevance(dy, dt, A, B, C, D, index, ctx.reverse, ctx.shared, ctx.backend)
        return (du,) + (None,) * 9
    grads = gradient(dy, u, dt, A, B, C, D, index, ctx.reverse, ctx.factors, ctx.backend)
    reached = _reached(ctx.factors, D is not None)
    kept = [g if there else None for g, there in zip(grads, reached, strict=True)]
    return (*kept, None, None, None, None)


def _reached(factors: str, has_skip: bool) -> tuple[bool, ...]:
    """Which of u, dt, A, B, C and D have a gradient through the named factors."""
    through = {factor: factor in factors for factor in "uABC"}
    return (
        through["u"],
        through["A"] or through["B"],
        through["A"],
        through["B"],
        through["C"],
        has_skip and all(through.values()),
    )


scan.register_autograd(_backward, setup_context=_keep)
