"""The fused operations on maps in every dtype and backend against their twins in float64.

`test_maps_interpreted` runs the Triton programs of this file where there is no GPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import DEVICE, FAST, error
from torch import Tensor

from vimlrp.kernels.fused import maps

BACKENDS = ["reference"] + [name for name in FAST if name == "triton"]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-2}
# Height, width, channels, routes: sides below, at and above a band and a chunk.
SIZES = [(1, 1, 1, 1), (1, 5, 3, 2), (4, 8, 2, 4), (6, 3, 33, 1), (9, 18, 2, 4), (3, 17, 40, 2)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def moved(x: Any, *target: Any) -> Any:
    return x.to(*target) if isinstance(x, Tensor) else x


class Call:
    """One operation with its arguments."""

    def __init__(self, name: str, *args: Any, **options: Any) -> None:
        self.name, self.args, self.options = name, args, options

    def to(self, *target: Any) -> "Call":
        """The same call with its tensors elsewhere or in another dtype."""
        options = {key: moved(x, *target) for key, x in self.options.items()}
        return Call(self.name, *(moved(x, *target) for x in self.args), **options)

    def __call__(self, backend: str, **outs: Tensor) -> tuple[Tensor, ...]:
        call = self.to(DEVICE.get(backend, "cpu"))
        run = getattr(maps, self.name)
        results = run(*call.args, **call.options, **outs, backend=backend)
        return (results,) if isinstance(results, Tensor) else results

    def expected(self) -> tuple[Tensor, ...]:
        return self.to(torch.float64)("reference")

    def check(self, backend: str, bound: float) -> tuple[Tensor, ...]:
        results = self(backend)
        for i, (actual, expected) in enumerate(zip(results, self.expected(), strict=True)):
            assert actual.shape == expected.shape
            assert actual.shape[-1] == 1 or actual.stride(-1) == 1
            assert error(actual.cpu(), expected) < bound, f"{self.name}, result {i}"
        return results


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def calls(
    height: int,
    width: int,
    channels: int,
    k: int,
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    gamma: float = 0.25,
) -> dict[str, Call]:
    """Every operation on one problem, by a name; maps are halves of one tensor."""
    length = height * width
    both = random(batch, height, width, 2 * channels, dtype=dtype)
    x, z = both.chunk(2, dim=-1)
    rows, others = x.flatten(1, 2), z.flatten(1, 2)
    at = random(batch, length, channels, dtype=dtype, seed=1)
    routes = random(batch, k, length, channels, dtype=dtype)
    weight, bias = random(channels, 3, 3), random(channels)
    scale, later = random(channels, seed=1), random(channels, seed=2)
    inverse, narrow = random(batch, length, seed=1), scale.to(dtype)
    at_u = routes.unflatten(2, (height, width))
    return {
        "norm": Call("layer_norm", routes, narrow, bias, 1e-5),
        "norm of a sum": Call("add_layer_norm", rows, others, scale, bias, 1e-5),
        "norm of a sum, bias": Call("add_layer_norm", rows, at, narrow, bias, 0.1, after=later),
        "norm back": Call("layer_norm_relevance", at, others, scale, bias, inverse),
        "norm back, bias": Call(
            "layer_norm_relevance", at, others, narrow, narrow, inverse, after=later
        ),
        "norm back alone": Call("layer_norm_relevance", rows, None, narrow, bias, inverse),
        "conv": Call("conv_silu", x, weight, bias),
        "conv without bias": Call("conv_silu", x, weight.to(dtype), None),
        "conv back": Call("conv_silu_relevance", at_u, x, weight, bias, gamma),
        "conv back without bias": Call(
            "conv_silu_relevance", at_u, x, weight.to(dtype), None, gamma
        ),
        "gelu back": Call("gelu_relevance", at, others, bias),
    }


ALL = list(calls(1, 1, 1, 1))


@pytest.mark.parametrize(("height", "width", "channels", "k"), SIZES)
def test_sizes(backend: str, height: int, width: int, channels: int, k: int) -> None:
    for name, call in calls(height, width, channels, k).items():
        # A single channel is its own mean: nothing is left of it but rounding.
        if channels > 1 or "norm" not in name:
            call.check(backend, 1e-5)


def test_wide_rows(backend: str) -> None:
    for name, call in calls(1, 3, 300, 2, batch=1).items():
        if "conv" not in name:
            call.check(backend, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision(backend: str, name: str, dtype: torch.dtype) -> None:
    results = calls(5, 6, 6, 2, dtype=dtype)[name].check(backend, BOUNDS[dtype])
    wide = torch.float32
    assert [x.dtype for x in results] == {
        "norm": [dtype, wide],
        "norm of a sum": [dtype, wide, wide],
        "norm of a sum, bias": [dtype, dtype, wide],
        "conv": [dtype],
        "conv without bias": [dtype],
        "conv back": [dtype, wide],
        "conv back without bias": [dtype, wide],
        "gelu back": [dtype, wide],
    }.get(name, [dtype, wide, wide])


@pytest.mark.parametrize("name", ["conv back", "conv back without bias"])
def test_gamma_of_zero(backend: str, name: str) -> None:
    calls(5, 9, 6, 2, gamma=0.0)[name].check(backend, 1e-5)


@pytest.mark.parametrize("bias", [None, torch.zeros(6)])
def test_zeros_in_the_input(backend: str, bias: Tensor | None) -> None:
    # Whole windows of zeros have an output of exactly 0, which has no sign.
    x, weight, at_u = random(2, 9, 8, 6), random(6, 3, 3), random(2, 1, 9, 8, 6)
    x[:, 2:7, 1:7] = 0
    x[random(*x.shape, seed=2) > 1] = 0
    call = Call("conv_silu_relevance", at_u, x, weight, bias, 0.25)
    at_x, absorbed = call.check(backend, 1e-5)
    assert at_x.isfinite().all()
    assert not absorbed.any()


def test_large_values(backend: str) -> None:
    # exp(-c) overflows in float32 below -88; sigmoid and its products must not.
    x, weight, bias = 200 * random(2, 5, 3, 6), random(6, 3, 3), random(6)
    Call("conv_silu", x, weight, bias).check(backend, 1e-5)
    Call("conv_silu_relevance", random(2, 1, 5, 3, 6), x, weight, bias, 0.25).check(backend, 1e-5)
    rows = x.flatten(1, 2)
    Call("gelu_relevance", rows, rows, bias).check(backend, 1e-5)


def test_a_large_mean_costs_no_digits_of_the_deviation(backend: str) -> None:
    x = random(2, 1, 5, 40) + 1000
    normed, inverse = Call("layer_norm", x, random(40), random(40), 1e-5)(backend)
    expected = Call("layer_norm", x, random(40), random(40), 1e-5).expected()
    assert error(normed.cpu(), expected[0]) < 1e-3
    assert error(inverse.cpu(), expected[1]) < 1e-3


def test_relevance_is_conserved(backend: str) -> None:
    given = calls(6, 9, 5, 1)
    at_u, x, *_ = given["conv back"].args
    (u,) = given["conv"](backend)
    at_x, absorbed = given["conv back"](backend)
    arrived = (at_u[:, 0].double() * u.cpu()).flatten(1).sum(1)
    kept = (x.double() * at_x.cpu()).flatten(1).sum(1) + absorbed.cpu()
    assert torch.allclose(kept, arrived, rtol=1e-5, atol=1e-5)


def test_results_land_in_a_half_of_a_tensor(backend: str) -> None:
    call = calls(6, 9, 5, 4)["conv back"]
    both = torch.full((2, 6, 9, 10), 7.0, device=DEVICE.get(backend, "cpu"))
    half = both[..., 5:]
    results = call(backend, out_x=half)
    assert results[0] is half
    for actual, expected in zip(results, call(backend), strict=True):
        assert torch.equal(actual, expected)
    assert (both[..., :5] == 7).all()


def test_results_take_the_dtype_of_their_room(backend: str) -> None:
    call = calls(5, 6, 6, 2)["conv back"]
    room = torch.empty(2, 5, 6, 6, dtype=torch.bfloat16, device=DEVICE.get(backend, "cpu"))
    call(backend, out_x=room)
    assert error(room.cpu(), call.expected()[0]) < 1e-2


def test_scattered_inputs(backend: str) -> None:
    def scatter(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.empty(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x)

    for call in calls(5, 6, 6, 2).values():
        scattered = [scatter(x) for x in call.args]
        assert not scattered[0].is_contiguous()
        options = {key: scatter(x) for key, x in call.options.items()}
        Call(call.name, *scattered, **options).check(backend, 1e-5)


def test_a_gradient_shared_by_the_routes(backend: str) -> None:
    call = calls(5, 6, 6, 4)["conv back"]
    at_u = call.args[0][:, :1].expand(2, 4, 5, 6, 6)
    Call(call.name, at_u, *call.args[1:]).check(backend, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_empty_batch(backend: str, name: str) -> None:
    call = calls(4, 3, 6, 2, batch=0)[name]
    shapes = [x.shape for x in calls(4, 3, 6, 2, batch=1)[name](backend)]
    assert [x.shape for x in call(backend)] == [(0, *shape[1:]) for shape in shapes]


@pytest.mark.parametrize("name", ALL)
def test_every_element_is_written(name: str, poisoned: Callable[[], int]) -> None:
    # Sides end inside a band and a chunk; blocks are wider than the channels.
    for sides in ((1, 1), (5, 17)):
        for backend in BACKENDS:
            before = poisoned()
            assert all(x.isfinite().all() for x in calls(*sides, 5, 2)[name](backend))
            assert backend == "reference" or poisoned() > before


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", ["conv", "conv back"])
def test_a_program_stores_its_own_positions_alone(
    backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Programs run one after the other in the interpreter, where the next one would repair it.
    from vimlrp.kernels.fused import maps_triton

    call = calls(9, 20, 5, 2, batch=1)[name].to(DEVICE[backend])
    monkeypatch.setattr(maps_triton, "_walk", lambda _: (8, 1))
    create, room = torch.empty, torch.full((1, 9, 20, 5), float("nan"), device=DEVICE[backend])
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **o: room if shape[0] == room.shape else create(*shape, **o)
    )
    call(backend)
    rows = maps_triton._ROWS
    assert room[:, :rows, :8].isfinite().all()
    assert room[:, rows:].isnan().all()
    assert room[:, :, 8:].isnan().all()


@pytest.mark.parametrize("name", ALL)
def test_runs_repeat_bit_for_bit(backend: str, name: str) -> None:
    call = calls(5, 9, 5, 2)[name]
    for first, second in zip(call(backend), call(backend), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone(backend: str, name: str) -> None:
    call = calls(7, 9, 5, 2)[name].to(DEVICE.get(backend, "cpu"))
    given = [*call.args, *call.options.values()]
    before = [x.clone() if isinstance(x, Tensor) else x for x in given]
    call(backend)
    for x, b in zip(given, before, strict=True):
        assert torch.equal(x, b) if isinstance(x, Tensor) else x == b


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(56, 56, 96, 4), (7, 7, 768, 4), (14, 9, 384, 4)], ids=str)
def test_vmamba_on_a_gpu(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    for call in calls(*shape, batch=3, dtype=dtype).values():
        forced = call.check("triton", BOUNDS[dtype])
        moved_call = call.to("cuda")
        automatic = getattr(maps, call.name)(*moved_call.args, **moved_call.options)
        automatic = automatic if isinstance(automatic, tuple) else (automatic,)
        assert all(torch.equal(a, f) for a, f in zip(automatic, forced, strict=True))
