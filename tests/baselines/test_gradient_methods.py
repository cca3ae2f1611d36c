"""Gradients, smoothed and integrated, and occlusion, where the answer is known."""

import pytest
import torch
from helpers import images, relative_error, small_vim
from linear_models import LinearClassifier, SmoothClassifier

import vimlrp
from vimlrp.baselines import METHODS

TARGET = torch.tensor([1, 3])
X = images(2, 8)


@pytest.fixture
def linear():
    return LinearClassifier()


@pytest.mark.parametrize("name", ["gradient", "smoothgrad"])
def test_on_a_linear_model_a_slope_is_the_weight(linear, name):
    expected = linear.slopes[TARGET].sum(1)
    assert relative_error(METHODS[name](linear, X, TARGET), expected) < 1e-6


def test_on_a_linear_model_saliency_is_the_largest_weight_of_a_pixel(linear):
    expected = linear.slopes[TARGET].abs().max(1).values
    assert relative_error(METHODS["saliency"](linear, X, TARGET), expected) < 1e-6


@pytest.mark.parametrize("name", ["gradient_x_input", "integrated_gradients", "smoothgrad_x_input"])
def test_on_a_linear_model_a_share_is_weight_times_input(linear, name):
    expected = (linear.slopes[TARGET] * X).sum(1)
    assert relative_error(METHODS[name](linear, X, TARGET), expected) < 1e-6


def test_on_a_linear_model_a_window_takes_its_shares_with_it(linear):
    shares = (linear.slopes[TARGET] * X).sum(1)  # (B, 8, 8)
    windows = shares.unflatten(2, (4, 2)).unflatten(1, (2, 4)).sum((2, 4))  # 4 x 2 pixels
    expected = windows.repeat_interleave(4, 1).repeat_interleave(2, 2)
    maps = METHODS["occlusion"].function(linear, X, TARGET, window=(4, 2))
    assert relative_error(maps, expected) < 1e-6


def test_overlapping_windows_are_averaged(linear):
    shares = (linear.slopes[TARGET] * X).sum(1)
    total, count = torch.zeros_like(shares), torch.zeros_like(shares)
    for top in range(0, 7, 1):
        for left in range(0, 7, 2):
            place = (slice(None), slice(top, top + 2), slice(left, left + 3))
            total[place] += shares[place].sum((1, 2), keepdim=True)
            count[place] += 1
    maps = METHODS["occlusion"].function(linear, X, TARGET, window=(2, 3), stride=(1, 2))
    assert relative_error(maps, total / count) < 1e-6


def test_integrated_gradients_sum_to_the_difference_of_the_logits():
    model = SmoothClassifier()
    maps = METHODS["integrated_gradients"].function(model, X, TARGET, steps=60)
    with torch.no_grad():
        difference = (model(X) - model(0 * X)).gather(1, TARGET[:, None])[:, 0]
    assert relative_error(maps.sum((1, 2)), difference) < 1e-6


def test_integrated_gradients_of_an_elementwise_model_are_its_values():
    model = SmoothClassifier()
    expected = (model.slopes[TARGET] * torch.tanh(X)).sum(1)
    maps = METHODS["integrated_gradients"].function(model, X, TARGET, steps=60)
    assert relative_error(maps, expected) < 1e-6


def test_the_gradient_is_that_of_finite_differences():
    model, x, step = small_vim(), images(1), 1e-6
    maps = METHODS["gradient"].function(model, x, TARGET[:1])
    for row, column in ((0, 0), (13, 21), (31, 30)):
        shift = torch.zeros_like(x)
        shift[..., row, column] = step
        with torch.no_grad():
            difference = model(x + shift)[0, 1] - model(x - shift)[0, 1]
        assert abs(float(difference / (2 * step)) - maps[0, row, column]) < 1e-6 * maps.abs().max()


def test_gradient_x_input_is_the_composite_of_that_name():
    model, x = small_vim(), images()
    maps = METHODS["gradient_x_input"](model, x, TARGET)
    relevance = vimlrp.explain(model, x, target=TARGET, composite="gradient_x_input")
    assert relative_error(maps, relevance.pixels) < 1e-5


def test_smoothgrad_is_the_mean_over_noise_of_the_size_asked_for():
    model, x = SmoothClassifier(), X[:1]
    spread = 0.15 * float(x.max() - x.min())
    noisy = x + spread * torch.randn(40_000, *x.shape[1:], generator=torch.Generator())
    expected = (model.slopes[TARGET[:1]] * (1 - torch.tanh(noisy) ** 2).mean(0)).sum(1)
    maps = METHODS["smoothgrad"].function(model, x, TARGET[:1], samples=4_000)
    assert relative_error(maps, expected) < 0.02


def test_smoothgrad_draws_from_its_own_numbers_and_leaves_the_global_ones():
    model = SmoothClassifier()
    first = METHODS["smoothgrad"](model, X, TARGET)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(METHODS["smoothgrad"](model, X, TARGET), first)
    assert torch.equal(torch.get_rng_state(), before)
    other = METHODS["smoothgrad"].function(model, X, TARGET, seed=1).float()
    assert relative_error(other, first) > 1e-4


def test_an_image_of_one_colour_is_smoothed_too(linear):
    maps = METHODS["smoothgrad"](linear, torch.ones_like(X), TARGET)
    assert relative_error(maps, linear.slopes[TARGET].sum(1)) < 1e-6


def test_batches_larger_than_a_chunk_are_cut_and_joined(linear):
    x, target = images(70, 8), torch.arange(70) % 4
    shares = (linear.slopes[target] * x).sum(1)
    assert relative_error(METHODS["integrated_gradients"](linear, x, target), shares) < 1e-6
    maps = METHODS["occlusion"].function(linear, x, target, window=(1, 1))
    assert relative_error(maps, shares) < 1e-6


@pytest.mark.parametrize("name", vimlrp.COMPOSITES)
def test_a_composite_gives_the_pixels_that_explain_gives(name):
    model, x = small_vim(global_pool="avg"), images()
    expected = vimlrp.explain(model, x, target=TARGET, composite=name).pixels
    assert relative_error(METHODS[name](model, x, TARGET), expected) < 1e-5
