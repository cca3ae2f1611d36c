"""Proof that a model uses a cue: it is taken away, and put where it was not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.changes import REMOVALS, grown, paste, remove
from vimlrp.audit.drilling.place_cues import hosts_for
from vimlrp.audit.records import Candidate, Effect, Evidence, Finding, Verdict
from vimlrp.audit.verifying.effects import Pairs, attack_rate, effect_of, probability_change
from vimlrp.audit.verifying.ownership import (
    by_nature,
    note_on_lost_masks,
    off_object,
    without_objects,
)
from vimlrp.audit.verifying.verdicts import FEWEST, action_for, decide
from vimlrp.audit.verifying.whole import imitate
from vimlrp.audit.watching import Watched
from vimlrp.evaluation.data import Sample

__all__ = ["HOSTS", "Proof", "verify"]

HOSTS = 128
"""Pictures of other classes that a cue is put into, at most."""

_OFF = 0.5
# Below this share of the cue, what imitates it is named as a part of it.
_MOST = 0.7
_SEARCHED = 32


@dataclass(frozen=True, eq=False)
class Proof:
    """What was measured for a verdict.

    Args:
        effects: See `Finding`.
        spread: Standard deviation of the class's logit over pictures of other classes.
        notes: For the reader.
        of_file: Whether the cue is one of the file.
    """

    effects: tuple[Effect, ...]
    spread: float = float("nan")
    notes: tuple[str, ...] = ()
    of_file: bool = False


@dataclass(frozen=True, eq=False)
class _Case:
    """The samples of a proof, as rows of the evidence.

    Args:
        shown: Carriers, no copies.
        regions: Of these, (len(shown), H, W); none for a cue that is nowhere in particular.
        without: Samples of the class without the cue; of other classes, where it has none.
        hosts: Samples of other classes; without the cue, where it was found by comparing classes.
    """

    watched: Watched
    evidence: Evidence
    candidate: Candidate
    shown: NDArray[np.int64]
    regions: NDArray[np.bool_]
    without: NDArray[np.int64]
    hosts: NDArray[np.int64]
    seed: int

    @property
    def label(self) -> int:
        return self.candidate.label

    @property
    def samples(self) -> list[Sample]:
        return [self.evidence.samples[i] for i in self.shown]

    def load(self, rows: NDArray[np.int64]) -> Tensor:
        return self.watched.load([self.evidence.samples[i] for i in rows])


def verify(model: nn.Module, evidence: Evidence, candidate: Candidate, *, seed: int = 0) -> Finding:
    """Prove or disprove that a model uses a candidate's cue.

    **Removal** takes the regions out of carriers by inpainting, by their blurred surroundings and
    by the picture's mean colour, and reports the one that does least: an effect of the filling
    differs between them, one of the cue does not. **Insertion** pastes the regions onto pictures
    of other classes. **Transplant** is the same, less what the same place of a sample of the class
    without the cue does there. A cue that is nowhere in particular is imitated by a change of
    whole pictures instead, and its transplant is what that does to the class's logit less what it
    does to the mean logit of classes that the picture is not of.

    Every part of the object is causal, and samples may well share one. Where masks tell the
    object, what of the regions lies off it has to be causal by itself; if not, no effect of a cue
    is proven.

    A cue that was found by comparing classes has no samples of the class without it. Those that
    transplants are compared with, and those that it is pasted onto, are pictures of other classes
    that show no more at its place than is usual.

    Args:
        model: That the evidence was gathered with.
        evidence: Of the audited pictures.
        candidate: Of `vimlrp.audit.drilling.drill`.
        seed: Of everything drawn.

    Returns:
        The finding, with the verdict of `vimlrp.audit.verifying.verdicts`. It is called Clever Hans
        only where it is proven, and boxes, masks or its nature say that it lies off the object.

    Raises:
        InputError: If the layer is not the model's, or a picture cannot be read.
    """
    case = _case(model, evidence, candidate, seed)
    lacking = _lacking(case)
    if lacking:
        return _finding(candidate, Proof((), notes=(lacking,)), Verdict.NOT_ENOUGH)
    if not candidate.local:
        proof = _whole_proof(case)
        verdict = decide(proof.effects, proof.spread, local=False)
        return _finding(candidate, proof, verdict, hans=proof.of_file)
    proof = _local_proof(case)
    proof = replace(proof, notes=(*proof.notes, *note_on_lost_masks(case.samples)))
    verdict = decide(proof.effects, proof.spread, local=True)
    share = off_object(case.samples, case.regions, case.watched.preprocessing)
    hans = by_nature(candidate) or (share is not None and share >= _OFF)
    off = _off_the_object(case)
    if verdict is Verdict.CAUSAL and off is not None:
        own = _local_proof(off)
        hans = decide(own.effects, own.spread, local=True) is Verdict.CAUSAL
        verdict = verdict if hans else Verdict.ASSOCIATIVE
        proof = replace(proof, notes=(*proof.notes, _note_on(own, hans)))
    return _finding(candidate, proof, verdict, share, hans=hans)


def _case(model: nn.Module, evidence: Evidence, candidate: Candidate, seed: int) -> _Case:
    rng = np.random.default_rng(seed)
    own = evidence.of_class(candidate.label)
    carriers = candidate.carriers
    without = rng.permutation(np.setdiff1d(own, evidence.originals[carriers]))
    others = hosts_for(evidence, candidate)
    if candidate.place is not None:
        plain = rng.permutation(others)
        without, others = plain[::2], plain[1::2]
    _, first = np.unique(evidence.originals[carriers], return_index=True)
    kept = np.sort(first)
    regions = candidate.regions
    if candidate.local:
        kept = kept[kept < len(regions)]
        kept = kept[regions[kept].any((1, 2))]
        regions = grown(regions[kept])
    return _Case(
        Watched(model, evidence.layer),
        evidence,
        candidate,
        carriers[kept],
        regions,
        without[:HOSTS],
        rng.permutation(others)[:HOSTS],
        seed,
    )


def _off_the_object(case: _Case) -> _Case | None:
    """The case of what lies off the object; None where that is not known of enough carriers."""
    left = without_objects(case.samples, case.regions, case.watched.preprocessing)
    kept = np.flatnonzero(left.any((1, 2)))
    if len(kept) < FEWEST:
        return None
    return replace(case, shown=case.shown[kept], regions=left[kept])


def _note_on(own: Proof, proven: bool) -> str:
    """What the part off the object does by itself."""
    listed = ", ".join(
        f"{effect.kind} {effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"
        for effect in own.effects
        if effect.kind != "insertion"
    )
    said = "has its effect too" if proven else "proves none, so that the effect may be the object's"
    return f"what of the regions lies off the object {said}: {listed}"


def _lacking(case: _Case) -> str:
    """What keeps the samples from a proof, or nothing."""
    if len(case.shown) < FEWEST:
        what = "carriers with a region" if case.candidate.local else "carriers"
        return f"{len(case.shown)} {what}, copies left out; {FEWEST} are needed"
    if len(case.without) < FEWEST:
        whose = "the class" if case.candidate.place is None else "other classes"
        return f"{len(case.without)} samples of {whose} without the cue; {FEWEST} are needed"
    return ""


def _local_proof(case: _Case) -> Proof:
    x, regions = case.load(case.shown), torch.from_numpy(case.regions)
    watched = case.watched
    before = watched.logits(x)
    removed = {
        kind: Pairs(before, watched.logits(remove(x, regions, kind, watched.preprocessing)))
        for kind in REMOVALS
    }
    removal, note = _weakest(case, removed)
    if len(case.hosts) < FEWEST:
        return Proof((removal,), notes=(note, _no_hosts(case)))
    put, spread = _put_in(case, x, regions)
    return Proof((removal, *put[0]), spread, (note, *put[1]))


def _weakest(case: _Case, removed: Mapping[str, Pairs]) -> tuple[Effect, str]:
    """The removal whose interval reaches highest, and a line on the others."""
    effects = {
        kind: effect_of("removal", pairs.differences(case.label), seed=case.seed)
        for kind, pairs in removed.items()
    }
    kind = max(effects, key=lambda name: effects[name].high)
    listed = ", ".join(f"{name} {effect.mean:+.2f}" for name, effect in effects.items())
    change = probability_change(removed[kind], case.label)
    return effects[kind], (
        f"removal by {listed}: the weakest counts, by which the probability of the class changes "
        f"by {change:+.1%}"
    )


def _put_in(
    case: _Case, x: Tensor, regions: Tensor
) -> tuple[tuple[tuple[Effect, ...], tuple[str, ...]], float]:
    hosts = case.load(case.hosts)
    pick = torch.arange(len(hosts)) % len(x)  # the carrier of each host
    own = case.load(case.without)
    other = own[torch.arange(len(hosts)) % len(own)]
    before = case.watched.logits(hosts)
    with_cue = Pairs(before, case.watched.logits(paste(hosts, x[pick], regions[pick])))
    matched = Pairs(before, case.watched.logits(paste(hosts, other, regions[pick])))
    gained = with_cue.differences(case.label)
    groups, label = pick.numpy(), case.label
    rates = [attack_rate(pairs, label) for pairs in (with_cue, matched)]
    insertion = effect_of("insertion", gained, groups=groups, attacked=rates[0], seed=case.seed)
    transplant = effect_of(
        "transplant",
        gained - matched.differences(label),
        groups=groups,
        attacked=rates[0] - rates[1],
        seed=case.seed,
    )
    note = f"insertion changes the probability by {probability_change(with_cue, label):+.1%}"
    return ((insertion, transplant), (note,)), float(before[:, label].std())


def _whole_proof(case: _Case) -> Proof:
    if len(case.hosts) < FEWEST:
        return Proof((), notes=(_no_hosts(case),))
    shown, without = case.shown[:_SEARCHED], case.without[:_SEARCHED]
    found = imitate(case.watched, case.evidence, case.candidate, shown, without)
    if found is None:
        return Proof((), notes=("neither compression, blur nor colours imitate the cue",))
    samples = [case.evidence.samples[i] for i in case.hosts]
    pairs = Pairs(
        case.watched.logits(case.watched.load(samples)),
        case.watched.logits(case.watched.load(samples, found.change)),
    )
    gained, label = pairs.differences(case.label), case.label
    rate = attack_rate(pairs, label)
    effects = [
        effect_of("insertion", gained, attacked=rate, seed=case.seed),
        effect_of("transplant", gained - _elsewhere(case, pairs), attacked=rate, seed=case.seed),
    ]
    if found.undo is not None:
        carriers = [case.evidence.samples[i] for i in case.shown]
        undone = Pairs(
            case.watched.logits(case.watched.load(carriers)),
            case.watched.logits(case.watched.load(carriers, found.undo)),
        )
        effects.append(effect_of("removal", undone.differences(label), seed=case.seed))
    part = "" if found.reached >= _MOST else ", a part of it"
    note = f"the cue is imitated by {found.name} ({found.reached:.0%} of it{part})"
    return Proof(tuple(effects), float(pairs.before[:, label].std()), (note,), found.of_file)


def _elsewhere(case: _Case, pairs: Pairs) -> NDArray[np.float64]:
    """Change of the mean logit of classes that are neither the audited nor the picture's, (n,)."""
    change = (pairs.after - pairs.before).numpy()
    counted = np.ones(change.shape, dtype=bool)
    counted[:, case.label] = False
    counted[np.arange(len(change)), case.evidence.labels[case.hosts]] = False
    if not counted.any():
        return np.zeros(len(change))
    return np.asarray((change * counted).sum(1) / counted.sum(1))


def _no_hosts(case: _Case) -> str:
    return (
        f"{len(case.hosts)} pictures of other classes: without {FEWEST} the cue cannot be put "
        "where it was not"
    )


def _finding(
    candidate: Candidate,
    proof: Proof,
    verdict: Verdict,
    off_share: float | None = None,
    *,
    hans: bool = False,
) -> Finding:
    clever_hans = hans and verdict in (Verdict.CAUSAL, Verdict.NON_LOCAL)
    return Finding(
        candidate=candidate,
        effects=proof.effects,
        verdict=verdict,
        off_object=off_share,
        clever_hans=clever_hans,
        action=action_for(verdict, clever_hans=clever_hans, shared=candidate.place is not None),
        notes=proof.notes,
    )
