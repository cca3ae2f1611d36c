"""One run of the benchmark: plant, train, audit, and compare with the truth.

A run is one classifier. Its record is one JSON file, which says all that the tables need; a run
whose record exists is not done again, so that a benchmark goes on where it was interrupted, and
several processes may share a folder.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vimlrp.audit.planted import auditing
from vimlrp.audit.planted.auditing import Audited
from vimlrp.audit.planted.comparing import compared_class, compared_finding
from vimlrp.audit.planted.pictures import DrawnPictures, FolderPictures, Pictures
from vimlrp.audit.planted.plans import Kind, Plan, plan_for
from vimlrp.audit.planted.planting import Planted, plant, write
from vimlrp.audit.planted.reliance import Reliance, reliance
from vimlrp.audit.planted.training import ARCHITECTURES, create, logits, train
from vimlrp.errors import InputError, VimLRPError
from vimlrp.files import atomic_write

__all__ = ["Record", "Settings", "read_records", "run"]

Record = dict[str, Any]
"""What one run found, as JSON holds it; `docs/audit-benchmark.md` names the entries."""


@dataclass(frozen=True)
class Settings:
    """Which run, and how large.

    Args:
        model: Of `vimlrp.audit.planted.training.ARCHITECTURES`.
        seed: Chooses the plan, the pictures and the weights.
        classes: Their number; that of the folder, if one is given.
        count: Pictures of each class that are trained on and audited.
        extra: Pictures of each class that are trained on alone, planted alike.
        held_out: Pictures of each class that are neither, for the truth about the classifier.
        side: Of the pictures in pixels.
        epochs: Of the training; None for the architecture's own.
        controls: Clean classes to drill and verify beside those that were flagged, the most
            suspicious first.
        folder: Of the pictures of a user's own, in folders by class; None for drawn ones.
    """

    model: str
    seed: int
    classes: int = 20
    count: int = 300
    extra: int = 300
    held_out: int = 60
    side: int = 64
    epochs: int | None = None
    controls: int = 3
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Of the run and its record."""
        return f"{self.model}-seed{self.seed}"

    def pictures(self, plan: Plan) -> Pictures:
        """Where the run's pictures come from."""
        if self.folder is not None:
            return FolderPictures(self.folder, self.side)
        return DrawnPictures(self.classes, self.side, self.seed, two_poses=plan.two_poses)

    def plain(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {**asdict(self), "folder": None if self.folder is None else str(self.folder)}


def run(
    settings: Settings,
    out: str | Path,
    device: torch.device | str = "cpu",
    *,
    workers: int = 1,
) -> Record:
    """Do one run, or read what it found before.

    Args:
        settings: Which run.
        out: The folder of the records.
        device: To train and to explain on.
        workers: Processes to screen in; the record does not depend on it.

    Raises:
        InputError: If the folder holds a record of the same name and other settings.
    """
    path = Path(out) / f"{settings.name}.json"
    if path.exists():
        return _known(path, settings)
    record = _Run(settings, torch.device(device), workers).record()
    atomic_write(path, json.dumps(record, indent=1, allow_nan=True).encode())
    return record


def read_records(out: str | Path) -> list[Record]:
    """The records of a folder, by name.

    Raises:
        InputError: If there are none, or one is damaged.
    """
    paths = sorted(Path(out).glob("*-seed*.json"))
    if not paths:
        raise InputError(f"{out} holds no record of a run; run the benchmark into it first")
    return [_read(path) for path in paths]


def _read(path: Path) -> Record:
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no record of a run ({error}); remove it") from error
    return record


def _known(path: Path, settings: Settings) -> Record:
    record = _read(path)
    if record["settings"] != settings.plain():
        raise InputError(
            f"{path} was made with other settings ({record['settings']}); give another folder, or "
            "remove it"
        )
    return record


@dataclass
class _Run:
    settings: Settings
    device: torch.device
    workers: int = 1
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def record(self) -> Record:
        settings = self.settings
        plan = plan_for(settings.seed, self._classes())
        with self._timed("plant"):
            pictures = settings.pictures(plan)
            count, extra = settings.count, settings.extra
            audited = plant(pictures, plan, count)
            further = [plant(pictures, plan, extra, start=count)] if extra else []
            held_out = plant(pictures, plan, settings.held_out, start=count + extra)
        with self._timed("train"):
            model = self._trained([audited, *further])
        with self._timed("truth"):
            truths = {
                one.label: reliance(model, one.label, audited, held_out) for one in plan.plantings
            }
        with tempfile.TemporaryDirectory() as folder:
            found = self._audit(model, audited, held_out, truths, Path(folder))
        return {
            "settings": settings.plain(),
            "versions": {name: version(name) for name in ("vimlrp", "torch", "timm")},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "accuracy": {
                "audited": _accuracy(model, audited),
                "clean": _accuracy(model, replace(held_out, pictures=held_out.twins)),
            },
            "inert": plan.inert,
            **found,
            "seconds": self.seconds,
            "problems": self.problems,
        }

    def _classes(self) -> int:
        folder = self.settings.folder
        return self.settings.classes if folder is None else len(FolderPictures(folder).names)

    def _trained(self, sets: Sequence[Planted]) -> nn.Module:
        settings = self.settings
        architecture = ARCHITECTURES[settings.model]
        if settings.epochs is not None:
            architecture = replace(architecture, epochs=settings.epochs)
        classes = sets[0].plan.classes
        model = create(settings.model, classes, settings.side, seed=settings.seed).to(self.device)
        pictures = np.concatenate([planted.learnt for planted in sets])
        labels = np.concatenate([planted.labels for planted in sets])
        train(model, pictures, labels, architecture, seed=settings.seed)
        return model

    def _audit(
        self,
        model: nn.Module,
        audited: Planted,
        held_out: Planted,
        truths: Mapping[int, Reliance],
        folder: Path,
    ) -> Record:
        seed = self.settings.seed
        data = write(audited, folder / "data")
        with self._timed("gather"):
            evidence = auditing.gather(model, data, folder / "audit")
        with self._timed("screen"):
            screening = auditing.screen(evidence, seed=seed, workers=self.workers)
        audit = Audited(model, audited, held_out, evidence, screening)
        classes = [compared_class(audit, label, truths) for label in range(audited.plan.classes)]
        findings = []
        for label in self._suspects(audit, classes):
            with self._recovering(f"class {label}"):
                findings.append(self._finding(audit, label, truths.get(label)))
        return {"classes": classes, "findings": findings}

    def _suspects(self, audit: Audited, classes: list[Record]) -> Iterator[int]:
        """Classes to drill: all that hold something, all that were flagged, and some controls."""
        spare = self.settings.controls
        for label in audit.screening.ranking():
            kind = audit.plan.kind_of(label)
            if kind is not Kind.CLEAN or classes[label]["flagged"]:
                yield label
            elif spare > 0:
                spare -= 1
                yield label

    def _finding(self, audit: Audited, label: int, truth: Reliance | None) -> Record:
        score = next(score for score in audit.screening.scores if score.label == label)
        seed = self.settings.seed
        with self._timed("drill"):
            candidate = auditing.drill(audit.model, audit.evidence, score, seed=seed)
        with self._timed("verify"):
            finding = auditing.verify(audit.model, audit.evidence, candidate, seed=seed)
        with self._timed("compare"):
            record = {**compared_finding(audit, score, finding, truth), "mitigation": []}
        for method in auditing.METHODS if truth is not None and truth.gated else ():
            with self._timed("mitigate"), self._recovering(f"{method} on class {label}"):
                done = auditing.mitigated(audit, finding, method, seed=seed)
                record["mitigation"].append(done)
        return record

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - started
        self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    @contextmanager
    def _recovering(self, what: str) -> Iterator[None]:
        # One class that cannot be looked into leaves the rest of the run as it is.
        try:
            yield
        except VimLRPError as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")


def _accuracy(model: nn.Module, planted: Planted) -> float:
    predicted = logits(model, planted.pictures).argmax(axis=1)
    return float(np.mean(predicted == planted.labels))
