"""A classifier's last layer fitted anew to samples that do not show a cue.

The features may hold both the cue and the object; on samples of which only the object tells the
class, the last layer learns to read that (Kirichenko et al., ICLR 2023; on images of low
spuriosity: Moayeri et al., NeurIPS 2023). Where no sample shows the cue, though, nothing is learnt
about the features that see it. So samples of other classes with the cue put in count as much as all
others together, and the class's logit is held to what it is without the cue (logit pairing: Kannan
et al., 2018; of counterfactuals: Garg et al., AIES 2019).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.mitigating.attacking import attack_of
from vimlrp.audit.mitigating.mitigation import (
    Attached,
    check_same_model,
    layer_of,
    read_tensors,
    write_tensors,
)
from vimlrp.audit.records import Candidate, Evidence
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.evaluation.fingerprints import weights_hash
from vimlrp.modes import evaluation_mode

__all__ = ["HeadTuning", "tune_head"]

_FORMAT = "vimlrp head 1"
_FEWEST = 8
_BATCH = 64
_LEAST = 1e-6  # a squared change of a logit that is none


@dataclass(frozen=True, eq=False)
class HeadTuning:
    """Weights for a model's last layer.

    Args:
        layer: Its name.
        weight: (C, D) float32.
        bias: (C,) float32.
        label: The class whose cue was left out.
        fingerprint: Hash of the weights of the model that it belongs to.
    """

    layer: str
    weight: Tensor
    bias: Tensor
    label: int
    fingerprint: str

    def attach(self, model: nn.Module) -> Attached:
        """Let a model use these weights until the handle is removed; its own stay as they are.

        Args:
            model: The one it was fitted on.

        Raises:
            InputError: If it is another model.
        """
        check_same_model(model, self.fingerprint, "tuned head")

        def replace(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
            (features,) = args
            return F.linear(features, self.weight.to(output), self.bias.to(output))

        return Attached(layer_of(model, self.layer).register_forward_hook(replace).remove)

    def save(self, path: str | Path) -> Path:
        """Write it to a safetensors file, in one step.

        Args:
            path: Of the file.
        """
        known = {
            "format": _FORMAT,
            "layer": self.layer,
            "label": self.label,
            "fingerprint": self.fingerprint,
        }
        return write_tensors(path, {"weight": self.weight, "bias": self.bias}, known)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module) -> "HeadTuning":
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: Of the file.
            model: Will use it.

        Raises:
            InputError: If the file is no head, or one of another model.
        """
        tensors, known = read_tensors(path, _FORMAT)
        try:
            tuned = cls(
                str(known["layer"]),
                tensors["weight"],
                tensors["bias"],
                int(known["label"]),
                str(known["fingerprint"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is a damaged head: {error}") from error
        check_same_model(model, tuned.fingerprint, f"head in {path}")
        return tuned


def tune_head(
    model: nn.Module,
    evidence: Evidence,
    candidate: Candidate,
    *,
    steps: int = 300,
    rate: float = 0.01,
    pull: float = 0.01,
    most: int = 1300,
    counterexamples: bool = True,
    seed: int = 0,
) -> HeadTuning:
    """Fit the last layer to samples without the cue, every class with the same weight.

    Starts at the model's own weights and is pulled back to them. Only classes that the evidence
    has samples of are told apart and changed.

    Args:
        model: That the evidence was gathered with; it is left as it is.
        evidence: Of the audited pictures.
        candidate: Whose carriers are left out.
        steps: Of Adam, each on all features at once.
        rate: Of learning, relative to the weights' root mean square.
        pull: Weight of the mean squared move of the weights, relative to their mean square.
        most: Samples of a class to use, at most.
        counterexamples: Whether to add pictures of other classes with the cue put in. Those that
            `vimlrp.audit.mitigating.evaluate_mitigation` measures on are not among them.
        seed: Of all drawing; the same for the evaluation.

    Raises:
        InputError: If the class has under 8 samples without the cue, there is no other class, the
            cue cannot be put into others, or an option is out of its range.
        UnsupportedModelError: If the model does not end in one linear layer.
    """
    if steps < 1 or not rate > 0 or pull < 0 or most < 1:
        raise InputError(
            f"steps {steps}, rate {rate}, pull {pull}, most {most}; give at least 1 step and "
            "sample, a rate above 0 and a pull of 0 or more"
        )
    rows = _rows(evidence, candidate, most, seed)
    name, head = _head(model)
    watched = Watched(model, evidence.layer)
    labels = torch.from_numpy(evidence.labels[rows])
    features = _features(model, head, _loaded(watched, evidence, rows), len(labels))
    pairs = None
    if counterexamples:
        attack = attack_of(watched, evidence, candidate, seed=seed).half(0)
        clean, attacked = (
            _features(model, head, x.split(_BATCH), len(x)) for x in (attack.clean, attack.attacked)
        )
        known = attack.labels >= 0
        pairs = _Pairs(clean[known], attacked[known], attack.labels[known], candidate.label)
    weight, bias = _fitted(head, features, labels, pairs, steps, rate, pull)
    return HeadTuning(name, weight, bias, candidate.label, weights_hash(model))


def _rows(evidence: Evidence, candidate: Candidate, most: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    rows = []
    for label in np.unique(evidence.labels[evidence.labels >= 0]):
        own = np.setdiff1d(evidence.of_class(int(label)), candidate.carriers)
        if label == candidate.label and len(own) < _FEWEST:
            raise InputError(
                f"{len(own)} samples of the class do not show the cue; {_FEWEST} are needed to fit "
                "the last layer to: add some, or crop or inpaint the cue in the training pictures"
            )
        rows.append(np.sort(rng.permutation(own)[:most]))
    if len(rows) < 2:
        raise InputError("the evidence has one class, and there is nothing to tell it from")
    return np.concatenate(rows)


def _head(model: nn.Module) -> tuple[str, nn.Module]:
    get: Any = getattr(model, "get_classifier", None)
    head = get() if get is not None else None
    if head is None:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        head = linear[-1] if linear else None
    name = next((name for name, module in model.named_modules() if module is head), None)
    weight = getattr(head, "weight", None)
    if not isinstance(head, nn.Module) or name is None or getattr(weight, "ndim", 0) != 2:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not end in one linear layer that could be fitted anew"
        )
    return name, head


def _loaded(watched: Watched, evidence: Evidence, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    for start in range(0, len(rows), _BATCH):
        yield watched.load([evidence.samples[i] for i in rows[start : start + _BATCH]])


def _features(model: nn.Module, head: nn.Module, pictures: Iterable[Tensor], count: int) -> Tensor:
    """What enters the last layer, (n, D) float32 on the CPU."""
    parts: list[Tensor] = []
    with torch.no_grad(), evaluation_mode(model), _kept_inputs(head, parts):
        for batch in pictures:
            model(batch)
    features = torch.cat(parts)
    if len(features) != count or features.dim() != 2:
        raise UnsupportedModelError(
            f"the last layer of {type(model).__name__} is given {tuple(features.shape)} for "
            f"{count} pictures; one row of features a picture is needed"
        )
    return features


@contextmanager
def _kept_inputs(head: nn.Module, parts: list[Tensor]) -> Iterator[None]:
    def keep(_module: nn.Module, args: Any) -> None:
        parts.append(args[0].detach().float().cpu())

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Features of other classes' pictures without and with a cue, (m, D), and their labels (m,)."""

    clean: Tensor
    attacked: Tensor
    labels: Tensor
    cue_of: int

    def loss(self, weight: Tensor, bias: Tensor, present: Tensor, start: Tensor) -> Tensor:
        """Error on pictures with the cue, and what is left of its effect on its class's logit."""
        target = torch.searchsorted(present, self.labels.contiguous())
        error = F.cross_entropy(F.linear(self.attacked, weight, bias), target)
        change = self.attacked - self.clean
        own = present == self.cue_of
        before = (change @ start[own].T).square().mean()
        return error + (change @ weight[own].T).square().mean() / before.clamp(min=_LEAST)


def _fitted(
    head: Any,
    features: Tensor,
    labels: Tensor,
    pairs: _Pairs | None,
    steps: int,
    rate: float,
    pull: float,
) -> tuple[Tensor, Tensor]:
    own = head.weight.detach().float().cpu()
    offset = own.new_zeros(len(own)) if head.bias is None else head.bias.detach().float().cpu()
    present, target = labels.unique(return_inverse=True)
    weight, bias = own[present].clone(), offset[present].clone()
    scale = float(own.square().mean()) or 1.0
    share = 1 / torch.bincount(target).float()
    start = weight.clone()
    with torch.enable_grad():
        weight.requires_grad_()
        bias.requires_grad_()
        optimiser = torch.optim.Adam([weight, bias], lr=rate * scale**0.5)
        for _ in range(steps):
            loss = F.cross_entropy(F.linear(features, weight, bias), target, weight=share)
            if pairs is not None:
                loss = loss + pairs.loss(weight, bias, present, start)
            loss = loss + pull * (weight - start).square().mean() / scale
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    tuned, tuned_bias = own.clone(), offset.clone()
    tuned[present], tuned_bias[present] = weight.detach(), bias.detach()
    return tuned, tuned_bias
