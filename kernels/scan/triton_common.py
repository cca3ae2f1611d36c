"""What the Triton programs of the scan share: where each works, and which position comes next."""

# A program's arguments are traced into pointers and scalars; Python types say nothing about them.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

__all__ = ["LOG2_E", "base", "positions", "program", "walk"]

LOG2_E = tl.constexpr(1.4426950408889634)


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


@triton.jit
def walk(k, length, reverse, index, HAS_INDEX: tl.constexpr, BACK: tl.constexpr):
    """Where direction k begins, the sign of its step, and its row of the index.

    With BACK the walk is against the order of visit.
    """
    backwards = (reverse >> k) & 1
    if BACK:
        backwards = 1 - backwards
    if HAS_INDEX:
        index += k * length
    return backwards * (length - 1), 1 - 2 * backwards, index


@triton.jit
def positions(
    i, inside, origin, sense, index, HAS_INDEX: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Position in memory of step i of the walk; `inside` says which steps there are.

    WIDE where a position times a stride may not fit 32 bits.
    """
    at = origin + sense * i
    if HAS_INDEX:
        at = tl.load(index + at, inside, 0)
    return at.to(tl.int64 if WIDE else tl.int32)
