"""MambaVision is explained down to pixels, conserves at every cut, and is left as it was."""

import copy

import pytest
import timm
import torch
from helpers import random, relative_error, seeded
from small_mambavision import balance, pictures, small_mambavision

import vimlrp
from vimlrp.errors import UnsupportedModelError, VimLRPError
from vimlrp.sites import BatchNorm2d

SIZES = {
    "square": (64, 64),
    "not square": (64, 32),
    "half filled windows": (70, 45),
    "tiny": (9, 5),
}
CONSERVING = (
    "mambalrp",
    "without_gamma_rule",
    "attnlrp_attention",
    "epsilon",
    "gamma_projections",
    "gate_to_signal",
)


@pytest.fixture(scope="module")
def model():
    return small_mambavision()


@pytest.fixture(scope="module")
def shift_free():
    """The same without biases but that of the step, and without running means."""
    return small_mambavision(biases=False)


@pytest.mark.parametrize("composite", CONSERVING)
@pytest.mark.parametrize("size", SIZES)
def test_every_cut_sums_to_the_target_without_shifts(shift_free, size, composite):
    x = pictures(2, *SIZES[size])
    conservation = vimlrp.check_conservation(shift_free, x, composite=composite, tolerance=1e-9)
    assert conservation.holds, str(conservation)
    assert conservation.broken == ()
    absorbs = composite in ("attnlrp_attention", "epsilon")
    for cut in conservation.cuts:
        assert absorbs or cut.absorbed.abs().max() < 1e-15
        assert relative_error(cut.relevance + cut.absorbed, conservation.target) < 1e-9, cut.name
    relevance = vimlrp.explain(shift_free, x, composite={"base": composite})
    if not absorbs:
        assert relative_error(relevance.pixels.flatten(1).sum(1), relevance.account.target) < 1e-9


@pytest.mark.parametrize("composite", CONSERVING)
@pytest.mark.parametrize("size", SIZES)
def test_with_shifts_only_rounding_is_unaccounted_for(model, size, composite):
    x = pictures(2, *SIZES[size])
    conservation = vimlrp.check_conservation(model, x, composite=composite, tolerance=1e-9)
    assert conservation.holds, str(conservation)
    account = vimlrp.explain(model, x, composite=composite).account
    assert (account.residue / account.target).abs().max() < 1e-11
    kinds = {"batch_norm", "convolution", "normalisation", "projection", "head"}
    assert {f"bias: {kind}" for kind in kinds} <= set(account.parts)
    assert (account.parts["bias: batch_norm"] / account.target).abs().min() > 1e-3
    assert ("softmax" in account.parts) == (composite == "attnlrp_attention")


def test_cuts_run_from_the_pixels_to_the_logits(model):
    names = [cut.name for cut in vimlrp.check_conservation(model, pictures(1)).cuts]
    assert names == [
        "patch_embed.conv_down.0",
        "patch_embed",
        "levels.0.blocks.0",
        "levels.0",
        "levels.1.blocks.0",
        "levels.1",
        "levels.2.blocks.0",
        "levels.2.blocks.1",
        "levels.2.blocks.2",
        "levels.2",
        "levels.3.blocks.0",
        "levels.3.blocks.1",
        "levels.3",
        "norm",
        "head",
    ]


ABLATIONS = {
    "without_activation_rule": {"activation"},
    "without_norm_rule": {"normalisation"},
    "without_attention_rule": {"attention"},
    "without_scan_rule": {"scan", "step"},  # a softplus lies on the scan's other paths
}


@pytest.mark.parametrize("composite", ABLATIONS)
def test_dropping_one_rule_breaks_conservation_at_its_sites_alone(shift_free, composite):
    conservation = vimlrp.check_conservation(
        shift_free, pictures(2, 70, 45), composite=composite, tolerance=1e-9
    )
    assert not conservation.holds
    assert {site.kind for site in conservation.broken} == ABLATIONS[composite]


@pytest.mark.parametrize("rule", ["gradient", "attnlrp", "constant_attention"])
def test_one_attention_can_have_a_rule_of_its_own(shift_free, rule):
    name = "levels.2.blocks.2.mixer.attention"
    conservation = vimlrp.check_conservation(
        shift_free, pictures(2, 70, 45), composite={name: rule}, tolerance=1e-9
    )
    broken = [site.name for site in conservation.broken]
    assert broken == ([name] if rule == "gradient" else [])


