"""Random problems and comparisons for the kernel tests."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from vimlrp.kernels import ScanOrder, backends, selective_scan

NAMES = ("u", "dt", "A", "B", "C", "D")
# The fast backends that run in this process; `test_triton_interpreted` starts one with Triton.
# mamba_ssm takes no partial sets of factors and does not repeat bit for bit: `test_mamba_ssm`.
FAST = [b.name for b in backends() if b.usable and b.name not in {"reference", "mamba_ssm"}]
DEVICE = {"cpu": "cpu", "native": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
ORDERS = ("forward", "reverse", "bidirectional", "indexed")


@dataclass
class Problem:
    """The tensors of one scan, all requiring gradients, and its order."""

    tensors: list[Tensor]
    order: ScanOrder

    def run(
        self, backend: str = "reference", grad: str | Collection[str] = "full"
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Output and gradients of u, dt, A, B, C and D for one fixed random gradient."""
        y = selective_scan(*self.tensors, order=self.order, grad=grad, backend=backend)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        dy = dy.to(y.device, y.dtype)
        return y.detach(), list(torch.autograd.grad(y, self.tensors, dy, allow_unused=True))

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same values in another dtype."""
        return Problem([leaf(x.detach().to(dtype)) for x in self.tensors], self.order)


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()


def order_of(kind: str, length: int) -> ScanOrder:
    generator = torch.Generator().manual_seed(length)
    rows = torch.stack([torch.randperm(length, generator=generator) for _ in range(3)])
    return {
        "forward": ScanOrder.forward(),
        "reverse": ScanOrder((True,)),
        "bidirectional": ScanOrder.bidirectional(),
        "indexed": ScanOrder.from_index(rows, (False, True, False)),
    }[kind]


def problem(
    order: ScanOrder,
    length: int,
    *,
    batch: int = 2,
    groups: int = 1,
    channels: int = 4,
    state: int = 3,
    shared: bool = False,
    skip: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Problem:
    """Draw a stable scan: steps in 0..1, rates in -2..0, the rest normal."""
    generator = torch.Generator().manual_seed(seed)
    k = order.directions
    u_shape = (batch, length, channels) if shared else (batch, k, length, channels)
    projection = (batch, k, length, groups, state) if groups > 1 else (batch, k, length, state)
    tensors = [
        torch.randn(u_shape, generator=generator),
        torch.rand(batch, k, length, channels, generator=generator),
        -2 * torch.rand(k, channels, state, generator=generator),
        torch.randn(projection, generator=generator),
        torch.randn(projection, generator=generator),
    ]
    tensors += [torch.randn(k, channels, generator=generator)] if skip else []
    return Problem([leaf(x.to(device, dtype)) for x in tensors], order)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 error; the absolute one where nothing is expected."""
    expected = expected.double()
    size = float(expected.norm())
    return float((actual.double() - expected).norm()) / (size or 1.0)


def assert_same(
    actual: Problem, expected: Problem, backend: str, grad: object, bound: float
) -> None:
    """Output and every gradient agree within a relative L2 error; missing ones are the same."""
    y, gradients = actual.run(backend, grad)
    y_expected, expected_gradients = expected.run("reference", grad)
    assert y.dtype == actual.tensors[0].dtype
    assert error(y, y_expected) < bound
    for name, x, g, e in zip(NAMES, actual.tensors, gradients, expected_gradients, strict=False):
        assert (g is None) == (e is None), f"the gradient of {name} is {g}, expected {e}"
        if g is not None and e is not None:
            assert g.dtype == x.dtype
            assert error(g, e) < bound, f"the gradient of {name}"
