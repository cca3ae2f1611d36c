"""The fused operations on sequences in every dtype and backend against their twins in float64.

`test_sequences_interpreted` runs the Triton programs of this file where there is no GPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import DEVICE, FAST, error
from torch import Tensor

from vimlrp.kernels.fused import sequences

BACKENDS = ["reference"] + [name for name in FAST if name == "triton"]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-2}
SIZES = [(1, 3, 1, 4), (2, 1, 2, 2), (5, 33, 2, 3), (5, 130, 2, 1), (6, 4, 1, 8), (70, 5, 2, 4)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Call:
    """One operation with its arguments, those that a backward writes into left open."""

    def __init__(self, name: str, *args: Any) -> None:
        self.name, self.args = name, args

    def to(self, *target: Any) -> "Call":
        """The same call with its tensors elsewhere or in another dtype."""
        return Call(self.name, *(x.to(*target) if isinstance(x, Tensor) else x for x in self.args))

    def __call__(self, backend: str, **outs: Tensor) -> tuple[Tensor, ...]:
        args = self.to(DEVICE.get(backend, "cpu")).args
        results = getattr(sequences, self.name)(*args, **outs, backend=backend)
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


def halves(batch: int, length: int, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, z = random(batch, length, 2 * channels, dtype=dtype).chunk(2, dim=-1)
    return x, z


def calls(
    length: int,
    channels: int,
    k: int,
    width: int,
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float32,
    flip: bool = False,
    gamma: float = 0.25,
) -> dict[str, Call]:
    """Every operation on one problem, by a name; x and z are halves of one tensor."""
    x, z = halves(batch, length, channels, dtype)
    y, at = random(batch, k, length, channels, dtype=dtype), random(*x.shape, dtype=dtype, seed=1)
    at_u = random(*y.shape, dtype=dtype, seed=1)
    weight, bias = random(k, channels, width), random(k, channels)
    reverse = tuple((i + flip) % 2 == 1 for i in range(k))
    scale, inverse = random(channels), random(batch, length, seed=1)
    rank = channels // 3 + 1
    low = halves(batch * k, length, rank, dtype)[1].unflatten(0, (batch, k))
    return {
        "norm": Call("add_rms_norm", x, z, scale.to(dtype), 1e-5),
        "first norm": Call("add_rms_norm", x, None, scale, 1e-5),
        "norm back": Call("norm_relevance", at, z.float(), scale, inverse),
        "norm back alone": Call("norm_relevance", at, None, scale.to(dtype), inverse),
        "conv": Call("conv_silu", x, weight, bias, reverse),
        "conv without bias": Call("conv_silu", x, weight.to(dtype), None, reverse),
        "conv back": Call("conv_silu_relevance", at_u, x, weight, bias, reverse, gamma),
        "conv back without bias": Call(
            "conv_silu_relevance", at_u, x, weight.to(dtype), None, reverse, gamma
        ),
        "gate": Call("gate", y, z, 0.5),
        "gate back": Call("gate_relevance", at, y[:, 0], z, 0.4, 0.6, 0.5),
        "step": Call("step", low, random(k, channels, rank, seed=2).to(dtype), bias),
        "step of mixed types": Call("step", low, random(k, channels, rank, seed=2), bias),
    }


ALL = list(calls(1, 1, 1, 1))
WRITING = {"conv back": "out_x", "gate back": "out_z"}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("length", "channels", "k", "width"), SIZES)
def test_sizes(backend: str, length: int, channels: int, k: int, width: int, flip: bool) -> None:
    for name, call in calls(length, channels, k, width, flip=flip).items():
        if not flip or name.startswith("conv"):
            call.check(backend, 1e-5)


def test_the_length_of_vim(backend: str) -> None:
    given = calls(197, 3, 2, 4, batch=1)
    for name in ("norm", "norm back", "conv", "conv back", "gate", "gate back", "step"):
        given[name].check(backend, 1e-5)


def test_wide_rows(backend: str) -> None:
    given = calls(3, 300, 2, 2, batch=1)
    for name in ("norm", "norm back", "gate", "gate back", "step"):
        given[name].check(backend, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision(backend: str, name: str, dtype: torch.dtype) -> None:
    results = calls(5, 6, 2, 4, dtype=dtype)[name].check(backend, BOUNDS[dtype])
    wide = torch.float32
    assert [x.dtype for x in results] == {
        "norm": [wide, dtype, wide],
        "first norm": [wide, wide, wide],
        "norm back": [wide, dtype],
        "norm back alone": [wide, dtype],
        "conv back": [dtype, wide],
        "conv back without bias": [dtype, wide],
    }.get(name, [dtype] * len(results))


@pytest.mark.parametrize("name", ["conv back", "conv back without bias"])
def test_gamma_of_zero(backend: str, name: str) -> None:
    calls(9, 6, 2, 4, gamma=0.0)[name].check(backend, 1e-5)


@pytest.mark.parametrize("bias", [None, torch.zeros(2, 6)])
def test_zeros_in_the_input(backend: str, bias: Tensor | None) -> None:
    # Whole windows of zeros have an output of exactly 0, which has no sign.
    x, weight, at_u = random(2, 12, 6), random(2, 6, 3), random(2, 2, 12, 6)
    x[:, 2:9] = 0
    x[random(*x.shape, seed=2) > 1] = 0
    call = Call("conv_silu_relevance", at_u, x, weight, bias, (False, True), 0.25)
    at_x, absorbed = call.check(backend, 1e-5)
    assert at_x.isfinite().all()
    assert not absorbed.any()


def test_large_values(backend: str) -> None:
    # exp(-c) overflows in float32 below -88; sigmoid and its products must not.
    x, weight = 200 * random(2, 5, 6), random(1, 6, 2)
    bias, at = random(1, 6), random(2, 1, 5, 6)
    Call("conv_silu", x, weight, bias, (True,)).check(backend, 1e-5)
    Call("conv_silu_relevance", at, x, weight, bias, (True,), 0.25).check(backend, 1e-5)
    Call("gate", at, x, 1.0).check(backend, 1e-5)
    Call("gate_relevance", x, at[:, 0], x, 0.5, 0.5, 1.0).check(backend, 1e-5)


def test_small_steps_keep_their_digits(backend: str) -> None:
    raw = torch.linspace(-16, 25, 200).view(1, 1, 200, 1)
    (dt,) = Call("step", raw, torch.ones(1, 3, 1), torch.zeros(1, 3))(backend)
    expected = torch.log1p(torch.exp(raw.double()))
    assert ((dt.cpu() - expected).abs() / expected).max() < 3e-6


def test_relevance_is_conserved(backend: str) -> None:
    given = calls(20, 5, 2, 4)
    at_u, x, *_ = given["conv back"].args
    (u,) = given["conv"](backend)
    at_x, absorbed = given["conv back"](backend)
    arrived = (at_u.double() * u.cpu()).flatten(1).sum(1)
    kept = (x.double() * at_x.cpu()).flatten(1).sum(1) + absorbed.cpu()
    assert torch.allclose(kept, arrived, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WRITING)
def test_results_land_in_a_half_of_a_tensor(backend: str, name: str) -> None:
    call = calls(21, 5, 2, 4)[name]
    both = torch.full((2, 21, 10), 7.0, device=DEVICE.get(backend, "cpu"))
    half = both[..., 5:]
    results = call(backend, **{WRITING[name]: half})
    assert any(x is half for x in results)
    for actual, expected in zip(results, call(backend), strict=True):
        assert torch.equal(actual, expected)
    assert (both[..., :5] == 7).all()


def test_results_take_the_dtype_of_their_room(backend: str) -> None:
    call = calls(5, 6, 2, 4)["conv back"]
    room = torch.empty(2, 5, 6, dtype=torch.bfloat16, device=DEVICE.get(backend, "cpu"))
    call(backend, out_x=room)
    assert error(room.cpu(), call.expected()[0]) < 1e-2


def test_scattered_inputs(backend: str) -> None:
    def scatter(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return torch.empty(*x.shape, 3, dtype=x.dtype)[..., 1].copy_(x)

    for call in calls(5, 6, 2, 3).values():
        scattered = [scatter(x) for x in call.args]
        assert not scattered[0].is_contiguous()
        Call(call.name, *scattered).check(backend, 1e-5)


def test_a_gradient_shared_by_the_directions(backend: str) -> None:
    call = calls(5, 6, 2, 3)["conv back"]
    at_u = call.args[0][:, :1].expand(2, 2, 5, 6)
    Call(call.name, at_u, *call.args[1:]).check(backend, 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_empty_batch(backend: str, name: str) -> None:
    call = calls(4, 6, 2, 3, batch=0)[name]
    shapes = [x.shape for x in calls(4, 6, 2, 3, batch=1)[name](backend)]
    assert [x.shape for x in call(backend)] == [(0, *shape[1:]) for shape in shapes]


@pytest.mark.parametrize("name", ALL)
def test_every_element_is_written(name: str, poisoned: Callable[[], int]) -> None:
    # Lengths end inside a chunk and a round of it; blocks are wider than the channels.
    for length in (1, 19):
        for backend in BACKENDS:
            before = poisoned()
            assert all(x.isfinite().all() for x in calls(length, 5, 2, 4)[name](backend))
            assert backend == "reference" or poisoned() > before


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_program_stores_its_own_positions_alone(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Programs run one after the other in the interpreter, where the next one would repair it.
    from vimlrp.kernels.fused import sequences_triton

    call = calls(70, 5, 2, 4, batch=1)["conv back"].to(DEVICE[backend])
    _, sizes = sequences_triton._walk(*call.args[1:5], sequences_triton._UNROLL_RELEVANCE)
    # A chunk that does not fill its last round of steps.
    monkeypatch.setattr(sequences_triton, "_walk", lambda *_: (16, sizes))
    monkeypatch.setattr(sequences_triton, "_walks", lambda *_: 1)
    room = torch.full((1, 70, 5), float("nan"), device=DEVICE[backend])
    call(backend, out_x=room)
    assert room[:, :16].isfinite().all()
    assert room[:, 16:].isnan().all()


@pytest.mark.parametrize("name", ALL)
def test_runs_repeat_bit_for_bit(backend: str, name: str) -> None:
    call = calls(19, 5, 2, 4)[name]
    for first, second in zip(call(backend), call(backend), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ALL)
def test_inputs_are_left_alone(backend: str, name: str) -> None:
    call = calls(19, 5, 2, 4)[name].to(DEVICE.get(backend, "cpu"))
    before = [x.clone() if isinstance(x, Tensor) else x for x in call.args]
    call(backend)
    for x, b in zip(call.args, before, strict=True):
        assert torch.equal(x, b) if isinstance(x, Tensor) else x == b


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vim_small_on_a_gpu(dtype: torch.dtype) -> None:
    for call in calls(197, 768, 2, 4, batch=3, dtype=dtype).values():
        forced = call.check("triton", BOUNDS[dtype])
        automatic = getattr(sequences, call.name)(*call.to("cuda").args)
        automatic = automatic if isinstance(automatic, tuple) else (automatic,)
        assert all(torch.equal(a, f) for a, f in zip(automatic, forced, strict=True))
