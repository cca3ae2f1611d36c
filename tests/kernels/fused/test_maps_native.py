"""The fused operations on maps in C++: every instruction set of this processor against float64."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from installed import BUILT, needs_library
from problems import error
from test_maps_agree import Call, calls, random
from test_sequences_native import SMALLEST, floats, worst
from torch import Tensor

from vimlrp.errors import KernelError
from vimlrp.kernels import compiled, selective_scan_relevance
from vimlrp.kernels.backends import VARIABLE
from vimlrp.kernels.fused import maps, maps_native, maps_reference
from vimlrp.kernels.fused.pointwise import gamma_shares, gelu_ratio
from vimlrp.kernels.scan.order import ScanOrder

ALL = list(calls(1, 1, 1, 1))
# Height, width, channels, routes: rows that end inside a register, and several registers.
SIZES = [
    (1, 1, 2, 1), (1, 5, 3, 2), (5, 1, 16, 4), (2, 2, 17, 1), (6, 3, 33, 1), (9, 18, 8, 4),
    (3, 17, 40, 2), (14, 14, 384, 4),
]  # fmt: skip


@pytest.mark.parametrize(("height", "width", "channels", "k"), SIZES)
def test_sizes(isa: str, height: int, width: int, channels: int, k: int) -> None:
    for call in calls(height, width, channels, k).values():
        call.check("native", 5e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 7.0])
def test_gammas(isa: str, gamma: float) -> None:
    for name in ("conv back", "conv back without bias"):
        calls(5, 9, 20, 2, gamma=gamma)[name].check("native", 5e-6)


def test_the_norm_of_a_constant_row_is_its_shift(isa: str) -> None:
    y, weight, bias = torch.full((1, 2, 3, 21), 3.5), random(21), random(21, seed=1)
    normed, inverse = maps.layer_norm(y, weight, bias, 1e-5, backend="native")
    assert torch.equal(normed, bias.expand(1, 3, 21))
    assert torch.allclose(inverse, torch.full((1, 3), 1e-5).rsqrt())


def test_a_large_mean_costs_no_digits_of_the_deviation(isa: str) -> None:
    call = Call("layer_norm", random(2, 1, 5, 40) + 1000, random(40), random(40), 1e-5)
    call.check("native", 1e-3)


def test_gelu_is_exact_over_all_floats(isa: str) -> None:
    x = torch.cat([floats(200_000), torch.linspace(-12, 12, 400_000)])
    exact = torch.special.erfc(-x.double() * 0.5**0.5) / 2
    ratio, _ = maps.gelu_relevance(
        torch.ones(1, len(x), 16), x.view(1, -1, 1).expand(-1, -1, 16), torch.zeros(16),
        backend="native",
    )  # fmt: skip
    expected = exact.unsqueeze(1).expand(-1, 16)
    near = x.abs() < 4
    assert worst(ratio[0, near], expected[near]) < 2e-6
    assert worst(ratio[0], expected, 1e2 * SMALLEST) < 3e-5


def test_not_a_number_and_infinity_are_passed_on(isa: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]).view(1, 4, 1)
    at_x, _ = maps.gelu_relevance(torch.ones(1, 4, 1), x, torch.ones(1), backend="native")
    assert at_x[0, 0].isnan()
    assert at_x[0, 1:, 0].tolist() == [1.0, 0.0, 0.5]


def test_a_nan_stays_with_the_outputs_that_see_it(isa: str) -> None:
    x, weight, at_u = random(1, 9, 8, 20), random(20, 3, 3), random(1, 2, 9, 8, 20)
    x[0, 4, 3, 17] = float("nan")
    u = maps.conv_silu(x, weight, None, backend="native")
    seen = torch.zeros_like(u, dtype=torch.bool)
    seen[0, 3:6, 2:5, 17] = True
    assert torch.equal(u.isnan(), seen)
    at_x, _ = maps.conv_silu_relevance(at_u, x, weight, None, 0.25, backend="native")
    reached = torch.zeros_like(at_x, dtype=torch.bool)
    reached[0, 2:7, 1:6, 17] = True
    assert torch.equal(at_x.isnan(), reached)


@pytest.mark.parametrize("bias", [None, torch.zeros(20)])
def test_outputs_of_exactly_zero_receive_the_plain_gradient(isa: str, bias: Tensor | None) -> None:
    x, weight, at_u = random(2, 9, 8, 20), random(20, 3, 3), random(2, 1, 9, 8, 20)
    x[:, 2:7, 1:7] = 0
    x[random(*x.shape, seed=2) > 1] = 0
    call = Call("conv_silu_relevance", at_u, x, weight, bias, 0.25)
    at_x, absorbed = call.check("native", 5e-6)
    assert at_x.isfinite().all()
    assert not absorbed.any()


def test_large_values(isa: str) -> None:
    x, weight, bias = 200 * random(2, 5, 3, 18), random(18, 3, 3), random(18)
    Call("conv_silu", x, weight, bias).check("native", 5e-6)
    Call("conv_silu_relevance", random(2, 1, 5, 3, 18), x, weight, bias, 0.25).check("native", 5e-6)
    rows = x.flatten(1, 2)
    Call("gelu_relevance", rows, rows, bias).check("native", 5e-6)


def test_relevance_is_conserved(isa: str) -> None:
    given = calls(14, 9, 33, 1)
    at_u, x, *_ = given["conv back"].args
    (u,) = given["conv"]("native")
    at_x, absorbed = given["conv back"]("native")
    arrived = (at_u[:, 0].double() * u).flatten(1).sum(1)
    kept = (x.double() * at_x).flatten(1).sum(1) + absorbed
    assert torch.allclose(kept, arrived, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_every_element_is_written(isa: str, name: str, poisoned: Callable[[], int]) -> None:
    for sides in ((1, 1, 5), (5, 17, 37)):
        call, before = calls(*sides, 2)[name], poisoned()
        assert all(x.isfinite().all() for x in call("native"))
        assert poisoned() > before


def test_results_land_in_a_half_of_a_tensor(isa: str) -> None:
    call = calls(6, 9, 21, 4)["conv back"]
    both = torch.full((2, 6, 9, 42), 7.0)
    half = both[..., 21:]
    results = call("native", out_x=half)
    assert results[0] is half
    for actual, expected in zip(results, call("native"), strict=True):
        assert torch.equal(actual, expected)
    assert (both[..., :21] == 7).all()


def test_cells_are_read_where_they_lie(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = calls(4, 5, 40, 2)
    copied: list[torch.Size] = []
    contiguous = Tensor.contiguous
    monkeypatch.setattr(Tensor, "contiguous", lambda x: copied.append(x.shape) or contiguous(x))
    for name in ALL:
        given[name]("native")
    assert not given["conv"].args[0].is_contiguous()
    # Constants, taps and inverse deviations alone.
    assert set(copied) <= {(40,), (3, 3, 40), (2, 20)}


def test_scattered_inputs(isa: str) -> None:
    def scatter(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return torch.empty(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x)

    for call in calls(5, 6, 18, 2).values():
        options = {key: scatter(x) for key, x in call.options.items()}
        Call(call.name, *map(scatter, call.args), **options).check("native", 5e-6)


def test_a_gradient_shared_by_the_routes(isa: str) -> None:
    call = calls(5, 6, 18, 4)["conv back"]
    at_u = call.args[0][:, :1].expand(2, 4, 5, 6, 18)
    Call(call.name, at_u, *call.args[1:]).check("native", 5e-6)


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_empty_batch(name: str) -> None:
    call = calls(4, 3, 6, 2, batch=0)[name]
    shapes = [x.shape for x in calls(4, 3, 6, 2, batch=1)[name]("native")]
    assert [x.shape for x in call("native")] == [(0, *shape[1:]) for shape in shapes]


@pytest.mark.parametrize("name", ALL)
def test_threads_change_no_bit(isa: str, name: str) -> None:
    call = calls(7, 9, 70, 2, batch=3)[name]
    alone = call("native")
    torch.set_num_threads(3)
    for one, three in zip(alone, call("native"), strict=True):
        assert torch.equal(one, three)


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone(name: str) -> None:
    call = calls(7, 9, 5, 2)[name]
    given = [x for x in (*call.args, *call.options.values()) if isinstance(x, Tensor)]
    before = [x.clone() for x in given]
    call("native")
    assert all(torch.equal(x, b) for x, b in zip(given, before, strict=True))


@needs_library
@pytest.mark.parametrize("name", ALL)
def test_the_default_dtype_changes_nothing(name: str) -> None:
    call = calls(3, 5, 6, 2)[name]
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
    given = calls(3, 5, 6, 2)[name]
    first, *rest = given.args
    call = Call(given.name, first.to(dtype), *rest, **given.options)
    with pytest.raises(KernelError, match="float32"):
        call("native")
    call("auto")


@needs_library
def test_auto_takes_it_for_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    x = torch.ones(2)
    assert maps._programs("auto", x, None) is maps_native
    assert maps._programs("auto", x, x.half()) is maps_reference
    assert maps._programs("auto", x.double()) is maps_reference
    for forced in ("cpu", "reference"):
        monkeypatch.setenv(VARIABLE, forced)
        assert maps._programs("auto", x) is maps_reference


def test_without_a_library_the_twins_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.setattr(compiled, "LIBRARY", tmp_path / "_scan.so")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert maps._programs("auto", torch.ones(2)) is maps_reference
    assert gelu_ratio(torch.zeros(2)).tolist() == [0.5, 0.5]
    with pytest.raises(KernelError, match="has no compiled library"):
        maps._programs("native", torch.ones(2))


@needs_library
def test_the_library_refuses_calls_that_it_does_not_know() -> None:
    class Short(ctypes.Structure):
        _fields_ = [("operation", ctypes.c_int64)]

    with pytest.raises(KernelError, match="refused a fused operation"):
        compiled.run_maps(Short(0))
    for operation in (-1, len(maps_native._Operation)):
        with pytest.raises(KernelError, match="refused a fused operation"):
            compiled.run_maps(maps_native._Call(operation))


SHAPES = [(), (5,), (3, 1), (2, 7, 19), (2, 5, 4, 16), (0, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["rows", "channels last", "scattered"])
def test_pointwise_factors_are_those_of_their_twins(
    isa: str, shape: tuple[int, ...], layout: str, poisoned: Callable[[], int]
) -> None:
    x, magnitude = random(*shape), random(*shape, seed=1).abs() + 2
    if x.numel() > 3:
        x.view(-1)[1] = 0
    if layout == "channels last" and x.dim() == 4:
        x, magnitude = (t.to(memory_format=torch.channels_last) for t in (x, magnitude))
    if layout == "scattered":
        x, magnitude = (torch.stack([t, t], -1)[..., 1] for t in (x, magnitude))
    before = poisoned()
    results = gelu_ratio(x), *gamma_shares(x, magnitude, 0.25)
    assert layout == "scattered" or poisoned() > before or not BUILT
    wide = gelu_ratio(x.double()), *gamma_shares(x.double(), magnitude.double(), 0.25)
    for actual, expected in zip(results, wide, strict=True):
        assert actual.shape == x.shape
        assert actual.dtype == torch.float32
        assert error(actual, expected) < 1e-6


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 3)])
def test_factors_of_nothing(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert [r.shape for r in (gelu_ratio(x), *gamma_shares(x, x, 0.25))] == [x.shape] * 3


@needs_library
@pytest.mark.parametrize("backend", ["native", "cpu"])
def test_summed_routes_are_the_sum_of_the_routes(backend: str) -> None:
    at_y, dt = random(2, 4, 30, 18), random(2, 4, 30, 18).abs()
    rates, narrow, skip = -random(4, 18, 1).abs(), random(2, 4, 30, 1), random(4, 18)
    call = (at_y, dt, rates, narrow, narrow, skip)
    order = ScanOrder.cross(5, 6)
    each = selective_scan_relevance(*call, order=order, backend=backend)
    summed = selective_scan_relevance(*call, order=order, summed=True, backend=backend)
    assert summed.shape == (2, 1, 30, 18)
    assert error(summed, each.double().sum(1, keepdim=True)) < 1e-6
