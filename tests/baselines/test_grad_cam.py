"""Grad-CAM on maps, on tokens, and where it has nothing to look at."""

import pytest
import timm
import torch
from helpers import images, relative_error, seeded, small_vim
from linear_models import ConvolutionalClassifier
from small_vmamba import small_vmamba
from torch import nn

from vimlrp.baselines import METHODS
from vimlrp.errors import UnsupportedModelError

CAM = METHODS["grad_cam"]
TARGET = torch.tensor([1, 3])


def scaled(cells):
    """Positive parts from 0 to 1, as Grad-CAM's authors show them."""
    cells = cells.clamp(min=0)
    cells = cells - cells.amin((1, 2), keepdim=True)
    return cells / cells.amax((1, 2), keepdim=True)


def test_of_a_pooled_convolution_it_is_the_class_activation_map():
    with seeded():
        model = ConvolutionalClassifier()
        model.stem = nn.Conv2d(3, 5, 1)  # as many cells as pixels: nothing is interpolated
    x = images(2, 16, dtype=torch.float32)
    # The gradient of a mean over cells is the class's weight over their number, in every cell.
    cells = torch.einsum("bchw,bc->bhw", model.maps(x), model.head.weight[TARGET]).detach()
    assert relative_error(CAM(model, x, TARGET), scaled(cells)) < 1e-5


def test_of_vim_it_is_the_patches_before_the_last_mixer():
    model, x = small_vim(), images()
    seen = []
    handle = model.layers[-1].norm.register_forward_hook(lambda *args: seen.append(args[2]))
    value = model(x).gather(1, TARGET[:, None]).sum()
    handle.remove()
    (slope,) = torch.autograd.grad(value, seen)
    patches, slopes = (model.layout.patches_of(t.detach()) for t in (seen[0], slope))
    cells = (patches * slopes.mean(1, keepdim=True)).sum(2).reshape(2, 4, 4)
    maps = CAM(model, x, TARGET)
    middles = maps.unflatten(2, (4, 8)).unflatten(1, (4, 8)).mean((2, 4))
    together = torch.stack([middles.flatten(), scaled(cells).flatten().float()])
    assert torch.corrcoef(together)[0, 1] > 0.9


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_convnext", "test_efficientnet", "test_mambavision"]
)
def test_models_of_timm_with_stages_are_taken(name):
    with seeded():
        model = timm.create_model(name, num_classes=5)
    maps = CAM(model, images(2, 64, dtype=torch.float32), TARGET)
    assert maps.shape == (2, 64, 64)
    assert (maps.amax((1, 2)) > 0).any()


def test_maps_with_their_channels_last_are_taken():
    maps = CAM(small_vmamba(), images(), TARGET)
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1])


def test_tokens_without_a_layout_are_refused():
    model = timm.create_model("test_vit", num_classes=5)
    assert not CAM.supports(model)
    with pytest.raises(UnsupportedModelError, match="grad_cam takes a Vim, or a model with stages"):
        CAM(model, images(1, 160, dtype=torch.float32), TARGET[:1])


def test_a_stage_that_gives_no_map_is_refused():
    model = ConvolutionalClassifier()
    model.feature_info[-1]["num_chs"] = 7
    with pytest.raises(UnsupportedModelError, match=r"gives \(2, 5, 8, 8\).*of 7 channels"):
        CAM(model, images(2, 16, dtype=torch.float32), TARGET)
    model.feature_info[-1]["module"] = "nowhere"
    assert not CAM.supports(model)
