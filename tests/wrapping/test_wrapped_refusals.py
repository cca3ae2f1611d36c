"""What `wrap` does not cover is refused by name, never explained by a silent plain gradient."""

import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import images
from timm.layers import Attention
from timm_models import family, vit
from torch import nn

import vimlrp
from vimlrp.errors import CompositeError, UnsupportedModelError


def small(*layers):
    """A classifier around some layers on maps of four channels."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ).double()


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_the_classifier_around_the_layers_is_explained():
    account = vimlrp.explain(small(nn.ReLU()).eval(), images(2, 6)).account
    assert (account.residue.abs() / account.target.abs()).max() < 1e-9


OPERATIONS = {
    "gelu": F.gelu,
    "sigmoid": lambda x: x * torch.sigmoid(x),
    "softmax": lambda x: x.softmax(1),
    "mul": lambda x: x * x.mean((2, 3), keepdim=True),
    "in-place operation add_": lambda x: x.mul(1).add_(1),
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x, 2),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_functions_in_unknown_modules_are_refused_with_name_and_families(operation):
    model = small(Function(OPERATIONS[operation])).eval()
    with pytest.raises(UnsupportedModelError, match=operation) as caught:
        vimlrp.explain(model, images(1, 6))
    message = str(caught.value)
    assert message.startswith("1 (Function")
    for name in ("vim", "vmamba", "resnet", "swin_transformer", "mambaout"):
        assert name in message


UNKNOWN = {
    "softplus": nn.Softplus(),
    "instance_norm": nn.InstanceNorm2d(4),
    "prelu": nn.PReLU(),
    "sigmoid": nn.Sigmoid(),
    "elu": nn.ELU(),
}


@pytest.mark.parametrize("layer", UNKNOWN)
def test_layers_without_a_counterpart_are_refused(layer):
    with pytest.raises(UnsupportedModelError, match=rf"^1 \({type(UNKNOWN[layer]).__name__}"):
        vimlrp.explain(small(UNKNOWN[layer]).eval(), images(1, 6))


class OwnLinear(nn.Linear):
    """A subclass, whose forward may do anything."""

    def forward(self, x):
        return super().forward(x).tanh()


def test_a_subclass_of_a_known_layer_is_not_taken_for_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten(), OwnLinear(4, 5)).double().eval()
    with pytest.raises(UnsupportedModelError, match=r"2 \(OwnLinear.*tanh"):
        vimlrp.explain(model, images(1, 6))


def test_a_patched_forward_is_refused():
    model, _ = family("test_resnet")
    plain = model.fc.forward
    model.fc.forward = lambda x: plain(x).tanh()
    with pytest.raises(UnsupportedModelError, match="forward of a Linear was patched"):
        vimlrp.explain(model, images(1, 36))
    del model.fc.forward
    assert vimlrp.explain(model, images(1, 36)).account.residue.abs().max() < 1e-9


@pytest.mark.parametrize("method", [vimlrp.wrap, lambda m: vimlrp.explain(m, images(1, 36))])
def test_a_model_spread_over_devices_is_refused(method):
    model, _ = family("test_resnet")
    with pytest.raises(UnsupportedModelError, match=r"DataParallel: give model\.module"):
        method(nn.DataParallel(model))


@pytest.mark.parametrize("method", [vimlrp.wrap, lambda m: vimlrp.explain(m, images(1, 36))])
def test_a_compiled_model_is_refused(method):
    model, _ = family("test_resnet")
    with pytest.raises(UnsupportedModelError, match=r"compiled.*model\._orig_mod"):
        method(torch.compile(model))


@pytest.mark.parametrize("method", [vimlrp.wrap, lambda m: vimlrp.explain(m, images(1, 36))])
def test_a_part_that_is_compiled_is_refused(method):
    model, _ = family("test_resnet")
    model.layer1.compile()
    with pytest.raises(UnsupportedModelError, match="layer1 is compiled"):
        method(model)


def test_a_batch_norm_without_statistics_is_refused():
    model = small(nn.BatchNorm2d(4, track_running_stats=False)).eval()
    with pytest.raises(UnsupportedModelError, match="batch norm without running statistics"):
        vimlrp.explain(model, images(2, 6))


def test_a_model_that_reads_pixels_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 5, 6), nn.Conv2d(3, 5, 6)

        def forward(self, x):
            return (self.first(x) + self.second(x)).flatten(1)

    with pytest.raises(UnsupportedModelError, match="second"):
        vimlrp.explain(Twice().double().eval(), images(1, 6))


@pytest.mark.parametrize("name", ["edgenext_xx_small", "repvgg_a0", "xcit_nano_12_p16_224"])
def test_families_that_are_not_covered_are_refused(name):
    model = timm.create_model(name).eval()
    with pytest.raises(UnsupportedModelError, match="supported famil"):
        vimlrp.explain(model, images(1, 64, dtype=torch.float32))


def test_attention_behind_a_gate_of_its_own_is_refused():
    model = vit()
    model.blocks[1].attn = Attention(12, num_heads=3, gated=True).double()
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn .*sigmoid"):
        vimlrp.explain(model.eval(), images(1, 24))


def test_a_pattern_that_matches_no_site_is_an_error():
    model, _ = family("test_resnet")
    with pytest.raises(CompositeError, match="layer9"):
        vimlrp.explain(model, images(1, 36), composite={"layer9.*": "zero"})
