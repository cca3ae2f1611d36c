"""The sites of models on maps against dense sums over windows, in float64 and without autograd."""

import math

import pytest
import torch
from helpers import images, random, relative_error, run_site, seeded

import vimlrp
from vimlrp.errors import KernelError
from vimlrp.input_rules import Box, Flat
from vimlrp.kernels import ScanOrder, compiled, products, selective_scan
from vimlrp.models import VMamba
from vimlrp.rules import (
    ConstantFactors,
    ConstantNormaliser,
    Epsilon,
    Gamma,
    Gradient,
    Identity,
    Zero,
)
from vimlrp.sites import Activation, Conv2d, LayerNorm, PatchEmbedding, Scan, Step
from vimlrp.tracing import Trace, tracing

EXACT = 1e-12


def windows(image, weight, stride, padding, groups):
    """Contributions of (H, W, C) to every output, {(i, j, d): {(y, x, c): value}}."""
    height, width, _ = image.shape
    outputs, inputs, kernel, _ = weight.shape
    found = {}
    for i in range((height + 2 * padding - kernel) // stride + 1):
        for j in range((width + 2 * padding - kernel) // stride + 1):
            for d in range(outputs):
                first = d // (outputs // groups) * inputs
                found[i, j, d] = {
                    (y, x, first + c): float(image[y, x, first + c] * weight[d, c, a, b])
                    for a in range(kernel)
                    for b in range(kernel)
                    for c in range(inputs)
                    if 0 <= (y := i * stride - padding + a) < height
                    and 0 <= (x := j * stride - padding + b) < width
                }
    return found


def shares_of(parts, bias, rule):
    """What part of its relevance an output gives to each contribution, and to its bias."""
    z = sum(parts.values()) + bias
    weighed = {**parts, "bias": bias}
    if isinstance(rule, Gamma):
        weighed = {k: v * (1 + rule.gamma * (v * z > 0)) for k, v in weighed.items()}
    total = sum(weighed.values())
    if isinstance(rule, Epsilon):
        total += math.copysign(rule.epsilon, z)
    return z, {k: v / total for k, v in weighed.items()}


CONVOLUTIONS = {
    "depthwise": {"in_chans": 3, "out_chans": 3, "kernel": 3, "padding": 1, "groups": 3},
    "strided": {"in_chans": 2, "out_chans": 4, "kernel": 3, "stride": 2, "padding": 1},
    "no padding": {"in_chans": 2, "out_chans": 3, "kernel": 2, "stride": 2, "bias": False},
    "grouped": {"in_chans": 4, "out_chans": 6, "kernel": 3, "padding": 1, "groups": 2},
}


@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Epsilon(0.1)], ids=str)
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_of_a_map_is_an_explicit_relevance_sum(name, size, rule):
    with seeded():
        site = Conv2d(**CONVOLUTIONS[name]).double()
    x = random(1, *size, CONVOLUTIONS[name]["in_chans"], seed=1)
    gradient = random(*site(x).shape, seed=2)
    out, (at_input,), absorbed = run_site(site, rule, x, gradient=gradient)
    expected, bias_share = torch.zeros_like(x), 0.0
    found = windows(x[0], site.weight.detach(), site.stride, site.padding, site.groups)
    assert len(found) == out.numel()
    for (i, j, d), parts in found.items():
        bias = 0.0 if site.bias is None else float(site.bias.detach()[d])
        z, shares = shares_of(parts, bias, rule)
        assert float(out[0, i, j, d]) == pytest.approx(z, rel=1e-10, abs=1e-12)
        relevance = z * float(gradient[0, i, j, d])
        bias_share += shares.pop("bias") * relevance
        for place, share in shares.items():
            expected[(0, *place)] += share * relevance
    assert relative_error(x * at_input, expected) < EXACT
    if site.bias is not None:
        assert float(absorbed["bias: convolution"]) == pytest.approx(bias_share, rel=1e-9)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_of_a_map_is_pytorchs(name):
    options = dict(CONVOLUTIONS[name])
    site = Conv2d(**options)
    theirs = torch.nn.Conv2d(
        options.pop("in_chans"), options.pop("out_chans"), options.pop("kernel"), **options
    )
    site.load_state_dict(theirs.state_dict(), strict=True)
    x = random(2, 7, 6, CONVOLUTIONS[name]["in_chans"], dtype=torch.float32)
    expected = theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert relative_error(site(x), expected) < 1e-6


