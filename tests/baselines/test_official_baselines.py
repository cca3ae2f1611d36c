"""Instances of the official classes are taken as the models that they are."""

import pytest
import torch
from helpers import images, relative_error, small_vim
from official_doubles import VSSM, VisionMamba
from small_vmamba import small_vmamba

from vimlrp.baselines import METHODS

TARGET = torch.tensor([1, 3])
FAMILIES = {"vim": (VisionMamba, small_vim), "vmamba": (VSSM, small_vmamba)}
READING = ("raw_attention", "attention_rollout", "mamba_attribution", "grad_cam", "mambalrp")


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_official_instance_has_the_maps_of_our_own_model(family, name):
    double, small = FAMILIES[family]
    original, ours = double(small()).eval(), small()
    assert METHODS[name].supports(original)
    maps = METHODS[name](original, images(), TARGET)
    assert relative_error(maps, METHODS[name](ours, images(), TARGET)) < 1e-6
