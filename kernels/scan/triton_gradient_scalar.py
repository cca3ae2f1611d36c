"""The full gradient of a scan with a single state a channel (VMamba), in chunks side by side.

Two programs, each once through the sequence like `triton_chunked.scalar_kernel`: the first, in the
order of visit, writes what every step keeps of the state, exp(dt A) h_(t-1); the second, against
it, runs the adjoint and reads off all gradients. Keeping the kept part instead of the state means
that neither is found by subtraction.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

from vimlrp.kernels.scan.triton_chunked import join_both, load_rows
from vimlrp.kernels.scan.triton_common import LOG2_E, base, program, walk

__all__ = ["kept_kernel", "scalar_gradient_kernel"]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "reverse", "E"]


@triton.jit
def states_before(time, gained, rate, carry, CHUNKS: tl.constexpr):
    """The state before every chunk (C, D), and the one after the last (1, D).

    Args:
        time: Sum of the steps dt of every chunk.
        gained: The state after every chunk from a state of zero.
        rate: Exponent of 2 for a unit of time.
        carry: The state before the first chunk.
        CHUNKS: C.
    """
    none = tl.zeros_like(gained)
    own = (tl.exp2(time * rate), gained, none + 1.0, none)
    decay, h, past_decay, past = tl.associative_scan(own, 0, join_both)
    last = (tl.arange(0, CHUNKS) == CHUNKS - 1)[:, None]
    after = tl.sum(tl.where(last, h + decay * carry, 0.0), 0, keep_dims=True)
    return past + past_decay * carry, after


@triton.jit(do_not_specialize=_VARYING)
def kept_kernel(
    u, dt, A, B, kept, index, u_strides, dt_strides, A_strides, B_strides, kept_strides,
    length, reverse, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_INDEX: tl.constexpr,
    WIDE: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What every step keeps of the state before it, (B, K, L, D) float32, by position."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, c = group * E + e, tl.arange(0, CHUNKS)
    has_d = e < E
    u = base(u, u_strides, b, k) + d[None, :] * u_strides[3]
    dt = base(dt, dt_strides, b, k) + d[None, :] * dt_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3]
    kept = base(kept, kept_strides, b, k) + d[None, :] * kept_strides[3]
    rate = tl.load(A + k * A_strides[0] + d * A_strides[1], has_d, 0.0).to(tl.float32)[None, :]
    rate *= LOG2_E
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, False)
    carry = tl.zeros((1, BLOCK_D), tl.float32)
    for start in range(0, length, CHUNKS * STEPS):
        ats, us, dts, Bs, _ = load_rows(
            u, dt, B, B, start, origin, sense, index, length, has_d,
            u_strides[2], dt_strides[2], B_strides[2], B_strides[2], HAS_INDEX, WIDE,
            CHUNKS, STEPS,
        )  # fmt: skip
        h = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        time = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        for j in tl.static_range(STEPS):
            dt_t = dts[j].to(tl.float32)
            h = tl.exp2(dt_t * rate) * h + Bs[j].to(tl.float32)[:, None] * (
                dt_t * us[j].to(tl.float32)
            )
            time += dt_t
        h, carry = states_before(time, h, rate, carry, CHUNKS)
        for j in tl.static_range(STEPS):
            dt_t = dts[j].to(tl.float32)
            h = tl.exp2(dt_t * rate) * h
            inside = (start + c * STEPS + j < length)[:, None] & has_d[None, :]
            tl.store(kept + ats[j][:, None] * kept_strides[2], h, inside)
            h += Bs[j].to(tl.float32)[:, None] * (dt_t * us[j].to(tl.float32))


@triton.jit
def load_further(
    u, kept, ats, start, length, has_d, u_stride, kept_stride,
    CHUNKS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The rest of what the gradients need at the positions of every chunk's steps, (C, D) each."""
    us = ()
    kepts = ()
    for j in tl.static_range(STEPS):
        inside = start + tl.arange(0, CHUNKS) * STEPS + j < length
        both = inside[:, None] & has_d[None, :]
        us = us + (tl.load(u + ats[j][:, None] * u_stride, both, 0.0),)
        kepts = kepts + (tl.load(kept + ats[j][:, None] * kept_stride, both, 0.0),)
    return us, kepts