SMALL_MAPS = {
    "strided": {"kernel": 3, "stride": 2, "padding": 1},
    "same": {"kernel": 3, "padding": 1, "bias": False},
    "no padding": {"kernel": 2, "stride": 2},
    "one by one": {"kernel": 1},
    "one by one, strided and padded": {"kernel": 1, "stride": 2, "padding": 1},
}


@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Epsilon(0.1)], ids=str)
@pytest.mark.parametrize("name", SMALL_MAPS)
def test_windows_side_by_side_are_the_convolution(monkeypatch, name, rule):
    # A map with fewer windows than the layer has outputs; in float32, where that is faster.
    monkeypatch.setattr(products, "_SMALL", 0)
    with seeded():
        site = Conv2d(6, 41, **SMALL_MAPS[name])
    x = random(2, 5, 4, 6, dtype=torch.float32)
    rows = site.rows(x, site.weight.detach())
    side = SMALL_MAPS[name]["kernel"]
    arranged = side > 1 and products.is_fast(x, site.weight)
    assert rows.shape == (*site(x).shape[:3], 6 * side**2) if arranged else rows is x
    gradient = random(*site(x).shape, seed=2, dtype=torch.float32)
    out, (at_input,), absorbed = run_site(site, rule, x, gradient=gradient)
    wide = run_site(site.double(), rule, x.double(), gradient=gradient.double())
    assert relative_error(out, wide[0]) < 1e-6
    assert relative_error(at_input, wide[1][0]) < 1e-5
    for kind, share in wide[2].items():
        assert relative_error(absorbed[kind], share) < 1e-4, kind


