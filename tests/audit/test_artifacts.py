"""Artifacts: what they change, where, how much, and that the same seed draws the same."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from vimlrp.audit.planted.artifacts import (
    ARTIFACTS,
    Blur,
    Border,
    Jpeg,
    Patch,
    Text,
    Texture,
    Tint,
    Watermark,
    artifact_named,
    decoded,
    encoded,
)
from vimlrp.errors import InputError

LOCAL = ["text", "watermark", "patch", "border", "texture"]
WHOLE = ["tint", "blur", "jpeg"]


def picture(height=64, width=64, seed=0):
    """Noise without values at which a white, black or coloured artifact would leave a pixel."""
    rng = np.random.default_rng(seed)
    return rng.integers(60, 200, (height, width, 3), np.uint8)


def corner_of(mask):
    y, x = (values.mean() for values in np.nonzero(mask))
    return bool(y > mask.shape[0] / 2), bool(x > mask.shape[1] / 2)


def test_kinds():
    assert [name for name, one in ARTIFACTS.items() if one.local] == LOCAL
    assert [name for name, one in ARTIFACTS.items() if not one.local] == WHOLE


@pytest.mark.parametrize("name", ARTIFACTS)
def test_same_seed_draws_the_same_and_leaves_the_picture(name):
    given = picture()
    kept = given.copy()
    first, mask = ARTIFACTS[name].apply(given, np.random.default_rng(3))
    again, mask_again = ARTIFACTS[name].apply(given, np.random.default_rng(3))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(mask, mask_again)
    np.testing.assert_array_equal(given, kept)
    assert first.dtype == np.uint8
    assert first.shape == given.shape
    assert mask.dtype == bool


@pytest.mark.parametrize("name", ARTIFACTS)
def test_other_seeds_draw_others(name):
    drawn = {
        ARTIFACTS[name].apply(picture(), np.random.default_rng(seed))[0].tobytes()
        for seed in range(30)
    }
    assert len(drawn) >= 3


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (224, 160)])
@pytest.mark.parametrize("name", LOCAL)
def test_mask_is_exactly_what_changed(name, size):
    given = picture(*size)
    planted, mask = ARTIFACTS[name].apply(given, np.random.default_rng(1))
    changed = np.zeros(size, dtype=bool)
    for y in range(size[0]):
        for x in range(size[1]):
            changed[y, x] = list(planted[y, x]) != list(given[y, x])
    np.testing.assert_array_equal(mask, changed)
    assert 0 < mask.mean() < 0.4


@pytest.mark.parametrize("name", WHOLE)
def test_mask_of_the_whole_picture(name):
    given = picture()
    planted, mask = ARTIFACTS[name].apply(given, np.random.default_rng(1))
    assert mask.all()
    assert (planted != given).any(axis=2).mean() > 0.5


def test_patch_covers_two_percent_in_every_corner():
    corners = set()
    for seed in range(40):
        planted, mask = Patch().apply(picture(), np.random.default_rng(seed))
        assert mask.mean() == pytest.approx(0.02, abs=0.002)
        assert (planted[mask] == Patch().colour).all()
        corners.add(corner_of(mask))
    assert len(corners) == 4


def test_patch_is_of_its_area_on_oblong_pictures():
    _, mask = Patch(area=0.05).apply(picture(100, 300), np.random.default_rng(0))
    assert mask.mean() == pytest.approx(0.05, rel=0.05)


def test_text_stands_in_all_corners_and_stays_within_its_opacity():
    corners = set()
    for seed in range(40):
        given = np.zeros((64, 64, 3), np.uint8)
        planted, mask = Text().apply(given, np.random.default_rng(seed))
        corners.add(corner_of(mask))
        assert planted.max() <= round(0.9 * 255)
        assert planted.max() >= 0.5 * 255 * 0.9  # a thin stroke hardly covers a whole pixel
    assert len(corners) == 4


def test_text_turns_by_a_few_degrees():
    given = np.zeros((512, 512, 3), np.uint8)
    slopes = []
    for seed in range(20):
        _, mask = Text(text="-" * 14, height=0.1).apply(given, np.random.default_rng(seed))
        y, x = np.nonzero(mask)
        slopes.append(np.degrees(np.arctan(np.polyfit(x, y, 1)[0])))
    assert max(map(abs, slopes)) <= 3.3
    assert max(slopes) - min(slopes) > 2


def test_watermark_starts_at_the_left_edge_at_two_fifths_of_the_height():
    given = np.zeros((224, 224, 3), np.uint8)
    planted, mask = Watermark().apply(given, np.random.default_rng(0))
    y, x = np.nonzero(mask)
    assert x.min() <= 0.03 * 224
    assert 0.38 * 224 <= y.min() <= 0.44 * 224
    assert planted.max() <= round(0.55 * 255)


def test_frame_and_letterbox():
    given = picture()
    _, frame = Border(width=(1 / 16, 1 / 16)).apply(given, np.random.default_rng(0))
    expected = np.ones((64, 64), dtype=bool)
    expected[4:-4, 4:-4] = False
    np.testing.assert_array_equal(frame, expected)
    letterbox = Border(width=(1 / 16, 1 / 16), kind="letterbox")
    _, bars = letterbox.apply(given, np.random.default_rng(0))
    expected[:, :] = False
    expected[:4] = expected[-4:] = True
    np.testing.assert_array_equal(bars, expected)


def test_border_is_one_to_four_pixels_wide_at_64():
    widths = set()
    for seed in range(30):
        _, mask = Border(width=(1 / 64, 1 / 16)).apply(picture(), np.random.default_rng(seed))
        widths.add(int(mask[32].sum()) // 2)
    assert widths <= {1, 2, 3, 4}
    assert len(widths) > 1


def test_texture_is_a_disc_within_the_picture():
    places = set()
    for seed in range(20):
        _, mask = Texture().apply(picture(), np.random.default_rng(seed))
        y, x = np.nonzero(mask)
        assert np.ptp(y) + 1 == pytest.approx(0.35 * 64, abs=2)
        assert mask.sum() == pytest.approx(np.pi * (0.175 * 64) ** 2, rel=0.06)
        places.add((int(y.mean()) // 8, int(x.mean()) // 8))
    assert len(places) > 5


def test_tint_moves_every_pixel_towards_its_colour():
    given = picture()
    tint = Tint(strength=(0.25, 0.25), colour=(255, 170, 60))
    planted, _ = tint.apply(given, np.random.default_rng(0))
    expected = 0.75 * given + 0.25 * np.array([255, 170, 60])
    assert np.abs(planted - expected).max() <= 0.5


def test_blur_lowers_the_contrast_of_fine_detail_only():
    given = picture()
    planted, _ = Blur().apply(given, np.random.default_rng(0))
    assert planted.std() < 0.7 * given.std()
    assert planted.mean() == pytest.approx(given.mean(), abs=1)


def test_jpeg_is_re_encoded_at_each_quality():
    given = picture()
    by_quality = {quality: decoded(encoded(given, quality)) for quality in (10, 20, 40)}
    seen = set()
    for seed in range(30):
        planted, _ = Jpeg().apply(given, np.random.default_rng(seed))
        quality = Jpeg().quality(np.random.default_rng(seed))
        np.testing.assert_array_equal(planted, by_quality[quality])
        seen.add(quality)
    assert seen == {10, 20, 40}
    errors = [np.abs(image.astype(float) - given).mean() for image in by_quality.values()]
    assert errors == sorted(errors, reverse=True)


def test_encoded_files_carry_their_quality_in_their_tables():
    tables = {}
    for quality in (20, 95):
        with Image.open(io.BytesIO(encoded(picture(), quality))) as image:
            assert image.format == "JPEG"
            tables[quality] = sum(image.quantization[0])
    assert tables[20] > 5 * tables[95]


def test_artifacts_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Patch().area = 0.5


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 8, 3), np.uint8),
    ],
)
def test_other_pictures_are_refused(given):
    with pytest.raises(InputError, match="picture is"):
        Patch().apply(given, np.random.default_rng(0))


def test_unknown_artifact_is_refused():
    with pytest.raises(InputError, match="give one of text, watermark"):
        artifact_named("scratch")
    assert artifact_named("jpeg") is ARTIFACTS["jpeg"]
