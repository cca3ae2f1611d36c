"""Models whose right explanation is known, and data for them."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from vimlrp.evaluation import Plan, Store, collect, metrics_named, reports, run


class LinearModel(nn.Module):
    """Logits that are linear in the pixels: relevance is weight times input, exactly."""

    def __init__(self, size=32, classes=3, seed=0, bias=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, 3, size, size, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(weight)
        self.num_classes, self.bias = classes, bias
        self.pretrained_cfg = {"input_size": (3, size, size), "crop_pct": 1.0}

    def forward(self, x):
        return torch.einsum("bchw,kchw->bk", x, self.weight) + self.bias


class PatchReader(nn.Module):
    """Class 0 is the mean of one patch of 8 pixels, class 1 its negative; nothing else counts."""

    def __init__(self, row=1, column=2, size=32):
        super().__init__()
        self.place = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.num_classes = 2

    def forward(self, x):
        mean = x[:, :, self.place[0], self.place[1]].mean((1, 2, 3)) * self.one
        return torch.stack([mean, -mean], dim=1)

    def truth(self, x):
        """A map that is 1 in the patch and 0 elsewhere."""
        maps = torch.zeros(len(x), *x.shape[-2:])
        maps[:, self.place[0], self.place[1]] = 1
        return maps


def exact(model, x, target):
    """The method for `LinearModel`: weight times input."""
    return (x * model.weight[target]).sum(1).detach().float()


def random_map(model, x, target):
    """A method that knows nothing, the same for the same picture."""
    seeds = (x.flatten(1).double().sum(1) * 1e6).long().tolist()
    rows = [torch.randn(x.shape[-2:], generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(rows)


def constant_map(model, x, target):
    return torch.ones(len(x), *x.shape[-2:])


def photo_folder(folder, count=3, classes=("tench", "church"), size=(40, 48)):
    """Write noise as pictures, `count` a class, in folders by class; the files."""
    rng = np.random.default_rng(0)
    files = []
    for name in classes:
        for i in range(count):
            file = folder / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file)
            files.append(file)
    return files


METHODS = {"exact": exact, "random": random_map}


def plan(data, metrics=("flipping:mean", "complexity"), **options):
    defaults = {
        "model": LinearModel(), "model_name": "linear", "data": data, "methods": METHODS,
        "metrics": metrics_named(metrics, ()), "batch_size": 2, "patch_size": 8,
    }  # fmt: skip
    return Plan(**{**defaults, **options})


def finish(plan, folder, **options):
    store = Store(folder, plan.settings())
    run(plan, store, **options)
    results = collect(plan, store)
    reports.write(results, folder)
    return results
