"""The attention matrix of a scan against the recurrence, unrolled step by step in float64."""

import pytest
import torch
from attention_by_hand import unrolled
from helpers import random, relative_error

from vimlrp.baselines import hidden_attention
from vimlrp.baselines.hidden_attention import mean_attention
from vimlrp.kernels import ScanOrder, selective_scan

ORDERS = {
    "forward": (lambda length: ScanOrder.forward(), (1, 2, 3, 5, 8, 13)),
    "bidirectional": (lambda length: ScanOrder.bidirectional(), (1, 7, 16)),
    "cross": (lambda length: ScanOrder.cross(3, length // 3), (3, 12, 21)),
}
CASES = [(name, length) for name, (_, lengths) in ORDERS.items() for length in lengths]


def problem(order, length, batch=2, channels=5, states=3):
    k = order.directions
    dt = random(batch, k, length, channels, seed=1).exp()
    A = -random(k, channels, states, seed=2).exp()
    B, C = (random(batch, k, length, states, seed=seed) for seed in (3, 4))
    return dt, A, B, C


@pytest.mark.parametrize(("name", "length"), CASES)
def test_it_is_the_mean_of_the_unrolled_scan(name, length):
    order = ORDERS[name][0](length)
    factors = problem(order, length)
    expected = unrolled(*factors, order).mean(1)
    assert relative_error(mean_attention(*factors, order), expected) < 1e-13


@pytest.mark.parametrize("name", ORDERS)
def test_the_unrolled_scan_is_the_scan(name):
    order = ORDERS[name][0](12)
    dt, A, B, C = problem(order, 12)
    u = random(2, 12, 5, seed=7)
    y = selective_scan(u, dt, A, B, C, order=order, backend="reference").sum(1)  # (B, L, D)
    by_matrix = torch.einsum("bdts,bsd->btd", unrolled(dt, A, B, C, order), u)
    assert relative_error(by_matrix, y) < 1e-13


def test_what_a_token_reads_decays_through_its_own_step_too():
    # Two steps, one state: alpha[1, 0] = C_1 exp(dt_1 A) dt_0 B_0. Without the last factor, which
    # the authors' code leaves out, it would be 2 * 3 * 5.
    dt = torch.tensor([3.0, 0.25]).double().reshape(1, 1, 2, 1)
    A = torch.tensor([[[-2.0]]]).double()
    B = torch.tensor([5.0, 7.0]).double().reshape(1, 1, 2, 1)
    C = torch.tensor([1.0, 2.0]).double().reshape(1, 1, 2, 1)
    alpha = mean_attention(dt, A, B, C, ScanOrder.forward())[0]
    assert alpha[1, 0] == pytest.approx(2 * float(torch.tensor(-0.5).double().exp()) * 3 * 5)
    assert alpha[0, 1] == 0
    assert alpha.diagonal().tolist() == [1 * 3 * 5, 2 * 0.25 * 7]


def test_channels_taken_in_parts_give_the_same(monkeypatch):
    order = ScanOrder.bidirectional()
    factors = problem(order, 9)
    expected = mean_attention(*factors, order)
    monkeypatch.setitem(hidden_attention._MOST, "cpu", 2 * 16 * 3 * 2)  # two channels of five
    assert relative_error(mean_attention(*factors, order), expected) < 1e-14


def test_long_decays_neither_overflow_nor_vanish_from_near_tokens():
    order = ScanOrder.forward()
    dt, A, B, C = problem(order, 64)
    alpha = mean_attention(100 * dt.float(), A.float(), B.float(), C.float(), order)
    assert alpha.isfinite().all()
    expected = (B * C).sum(3)[:, 0] * 100 * dt.mean(3)[:, 0]
    assert relative_error(alpha.diagonal(dim1=1, dim2=2), expected) < 1e-5


def test_half_precision_is_summed_in_float32():
    order = ScanOrder.forward()
    factors = [x.bfloat16() for x in problem(order, 20)]
    expected = mean_attention(*(x.double() for x in factors), order)
    assert relative_error(mean_attention(*factors, order), expected) < 1e-5
