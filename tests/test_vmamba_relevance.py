"""Explanations of VMamba: relevance sums to the target, cut by cut, and the model is left alone."""

import copy

import pytest
import timm
import torch
from helpers import enliven, images, relative_error, seeded
from small_vmamba import remove_biases, small_vmamba

import vimlrp
from vimlrp.errors import CompositeError, UnsupportedModelError

LAYOUTS = {
    "v2": {},
    "v0": {"generation": "v0"},
    "v2 not square": {"img_size": (24, 40)},
    "v0 not square": {"img_size": (40, 24), "generation": "v0"},
    "v2 odd maps": {"img_size": (33, 22)},
    "v0 odd maps, border left over": {"img_size": (30, 21), "generation": "v0"},
    "v2 with a gate's width": {"ssm_ratio": 2.0, "d_state": 3},
    "v0 with an MLP": {"generation": "v0", "mlp_ratio": 2.0},
    "four stages": {"depths": (1, 1, 1, 1)},
}
GENERATIONS = ["v2", "v0"]


def picture(layout, count=2):
    size = LAYOUTS[layout].get("img_size", 32)
    height, width = size if isinstance(size, tuple) else (size, size)
    return images(count, 40, seed=2)[:, :, :height, :width]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cut_sums_to_the_target_without_biases(layout):
    model = small_vmamba(biases=False, **LAYOUTS[layout])
    conservation = vimlrp.check_conservation(model, picture(layout), tolerance=1e-9)
    assert conservation.holds
    assert conservation.broken == ()
    for cut in conservation.cuts:
        assert relative_error(cut.relevance, conservation.target) < 1e-9, cut.name
    relevance = vimlrp.explain(model, picture(layout))
    for maps in (relevance.pixels, relevance.patches):
        assert relative_error(maps.sum((1, 2)), conservation.target) < 1e-9


@pytest.mark.parametrize("generation", GENERATIONS)
def test_cuts_run_from_the_first_convolution_to_the_output(generation):
    model = small_vmamba(generation=generation)
    names = [cut.name for cut in vimlrp.check_conservation(model, images()).cuts]
    stream = ["layers.0.blocks.0", "layers.0.downsample", "layers.1.blocks.0", "layers.1.blocks.1"]
    head = ["classifier.norm", "classifier.head"]
    assert names == ["patch_embed.0", "patch_embed", *stream, *head]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_biases_only_rounding_is_unaccounted_for(layout):
    model, x = small_vmamba(**LAYOUTS[layout]), picture(layout)
    conservation = vimlrp.check_conservation(model, x, tolerance=1e-9)
    assert conservation.holds
    assert conservation.broken == ()
    relevance = vimlrp.explain(model, x)
    assert relevance.account.residue.abs().max() < 1e-12
    kinds = {"convolution", "head", "normalisation", "patch_embedding"}
    if model.layers[0].blocks[0].mlp is not None:
        kinds.add("projection")
    assert set(relevance.account.parts) == {"pixels", *(f"bias: {kind}" for kind in kinds)}
    assert all(part.abs().max() > 1e-6 for part in relevance.account.parts.values())
    assert relevance.tokens is None


@pytest.mark.parametrize("name", ["test_vmamba", "test_vmamba_v0"])
def test_registered_models_conserve_in_float32(name):
    with seeded():
        model = timm.create_model(name, num_classes=10).eval()
    enliven(model)
    x = images(4, 64, dtype=torch.float32)
    account = vimlrp.explain(model, x).account
    assert (account.residue / account.target).abs().max() < 1e-4
    remove_biases(model)
    for sample in x:
        conservation = vimlrp.check_conservation(model, sample, tolerance=1e-4)
        assert conservation.holds, str(conservation)


