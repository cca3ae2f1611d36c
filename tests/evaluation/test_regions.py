import numpy as np
import pytest
from PIL import Image

from vimlrp.evaluation.data import Box, Sample
from vimlrp.evaluation.regions import region_of
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Geometry, Preprocessing

PHOTO = read_photo(np.zeros((40, 60, 3), np.uint8))
WHOLE = Geometry.whole(40, 60)
CROP = Geometry((40, 60), (20, 20), (20.0, 0.0, 60.0, 40.0))  # the right part, halved


def region(geometry=WHOLE, photo=PHOTO, **known):
    return region_of(Sample(path=None, name="a", **known), photo, geometry)


def kinds(problems):
    return [problem.kind for problem in problems]


def mask_file(tmp_path, size=(40, 60), box=(30, 10, 50, 20)):
    mask = np.zeros(size, np.uint8)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_a_box_covers_the_pixels_whose_centres_it_holds():
    found, problems = region(boxes=(Box((10, 4, 12.6, 6)),))
    rows, columns = found.nonzero()
    assert sorted(set(rows)) == [4, 5]
    assert sorted(set(columns)) == [10, 11, 12]
    assert not problems


def test_boxes_join_and_follow_the_crop():
    found, _ = region(CROP, boxes=(Box((20, 0, 24, 40)), Box((56, 36, 60, 40))))
    expected = np.zeros((20, 20), bool)
    expected[:, :2] = expected[18:, 18:] = True
    assert (found == expected).all()


def test_a_box_on_another_size_of_the_picture_is_scaled():
    scaled, _ = region(boxes=(Box((20, 8, 40, 20), (120, 80)),))
    assert (scaled == region(boxes=(Box((10, 4, 20, 10)),))[0]).all()