@pytest.mark.parametrize(
    "rule", [Zero(), Gamma(0.25), Flat(), Box()], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_patches_that_reach_over_the_border(rule, size):
    with seeded():
        site = PatchEmbedding(3, 4, 3, 2, padding=1).double()
    x = random(1, 3, *size, seed=1).clamp(-1.5, 1.5)
    with torch.no_grad():
        content = site.linear(x, site.weight)
    gradient = random(*content.shape, seed=2)
    low, high = Box().low, Box().high
    expected = torch.zeros_like(x)
    found = windows(x[0].permute(1, 2, 0), site.weight.detach(), 2, 1, 1)
    weight = site.weight.detach()
    for (i, j, d), parts in found.items():
        relevance = float(content[0, d, i, j] * gradient[0, d, i, j])
        if isinstance(rule, Flat):
            shares = dict.fromkeys(parts, 1 / len(parts))
        elif isinstance(rule, Box):
            bounded = {}
            for (y, column, c), value in parts.items():
                w = float(weight[d, c, y - 2 * i + 1, column - 2 * j + 1])
                bounded[y, column, c] = value - low[c] * max(w, 0) - high[c] * min(w, 0)
            shares = {k: v / sum(bounded.values()) for k, v in bounded.items()}
        else:
            _, shares = shares_of(parts, 0.0, rule)
            shares.pop("bias")
        for (y, column, c), share in shares.items():
            expected[0, c, y, column] += share * relevance
    assert relative_error(rule.relevance(site, x, gradient), expected) < EXACT


@pytest.mark.parametrize("size", [(32, 40), (30, 36), (33, 35)])
def test_patches_of_a_stem_are_sums_over_its_first_outputs(size):
    with seeded():
        model = VMamba(dim=8, depths=(1,), num_classes=3).double().eval()
    x = images(2, 64)[:, :, : size[0], : size[1]]
    relevance = vimlrp.explain(model, x, record=["patch_embed.0"])
    content = relevance.recorded["patch_embed.0"].relevance.sum(1)  # with the bias, which is 0
    rows, columns = (math.ceil(side / 4) for side in size)
    assert relevance.patches.shape == (2, rows, columns)
    for i in range(rows):
        for j in range(columns):
            cell = content[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum((1, 2))
            assert relative_error(relevance.patches[:, i, j], cell) < 1e-9
    assert relative_error(relevance.pixels.sum((1, 2)), relevance.patches.sum((1, 2))) < 1e-9


def norm_site(dim=6):
    site = LayerNorm(dim, eps=1e-3).double()
    with torch.no_grad():
        site.weight.copy_(random(dim, seed=5))
        site.bias.copy_(random(dim, seed=6))
    return site


def test_layer_norm_holds_its_divisor_and_keeps_its_centring():
    site, x, gradient = norm_site(), random(2, 3, 6, seed=1) + 0.7, random(2, 3, 6, seed=2)
    out, (at_input,), absorbed = run_site(site, ConstantNormaliser(), x, gradient=gradient)
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    weight, bias = site.weight.detach(), site.bias.detach()
    for b in range(2):
        taken = 0.0
        for t in range(3):
            row = x[b, t]
            sigma = math.sqrt(sum(float(v - row.mean()) ** 2 for v in row) / 6 + 1e-3)
            matrix = torch.diag(weight) @ centring / sigma
            assert relative_error(out[b, t], matrix @ row + bias) < EXACT
            assert relative_error(at_input[b, t], matrix.T @ gradient[b, t]) < EXACT
            taken += float(bias @ gradient[b, t])
        assert float(absorbed["bias: normalisation"][b]) == pytest.approx(taken, rel=1e-12)
    received = (out * gradient).flatten(1).sum(1)
    passed = (x * at_input).flatten(1).sum(1) + absorbed["bias: normalisation"]
    assert relative_error(passed, received) < EXACT


def test_layer_norm_under_the_plain_gradient_has_its_derivative_and_account():
    site, x, gradient = norm_site(), random(2, 3, 6, seed=1), random(2, 3, 6, seed=2)
    out, (at_input,), absorbed = run_site(site, Gradient(), x, gradient=gradient)
    step = 1e-6
    for index in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        up, down = x.clone(), x.clone()
        up[tuple(index)] += step
        down[tuple(index)] -= step
        with torch.no_grad():
            slope = ((site(up) - site(down)) * gradient).sum() / (2 * step)
        assert float(at_input[tuple(index)]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)
    assert relative_error(out, site(x)) < EXACT
    assert (
        relative_error(absorbed["bias: normalisation"], (site.bias * gradient).sum((1, 2))) < EXACT
    )


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)]
)
@pytest.mark.parametrize("rule", [ConstantNormaliser(), Gradient()], ids=str)
def test_layer_norm_in_other_types_and_on_a_strided_map(rule, dtype, bound):
    site = norm_site()
    wide, gradient = random(2, 6, 5, 4, seed=1).permute(0, 2, 3, 1), random(2, 5, 4, 6, seed=2)
    out, (at_input,), _ = run_site(site, rule, wide, gradient=gradient)
    narrow = run_site(site.to(dtype), rule, wide.to(dtype), gradient=gradient.to(dtype))
    assert (narrow[0].dtype, narrow[1][0].dtype) == (dtype, dtype)
    assert narrow[2]["bias: normalisation"].dtype == torch.float32
    assert relative_error(narrow[0], out) < bound
    assert relative_error(narrow[1][0], at_input) < bound


