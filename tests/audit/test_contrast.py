import numpy as np
import pytest

from vimlrp.audit.screening.contrast import most_divided
from vimlrp.audit.screening.embedding import coordinates
from vimlrp.audit.screening.measuring import STATISTICS, measure


def two_kinds(n, share, distance, dims=6, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, dims))
    points[: round(share * n), 0] += distance
    return points


def contrast_of(values, members):
    """Variance between two groups over that within them, from their definitions."""
    groups = values[members], values[~members]
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups)
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    return between / (within + 1e-3 * (between + within))


def test_every_cut_of_every_axis_is_tried():
    points = coordinates(np.random.default_rng(3).standard_normal((31, 4)))
    found = most_divided(points)
    every = []
    for axis in points.T:
        order = np.argsort(axis)
        for below in range(5, 27):
            members = np.isin(np.arange(31), order[:below])
            every.append((contrast_of(axis, members), members))
    best, members = max(every, key=lambda pair: pair[0])
    assert found.contrast == pytest.approx(best, rel=1e-12)
    assert np.array_equal(found.members, members if members.sum() <= 15 else ~members)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.5, 0.7])
def test_two_kinds_are_told_apart(share):
    found = most_divided(coordinates(two_kinds(100, share, 12.0)))
    first = np.arange(100) < round(share * 100)
    assert np.array_equal(found.members, first) or np.array_equal(found.members, ~first)
    assert found.members.sum() <= 50
    assert found.contrast > 10


def test_one_normal_distribution_has_a_contrast_of_its_own():
    values = np.random.default_rng(0).standard_normal((20000, 1))
    assert most_divided(coordinates(values)).contrast == pytest.approx(2 / (np.pi - 2), rel=0.03)


def test_two_values_alone_have_a_finite_contrast():
    found = most_divided(coordinates(np.repeat([[1.0], [-1.0]], [8, 12], axis=0)))
    assert found.contrast == pytest.approx(1e3)
    assert np.flatnonzero(found.members).tolist() == list(range(8))


@pytest.mark.parametrize("n", [20, 21, 33])
def test_either_part_has_five_samples(n):
    points = np.random.default_rng(n).standard_normal((n, 3))
    points[0] += 1e3  # one sample far out is no group
    assert 5 <= most_divided(coordinates(points)).members.sum() <= n / 2


def test_half_of_a_class_is_seen_by_contrast_and_not_by_its_graph():
    found = measure(two_kinds(300, 0.5, 3.6, dims=20), draws=20, seed=(0,))
    graph, cluster, contrast = found.p_values
    assert contrast < 1e-4
    assert min(graph, cluster) > contrast
    side = np.isin(np.arange(300), found.groups[STATISTICS.index("contrast")])
    assert max((side[:150]).mean(), (~side[:150]).mean()) > 0.9
