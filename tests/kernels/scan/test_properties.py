"""What every scan satisfies, whatever its tensors: drawn at random by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Problem, error, leaf, order_of, problem

from vimlrp.kernels import ScanOrder, selective_scan

LENGTHS = st.integers(1, 40)
SEEDS = st.integers(0, 2**31 - 1)
BACKENDS = st.sampled_from(["reference", "cpu"])
QUICK = settings(max_examples=25, deadline=None)


def flipped(p: Problem) -> list[torch.Tensor]:
    """The tensors of a problem with every sequence turned round."""
    u, dt, A, B, C, D = (x.detach() for x in p.tensors)
    return [u.flip(-2), dt.flip(2), A, B.flip(2), C.flip(2), D]


@QUICK
@given(LENGTHS, SEEDS, BACKENDS, st.floats(-3, 3))
def test_a_scan_is_linear_in_u(length: int, seed: int, backend: str, factor: float) -> None:
    p = problem(order_of("bidirectional", length), length, seed=seed)
    u, *rest = (x.detach() for x in p.tensors)
    other = torch.randn(u.shape, generator=torch.Generator().manual_seed(seed), dtype=u.dtype)

    def scan(x: torch.Tensor) -> torch.Tensor:
        return selective_scan(x, *rest, order=p.order, grad="input", backend=backend)

    assert error(scan(u + factor * other), scan(u) + factor * scan(other)) < 1e-12


@QUICK
@given(LENGTHS, SEEDS, BACKENDS, st.sampled_from(["forward", "bidirectional", "indexed"]))
def test_relevance_is_conserved(length: int, seed: int, backend: str, kind: str) -> None:
    # For a linear map, input times gradient sums to output times its own gradient.
    p = problem(order_of(kind, length), length, seed=seed)
    y = selective_scan(*p.tensors, order=p.order, grad="input", backend=backend)
    u = p.tensors[0]
    (du,) = torch.autograd.grad(y.sum(), u)
    assert torch.allclose((u * du).sum(), y.sum(), rtol=1e-9, atol=1e-9)


@QUICK
@given(LENGTHS, SEEDS, BACKENDS)
def test_reversal_equals_flipping(length: int, seed: int, backend: str) -> None:
    p = problem(ScanOrder((True,)), length, seed=seed)
    forward = Problem([leaf(x) for x in flipped(p)], ScanOrder.forward())
    y, (du, *_) = p.run(backend, "input")
    expected = selective_scan(*forward.tensors, order=forward.order).flip(2)
    assert error(y, expected.detach()) < 1e-12
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    (expected_du,) = torch.autograd.grad(expected, forward.tensors[0], dy)
    assert du is not None
    assert error(du, expected_du.flip(2)) < 1e-12


@QUICK
@given(LENGTHS, SEEDS, BACKENDS)
def test_permuting_twice_restores(length: int, seed: int, backend: str) -> None:
    # A scan along a path equals a forward scan of the sequences laid out along that path.
    path = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    p = problem(ScanOrder.from_index(path.unsqueeze(0)), length, seed=seed)
    u, dt, A, B, C, D = (x.detach() for x in p.tensors)
    laid_out = [u[:, :, path], dt[:, :, path], A, B[:, :, path], C[:, :, path], D]
    y = selective_scan(*laid_out, order=ScanOrder.forward(), backend="reference")
    assert error(p.run(backend)[0], y[:, :, path.argsort()]) < 1e-12


@QUICK
@given(LENGTHS, SEEDS, BACKENDS, st.integers(0, 39))
def test_the_future_does_not_reach_the_past(
    length: int, seed: int, backend: str, moment: int
) -> None:
    p = problem(order_of("bidirectional", length), length, seed=seed)
    moment %= length
    u, *rest = (x.detach() for x in p.tensors)
    changed = u.clone()
    changed[:, :, moment] += 1
    y, z = (selective_scan(x, *rest, order=p.order, backend=backend) for x in (u, changed))
    assert torch.equal(y[:, 0, :moment], z[:, 0, :moment])
    assert torch.equal(y[:, 1, moment + 1 :], z[:, 1, moment + 1 :])
    assert not torch.equal(y[:, :, moment], z[:, :, moment])
