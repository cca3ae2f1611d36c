import numpy as np
import pytest

from vimlrp.audit.screening.graphs import affinity, neighbour_count, neighbours
from vimlrp.errors import InputError


def by_brute_force(points, k):
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return [set(np.argsort(row)[:k]) for row in distances]


@pytest.mark.parametrize("n", [7, 40, 2100])  # the last one in two pieces
def test_the_neighbours_are_those_of_brute_force(n):
    points = np.random.default_rng(n).standard_normal((n, 3))
    found = neighbours(points, 5)
    assert found.shape == (n, 5)
    assert [set(row) for row in found] == by_brute_force(points, 5)


def test_points_that_coincide_are_neighbours_but_never_their_own():
    points = np.repeat(np.random.default_rng(0).standard_normal((5, 2)), 4, axis=0)
    found = neighbours(points, 3)
    for i, row in enumerate(found):
        block = set(range(i // 4 * 4, i // 4 * 4 + 4)) - {i}
        assert set(row) == block


def test_points_without_dimensions_have_neighbours_too():
    found = neighbours(np.zeros((6, 0)), 2)
    assert all(i not in row for i, row in enumerate(found))


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_points_are_refused(k):
    with pytest.raises(InputError, match=f"6 points have 5 neighbours each; {k}"):
        neighbours(np.zeros((6, 2)), k)


def test_the_graph_is_symmetric_and_counts_mutual_neighbours_twice():
    points = np.random.default_rng(1).standard_normal((30, 4))
    graph = affinity(points, 5).toarray()
    near = by_brute_force(points, 5)
    for i in range(30):
        for j in range(30):
            assert graph[i, j] == ((j in near[i]) + (i in near[j])) / 2


@pytest.mark.parametrize(("n", "k"), [(3, 5), (20, 5), (400, 6), (1300, 7), (10**6, 10)])
def test_the_number_of_neighbours_grows_with_the_logarithm(n, k):
    assert neighbour_count(n) == k