def test_layer_norm_of_a_narrower_input_than_its_weights():
    site, x, gradient = norm_site().float(), random(2, 3, 6, seed=1), random(2, 3, 6, seed=2)
    x, gradient = x.bfloat16(), gradient.float()
    out, (at_input,), _ = run_site(site, ConstantNormaliser(), x, gradient=gradient)
    wide, (at_wide,), _ = run_site(site, ConstantNormaliser(), x.float(), gradient=gradient)
    assert (out.dtype, at_input.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(out, wide)
    assert relative_error(at_input, at_wide) < 1e-2


def test_gelu_by_tanh_passes_relevance_unchanged():
    x, gradient, site = random(2, 40, seed=3) * 3, random(2, 40, seed=4), Activation("gelu_tanh")
    x[0, :3] = torch.tensor([0.0, -30.0, 30.0])
    out, (at_input,), _ = run_site(site, Identity(), x, gradient=gradient)
    inner = [[math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in row] for row in x.tolist()]
    ratio = torch.tensor([[(1 + math.tanh(v)) / 2 for v in row] for row in inner]).double()
    assert relative_error(at_input, ratio * gradient) < 1e-7
    assert relative_error(out, x * ratio) < 1e-7
    assert float(at_input[0, 0]) == 0.5 * float(gradient[0, 0])
    assert relative_error(out, torch.nn.functional.gelu(x)) > 1e-6


def test_step_adds_a_bias_and_says_what_it_takes():
    x, bias, gradient = random(2, 4, 3, 5), random(4, 1, 5, seed=1), random(2, 4, 3, 5, seed=2)
    leaf = x.clone().requires_grad_()
    trace = Trace({(site := Step()): Gradient()})
    with tracing(trace):
        out = site(leaf, bias)
    (at_input,) = torch.autograd.grad(out, leaf, gradient)
    z = x + bias
    assert relative_error(out, torch.log1p(torch.exp(z))) < EXACT
    assert relative_error(at_input, gradient / (1 + torch.exp(-z))) < EXACT
    (absorption,) = trace.absorptions
    assert absorption.kind == "bias: step"
    assert relative_error(absorption.share, (bias * at_input).sum((1, 2, 3))) < EXACT
    assert torch.equal(site(x, bias), out)
    assert torch.equal(site(x + bias), out)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (7,), (3, 1), (1, 2, 40, 33)])
def test_step_is_the_same_whoever_computes_it(shape, monkeypatch):
    x = random(*shape, seed=1, dtype=torch.float32) * 12
    x.view(-1)[:3] = torch.tensor([-87.0, 0.0, 60.0])
    expected = torch.log1p(torch.exp(x.double()))
    for backend in ("native", "cpu"):
        monkeypatch.setenv("VIMLRP_BACKEND", backend)
        if backend == "native" and not compiled.status()[0]:
            continue
        with torch.no_grad():
            out = Step()(x)
        assert out.dtype == torch.float32
        assert ((out - expected) / expected).abs().max() < 1e-6, backend
    assert Step()(x.clone().requires_grad_()).requires_grad


def scan_arguments(length):
    def positive(*shape, seed):
        return random(*shape, seed=seed).abs()

    return (
        random(2, length, 3),
        positive(2, 4, length, 3, seed=1),
        -positive(4, 3, 2, seed=2),
        random(2, 4, length, 2, seed=3),
        random(2, 4, length, 2, seed=4),
        random(4, 3, seed=5),
    )


def test_scan_takes_its_order_with_the_call():
    site, order, arguments = Scan(), ScanOrder.cross(2, 3), scan_arguments(6)
    expected = selective_scan(*arguments, order=order)
    assert torch.equal(site(*arguments, order), expected)
    assert torch.equal(Scan(order)(*arguments), expected)
    other = ScanOrder.cross(3, 2)
    assert relative_error(Scan(other)(*arguments, order), expected) == 0
    assert relative_error(Scan(other)(*arguments), expected) > 1e-3
    with tracing(Trace({site: ConstantFactors()})):
        assert relative_error(site(*arguments, order), expected) < EXACT


def test_scan_without_any_order_says_so():
    with pytest.raises(KernelError, match="no order of its own: give one"):
        Scan()(*scan_arguments(6))