@triton.jit(do_not_specialize=_VARYING)
def scalar_gradient_kernel(
    dy, u, dt, A, B, C, D, kept, du, ddt, dA, dB, dC, dD, index,
    dy_strides, u_strides, dt_strides, A_strides, B_strides, C_strides, D_strides,
    du_strides, dA_strides, dB_strides, dD_strides,
    length, reverse, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_D: tl.constexpr,
    HAS_INDEX: tl.constexpr, THROUGH_A: tl.constexpr, THROUGH_B: tl.constexpr,
    WIDE: tl.constexpr, CHUNKS: tl.constexpr, STEPS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Every gradient, from the last step to the first.

    dB and dC are this block of channels' share, dA and dD this batch row's. `kept` and ddt have
    the strides of du, and dC those of dB. Steps past the end read zeros, which leave the adjoint
    alone.
    """
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, c = group * E + e, tl.arange(0, CHUNKS)
    has_d = e < E
    dy = base(dy, dy_strides, b, k) + d[None, :] * dy_strides[3]
    u = base(u, u_strides, b, k) + d[None, :] * u_strides[3]
    dt = base(dt, dt_strides, b, k) + d[None, :] * dt_strides[3]
    kept = base(kept, du_strides, b, k) + d[None, :] * du_strides[3]
    du = base(du, du_strides, b, k) + d[None, :] * du_strides[3]
    ddt = base(ddt, du_strides, b, k) + d[None, :] * du_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3]
    C = base(C, C_strides, b, k) + group * C_strides[3]
    share = (group * PER_GROUP + block) * dB_strides[3]
    dB, dC = base(dB, dB_strides, b, k) + share, base(dC, dB_strides, b, k) + share
    a = tl.load(A + k * A_strides[0] + d * A_strides[1], has_d, 0.0).to(tl.float32)[None, :]
    rate = a * LOG2_E
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)[None, :]
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, True)
    dA_sum = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
    dD_sum = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
    carry = tl.zeros((1, BLOCK_D), tl.float32)
    for start in range(0, length, CHUNKS * STEPS):
        ats, dys, dts, Cs, Bs = load_rows(
            dy, dt, C, B, start, origin, sense, index, length, has_d,
            dy_strides[2], dt_strides[2], C_strides[2], B_strides[2], HAS_INDEX, WIDE,
            CHUNKS, STEPS,
        )  # fmt: skip
        us, kepts = load_further(
            u, kept, ats, start, length, has_d, u_strides[2], du_strides[2], CHUNKS, STEPS
        )
        g = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        time = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
        for j in tl.static_range(STEPS):
            dt_t = dts[j].to(tl.float32)
            g += Cs[j].to(tl.float32)[:, None] * dys[j].to(tl.float32)
            g *= tl.exp2(dt_t * rate)
            time += dt_t
        g, carry = states_before(time, g, rate, carry, CHUNKS)
        for j in tl.static_range(STEPS):
            dy_t, dt_t, u_t = dys[j].to(tl.float32), dts[j].to(tl.float32), us[j].to(tl.float32)
            B_t, C_t = Bs[j].to(tl.float32)[:, None], Cs[j].to(tl.float32)[:, None]
            g += C_t * dy_t
            entering, exponent = dt_t * u_t, g * kepts[j]
            inside = start + c * STEPS + j < length
            at, both = ats[j], inside[:, None] & has_d[None, :]
            h = kepts[j] + B_t * entering
            tl.store(dC + at * dB_strides[2], tl.sum(h * dy_t, 1), inside)
            tl.store(dB + at * dB_strides[2], tl.sum(g * entering, 1), inside)
            reached = B_t * g
            du_t = dt_t * reached
            if HAS_D:
                du_t += skip * dy_t
            dA_sum += exponent * dt_t
            dD_sum += dy_t * u_t
            ddt_t = tl.zeros((CHUNKS, BLOCK_D), tl.float32)
            if THROUGH_A:
                ddt_t += exponent * a
            if THROUGH_B:
                ddt_t += u_t * reached
            tl.store(du + at[:, None] * du_strides[2], du_t.to(du.dtype.element_ty), both)
            tl.store(ddt + at[:, None] * du_strides[2], ddt_t.to(ddt.dtype.element_ty), both)
            g *= tl.exp2(dt_t * rate)
    tl.store(dA + b * dA_strides[0] + k * dA_strides[1] + d, tl.sum(dA_sum, 0), has_d)
    tl.store(dD + b * dD_strides[0] + k * dD_strides[1] + d, tl.sum(dD_sum, 0), has_d)
