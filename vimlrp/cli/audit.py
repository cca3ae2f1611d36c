"""`vimlrp audit`: is a classifier right for the wrong reason?"""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from torch import nn

from vimlrp.audit import facts, late
from vimlrp.audit.gathering.index import Index
from vimlrp.audit.gathering.index import index as index_pictures
from vimlrp.audit.gathering.predicting import agreement
from vimlrp.audit.gathering.predicting import predict as predict_pictures
from vimlrp.audit.gathering.selection import class_indices
from vimlrp.audit.records import Candidate, ClassScore, Evidence, Finding, Screening
from vimlrp.audit.reporting import identities, read_decisions
from vimlrp.audit.stages import Gathered, read_gathered
from vimlrp.audit.stages import explain as explain_pictures
from vimlrp.audit.workspace import Workspace
from vimlrp.cli.audit_options import (
    ADVICE,
    Beginning,
    begins,
    decisions_option,
    device_option,
    out_option,
    reopen,
    workers_option,
)
from vimlrp.cli.groups import DefaultGroup
from vimlrp.cli.loading import failures_told, progress_bar, progress_of
from vimlrp.errors import InputError
from vimlrp.evaluation.data import DataSet, Problem
from vimlrp.evaluation.problem_tables import problem_counts, problem_csv

__all__ = ["command"]


@click.group("audit", cls=DefaultGroup, no_args_is_help=True)
def command() -> None:
    """Audit a classifier on a folder: is it right for the wrong reason?

    'vimlrp audit FOLDER' runs all stages, one after another: index, predict (where the pictures
    have no labels), explain, screen, drill, verify, report. Each is a command of its own too; those
    from 'screen' on need only --out. Interrupted at any moment, the same command goes on. Exit
    code: 0 all done, 1 some pictures or classes had problems (problems.csv), 2 nothing could start,
    130 interrupted.
    """


