"""Pictures of other classes with a candidate's cue put in."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vimlrp.audit.changes import grown, paste
from vimlrp.audit.drilling.place_cues import hosts_for
from vimlrp.audit.records import Candidate, Evidence
from vimlrp.audit.verifying.whole import imitate
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError

__all__ = ["Attack", "attack_of"]

_MOST = 256
_SEARCHED = 32


@dataclass(frozen=True, eq=False)
class Attack:
    """Pictures with and without a cue, in pairs.

    Args:
        clean: Pictures of other classes, (n, 3, H, W).
        attacked: The same with the cue.
        labels: Their classes, (n,).
    """

    clean: Tensor
    attacked: Tensor
    labels: Tensor

    def half(self, which: int) -> "Attack":
        """Every other pair, beginning with the first (0) or the second (1)."""
        parts = (x[which::2] for x in (self.clean, self.attacked, self.labels))
        return Attack(*parts)


def attack_of(
    watched: Watched, evidence: Evidence, candidate: Candidate, *, seed: int = 0
) -> Attack:
    """Put a cue into pictures of other classes.

    A cue with regions is pasted from carriers. Even hosts get it from one half of the carriers and
    odd ones from the other, so that `half` parts carriers too. A cue that is nowhere in particular
    is imitated by a change of the whole picture.

    Args:
        watched: The model and the evidence's layer.
        evidence: Of the audited pictures.
        candidate: With carriers.
        seed: Of the hosts drawn.

    Raises:
        InputError: If there are no pictures of other classes or no carriers, or nothing imitates
            the cue.
    """
    rng = np.random.default_rng(seed)
    hosts = rng.permutation(hosts_for(evidence, candidate))[:_MOST]
    if len(hosts) < 2 or not len(candidate.carriers):
        raise InputError(
            f"there are {len(hosts)} pictures of other classes and {len(candidate.carriers)} "
            "carriers; both are needed to put the cue in"
        )
    labels = torch.from_numpy(evidence.labels[hosts])
    clean = watched.load([evidence.samples[i] for i in hosts])
    if not candidate.local:
        return Attack(clean, _imitated(watched, evidence, candidate, hosts, rng), labels)
    shown = np.flatnonzero(candidate.regions.any((1, 2)))
    if not len(shown):
        raise InputError("no region of the candidate holds a pixel, so there is nothing to paste")
    # Host i takes carrier i, i + 2, ...: modulo an even number, odd and even never meet.
    if len(shown) > 2:
        shown = shown[: len(shown) // 2 * 2]
    pick = torch.arange(len(hosts)) % len(shown)
    source = watched.load([evidence.samples[i] for i in candidate.carriers[shown]])
    regions = torch.from_numpy(grown(candidate.regions[shown]))
    return Attack(clean, paste(clean, source[pick], regions[pick]), labels)


def _imitated(
    watched: Watched,
    evidence: Evidence,
    candidate: Candidate,
    hosts: NDArray[np.int64],
    rng: np.random.Generator,
) -> Tensor:
    without = np.setdiff1d(evidence.of_class(candidate.label), candidate.carriers)
    without = rng.permutation(without)[:_SEARCHED]
    shown = candidate.carriers[:_SEARCHED]
    found = imitate(watched, evidence, candidate, shown, without) if len(without) else None
    if found is None:
        raise InputError("no change of whole pictures imitates the cue, so it cannot be put in")
    return watched.load([evidence.samples[i] for i in hosts], found.change)
