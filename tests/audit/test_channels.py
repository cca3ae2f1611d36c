"""The axis of the channels, of models whose layout is known."""

import pytest
import timm
import torch
from helpers import seeded
from torch import nn

import vimlrp
from vimlrp.audit.channels import channel_axis, positions
from vimlrp.audit.watching import Watched
from vimlrp.errors import InputError

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
    axis = channel_axis(vimlrp.wrap(model), layer, activation.dim())
    assert axis == (LAYOUTS[name, layer] or activation.dim() - 1)


class Mapped(nn.Module):
    """A model whose layer is of a kind, and which says how its maps lie."""

    def __init__(self, layer, output_fmt=None):
        super().__init__()
        self.layer = layer
        if output_fmt:
            self.output_fmt = output_fmt


@pytest.mark.parametrize(
    ("module", "output_fmt", "dims", "axis"),
    [
        (nn.Conv2d(3, 8, 1), "NHWC", 4, 1),
        (nn.BatchNorm2d(8), None, 4, 1),
        (nn.LayerNorm(8), None, 4, 3),
        (nn.Linear(3, 8), None, 4, 3),
        (nn.Sequential(nn.Linear(3, 8)), None, 4, 1),
        (nn.Sequential(nn.Linear(3, 8)), "NHWC", 4, 3),
        (nn.Sequential(nn.Linear(3, 8)), None, 3, 2),
        (nn.Sequential(nn.Linear(3, 8)), None, 2, 1),
    ],
)
def test_axis_of_layers(module, output_fmt, dims, axis, monkeypatch):
    monkeypatch.setattr("vimlrp.audit.channels.wrap", lambda model: model)
    assert channel_axis(Mapped(module, output_fmt), "layer", dims) == axis


def test_positions_keep_channels_apart(monkeypatch):
    monkeypatch.setattr("vimlrp.audit.channels.wrap", lambda model: model)
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    expected = torch.stack([x[:, :, i, j] for i in range(4) for j in range(4)], dim=1)
    torch.testing.assert_close(positions(Mapped(nn.Conv2d(3, 3, 1)), "layer", x), expected)


def test_a_layer_that_is_not_there_is_refused():
    model = timm.create_model("test_vim")
    with pytest.raises(InputError, match="no layer 'other'"):
        channel_axis(model, "other", 4)
