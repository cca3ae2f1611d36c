"""Which layer is recorded, and its channels, in every family that vimlrp explains."""

import pytest
import timm
import torch
from helpers import images, random, seeded
from timm_models import FAMILIES, family
from torch import nn

import vimlrp
from vimlrp.audit.channels import channel_axis
from vimlrp.audit.gathering.latents import default_layer, pool
from vimlrp.errors import InputError
from vimlrp.wrapping import wrap

# Channels of each model's default layer, by its configuration.
WIDTHS = {
    "test_vim": 32,
    "test_vmamba": 64,
    "test_vmamba_v0": 64,
    "test_mambavision": 32,
    "test_resnet": 192,
    "resnetv2_50": 1024,
    "test_convnext": 48,
    "test_vit": 64,
    "deit_tiny_distilled_patch16_224": 192,
    "swin_tiny_patch4_window7_224": 24,
    "test_mambaout": 48,
    "efficientvim_m1": 192,
    "test_efficientnet": 48,
    "mobilenetv3_small_050": 48,
    "regnetx_002": 368,
    "densenet121": 1024,
    "mixer_s32_224": 512,
    "inception_next_atto": 160,
    "poolformer_s12": 320,
}


def model_of(name):
    if name in FAMILIES:
        return family(name, torch.float32)
    with seeded():
        return timm.create_model(name, num_classes=5).eval(), 64


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vim_tiny_patch16_224", "layers.17"),
        ("vmamba_nano_s1l8_224.imagenette", "layers.2.blocks.5"),
        ("mambavision_tiny_224", "levels.2.blocks.7"),
        ("resnet50", "layer3.4"),
        ("convnext_tiny", "stages.2.blocks.7"),
        ("swin_tiny_patch4_window7_224", "layers.2.blocks.4"),
        ("deit_tiny_patch16_224", "blocks.8"),
        ("mambaout_femto", "stages.2.blocks.7"),
        ("efficientvim_m1", "stages.1.blocks.1.ffn"),
        ("regnetx_002", "s4.b4"),
        ("densenet121", "features.denseblock3"),
    ],
)
def test_the_default_layer_is_a_block_at_three_quarters_of_the_depth(name, layer):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert default_layer(model) == layer


@pytest.mark.parametrize("name", WIDTHS)
def test_the_default_layer_is_recorded_and_pooled_over_its_positions(name):
    model, size = model_of(name)
    layer = default_layer(model)
    x = images(2, size, dtype=torch.float32)
    recorded = vimlrp.Explainer(model)(x, target=1, record=(layer,)).recorded[layer]
    greatest = pool(recorded.activation, model)
    summed = pool(recorded.relevance, model, layer=layer, how="sum")
    assert greatest.shape == summed.shape == (2, WIDTHS[name])
    torch.testing.assert_close(
        summed.double().sum(1), recorded.relevance.double().flatten(1).sum(1), rtol=1e-4, atol=1e-4
    )
    assert (greatest.amax(1) == recorded.activation.flatten(1).amax(1)).all()


@pytest.mark.parametrize(
    ("name", "layer", "axis"),
    [
        ("test_vim", "layers.1", 2),
        ("test_vmamba", "layers.0.blocks.0", 3),
        ("test_vmamba", "patch_embed", 3),
        ("test_mambavision", "levels.0.blocks.0", 3),
        ("test_mambavision", "levels.2.blocks.0", 3),
        ("test_vit", "blocks.1", 2),
        ("test_vit", "patch_embed.proj", 1),
        ("swin_tiny_patch4_window7_224", "layers.0", 3),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj", 1),
        ("test_mambaout", "stages.1.blocks.0", 3),
        ("test_mambaout", "stages.1.blocks.0.conv", 1),
        ("test_convnext", "stages.1.blocks.0", 1),
        ("test_convnext", "stages.1.blocks.0.conv_dw", 1),
        ("test_convnext", "stages.1.blocks.0.mlp", 3),
        ("test_convnext", "stages.1.blocks.0.mlp.fc1", 3),
        ("test_convnext", "stages.0.blocks.0.norm", 3),
        ("test_resnet", "layer2.0.bn1", 1),
        ("efficientvim_m1", "stages.1.blocks.0.norm", 1),
    ],
)
def test_layers_of_all_kinds_have_their_channels_where_they_stand(name, layer, axis):
    model, size = model_of(name)
    seen = []
    handle = (
        wrap(model)
        .get_submodule(layer)
        .register_forward_hook(
            lambda module, args, out: seen.append(out if isinstance(out, torch.Tensor) else out[0])
        )
    )
    with torch.no_grad():
        wrap(model)(images(1, size, dtype=torch.float32))
    handle.remove()
    activation = seen[0]
    assert channel_axis(model, layer, activation.dim()) == axis
    sides = [n for i, n in enumerate(activation.shape) if i not in (0, axis)]
    if activation.dim() == 4 and "levels.2" not in layer:  # windows are no map
        assert sides[0] == sides[1]


def test_pooling_takes_the_greatest_and_the_sum_by_hand():
    model, _ = model_of("test_vim")
    x = random(2, 5, 3)
    expected = [[max(x[b, :, c].tolist()) for c in range(3)] for b in range(2)]
    assert pool(x, model).tolist() == expected
    sums = torch.tensor([[sum(x[b, :, c].tolist()) for c in range(3)] for b in range(2)])
    torch.testing.assert_close(pool(x, model, how="sum"), sums.double())
    pooled = random(2, 3)
    assert torch.equal(pool(pooled, model), pooled)


def test_a_model_whose_blocks_have_no_known_names_is_asked_for_a_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="say which layer"):
        default_layer(model)
