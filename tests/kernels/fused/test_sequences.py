"""The twins of the fused operations against the sites, the rules and closed forms; refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vimlrp import rules
from vimlrp.errors import KernelError
from vimlrp.kernels.fused import sequences
from vimlrp.sites import Activation, CausalConv1d, Gate, RMSNorm, Step
from vimlrp.tracing import Trace, tracing

BOTH = (False, True)


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
    trace = Trace(given)
    with tracing(trace):
        return run(), trace


def convolutions(
    width: int, with_bias: bool, reverse: tuple[bool, ...] = BOTH
) -> tuple[list[CausalConv1d], Tensor, Tensor | None]:
    sites = [CausalConv1d(6, width, back) for back in reverse]
    weight = torch.stack([site.weight.detach()[:, 0] for site in sites])
    if with_bias:
        return sites, weight, torch.stack([site.bias.detach() for site in sites])
    for site in sites:
        site.bias = None
    return sites, weight, None


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("gamma", [0.25, 0.0])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_convolution_follows_the_rules(
    length: int, width: int, gamma: float, with_bias: bool
) -> None:
    sites, weight, bias = convolutions(width, with_bias)
    act = Activation("silu")
    x = torch.randn(3, length, 6)
    x[torch.rand_like(x) < 0.2] = 0
    leaf = x.clone().requires_grad_()
    given: dict[nn.Module, rules.Rule] = {site: rules.Gamma(gamma) for site in sites}
    u, trace = traced(
        given | {act: rules.Identity()},
        lambda: act(torch.stack([site(leaf) for site in sites], dim=1)),
    )
    close(sequences.conv_silu(x, weight, bias, BOTH), u.detach())
    at_u = torch.randn_like(u)
    (expected,) = torch.autograd.grad(u, leaf, at_u)
    at_x, absorbed = sequences.conv_silu_relevance(at_u, x, weight, bias, BOTH, gamma)
    close(at_x, expected)
    close(absorbed, sum((a.share for a in trace.absorptions), torch.zeros(3)))
    assert len(trace.absorptions) == (2 if with_bias else 0)


@pytest.mark.parametrize("reverse", [(False,), (True,), (True, False), (False, False, True)])
def test_directions_are_free(reverse: tuple[bool, ...]) -> None:
    sites, weight, bias = convolutions(3, True, reverse)
    x = torch.randn(2, 5, 6, requires_grad=True)
    u = torch.nn.functional.silu(torch.stack([site(x) for site in sites], dim=1))
    close(sequences.conv_silu(x, weight, bias, reverse), u.detach())
    at_u = torch.randn_like(u)
    c = torch.stack([site(x) for site in sites], dim=1)
    (expected,) = torch.autograd.grad(c, x, at_u * torch.sigmoid(c.detach()))
    close(sequences.conv_silu_relevance(at_u, x, weight, bias, reverse, 0.0)[0], expected)


@pytest.mark.parametrize(
    ("bias", "slope"),
    [(1.0, 1.125 / 1.25), (-1.0, 1.125 / 1.25), (0.0, 1.0)],
    ids=["above", "below", "zero"],
)
def test_an_input_of_exactly_zero_counts_half_with_either_sign(bias: float, slope: float) -> None:
    # With x = 0 the output is the bias alone, and the rule's factor is 1 / 1.25 unless it is 0.
    for weight in (0.5, -0.5):
        at_x, absorbed = sequences.conv_silu_relevance(
            torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1), torch.full((1, 1, 1), weight),
            torch.full((1, 1), bias), (False,), 0.25,
        )  # fmt: skip
        sigmoid = torch.sigmoid(torch.tensor(bias))
        close(at_x, (weight * slope * sigmoid).view(1, 1, 1))
        close(absorbed, (bias * sigmoid).view(1))


def test_convolution_conserves_relevance() -> None:
    _, weight, bias = convolutions(4, True)
    x, at_u = torch.randn(3, 9, 6), torch.randn(3, 2, 9, 6)
    u = sequences.conv_silu(x, weight, bias, BOTH)
    for gamma in (0.0, 0.25, 3.0):
        at_x, absorbed = sequences.conv_silu_relevance(at_u, x, weight, bias, BOTH, gamma)
        close((x * at_x).flatten(1).sum(1) + absorbed, (u * at_u).flatten(1).sum(1))


@pytest.mark.parametrize("with_stream", [True, False])
def test_norm_follows_the_rules(with_stream: bool) -> None:
    norm = RMSNorm(6, eps=1e-3)
    nn.init.normal_(norm.weight)
    hidden, other = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    residual = other if with_stream else None
    leaf = (hidden + other if with_stream else hidden).clone().requires_grad_()
    out, _ = traced({norm: rules.ConstantNormaliser()}, lambda: norm(leaf))
    stream, normed, inverse = sequences.add_rms_norm(hidden, residual, norm.weight, 1e-3)
    close(stream, leaf.detach())
    close(normed, out.detach())
    close(inverse, 1 / (leaf.detach().square().mean(-1) + 1e-3).sqrt())
    assert stream.data_ptr() != hidden.data_ptr()
    at_normed = torch.randn_like(out)
    (through,) = torch.autograd.grad(out, leaf, at_normed)
    for stream, expected in ((None, through), (other, through + other)):
        for found in sequences.norm_relevance(at_normed, stream, norm.weight, inverse):
            close(found, expected)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (1.0, 0.0), (0.25, 0.75)])
def test_gate_follows_the_rules(shares: tuple[float, float]) -> None:
    act, gate = Activation("silu"), Gate()
    y, z = torch.randn(2, 3, 5, 6, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)
    out, _ = traced(
        {act: rules.Identity(), gate: rules.Share(*shares)}, lambda: gate(0.4 * y.sum(1), act(z))
    )
    gated, signal = sequences.gate(y, z, 0.4)
    close(gated, out.detach())
    close(signal, 0.4 * y.detach().sum(1))
    at_gated = torch.randn_like(gated)
    to_y, to_z = torch.autograd.grad(out, (y, z), at_gated, allow_unused=True)
    at_y, at_z = sequences.gate_relevance(at_gated, signal, z, *shares, 0.4)
    close(at_y.unsqueeze(1).expand(y.shape), to_y)
    close(at_z, torch.zeros_like(z) if to_z is None else to_z)


def test_step_is_the_site_s() -> None:
    low, weight, bias = 10 * torch.randn(2, 3, 5, 4), torch.randn(3, 6, 4), torch.randn(3, 6)
    raw = torch.einsum("bklr,ker->bkle", low, weight) + bias.unsqueeze(1)
    close(sequences.step(low, weight, bias), Step()(raw))


def test_no_gradient_is_recorded() -> None:
    raw = torch.randn(1, 1, 2, 3, requires_grad=True)
    assert not sequences.step(raw, torch.ones(1, 4, 3), torch.zeros(1, 4)).requires_grad
    assert not sequences.gate(raw, raw[:, 0], 1.0)[0].requires_grad


def calls() -> dict[str, dict[str, Any]]:
    """Arguments that fit, by operation."""
    x, y, weight, bias = (
        torch.ones(2, 5, 4),
        torch.ones(2, 2, 5, 4),
        torch.ones(4),
        torch.ones(2, 4),
    )
    taps = {"weight": torch.ones(2, 4, 3), "bias": bias, "reverse": BOTH}
    return {
        "add_rms_norm": {"hidden": x, "residual": x, "weight": weight, "eps": 1e-5},
        "norm_relevance": {
            "at_normed": x, "at_stream": x, "weight": weight, "inverse": torch.ones(2, 5)
        },
        "conv_silu": {"x": x, **taps},
        "conv_silu_relevance": {"at_u": y, "x": x, **taps, "gamma": 0.25, "out_x": None},
        "gate": {"y": y, "z": x, "scale": 0.5},
        "gate_relevance": {
            "at_gated": x, "signal": x, "z": x, "share_signal": 0.5, "share_gate": 0.5,
            "scale": 0.5, "out_z": None,
        },
        "step": {"low": y, "weight": torch.ones(2, 4, 4), "bias": bias},
    }  # fmt: skip


WRONG = [
    ("add_rms_norm", {"hidden": (5, 4)}, r"hidden has shape \(5, 4\); it must be \(B, L, D\)"),
    ("add_rms_norm", {"hidden": (2, 0, 4)}, "each but B at least 1"),
    ("add_rms_norm", {"residual": (2, 5, 3)}, r"residual has shape .* it must be \(2, 5, 4\)"),
    ("add_rms_norm", {"weight": (5,)}, r"weight has shape \(5,\); with hidden .* \(4,\)"),
    ("norm_relevance", {"at_normed": (4,)}, "at_normed has shape"),
    ("norm_relevance", {"at_stream": (2, 5, 3)}, "at_stream has shape"),
    ("norm_relevance", {"weight": (3,)}, "weight has shape"),
    ("norm_relevance", {"inverse": (2, 5, 1)}, r"inverse has shape .* must be \(2, 5\)"),
    ("conv_silu", {"x": (2, 2, 5, 4)}, r"x has shape \(2, 2, 5, 4\)"),
    ("conv_silu", {"weight": (2, 4)}, r"weight has shape \(2, 4\)"),
    ("conv_silu", {"weight": (2, 3, 3)}, r"must be \(K, 4, W\) with W from 1 to 8"),
    ("conv_silu", {"weight": (2, 4, 9)}, "with W from 1 to 8"),
    ("conv_silu", {"weight": (2, 4, 0)}, "with W from 1 to 8"),
    ("conv_silu", {"weight": (3, 4, 3)}, "2 flags in reverse and 3 directions in weight"),
    ("conv_silu", {"bias": (4,)}, r"bias has shape \(4,\); .* must be \(2, 4\)"),
    ("conv_silu_relevance", {"at_u": (2, 5, 4)}, r"at_u has shape .* must be \(2, 2, 5, 4\)"),
    ("conv_silu_relevance", {"out_x": (2, 5, 3)}, r"out_x has shape .* must be \(2, 5, 4\)"),
    ("gate", {"y": (2, 5, 4)}, r"y has shape \(2, 5, 4\); it must be \(B, K, L, E\)"),
    ("gate", {"y": (2, 0, 5, 4)}, "each but B at least 1"),
    ("gate", {"z": (2, 5, 3)}, r"z has shape \(2, 5, 3\); with y as given"),
    ("gate_relevance", {"at_gated": (4,)}, "at_gated has shape"),
    ("gate_relevance", {"signal": (2, 2, 5, 4)}, "signal has shape"),
    ("gate_relevance", {"z": (2, 5, 3)}, "z has shape"),
    ("gate_relevance", {"out_z": (5, 4)}, "out_z has shape"),
    ("step", {"low": (2, 5, 4)}, r"low has shape \(2, 5, 4\); it must be \(B, K, L, R\)"),
    ("step", {"weight": (2, 4)}, r"weight has shape \(2, 4\); it must be \(K, E, R\)"),
    ("step", {"weight": (2, 4, 3)}, r"weight has shape .* must be \(2, 4, 4\)"),
    ("step", {"bias": (4,)}, r"bias has shape \(4,\); with weight as given it must be \(2, 4\)"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG)
def test_shapes_are_refused(name: str, change: dict[str, tuple[int, ...]], message: str) -> None:
    changed = {key: torch.zeros(shape) for key, shape in change.items()}
    with pytest.raises(KernelError, match=message):
        getattr(sequences, name)(**calls()[name] | changed)


@pytest.mark.parametrize("name", sequences.__all__)
def test_types_devices_and_backends_are_refused(name: str) -> None:
    run, given = getattr(sequences, name), calls()[name]
    first, *_, last = [key for key, x in given.items() if isinstance(x, Tensor)]
    run(**given)
    with pytest.raises(KernelError, match=f"{last} has dtype torch.int64; give float64"):
        run(**given | {last: given[last].long()})
    with pytest.raises(KernelError, match=r"lies on .*move both to one device"):
        run(**given | {first: given[first].to("meta")})
    with pytest.raises(KernelError, match="no backend 'cpu'; choose out of 'auto', 'reference'"):
        run(**given, backend="cpu")
    with pytest.raises(KernelError, match="cannot take this call"):
        run(**given, backend="triton")


@pytest.mark.parametrize("gamma", [-0.1, float("inf"), float("nan")])
def test_gammas_are_refused(gamma: float) -> None:
    with pytest.raises(KernelError, match="give a finite number of 0 or more"):
        sequences.conv_silu_relevance(**calls()["conv_silu_relevance"] | {"gamma": gamma})


@pytest.mark.parametrize(
    ("name", "out"), [("conv_silu_relevance", "out_x"), ("gate_relevance", "out_z")]
)
def test_scattered_outputs_are_refused(name: str, out: str) -> None:
    scattered = torch.zeros(2, 4, 5).transpose(1, 2)
    with pytest.raises(KernelError, match=f"{out} has stride 5 along its last axis"):
        getattr(sequences, name)(**calls()[name] | {out: scattered})
