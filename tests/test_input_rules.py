"""Flat and box rule of the first layer: dense relevance sums over pixels, in float64."""

import pytest
import torch
from helpers import OnePatch, images, random, relative_error, small_vim

import vimlrp
from vimlrp.errors import CompositeError
from vimlrp.input_rules import Box, Flat
from vimlrp.sites import PatchEmbedding

GEOMETRIES = {
    "touching": (4, 4, (8, 12)),
    "overlapping": (4, 2, (8, 6)),
    "border left over": (4, 3, (9, 11)),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(params=GEOMETRIES)
def case(request):
    """A patch embedding, images within the bounds of photos, and a gradient at its content."""
    kernel, stride, size = GEOMETRIES[request.param]
    site = PatchEmbedding(3, 5, kernel, stride).double()
    generator = torch.Generator().manual_seed(1)
    colours = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    x = (colours - mean) / std
    with torch.no_grad():
        content = site.linear(x, site.weight)
    return site, x, content, random(*content.shape, seed=2)


def explicit(site, x, relevance, share):
    """Spread each output's relevance over its window by `share(window, weight)`."""
    kernel, out = site.weight.shape[-1], torch.zeros_like(x)
    for sample in range(len(x)):
        for d, i, j in torch.cartesian_prod(*map(torch.arange, relevance.shape[1:])).tolist():
            rows = slice(i * site.stride, i * site.stride + kernel)
            columns = slice(j * site.stride, j * site.stride + kernel)
            parts = share(x[sample, :, rows, columns], site.weight[d].detach())
            out[sample, :, rows, columns] += relevance[sample, d, i, j] * parts
    return out


def test_flat_rule_gives_every_value_of_a_window_the_same(case):
    site, x, content, gradient = case
    expected = explicit(
        site, x, content * gradient, lambda window, _: torch.full_like(window, 1 / window.numel())
    )
    assert relative_error(Flat().relevance(site, x, gradient), expected) < 1e-12


def box_share(low, high):
    low, high = (torch.tensor(bound, dtype=torch.float64).view(3, 1, 1) for bound in (low, high))

    def share(window, weight):
        parts = window * weight - low * weight.clamp(min=0) - high * weight.clamp(max=0)
        return parts / parts.sum()

    return share


def test_box_rule_measures_from_the_bounds_of_a_photo(case):
    site, x, content, gradient = case
    low = [-m / s for m, s in zip(MEAN, STD, strict=True)]
    high = [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    expected = explicit(site, x, content * gradient, box_share(low, high))
    assert relative_error(Box().relevance(site, x, gradient), expected) < 1e-12


def test_box_rule_takes_bounds(case):
    site, x, content, gradient = case
    low, high = (-3.0, -4.0, -5.0), (3.0, 4.0, 5.0)
    expected = explicit(site, x, content * gradient, box_share(low, high))
    assert relative_error(Box(low, high).relevance(site, x, gradient), expected) < 1e-12


@pytest.mark.parametrize("rule", [Flat(), Box()], ids=["flat", "box"])
def test_relevance_of_the_content_is_conserved(case, rule):
    site, x, content, gradient = case
    passed = rule.relevance(site, x, gradient).flatten(1).sum(1)
    assert relative_error(passed, (content * gradient).flatten(1).sum(1)) < 1e-12


@pytest.mark.parametrize("rule", [Flat(), Box()], ids=["flat", "box"])
def test_positive_relevance_stays_positive(case, rule):
    site, x, content, _ = case
    assert rule.relevance(site, x, 1 / content).min() >= 0


def test_box_rule_of_values_at_their_bounds_is_finite():
    site = PatchEmbedding(3, 2, 2, 2).double()
    with torch.no_grad():
        site.weight.fill_(1.0)
    x = torch.full((1, 3, 2, 2), -1.0, dtype=torch.float64)
    rule = Box((-1.0,) * 3, (1.0,) * 3)
    assert rule.relevance(site, x, torch.ones(1, 2, 1, 1).double()).isfinite().all()


@pytest.mark.parametrize(
    ("low", "high"), [((0.0,), (1.0, 1.0)), ((0.0,), (0.0,)), ((0.0, 2.0), (1.0, 1.0)), (0.0, 1.0)]
)
def test_bounds_that_are_none_are_refused(low, high):
    with pytest.raises(CompositeError, match="low below high"):
        Box(low, high)


@pytest.mark.parametrize("rule", ["flat", "box", "gamma", "zero", "epsilon"])
def test_rules_of_pixels_do_not_move_tokens_or_patches(vim, rule):
    expected = vimlrp.explain(vim, images())
    ours = vimlrp.explain(vim, images(), composite={"patch_embedding": rule})
    assert torch.equal(ours.tokens, expected.tokens)
    assert torch.equal(ours.patches, expected.patches)
    assert torch.equal(ours.logits, expected.logits)


@pytest.mark.parametrize("rule", ["flat", "box"])
@pytest.mark.parametrize("kind", ["projection", "convolution", "head"])
def test_rules_of_pixels_fit_the_first_layer_alone(vim, rule, kind):
    with pytest.raises(vimlrp.VimLRPError, match="does not fit"):
        vimlrp.explain(vim, images(), composite={kind: rule})


def test_flat_map_of_one_patch_is_flat():
    pixels = vimlrp.explain(OnePatch(), images(1, 6), composite={"patch_embedding": "flat"}).pixels
    assert relative_error(pixels, pixels.mean().expand_as(pixels)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["flat", "box", "gamma", "zero"])
def test_rules_of_pixels_hold_in_half_precision(rule, dtype):
    model = OnePatch(dtype=torch.float32).to(dtype)
    x = images(2, 6, dtype=torch.float32).clamp(-1.8, 2.2).to(dtype)
    composite = {"patch_embedding": rule}
    half = vimlrp.explain(model, x, target=0, composite=composite).pixels
    full = vimlrp.explain(model.float(), x.float(), target=0, composite=composite).pixels
    assert half.dtype == torch.float32
    assert relative_error(half, full) < 3e-2


def test_overlapping_patches_add_up():
    model = small_vim(stride=4, img_size=24)
    relevance = vimlrp.explain(model, images(1, 24), composite={"patch_embedding": "flat"})
    # A corner pixel lies in one patch alone.
    corner = float(relevance.patches[0, 0, 0]) / 64
    assert float(relevance.pixels[0, 0, 0]) == pytest.approx(corner, rel=1e-10)
