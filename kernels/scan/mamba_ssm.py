"""The selective scan on a CUDA GPU by mamba-ssm's extension (Gu and Dao, 2023).

The extension reads (B, D, L) in the order of visit, and one dtype for u, dt, B and C. So every call
gathers and transposes its inputs, and transposes and scatters its results: that is the price of
this backend, which is here for comparison and for machines whose Triton does not work. All
directions go through one launch, as groups of neighbouring channels.

Its backward computes all gradients at once, of which the relevance pass keeps one. The gradients of
A, B, C and D are atomic sums, which do not repeat bit for bit; those of u and dt do.
"""

import functools
import importlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.extension import EXTENSION
from vimlrp.kernels.scan.blocked import in_order
from vimlrp.kernels.scan.order import visited
from vimlrp.kernels.scan.reference import FACTORS

__all__ = ["forward", "full_backward", "input_backward"]

# Steps between two states that the extension's forward hands to its backward.
_CHUNK = 2048
# Channels of all directions together: one dimension of the extension's launch grid.
_MOST_CHANNELS = 65535


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
) -> Tensor:
    """The scan itself; arguments and result as in `reference.scan`, without a graph."""
    call = _Call.of(u, dt, A, B, C, D, index, reverse)
    return call.unfold(call.scan(call.fold(u))[0]).to(u.dtype)


def input_backward(
    dy: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    shared: bool,
) -> Tensor:
    """The relevance pass; arguments and result as in `blocked.input_backward`.

    The gradient to u does not depend on u and its states, so that dy and zeros stand for them.
    """
    call = _Call.of(dy, dt, A, B, C, D, index, reverse)
    flow = call.fold(dy)
    du = call.unfold(call.gradients(flow, flow, call.no_states())[0])
    return _summed(du, shared).to(dy.dtype)


def full_backward(
    dy: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    index: Tensor | None,
    reverse: Sequence[bool],
    factors: Collection[str],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradient through all factors, as in `blocked_full.full_backward`.

    Raises:
        KernelError: If `factors` names some of them only.
    """
    if set(factors) != set(FACTORS):
        raise KernelError(
            f"The mamba_ssm backend was given a gradient through {', '.join(factors)}; it takes "
            "grad='input' and grad='full'. Choose backend='triton' or backend='reference'."
        )
    call = _Call.of(u, dt, A, B, C, D, index, reverse)
    folded = call.fold(u)
    states = call.scan(folded)[1] if call.chunks > 1 else None
    du, ddt, dA, dB, dC, dD, *_ = call.gradients(folded, call.fold(dy), states)
    return (
        _summed(call.unfold(du), u.shape[1] < dt.shape[1]).to(u.dtype),
        call.unfold(ddt).to(dt.dtype),
        dA.view_as(A).to(A.dtype),
        call.unfold(dB).to(B.dtype),
        call.unfold(dC).to(C.dtype),
        None if D is None else dD.view_as(D).to(D.dtype),
    )


@dataclass
class _Call:
    """The factors of one call in the extension's layout: directions are groups of channels."""

    dt: Tensor  # (B, K * D, L)
    A: Tensor  # (K * D, N) float32
    B: Tensor  # (B, K * G, N, L)
    C: Tensor  # (B, K * G, N, L)
    D: Tensor | None  # (K * D,) float32
    steps: Tensor | None  # (K, L), None where memory order is the order of visit
    directions: int

    @classmethod
    def of(
        cls,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        index: Tensor | None,
        reverse: Sequence[bool],
    ) -> "_Call":
        """Bring the arguments of a backend function into the layout."""
        k, channels = A.shape[:2]
        if k * channels > _MOST_CHANNELS:
            raise KernelError(
                f"The mamba_ssm backend was given {k} direction(s) of {channels} channels; it "
                f"takes up to {_MOST_CHANNELS} channels over all directions. Split the call, or "
                "choose backend='triton'."
            )
        raster = index is None and not any(reverse)
        steps = None if raster else visited(index, reverse, dt.shape[2], dt.device)
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in (u, dt, B, C)))
        dt, B, C = (_fold(x, k, steps, dtype) for x in (dt, B, C))
        rates = A.flatten(0, 1).float().contiguous()
        skip = None if D is None else D.flatten().float().contiguous()
        return cls(dt, rates, B, C, skip, steps, k)

    @property
    def chunks(self) -> int:
        """Chunks of steps whose states forward and backward share."""
        return -(-self.dt.shape[2] // _CHUNK)

    def fold(self, x: Tensor) -> Tensor:
        """A tensor (B, K or 1, L, D) as (B, K * D, L), in the dtype of the call."""
        return _fold(x, self.directions, self.steps, self.dt.dtype)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo `fold`, also for B and C: (B, K * D, L) as (B, K, L, D)."""
        x = x.unflatten(1, (self.directions, -1)).movedim(-1, 2)
        return x if self.steps is None else in_order(x, self.steps.argsort(dim=1))

    def scan(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The output, (B, K * D, L), and the states at the ends of chunks."""
        factors = (self.dt, self.A, self.B, self.C, self.D)
        y, states, *_ = _extension().fwd(u, *factors, None, None, False)
        return y, states

    def gradients(self, u: Tensor, dy: Tensor, states: Tensor | None) -> Sequence[Tensor]:
        """The gradients of u, dt, A, B, C and D, in this layout; of D undefined without one."""
        factors = (self.dt, self.A, self.B, self.C, self.D)
        found: Sequence[Tensor] = _extension().bwd(
            u, *factors, None, None, dy, states, None, None, False, False
        )
        return found

    def no_states(self) -> Tensor | None:
        """Zeros for the states, which a sequence of several chunks must come with."""
        if self.chunks == 1:
            return None
        return self.A.new_zeros((*self.dt.shape[:2], self.chunks, 2 * self.A.shape[1]))


def _fold(x: Tensor, directions: int, steps: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Gather x (B, K or 1, L, ...) in the order of visit, as (B, K * ..., L)."""
    x = in_order(x.expand(-1, directions, *x.shape[2:]).to(dtype), steps)
    return x.movedim(2, -1).flatten(1, 2).contiguous()


def _summed(du: Tensor, shared: bool) -> Tensor:
    """Add the directions of du (B, K, L, D) up, in float32, where they read one u."""
    return du.float().sum(1, keepdim=True) if shared else du


def _extension() -> Any:
    return importlib.import_module(EXTENSION)
