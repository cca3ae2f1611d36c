import numpy as np
import pytest
from scipy import stats

from vimlrp.audit.screening.embedding import coordinates
from vimlrp.audit.screening.measuring import measure
from vimlrp.audit.screening.nulls import either, excess_p_value, of_distance, rotated


@pytest.mark.parametrize(("n", "d"), [(40, 6), (30, 100)])
def test_a_draw_has_the_same_mean_and_covariance_and_is_another_sample(n, d):
    rng = np.random.default_rng(0)
    points = coordinates(rng.gamma(1, size=(n, d)) @ rng.standard_normal((d, d)))
    drawn = rotated(points, rng)
    size = np.abs(points).max()
    np.testing.assert_allclose(drawn.mean(0), 0, atol=1e-9 * size)
    np.testing.assert_allclose(drawn.T @ drawn, points.T @ points, atol=1e-8 * size**2)
    assert np.abs(drawn - points).max() > 0.1 * size


def test_draws_are_uniform_among_the_rotations():
    """Of one dimension and three samples, they lie on a circle."""
    rng = np.random.default_rng(1)
    points = coordinates(np.array([[0.0], [1.0], [5.0]]))
    drawn = np.stack([rotated(points, rng)[:, 0] for _ in range(500)])
    plane = drawn @ np.array([[1, -1, 0], [1, 1, -2]]).T / np.sqrt([2, 6])
    angles = np.arctan2(plane[:, 1], plane[:, 0])
    assert stats.kstest(angles, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 0.01


def test_gaussian_classes_have_uniform_p_values():
    """Correlated features, more of them than samples."""
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((12, 40))
    found = [measure(rng.standard_normal((25, 12)) @ mixing, 8, (2, i)).p_values for i in range(60)]
    for p_values in np.transpose(found):
        assert stats.kstest(p_values, "uniform", alternative="greater").pvalue > 0.01
        assert 0.35 < np.mean(p_values) < 0.65


def test_prediction_is_exact_for_few_normal_draws():
    rng = np.random.default_rng(3)
    p_values = [excess_p_value(v, rng.standard_normal(4)) for v in rng.standard_normal(2000)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_values_go_below_what_counting_draws_gives():
    draws = np.random.default_rng(4).standard_normal(20)
    spread = np.std(draws, ddof=1) * np.sqrt(21 / 20)
    expected = stats.t(19).sf((8 - draws.mean()) / spread)
    assert excess_p_value(8, draws) == pytest.approx(expected)
    assert expected < 1e-5


def test_maxima_have_no_normal_tail():
    # The greatest of a thousand normal numbers, in units of its own standard deviation.
    rng = np.random.default_rng(5)
    greatest = rng.standard_normal((20_000, 1000), np.float32).max(1)
    distances = (greatest - greatest.mean()) / greatest.std()
    for wanted in (0.01, 0.001):
        cut = np.quantile(distances, 1 - wanted)
        assert of_distance(cut, 1000) < wanted / 2
        assert wanted / 1.5 < of_distance(cut, 1000, maximum=True) < 2 * wanted
    # With few degrees of freedom the tail of Student's t is the heavier.
    assert of_distance(9.0, 3, maximum=True) == of_distance(9.0, 3)


@pytest.mark.parametrize(("value", "expected"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.0)])
def test_draws_without_spread_decide_alone(value, expected):
    found = excess_p_value(value, np.ones(8))
    assert 0 < found <= 1
    assert found == pytest.approx(expected, abs=1e-300)


def test_the_least_of_two_is_corrected_for_the_choice():
    assert either(0.1, 0.4) == pytest.approx(1 - 0.9**2)
    assert either(1.0, 1.0) == 1
    assert either(1e-200, 1.0) == pytest.approx(2e-200)
