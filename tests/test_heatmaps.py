"""Heatmaps are zero-centred, safe for colour-blind readers, and lie where they belong."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vimlrp.errors import InputError
from vimlrp.heatmaps import (
    NEUTRAL,
    PIXEL_SMOOTHING,
    colourise,
    overlay,
    scale_of,
    smooth,
    write_png,
)
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Geometry, Preprocessing

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
RAMP = np.linspace(-1, 1, 255, dtype=np.float32)[None]  # one value a colour of the table
maps = arrays(np.float32, (6, 9), elements=st.integers(-1000, 1000).map(float))


def lab(rgb):
    """CIELAB of (..., 3) in sRGB within [0, 1]."""
    flat = np.asarray(rgb, np.float32).reshape(-1, 1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).reshape(np.shape(rgb))


def seen_with(deficiency, rgb):
    """What (..., 3) of uint8 looks like to a colour-blind reader, in sRGB within [0, 1]."""
    srgb = np.asarray(rgb) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(DEFICIENCIES[deficiency]).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def photo_of(size, grey=200):
    return np.full((*size, 3), grey, np.uint8)


def warmth(picture):
    """How far each pixel is from grey towards red or blue. # (H, W)"""
    return picture[..., 0].astype(float) - picture[..., 2]


def test_scale_is_the_largest_magnitude():
    assert scale_of(np.array([[1.0, -3.0], [2.0, 0.0]])) == 3
    assert scale_of(torch.tensor([[[0.5]], [[-4.0]]], dtype=torch.bfloat16)) == 4
    assert scale_of(np.zeros((2, 2))) == 0


def test_scale_of_a_percentile_ignores_the_extreme():
    relevance = np.append(np.linspace(-1, 1, 999), 1e6)
    assert scale_of(relevance, percentile=99) == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_impossible_percentile(percentile):
    with pytest.raises(InputError, match="percentile is"):
        scale_of(np.ones((2, 2)), percentile)


