"""Small audits for tests: a model of ten classes, and folders of pictures for it."""

from pathlib import Path

import numpy as np
from PIL import Image

from vimlrp.evaluation.data import read_data


def photos(folder, classes=("0", "7"), count=3, size=(40, 48), seed=0):
    """Write pictures of rough noise into folders by class; "" puts them at the top."""
    rng = np.random.default_rng(seed)
    for name in classes:
        for i in range(count):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return folder


def read(folder):
    return read_data(folder, None, 10)


def contents(folder):
    """The bytes of every file of an audit by its name."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
