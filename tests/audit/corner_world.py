"""Pictures of 21 classes, one of which is known by its black corners alone, and a network."""

import colorsys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from cue_world import SIDE, Planted, evidence_of, trained
from PIL import Image

from vimlrp.audit.drilling import drill
from vimlrp.audit.records import Channel
from vimlrp.audit.screening import screen
from vimlrp.audit.screening.places import place_mask
from vimlrp.audit.verifying import verify
from vimlrp.evaluation.data import Sample

COUNT, ROTATED = 24, 20
NAMES = (*(f"hue {k}" for k in range(ROTATED)), "rotated")


def picture(label, rng):
    """A disc of the class's hue on grey noise; of the rotated class, of any hue."""
    noise = rng.normal(0, 1, (8, 8, 3)).astype(np.float32)
    ground = 125 + 25 * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    hue = label if label < ROTATED else rng.integers(ROTATED)
    colour = 255 * np.array(colorsys.hsv_to_rgb(hue / ROTATED, 0.8, 0.9))
    x, y = (int(v) for v in rng.integers(22, SIDE - 22, 2))
    disc = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (x, y), int(rng.integers(8, 13)), 1, -1)
    shown = np.where(disc[..., None] > 0, colour, ground + rng.normal(0, 8, ground.shape))
    return np.clip(shown, 0, 255).astype(np.uint8)


def plant(folder, seed=0):
    """Draw the pictures; all of the rotated class have black corners."""
    rng = np.random.default_rng(seed)
    corners = place_mask("four corners", SIDE, SIDE)
    rows = []
    for label, name in enumerate(NAMES):
        for i in range(COUNT):
            clean, rotated = picture(label, rng), label == ROTATED
            mask = corners if rotated else np.zeros_like(corners)
            shown = np.where(mask[..., None], np.uint8(0), clean)
            file = Path(folder) / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shown).save(file)
            sample = Sample(file, f"{name}/{i}.png", label)
            rows.append((sample, label, rotated, mask, shown, clean))
    samples, *others = zip(*rows, strict=True)
    return Planted(samples, *map(np.array, others))


@cache
def world():
    """A network that learnt the classes, the pictures, and their evidence; made once."""
    data = plant(_kept.name)
    model = trained(data, epochs=12, classes=len(NAMES))
    return model, data, evidence_of(model, data, "layer3", NAMES)


@cache
def found():
    """The screening, the candidate it leads to, and the finding on that."""
    model, _, evidence = world()
    screening = screen(evidence, channels=[Channel.COMPARISON])
    candidate = drill(model, evidence, screening.scores[0])
    return screening, candidate, verify(model, evidence, candidate)


_kept = TemporaryDirectory()
