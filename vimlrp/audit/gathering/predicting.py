"""The second stage: what the model says of every picture."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vimlrp.audit.gathering.reading import Pictures, read_pictures
from vimlrp.audit.gathering.selection import labels_of
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.parts import Part
from vimlrp.evaluation.running import Progress
from vimlrp.inference import Inference
from vimlrp.inputs import preprocessing_of
from vimlrp.optional import optional

__all__ = ["Agreement", "Predictions", "agreement", "predict", "read_predictions"]

_STAGE = "predict"
_TOP = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of n of the samples.

    Args:
        rows: Indices of the samples, (n,) int64.
        labels: Their classes, (n,) int64; -1 where unknown.
        classes: The most probable classes, most probable first, (n, 5 or fewer) int64.
        probabilities: Of those, float32.
        losses: Cross entropy of the label, (n,) float32; NaN where it is unknown.
        problems: Pictures that could not be classified.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    losses: NDArray[np.float32]
    problems: tuple[Problem, ...]


def predict(
    workspace: Workspace,
    model: nn.Module,
    rows: NDArray[np.int64],
    progress: Progress | None = None,
) -> Predictions:
    """Classify what is not yet in the workspace.

    Args:
        workspace: Of the audit.
        model: The classifier.
        rows: Indices of the samples to look at.
        progress: Is told how many samples are done.

    Raises:
        InputError: If a part cannot be written.
    """
    size = int(workspace.settings["batch_size"])
    inference = Inference(model, batch_size=size)
    labels = labels_of(workspace.samples)

    def classify(pictures: Pictures) -> Part:
        return _classified(inference, pictures, labels[pictures.rows])

    read = partial(_read, workspace, model)
    workspace.run(_STAGE, rows, size, read, classify, progress)
    return read_predictions(workspace, rows)


def read_predictions(workspace: Workspace, rows: NDArray[np.int64]) -> Predictions:
    """What the finished stage found.

    Args:
        workspace: Of the audit.
        rows: Indices of the samples that it looked at.

    Raises:
        InputError: If the stage is not finished, or no picture could be classified.
    """
    part = workspace.joined(_STAGE, len(rows), int(workspace.settings["batch_size"]))
    found = part.arrays["row"]
    if not len(found):
        raise InputError(
            f"none of the {len(rows)} pictures could be classified; the first: "
            f"{part.problems[0].detail}"
        )
    arrays = {key: part.arrays[key] for key in ("classes", "probabilities", "losses")}
    labels = labels_of(workspace.samples)[found]
    return Predictions(found, labels, problems=tuple(part.problems), **arrays)


def _read(workspace: Workspace, model: nn.Module, rows: NDArray[np.int64]) -> Pictures:
    return read_pictures(workspace.samples, rows, preprocessing_of(model))


def _classified(inference: Inference, pictures: Pictures, labels: NDArray[np.int64]) -> Part:
    if not len(pictures):
        return pictures.none
    logits = inference(pictures.x.to(inference.device)).double().cpu()
    probability, index = logits.softmax(1).topk(min(_TOP, logits.shape[1]), dim=1)
    known = torch.from_numpy(labels).clamp(min=0)
    losses = -logits.log_softmax(1).gather(1, known[:, None])[:, 0].numpy()
    arrays = {
        "row": pictures.rows,
        "classes": index.numpy(),
        "probabilities": probability.float().numpy(),
        "losses": np.where(labels >= 0, losses, np.nan).astype(np.float32),
    }
    return Part(arrays, pictures.problems)


@dataclass(frozen=True)
class Agreement:
    """How often predictions are the labels, and how often they would be by chance.

    Args:
        accuracy: Share of samples whose predicted class is the label.
        chance: The share to expect if predictions had their frequencies and nothing to do with the
            labels, as in Cohen's kappa (1960).
        p_value: Of at least as many hits by that chance, by the binomial distribution; NaN where
            all labels are one class, which tells nothing.
        count: Samples.
    """

    accuracy: float
    chance: float
    p_value: float
    count: int

    @property
    def by_chance(self) -> bool:
        """Whether the model does no better than chance, as far as so many samples tell."""
        return self.p_value > 0.05


def agreement(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> Agreement:
    """Compare predictions with labels.

    Args:
        labels: (n,), n > 0.
        predictions: (n,).

    Raises:
        MissingDependencyError: If scipy is missing.
    """
    count = len(labels)
    hits = int((labels == predictions).sum())
    classes = int(max(labels.max(), predictions.max())) + 1
    shares = [np.bincount(values, minlength=classes) / count for values in (labels, predictions)]
    chance = float(shares[0] @ shares[1])
    p_value = float("nan")
    if (shares[0] > 0).sum() > 1:
        stats = optional("scipy.stats", "scipy", "audit")
        p_value = float(stats.binom.sf(hits - 1, count, chance))
    return Agreement(hits / count, chance, p_value, count)
