"""The model sees what timm would show it, and the geometry says where that lies in the photo."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Geometry, Preprocessing, denormalise

MODES = ("center", "squash", "border")
# Height and width: landscape, portrait, square, the input's own size, smaller, tiny, extreme.
SIZES = [(300, 451), (640, 427), (333, 333), (224, 224), (90, 131), (5, 9), (1, 1), (12, 900)]


def plain(**changes):
    """A preprocessing whose tensor holds the resized photo itself, within [0, 1]."""
    return Preprocessing(**{"mean": (0, 0, 0), "std": (1, 1, 1), **changes})


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "mambaout_femto"])
def test_model_gets_what_timm_would_give_it(name):
    model = timm.create_model(name)
    config = resolve_model_data_config(model)
    pixels = noise((300, 451))
    expected = create_transform(**config, is_training=False)(Image.fromarray(pixels))
    x, geometry = Preprocessing.of(model)(read_photo(pixels))
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    assert x.dtype == torch.float32
    assert (geometry.source, geometry.input) == ((300, 451), config["input_size"][1:])


def test_model_without_configuration_gets_timms_defaults():
    assert Preprocessing.of(nn.Linear(2, 2)) == Preprocessing()


def test_model_of_other_channels_is_refused():
    model = nn.Linear(2, 2)
    model.pretrained_cfg = {"input_size": (1, 28, 28)}
    with pytest.raises(UnsupportedModelError, match="Linear takes 1 channels"):
        Preprocessing.of(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_mode": "middle"}, "crop_mode is 'middle'; give one of center"),
        ({"interpolation": "random"}, "interpolation is 'random'; give one of nearest"),
        ({"crop_pct": 0.0}, "crop_pct is 0"),
        ({"crop_pct": float("nan")}, "crop_pct is nan"),
        ({"mean": (0.5,)}, "one number a colour"),
        ({"std": (1.0, 1.0, 0.0)}, "std above 0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**changes)


def coordinates_seen(preprocessing, source):
    """What the real transform makes of a photo whose first two colours are x and y, else 1.

    The third colour is 1 in the photo and 0 where the transform padded.
    """
    y, x = np.mgrid[: source[0], : source[1]] + 0.5
    photo = torch.tensor(np.stack([x, y, np.ones(source)]), dtype=torch.float32)
    crop = preprocessing.transform.transforms[1]
    crop.fill = 0  # the same black for every colour: a tensor is not padded with a list of them
    return preprocessing.transform(photo).numpy()


def assert_box_is_where_the_coordinates_say(preprocessing, source):
    geometry = preprocessing(read_photo(np.zeros(source, np.uint8)))[1]
    seen = coordinates_seen(preprocessing, source)  # (3, H, W)
    rows, columns = np.mgrid[: geometry.input[0], : geometry.input[1]] + 0.5
    expected = geometry.to_source(np.stack([columns, rows], axis=-1))  # (H, W, 2)
    inside = (expected > 0) & (expected < np.array(source[::-1]))
    np.testing.assert_array_equal(seen[2] > 0.5, inside.all(axis=-1))
    for axis, scale in enumerate(geometry.scale):
        # Within its kernel of the photo's edge a resized ramp bends: those pixels prove nothing.
        margin = 3 * max(scale, 1)
        away = source[1 - axis] - margin
        straight = inside.all(axis=-1) & (expected[..., axis] > margin)
        straight &= expected[..., axis] < away
        error = (seen[axis] - expected[..., axis])[straight] / scale
        assert np.abs(error).max(initial=0) < 0.2
        assert np.abs(error.mean() if error.size else 0) < 0.02


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", SIZES)
def test_coordinates_land_where_the_geometry_says(mode, source):
    preprocessing = plain(crop_mode=mode, crop_pct=0.9, interpolation="bilinear")
    assert_box_is_where_the_coordinates_say(preprocessing, source)


@settings(deadline=None, max_examples=60)
@given(
    source=st.tuples(st.integers(2, 400), st.integers(2, 400)),
    size=st.tuples(st.integers(16, 96), st.integers(16, 96)),
    crop_pct=st.sampled_from([0.5, 0.875, 0.95, 1.0, 1.3]),
    mode=st.sampled_from(MODES),
)
def test_coordinates_of_any_photo(source, size, crop_pct, mode):
    preprocessing = plain(crop_mode=mode, crop_pct=crop_pct, size=size, interpolation="bilinear")
    # torch repeats the first row of a tensor that it resizes to one pixel wide; Pillow does not,
    # but the coordinates are a tensor.
    assume(mode != "border" or min(size) / crop_pct > 2 * max(source) / min(source))
    assert_box_is_where_the_coordinates_say(preprocessing, source)


def centroid(weights):
    """Centre of mass as x and y. # (H, W) of weights"""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "lanczos"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", [(600, 900), (900, 600), (500, 500), (60, 80), (400, 1600)])
