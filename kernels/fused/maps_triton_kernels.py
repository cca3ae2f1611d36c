"""The Triton programs of the fused operations on maps.

The convolution's programs take a band of rows and walk along its columns with one channel a
thread: the three columns under the taps stay in registers, so that of a band only the rows next to
it are read twice. The other programs take a tile of rows of channels each.
"""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# Tuples grow by concatenation, since a traced one has no other way to grow, in loops that unroll.
# ruff: noqa: ANN001, ANN201, ANN202, B007, C901, RUF005
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# mypy: disable-error-code="assignment, unreachable, var-annotated"

import triton
import triton.language as tl

from vimlrp.kernels.fused.sequences_triton_kernels import exp, passed, sigmoid, tile, with_sign

__all__ = [
    "conv_silu_map_kernel",
    "conv_silu_map_relevance_kernel",
    "gelu_relevance_kernel",
    "layer_norm_kernel",
    "layer_norm_relevance_kernel",
]

# Sizes that change from call to call: no new compilation for each of their values.
_VARYING = ["length", "height", "width", "chunk"]


@triton.jit
def band(height, width, chunk, E, ROWS: tl.constexpr, BLOCK_E: tl.constexpr):
    """Row of the batch, first map row, columns [first, last) and channels of a walking program."""
    blocks, parts, bands = tl.cdiv(E, BLOCK_E), tl.cdiv(width, chunk), tl.cdiv(height, ROWS)
    pid = tl.program_id(0)
    row = pid // blocks
    first = (row % parts) * chunk
    row = row // parts
    e = (pid % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
    b = (row // bands).to(tl.int64)
    return b, (row % bands) * ROWS, first, tl.minimum(first + chunk, width), e


@triton.jit
def grid_taps(weight, bias, e, E, HAS_BIAS: tl.constexpr):
    """The nine taps row by row, and the bias."""
    weights = ()
    for q in tl.static_range(9):
        weights = weights + (tl.load(weight + e * 9 + q, e < E, 0.0).to(tl.float32),)
    if HAS_BIAS:
        shift = tl.load(bias + e, e < E, 0.0).to(tl.float32)
    else:
        shift = tl.zeros_like(e).to(tl.float32)
    return weights, shift


@triton.jit
def column(x, strides, top, at, height, width, has, COUNT: tl.constexpr):
    """COUNT neighbours down a column of a map, from row `top` on, as they are stored."""
    values = ()
    for i in tl.static_range(COUNT):
        row = top + i
        inside = has & (row >= 0) & (row < height) & (at >= 0) & (at < width)
        values = values + (tl.load(x + row * strides[1] + at * strides[2], inside, 0.0),)
    return values


@triton.jit
def widened(values, COUNT: tl.constexpr):
    """The same in float32."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (values[i].to(tl.float32),)
    return out


@triton.jit(do_not_specialize=_VARYING)
def conv_silu_map_kernel(
    x, weight, bias, u, x_strides, u_strides, height, width, chunk, E,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The convolution of a band's columns, and SiLU."""
    b, top, first, last, e = band(height, width, chunk, E, ROWS, BLOCK_E)
    has = e < E
    weights, shift = grid_taps(weight, bias, e, E, HAS_BIAS)
    x += b * x_strides[0] + e
    u += b * u_strides[0] + e
    TALL: tl.constexpr = ROWS + 2
    window = widened(column(x, x_strides, top - 1, first - 1, height, width, has, TALL), TALL)
    window = window + widened(column(x, x_strides, top - 1, first, height, width, has, TALL), TALL)
    # Columns are loaded one step before they are needed.
    ahead = column(x, x_strides, top - 1, first + 1, height, width, has, TALL)
    for at in range(first, last):
        window = window + widened(ahead, TALL)
        ahead = column(x, x_strides, top - 1, at + 2, height, width, has, TALL)
        for r in tl.static_range(ROWS):
            c = shift
            for q in tl.static_range(9):
                c += weights[q] * window[q % 3 * TALL + r + q // 3]
            out = (c * sigmoid(c)).to(u.dtype.element_ty)
            to = u + (top + r) * u_strides[1] + at * u_strides[2]
            tl.store(to, out, has & (top + r < height))
        window = window[TALL:]


@triton.jit(do_not_specialize=_VARYING)
def conv_silu_map_relevance_kernel(
    at_u, x, weight, bias, at_x, absorbed, at_u_strides, x_strides, at_x_strides,
    route_stride, height, width, chunk, gamma, E,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient at a band of inputs, and what the bias absorbs at its positions.

    As in `sequences_triton_kernels.conv_silu_relevance_kernel`, s w (1 + gamma / 2) and
    sign(x) sign(c) s |w| gamma / 2 are summed over the windows that hold an input, and the input's
    sign multiplies the second sum at the end. A band passes relevance from the outputs one row
    above to one row below it, which see inputs one row further; an input's sum is complete once
    the column after its own has passed.
    """
    b, top, first, last, e = band(height, width, chunk, E, ROWS, BLOCK_E)
    has = e < E
    weights, shift = grid_taps(weight, bias, e, E, HAS_BIAS)
    at_u += b * at_u_strides[0] + e
    x += b * x_strides[0] + e
    at_x += b * at_x_strides[0] + e
    TALL: tl.constexpr = ROWS + 4
    SEEN: tl.constexpr = ROWS + 2
    window = widened(column(x, x_strides, top - 2, first - 2, height, width, has, TALL), TALL)
    loaded = column(x, x_strides, top - 2, first - 1, height, width, has, TALL)
    window = window + widened(loaded, TALL)
    ahead = column(x, x_strides, top - 2, first, height, width, has, TALL)
    none = tl.zeros((BLOCK_E,), tl.float32)
    kept = none
    even = ()
    odd = ()
    for i in tl.static_range(2 * ROWS):
        even = even + (none,)
        odd = odd + (none,)
    for at in range(first - 1, last + 1):
        gradients = ()
        for k in tl.static_range(K):
            gradients = gradients + column(
                at_u + k * route_stride, at_u_strides, top - 1, at, height, width, has, SEEN
            )
        window = window + widened(ahead, TALL)
        ahead = column(x, x_strides, top - 2, at + 2, height, width, has, TALL)
        for r in tl.static_range(ROWS):
            even = even + (none,)
            odd = odd + (none,)
        plain = ()
        signed = ()
        for i in tl.static_range(SEEN):
            c = shift
            size = tl.abs(shift)
            for q in tl.static_range(9):
                value = window[q % 3 * TALL + i + q // 3]
                c += weights[q] * value
                size += tl.abs(weights[q]) * tl.abs(value)
            arriving = none
            for k in tl.static_range(K):
                arriving += gradients[k * SEEN + i].to(tl.float32)
            s = passed(arriving, c, size, gamma)
            half = 0.5 * gamma * s
            plain = plain + (tl.where(c == 0.0, s, s + half),)
            signed = signed + (with_sign(half, c),)
            if HAS_BIAS and i >= 1 and i <= ROWS:
                share = shift * plain[i] + tl.abs(shift) * signed[i]
                kept += tl.where((at >= first) & (at < last), share, 0.0)
        even_ = ()
        odd_ = ()
        for j in tl.static_range(3 * ROWS):
            straight = even[j]
            turned = odd[j]
            for dy in tl.static_range(3):
                # Column j // ROWS of the window meets tap column j // ROWS; the output two rows
                # down, less dy, meets tap row dy.
                w = weights[dy * 3 + j // ROWS]
                straight += w * plain[j % ROWS + 2 - dy]
                turned += tl.abs(w) * signed[j % ROWS + 2 - dy]
            even_ = even_ + (straight,)
            odd_ = odd_ + (turned,)
        for r in tl.static_range(ROWS):
            here = has & (top + r < height) & (at - 1 >= first) & (at - 1 < last)
            out = even_[r] + with_sign(odd_[r], window[r + 2])
            to = at_x + (top + r) * at_x_strides[1] + (at - 1) * at_x_strides[2]
            tl.store(to, out.to(at_x.dtype.element_ty), here)
        even = even_[ROWS:]
        odd = odd_[ROWS:]
        window = window[TALL:]
    if HAS_BIAS:
        tl.store(absorbed + tl.program_id(0), tl.sum(kept, 0))


@triton.jit
def constants(row, t, e, inside):
    """A row of constants (E,) under every row of a tile.

    Loaded as a tile, it is laid out over the threads as the tile is; a single row would have a
    layout of its own, into which the compiler moves the whole tile.
    """
    return tl.load(row + (e + 0 * t), inside, 0.0).to(tl.float32)


@triton.jit(do_not_specialize=_VARYING)
def layer_norm_kernel(
    x, branch, weight, bias, after, stream, normed, inverse, x_strides, branch_strides,
    length, eps, E, K: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_AFTER: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum of K routes or of stream and branch, and the sum centred, scaled and shifted."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    x += b * x_strides[0]
    total = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for k in tl.static_range(K):
        at = x + k * x_strides[1] + t * x_strides[2] + e
        total += tl.load(at, inside, 0.0).to(tl.float32)
    row = b * length + t
    if HAS_BRANCH:
        at = branch + b * branch_strides[0] + t * branch_strides[1] + e
        total += tl.load(at, inside, 0.0).to(tl.float32)
        kept = total
        if HAS_AFTER:
            kept += constants(after, t, e, inside)
        tl.store(stream + row * E + e, kept.to(stream.dtype.element_ty), inside)
    mean = tl.sum(total, 1, keep_dims=True) / E  # (T, 1)
    centred = tl.where(inside, total - mean, 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / E + eps)
    scale = constants(weight, t, e, inside)
    shift = constants(bias, t, e, inside)
    out = (centred * factor * scale + shift).to(normed.dtype.element_ty)
    tl.store(normed + row * E + e, out, inside)
    tl.store(inverse + row, factor, t < length)


@triton.jit(do_not_specialize=_VARYING)
def layer_norm_relevance_kernel(
    at_normed, at_stream, weight, bias, inverse, after, out, absorbed,
    at_normed_strides, at_stream_strides, inverse_strides, length, E,
    HAS_STREAM: tl.constexpr, HAS_AFTER: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The stream's gradient and (scaled - its mean) * inverse; what both biases absorb."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    at = at_normed + b * at_normed_strides[0] + t * at_normed_strides[1] + e
    arriving = tl.load(at, inside, 0.0).to(tl.float32)
    shift = constants(bias, t, e, inside)
    pid = tl.program_id(0)
    parts = tl.cdiv(length, BLOCK_T)
    tl.store(absorbed + pid, tl.sum(arriving * shift))
    scaled = arriving * constants(weight, t, e, inside)
    mean = tl.sum(scaled, 1, keep_dims=True) / E
    # One-dimensional, so that a thread loads the factor of a row once for all its channels.
    rows = (pid % parts) * BLOCK_T + tl.arange(0, BLOCK_T)
    inverse += b * inverse_strides[0]
    factor = tl.load(inverse + rows * inverse_strides[1], rows < length, 0.0).to(tl.float32)
    total = (scaled - mean) * factor[:, None]
    if HAS_STREAM:
        at = at_stream + b * at_stream_strides[0] + t * at_stream_strides[1] + e
        passing = tl.load(at, inside, 0.0).to(tl.float32)
        total += passing
        if HAS_AFTER:
            later = constants(after, t, e, inside)
            tl.store(absorbed + tl.num_programs(0) + pid, tl.sum(passing * later))
    to = out + (b * length + t) * E + e
    tl.store(to, total.to(out.dtype.element_ty), inside)


@triton.jit
def normal_cdf(x):
    """Phi(x), within 3e-7 by Abramowitz and Stegun, 7.1.26, at half the cost of an error function.

    The formula is one of erf(y) with y = |x| / sqrt(2), a polynomial in 1 / (1 + 0.3275911 y).
    """
    y = tl.abs(x) * 0.7071067811865476
    root = tl.rsqrt(1.0 + 0.3275911 * y)
    w = root * root
    tail = w * 0.5307027145 - 0.7265760135
    tail = tail * w + 0.7107068705
    tail = tail * w - 0.142248368
    tail = tail * w + 0.127414796
    tail = tail * w * exp(-y * y)
    return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit(do_not_specialize=_VARYING)
def gelu_relevance_kernel(
    at, x, bias, at_x, absorbed, at_strides, x_strides, length, E,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient times Phi(x), and what the bias absorbs of it."""
    b, t, e, inside = tile(length, E, BLOCK_T, BLOCK_E)
    value = tl.load(x + b * x_strides[0] + t * x_strides[1] + e, inside, 0.0).to(tl.float32)
    out = tl.load(at + b * at_strides[0] + t * at_strides[1] + e, inside, 0.0).to(tl.float32)
    out *= normal_cdf(value)
    tl.store(at_x + (b * length + t) * E + e, out.to(at_x.dtype.element_ty), inside)
    shift = constants(bias, t, e, inside)
    tl.store(absorbed + tl.program_id(0), tl.sum(out * shift))
