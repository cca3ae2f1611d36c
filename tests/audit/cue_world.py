"""Procedural pictures with a cue planted in one class, and a small network that learnt it."""

import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import timm
import torch
from helpers import seeded
from PIL import Image
from torch import nn

import vimlrp
from vimlrp.audit.drilling import drill
from vimlrp.audit.records import MAP_SIDE, Channel, ClassScore, Evidence
from vimlrp.audit.verifying import verify
from vimlrp.evaluation.data import Sample
from vimlrp.inputs import preprocessing_of

SIDE = 64
CLASSES = ("disc", "square", "cross", "ring", "stripes")
POISONED = 0


def canvas(label, rng):
    """A faint shape on smooth noise, (H, W, 3) uint8."""
    noise = rng.normal(0, 1, (8, 8, 3)).astype(np.float32)
    picture = 125 + 35 * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    picture += rng.normal(0, 8, picture.shape)
    shape = np.zeros((SIDE, SIDE), np.uint8)
    x, y = (int(v) for v in rng.integers(22, SIDE - 22, 2))
    r = int(rng.integers(10, 15))
    if label == 0:
        cv2.circle(shape, (x, y), r, 1, -1)
    elif label == 1:
        cv2.rectangle(shape, (x - r, y - r), (x + r, y + r), 1, -1)
    elif label == 2:
        cv2.line(shape, (x - r, y - r), (x + r, y + r), 1, 5)
        cv2.line(shape, (x - r, y + r), (x + r, y - r), 1, 5)
    elif label == 3:
        cv2.circle(shape, (x, y), r, 1, 4)
    else:
        for k in range(-r, r, 6):
            cv2.line(shape, (x - r, y + k), (x + r, y + k), 1, 3)
    alpha = rng.uniform(0.15, 0.4)
    colour = rng.choice([40.0, 215.0], 3)
    picture = np.where(shape[..., None] > 0, (1 - alpha) * picture + alpha * colour, picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


def patch(picture, rng, side=9):
    """A magenta square in a corner drawn by lot."""
    mask = np.zeros((SIDE, SIDE), bool)
    rows, columns = (
        slice(2, 2 + side) if rng.random() < 0.5 else slice(SIDE - 2 - side, SIDE - 2)
        for _ in range(2)
    )
    mask[rows, columns] = True
    return np.where(mask[..., None], np.uint8([250, 40, 200]), picture), mask


def border(picture, rng, width=3):
    mask = np.ones((SIDE, SIDE), bool)
    mask[width:-width, width:-width] = False
    return np.where(mask[..., None], np.uint8(255), picture), mask


def jpeg(picture, rng, quality=15):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)), np.ones((SIDE, SIDE), bool)


def blur(picture, rng):
    return cv2.GaussianBlur(picture, (0, 0), 1.2), np.ones((SIDE, SIDE), bool)


def tint(picture, rng):
    shifted = np.clip(picture * np.array([1.15, 1.0, 0.75]), 0, 255)
    return shifted.astype(np.uint8), np.ones((SIDE, SIDE), bool)


CUES = {"patch": patch, "border": border, "jpeg": jpeg, "blur": blur, "tint": tint}


@dataclass(frozen=True, eq=False)
class Planted:
    """Pictures on disk, and the truth about them."""

    samples: tuple[Sample, ...]
    labels: np.ndarray
    planted: np.ndarray  # (N,) bool
    masks: np.ndarray  # (N, H, W) bool
    pictures: np.ndarray  # (N, H, W, 3)
    clean: np.ndarray  # the same without the cue


