"""Products of matrices in three TF32 products against float64."""

import pytest
import torch
from problems import DEVICE, FAST, error

from vimlrp.errors import KernelError
from vimlrp.kernels import products

needs_triton = pytest.mark.skipif(
    "triton" not in FAST, reason="Triton runs in its interpreter or on a GPU"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def draw(*shape: int, seed: int = 0, device: str = DEVICE["triton"]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def expected(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    out = x.double() @ weight.double().t()
    return out if bias is None else out + bias.double()


@needs_triton
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 7, 33), (130, 66, 64), (129, 200, 40)])
def test_linear_in_three_products(poisoned, m, n, k, with_bias):
    x, weight = draw(m, k), draw(n, k, seed=1)
    bias = draw(n, seed=2) if with_bias else None
    out = products.product(x, weight, bias, backend="triton")
    assert error(out, expected(x, weight, bias)) < 5e-7
    assert poisoned()


@needs_triton
def test_strided_rows_and_transposed_weights():
    wide, weight = draw(2, 9, 80), draw(40, 12, seed=1).t()
    x = wide[..., :40]
    out = products.product(x, weight, backend="triton")
    assert out.shape == (2, 9, 12)
    assert error(out.flatten(0, 1), expected(x.flatten(0, 1), weight)) < 5e-7
    across = draw(40, 9).t()
    assert (
        error(products.product(across, weight, backend="triton"), expected(across, weight)) < 5e-7
    )


@needs_triton
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8)])
def test_nothing_to_multiply(shape):
    out = products.product(draw(*shape), draw(4, 8), backend="triton")
    assert out.shape == (*shape[:-1], 4)


@needs_triton
def test_what_is_not_finite_shows():
    x = draw(3, 8)
    x[1, 2] = torch.inf
    assert products.product(x, draw(4, 8), backend="triton").isfinite().all(1).tolist() == [
        True, False, True,
    ]  # fmt: skip


@needs_gpu
def test_a_gpu_multiplies_many_rows_in_three_products_unless_tf32_is_wished(monkeypatch):
    from vimlrp.kernels import products_triton

    calls = []
    own = products_triton.linear
    monkeypatch.setattr(products_triton, "linear", lambda *a: calls.append(1) or own(*a))
    x, weight = draw(4096, 384), draw(1536, 384, seed=1)
    out = products.product(x, weight)
    assert calls == [1]
    assert error(out, expected(x, weight)) < 5e-7
    products.product(x[:64], weight)
    products.product(x.bfloat16(), weight.bfloat16())
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    products.product(x, weight)
    assert calls == [1]


@needs_gpu
def test_each_of_several_on_a_gpu():
    x, weight = draw(2, 2048, 96), draw(2, 24, 96, seed=1)
    assert error(products.product_each(x, weight), x.double() @ weight.double().mT) < 5e-7


@needs_triton
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000])
def test_no_number_among_the_weights_shows(bits):
    weight = draw(4, 8)
    weight.view(torch.int32)[1, 2] = bits
    out = products.product(draw(3, 8, seed=1), weight, backend="triton")
    assert out.isnan().any(0).tolist() == [False, True, False, False]


def test_shapes_that_do_not_fit_are_refused():
    x, weight = draw(2, 9, device="cpu"), draw(4, 8, device="cpu")
    with pytest.raises(KernelError, match=r"\(2, 9\), \(4, 8\); give"):
        products.product(x, weight, backend="triton")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        products.product(x, weight)


def test_elsewhere_pytorch_multiplies():
    x, weight, bias = draw(2, 3, 8, device="cpu"), draw(4, 8, device="cpu"), draw(4, device="cpu")
    out = products.product(x, weight, bias)
    assert torch.equal(out, torch.nn.functional.linear(x, weight, bias))
    x = x.double().requires_grad_()
    out = products.product(x, weight.double())
    assert out.dtype == torch.float64
    assert not out.requires_grad
    pair = draw(2, 5, 8, device="cpu"), draw(2, 4, 8, device="cpu", seed=1)
    assert torch.equal(products.product_each(*pair), pair[0] @ pair[1].mT)


def test_bad_wishes_are_refused():
    x, weight = draw(2, 8, device="cpu"), draw(4, 8, device="cpu")
    with pytest.raises(KernelError, match="'cublas'; choose 'auto'"):
        products.product(x, weight, backend="cublas")
    with pytest.raises(KernelError, match="float32 alone, and was given"):
        products.product(x.double(), weight, backend="triton")
