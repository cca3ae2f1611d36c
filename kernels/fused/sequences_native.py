"""The fused operations on sequences on a CPU in C++, in float32: what the programs are called with.

`sequences` documents and checks the arguments. What the bias of a convolution absorbs is summed per
run of channels, and those sums in a fixed order, so that a result does not depend on the number of
threads.
"""

import ctypes
import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from vimlrp.kernels import compiled

__all__ = [
    "add_rms_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gate",
    "gate_relevance",
    "norm_relevance",
    "step",
]


class _Operation(enum.IntEnum):
    """`Operation` in csrc/fused.h."""

    ADD_RMS_NORM = 0
    NORM_RELEVANCE = 1
    CONV_SILU = 2
    CONV_SILU_RELEVANCE = 3
    GATE = 4
    GATE_RELEVANCE = 5
    SOFTPLUS = 6


class _Rows(ctypes.Structure):
    """A tensor (B, K, L, E) or (B, L, E) by address and strides, counted in elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("direction", ctypes.c_int64),
        ("row", ctypes.c_int64),
    ]


class _Call(ctypes.Structure):
    """The arguments of one call; `FusedCall` in csrc/fused.h."""

    _fields_ = [
        ("operation", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("batch", "directions", "length", "channels")),
        *((name, ctypes.c_int64) for name in ("width", "threads")),
        *((name, ctypes.c_double) for name in ("first", "second")),
        ("in_", _Rows * 3),
        ("out", _Rows * 2),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("reverse", ctypes.c_char_p),
        ("column", ctypes.c_void_p),
    ]


def add_rms_norm(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`sequences.add_rms_norm`."""
    inputs = [_rows(hidden)] if residual is None else [_rows(hidden), _rows(residual)]
    stream, normed = _empty(*hidden.shape), _empty(*hidden.shape)
    inverse = _empty(*hidden.shape[:2])
    _run(
        _Operation.ADD_RMS_NORM, inputs, [stream, normed], weight=weight.contiguous(),
        column=inverse, first=eps,
    )  # fmt: skip
    return stream, normed, inverse


def norm_relevance(
    at_normed: Tensor, at_stream: Tensor | None, weight: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """`sequences.norm_relevance`."""
    inputs = [_rows(at_normed)] if at_stream is None else [_rows(at_normed), _rows(at_stream)]
    out = _empty(*at_normed.shape)
    _run(
        _Operation.NORM_RELEVANCE, inputs, [out], weight=weight.contiguous(),
        column=inverse.contiguous(),
    )  # fmt: skip
    return out, out


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: tuple[bool, ...]) -> Tensor:
    """`sequences.conv_silu`."""
    u = _empty(len(x), len(weight), *x.shape[1:])
    _run(
        _Operation.CONV_SILU, [_rows(x)], [u], weight=_taps(weight), bias=_whole(bias),
        directions=len(weight), width=weight.shape[2], reverse=reverse,
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
    at_x = _empty(*x.shape) if out_x is None else out_x
    runs = 0 if bias is None else -(-x.shape[2] // compiled.run_of_channels())
    absorbed = _empty(len(x), runs)
    _run(
        _Operation.CONV_SILU_RELEVANCE, [_rows(at_u), _rows(x)], [at_x],
        weight=_taps(weight), bias=_whole(bias),
        column=None if bias is None else absorbed,
        directions=len(weight), width=weight.shape[2], reverse=reverse, first=gamma,
    )  # fmt: skip
    return at_x, absorbed.sum(1)


def gate(y: Tensor, z: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`sequences.gate`."""
    gated, signal = _empty(*z.shape), _empty(*z.shape)
    _run(_Operation.GATE, [_rows(y), _rows(z)], [gated, signal], directions=y.shape[1], first=scale)
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
    at_y = _empty(*z.shape)
    at_z = _empty(*z.shape) if out_z is None else out_z
    _run(
        _Operation.GATE_RELEVANCE, [_rows(at_gated), _rows(signal), _rows(z)], [at_y, at_z],
        first=share_signal * scale, second=share_gate,
    )  # fmt: skip
    return at_y, at_z


def step(low: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`sequences.step`: the product by PyTorch, bias and softplus in its place."""
    dt = (low @ weight.transpose(1, 2)).contiguous()  # (B, K, L, E)
    _run(_Operation.SOFTPLUS, [dt], [dt], bias=bias.contiguous(), directions=dt.shape[1])
    return dt


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) of a float32 tensor of any shape."""
    rows = x.reshape(1, -1, x.shape[-1] if x.dim() else 1).contiguous()
    out = _empty(*rows.shape)
    _run(_Operation.SOFTPLUS, [rows], [out])
    return out.view(x.shape)


def _run(
    operation: _Operation,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    column: Tensor | None = None,
    directions: int = 1,
    width: int = 1,
    reverse: Sequence[bool] = (),
    first: float = 0.0,
    second: float = 0.0,
) -> None:
    """Call the library; outputs have (B, L, E) in their outer axes."""
    shape = outputs[0].shape
    call = _Call(
        *(operation, shape[0], directions, shape[-2], shape[-1], width),
        *(torch.get_num_threads(), first, second),
        tuple(map(_place, inputs)),
        tuple(map(_place, outputs)),
        *(_address(weight), _address(bias), bytes(reverse), _address(column)),
    )
    compiled.run_fused(call)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _place(x: Tensor) -> tuple[int, int, int, int]:
    """The fields of `_Rows`."""
    batch, *directions, row, _ = x.stride()
    return x.data_ptr(), batch, directions[0] if directions else 0, row


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _rows(x: Tensor) -> Tensor:
    """With a contiguous last axis; a copy only where it is not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _whole(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _taps(weight: Tensor) -> Tensor:
    """The taps with channels as neighbours, (K, W, E)."""
    return weight.transpose(1, 2).contiguous()