@pytest.mark.parametrize("rule", ["zero", "gamma", "flat", "box", "epsilon(0.1)"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_patches_have_one_sum(model, size, rule):
    height, width = SIZES[size]
    relevance = vimlrp.explain(
        model, pictures(2, height, width), composite={"patch_embedding": rule}
    )
    assert relevance.pixels.shape == (2, height, width)
    assert relevance.patches.shape == (2, -(-height // 4), -(-width // 4))
    assert relevance.tokens is None
    pixels, patches = (m.flatten(1).sum(1) for m in (relevance.pixels, relevance.patches))
    absorbed = relevance.account.parts.get("stabiliser", 0)
    assert relative_error(pixels + absorbed, patches) < 1e-10
    assert (relevance.account.residue / relevance.account.target).abs().max() < 1e-10


def test_a_linear_path_to_the_head_is_the_gradient(shift_free):
    """Without activations, mixers and MLPs what is left is linear, and so is its relevance."""
    linear = copy.deepcopy(shift_free)
    for level in linear.levels[2:]:
        for block in level.blocks:
            torch.nn.init.zeros_(block.gamma_1)
            torch.nn.init.zeros_(block.gamma_2)
    for i in (2, 5):
        linear.patch_embed.conv_down[i] = torch.nn.Identity()
    for level in linear.levels[:2]:
        level.blocks[0].act = torch.nn.Identity()
    x = pictures(2, 70, 45).requires_grad_()
    (gradient,) = torch.autograd.grad(linear(x)[:, 2].sum(), x)
    composite = {"base": "without_gamma_rule", "patch_embedding": "zero"}
    relevance = vimlrp.explain(linear, x.detach(), target=2, composite=composite)
    assert relative_error(relevance.pixels, (x.detach() * gradient).sum(1)) < 1e-12


def test_every_site_above_the_first_cut_is_weighed(model):
    conservation = vimlrp.check_conservation(model, pictures(2, 70, 45))
    names = {site.name for site in conservation.sites}
    mamba = {"in_proj", "conv1d_x", "conv1d_z", "act_x", "act_z", "scan", "out_proj"}
    attention = {"qkv", "attention", "proj"}
    around = {"norm1", "norm2", "residual1", "residual2", "mlp.fc1", "mlp.act", "mlp.fc2"}
    conv = {"conv1", "norm1", "act", "conv2", "norm2", "residual"}
    expected = {f"patch_embed.conv_down.{i}" for i in range(1, 6)} | {"norm", "head"}
    for i in range(3):
        expected.add(f"levels.{i}.downsample.reduction.0")
    for i in range(2):
        expected |= {f"levels.{i}.blocks.0.{name}" for name in conv}
    for i, kinds in ((2, [mamba, mamba, attention]), (3, [mamba, attention])):
        for j, mixer in enumerate(kinds):
            parts = around | {f"mixer.{name}" for name in mixer}
            expected |= {f"levels.{i}.blocks.{j}.{part}" for part in parts}
    assert names == expected


@pytest.mark.parametrize("layer", ["patch_embed", "levels.1", "levels.2.blocks.1", "norm"])
def test_layers_are_recorded_and_started_from(model, layer):
    x = pictures(2, 70, 45)
    relevance = vimlrp.explain(model, x, target=1, record=[layer])
    record = relevance.recorded[layer]
    absorbed = next(
        cut for cut in vimlrp.check_conservation(model, x, target=1).cuts if cut.name == layer
    ).absorbed
    assert record.activation.shape == record.relevance.shape
    assert (
        relative_error(record.relevance.flatten(1).sum(1) + absorbed, relevance.account.target)
        < 1e-10
    )
    direction = random(record.activation.shape[-1])
    started = vimlrp.explain(model, x, start=(layer, direction))
    expected = (record.activation * direction).flatten(1).sum(1)
    assert relative_error(started.account.target, expected) < 1e-12
    assert (started.account.residue / expected).abs().max() < 1e-10


def test_samples_are_explained_apart(model):
    x = pictures(3, 70, 45)
    together = vimlrp.explain(model, x, target=1)
    for i in range(3):
        alone = vimlrp.explain(model, x[i : i + 1], target=1)
        assert relative_error(alone.pixels[0], together.pixels[i]) < 1e-11
        for kind, part in together.account.parts.items():
            assert float(part[i]) == pytest.approx(float(alone.account.parts[kind]), abs=1e-10)


@pytest.mark.parametrize("composite", ["mambalrp", "attnlrp_attention"])
def test_the_registered_model_in_float32(composite):
    with seeded():
        model = timm.create_model("test_mambavision", num_classes=10).eval()
        balance(model)
    x = pictures(4, 64, 64, dtype=torch.float32)
    account = vimlrp.explain(model, x, composite=composite).account
    assert (account.residue / account.target).abs().max() < 1e-4
    assert vimlrp.check_conservation(model, x, composite=composite, tolerance=1e-4).holds


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.2), (torch.float16, 0.1)])
def test_half_precision_is_near(model, dtype, bound):
    half, x = copy.deepcopy(model).to(dtype), pictures(4, 64, 64).to(dtype)
    expected = vimlrp.explain(copy.deepcopy(half).double(), x.double(), target=1).pixels
    relevance = vimlrp.explain(half, x, target=1)
    assert relevance.pixels.dtype == torch.float32
    assert relative_error(relevance.pixels, expected) < bound


def test_an_explanation_under_autocast_adds_up():
    model = small_mambavision(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        account = vimlrp.explain(model, pictures(2, 64, 64, dtype=torch.float32)).account
    assert (account.residue / account.target).abs().max() < 0.1


def state_of(model):
    return {
        "flags": {name: module.training for name, module in model.named_modules()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "needs": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "identities": {
            name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())
        },
    }


def fail(*_args):
    raise ZeroDivisionError


def succeeding(model, x):
    vimlrp.explain(model, x, record=["levels.2"])
    vimlrp.check_conservation(model, x, composite="attnlrp_attention")


def failing_target(model, x):
    vimlrp.explain(model, x, target=fail)


def refused_target(model, x):
    vimlrp.explain(model, x, target=99)


def refused_layer(model, x):
    vimlrp.check_conservation(model, x, composite={"levels.9.*": "zero"})


@pytest.mark.parametrize("course", [succeeding, failing_target, refused_target, refused_layer])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(course, training):
    model = small_mambavision(drop_path_rate=0.5, drop_rate=0.5).train(training)
    model.levels[1].eval()
    model.head.weight.requires_grad_(False)
    before, weights = state_of(model), copy.deepcopy(model.state_dict())
    if course is succeeding:
        course(model, pictures())
    else:
        with pytest.raises((ZeroDivisionError, VimLRPError)):
            course(model, pictures())
    assert state_of(model) == before
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_an_explanation_in_training_mode_is_that_in_evaluation_mode():
    model = small_mambavision(drop_path_rate=0.5, drop_rate=0.5)
    expected = vimlrp.explain(model, pictures(2, 70, 45))
    assert torch.equal(vimlrp.explain(model.train(), pictures(2, 70, 45)).pixels, expected.pixels)


def test_an_attention_outside_its_site_is_refused(model):
    foreign = copy.deepcopy(model)
    mixer = foreign.levels[3].blocks[1].mixer
    mixer.attention = torch.nn.Module()
    mixer.attention.forward = lambda q, k, v: (q @ k.mT).softmax(-1) @ v
    with pytest.raises(UnsupportedModelError, match=r"levels\.3\.blocks\.1\.mixer.*not linear"):
        vimlrp.explain(foreign, pictures())


def test_torchs_batch_norm_is_refused(model):
    foreign = copy.deepcopy(model)
    norm = foreign.norm
    foreign.norm = torch.nn.BatchNorm1d(norm.weight.numel()).double().eval()
    foreign.norm.forward = lambda x: torch.nn.functional.batch_norm(
        x.permute(0, 3, 1, 2), norm.running_mean, norm.running_var
    ).permute(0, 2, 3, 1)
    assert not isinstance(foreign.norm, BatchNorm2d)
    with pytest.raises(UnsupportedModelError, match="norm"):
        vimlrp.explain(foreign, pictures())
