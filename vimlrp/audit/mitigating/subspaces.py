"""What a cue changes in a layer when it is put into pictures, and a score that tells who shows it.

Pictures with and without the cue come in pairs, so that nothing else differs between them. Both
are sought against what varies in the layer anyway: a correction should take away what the cue does
and leave what tells classes apart.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.audit.mitigating.attacking import Attack
from vimlrp.audit.watching import Watched

__all__ = ["Gate", "Subspace", "gate_of", "subspace_of"]

# Of the mean variance, added to every direction's: few pictures do not know all directions.
_SHRUNK = 0.1
# Of pictures without the cue, this share may be taken to show it.
_TAKEN = 0.02


@dataclass(frozen=True, eq=False)
class Subspace:
    """The directions that a cue moves activations along.

    Args:
        directions: (r, K) float32, orthonormal, in falling order of how far the cue moves
            activations against how far they vary without it; the first n span the best n.
        targets: Mean projection, over positions, of pictures without the cue, (r,) float32.
    """

    directions: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Gate:
    """A score of pooled activations that says whether a picture shows a cue.

    Args:
        direction: (K,) float32 of unit length.
        threshold: Pictures of a greater score show it.
    """

    direction: Tensor
    threshold: float


def subspace_of(watched: Watched, attack: Attack, own: Tensor, rank: int) -> Subspace:
    """Where a cue moves activations.

    Filters maximise the mean square of the change over the variance of activations without the
    cue, a generalised eigenvalue problem. What is returned are their patterns, the directions of
    the change itself (Haufe et al., NeuroImage 2014).

    Args:
        watched: The model and the layer.
        attack: Pictures without and with the cue.
        own: Further pictures without it, of its class, (n, 3, H, W).
        rank: Directions, up to the number of channels.
    """
    change, plain = _Moments(), _Moments()
    pairs = zip(
        watched.activations(attack.clean), watched.activations(attack.attacked), strict=True
    )
    for clean, attacked in pairs:  # (b, P, K) each
        change.add(attacked - clean)
        plain.add(clean)
    for clean in watched.activations(own):
        plain.add(clean)
    spread = _shrunk(plain.covariance())
    root = torch.linalg.cholesky(spread)
    half = torch.linalg.solve_triangular(root, change.square(), upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    _, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    patterns = root @ vectors.flip(1)[:, :rank]  # (K, r)
    directions = torch.linalg.qr(patterns)[0].T
    return Subspace(directions.float(), (directions @ plain.mean()).float())


def gate_of(
    attack: tuple[Tensor, Tensor], carriers: Tensor, without: Tensor, plain: NDArray[np.floating]
) -> Gate:
    """What tells pictures with a cue from those without, by their pooled activations.

    The direction is Fisher's: the mean change by the cue, of the pairs and of the class's carriers
    against the rest of the class, through the inverse covariance of pictures without it.

    Args:
        attack: Pooled activations of pairs, without and with the cue, (m, K) each.
        carriers: Those of carriers, (c, K).
        without: Those of samples of the class without the cue, (w, K).
        plain: Those of samples of all classes without it, (n, K).
    """
    known = torch.from_numpy(np.asarray(plain, dtype=np.float64))
    clean, attacked = (x.double() for x in attack)
    moves = (attacked.mean(0) - clean.mean(0), carriers.double().mean(0) - without.double().mean(0))
    spread = _shrunk(torch.cov(known.T, correction=0))
    direction = torch.linalg.solve(spread, moves[0] + moves[1])
    direction = direction / direction.norm().clamp(min=1e-12)
    threshold = torch.quantile(torch.cat([known, clean]) @ direction, 1 - _TAKEN)
    return Gate(direction.float(), float(threshold))


class _Moments:
    """First and second moments of activations over pictures and positions."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, activation: Tensor) -> None:
        """Count activations, (b, P, K)."""
        rows = activation.double().flatten(0, 1)
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._squares = self._squares + rows.T @ rows

    def mean(self) -> Tensor:
        return self._sum / self._count

    def square(self) -> Tensor:
        return self._squares / self._count

    def covariance(self) -> Tensor:
        mean = self.mean()
        return self.square() - mean[:, None] * mean


def _shrunk(covariance: Tensor) -> Tensor:
    variance = covariance.diagonal().mean().clamp(min=1e-12)
    return covariance + _SHRUNK * variance * torch.eye(len(covariance), dtype=covariance.dtype)
