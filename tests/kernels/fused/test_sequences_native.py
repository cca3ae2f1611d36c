"""The fused operations on sequences in C++: each instruction set of this processor and float64."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from installed import needs_library
from problems import error
from test_sequences_agree import WRITING, Call, calls, random
from torch import Tensor

from vimlrp.engine import FUSE_VARIABLE, fuses
from vimlrp.errors import KernelError
from vimlrp.kernels import compiled
from vimlrp.kernels.backends import VARIABLE
from vimlrp.kernels.fused import sequences, sequences_native, sequences_reference

ALL = list(calls(1, 1, 1, 1))
# Lengths, channels, directions and taps: rows that end inside a register, several runs of channels.
SIZES = [
    (1, 3, 1, 4), (2, 1, 2, 2), (5, 33, 2, 3), (3, 16, 3, 8), (4, 70, 2, 1), (6, 15, 1, 6),
    (7, 140, 2, 7), (2, 64, 2, 5), (197, 384, 2, 4),
]  # fmt: skip
SMALLEST = torch.finfo(torch.float32).tiny


def step_of(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The step of every value of x, (L,), in the lanes of a register, (L, 16)."""
    bias = torch.zeros(1, 16) if bias is None else bias
    low, weight = x.view(1, 1, -1, 1), torch.ones(1, 16, 1)
    return sequences_native.step(low, weight, bias)[0, 0]


def floats(count: int) -> Tensor:
    """Every so many-th float32 of both signs, infinities and NaN excepted."""
    last = int(torch.tensor(torch.finfo(torch.float32).max).view(torch.int32))
    patterns = torch.linspace(0, last, count, dtype=torch.float64).to(torch.int32)
    positive = patterns.view(torch.float32)
    return torch.cat([-positive.flip(0), positive])


def worst(actual: Tensor, expected: Tensor, smallest: float = SMALLEST) -> float:
    """The largest relative error, where results below `smallest` need only be no larger."""
    kept = expected.abs() >= smallest
    assert (actual[~kept].abs() <= 1.001 * smallest).all()
    return float(((actual[kept].double() - expected[kept]) / expected[kept]).abs().max())


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("length", "channels", "k", "width"), SIZES)
def test_sizes(isa: str, length: int, channels: int, k: int, width: int, flip: bool) -> None:
    for name, call in calls(length, channels, k, width, flip=flip).items():
        if not flip or name.startswith("conv"):
            call.check("native", 5e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 7.0])
def test_gammas(isa: str, gamma: float) -> None:
    for name in ("conv back", "conv back without bias"):
        calls(9, 20, 2, 4, gamma=gamma)[name].check("native", 5e-6)


@pytest.mark.parametrize("rank", [1, 12, 48])
def test_step_is_a_product_and_softplus(isa: str, rank: int) -> None:
    low = random(2, 3, 5, rank + 7)[..., 2 : 2 + rank]
    weight, bias = random(3, 20, rank), random(3, 20)
    dt = sequences_native.step(low, weight, bias)
    raw = torch.einsum("bklr,ker->bkle", low.double(), weight.double()) + bias[:, None].double()
    assert error(dt, torch.logaddexp(raw, torch.zeros_like(raw))) < 2e-6


def test_softplus_is_exact_over_all_floats(isa: str) -> None:
    x = torch.cat([floats(200_000), torch.linspace(-90, 30, 400_000)])
    exact = x.double().clamp(min=0) + torch.log1p(torch.exp(-x.double().abs()))
    assert worst(step_of(x), exact.unsqueeze(1).expand(-1, 16)) < 2e-7


def test_silu_is_exact_over_all_floats(isa: str) -> None:
    x = torch.cat([floats(200_000), torch.linspace(-90, 30, 400_000)]).view(1, -1, 1)
    x = x.expand(1, -1, 16).contiguous()
    exact = (x.double() * torch.sigmoid(x.double()))[0]
    for result in (
        sequences.gate(torch.ones_like(x).unsqueeze(1), x, 1.0, backend="native")[0],
        sequences.conv_silu(x, torch.ones(1, 16, 1), None, (False,), backend="native")[:, 0],
    ):
        # Where the sigmoid is smaller than the smallest number, 88 times it still counts as 0.
        assert worst(result[0], exact, 90 * SMALLEST) < 4e-7


