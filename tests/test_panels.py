"""Panels and legends hold what they are given, in order and to scale."""

import numpy as np
import pytest

from vimlrp.errors import InputError
from vimlrp.heatmaps import NEUTRAL, colourise
from vimlrp.panels import legend, panel


def photo_of(size, grey=200):
    return np.full((*size, 3), grey, np.uint8)


def test_legend_holds_the_whole_scale():
    picture = legend(0.25, width=600)
    assert picture.shape[1] == 600
    row = picture[33]
    inner = row[(row != 255).any(axis=-1)][1:-1]
    np.testing.assert_array_equal(inner[len(inner) // 2], NEUTRAL)
    ends = colourise(np.array([[-1.0, 1.0]]))[0].astype(int)
    assert np.abs(inner[0] - ends[0]).max() <= 3
    assert np.abs(inner[-1] - ends[1]).max() <= 3


def test_legend_shows_its_limit_and_caption():
    assert (legend(0.25) != legend(0.26)).any()
    assert (legend(0.25) != legend(0.25, caption="logit")).any()
    assert (legend(0.25, caption="caf\u00e9") == legend(0.25, caption="cafe")).all()
    np.testing.assert_array_equal(
        legend(1, caption="\u732b"), legend(1, caption="?")
    )  # no sign for it in the font


@pytest.mark.parametrize("limit", [0.0, 1e-30, 123456.0])
def test_legend_text_stays_on_the_picture(limit):
    picture = legend(limit, width=160, caption="a caption that is far too long for its picture")
    assert (picture[:, [0, -1]] == 255).all(axis=-1).mean() > 0.8
    assert picture.shape[1] == 160


def test_legend_too_narrow():
    with pytest.raises(InputError, match="160 or more"):
        legend(1.0, width=100)


def test_panel_lays_pictures_side_by_side_at_one_height():
    red, green = photo_of((50, 100)), photo_of((90, 30))
    red[:], green[:] = (255, 0, 0), (0, 255, 0)
    picture = panel([red, green], height=100)
    assert picture.shape[1] == 6 + 200 + 12 + 33 + 6
    np.testing.assert_array_equal(picture[12:112, 6:206], np.broadcast_to(red[0, 0], (100, 200, 3)))
    np.testing.assert_array_equal(
        picture[12:112, 218:251], np.broadcast_to(green[0, 0], (100, 33, 3))
    )
    assert (picture[:12] == 255).all()
    assert (picture[112:] == 255).all()


def test_panel_with_captions_and_legend_is_taller():
    images = [photo_of((50, 100))] * 2
    bare = panel(images)
    captioned = panel(images, ["one", "two\nlines"])
    full = panel(images, ["one", "two\nlines"], limit=0.5)
    assert bare.shape[0] < captioned.shape[0] < full.shape[0]
    assert bare.shape[1] == captioned.shape[1] == full.shape[1]
    np.testing.assert_array_equal(full[: captioned.shape[0]], captioned)
    assert (captioned[bare.shape[0] :] < 128).any()


def test_small_panel_with_legend_is_wide_enough_for_it():
    assert panel([photo_of((9, 9))], height=40, limit=1.0).shape[1] >= 160


def test_enlarged_map_keeps_its_cells():
    picture = panel([colourise(np.array([[1.0, -1.0]]))], height=100)
    assert len(np.unique(picture[12:112, 6:206].reshape(-1, 3), axis=0)) == 2


@pytest.mark.parametrize(
    ("images", "captions"),
    [([], None), ([photo_of((4, 4))], ["a", "b"]), ([photo_of((4, 4))[..., 0]], None)],
)
def test_panel_refuses(images, captions):
    with pytest.raises(InputError):
        panel(images, captions)


@pytest.mark.parametrize("limit", [float("nan"), float("inf"), -1.0])
def test_legend_refuses_an_impossible_limit(limit):
    with pytest.raises(InputError):
        legend(limit)
