"""Drawn pictures and a user's folder of classes, and artifacts planted on both."""

import csv

import cv2
import numpy as np
import pytest
from PIL import Image

from vimlrp.audit.planted.artifacts import ARTIFACTS, decoded, encoded
from vimlrp.audit.planted.pictures import DrawnPictures, FolderPictures
from vimlrp.audit.planted.plans import Plan, Planting
from vimlrp.audit.planted.planting import pasted, plant, write
from vimlrp.errors import InputError
from vimlrp.evaluation.data import read_data

PLAN = Plan(
    4,
    seed=5,
    plantings=(
        Planting(0, "patch", 0.25),
        Planting(1, "jpeg", 0.5),
        Planting(2, "text", 0.1, learnt=False),
    ),
)


@pytest.fixture(scope="module")
def planted():
    return plant(DrawnPictures(classes=4, side=32), PLAN, 20)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("zebra", 6), ("ape", 4)):
        (tmp_path / name).mkdir()
        for i in range(count):
            image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
            image.save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_picture_depends_on_seed_class_and_index_alone():
    pictures = DrawnPictures(seed=1)
    first, place = pictures.picture(3, 7)
    pictures.picture(0, 0)
    again, again_place = DrawnPictures(seed=1).picture(3, 7)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(place, again_place)
    for other in (DrawnPictures(seed=2).picture(3, 7), pictures.picture(4, 7)):
        assert (other[0] != first).any()
    assert (pictures.picture(3, 8)[0] != first).any()


def test_every_class_has_a_name_and_an_object_of_its_own():
    pictures = DrawnPictures(classes=32)
    assert len(set(pictures.names)) == 32
    shapes = []
    for label in range(32):
        picture, place = pictures.picture(label, 0)
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        assert 0.01 < place.mean() < 0.4
        shapes.append(place.mean())
    assert len(set(shapes)) > 8


def test_objects_lie_where_their_colour_is():
    # Averaged over pictures of an opaque shape, what is off the object is grey.
    pictures = DrawnPictures(classes=4, contrast=(1.0, 1.0))
    inside, outside = [], []
    for index in range(60):
        picture, place = pictures.picture(0, index)  # red discs
        inside.append(picture[place].mean(axis=0))
        outside.append(picture[~place].mean(axis=0))
    red, other = np.mean(inside, axis=0), np.mean(outside, axis=0)
    assert red[0] > 1.3 * max(red[1:])
    assert np.ptp(other) < 12


