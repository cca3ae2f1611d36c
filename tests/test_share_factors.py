"""The product rule in a scan: every product written out, in float64, without autograd."""

import pytest
import torch
from helpers import images, random, relative_error, run_site, small_vim
from small_vmamba import GENERATIONS, small_vmamba

import vimlrp
from vimlrp.errors import CompositeError
from vimlrp.kernels import ScanOrder
from vimlrp.rules import ConstantFactors, ShareFactors
from vimlrp.sites import Scan

LENGTH, DIM, STATES = 4, 3, 2
SHARES = (0.5, 0.2, 0.3)


def scan_inputs():
    """Of two samples and both directions, at A of both."""
    u = random(2, 2, LENGTH, DIM)
    dt = random(2, 2, LENGTH, DIM, seed=1).exp()
    A = -random(2, DIM, STATES, seed=2).exp()
    B, C = (random(2, 2, LENGTH, STATES, seed=seed) for seed in (3, 4))
    return u, dt, A, B, C, random(2, DIM, seed=5)


def explicit(u, dt, A, B, C, D, gradient, shares):
    """One direction of one sample: relevance of u, B and C, product by product."""
    at_u, at_b, at_c = (torch.zeros_like(x) for x in (u, B, C))
    for t in range(LENGTH):
        at_u[t] += D * u[t] * gradient[t]
        for s in range(t + 1):
            decay = torch.exp(dt[s + 1 : t + 1].sum(0)[:, None] * A)  # (D, N)
            term = C[t] * decay * dt[s][:, None] * B[s] * u[s][:, None] * gradient[t][:, None]
            at_u[s] += shares[0] * term.sum(1)
            at_b[s] += shares[1] * term.sum(0)
            at_c[t] += shares[2] * term.sum(0)
    return at_u, at_b, at_c


def test_factors_receive_their_shares_of_every_product():
    inputs = scan_inputs()
    u, dt, A, B, C, D = inputs
    gradient = random(*u.shape, seed=6)
    site = Scan(ScanOrder.bidirectional())
    out, found, _ = run_site(site, ShareFactors(*SHARES), *inputs, gradient=gradient)
    plain, _, _ = run_site(site, ConstantFactors(), *inputs, gradient=gradient)
    assert relative_error(out, plain) < 1e-12
    at_u, at_dt, at_a, at_b, at_c, at_d = found
    assert [at_dt, at_a, at_d] == [None] * 3
    ours = u * at_u, B * at_b, C * at_c
    for sample in range(2):
        for k, turn in enumerate((lambda x: x, lambda x: x.flip(0))):
            of = [turn(x[sample, k]) for x in (u, dt)]
            of += [A[k], *(turn(x[sample, k]) for x in (B, C)), D[k], turn(gradient[sample, k])]
            for mine, theirs in zip(ours, explicit(*of, SHARES), strict=True):
                assert relative_error(turn(mine[sample, k]), theirs) < 1e-10


def test_all_to_the_signal_is_the_papers_rule():
    inputs, gradient = scan_inputs(), random(2, 2, LENGTH, DIM, seed=6)
    site = Scan(ScanOrder.bidirectional())
    _, (ours, *_), _ = run_site(site, ShareFactors(1, 0, 0), *inputs, gradient=gradient)
    _, (paper, *_), _ = run_site(site, ConstantFactors(), *inputs, gradient=gradient)
    assert relative_error(ours, paper) < 1e-12


@pytest.mark.parametrize("shares", [(0.5, 0.25, 0.25), SHARES])
def test_every_cut_of_a_vim_sums_to_the_target(shares):
    composite = {"scan": ShareFactors(*shares)}
    model = small_vim(biases=False)
    account = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    assert account.holds, str(account)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_cut_of_a_vmamba_sums_to_the_target(generation):
    model = small_vmamba(biases=False, generation=generation)
    composite = {"scan": "share_factors(0.5, 0.25, 0.25)"}
    account = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    assert account.holds, str(account)


def test_shares_that_do_not_sum_to_one_do_not_conserve():
    composite = {"scan": ShareFactors(0.5, 0.5, 0.5)}
    model = small_vim(biases=False)
    account = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    assert not account.holds
    assert {site.kind for site in account.broken} == {"scan"}


@pytest.mark.parametrize("shares", [(float("nan"), 0, 0), (0, float("inf"), 0)])
def test_shares_are_finite(shares):
    with pytest.raises(CompositeError, match="finite shares"):
        ShareFactors(*shares)
