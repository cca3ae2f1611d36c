"""The scan and its relevance pass with the sequence in chunks that run side by side.

The regime of few rows or long sequences. A step turns a state h into a h + b, so a chunk of steps
does too; from the (a, b) of every chunk a parallel prefix (Blelloch, 1990) gives the state before
each, and the steps run once more from there. A program takes CHUNKS chunks of STEPS steps at a time
and carries the state to the next ones.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# All programs of the scan take the same arguments, and a prefix joins tuples of one form.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, ARG001, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from vimlrp.kernels.scan.triton_common import LOG2_E, base, positions, program, walk

__all__ = ["chunked_kernel", "scalar_kernel"]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "reverse"]


@triton.jit
def join(decay, state, later_decay, later_state):
    """One chunk after another."""
    return decay * later_decay, state * later_decay + later_state


@triton.jit
def join_both(decay, state, past_decay, past_state, decay_, state_, past_decay_, past_state_):
    """The same beside the join of all but the last one: the prefix that leaves out its own."""
    return (
        decay * decay_,
        state * decay_ + state_,
        decay * past_decay_,
        state * past_decay_ + past_state_,
    )


@triton.jit(do_not_specialize=_VARYING)
def chunked_kernel(
    x, dt, A, into, out_of, D, y, index, A_direction, A_state,
    x_strides, dt_strides, into_strides, out_strides, D_strides, y_strides, length, reverse, E,
    N: tl.constexpr, K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr,
    HAS_D: tl.constexpr, HAS_INDEX: tl.constexpr, RELEVANCE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Any number of states; arguments as in `sequential_kernel`.

    In the first round a chunk's place in the tile computes the chunk before it, so that the prefix
    leaves the state before each chunk where it is needed.
    """
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n, c = group * E + e, tl.arange(0, BLOCK_N), tl.arange(0, CHUNKS)
    has_d, has_n = e < E, n < N
    x = base(x, x_strides, b, k) + d[None, :] * x_strides[3]
    dt = base(dt, dt_strides, b, k) + d[None, :] * dt_strides[3]
    y = base(y, y_strides, b, k) + d[None, :] * y_strides[3]
    into = base(into, into_strides, b, k) + group * into_strides[3] + n[:, None] * into_strides[4]
    out_of = base(out_of, out_strides, b, k) + group * out_strides[3] + n[:, None] * out_strides[4]
    A = A + k * A_direction + n[:, None] * A_state + d[None, :]
    rate = tl.load(A, has_n[:, None] & has_d[None, :], 0.0).to(tl.float32) * LOG2_E
    rate = rate[:, None, :]  # (N, 1, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)[None, :]
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, RELEVANCE)
    carry = tl.zeros((BLOCK_N, 1, BLOCK_D), tl.float32)
    for start in range(0, length, CHUNKS * STEPS):
        h = tl.zeros((BLOCK_N, CHUNKS, BLOCK_D), tl.float32)
        time = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        for j in tl.static_range(STEPS):
            i = start + (c - 1) * STEPS + j
            inside = (c > 0) & (i < length)
            at = positions(i, inside, origin, sense, index, HAS_INDEX, WIDE)
            both, low = inside[:, None] & has_d[None, :], has_n[:, None] & inside[None, :]
            x_t = tl.load(x + at[:, None] * x_strides[2], both, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at[:, None] * dt_strides[2], both, 0.0).to(tl.float32)
            in_t = tl.load(into + at[None, :] * into_strides[2], low, 0.0).to(tl.float32)
            decay = tl.exp2(dt_t[None, :, :] * rate)
            if RELEVANCE:
                h = decay * (h + in_t[:, :, None] * x_t[None, :, :])
            else:
                h = decay * h + in_t[:, :, None] * (dt_t * x_t)[None, :, :]
            time += dt_t
        decay, h = tl.associative_scan((tl.exp2(time[None, :, :] * rate), h), 1, join)
        h += decay * carry
        for j in tl.static_range(STEPS):
            i = start + c * STEPS + j
            inside = i < length
            at = positions(i, inside, origin, sense, index, HAS_INDEX, WIDE)
            both, low = inside[:, None] & has_d[None, :], has_n[:, None] & inside[None, :]
            x_t = tl.load(x + at[:, None] * x_strides[2], both, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at[:, None] * dt_strides[2], both, 0.0).to(tl.float32)
            in_t = tl.load(into + at[None, :] * into_strides[2], low, 0.0).to(tl.float32)
            out_t = tl.load(out_of + at[None, :] * out_strides[2], low, 0.0).to(tl.float32)
            decay = tl.exp2(dt_t[None, :, :] * rate)
            if RELEVANCE:
                h += in_t[:, :, None] * x_t[None, :, :]
                y_t = dt_t * tl.sum(out_t[:, :, None] * h, 0)
                h *= decay
            else:
                h = decay * h + in_t[:, :, None] * (dt_t * x_t)[None, :, :]
                y_t = tl.sum(out_t[:, :, None] * h, 0)
            if HAS_D:
                y_t += skip * x_t
            tl.store(y + at[:, None] * y_strides[2], y_t.to(y.dtype.element_ty), both)
        last = c[None, :, None] == CHUNKS - 1
        carry = tl.sum(tl.where(last, h, 0.0), 1, keep_dims=True)


