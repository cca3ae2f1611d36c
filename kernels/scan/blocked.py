"""The selective scan on a CPU: a time loop over blocks of steps, and its adjoints by hand.

Exponentials, products and sums are taken for a block of steps at a time, in buffers that stay in
the cache; only `h = decay * h + x` runs step by step, in place. No autograd graph is built: the
relevance pass is the adjoint of a linear map, a loop of the same form that walks backwards and
needs no state. The full gradient is in `blocked_full`.
Inside this module time leads and channels trail, (T, B, K, G, N, E) with E = D / G channels a
group, so that one step of all rows is contiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimlrp.kernels.dtypes import compute_dtype
from vimlrp.kernels.scan.order import visited

__all__ = ["Scan", "contract", "forward", "input_backward", "input_gradient"]

# Elements of one buffer: two float32 buffers of this size fit a 1 MiB second-level cache.
_BUFFER = 1 << 17
# Fewer steps a block than this, and the calls around a block cost more than cache misses.
_SHORTEST = 8


@dataclass
class Scan:
    """The factors of one call, in the order of visit and the compute dtype."""

    dt: Tensor  # (B, K, L, D)
    A: Tensor  # (K, G, N, E)
    B: Tensor  # (B, K, L, G, N)
    C: Tensor  # (B, K, L, G, N)
    steps: Tensor | None  # (K, L), None where memory order is the order of visit
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        index: Tensor | None,
        reverse: Sequence[bool],
        dtype: torch.dtype,
    ) -> "Scan":
        """Bring the arguments of a backend function into the form of this module."""
        raster = index is None and not any(reverse)
        steps = None if raster else visited(index, reverse, dt.shape[2], dt.device)
        rates = A.to(dtype).reshape(len(A), B.shape[3], -1, A.shape[2])  # (K, G, E, N)
        dt, B, C = (in_order(x, steps).to(dtype) for x in (dt, B, C))
        return cls(dt, rates.transpose(2, 3).contiguous(), B, C, steps, dtype)

    @property
    def groups(self) -> int:
        """G."""
        return self.B.shape[3]

    def order(self, x: Tensor) -> Tensor:
        """A tensor (B, K or 1, L, ...) in the order of visit and the compute dtype."""
        return in_order(x, self.steps).to(self.dtype)

    def restore(self, x: Tensor) -> Tensor:
        """Undo `order` for a tensor (B, K, L, ...)."""
        return x if self.steps is None else in_order(x, self.steps.argsort(dim=1))

    def blocks(self) -> list[tuple[int, int]]:
        """The first and one past the last step of each block."""
        length, row = self.dt.shape[2], self.state_shape.numel()
        size = min(length, max(_SHORTEST, _BUFFER // row))
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    @property
    def state_shape(self) -> torch.Size:
        """The state of one step, (B, K, G, N, E)."""
        return torch.Size((self.dt.shape[0], *self.A.shape))

    def pair(self) -> Tensor:
        """Room for a block's decay and for what runs through it, (2, T, B, K, G, N, E)."""
        first, last = self.blocks()[0]
        return self.dt.new_empty((2, last - first, *self.state_shape))

    def channels(self, x: Tensor, start: int, stop: int) -> Tensor:
        """A block of x (B, K, L, D) as (T, B, K, G, 1, E)."""
        block = x[:, :, start:stop].movedim(2, 0)
        return block.reshape(*block.shape[:3], self.groups, 1, -1)

    def decay(self, start: int, stop: int, out: Tensor) -> Tensor:
        """exp(dt * A) of a block, (T, B, K, G, N, E)."""
        return torch.mul(self.channels(self.dt, start, stop), self.A, out=out).exp_()

    def states(self, u: Tensor, start: int, stop: int, h: Tensor, out: Tensor) -> Tensor:
        """The states of a block after the state h; `out` holds decay and states, (2, T, ...)."""
        decay, x = self.decay(start, stop, out[0, : stop - start]), out[1, : stop - start]
        drive = self.channels(self.dt, start, stop) * self.channels(u, start, stop)
        torch.mul(block(self.B, start, stop).unsqueeze(-1), drive, out=x)
        for t, factor in enumerate(decay.unbind(0)):
            h = x[t].addcmul_(factor, h)
        return x

    def adjoints(self, dy: Tensor, start: int, stop: int, carry: Tensor, out: Tensor) -> Tensor:
        """The adjoints g of a block; `carry` comes from the later block and is replaced."""
        decay, g = self.decay(start, stop, out[0, : stop - start]), out[1, : stop - start]
        torch.mul(block(self.C, start, stop).unsqueeze(-1), self.channels(dy, start, stop), out=g)
        g[-1].add_(carry)
        for t in range(stop - start - 2, -1, -1):
            g[t].addcmul_(decay[t + 1], g[t + 1])
        torch.mul(decay[0], g[0], out=carry)
        return g


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
    scan = Scan.of(dt, A, B, C, index, reverse, compute_dtype(u, dt, A, B, C, D))
    inputs, y = scan.order(u), torch.empty_like(scan.dt)
    h, room = scan.dt.new_zeros(scan.state_shape), scan.pair()
    for start, stop in scan.blocks():
        states = scan.states(inputs, start, stop, h, room)
        y[:, :, start:stop] = contract(scan.C, states, start, stop)
        h.copy_(states[-1])
    y = scan.restore(y)
    if D is not None:
        y = torch.addcmul(y, D.to(y.dtype).unsqueeze(1), u.to(y.dtype))
    return y.to(u.dtype)


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
    """The relevance pass: the adjoint of u -> y with every factor held constant.

    Args:
        dy: Gradient of the output, (B, K, L, D).
        dt: Step, (B, K, L, D).
        A: Decay rates, (K, D, N).
        B: Input projection, (B, K, L, G, N).
        C: Output projection, (B, K, L, G, N).
        D: Skip weights, (K, D), or None.
        index: Positions per direction, (K, L), or None for raster order.
        reverse: One flag per direction.
        shared: Whether every direction reads one u, so that their gradients add up.

    Returns:
        Gradient of u, (B, K, L, D), or (B, 1, L, D) where shared, in the dtype of dy.
    """
    scan = Scan.of(dt, A, B, C, index, reverse, compute_dtype(dy, dt, A, B, C, D))
    flow, du = scan.order(dy), torch.empty_like(scan.dt)
    carry, room = scan.dt.new_zeros(scan.state_shape), scan.pair()
    for start, stop in reversed(scan.blocks()):
        g = scan.adjoints(flow, start, stop, carry, room)
        du[:, :, start:stop] = contract(scan.B, g, start, stop)
    du = scan.restore(du.mul_(scan.dt))
    return input_gradient(du, dy, D, shared).to(dy.dtype)


