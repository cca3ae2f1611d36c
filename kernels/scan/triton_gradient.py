"""The full gradient of the scan: states before every chunk, then back chunk by chunk.

One program walks the whole sequence of one batch row, direction and block of channels. Inputs are
read by stride and position, so neither a scan order nor a layout costs a copy.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from vimlrp.kernels.scan.triton_common import LOG2_E, base, positions, program, walk

__all__ = ["gradient_kernel", "states_kernel"]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "reverse", "N", "E"]


@triton.jit(do_not_specialize=_VARYING)
def states_kernel(
    u, dt, A, B, starts, index, u_strides, dt_strides, A_strides, B_strides, starts_strides,
    length, reverse, N, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_INDEX: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The state before every CHUNK steps."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n = group * E + e, tl.arange(0, BLOCK_N)
    has_d, has_n = e < E, n < N
    both = has_n[:, None] & has_d[None, :]
    u = base(u, u_strides, b, k) + d * u_strides[3]
    dt = base(dt, dt_strides, b, k) + d * dt_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3] + n * B_strides[4]
    A = A + k * A_strides[0] + d[None, :] * A_strides[1] + n[:, None] * A_strides[2]
    rate = tl.load(A, both, 0.0).to(tl.float32) * LOG2_E  # (N, D)
    starts = base(starts, starts_strides, b, k) + n[:, None] * starts_strides[3] + d[None, :]
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, False)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for chunk in range(tl.cdiv(length, CHUNK)):
        tl.store(starts + chunk * starts_strides[2], h, both)
        for i in tl.static_range(CHUNK):
            step = chunk * CHUNK + i
            inside = step < length
            at = positions(step, inside, origin, sense, index, HAS_INDEX, True)
            u_t = tl.load(u + at * u_strides[2], has_d & inside, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at * dt_strides[2], has_d & inside, 0.0).to(tl.float32)
            B_t = tl.load(B + at * B_strides[2], has_n & inside, 0.0).to(tl.float32)
            h = tl.exp2(dt_t[None, :] * rate) * h + B_t[:, None] * (dt_t * u_t)[None, :]


@triton.jit(do_not_specialize=_VARYING)
def gradient_kernel(
    dy, u, dt, A, B, C, D, starts, states, du, ddt, dA, dB, dC, dD, index,
    dy_strides, u_strides, dt_strides, A_strides, B_strides, C_strides, D_strides,
    starts_strides, du_strides, dA_strides, dB_strides, dD_strides,
    length, reverse, N, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_D: tl.constexpr,
    HAS_INDEX: tl.constexpr, THROUGH_A: tl.constexpr, THROUGH_B: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Every gradient, chunk by chunk from the last: states again, then the adjoint back.

    dB and dC are this block of channels' share, dA and dD this batch row's. ddt has the strides
    of du, and dC those of dB. Steps past the end read zeros, which leave state and adjoint alone.
    """
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n = group * E + e, tl.arange(0, BLOCK_N)
    has_d, has_n = e < E, n < N
    both = has_n[:, None] & has_d[None, :]
    dy = base(dy, dy_strides, b, k) + d * dy_strides[3]
    u = base(u, u_strides, b, k) + d * u_strides[3]
    dt = base(dt, dt_strides, b, k) + d * dt_strides[3]
    du = base(du, du_strides, b, k) + d * du_strides[3]
    ddt = base(ddt, du_strides, b, k) + d * du_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3] + n * B_strides[4]
    C = base(C, C_strides, b, k) + group * C_strides[3] + n * C_strides[4]
    share = (group * PER_GROUP + block) * dB_strides[3] + n
    dB, dC = base(dB, dB_strides, b, k) + share, base(dC, dB_strides, b, k) + share
    A = A + k * A_strides[0] + d[None, :] * A_strides[1] + n[:, None] * A_strides[2]
    rate = tl.load(A, both, 0.0).to(tl.float32)  # (N, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)
    starts = base(starts, starts_strides, b, k) + n[:, None] * starts_strides[3] + d[None, :]
    origin, sense, index = walk(k, length, reverse, index, HAS_INDEX, False)
    tile = n[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    states += tl.program_id(0).to(tl.int64) * (CHUNK * BLOCK_N * BLOCK_D) + tile
    dA_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dD_sum = tl.zeros((BLOCK_D,), tl.float32)
    carry = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    chunks = tl.cdiv(length, CHUNK)
    for done in range(chunks):
        chunk = chunks - 1 - done
        h = tl.load(starts + chunk * starts_strides[2], both, 0.0)
        for i in range(CHUNK):
            inside = chunk * CHUNK + i < length
            at = positions(chunk * CHUNK + i, inside, origin, sense, index, HAS_INDEX, True)
            dt_t = tl.load(dt + at * dt_strides[2], has_d & inside, 0.0).to(tl.float32)
            u_t = tl.load(u + at * u_strides[2], has_d & inside, 0.0).to(tl.float32)
            B_t = tl.load(B + at * B_strides[2], has_n & inside, 0.0).to(tl.float32)
            tl.store(states + i * (BLOCK_N * BLOCK_D), h)
            decay = tl.exp2(dt_t[None, :] * (rate * LOG2_E))
            h = decay * h + B_t[:, None] * (dt_t * u_t)[None, :]
        # The states of a chunk may be read back by other threads than wrote them.
        tl.debug_barrier()
        for j in range(CHUNK):
            i = CHUNK - 1 - j
            inside = chunk * CHUNK + i < length
            at = positions(chunk * CHUNK + i, inside, origin, sense, index, HAS_INDEX, True)
            dy_t = tl.load(dy + at * dy_strides[2], has_d & inside, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at * dt_strides[2], has_d & inside, 0.0).to(tl.float32)
            u_t = tl.load(u + at * u_strides[2], has_d & inside, 0.0).to(tl.float32)
            B_t = tl.load(B + at * B_strides[2], has_n & inside, 0.0).to(tl.float32)
            C_t = tl.load(C + at * C_strides[2], has_n & inside, 0.0).to(tl.float32)
            before = tl.load(states + i * (BLOCK_N * BLOCK_D))
            decayed = tl.exp2(dt_t[None, :] * (rate * LOG2_E))
            g = C_t[:, None] * dy_t[None, :] + carry
            carry = decayed * g
            reached = tl.sum(B_t[:, None] * g, 0)  # (D,)
            kept = decayed * before
            h = kept + B_t[:, None] * (dt_t * u_t)[None, :]
            tl.store(dC + at * dB_strides[2], tl.sum(h * dy_t[None, :], 1), has_n & inside)
            dB_t = tl.sum(g * (dt_t * u_t)[None, :], 1)
            tl.store(dB + at * dB_strides[2], dB_t, has_n & inside)
            du_t = dt_t * reached
            if HAS_D:
                du_t += skip * dy_t
            exponent = g * kept
            dA_sum += exponent * dt_t[None, :]
            dD_sum += dy_t * u_t
            ddt_t = tl.zeros((BLOCK_D,), tl.float32)
            if THROUGH_A:
                ddt_t += tl.sum(exponent * rate, 0)
            if THROUGH_B:
                ddt_t += u_t * reached
            here = has_d & inside
            tl.store(du + at * du_strides[2], du_t.to(du.dtype.element_ty), here)
            tl.store(ddt + at * du_strides[2], ddt_t.to(ddt.dtype.element_ty), here)
        tl.debug_barrier()
    dA += b * dA_strides[0] + k * dA_strides[1] + n[:, None] * dA_strides[2] + d[None, :]
    tl.store(dA, dA_sum, both)
    tl.store(dD + b * dD_strides[0] + k * dD_strides[1] + d, dD_sum, has_d)