@command.command("run", hidden=True)
@begins
@click.option("--rate", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--probe", is_flag=True, help="Try known artifacts on all classes, too.")
@workers_option
def run(beginning: Beginning, out: Path, rate: float, probe: bool, workers: int) -> None:
    """Run all stages on DATA: a folder of pictures by class, or a CSV file.

    --rate is the false-discovery rate at which classes are flagged.
    """
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        tell = progress_of(bar, "loading")
        model, workspace = beginning.open(out)
        gathered = explain_pictures(workspace, model, tell)
        _say_gathered(console, gathered)
        evidence = gathered.evidence()
        screening = late.screen(
            workspace, evidence, rate=rate, seed=beginning.seed, workers=workers, progress=tell
        )
        _say_screening(console, evidence, screening)
        candidates, undrilled = late.drill(
            workspace, model, evidence, screening.flagged(), progress=tell
        )
        findings, unverified = late.verify(workspace, model, evidence, candidates, progress=tell)
        probes = (
            late.probe(model, DataSet(workspace.samples), seed=beginning.seed, progress=tell)
            if probe
            else None
        )
        problems = [*_problems(gathered), *screening.problems, *undrilled, *unverified]
        files = _report(workspace, gathered, findings, problems, probes)
    _say_findings(console, evidence, findings)
    _end(console, workspace, problems, files)


@command.command("index")
@begins
def index(beginning: Beginning, out: Path) -> None:
    """Check files, find copies, measure pictures: no explanation yet."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        tell = progress_of(bar, "loading")
        _, workspace = beginning.open(out)
        found = index_pictures(workspace, tell)
        problems = [*workspace.data_problems, *found.problems]
    _say(console, _index_line(found))
    _end(console, workspace, problems, [])


@command.command("predict")
@begins
def predict(beginning: Beginning, out: Path) -> None:
    """Classify the pictures, to know how well the model does before it is explained."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        tell = progress_of(bar, "loading")
        model, workspace = beginning.open(out)
        found = index_pictures(workspace, tell)
        predicted = predict_pictures(workspace, model, np.flatnonzero(found.readable), tell)
        problems = [*workspace.data_problems, *found.problems, *predicted.problems]
    _say(console, _index_line(found))
    known = predicted.labels >= 0
    if known.any():
        labels = predicted.labels[known]
        first = agreement(labels, predicted.classes[known, 0])
        top = (predicted.classes[known] == labels[:, None]).any(1).mean()
        loss = predicted.losses[known].mean()
        _say(
            console,
            f"accuracy {first.accuracy:.1%} (by chance {first.chance:.1%}), "
            f"top {predicted.classes.shape[1]} {top:.1%}, mean loss {loss:.3f}",
        )
    _end(console, workspace, problems, [])


@command.command("explain")
@begins
def explain(beginning: Beginning, out: Path) -> None:
    """Run the first stages: all that screening needs."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        tell = progress_of(bar, "loading")
        model, workspace = beginning.open(out)
        gathered = explain_pictures(workspace, model, tell)
        problems = _problems(gathered)
    _say_gathered(console, gathered)
    _end(console, workspace, problems, [workspace.folder / "manifest.json"])


@command.command("screen")
@click.option("--rate", type=click.FloatRange(0, 1), default=0.1, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@workers_option
@out_option
def screen(out: Path, rate: float, seed: int, workers: int) -> None:
    """Rank the classes of an explained audit by suspicion."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        gathered = read_gathered(out)
        evidence, workspace = gathered.evidence(), gathered.workspace
        tell = progress_of(bar, "screen")
        screening = late.screen(
            workspace, evidence, rate=rate, seed=seed, workers=workers, progress=tell
        )
    _say_screening(console, evidence, screening)
    _end(console, workspace, screening.problems, [], _problems(gathered))


@command.command("drill")
@click.argument("classes", nargs=-1)
@out_option
@device_option
def drill(out: Path, device: str, classes: tuple[str, ...]) -> None:
    """Find what the suspicious pictures of CLASSES share; of all flagged classes by default."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        stage = _Late.of(out, device)
        candidates, problems = stage.candidates(classes, progress_of(bar, "drill"))
    for candidate in candidates:
        name = stage.evidence.class_names[candidate.label]
        where = "somewhere in particular" if candidate.local else "nowhere in particular"
        where = where if candidate.place is None else candidate.place.name
        _say(
            console,
            f"{name}: {len(candidate.carriers)} of {len(candidate.members)} pictures share a cue, "
            f"{where}, by {candidate.channel}",
        )
    _end(console, stage.workspace, problems, [], stage.before)


@command.command("verify")
@click.argument("classes", nargs=-1)
@out_option
@device_option
def verify(out: Path, device: str, classes: tuple[str, ...]) -> None:
    """Prove what the cues of CLASSES do to the model; of all flagged classes by default."""
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        stage = _Late.of(out, device)
        tell = progress_of(bar, "verify")
        candidates, undrilled = stage.candidates(classes, tell)
        findings, unverified = late.verify(
            stage.workspace, stage.model, stage.evidence, candidates, progress=tell
        )
    _say_findings(console, stage.evidence, findings)
    _end(console, stage.workspace, [*undrilled, *unverified], [], stage.before)


@command.command("fix")
@out_option
@device_option
@decisions_option
def fix(out: Path, device: str, decisions: Path | None) -> None:
    """Write what may be done about findings: lists of pictures, and corrections of the model.

    Findings that --decisions reject are left alone.
    """
    console = Console()
    with failures_told(console, out, ADVICE), progress_bar(console) as bar:
        stage = _Late.of(out, device)
        findings = late.read_findings(stage.workspace)
        chosen = _decided(decisions, findings)
        kept = [
            f
            for f, name in zip(findings, identities(findings), strict=True)
            if chosen.get(name) != "reject"
        ]
        files, problems = late.fix(
            stage.workspace,
            stage.model,
            stage.evidence,
            kept,
            progress=progress_of(bar, "fix"),
        )
    _end(console, stage.workspace, problems, files, stage.before)


@command.command("report")
@out_option
@decisions_option
def report(out: Path, decisions: Path | None) -> None:
    """Write the report of what is verified so far."""
    console = Console()
    with failures_told(console, out, ADVICE):
        gathered = read_gathered(out)
        findings = late.read_findings(gathered.workspace)
        screening, _ = late.read_screening(gathered.workspace)
        problems = [*_problems(gathered), *screening.problems]
        chosen = _decided(decisions, findings)
        files = _report(gathered.workspace, gathered, findings, problems, None, chosen)
    _end(console, gathered.workspace, problems, files)


@dataclass(frozen=True, eq=False)
class _Late:
    """A screened audit whose model is loaded again, and the problems that it had before."""

    model: nn.Module
    workspace: Workspace
    evidence: Evidence
    before: tuple[Problem, ...]

    @classmethod
    def of(cls, out: Path, device: str) -> "_Late":
        model, _ = reopen(out, device)
        gathered = read_gathered(out)
        screening, _ = late.read_screening(gathered.workspace)
        before = (*_problems(gathered), *screening.problems)
        return cls(model, gathered.workspace, gathered.evidence(), before)

    def candidates(
        self, classes: Sequence[str], progress: Callable[[int, int, str], None]
    ) -> tuple[list[Candidate], list[Problem]]:
        screening, _ = late.read_screening(self.workspace)
        scores = screening.flagged() if not classes else self._scores(screening, classes)
        return late.drill(self.workspace, self.model, self.evidence, scores, progress=progress)

    def _scores(self, screening: Screening, classes: Sequence[str]) -> list[ClassScore]:
        """The most suspicious score of each class that was asked for."""
        names = self.evidence.class_names
        wanted = class_indices(classes, names, len(names)) or []
        firsts = {score.label: score for score in reversed(screening.scores)}
        lacking = [names[label] for label in wanted if label not in firsts]
        if lacking:
            raise InputError(
                f"{', '.join(lacking)} could not be screened: see problems.csv, or name others"
            )
        return [firsts[label] for label in wanted]


def _report(
    workspace: Workspace,
    gathered: Gathered,
    findings: Sequence[Finding],
    problems: Sequence[Problem],
    probes: object,
    decisions: Mapping[str, str] | None = None,
) -> list[Path]:
    return late.report(
        workspace,
        gathered.evidence(),
        findings,
        about=facts.about(gathered, command=shlex.join(["vimlrp", *sys.argv[1:]])),
        problems=problems,
        probes=probes,
        decisions=decisions,
    )


def _decided(path: Path | None, findings: Sequence[Finding]) -> dict[str, str]:
    return {} if path is None else read_decisions(path, findings)


def _problems(gathered: Gathered) -> list[Problem]:
    return [*facts.warnings(gathered), *gathered.problems()]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _index_line(found: Index) -> str:
    readable = int(found.readable.sum())
    copies = int((found.originals != np.arange(len(found.readable))).sum())
    return f"{readable} of {len(found.readable)} pictures are readable, {copies} are copies"


def _say_gathered(console: Console, gathered: Gathered) -> None:
    _say(console, _index_line(gathered.index))
    for name, fact in facts.about(gathered).items():
        if name in ("explained", "audited class", "accuracy", "recorded layer"):
            _say(console, f"{name}: {fact}")


def _say_screening(console: Console, evidence: Evidence, screening: Screening) -> None:
    flagged = screening.flagged()
    _say(
        console,
        f"{len({s.label for s in screening.scores})} classes screened, "
        f"{len({s.label for s in flagged})} flagged at a false-discovery rate of {screening.rate}",
    )
    for score in flagged:
        name = evidence.class_names[score.label]
        where = "" if score.place is None else f" ({score.place.name})"
        _say(console, f"  {name}: by {score.channel}{where}, q = {score.q_value:.3g}")
    for note in screening.notes:
        _say(console, note)


def _say_findings(console: Console, evidence: Evidence, findings: Sequence[Finding]) -> None:
    for finding in findings:
        name = evidence.class_names[finding.candidate.label]
        _say(console, f"{name}: {finding.verdict}, by {finding.candidate.channel}")
        for effect in finding.effects:
            interval = f"{effect.mean:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}]"
            _say(console, f"  {effect.kind}: {interval} over {effect.count} pairs")
        _say(console, f"  {finding.action}")


def _end(
    console: Console,
    workspace: Workspace,
    problems: Sequence[Problem],
    files: Sequence[Path],
    before: Sequence[Problem] = (),
) -> None:
    """List the problems of all stages, count this one's, name the files, set the exit code."""
    path = workspace.folder / "problems.csv"
    with failures_told(console, workspace.folder, ADVICE):
        workspace.parts.write(path, problem_csv([*before, *problems]).encode())
    _say(console, problem_counts(problems))
    for file in (*files, path):
        console.print(f"wrote {escape(str(file))}", soft_wrap=True, highlight=False)
    if problems:
        raise click.exceptions.Exit(1)