def test_not_a_number_and_infinity_are_passed_on(isa: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0])
    dt = step_of(x)
    assert dt[0].isnan().all()
    assert (dt[1] == float("inf")).all()
    assert (dt[2] == 0).all()
    assert dt[3].isfinite().all()


def test_a_nan_stays_with_the_outputs_that_see_it(isa: str) -> None:
    x, weight, at_u = random(1, 9, 40), random(2, 40, 3), random(1, 2, 9, 40)
    x[0, 4, 17] = float("nan")
    u = sequences.conv_silu(x, weight, None, (False, True), backend="native")
    seen = torch.zeros_like(u, dtype=torch.bool)
    seen[0, 0, 4:7, 17] = seen[0, 1, 2:5, 17] = True
    assert torch.equal(u.isnan(), seen)
    at_x, _ = sequences.conv_silu_relevance(
        at_u, x, weight, None, (False, True), 0.25, backend="native"
    )
    reached = torch.zeros_like(at_x, dtype=torch.bool)
    reached[0, 2:7, 17] = True
    assert torch.equal(at_x.isnan(), reached)


def test_outputs_of_exactly_zero_receive_the_plain_gradient(isa: str) -> None:
    x, weight, at_u = random(2, 12, 20), random(2, 20, 3), random(2, 2, 12, 20)
    x[:, 2:9] = 0
    for bias in (None, torch.zeros(2, 20)):
        call = Call("conv_silu_relevance", at_u, x, weight, bias, (False, True), 0.25)
        at_x, absorbed = call.check("native", 5e-6)
        assert at_x.isfinite().all()
        assert not absorbed.any()


def test_large_values(isa: str) -> None:
    x, at = 200 * random(2, 5, 20), random(2, 1, 5, 20)
    weight, bias = random(1, 20, 2), random(1, 20)
    Call("conv_silu", x, weight, bias, (True,)).check("native", 5e-6)
    Call("conv_silu_relevance", at, x, weight, bias, (True,), 0.25).check("native", 5e-6)
    Call("gate", at, x, 1.0).check("native", 5e-6)
    Call("gate_relevance", x, at[:, 0], x, 0.5, 0.5, 1.0).check("native", 5e-6)


