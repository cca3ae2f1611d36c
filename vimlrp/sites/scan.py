"""The sites of a selective scan: its step size and the scan itself."""

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.kernels import ScanOrder, selective_scan
from vimlrp.sites.base import Site
from vimlrp.tracing import active, at_least_float32, constant

__all__ = ["Scan", "Step"]


class Step(Site):
    """The step size of a scan: softplus, linear above 20."""

    kind = "step"

    def plain(self, x: Tensor) -> Tensor:
        """Compute log(1 + exp(x)) in float32 at least."""
        return F.softplus(x.to(at_least_float32(x)))


class Scan(Site):
    """Selective scans of all directions; see `vimlrp.kernels.selective_scan` for the shapes.

    Args:
        order: The scan orders.
        backend: Which kernel runs it.
    """

    kind = "scan"

    def __init__(self, order: ScanOrder, backend: str = "auto") -> None:
        super().__init__()
        self.order = order
        self.backend = backend

    def parameter_source(self, u: Tensor) -> Tensor:
        """The tensor from which dt, B and C are computed: a constant where the rule says so."""
        trace = active()
        if trace is None or trace.rule_of(self).free != ("u",):
            return u
        return constant(u)

    def scan(
        self, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *, grad: Any
    ) -> Tensor:
        """Scan with the gradient through the factors named by `grad`."""
        return selective_scan(u, dt, A, B, C, D, order=self.order, grad=grad, backend=self.backend)

    def plain(self, *args: Tensor) -> Tensor:
        """Scan with the full gradient."""
        return self.scan(*args, grad="full")
