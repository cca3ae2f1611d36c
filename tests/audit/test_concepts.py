"""Directions and thresholds, against formulas written out and data whose truth is known."""

import numpy as np
import pytest

from vimlrp.audit.drilling.concepts import cross_fitted, filter_direction, pattern, split, unit
from vimlrp.errors import InputError


def shifted(n=60, carriers=20, size=6.0, noise=1.0, seed=0):
    """Noise of 5 channels, of which carriers have `size` more in channel 2."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, noise, (n, 5))
    shows = np.arange(n) < carriers
    values[shows, 2] += size
    return values, shows


def test_pattern_is_covariance_over_variance():
    values, _ = shifted()
    strength = np.random.default_rng(1).random(60)
    expected = [np.cov(values[:, k], strength, bias=True)[0, 1] / strength.var() for k in range(5)]
    np.testing.assert_allclose(pattern(values, strength), expected)


def test_pattern_of_two_groups_is_the_difference_of_their_means():
    values, shows = shifted()
    np.testing.assert_allclose(
        pattern(values, shows), values[shows].mean(0) - values[~shows].mean(0)
    )


@pytest.mark.parametrize("kind", ["svm", "ridge", "logistic"])
def test_filter_turns_away_from_shared_noise_and_pattern_does_not(kind):
    rng = np.random.default_rng(0)
    shows = np.arange(200) < 100
    noise = rng.normal(0, 1, 200)
    # Channel 0 is the concept plus a nuisance, channel 1 the nuisance alone.
    values = np.stack([2.0 * shows + noise, noise], 1) + rng.normal(0, 0.1, (200, 2))
    weights = unit(filter_direction(values, shows, kind=kind))
    assert weights[1] < -0.5 < 0.5 < weights[0]
    assert abs((values @ weights)[shows].mean() - (values @ weights)[~shows].mean()) > 1
    aligned = pattern(values, shows)
    expected = values[shows].mean(0) - values[~shows].mean(0)
    np.testing.assert_allclose(aligned, expected, atol=1e-12)


def test_unit_of_zeros_is_zeros():
    assert unit(np.zeros(3)).tolist() == [0, 0, 0]
    np.testing.assert_allclose(unit(np.array([3.0, 4.0])), [0.6, 0.8])


def test_a_sample_has_no_part_in_its_own_score():
    # 400 channels of pure noise: a direction fitted on all samples tells the groups apart though
    # nothing does, one that leaves each out does not.
    rng = np.random.default_rng(0)
    values, shows = rng.normal(size=(60, 400)), np.arange(60) < 20
    naive = values @ pattern(values, shows)
    fair = cross_fitted(values, shows)

    def area(scores):
        return (scores[shows][:, None] > scores[~shows][None]).mean()

    assert area(naive) > 0.99
    assert area(fair) < 0.7


def test_seeds_lead_to_carriers_that_are_no_seeds():
    values, shows = shifted()
    scores = cross_fitted(values, np.arange(60) < 5)
    hidden = shows & (np.arange(60) >= 5)
    assert (scores[hidden][:, None] > scores[~shows][None]).mean() > 0.95


def test_a_broken_channel_does_not_drown_the_concept():
    values, shows = shifted()
    values[30, 4] = 1e9
    scores = cross_fitted(values, np.arange(60) < 5)
    others = np.arange(60) != 30
    assert scores[shows].mean() - scores[~shows & others].mean() > 1


def test_constant_features_give_constant_scores():
    assert np.ptp(cross_fitted(np.ones((20, 3)), np.arange(20) < 5)) == 0


def test_threshold_parts_few_carriers_from_many():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 1, 190), rng.normal(12, 1, 10)])
    seeds = np.arange(200) >= 195
    assert 3 < split(scores, seeds) < 10


def test_threshold_leaves_half_of_the_seeds_above():
    rng = np.random.default_rng(0)
    # A third group far above must not be taken for the seeds'.
    scores = np.concatenate([rng.normal(0, 1, 50), rng.normal(5, 1, 20), rng.normal(80, 1, 5)])
    seeds = (np.arange(75) >= 50) & (np.arange(75) < 70)
    assert (scores[seeds] > split(scores, seeds)).mean() >= 0.5


@pytest.mark.parametrize("scores", [np.zeros(20), np.arange(4.0)])
def test_no_threshold_where_nothing_can_be_parted(scores):
    assert split(scores, np.arange(len(scores)) >= len(scores) - 2) == np.inf


@pytest.mark.parametrize(
    ("values", "target", "message"),
    [
        (np.ones((4, 2)), np.ones(3), "give \\(n, K\\) and \\(n,\\)"),
        (np.full((4, 2), np.nan), np.arange(4), "NaN"),
        (np.ones((4, 2)), np.ones(4), "both kinds"),
    ],
)
def test_bad_values_are_refused(values, target, message):
    for function in (pattern, filter_direction):
        with pytest.raises(InputError, match=message):
            function(values, target)


def test_too_few_of_a_kind_are_refused():
    with pytest.raises(InputError, match="at least 2"):
        cross_fitted(np.ones((5, 2)), np.arange(5) < 1)


def test_unknown_filters_are_refused():
    with pytest.raises(InputError, match="svm"):
        filter_direction(*shifted(), kind="forest")
