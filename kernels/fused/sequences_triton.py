"""The fused operations on sequences on a CUDA GPU: what the Triton programs are launched with.

`sequences` documents and checks the arguments. Sums over the blocks of a sample are sums of partial
results in a fixed order, without atomic additions, so that a run repeats bit for bit.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from vimlrp.kernels.fused.launching import launch, present, rows, tile, tiles, whole_rows
from vimlrp.kernels.fused.sequences_triton_kernels import (
    add_rms_norm_kernel,
    conv_silu_kernel,
    conv_silu_relevance_kernel,
    gate_kernel,
    gate_relevance_kernel,
    norm_relevance_kernel,
    step_kernel,
)

__all__ = [
    "add_rms_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gate",
    "gate_relevance",
    "norm_relevance",
    "step",
]

# Channels of a program that walks, two a thread.
_CHANNELS = 128
# Positions whose loads such a program has under way at once, forward and in the relevance pass,
# which holds more in registers.
_UNROLL, _UNROLL_RELEVANCE = 4, 2
# Positions that one walks: short enough to fill the GPU several times over, long enough that the
# positions next to a chunk, which are read twice, are few.
_LONGEST, _SHORTEST = 64, 16
_THREADS = 1 << 19


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`sequences.add_rms_norm`."""
    hidden, weight = rows(hidden), weight.contiguous()
    summand = hidden if residual is None else rows(residual)
    shape = hidden.shape
    stream = torch.empty(shape, dtype=torch.float32, device=hidden.device)
    normed = torch.empty(shape, dtype=weight.dtype, device=hidden.device)
    inverse = torch.empty(shape[:2], dtype=torch.float32, device=hidden.device)
    sizes = whole_rows(shape)
    launch(
        add_rms_norm_kernel, tiles(shape, sizes), hidden, summand, weight, stream, normed, inverse,
        hidden.stride(), summand.stride(), shape[1], eps, shape[2],
        HAS_RESIDUAL=residual is not None, **sizes,
    )  # fmt: skip
    return stream, normed, inverse


def norm_relevance(
    at_normed: Tensor, at_stream: Tensor | None, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """`sequences.norm_relevance`."""
    at_normed, weight = rows(at_normed), weight.contiguous()
    summand = at_normed if at_stream is None else rows(at_stream)
    shape = at_normed.shape
    out = torch.empty(shape, dtype=torch.float32, device=at_normed.device)
    twice = at_normed.dtype != out.dtype
    narrow = torch.empty(shape, dtype=at_normed.dtype, device=out.device) if twice else out
    sizes = whole_rows(shape)
    launch(
        norm_relevance_kernel, tiles(shape, sizes), at_normed, summand, weight, inverse, out,
        narrow, at_normed.stride(), summand.stride(), inverse.stride(), shape[1], shape[2],
        HAS_STREAM=at_stream is not None, TWICE=twice, **sizes,
    )  # fmt: skip
    return out, narrow


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...]) -> Tensor:
    """`sequences.conv_silu`."""
    x = rows(x)
    u = _directions_first((len(x), len(weight), *x.shape[1:]), x)
    chunk, sizes = _walk(x, weight, bias, reverse, _UNROLL)
    launch(
        conv_silu_kernel, _walks(x, chunk, sizes), x, weight.contiguous(), present(bias, x), u,
        x.stride(), u.stride(), x.shape[1], chunk, x.shape[2], **sizes,
    )  # fmt: skip
    return u


