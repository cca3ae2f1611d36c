"""Each rule against its equation: explicit contributions summed in float64, without autograd."""

import math

import pytest
import torch
from helpers import random, relative_error, run_site, seeded

from vimlrp.errors import CompositeError
from vimlrp.kernels import ScanOrder
from vimlrp.rules import (
    ConstantFactors,
    ConstantNormaliser,
    Epsilon,
    Gamma,
    Gradient,
    Identity,
    Share,
    Zero,
)
from vimlrp.sites import Activation, CausalConv1d, Gate, Linear, PatchEmbedding, RMSNorm, Scan

EXACT = 1e-12


def dense_linear(site, shape):
    """The matrix of a linear layer on inputs of shape (L, D), (L * O, L * D)."""
    return torch.block_diag(*[site.weight.detach()] * shape[0])


def dense_causal(site, shape):
    """The matrix of a causal depthwise convolution on inputs of shape (L, D)."""
    length, dim = shape
    width = site.weight.shape[-1]
    matrix = torch.zeros(length, dim, length, dim, dtype=torch.float64)
    for t in range(length):
        for tap in range(width):
            back = width - 1 - tap
            source = t + back if site.reverse else t - back
            if 0 <= source < length:
                for d in range(dim):
                    matrix[t, d, source, d] = site.weight[d, 0, tap].detach()
    return matrix.reshape(length * dim, length * dim)


