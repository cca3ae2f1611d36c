"""What removals and whole-picture changes do to single pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vimlrp.audit.changes import REMOVALS, blurred, closed, grown, jpeg, paste, recoloured, remove
from vimlrp.errors import InputError
from vimlrp.photos import Photo
from vimlrp.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(24, 32))


def pictures(colour=0.5, count=2):
    return torch.full((count, 3, 24, 32), colour, dtype=torch.float64)


def region(count=2):
    regions = torch.zeros(count, 24, 32, dtype=torch.bool)
    regions[:, 4:9, 10:16] = True
    return regions


def test_closed_masks_lose_their_gaps_and_keep_their_edges():
    mask = np.zeros((48, 48), bool)
    mask[10:20, 5:10] = mask[10:20, 13:20] = mask[:, 40:] = True
    expected = mask.copy()
    expected[10:20, 10:13] = True  # 3 of 48 pixels
    np.testing.assert_array_equal(closed(mask, 1 / 12), expected)


@pytest.mark.parametrize("kind", REMOVALS)
def test_a_mark_on_one_colour_goes_and_all_else_stays(kind):
    x, regions = pictures(), region()
    marked = torch.where(regions[:, None], 3.0, x)
    out = remove(marked, regions, kind, PREPROCESSING)
    assert torch.equal(out[~regions[:, None].expand_as(x)], x[~regions[:, None].expand_as(x)])
    # Inpainting works in 8 bits, two steps of which are 2 / 255 / 0.224 after normalisation.
    torch.testing.assert_close(out, x, atol=1e-6 if kind != "inpaint" else 0.04, rtol=0)


def test_mean_is_that_of_the_picture_outside():
    rng = torch.Generator().manual_seed(0)
    x, regions = torch.randn(2, 3, 24, 32, generator=rng), region()
    out = remove(x, regions, "mean", PREPROCESSING)
    for b in range(2):
        for c in range(3):
            inside = out[b, c][regions[b]]
            assert torch.allclose(inside, x[b, c][~regions[b]].mean().expand_as(inside))


@pytest.mark.parametrize("kind", REMOVALS)
def test_empty_regions_change_nothing_and_full_ones_leave_the_mean_colour(kind):
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    regions = torch.stack([torch.zeros(24, 32), torch.ones(24, 32)]).bool()
    out = remove(x, regions, kind, PREPROCESSING)
    assert torch.equal(out[0], x[0])
    assert torch.equal(out[1], torch.zeros_like(x[1]))


def test_paste_moves_the_region_and_nothing_else():
    x, source, regions = pictures(0.0), pictures(1.0), region()
    out = paste(x, source, regions)
    assert torch.equal(out, regions[:, None].expand_as(x).to(out))


def test_grown_regions_reach_one_pixel_further():
    out = grown(region(1).numpy())
    assert out[0, 3, 12]
    assert out[0, 6, 9]
    assert not out[0, 2].any()
    assert grown(np.zeros((0, 8, 8), bool)).shape == (0, 8, 8)


@pytest.mark.parametrize(
    "call", [lambda x, r: paste(x, x, r), lambda x, r: remove(x, r, "mean", PREPROCESSING)]
)
def test_regions_that_do_not_fit_are_refused(call):
    with pytest.raises(InputError, match="regions"):
        call(pictures(), region(1))
    with pytest.raises(InputError, match="bool"):
        call(pictures(), region().float())


def test_unknown_removals_and_other_sources_are_refused():
    with pytest.raises(InputError, match="inpaint, blur, mean"):
        remove(pictures(), region(), "magic", PREPROCESSING)
    with pytest.raises(InputError, match="sources"):
        paste(pictures(), pictures(count=3), region())


def noise(height=30, width=41):
    rng = np.random.default_rng(0)
    return Photo(rng.integers(0, 256, (height, width, 3), np.uint8), "noise")


def test_jpeg_is_what_a_file_would_give():
    photo = noise()
    buffer = io.BytesIO()
    Image.fromarray(photo.pixels).save(buffer, "JPEG", quality=12)
    np.testing.assert_array_equal(jpeg(12)(photo).pixels, np.asarray(Image.open(buffer)))


def test_blur_is_relative_to_the_size():
    small, large = (blurred(0.02)(noise(n, n)).pixels.std() for n in (100, 400))
    assert large < small < noise(100, 100).pixels.std()


def test_recolouring_moves_the_moments():
    rng = np.random.default_rng(0)
    photo = Photo(np.clip(rng.normal(100, 20, (64, 64, 3)), 0, 255).astype(np.uint8), "noise")
    pixels = photo.pixels.reshape(-1, 3).astype(float)
    out = recoloured((120, 100, 80), (10, 20, 30), pixels.mean(0), pixels.std(0))(photo)
    moved = out.pixels.reshape(-1, 3).astype(float)
    np.testing.assert_allclose(moved.mean(0), (120, 100, 80), atol=0.5)
    np.testing.assert_allclose(moved.std(0), (10, 20, 30), atol=0.5)


def test_impossible_strengths_are_refused():
    for make, value in ((jpeg, 0), (jpeg, 101), (blurred, 0.0), (blurred, np.inf)):
        with pytest.raises(InputError, match=r"give one|give a share"):
            make(value)