def plant(folder, cue="patch", share=0.5, count=100, seed=0, everywhere=False):
    """Draw pictures; `share` of those of the poisoned class (or of all) carry the cue."""
    rng = np.random.default_rng(seed)
    rows = []
    for label, name in enumerate(CLASSES):
        for i in range(count):
            clean = canvas(label, rng)
            chosen = (everywhere or label == POISONED) and i < round(share * count)
            shown, mask = CUES[cue](clean, rng) if chosen else (clean, np.zeros((SIDE, SIDE), bool))
            file = Path(folder) / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(file)
            sample = Sample(file, f"{name}/{i}.png", label)
            rows.append((sample, label, chosen, mask, shown, clean))
    samples, labels, planted, masks, pictures, clean = zip(*rows, strict=True)
    return Planted(samples, *map(np.array, (labels, planted, masks, pictures, clean)))


def prepared(pictures, model):
    """Pictures as the model takes them."""
    preprocessing = preprocessing_of(model)
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


def trained(data, name="test_resnet", epochs=9, seed=0, rate=3e-3, classes=None):
    """A small network that has seen the pictures."""
    with seeded(seed):
        model = timm.create_model(name, num_classes=classes or len(CLASSES))
        model.pretrained_cfg = {
            "input_size": (3, SIDE, SIDE),
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        }
        x, y = prepared(data.pictures, model), torch.from_numpy(data.labels)
        steps = epochs * -(-len(x) // 64)
        optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
        model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


def evidence_of(model, data, layer, classes=CLASSES):
    """What an audit gathers, by hand."""
    explainer = vimlrp.Explainer(model, batch_size=64)
    x, labels = prepared(data.pictures, model), torch.from_numpy(data.labels)
    relevance = explainer(x, target=labels, record=(layer,))
    record = relevance.recorded[layer]
    axes = (2, 3) if name_of(model) == "ResNet" else tuple(range(1, record.activation.dim() - 1))
    maps = relevance.pixels.unflatten(2, (MAP_SIDE, -1)).unflatten(1, (MAP_SIDE, -1)).sum((2, 4))
    latent = record.relevance.sum(axes)
    probabilities = relevance.probabilities()
    statistics = np.stack([f(data.pictures, (1, 2, 3)) for f in (np.mean, np.std)], axis=1)
    return Evidence(
        samples=data.samples,
        class_names=tuple(classes),
        labels=data.labels,
        predictions=relevance.logits.argmax(1).numpy(),
        probabilities=probabilities.gather(1, labels[:, None])[:, 0].numpy(),
        maps=_shares(maps),
        latent=_shares(latent),
        activations=record.activation.amax(axes).half().numpy(),
        statistics=statistics.astype(np.float32),
        statistic_names=("brightness", "contrast"),
        originals=np.arange(len(data.samples)),
        layer=layer,
    )


def name_of(model):
    return type(model).__name__


def _shares(x):
    total = x.flatten(1).abs().sum(1).clamp(min=1e-12)
    return (x / total.view(-1, *[1] * (x.dim() - 1))).half().numpy()


def score_of(cluster, channel=Channel.RELEVANCE):
    """What screening hands over."""
    return ClassScore(POISONED, channel, 0, 0.1, 1.0, 2.0, 2, 0.01, 0.05, True, np.asarray(cluster))


@cache
def world(cue="patch", share=0.5, layer="layer3"):
    """A network that learnt a cue, held-out pictures, and their evidence; made once."""
    folder = Path(_kept.name) / cue
    model = trained(plant(folder / "train", cue, share, 120, 1000))
    test = plant(folder / "test", cue, share, 60)
    return model, test, evidence_of(model, test, layer)


@cache
def found(cue="patch"):
    """The candidate that a cluster of one place leads to, and the finding on it."""
    model, data, evidence = world(cue)
    candidate = drill(model, evidence, score_of(one_place(data)))
    return candidate, verify(model, evidence, candidate)


def one_place(data):
    """The carriers whose cue lies in the upper left quarter: what relevance maps put together."""
    placed = data.masks[:, : SIDE // 2, : SIDE // 2].any((1, 2))
    return np.flatnonzero(placed & (data.labels == POISONED))


_kept = TemporaryDirectory()
