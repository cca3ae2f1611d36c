import numpy as np
import pytest
from scipy import stats

from vimlrp.audit.screening.peers import Natural, peer_p_values

PRIOR = Natural(0.2, 0.5, 3.0)


def test_a_single_class_is_judged_by_prior_knowledge():
    expected = stats.t(3).sf((1.4 - 0.2) / (0.5 * np.sqrt(1 + 1 / 3)))
    assert peer_p_values(np.array([1.4]), PRIOR)[0] == pytest.approx(expected)


def test_others_and_prior_are_brought_together_as_conjugates():
    excess = np.array([2.0, 0.1, 0.3])
    others = excess[1:]
    centre = (others.sum() + 3 * 0.2) / 5
    squares = ((others - others.mean()) ** 2).sum() + 3 * 0.25
    squares += 2 * 3 / 5 * (others.mean() - 0.2) ** 2
    spread = np.sqrt(squares / 5 * (1 + 1 / 5))
    expected = stats.t(5).sf((2.0 - centre) / spread)
    assert peer_p_values(excess, PRIOR)[0] == pytest.approx(expected)


def test_many_classes_alike_have_uniform_p_values_whatever_the_prior():
    excess = np.random.default_rng(0).normal(-3, 2, 500)
    found = peer_p_values(excess, PRIOR)
    assert stats.kstest(found, "uniform").statistic < 0.06


def test_a_fifth_of_the_classes_far_out_do_not_hide_one_another():
    excess = np.random.default_rng(1).normal(0, 0.2, 50)
    excess[:10] += 4
    assert peer_p_values(excess, PRIOR)[:10].max() < 1e-3


def test_classes_far_out_have_p_values_above_zero():
    excess = np.random.default_rng(2).normal(0, 1e-9, 1000)
    excess[0] = 1e6
    found = peer_p_values(excess, PRIOR)
    assert found.min() > 0
    assert found.argmin() == 0


def test_classes_apart_are_no_peers_of_others():
    excess = np.array([2.0, 0.1, 0.3, 1.8])
    apart = np.array([True, False, False, True])
    found = peer_p_values(excess, PRIOR, apart=apart)
    assert found[0] == pytest.approx(peer_p_values(np.array([2.0, 0.1, 0.3]), PRIOR)[0])
    assert found[1] == pytest.approx(peer_p_values(np.array([0.1, 0.3]), PRIOR)[0])
