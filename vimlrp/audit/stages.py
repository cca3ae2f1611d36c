"""The first stages of an audit, one after another, each from where it was interrupted."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import nn

from vimlrp.audit.gathering import explaining
from vimlrp.audit.gathering.explaining import Explained
from vimlrp.audit.gathering.index import Index, index, read_index
from vimlrp.audit.gathering.latents import default_layer
from vimlrp.audit.gathering.predicting import Predictions, predict, read_predictions
from vimlrp.audit.gathering.selection import class_indices, drawn, with_labels
from vimlrp.audit.gathering.statistics import NAMES
from vimlrp.audit.records import Evidence
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet, Problem
from vimlrp.evaluation.fingerprints import weights_hash
from vimlrp.evaluation.running import Progress
from vimlrp.explainer import model_name
from vimlrp.inputs import preprocessing_of
from vimlrp.models import class_names

__all__ = [
    "Gathered",
    "begin",
    "check_model",
    "explain",
    "gather",
    "read_evidence",
    "read_gathered",
]


def begin(
    model: nn.Module,
    data: DataSet,
    folder: str | Path,
    *,
    batch_size: int = 32,
    layer: str | None = None,
    classes: Sequence[str | int] | None = None,
    per_class: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Workspace:
    """Make the folder of an audit, or open it to go on.

    The arguments and errors are those of `gather`.
    """
    for what, given in (("batch_size", batch_size), ("per_class", per_class)):
        if given is not None and given < 1:
            raise InputError(f"{what} is {given}; give 1 or more")
    names, count = class_names(model), _class_count(model)
    wanted = class_indices(classes, names, count)
    layer = layer or default_layer(model)
    explaining.check(model, layer)
    settings = {
        "model": model_name(model),
        "weights_sha256": weights_hash(model),
        "preprocessing": asdict(preprocessing_of(model)),
        "layer": layer,
        "batch_size": batch_size,
        "classes": wanted,
        "per_class": per_class,
        "seed": seed,
    }
    return Workspace.create(
        folder,
        with_labels(data, wanted, per_class, seed),
        settings,
        class_names=names or [str(i) for i in range(count)],
        overwrite=overwrite,
    )


def gather(
    model: nn.Module,
    data: DataSet,
    folder: str | Path,
    *,
    batch_size: int = 32,
    layer: str | None = None,
    classes: Sequence[str | int] | None = None,
    per_class: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Index, classify and explain pictures, as far as the folder does not hold it yet.

    Where the data have no labels, the predicted classes are audited. Interrupted at any moment, the
    same call goes on and ends with the same bytes.

    Args:
        model: A classifier that vimlrp explains.
        data: The pictures, of `vimlrp.evaluation.data.read_data`.
        folder: Of the audit; is made where it is missing.
        batch_size: Pictures to explain at a time, and to lose at most when interrupted.
        layer: The layer whose channels are recorded; by default `latents.default_layer`.
        classes: Audit these alone, by name or index.
        per_class: Audit at most so many pictures of each class, drawn at random.
        seed: Of that draw.
        overwrite: Remove an audit of other settings instead of refusing it.
        progress: Is told how many samples of a stage are done, how many there are, and its name.

    Raises:
        InputError: If the folder holds another audit, or cannot be written to, or nothing can be
            explained.
        TargetError: If the model has no class of a name.
        UnsupportedModelError: If part of the model has no rule.
        MissingDependencyError: If imagehash or scipy is missing.
    """
    workspace = begin(
        model,
        data,
        folder,
        batch_size=batch_size,
        layer=layer,
        classes=classes,
        per_class=per_class,
        seed=seed,
        overwrite=overwrite,
    )
    return explain(workspace, model, progress).evidence()


def explain(workspace: Workspace, model: nn.Module, progress: Progress | None = None) -> "Gathered":
    """Run all first stages of an audit that was begun.

    Args:
        workspace: Of the audit.
        model: Its model.
        progress: See `gather`.
    """
    check_model(workspace, model)
    found = index(workspace, progress)
    readable = np.flatnonzero(found.readable)
    predictions = None
    if not workspace.labelled and len(readable):
        predictions = predict(workspace, model, readable, progress)
    rows, labels = _audited(workspace, found, predictions)
    explained = explaining.explain(workspace, model, rows, labels, progress)
    gathered = Gathered(workspace, found, predictions, explained)
    _write_manifest(gathered)
    return gathered


