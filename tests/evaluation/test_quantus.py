"""Numbers that Quantus gives too."""

import warnings

import numpy as np
import pytest
import torch
from evaluation_models import LinearModel, exact
from helpers import images, random

from vimlrp.evaluation import Inference
from vimlrp.evaluation.complexity import entropy, gini
from vimlrp.evaluation.curves import area, flipping_curves
from vimlrp.evaluation.localisation import mass_accuracy, pointing_hit, rank_accuracy
from vimlrp.evaluation.replacement import canvas_of

quantus = pytest.importorskip("quantus", reason="needs the extra 'interop'")

MAPS = random(4, 16, 16).float()
REGIONS = torch.zeros(4, 16, 16, dtype=torch.bool)
for _row in range(4):
    REGIONS[_row, 2 : 8 + _row, 3 : 5 + 2 * _row] = True


def ask(metric, maps, regions=None, model=None, x=None, target=None):
    """Call a Quantus metric on maps as they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = metric(
            model=model,
            x_batch=images(len(maps), maps.shape[-1]).numpy() if x is None else x.numpy(),
            y_batch=np.zeros(len(maps), dtype=int) if target is None else target.numpy(),
            a_batch=maps[:, None].numpy(),
            s_batch=None if regions is None else regions[:, None].numpy(),
            device="cpu",
        )
    return torch.tensor(np.array(scores), dtype=torch.float64).squeeze()


OPTIONS = {"abs": False, "normalise": False, "disable_warnings": True}


@pytest.mark.parametrize(
    ("ours", "theirs", "maps"),
    [
        (mass_accuracy, "RelevanceMassAccuracy", MAPS.clamp(min=0)),
        (rank_accuracy, "RelevanceRankAccuracy", MAPS),
        (pointing_hit, "PointingGame", MAPS),
    ],
)
def test_localisation(ours, theirs, maps):
    expected = ask(getattr(quantus, theirs)(**OPTIONS), maps, REGIONS)
    assert torch.allclose(ours(maps, REGIONS), expected)


@pytest.mark.parametrize(("ours", "theirs"), [(entropy, "Complexity"), (gini, "Sparseness")])
def test_complexity(ours, theirs):
    options = {**OPTIONS, "abs": True}
    expected = ask(getattr(quantus, theirs)(**options), MAPS.abs())
    assert torch.allclose(ours(MAPS), expected, atol=1e-6)


def test_pixel_flipping_is_the_curve_of_single_pixels():
    model, x = LinearModel(size=8), images(2, 8).float()
    with torch.no_grad():
        model.weight /= 50
    target = torch.tensor([0, 2])
    maps = exact(model, x.double(), target)
    canvas = canvas_of("mean", Inference(model), x.double(), 1)
    _, probability = flipping_curves(canvas, maps, target, steps=64)

    class Wide(torch.nn.Module):
        """Takes float32; Quantus applies the softmax."""

        def forward(self, x):
            return model(x.double())

    metric = quantus.PixelFlipping(features_in_step=1, perturb_baseline=0.0, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curves = metric(
            model=Wide().eval(), x_batch=x.numpy(), y_batch=target.numpy(),
            a_batch=maps[:, None].numpy(), device="cpu",
        )  # fmt: skip
    expected = torch.tensor(np.array(curves), dtype=torch.float64)
    # Quantus removes one colour at a time; after three a pixel is gone.
    assert torch.allclose(probability.morf[:, 1:], expected[:, 2::3], atol=1e-5)
    assert (area(probability.morf, probability.share) < 1).all()
