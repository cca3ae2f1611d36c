"""The later stages of an audit, each kept in its folder: screen, drill, verify, report.

A stage that was run with the same settings is read, not run again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from torch import nn

from vimlrp.audit import drilling, mitigating, probing, reporting, screening, verifying
from vimlrp.audit.mitigating import drop_list
from vimlrp.audit.records import (
    Candidate,
    Channel,
    ClassScore,
    Evidence,
    Finding,
    Screening,
)
from vimlrp.audit.saving import pack, unpack
from vimlrp.audit.screening.measuring import STATISTICS
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.problem_tables import csv_of
from vimlrp.evaluation.running import Progress
from vimlrp.preprocessing import Preprocessing

__all__ = ["drill", "fix", "probe", "read_findings", "read_screening", "report", "screen", "verify"]

Record = TypeVar("Record")

_SCREENED_BY: Mapping[str, Any] = MappingProxyType(
    {"channels": [channel.value for channel in Channel], "statistics": list(STATISTICS)}
)
"""What classes are screened by, in this version."""


def screen(
    workspace: Workspace,
    evidence: Evidence,
    *,
    rate: float = 0.1,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Screening:
    """Rank the classes by suspicion.

    Args:
        workspace: Of the audit.
        evidence: Of its first stages.
        rate: The false-discovery rate to flag at.
        seed: Of the random draws.
        workers: Processes to screen in.
        progress: Is told how far it is.
    """

    def run() -> Screening:
        return screening.screen(evidence, rate=rate, seed=seed, workers=workers, progress=progress)

    settings = {"rate": rate, "seed": seed, **_SCREENED_BY}
    return _kept(workspace, "screening", settings, Screening, run)


def read_screening(workspace: Workspace) -> tuple[Screening, Mapping[str, Any]]:
    """The screening that a workspace holds, with its `rate`, `seed`, `channels` and `statistics`.

    Args:
        workspace: Of the audit.

    Raises:
        InputError: If there is none yet, or one by channels or statistics of another version.
    """
    if "screening" not in workspace.parts:
        raise InputError(f"{workspace.folder} is not screened yet: run the stage 'screen' first")
    part = workspace.parts["screening"]
    if not _made_with(part.facts, _SCREENED_BY):
        raise InputError(
            f"{workspace.folder} was screened by another version, which looks at other things: "
            "run the stage 'screen' again; pictures need not be explained again"
        )
    settings = {key: part.facts[key] for key in ("rate", "seed", *_SCREENED_BY)}
    return unpack(part, Screening), settings


def drill(
    workspace: Workspace,
    model: nn.Module,
    evidence: Evidence,
    scores: Sequence[ClassScore],
    *,
    progress: Progress | None = None,
) -> tuple[list[Candidate], list[Problem]]:
    """Find what the clusters of classes share, as far as the workspace does not hold it.

    Args:
        workspace: Of the audit, screened.
        model: Its model.
        evidence: Of its first stages.
        scores: Of the screening, what to look into.
        progress: Is told how many are done.

    Returns:
        A candidate for each score that gave one, and why others did not.
    """
    _, settings = read_screening(workspace)
    tell = progress or (lambda *_: None)
    found, problems = [], []
    for i, score in enumerate(scores):
        name = evidence.class_names[score.label]
        tell(i, len(scores), f"drill {name}")

        def run(score: ClassScore = score) -> Candidate:
            return drilling.drill(model, evidence, score, seed=settings["seed"])

        place = f"candidates/{score.label:05d}-{score.channel}"
        try:
            found.append(_kept(workspace, place, settings, Candidate, run))
        except InputError as error:
            problems.append(Problem(name, f"no candidate by {score.channel}", str(error)))
    return found, problems


def verify(
    workspace: Workspace,
    model: nn.Module,
    evidence: Evidence,
    candidates: Sequence[Candidate],
    *,
    progress: Progress | None = None,
) -> tuple[list[Finding], list[Problem]]:
    """Prove what candidates do to the model, as far as the workspace does not hold it.

    Args:
        workspace: Of the audit, screened.
        model: Its model.
        evidence: Of its first stages.
        candidates: Of the stage before.
        progress: Is told how many are done.

    Returns:
        A finding for each candidate that could be tried, and why others could not.
    """
    _, settings = read_screening(workspace)
    tell = progress or (lambda *_: None)
    found, problems = [], []
    for i, candidate in enumerate(candidates):
        name = evidence.class_names[candidate.label]
        tell(i, len(candidates), f"verify {name}")

        def run(candidate: Candidate = candidate) -> Finding:
            return verifying.verify(model, evidence, candidate, seed=settings["seed"])

        place = f"findings/{candidate.label:05d}-{candidate.channel}"
        try:
            found.append(_kept(workspace, place, settings, Finding, run))
        except InputError as error:
            problems.append(Problem(name, "cannot be verified", str(error)))
    return found, problems


def read_findings(workspace: Workspace) -> list[Finding]:
    """The findings of the workspace's present screening.

    Args:
        workspace: Of the audit.
    """
    _, settings = read_screening(workspace)
    parts = list(workspace.finished("findings"))
    return [unpack(part, Finding) for part in parts if _made_with(part.facts, settings)]


def report(
    workspace: Workspace,
    evidence: Evidence,
    findings: Sequence[Finding],
    *,
    about: Mapping[str, object],
    problems: Sequence[Problem] = (),
    probes: Any = None,
    decisions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the report into the audit's folder.

    Args:
        workspace: Of the audit, screened.
        evidence: Of its first stages.
        findings: To be shown.
        about: What a reader should know.
        problems: What could not be used.
        probes: What `probe` returned, to be shown too.
        decisions: What `vimlrp.audit.reporting.read_decisions` returned, to begin with.
    """
    screened, _ = read_screening(workspace)
    given = workspace.settings["preprocessing"]
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    return reporting.write_report(
        workspace.folder,
        evidence,
        screened,
        findings,
        about=about,
        problems=problems,
        probes=probes,
        decisions=decisions,
        preprocessing=Preprocessing(**{**given, **lists}),
    )


