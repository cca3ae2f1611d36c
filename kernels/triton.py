"""The selective scan on a CUDA GPU: what the Triton programs are launched with.

All reductions over blocks of channels and over the batch are sums of partial results in a fixed
order, without atomic additions, so that a run repeats bit for bit.
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.triton_kernels import gradient_kernel, relevance_kernel, scan_kernel

__all__ = ["forward", "full_backward", "input_backward"]

# Steps between two kept states in the full backward; the states of a chunk stay in the L2 cache.
_CHUNK = 8
# Channels of a large call above which a program of the light walks takes two for each thread: fewer
# programs, each with more independent work in flight, measured 12 % faster on an H200.
_MANY_CHANNELS = 3072 * 64
# One flag per direction travels as one bit of an integer argument.
_MOST_DIRECTIONS = 31


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
) -> Tensor:
    """The scan itself; arguments and result as in `reference.scan`, without a graph."""
    y = torch.empty(dt.shape, dtype=u.dtype, device=u.device)
    _scan(u, dt, A, B, C, D, index, reverse, y, None)
    return y


def input_backward(
    dy: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    shared: bool,
) -> Tensor:
    """The relevance pass; arguments and result as in `blocked.input_backward`."""
    du = _input_gradient(dy, shared)
    skip = dy if D is None else D
    with _on(dy):
        relevance_kernel[_grid(dt, A, B, light=True)](
            dy, dt, A, B, C, skip, du, dt if index is None else index,
            *_strides(dy, dt, A, B, C, skip, du), **_sizes(dt, A, B, D, index, reverse, light=True),
        )  # fmt: skip
    return du.sum(1, keepdim=True).to(dy.dtype) if shared else du


def full_backward(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    factors: Collection[str],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradient through the named factors, as in `blocked_full.full_backward`."""
    shared = u.shape[1] < dt.shape[1]
    u = u.expand(dt.shape)
    starts = _states_before_chunks(u, dt, A, B, C, index, reverse)
    du = _input_gradient(dy, shared)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    blocks = _blocks(dt, A, B) * B.shape[3]
    dB, dC = dt.new_empty((2, *dt.shape[:3], blocks, A.shape[2]), dtype=torch.float32)
    dA = dt.new_empty((dt.shape[0], len(A), A.shape[2], A.shape[1]), dtype=torch.float32)
    dD = dt.new_empty((dt.shape[0], *A.shape[:2]), dtype=torch.float32)
    sizes, skip = _sizes(dt, A, B, D, index, reverse), dy if D is None else D
    tile = _CHUNK * sizes["BLOCK_N"] * sizes["BLOCK_D"]
    states = dt.new_empty((_grid(dt, A, B)[0], tile), dtype=torch.float32)
    with _on(dy):
        gradient_kernel[_grid(dt, A, B)](
            dy, u, dt, A, B, C, skip, starts, states, du, ddt, dA, dB, dC, dD,
            dt if index is None else index,
            *_strides(dy, u, dt, A, B, C, skip, starts, du, dA, dB, dD),
            THROUGH_A="A" in factors, THROUGH_B="B" in factors, CHUNK=_CHUNK, **sizes,
        )  # fmt: skip
    return (
        du.sum(1, keepdim=True).to(u.dtype) if shared else du,
        ddt,
        dA.sum(0).transpose(1, 2).to(A.dtype),
        dB.unflatten(3, (B.shape[3], -1)).sum(4).to(B.dtype),
        dC.unflatten(3, (C.shape[3], -1)).sum(4).to(C.dtype),
        None if D is None else dD.sum(0).to(D.dtype),
    )


def _scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    y: Tensor | None,
    starts: Tensor | None,
) -> None:
    """Fill y, or the states before every chunk; the kernel never touches the other one."""
    u = u.expand(dt.shape)
    skip, out, kept = (u if x is None else x for x in (D, y, starts))
    with _on(u):
        scan_kernel[_grid(dt, A, B, light=True)](
            u, dt, A, B, C, skip, out, kept, dt if index is None else index,
            *_strides(u, dt, A, B, C, skip, out, kept),
            SAVE=starts is not None, CHUNK=_CHUNK,
            **_sizes(dt, A, B, D, index, reverse, light=True),
        )  # fmt: skip


def _states_before_chunks(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    index: Tensor | None,
    reverse: Sequence[bool],
) -> Tensor:
    """The state before every chunk of steps, (B, K, ceil(L / chunk), N, D) float32."""
    chunks = triton.cdiv(dt.shape[2], _CHUNK)
    shape = (*dt.shape[:2], chunks, A.shape[2], A.shape[1])
    starts = torch.empty(shape, dtype=torch.float32, device=dt.device)
    _scan(u, dt, A, B, C, None, index, reverse, None, starts)
    return starts


def _input_gradient(dy: Tensor, shared: bool) -> Tensor:
    """Room for du (B, K, L, D), in float32 where the directions are still to be summed."""
    return torch.empty(dy.shape, dtype=torch.float32 if shared else dy.dtype, device=dy.device)


def _tile(dt: Tensor, A: Tensor, B: Tensor, light: bool) -> tuple[int, int]:
    """BLOCK_N and BLOCK_D: a channel or two a thread of a single warp while its state is small.

    A light program holds one state; the full gradient holds several.
    """
    state = triton.next_power_of_2(A.shape[2])
    channels = triton.next_power_of_2(A.shape[1] // B.shape[3])
    many = dt.shape[0] * dt.shape[1] * dt.shape[3] >= _MANY_CHANNELS
    lanes = 64 if light and many else 32
    return state, min(channels, max(4, min(lanes, 32 * lanes // state)))


def _blocks(dt: Tensor, A: Tensor, B: Tensor, light: bool = False) -> int:
    """Blocks of channels in a group."""
    return int(triton.cdiv(A.shape[1] // B.shape[3], _tile(dt, A, B, light)[1]))


def _grid(dt: Tensor, A: Tensor, B: Tensor, light: bool = False) -> tuple[int]:
    return (dt.shape[0] * dt.shape[1] * B.shape[3] * _blocks(dt, A, B, light),)


def _sizes(
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    light: bool = False,
) -> dict[str, Any]:
    """The arguments that every program takes after its strides."""
    if len(reverse) > _MOST_DIRECTIONS:
        raise KernelError(
            f"The triton backend was given {len(reverse)} directions; it takes up to "
            f"{_MOST_DIRECTIONS} a call. Split the call, or choose backend='reference'."
        )
    block_n, block_d = _tile(dt, A, B, light)
    return {
        "length": dt.shape[2],
        "reverse": sum(bool(back) << k for k, back in enumerate(reverse)),
        "N": A.shape[2],
        "E": A.shape[1] // B.shape[3],
        "K": dt.shape[1],
        "G": B.shape[3],
        "PER_GROUP": _blocks(dt, A, B, light),
        "HAS_D": D is not None,
        "HAS_INDEX": index is not None,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": 1,
    }


def _strides(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(x.stride() for x in tensors)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Launch on the GPU of x; Triton's interpreter has none."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