def dense_patches(site, shape):
    """The matrix of a patch embedding on images of shape (3, H, W)."""
    channels, height, width = shape
    dim, _, kernel, _ = site.weight.shape
    rows, columns = ((side - kernel) // site.stride + 1 for side in (height, width))
    matrix = torch.zeros(dim, rows, columns, channels, height, width, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            top, left = i * site.stride, j * site.stride
            matrix[:, i, j, :, top : top + kernel, left : left + kernel] = site.weight.detach()
    return matrix.reshape(dim * rows * columns, channels * height * width)


def explicit(matrix, bias, x, gradient, weigh):
    """Relevance sums: R_i = sum_k share_ki R_k with R_k = z_k gradient_k.

    `weigh` turns contributions (K, I) and pre-activations (K,) into weighed contributions and
    their denominators. Where z_k is 0 so is R_k, and the limit of LRP-0 is contribution times
    gradient.
    """
    contributions = torch.cat([matrix * x, bias[:, None]], dim=1)  # (K, I + 1)
    z = contributions.sum(1)
    weighed, denominator = weigh(contributions, z)
    scale = torch.where(z == 0, 1.0, z / torch.where(z == 0, 1.0, denominator))
    weighed = torch.where(z[:, None] == 0, contributions, weighed)
    shares = (weighed * (scale * gradient)[:, None]).sum(0)
    return shares[:-1], shares[-1]


def weigh_zero(contributions, z):
    return contributions, z


def weigh_gamma(gamma):
    def weigh(contributions, z):
        positive, negative = contributions.clamp(min=0), contributions.clamp(max=0)
        winning = torch.where((z > 0)[:, None], positive, negative)
        weighed = contributions + gamma * winning
        return weighed, weighed.sum(1)

    return weigh


def sign_of(z):
    return torch.where(z < 0, -1.0, 1.0).double()


def weigh_epsilon(epsilon):
    def weigh(contributions, z):
        return contributions, z + epsilon * sign_of(z)

    return weigh


def linear_site():
    return Linear(5, 4).double()


AFFINE = {
    "linear": (linear_site, dense_linear, (3, 5)),
    "causal": (lambda: CausalConv1d(4, 3).double(), dense_causal, (6, 4)),
    "causal reverse": (lambda: CausalConv1d(4, 3, reverse=True).double(), dense_causal, (6, 4)),
    "causal, sequence shorter than the window": (
        lambda: CausalConv1d(2, 4).double(),
        dense_causal,
        (2, 2),
    ),
    "patches": (lambda: PatchEmbedding(3, 4, 3, 3).double(), dense_patches, (3, 6, 9)),
    "overlapping patches": (lambda: PatchEmbedding(3, 4, 4, 2).double(), dense_patches, (3, 8, 6)),
    "patches that leave a border": (
        lambda: PatchEmbedding(3, 4, 4, 3).double(),
        dense_patches,
        (3, 9, 11),
    ),
}

AFFINE_RULES = {
    "zero": (Zero(), weigh_zero),
    "gamma": (Gamma(0.25), weigh_gamma(0.25)),
    "large gamma": (Gamma(100.0), weigh_gamma(100.0)),
    "epsilon": (Epsilon(0.1), weigh_epsilon(0.1)),
}


def site_with_bias(make):
    site = make()
    with torch.no_grad():
        site.bias.copy_(random(*site.bias.shape, seed=5))
    return site


def spread(site, rule, x, gradient, bias):
    """Relevance of the input under an affine rule, the patch embedding's included."""
    leaf = x.clone().requires_grad_()
    shift = site.broadcast(site.bias.detach()) if bias else None
    out = rule.spread(site, leaf, site.weight.detach(), shift)
    (at_input,) = torch.autograd.grad(out, leaf, gradient)
    return out.detach(), x * at_input


def site_case(name, *, batch=2, bias=True):
    """A site, its dense matrix and bias, inputs with zeros in them, a gradient at the output."""
    make, dense, shape = AFFINE[name]
    with seeded():
        site = site_with_bias(make)
    x = random(batch, *shape, seed=1)
    x[:, ..., 0] = 0
    matrix = dense(site, shape)
    with torch.no_grad():
        like = site.linear(x, site.weight)
    shift = site.broadcast(site.bias.detach()).expand(like.shape[1:]).flatten()
    shift = shift if bias else torch.zeros_like(shift)
    return site, matrix, shift, x, random(*like.shape, seed=2)


@pytest.mark.parametrize("rule_name", AFFINE_RULES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_rules_are_explicit_relevance_sums(name, rule_name, bias):
    site, matrix, shift, x, gradient = site_case(name, bias=bias)
    rule, weigh = AFFINE_RULES[rule_name]
    out, relevance = spread(site, rule, x, gradient, bias)
    for sample, (picture, at_output) in enumerate(zip(x, gradient, strict=True)):
        expected, _ = explicit(matrix, shift, picture.flatten(), at_output.flatten(), weigh)
        assert relative_error(relevance[sample].flatten(), expected) < EXACT
        z = matrix @ picture.flatten() + shift
        assert relative_error(out[sample].flatten(), z) < EXACT


@pytest.mark.parametrize("rule_name", ["zero", "gamma", "epsilon"])
@pytest.mark.parametrize("name", ["linear", "causal", "causal reverse"])
def test_bias_share_is_its_contribution(name, rule_name):
    site, matrix, shift, x, gradient = site_case(name)
    rule, weigh = AFFINE_RULES[rule_name]
    _, _, absorbed = run_site(site, rule, x, gradient=gradient)
    for sample, (row, at_output) in enumerate(zip(x, gradient, strict=True)):
        _, expected = explicit(matrix, shift, row.flatten(), at_output.flatten(), weigh)
        assert float(absorbed[f"bias: {site.kind}"][sample]) == pytest.approx(
            float(expected), rel=1e-10
        )


@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Gamma(3.0), Epsilon(0.1)], ids=str)
@pytest.mark.parametrize("name", ["linear", "causal", "causal reverse"])
def test_affine_rules_conserve_with_what_they_absorb(name, rule):
    site, _, _, x, gradient = site_case(name)
    out, (at_input,), absorbed = run_site(site, rule, x, gradient=gradient)
    received = (out * gradient).flatten(1).sum(1)
    passed = (x * at_input).flatten(1).sum(1) + sum(absorbed.values())
    assert relative_error(passed, received) < EXACT


def test_epsilon_says_what_its_stabiliser_absorbs():
    site, matrix, shift, x, gradient = site_case("linear")
    _, _, absorbed = run_site(site, Epsilon(0.5), x, gradient=gradient)
    for sample, (row, at_output) in enumerate(zip(x, gradient, strict=True)):
        z = matrix @ row.flatten() + shift
        relevance = z * at_output.flatten()
        stabiliser = 0.5 * sign_of(z)
        expected = (relevance * stabiliser / (z + stabiliser)).sum()
        assert float(absorbed["stabiliser"][sample]) == pytest.approx(float(expected), rel=1e-10)


def test_epsilon_keeps_relevance_bounded_near_zero():
    site = Linear(2, 1, bias=False).double()
    with torch.no_grad():
        site.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[1.0, 1.0 - 1e-9]], dtype=torch.float64)
    relevance_at_output = 1.0
    z = float(x @ site.weight.detach()[0])
    gradient = torch.tensor([[relevance_at_output / z]], dtype=torch.float64)
    _, (at_input,), _ = run_site(site, Epsilon(1e-3), x, gradient=gradient)
    assert (x * at_input).abs().max() < 1001


