"""The scan and its relevance pass, step by step: one program a block of channels.

The regime of many rows. The state (N, D) stays in registers, all states of a channel in one thread,
so that no thread waits for another; A must have neighbouring channels side by side, because the
compiler takes this layout from its load. Loads are issued AHEAD steps early, since waiting for them
would otherwise be most of the time.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, unreachable, var-annotated"

import triton
import triton.language as tl

from vimlrp.kernels.triton_common import LOG2_E, base, positions, program, walk

__all__ = ["sequential_kernel"]

# Sizes that change from call to call: no new compilation for each of their values. What the
# compiler knew of E and the strides of A would change the layout that it picks.
_VARYING = ["length", "reverse", "E", "A_direction", "A_state"]


@triton.jit
def load_step(
    x, dt, into, out_of, i, length, origin, sense, index, has_d, in_n, out_n, has_n,
    x_stride, dt_stride, into_stride, out_stride,
    HAS_INDEX: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Position and inputs (D,) and (N,) of step i; past the last step they are that one's."""
    i = tl.minimum(i, length - 1)
    at = positions(i, True, origin, sense, index, HAS_INDEX, WIDE)
    into, out_of = into + at * into_stride, out_of + at * out_stride
    if ALIGNED:  # rows begin at multiples of 16 bytes: a load takes several states
        into, out_of = tl.multiple_of(into, 16), tl.multiple_of(out_of, 16)
    x_t = tl.load(x + at * x_stride, has_d, 0.0)
    dt_t = tl.load(dt + at * dt_stride, has_d, 0.0)
    in_t, out_t = tl.load(into + in_n, has_n, 0.0), tl.load(out_of + out_n, has_n, 0.0)
    return at, x_t, dt_t, in_t, out_t


@triton.jit(do_not_specialize=_VARYING)
def sequential_kernel(
    x, dt, A, into, out_of, D, y, index, A_direction, A_state,
    x_strides, dt_strides, into_strides, out_strides, D_strides, y_strides, length, reverse, E,
    N: tl.constexpr, K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr,
    HAS_D: tl.constexpr, HAS_INDEX: tl.constexpr, RELEVANCE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Output from u with B into the state and C out of it; the relevance pass from dy, C and B."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n = group * E + e, tl.arange(0, BLOCK_N)
    # Blocks that fill a group need no mask, which the compiler cannot see from E.
    has_d = tl.full((BLOCK_D,), True, tl.int1) if EVEN else e < E
    has_n = n < N
    x = base(x, x_strides, b, k) + d * x_strides[3]
    dt = base(dt, dt_strides, b, k) + d * dt_strides[3]
    y = base(y, y_strides, b, k) + d * y_strides[3]
    into = base(into, into_strides, b, k) + group * into_strides[3]
    out_of = base(out_of, out_strides, b, k) + group * out_strides[3]
    in_n, out_n = n * into_strides[4], n * out_strides[4]
    A = A + k * A_direction + n[:, None] * A_state + d[None, :]
    rate = tl.load(A, has_n[:, None] & has_d[None, :], 0.0).to(tl.float32) * LOG2_E  # (N, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, RELEVANCE)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    loaded = ()
    for j in tl.static_range(AHEAD):
        step = load_step(
            x, dt, into, out_of, j, length, origin, sense, index, has_d, in_n, out_n, has_n,
            x_strides[2], dt_strides[2], into_strides[2], out_strides[2], HAS_INDEX, ALIGNED, WIDE,
        )  # fmt: skip
        loaded = loaded + (step,)
    for start in range(0, length, AHEAD):
        following = ()
        for j in tl.static_range(AHEAD):
            at, x_t, dt_t, in_t, out_t = loaded[j]
            step = load_step(
                x, dt, into, out_of, start + j + AHEAD, length, origin, sense, index, has_d,
                in_n, out_n, has_n, x_strides[2], dt_strides[2], into_strides[2], out_strides[2],
                HAS_INDEX, ALIGNED, WIDE,
            )  # fmt: skip
            following = following + (step,)
            x_t, dt_t = x_t.to(tl.float32), dt_t.to(tl.float32)
            in_t, out_t = in_t.to(tl.float32)[:, None], out_t.to(tl.float32)[:, None]
            decay = tl.exp2(dt_t[None, :] * rate)
            if RELEVANCE:
                h += in_t * x_t[None, :]
                y_t = dt_t * tl.sum(out_t * h, 0)
                h *= decay
            else:
                h = decay * h + in_t * (dt_t * x_t)[None, :]
                y_t = tl.sum(out_t * h, 0)
            if HAS_D:
                y_t += skip * x_t
            y_t = y_t.to(y.dtype.element_ty)
            if AHEAD == 1:
                tl.store(y + at * y_strides[2], y_t, has_d)
            else:
                tl.store(y + at * y_strides[2], y_t, has_d & (start + j < length))
        loaded = following
