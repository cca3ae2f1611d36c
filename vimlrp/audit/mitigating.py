"""Fit a mitigation to a finding, and measure what it does."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.attacking import Attack, attack_of
from vimlrp.audit.mitigation import Attached, Mitigation, layer_of
from vimlrp.audit.place_cues import bystanders
from vimlrp.audit.records import Evidence, Finding, Verdict
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError
from vimlrp.evaluation.fingerprints import weights_hash
from vimlrp.modes import evaluation_mode

__all__ = ["MitigationReport", "Outcome", "evaluate_mitigation", "mitigate"]

_MOST = 128
_BATCH = 64
# What a mitigation may cost in accuracy on clean pictures where others recover less for nothing.
_COST = 0.01
# So much recovery is worth giving up for one that does not touch pictures without the cue.
_UNTOUCHED = 0.1


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

    Directions are patterns: of the greatest activations over positions, and of their means. One or
    both are taken, for all pictures or only for those that show the cue: whichever recovers most
    on half of the carriers and hosts without costing accuracy there, and rather one that leaves
    other pictures alone. `evaluate_mitigation` measures on the other half.

    Where nearly all pictures of the class show the cue, those without it are of other classes, and
    accuracy on the class is that on its pictures as they are.

    Args:
        model: That the evidence was gathered with; it is left as it is.
        evidence: Of the audited pictures.
        finding: Causal or non-local.
        rank: Number of directions, 1 or 2; None to choose.
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
    if rank not in (None, 1, 2):
        raise InputError(f"rank is {rank}; give 1, 2, or None to choose")
    layer_of(model, evidence.layer)
    watched = Watched(model, evidence.layer)
    attack = attack_of(watched, evidence, finding.candidate, seed=seed).half(0)
    label = finding.candidate.label
    variants = _variants(model, watched, evidence, finding, rank, reactive, seed)
    clean = _clean(watched, evidence, finding, seed, 0)
    tried = [
        (mitigation, _report(model, mitigation.attach, attack, clean, label))
        for mitigation in variants
    ]
    cheap = [pair for pair in tried if pair[1].cost <= _COST] or tried
    best, report = max(cheap, key=lambda p: p[1].recovery + _UNTOUCHED * p[0].reactive)
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
    rank: int | None,
    reactive: bool | None,
    seed: int,
) -> Iterator[Mitigation]:
    candidate = finding.candidate
    rng = np.random.default_rng(seed)
    without = np.setdiff1d(evidence.of_class(candidate.label), candidate.carriers)
    if candidate.place is not None:
        without = bystanders(evidence, candidate.label, candidate.place)
    shown, plain = (
        _activations(watched, evidence, rows[:_MOST])
        for rows in (candidate.carriers, rng.permutation(without))
    )
    others = _activations(watched, evidence, _others(evidence, candidate.label, rng))
    gate = torch.from_numpy(candidate.direction)
    mean = shown.means.mean(0) - plain.means.mean(0)
    clean_scores = torch.cat([plain.greatest, others.greatest]) @ gate
    threshold = _threshold(shown.greatest @ gate, clean_scores)
    fingerprint = weights_hash(model)
    for directions in _spans(gate, mean, rank):
        for limit in (threshold, None):
            if reactive is None or reactive == (limit is not None):
                yield Mitigation(
                    evidence.layer,
                    directions,
                    plain.means.mean(0) @ directions.T,
                    gate,
                    limit,
                    candidate.label,
                    fingerprint,
                )


def _spans(greatest: Tensor, mean: Tensor, rank: int | None) -> Iterator[Tensor]:
    if rank != 2:
        yield from (_orthonormal([greatest]), _orthonormal([mean]))
    if rank != 1:
        yield _orthonormal([greatest, mean])


def _orthonormal(directions: Sequence[Tensor]) -> Tensor:
    """Rows that span the directions, (r, K); one that adds nothing is left out."""
    stacked = torch.stack([d / d.norm().clamp(min=1e-12) for d in directions]).double()
    _, sizes, rows = torch.linalg.svd(stacked, full_matrices=False)
    return rows[sizes > 1e-4].float()


@dataclass(frozen=True, eq=False)
class _Activations:
    """Of n pictures: greatest and mean over positions, (n, K) each."""

    greatest: Tensor
    means: Tensor


def _activations(watched: Watched, evidence: Evidence, rows: NDArray[np.int64]) -> _Activations:
    greatest, means = [], []
    for start in range(0, len(rows), _BATCH):
        x = watched.load([evidence.samples[i] for i in rows[start : start + _BATCH]])
        for part in watched.activations(x):  # (b, P, K)
            greatest.append(part.amax(1))
            means.append(part.mean(1))
    return _Activations(torch.cat(greatest), torch.cat(means))


def _others(evidence: Evidence, label: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rows = np.flatnonzero(evidence.labels != label)
    return rng.permutation(rows)[:_MOST]


def _threshold(shown: Tensor, clean: Tensor) -> float:
    """Halfway between the weakest carriers and the strongest pictures without the cue."""
    return float((torch.quantile(shown, 0.05) + torch.quantile(clean, 0.99)) / 2)


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