@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Epsilon(1e-6)], ids=str)
def test_zero_preactivations_give_no_nan_and_keep_the_sum(rule):
    site = Linear(2, 4).double()
    with torch.no_grad():
        # A cancellation, a dead row, one against the bias, and an ordinary row.
        site.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [2.0, -1.0]]))
        site.bias.copy_(torch.tensor([0.0, 0.0, -4.0, 0.5]))
    x = torch.full((1, 2), 2.0, dtype=torch.float64)
    gradient = random(1, 4)
    out, (at_input,), absorbed = run_site(site, rule, x, gradient=gradient)
    assert out[0, :3].tolist() == [0, 0, 0]
    assert at_input.isfinite().all()
    passed = float((x * at_input).sum()) + sum(float(share) for share in absorbed.values())
    assert passed == pytest.approx(float((out * gradient).sum()), rel=1e-12)


def test_gamma_is_lrp_0_where_the_preactivation_is_exactly_zero():
    site = Linear(2, 1, bias=False).double()
    with torch.no_grad():
        site.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.ones(1, 2, dtype=torch.float64)
    _, (at_input,), _ = run_site(site, Gamma(0.25), x, gradient=torch.ones(1, 1).double())
    assert at_input.tolist() == [[1.0, -1.0]]


def test_gamma_favours_the_sign_of_the_preactivation():
    site = Linear(2, 2, bias=False).double()
    with torch.no_grad():
        site.weight.copy_(torch.tensor([[3.0, -1.0], [1.0, -3.0]]))
    x = torch.ones(1, 2, dtype=torch.float64)
    # z = (2, -2); by hand with gamma 1: shares (6, -1)/5 of R and (1, -6)/-5 of R.
    for gradient, expected in [([1.0, 0.0], [12 / 5, -2 / 5]), ([0.0, 1.0], [2 / 5, -12 / 5])]:
        at_output = torch.tensor([gradient], dtype=torch.float64)
        _, (at_input,), _ = run_site(site, Gamma(1.0), x, gradient=at_output)
        assert at_input[0].tolist() == pytest.approx(expected, rel=1e-14)


def test_gamma_zero_is_lrp_0():
    site, _, _, x, gradient = site_case("causal")
    _, (zero,), _ = run_site(site, Zero(), x, gradient=gradient)
    _, (gamma,), _ = run_site(site, Gamma(0.0), x, gradient=gradient)
    assert relative_error(gamma, zero) < EXACT


def test_gamma_never_divides_by_less_than_the_preactivation():
    site, _, _, x, _ = site_case("linear")
    matrix = site.weight.detach()
    z = (x @ matrix.T + site.bias.detach()).flatten()
    contributions = torch.cat(
        [(x[:, :, None] * matrix).flatten(0, 2), site.bias.detach().repeat(6)[:, None]], dim=1
    )
    _, denominator = weigh_gamma(0.25)(contributions, z)
    assert (denominator.abs() >= z.abs()).all()


ACTIVATIONS = {
    "silu": lambda x: 1 / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * math.erfc(-x / math.sqrt(2)),
    "relu": lambda x: float(x > 0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_identity_rule_passes_relevance_unchanged(name):
    x = random(2, 40, seed=3)
    x[0, :3] = torch.tensor([0.0, -30.0, 30.0])
    gradient = random(2, 40, seed=4)
    site = Activation(name)
    out, (at_input,), _ = run_site(site, Identity(), x, gradient=gradient)
    ratio = torch.tensor([[ACTIVATIONS[name](v) for v in row] for row in x.tolist()]).double()
    assert torch.equal(out, site.plain(x))
    assert relative_error(x * at_input, out * gradient) < EXACT
    assert relative_error(at_input, ratio * gradient) < 1e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "slope"), [("silu", 0.5), ("gelu", 0.5), ("relu", 0.0)])
def test_identity_rule_takes_the_slope_at_zero(name, slope, dtype):
    x = torch.tensor([[0.0, -0.0]], dtype=dtype)
    gradient = torch.tensor([[3.0, 5.0]], dtype=dtype)
    out, (at_input,), _ = run_site(Activation(name), Identity(), x, gradient=gradient)
    assert out.abs().max() == 0
    assert at_input.tolist() == [[3 * slope, 5 * slope]]
    assert at_input.dtype == dtype


