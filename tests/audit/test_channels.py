"""The axis of the channels, of models whose layout is known."""

import pytest
import timm
import torch
from helpers import seeded
from torch import nn

import vimlrp
from vimlrp.audit.channels import channel_axis, positions
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError, UnsupportedModelError

LAYOUTS = {
    ("test_resnet", "layer2"): 1,
    ("test_convnext", "stages.1"): 1,
    ("test_mambaout", "stages.1"): 3,
    ("test_vim", "layers.1"): 2,
    ("test_vmamba", "layers.1"): 3,
    ("test_vmamba", "classifier.norm"): None,
}


@pytest.mark.parametrize(("name", "layer"), LAYOUTS)
def test_axis_of_models(name, layer):
    with seeded():
        model = timm.create_model(name, num_classes=3).eval()
    _, activation = next(Watched(model, layer).run(torch.randn(2, 3, 64, 64)))
    axis = channel_axis(vimlrp.wrap(model), layer, activation)
    assert axis == (LAYOUTS[name, layer] or activation.dim() - 1)


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv2d(3, 8, 1), (2, 8, 8, 8), 1),
        (nn.BatchNorm2d(8), (2, 8, 8, 8), 1),
        (nn.LayerNorm(8), (2, 8, 8, 8), 3),
        (nn.Linear(3, 8), (2, 8, 8, 8), 3),
        (nn.Sequential(nn.Linear(3, 8)), (2, 4, 4, 8), 3),
        (nn.Sequential(nn.Linear(3, 8)), (2, 8, 4, 4), 1),
        (nn.Sequential(nn.Linear(3, 8)), (2, 4, 6, 8), 3),
        (nn.Sequential(nn.Linear(3, 8)), (2, 8, 4, 6), 1),
        (nn.Identity(), (2, 5, 8), 2),
        (nn.Identity(), (2, 8), 1),
    ],
)
def test_axis_of_layers(module, shape, axis):
    model = nn.ModuleDict({"layer": module})
    assert channel_axis(model, "layer", torch.zeros(shape)) == axis


def test_positions_keep_channels_apart():
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    model = nn.ModuleDict({"layer": nn.Conv2d(3, 3, 1)})
    expected = torch.stack([x[:, :, i, j] for i in range(4) for j in range(4)], dim=1)
    torch.testing.assert_close(positions(model, "layer", x), expected)


def test_what_cannot_be_told_is_refused():
    model = nn.ModuleDict({"layer": nn.Identity()})
    with pytest.raises(UnsupportedModelError, match="axis of the channels"):
        channel_axis(model, "layer", torch.zeros(2, 8, 8, 8))
    with pytest.raises(InputError, match="no layer 'other'"):
        channel_axis(model, "other", torch.zeros(2, 8, 8, 8))
