"""The C++ scan: every instruction set of this processor against the naive twin in float64."""

import math
from pathlib import Path

import pytest
import torch
from installed import needs_library
from problems import ORDERS, Problem, assert_same, error, leaf, order_of, problem
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels import ScanOrder, compiled, selective_scan
from vimlrp.kernels.backends import VARIABLE, choose
from vimlrp.kernels.scan import dispatch, native

CPU = torch.device("cpu")


def assert_exact(p: Problem) -> None:
    """Scan and relevance pass agree with the twin in float64."""
    assert_same(p, p.to(torch.float64), "native", "input", 1e-6)


@pytest.mark.parametrize("length", [1, 2, 63, 197])
@pytest.mark.parametrize("channels", [1, 5, 16, 24, 384])
def test_lengths_and_channels(isa: str, length: int, channels: int) -> None:
    for state in (1, 16):
        assert_exact(
            problem(
                order_of("reverse", length), length, batch=1, channels=channels, state=state,
                dtype=torch.float32,
            )
        )  # fmt: skip


@pytest.mark.parametrize("state", [1, 2, 3, 4, 8, 16, 40, 256])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_states_and_groups(isa: str, state: int, groups: int, shared: bool) -> None:
    for channels in (24, 64):
        assert_exact(
            problem(
                order_of("bidirectional", 9), 9, state=state, groups=groups, channels=channels,
                shared=shared, dtype=torch.float32,
            )
        )  # fmt: skip


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("state", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_orders(isa: str, kind: str, state: int, shared: bool) -> None:
    assert_exact(
        problem(order_of(kind, 63), 63, channels=20, state=state, shared=shared, skip=False,
                dtype=torch.float32)
    )  # fmt: skip


def test_cross_scan_over_several_runs_of_channels(isa: str) -> None:
    order = ScanOrder.cross(4, 5)
    assert_exact(
        problem(order, 20, batch=1, channels=600, state=1, shared=True, dtype=torch.float32)
    )


def test_slices_are_read_where_they_lie(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # B and C as Vim makes them: columns of one projection.
    p = problem(order_of("bidirectional", 7), 7, dtype=torch.float32)
    projection = torch.cat([p.tensors[1], p.tensors[3], p.tensors[4]], -1).detach()
    _, B, C = (leaf_of(x) for x in projection.split([4, 3, 3], -1))
    wide = leaf_of(torch.stack([p.tensors[0].detach()] * 2, 2)[:, :, 1])
    assert not B.is_contiguous()
    assert not wide.is_contiguous()
    q = Problem([wide, p.tensors[1], p.tensors[2], B, C, p.tensors[5]], p.order)
    monkeypatch.setattr(Tensor, "contiguous", refuse_large)
    y = native.forward(*(x.detach() for x in unpacked(q)), None, [False, True])
    monkeypatch.undo()
    assert error(y, p.to(torch.float64).run()[0]) < 1e-6


def leaf_of(view: Tensor) -> Tensor:
    """A leaf with the strides of a view, which a clone would lose."""
    return view.detach().requires_grad_()


def unpacked(p: Problem) -> list[Tensor]:
    u, dt, A, B, C, D = p.tensors
    return [u, dt, A, B.unsqueeze(3), C.unsqueeze(3), D]


def refuse_large(x: Tensor) -> Tensor:
    raise AssertionError(f"a copy of {tuple(x.shape)} was made")


def test_strides_in_the_last_axis_are_copied_away(isa: str) -> None:
    p = problem(order_of("indexed", 7), 7, channels=20, dtype=torch.float32)
    strided = [torch.empty(*x.shape, 3)[..., 1].copy_(x).requires_grad_() for x in p.tensors]
    assert_same(Problem(strided, p.order), p.to(torch.float64), "native", "input", 1e-6)


@pytest.mark.parametrize("state", [1, 2, 16])
@pytest.mark.parametrize("shared", [True, False])
def test_one_and_two_threads_agree_bit_for_bit(isa: str, state: int, shared: bool) -> None:
    for batch, channels in ((1, 600), (3, 24)):
        p = problem(
            ScanOrder.cross(3, 3), 9, batch=batch, channels=channels, state=state, shared=shared,
            dtype=torch.float32,
        )  # fmt: skip
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            y, gradients = p.run("native", "input")
            results.append((y, gradients[0]))
        torch.set_num_threads(1)
        for y, du in results[1:]:
            assert torch.equal(y, results[0][0])
            assert torch.equal(du, results[0][1])


@pytest.mark.parametrize(("channels", "state"), [(5, 1), (37, 16), (24, 3)])
def test_every_element_is_written(isa: str, channels: int, state: int, poisoned) -> None:
    p = problem(order_of("indexed", 9), 9, channels=channels, state=state, dtype=torch.float32)
    y, gradients = p.run("native", "input")
    assert y.isfinite().all()
    assert gradients[0].isfinite().all()
    assert poisoned() > 0


def scan_one(rate: float, step: float, u: Tensor, channels: int = 20) -> Tensor:
    """Scan u (L,), copied to every channel, with B = C = 1."""
    L, ones = len(u), torch.ones(1, 1, len(u), 1)
    x = u.view(1, L, 1).expand(1, L, channels)
    dt = torch.full((1, 1, L, channels), step)
    A = torch.full((1, channels, 1), rate)
    return selective_scan(x, dt, A, ones, ones, order=ScanOrder.forward(), backend="native")


def test_no_decay_adds_up_exactly(isa: str) -> None:
    # A bias of the exponential at 0 would grow with the length.
    y = scan_one(0.0, 1.0, torch.ones(4000))
    assert torch.equal(y[0, 0, :, 3], torch.arange(1.0, 4001.0))


def test_slow_decay_keeps_its_accuracy_over_a_long_sequence(isa: str) -> None:
    y = scan_one(-1.0, 2.0**-12, torch.ones(3136))[0, 0, :, 0]
    decay = float(torch.tensor(math.exp(-(2.0**-12)), dtype=torch.float32))  # the nearest float32
    expected = 2.0**-12 * (1 - decay ** torch.arange(1, 3137).double()) / (1 - decay)
    assert error(y, expected) < 1e-6


@pytest.mark.parametrize("rate", [-100.0, -1e4, -3e38, -math.inf])
def test_fast_decay_forgets_completely(isa: str, rate: float) -> None:
    u = torch.tensor([1e30, 2.0, 3.0])
    assert scan_one(rate, 1.0, u)[0, 0, :, 0].tolist() == [float(u[0]), 2.0, 3.0]


@pytest.mark.parametrize("exponent", [-86.0, -10.0, -0.3, 0.2, 5.0, 88.0])
def test_the_exponential(isa: str, exponent: float) -> None:
    y = scan_one(exponent, 1.0, torch.tensor([1.0, 0.0]))[0, 0, 1, 0]
    assert abs(float(y) / math.exp(exponent) - 1) < 2e-7 * (1 + abs(exponent))


def test_an_overflow_shows(isa: str) -> None:
    # Infinite times the zero of the first state: NaN, as in the twin.
    assert scan_one(100.0, 1.0, torch.tensor([1.0, 0.0]))[0, 0, 1].isnan().all()
    assert scan_one(60.0, 1.0, torch.tensor([1.0, 0.0, 0.0]))[0, 0, 2].isinf().all()


def test_not_a_number_stays_in_its_channel(isa: str) -> None:
    p = problem(order_of("forward", 5), 5, batch=1, channels=40, dtype=torch.float32)
    with torch.no_grad():
        p.tensors[1][0, 0, 2, 17] = float("nan")
        y = selective_scan(*p.tensors, order=p.order, backend="native")
    bad = y.isnan()
    assert bad[0, 0, 2:, 17].all()
    assert int(bad.sum()) == 3


def test_the_processor_is_left_as_it_was(isa: str) -> None:
    scan_one(-1.0, 1.0, torch.ones(3))
    assert float(torch.tensor(1e-40) * 1) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_widened(isa: str, dtype: torch.dtype) -> None:
    p = problem(order_of("indexed", 9), 9, channels=20, dtype=dtype)
    y, gradients = p.run("native", "input")
    wide, wide_gradients = p.to(torch.float32).run("native", "input")
    assert torch.equal(y, wide.to(dtype))
    assert error(gradients[0], wide_gradients[0]) < 1e-2  # its dy is narrow too


@needs_library
def test_empty_batch() -> None:
    p = problem(order_of("bidirectional", 4), 4, batch=0, shared=True, dtype=torch.float32)
    y, gradients = p.run("native", "input")
    assert y.shape == (0, 2, 4, 4)
    assert gradients[0].shape == (0, 4, 4)


@needs_library
def test_operators_pass_opcheck() -> None:
    p = problem(order_of("indexed", 5), 5, groups=2, dtype=torch.float32)
    index, reverse = p.order.index, list(p.order.reverse)
    for factors in ("u", "uABC"):
        torch.library.opcheck(dispatch.scan, (*p.tensors, index, reverse, factors, "native"))
    dy, constants = torch.randn_like(p.tensors[1]), [x.detach() for x in p.tensors]
    for shared in (True, False):
        torch.library.opcheck(
            dispatch.relevance, (dy, *constants[1:], index, reverse, shared, "native")
        )


@needs_library
def test_auto_takes_it_for_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert choose("auto", CPU, torch.float32) == "native"
    assert choose("auto", CPU, torch.float64) == "cpu"
    with pytest.raises(KernelError, match="'native' cannot take this call: an input is float64"):
        choose("native", CPU, torch.float64)
    with pytest.raises(KernelError, match="lie on meta, and it needs them on the CPU"):
        choose("native", torch.device("meta"), torch.float32)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "has no compiled library"), (b"no library", "does not load")]
)
def test_without_a_library_the_blocked_loop_runs(
    content: bytes | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgetful: None,
) -> None:
    if content is not None:
        (tmp_path / "_scan.so").write_bytes(content)
    monkeypatch.setattr(compiled, "LIBRARY", tmp_path / "_scan.so")
    monkeypatch.delenv(VARIABLE, raising=False)
    usable, why = compiled.status()
    assert not usable
    assert reason in why
    assert "pip install ." in why
    assert choose("auto", CPU, torch.float32) == "cpu"
    with pytest.raises(KernelError, match=reason):
        choose("native", CPU, torch.float32)
    with pytest.raises(KernelError, match=reason):
        native.forward(
            *(x.detach() for x in unpacked(problem(order_of("forward", 2), 2))), None, [False]
        )


@needs_library
def test_the_full_gradient_is_that_of_the_blocked_loop() -> None:
    p = problem(order_of("bidirectional", 9), 9, dtype=torch.float32)
    q = Problem([leaf(x.detach()) for x in p.tensors], p.order)
    for ours, theirs in zip(p.run("native")[1], q.run("cpu")[1], strict=True):
        assert torch.equal(ours, theirs)
