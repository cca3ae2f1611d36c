"""Every fast backend against the naive twin: outputs and all gradients."""

import pytest
import torch
from problems import DEVICE, FAST, ORDERS, Problem, assert_same, error, leaf, order_of, problem

from vimlrp.kernels import ScanOrder, selective_scan
from vimlrp.kernels.scan import blocked

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-2}


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("grad", ["full", "input"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [1, 2, 63, 197])
@pytest.mark.parametrize("block", [1, 8, 1000])
def test_cpu_in_float64(
    monkeypatch: pytest.MonkeyPatch, order: str, length: int, grad: str, block: int
) -> None:
    # State and adjoint are carried over the edges of blocks, and the last block is shorter.
    monkeypatch.setattr(blocked, "_BUFFER", 1)
    monkeypatch.setattr(blocked, "_SHORTEST", block)
    p = problem(order_of(order, length), length, batch=1, groups=2, shared=length == 63)
    assert_same(p, p, "cpu", grad, 1e-10)


@pytest.mark.parametrize("grad", ["full", "input"])
def test_vim_tiny_on_a_cpu(grad: str) -> None:
    p = problem(
        ScanOrder.bidirectional(), 197, batch=1, channels=384, state=16, dtype=torch.float32
    )
    assert_same(p, p.to(torch.float64), "cpu", grad, 1e-5)


def test_several_blocks_of_channels_in_a_group(backend: str) -> None:
    p = problem(
        order_of("reverse", 3), 3, batch=1, groups=2, channels=80, state=2, dtype=torch.float32,
        device=DEVICE[backend],
    )  # fmt: skip
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


REGIMES = [
    ("sequential", 4, 1, 1, 1, 1),
    ("sequential", 32, 1, 3, 1, 3),
    ("sequential", 8, 1, 2, 1, 6),
    ("chunked", 4, 4, 3, 1, 3),
    ("chunked", 2, 2, 1, 1, 2),
    ("scalar", 8, 4, 2, 1, 1),
    ("scalar", 2, 8, 1, 1, 1),
]


@pytest.mark.skipif("triton" not in FAST, reason="Triton runs in its interpreter or on a GPU")
@pytest.mark.parametrize("order", ["bidirectional", "indexed"])
@pytest.mark.parametrize(("kernel", "block", "chunks", "steps", "warps", "state"), REGIMES)
def test_every_regime_of_triton(
    monkeypatch: pytest.MonkeyPatch,
    kernel: str, block: int, chunks: int, steps: int, warps: int, state: int, order: str,
) -> None:  # fmt: skip
    # Several tiles, the last one incomplete, with chunks that begin past the end.
    from vimlrp.kernels.scan import triton
    from vimlrp.kernels.scan.triton_regime import Regime, power_of_2

    regime = Regime(kernel, power_of_2(state), block, chunks, steps, warps)
    monkeypatch.setattr(triton, "regime_of", lambda *_: regime)
    p = problem(
        order_of(order, 19), 19, batch=1, groups=2, channels=10, state=state,
        dtype=torch.float32, device=DEVICE["triton"],
    )  # fmt: skip
    assert_same(p, p.to(torch.float64), "triton", "input", 1e-5)


@pytest.mark.skipif("triton" not in FAST, reason="Triton runs in its interpreter or on a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("first", "width"), [(0, 16), (2, 14), (4, 16), (1, 16), (0, 13)])
def test_states_whose_rows_begin_anywhere(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, first: int, width: int
) -> None:
    # As B and C lie in the result of one projection: two states are loaded as one integer where
    # the alignment allows it, and one by one elsewhere.
    from vimlrp.kernels.scan import triton
    from vimlrp.kernels.scan.triton_regime import Regime

    monkeypatch.setattr(triton, "regime_of", lambda *_: Regime("sequential", 4, 8, 1, 2, 1))
    p = problem(
        ScanOrder.bidirectional(), 9, batch=2, channels=10, state=4, dtype=dtype,
        device=DEVICE["triton"],
    )  # fmt: skip
    values = torch.randn(2, 2, 9, width, generator=torch.Generator().manual_seed(3))
    rows = values.to(DEVICE["triton"], dtype)
    for i, place in ((3, first), (4, first + 6)):
        p.tensors[i] = rows[..., place : place + 4].requires_grad_()
    assert_same(p, p.to(torch.float64), "triton", "input", 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("grad", ["full", "input"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [1, 2, 11])
def test_orders_and_lengths(backend: str, order: str, length: int, grad: str) -> None:
    p = problem(order_of(order, length), length, batch=1, groups=2, dtype=torch.float32)
    p = Problem([leaf(x.detach().to(DEVICE[backend])) for x in p.tensors], p.order)
    assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


@pytest.mark.parametrize("state", [1, 2, 16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_states_and_groups(backend: str, state: int, groups: int, shared: bool) -> None:
    p = problem(
        order_of("bidirectional", 9), 9, state=state, groups=groups, channels=6, shared=shared,
        batch=1, dtype=torch.float32, device=DEVICE[backend],
    )  # fmt: skip
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


@pytest.mark.parametrize("length", [63, 197])
def test_long_sequences(backend: str, length: int) -> None:
    p = problem(
        order_of("reverse", length), length, batch=1, state=2, channels=2,
        dtype=torch.float32, device=DEVICE[backend],
    )  # fmt: skip
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


@pytest.mark.parametrize("grad", [("u", "A"), ("A",), ("B",), ("C",), ("B", "C"), ("u", "B", "C")])
def test_partial_sets_of_factors(backend: str, grad: tuple[str, ...]) -> None:
    p = problem(order_of("indexed", 9), 9, dtype=torch.float32, device=DEVICE[backend])
    assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", ["full", "input"])
def test_half_precision(backend: str, dtype: torch.dtype, grad: str) -> None:
    p = problem(order_of("bidirectional", 11), 11, dtype=dtype, shared=True, device=DEVICE[backend])
    assert_same(p, p.to(torch.float32), backend, grad, BOUNDS[dtype])


def test_mixed_dtypes_keep_their_own_in_the_gradients(backend: str) -> None:
    p = problem(order_of("forward", 5), 5, dtype=torch.float32, device=DEVICE[backend])
    half = {0, 3, 4}
    mixed = [leaf(x.detach().bfloat16()) if i in half else x for i, x in enumerate(p.tensors)]
    p = Problem(mixed, p.order)
    assert_same(p, p.to(torch.float32), backend, "full", 3e-2)


def test_no_skip(backend: str) -> None:
    p = problem(order_of("forward", 5), 5, skip=False, dtype=torch.float32, device=DEVICE[backend])
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


def test_cross_scan_on_a_grid(backend: str) -> None:
    p = problem(
        ScanOrder.cross(2, 3), 6, batch=1, shared=True, dtype=torch.float32, device=DEVICE[backend]
    )
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), backend, grad, 1e-5)


def test_strided_inputs(backend: str) -> None:
    p = problem(order_of("indexed", 7), 7, dtype=torch.float32, device=DEVICE[backend])
    strided = [torch.empty(*x.shape, 3, device=x.device)[..., 1].copy_(x) for x in p.tensors[:5]]
    strided.append(p.tensors[5].detach().t().contiguous().t())
    assert not any(x.is_contiguous() for x in strided)
    q = Problem([x.requires_grad_() for x in strided], p.order)
    for grad in ("full", "input"):
        assert_same(q, p.to(torch.float64), backend, grad, 1e-5)


@pytest.mark.parametrize("grad", ["full", "input", ("B", "C")])
def test_empty_batch(backend: str, grad: str) -> None:
    p = problem(
        order_of("bidirectional", 4), 4, batch=0, shared=True, dtype=torch.float32,
        device=DEVICE[backend],
    )  # fmt: skip
    y, gradients = p.run(backend, grad)
    assert y.shape == (0, 2, 4, 4)
    for x, g in zip(p.tensors, gradients, strict=True):
        assert g is None or (g.shape == x.shape and not g.any())


@pytest.mark.parametrize("length", [1, 9, 17])
def test_every_element_is_written(backend: str, length: int, poisoned) -> None:
    # Five channels and three states: blocks are wider than both. Lengths end inside a chunk.
    p = problem(
        order_of("indexed", length), length, channels=5, dtype=torch.float32, device=DEVICE[backend]
    )
    for grad in ("full", "input"):
        y, gradients = p.run(backend, grad)
        assert y.isfinite().all()
        assert all(g is None or g.isfinite().all() for g in gradients)
    assert poisoned() > 0


def test_poisoned_memory_shows_an_unwritten_output(poisoned) -> None:
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(2).isnan().all()


@pytest.mark.parametrize("grad", ["full", "input"])
def test_runs_repeat_bit_for_bit(backend: str, grad: str) -> None:
    p = problem(order_of("bidirectional", 9), 9, dtype=torch.float32, device=DEVICE[backend])
    (y, first), (again, second) = p.run(backend, grad), p.run(backend, grad)
    assert torch.equal(y, again)
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("state", [100, 256])
def test_large_states(backend: str, state: int) -> None:
    p = problem(
        order_of("forward", 3), 3, state=state, channels=3, batch=1, dtype=torch.float32,
        device=DEVICE[backend],
    )  # fmt: skip
    assert_same(p, p.to(torch.float64), backend, "full", 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vim_tiny_on_a_gpu(dtype: torch.dtype) -> None:
    p = problem(
        order_of("bidirectional", 197), 197, channels=384, state=16, dtype=dtype, device="cuda"
    )
    for grad in ("full", "input"):
        assert_same(p, p.to(torch.float64), "triton", grad, BOUNDS[dtype])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_float64_on_a_gpu_takes_the_twin() -> None:
    p = problem(order_of("forward", 5), 5, device="cuda")
    y = selective_scan(*p.tensors, order=p.order)
    assert error(y.detach(), p.run("reference")[0]) < 1e-15
