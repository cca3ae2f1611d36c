"""Regions against the pixels that were planted."""

import cv2
import numpy as np
import pytest
import torch
from cue_world import found, world
from torch import nn

from vimlrp.audit.drilling.regions import common_region, enrichment, joined, localise, mask_of
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError


def test_regions_are_the_planted_pixels():
    _, data, _ = world()
    candidate, _ = found()
    truth = data.masks[candidate.carriers[: len(candidate.regions)]]
    union = (candidate.regions | truth).sum((1, 2))
    overlap = (candidate.regions & truth).sum((1, 2)) / union
    assert candidate.local
    assert np.median(overlap) > 0.5


def test_relevance_is_dense_in_the_planted_pixels():
    model, data, evidence = world()
    candidate, _ = found()
    rows = candidate.carriers[:16]
    others = np.setdiff1d(candidate.members, candidate.carriers)
    shown, plain = ([evidence.samples[i] for i in r] for r in (rows, others))
    result = localise(model, evidence.layer, candidate.direction, shown, plain)
    np.testing.assert_allclose(result.maps.sum((1, 2)), 1, rtol=1e-4)
    assert np.nanmean(enrichment(result.maps, data.masks[rows])) > 10
    assert result.gone > 0.5


def test_a_direction_of_noise_lies_nowhere_in_particular():
    model, _, evidence = world()
    candidate, _ = found()
    direction = np.random.default_rng(0).normal(size=len(candidate.direction))
    plain = [evidence.samples[i] for i in evidence.of_class(1)]
    result = localise(model, evidence.layer, direction, plain[:10], plain[10:20])
    assert not result.local


def test_mask_of_a_square_is_about_the_square():
    values = np.zeros((64, 64))
    values[10:20, 30:40] = 5
    values[40:50, 5:15] = -50  # what speaks against the cue is no part of it
    mask = mask_of(values)
    truth = values > 0
    assert mask[truth].all()
    rim = cv2.dilate(truth.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert not mask[~rim].any()


def test_a_region_holds_the_faint_parts_and_small_gaps_of_a_cue():
    values = np.zeros((64, 64))
    for column in range(10, 50, 4):  # strokes of a line of text, half as bright from the middle on
        values[30:36, column : column + 2] = 2 if column < 30 else 1
    mask = mask_of(values)
    assert mask[31:35, 11:47].all()
    assert mask.mean() < 0.1


def test_alike_maps_support_each_other_and_others_do_not():
    rng = np.random.default_rng(0)
    maps = np.zeros((6, 32, 32))
    maps[:3, 4:8, 4:8] = 1  # three pictures with the cue in one corner
    maps[3:, 24:28, 24:28] = 1  # and three with it in another
    maps[0, 20, 4:8] = 1  # a spot that no other shows
    maps += 0.01 * rng.random(maps.shape)
    found = joined(maps)
    assert found.shape == maps.shape
    assert found[0, 4:8, 4:8].min() > 1.4 * found[0, 20, 4:8].max()
    assert found[0, 24:28, 24:28].max() < 0.2
    alone = joined(maps[:1])
    np.testing.assert_allclose(alone, maps[:1], rtol=1e-4, atol=1e-6)
    assert not joined(np.zeros((2, 8, 8))).any()


@pytest.mark.parametrize("values", [np.zeros((8, 8)), -np.ones((8, 8)), np.full((8, 8), np.nan)])
def test_nothing_positive_has_no_region(values):
    assert not mask_of(values).any()


def test_enrichment_is_share_over_area():
    maps = np.ones((3, 4, 4))
    maps[1, 0, 0] = 17.0
    maps[2] = 0
    regions = np.zeros((3, 4, 4), bool)
    regions[:, 0, 0] = True
    np.testing.assert_allclose(enrichment(maps, regions), [1, (17 / 32) / (1 / 16), np.nan])


def test_common_region_of_one_place_and_of_many():
    same, apart = np.zeros((4, 8, 8), bool), np.zeros((4, 8, 8), bool)
    same[:, :2, :2] = True
    for k in range(4):
        apart[k, 2 * k : 2 * k + 2, :2] = True
    assert common_region(same).agreement == 1
    assert common_region(apart).agreement == 0
    assert common_region(apart).frequency[0, 0] == 0.25
    assert common_region(same).area == 4 / 64
    assert np.isnan(common_region(np.zeros((2, 8, 8), bool)).agreement)


def test_layers_of_another_model_are_refused():
    model, _, evidence = world()
    with pytest.raises(InputError, match="another model"):
        localise(model, "layers.9", np.ones(4), evidence.samples[:1], evidence.samples[:1])


def test_watching_leaves_nothing_behind_after_an_error():
    model, _, _ = world()
    watched = Watched(model, "layer3")
    with pytest.raises(RuntimeError):
        next(watched.run(torch.randn(1, 5, 64, 64)))
    for root in (model, watched.model):
        assert not any(m._forward_hooks for m in root.modules() if isinstance(m, nn.Module))