@pytest.mark.parametrize(("signal", "gate"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.25, 0.75)])
def test_gate_shares_the_relevance_of_its_product(signal, gate):
    a, b, gradient = random(2, 7), random(2, 7, seed=1), random(2, 7, seed=2)
    a[0, 0], b[0, 1] = 0, 0
    out, (to_a, to_b), _ = run_site(Gate(), Share(signal, gate), a, b, gradient=gradient)
    relevance = a * b * gradient
    assert torch.equal(out, a * b)
    for share, x, at_input in [(signal, a, to_a), (gate, b, to_b)]:
        given = torch.zeros_like(x) if at_input is None else x * at_input
        assert torch.allclose(given, share * relevance, rtol=1e-13, atol=0)


def test_a_gate_factor_that_is_zero_starves_neither_side_of_its_gradient():
    a, b = torch.tensor([[0.0]]), torch.tensor([[4.0]])
    _, (to_a, to_b), _ = run_site(Gate(), Share(), a, b, gradient=torch.ones(1, 1))
    assert (float(to_a), float(to_b)) == (2.0, 0.0)


def test_plain_gradient_doubles_relevance_at_a_gate():
    a, b, gradient = random(2, 7), random(2, 7, seed=1), random(2, 7, seed=2)
    out, (to_a, to_b), _ = run_site(Gate(), Gradient(), a, b, gradient=gradient)
    assert relative_error(a * to_a + b * to_b, 2 * out * gradient) < EXACT


def norm_site():
    site = RMSNorm(6, eps=0.3).double()
    with torch.no_grad():
        site.weight.copy_(random(6, seed=9))
    return site


def test_norm_rule_is_a_fixed_diagonal_map():
    site, x, gradient = norm_site(), random(2, 3, 6), random(2, 3, 6, seed=1)
    out, (at_input,), _ = run_site(site, ConstantNormaliser(), x, gradient=gradient)
    scale = site.weight.detach() / (x.square().mean(-1, keepdim=True) + 0.3).sqrt()
    assert relative_error(out, scale * x) < EXACT
    assert relative_error(at_input, scale * gradient) < EXACT
    assert torch.equal(out, site.plain(x).detach())


def test_norm_of_zeros_is_finite():
    x = torch.zeros(1, 2, 6, dtype=torch.float64)
    out, (at_input,), _ = run_site(
        norm_site(), ConstantNormaliser(), x, gradient=torch.ones(1, 2, 6).double()
    )
    assert out.abs().max() == 0
    assert at_input.isfinite().all()


def test_plain_gradient_of_a_norm_loses_relevance():
    site, x, gradient = norm_site(), random(2, 3, 6), random(2, 3, 6, seed=1)
    out, (at_input,), _ = run_site(site, Gradient(), x, gradient=gradient)
    assert relative_error((x * at_input).sum(-1), (out * gradient).sum(-1)) > 0.1


def scan_inputs(batch=2, length=5, dim=3, states=2):
    u = random(batch, 2, length, dim)
    dt = random(batch, 2, length, dim, seed=1).exp()
    A = -random(2, dim, states, seed=2).exp()
    B, C = random(batch, 2, length, states, seed=3), random(batch, 2, length, states, seed=4)
    return u, dt, A, B, C, random(2, dim, seed=5)


def explicit_scan(u, dt, A, B, C, D, gradient):
    """One direction of one sample: outputs (L, D), and input relevances by the z-rule."""
    length, dim = u.shape
    states = A.shape[-1]
    h = torch.zeros(length, dim, states, dtype=torch.float64)
    kept, driven = torch.zeros_like(h), torch.zeros_like(h)
    y = torch.zeros_like(u)
    for t in range(length):
        if t:
            kept[t] = torch.exp(dt[t][:, None] * A) * h[t - 1]
        driven[t] = dt[t][:, None] * B[t] * u[t][:, None]
        h[t] = kept[t] + driven[t]
        y[t] = (C[t] * h[t]).sum(-1) + D * u[t]
    relevance = torch.zeros_like(u)
    carried = torch.zeros(dim, states, dtype=torch.float64)
    for t in reversed(range(length)):
        received = (y[t] * gradient[t]) / y[t]
        at_state = carried + C[t] * h[t] * received[:, None]
        relevance[t] = D * u[t] * received + (driven[t] / h[t] * at_state).sum(-1)
        carried = kept[t] / h[t] * at_state
    return y, relevance