def test_relevance_is_conserved(isa: str) -> None:
    given = calls(20, 70, 2, 4)
    at_u, x, *_ = given["conv back"].args
    (u,) = given["conv"]("native")
    at_x, absorbed = given["conv back"]("native")
    arrived = (at_u.double() * u).flatten(1).sum(1)
    kept = (x.double() * at_x).flatten(1).sum(1) + absorbed
    assert torch.allclose(kept, arrived, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_every_element_is_written(isa: str, name: str, poisoned: Callable[[], int]) -> None:
    for length, channels in ((1, 5), (19, 70)):
        given = calls(length, channels, 2, 4)[name]
        before = poisoned()
        assert all(x.isfinite().all() for x in given("native"))
        assert poisoned() > before or name.startswith("step")  # PyTorch's product is its room


@pytest.mark.parametrize("name", list(WRITING))
def test_results_land_in_a_half_of_a_tensor(isa: str, name: str) -> None:
    call = calls(21, 37, 2, 4)[name]
    both = torch.full((2, 21, 74), 7.0)
    half = both[..., 37:]
    results = call("native", **{WRITING[name]: half})
    assert any(x is half for x in results)
    for actual, expected in zip(results, call("native"), strict=True):
        assert torch.equal(actual, expected)
    assert (both[..., :37] == 7).all()


def test_rows_are_read_where_they_lie(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = calls(9, 40, 2, 4)
    copied: list[torch.Size] = []
    contiguous = Tensor.contiguous
    monkeypatch.setattr(Tensor, "contiguous", lambda x: copied.append(x.shape) or contiguous(x))
    for name in ("norm", "norm back", "conv", "conv back", "gate", "gate back"):
        assert any(
            not x.is_contiguous() for x in given[name].args if isinstance(x, Tensor)
        ) or name.endswith("back")
        given[name]("native")
    assert all(len(shape) < 3 or shape[1:] == (4, 40) for shape in copied)


def test_scattered_inputs(isa: str) -> None:
    def scatter(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return torch.empty(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x)

    for call in calls(5, 18, 2, 3).values():
        Call(call.name, *map(scatter, call.args)).check("native", 5e-6)


def test_a_gradient_shared_by_the_directions(isa: str) -> None:
    at_u, *rest = calls(5, 18, 2, 3)["conv back"].args
    Call("conv_silu_relevance", at_u[:, :1].expand(2, 2, 5, 18), *rest).check("native", 5e-6)


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_empty_batch(name: str) -> None:
    call = calls(4, 6, 2, 3, batch=0)[name]
    shapes = [x.shape for x in calls(4, 6, 2, 3, batch=1)[name]("native")]
    assert [x.shape for x in call("native")] == [(0, *shape[1:]) for shape in shapes]


@pytest.mark.parametrize("name", ALL)
def test_the_number_of_threads_changes_no_bit(isa: str, name: str) -> None:
    call = calls(13, 270, 2, 4)[name]
    alone = call("native")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for ours, theirs in zip(call("native"), alone, strict=True):
            assert torch.equal(ours, theirs) or name.startswith("step")  # PyTorch multiplies
            assert error(ours, theirs) < 1e-6


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone(name: str) -> None:
    call = calls(19, 21, 2, 4)[name]
    before = [x.clone() if isinstance(x, Tensor) else x for x in call.args]
    call("native")
    for x, b in zip(call.args, before, strict=True):
        assert torch.equal(x, b) if isinstance(x, Tensor) else x == b


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_the_default_dtype_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = calls(3, 5, 2, 4)[name]
    torch.set_default_dtype(torch.float64)
    try:
        results = call("native")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(x.dtype == torch.float32 for x in results)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_it_takes_float32_alone(name: str, dtype: torch.dtype) -> None:
    first, *rest = calls(3, 5, 2, 4)[name].args
    call = Call(calls(3, 5, 2, 4)[name].name, first.to(dtype), *rest)
    with pytest.raises(KernelError, match="float32"):
        call("native")
    call("auto")


@needs_library
def test_auto_takes_it_for_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    x = torch.ones(2)
    assert sequences._programs("auto", x, None) is sequences_native
    assert sequences._programs("auto", x, x.half()) is sequences_reference
    assert sequences._programs("auto", x.double()) is sequences_reference
    assert sequences._programs("reference", x) is sequences_reference
    for forced in ("cpu", "reference"):
        monkeypatch.setenv(VARIABLE, forced)
        assert sequences._programs("auto", x) is sequences_reference
        assert sequences._programs("native", x) is sequences_native


@needs_library
def test_blocks_are_fused_for_it_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in (VARIABLE, FUSE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    x = torch.ones(1)
    assert fuses(x)
    assert not fuses(x.double())
    assert not fuses(x.bfloat16())
    monkeypatch.setenv(VARIABLE, "cpu")
    assert not fuses(x)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv(FUSE_VARIABLE, "0")
    assert not fuses(x)


def test_without_a_library_the_twins_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(compiled, "LIBRARY", tmp_path / "_scan.so")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv(FUSE_VARIABLE, raising=False)
    assert sequences._programs("auto", torch.ones(2)) is sequences_reference
    assert not fuses(torch.ones(2))
    with pytest.raises(KernelError, match="has no compiled library"):
        sequences._programs("native", torch.ones(2))


@needs_library
def test_the_library_refuses_calls_that_it_does_not_know() -> None:
    class Short(ctypes.Structure):
        _fields_ = [("operation", ctypes.c_int64)]

    with pytest.raises(KernelError, match="refused a fused operation"):
        compiled.run_fused(Short(0))
    for operation in (-1, len(sequences_native._Operation)):
        with pytest.raises(KernelError, match="refused a fused operation"):
            compiled.run_fused(sequences_native._Call(operation))