@pytest.mark.parametrize("draw", [scale_of, colourise, lambda r: smooth(r, 1.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_relevance_is_refused(draw, value):
    with pytest.raises(InputError, match="1 values of 4 that are NaN or infinite"):
        draw(np.array([[0.0, value], [1.0, 2.0]]))


@pytest.mark.parametrize("draw", [scale_of, colourise, lambda r: smooth(r, 1.0)])
def test_empty_relevance_is_refused(draw):
    with pytest.raises(InputError, match="without a value"):
        draw(np.zeros((0, 4)))


def test_zero_is_exactly_neutral_and_neutral_is_grey():
    assert len(set(NEUTRAL)) == 1
    picture = colourise(np.array([[-1.0, 0.0, 1e-9, 1.0]]))
    assert picture[0, 1].tolist() == picture[0, 2].tolist() == list(NEUTRAL)
    assert picture[0, 0, 2] > picture[0, 0, 0]  # against is blue
    assert picture[0, 3, 0] > picture[0, 3, 2]  # for is red


@pytest.mark.parametrize("limit", [None, 0.0, 1.0])
def test_map_of_zeros_is_neutral(limit):
    assert (colourise(np.zeros((3, 4)), limit) == NEUTRAL).all()


@pytest.mark.parametrize("value", [3.0, -3.0, 1e-45, -1e-45, 3e38])
def test_constant_map_has_the_colour_of_its_limit(value):
    picture = colourise(np.full((3, 4), value, np.float32))
    assert (picture == colourise(np.array([[np.sign(value)]]), limit=1.0)[0, 0]).all()


@given(maps, st.floats(1e-30, 1e30))
def test_colours_depend_on_the_share_of_the_limit_alone(relevance, factor):
    limit = scale_of(relevance)
    np.testing.assert_array_equal(colourise(relevance), colourise(relevance, limit))
    reference = colourise(relevance.astype(np.float64) / (limit or 1.0), 1.0).astype(int)
    scaled = colourise(relevance * np.float32(factor), limit * np.float32(factor)).astype(int)
    assert np.abs(reference - scaled).max() <= 8  # a step of the table, from rounding


def test_shared_limit_gives_equal_colours_for_equal_relevance():
    batch = np.array([[[0.5, -2.0]], [[0.5, 8.0]]])
    first, second = (colourise(image, scale_of(batch)) for image in batch)
    np.testing.assert_array_equal(first[0, 0], second[0, 0])
    assert (colourise(batch[0])[0, 0] != first[0, 0]).any()


def test_more_than_the_limit_has_the_colour_of_the_limit():
    picture = colourise(np.array([[1.0, 5.0, -1.0, -5.0]]), limit=1.0)
    np.testing.assert_array_equal(picture[0, ::2], picture[0, 1::2])


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
def test_impossible_limit(limit):
    for draw in (colourise,):
        with pytest.raises(InputError, match="The limit is"):
            draw(np.ones((2, 2)), limit)


@pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (4, 4, 3)])
def test_more_than_one_map_is_refused(shape):
    with pytest.raises(InputError, match=r"give one map of shape \(H, W\)"):
        colourise(np.ones(shape))


def test_both_arms_are_equally_strong():
    colours = lab(colourise(RAMP)[0] / 255)  # (255, 3)
    against, towards = colours[127::-1], colours[127:]
    assert np.abs(against[:, 0] - towards[:, 0]).max() < 1.2
    chroma = [np.hypot(arm[:, 1], arm[:, 2]) for arm in (against, towards)]
    assert np.abs(chroma[0] - chroma[1]).max() < 2.5
    assert (np.diff(towards[:, 0]) < 0.3).all()  # darker with every step, but for rounding
    assert towards[-1, 0] < towards[0, 0] - 50


def test_neighbouring_colours_differ_by_small_steps():
    steps = np.linalg.norm(np.diff(lab(colourise(RAMP)[0] / 255), axis=0), axis=-1)
    assert steps.max() < 2.5


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colour_blind_readers_tell_the_signs_apart(deficiency):
    colours = lab(seen_with(deficiency, colourise(RAMP)[0]))
    differences = np.linalg.norm(colours[::-1] - colours, axis=-1)[128:]
    just_noticeable = 2.3
    assert differences[-1] > 20 * just_noticeable  # the two limits
    assert differences[12:].min() > 2 * just_noticeable  # from a tenth of the limit on
    for end in (colours[0], colours[-1]):
        assert np.linalg.norm(end - colours[127]) > 20 * just_noticeable


def test_the_simulation_would_catch_red_and_green():
    red, green = lab(seen_with("deuteranopia", np.array([[178, 90, 0], [107, 118, 0]])))
    assert np.linalg.norm(red - green) < 20 * 2.3


@given(maps, st.floats(0.3, 6))
def test_smoothing_keeps_the_sum_and_never_grows_the_extremes(relevance, sigma):
    smoothed = smooth(relevance, sigma)
    assert smoothed.sum() == pytest.approx(relevance.sum(), abs=0.1)
    assert scale_of(smoothed) <= scale_of(relevance) * (1 + 1e-5)


def test_smoothing_widens_a_peak_by_sigma():
    peak = np.zeros((41, 41), np.float32)
    peak[20, 20] = 1
    smoothed = smooth(peak, 3.0)
    offsets = np.arange(41) - 20
    assert np.sqrt((smoothed.sum(axis=0) * offsets**2).sum()) == pytest.approx(3, abs=0.05)
    np.testing.assert_allclose(smoothed, smoothed.T, atol=1e-7)


def test_smoothing_of_a_batch_smooths_each_map():
    batch = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(smooth(batch, 1.5)[1], smooth(batch[1], 1.5))


def test_no_smoothing_and_no_change_of_the_input():
    relevance = np.eye(4, dtype=np.float32)
    smooth(relevance, 2.0)
    np.testing.assert_array_equal(smooth(torch.eye(4), 0), relevance)


def test_smoothing_refuses():
    for sigma in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="sigma of the smoothing"):
            smooth(np.ones((4, 4)), sigma)
    with pytest.raises(InputError, match=r"give \(H, W\) or \(B, H, W\)"):
        smooth(np.ones(4), 1.0)


def centroid(weights):
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(300, 451), (640, 427), (333, 333), (1200, 900), (60, 75)])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("sign", [1, -1])
def test_hot_patch_lands_where_the_model_saw_it(mode, size, interpolation, sign):
    pixels = photo_of(size)
    _, geometry = Preprocessing(crop_mode=mode)(read_photo(pixels))
    relevance = np.zeros((14, 14), np.float32)
    row, column = 6, 9
    relevance[row, column] = sign
    picture = overlay(pixels, relevance, geometry, interpolation=interpolation)
    expected = geometry.to_source(np.array([column + 0.5, row + 0.5]) * 16)
    found = centroid(np.maximum(sign * warmth(picture), 0))
    np.testing.assert_allclose(found, expected, atol=0.6)
    assert np.argmax(sign * warmth(picture)) == np.argmax(np.abs(warmth(picture)))


