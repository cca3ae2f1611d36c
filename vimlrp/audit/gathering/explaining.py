"""The third stage: the relevance of every picture for its class, in small, with one layer's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.gathering.latents import pool
from vimlrp.audit.gathering.maps import area_sums, shares
from vimlrp.audit.gathering.reading import Pictures, read_pictures
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.parts import Part, joined
from vimlrp.evaluation.running import Progress
from vimlrp.explainer import Explainer
from vimlrp.inputs import device_and_dtype, preprocessing_of

__all__ = ["Explained", "check", "explain", "read_explained"]

_STAGE = "explain"
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class Explained:
    """What was explained of n of the samples; see `vimlrp.audit.records.Evidence`.

    Args:
        rows: Indices of the samples, (n,) int64.
        labels: The classes explained, (n,) int64.
        predictions: (n,) int64.
        probabilities: Of the labels, (n,) float32.
        maps: (n, 16, 16) float16.
        latent: (n, K) float16.
        activations: (n, K) float16.
        problems: Pictures that could not be explained.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    maps: NDArray[np.float16]
    latent: NDArray[np.float16]
    activations: NDArray[np.float16]
    problems: tuple[Problem, ...]


def explain(
    workspace: Workspace,
    model: nn.Module,
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    progress: Progress | None = None,
) -> Explained:
    """Explain what is not yet in the workspace, and note what the model predicts.

    Args:
        workspace: Of the audit; its settings name the layer.
        model: The classifier.
        rows: Indices of the samples to explain, (n,).
        labels: The class to explain in each, (n,).
        progress: Is told how many samples are done.

    Raises:
        InputError: If there is no such layer, or a part cannot be written.
        UnsupportedModelError: If part of the model has no rule.
    """
    explainer = Explainer(model)
    layer = str(workspace.settings["layer"])
    preprocessing = preprocessing_of(model)
    targets = dict(zip(rows.tolist(), labels.tolist(), strict=True))
    names = [sample.name for sample in workspace.samples]

    def read(chunk: NDArray[np.int64]) -> Pictures:
        return read_pictures(workspace.samples, chunk, preprocessing)

    def compute(pictures: Pictures) -> Part:
        goals = torch.tensor([targets[row] for row in pictures.rows.tolist()])
        return _explained(explainer, layer, pictures, goals, names)

    size = int(workspace.settings["batch_size"])
    workspace.run(_STAGE, rows, size, read, compute, progress)
    return read_explained(workspace, len(rows))


def read_explained(workspace: Workspace, count: int) -> Explained:
    """What the finished stage found.

    Args:
        workspace: Of the audit.
        count: How many samples it looked at.

    Raises:
        InputError: If the stage is not finished, or nothing could be explained.
    """
    part = workspace.joined(_STAGE, count, int(workspace.settings["batch_size"]))
    arrays = dict(part.arrays)
    rows = arrays.pop("row")
    if not len(rows):
        raise InputError(
            f"none of the {count} pictures could be explained; the first: {part.problems[0].detail}"
        )
    return Explained(rows, problems=tuple(part.problems), **arrays)


def check(model: nn.Module, layer: str) -> None:
    """Explain an empty picture, so that what cannot be explained at all is said at once.

    Args:
        model: The classifier.
        layer: To be recorded.

    Raises:
        InputError: If there is no such layer, or its output has no channels to be told apart.
        UnsupportedModelError: If part of the model has no rule.
    """
    device, dtype = device_and_dtype(model)
    x = torch.zeros(1, 3, *preprocessing_of(model).size, device=device, dtype=dtype)
    recorded = Explainer(model)(x, target=0, record=(layer,)).recorded[layer]
    if recorded.activation.dim() not in (2, 3, 4):
        raise InputError(
            f"the layer {layer!r} gives {tuple(recorded.activation.shape)} for one picture: record "
            "one that gives (B, L, C), (B, H, W, C) or (B, C, H, W)"
        )


def _explained(
    explainer: Explainer, layer: str, pictures: Pictures, goals: Tensor, names: Sequence[str]
) -> Part:
    """One batch; sample by sample where the whole is refused."""
    if not len(pictures):
        return pictures.none
    try:
        return _part(explainer, layer, pictures, goals, names)
    except InputError as error:
        if len(pictures) == 1:
            problem = Problem(names[pictures.rows[0]], "cannot be explained", str(error))
            return replace(pictures, problems=(*pictures.problems, problem)).none
    parts = [
        _explained(explainer, layer, pictures.one(i), goals[i : i + 1], names)
        for i in range(len(pictures))
    ]
    whole = joined(parts)
    return replace(whole, problems=[*pictures.problems, *whole.problems])


def _part(
    explainer: Explainer, layer: str, pictures: Pictures, goals: Tensor, names: Sequence[str]
) -> Part:
    device, dtype = device_and_dtype(explainer.model)
    relevance = explainer(pictures.x.to(device, dtype), target=goals, record=(layer,))
    recorded = relevance.recorded[layer]
    probabilities = relevance.logits.double().softmax(1)
    model = explainer.model
    kept = {
        "labels": goals,
        "predictions": relevance.logits.argmax(1),
        "probabilities": probabilities.gather(1, goals.to(device)[:, None])[:, 0].float(),
        "maps": shares(area_sums(relevance.pixels)).half(),
        "latent": shares(pool(recorded.relevance, model, layer=layer, how="sum").float()).half(),
        "activations": _half(pool(recorded.activation, model, layer=layer)),
    }
    # Where relevance is not finite there is no telling what the model saw.
    finite = kept["maps"].isfinite().flatten(1).all(1) & kept["latent"].isfinite().all(1)
    sound = finite.cpu().numpy()
    broken = [
        Problem(names[row], "map not finite", "NaN or infinite relevance")
        for row in pictures.rows[~sound]
    ]
    arrays = {key: value.cpu().numpy()[sound] for key, value in kept.items()}
    return Part({"row": pictures.rows[sound], **arrays}, [*pictures.problems, *broken])


def _half(values: Tensor) -> Tensor:
    return values.float().clamp(-_LARGEST, _LARGEST).half()