def probe(model: nn.Module, data: Any, *, seed: int, progress: Progress | None = None) -> Any:
    """Try known artifacts on all classes; see `vimlrp.audit.probing.probes.probe`.

    Args:
        model: The model.
        data: A data set.
        seed: Of the random draws.
        progress: Is told how far it is.
    """
    return probing.probe(model, data, seed=seed, progress=progress)


def fix(
    workspace: Workspace,
    model: nn.Module,
    evidence: Evidence,
    findings: Sequence[Finding],
    *,
    progress: Progress | None = None,
) -> tuple[list[Path], list[Problem]]:
    """Write what may be done about findings, and what it does, into the folder `fixes`.

    For each finding a list of the pictures that show the cue, unless nearly all of a class do, and
    for a proven one a correction of the recorded layer (`.safetensors`), with the model before and
    after it in `fixes.csv`.

    Args:
        workspace: Of the audit, with findings.
        model: Its model.
        evidence: Of its first stages.
        findings: Those to be mended.
        progress: Is told how many are done.

    Returns:
        The files, and why some findings could not be mended.
    """
    _, settings = read_screening(workspace)
    tell = progress or (lambda *_: None)
    folder, rows, files, problems = workspace.folder / "fixes", [_FIX_COLUMNS], [], []
    # What an earlier call wrote may be of findings that are rejected by now.
    for old in folder.glob(f"{'[0-9]' * 5}-*"):
        old.unlink()
    for i, finding in enumerate(findings):
        candidate = finding.candidate
        name = evidence.class_names[candidate.label]
        place = f"{candidate.label:05d}-{candidate.channel}"
        tell(i, len(findings), f"fix {name}")
        try:
            files.append(drop_list.write_drop_list(folder / f"{place}.csv", evidence, candidate))
        except InputError as error:
            problems.append(Problem(name, "no list of pictures", str(error)))
        try:
            change, done = _mended(model, evidence, finding, settings["seed"])
        except InputError as error:
            problems.append(Problem(name, "cannot be mended", str(error)))
            continue
        files.append(change.save(folder / f"{place}.safetensors"))
        rows.append(_fix_row(name, candidate.channel, done))
    table = folder / "fixes.csv"
    workspace.parts.write(table, csv_of(rows).encode())
    return [*files, table], problems


def _mended(model: nn.Module, evidence: Evidence, finding: Finding, seed: int) -> tuple[Any, Any]:
    """A correction of the model, and what it does on pictures that it was not fitted to."""
    change = mitigating.mitigate(model, evidence, finding, seed=seed)
    done = mitigating.evaluate_mitigation(model, evidence, finding, change, seed=seed)
    return change, done


_OUTCOME = ("clean", "attacked", "attack_rate", "effect")
_FIX_COLUMNS: list[str] = [
    *("class", "channel", "pairs", "recovery", "cost"),
    *(f"{key}_{when}" for when in ("before", "after") for key in _OUTCOME),
]


def _fix_row(name: str, channel: str, done: Any) -> list[str]:
    outcomes = [getattr(one, key) for one in (done.before, done.after) for key in _OUTCOME]
    numbers = [f"{value:.6g}" for value in (done.count, done.recovery, done.cost, *outcomes)]
    return [name, str(channel), *numbers]


def _kept(
    workspace: Workspace,
    name: str,
    settings: Mapping[str, Any],
    kind: type[Record],
    run: Callable[[], Record],
) -> Record:
    """A record of the workspace, made now where it is not there or was made with other settings."""
    if name in workspace.parts:
        part = workspace.parts[name]
        if _made_with(part.facts, settings):
            return unpack(part, kind)
    record = run()
    workspace.parts[name] = pack(record, **settings)
    return record


def _made_with(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    return all(facts.get(key) == value for key, value in settings.items())