def test_what_makes_a_picture_hard_does_so():
    plain = {"classes": 4, "contrast": (1.0, 1.0), "hue_spread": 0.0, "clutter": 0, "grain": 0.0}
    picture, place = DrawnPictures(**plain).picture(0, 3)
    inside = cv2.erode(place.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.ptp(picture[inside].astype(int), axis=0).max() <= 1
    grainy, _ = DrawnPictures(**{**plain, "grain": 10.0}).picture(0, 3)
    steps = (grainy.astype(float) - picture)[inside]
    assert steps.std() == pytest.approx(10, rel=0.2)
    # Clutter lies about the picture, and never over the object.
    cluttered, place = DrawnPictures(**{**plain, "clutter": 6}).picture(0, 3)
    inside = cv2.erode(place.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.ptp(cluttered[inside].astype(int), axis=0).max() <= 1
    edges = [
        float(np.abs(cv2.Laplacian(one.astype(np.float32), cv2.CV_32F)).mean())
        for one in (picture, cluttered)
    ]
    assert edges[1] > 1.2 * edges[0]


def test_two_poses_alternate_and_differ():
    pictures = DrawnPictures(two_poses=frozenset({2}))
    centres = [[], []]
    sizes = [[], []]
    for index in range(40):
        _, place = pictures.picture(2, index)
        centres[index % 2].append(np.nonzero(place)[1].mean())
        sizes[index % 2].append(place.mean())
    assert np.mean(centres[0]) + 10 < np.mean(centres[1])
    assert np.max(sizes[0]) < np.mean(sizes[1])
    same = DrawnPictures().picture(1, 0)[0]
    np.testing.assert_array_equal(pictures.picture(1, 0)[0], same)


@pytest.mark.parametrize(("classes", "side"), [(1, 64), (33, 64), (4, 8)])
def test_impossible_drawings_are_refused(classes, side):
    with pytest.raises(InputError, match="give 2 to 32 classes"):
        DrawnPictures(classes=classes, side=side)


def test_planned_shares_carry_the_artifact_exactly(planted):
    assert [int(planted.carriers[planted.of_class(label)].sum()) for label in range(4)] == [
        *(5, 10, 2, 0)
    ]
    np.testing.assert_array_equal(
        planted.carriers_of(0), planted.of_class(0)[planted.carriers[:20]]
    )
    assert len(planted) == 80


def test_twins_differ_in_carriers_only_and_there_within_the_mask(planted):
    differs = (planted.pictures != planted.twins).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(differs, planted.carriers)
    assert not planted.masks[~planted.carriers].any()
    for row in planted.carriers_of(0):
        change = np.abs(planted.pictures[row].astype(int) - planted.twins[row]).max(axis=2)
        mask = planted.masks[row]
        assert change[mask].min() > 0
        # JPEG spreads an edge over its block of 16 pixels, and smooths colours one pixel on.
        blocks = mask.reshape(2, 16, 2, 16).any(axis=(1, 3))
        reach = cv2.dilate(np.kron(blocks, np.ones((16, 16))).astype(np.uint8), np.ones((3, 3)))
        assert change[reach == 0].max(initial=0) == 0


def test_files_are_what_the_pictures_show(planted):
    for row in (0, 25, 45, 70):
        np.testing.assert_array_equal(decoded(planted.files[row]), planted.pictures[row])


def test_compressed_carriers_are_files_of_that_quality(planted):
    sizes = np.array([len(data) for data in planted.files])
    of_class = planted.of_class(1)
    carriers = planted.carriers[of_class]
    assert sizes[of_class][carriers].max() < sizes[of_class][~carriers].min()


def test_what_may_not_be_learnt_is_left_out_of_training(planted):
    rows = planted.carriers_of(2)
    np.testing.assert_array_equal(planted.learnt[rows], planted.twins[rows])
    rest = np.setdiff1d(np.arange(len(planted)), rows)
    np.testing.assert_array_equal(planted.learnt[rest], planted.pictures[rest])


def test_sets_apart_share_no_picture_and_the_same_call_gives_the_same(planted):
    pictures = DrawnPictures(classes=4, side=32)
    again = plant(pictures, PLAN, 20)
    np.testing.assert_array_equal(again.pictures, planted.pictures)
    held_out = plant(pictures, PLAN, 5, start=20)
    ours = {image.tobytes() for image in planted.twins}
    assert not ours & {image.tobytes() for image in held_out.twins}


def test_inert_artifacts_are_in_all_classes_and_in_the_twins_too():
    plan = Plan(4, seed=0, plantings=(Planting(0, "text", 0.5),), inert="patch", inert_rate=0.5)
    with_inert = plant(DrawnPictures(classes=4, side=32), plan, 60)
    without = plant(
        DrawnPictures(classes=4, side=32), Plan(4, seed=0, plantings=plan.plantings), 60
    )
    marked = (with_inert.twins != without.twins).any(axis=(1, 2, 3))
    rates = [marked[with_inert.of_class(label)].mean() for label in range(4)]
    assert min(rates) > 0.3
    assert max(rates) < 0.7
    np.testing.assert_array_equal(with_inert.carriers, without.carriers)


def test_pasting_changes_every_picture_within_its_mask(planted):
    changed, masks = pasted(planted.twins[60:], "border", seed=1)
    again, _ = pasted(planted.twins[60:], "border", seed=1)
    np.testing.assert_array_equal(changed, again)
    edge = changed[:, 0]
    assert edge.mean() < 40
    assert masks[:, 0].all()


def test_written_files_come_back_as_samples_with_the_truth(planted, tmp_path):
    data = write(planted, tmp_path)
    assert [sample.label for sample in data.samples] == planted.labels.tolist()
    read = read_data(tmp_path / "pictures", None, 4)
    assert [sample.path for sample in read.samples] == [sample.path for sample in data.samples]
    assert [sample.label for sample in read.samples] == planted.labels.tolist()
    for row in (3, 33):
        pixels = np.array(Image.open(data.samples[row].path))
        np.testing.assert_array_equal(pixels, planted.pictures[row])
        mask = np.array(Image.open(data.samples[row].masks[0])) > 0
        np.testing.assert_array_equal(mask, planted.objects[row])
    with (tmp_path / "truth.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["carries"]) for row in rows] == planted.carriers.astype(int).tolist()
    assert {row["artifact"] for row in rows} == {"patch", "jpeg", "text", ""}


def test_a_users_folder_is_planted_like_drawn_pictures(folder):
    pictures = FolderPictures(folder, side=32)
    assert pictures.names == ("ape", "zebra")
    assert [pictures.count(label) for label in range(2)] == [4, 6]
    plan = Plan(2, seed=0, plantings=(Planting(1, "patch", 0.5),))
    planted = plant(pictures, plan, 4)
    assert planted.objects is None
    assert planted.carriers.tolist() == [False] * 4 + planted.carriers[4:].tolist()
    assert planted.carriers.sum() == 2
    rest = plant(pictures, plan, 2, start=2)
    assert len(rest) == 4
    with pytest.raises(InputError, match="class 'ape' has 4 pictures"):
        plant(pictures, plan, 2, start=4)


def test_a_users_pictures_are_cut_to_their_middle(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        wide = np.zeros((32, 96, 3), np.uint8)
        wide[:, 32:64] = 200
        Image.fromarray(wide).save(tmp_path / name / "wide.png")
    picture, place = FolderPictures(tmp_path, side=32).picture(0, 0)
    np.testing.assert_array_equal(picture, np.full((32, 32, 3), 200))
    assert place is None


def test_a_folder_without_classes_is_refused(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    with pytest.raises(InputError, match="at least 2 classes"):
        _ = FolderPictures(tmp_path).names


def test_pictures_and_plan_must_agree(folder):
    with pytest.raises(InputError, match="the plan is for 4 classes, and there are 2"):
        plant(FolderPictures(folder), PLAN, 2)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_artifacts_survive_the_file(name):
    picture = DrawnPictures().picture(0, 0)[0]
    planted, _ = pasted(picture[None], name, seed=0)
    change = np.abs(planted[0].astype(float) - decoded(encoded(picture)))
    assert change.max() > 20
