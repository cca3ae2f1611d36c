"""The sites of a selective scan: its step size and the scan itself."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder, selective_scan
from vimlrp.kernels.backends import choose
from vimlrp.kernels.fused import sequences_native
from vimlrp.sites.base import Site
from vimlrp.tracing import active, at_least_float32, constant, frozen

__all__ = ["Scan", "Step"]


class Step(Site):
    """The step size of a scan: softplus, linear above 20."""

    kind = "step"

    def plain(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute log(1 + exp(x + bias)) in float32 at least.

        Args:
            x: Of any shape.
            bias: Added to x where no layer before has done so; its share stands in the account.
        """
        x = x.to(at_least_float32(x))
        if bias is None:
            return _softplus(x)
        bias = frozen(bias)
        x = x + bias
        trace = active()
        if trace is not None:
            trace.absorb(f"bias: {self.kind}", x, bias)
        return _softplus(x)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), by the compiled library where no gradient or graph is recorded.

    PyTorch's softplus takes a fifth of a whole VMamba's time on a CPU.
    """
    recorded = x.requires_grad or (active() is None and torch.is_grad_enabled())
    if recorded or torch.compiler.is_compiling():
        return F.softplus(x)
    native = choose("auto", x.device, x.dtype) == "native"
    return sequences_native.softplus(x) if native else F.softplus(x)


class Scan(Site):
    """Selective scans of all directions; see `vimlrp.kernels.selective_scan` for the shapes.

    Args:
        order: The scan orders, or None where they depend on the size of the map and come with
            every call.
        backend: Which kernel runs it.
    """

    kind = "scan"

    def __init__(self, order: ScanOrder | None = None, backend: str = "auto") -> None:
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
        self,
        u: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        order: ScanOrder | None = None,
        *,
        grad: Any,
    ) -> Tensor:
        """Scan with the gradient through the factors named by `grad`."""
        order = order or self.order
        if order is None:
            raise KernelError("this Scan has no order of its own: give one with the call")
        return selective_scan(u, dt, A, B, C, D, order=order, grad=grad, backend=self.backend)

    def plain(self, *args: Any) -> Tensor:
        """Scan with the full gradient."""
        return self.scan(*args, grad="full")
