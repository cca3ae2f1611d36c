"""Every kind of photo is read as a viewer would show it, or refused by name."""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vimlrp.errors import InputError
from vimlrp.photos import PHOTO_SUFFIXES, Photo, find_photos, read_photo

RED, GREEN, BLUE, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
)


@pytest.fixture
def picture():
    """A landscape picture without any symmetry. # (20, 30, 3)"""
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def corner(source):
    return tuple(read_photo(source).pixels[0, 0].tolist())


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_file(tmp_path, picture, kind, suffix):
    path = saved(Image.fromarray(picture), tmp_path / f"photo{suffix}")
    photo = read_photo(kind(path))
    np.testing.assert_array_equal(photo.pixels, picture)
    assert (photo.name, photo.path, photo.size) == (f"photo{suffix}", path, (20, 30))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_file(tmp_path, suffix):
    path = saved(Image.new("RGB", (16, 8), (200, 100, 50)), tmp_path / f"x{suffix}", quality=95)
    photo = read_photo(path)
    assert photo.pixels.shape == (8, 16, 3)
    np.testing.assert_allclose(photo.pixels[4, 8], (200, 100, 50), atol=6)


def test_every_listed_suffix_is_one_that_pillow_opens():
    Image.init()
    opened = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    assert opened >= PHOTO_SUFFIXES


def test_pil_image_is_left_as_it_was(tmp_path, picture):
    image = Image.fromarray(picture).convert("P")
    before = image.tobytes()
    photo = read_photo(image, name="mine")
    np.testing.assert_array_equal(photo.pixels, np.array(image.convert("RGB")))
    assert (photo.name, photo.path, image.mode) == ("mine", None, "P")
    assert image.tobytes() == before


def test_names_without_a_file(tmp_path, picture):
    path = saved(Image.fromarray(picture), tmp_path / "dog.png")
    with Image.open(path) as image:
        assert read_photo(image).name == "dog.png"
    assert read_photo(picture).name == "image 0"
    assert read_photo(picture, name="image 7").name == "image 7"
    assert read_photo(path, name="image 7").name == "image 7"


def test_photo_passes_through(picture):
    photo = Photo(picture, "x")
    assert read_photo(photo) is photo


def test_array_is_copied(picture):
    photo = read_photo(picture)
    picture[:] = 0
    assert photo.pixels.any()


@pytest.mark.parametrize("source", [3, None, b"bytes", [np.zeros((4, 4, 3), np.uint8)]])
def test_other_things_are_refused(source):
    with pytest.raises(InputError, match=r"image 0 is a \w+, not a photo; give a path"):
        read_photo(source)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_opaque_mode_becomes_rgb(mode):
    image = Image.new("RGB", (3, 2), WHITE)
    if mode != "LAB":
        assert corner(image.convert(mode)) == WHITE
    assert read_photo(Image.new(mode, (3, 2))).pixels.shape == (2, 3, 3)


def test_cmyk_jpeg(tmp_path):
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = corner(saved(image, tmp_path / "x.jpg", quality=95))
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA", "RGBa"])
def test_transparency_is_laid_over_white(mode):
    image = Image.new("RGBA", (3, 2), (0, 0, 0, 0)).convert("RGBa" if mode == "RGBa" else mode)
    assert corner(image) == WHITE


def test_half_transparent_file(tmp_path):
    path = saved(Image.new("RGBA", (3, 2), (255, 0, 0, 128)), tmp_path / "x.png")
    np.testing.assert_allclose(corner(path), (255, 127, 127), atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_of_a_png(tmp_path, mode):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    image = image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image
    image = image.convert(mode)
    path = saved(image, tmp_path / "x.png", transparency=image.getpixel((0, 0)))
    left, right = read_photo(path).pixels[0].tolist()
    assert tuple(left) == WHITE
    assert tuple(right) == tuple(image.convert("RGB").getpixel((1, 0)))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.array([[0, 257, 32768, 65535]], np.uint16)
    path = saved(Image.fromarray(ramp), tmp_path / f"x{suffix}")
    assert read_photo(path).pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_pgm(tmp_path):
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([257, 32768], ">u2").tobytes())
    assert read_photo(path).pixels[0, :, 0].tolist() == [1, 128]


def test_sixteen_bit_colour(tmp_path):
    bgr = np.full((2, 2, 3), (514, 32768, 65535), np.uint16)
    (tmp_path / "x.png").write_bytes(cv2.imencode(".png", bgr)[1].tobytes())
    assert corner(tmp_path / "x.png") == (255, 128, 2)


def test_sixteen_bit_photo_on_its_side():
    image = Image.fromarray(np.array([[0, 65535]], np.uint16))
    image.getexif()[0x0112] = 6
    assert read_photo(image).pixels[:, :, 0].tolist() == [[0], [255]]


def test_thirty_two_bit_integers_are_refused():
    with pytest.raises(InputError, match="32-bit integer"):
        read_photo(Image.new("I", (3, 2), 200))


def test_float_tiff(tmp_path):
    path = saved(Image.new("F", (3, 2), 0.5), tmp_path / "x.tiff")
    assert corner(path) == (128, 128, 128)
    bright = saved(Image.new("F", (3, 2), 80.0), tmp_path / "bright.tiff")
    with pytest.raises(InputError, match=r"bright\.tiff has floating point pixels from 80 to 80"):
        read_photo(bright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sideways_photo_is_turned_upright(tmp_path, picture, orientation):
    # What each orientation does to an upright picture, from the EXIF standard's table.
    stored = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(stored), tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read_photo(path).pixels, picture)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_photo(image).pixels, picture)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_photo(tmp_path, exif):
    path = saved(Image.new("RGB", (8, 6)), tmp_path / "x.jpg", exif=exif)
    assert read_photo(path).size == (6, 8)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"x{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 3
    assert corner(path) == RED


