"""Places by their geometry, and shares against sums by hand."""

import numpy as np
import pytest

from vimlrp.audit.screening.places import PLACES, place_mask, shares
from vimlrp.errors import InputError

ALONE = [name for name in PLACES if "corner" in name and name != "four corners"]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (224, 224), (64, 96), (17, 33)])
def test_a_place_is_where_its_geometry_says(height, width):
    y, x = (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width
    up, left = np.meshgrid(np.minimum(y, 1 - y), np.minimum(x, 1 - x), indexing="ij")
    expected = {
        "four corners": up + left <= 0.25 + 1e-9,
        "ring": np.minimum(up, left) < 1 / 16 - 1e-9,
        "top": np.broadcast_to(y[:, None] < 1 / 8, up.shape),
        "right": np.broadcast_to(x > 7 / 8, up.shape),
    }
    for name, mask in expected.items():
        assert np.array_equal(place_mask(name, height, width), mask), name


@pytest.mark.parametrize("side", [16, 224])
def test_places_are_each_others_mirror_images(side):
    masks = {name: place_mask(name, side, side) for name in PLACES}
    assert np.array_equal(sum(masks[name].astype(int) for name in ALONE), masks["four corners"])
    assert np.array_equal(masks["upper left corner"][::-1, ::-1], masks["lower right corner"])
    assert np.array_equal(masks["upper left corner"].T, masks["upper left corner"])
    assert np.array_equal(masks["upper right corner"].T, masks["lower left corner"])
    assert np.array_equal(masks["top"][::-1], masks["bottom"])
    assert np.array_equal(masks["top"].T, masks["left"])
    assert np.array_equal(masks["left"][:, ::-1], masks["right"])


def test_a_place_covers_as_much_of_a_map_as_of_the_input():
    for name in PLACES:
        coarse, fine = (place_mask(name, side, side).mean() for side in (16, 224))
        # Cells on the slanted side of a corner count whole.
        assert coarse == pytest.approx(fine, abs=0.032), name


def test_shares_are_of_the_positive_relevance_along_the_border():
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((5, 16, 16)).astype(np.float16)
    found = shares(maps)
    border = np.ones((16, 16), bool)
    border[2:-2, 2:-2] = False
    for i, one in enumerate(maps.astype(float)):
        positive = np.where(one > 0, one, 0)
        for k, name in enumerate(PLACES):
            whole = positive if name == "ring" else positive * border
            inside = (positive * place_mask(name, 16, 16)).sum()
            assert found[i, k] == pytest.approx(inside / whole.sum()), name


def test_maps_without_a_share_are_told_from_those_with_none_there():
    maps = np.zeros((5, 16, 16))
    maps[0, 8, 8] = 1  # nothing along the border
    maps[1] = -1
    maps[2, 0, 0], maps[2, 8, 8] = np.nan, 1
    maps[3, 0, 0] = np.inf
    found = shares(maps)
    assert (found[0] == 0).all()
    assert np.isnan(found[1:]).all()
    assert shares(maps[:0]).shape == (0, len(PLACES))


def test_many_maps_are_counted_like_few():
    maps = np.random.default_rng(1).standard_normal((8200, 16, 16)).astype(np.float16)
    assert np.array_equal(shares(maps)[8190:], shares(maps[8190:]))


def test_other_places_and_small_masks_are_refused():
    with pytest.raises(InputError, match="no place 'middle'; the places are four corners"):
        place_mask("middle", 16, 16)
    with pytest.raises(InputError, match="15 x 16; give 16 x 16 or more"):
        place_mask("ring", 15, 16)