@triton.jit
def load_rows(
    x, dt, into, out_of, start, origin, sense, index, length, has_d,
    x_stride, dt_stride, into_stride, out_stride,
    HAS_INDEX: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Positions (C,) and inputs (C, D) of every chunk's steps; zeros past the end."""
    ats = ()
    xs = ()
    dts = ()
    ins = ()
    outs = ()
    for j in tl.static_range(STEPS):
        i = start + tl.arange(0, CHUNKS) * STEPS + j
        inside = i < length
        at = positions(i, inside, origin, sense, index, HAS_INDEX, WIDE)
        both = inside[:, None] & has_d[None, :]
        ats = ats + (at,)
        xs = xs + (tl.load(x + at[:, None] * x_stride, both, 0.0),)
        dts = dts + (tl.load(dt + at[:, None] * dt_stride, both, 0.0),)
        ins = ins + (tl.load(into + at * into_stride, inside, 0.0),)
        outs = outs + (tl.load(out_of + at * out_stride, inside, 0.0),)
    return ats, xs, dts, ins, outs


@triton.jit(do_not_specialize=_VARYING)
def scalar_kernel(
    x, dt, A, into, out_of, D, y, index, A_direction, A_state,
    x_strides, dt_strides, into_strides, out_strides, D_strides, y_strides, length, reverse, E,
    N: tl.constexpr, K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr,
    HAS_D: tl.constexpr, HAS_INDEX: tl.constexpr, RELEVANCE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A single state a channel (VMamba): all tensors are (C, D), and neighbours load together.

    Inputs stay in registers between the two rounds, and those of the next tile are on their way.
    """
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, c = e if G == 1 else group * E + e, tl.arange(0, CHUNKS)
    has_d = e < E
    x = base(x, x_strides, b, k) + d[None, :] * x_strides[3]
    dt = base(dt, dt_strides, b, k) + d[None, :] * dt_strides[3]
    y = base(y, y_strides, b, k) + d[None, :] * y_strides[3]
    into = base(into, into_strides, b, k) + group * into_strides[3]
    out_of = base(out_of, out_strides, b, k) + group * out_strides[3]
    rate = tl.load(A + k * A_direction + d, has_d, 0.0).to(tl.float32)[None, :] * LOG2_E  # (1, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)[None, :]
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, RELEVANCE)
    carry = tl.zeros((1, BLOCK_D), tl.float32)
    loaded = load_rows(
        x, dt, into, out_of, 0, origin, sense, index, length, has_d,
        x_strides[2], dt_strides[2], into_strides[2], out_strides[2], HAS_INDEX, WIDE,
        CHUNKS, STEPS,
    )  # fmt: skip
    for start in range(0, length, CHUNKS * STEPS):
        ats, xs, dts, ins, outs = loaded
        loaded = load_rows(
            x, dt, into, out_of, start + CHUNKS * STEPS, origin, sense, index, length, has_d,
            x_strides[2], dt_strides[2], into_strides[2], out_strides[2], HAS_INDEX, WIDE,
            CHUNKS, STEPS,
        )  # fmt: skip
        h = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        time = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        for j in tl.static_range(STEPS):
            x_t, dt_t = xs[j].to(tl.float32), dts[j].to(tl.float32)
            in_t, decay = ins[j].to(tl.float32)[:, None], tl.exp2(dt_t * rate)
            h = decay * (h + in_t * x_t) if RELEVANCE else decay * h + in_t * (dt_t * x_t)
            time += dt_t
        none = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        own = (tl.exp2(time * rate), h, none + 1.0, none)
        decay, h, past_decay, past = tl.associative_scan(own, 0, join_both)
        final = tl.where((c == CHUNKS - 1)[:, None], h + decay * carry, 0.0)
        h = past + past_decay * carry
        carry = tl.sum(final, 0, keep_dims=True)
        for j in tl.static_range(STEPS):
            x_t, dt_t = xs[j].to(tl.float32), dts[j].to(tl.float32)
            in_t, out_t = ins[j].to(tl.float32)[:, None], outs[j].to(tl.float32)[:, None]
            decay = tl.exp2(dt_t * rate)
            if RELEVANCE:
                h += in_t * x_t
                y_t = dt_t * (out_t * h)
                h *= decay
            else:
                h = decay * h + in_t * (dt_t * x_t)
                y_t = out_t * h
            if HAS_D:
                y_t += skip * x_t
            inside = (start + c * STEPS + j < length)[:, None] & has_d[None, :]
            tl.store(y + ats[j][:, None] * y_strides[2], y_t.to(y.dtype.element_ty), inside)
