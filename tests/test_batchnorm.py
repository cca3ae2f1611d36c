"""Batch normalisation is torch's, and a fixed affine map with its shift in the account."""

import pytest
import torch
from helpers import random, relative_error, run_site
from torch import nn

from vimlrp.rules import Epsilon, Gamma, Zero
from vimlrp.sites import BatchNorm2d

EXACT = 1e-12


def pair(eps=1e-4, momentum=0.3, dtype=torch.float64):
    """Ours and torch's, with the same weights and statistics."""
    theirs = nn.BatchNorm2d(5, eps, momentum).to(dtype)
    with torch.no_grad():
        theirs.weight.copy_(random(5, seed=1))
        theirs.bias.copy_(random(5, seed=2))
        theirs.running_mean.copy_(3 * random(5, seed=3))
        theirs.running_var.copy_(random(5, seed=4).exp())
    ours = BatchNorm2d(5, eps, momentum).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def last(x):
    """(B, C, H, W) with the channels last."""
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchs_batch_norm(training):
    ours, theirs = (norm.train(training) for norm in pair())
    x = random(3, 5, 4, 6).requires_grad_()
    for _ in range(2):
        assert relative_error(ours(last(x)), last(theirs(x))) < EXACT
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=0)
    gradients = []
    for norm, y in ((ours, ours(last(x))), (theirs, last(theirs(x)))):
        gradients.append(torch.autograd.grad(y.square().sum(), [x, *norm.parameters()]))
    for mine, yours in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-10)


def test_evaluation_leaves_the_statistics_alone():
    ours = pair()[0].eval()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours(random(2, 3, 3, 5))
    run_site(ours, Zero(), random(2, 3, 3, 5), gradient=random(2, 3, 3, 5))
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_relevance_passes_the_scale_and_the_shift_is_a_bias():
    ours, theirs = (norm.eval() for norm in pair())
    x, gradient = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=7)
    out, (at_input,), absorbed = run_site(ours, Zero(), x, gradient=gradient)
    scale = theirs.weight / (theirs.running_var + 1e-4).sqrt()
    shift = (theirs.bias - theirs.running_mean * scale).detach()
    assert relative_error(out, scale.detach() * x + shift) < EXACT
    assert relative_error(at_input, scale.detach() * gradient) < EXACT
    expected = (shift * gradient).flatten(1).sum(1)
    assert set(absorbed) == {"bias: batch_norm"}
    assert relative_error(absorbed["bias: batch_norm"], expected) < EXACT


@pytest.mark.parametrize("rule", [Zero(), Gamma(0.25), Gamma(3.0), Epsilon(0.2)], ids=str)
def test_every_affine_rule_conserves_with_what_it_absorbs(rule):
    ours = pair()[0].eval()
    x, gradient = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=7)
    out, (at_input,), absorbed = run_site(ours, rule, x, gradient=gradient)
    assert relative_error(out, ours(x)) < EXACT
    received = (out * gradient).flatten(1).sum(1)
    passed = (x * at_input).flatten(1).sum(1) + sum(absorbed.values())
    assert relative_error(passed, received) < EXACT


def test_gamma_weighs_the_scaled_input_against_the_shift():
    norm = BatchNorm2d(1, eps=0.0).double().eval()
    with torch.no_grad():
        norm.weight.fill_(2.0)
        norm.bias.fill_(-1.0)
    x, gradient = torch.full((1, 1, 1, 1), 3.0).double(), torch.ones(1, 1, 1, 1).double()
    _, (at_input,), absorbed = run_site(norm, Gamma(1.0), x, gradient=gradient)
    # z = 6 - 1 = 5, and with gamma 1 the shares are 12 and -1 of 11.
    assert float(x * at_input) == pytest.approx(5 * 12 / 11, rel=1e-14)
    assert float(absorbed["bias: batch_norm"]) == pytest.approx(-5 / 11, rel=1e-14)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_half_precision_keeps_its_type_and_value(dtype, bound):
    precise = pair()[0].eval()
    ours = pair(dtype=dtype)[0].eval()
    x, gradient = random(2, 4, 3, 5), random(2, 4, 3, 5, seed=7)
    for rule in (Zero(), Gamma(0.25)):
        out, (at_input,), _ = run_site(ours, rule, x.to(dtype), gradient=gradient.to(dtype))
        assert out.dtype == at_input.dtype == dtype
        assert relative_error(out, precise(x)) < bound


def test_it_says_its_size():
    assert "5, eps=0.0001" in repr(pair()[0])