def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    reverse: tuple[bool, ...],
    gamma: float,
    out_x: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sequences.conv_silu_relevance`."""
    at_u, x = rows(at_u), rows(x)
    at_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out_x is None else out_x
    chunk, sizes = _walk(x, weight, bias, reverse, _UNROLL_RELEVANCE)
    programs = _walks(x, chunk, sizes)
    per_sample = 0 if bias is None else programs // max(len(x), 1)
    absorbed = torch.empty((len(x), per_sample), dtype=torch.float32, device=x.device)
    launch(
        conv_silu_relevance_kernel, programs, at_u, x, weight.contiguous(), present(bias, x),
        at_x, absorbed, at_u.stride(), x.stride(), at_x.stride(), x.shape[1], chunk, float(gamma),
        x.shape[2], **sizes,
    )  # fmt: skip
    return at_x, absorbed.sum(1)


def gate(y: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`sequences.gate`."""
    y, z = rows(y), rows(z)
    gated, signal = (torch.empty(z.shape, dtype=y.dtype, device=y.device) for _ in range(2))
    sizes = tile(z.shape)
    launch(
        gate_kernel, tiles(z.shape, sizes), y, z, gated, signal, y.stride(), z.stride(),
        z.shape[1], float(scale), z.shape[2], K=y.shape[1], **sizes,
    )  # fmt: skip
    return gated, signal


def gate_relevance(
    at_gated: Tensor,
    signal: Tensor,
    z: Tensor,
    share_signal: float,
    share_gate: float,
    scale: float,
    out_z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`sequences.gate_relevance`."""
    at_gated, signal, z = rows(at_gated), rows(signal), rows(z)
    at_y = torch.empty(z.shape, dtype=signal.dtype, device=z.device)
    at_z = torch.empty(z.shape, dtype=z.dtype, device=z.device) if out_z is None else out_z
    sizes = tile(z.shape)
    launch(
        gate_relevance_kernel, tiles(z.shape, sizes), at_gated, signal, z, at_y, at_z,
        at_gated.stride(), signal.stride(), z.stride(), at_z.stride(), z.shape[1],
        float(share_signal * scale), float(share_gate), z.shape[2], **sizes,
    )  # fmt: skip
    return at_y, at_z


def step(low: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`sequences.step`."""
    low = rows(low)
    batch, directions, length, rank = low.shape
    channels = weight.shape[1]
    dt = _directions_first((batch, directions, length, channels), low)
    shape = torch.Size((batch * directions, length, channels))
    # In float32 a product has three parts, which take twice the registers.
    sizes = {"BLOCK_T": 32, "BLOCK_E": 128, "num_warps": 2 if low.element_size() == 2 else 4}
    # Matrix units multiply values of one type; Triton's interpreter cannot multiply bfloat16.
    wide = low.dtype != weight.dtype or not low.is_cuda
    launch(
        step_kernel, tiles(shape, sizes), low, weight, bias.contiguous(), dt,
        low.stride(), weight.stride(), dt.stride(), length, rank, channels, K=directions, WIDE=wide,
        EVEN=channels % sizes["BLOCK_E"] == 0,
        BLOCK_R=max(16, min(64, triton.next_power_of_2(rank))), **sizes,
    )  # fmt: skip
    return dt


def _directions_first(shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    """Room for (B, K, L, E), each direction's rows together: one matrix a direction."""
    batch, directions, length, channels = shape
    room = (directions, batch, length, channels)
    return torch.empty(room, dtype=like.dtype, device=like.device).transpose(0, 1)


def _walk(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...], unroll: int
) -> tuple[int, dict[str, Any]]:
    """The chunk of positions, and the constants, of programs that walk along the sequence."""
    batch, length, channels = x.shape
    width = weight.shape[2]
    fewest, most = triton.cdiv(length, _LONGEST), triton.cdiv(length, _SHORTEST)
    wanted = triton.cdiv(_THREADS, max(1, batch * channels))
    parts = max(fewest, min(most, wanted))
    # The last positions of a chunk take width - 1 steps more; together they fill whole rounds.
    steps = triton.cdiv(triton.cdiv(length, parts) + width - 1, unroll) * unroll
    block = max(32, min(_CHANNELS, triton.next_power_of_2(channels)))
    return steps - width + 1, {
        "K": len(weight),
        "W": width,
        "REVERSE": sum(back << k for k, back in enumerate(reverse)),
        "HAS_BIAS": bias is not None,
        "UNROLL": unroll,
        "BLOCK_E": block,
        "num_warps": max(1, block // 64),
    }


def _walks(x: Tensor, chunk: int, sizes: dict[str, Any]) -> int:
    parts = triton.cdiv(x.shape[1], chunk)
    return int(len(x) * parts * triton.cdiv(x.shape[2], sizes["BLOCK_E"]))
