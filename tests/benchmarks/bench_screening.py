"""Is the screening calibrated on real classes, and which shares of a planted cue does it find?

    python tests/benchmarks/bench_screening.py photos/ --model vmamba_nano_s1l8_224.imagenette \
        --layer layers.2.blocks.7 --per-class 150

`photos/` has a folder for each class. The classes are screened as they are; then one class after
the other gets a cue, in a growing share of its samples: a mark in the corner that takes a quarter
of the relevance of the map, or six latent channels that take a quarter of theirs.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from scipy import stats

import vimlrp
from vimlrp.audit.records import MAP_SIDE, Channel, Evidence
from vimlrp.audit.screening import screen
from vimlrp.evaluation.data import Sample

STRENGTH = 0.25


def main():
    options = arguments()
    evidence = explained(options.photos, options.model, options.layer, options.per_class)
    print("| channel | share with the cue | p < 0.05 | flagged | ranked first | purity | recall |")
    print("|---|---|---|---|---|---|---|")
    for channel, plant in ((Channel.RELEVANCE, with_mark), (Channel.LATENT, with_channels)):
        report_clean(evidence, channel)
        for share in options.shares:
            report_planted(evidence, channel, plant, share)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layer", required=True)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25, 0.5])
    return parser.parse_args()


def explained(photos, name, layer, per_class):
    """Evidence on the first pictures of every class, whose statistics are left empty."""
    model = timm.create_model(name, pretrained=True).eval()
    explainer = vimlrp.Explainer(model, batch_size=16)
    folders = sorted(folder for folder in photos.iterdir() if folder.is_dir())
    samples = [
        Sample(path, path.name, label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.iterdir())[:per_class]
    ]
    labels = np.array([sample.label for sample in samples])
    parts = [summed(explainer, samples[i : i + 64], layer) for i in range(0, len(samples), 64)]
    maps, latent, activations = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Evidence(
        samples=tuple(samples),
        class_names=tuple(folder.name for folder in folders),
        labels=labels,
        predictions=labels,
        probabilities=np.ones(len(labels), dtype=np.float32),
        maps=maps,
        latent=latent,
        activations=activations,
        statistics=np.empty((len(labels), 0), dtype=np.float32),
        statistic_names=(),
        originals=np.arange(len(labels)),
        layer=layer,
    )


def summed(explainer, samples, layer):
    """Maps (B, 16, 16), latent relevance (B, K) and activations (B, K)."""
    found = explainer(
        [sample.path for sample in samples],
        target=[sample.label for sample in samples],
        record=(layer,),
    )
    side = found.pixels.shape[-1] // MAP_SIDE
    maps = torch.nn.functional.avg_pool2d(found.pixels[:, None], side)[:, 0]
    record = found.recorded[layer]
    positions = tuple(range(1, record.relevance.ndim - 1))  # channels come last
    latent = record.relevance.sum(positions)
    return (
        (maps / maps.abs().sum((1, 2), keepdim=True)).half().numpy(),
        (latent / latent.abs().sum(1, keepdim=True)).half().numpy(),
        record.activation.amax(positions).half().numpy(),
    )


def with_mark(evidence, own, rng):
    maps = evidence.maps.astype(np.float64)
    for i in own:
        shares = rng.dirichlet([2] * 4) * STRENGTH * rng.uniform(0.6, 1.4)
        maps[i] *= 1 - shares.sum()
        maps[i, :2, :2] += shares.reshape(2, 2)
    return replace(evidence, maps=maps.astype(np.float16))


def with_channels(evidence, own, rng):
    latent = evidence.latent.astype(np.float64)
    channels = rng.choice(latent.shape[1], 6, replace=False)
    direction = rng.dirichlet([3] * 6)
    for i in own:
        strength = STRENGTH * rng.uniform(0.6, 1.4)
        latent[i] *= 1 - strength
        latent[i, channels] += strength * direction * rng.uniform(0.5, 1.5, 6)
    return replace(evidence, latent=latent.astype(np.float16))


def report_clean(evidence, channel):
    found = screen(evidence, channels=[channel])
    p_values = [score.p_value for score in found.scores]
    test = stats.kstest(p_values, "uniform", alternative="greater").pvalue
    small = np.mean(np.less(p_values, 0.05))
    print(f"| {channel} | none (KS {test:.2f}) | {small:.2f} | {len(found.flagged())} | | | |")


def report_planted(evidence, channel, plant, share):
    rows = []
    for label in np.unique(evidence.labels):
        own = evidence.of_class(label)
        own = own[: max(1, round(share * len(own)))]
        planted = plant(evidence, own, np.random.default_rng(label))
        found = screen(planted, channels=[channel])
        score = next(score for score in found.scores if score.label == label)
        hits = len(np.intersect1d(score.cluster, own))
        rows.append(
            (
                score.p_value < 0.05,
                score.flagged,
                found.ranking()[0] == label,
                hits / max(1, len(score.cluster)),
                hits / len(own),
            )
        )
    print(f"| {channel} | {share:g} | " + " | ".join(f"{x:.2f}" for x in np.mean(rows, 0)) + " |")


if __name__ == "__main__":
    main()