def input_gradient(du: Tensor, dy: Tensor, D: Tensor | None, shared: bool) -> Tensor:
    """Add the skip's gradient to du (B, K, L, D), and the directions up where u is shared."""
    if D is not None:
        du = torch.addcmul(du, D.to(du.dtype).unsqueeze(1), dy.to(du.dtype))
    return du.sum(1, keepdim=True) if shared else du


def block(x: Tensor, start: int, stop: int) -> Tensor:
    """A block of B or C (B, K, L, G, N) as (T, B, K, G, N)."""
    return x[:, :, start:stop].movedim(2, 0)


def contract(x: Tensor, states: Tensor, start: int, stop: int) -> Tensor:
    """Sum B or C times the states (T, B, K, G, N, E) over N, (B, K, T, D)."""
    product = torch.matmul(block(x, start, stop).unsqueeze(-2), states)  # (T, B, K, G, 1, E)
    return product.squeeze(-2).flatten(3).movedim(0, 2)


def in_order(x: Tensor, steps: Tensor | None) -> Tensor:
    """Gather x (B, K or 1, L, ...) at the visited positions, (B, K, L, ...)."""
    if steps is None:
        return x
    if x.shape[1] == 1:
        return x[:, 0][:, steps]
    rows = torch.arange(len(steps), device=steps.device).unsqueeze(1)
    return x[:, rows, steps]
