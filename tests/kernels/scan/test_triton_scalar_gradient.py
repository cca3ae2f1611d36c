"""The full gradient of a single state a channel, in chunks, against the naive twin in float64.

Runs on a GPU, or in Triton's interpreter through `test_triton_interpreted`.
"""

import pytest
import torch
from problems import DEVICE, FAST, ORDERS, Problem, assert_same, leaf, order_of, problem

from vimlrp.kernels import ScanOrder

pytestmark = pytest.mark.skipif(
    "triton" not in FAST, reason="Triton runs in its interpreter or on a GPU"
)
CHUNKS = [(2, 1), (2, 2), (4, 3), (16, 4)]


def single(order: ScanOrder, length: int, **options: object) -> Problem:
    settings = {"dtype": torch.float32, "device": DEVICE["triton"], **options}
    return problem(order, length, state=1, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("length", [1, 2, 19])
@pytest.mark.parametrize(("chunks", "steps"), CHUNKS)
def test_tiles_of_every_kind(
    monkeypatch: pytest.MonkeyPatch, order: str, length: int, chunks: int, steps: int
) -> None:
    # Several tiles, the last one incomplete, with chunks that begin past the end.
    from vimlrp.kernels.scan import triton

    monkeypatch.setattr(triton, "_SCALAR_CHUNKS", chunks)
    monkeypatch.setattr(triton, "_SCALAR_STEPS", steps)
    p = single(order_of(order, length), length, batch=1, groups=2, channels=10)
    assert_same(p, p.to(torch.float64), "triton", "full", 1e-5)


@pytest.mark.parametrize("length", [63, 197])
@pytest.mark.parametrize("shared", [True, False])
def test_long_sequences_and_blocks_of_channels(length: int, shared: bool) -> None:
    p = single(order_of("indexed", length), length, batch=1, channels=37, shared=shared)
    assert_same(p, p.to(torch.float64), "triton", "full", 1e-5)


def test_the_cross_scan_of_a_map() -> None:
    p = single(ScanOrder.cross(5, 7), 35, channels=6, shared=True)
    assert_same(p, p.to(torch.float64), "triton", "full", 1e-5)


@pytest.mark.parametrize("grad", [("u", "A"), ("A",), ("B",), ("C",), ("B", "C"), ("u", "B", "C")])
def test_partial_sets_of_factors(grad: tuple[str, ...]) -> None:
    p = single(order_of("indexed", 9), 9)
    assert_same(p, p.to(torch.float64), "triton", grad, 1e-5)


def test_no_skip() -> None:
    p = single(order_of("bidirectional", 9), 9, skip=False)
    assert_same(p, p.to(torch.float64), "triton", "full", 1e-5)


def test_what_a_strong_decay_keeps_is_not_lost_beside_what_enters() -> None:
    p = single(order_of("forward", 19), 19)
    tensors = [leaf(x.detach()) for x in p.tensors]
    with torch.no_grad():
        tensors[1].copy_(0.5 + tensors[1] / 2)
        tensors[2].sub_(40)
    p = Problem(tensors, p.order)
    assert_same(p, p.to(torch.float64), "triton", "full", 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    p = single(order_of("bidirectional", 33), 33, dtype=dtype, shared=True)
    assert_same(p, p.to(torch.float32), "triton", "full", 3e-2)


@pytest.mark.parametrize("length", [1, 9, 70])
def test_every_element_is_written(length: int, poisoned) -> None:
    p = single(order_of("indexed", length), length, channels=5)
    y, gradients = p.run("triton", "full")
    assert y.isfinite().all()
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert poisoned() > 0


def test_strided_inputs() -> None:
    p = single(order_of("indexed", 7), 7)
    strided = [torch.empty(*x.shape, 3, device=x.device)[..., 1].copy_(x) for x in p.tensors]
    q = Problem([x.requires_grad_() for x in strided], p.order)
    assert_same(q, p.to(torch.float64), "triton", "full", 1e-5)


def test_empty_batch() -> None:
    p = single(order_of("bidirectional", 4), 4, batch=0, shared=True)
    _, gradients = p.run("triton", "full")
    for x, g in zip(p.tensors, gradients, strict=True):
        assert g is not None
        assert g.shape == x.shape
        assert not g.any()


def test_runs_repeat_bit_for_bit() -> None:
    p = single(order_of("bidirectional", 40), 40, shared=True)
    (_, first), (_, second) = p.run("triton", "full"), p.run("triton", "full")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]


def test_several_states_take_the_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vimlrp.kernels.scan import triton

    def refuse(*_: object) -> None:
        raise RuntimeError("not for this number of states")

    monkeypatch.setattr(triton, "_launch_full", refuse)
    single(order_of("forward", 3), 3).run("triton", "full")
    with pytest.raises(RuntimeError, match="number of states"):
        problem(order_of("forward", 3), 3, state=2, dtype=torch.float32,
                device=DEVICE["triton"]).run("triton", "full")  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_stage_of_vmamba_on_a_gpu(dtype: torch.dtype) -> None:
    p = single(ScanOrder.cross(28, 28), 784, channels=96, shared=True, dtype=dtype)
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert_same(p, p.to(torch.float64), "triton", "full", bound)
