"""Float32 products on the matrix units of a CUDA GPU, in three TF32 products each.

Every factor is the sum of a high part, which TF32 holds exactly, and a low one (Ootomo and Yokota,
IJHPCA 2022): high times high, high times low and low times high together are the product to the
precision of float32. The matrix units cut their running sums short, so that they add up few terms
at a time, and an ordinary sum collects these.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from vimlrp.kernels.launching import on_device

__all__ = ["linear"]

_BLOCK_M, _BLOCK_N, _BLOCK_K = 128, 64, 32
# Blocks of rows whose programs run side by side, so that they find the weights in the cache.
_GROUP = 8


@triton.jit
def high_part(x):
    """`x` rounded to the eleven significant bits of TF32."""
    return ((x.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def split_kernel(weight, high, low, stride_n, stride_k, N, K, BLOCK: tl.constexpr):
    """Both parts of a matrix (N, K), row by row in memory."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N * K
    value = tl.load(weight + (at // K) * stride_n + (at % K) * stride_k, inside, 0.0)
    above = high_part(value)
    tl.store(high + at, above, inside)
    # Rounding the bits of a NaN can make a number of it: the low part keeps it.
    rest = tl.where(value == value, high_part(value - above), value)
    tl.store(low + at, rest, inside)


@triton.jit
def linear_kernel(
    x, high, low, bias, out, x_stride, out_stride, M, N, K,
    HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of x (M, K) times the transpose of high + low (N, K), plus the bias (N,)."""
    columns = tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    rows = tl.minimum(tl.cdiv(M, BLOCK_M) - first, GROUP)
    inner = tl.program_id(0) % (GROUP * columns)
    m = (first + inner % rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = inner // rows * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # What lies past the end reads the last row, and is not stored.
    x += tl.minimum(m, M - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    at = tl.minimum(n, N - 1)[None, :] * K + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if EVEN:
            value = tl.load(x + start)
            h, l = tl.load(high + at + start), tl.load(low + at + start)  # noqa: E741
        else:
            inside = k < K - start
            value = tl.load(x + start, inside[None, :], 0.0)
            h = tl.load(high + at + start, inside[:, None], 0.0)
            l = tl.load(low + at + start, inside[:, None], 0.0)  # noqa: E741
        above = high_part(value)
        part = tl.dot(value - above, h, input_precision="tf32")
        part = tl.dot(above, l, part, input_precision="tf32")
        total += tl.dot(above, h, part, input_precision="tf32")
    if HAS_BIAS:
        total += tl.load(bias + n, n < N, 0.0)[None, :]
    out += m.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(out, total, (m < M)[:, None] & (n < N)[None, :])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`products.product` for float32."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    (m, k), n = rows.shape, len(weight)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    high, low = torch.empty((2, n, k), dtype=x.dtype, device=x.device)
    if m and n:
        programs = triton.cdiv(m, _BLOCK_M) * triton.cdiv(n, _BLOCK_N)
        with on_device(x):
            split_kernel[(triton.cdiv(n * k, 1024),)](
                weight, high, low, *weight.stride(), n, k, BLOCK=1024
            )
            linear_kernel[(programs,)](
                rows, high, low, out if bias is None else bias.contiguous(), out,
                rows.stride(0), out.stride(0), m, n, k,
                HAS_BIAS=bias is not None, EVEN=k % _BLOCK_K == 0, GROUP=_GROUP,
                BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, BLOCK_K=_BLOCK_K, num_warps=8, num_stages=4,
            )  # fmt: skip
    return out.view(*x.shape[:-1], n)
