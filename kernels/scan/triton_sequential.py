"""The scan and its relevance pass, step by step: one program a block of channels.

The regime of many rows. The state (N, D) stays in registers, all states of a channel in one thread,
so that no thread waits for another; A must have neighbouring channels side by side, because the
compiler takes this layout from its load. Loads are issued early, since waiting for them would
otherwise be most of the time: those of u and dt AHEAD steps, those of B and C one step.

Where the rows of B and C allow it, two neighbouring states are loaded as one integer, whose halves
widen to float32 by a shift and a mask; the state then is two tiles, the even and the odd states.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, misc, unreachable, var-annotated"

import triton
import triton.language as tl

from vimlrp.kernels.scan.triton_common import LOG2_E, base, positions, program, walk

__all__ = ["sequential_kernel"]

# Sizes that change from call to call: no new compilation for each of their values. What the
# compiler knew of E and the strides of A would change the layout that it picks.
_VARYING = ["length", "reverse", "E", "A_direction", "A_state"]


@triton.jit
def place(i, length, origin, sense, index, HAS_INDEX: tl.constexpr, WIDE: tl.constexpr):
    """Position of step i; past the last step it is that one's."""
    i = tl.minimum(i, length - 1)
    return positions(i, True, origin, sense, index, HAS_INDEX, WIDE)


@triton.jit
def pairs(x, n, has_n, ALIGNED: tl.constexpr):
    """Load two states at a time as one integer, (N / 2,), and widen its halves to float32."""
    bits: tl.constexpr = x.dtype.element_ty.primitive_bitwidth
    twice: tl.constexpr = tl.int64 if bits == 32 else tl.int32
    both = tl.load(tl.multiple_of(x.to(tl.pointer_type(twice)), ALIGNED) + n, has_n, 0)
    if x.dtype.element_ty == tl.bfloat16:
        even = (both << 16).to(tl.float32, bitcast=True)
        odd = (both & -65536).to(tl.float32, bitcast=True)
    elif x.dtype.element_ty == tl.float16:
        even = both.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        odd = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        even = both.to(tl.int32).to(tl.float32, bitcast=True)
        odd = (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return even, odd


@triton.jit
def states(x, at, n, has_n, stride, state, PAIRS: tl.constexpr, ALIGNED: tl.constexpr):
    """B or C at a position as float32: all states, or the even and the odd ones."""
    if PAIRS:
        found = pairs(x + at * stride, n, has_n, ALIGNED)
    else:
        found = (tl.load(x + at * stride + n * state, has_n, 0.0).to(tl.float32),)
    return found


@triton.jit
def advance(h, y_t, x_t, dt_t, into, out_of, rate, RELEVANCE: tl.constexpr):
    """A tile of states (N, D) one step on, and the sum of what it adds to the output (D,)."""
    into, out_of = into[:, None], out_of[:, None]
    decay = tl.exp2(dt_t[None, :] * rate)
    if RELEVANCE:
        h += into * x_t[None, :]
        y_t += dt_t * tl.sum(out_of * h, 0)
        h *= decay
    else:
        h = decay * h + into * (dt_t * x_t)[None, :]
        y_t += tl.sum(out_of * h, 0)
    return h, y_t


@triton.jit(do_not_specialize=_VARYING)
def sequential_kernel(
    x, dt, A, into, out_of, D, y, index, A_direction, A_state,
    x_strides, dt_strides, into_strides, out_strides, D_strides, y_strides, length, reverse, E,
    N: tl.constexpr, K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr,
    HAS_D: tl.constexpr, HAS_INDEX: tl.constexpr, RELEVANCE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, EVEN: tl.constexpr, PAIRS: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Output from u with B into the state and C out of it; the relevance pass from dy, C and B."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    tiles: tl.constexpr = 2 if PAIRS else 1
    d, n = group * E + e, tl.arange(0, BLOCK_N // tiles)
    # Blocks that fill a group need no mask, which the compiler cannot see from E.
    has_d = tl.full((BLOCK_D,), True, tl.int1) if EVEN else e < E
    has_n = n < N // tiles
    x = base(x, x_strides, b, k) + d * x_strides[3]
    dt = base(dt, dt_strides, b, k) + d * dt_strides[3]
    y = base(y, y_strides, b, k) + d * y_strides[3]
    into = base(into, into_strides, b, k) + group * into_strides[3]
    out_of = base(out_of, out_strides, b, k) + group * out_strides[3]
    in_n, out_n = into_strides[4], out_strides[4]
    rates = ()
    hs = ()
    for tile in tl.static_range(tiles):
        rows = A + k * A_direction + (n * tiles + tile)[:, None] * A_state + d[None, :]
        rate = tl.load(rows, has_n[:, None] & has_d[None, :], 0.0).to(tl.float32)
        rates = rates + (rate * LOG2_E,)
        hs = hs + (tl.zeros((BLOCK_N // tiles, BLOCK_D), tl.float32),)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, RELEVANCE)
    loaded = ()
    for j in tl.static_range(AHEAD):
        later = place(j, length, origin, sense, index, HAS_INDEX, WIDE)
        x_later = tl.load(x + later * x_strides[2], has_d, 0.0)
        dt_later = tl.load(dt + later * dt_strides[2], has_d, 0.0)
        loaded = loaded + ((later, x_later, dt_later),)
    soon = loaded[0][0]
    ins = states(into, soon, n, has_n, into_strides[2], in_n, PAIRS, ALIGNED)
    outs = states(out_of, soon, n, has_n, out_strides[2], out_n, PAIRS, ALIGNED)
    for start in range(0, length, AHEAD):
        following = ()
        for j in tl.static_range(AHEAD):
            at, x_t, dt_t = loaded[j]
            in_t, out_t = ins, outs
            later = place(start + j + AHEAD, length, origin, sense, index, HAS_INDEX, WIDE)
            x_later = tl.load(x + later * x_strides[2], has_d, 0.0)
            dt_later = tl.load(dt + later * dt_strides[2], has_d, 0.0)
            following = following + ((later, x_later, dt_later),)
            soon = loaded[j + 1][0] if j + 1 < AHEAD else following[0][0]
            ins = states(into, soon, n, has_n, into_strides[2], in_n, PAIRS, ALIGNED)
            outs = states(out_of, soon, n, has_n, out_strides[2], out_n, PAIRS, ALIGNED)
            x_t, dt_t = x_t.to(tl.float32), dt_t.to(tl.float32)
            y_t = skip * x_t if HAS_D else tl.zeros((BLOCK_D,), tl.float32)
            now = ()
            for tile in tl.static_range(tiles):
                h, y_t = advance(
                    hs[tile], y_t, x_t, dt_t, in_t[tile], out_t[tile], rates[tile], RELEVANCE
                )
                now = now + (h,)
            hs = now
            y_t = y_t.to(y.dtype.element_ty)
            if AHEAD == 1:
                tl.store(y + at * y_strides[2], y_t, has_d)
            else:
                tl.store(y + at * y_strides[2], y_t, has_d & (start + j < length))
        loaded = following
