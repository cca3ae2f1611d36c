"""The fused operations on maps on a CPU in C++, in float32: what their programs are called with.

`maps` documents and checks the arguments. What a bias absorbs is summed per row or per channel, and
those sums in a fixed order, so that a result does not depend on the number of threads.
"""

import ctypes
import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from vimlrp.kernels import compiled

__all__ = [
    "add_layer_norm",
    "conv_silu",
    "conv_silu_relevance",
    "gamma_shares",
    "gelu_ratio",
    "gelu_relevance",
    "layer_norm",
    "layer_norm_relevance",
]


class _Operation(enum.IntEnum):
    """`MapOperation` in csrc/maps.h."""

    LAYER_NORM = 0
    ADD_LAYER_NORM = 1
    LAYER_NORM_RELEVANCE = 2
    CONV_SILU = 3
    CONV_SILU_RELEVANCE = 4
    GELU_RELEVANCE = 5
    GAMMA_SHARES = 6
    GELU_RATIO = 7


class _Cells(ctypes.Structure):
    """A tensor (B, K, H, W, C) by address and strides, counted in elements."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "route", "line", "cell")),
    ]


_Place = tuple[int, int, int, int, int]


class _Call(ctypes.Structure):
    """The arguments of one call; `MapCall` in csrc/maps.h."""

    _fields_ = [
        ("operation", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("batch", "routes", "height", "width", "channels")),
        ("threads", ctypes.c_int64),
        ("first", ctypes.c_double),
        ("in_", _Cells * 2),
        ("out", _Cells * 2),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "after")),
        *((name, ctypes.c_void_p) for name in ("inverse", "absorbed", "by_after")),
    ]


def layer_norm(y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`maps.layer_norm`."""
    y = _near(y)
    batch, routes, length, channels = y.shape
    normed, inverse = _empty(batch, length, channels), _empty(batch, length)
    _run(
        _Operation.LAYER_NORM, [_routes(y)], [_rows(normed)], (batch, routes, length, 1, channels),
        weight=weight, bias=bias, inverse=inverse, first=eps,
    )  # fmt: skip
    return normed, inverse


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float, after: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.add_layer_norm`."""
    x, branch = _near(x), _near(branch)
    stream, normed, inverse = _empty(*x.shape), _empty(*x.shape), _empty(*x.shape[:2])
    _run(
        _Operation.ADD_LAYER_NORM, [_rows(x), _rows(branch)], [_rows(stream), _rows(normed)],
        _sides_of_rows(x), weight=weight, bias=bias, after=after, inverse=inverse, first=eps,
    )  # fmt: skip
    return stream, normed, inverse


def layer_norm_relevance(
    at_normed: Tensor,
    at_stream: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    inverse: Tensor,
    after: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`maps.layer_norm_relevance`."""
    given = [_near(x) for x in (at_normed, at_stream) if x is not None]
    out, sums = _empty(*at_normed.shape), _empty(2, *inverse.shape)
    _run(
        _Operation.LAYER_NORM_RELEVANCE, [_rows(x) for x in given], [_rows(out)],
        _sides_of_rows(out), weight=weight, bias=bias, after=after,
        inverse=inverse.contiguous(), absorbed=sums[0], by_after=sums[1],
    )  # fmt: skip
    absorbed, by_after = sums.sum(2)
    return out, absorbed, by_after


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`maps.conv_silu`."""
    x, u = _near(x), _empty(*x.shape)
    _run(
        _Operation.CONV_SILU, [_cells(x)], [_cells(u)], _sides_of_map(x),
        weight=_taps(weight), bias=bias,
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
    at_u, x = _near(at_u), _near(x)
    at_x = _empty(*x.shape) if out_x is None else out_x
    absorbed = _empty(len(x), 0 if bias is None else x.shape[3])
    _run(
        _Operation.CONV_SILU_RELEVANCE, [_cells(at_u), _cells(x)], [_cells(at_x)],
        _sides_of_map(x, at_u.shape[1]), weight=_taps(weight), bias=bias,
        absorbed=None if bias is None else absorbed, first=gamma,
    )  # fmt: skip
    return at_x, absorbed.sum(1)


def gelu_relevance(at: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """`maps.gelu_relevance`."""
    at, x = _near(at), _near(x)
    out, absorbed = _empty(*x.shape), _empty(*x.shape[:2])
    _run(
        _Operation.GELU_RELEVANCE, [_rows(at), _rows(x)], [_rows(out)], _sides_of_rows(x),
        bias=bias, absorbed=absorbed,
    )  # fmt: skip
    return out, absorbed.sum(1)


def gamma_shares(z: Tensor, magnitude: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`pointwise.gamma_shares` of rows (1, L, C)."""
    at_z, at_magnitude = _empty(*z.shape), _empty(*z.shape)
    _run(
        _Operation.GAMMA_SHARES, [_rows(z), _rows(magnitude)], [_rows(at_z), _rows(at_magnitude)],
        _sides_of_rows(z), first=gamma,
    )  # fmt: skip
    return at_z, at_magnitude


def gelu_ratio(x: Tensor) -> Tensor:
    """`pointwise.gelu_ratio` of rows (1, L, C)."""
    ratio = _empty(*x.shape)
    _run(_Operation.GELU_RATIO, [_rows(x)], [_rows(ratio)], _sides_of_rows(x))
    return ratio


def _run(
    operation: _Operation,
    inputs: Sequence[_Place],
    outputs: Sequence[_Place],
    sides: tuple[int, int, int, int, int],
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    after: Tensor | None = None,
    inverse: Tensor | None = None,
    absorbed: Tensor | None = None,
    by_after: Tensor | None = None,
    first: float = 0.0,
) -> None:
    """Call the library on maps with B, K, H, W and C of `sides`."""
    constants = [None if x is None else x.contiguous() for x in (weight, bias, after)]
    addresses = (
        None if x is None else x.data_ptr() for x in (*constants, inverse, absorbed, by_after)
    )
    compiled.run_maps(
        _Call(
            *(operation, *sides, torch.get_num_threads(), first),
            *(tuple(inputs), tuple(outputs), *addresses),
        )
    )


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _near(x: Tensor) -> Tensor:
    """With a contiguous last axis; a copy only where it is not."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _taps(weight: Tensor) -> Tensor:
    """The taps with channels as neighbours, (3, 3, C)."""
    return weight.permute(1, 2, 0)


def _cells(x: Tensor) -> _Place:
    """The fields of `_Cells` for (B, H, W, C) or (B, K, H, W, C)."""
    batch, *route, line, cell, _ = x.stride()
    return x.data_ptr(), batch, route[0] if route else 0, line, cell


def _routes(y: Tensor) -> _Place:
    """The fields of `_Cells` for (B, K, L, C), maps one cell wide."""
    batch, route, row, _ = y.stride()
    return y.data_ptr(), batch, route, row, 0


def _rows(x: Tensor) -> _Place:
    """The fields of `_Cells` for (B, L, C)."""
    return _routes(x.unsqueeze(1))


def _sides_of_rows(x: Tensor) -> tuple[int, int, int, int, int]:
    batch, length, channels = x.shape
    return batch, 1, length, 1, channels


def _sides_of_map(x: Tensor, routes: int = 1) -> tuple[int, int, int, int, int]:
    batch, height, width, channels = x.shape
    return batch, routes, height, width, channels
