import pytest
import torch
from helpers import images, random, relative_error, small_vim

from vimlrp.errors import InputError
from vimlrp.evaluation import CompositeMethod
from vimlrp.evaluation.patches import PatchGrid, order_of, patch_size_of, removal_counts


def test_scores_are_sums_over_patches():
    maps = random(2, 8, 12)
    expected = torch.stack(
        [maps[:, r : r + 4, c : c + 4].sum((1, 2)) for r in (0, 4) for c in (0, 4, 8)], dim=1
    )
    assert torch.allclose(PatchGrid.of(8, 12, 4).scores(maps), expected)


def test_scores_of_overlapping_patches_count_a_pixel_in_each():
    maps = random(1, 8, 8)
    grid = PatchGrid(size=4, stride=2, shape=(3, 3))
    assert torch.allclose(grid.scores(maps)[0, 4], maps[0, 2:6, 2:6].sum())


def test_spread_marks_the_pixels_of_a_patch():
    grid = PatchGrid.of(8, 12, 4)
    gone = torch.zeros(1, 6, dtype=torch.bool)
    gone[0, 4] = True
    pixels = grid.spread(gone)
    assert pixels.shape == (1, 1, 8, 12)
    assert pixels[0, 0, 4:, 4:8].all()
    assert pixels.sum() == 16


@pytest.mark.parametrize("size", [0, 5, 16])
def test_patches_that_do_not_cover_the_picture_are_refused(size):
    with pytest.raises(InputError, match="do not cover"):
        PatchGrid.of(8, 12, size)


def test_the_highest_score_comes_first_and_ties_keep_the_reading_order():
    assert order_of(torch.tensor([[1.0, 5.0, 1.0, 7.0]])).tolist() == [[2, 1, 3, 0]]


@pytest.mark.parametrize(("patches", "steps"), [(196, 20), (9, 4), (16, 16), (5, 2), (16, 20)])
def test_removal_goes_from_none_to_all_in_even_steps(patches, steps):
    counts = removal_counts(patches, steps)
    assert len(counts) == steps + 1
    assert counts[0] == 0
    assert counts[-1] == patches
    assert (counts.diff() >= (steps <= patches)).all()
    assert (counts - torch.linspace(0, patches, steps + 1)).abs().max() <= 0.5


@pytest.mark.parametrize("steps", [0, 1])
def test_steps_that_remove_nothing_are_refused(steps):
    with pytest.raises(InputError, match="give 2 or more"):
        removal_counts(16, steps)


def test_the_patch_size_is_the_models_own_or_sixteen(vim, registered_vim):
    assert patch_size_of(vim) == 8
    assert patch_size_of(registered_vim) == 16
    assert patch_size_of(torch.nn.Linear(1, 1)) == 16


@pytest.mark.parametrize("rule", ["zero", "gamma(1)", "flat", "box"])
def test_the_rule_of_the_first_layer_moves_no_relevance_between_patches(rule):
    model, x, target = small_vim(), images(3), torch.tensor([0, 1, 2])
    grid = PatchGrid.of(32, 32, 8)
    maps = [CompositeMethod(c)(model, x, target) for c in ({}, {"patch_embedding": rule})]
    assert not torch.allclose(*maps, rtol=0.01)
    scores = [grid.scores(found) for found in maps]
    assert relative_error(scores[1], scores[0]) < 1e-6
