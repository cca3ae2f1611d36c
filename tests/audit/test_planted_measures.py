"""Measures of the benchmark on constructed cases whose answers are known."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vimlrp.audit.planted.measures import (
    auroc,
    class_rank,
    filled,
    localisation,
    overlap,
    proportion,
    retrieval,
)
from vimlrp.audit.planted.reliance import Reliance, mean_interval
from vimlrp.errors import InputError
from vimlrp.evaluation.bootstrap import Estimate


def square(*corners, side=12):
    mask = np.zeros((side, side), dtype=bool)
    mask[corners[0] : corners[2], corners[1] : corners[3]] = True
    return mask


def test_wilson_interval_by_its_formula():
    hits, count, z = 7, 20, 1.959963984540054
    share = hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    found = proportion(hits, count)
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_exact_interval_of_no_hit_is_the_rule_of_three():
    found = proportion(0, 300, exact=True)
    assert found.value == found.low == 0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 300), abs=1e-9)
    all_hit = proportion(300, 300, exact=True)
    assert all_hit.low == pytest.approx(0.025 ** (1 / 300), abs=1e-9)


def test_shares_of_nothing_and_of_too_much():
    found = proportion(0, 0)
    assert np.isnan([found.value, found.low, found.high]).all()
    with pytest.raises(InputError, match="3 of 2 is no share"):
        proportion(3, 2)


@pytest.mark.parametrize(
    ("ranking", "label", "rivals", "expected"),
    [
        ([5, 1, 2, 3], 5, {1, 2, 3}, (1, 4)),
        ([1, 5, 2, 3], 5, {1, 2, 3}, (2, 4)),
        ([9, 8, 5, 1], 5, {1, 2}, (1, 3)),  # 9 and 8 are planted too
        ([1, 2, 3], 5, {1, 2, 3}, (4, 4)),  # not ranked at all
        ([1], 5, {1, 2, 3}, (4, 4)),  # nor are two of its rivals
    ],
)
def test_class_rank(ranking, label, rivals, expected):
    assert class_rank(ranking, label, rivals) == expected


def test_auroc_against_counting_pairs():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, 40).astype(float)  # with ties
    wanted = rng.random(40) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[wanted] for b in scores[~wanted]]
    assert auroc(scores, wanted) == pytest.approx(np.mean(pairs))
    assert math.isnan(auroc(scores, np.ones(40, dtype=bool)))
    assert math.isnan(auroc(scores, np.zeros(40, dtype=bool)))


def test_retrieval_of_a_known_ranking():
    # Carriers at places 1, 2 and 4 of twenty.
    scores = np.arange(20, 0, -1.0)
    wanted = np.isin(np.arange(20), [0, 1, 3])
    taken = np.arange(20) < 5
    cluster = np.isin(np.arange(20), [1, 2])
    found = retrieval(scores, wanted, taken, cluster)
    assert found.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found.auroc == pytest.approx(50 / 51)
    assert found.precision_at_10 == 0.3
    assert found.precision_at_25 == 3 / 20
    assert found.best_f1 == pytest.approx(2 * 0.75 / 1.75)
    assert found.f1 == pytest.approx(2 * 0.6 / 1.6)
    assert (found.purity, found.recall) == (0.5, pytest.approx(1 / 3))
    assert found.prevalence == 3 / 20
    assert (found.carriers, found.to_view) == (3, 4)


def test_retrieval_agrees_with_scikit_learn_and_does_not_depend_on_order():
    rng = np.random.default_rng(1)
    scores, wanted = rng.normal(size=200), rng.random(200) < 0.1
    scores[wanted] += 1
    taken = scores > 1
    found = retrieval(scores, wanted, taken, taken)
    order = rng.permutation(200)
    again = retrieval(scores[order], wanted[order], taken[order], taken[order])
    assert again == found
    assert found.auroc == pytest.approx(roc_auc_score(wanted, scores))
    assert found.average_precision == pytest.approx(average_precision_score(wanted, scores))
    ranked = wanted[np.argsort(-scores)]
    best = max(
        2 * ranked[:k].sum() / (k + wanted.sum()) for k in range(1, 201)
    )  # F1 = 2 TP / (found + wanted)
    assert found.best_f1 == pytest.approx(best)
    needed = math.ceil(0.9 * wanted.sum())
    assert ranked[: found.to_view].sum() == needed
    assert ranked[found.to_view - 1]


def test_retrieval_without_a_cluster_or_a_carrier():
    scores, none = np.arange(4.0), np.zeros(4, dtype=bool)
    found = retrieval(scores, ~none, none, none)
    assert math.isnan(found.purity)
    assert found.recall == found.f1 == 0
    assert math.isnan(found.auroc)
    with pytest.raises(InputError, match="at least one carrier"):
        retrieval(scores, none, none, none)
    with pytest.raises(InputError, match="give equal ones"):
        retrieval(scores, np.ones(3, dtype=bool), none, none)


def test_localisation_of_known_maps():
    masks = np.stack([square(0, 0, 6, 6), square(0, 0, 6, 6)])
    maps = np.zeros((2, 12, 12))
    maps[0, 1, 1] = 3.0  # all of it inside
    maps[1, 1, 1], maps[1, 9, 9] = 1.0, 3.0  # a quarter inside, the highest outside
    maps[:, 11, 11] = -50.0  # speaks against the class, and counts for nothing
    found = localisation(maps, masks)
    assert found.area == 0.25
    assert found.enrichment == pytest.approx((4 + 1) / 2)
    assert found.pointing == 0.5
    assert found.count == 2


def test_localisation_of_relevance_that_does_not_know_the_artifact():
    rng = np.random.default_rng(0)
    masks = np.stack([square(2, 2, 26, 26, side=64)] * 20)
    found = localisation(rng.random((20, 64, 64)), masks)
    assert found.enrichment == pytest.approx(1, abs=0.02)
    assert found.pixel_precision == pytest.approx(found.area, abs=0.02)


def test_pixels_in_falling_order_of_relevance():
    maps = np.zeros((1, 12, 12))
    masks = square(0, 0, 2, 2)[None]
    maps[0, :2, :2] = [[9, 8], [7, 5]]
    maps[0, 5, 5] = 6.0  # before the last of the artifact's four pixels
    expected = (1 + 1 + 1 + 4 / 5) / 4
    assert localisation(maps, masks).pixel_precision == pytest.approx(expected)


def test_gaps_within_an_artifact_belong_to_its_place_and_edges_stay():
    letters = np.zeros((48, 48), dtype=bool)
    letters[40:46, 30:46:3] = True
    expected = np.zeros((48, 48), dtype=bool)
    expected[40:46, 30:46] = True
    np.testing.assert_array_equal(filled(letters), expected)
    frame = ~square(3, 3, 45, 45, side=48)
    np.testing.assert_array_equal(filled(frame), frame)


def test_overlap():
    masks = np.stack([square(0, 0, 6, 6), square(0, 0, 6, 6)])
    regions = np.stack([square(0, 0, 6, 6), square(0, 3, 6, 9)])
    assert overlap(regions, masks) == pytest.approx((1 + 18 / 54) / 2)
    assert math.isnan(overlap(regions[:0], masks[:0]))


@pytest.mark.parametrize("count", [0, 2])
def test_shapes_must_agree(count):
    with pytest.raises(InputError, match="give the same shape, not empty"):
        localisation(np.zeros((count, 4, 4)), np.zeros((count, 5, 4), dtype=bool))


def test_interval_of_a_mean_by_its_formula():
    values = np.array([1.0, 2.0, 4.0, 5.0], np.float32)
    found = mean_interval(values)
    half = (
        3.182446305284263 * values.std(ddof=1, dtype=float) / 2
    )  # Student's t of three degrees of freedom
    assert found.value == 3
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert np.isnan([mean_interval(values[:1]).low, mean_interval(values[:0]).value]).all()


@pytest.mark.parametrize(
    ("base", "attacked", "low", "gated", "ignored"),
    [
        (0.05, 0.90, 2.0, True, False),
        (0.05, 0.31, 0.1, True, False),
        (0.05, 0.90, -0.1, False, False),  # the logit is not proven to rise
        (0.05, 0.25, 1.0, False, False),  # in between
        (0.05, 0.14, -0.1, False, True),
        (0.05, 0.01, -3.0, False, True),
        (0.05, 0.14, 0.2, False, False),  # it does move the logit
    ],
)
def test_gate(base, attacked, low, gated, ignored):
    effect = Estimate(low + 0.5, low, low + 1, 100)
    found = Reliance(base, attacked, effect, effect)
    assert found.attack == pytest.approx(attacked - base)
    assert (found.gated, found.ignored) == (gated, ignored)
