"""The twins of the fused operations on maps against the sites and the rules; refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp import rules
from vimlrp.errors import KernelError
from vimlrp.kernels.fused import maps
from vimlrp.sites import Activation, Conv2d, LayerNorm, Linear
from vimlrp.tracing import Trace, tracing


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


def traced(given: dict[nn.Module, rules.Rule], run: Callable[[], Tensor]) -> tuple[Tensor, Trace]:
    """The output of sites under their rules, and the trace that notes what is absorbed."""
    trace = Trace(given)
    with tracing(trace):
        return run(), trace


def absorbed(trace: Trace, site: nn.Module, batch: int = 3) -> Tensor:
    shares = [a.share for a in trace.absorptions if a.site is site]
    assert len(shares) <= 1
    return shares[0] if shares else torch.zeros(batch)


def convolution(with_bias: bool) -> tuple[Conv2d, Tensor, Tensor | None]:
    site = Conv2d(5, 5, 3, padding=1, groups=5, bias=with_bias)
    bias = site.bias.detach() if site.bias is not None else None
    return site, site.weight.detach()[:, 0], bias


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("gamma", [0.25, 0.0])
@pytest.mark.parametrize("sides", [(1, 1), (1, 6), (7, 1), (2, 2), (5, 4)])
def test_convolution_follows_the_rules(
    sides: tuple[int, int], gamma: float, with_bias: bool
) -> None:
    site, weight, bias = convolution(with_bias)
    act = Activation("silu")
    x = torch.randn(3, *sides, 5)
    x[torch.rand_like(x) < 0.2] = 0
    leaf = x.clone().requires_grad_()
    given: dict[nn.Module, rules.Rule] = {site: rules.Gamma(gamma), act: rules.Identity()}
    u, trace = traced(given, lambda: act(site(leaf)))
    close(maps.conv_silu(x, weight, bias), u.detach())
    routes = torch.randn(3, 4, *sides, 5)
    (expected,) = torch.autograd.grad(u, leaf, routes.sum(1))
    at_x, share = maps.conv_silu_relevance(routes, x, weight, bias, gamma)
    close(at_x, expected)
    close(share, absorbed(trace, site))


def test_convolution_is_that_of_pytorch() -> None:
    _, weight, bias = convolution(True)
    x = torch.randn(2, 4, 6, 5)
    out = F.conv2d(x.permute(0, 3, 1, 2), weight.unsqueeze(1), bias, padding=1, groups=5)
    close(maps.conv_silu(x, weight, bias), F.silu(out).permute(0, 2, 3, 1))


def test_convolution_conserves_relevance() -> None:
    _, weight, bias = convolution(True)
    x, at_u = torch.randn(3, 4, 6, 5), torch.randn(3, 1, 4, 6, 5)
    u = maps.conv_silu(x, weight, bias)
    for gamma in (0.0, 0.25, 3.0):
        at_x, share = maps.conv_silu_relevance(at_u, x, weight, bias, gamma)
        close((x * at_x).flatten(1).sum(1) + share, (u * at_u[:, 0]).flatten(1).sum(1))


@pytest.mark.parametrize(
    ("bias", "slope"),
    [(1.0, 1.125 / 1.25), (-1.0, 1.125 / 1.25), (0.0, 1.0)],
    ids=["above", "below", "zero"],
)
def test_an_input_of_exactly_zero_counts_half_with_either_sign(bias: float, slope: float) -> None:
    # With x = 0 the output is the bias alone, and the rule's factor is 1 / 1.25 unless it is 0.
    for weight in (0.5, -0.5):
        at_x, share = maps.conv_silu_relevance(
            torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.full((1, 3, 3), weight),
            torch.full((1,), bias), 0.25,
        )  # fmt: skip
        sigmoid = torch.sigmoid(torch.tensor(bias))
        close(at_x, (weight * slope * sigmoid).view(1, 1, 1, 1))
        close(share, (bias * sigmoid).view(1))


def norm() -> LayerNorm:
    site = LayerNorm(6, eps=1e-3)
    nn.init.normal_(site.weight)
    nn.init.normal_(site.bias)
    return site


def test_sum_of_routes_and_norm_follow_the_rules() -> None:
    site, y = norm(), torch.randn(3, 4, 7, 6)
    leaf = y.clone().requires_grad_()
    out, trace = traced({site: rules.ConstantNormaliser()}, lambda: site(leaf.sum(1)))
    normed, inverse = maps.layer_norm(y, site.weight, site.bias, 1e-3)
    close(normed, out.detach())
    close(inverse, (y.sum(1).var(-1, unbiased=False) + 1e-3).rsqrt())
    at = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, leaf, at)
    at_y, share, none = maps.layer_norm_relevance(at, None, site.weight, site.bias, inverse)
    close(at_y.unsqueeze(1).expand(3, 4, 7, 6), expected)
    close(share, absorbed(trace, site))
    close(none, torch.zeros(3))


@pytest.mark.parametrize("with_after", [True, False])
def test_residual_sum_and_norm_follow_the_rules(with_after: bool) -> None:
    site, x, branch = norm(), torch.randn(3, 7, 6), torch.randn(3, 7, 6)
    after = torch.randn(6) if with_after else None
    leaf = x.clone().requires_grad_()
    out, trace = traced({site: rules.ConstantNormaliser()}, lambda: site(leaf + branch))
    stream, normed, inverse = maps.add_layer_norm(
        x, branch, site.weight, site.bias, 1e-3, after=after
    )
    close(stream, x + branch + (0 if after is None else after))
    close(normed, out.detach())
    at, at_stream = torch.randn_like(x), torch.randn_like(x)
    (expected,) = torch.autograd.grad((out, leaf + branch), leaf, (at, at_stream))
    at_x, share, by_after = maps.layer_norm_relevance(
        at, at_stream, site.weight, site.bias, inverse, after=after
    )
    close(at_x, expected)
    close(share, absorbed(trace, site))
    close(by_after, torch.zeros(3) if after is None else (at_stream * after).sum((1, 2)))


def test_gelu_follows_the_rules() -> None:
    layer, act = Linear(4, 6), Activation("gelu")
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, 4)
    given: dict[nn.Module, rules.Rule] = {layer: rules.Zero(), act: rules.Identity()}
    kept: list[Tensor] = []

    def run() -> Tensor:
        kept.append(layer(x.clone().requires_grad_()))
        return act(kept[0])

    out, trace = traced(given, run)
    at = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, kept[0], at)
    hidden = kept[0].detach()
    at_x, share = maps.gelu_relevance(at, hidden, layer.bias)
    close(at_x, expected)
    close(share, absorbed(trace, layer))
    close(at_x * hidden, at * F.gelu(hidden))


GOOD: dict[str, tuple[Any, ...]] = {
    "layer_norm": (torch.ones(2, 4, 3, 6), torch.ones(6), torch.ones(6), 1e-5),
    "add_layer_norm": (torch.ones(2, 3, 6), torch.ones(2, 3, 6), torch.ones(6), torch.ones(6), 0.1),
    "layer_norm_relevance": (
        torch.ones(2, 3, 6), torch.ones(2, 3, 6), torch.ones(6), torch.ones(6), torch.ones(2, 3),
    ),
    "conv_silu": (torch.ones(2, 3, 4, 6), torch.ones(6, 3, 3), torch.ones(6)),
    "conv_silu_relevance": (
        torch.ones(2, 4, 3, 4, 6), torch.ones(2, 3, 4, 6), torch.ones(6, 3, 3), torch.ones(6), 0.25,
    ),
    "gelu_relevance": (torch.ones(2, 3, 6), torch.ones(2, 3, 6), torch.ones(6)),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_every_argument_of_another_shape_dtype_or_kind_is_refused(name: str) -> None:
    given = GOOD[name]
    run = getattr(maps, name)
    run(*given)
    for i, x in enumerate(given):
        if not isinstance(x, Tensor):
            continue
        for wrong in (x[..., :-1], x.unsqueeze(0), x[0]):
            if wrong.shape == x.shape:
                continue
            with pytest.raises(KernelError, match="must be"):
                run(*given[:i], wrong, *given[i + 1 :])
        with pytest.raises(KernelError, match="int64"):
            run(*given[:i], x.long(), *given[i + 1 :])
        with pytest.raises(KernelError, match="move both"):
            run(*given[:i], x.to("meta"), *given[i + 1 :])
    with pytest.raises(KernelError, match="no backend 'cpu'"):
        run(*given, backend="cpu")


@pytest.mark.parametrize("gamma", [-0.1, float("inf"), float("nan")])
def test_a_wrong_gamma_is_refused(gamma: float) -> None:
    with pytest.raises(KernelError, match="gamma is"):
        maps.conv_silu_relevance(*GOOD["conv_silu_relevance"][:4], gamma)


def test_a_room_whose_channels_are_apart_is_refused() -> None:
    room = torch.ones(2, 3, 4, 6, 2)[..., 0]
    with pytest.raises(KernelError, match="last axis is contiguous"):
        maps.conv_silu_relevance(*GOOD["conv_silu_relevance"], out_x=room)


@pytest.mark.parametrize("name", ["after", "out_x"])
def test_optional_arguments_are_checked(name: str) -> None:
    run = "conv_silu_relevance" if name == "out_x" else "add_layer_norm"
    with pytest.raises(KernelError, match=f"{name} has shape"):
        getattr(maps, run)(*GOOD[run], **{name: torch.ones(7)})


@pytest.mark.parametrize("name", GOOD)
def test_no_gradient_is_recorded(name: str) -> None:
    given = [x.clone().requires_grad_() if isinstance(x, Tensor) else x for x in GOOD[name]]
    results = getattr(maps, name)(*given)
    results = results if isinstance(results, tuple) else (results,)
    assert not any(x.requires_grad for x in results)
