from dataclasses import replace

import numpy as np
import pytest
import torch
from evidence import clean_evidence, with_compression

from vimlrp.audit.records import Channel
from vimlrp.audit.screening.embedding import (
    coordinates,
    embedding_2d,
    features,
    latent_features,
    map_features,
    spreads,
    statistic_features,
)
from vimlrp.errors import InputError


def test_map_features_are_roots_of_shares_at_three_scales_and_two_signs():
    maps = np.random.default_rng(0).standard_normal((3, 16, 16))
    found = map_features(maps)
    for row, one in zip(found, maps, strict=True):
        shares, expected = one / np.abs(one).sum(), []
        for part in (np.maximum(shares, 0), np.maximum(-shares, 0)):
            for cell in (1, 2, 4):
                expected += [
                    np.sqrt(part[i : i + cell, j : j + cell].sum() / 3)
                    for i in range(0, 16, cell)
                    for j in range(0, 16, cell)
                ]
        np.testing.assert_allclose(row, expected)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)


def test_a_mark_that_moves_by_a_cell_stays_nearer_than_one_elsewhere():
    maps = np.zeros((3, 16, 16))
    maps[0, 0, 0] = maps[1, 0, 1] = maps[2, 0, 15] = 1
    found = map_features(maps)
    assert np.linalg.norm(found[0] - found[1]) < 0.6 * np.linalg.norm(found[0] - found[2])


@pytest.mark.parametrize("shape", [(2, 16), (2, 16, 8), (2, 6, 6)])
def test_maps_that_cannot_be_pooled_are_refused(shape):
    with pytest.raises(InputError, match="a side S that is a multiple of 4"):
        map_features(np.zeros(shape))


def test_samples_without_relevance_are_all_zeros():
    assert not map_features(np.zeros((2, 16, 16))).any()
    assert not latent_features(np.zeros((2, 5))).any()


def test_latent_features_keep_the_sign():
    found = latent_features(np.array([[1.0, -3.0]]))
    np.testing.assert_allclose(found, [[0.5, -np.sqrt(0.75)]])


def test_statistics_are_scaled_by_the_spread_within_all_classes():
    evidence = clean_evidence(4, 30)
    values = evidence.statistics.astype(np.float64)
    parts = [values[evidence.labels == c] for c in range(4)]
    residuals = np.concatenate([part - np.median(part, 0) for part in parts])
    mad = 1.4826 * np.median(np.abs(residuals), axis=0)
    expected = np.maximum(residuals.std(0), mad)
    found = spreads(evidence)
    np.testing.assert_allclose(found[0], expected)
    assert found[0, 4] == 0
    points = features(evidence, Channel.STATISTICS, np.arange(30))
    assert points.shape == (30, 4)
    scaled = (parts[0] - np.median(parts[0], 0))[:, :4] / expected[:4]
    np.testing.assert_allclose(points, np.clip(scaled, -3, 3), rtol=1e-6)


def test_a_group_of_one_class_does_not_widen_its_own_scale():
    evidence, marked = with_compression(clean_evidence(20, 30), 3, 0.5)
    points = features(evidence, Channel.STATISTICS, evidence.of_class(3))
    ordinary = np.setdiff1d(np.arange(30), marked - 90)
    assert np.abs(points[marked - 90, 3].mean() - points[ordinary, 3].mean()) > 3


def test_a_missing_value_is_a_feature_and_no_distance():
    values = np.array([[1.0, 5.0], [2.0, np.nan], [3.0, 7.0], [2.0, np.nan]])
    found = statistic_features(values, np.array([[1.0, 1.0], [0.0, 0.5]]))
    np.testing.assert_allclose(found[:, :2], [[-1, -1], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(found[:, 2], [-1, 1, -1, 1])


def test_statistics_that_are_missing_together_count_once():
    evidence = clean_evidence(2, 20)
    values = evidence.statistics.copy()
    values[:5, 1:3] = np.nan
    found = spreads(replace(evidence, statistics=values))
    assert (found[1] > 0).sum() == 1


def test_statistics_that_no_sample_has_are_dropped():
    evidence = clean_evidence(2, 20)
    nothing = replace(evidence, statistics=np.full_like(evidence.statistics, np.nan))
    assert features(nothing, Channel.STATISTICS, np.arange(20)).shape == (20, 0)


def test_evidence_without_statistics_has_no_spread():
    evidence = clean_evidence(2, 20)
    without = replace(evidence, statistics=evidence.statistics[:, :0], statistic_names=())
    assert spreads(without).shape == (2, 0)
    assert features(without, Channel.STATISTICS, np.arange(20)).shape == (20, 0)


def test_copies_do_not_count_in_the_spread():
    evidence = clean_evidence(2, 20)
    twice = replace(evidence, originals=np.where(np.arange(40) < 10, 0, np.arange(40)))
    kept = np.r_[0, 10:40]
    alone = replace(
        evidence,
        samples=tuple(evidence.samples[i] for i in kept),
        labels=evidence.labels[kept],
        statistics=evidence.statistics[kept],
        originals=np.arange(31),
    )
    np.testing.assert_allclose(spreads(twice), spreads(alone))


@pytest.mark.parametrize("channel", [Channel.RELEVANCE, Channel.LATENT])
def test_relevance_that_is_not_finite_is_refused_by_number(channel):
    evidence = clean_evidence(1, 20)
    maps, latent = evidence.maps.copy(), evidence.latent.copy()
    maps[7], latent[7, 0] = np.nan, np.nan
    broken = replace(evidence, maps=maps, latent=latent)
    with pytest.raises(InputError, match=r"1 of 10 samples have no finite .* number 7"):
        features(broken, channel, np.arange(10))


def test_coordinates_keep_every_distance():
    points = np.random.default_rng(0).standard_normal((12, 50))
    found = coordinates(points)
    assert found.shape == (12, 11)
    before = np.linalg.norm(points[:, None] - points[None], axis=2)
    after = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.testing.assert_allclose(after, before, atol=1e-10)


def test_samples_that_coincide_have_no_coordinates():
    assert coordinates(np.full((5, 4), 0.1)).shape == (5, 0)


def test_a_picture_of_a_class_is_the_same_for_the_same_seed():
    points = np.random.default_rng(0).standard_normal((30, 6))
    plain = embedding_2d(points)
    np.testing.assert_allclose(np.abs(plain), np.abs(coordinates(points)[:, :2]))
    first, second = (embedding_2d(points, 3, method="umap") for _ in range(2))
    assert first.shape == (30, 2)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("points", [np.zeros((9, 4)), np.eye(3)[:, :1], np.eye(2)])
def test_pictures_of_almost_nothing(points):
    found = embedding_2d(points, method="umap")
    assert found.shape == (len(points), 2)
    assert np.isfinite(found).all()


def test_another_method_is_refused():
    with pytest.raises(InputError, match="'tsne'; give 'pca' or 'umap'"):
        embedding_2d(np.eye(4), method="tsne")


def test_umap_leaves_pytorch_its_threads(monkeypatch):
    class Counting:
        """UMAP that changes the number of threads, as numba may when it starts, and fails."""

        def __init__(self, **_):
            torch.set_num_threads(2)

        def fit_transform(self, points):
            raise ValueError(len(points))

    monkeypatch.setattr("umap.UMAP", Counting)
    torch.set_num_threads(1)
    with pytest.raises(ValueError, match="60"):
        embedding_2d(np.random.default_rng(0).normal(size=(60, 8)), method="umap")
    assert torch.get_num_threads() == 1
