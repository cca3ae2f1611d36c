import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image
from small_audit import PREPROCESSING, SIDE, candidate, evidence, picture

from vimlrp.audit.records import Channel, Effect
from vimlrp.audit.reporting import pictures, planes, plots
from vimlrp.errors import MissingDependencyError
from vimlrp.evaluation.data import Sample
from vimlrp.preprocessing import Preprocessing


def test_a_developed_picture_is_what_the_model_sees(tmp_path):
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[:, SIDE // 2 : 3 * SIDE // 2] = picture(0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    darkroom = pictures.Darkroom(PREPROCESSING)
    seen = darkroom.develop(Sample(tmp_path / "wide.png", "wide"))
    np.testing.assert_array_equal(seen, picture(0))
    assert darkroom.develop(Sample(tmp_path / "none.png", "none")) is None
    assert [p.sample for p in darkroom.problems] == ["none"]


def test_a_picture_is_made_smaller_and_never_larger():
    pixels = np.full((60, 30, 3), 7, np.uint8)
    assert pictures.shrunk(pixels, 20).shape == (20, 10, 3)
    assert pictures.shrunk(pixels, 100).shape == (60, 30, 3)


def test_heat_is_red_for_blue_against_and_grey_where_nothing_is():
    relevance = np.zeros((16, 16), np.float16)
    relevance[2, 2], relevance[12, 12] = 1, -1
    red, _, blue = np.moveaxis(pictures.heat(picture(1, 64), relevance, 1.0).astype(int), -1, 0)
    assert red[10, 10] > blue[10, 10] + 60
    assert blue[50, 50] > red[50, 50] + 60
    assert (red[24:40, 24:40] == blue[24:40, 24:40]).all()


def test_a_map_is_enlarged_bilinearly_and_keeps_its_place():
    relevance = np.zeros((16, 16))
    relevance[0, 15] = 1
    drawn = pictures.map_picture(relevance, 1.0, 64).astype(int)
    redness = drawn[..., 0] - drawn[..., 2]
    assert np.unravel_index(redness.argmax(), redness.shape)[0] < 4
    # The centre of the next cell is at 58: red fades until there.
    assert redness[:2, 62:].min() > redness[:2, 59].max() > 10
    assert (redness[:, :57] == redness[40, 40]).all()


def test_an_outline_darkens_all_but_the_region_and_runs_around_it():
    region = np.zeros((96, 96), dtype=bool)
    region[20:40, 50:70] = True
    shown = pictures.outlined(picture(2), region)
    original = picture(2)
    np.testing.assert_array_equal(shown[10:20, 25:35], original[10:20, 25:35])
    assert (shown[9, 24:36] == (255, 214, 10)).all()
    np.testing.assert_array_equal(shown[40:], (original[40:] * 0.35).astype(np.uint8))


def test_a_region_smaller_than_a_pixel_still_shows():
    region = np.zeros((480, 480), dtype=bool)
    region[100, 100] = True
    assert (pictures.outlined(picture(2), region)[10, 10] == picture(2)[10, 10]).all()


def test_the_mean_of_pictures():
    dark, light = (np.full((4, 4, 3), value, np.uint8) for value in (10, 251))
    assert (pictures.mean_picture([dark, light, light]) == 171).all()


def test_the_mean_of_regions_brings_a_cue_from_different_places_together():
    rng = np.random.default_rng(0)
    shots, regions = [], []
    for top, left in ((4, 30), (28, 6), (20, 18), (1, 1)):
        pixels = rng.integers(0, 256, (48, 48, 3), np.uint8)
        pixels[top : top + 12, left : left + 12] = (255, 0, 0)
        region = np.zeros((48, 48), dtype=bool)
        region[top : top + 12, left : left + 12] = True
        shots.append(pixels)
        regions.append(region)
    mean = pictures.mean_crop(shots, regions, 26).astype(int)
    # The square is 1.3 times as wide as the region, which fills its middle 20 pixels.
    assert (mean[4:22, 4:22] == (255, 0, 0)).all()
    assert (mean[0, :, 1] > 30).all()


def test_regions_without_a_pixel_have_no_mean():
    assert pictures.mean_crop([picture(0)], [np.zeros((48, 48), dtype=bool)], 26) is None


def test_an_address_holds_the_picture():
    kind, _, data = pictures.uri(picture(3)).partition(",")
    assert kind == "data:image/webp;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)
    assert np.abs(decoded - picture(3)).mean() < 6


def test_the_palette_runs_from_blue_over_grey_to_red():
    colours = [[int(c) for c in text[4:-1].split()] for text in pictures.palette()]
    assert colours[0][2] > colours[0][0] + 60
    assert max(colours[4]) - min(colours[4]) <= 2
    assert colours[-1][0] > colours[-1][2] + 60


def test_intervals_share_one_axis_with_zero_on_it():
    plot = plots.intervals([Effect("removal", -1, -2, 0.5, 3), Effect("insertion", 3, 2, 4, 3)])
    first, second = plot.rows
    unit = (second.high - first.low) / 6
    assert plot.zero == pytest.approx(first.low + 2 * unit, abs=0.11)
    assert first.middle == pytest.approx(first.low + unit, abs=0.11)
    assert second.middle == pytest.approx(plot.zero + 3 * unit, abs=0.11)
    places = {float(text): x for text, x in plot.ticks}
    assert places == pytest.approx({v: plot.zero + v * unit for v in range(-2, 5)}, abs=0.2)
    assert all(0 <= x <= plot.width for x in places.values())


def test_intervals_far_from_zero_still_show_it():
    plot = plots.intervals([Effect("insertion", 100, 99, 101, 3)])
    assert plot.zero < plot.rows[0].low
    assert ("0", plot.zero) in plot.ticks


def test_effects_without_figures_are_left_out():
    nan = float("nan")
    assert plots.intervals([Effect("removal", nan, nan, nan, 0)]) is None
    assert plots.intervals([]) is None
    assert plots.intervals([Effect("removal", 0.0, 0.0, 0.0, 1)]).rows[0].text == (
        "+0.00 [+0.00, +0.00]"
    )


def two_groups(folder, channel):
    """Eight of twenty samples of class 1 differ from the rest in one channel, strongly."""
    found = evidence(folder, counts=(4, 20))
    field = {
        Channel.RELEVANCE: found.maps,
        Channel.LATENT: found.latent,
        Channel.STATISTICS: found.statistics,
        Channel.COMPARISON: found.maps,
    }[channel]
    cue = candidate(found, 1, 8, channel)
    field[cue.carriers] += 5 * np.abs(field).max()
    return found, cue


@pytest.mark.parametrize("channel", list(Channel))
def test_groups_lie_apart_in_the_plane(channel, tmp_path):
    shown = planes.plane(*two_groups(tmp_path, channel))
    assert shown.method == "t-SNE"
    assert len(shown.points) == 20
    assert {p.name for p in shown.points} == {f"1/{i}.png" for i in range(4, 24)}
    roles = [point.role for point in shown.points]
    assert roles == ["other"] * 12 + ["carrier"] * 4 + ["seed"] * 4
    places = np.array([(p.x, p.y) for p in shown.points])
    assert places.min() >= 0
    assert places.max() <= shown.size
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e6 * np.eye(20)
    own = np.arange(20) >= 12
    assert (own[distance.argmin(axis=1)] == own).all()


def test_few_samples_lie_on_their_principal_components(tmp_path):
    found = evidence(tmp_path, counts=(4, 7))
    cue = candidate(found, 1, 3, Channel.LATENT)
    values = planes.features(found, cue.members, Channel.LATENT)
    places, method = planes.placed(values)
    assert method == "principal components"
    centred = values - values.mean(axis=0)
    spread = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    np.testing.assert_allclose((places**2).sum(axis=0), spread[:2], rtol=1e-9)
    assert planes.plane(found, cue).method == "principal components"


def test_what_does_not_differ_is_not_drawn(tmp_path):
    found = evidence(tmp_path, counts=(4, 16))
    found.maps[:] = 0.5
    assert planes.plane(found, candidate(found, 1)) is None
    assert planes.plane(evidence(tmp_path, counts=(2, 2)), candidate(found, 0, 1)) is None


def test_a_large_class_is_thinned_but_for_its_carriers(tmp_path, monkeypatch):
    monkeypatch.setattr(planes, "_MOST", 20)
    found = evidence(tmp_path, counts=(4, 60))
    shown = planes.plane(found, candidate(found, 1, 14))
    roles = [point.role for point in shown.points]
    assert len(roles) == 20
    assert roles.count("other") == 10


def test_a_statistic_that_is_missing_counts_as_the_mean(tmp_path):
    found = evidence(tmp_path, counts=(4, 8))
    members = np.arange(4, 12)
    found.statistics[5, 0] = np.nan
    found.statistics[4:12, 1] = 3.0
    values = planes.features(found, members, Channel.STATISTICS)
    known = np.delete(found.statistics[4:12, 0].astype(float), 1)
    expected = (known - known.mean()) / known.std()
    np.testing.assert_allclose(np.delete(values[:, 0], 1), expected, rtol=1e-6)
    assert values[1, 0] == 0
    assert (values[:, 1] == 0).all()


def test_features_are_signed_roots(tmp_path):
    found = evidence(tmp_path)
    values = planes.features(found, np.arange(3), Channel.RELEVANCE)
    maps = found.maps[:3].reshape(3, -1).astype(float)
    np.testing.assert_allclose(values * np.abs(values), maps, rtol=1e-12)


def test_a_missing_scikit_learn_is_named_with_its_extra(tmp_path, monkeypatch):
    found, cue = two_groups(tmp_path, Channel.RELEVANCE)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[audit\]'"):
        planes.plane(found, cue)


def test_another_geometry_is_developed_at_its_size(tmp_path):
    Image.fromarray(picture(0, 100)).save(tmp_path / "a.png")
    darkroom = pictures.Darkroom(Preprocessing(size=(32, 64), crop_mode="squash"))
    assert darkroom.develop(Sample(tmp_path / "a.png", "a")).shape == (32, 64, 3)
