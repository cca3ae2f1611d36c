import io

import numpy as np
import pytest
from PIL import Image, ImageFont
from small_audit import picture

from vimlrp.audit.probing.pictures import PROBES, probes_named, watermark
from vimlrp.errors import InputError

SIDE = 224


def changed(name, pixels, seed=0):
    (probe,) = probes_named([name])
    before = pixels.copy()
    after = probe.change(pixels, np.random.default_rng(seed))
    np.testing.assert_array_equal(pixels, before)
    assert (after.shape, after.dtype) == (pixels.shape, np.uint8)
    return after


@pytest.fixture(scope="module")
def photo():
    return picture(0, SIDE)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
@pytest.mark.parametrize("shape", [(224, 224), (33, 50)])
def test_every_probe_changes_pictures_of_any_shape_and_leaves_the_given_one(probe, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    after = changed(probe.name, pixels)
    assert (after != pixels).any()
    np.testing.assert_array_equal(after, changed(probe.name, pixels))


def test_names_of_probes_differ():
    assert len({probe.name for probe in PROBES}) == len(PROBES)


def test_the_watermark_is_half_white_and_where_imagenet_w_has_it():
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    after = changed("watermark", black)
    # Half of white rounds to 128 at most, and full strokes reach it.
    assert after.max() == 128
    rows, columns = np.nonzero(after.any(axis=2))
    size = round(SIDE / 6.22)
    assert size == 36
    assert 0.4 * SIDE <= rows.min() < rows.max() < 0.4 * SIDE + 1.3 * size
    assert columns.min() <= 0.01 * SIDE + 4
    assert columns.max() - columns.min() > 0.9 * SIDE
    white = np.full_like(black, 255)
    np.testing.assert_array_equal(changed("watermark", white), white)


def test_the_watermark_keeps_all_other_pixels(photo):
    ink = changed("watermark", np.zeros_like(photo)).any(axis=2)
    after = changed("watermark", photo)
    np.testing.assert_array_equal(after[~ink], photo[~ink])
    assert (after.astype(int)[ink] >= photo[ink]).all()


def test_a_watermark_can_say_anything_in_any_font(tmp_path, photo):
    # Pillow carries its own font within itself; as a file it is one that a user might give.
    path = tmp_path / "font.ttf"
    path.write_bytes(ImageFont.load_default(10).font_bytes)
    # One letter: layouts differ in how near they put two.
    own, given = (watermark("H", font).change(photo, None) for font in (None, path))
    np.testing.assert_array_equal(own, given)
    assert (own != changed("watermark", photo)).any()


@pytest.mark.parametrize("content", [None, b"no font"])
def test_a_font_that_cannot_be_read_is_refused_at_once(content, tmp_path):
    path = tmp_path / "font.ttf"
    if content:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as a font"):
        watermark("text", path)


def test_the_corner_text_lies_in_the_lower_left(photo):
    rows, columns = np.nonzero((changed("corner text", photo) != photo).any(axis=2))
    assert rows.min() > 0.85 * SIDE
    assert columns.max() < 0.6 * SIDE


def test_the_border_is_black_and_the_inside_stays(photo):
    after = changed("border", photo)
    width = round(SIDE / 20)
    inside = (slice(width, SIDE - width),) * 2
    np.testing.assert_array_equal(after[inside], photo[inside])
    after[inside] = 0
    assert not after.any()


def test_the_letterbox_is_black_above_and_below(photo):
    after = changed("letterbox", photo)
    assert not after[:28].any()
    assert not after[-28:].any()
    np.testing.assert_array_equal(after[28:-28], photo[28:-28])


def test_a_picture_too_low_for_bars_is_black_only_where_they_are():
    flat = np.full((3, 40, 3), 9, np.uint8)
    np.testing.assert_array_equal(changed("letterbox", flat), flat)


@pytest.mark.parametrize("quality", [40, 20, 10])
def test_compression_is_that_of_pillow(quality, photo):
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, format="jpeg", quality=quality)
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(changed(f"jpeg {quality}", photo), expected)


def test_stronger_compression_loses_more(photo):
    losses = [np.abs(changed(f"jpeg {q}", photo).astype(int) - photo).mean() for q in (40, 20, 10)]
    assert losses == sorted(losses)


def test_the_tint_is_a_fifth_of_orange(photo):
    expected = photo * 0.8 + np.array([51.0, 34.0, 12.0])
    np.testing.assert_allclose(changed("tint", photo), expected, atol=0.5 + 1e-9)


def test_the_blur_spreads_a_point_as_a_gaussian_does():
    point = np.zeros((SIDE, SIDE, 3), np.uint8)
    point[100, 120] = 255
    after = changed("blur", point)[..., 0].astype(float)
    y, x = np.mgrid[:SIDE, :SIDE]
    sigma = 2.0
    density = np.exp(-((y - 100) ** 2 + (x - 120) ** 2) / (2 * sigma**2))
    np.testing.assert_allclose(after, 255 * density / density.sum(), atol=1)


def test_the_shuffle_deals_sixteen_patches_and_keeps_the_rest():
    pixels = np.random.default_rng(0).integers(0, 256, (35, 42, 3), np.uint8)
    after = changed("shuffle", pixels)

    def patches(picture):
        return sorted(
            picture[8 * r : 8 * r + 8, 10 * c : 10 * c + 10].tobytes()
            for r in range(4)
            for c in range(4)
        )

    assert patches(after) == patches(pixels)
    np.testing.assert_array_equal(after[32:], pixels[32:])
    np.testing.assert_array_equal(after[:, 40:], pixels[:, 40:])
    assert (changed("shuffle", pixels, seed=1) != after).any()


def test_grayscale_has_equal_channels_of_the_same_lightness(photo):
    after = changed("grayscale", photo)
    assert (after == after[..., :1]).all()
    # Rec. 601.
    expected = photo @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(after[..., 0], expected, atol=1)


def test_probes_are_found_by_name():
    assert [p.name for p in probes_named(["blur", "jpeg 10"])] == ["blur", "jpeg 10"]
    with pytest.raises(InputError, match="there is no probe sepia, glow; there are watermark, cor"):
        probes_named(["blur", "sepia", "glow"])
