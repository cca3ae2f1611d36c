"""The naive twin against an independent dense derivation in float64.

Written out, a scan along a path of positions p_1..p_L is y_t = sum_s M_ts u_s with
M_ts = sum_n C_tn exp(A_n (dt_(s+1) + ... + dt_t)) dt_s B_sn for s <= t. The matrix holds for one
direction and one channel, is built from sums instead of steps, and its gradient is autograd's
through einsum and exp: nothing is shared with the code under test but the formula.
"""

from collections.abc import Collection

import pytest
import torch
from problems import NAMES, ORDERS, Problem, error, leaf, order_of, problem
from torch import Tensor

from vimlrp.kernels import selective_scan


def dense(p: Problem, grad: str | Collection[str]) -> Tensor:
    """The scan of a problem by explicit (L, L) matrices, (B, K, L, D)."""
    chosen = {"full": {"u", "A", "B", "C"}, "input": {"u"}}.get(str(grad)) or set(grad)
    u, dt, A, B, C, *skip = p.tensors
    D = skip[0] if skip else torch.zeros_like(A[..., 0])
    D = D if len(chosen) == 4 else D.detach()
    u = u if "u" in chosen else u.detach()
    u = u if u.dim() == 4 else u.unsqueeze(1).expand_as(dt)
    B, C = (x if x.dim() == 5 else x.unsqueeze(3) for x in (B, C))
    width = dt.shape[3] // B.shape[3]
    y = torch.zeros_like(dt)
    for b in range(dt.shape[0]):
        for k, path in enumerate(p.order.steps(dt.shape[2])):
            for d in range(dt.shape[3]):
                step = dt[b, k, path, d]  # (L,)
                total = step.cumsum(0)
                decay = torch.exp((total[:, None] - total)[..., None] * A[k, d])  # (L, L, N)
                drive = step[:, None] * B[b, k, path, d // width]  # (L, N)
                read = C[b, k, path, d // width]  # (L, N)
                decay, drive, read = (
                    x if name in chosen else x.detach()
                    for name, x in (("A", decay), ("B", drive), ("C", read))
                )
                matrix = torch.einsum("tn,tsn,sn->ts", read, decay, drive).tril()
                values = u[b, k, path, d]
                y[b, k, path, d] = matrix @ values + D[k, d] * values
    return y


GRADS = ["full", "input", ("u",), ("A",), ("B",), ("C",), ("u", "A"), ("B", "C"), ("u", "B", "C")]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grad", GRADS, ids=str)
def test_output_and_gradients_equal_the_dense_matrices(order: str, grad: str) -> None:
    p = problem(order_of(order, 5), 5, batch=1, groups=2, shared=order == "bidirectional")
    y, gradients = p.run("reference", grad)
    expected = dense(p, grad)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense_gradients = torch.autograd.grad(expected, p.tensors, dy, allow_unused=True)
    assert error(y, expected.detach()) < 1e-12
    for name, g, e in zip(NAMES, gradients, dense_gradients, strict=True):
        assert (g is None) == (e is None), name
        assert g is None or e is None or error(g, e) < 1e-12, name


def test_gradients_pass_finite_differences() -> None:
    p = problem(order_of("indexed", 4), 4, batch=1, channels=2, state=2)

    def scan(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, order=p.order, backend="reference")

    assert torch.autograd.gradcheck(scan, p.tensors)


def test_the_skip_alone_is_a_product() -> None:
    p = problem(order_of("forward", 3), 3)
    u, dt, A, B, C, D = p.tensors
    y = selective_scan(u, dt, A, 0 * B, C, D, order=p.order, backend="reference")
    assert torch.equal(y, D.unsqueeze(1) * u)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(dtype: torch.dtype) -> None:
    # A thousand increments of 1e-3 to a state: in half precision the sum would stall early.
    ones = torch.ones(1, 1, 1000, 1)
    tensors = [1e-3 * ones, ones, torch.zeros(1, 1, 1), ones, ones]
    small = [leaf(x.to(dtype)) for x in tensors]
    y = Problem(small, order_of("forward", 1000)).run()[0]
    assert abs(float(y[0, 0, -1, 0]) - 1000 * float(small[0].detach()[0, 0, 0, 0])) < 5e-3
