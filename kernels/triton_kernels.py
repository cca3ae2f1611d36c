"""The Triton programs of the selective scan: forward, relevance pass, full gradient.

One program walks the whole sequence of one batch row, direction and block of channels, with the
state (BLOCK_N, BLOCK_D) in registers. Inputs are read by stride and position, so neither a scan
order nor a layout costs a copy. The loads of a step are issued one step ahead, since waiting for
them would otherwise be most of the time.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them,
# and its `if` on a constant must stay apart from one on a value.
# ruff: noqa: ANN001, ANN201, ANN202, SIM102
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["gradient_kernel", "relevance_kernel", "scan_kernel"]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "reverse", "N", "E"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def place(step, k, length, reverse, index, HAS_INDEX: tl.constexpr):
    """Position that direction k visits at a step; steps outside the sequence are clamped."""
    step = tl.minimum(tl.maximum(step, 0), length - 1).to(tl.int64)
    backwards = (reverse >> k) & 1
    at = tl.where(backwards == 1, length - 1 - step, step)
    if HAS_INDEX:
        at = tl.load(index + k * length + at)
    return at


@triton.jit
def program(K: tl.constexpr, PER_GROUP: tl.constexpr, G: tl.constexpr):
    """Batch row, direction, group and block in the group of this program."""
    pid = tl.program_id(0)
    block = pid % (PER_GROUP * G)
    row = pid // (PER_GROUP * G)
    return (row // K).to(tl.int64), row % K, block // PER_GROUP, block % PER_GROUP


@triton.jit
def base(x, strides, b, k):
    """Address of batch row b and direction k of a tensor."""
    return x + b * strides[0] + k.to(tl.int64) * strides[1]


@triton.jit(do_not_specialize=_VARYING)
def scan_kernel(
    u, dt, A, B, C, D, y, starts, index,
    u_strides, dt_strides, A_strides, B_strides, C_strides, D_strides, y_strides, starts_strides,
    length, reverse, N, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_D: tl.constexpr,
    HAS_INDEX: tl.constexpr, SAVE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Output from u, or with SAVE the state before every CHUNK steps instead of y."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n = group * E + e, tl.arange(0, BLOCK_N)
    has_d, has_n = e < E, n < N
    both = has_n[:, None] & has_d[None, :]
    u, dt, y = base(u, u_strides, b, k), base(dt, dt_strides, b, k), base(y, y_strides, b, k)
    u, dt, y = u + d * u_strides[3], dt + d * dt_strides[3], y + d * y_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3] + n * B_strides[4]
    C = base(C, C_strides, b, k) + group * C_strides[3] + n * C_strides[4]
    A = A + k * A_strides[0] + d[None, :] * A_strides[1] + n[:, None] * A_strides[2]
    rate = tl.load(A, both, 0.0).to(tl.float32) * LOG2_E  # (N, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)
    if SAVE:
        starts = base(starts, starts_strides, b, k) + n[:, None] * starts_strides[3] + d[None, :]
    at = place(0, k, length, reverse, index, HAS_INDEX)
    following = place(1, k, length, reverse, index, HAS_INDEX)
    u_t = tl.load(u + at * u_strides[2], has_d, 0.0)
    dt_t = tl.load(dt + at * dt_strides[2], has_d, 0.0)
    B_t = tl.load(B + at * B_strides[2], has_n, 0.0)
    C_t = tl.load(C + at * C_strides[2], has_n, 0.0)
    h = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for step in range(length):
        if SAVE:
            if step % CHUNK == 0:
                tl.store(starts + (step // CHUNK) * starts_strides[2], h, both)
        u_next = tl.load(u + following * u_strides[2], has_d, 0.0)
        dt_next = tl.load(dt + following * dt_strides[2], has_d, 0.0)
        B_next = tl.load(B + following * B_strides[2], has_n, 0.0)
        C_next = tl.load(C + following * C_strides[2], has_n, 0.0)
        after = place(step + 2, k, length, reverse, index, HAS_INDEX)
        dt_f, u_f = dt_t.to(tl.float32), u_t.to(tl.float32)
        drive = B_t.to(tl.float32)[:, None] * (dt_f * u_f)[None, :]
        h = tl.exp2(dt_f[None, :] * rate) * h + drive
        if not SAVE:
            y_t = tl.sum(C_t.to(tl.float32)[:, None] * h, 0)
            if HAS_D:
                y_t += skip * u_f
            tl.store(y + at * y_strides[2], y_t.to(y.dtype.element_ty), has_d)
        at, following, u_t, dt_t, B_t, C_t = following, after, u_next, dt_next, B_next, C_next


@triton.jit(do_not_specialize=_VARYING)
def relevance_kernel(
    dy, dt, A, B, C, D, du, index,
    dy_strides, dt_strides, A_strides, B_strides, C_strides, D_strides, du_strides,
    length, reverse, N, E,
    K: tl.constexpr, G: tl.constexpr, PER_GROUP: tl.constexpr, HAS_D: tl.constexpr,
    HAS_INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Du from dy with the factors constant: the walk from the last step to the first."""
    b, k, group, block = program(K, PER_GROUP, G)
    e = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d, n = group * E + e, tl.arange(0, BLOCK_N)
    has_d, has_n = e < E, n < N
    dy, dt, du = base(dy, dy_strides, b, k), base(dt, dt_strides, b, k), base(du, du_strides, b, k)
    dy, dt, du = dy + d * dy_strides[3], dt + d * dt_strides[3], du + d * du_strides[3]
    B = base(B, B_strides, b, k) + group * B_strides[3] + n * B_strides[4]
    C = base(C, C_strides, b, k) + group * C_strides[3] + n * C_strides[4]
    A = A + k * A_strides[0] + d[None, :] * A_strides[1] + n[:, None] * A_strides[2]
    rate = tl.load(A, has_n[:, None] & has_d[None, :], 0.0).to(tl.float32) * LOG2_E  # (N, D)
    if HAS_D:
        skip = tl.load(D + k * D_strides[0] + d * D_strides[1], has_d, 0.0).to(tl.float32)
    at = place(length - 1, k, length, reverse, index, HAS_INDEX)
    following = place(length - 2, k, length, reverse, index, HAS_INDEX)
    dy_t = tl.load(dy + at * dy_strides[2], has_d, 0.0)
    dt_t = tl.load(dt + at * dt_strides[2], has_d, 0.0)
    B_t = tl.load(B + at * B_strides[2], has_n, 0.0)
    C_t = tl.load(C + at * C_strides[2], has_n, 0.0)
    carry = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for back in range(length):
        dy_next = tl.load(dy + following * dy_strides[2], has_d, 0.0)
        dt_next = tl.load(dt + following * dt_strides[2], has_d, 0.0)
        B_next = tl.load(B + following * B_strides[2], has_n, 0.0)
        C_next = tl.load(C + following * C_strides[2], has_n, 0.0)
        after = place(length - 3 - back, k, length, reverse, index, HAS_INDEX)
        dt_f, dy_f = dt_t.to(tl.float32), dy_t.to(tl.float32)
        g = C_t.to(tl.float32)[:, None] * dy_f[None, :] + carry
        du_t = dt_f * tl.sum(B_t.to(tl.float32)[:, None] * g, 0)
        if HAS_D:
            du_t += skip * dy_f
        tl.store(du + at * du_strides[2], du_t.to(du.dtype.element_ty), has_d)
        carry = tl.exp2(dt_f[None, :] * rate) * g
        at, following, dy_t, dt_t, B_t, C_t = following, after, dy_next, dt_next, B_next, C_next


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
            at = place(chunk * CHUNK + i, k, length, reverse, index, HAS_INDEX)
            dt_t = tl.load(dt + at * dt_strides[2], has_d & inside, 0.0).to(tl.float32)
            u_t = tl.load(u + at * u_strides[2], has_d & inside, 0.0).to(tl.float32)
            B_t = tl.load(B + at * B_strides[2], has_n, 0.0).to(tl.float32)
            tl.store(states + i * (BLOCK_N * BLOCK_D), h)
            decay = tl.exp2(dt_t[None, :] * (rate * LOG2_E))
            h = decay * h + B_t[:, None] * (dt_t * u_t)[None, :]
        # The states of a chunk may be read back by other threads than wrote them.
        tl.debug_barrier()
        for j in range(CHUNK):
            i = CHUNK - 1 - j
            inside = chunk * CHUNK + i < length
            at = place(chunk * CHUNK + i, k, length, reverse, index, HAS_INDEX)
            dy_t = tl.load(dy + at * dy_strides[2], has_d & inside, 0.0).to(tl.float32)
            dt_t = tl.load(dt + at * dt_strides[2], has_d & inside, 0.0).to(tl.float32)
            u_t = tl.load(u + at * u_strides[2], has_d & inside, 0.0).to(tl.float32)
            B_t = tl.load(B + at * B_strides[2], has_n, 0.0).to(tl.float32)
            C_t = tl.load(C + at * C_strides[2], has_n, 0.0).to(tl.float32)
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
