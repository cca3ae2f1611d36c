"""An audit as a project of ViRelAy, a viewer of relevance maps and their clusters.

ViRelAy (Anders et al., "Software for Dataset-wide XAI", 2021) reads HDF5 files that a project file
names: the pictures, their maps, and for each class embeddings and clusterings. The names and
shapes here are those that its version 0.6.1 reads; where its specification differs (`clustering`
for `cluster`, groups for embeddings), the viewer decides.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vimlrp.audit.records import Channel, Evidence, Finding, Screening
from vimlrp.audit.reporting.pictures import Darkroom
from vimlrp.audit.reporting.planes import features, placed
from vimlrp.errors import InputError
from vimlrp.files import atomic_folder
from vimlrp.heatmaps import Picture
from vimlrp.optional import optional
from vimlrp.preprocessing import Preprocessing

__all__ = ["write_virelay"]

_PROJECT = "project.yaml"
_EMBEDDED = (Channel.RELEVANCE, Channel.LATENT)
_SIDES = (16, 1024)


def write_virelay(
    folder: str | Path,
    evidence: Evidence,
    screening: Screening,
    findings: Sequence[Finding],
    *,
    model: str,
    name: str = "audit",
    classes: Iterable[int] | None = None,
    side: int = 128,
    preprocessing: Preprocessing | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write a folder that `virelay project.yaml` opens.

    Of every class the samples that are no copies are taken; those whose file cannot be read any
    more are left out. Embeddings are by t-SNE of relevance and of latent relevance, clusterings
    the cluster that screening found in each channel, the carriers of each finding of a class, and
    whether the class was predicted. `prediction` is 1 for the predicted class and 0 for others,
    since an audit does not keep all probabilities.

    Args:
        folder: Must not exist, unless `overwrite`.
        evidence: What was audited.
        screening: Says which clusters stood out.
        findings: Say which samples carry a cue.
        model: Name of the model, to be shown.
        name: Of the project, to be shown.
        classes: Indices of the classes to export; all that have samples if None.
        side: Of the pictures, in pixels.
        preprocessing: The model's; timm's defaults if None.
        overwrite: Replace a folder that this wrote before.

    Returns:
        The files, the project first.

    Raises:
        InputError: There is nothing to export, a class or the side is impossible, or the folder
            may not be replaced.
        MissingDependencyError: h5py or scikit-learn is missing.
    """
    h5py = optional("h5py", "h5py", "audit")
    if not _SIDES[0] <= side <= _SIDES[1]:
        raise InputError(f"side is {side}; give {_SIDES[0]} to {_SIDES[1]} pixels")
    wanted = _wanted(evidence, classes)
    darkroom = Darkroom(preprocessing or Preprocessing())
    with atomic_folder(folder, overwrite=overwrite, marker=_PROJECT) as part:
        with h5py.File(part / "input.h5", "w") as file:
            kept = _write_pictures(file, evidence, wanted, darkroom, side)
        with h5py.File(part / "attribution.h5", "w") as file:
            _write_maps(file, evidence, kept)
        with h5py.File(part / "analysis.h5", "w") as file:
            _write_analyses(file, evidence, screening, findings, kept)
        _write_json(part / "label-map.json", _label_map(evidence))
        # JSON is YAML too, and quotes whatever a model may be called.
        _write_json(part / _PROJECT, _project(name, model, side))
    names = (_PROJECT, "label-map.json", "input.h5", "attribution.h5", "analysis.h5")
    return [Path(folder) / file for file in names]


def _wanted(evidence: Evidence, classes: Iterable[int] | None) -> list[int]:
    """Samples to export, in the order of the evidence."""
    labels = set(np.unique(evidence.labels).tolist()) if classes is None else set(classes)
    strange = sorted(label for label in labels if not 0 <= label < len(evidence.class_names))
    if strange:
        raise InputError(
            f"there is no class {', '.join(map(str, strange))}; give indices from 0 to "
            f"{len(evidence.class_names) - 1}"
        )
    samples = sorted(int(i) for label in labels for i in evidence.of_class(label))
    if not samples:
        raise InputError("none of the classes has samples; give classes that were audited")
    return samples


