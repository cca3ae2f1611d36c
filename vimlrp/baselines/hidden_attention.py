"""The attention matrix that a selective scan implies.

Ali, Zimerman and Wolf, ACL 2025, https://arxiv.org/abs/2403.01590, equation 14. Unrolled, a scan is
a linear map of its input,

    y_t = sum over s <= t of alpha[t, s] u_s
    alpha[t, s] = C_t . (product over k = s + 1 .. t of exp(dt_k A)) dt_s B_s

for every channel, the skip weights D left out. The product ends with step t: the authors' code for
a class token in the middle leaves the last factor out, and its loop is not followed here.
"""

import torch
from torch import Tensor

from vimlrp.kernels import ScanOrder
from vimlrp.tracing import at_least_float32

__all__ = ["mean_attention"]

_MOST = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers that a factor of a product may hold: what a cache holds, or what keeps a GPU busy."""


def mean_attention(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, order: ScanOrder) -> Tensor:
    """The mean of alpha over channels, summed over directions, by positions.

    Nothing of size L x L is held for a channel. A span of steps is cut in the middle: what its
    second half collects from its first is a product of two matrices, since the decay between the
    two steps is the decay up to the cut times that from the cut. Either is at most 1, so nothing
    overflows. The halves are cut again, all spans of one length at a time.

    Args:
        dt: Step sizes, (B, K, L, D).
        A: Decay rates, (K, D, N).
        B: Input projection, (B, K, L, N).
        C: Output projection, (B, K, L, N).
        order: The K directions.

    Returns:
        (B, L, L), rows the positions that collect, columns those that are collected from.
    """
    length = dt.shape[2]
    steps = order.steps(length, dt.device)
    dtype = at_least_float32(dt)
    dt, B, C = (_visited(x.to(dtype), steps) for x in (dt, B, C))
    rows = zip(steps, dt.unbind(1), A.to(dtype), B.unbind(1), C.unbind(1), strict=True)
    total = dt.new_zeros(len(dt), length, length)
    for visited, *factors in rows:
        place = visited.argsort()
        total += _causal(*factors)[:, place[:, None], place]
    return total


def _visited(x: Tensor, steps: Tensor) -> Tensor:
    """Bring x (B, K, L, ...) from the order of positions into that of visits."""
    return x[:, torch.arange(len(steps), device=x.device)[:, None], steps]


def _causal(dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The mean over channels for one direction in its order of visit, (B, L, L).

    Args:
        dt: (B, L, D).
        A: (D, N).
        B: (B, L, N).
        C: (B, L, N).
    """
    length, channels = dt.shape[1:]
    padded = 1 << (length - 1).bit_length()
    # A step of size 0 takes nothing in and lets all pass.
    dt, B, C = (torch.nn.functional.pad(x, (0, 0, 0, padded - length)) for x in (dt, B, C))
    alpha = dt.new_zeros(len(dt), padded, padded)
    alpha.diagonal(dim1=1, dim2=2).copy_((B * C).sum(2) * dt.sum(2))
    most = _MOST["cuda" if dt.is_cuda else "cpu"]
    size = max(1, most // (len(dt) * padded * A.shape[1]))
    for part, rates in zip(dt.split(size, dim=2), A.split(size), strict=True):
        span = 2
        while span <= padded:
            _add_across(alpha, span, part, rates, B, C)
            span *= 2
    return alpha[:, :length, :length] / channels


def _add_across(alpha: Tensor, span: int, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    """Add what the second half of every span of steps collects from its first half."""
    half = span // 2
    (early, late), (source, _), (_, read) = (
        x.unflatten(1, (-1, 2, half)).unbind(2) for x in (dt, B, C)
    )  # (B, spans, half, ...)
    to_cut = early.flip(2).cumsum(2).flip(2) - early  # what comes after the step, up to the cut
    sent = _decay(to_cut, A) * (early.unsqueeze(4) * source.unsqueeze(3))
    read_off = _decay(late.cumsum(2), A) * read.unsqueeze(3)  # (B, spans, half, D, N)
    across = read_off.flatten(3) @ sent.flatten(3).transpose(2, 3)  # (B, spans, half, half)
    spans = alpha.unflatten(2, (-1, span)).unflatten(1, (-1, span)).diagonal(dim1=1, dim2=3)
    spans[:, half:, :half] += across.permute(0, 2, 3, 1)


def _decay(time: Tensor, A: Tensor) -> Tensor:
    """(..., D) to (..., D, N)."""
    return (time.unsqueeze(-1) * A).exp()
