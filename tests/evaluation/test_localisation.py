import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import random
from sklearn.metrics import accuracy_score, average_precision_score, jaccard_score

from vimlrp.errors import InputError
from vimlrp.evaluation.localisation import (
    average_precision,
    centre_hit,
    mass_accuracy,
    pointing_hit,
    rank_accuracy,
    region_share,
    segmentation,
    smoothed,
)


def regions(*boxes, size=8):
    out = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for row, (x0, y0, x1, y1) in enumerate(boxes):
        out[row, y0:y1, x0:x1] = True
    return out


BOXES = regions((0, 0, 4, 2), (3, 3, 7, 8))


def test_all_mass_inside_is_one_and_a_uniform_map_has_the_regions_share():
    inside = torch.where(BOXES, 2.0, -1.0)
    assert mass_accuracy(inside, BOXES).tolist() == [1, 1]
    assert mass_accuracy(-inside, BOXES).tolist() == [0, 0]
    assert torch.allclose(mass_accuracy(torch.ones(2, 8, 8), BOXES), region_share(BOXES))
    assert region_share(BOXES).tolist() == [8 / 64, 20 / 64]


def test_half_the_mass_inside_is_a_half():
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, 0], maps[0, 7, 7], maps[0, 6, 6] = 3.0, 3.0, -100.0
    assert mass_accuracy(maps, BOXES[:1]).tolist() == [0.5]


def test_ranks_count_only_as_many_pixels_as_the_region_has():
    maps = torch.zeros(1, 8, 8)
    maps[0, 0, :4] = 1  # four of the region's eight pixels, and four others
    maps[0, 7, :4] = 1
    assert rank_accuracy(maps, BOXES[:1]).tolist() == [0.5]


def test_pointing_looks_at_the_highest_pixel_alone():
    maps = torch.zeros(2, 8, 8)
    maps[:, 1, 2] = 1
    assert pointing_hit(maps, BOXES).tolist() == [1, 0]
    assert centre_hit(BOXES).tolist() == [0, 1]


def test_a_sample_without_a_region_has_no_score():
    none = torch.zeros(1, 8, 8, dtype=torch.bool)
    maps = random(1, 8, 8)
    found = segmentation(maps, none)
    scores = [
        mass_accuracy(maps, none), rank_accuracy(maps, none), pointing_hit(maps, none),
        centre_hit(none), region_share(none), found.pixel_accuracy, found.average_precision,
        found.union[:, 1],
    ]  # fmt: skip
    assert all(math.isnan(score.item()) for score in scores)


def test_segmentation_is_scikit_learns():
    maps = random(2, 8, 8)
    found = segmentation(maps, BOXES)
    for i in range(2):
        predicted = (maps[i] > maps[i].mean()).flatten().numpy()
        truth = BOXES[i].flatten().numpy()
        assert found.pixel_accuracy[i] == pytest.approx(accuracy_score(truth, predicted))
        for side in (0, 1):
            ratio = found.intersection[i, side] / found.union[i, side]
            expected = jaccard_score(truth == side, predicted == side)
            assert float(ratio) == pytest.approx(expected)
        scaled = ((maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())).flatten().numpy()
        expected = average_precision_score(
            np.concatenate([~truth, truth]), np.concatenate([1 - scaled, scaled])
        )
        assert float(found.average_precision[i]) == pytest.approx(expected)


def test_a_perfect_map_segments_perfectly_and_a_constant_one_finds_nothing():
    perfect = segmentation(BOXES.float(), BOXES)
    assert perfect.pixel_accuracy.tolist() == [1, 1]
    assert perfect.average_precision.tolist() == [1, 1]
    assert torch.equal(perfect.intersection, perfect.union)
    constant = segmentation(torch.ones(2, 8, 8), BOXES)
    assert constant.intersection[:, 1].tolist() == [0, 0]
    assert constant.pixel_accuracy.tolist() == [56 / 64, 44 / 64]


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_average_precision_is_scikit_learns_with_ties_too(levels):
    scores = (random(3, 200) * levels).round() / levels
    wanted = random(3, 200, seed=1) > 0.5
    expected = [
        average_precision_score(w, s) for w, s in zip(wanted.numpy(), scores.numpy(), strict=True)
    ]
    assert np.allclose(average_precision(scores, wanted).numpy(), expected)


def test_smoothing_sums_over_patches_and_keeps_their_places():
    maps = -torch.ones(1, 32, 32)
    maps[0, 8:16, 16:24] = 1
    out = smoothed(maps, 8)
    assert out.shape == maps.shape
    assert torch.allclose(out[0, 11:13, 19:21].mean(), torch.tensor(48.5))  # 64 (1 - 2 * 31/256)
    assert out.min() == -64
    row, column = divmod(int(out.flatten().argmax()), 32)
    assert 8 <= row < 16
    assert 16 <= column < 24


def test_shapes_and_types_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="regions of bool"):
        mass_accuracy(random(2, 8, 8), BOXES.float())
    with pytest.raises(InputError, match="regions of"):
        segmentation(random(1, 8, 8), BOXES)


def bins(side, count):
    """The pixels that each of so many equal lengths touches."""
    ends = [side * i / count for i in range(count + 1)]
    return [range(math.floor(a), math.ceil(b)) for a, b in pairwise(ends)]


@pytest.mark.parametrize(("sides", "size"), [((20, 28), 8), ((30, 17), 16), ((9, 9), 9)])
def test_patches_that_do_not_cover_a_map_are_spread_over_it_evenly(sides, size):
    maps = random(2, *sides)
    out = smoothed(maps, size)
    down, across = (bins(side, round(side / size)) for side in sides)
    cells = torch.tensor(
        [[[m[r.start : r.stop, c.start : c.stop].mean() for c in across] for r in down]
         for m in maps]
    )  # fmt: skip
    expected = torch.nn.functional.interpolate(
        size**2 * cells[:, None].double(), sides, mode="bilinear"
    )
    assert torch.allclose(out, expected[:, 0])
    # What is left and right, above and below, stays so: nothing is cut off at an edge.
    ramp = torch.arange(sides[1], dtype=torch.float64).expand(1, *sides)
    mirrored = smoothed(ramp.flip(-1), size).flip(-1)
    assert torch.allclose(smoothed(ramp, size), mirrored)


@pytest.mark.parametrize("size", [0, 9])
def test_patches_larger_than_a_map_are_refused(size):
    with pytest.raises(InputError, match="do not fit a map of 8 x 12"):
        smoothed(random(1, 8, 12), size)
