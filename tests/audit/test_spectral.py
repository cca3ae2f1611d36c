import numpy as np
import pytest
import scipy.sparse as sp

from vimlrp.audit.screening.graphs import affinity
from vimlrp.audit.screening.spectral import spectrum


def laplacian(graph):
    dense = graph.toarray()
    root = 1 / np.sqrt(dense.sum(0))
    return np.eye(len(dense)) - root[:, None] * dense * root


def blobs(sizes, distance, seed=0, d=5):
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((n, d)) + distance * i for i, n in enumerate(sizes)]
    return np.concatenate(parts)


@pytest.mark.parametrize("sizes", [[40], [300], [30, 20], [200, 170, 12]])
def test_eigenpairs_are_those_of_the_dense_laplacian(sizes):
    graph = affinity(blobs(sizes, 50), 5)
    found, whole = spectrum(graph), laplacian(graph)
    expected = np.linalg.eigvalsh(whole)[:16]
    np.testing.assert_allclose(found.values, expected, atol=1e-9)
    np.testing.assert_allclose(whole @ found.vectors, found.vectors * found.values, atol=1e-7)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(16), atol=1e-7)
    constant = np.sqrt(graph.sum(axis=0))
    np.testing.assert_allclose(abs(found.vectors[:, 0]), constant / np.linalg.norm(constant))


def test_components_are_counted_and_their_eigenvalues_are_exactly_zero():
    found = spectrum(affinity(blobs([200, 170, 12], 50), 5))
    assert found.components == 3
    assert found.values[:3].tolist() == [0, 0, 0]
    assert found.connectivity == 0
    assert found.values[3] > 0
    # Within a component the vectors are constant up to the root of the degree.
    parts = np.repeat([0, 1, 2], [200, 170, 12])
    plane = found.embedding(2) / found.vectors[:, [0]]
    for part in range(3):
        assert np.ptp(plane[parts == part], axis=0).max() < 1e-6


def test_the_gap_tells_the_number_of_groups():
    assert spectrum(affinity(blobs([40, 40, 40, 40], 6), 6)).eigengap == 4


def test_embedding_has_unit_mean_square():
    points = spectrum(affinity(blobs([60], 0), 5)).embedding(4)
    np.testing.assert_allclose((points**2).mean(0), 1)


@pytest.mark.parametrize("n", [3, 4, 17, 18])
def test_small_graphs_have_as_many_eigenpairs_as_they_can(n):
    found = spectrum(affinity(blobs([n], 0), 2))
    assert len(found.values) == max(2, min(16, n - 2))


def test_a_ring_has_the_textbook_spectrum():
    n = 24
    ring = sp.csr_array(np.roll(np.eye(n), 1, axis=1) + np.roll(np.eye(n), -1, axis=1))
    expected = np.sort(1 - np.cos(2 * np.pi * np.arange(n) / n))[:16]
    np.testing.assert_allclose(spectrum(ring).values, expected, atol=1e-12)


def test_the_same_graph_gives_the_same_bits():
    graph = affinity(blobs([300], 0), 5)
    first, second = spectrum(graph), spectrum(graph)
    assert np.array_equal(first.vectors, second.vectors)