def test_the_preprocessing_moves_boxes_as_it_moves_pixels():
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[20:50, 40:70] = 255
    photo = read_photo(pixels)
    preprocessing = Preprocessing((32, 32), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    x, geometry = preprocessing(photo)
    found, _ = region(geometry, photo, boxes=(Box((40, 20, 70, 50)),))
    assert ((x[0] > 0.5).numpy() == found).all()


def test_a_mask_is_looked_up_at_every_pixel(tmp_path):
    file = mask_file(tmp_path)
    found, problems = region(masks=(file,))
    assert (found == (np.asarray(Image.open(file)) > 0)).all()
    assert not problems
    assert (region(CROP, masks=(file,))[0] == region(CROP, boxes=(Box((30, 10, 50, 20)),))[0]).all()


def test_a_resized_mask_fits_and_padding_holds_nothing(tmp_path):
    file = mask_file(tmp_path, (80, 120), (0, 0, 120, 80))
    padded = Geometry((40, 60), (80, 80), (-10.0, -20.0, 70.0, 60.0))
    found, _ = region(padded, masks=(file,))
    expected = np.zeros((80, 80), bool)
    expected[20:60, 10:70] = True
    assert (found == expected).all()


@pytest.mark.parametrize(
    ("corners", "kind", "left"),
    [
        ((70, 5, 90, 20), "box outside the picture", 0),
        ((-30, -30, -1, -1), "box outside the picture", 0),
        ((20, 5, 20, 30), "empty box", 0),
        ((30, 5, 20, 30), "empty box", 0),
        ((50, 10, 90, 20), "box clipped", 100),
        ((float("nan"), 0, 10, 10), "empty box", 0),
    ],
)
def test_boxes_that_do_not_fit_are_listed(corners, kind, left):
    found, problems = region(boxes=(Box(corners),))
    assert kinds(problems) == [kind]
    assert found.sum() == left


def test_a_box_that_ends_on_the_last_pixels_far_side_is_in_order():
    assert not region(boxes=(Box((0, 0, 60.5, 41)),))[1]


def test_an_object_outside_the_crop_is_listed(tmp_path):
    found, problems = region(CROP, boxes=(Box((0, 0, 10, 10)),))
    assert not found.any()
    assert kinds(problems) == ["object outside the crop"]


def test_bad_masks_are_listed(tmp_path):
    empty = mask_file(tmp_path, box=(0, 0, 0, 0))
    assert kinds(region(masks=(empty,))[1]) == ["empty mask"]
    wide = mask_file(tmp_path, (40, 80))
    assert kinds(region(masks=(wide,))[1]) == ["mask of another shape"]
    assert kinds(region(masks=(tmp_path / "none.png",))[1]) == ["mask cannot be read"]


def test_a_sample_without_an_object_has_none_and_no_problem():
    found, problems = region()
    assert not found.any()
    assert not problems


@pytest.mark.parametrize("background", [0, 255])
def test_transparent_pixels_of_a_mask_are_background(tmp_path, background):
    mask = np.full((40, 60, 4), background, np.uint8)
    mask[..., 3] = 0
    mask[10:20, 30:50] = 255
    mask[10:12, 30:50, :3] = 0  # black is background, opaque or not
    Image.fromarray(mask).save(tmp_path / "mask.png")
    found, problems = region(masks=(tmp_path / "mask.png",))
    expected = np.zeros((40, 60), bool)
    expected[12:20, 30:50] = True
    assert (found == expected).all()
    assert not problems


def test_a_mask_of_everything_is_used_and_listed(tmp_path):
    found, problems = region(masks=(mask_file(tmp_path, box=(0, 0, 60, 40)),))
    assert found.all()
    assert kinds(problems) == ["mask covers everything"]


def test_masks_and_boxes_of_one_picture_join(tmp_path):
    files = []
    for i, box in enumerate([(0, 0, 10, 10), (5, 5, 20, 20), (50, 30, 60, 40)]):
        files.append(mask_file(tmp_path, box=box).rename(tmp_path / f"{i}.png"))
    found, problems = region(masks=tuple(files[:2]), boxes=(Box((50, 30, 60, 40)),))
    expected = np.zeros((40, 60), bool)
    expected[:10, :10] = expected[5:20, 5:20] = expected[30:, 50:] = True
    assert (found == expected).all()
    assert not problems
    assert (region(masks=tuple(files))[0] == expected).all()


def test_one_bad_mask_costs_the_others_nothing(tmp_path):
    good = mask_file(tmp_path).rename(tmp_path / "good.png")
    empty = mask_file(tmp_path, box=(0, 0, 0, 0))
    found, problems = region(masks=(empty, good))
    assert (found == region(masks=(good,))[0]).all()
    assert kinds(problems) == ["empty mask"]
    away, problems = region(CROP, masks=(empty,), boxes=(Box((0, 0, 10, 10)),))
    assert not away.any()
    assert kinds(problems) == ["empty mask", "object outside the crop"]


def test_a_mask_with_a_palette_is_read_by_its_colours(tmp_path):
    indices = np.zeros((40, 60), np.uint8)
    indices[10:20, 30:50], indices[20:30, 30:50] = 1, 2
    image = Image.fromarray(indices).convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 0])  # the third is as black as the first
    image.save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == "P"
    expected = indices == 1
    assert (region(masks=(tmp_path / "mask.png",))[0] == expected).all()
    image.putpalette([255, 255, 255, 128, 0, 0, 128, 0, 0])
    image.save(tmp_path / "mask.png", transparency=0)
    assert (region(masks=(tmp_path / "mask.png",))[0] == (indices > 0)).all()


def test_the_first_object_of_a_sixteen_bit_mask_is_no_background(tmp_path):
    numbers = np.zeros((40, 60), np.uint16)
    numbers[10:20, 30:50], numbers[20:30, 30:50] = 1, 4000
    Image.fromarray(numbers).save(tmp_path / "mask.png")
    found, problems = region(masks=(tmp_path / "mask.png",))
    assert (found == (numbers > 0)).all()
    assert not problems
