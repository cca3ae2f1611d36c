"""Write the report of an audit: a page for people, tables for programs."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vimlrp.audit.probing.tables import ProbeTable
from vimlrp.audit.records import Evidence, Finding, Screening, Verdict
from vimlrp.audit.reporting.decisions import CHOICES, FORMAT, identities
from vimlrp.audit.reporting.pictures import Darkroom, palette
from vimlrp.audit.reporting.tables import findings_json, plain, samples_csv
from vimlrp.audit.reporting.templating import Templates
from vimlrp.audit.reporting.views import Card, cards, gallery, rows
from vimlrp.audit.reporting.words import accuracy, percent, summary
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.files import atomic_folder, atomic_write, distinct_names, sha256_of
from vimlrp.preprocessing import Preprocessing

__all__ = ["write_report"]

_MOST_CLASSES = 50
_MOST_BYTES = 20_000_000
_PAGES, _MARKER = "classes", "classes.json"
_SIDES = (32, 256)


def write_report(
    folder: str | Path,
    evidence: Evidence,
    screening: Screening,
    findings: Sequence[Finding],
    *,
    about: Mapping[str, object],
    thumbnails: int = 128,
    preprocessing: Preprocessing | None = None,
    problems: Sequence[Problem] = (),
    probes: ProbeTable | None = None,
    decisions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `report.html`, `findings.json` and `samples.csv`, each whole or not at all.

    The page needs nothing but itself: pictures, style and script are in it, and its policy
    forbids it to load anything. With findings on more than 50 classes, or more than 20 MB of it,
    the pictures go to a page for each class in `classes/`. The same arguments give the same bytes.

    Args:
        folder: Where to; missing folders are made, and an earlier report is replaced.
        evidence: What was audited. Its files are read again for the pictures; those that have
            gone are listed.
        screening: The ranking of the classes.
        findings: What was verified; any number, in any order.
        about: What the reader should know of the audit, shown as it is in the order given: the
            model, the images, the date, versions, the seed, the command.
        thumbnails: The longer side of the pictures, 32 to 256 pixels.
        preprocessing: The model's, which says what part of a photo the maps cover; timm's
            defaults if None.
        problems: What could not be audited, beside what the screening lists.
        probes: A table that `vimlrp.audit.probing.probes.probe` returned, to be shown too.
        decisions: What `read_decisions` returned, to begin with.

    Returns:
        The files, the page first.

    Raises:
        InputError: The size of the pictures or a decision is impossible, or `folder` is a file.
        MissingDependencyError: jinja2 or scikit-learn is missing.
        OSError: The disk refuses.
    """
    if not _SIDES[0] <= thumbnails <= _SIDES[1]:
        raise InputError(f"thumbnails is {thumbnails}; give {_SIDES[0]} to {_SIDES[1]} pixels")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, where the report's folder is to be; give another")
    chosen = _checked(decisions or {}, findings)
    templates = Templates()
    darkroom = Darkroom(preprocessing or Preprocessing())
    shown = cards(evidence, screening, findings)
    galleries = _galleries(shown, evidence, darkroom, templates, thumbnails)
    listed = (*problems, *screening.problems, *darkroom.problems, *_discovered(evidence, screening))
    data = findings_json(evidence, screening, findings, about, listed)
    apart = _apart(shown, galleries)
    shown = tuple(replace(card, page=apart.get(card.label, "")) for card in shown)
    context = _context(evidence, screening, findings, shown) | {
        "about": plain(about),
        "assumed_crop": preprocessing is None,
        "decisions": chosen,
        "galleries": {} if apart else galleries,
        "identity": sha256_of(data.encode())[:16],
        "probes": probes,
        "problems": listed,
    }
    page = templates.render("report.html.j2", context)
    pages = _write_pages(folder, apart, templates, {**context, "galleries": galleries})
    return [
        atomic_write(folder / "report.html", page.encode()),
        atomic_write(folder / "findings.json", data.encode()),
        atomic_write(folder / "samples.csv", samples_csv(evidence, findings).encode()),
        *pages,
    ]