def _write_pictures(
    file: Any, evidence: Evidence, samples: Sequence[int], darkroom: Darkroom, side: int
) -> NDArray[np.int64]:
    """Write what can be read; the indices of those samples in the evidence."""
    data = file.create_dataset(
        "data",
        (len(samples), 3, side, side),
        np.uint8,
        maxshape=(None, 3, side, side),
        chunks=(1, 3, side, side),
        compression="gzip",
    )
    kept: list[int] = []
    for i in samples:
        picture = darkroom.develop(evidence.samples[i])
        if picture is not None:
            data[len(kept)] = _squared(picture, side)
            kept.append(i)
    if not kept:
        raise InputError("none of the samples' files can be read any more; see that they are there")
    data.resize(len(kept), axis=0)
    file["label"] = evidence.labels[kept].astype(np.uint16)
    file["name"] = [evidence.samples[i].name for i in kept]
    return np.array(kept, dtype=np.int64)


def _squared(picture: Picture, side: int) -> NDArray[np.uint8]:
    resized = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return np.moveaxis(resized, -1, 0).astype(np.uint8, copy=False)  # (3, side, side)


def _write_maps(file: Any, evidence: Evidence, kept: NDArray[np.int64]) -> None:
    file["index"] = np.arange(len(kept), dtype=np.uint32)
    # The viewer sums over channels, and cannot draw a map that has only one.
    thirds = evidence.maps[kept][:, None].astype(np.float32) / 3
    file["attribution"] = np.repeat(thirds, 3, axis=1)  # (n, 3, 16, 16)
    file["label"] = evidence.labels[kept].astype(np.uint16)
    file.create_dataset(
        "prediction",
        data=_one_hot(evidence.predictions[kept], len(evidence.class_names)),
        compression="gzip",
    )


def _one_hot(classes: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    hot = np.zeros((len(classes), count), dtype=np.float32)
    hot[np.arange(len(classes)), classes] = 1
    return hot


def _write_analyses(
    file: Any,
    evidence: Evidence,
    screening: Screening,
    findings: Sequence[Finding],
    kept: NDArray[np.int64],
) -> None:
    clusters = {(s.label, s.channel): s.cluster for s in screening.scores}
    cues = [finding.candidate for finding in findings]
    # The viewer takes the names of the first class for those of all, so all have as many.
    most = max(Counter(cue.label for cue in cues).values(), default=0)
    for label in np.unique(evidence.labels[kept]).tolist():
        places = np.flatnonzero(evidence.labels[kept] == label)
        own = kept[places]
        group = file.create_group(_category(label))
        group["name"] = evidence.class_names[label]
        group["index"] = places.astype(np.uint32)
        for channel in _EMBEDDED:
            points, _ = placed(features(evidence, own, channel))
            group[f"embedding/{channel.value}"] = points.astype(np.float32)
        for channel in Channel:
            cluster = clusters.get((label, channel), np.empty(0, np.int64))
            group[f"cluster/{channel.value}"] = _membership(own, cluster)
        group["cluster/predicted"] = (evidence.predictions[own] == label).astype(np.uint32)
        carriers = [cue.carriers for cue in cues if cue.label == label]
        for n in range(most):
            found = carriers[n] if n < len(carriers) else np.empty(0, np.int64)
            group[f"cluster/cue {n + 1}"] = _membership(own, found)


def _membership(samples: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.isin(samples, group).astype(np.uint32)


def _category(label: int) -> str:
    """Stands where ViRelAy has ids of WordNet, by which it looks the names of classes up."""
    return f"{label:08d}"


def _label_map(evidence: Evidence) -> list[dict[str, Any]]:
    return [
        {"index": label, "word_net_id": _category(label), "name": name}
        for label, name in enumerate(evidence.class_names)
    ]


def _project(name: str, model: str, side: int) -> dict[str, Any]:
    dataset = {
        "name": name,
        "type": "hdf5",
        "path": "input.h5",
        "input_width": side,
        "input_height": side,
        "up_sampling_method": "none",
        "down_sampling_method": "none",
    }
    return {
        "project": {
            "name": name,
            "model": model,
            "label_map": "label-map.json",
            "dataset": dataset,
            "attributions": {
                "attribution_method": "LRP, summed over 16 x 16 cells",
                "attribution_strategy": "true_label",
                "sources": ["attribution.h5"],
            },
            "analyses": [{"analysis_method": "Audit", "sources": ["analysis.h5"]}],
        }
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
