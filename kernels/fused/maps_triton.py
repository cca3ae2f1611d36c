"""The fused operations on maps on a CUDA GPU: what their Triton programs are launched with.

`maps` documents and checks the arguments. Sums over the blocks of a sample are sums of partial
results in a fixed order, without atomic additions, so that a run repeats bit for bit.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from vimlrp.kernels.fused.launching import launch, present, rows, tile, tiles, whole_rows
from vimlrp.kernels.fused.maps_triton_kernels import (
    conv_silu_map_kernel,
    conv_silu_map_relevance_kernel,
    gelu_relevance_kernel,
    layer_norm_kernel,
    layer_norm_relevance_kernel,
)

__all__ = [
    "add_layer_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gelu_relevance",
    "layer_norm",
    "layer_norm_relevance",
]

# Map rows of a program that walks: more of them read their neighbours less often, and need more
# registers.
_ROWS = 4
# Channels of such a program, one a thread of one warp.
_CHANNELS = 32
# Columns that one walks at least, and programs that fill the GPU.
_SHORTEST = 8
_PROGRAMS = 1 << 11


def layer_norm(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`maps.layer_norm`."""
    _, normed, inverse = _normalise(y, None, weight, bias, eps, None)
    return normed, inverse


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, after: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.add_layer_norm`."""
    return _normalise(x.unsqueeze(1), branch, weight, bias, eps, after)


def layer_norm_relevance(
    at_normed: Tensor,
    at_stream: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    inverse: Tensor,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.layer_norm_relevance`."""
    at_normed = rows(at_normed)
    summand = at_normed if at_stream is None else rows(at_stream)
    shape, device = at_normed.shape, at_normed.device
    has_after = at_stream is not None and after is not None
    sizes = whole_rows(shape)
    parts = triton.cdiv(shape[1], sizes["BLOCK_T"])
    out = torch.empty(shape, dtype=at_normed.dtype, device=device)
    # Of the bias and of `after`, program by program.
    room = torch.empty if has_after else torch.zeros
    absorbed = room((2, len(out), parts), dtype=torch.float32, device=device)
    launch(
        layer_norm_relevance_kernel, tiles(shape, sizes), at_normed, summand,
        weight.contiguous(), bias.contiguous(), inverse, present(after, out), out, absorbed,
        at_normed.stride(), summand.stride(), inverse.stride(), shape[1], shape[2],
        HAS_STREAM=at_stream is not None, HAS_AFTER=has_after, **sizes,
    )  # fmt: skip
    by_bias, by_after = absorbed.sum(2)
    return out, by_bias, by_after


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`maps.conv_silu`."""
    x = rows(x)
    u = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    chunk, programs = _walk(x)
    launch(
        conv_silu_map_kernel, programs, x, weight.contiguous(), present(bias, x), u,
        x.stride(), u.stride(), x.shape[1], x.shape[2], chunk, x.shape[3], **_sizes(bias),
    )  # fmt: skip
    return u


def conv_silu_relevance(
    at_u: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: float,
    out_x: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`maps.conv_silu_relevance`."""
    at_u, x = rows(at_u), rows(x)
    at_x = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out_x is None else out_x
    chunk, programs = _walk(x)
    per_sample = 0 if bias is None else programs // max(len(x), 1)
    absorbed = torch.empty((len(x), per_sample), dtype=torch.float32, device=x.device)
    route = at_u[:, 0]
    launch(
        conv_silu_map_relevance_kernel, programs, at_u, x, weight.contiguous(), present(bias, x),
        at_x, absorbed, route.stride(), x.stride(), at_x.stride(), at_u.stride(1),
        x.shape[1], x.shape[2], chunk, float(gamma), x.shape[3], K=at_u.shape[1], **_sizes(bias),
    )  # fmt: skip
    return at_x, absorbed.sum(1)


def gelu_relevance(at: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`maps.gelu_relevance`."""
    at, x = rows(at), rows(x)
    at_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = tile(x.shape)
    programs = tiles(x.shape, sizes)
    per_sample = programs // max(len(x), 1)
    absorbed = torch.empty((len(x), per_sample), dtype=torch.float32, device=x.device)
    launch(
        gelu_relevance_kernel, programs, at, x, bias.contiguous(), at_x, absorbed,
        at.stride(), x.stride(), x.shape[1], x.shape[2], **sizes,
    )  # fmt: skip
    return at_x, absorbed.sum(1)


def _normalise(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum (B, K, L, C) over K, or add a branch, and normalise; the sum is kept with a branch."""
    x = rows(x)
    batch, routes, length, channels = x.shape
    shape = torch.Size((batch, length, channels))
    normed = torch.empty(shape, dtype=weight.dtype, device=x.device)
    inverse = torch.empty(shape[:2], dtype=torch.float32, device=x.device)
    stream = normed
    if branch is not None:
        branch = rows(branch)
        stream = torch.empty(shape, dtype=x.dtype, device=x.device)
    summand = normed if branch is None else branch
    sizes = whole_rows(shape)
    launch(
        layer_norm_kernel, tiles(shape, sizes), x, summand, weight.contiguous(),
        bias.contiguous(), present(after, normed), stream, normed, inverse,
        x.stride(), summand.stride(), length, float(eps), channels, K=routes,
        HAS_BRANCH=branch is not None, HAS_AFTER=after is not None, **sizes,
    )  # fmt: skip
    return stream, normed, inverse


def _walk(x: Tensor) -> tuple[int, int]:
    """The chunk of columns that a program walks, and how many programs there are."""
    batch, height, width, channels = x.shape
    bands = batch * triton.cdiv(height, _ROWS) * triton.cdiv(channels, _CHANNELS)
    wanted = triton.cdiv(_PROGRAMS, max(1, bands))
    parts = max(1, min(wanted, width // _SHORTEST))
    chunk = triton.cdiv(width, parts)
    return chunk, bands * triton.cdiv(width, chunk)


def _sizes(bias: Tensor | None) -> dict[str, Any]:
    """The constants of the programs that walk."""
    return {"HAS_BIAS": bias is not None, "ROWS": _ROWS, "BLOCK_E": _CHANNELS, "num_warps": 1}
