"""The full gradient of the blocked scan on a CPU, for training and for the baselines.

The states are not kept from the forward pass. A first walk stores the state before each block;
the second goes from the last block to the first, recomputes the states of the block, runs the
adjoint through it, and reads off every gradient.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vimlrp.kernels.dtypes import compute_dtype
from vimlrp.kernels.scan.blocked import Scan, contract, input_gradient

__all__ = ["full_backward"]


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
    """The gradient through the named factors.

    Args:
        dy: Gradient of the output, (B, K, L, D).
        u: Input, (B, K, L, D), or (B, 1, L, D) read by every direction.
        dt: Step, (B, K, L, D).
        A: Decay rates, (K, D, N).
        B: Input projection, (B, K, L, G, N).
        C: Output projection, (B, K, L, G, N).
        D: Skip weights, (K, D), or None.
        index: Positions per direction, (K, L), or None for raster order.
        reverse: One flag per direction.
        factors: Members of `reference.FACTORS`. What none of them reaches is for the caller to
            drop; its entry means nothing.

    Returns:
        Gradients of u, dt, A, B, C and D (None without D), each like its tensor.
    """
    scan = Scan.of(dt, A, B, C, index, reverse, compute_dtype(u, dt, A, B, C, D))
    back = _Backward(scan, scan.order(u), scan.order(dy), factors)
    back.run()
    du = input_gradient(scan.restore(back.du), dy, D, shared=u.shape[1] < dt.shape[1])
    dD = None if D is None else (u.to(scan.dtype) * dy.to(scan.dtype)).sum((0, 2))
    return (
        du.to(u.dtype),
        scan.restore(back.ddt).to(dt.dtype),
        back.dA.transpose(2, 3).flatten(1, 2).to(A.dtype),
        scan.restore(back.dB).to(B.dtype),
        scan.restore(back.dC).to(C.dtype),
        None if D is None or dD is None else dD.to(D.dtype),
    )


class _Backward:
    """The walk back over the blocks; gradients in the order of visit and the compute dtype."""

    def __init__(self, scan: Scan, u: Tensor, dy: Tensor, factors: Collection[str]) -> None:
        self.scan, self.u, self.dy, self.factors = scan, u, dy, factors
        self.du, self.ddt = torch.empty_like(scan.dt), torch.zeros_like(scan.dt)  # (B, K, L, D)
        self.dA = torch.zeros_like(scan.A)  # (K, G, N, E)
        self.dB, self.dC = torch.empty_like(scan.B), torch.empty_like(scan.C)  # (B, K, L, G, N)

    def run(self) -> None:
        """Fill du, ddt, dA, dB and dC."""
        scan, starts = self.scan, self.checkpoints()
        forth, back = scan.pair(), scan.pair()
        carry = scan.dt.new_zeros(scan.state_shape)
        for (start, stop), h in zip(reversed(scan.blocks()), reversed(starts), strict=True):
            states = scan.states(self.u, start, stop, h, forth)
            g = scan.adjoints(self.dy, start, stop, carry, back)
            self.dC[:, :, start:stop] = _project(states, scan.channels(self.dy, start, stop))
            self.through_drive(g, start, stop)
            if "A" in self.factors:
                self.through_decay(g, states, h, start, stop, back[0, : stop - start])

    def checkpoints(self) -> list[Tensor]:
        """The state before each block, (B, K, G, N, E)."""
        scan, room = self.scan, self.scan.pair()
        starts = [scan.dt.new_zeros(scan.state_shape)]
        for start, stop in scan.blocks()[:-1]:
            starts.append(scan.states(self.u, start, stop, starts[-1], room)[-1].clone())
        return starts

    def through_drive(self, g: Tensor, start: int, stop: int) -> None:
        """Gradients through dt * B * u, given the adjoints g (T, B, K, G, N, E)."""
        dt, u = self.scan.dt[:, :, start:stop], self.u[:, :, start:stop]
        reached = contract(self.scan.B, g, start, stop)  # (B, K, T, D)
        self.du[:, :, start:stop] = reached * dt
        self.dB[:, :, start:stop] = _project(g, self.scan.channels(dt * u, 0, stop - start))
        if "B" in self.factors:
            self.ddt[:, :, start:stop] += reached * u

    def through_decay(
        self, g: Tensor, states: Tensor, h: Tensor, start: int, stop: int, decay: Tensor
    ) -> None:
        """Gradients through exp(dt * A); overwrites g, (T, B, K, G, N, E)."""
        g[1:].mul_(states[:-1])
        g[0].mul_(h)
        exponent = g.mul_(decay)
        shape = self.ddt[:, :, start:stop].shape
        rates = (exponent * self.scan.A).sum(-2)  # (T, B, K, G, E)
        self.ddt[:, :, start:stop] += rates.movedim(0, 2).reshape(shape)
        self.dA += exponent.mul_(self.scan.channels(self.scan.dt, start, stop)).sum((0, 1))


def _project(states: Tensor, channels: Tensor) -> Tensor:
    """Sum states (T, B, K, G, N, E) times channels (T, B, K, G, 1, E) over E, (B, K, T, G, N)."""
    return torch.matmul(states, channels.transpose(-1, -2)).squeeze(-1).movedim(0, 2)