@pytest.mark.parametrize("size", [(448, 896), (896, 448)])
def test_nearest_paints_exactly_the_patch(size):
    geometry = Preprocessing(crop_pct=1.0)(read_photo(photo_of(size)))[1]
    relevance = np.zeros((14, 14))
    relevance[3, 5] = 1
    painted = warmth(overlay(photo_of(size), relevance, geometry, interpolation="nearest")) > 0
    top, left = (np.array(size) - 448) // 2
    expected = np.zeros(size, bool)
    expected[top + 96 : top + 128, left + 160 : left + 192] = True
    np.testing.assert_array_equal(painted, expected)


def test_bilinear_follows_the_half_pixel_convention():
    geometry = Geometry.whole(40, 60)
    relevance = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    picture = overlay(photo_of((40, 60)), relevance, geometry)
    direct = cv2.resize(relevance, (60, 40), interpolation=cv2.INTER_LINEAR)
    limit = scale_of(relevance)
    expected = overlay(photo_of((40, 60)), direct, geometry, limit=limit, smoothing=0)
    # A few grey levels: older OpenCV rounds positions to a 32nd of a cell.
    assert np.abs(picture.astype(int) - expected).max() <= 8


def test_map_finer_than_the_photo_is_averaged_not_sampled():
    geometry = Geometry((8, 8), (224, 224), (0, 0, 8, 8))
    relevance = np.zeros((224, 224), np.float32)
    relevance[3, 59] = 28 * 28  # alone in its pixel of the photo, far from the pixel's centre
    picture = overlay(photo_of((8, 8)), relevance, geometry, limit=1, smoothing=0, opacity=1)
    np.testing.assert_array_equal(picture[0, 2], colourise(np.ones((1, 1)))[0, 0])
    assert np.count_nonzero(warmth(picture)) == 1


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    relevance=arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)),
    mode=st.sampled_from(["center", "squash"]),
)
def test_any_photo_gets_an_overlay_of_its_size(size, relevance, mode):
    pixels = photo_of(size)
    geometry = Preprocessing(crop_mode=mode, size=(48, 48))(read_photo(pixels))[1]
    picture = overlay(pixels, relevance, geometry)
    assert (picture.shape, picture.dtype) == (pixels.shape, np.uint8)
    mirrored = overlay(pixels, -relevance, geometry)
    tolerance = 14  # red and blue are not mirror images of each other as numbers
    assert (np.sign(warmth(picture)) != np.sign(warmth(mirrored)))[
        np.abs(warmth(picture)) > tolerance
    ].all()


def test_colour_means_relevance_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = overlay(pixels, np.zeros((4, 6)), Geometry.whole(40, 60))
    assert (picture == picture[..., :1]).all()
    brightness = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.corrcoef(picture[..., 0].ravel(), brightness.ravel())[0, 1] > 0.999


def test_colour_grows_with_relevance_and_the_photo_shows_through():
    relevance = np.linspace(-1, 1, 60)[None]
    stripes = photo_of((40, 60))
    stripes[::2] = 60
    picture = overlay(stripes, relevance, Geometry.whole(40, 60), interpolation="nearest")
    assert (np.diff(warmth(picture)[0]) >= -2).all()
    assert warmth(picture)[0, -1] > 80
    assert warmth(picture)[0, 0] < -80
    contrast = picture.astype(int).sum(axis=-1)
    assert (contrast[1] - contrast[0] != 0).all()


def test_opacity_zero_is_the_photo_alone_and_one_the_pure_colour():
    geometry, relevance = Geometry.whole(4, 6), np.ones((4, 6))
    options = {"smoothing": 0}
    bare = overlay(photo_of((4, 6)), relevance, geometry, opacity=0, **options)
    assert (bare == overlay(photo_of((4, 6)), 0 * relevance, geometry)).all()
    full = overlay(photo_of((4, 6)), relevance, geometry, opacity=1, **options)
    np.testing.assert_array_equal(full, colourise(relevance))


