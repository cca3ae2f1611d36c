"""Models of timm's families: the same logits, and explanations that add up."""

import pytest
import torch
from helpers import images, relative_error
from timm_models import FAMILIES, VARIANTS, family, vit

import vimlrp
from vimlrp.sites import Site


def assert_adds_up(model, x):
    relevance = vimlrp.explain(model, x)
    account = relevance.account
    assert (account.residue.abs() / account.target.abs()).max() < 1e-9
    assert relative_error(relevance.patches.flatten(1).sum(1), account.parts["pixels"]) < 1e-9
    assert relative_error(relevance.logits, model(x)) < 1e-9
    assert account.parts["pixels"].abs().min() > 0
    return relevance


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_original(name):
    model, size = family(name)
    x = images(2, size)
    with torch.no_grad():
        assert relative_error(vimlrp.wrap(model)(x), model(x)) < 1e-9
        model.float()
        assert relative_error(vimlrp.wrap(model)(x.float()), model(x.float())) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_an_explanation_adds_up(name):
    model, size = family(name)
    relevance = assert_adds_up(model, images(2, size))
    assert relevance.pixels.shape == (2, size, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_is_conserved_at_every_cut(name):
    model, size = family(name)
    conservation = vimlrp.check_conservation(model, images(3, size), tolerance=1e-9)
    assert conservation.holds, conservation
    assert not conservation.broken
    assert len(conservation.cuts) >= 2


@pytest.mark.parametrize("composite", ["attnlrp_attention", "gate_to_signal", "epsilon"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_other_composites_that_conserve_add_up(name, composite):
    model, size = family(name)
    account = vimlrp.explain(model, images(2, size), composite=composite).account
    assert (account.residue.abs() / account.target.abs()).max() < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_a_vit_add_up(variant):
    model = vit(**VARIANTS[variant])
    relevance = assert_adds_up(model, images(2, 24))
    assert relevance.tokens.shape == (2, 9 + model.num_prefix_tokens)
    parts = relevance.account.parts
    assert ("position embedding" in parts) == (variant != "no position")
    tokens = sum(parts[k] for k in parts if "embedding" in k or k in ("pixels", "class token"))
    if variant != "norm before":  # whose norm lies between the patches and the sum
        assert relative_error(relevance.tokens.sum(1), tokens) < 1e-9


def test_a_vit_for_any_size_is_explained_at_another():
    model = vit(dynamic_img_size=True)
    x = images(2, 40)[..., :32]
    relevance = assert_adds_up(model, x)
    assert relevance.patches.shape == (2, 5, 4)


def test_a_sample_is_explained_alone_as_in_a_batch():
    model, size = family("swin_tiny_patch4_window7_224")
    x = images(3, size)
    together = vimlrp.explain(model, x)
    for i in range(3):
        alone = vimlrp.explain(model, x[i : i + 1])
        assert relative_error(alone.pixels[0], together.pixels[i]) < 1e-9
        for kind, share in alone.account.parts.items():
            assert share.shape == (1,)
            assert abs(share[0] - together.account.parts[kind][i]) < 1e-9 * abs(
                alone.account.target[0]
            )


KINDS = {
    "test_resnet": {"patch_embedding", "convolution", "batch_norm", "activation", "head"},
    "seresnet33ts": {"excitation", "batch_norm"},
    "resnet18": {"pooling", "residual", "projection"},
    "test_convnext2": {"normalisation", "pooling"},
    "test_vit": {"attention", "normalisation", "projection", "residual"},
    "swin_tiny_patch4_window7_224": {"attention", "normalisation"},
    "test_mambaout": {"gate", "normalisation"},
    "efficientvim_m1": {"scan", "gate", "excitation"},
}


@pytest.mark.parametrize("name", KINDS)
def test_sites_are_of_the_expected_kinds(name):
    wrapped = vimlrp.wrap(family(name)[0])
    sites = [module for module in wrapped.modules() if isinstance(module, Site)]
    assert {site.kind for site in sites} >= KINDS[name]
    assert [site.kind for site in sites].count("patch_embedding") == 1


@pytest.mark.parametrize(
    ("name", "cells"),
    [("resnet18", 2), ("test_vit", 1), ("test_mambaout", 2), ("efficientvim_m1", 8)],
)
def test_patches_are_cells_of_the_first_map(name, cells):
    model, size = family(name)
    first = next(
        m
        for m in vimlrp.wrap(model).modules()
        if isinstance(m, Site) and m.kind == "patch_embedding"
    )
    assert first.cells == cells
    patches = vimlrp.explain(model, images(1, size)).patches
    assert patches.shape[1] == -(-size // (cells * first.stride[0]))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "swin_tiny_patch4_window7_224"])
def test_layers_are_recorded_by_the_models_own_names(name):
    model, size = family(name)
    layer = vimlrp.wrap(model).complete_cuts()[-1]
    relevance = vimlrp.explain(model, images(2, size), record=[layer])
    assert relevance.recorded[layer].relevance.shape == relevance.recorded[layer].activation.shape


def test_a_rule_is_changed_by_the_models_own_names():
    model, size = family("test_resnet")
    x = images(2, size)
    expected = vimlrp.explain(model, x).pixels
    changed = vimlrp.explain(model, x, composite={"layer2.*.conv2": "zero"})
    assert relative_error(changed.pixels, expected) > 1e-3
    assert (changed.account.residue.abs() / changed.account.target.abs()).max() < 1e-9
