"""What a model does when its pictures get marks, frames or artefacts: probes without a hypothesis.

Every picture is compared with its changed twin. A class that loses accuracy relied on what the
probe destroyed; a class that gains probability over all pictures, as "carton" does from watermarks
(Li et al., CVPR 2023), takes what the probe added for itself.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimlrp.audit.probing.pictures import PROBES, Probe, probes_named
from vimlrp.audit.probing.statistics import Observations, class_changes, overall_changes
from vimlrp.audit.probing.tables import ProbeTable, write_probe_table
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet, Problem, Sample
from vimlrp.heatmaps import Picture
from vimlrp.inference import Inference
from vimlrp.inputs import device_and_dtype, preprocessing_of
from vimlrp.models import class_names
from vimlrp.photos import read_photo
from vimlrp.preprocessing import denormalise

__all__ = [
    "PROBES",
    "Probe",
    "ProbeTable",
    "Progress",
    "probe",
    "probes_named",
    "write_probe_table",
]

Progress = Callable[[int, int, str], None]
"""Is told how much is done, of how much, and what goes on."""

# Sums of so many groups of pictures stand in for single pictures, so that a thousand classes over
# a million pictures fit into memory; up to this number a group is one picture.
_GROUPS = 1000


def probe(
    model: nn.Module,
    data: DataSet,
    *,
    probes: Sequence[Probe] | None = None,
    batch_size: int = 64,
    rate: float = 0.1,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeTable:
    """Measure how probes change accuracy and probabilities, class by class.

    Example:
        >>> table = probe(model, read_data("val", names, 1000))  # doctest: +SKIP
        >>> write_probe_table("report", table)  # doctest: +SKIP

    Args:
        model: The classifier; it is left as it is.
        data: Pictures. Where one has no label, the class predicted for it is taken.
        probes: What to change; all of `PROBES` if None.
        batch_size: Pictures to read and classify at a time.
        rate: The false-discovery rate at which classes are flagged, for each probe and measure.
        resamples: Of the bootstrap.
        seed: Of what is random in probes and bootstrap.
        progress: Is told pictures done, pictures in all, and what goes on.

    Raises:
        InputError: There are no pictures, none can be read, a label is not the model's, or a
            number is impossible.
        MissingDependencyError: scipy is missing.
    """
    chosen = tuple(PROBES if probes is None else probes)
    _check(chosen, data, batch_size, rate)
    tell = progress or (lambda *_: None)
    total = len(data.samples)
    tally = _Tally(total, len(chosen), seed)
    camera = _Camera(model, chosen, batch_size, seed)
    for start in range(0, total, batch_size):
        tell(start, total, "probing")
        camera.observe(data.samples[start : start + batch_size], start, tally)
    seen = tally.seen()
    tell(total, total, "comparing")
    names = class_names(model) or tuple(map(str, range(seen.sums.shape[2])))
    table = ProbeTable(
        class_names=names,
        probes=chosen,
        overall=overall_changes(seen, chosen, resamples, seed),
        changes=class_changes(seen, chosen, rate, resamples, seed),
        images=len(seen.labels),
        unlabelled=camera.unlabelled,
        rate=rate,
        seed=seed,
        problems=(*data.problems, *camera.problems),
    )
    tell(total, total, "done")
    return table


class _Tally:
    """Collects what is seen, in memory that grows with pictures or with outputs, not with both."""

    def __init__(self, total: int, probes: int, seed: int) -> None:
        self._labels = np.full(total, -1, dtype=np.int64)
        self._hits = np.zeros((1 + probes, total), dtype=bool)
        self._own = np.zeros((1 + probes, total))
        self._sums: NDArray[np.float64] | None = None
        # By chance, or a group would hold one class and the groups differ more than pictures do.
        self._groups = np.random.default_rng(seed).permutation(total) % min(total, _GROUPS)

    def add(
        self,
        version: int,
        places: NDArray[np.int64],
        labels: NDArray[np.int64],
        probabilities: NDArray[np.float64],
    ) -> None:
        """Take down what became of pictures, or of their twins, (b, C)."""
        if self._sums is None:
            count = int(self._groups.max()) + 1
            self._sums = np.zeros((len(self._hits), count, probabilities.shape[1]))
        self._labels[places] = labels
        self._hits[version, places] = probabilities.argmax(axis=1) == labels
        self._own[version, places] = probabilities[np.arange(len(labels)), labels]
        np.add.at(self._sums[version], self._groups[places], probabilities)

    def seen(self) -> Observations:
        """All of it, without pictures that were not readable."""
        used = self._labels >= 0
        if self._sums is None or not used.any():
            raise InputError(
                f"none of the {len(used)} pictures can be read; see that they are photos"
            )
        kept, groups = np.unique(self._groups[used], return_inverse=True)
        return Observations(
            self._labels[used],
            self._hits[:, used],
            self._own[:, used],
            groups.astype(np.int64),
            self._sums[:, kept],
        )


class _Camera:
    """Shows pictures and their twins to the model."""

    def __init__(
        self, model: nn.Module, probes: Sequence[Probe], batch_size: int, seed: int
    ) -> None:
        self.problems: list[Problem] = []
        self.unlabelled = 0
        self._probes, self._seed = probes, seed
        self._inference = Inference(model, batch_size=batch_size)
        self._place = device_and_dtype(model)
        self._preprocessing = preprocessing_of(model)

    def observe(self, samples: Sequence[Sample], start: int, tally: _Tally) -> None:
        """Add samples, the first of which is number `start` of all."""
        read = [(start + i, s, self._read(s)) for i, s in enumerate(samples)]
        found = [(i, sample, picture) for i, sample, picture in read if picture is not None]
        if not found:
            return
        places = np.array([i for i, _, _ in found])
        pictures = [picture for _, _, picture in found]
        plain = self._classified(pictures)
        labels = self._labels([sample for _, sample, _ in found], plain)
        tally.add(0, places, labels, plain)
        for number, probe in enumerate(self._probes):
            # The same for a picture however the samples are put into batches.
            seeds = [(self._seed, number, int(i)) for i in places]
            twins = [
                probe.change(picture, np.random.default_rng(own))
                for picture, own in zip(pictures, seeds, strict=True)
            ]
            tally.add(1 + number, places, labels, self._classified(twins))

    def _read(self, sample: Sample) -> Picture | None:
        try:
            x, _ = self._preprocessing(read_photo(sample.path))
        except InputError as error:
            self.problems.append(Problem(sample.name, "cannot be read", str(error)))
            return None
        return denormalise(x, self._preprocessing.mean, self._preprocessing.std)

    def _classified(self, pictures: Sequence[Picture]) -> NDArray[np.float64]:
        logits = self._inference(self._prepared(pictures))
        return np.asarray(logits.double().softmax(dim=1).cpu().numpy())  # (b, C)

    def _prepared(self, pictures: Sequence[Picture]) -> Tensor:
        device, dtype = self._place
        pixels = torch.from_numpy(np.stack(pictures)).to(device).movedim(-1, 1)  # (b, 3, H, W)
        mean, std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (self._preprocessing.mean, self._preprocessing.std)
        )
        return ((pixels.float() / 255 - mean) / std).to(dtype)

    def _labels(self, samples: Sequence[Sample], plain: NDArray[np.float64]) -> NDArray[np.int64]:
        predicted = plain.argmax(axis=1)
        self.unlabelled += sum(sample.label is None for sample in samples)
        labels = [
            p if s.label is None else s.label for s, p in zip(samples, predicted, strict=True)
        ]
        for sample, label in zip(samples, labels, strict=True):
            if not 0 <= label < plain.shape[1]:
                raise InputError(
                    f"{sample.name} has the label {label}, and the model {plain.shape[1]} classes: "
                    "list the pictures with read_data for this model"
                )
        return np.array(labels, dtype=np.int64)


def _check(probes: Sequence[Probe], data: DataSet, batch_size: int, rate: float) -> None:
    names = [probe.name for probe in probes]
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"the probes are {', '.join(names) or 'none'}; give some, of different names"
        )
    if not data.samples:
        raise InputError("there are no pictures to probe with; give a data set that has some")
    if batch_size < 1 or not 0 < rate < 1:
        raise InputError(
            f"batch_size is {batch_size} and rate {rate}; give 1 or more, and a share between 0 "
            "and 1"
        )
