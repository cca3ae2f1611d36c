"""The spectrum of a graph of neighbours: does it fall apart, and into what?

The normalised Laplacian 1 - D^-1/2 A D^-1/2 has as many eigenvalues 0 as the graph has components,
and its second eigenvalue bounds how cheaply the graph can be cut in two (Cheeger; von Luxburg,
"A tutorial on spectral clustering", 2007).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.screening.embedding import Points
from vimlrp.optional import optional

__all__ = ["Spectrum", "spectrum"]

_MOST = 16  # eigenpairs
_DENSE = 150  # samples up to which the dense solver is the faster one


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The low end of a normalised Laplacian's spectrum.

    Args:
        values: Ascending eigenvalues within 0 and 2, (m,), the first one 0.
        vectors: Their eigenvectors, (n, m), orthonormal; the first one is that of the constant.
        components: Parts of the graph without a connection.
    """

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    components: int

    @property
    def connectivity(self) -> float:
        """The second eigenvalue; 0 for a graph in several components."""
        return float(self.values[1])

    @property
    def eigengap(self) -> int:
        """The number of clusters, of 2 or more, after which the eigenvalues jump most."""
        gaps = np.diff(self.values)[1:]
        return int(gaps.argmax()) + 2 if len(gaps) else 1

    def embedding(self, dimensions: int) -> Points:
        """The eigenvectors after the first as coordinates of mean square 1, (n, dimensions)."""
        return self.vectors[:, 1 : dimensions + 1] * np.sqrt(len(self.vectors))


def spectrum(graph: Any) -> Spectrum:
    """Eigenpairs of the least eigenvalues of a graph's normalised Laplacian.

    Each component is solved by itself, since an iterative solver misses eigenvalues that occur
    several times; vectors of eigenvalue 0 are then made orthogonal to the constant one.

    Args:
        graph: Symmetric affinities, a sparse array (n, n), n at least 3, each point with a
            neighbour.

    Returns:
        Of min(16, n - 2) eigenvalues, and at least two.
    """
    csgraph = optional("scipy.sparse.csgraph", "scipy", "audit")
    n = graph.shape[0]
    count = max(2, min(_MOST, n - 2))
    root = np.sqrt(np.asarray(graph.sum(axis=0)).ravel())
    scaled = graph.multiply(1 / root[:, None]).multiply(1 / root[None, :]).tocsr()
    components, owner = csgraph.connected_components(graph, directed=False)
    values, vectors = [], []
    for component in range(components):
        rows = np.flatnonzero(owner == component)
        found, pairs = _largest(scaled[rows][:, rows], root[rows], min(count, len(rows)))
        values.append(1 - found)
        vectors.append(_spread_out(pairs, rows, n))
    return _merged(np.concatenate(values), np.concatenate(vectors, axis=1), root, components, count)


def _largest(matrix: Any, start: Points, count: int) -> tuple[Points, Points]:
    """The largest eigenvalues, falling, and their vectors."""
    if matrix.shape[0] <= max(_DENSE, count + 1):
        values, vectors = np.linalg.eigh(matrix.toarray())
    else:
        linalg = optional("scipy.sparse.linalg", "scipy", "audit")
        # Any start that is not an eigenvector will do, as long as it is always the same.
        tilted = start * (1 + np.linspace(0, 1, len(start)))
        values, vectors = linalg.eigsh(matrix, count, which="LA", v0=tilted)
    order = np.argsort(-values, kind="stable")[:count]
    return values[order], vectors[:, order]


def _spread_out(vectors: Points, rows: NDArray[np.int64], n: int) -> Points:
    whole = np.zeros((n, vectors.shape[1]))
    whole[rows] = vectors
    return whole


def _merged(values: Points, vectors: Points, root: Points, components: int, count: int) -> Spectrum:
    order = np.argsort(values, kind="stable")
    values, vectors = values[order], vectors[:, order]
    values[:components] = 0.0
    # Each component's own vector of eigenvalue 0 comes first: together they span the constant.
    constant = root / np.linalg.norm(root)
    null = vectors[:, :components] - np.outer(constant, constant @ vectors[:, :components])
    left, _, _ = np.linalg.svd(null, full_matrices=False)
    vectors[:, :components] = np.column_stack([constant, left[:, : components - 1]])
    return Spectrum(np.clip(values[:count], 0, 2), _signed(vectors[:, :count]), components)


def _signed(vectors: Points) -> Points:
    """Each vector with its greatest entry positive: solvers leave the sign open."""
    greatest = np.abs(vectors).argmax(0)
    signs = np.sign(vectors[greatest, np.arange(vectors.shape[1])])
    return vectors * np.where(signs == 0, 1, signs)
