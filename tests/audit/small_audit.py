"""An audit in small, made by hand: procedural pictures, and records whose figures are known."""

import numpy as np
from PIL import Image

from vimlrp.audit.records import (
    Candidate,
    Channel,
    ClassScore,
    Effect,
    Evidence,
    Finding,
    Screening,
    Verdict,
)
from vimlrp.evaluation.data import Sample
from vimlrp.preprocessing import Preprocessing

SIDE = 48
PREPROCESSING = Preprocessing(size=(SIDE, SIDE), crop_pct=1.0)
ABOUT = {"model": "small", "images": "noise", "date": "2026-01-02", "seed": 0}


def picture(seed, side=SIDE):
    """Smooth noise with a disc, (side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    pixels = np.array(coarse.resize((side, side), Image.Resampling.BICUBIC))
    y, x = np.mgrid[:side, :side]
    cy, cx = rng.uniform(side / 4, 3 * side / 4, 2)
    pixels[np.hypot(y - cy, x - cx) < side / 8] = rng.integers(0, 256, 3)
    return pixels


def evidence(folder, counts=(16, 16), names=None, labelled=True, **changes):
    """Samples in folders by class, every fourth misclassified, no copies."""
    names = names or tuple(f"class {c}" for c in range(len(counts)))
    samples, labels = [], np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    for i, label in enumerate(labels.tolist()):
        path = folder / f"{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i)).save(path)
        samples.append(Sample(path, f"{label}/{i}.png", label if labelled else None))
    rng, n = np.random.default_rng(0), len(labels)
    maps = rng.normal(size=(n, 16, 16))
    latent = rng.normal(size=(n, 6))
    fields = {
        "samples": tuple(samples),
        "class_names": tuple(names),
        "labels": labels,
        "predictions": np.where(np.arange(n) % 4 == 0, (labels + 1) % len(names), labels),
        "probabilities": rng.uniform(size=n).astype(np.float32),
        "maps": (maps / np.abs(maps).sum((1, 2), keepdims=True)).astype(np.float16),
        "latent": (latent / np.abs(latent).sum(1, keepdims=True)).astype(np.float16),
        "activations": latent.astype(np.float16),
        "statistics": rng.normal(size=(n, 2)).astype(np.float32),
        "statistic_names": ("sharpness", "jpeg_quality"),
        "originals": np.arange(n),
        "layer": "layers.1",
    }
    return Evidence(**fields | changes)


def score(label, p_value, channel=Channel.RELEVANCE, *, flagged=False, cluster=(), count=16):
    members = np.array(cluster, dtype=np.int64)
    q_value = min(1.0, 2 * p_value)
    return ClassScore(label, channel, count, 0.125, 3.5, 2.5, 2, p_value, q_value, flagged, members)


def candidate(found, label, carriers=6, channel=Channel.RELEVANCE, *, local=True, statistics=()):
    """The first samples of a class carry a square at their upper left."""
    members = np.flatnonzero(found.labels == label)
    regions = np.zeros((carriers if local else 0, SIDE, SIDE), dtype=bool)
    regions[:, 4:16, 4:16] = True
    return Candidate(
        label=label,
        channel=channel,
        seeds=members[: carriers // 2],
        direction=np.eye(6, dtype=np.float32)[0],
        members=members,
        scores=np.linspace(2, -1, len(members)).astype(np.float32),
        carriers=members[:carriers],
        regions=regions,
        local=local,
        statistics=statistics,
    )


def finding(cue, verdict=Verdict.CAUSAL, effects=None, **changes):
    known = (
        Effect("removal", -1.5, -2.0, -1.0, 6),
        Effect("insertion", 2.0, 1.25, 2.75, 40, 0.3),
    )
    fields = {
        "off_object": 0.9,
        "clever_hans": verdict is Verdict.CAUSAL,
        "action": "Crop it.",
        "notes": ("Seen once.",),
    }
    return Finding(cue, known if effects is None else effects, verdict, **fields | changes)


def whole(folder):
    """Evidence, a screening that flags class 1, and one finding on it."""
    found = evidence(folder)
    scores = (
        score(1, 0.001, flagged=True, cluster=(16, 17, 18)),
        score(0, 0.2),
        score(1, 0.5, Channel.LATENT),
    )
    cue = candidate(found, 1, statistics=(("jpeg_quality", 0.875),))
    return found, Screening(scores, 0.1), (finding(cue),)