def _galleries(
    shown: Sequence[Card],
    evidence: Evidence,
    darkroom: Darkroom,
    templates: Templates,
    side: int,
) -> dict[str, str]:
    """The pictures of every finding as parts of a page, made one after the other."""
    return {
        card.identity: templates.gallery(
            card, gallery(evidence, card.finding.candidate, darkroom, side)
        )
        for card in shown
    }


def _context(
    evidence: Evidence, screening: Screening, findings: Sequence[Finding], shown: Sequence[Card]
) -> dict[str, Any]:
    """What the records alone tell the templates."""
    return {
        "cards": shown,
        "format": FORMAT,
        "layer": evidence.layer,
        "palette": palette(),
        "rate": percent(screening.rate),
        "rows": rows(evidence, screening, shown),
        "summary": summary(evidence, screening, findings),
        "tiles": _tiles(evidence, screening, findings),
    }


def _checked(decisions: Mapping[str, str], findings: Sequence[Finding]) -> dict[str, str]:
    known = identities(findings)
    for name, choice in decisions.items():
        if name not in known or choice not in CHOICES:
            raise InputError(
                f"the decision {choice!r} on {name!r} is none of {', '.join(CHOICES)} on one of "
                f"{', '.join(known) or 'no findings'}; read decisions with read_decisions"
            )
    return {name: decisions.get(name, "open") for name in known}


def _discovered(evidence: Evidence, screening: Screening) -> Iterator[Problem]:
    """What only the whole shows: classes without pictures, copies of pictures across classes."""
    present = set(evidence.labels.tolist())
    ranked = set(screening.ranking()) | {p.sample for p in screening.problems}
    for label, name in enumerate(evidence.class_names):
        if label not in present and label not in ranked and name not in ranked:
            yield Problem(name, "class without pictures", "nothing is said of it")
    originals = evidence.originals
    for i in np.flatnonzero(evidence.labels != evidence.labels[originals]).tolist():
        other = int(originals[i])
        yield Problem(
            evidence.samples[i].name,
            "same picture in two classes",
            f"{evidence.class_names[evidence.labels[i]]}, and as {evidence.samples[other].name} "
            f"{evidence.class_names[evidence.labels[other]]}",
        )


def _tiles(
    evidence: Evidence, screening: Screening, findings: Sequence[Finding]
) -> list[tuple[str, str]]:
    """The figures at the head of the page."""
    share, labelled = accuracy(evidence)
    flagged = len({score.label for score in screening.flagged()})
    causal = sum(f.verdict in (Verdict.CAUSAL, Verdict.NON_LOCAL) for f in findings)
    copies = int((evidence.originals != np.arange(len(evidence))).sum())
    return [
        (f"{len(evidence):,}", f"pictures, {copies:,} of them copies" if copies else "pictures"),
        (percent(share) if labelled else "-", "classified rightly"),
        (f"{flagged} of {len(screening.ranking())}", "classes flagged"),
        (f"{causal} of {len(findings)}", "cues with a proven effect"),
        (str(sum(f.clever_hans for f in findings)), "Clever Hans by evidence"),
    ]


def _apart(shown: Sequence[Card], galleries: Mapping[str, str]) -> dict[int, str]:
    """Addresses of the pages of classes, by class; none where all fits on one page."""
    names = {card.label: card.name for card in shown}
    if len(names) <= _MOST_CLASSES and sum(map(len, galleries.values())) <= _MOST_BYTES:
        return {}
    files = distinct_names(list(names.values()))
    return {label: f"{_PAGES}/{file}.html" for label, file in zip(names, files, strict=True)}


def _write_pages(
    folder: Path, apart: Mapping[int, str], templates: Templates, context: Mapping[str, Any]
) -> list[Path]:
    place = folder / _PAGES
    if not apart:
        # Those of an earlier report would show what is no longer found.
        if (place / _MARKER).is_file():
            shutil.rmtree(place)
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(place, overwrite=True, marker=_MARKER) as part:
        for label, address in apart.items():
            own = [card for card in context["cards"] if card.label == label]
            page = templates.render("class.html.j2", {**context, "cards": own})
            atomic_write(part / Path(address).name, page.encode())
        listing = json.dumps({"format": FORMAT, "pages": list(apart.values())}, indent=2)
        atomic_write(part / _MARKER, f"{listing}\n".encode())
    return [folder / address for address in apart.values()]
