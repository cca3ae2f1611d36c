import numpy as np
import pytest

from vimlrp.audit.screening.graphs import affinity
from vimlrp.audit.screening.separability import clusters, fisher_ratio, most_separable
from vimlrp.audit.screening.spectral import spectrum


def cloud_and_group(n, size, distance, seed=0):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((n, 6))
    points[:size] = 0.3 * points[:size] + distance
    return points


def test_the_ratio_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((40, 3))
    points /= np.sqrt((points**2).mean(0))
    members = np.arange(40) < 9
    inside, rest = points[members], points[~members]
    difference = inside.mean(0) - rest.mean(0)
    within = np.zeros((3, 3))
    for group in (inside, rest):
        for row in group - group.mean(0):
            within += np.outer(row, row) / 38
    expected = difference @ np.linalg.inv(within + 1e-3 * np.eye(3)) @ difference
    assert fisher_ratio(points, members) == pytest.approx(expected, rel=1e-9)


def test_groups_without_extent_are_finite():
    points = np.repeat([[1.0], [-1.0]], 6, axis=0)
    assert fisher_ratio(points, points[:, 0] > 0) == pytest.approx(4 / 1e-3)


@pytest.mark.parametrize("size", [6, 15, 30])
def test_a_group_apart_is_found_whole_and_alone(size):
    found = most_separable(spectrum(affinity(cloud_and_group(60, size, 5))))
    members = np.arange(60) < size
    assert np.array_equal(found.members, members) or np.array_equal(found.members, ~members)
    assert found.separation == pytest.approx(size / 60 * (1 - size / 60) * found.ratio)


def test_clusters_hold_five_samples_and_no_more_than_half():
    spectral = spectrum(affinity(cloud_and_group(45, 8, 4)))
    sizes = [members.sum() for members, _ in clusters(spectral)]
    assert sizes
    assert min(sizes) >= 5
    assert max(sizes) <= 22


def test_the_cluster_reported_is_the_best_of_all():
    spectral = spectrum(affinity(cloud_and_group(80, 10, 2)))
    best = most_separable(spectral)
    for members, dimensions in clusters(spectral):
        share = members.mean()
        ratio = fisher_ratio(spectral.embedding(dimensions), members)
        assert share * (1 - share) * ratio <= best.separation + 1e-12


def test_points_that_all_coincide_are_no_reason_to_fail():
    spectral = spectrum(affinity(np.zeros((20, 1))))
    found = most_separable(spectral)
    assert found is None or 5 <= found.members.sum() <= 10


def test_too_few_samples_have_no_cluster():
    assert most_separable(spectrum(affinity(np.random.default_rng(0).random((8, 2)), 3))) is None
