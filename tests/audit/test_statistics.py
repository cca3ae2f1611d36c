"""Statistics of pictures in which each property is set by hand."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vimlrp.audit.gathering.statistics import NAMES, measure
from vimlrp.errors import InputError


def of(path):
    values = measure(path)
    assert values.dtype == np.float32
    assert values.shape == (len(NAMES),)
    return dict(zip(NAMES, values.tolist(), strict=True))


def scene(width=160, height=120, seed=0):
    """Smooth colours with some structure, as photos have."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def saved(tmp_path):
    def save(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return of(tmp_path / name)

    return save


def test_names_are_distinct():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 95, 100])
@pytest.mark.parametrize(("sampling", "share"), [(0, 1.0), (1, 0.5), (2, 0.25)])
def test_the_quality_and_the_colours_of_a_jpeg_are_those_it_was_written_with(
    saved, quality, sampling, share
):
    found = saved(scene(), "a.jpg", quality=quality, subsampling=sampling)
    assert found["jpeg_quality"] == quality
    assert found["chroma_share"] == share


def test_other_files_have_no_jpeg_quality_and_grey_ones_no_colours(saved):
    assert np.isnan(saved(scene())["jpeg_quality"])
    assert np.isnan(saved(scene())["chroma_share"])
    found = saved(scene().convert("L"), "grey.jpg", quality=80)
    assert found["jpeg_quality"] == 80
    assert np.isnan(found["chroma_share"])


def test_size_is_that_of_the_upright_picture_and_bytes_those_of_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    scene(160, 120).save(tmp_path / "a.jpg", exif=exif)
    found = of(tmp_path / "a.jpg")
    assert (found["width"], found["height"]) == (120, 160)
    assert found["aspect"] == 0.75
    assert found["exif"] == 1
    size = (tmp_path / "a.jpg").stat().st_size
    assert found["bytes_per_pixel"] == pytest.approx(size / (160 * 120))


def test_a_picture_without_tags_has_none(saved):
    assert saved(scene(), "a.jpg")["exif"] == 0


@pytest.mark.parametrize(("name", "pixels"), [("a.png", 1), ("a.jpg", 4)])
def test_a_plain_frame_is_measured_on_each_side(saved, name, pixels):
    """A picture may continue its frame by a pixel, and a JPEG blurs the frame's edge."""
    image = scene(160, 120)
    framed = Image.new("RGB", (200, 150), (10, 20, 30))
    framed.paste(image, (24, 16))  # leaves 24 and 16 to the right, 16 and 14 below
    found = saved(framed, name)
    expected = {"top": 16 / 150, "bottom": 14 / 150, "left": 24 / 200, "right": 16 / 200}
    for side, share in expected.items():
        assert found[f"frame_{side}"] == pytest.approx(share, abs=(pixels + 0.1) / 150)
    bare = saved(image, name)
    assert all(bare[f"frame_{side}"] == 0 for side in expected)


def test_a_plain_picture_is_all_frame_and_nothing_else(saved):
    found = saved(Image.new("RGB", (30, 20), (255, 255, 255)))
    assert all(found[f"frame_{side}"] == 1 for side in ("top", "bottom", "left", "right"))
    assert (found["white"], found["black"]) == (1, 0)
    for name in ("contrast", "sharpness", "fine_detail", "blockiness", "edges", "text"):
        assert found[name] == 0


def test_a_single_pixel_is_measured_too(saved):
    found = saved(Image.new("RGB", (1, 1), (0, 0, 0)))
    assert found["black"] == 1
    assert np.isfinite(
        [v for k, v in found.items() if k not in ("jpeg_quality", "chroma_share")]
    ).all()


def test_brightness_and_contrast_are_those_of_the_luma(saved):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 15:] = 200
    found = saved(Image.fromarray(pixels))
    assert found["brightness"] == pytest.approx(100 / 255, abs=1e-4)
    assert found["contrast"] == pytest.approx(100 / 255, abs=1e-4)
    assert found["black"] == 0.5
    assert found["grey"] == 1
    assert found["saturation"] == 0


def test_a_grey_jpeg_in_colour_is_grey_and_a_tinted_one_is_not(saved):
    assert saved(scene().convert("L").convert("RGB"), "a.jpg", quality=60)["grey"] == 1
    assert saved(scene(), "a.jpg")["grey"] == 0


def test_tints_follow_red_and_yellow(saved):
    plain = scene()
    red = Image.blend(plain, Image.new("RGB", plain.size, (255, 0, 0)), 0.2)
    yellow = Image.blend(plain, Image.new("RGB", plain.size, (255, 255, 0)), 0.2)
    assert saved(red)["tint_a"] > saved(plain)["tint_a"] + 5
    assert saved(yellow)["tint_b"] > saved(plain)["tint_b"] + 5
    grey = saved(Image.new("RGB", (8, 8), (128, 128, 128)))
    assert grey["tint_a"] == pytest.approx(0, abs=0.01)
    assert grey["tint_b"] == pytest.approx(0, abs=0.01)
    pure = saved(Image.new("RGB", (8, 8), (255, 0, 0)))
    assert (pure["tint_a"], pure["tint_b"]) == pytest.approx((80.1, 67.2), abs=0.2)  # CIELAB of red
    assert pure["saturation"] == 1


def test_blur_takes_sharpness_and_fine_detail(saved):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8))
    sharp, soft = saved(noise), saved(noise.filter(ImageFilter.GaussianBlur(2)))
    assert soft["sharpness"] < sharp["sharpness"] - 1
    assert soft["fine_detail"] < 0.05 < sharp["fine_detail"]
    # Of white noise, three quarters of the spectrum lie beyond half of each axis.
    assert sharp["fine_detail"] == pytest.approx(0.75, abs=0.05)


def test_blocks_are_seen_whatever_the_file_and_the_crop(saved, tmp_path):
    rng = np.random.default_rng(1)
    noisy = np.clip(np.asarray(scene(200, 160), float) + rng.normal(0, 8, (160, 200, 3)), 0, 255)
    image = Image.fromarray(noisy.astype(np.uint8))
    plain = saved(image)["blockiness"]
    image.save(tmp_path / "low.jpg", quality=8)
    low = Image.open(tmp_path / "low.jpg").convert("RGB")
    assert saved(low)["blockiness"] > plain + 0.7
    assert saved(low.crop((3, 5, 190, 150)))["blockiness"] > plain + 0.7


def test_letters_look_like_text_and_edges_lie_in_their_corner(saved):
    image = Image.new("RGB", (240, 180), (90, 110, 130))
    plain = saved(image)
    ImageDraw.Draw(image).text((4, 4), "SAMPLE 2024", fill="white")
    found = saved(image)
    assert plain["text"] == 0
    assert found["text"] > 0.005
    assert found["edges_top_left"] > 0.05
    assert (
        found["edges_top_right"] == found["edges_bottom_left"] == found["edges_bottom_right"] == 0
    )


def test_a_large_picture_is_measured_in_the_middle_and_in_small(saved):
    found = saved(scene(3000, 1500), "a.jpg", quality=90)
    assert (found["width"], found["height"]) == (3000, 1500)
    assert found["jpeg_quality"] == 90
    small = saved(scene(1000, 500), "b.jpg", quality=90)
    assert found["brightness"] == pytest.approx(small["brightness"], abs=0.01)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png"):
        measure(tmp_path / "a.png")