@pytest.mark.parametrize("patch_rule", ["zero", "gamma", "flat", "box"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_and_patches_have_one_sum(layout, patch_rule):
    model, x = small_vmamba(**LAYOUTS[layout]), picture(layout)
    relevance = vimlrp.explain(model, x, composite={"patch_embedding": patch_rule})
    pixels, patches = (m.sum((1, 2)) for m in (relevance.pixels, relevance.patches))
    assert relative_error(pixels, patches) < 1e-10
    assert relative_error(relevance.account.parts["pixels"], pixels) < 1e-14
    assert relevance.account.residue.abs().max() < 1e-11


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_lie_on_the_first_grid(layout):
    model, x = small_vmamba(**LAYOUTS[layout]), picture(layout)
    (first, *_) = model.forward_intermediates(x, intermediates_only=True)
    assert vimlrp.explain(model, x).patches.shape == (2, *first.shape[2:])


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_local_change_moves_relevance_where_it_is(generation):
    """Rows and columns of the map are those of the picture."""
    model = small_vmamba(generation=generation, depths=(1,), img_size=(32, 48))
    x = torch.zeros(1, 3, 32, 48, dtype=torch.float64)
    x[:, :, 8:12, 36:40] = images(1, 4)  # one patch, in row 2 and column 9
    relevance = vimlrp.explain(model, x)
    assert (relevance.pixels != 0).nonzero().min(0).values.tolist() == [0, 8, 36]
    assert (relevance.pixels != 0).nonzero().max(0).values.tolist() == [0, 11, 39]
    assert relevance.patches.abs().sum((1, 2)) > 0
    assert relevance.patches[0, 2, 9].abs() > 0
    around = relevance.patches.clone()
    around[0, 1:4, 8:11] = 0
    assert around.abs().max() == 0


ABLATIONS = {
    "without_activation_rule": "activation",
    "without_norm_rule": "normalisation",
    "without_scan_rule": "scan",
    "without_gate_rule": "gate",
}


@pytest.mark.parametrize("composite", ABLATIONS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_dropping_one_rule_breaks_conservation_at_its_sites_alone(generation, composite):
    model = small_vmamba(biases=False, generation=generation)
    conservation = vimlrp.check_conservation(model, images(), composite=composite, tolerance=1e-9)
    if (generation, composite) == ("v2", "without_gate_rule"):
        assert conservation.holds  # there is no gate
        return
    assert not conservation.holds
    kinds = {site.kind for site in conservation.broken}
    # Without the scan's rule relevance also runs through the step size: a softplus, and biases.
    allowed = {"scan", "step"} if composite == "without_scan_rule" else {ABLATIONS[composite]}
    assert ABLATIONS[composite] in kinds
    assert kinds <= allowed


@pytest.mark.parametrize("composite", ["epsilon", "gamma_projections", "without_gamma_rule"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_other_rules_of_linear_layers_conserve_too(generation, composite):
    model, x = small_vmamba(generation=generation), images()
    assert vimlrp.check_conservation(model, x, composite=composite, tolerance=1e-9).holds
    assert vimlrp.explain(model, x, composite=composite).account.residue.abs().max() < 1e-11


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_plain_gradient_is_that_of_autograd(generation):
    model, x = small_vmamba(generation=generation), images()
    ours = vimlrp.explain(model, x, target=1, composite="gradient_x_input", record=["patch_embed"])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    assert relative_error(ours.pixels, (leaf * gradient).sum(1)) < 1e-10
    plain = vimlrp.explain(model, x, target=1)
    assert relative_error(ours.pixels, plain.pixels) > 1e-2


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_site_that_relevance_passes_above_the_first_cut_is_weighed(generation):
    model = small_vmamba(biases=False, generation=generation)
    names = {site.name for site in vimlrp.check_conservation(model, images()).sites}
    mixer = {"in_proj", "conv2d", "act", "scan", "out_norm", "out_proj"}
    block, stem = {"norm", "residual"}, {"patch_embed.2"}
    if generation == "v0":
        mixer |= {"gate", "gate_act"}
        down = {"norm", "reduction"}
    else:
        block |= {"norm2", "residual2", "mlp.fc1", "mlp.act", "mlp.fc2"}
        stem |= {"patch_embed.4", "patch_embed.5", "patch_embed.7"}
        down = {"1", "3"}
    block |= {f"op.{name}" for name in mixer}
    blocks = ["layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"]
    expected = stem | {f"{b}.{name}" for b in blocks for name in block}
    expected |= {f"layers.0.downsample.{name}" for name in down}
    assert names == expected | {"classifier.norm", "classifier.head"}


def test_rules_are_chosen_by_the_names_of_modules():
    model, x = small_vmamba(), images()
    ours = vimlrp.explain(model, x, composite={"layers.*.op.conv2d": "zero"}).pixels
    assert relative_error(ours, vimlrp.explain(model, x).pixels) > 1e-3
    with pytest.raises(CompositeError, match="neither a kind of site"):
        vimlrp.explain(model, x, composite={"layers.*.op.x_proj": "zero"})


def test_the_guard_looks_into_vmamba():
    model = small_vmamba()
    model.layers[0].blocks[0].mlp.act = torch.nn.GELU()
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.blocks\.0\.mlp\.act .* gelu"):
        vimlrp.explain(model, images())


def test_a_direction_in_a_map_is_explained():
    model, x = small_vmamba(), images()
    direction = torch.zeros(16, dtype=torch.float64)
    direction[3] = 1.0
    relevance = vimlrp.explain(model, x, start=("layers.1.blocks.0", direction))
    with torch.no_grad():
        stem = model.layers[0](model.embed(x))
        expected = model.layers[1].blocks[0](stem)[..., 3].sum((1, 2))
    assert relative_error(relevance.account.target, expected) < 1e-12
    assert relevance.account.residue.abs().max() < 1e-11


@pytest.mark.parametrize("generation", GENERATIONS)
def test_nothing_is_left_behind(generation):
    model = small_vmamba(generation=generation, drop_rate=0.5, drop_path_rate=0.5)
    expected = vimlrp.explain(model, images()).pixels
    model.train()
    model.layers[0].eval()
    flags = {name: m.training for name, m in model.named_modules()}
    attributes = {name: sorted(vars(m)) for name, m in model.named_modules()}
    weights = copy.deepcopy(model.state_dict())
    ours = vimlrp.explain(model, images(), record=["layers.0"])
    vimlrp.check_conservation(model, images())
    with pytest.raises(vimlrp.VimLRPError):
        vimlrp.explain(model, images(), target=99)
    assert torch.equal(ours.pixels, expected)
    assert {name: m.training for name, m in model.named_modules()} == flags
    assert {name: sorted(vars(m)) for name, m in model.named_modules()} == attributes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_users_grad_mode_does_not_matter(generation, mode):
    model = small_vmamba(generation=generation)
    with mode():
        x = images(1, 20)  # a size whose routes are made here first
        ours = vimlrp.explain(model, x).pixels
    assert torch.equal(ours, vimlrp.explain(model, images(1, 20)).pixels)


@pytest.mark.parametrize("cast", [True, False], ids=["autocast", "bfloat16"])
@pytest.mark.parametrize("name", ["test_vmamba", "test_vmamba_v0"])
def test_an_explanation_in_lower_precision_adds_up(name, cast):
    with seeded():
        model = timm.create_model(name, num_classes=10).eval()
    enliven(model)
    x = images(2, 64, dtype=torch.float32)
    exact = model(x)
    if not cast:
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
        ours = vimlrp.explain(model, x)
        plain = model(x)
    assert ours.pixels.dtype == torch.float32
    assert (ours.account.residue / ours.account.target).abs().max() < 2e-2
    # Rounding grows through these weights; rules must not add to what a plain pass loses.
    assert relative_error(ours.logits, exact) < 2 * relative_error(plain, exact)


def test_a_photo_goes_in_at_the_models_size(tmp_path):
    from PIL import Image

    with seeded():
        model = timm.create_model("test_vmamba", num_classes=10).eval()
    path = tmp_path / "photo.png"
    Image.effect_noise((90, 70), 60).convert("RGB").save(path)
    relevance = vimlrp.explain(model, path)
    assert relevance.pixels.shape == (1, 64, 64)
    assert relevance.patches.shape == (1, 16, 16)
    assert relevance.overlay()[0].shape == relevance.overlay(of="patches")[0].shape == (70, 90, 3)
    saved = relevance.save(tmp_path / "out")
    assert torch.equal(vimlrp.Relevance.load(saved).patches, relevance.patches)