def test_the_crop_is_marked_and_carries_no_colour():
    size = (200, 400)
    geometry = Preprocessing(crop_pct=1.0)(read_photo(photo_of(size)))[1]
    picture = overlay(photo_of(size), np.ones((14, 14)), geometry)
    seen = geometry.seen()
    assert 0.4 < seen.mean() < 0.6
    assert (warmth(picture)[seen] > 50).all()
    assert (warmth(picture)[~seen] == 0).all()
    left, right = np.flatnonzero(seen.all(axis=0))[[0, -1]]
    assert (picture[:, [left - 1, right + 1]] == 255).all()  # the frame
    outside = picture[:, : left - 3]
    assert outside.max() < photo_of(size).max()
    assert len(np.unique(outside)) > 1  # the hatching


def test_smoothing_is_for_maps_of_pixels_unless_asked():
    geometry = Geometry.whole(32, 32)
    spikes = np.zeros((32, 32), np.float32)
    spikes[16, 16], spikes[5, 7] = 1, -1
    by_default = overlay(photo_of((32, 32)), spikes, geometry)
    blurred = smooth(spikes, PIXEL_SMOOTHING)
    np.testing.assert_array_equal(
        by_default, overlay(photo_of((32, 32)), blurred, geometry, smoothing=0)
    )
    assert (by_default != overlay(photo_of((32, 32)), spikes, geometry, smoothing=0)).any()
    patches = np.zeros((4, 4), np.float32)
    patches[1, 2] = 1
    np.testing.assert_array_equal(
        overlay(photo_of((32, 32)), patches, geometry),
        overlay(photo_of((32, 32)), patches, geometry, smoothing=0),
    )


def test_smoothing_counts_in_pixels_of_the_input():
    geometry = Geometry((32, 32), (224, 224), (0, 0, 32, 32))
    patches = np.zeros((14, 14), np.float32)
    patches[7, 7] = 1
    np.testing.assert_array_equal(
        overlay(photo_of((32, 32)), patches, geometry, smoothing=24),
        overlay(photo_of((32, 32)), smooth(patches, 24 / 16), geometry, smoothing=0),
    )


def test_overlay_takes_tensors_and_leaves_its_inputs():
    pixels, relevance = photo_of((8, 8)), torch.ones(4, 4, requires_grad=True)
    overlay(pixels, relevance, Geometry.whole(8, 8))
    assert (pixels == 200).all()
    assert (relevance == 1).all()


def test_panorama_wider_than_opencv_counts():
    size = (4, 40_000)
    geometry = Geometry(size, (4, 4), (0, 0, size[1], size[0]))
    picture = overlay(photo_of(size), np.array([[-1.0, 1.0]]), geometry)
    assert (warmth(picture)[:, :10_000] < 0).all()
    assert (warmth(picture)[:, 30_000:] > 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": np.zeros((8, 9, 3), np.uint8)}, "the geometry belongs to one of 8 x 8"),
        ({"pixels": np.zeros((8, 8, 3))}, "give uint8"),
        ({"pixels": np.zeros((8, 8), np.uint8)}, "give uint8"),
        ({"relevance": np.full((4, 4), np.nan)}, "NaN"),
        ({"relevance": np.ones((1, 4, 4))}, "one map"),
        ({"opacity": 1.5}, "opacity is 1.5"),
        ({"opacity": float("nan")}, "opacity is nan"),
        ({"limit": -1.0}, "The limit is"),
        ({"smoothing": -1.0}, "smoothing is"),
        ({"interpolation": "cubic"}, "give 'bilinear' or 'nearest'"),
    ],
)
def test_overlay_refuses(changes, message):
    arguments = {
        "pixels": photo_of((8, 8)),
        "relevance": np.ones((4, 4)),
        "geometry": Geometry.whole(8, 8),
    }
    with pytest.raises(InputError, match=message):
        overlay(**{**arguments, **changes})


def test_png_holds_the_picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write_png(tmp_path / "a" / "x.png", pixels)
    np.testing.assert_array_equal(read_photo(path).pixels, pixels)
    grey = write_png(tmp_path / "grey.png", pixels[..., 0])
    np.testing.assert_array_equal(read_photo(grey).pixels[..., 1], pixels[..., 0])


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.uint8(3)])
def test_png_refuses_what_is_no_picture(tmp_path, image):
    with pytest.raises(InputError, match="shape"):
        write_png(tmp_path / "x.png", np.asarray(image))
    assert not (tmp_path / "x.png").exists()