def test_one_pixel(tmp_path):
    assert read_photo(saved(Image.new("L", (1, 1), 7), tmp_path / "x.png")).pixels.tolist() == [
        [[7, 7, 7]]
    ]


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.jpg does not exist"):
        read_photo(tmp_path / "nowhere.jpg")


def test_folder(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_photo(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n", "x.png")],
)
def test_file_without_a_picture(tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_photo(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".tiff", ".webp"])
def test_truncated_file(tmp_path, picture, suffix):
    path = saved(Image.fromarray(picture), tmp_path / f"x{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"x\{suffix} "):
        read_photo(path)


def encoded(kind):
    rows = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, kind)
    return buffer.getvalue()


def photo_or_refusal(path):
    try:
        return read_photo(path)
    except InputError as error:
        return str(error)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=8),
)
def test_damaged_file_is_read_or_refused_by_name(tmp_path_factory, kind, flips):
    data = bytearray(encoded(kind))
    for place, change in flips:
        data[int(place * len(data))] ^= change
    path = tmp_path_factory.mktemp("damaged") / "victim"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = photo_or_refusal(path)
    path.unlink()
    assert isinstance(outcome, Photo) or "victim" in outcome


@pytest.mark.parametrize("size", [(100, 1), (15, 10), (50, 50)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path, monkeypatch, size):
    path = saved(Image.new("1", size), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(InputError, match=r"bomb\.png") as error:
        read_photo(path)
    assert str(size[0] * size[1]) in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_photo(path).size == size[::-1]


def test_decompression_bomb_where_warnings_are_errors(tmp_path, monkeypatch):
    path = saved(Image.new("1", (15, 10)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="150"):
            read_photo(path)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (2, 3, 3)])
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (np.uint8, 128),
        (np.uint16, 32768),
        (">u2", 32768),
        (np.float16, 0.5),
        (np.float32, 0.5),
        (np.float64, 0.5),
    ],
)
def test_array_of_middle_grey(shape, dtype, value):
    pixels = read_photo(np.full(shape, value, dtype)).pixels
    np.testing.assert_array_equal(pixels, np.full((2, 3, 3), 128, np.uint8))


def test_boolean_array():
    assert read_photo(np.array([[True, False]])).pixels[0].tolist() == [list(WHITE), list(BLACK)]


def test_transparent_array_is_laid_over_white():
    array = np.array([[[0, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)
    assert read_photo(array).pixels[0].tolist() == [list(WHITE), list(RED)]
    assert read_photo(array / 255.0).pixels[0].tolist() == [list(WHITE), list(RED)]


def test_strided_array(picture):
    np.testing.assert_array_equal(read_photo(picture[::-2, ::3]).pixels, picture[::-2, ::3])


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((3, 20, 20), "channels come first"),
        ((2, 20, 20, 3), "batch"),
        ((20, 20, 2), "give a path"),
        ((20, 20, 5), "give a path"),
        ((20,), "give a path"),
        ((), "give a path"),
        ((0, 20, 3), "give a path"),
    ],
)
def test_array_of_the_wrong_shape(shape, hint):
    with pytest.raises(InputError, match=rf"here is an array of shape .*{hint}"):
        read_photo(np.zeros(shape, np.uint8), name="here")


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint32, complex, object, "U1"])
def test_array_of_the_wrong_type(dtype):
    with pytest.raises(InputError, match=r"here is an array of .*astype\(np\.uint8\)"):
        read_photo(np.zeros((4, 4, 3), dtype), name="here")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_array_that_is_not_finite(value):
    array = np.zeros((4, 4, 3), np.float32)
    array[1, 2, 0] = value
    with pytest.raises(InputError, match="here has pixels that are NaN or infinite"):
        read_photo(array, name="here")


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_float_array_out_of_range(value):
    array = np.zeros((4, 4, 3), np.float32)
    array[1, 2, 0] = value
    with pytest.raises(InputError, match=r"here has floating point .* within \[0, 1\]"):
        read_photo(array, name="here")


@pytest.fixture
def album(tmp_path):
    for name in ("b.JPEG", "a.png", "z/c.webp", "notes.txt", ".hidden.png", ".cache/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_folder_is_searched_below_and_sorted(album):
    found = find_photos([album])
    assert found == [album / "a.png", album / "b.JPEG", album / "z" / "c.webp"]


def test_folder_may_itself_be_hidden(album):
    assert find_photos([album / ".cache"]) == [album / ".cache" / "d.png"]


def test_order_of_the_command_line_stays_and_each_photo_comes_once(album):
    given_paths = [album / "notes.txt", str(album / "z"), album]
    expected = ["notes.txt", "c.webp", "a.png", "b.JPEG"]
    assert [path.name for path in find_photos(given_paths)] == expected


def test_nothing_given():
    assert find_photos([]) == []


def test_missing_path(album):
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_photos([album, album / "nowhere"])


def test_folder_without_photos(album):
    with pytest.raises(InputError, match=r"holds no photo.*\.png"):
        find_photos([album / "folder.png"])