def check_model(workspace: Workspace, model: nn.Module) -> None:
    """Refuse a model that is not the audit's.

    Args:
        workspace: Of the audit.
        model: To be used with it.

    Raises:
        InputError: If its parameters are others.
    """
    if weights_hash(model) != workspace.settings["weights_sha256"]:
        raise InputError(
            f"{workspace.folder} holds an audit of {workspace.settings['model']} with other "
            "weights: load that model, or give another folder"
        )


def read_gathered(folder: str | Path) -> "Gathered":
    """What the finished first stages of an audit found.

    Args:
        folder: Of the audit.

    Raises:
        InputError: If there is no audit, or a stage is not finished.
    """
    workspace = Workspace.existing(folder)
    found = read_index(workspace)
    readable = np.flatnonzero(found.readable)
    predictions = None
    if not workspace.labelled and len(readable):
        predictions = read_predictions(workspace, readable)
    rows, _ = _audited(workspace, found, predictions)
    explained = explaining.read_explained(workspace, len(rows))
    return Gathered(workspace, found, predictions, explained)


def read_evidence(folder: str | Path) -> Evidence:
    """The evidence of an audit whose first stages are finished.

    Args:
        folder: Of the audit.

    Raises:
        InputError: If there is no audit, or a stage is not finished.
    """
    return read_gathered(folder).evidence()


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the first stages found.

    Args:
        workspace: Of the audit.
        index: Of all samples.
        predictions: Of all readable ones where the data have no labels; else None.
        explained: Of those that are audited.
    """

    workspace: Workspace
    index: Index
    predictions: Predictions | None
    explained: Explained

    def evidence(self) -> Evidence:
        """For the stages that follow: the samples that could be explained."""
        explained, workspace = self.explained, self.workspace
        rows = explained.rows
        return Evidence(
            samples=tuple(workspace.samples[row] for row in rows),
            class_names=workspace.class_names,
            labels=explained.labels,
            predictions=explained.predictions,
            probabilities=explained.probabilities,
            maps=explained.maps,
            latent=explained.latent,
            activations=explained.activations,
            statistics=self.index.statistics[rows],
            statistic_names=NAMES,
            originals=_within(self.index.originals[rows]),
            layer=str(workspace.settings["layer"]),
        )

    def problems(self) -> list[Problem]:
        """What could not be used, in the order of the stages."""
        predicted = () if self.predictions is None else self.predictions.problems
        return [
            *self.workspace.data_problems,
            *self.index.problems,
            *predicted,
            *self.explained.problems,
        ]


def _within(originals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups of copies, each named by the first of its members that is there."""
    _, first, which = np.unique(originals, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def _audited(
    workspace: Workspace, found: Index, predictions: Predictions | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which samples are explained, and for which class."""
    if predictions is None:
        chosen = np.flatnonzero(found.readable)
        labels = [workspace.samples[row].label for row in chosen]
        of_chosen = np.array(labels, dtype=np.int64)
    else:
        settings, of_all = workspace.settings, predictions.classes[:, 0]
        places = drawn(of_all, settings["classes"], settings["per_class"], settings["seed"])
        chosen, of_chosen = predictions.rows[places], of_all[places]
    if not len(chosen):
        raise InputError(
            f"none of the {len(workspace.samples)} pictures can be audited"
            + (f"; the first: {found.problems[0].detail}" if found.problems else "")
        )
    return chosen, of_chosen


def _class_count(model: nn.Module) -> int:
    count = getattr(model, "num_classes", None)
    if not isinstance(count, int) or count < 1:
        raise InputError(
            f"the {type(model).__name__} has no num_classes above 0, so nothing that it classifies "
            "into: give a classifier"
        )
    return count


def _write_manifest(gathered: Gathered) -> None:
    workspace = gathered.workspace
    packages = ("vimlrp", "torch", "timm", "numpy", "pillow")
    manifest = {
        "format": 1,
        "settings": workspace.settings,
        "layer_channels": int(gathered.explained.latent.shape[1]),
        "explained": len(gathered.explained.rows),
        "problems": len(gathered.problems()),
        "versions": {
            "python": platform.python_version(),
            # OpenCV comes under several names, of which any may be installed.
            "opencv": cv2.__version__,
            **{package: version(package) for package in packages},
        },
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    workspace.parts.write(workspace.folder / "manifest.json", text.encode())