def test_bright_dots_land_where_the_geometry_says(mode, source, interpolation):
    pixels = np.zeros((*source, 3), np.uint8)
    half = max(1, min(source) // 40)
    middle = np.array(source[::-1]) // 2
    dots = middle + np.array([[0, -9], [7, 0], [-6, 5]]) * half  # (3, 2) of x and y
    for colour, (x, y) in enumerate(dots):
        pixels[y - half : y + half, x - half : x + half, colour] = 255
    x, geometry = plain(crop_mode=mode, interpolation=interpolation)(read_photo(pixels))
    found = np.stack([centroid(channel) for channel in x.double().numpy()])
    if mode == "border":  # which pads with the mean, here black
        assert geometry.box[1] != 0 or geometry.box[0] != 0 or source[0] == source[1]
    tolerance = 0.75 if interpolation in ("nearest", "box") else 0.05
    np.testing.assert_allclose(geometry.to_input(dots), found, atol=tolerance)
    np.testing.assert_allclose(
        geometry.to_source(found) / geometry.scale, dots / geometry.scale, atol=tolerance
    )


def test_known_boxes():
    def box(source, **changes):
        return plain(crop_pct=1.0, **changes)(read_photo(np.zeros(source, np.uint8)))[1].box

    assert box((448, 448)) == (0, 0, 448, 448)
    assert box((448, 896)) == (224, 0, 672, 448)
    assert box((896, 448)) == (0, 224, 448, 672)
    assert box((448, 896), crop_mode="squash") == (0, 0, 896, 448)
    assert box((448, 896), crop_mode="border") == (0, -224, 896, 672)
    assert box((1, 1)) == (0, 0, 1, 1)


def test_crop_larger_than_the_resized_photo_pads():
    geometry = plain(crop_pct=2.0)(read_photo(np.zeros((112, 112), np.uint8)))[1]
    assert geometry.box == (-56, -56, 168, 168)
    assert geometry.seen().all()


@pytest.mark.parametrize(("mode", "word"), [("center", "enlarged to"), ("border", "vanishes")])
@pytest.mark.parametrize("source", [(1, 4000), (4000, 1)])
def test_hair_of_a_photo_is_refused_by_name(mode, word, source):
    photo = read_photo(np.zeros(source, np.uint8), name="hair.png")
    with pytest.raises(InputError, match=rf"hair\.png is .*{word}.*squash"):
        plain(crop_mode=mode)(photo)
    assert plain(crop_mode="squash")(photo)[0].shape == (3, 224, 224)


def test_seen_is_the_crop():
    geometry = plain(crop_pct=1.0)(read_photo(np.zeros((448, 896), np.uint8)))[1]
    expected = np.zeros((448, 896), bool)
    expected[:, 224:672] = True
    np.testing.assert_array_equal(geometry.seen(), expected)


def test_whole():
    geometry = Geometry.whole(6, 8)
    assert geometry.seen().all()
    assert geometry.scale == (1, 1)
    np.testing.assert_array_equal(geometry.to_source(np.array([3.0, 4.0])), [3, 4])


@given(
    box=st.tuples(*[st.floats(-100, 100)] * 2, *[st.floats(101, 900)] * 2),
    point=st.tuples(*[st.floats(-1e3, 1e3)] * 2),
)
def test_moving_a_point_there_and_back(box, point):
    geometry = Geometry((300, 500), (224, 192), box)
    np.testing.assert_allclose(
        geometry.to_input(geometry.to_source(np.array(point))), point, atol=1e-6
    )


def test_denormalise_undoes_the_normalisation():
    pixels = noise((224, 224))
    preprocessing = Preprocessing(crop_pct=1.0)
    x, _ = preprocessing(read_photo(pixels))
    back = denormalise(x, preprocessing.mean, preprocessing.std)
    np.testing.assert_array_equal(back, pixels)
    both = denormalise(torch.stack([x, -x]), preprocessing.mean, preprocessing.std)
    assert both.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(both[0], pixels)


def test_denormalise_clips_and_takes_tensors_with_gradients():
    x = torch.tensor([-9.0, 0.5, 9.0]).expand(3, 1, 3).clone().requires_grad_()
    pixels = denormalise(x.half(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("shape", [(1, 4, 4), (4, 4, 3), (4, 4), (1, 1, 3, 4, 4)])
def test_denormalise_refuses_other_shapes(shape):
    with pytest.raises(InputError, match=r"shape \(3, H, W\)"):
        denormalise(torch.zeros(shape), (0, 0, 0), (1, 1, 1))


def test_denormalise_refuses_nan():
    with pytest.raises(InputError, match="NaN"):
        denormalise(torch.full((3, 2, 2), torch.nan), (0, 0, 0), (1, 1, 1))
