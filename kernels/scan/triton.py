"""The selective scan on a CUDA GPU: what the Triton programs are launched with.

All reductions over blocks of channels and over the batch are sums of partial results in a fixed
order, without atomic additions, so that a run repeats bit for bit.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.launching import on_device
from vimlrp.kernels.scan.triton_chunked import chunked_kernel, scalar_kernel
from vimlrp.kernels.scan.triton_gradient import gradient_kernel, states_kernel
from vimlrp.kernels.scan.triton_gradient_scalar import kept_kernel, scalar_gradient_kernel
from vimlrp.kernels.scan.triton_regime import Regime, power_of_2, regime_of
from vimlrp.kernels.scan.triton_sequential import sequential_kernel

__all__ = ["forward", "full_backward", "input_backward"]

# Steps between two kept states in the full backward; the states of a chunk stay in the L2 cache.
_CHUNK = 8
# Most chunks side by side, and steps of each, in the full backward of a single state a channel.
_SCALAR_CHUNKS, _SCALAR_STEPS = 16, 4
# One flag per direction travels as one bit of an integer argument.
_MOST_DIRECTIONS = 31
_KERNELS = {
    "sequential": sequential_kernel,
    "chunked": chunked_kernel,
    "scalar": scalar_kernel,
}


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
    _run(u.expand(dt.shape), dt, A, B, C, D, index, reverse, y, relevance=False)
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
    _run(dy, dt, A, C, B, D, index, reverse, du, relevance=True)
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
    du = _input_gradient(dy, shared)
    ddt = torch.empty(dt.shape, dtype=dt.dtype, device=dt.device)
    single = A.shape[2] == 1
    sizes = (_scalar_sizes if single else _full_sizes)(dt, A, B, index, reverse)
    blocks = sizes["PER_GROUP"] * B.shape[3]
    dB, dC = dt.new_empty((2, *dt.shape[:3], blocks, A.shape[2]), dtype=torch.float32)
    dA = dt.new_empty((dt.shape[0], len(A), A.shape[2], A.shape[1]), dtype=torch.float32)
    dD = dt.new_empty((dt.shape[0], *A.shape[:2]), dtype=torch.float32)
    through = {"HAS_D": D is not None, "THROUGH_A": "A" in factors, "THROUGH_B": "B" in factors}
    outputs = (du, ddt, dA, dB, dC, dD)
    launch = _launch_scalar if single else _launch_full
    skip = dy if D is None else D
    launch((dy, u, dt, A, B, C, skip), outputs, index, sizes, through)
    return (
        du.sum(1, keepdim=True).to(u.dtype) if shared else du,
        ddt,
        dA.sum(0).transpose(1, 2).to(A.dtype),
        dB.unflatten(3, (B.shape[3], -1)).sum(4).to(B.dtype),
        dC.unflatten(3, (C.shape[3], -1)).sum(4).to(C.dtype),
        None if D is None else dD.sum(0).to(D.dtype),
    )


_Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _launch_full(
    inputs: _Inputs,
    outputs: _Outputs,
    index: Tensor | None,
    sizes: dict[str, Any],
    through: dict[str, bool],
) -> None:
    """Fill du, ddt, dA, dB, dC and dD from dy, u, dt, A, B, C and D."""
    dy, u, dt, A, B, C, skip = inputs
    du, _, dA, dB, _, dD = outputs
    starts = _states_before_chunks(u, dt, A, B, index, sizes)
    tile = _CHUNK * sizes["BLOCK_N"] * sizes["BLOCK_D"]
    grid = _grid(dt, B, sizes)
    states = dt.new_empty((grid[0], tile), dtype=torch.float32)
    with on_device(dy):
        gradient_kernel[grid](
            *inputs, starts, states, *outputs, dt if index is None else index,
            *_strides(dy, u, dt, A, B, C, skip, starts, du, dA, dB, dD), **through, **sizes,
        )  # fmt: skip


def _launch_scalar(
    inputs: _Inputs,
    outputs: _Outputs,
    index: Tensor | None,
    sizes: dict[str, Any],
    through: dict[str, bool],
) -> None:
    """As `_launch_full`, for a single state a channel."""
    dy, u, dt, A, B, C, skip = inputs
    du, _, dA, dB, _, dD = outputs
    kept = torch.empty(dt.shape, dtype=torch.float32, device=dt.device)
    wide = any(_is_wide(tensor) for tensor in (dy, u, dt, B, C, kept, dB))
    sizes = {**sizes, "WIDE": wide}
    grid, where = _grid(dt, B, sizes), dt if index is None else index
    with on_device(dy):
        kept_kernel[grid](u, dt, A, B, kept, where, *_strides(u, dt, A, B, kept), **sizes)
        scalar_gradient_kernel[grid](
            *inputs, kept, *outputs, where,
            *_strides(dy, u, dt, A, B, C, skip, du, dA, dB, dD), **through, **sizes,
        )  # fmt: skip


def _run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    into: Tensor,
    out_of: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    y: Tensor,
    *,
    relevance: bool,
) -> None:
    """Fill y: the scan of x, or with `relevance` the scan against the order of visit.

    Args:
        x: u, or the gradient at the output.
        dt: As for the scan, as are A, D, index and reverse.
        A: Decay rates.
        into: What x enters the state by: B, or C in the relevance pass.
        out_of: What the state is read by: C, or B in the relevance pass.
        D: Skip weights.
        index: Positions.
        reverse: Flags.
        y: The output.
        relevance: Which of the two.
    """
    (batch, directions, length), (_, channels, state) = dt.shape[:3], A.shape
    per_group = channels // into.shape[3]
    rows = batch * directions * channels
    regime = regime_of(rows, length, state, per_group, dt.element_size())
    # The programs load neighbouring channels of A together.
    A, skip = _channels_last(A), x if D is None else D
    with on_device(x):
        _KERNELS[regime.kernel][_grid(dt, into, regime.sizes(per_group))](
            x, dt, A, into, out_of, skip, y, dt if index is None else index,
            A.stride(0), A.stride(2), *_strides(x, dt, into, out_of, skip, y),
            dt.shape[2], _flags(reverse), per_group, A.shape[2], dt.shape[1], into.shape[3],
            HAS_D=D is not None, HAS_INDEX=index is not None, RELEVANCE=relevance,
            ALIGNED=min(_alignment(into), _alignment(out_of)),
            WIDE=any(_is_wide(tensor) for tensor in (x, dt, into, out_of, y)),
            **regime.sizes(per_group), **_pieces(regime, per_group, into, out_of),
        )  # fmt: skip


def _channels_last(A: Tensor) -> Tensor:
    """A (K, D, N) with neighbouring channels side by side in memory."""
    if A.shape[1] == 1 or A.stride(1) == 1:
        return A
    return A.transpose(1, 2).contiguous().transpose(1, 2)


def _alignment(x: Tensor) -> int:
    """Bytes, up to 16, of which the states of every position begin at a multiple; 0 if apart."""
    if x.stride(-1) != 1:
        return 0
    places = (x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1]))
    return math.gcd(16, *places)


def _is_wide(x: Tensor) -> bool:
    """Whether offsets along the sequence may not fit 32 bits."""
    return x.shape[2] * x.stride(2) >= 1 << 31


def _pieces(regime: Regime, per_group: int, into: Tensor, out_of: Tensor) -> dict[str, Any]:
    """What a program does at a time."""
    if regime.kernel != "sequential":
        return {"CHUNKS": regime.chunks, "STEPS": regime.steps, "num_warps": regime.warps}
    pieces = {
        "EVEN": per_group % regime.block_d == 0,
        "PAIRS": _pairs(into) and _pairs(out_of),
        "AHEAD": regime.steps,
        "num_warps": regime.warps,
    }
    return pieces if regime.registers is None else {**pieces, "maxnreg": regime.registers}


def _pairs(x: Tensor) -> bool:
    """Whether two neighbouring states can be loaded as one integer."""
    return x.shape[-1] % 2 == 0 and _alignment(x) >= 2 * x.element_size()


def _states_before_chunks(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, index: Tensor | None, sizes: dict[str, Any]
) -> Tensor:
    """The state before every chunk of steps, (B, K, ceil(L / chunk), N, D) float32."""
    chunks = triton.cdiv(dt.shape[2], _CHUNK)
    shape = (*dt.shape[:2], chunks, A.shape[2], A.shape[1])
    starts = torch.empty(shape, dtype=torch.float32, device=dt.device)
    with on_device(u):
        states_kernel[_grid(dt, B, sizes)](
            u, dt, A, B, starts, dt if index is None else index,
            *_strides(u, dt, A, B, starts), **sizes,
        )  # fmt: skip
    return starts


def _input_gradient(dy: Tensor, shared: bool) -> Tensor:
    """Room for du (B, K, L, D), in float32 where the directions are still to be summed."""
    return torch.empty(dy.shape, dtype=torch.float32 if shared else dy.dtype, device=dy.device)


def _full_sizes(
    dt: Tensor, A: Tensor, B: Tensor, index: Tensor | None, reverse: Sequence[bool]
) -> dict[str, Any]:
    """The arguments that both programs of the full gradient take after their strides.

    A program holds several states of 32 channels, fewer where there are many states.
    """
    per_group = A.shape[1] // B.shape[3]
    state = triton.next_power_of_2(A.shape[2])
    block = min(triton.next_power_of_2(per_group), max(4, min(32, 1024 // state)))
    return {
        "length": dt.shape[2],
        "reverse": _flags(reverse),
        "N": A.shape[2],
        "E": per_group,
        "K": dt.shape[1],
        "G": B.shape[3],
        "PER_GROUP": triton.cdiv(per_group, block),
        "HAS_INDEX": index is not None,
        "CHUNK": _CHUNK,
        "BLOCK_N": state,
        "BLOCK_D": block,
        "num_warps": 1,
    }


def _scalar_sizes(
    dt: Tensor, A: Tensor, B: Tensor, index: Tensor | None, reverse: Sequence[bool]
) -> dict[str, Any]:
    """As `_full_sizes`, for the programs of a single state a channel.

    Chunks of few steps, since the gradient holds four values of each in registers.
    """
    length, per_group = dt.shape[2], A.shape[1] // B.shape[3]
    block = min(power_of_2(per_group), 32)
    chunks = max(2, min(_SCALAR_CHUNKS, power_of_2(-(-length // _SCALAR_STEPS))))
    return {
        "length": length,
        "reverse": _flags(reverse),
        "E": per_group,
        "K": dt.shape[1],
        "G": B.shape[3],
        "PER_GROUP": triton.cdiv(per_group, block),
        "HAS_INDEX": index is not None,
        "CHUNKS": chunks,
        "STEPS": min(_SCALAR_STEPS, -(-length // chunks)),
        "BLOCK_D": block,
        "num_warps": max(1, min(8, chunks * block // 128)),
    }


def _flags(reverse: Sequence[bool]) -> int:
    if len(reverse) > _MOST_DIRECTIONS:
        raise KernelError(
            f"The triton backend was given {len(reverse)} directions; it takes up to "
            f"{_MOST_DIRECTIONS} a call. Split the call, or choose backend='reference'."
        )
    return sum(bool(back) << k for k, back in enumerate(reverse))


def _grid(dt: Tensor, B: Tensor, sizes: dict[str, Any]) -> tuple[int]:
    return (dt.shape[0] * dt.shape[1] * B.shape[3] * sizes["PER_GROUP"],)


def _strides(*tensors: Tensor) -> tuple[tuple[int, ...], ...]:
    return tuple(x.stride() for x in tensors)
