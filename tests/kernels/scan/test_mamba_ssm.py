"""The backend on mamba-ssm's extension: its layout, dtypes and refusals.

Where the extension is absent, a double stands for it: the documented semantics on (B, D, L) tensors
in float64, with the extension's own checks of what it is given. On a GPU that has mamba-ssm the
same tests run against the real one too.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from problems import ORDERS, Problem, error, leaf, order_of, problem
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder
from vimlrp.kernels.extension import EXTENSION, status
from vimlrp.kernels.scan import dispatch, mamba_ssm, reference

REAL, WHY = status()
# mamba-ssm's own tests allow 6e-4 in float32: exponentials are the fast ones of the GPU.
BOUNDS = {
    "double": {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    "real": {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2},
}


@pytest.fixture(
    params=[
        "double",
        pytest.param("real", marks=pytest.mark.skipif(not REAL, reason=WHY)),
    ]
)
def extension(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Which of the two the backend finds."""
    if request.param == "double":
        double = SimpleNamespace(fwd=double_forward, bwd=double_backward)
        monkeypatch.setitem(sys.modules, EXTENSION, double)
    return str(request.param)


def device(extension: str) -> str:
    return "cuda" if extension == "real" else "cpu"


def check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    """What the extension refuses."""
    batch, channels, length = u.shape
    assert delta.shape == u.shape
    assert A.shape == (channels, A.shape[1])
    assert A.shape[1] <= 256
    assert channels % B.shape[1] == 0
    assert B.shape == C.shape == (batch, B.shape[1], A.shape[1], length)
    assert u.dtype == delta.dtype == B.dtype == C.dtype
    assert u.dtype in BOUNDS["double"]
    assert A.dtype == torch.float32
    assert all(x.stride(-1) == 1 or x.shape[-1] == 1 for x in (u, delta, B, C))
    assert D is None or (D.shape == (channels,) and D.dtype == torch.float32)


def recurrence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> Tensor:
    """y of the documented scan in float64; B and C (B, G, N, L)."""
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], dim=1) for x in (B, C))  # (B, D, N, L)
    h, ys = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[..., t] * u[:, :, t, None]
        ys.append((C[..., t] * h).sum(-1))
    y = torch.stack(ys, dim=2)
    return y if D is None else y + D[:, None] * u


def state_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    return (*u.shape[:2], -(-u.shape[2] // 2048), 2 * A.shape[1])


def double_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: None, bias: None, softplus: bool,
) -> list[Tensor]:  # fmt: skip
    check(u, delta, A, B, C, D)
    assert (z, bias, softplus) == (None, None, False)
    wide = [None if x is None else x.double() for x in (u, delta, A, B, C, D)]
    return [recurrence(*wide).to(delta.dtype), torch.zeros(state_shape(u, A))]


def double_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: None, bias: None, dout: Tensor, states: Tensor | None, out: None, dz: None,
    softplus: bool, recompute: bool,
) -> list[Tensor | None]:  # fmt: skip
    check(u, delta, A, B, C, D)
    assert (z, bias, out, dz, softplus, recompute) == (None, None, None, None, False, False)
    assert (dout.shape, dout.dtype) == (u.shape, u.dtype)
    assert dout.stride(-1) == 1 or dout.shape[-1] == 1
    assert u.shape[2] <= 2048 if states is None else states.shape == state_shape(u, A)
    inputs = [x for x in (u, delta, A, B, C, D) if x is not None]
    # An operator runs below autograd, which a thread of its own does not.
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(derive, inputs, dout.double()).result()
    return [*found, *[None] * (6 - len(found)), None]


