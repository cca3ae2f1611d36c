"""A cue that nearly all pictures of a class show at a place: its carriers and its direction.

The class has no pictures without it, so those are taken from other classes: the ones that show no
more at the place than is usual.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.changes import grown, paste
from vimlrp.audit.drilling.concepts import pattern, unit
from vimlrp.audit.records import Candidate, ClassScore, Evidence, PlaceShare
from vimlrp.audit.screening.places import PLACES, place_mask, shares
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError

__all__ = ["bystanders", "drill_place", "hosts_for"]

_FEWEST = 3
_MOST = 64


def bystanders(evidence: Evidence, label: int, place: PlaceShare) -> NDArray[np.int64]:
    """Pictures of other classes that show no more at a place than is usual, ascending; no copies.

    Args:
        evidence: Of the audited pictures.
        label: Index of the class that does show more.
        place: Where.
    """
    rows = np.arange(len(evidence))
    known = _shares_at(evidence, place)
    with np.errstate(invalid="ignore"):
        plain = known <= place.usual  # NaN is not
    return rows[plain & (evidence.labels != label) & (evidence.originals == rows)]


def hosts_for(evidence: Evidence, candidate: Candidate) -> NDArray[np.int64]:
    """Pictures of other classes that a cue may be put into, ascending; no copies.

    Args:
        evidence: Of the audited pictures.
        candidate: Whose cue it is; of one that was found by comparing classes, `bystanders`.
    """
    if candidate.place is not None:
        return bystanders(evidence, candidate.label, candidate.place)
    rows = np.arange(len(evidence))
    return rows[(evidence.labels != candidate.label) & (evidence.originals == rows)]


def drill_place(
    model: nn.Module, evidence: Evidence, score: ClassScore, *, most: int = _MOST, seed: int = 0
) -> Candidate:
    """The candidate of a class that stands out among others at a place.

    Carriers are all pictures of the class that show more there than is usual, and the place is the
    region of each. The direction is a pattern over pictures of other classes: onto half of the
    copies of each the place is pasted from a carrier, and onto the other half from one more
    picture without the cue, so that a paste as such and the difference between classes are no part
    of it. Properties of pictures are not compared: from other classes a class differs in many.

    Args:
        model: That the evidence was gathered with.
        evidence: Of the audited pictures.
        score: Of a comparison of classes.
        most: Pictures to paste onto, and carriers whose region is kept, at most.
        seed: Of the pictures drawn.

    Returns:
        The candidate; without a direction (zeros), carriers and regions where there are under 3
        carriers, or under 6 pictures of other classes without the cue.

    Raises:
        InputError: If the score is none of a comparison, the layer is not the model's, or a picture
            cannot be read.
    """
    place = score.place
    if place is None or place.name not in PLACES:
        raise InputError(
            f"the score of class {score.label} by {score.channel} names no place of "
            f"{', '.join(PLACES)}: give one of a comparison of classes"
        )
    watched = Watched(model, evidence.layer)
    members, shown = _members(evidence, score.label, place)
    carriers = members[shown > place.usual]
    own = carriers[evidence.originals[carriers] == carriers]
    plain = np.random.default_rng(seed).permutation(bystanders(evidence, score.label, place))
    if len(own) < _FEWEST or len(plain) < 2 * _FEWEST:
        carriers = carriers[:0]
    mask = place_mask(place.name, *watched.preprocessing.size)
    direction = np.zeros(evidence.activations.shape[1], dtype=np.float32)
    if len(carriers):
        pasted = own[:most], plain[::2][:most], plain[1::2][:most]
        direction = _direction(watched, evidence, mask, *pasted)
    return Candidate(
        label=score.label,
        channel=score.channel,
        seeds=score.cluster,
        direction=direction,
        members=members,
        scores=shown,
        carriers=carriers,
        regions=np.repeat(mask[None], min(len(carriers), most), axis=0),
        local=bool(len(carriers)),
        place=place,
    )


def _shares_at(evidence: Evidence, place: PlaceShare) -> NDArray[np.float64]:
    return shares(evidence.maps)[:, tuple(PLACES).index(place.name)]


def _members(
    evidence: Evidence, label: int, place: PlaceShare
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """All pictures of the class by falling share, and their shares; 0 for those without one."""
    members = np.flatnonzero(evidence.labels == label)
    known = np.nan_to_num(_shares_at(evidence, place)[members])
    order = np.lexsort((members, -known))
    return members[order], known[order].astype(np.float32)


def _direction(
    watched: Watched,
    evidence: Evidence,
    mask: NDArray[np.bool_],
    carriers: NDArray[np.int64],
    hosts: NDArray[np.int64],
    donors: NDArray[np.int64],
) -> NDArray[np.float32]:
    """What pasting from carriers changes in the layer and pasting from donors does not, (K,)."""
    x = watched.load([evidence.samples[i] for i in hosts])
    regions = torch.from_numpy(grown(np.repeat(mask[None], len(hosts), axis=0)))

    def pooled(sources: NDArray[np.int64]) -> Tensor:
        picked = np.resize(sources, len(hosts))
        return watched.pooled(
            paste(x, watched.load([evidence.samples[i] for i in picked]), regions)
        )

    values = torch.cat([pooled(carriers), pooled(donors)]).numpy()
    return unit(pattern(values, np.arange(len(values)) < len(hosts)))
