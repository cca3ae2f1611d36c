"""The relevance pass as a call of its own equals the differentiated scan."""

import pytest
import torch
from problems import DEVICE, FAST, ORDERS, order_of, problem

from vimlrp.errors import KernelError
from vimlrp.kernels import selective_scan, selective_scan_relevance


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("order", ORDERS)
def test_it_is_the_gradient_of_the_scan_to_its_input(order: str, backend: str) -> None:
    dtype = torch.float32 if backend != "cpu" else torch.float64
    p = problem(order_of(order, 7), 7).to(dtype)
    tensors = [x.detach().to(DEVICE.get(backend, "cpu")) for x in p.tensors]
    u = tensors[0].requires_grad_()
    y = selective_scan(*tensors, order=p.order, grad="input", backend="reference")
    at_y = torch.randn(y.shape[0], 1, *y.shape[2:], device=y.device, dtype=dtype).expand_as(y)
    (expected,) = torch.autograd.grad(y, u, at_y)
    found = selective_scan_relevance(at_y, *tensors[1:], order=p.order, backend=backend)
    if u.dim() == 3 or u.shape[1] < y.shape[1]:
        found = found.sum(1, keepdim=u.dim() == 4)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert (found - expected).norm() <= tolerance * expected.norm()


def test_the_twin_has_no_pass_of_its_own_and_says_so() -> None:
    p = problem(order_of("forward", 3), 3)
    dt, *rest = (x.detach() for x in p.tensors[1:])
    with pytest.raises(KernelError, match="grad='input'"):
        selective_scan_relevance(dt, dt, *rest, order=p.order, backend="reference")


def test_shapes_are_checked() -> None:
    p = problem(order_of("forward", 3), 3)
    dt, *rest = (x.detach() for x in p.tensors[1:])
    with pytest.raises(KernelError, match="shape"):
        selective_scan_relevance(dt[..., :1], dt, *rest, order=p.order)
