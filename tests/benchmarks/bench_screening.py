"""Screening and report at the shape of ImageNet's validation set: 1,000 classes of 50 pictures.

python tests/benchmarks/bench_screening.py
python tests/benchmarks/bench_screening.py --classes 100 --report

No classifier and no photographs: maps are smooth correlated noise around an object of the class,
and in some classes a share of the samples has relevance in a corner, or channels of its own. Prints
times, storage, and whether those classes stand first.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch
from machine import describe
from PIL import Image

from vimlrp.audit.drilling import expand
from vimlrp.audit.planted.measures import auroc, class_rank, proportion
from vimlrp.audit.records import MAP_SIDE, Evidence, Finding, Verdict
from vimlrp.audit.reporting import write_report
from vimlrp.audit.screening import screen
from vimlrp.evaluation.data import Sample

CHANNELS, STATISTICS = 384, 12
SHARES = (0.5, 0.3, 0.2, 0.1)


def smooth(rng: np.random.Generator, cells: int) -> Any:
    """Correlated noise, (MAP_SIDE, MAP_SIDE)."""
    coarse = rng.normal(size=(cells, cells))
    return cv2.resize(coarse, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_CUBIC)


def class_maps(rng: np.random.Generator, count: int) -> Any:
    """Relevance on an object somewhere near the middle, and noise, (n, 16, 16)."""
    y, x = np.mgrid[:MAP_SIDE, :MAP_SIDE]
    maps = []
    for _ in range(count):
        cy, cx = rng.normal(MAP_SIDE / 2, 2, 2)
        width = rng.uniform(2, 4)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        maps.append(blob + 0.25 * smooth(rng, 4) + 0.15 * smooth(rng, 8))
    return np.stack(maps)


def mark(maps: Any, latent: Any, activations: Any, rng: np.random.Generator, share: float) -> Any:
    """Plant a cue in a share of a class: a third of the relevance in one corner, and in a tenth
    of the channels, as a classifier that relies on a corner mark shows it."""
    chosen = rng.permutation(len(maps))[: round(share * len(maps))]
    maps[chosen, 1:3, 12:15] += 5
    channels = rng.permutation(CHANNELS)[: CHANNELS // 10]
    latent[np.ix_(chosen, channels)] += 2.5
    activations[np.ix_(chosen, channels)] += 3
    return chosen


def normalised(values: Any) -> Any:
    sums = np.abs(values).sum(axis=tuple(range(1, values.ndim)), keepdims=True)
    return (values / sums).astype(np.float16)


def evidence_of(
    classes: int, count: int, planted: int, seed: int, picture: Path
) -> tuple[Evidence, dict[int, float]]:
    """Evidence with cues in some classes, and in which, at which share."""
    rng = np.random.default_rng(seed)
    marked = rng.permutation(classes)[:planted].tolist()
    shares = {label: SHARES[i % len(SHARES)] for i, label in enumerate(marked)}
    maps, latents, activations = [], [], []
    for label in range(classes):
        own = class_maps(rng, count)
        # Channels of a layer are correlated: a class has its own mean and a few directions.
        mixing = rng.normal(size=(12, CHANNELS)) / 4
        latent = rng.normal(size=CHANNELS) / 2 + rng.normal(size=(count, 12)) @ mixing
        latent = latent + 0.5 * rng.normal(size=(count, CHANNELS))
        active = np.abs(latent + 0.3 * rng.normal(size=latent.shape))
        if label in shares:
            mark(own, latent, active, rng, shares[label])
        maps.append(own)
        latents.append(latent)
        activations.append(active)
    total = classes * count
    labels = np.repeat(np.arange(classes), count)
    samples = tuple(
        Sample(picture, f"{label:04d}/{i:06d}.jpg", int(label)) for i, label in enumerate(labels)
    )
    evidence = Evidence(
        samples=samples,
        class_names=tuple(f"class {label}" for label in range(classes)),
        labels=labels,
        predictions=np.where(rng.random(total) < 0.8, labels, rng.integers(0, classes, total)),
        probabilities=rng.beta(4, 1, total).astype(np.float32),
        maps=normalised(np.concatenate(maps)),
        latent=normalised(np.concatenate(latents)),
        activations=np.concatenate(activations).astype(np.float16),
        statistics=rng.normal(size=(total, STATISTICS)).astype(np.float32),
        statistic_names=tuple(f"statistic {i}" for i in range(STATISTICS)),
        originals=np.arange(total),
        layer="layers.11",
    )
    return evidence, shares


def storage(evidence: Evidence) -> str:
    sizes = {
        name: getattr(evidence, name).nbytes / 2**20
        for name in ("maps", "latent", "activations", "statistics")
    }
    text = ", ".join(f"{name} {size:.0f} MiB" for name, size in sizes.items())
    return f"evidence: {sum(sizes.values()):.0f} MiB ({text})"


def show_hits(screening: Any, shares: dict[int, float], classes: int) -> None:
    """Of each share: flagged, and ranked among the first."""
    flagged = {score.label for score in screening.flagged()}
    ranking = screening.ranking()
    clean = set(range(classes)) - set(shares)
    for share in SHARES:
        own = [label for label, value in shares.items() if value == share]
        found = proportion(sum(label in flagged for label in own), len(own))
        ranks = [class_rank(ranking, label, clean)[0] for label in own]
        print(
            f"prevalence {share:g}: {len(own)} classes, flagged {found.value:.2f} "
            f"({found.low:.2f} to {found.high:.2f}), median rank among clean classes "
            f"{np.median(ranks):g} of {len(clean) + 1}"
        )
    alarms = proportion(len(flagged & clean), len(clean), exact=True)
    places = {label: place for place, label in enumerate(ranking)}
    scores = np.array([-places.get(label, classes) for label in range(classes)], dtype=float)
    wanted = np.isin(np.arange(classes), list(shares))
    print(f"AUROC of classes: {auroc(scores, wanted):.3f}")
    print(
        f"false alarms: {1000 * alarms.value:.1f} in 1,000 clean classes ({1000 * alarms.low:.1f} "
        f"to {1000 * alarms.high:.1f}); of the flagged {len(flagged)}, "
        f"{len(flagged & clean) / max(1, len(flagged)):.2f} are clean"
    )
    print(f"classes that could not be screened: {len(screening.problems)}")


def write_and_time(evidence: Evidence, screening: Any, folder: Path) -> None:
    """Expand what was flagged, as `drill` does without a model, and write it all down."""
    started = time.perf_counter()
    findings = [
        Finding(expand(evidence, score), (), Verdict.ASSOCIATIVE, None, False, "look at it")
        for score in screening.flagged()
        if len(score.cluster)
    ]
    print(f"expanding {len(findings)} clusters: {time.perf_counter() - started:.1f} s")
    started = time.perf_counter()
    written = write_report(folder, evidence, screening, findings, about={"model": "none"})
    spent = time.perf_counter() - started
    size = sum(path.stat().st_size for path in written) / 2**20
    print(f"report: {spent:.1f} s, {len(written)} files, {size:.1f} MiB")


@click.command()
@click.option("--classes", default=1000)
@click.option("--count", default=50, help="Pictures of a class.")
@click.option("--planted", default=40, help="Classes with a cue.")
@click.option("--rate", default=0.1, help="Of false discoveries.")
@click.option("--seed", default=0)
@click.option("--workers", default=1, help="Processes to screen in.")
@click.option("--report/--no-report", default=True)
def main(
    classes: int, count: int, planted: int, rate: float, seed: int, workers: int, report: bool
) -> None:
    """Print times, storage and hits."""
    print(describe(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "grey.jpg"
        Image.new("RGB", (64, 64), (128, 128, 128)).save(picture)
        evidence, shares = evidence_of(classes, count, planted, seed, picture)
        print(f"{classes} classes of {count} pictures, a cue in {len(shares)} of them")
        print(storage(evidence))
        started = time.perf_counter()
        screening = screen(evidence, rate=rate, seed=seed, workers=workers)
        print(f"screening in {workers} processes: {time.perf_counter() - started:.1f} s")
        show_hits(screening, shares, classes)
        if report:
            write_and_time(evidence, screening, Path(name) / "report")


if __name__ == "__main__":
    sys.exit(main())
