"""The Triton programs of the fused operations on sequences.

The convolution's programs walk along the sequence with one channel a thread: the W inputs under
the taps stay in registers, so that nothing is read twice. A direction that runs forwards has its
output at the newest of those positions, one that is reversed at the oldest, and both pass their
relevance to exactly these positions; one window serves all directions. The other programs take a
tile of rows each.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, B007, C901, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, unreachable"

import triton
import triton.language as tl

__all__ = [
    "add_rms_norm_kernel",
    "conv_silu_kernel",
    "conv_silu_relevance_kernel",
    "gate_kernel",
    "gate_relevance_kernel",
    "norm_relevance_kernel",
    "step_kernel",
]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "chunk"]


@triton.jit
def exp(x):
    """The exponential in two instructions; tl.exp spends three more on results below 1e-38."""
    return tl.exp2(1.4426950408889634 * x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); a square of a root costs a third of a division."""
    root = tl.rsqrt(1.0 + exp(-x))
    return root * root


@triton.jit
def tile(length, E, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """Row of the batch, offsets (T, 1) and (1, E), and their mask, of a program's tile."""
    blocks, parts = tl.cdiv(E, BLOCK_E), tl.cdiv(length, BLOCK_T)
    pid = tl.program_id(0)
    row = pid // blocks
    b = (row // parts).to(tl.int64)
    t = (row % parts) * BLOCK_T + tl.arange(0, BLOCK_T)[:, None]
    e = (pid % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    return b, t, e, (t < length) & (e < E)


@triton.jit
def span(length, chunk, E, BLOCK_E: tl.constexpr):
    """Row of the batch, positions [first, last) and channels of a program that walks."""
    blocks, parts = tl.cdiv(E, BLOCK_E), tl.cdiv(length, chunk)
    pid = tl.program_id(0)
    row = pid // blocks
    first = (row % parts) * chunk
    e = (pid % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    return (row // parts).to(tl.int64), first, tl.minimum(first + chunk, length), e


@triton.jit
def taps(
    weight, bias, e, E,
    K: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The taps of all directions in memory order, K times W of them, and the K biases."""
    weights = ()
    biases = ()
    for k in tl.static_range(K):
        for q in tl.static_range(W):
            tap = W - 1 - q if (REVERSE >> k) & 1 else q
            at = weight + (k * E + e) * W + tap
            weights = weights + (tl.load(at, e < E, 0.0).to(tl.float32),)
        if HAS_BIAS:
            biases = biases + (tl.load(bias + k * E + e, e < E, 0.0).to(tl.float32),)
        else:
            biases = biases + (tl.zeros_like(e).to(tl.float32),)
    return weights, biases


@triton.jit
def before(x, first, stride, e, E, W: tl.constexpr):
    """The W inputs before a position, the oldest first."""
    window = ()
    for q in tl.static_range(W):
        at = first - W + q
        value = tl.load(x + at * stride + e, (e < E) & (at >= 0), 0.0)
        window = window + (value.to(tl.float32),)
    return window


@triton.jit
def passed(at_u, c, size, gamma):
    """The gradient at c times c over the rule's denominator; `size` sums the contributions' sizes.

    The winning part is (c + size) / 2 or (c - size) / 2, so the quotient is that of |c| and
    |c| + gamma (|c| + size) / 2: no difference of large sums.
    """
    above = tl.abs(c)
    root = tl.rsqrt((1.0 + exp(-c)) * (above + 0.5 * gamma * (above + size)))
    return at_u * tl.where(c == 0.0, 0.5, above * root * root)


@triton.jit
def with_sign(size, x):
    """`size` with the sign of x, 0 where x is 0."""
    return tl.where(x > 0.0, size, tl.where(x < 0.0, -size, 0.0))


@triton.jit(do_not_specialize=_VARYING)
def conv_silu_kernel(
    x, weight, bias, u, x_strides, u_strides, length, chunk, E,
    K: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The convolutions of a chunk of positions in all directions, and SiLU."""
    b, first, last, e = span(length, chunk, E, BLOCK_E)
    has = e < E
    weights, biases = taps(weight, bias, e, E, K, W, REVERSE, HAS_BIAS)
    x += b * x_strides[0]
    u += b * u_strides[0]
    window = before(x, first, x_strides[1], e, E, W)
    for start in range(first, last + W - 1, UNROLL):
        # All loads before the first store, or they would wait for one another.
        loaded = ()
        for j in tl.static_range(UNROLL):
            value = tl.load(x + (start + j) * x_strides[1] + e, has & (start + j < length), 0.0)
            loaded = loaded + (value,)
        for j in tl.static_range(UNROLL):
            window = window[1:] + (loaded[j].to(tl.float32),)
            for k in tl.static_range(K):
                at = start + j - (W - 1 if (REVERSE >> k) & 1 else 0)
                c = biases[k]
                for q in tl.static_range(W):
                    c += weights[k * W + q] * window[q]
                out = (c * sigmoid(c)).to(u.dtype.element_ty)
                here = has & (at >= first) & (at < last)
                tl.store(u + k * u_strides[1] + at * u_strides[2] + e, out, here)


@triton.jit(do_not_specialize=_VARYING)
def conv_silu_relevance_kernel(
    at_u, x, weight, bias, at_x, absorbed, at_u_strides, x_strides, at_x_strides,
    length, chunk, gamma, E,
    K: tl.constexpr, W: tl.constexpr, REVERSE: tl.constexpr, HAS_BIAS: tl.constexpr,
    UNROLL: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient at a chunk of inputs, and what the biases absorb at its positions.

    A contribution w x of the sign of its sum c counts 1 + gamma times, one of the other sign once,
    one of exactly zero half with either: s w (1 + gamma / 2) + sign(x) sign(c) s |w| gamma / 2.
    Both terms are summed over the windows that hold an input, and its sign multiplies the second
    sum at the end. A window past the end reads zeros; one that reaches out of the chunk adds to
    positions that another program stores. An input's sum is complete once it is the oldest of the
    window.
    """
    b, first, last, e = span(length, chunk, E, BLOCK_E)
    has = e < E
    weights, biases = taps(weight, bias, e, E, K, W, REVERSE, HAS_BIAS)
    at_u += b * at_u_strides[0]
    x += b * x_strides[0]
    at_x += b * at_x_strides[0]
    window = before(x, first, x_strides[1], e, E, W)
    none = tl.zeros((BLOCK_E,), tl.float32)
    kept = none
    even = ()
    odd = ()
    for q in tl.static_range(W):
        even = even + (none,)
        odd = odd + (none,)
    for start in range(first, last + W - 1, UNROLL):
        # All loads before the first store, or they would wait for one another.
        loaded = ()
        gradients = ()
        for j in tl.static_range(UNROLL):
            value = tl.load(x + (start + j) * x_strides[1] + e, has & (start + j < length), 0.0)
            loaded = loaded + (value,)
            for k in tl.static_range(K):
                at = start + j - (W - 1 if (REVERSE >> k) & 1 else 0)
                row = at_u + k * at_u_strides[1] + at * at_u_strides[2]
                value = tl.load(row + e, has & (at >= 0) & (at < length), 0.0)
                gradients = gradients + (value,)
        for j in tl.static_range(UNROLL):
            window = window[1:] + (loaded[j].to(tl.float32),)
            even = even[1:] + (none,)
            odd = odd[1:] + (none,)
            for k in tl.static_range(K):
                at = start + j - (W - 1 if (REVERSE >> k) & 1 else 0)
                c = biases[k]
                size = tl.abs(biases[k])
                for q in tl.static_range(W):
                    c += weights[k * W + q] * window[q]
                    size += tl.abs(weights[k * W + q]) * tl.abs(window[q])
                s = passed(gradients[j * K + k].to(tl.float32), c, size, gamma)
                half = 0.5 * gamma * s
                plain = tl.where(c == 0.0, s, s + half)
                signed = with_sign(half, c)
                even_ = ()
                odd_ = ()
                for q in tl.static_range(W):
                    even_ = even_ + (even[q] + weights[k * W + q] * plain,)
                    odd_ = odd_ + (odd[q] + tl.abs(weights[k * W + q]) * signed,)
                even = even_
                odd = odd_
                if HAS_BIAS:
                    own = (at >= first) & (at < last)
                    share = biases[k] * plain + tl.abs(biases[k]) * signed
                    kept += tl.where(own, share, 0.0)
            at = start + j - (W - 1)
            here = has & (at >= first) & (at < last)
            out = even[0] + with_sign(odd[0], window[0])
            tl.store(at_x + at * at_x_strides[1] + e, out.to(at_x.dtype.element_ty), here)
    if HAS_BIAS:
        tl.store(absorbed + tl.program_id(0), tl.sum(kept, 0))


@triton.jit(do_not_specialize=_VARYING)
def add_rms_norm_kernel(
    hidden, residual, weight, stream, normed, inverse, hidden_strides, residual_strides,
    length, eps, E, HAS_RESIDUAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum, inverse root mean square and normalised sum of whole rows."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    at = hidden + b * hidden_strides[0] + t * hidden_strides[1] + e
    total = tl.load(at, inside, 0.0).to(tl.float32)
    if HAS_RESIDUAL:
        at = residual + b * residual_strides[0] + t * residual_strides[1] + e
        total += tl.load(at, inside, 0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(total * total, 1, keep_dims=True) / E + eps)  # (T, 1)
    scale = tl.load(weight + e, e < E, 0.0).to(tl.float32)
    row = b * length + t
    tl.store(stream + row * E + e, total, inside)
    out = (total * factor * scale).to(normed.dtype.element_ty)
    tl.store(normed + row * E + e, out, inside)
    tl.store(inverse + row, factor, t < length)


@triton.jit(do_not_specialize=_VARYING)
def norm_relevance_kernel(
    at_normed, at_stream, weight, inverse, out, narrow, at_normed_strides, at_stream_strides,
    inverse_strides, length, E,
    HAS_STREAM: tl.constexpr, TWICE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """at_stream + at_normed * weight * inverse, and TWICE in a narrow type too."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    at = at_normed + b * at_normed_strides[0] + t * at_normed_strides[1] + e
    # One-dimensional, so that a thread loads the factor of a row once for all its channels.
    rows = (tl.program_id(0) % tl.cdiv(length, BLOCK_T)) * BLOCK_T + tl.arange(0, BLOCK_T)
    inverse += b * inverse_strides[0]
    factor = tl.load(inverse + rows * inverse_strides[1], rows < length, 0.0).to(tl.float32)
    scale = tl.load(weight + e, e < E, 0.0).to(tl.float32)
    total = tl.load(at, inside, 0.0).to(tl.float32) * scale * factor[:, None]
    if HAS_STREAM:
        at = at_stream + b * at_stream_strides[0] + t * at_stream_strides[1] + e
        total += tl.load(at, inside, 0.0).to(tl.float32)
    at = (b * length + t) * E + e
    tl.store(out + at, total, inside)
    if TWICE:
        tl.store(narrow + at, total.to(narrow.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_VARYING)
def gate_kernel(
    y, z, gated, signal, y_strides, z_strides, length, scale, E,
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The scaled sum over directions, and its product with SiLU(z)."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    gating = tl.load(z + b * z_strides[0] + t * z_strides[1] + e, inside, 0.0).to(tl.float32)
    y += b * y_strides[0]
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for k in tl.static_range(K):
        at = y + k * y_strides[1] + t * y_strides[2] + e
        total += tl.load(at, inside, 0.0).to(tl.float32)
    total *= scale
    out = (b * length + t) * E + e
    tl.store(signal + out, total.to(signal.dtype.element_ty), inside)
    product = total * gating * sigmoid(gating)
    tl.store(gated + out, product.to(gated.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_VARYING)
def gate_relevance_kernel(
    at_gated, signal, z, at_y, at_z, at_gated_strides, signal_strides, z_strides, at_z_strides,
    length, to_signal, to_gate, E, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """at_gated * SiLU(z) * to_signal, and at_gated * signal * sigmoid(z) * to_gate."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    at = at_gated + b * at_gated_strides[0] + t * at_gated_strides[1] + e
    arriving = tl.load(at, inside, 0.0).to(tl.float32)
    at = signal + b * signal_strides[0] + t * signal_strides[1] + e
    gated = tl.load(at, inside, 0.0).to(tl.float32)
    gating = tl.load(z + b * z_strides[0] + t * z_strides[1] + e, inside, 0.0).to(tl.float32)
    arriving *= sigmoid(gating)
    out = at_y + (b * length + t) * E + e
    tl.store(out, (arriving * gating * to_signal).to(at_y.dtype.element_ty), inside)
    out = at_z + b * at_z_strides[0] + t * at_z_strides[1] + e
    tl.store(out, (arriving * gated * to_gate).to(at_z.dtype.element_ty), inside)


@triton.jit
def softplus(x, NARROW: tl.constexpr):
    """max(x, 0) + log(1 + w), where w = exp(-|x|); exact above 20 too.

    log(1 + w) / w on [0, 1] by a Chebyshev interpolation, of degree 8 within 2e-7, or with NARROW
    of degree 5 within 1e-5, less than 16 bits hold: a logarithm of 1 + w would lose the digits of
    small steps, which are the usual ones, and costs more.
    """
    w = exp(-tl.abs(x))
    if NARROW:
        ratio = w * -0.0234436600 + 0.1001397300
        ratio = ratio * w - 0.2090795400
        ratio = ratio * w + 0.3248495800
        ratio = ratio * w - 0.4993146500
        ratio = ratio * w + 0.9999905900
    else:
        ratio = w * 0.0051261021 - 0.0290740646
        ratio = ratio * w + 0.0775160866
        ratio = ratio * w - 0.1360224761
        ratio = ratio * w + 0.1907688073
        ratio = ratio * w - 0.2483539899
        ratio = ratio * w + 0.3331812171
        ratio = ratio * w - 0.4999944498
        ratio = ratio * w + 0.9999999659
    return tl.maximum(x, 0.0) + w * ratio


@triton.jit(do_not_specialize=_VARYING)
def step_kernel(
    low, weight, bias, dt, low_strides, weight_strides, dt_strides, length, R, E,
    K: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """softplus(low @ weight^T + bias): the product on the matrix units, float32 in full."""
    row, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    has_e = e < E
    if EVEN:  # tiles end where the channels do, which the compiler cannot see from E
        inside, has_e = t < length, e >= 0
    b, k = row // K, row % K
    low += b * low_strides[0] + k * low_strides[1]
    weight += k * weight_strides[0]
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for first in range(0, R, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        rows = low + t * low_strides[2] + r[None, :]
        rows = tl.load(rows, (t < length) & (r < R)[None, :], 0.0)
        columns = weight + e * weight_strides[1] + r[:, None] * weight_strides[2]  # (R, E)
        columns = tl.load(columns, has_e & (r < R)[:, None], 0.0)
        if WIDE:
            rows, columns = rows.to(tl.float32), columns.to(tl.float32)
        # Three TF32 products have float32's precision; 16-bit values are multiplied as they are.
        total = tl.dot(rows, columns, total, input_precision="tf32x3")
    shift = tl.load(bias + k * E + e, has_e, 0.0).to(tl.float32)
    narrow: tl.constexpr = dt.dtype.element_ty.primitive_bitwidth == 16
    out = softplus(total + shift, narrow).to(dt.dtype.element_ty)
    tl.store(dt + b * dt_strides[0] + k * dt_strides[1] + t * dt_strides[2] + e, out, inside)
