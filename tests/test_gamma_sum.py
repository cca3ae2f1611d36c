"""LRP-gamma at sums: the explicit recursion in float64, conservation, and the bound."""

import numpy as np
import pytest
import torch
from helpers import images, random, relative_error, run_site, small_vim
from small_vmamba import GENERATIONS, small_vmamba

import vimlrp
from vimlrp.errors import CompositeError
from vimlrp.rules import Gamma, GammaSum, Gradient
from vimlrp.sites import Linear, Residual

GAMMAS = (0.1, 1.0, 10.0)


def explicit_shares(a, b, gamma):
    """What part of the relevance of a + b each of them receives, value by value."""
    shares = []
    for pair in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True):
        z = sum(pair)
        weighed = [x * (1 + gamma) if x * z > 0 else x for x in pair]
        shares.append([w / sum(weighed) for w in weighed])
    return np.array(shares).T.reshape(2, *a.shape)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_summands_receive_their_weighed_shares(gamma):
    a, b, gradient = (random(2, 5, 7, seed=seed) for seed in range(3))
    out, at, absorbed = run_site(Residual(), GammaSum(gamma), a, b, gradient=gradient)
    assert torch.equal(out, a + b)
    assert absorbed == {}
    received = ((a + b) * gradient).numpy()
    for x, at_x, share in zip((a, b), at, explicit_shares(a, b, gamma), strict=True):
        assert relative_error(x * at_x, share * received) < 1e-12


def test_it_is_the_gamma_rule_of_a_layer_that_adds():
    a, b, gradient = (random(3, 1, seed=seed) for seed in range(3))
    adder = Linear(2, 1, bias=False).double()
    with torch.no_grad():
        adder.weight.fill_(1)
    both = torch.cat([a, b], dim=1)
    _, (at_both,), _ = run_site(adder, Gamma(0.7), both, gradient=gradient)
    _, at, _ = run_site(Residual(), GammaSum(0.7), a, b, gradient=gradient)
    assert relative_error(torch.cat(at, dim=1), at_both) < 1e-12


def test_gamma_zero_is_the_plain_sum():
    a, b, gradient = (random(4, 6, seed=seed) for seed in range(3))
    _, at, _ = run_site(Residual(), GammaSum(0.0), a, b, gradient=gradient)
    _, plain, _ = run_site(Residual(), Gradient(), a, b, gradient=gradient)
    assert all(map(torch.equal, at, plain))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_shares_of_summands_that_cancel_are_bounded(gamma):
    a = torch.linspace(0.5, 2, 9, dtype=torch.float64)
    b = -a * (1 - torch.logspace(-12, -1, 9, dtype=torch.float64))
    at_z = 1 / (a + b)  # a relevance of 1 each
    _, (at_a, at_b), _ = run_site(Residual(), GammaSum(gamma), a, b, gradient=at_z)
    size = (a * at_a).abs() + (b * at_b).abs()
    assert (size <= 1 + 2 / gamma + 1e-9).all()
    assert size[0] == pytest.approx(1 + 2 / gamma, rel=1e-6)


def test_a_sum_of_exactly_zero_gives_no_nan():
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    _, at, _ = run_site(Residual(), GammaSum(), a, -a, gradient=torch.ones(2).double())
    assert [x.tolist() for x in at] == [[1.0, 1.0], [1.0, 1.0]]


def test_half_precision_branches_join_a_wide_stream():
    a, b = random(2, 3, dtype=torch.float32), random(2, 3, seed=1, dtype=torch.bfloat16)
    out, at, _ = run_site(Residual(), GammaSum(), a, b, gradient=torch.ones(2, 3))
    assert out.dtype == torch.float32
    assert [x.dtype for x in at] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_gammas_that_cannot_be_are_refused(value):
    with pytest.raises(CompositeError, match="finite gamma of 0 or more"):
        GammaSum(value)


@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": "double"}, {"class_token": "none", "global_pool": "avg"}],
    ids=str,
)
def test_every_cut_of_a_vim_sums_to_the_target(options):
    model = small_vim(biases=False, **options)
    composite = {"residual": "gamma_sum(1)"}
    account = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    assert account.holds, str(account)
    assert account.broken == ()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_cut_of_a_vmamba_sums_to_the_target(generation):
    model = small_vmamba(biases=False, generation=generation)
    composite = {"residual": "gamma_sum(1)"}
    account = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    assert account.holds, str(account)
    assert account.broken == ()


def test_the_position_embedding_takes_its_weighed_share_of_a_token():
    model = small_vim()
    composites = ({"token_sum": "gamma_sum(2)"}, "mambalrp")
    ours, plain = (vimlrp.explain(model, images(), composite=c, target=0) for c in composites)
    # Below the sum nothing differs, so that what tokens receive is the same under both.
    assert relative_error(ours.tokens, plain.tokens) < 1e-12
    with torch.no_grad():
        patches = model.patch_embed(images())
        tokens = model.embed(images())
    content = model.layout.insert(patches, model.cls_token.detach().expand(2, -1, -1)).numpy()
    position = model.position(model.layout).detach().expand_as(tokens).numpy()
    _, share = explicit_shares(torch.tensor(content), torch.tensor(position), 2.0)
    received = received_by_channel(model)
    expected = (torch.tensor(share) * received).flatten(1).sum(1)
    assert relative_error(ours.account.parts["position embedding"], expected) < 1e-10
    assert ours.account.residue.abs().max() < 1e-11


def received_by_channel(model):
    """The relevance of every value of the tokens, (B, L, D)."""
    record = vimlrp.explain(model, images(), target=0, record=["token_sum"]).recorded["token_sum"]
    return record.relevance.reshape(2, -1, model.embed_dim)
