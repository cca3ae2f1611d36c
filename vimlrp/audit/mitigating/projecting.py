"""Fit a mitigation to a finding, and measure what it does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.drilling.place_cues import bystanders
from vimlrp.audit.mitigating.attacking import Attack, attack_of
from vimlrp.audit.mitigating.mitigation import Attached, Mitigation, layer_of
from vimlrp.audit.mitigating.subspaces import Gate, gate_of, subspace_of
from vimlrp.audit.records import Candidate, Evidence, Finding, Verdict
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError
from vimlrp.evaluation.fingerprints import weights_hash
from vimlrp.modes import evaluation_mode

__all__ = ["RANKS", "MitigationReport", "Outcome", "evaluate_mitigation", "mitigate"]

RANKS = (1, 2, 4)
"""Numbers of directions to choose from."""

_MOST = 128
_BATCH = 64
# Samples without the cue that the gate is set by, at most.
_KNOWN = 4096
# What a mitigation may cost in accuracy on clean pictures where others recover less for nothing.
_COST = 0.01
# So much recovery is worth giving up for one that does not touch pictures without the cue.
_UNTOUCHED = 0.2


@dataclass(frozen=True)
class Outcome:
    """A model on pictures of a kind.

    Args:
        clean: Accuracy on pictures without the cue.
        attacked: Accuracy on pictures of other classes with the cue.
        attack_rate: Share of these that are taken for the cue's class.
        effect: Median magnitude of what the cue does to the class's logit.
    """

    clean: float
    attacked: float
    attack_rate: float
    effect: float


@dataclass(frozen=True)
class MitigationReport:
    """A model before and after.

    Args:
        before: Without the mitigation.
        after: With it.
        count: Pairs of pictures with and without the cue.
    """

    before: Outcome
    after: Outcome
    count: int

    @property
    def recovery(self) -> float:
        """R = 1 - median|e after| / median|e before|; 1 is all, and below 0 it got worse."""
        if self.before.effect == 0:
            return float("nan")
        return 1 - self.after.effect / self.before.effect

    @property
    def cost(self) -> float:
        """Loss of accuracy on clean pictures, as a share."""
        return self.before.clean - self.after.clean


def mitigate(
    model: nn.Module,
    evidence: Evidence,
    finding: Finding,
    *,
    rank: int | None = None,
    reactive: bool | None = None,
    seed: int = 0,
) -> Mitigation:
    """Fit P-ClArC to a proven finding.

    Directions are those that the cue moves activations along when it is put into pictures of other
    classes (`vimlrp.audit.mitigating.subspaces`). One, two or four are taken, for all pictures or
    only for those that show the cue: whichever recovers most on half of the carriers and hosts, of
    the logit and of accuracy, without costing accuracy there, and rather one that leaves other
    pictures alone. `evaluate_mitigation` measures on the other half.

    Where nearly all pictures of the class show the cue, those without it are of other classes, and
    accuracy on the class is that on its pictures as they are.

    Args:
        model: That the evidence was gathered with; it is left as it is.
        evidence: Of the audited pictures.
        finding: Causal or non-local.
        rank: Number of directions, one of `RANKS`; None to choose.
        reactive: Whether to correct only pictures that show the cue; None to choose.
        seed: Of everything drawn.

    Raises:
        InputError: If the finding is not proven: where a model relies little on a cue, a
            correction along its direction does harm and recovers nothing. Also if no variant
            recovers anything, or rank is neither.
    """
    if finding.verdict not in (Verdict.CAUSAL, Verdict.NON_LOCAL):
        raise InputError(
            f"the finding is {finding.verdict.value!r}: a mitigation needs a proven effect, "
            "since without one it harms and recovers nothing; verify with more pictures first"
        )
    if rank is not None and rank not in RANKS:
        raise InputError(f"rank is {rank}; give one of {RANKS}, or None to choose")
    layer_of(model, evidence.layer)
    watched = Watched(model, evidence.layer)
    attack = attack_of(watched, evidence, finding.candidate, seed=seed).half(0)
    label = finding.candidate.label
    variants = _variants(model, watched, evidence, finding, attack, rank, reactive, seed)
    clean = _clean(watched, evidence, finding, seed, 0)
    tried = [
        (mitigation, _report(model, mitigation.attach, attack, clean, label))
        for mitigation in variants
    ]
    cheap = [pair for pair in tried if pair[1].cost <= _COST] or tried
    best, report = max(
        cheap, key=lambda p: p[1].recovery + p[1].after.attacked + _UNTOUCHED * p[0].reactive
    )
    if not report.recovery > 0:
        raise InputError(
            f"no direction of {evidence.layer} recovers the effect (at best "
            f"{report.recovery:.2f} of it): gather evidence at another layer, {_otherwise(finding)}"
            " and train again"
        )
    return best


def _otherwise(finding: Finding) -> str:
    place = finding.candidate.place
    if place is None:
        return "tune the head, or drop the carriers"
    return f"or crop or inpaint the training pictures ({place.name})"


def evaluate_mitigation(
    model: nn.Module,
    evidence: Evidence,
    finding: Finding,
    change: Mitigation | Callable[[nn.Module], Attached],
    *,
    seed: int = 0,
) -> MitigationReport:
    """Measure a model before and after a mitigation, on pictures that it was not fitted to.

    Args:
        model: As for `mitigate`, as are `evidence` and `finding`.
        evidence: See there.
        finding: See there.
        change: A mitigation, or anything that attaches to a model, such as the `attach` of a
            tuned head.
        seed: That of `mitigate`.

    Raises:
        InputError: If the cue cannot be put into other pictures.
    """
    watched = Watched(model, evidence.layer)
    attack = attack_of(watched, evidence, finding.candidate, seed=seed).half(1)
    attach = change.attach if isinstance(change, Mitigation) else change
    clean = _clean(watched, evidence, finding, seed, 1)
    return _report(model, attach, attack, clean, finding.candidate.label)


def _variants(
    model: nn.Module,
    watched: Watched,
    evidence: Evidence,
    finding: Finding,
    attack: Attack,
    rank: int | None,
    reactive: bool | None,
    seed: int,
) -> Iterator[Mitigation]:
    candidate = finding.candidate
    plain = _without(evidence, candidate, seed)
    own, _ = _clean(watched, evidence, finding, seed, 0)
    if candidate.place is not None:  # the class has hardly any without the cue
        own = watched.load([evidence.samples[i] for i in plain[:_MOST]])
    subspace = subspace_of(watched, attack, own, max(RANKS))
    gate = _gate(watched, evidence, candidate, attack, own, plain)
    fingerprint = weights_hash(model)
    for size in RANKS if rank is None else (rank,):
        for limit in (gate.threshold, None):
            if reactive is None or reactive == (limit is not None):
                yield Mitigation(
                    evidence.layer,
                    subspace.directions[:size],
                    subspace.targets[:size],
                    gate.direction,
                    limit,
                    candidate.label,
                    fingerprint,
                )


def _without(evidence: Evidence, candidate: Candidate, seed: int) -> NDArray[np.int64]:
    """Samples of all classes that do not show the cue, in any order."""
    if candidate.place is None:
        plain = np.setdiff1d(np.arange(len(evidence)), candidate.carriers)
    else:
        plain = bystanders(evidence, candidate.label, candidate.place)
    return np.random.default_rng(seed).permutation(plain)[:_KNOWN]


def _gate(
    watched: Watched,
    evidence: Evidence,
    candidate: Candidate,
    attack: Attack,
    own: Tensor,
    plain: NDArray[np.int64],
) -> Gate:
    pairs = watched.pooled(attack.clean), watched.pooled(attack.attacked)
    # Against other classes, carriers would tell the class and not the cue.
    within = pairs[1], pairs[0]
    if candidate.place is None:
        shown = watched.load([evidence.samples[i] for i in candidate.carriers[:_MOST]])
        within = watched.pooled(shown), watched.pooled(own)
    return gate_of(
        pairs,
        *within,
        # Values beyond the range of float16 were kept as infinite: they are at least its greatest.
        np.nan_to_num(evidence.activations[plain]).astype(np.float64),
    )


def _clean(
    watched: Watched, evidence: Evidence, finding: Finding, seed: int, half: int
) -> tuple[Tensor, Tensor]:
    """Samples of the class without the cue, and their labels: the first or second half.

    All samples, where hardly one lacks it: a mitigation must not cost the class its recognition.
    """
    candidate = finding.candidate
    without = evidence.of_class(candidate.label)
    if candidate.place is None:
        without = np.setdiff1d(without, candidate.carriers)
    rows = np.random.default_rng(seed).permutation(without)[: 2 * _MOST][half::2]
    x = watched.load([evidence.samples[i] for i in rows])
    return x, torch.from_numpy(evidence.labels[rows])


def _report(
    model: nn.Module,
    attach: Callable[[nn.Module], Attached],
    attack: Attack,
    clean: tuple[Tensor, Tensor],
    label: int,
) -> MitigationReport:
    before = _outcome(model, attack, *clean, label)
    with attach(model):
        after = _outcome(model, attack, *clean, label)
    return MitigationReport(before, after, len(attack.clean))


def _outcome(
    model: nn.Module, attack: Attack, clean: Tensor, labels: Tensor, label: int
) -> Outcome:
    hosts, attacked, own = (_logits(model, x) for x in (attack.clean, attack.attacked, clean))
    right = torch.cat([hosts.argmax(1) == attack.labels, own.argmax(1) == labels])
    effect = (attacked - hosts)[:, label].abs().median()
    return Outcome(
        clean=float(right.double().mean()),
        attacked=float((attacked.argmax(1) == attack.labels).double().mean()),
        attack_rate=float((attacked.argmax(1) == label).double().mean()),
        effect=float(effect),
    )


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of the model itself, with what is attached to it; (n, C) float64 on the CPU."""
    with torch.no_grad(), evaluation_mode(model):
        parts = [model(piece).double().cpu() for piece in x.split(_BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, 1, dtype=torch.float64)