def derive(inputs: list[Tensor], dout: Tensor) -> list[Tensor]:
    """The gradients of the recurrence in float64, each in the dtype of its input."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    y = recurrence(*leaves, *[None] * (6 - len(leaves)))
    found = torch.autograd.grad(y, leaves, dout)
    return [g.to(x.dtype) for g, x in zip(found, inputs, strict=True)]


def arguments(p: Problem) -> list[Tensor | None]:
    """The tensors as a backend function takes them."""
    u, dt, A, B, C, *skip = (x.detach() for x in p.tensors)
    u = u if u.dim() == 4 else u.unsqueeze(1)
    B, C = (x if x.dim() == 5 else x.unsqueeze(3) for x in (B, C))
    return [u, dt, A, B, C, skip[0] if skip else None]


def assert_agrees(p: Problem, extension: str, grad: str) -> None:
    """Output and gradients against the twin in float64."""
    inputs = arguments(p)
    where = (p.order.index_on(p.tensors[1].device), list(p.order.reverse))
    bound = BOUNDS[extension][p.tensors[0].dtype]
    leaves = [None if x is None else leaf(x.double()) for x in inputs]
    expected = reference.scan(*leaves, *where, "u" if grad == "input" else "uABC")
    y = mamba_ssm.forward(*inputs, *where)
    assert y.dtype == inputs[0].dtype
    assert error(y, expected.detach()) < bound
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.device, y.dtype)
    there = [x for x in leaves if x is not None]
    wanted = torch.autograd.grad(expected, there, dy.double(), allow_unused=True)
    if grad == "input":
        shared = inputs[0].shape[1] < y.shape[1]
        found = [mamba_ssm.input_backward(dy, *inputs[1:], *where, shared)]
    else:
        found = list(mamba_ssm.full_backward(dy, *inputs, *where, "uABC"))
        assert (found[5] is None) == (inputs[5] is None)
    for g, x, w in zip(found, inputs, wanted, strict=False):
        assert g.shape == x.shape
        assert g.dtype == x.dtype
        assert error(g, w) < bound


@pytest.mark.parametrize("grad", ["full", "input"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [1, 2, 11])
def test_orders_and_lengths(extension: str, order: str, length: int, grad: str) -> None:
    p = problem(
        order_of(order, length), length, batch=2, groups=2, dtype=torch.float32,
        device=device(extension),
    )  # fmt: skip
    assert_agrees(p, extension, grad)


@pytest.mark.parametrize("grad", ["full", "input"])
@pytest.mark.parametrize("state", [1, 5])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_states_groups_and_shared_inputs(
    extension: str, state: int, groups: int, shared: bool, grad: str
) -> None:
    p = problem(
        ScanOrder.cross(2, 3), 6, state=state, groups=groups, channels=6, shared=shared,
        dtype=torch.float32, device=device(extension),
    )  # fmt: skip
    assert_agrees(p, extension, grad)


@pytest.mark.parametrize("grad", ["full", "input"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(extension: str, dtype: torch.dtype, grad: str) -> None:
    p = problem(order_of("bidirectional", 9), 9, dtype=dtype, shared=True, device=device(extension))
    assert_agrees(p, extension, grad)


@pytest.mark.parametrize("grad", ["full", "input"])
def test_mixed_dtypes_meet_in_the_wider_one(extension: str, grad: str) -> None:
    p = problem(order_of("bidirectional", 5), 5, dtype=torch.float32, device=device(extension))
    dtypes = [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, torch.float16]
    mixed = [leaf(x.detach().to(t)) for x, t in zip(p.tensors, dtypes, strict=False)]
    assert_agrees(Problem([*mixed, p.tensors[5]], p.order), extension, grad)


@pytest.mark.parametrize("grad", ["full", "input"])
def test_no_skip_and_strided_inputs(extension: str, grad: str) -> None:
    p = problem(
        order_of("indexed", 7), 7, skip=False, dtype=torch.float32, device=device(extension)
    )
    wide = [torch.stack([x.detach()] * 3, dim=-1)[..., 1] for x in p.tensors]
    assert not any(x.is_contiguous() for x in wide)
    assert_agrees(Problem([leaf_view(x) for x in wide], p.order), extension, grad)


def leaf_view(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


@pytest.mark.parametrize("grad", ["full", "input"])
def test_more_steps_than_one_chunk(extension: str, grad: str) -> None:
    p = problem(
        order_of("reverse", 2050), 2050, batch=1, channels=1, state=1, dtype=torch.float32,
        device=device(extension),
    )  # fmt: skip
    assert_agrees(p, extension, grad)


def test_the_operators_use_it(extension: str) -> None:
    p = problem(
        order_of("bidirectional", 5), 5, shared=True, dtype=torch.float32, device=device(extension)
    )
    u, *rest = arguments(p)
    y = dispatch.scan(u.requires_grad_(), *rest, None, [False, True], "u", "mamba_ssm")
    (du,) = torch.autograd.grad(y.sum(), u)
    expected, gradients = p.to(torch.float64).run("reference", "input")
    assert error(y.detach(), expected) < BOUNDS[extension][torch.float32]
    ones = dispatch.relevance(torch.ones_like(y), *rest, None, [False, True], True, "mamba_ssm")
    assert torch.equal(du, ones)
    assert gradients[0] is not None


def test_partial_sets_of_factors_are_refused(extension: str) -> None:
    p = problem(order_of("forward", 5), 5, dtype=torch.float32, device=device(extension))
    y = dispatch.scan(*(leaf(x) for x in arguments(p)), None, [False], "uA", "mamba_ssm")
    with pytest.raises(KernelError, match="through u, A; it takes grad='input' and grad='full'"):
        y.sum().backward()


def test_too_many_channels_are_refused(extension: str) -> None:
    p = problem(
        order_of("bidirectional", 1), 1, batch=1, channels=32768, state=1, dtype=torch.float32,
        device=device(extension),
    )  # fmt: skip
    with pytest.raises(KernelError, match=r"2 direction\(s\) of 32768 channels; it takes up to"):
        mamba_ssm.forward(*arguments(p), None, p.order.reverse)
