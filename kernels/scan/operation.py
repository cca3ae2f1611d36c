"""The public operation: arguments checked, backend chosen, scan run."""

from collections.abc import Collection

from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels.backends import choose
from vimlrp.kernels.dtypes import compute_dtype
from vimlrp.kernels.scan import dispatch, reference
from vimlrp.kernels.scan.checks import check_tensors, factor_set
from vimlrp.kernels.scan.order import ScanOrder

__all__ = ["selective_scan", "selective_scan_relevance"]


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    order: ScanOrder,
    grad: str | Collection[str] = "full",
    backend: str = "auto",
) -> Tensor:
    """Scan a sequence along every direction of an order (Mamba, Gu and Dao, 2023, section 3).

    For each direction, over the positions in its order of visit:

        h_t = exp(dt_t * A) * h_(t-1) + dt_t * B_t * u_t        y_t = C_t . h_t + D * u_t

    State and accumulation are float32, or float64 where any input is float64.

    Args:
        u: Input, (B, L, D) read by every direction, or (B, K, L, D).
        dt: Step, after softplus and bias, (B, K, L, D).
        A: Decay rates, negative in a stable scan, (K, D, N) with N from 1 to 256.
        B: Input projection, (B, K, L, N), or (B, K, L, G, N) with G groups of neighbouring
            channels.
        C: Output projection, the shape of B.
        D: Skip weights, (K, D), or None for no skip.
        order: The K directions; all tensors stand in memory order, whatever the order of visit.
        grad: The factors that a gradient goes through: "full" for all; "input" for u alone, with
            exp(dt*A), dt*B and C held constant, which is the relevance pass; or a collection out
            of "u", "A" for exp(dt*A), "B" for dt*B and "C". D gets a gradient with "full" only.
        backend: "auto", or a name out of `backends()`; see there for the environment variable.

    Returns:
        The output in memory order, (B, K, L, D), in the dtype of u.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.

    Example:
        >>> import torch
        >>> u, dt = torch.ones(1, 3, 1), torch.ones(1, 2, 3, 1)
        >>> A, B, C = torch.zeros(2, 1, 1), torch.ones(1, 2, 3, 1), torch.ones(1, 2, 3, 1)
        >>> selective_scan(u, dt, A, B, C, order=ScanOrder.bidirectional())[0, :, :, 0].tolist()
        [[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]
    """
    factors = factor_set(grad)
    check_tensors(u, dt, A, B, C, D, order)
    chosen = choose(backend, dt.device, compute_dtype(u, dt, A, B, C, D))
    u = u if u.dim() == 4 else u.unsqueeze(1)
    B, C = (x if x.dim() == 5 else x.unsqueeze(3) for x in (B, C))
    index, reverse = order.index_on(dt.device), list(order.reverse)
    if chosen == "reference":
        return reference.scan(u, dt, A, B, C, D, index, reverse, factors)
    y: Tensor = dispatch.scan(u, dt, A, B, C, D, index, reverse, factors, chosen)
    return y


def selective_scan_relevance(
    at_y: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    order: ScanOrder,
    summed: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The gradient to u of `selective_scan` with grad="input", for callers without autograd.

    It is a scan of its own, against the order of visit, and needs neither u nor states:

        g_t = C_t * at_y_t + exp(dt_(t+1) * A) * g_(t+1)
        at_u_t = dt_t * (B_t . g_t) + D * at_y_t

    Args:
        at_y: Gradient at the output, (B, K, L, D); directions may share memory.
        dt: As for `selective_scan`, as are the arguments that follow.
        A: Decay rates.
        B: Input projection.
        C: Output projection.
        D: Skip weights.
        order: The directions.
        summed: Add up the directions, which read one u.
        backend: As for `selective_scan`; "reference" is not offered here.

    Returns:
        The gradient at u, (B, K, L, D), or (B, 1, L, D) if summed.

    Raises:
        KernelError: If an argument does not fit, or the backend cannot take the call.
    """
    check_tensors(at_y, dt, A, B, C, D, order)
    chosen = choose(backend, dt.device, compute_dtype(at_y, dt, A, B, C, D))
    if chosen == "reference":
        raise KernelError(
            "The backend 'reference' has no relevance pass of its own: call selective_scan with "
            "grad='input' and differentiate, or take another backend."
        )
    B, C = (x if x.dim() == 5 else x.unsqueeze(3) for x in (B, C))
    index, reverse = order.index_on(dt.device), list(order.reverse)
    at_u: Tensor = dispatch.relevance(at_y, dt, A, B, C, D, index, reverse, summed, chosen)
    return at_u
