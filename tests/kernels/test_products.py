"""Matrix products by the fastest library: PyTorch's own in float64 says what they are."""

from collections.abc import Callable

import pytest
import torch
from problems import error
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vimlrp.kernels import products

needs_fast = pytest.mark.skipif(
    products._operator() is None, reason="this PyTorch has no product by oneDNN"
)
LAYOUTS = {
    "rows": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "scattered": lambda x: torch.stack([x, x], -1)[..., 1],
    "half": lambda x: torch.cat([x, x], -1)[..., x.shape[-1] :],
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Lets small products be fast, and lists the left sides of those that are."""
    monkeypatch.setattr(products, "_SMALL", 0)
    seen: list[Tensor] = []
    original = products._operator()

    def spy(x: Tensor, *rest: object) -> Tensor:
        seen.append(x)
        return original(x, *rest)

    monkeypatch.setattr(products, "_operator", lambda: original and spy)
    return seen


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def expected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x.double() @ weight.double().mT
    return product if bias is None else product + bias.double()


@needs_fast
@pytest.mark.parametrize("of_weight", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (2, 197, 20), (3, 2, 5, 33)])
def test_every_layout(
    calls: list[Tensor], shape: tuple[int, ...], of_x: str, of_weight: str
) -> None:
    x, weight = LAYOUTS[of_x](random(*shape)), LAYOUTS[of_weight](random(11, shape[-1]))
    for bias in (None, random(11), random(22)[::2], random(12)[1:]):
        assert error(products.linear(x, weight, bias), expected(x, weight, bias)) < 1e-6
    assert len(calls) == 4


@needs_fast
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,), (3, 0)])
def test_what_has_no_rows_or_one_is_left_to_pytorch(
    calls: list[Tensor], shape: tuple[int, ...]
) -> None:
    x, weight, bias = random(*shape), random(4, shape[-1]), random(4)
    out = products.linear(x, weight, bias)
    assert out.shape == (*shape[:-1], 4)
    assert error(out, expected(x, weight, bias)) < 1e-6
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(calls: list[Tensor], dtype: torch.dtype) -> None:
    out = products.linear(random(5, 6, dtype=dtype), random(3, 6, dtype=dtype))
    assert out.dtype == dtype
    assert not calls


def test_autocast_is_left_to_pytorch(calls: list[Tensor]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(random(5, 6), random(3, 6)).dtype == torch.bfloat16
    assert not calls


def test_a_user_who_switches_onednn_off_is_heard(calls: list[Tensor]) -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        products.linear(random(5, 6), random(3, 6))
    assert not calls


def test_without_the_operator_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_operator", lambda: None)
    monkeypatch.setattr(products, "_SMALL", 0)
    x, weight = random(5, 6).requires_grad_(), random(3, 6)
    assert error(products.linear(x, weight).detach(), expected(x, weight, None).detach()) < 1e-6
    assert type(products.input_linear(x, weight).grad_fn).__name__ == "MmBackward0"


@needs_fast
@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_training_is_left_to_pytorch(calls: list[Tensor], wanted: str) -> None:
    given = {"x": random(5, 6), "weight": random(3, 6), "bias": random(3)}
    given[wanted].requires_grad_()
    for run in (products.linear, products.input_linear):
        out = run(**given)
        (gradient,) = torch.autograd.grad(out.sum(), given[wanted])
        assert gradient.shape == given[wanted].shape
    # Where x alone is differentiated `input_linear` multiplies itself, there and back.
    assert len(calls) == (2 if wanted == "x" else 0)


@needs_fast
def test_gradients_of_the_input(calls: list[Tensor]) -> None:
    x, weight, bias = random(2, 5, 6).requires_grad_(), random(3, 6), random(3)
    at_out = random(2, 5, 3).requires_grad_()
    out = products.input_linear(x, weight, bias)
    (at_x,) = torch.autograd.grad(out, x, at_out, create_graph=True)
    assert error(at_x.detach(), at_out.detach().double() @ weight.double()) < 1e-6
    (twice,) = torch.autograd.grad(at_x.square().sum(), at_out)
    assert error(twice, 2 * at_x.detach().double() @ weight.double().mT) < 1e-6
    assert len(calls) == 3


def test_a_compiler_chooses_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_SMALL", 0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not products.is_fast(random(5, 6), random(3, 6))


@needs_fast
@pytest.mark.parametrize("run", [products.linear, products.input_linear])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_function_transforms_see_through_the_product(
    calls: list[Tensor], run: Callable[..., Tensor]
) -> None:
    x, weight = random(2, 5, 6), random(3, 6)
    for place in (0, 1):
        given = [x, weight]

        def function(t: Tensor, place: int = place, given: list[Tensor] = given) -> Tensor:
            return run(*given[:place], t, *given[place + 1 :])

        tangent = random(*given[place].shape)
        _, out = torch.func.jvp(function, (given[place],), (tangent,))
        assert error(out, function(tangent)) < 1e-6
    mapped = torch.func.vmap(lambda t: run(t, weight))(x)
    assert error(mapped, expected(x, weight, None)) < 1e-6
    gradient = torch.func.grad(lambda t: run(t, weight).square().sum())(x)
    assert error(gradient, 2 * expected(x, weight, None) @ weight.double()) < 1e-6


@pytest.mark.parametrize("run", [products.linear, products.input_linear])
def test_function_transforms_within_one_another(
    calls: list[Tensor], run: Callable[..., Tensor]
) -> None:
    x, weight = random(4, 5, 6), random(3, 6)
    gradient = torch.func.grad(
        lambda t: torch.func.vmap(lambda row: run(row, weight))(t).square().sum()
    )(x)
    assert error(gradient, 2 * expected(x, weight, None) @ weight.double()) < 1e-6
    tangent = torch.func.jvp(torch.func.vmap(lambda row: run(row, weight)), (x,), (x,))[1]
    assert error(tangent, expected(x, weight, None)) < 1e-6


def test_counters_of_operations_see_the_product(calls: list[Tensor]) -> None:
    with FlopCounterMode(display=False) as counter:
        products.linear(random(5, 6), random(3, 6))
    assert counter.get_total_flops() == 2 * 5 * 6 * 3


def test_what_comes_out_may_be_changed_in_place(calls: list[Tensor]) -> None:
    x, weight = random(2, 5, 6).requires_grad_(), random(3, 6)
    out = products.input_linear(x, weight).add_(1)
    assert error(out.detach(), expected(x.detach(), weight, None) + 1) < 1e-6
    (at_x,) = torch.autograd.grad(out.sum(), x)
    assert error(at_x, weight.double().sum(0).expand(2, 5, 6)) < 1e-6


@pytest.mark.parametrize("shape", [(2, 3, 6), (3, 7)])
def test_a_weight_that_does_not_fit_is_pytorchs_to_refuse(
    calls: list[Tensor], shape: tuple[int, ...]
) -> None:
    with pytest.raises(RuntimeError):
        products.linear(random(5, 6), random(*shape))
    assert calls == []


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:Converting a tensor")
def test_a_traced_model_holds_pytorchs_own_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_SMALL", 0)
    weight = random(3, 6)
    traced = torch.jit.trace(lambda x: products.linear(x, weight), random(5, 6))
    assert "aten::linear" in str(traced.graph)
    assert "mkldnn" not in str(traced.graph)
