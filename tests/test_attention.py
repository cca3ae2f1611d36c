"""Attention and its rules against explicit sums, head by head and token by token, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import random, relative_error, run_site

from vimlrp.attention_rules import AttnLRP, ConstantAttention
from vimlrp.rules import Gradient
from vimlrp.sites import Attention

EXACT = 1e-12
SHAPES = {
    "one head": (1, 1, 4, 3),
    "heads": (2, 3, 5, 4),
    "windows of heads": (2, 3, 2, 4, 6),
    "one token": (2, 2, 1, 3),
}


def inputs(name, dtype=torch.float64):
    shape = SHAPES[name]
    return [random(*shape, seed=seed).to(dtype) for seed in range(4)]  # q, k, v, gradient


def dense(q, k, v, gradient, rule):
    """Output, relevance of q, k and v, and what the softmax takes, for one head (L, d)."""
    length, width = q.shape
    scores, weights = torch.zeros(2, length, length, dtype=torch.float64)
    out = torch.zeros_like(v)
    at_q, at_k, at_v = (torch.zeros_like(v) for _ in range(3))
    taken = 0.0
    for i in range(length):
        for j in range(length):
            scores[i, j] = sum(float(q[i, c] * k[j, c]) for c in range(width)) / math.sqrt(width)
        powers = [math.exp(float(s)) for s in scores[i]]
        for j in range(length):
            weights[i, j] = powers[j] / sum(powers)
            out[i] += weights[i, j] * v[j]
        relevance = out[i] * gradient[i]
        given = torch.stack([weights[i, j] * v[j] / out[i] * relevance for j in range(length)])
        at_v += given if rule == "constant" else given / 2
        if rule == "constant":
            continue
        at_weights = given.sum(1) / 2
        for j in range(length):
            at_score = scores[i, j] * (at_weights[j] - weights[i, j] * at_weights.sum())
            taken += float(at_weights[j] - at_score)
            product = q[i] * k[j] / math.sqrt(width) / scores[i, j]
            at_q[i] += product * at_score / 2
            at_k[j] += product * at_score / 2
    return out, at_q, at_k, at_v, taken


def heads_of(*tensors):
    return zip(*(x.reshape(-1, *x.shape[-2:]) for x in tensors), strict=True)


def expected(q, k, v, gradient, rule):
    columns = zip(*(dense(*head, rule) for head in heads_of(q, k, v, gradient)), strict=True)
    out, at_q, at_k, at_v, taken = columns
    maps = [torch.stack(x).view(q.shape) for x in (out, at_q, at_k, at_v)]
    return *maps, torch.tensor(taken, dtype=torch.float64).view(len(q), -1).sum(1)


@pytest.mark.parametrize("name", SHAPES)
def test_attention_is_softmax_of_products(name):
    q, k, v, gradient = inputs(name)
    out = Attention()(q, k, v)
    assert out.shape == v.shape
    assert relative_error(out, expected(q, k, v, gradient, "constant")[0]) < EXACT


@pytest.mark.parametrize("name", SHAPES)
def test_constant_weights_send_all_relevance_through_the_values(name):
    q, k, v, gradient = inputs(name)
    site = Attention()
    out, (to_q, to_k, to_v), absorbed = run_site(
        site, ConstantAttention(), q, k, v, gradient=gradient
    )
    explicit, _, _, at_v, _ = expected(q, k, v, gradient, "constant")
    assert (to_q, to_k, absorbed) == (None, None, {})
    assert relative_error(out, explicit) < EXACT
    assert relative_error(v * to_v, at_v) < EXACT
    assert relative_error((v * to_v).flatten(1).sum(1), (out * gradient).flatten(1).sum(1)) < EXACT


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "one token"])
def test_attnlrp_is_its_propositions_and_accounts_for_the_softmax(name):
    q, k, v, gradient = inputs(name)
    out, gradients, absorbed = run_site(Attention(), AttnLRP(), q, k, v, gradient=gradient)
    explicit, *relevances, taken = expected(q, k, v, gradient, "attnlrp")
    assert relative_error(out, explicit) < EXACT
    for x, ours, theirs in zip((q, k, v), gradients, relevances, strict=True):
        assert relative_error(x * ours, theirs) < 1e-11
    assert set(absorbed) == {"softmax"}
    assert relative_error(absorbed["softmax"], taken) < 1e-10
    passed = sum((x * g).flatten(1).sum(1) for x, g in zip((q, k, v), gradients, strict=True))
    received = (out * gradient).flatten(1).sum(1)
    assert relative_error(passed + absorbed["softmax"], received) < EXACT


def test_a_softmax_over_one_token_takes_all_that_it_receives():
    q, k, v, gradient = inputs("one token")
    out, (to_q, to_k, to_v), absorbed = run_site(Attention(), AttnLRP(), q, k, v, gradient=gradient)
    half = 0.5 * (out * gradient).flatten(1).sum(1)
    assert to_q.abs().max() < EXACT
    assert to_k.abs().max() < EXACT
    assert relative_error((v * to_v).flatten(1).sum(1), half) < EXACT
    assert relative_error(absorbed["softmax"], half) < EXACT


@pytest.mark.parametrize("name", SHAPES)
def test_plain_gradient_is_autograds_and_does_not_conserve(name):
    q, k, v, gradient = inputs(name)
    out, gradients, _ = run_site(Attention(), Gradient(), q, k, v, gradient=gradient)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    weights = (leaves[0] @ leaves[1].mT / math.sqrt(q.shape[-1])).softmax(-1)
    theirs = torch.autograd.grad(weights @ leaves[2], leaves, gradient)
    for mine, yours in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-10, atol=1e-12)
    passed = sum((x * g).sum() for x, g in zip((q, k, v), gradients, strict=True))
    if name != "one token":
        assert abs(float(passed / (out * gradient).sum()) - 1) > 1e-3


@pytest.mark.parametrize("rule", [ConstantAttention(), AttnLRP(), Gradient()], ids=str)
def test_large_scores_overflow_nothing(rule):
    q, k, v, gradient = inputs("heads")
    out, gradients, absorbed = run_site(Attention(), rule, 1e3 * q, k, v, gradient=gradient)
    assert out.isfinite().all()
    assert all(g is None or g.isfinite().all() for g in gradients)
    assert all(share.isfinite().all() for share in absorbed.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", [ConstantAttention(), AttnLRP()], ids=str)
def test_other_types_are_kept(rule, dtype):
    *arguments, gradient = inputs("windows of heads", dtype)
    out, gradients, _ = run_site(Attention(), rule, *arguments, gradient=gradient)
    assert out.dtype == gradients[2].dtype == dtype
    precise, theirs, _ = run_site(
        Attention(), rule, *(x.double() for x in arguments), gradient=gradient.double()
    )
    bound = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert relative_error(out, precise) < bound
    assert relative_error(gradients[2], theirs[2]) < bound


def test_windows_and_heads_are_apart():
    q, k, v, _ = inputs("windows of heads")
    other = v.clone()
    other[0, 1, 0] += 1
    moved = (Attention()(q, k, other) - Attention()(q, k, v)).abs().flatten(3).sum(-1) > 0
    assert moved.nonzero().tolist() == [[0, 1, 0]]


def test_training_uses_torchs_attention():
    q, k, v, _ = (x.requires_grad_() for x in inputs("heads"))
    ours = torch.autograd.grad(Attention()(q, k, v).square().sum(), (q, k, v))
    theirs = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).square().sum(), (q, k, v))
    assert all(map(torch.equal, ours, theirs))
