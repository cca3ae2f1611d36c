"""The selective scan on a CPU in C++: what the compiled library is called with.

It computes in float32: narrower inputs are widened for it, float64 and the full gradient are for
`blocked`.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vimlrp.kernels import compiled

__all__ = ["forward", "input_backward"]


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
    y = torch.empty(dt.shape, dtype=torch.float32, device=dt.device)
    _run(u, dt, A, B, C, D, index, reverse, y, adjoint=False)
    return y.to(u.dtype)


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
    batch, k, length, channels = dy.shape
    shape = (batch, 1 if shared else k, length, channels)
    du = torch.empty(shape, dtype=torch.float32, device=dy.device)
    _run(dy, dt, A, B, C, D, index, reverse, du, adjoint=True)
    return du.to(dy.dtype)


def _run(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    out: Tensor,
    *,
    adjoint: bool,
) -> None:
    """Fill `out` by the scan of x, or by the relevance pass of the gradient x."""
    x, dt, B, C = (_rows(t) for t in (x, dt, B, C))
    A, D = A.float(), None if D is None else D.float()
    index = None if index is None else index.contiguous()
    batch, k, length, channels = dt.shape
    call = compiled.ScanCall(
        *(batch, k, length, channels, B.shape[3], A.shape[2]),
        *(adjoint, out.shape[1] < k, torch.get_num_threads()),
        *(_operand(t) for t in (x, dt, B, C)),
        *(A.data_ptr(), *A.stride()),
        *((None, 0, 0) if D is None else (D.data_ptr(), *D.stride())),
        None if index is None else index.data_ptr(),
        # Bytes of Python's own; the call below keeps them alive as long as it runs.
        ctypes.cast(flags := ctypes.c_char_p(bytes(reverse)), ctypes.c_void_p),
        out.data_ptr(),
    )
    compiled.run_scan(call)
    del flags


def _rows(x: Tensor) -> Tensor:
    """In float32 with a contiguous last axis; a copy only where it is neither."""
    x = x.float()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _operand(x: Tensor) -> compiled.Operand:
    strides = x.stride()
    group = strides[3] if x.dim() == 5 else 0
    direction = strides[1] if x.shape[1] > 1 else 0  # one input for every direction
    return compiled.Operand(x.data_ptr(), strides[0], direction, strides[2], group)