def test_scan_rule_is_the_z_rule_through_fixed_factors():
    inputs = scan_inputs()
    u, dt, A, B, C, D = inputs
    gradient = random(*u.shape, seed=6)
    site = Scan(ScanOrder.bidirectional())
    out, (at_u, *others), _ = run_site(site, ConstantFactors(), *inputs, gradient=gradient)
    assert others == [None] * 5
    for sample in range(len(u)):
        for k in range(2):
            turn = (lambda x: x.flip(0)) if k else (lambda x: x)
            row = [turn(x[sample, k]) for x in (u, dt)] + [A[k]]
            row += [turn(x[sample, k]) for x in (B, C)] + [D[k]]
            y, relevance = explicit_scan(*row, turn(gradient[sample, k]))
            assert relative_error(out[sample, k], turn(y)) < EXACT
            ours = u[sample, k] * at_u[sample, k]
            assert relative_error(ours, turn(relevance)) < 1e-10


@pytest.mark.parametrize(
    "constants", [(), ("A",), ("B",), ("C",), ("A", "B"), ("A", "C"), ("B", "C")]
)
def test_scan_holds_constant_what_the_rule_names(constants):
    inputs = scan_inputs()
    gradient = random(*inputs[0].shape, seed=6)
    site = Scan(ScanOrder.bidirectional())
    _, gradients, _ = run_site(site, ConstantFactors(constants), *inputs, gradient=gradient)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(
        detached_scan(*leaves, constants), leaves, gradient, allow_unused=True
    )
    for name, ours, theirs in zip(["u", "dt", "A", "B", "C"], gradients, expected, strict=False):
        if theirs is None or not theirs.any():
            assert ours is None or not ours.any(), name
        else:
            assert relative_error(ours, theirs) < 1e-10, name


def detached_scan(u, dt, A, B, C, D, constants):
    """Both directions by plain autograd, with the named factors detached."""
    outputs = []
    for k in range(2):
        turn = (lambda x: x.flip(1)) if k else (lambda x: x)
        x, step, b, c = (turn(v[:, k]) for v in (u, dt, B, C))
        h, ys = 0, []
        for t in range(x.shape[1]):
            decay = torch.exp(step[:, t, :, None] * A[k])
            drive = step[:, t, :, None] * b[:, t, None]
            out = c[:, t, None]
            decay, drive, out = (
                v.detach() if name in constants else v
                for name, v in zip("ABC", (decay, drive, out), strict=True)
            )
            h = decay * h + drive * x[:, t, :, None]
            ys.append((out * h).sum(-1) + D[k].detach() * x[:, t])
        outputs.append(turn(torch.stack(ys, dim=1)))
    return torch.stack(outputs, dim=1)


HALF = 3e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Epsilon(1e-3)], ids=str)
@pytest.mark.parametrize("name", ["linear", "causal", "causal reverse"])
def test_affine_rules_hold_in_half_precision(name, rule, dtype):
    site, _, _, x, gradient = site_case(name)
    site, x, gradient = site.to(dtype), x.to(dtype), gradient.to(dtype)
    _, (half,), _ = run_site(site, rule, x, gradient=gradient)
    _, (full,), _ = run_site(site.float(), rule, x.float(), gradient=gradient.float())
    assert half.dtype == dtype
    assert relative_error(half, full) < HALF


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("site", "rule", "count"),
    [
        (Activation("silu"), Identity(), 1),
        (Activation("gelu"), Identity(), 1),
        (Gate(), Share(), 2),
    ],
    ids=["silu", "gelu", "gate"],
)
def test_elementwise_rules_hold_in_half_precision(site, rule, count, dtype):
    inputs = [random(4, 50, seed=i).to(dtype) for i in range(count)]
    gradient = random(4, 50, seed=7).to(dtype)
    _, half, _ = run_site(site, rule, *inputs, gradient=gradient)
    _, full, _ = run_site(site, rule, *(x.float() for x in inputs), gradient=gradient.float())
    for ours, theirs in zip(half, full, strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < HALF


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Epsilon(0.1)], ids=str)
@pytest.mark.parametrize("name", ["linear", "causal", "causal reverse"])
def test_affine_rules_leave_the_value_alone(name, rule, dtype):
    site, _, _, x, gradient = site_case(name)
    site, x, gradient = site.to(dtype), x.to(dtype), gradient.to(dtype)
    out, _, _ = run_site(site, rule, x, gradient=gradient)
    assert relative_error(out, site.plain(x)) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Epsilon, 0.0),
        (Epsilon, -1e-6),
        (Epsilon, math.nan),
        (Gamma, -0.25),
        (Gamma, math.inf),
        (Gamma, math.nan),
        (ConstantFactors, ("A", "dt")),
        (ConstantFactors, ("u",)),
    ],
)
def test_rules_refuse_arguments_under_which_they_would_break(rule, value):
    with pytest.raises(CompositeError, match=rule.__name__):
        rule(value)
