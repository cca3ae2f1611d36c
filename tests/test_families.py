"""What every family of models has in common: layouts, devices, sizes and files of the others."""

import pytest
import timm
import torch
from helpers import relative_error, small_vim
from small_mambavision import pictures, small_mambavision
from small_vmamba import small_vmamba

import vimlrp
from vimlrp.errors import CheckpointError, InputError

FAMILIES = {
    "vim": small_vim,
    "vmamba": small_vmamba,
    "vmamba v0": lambda **options: small_vmamba(generation="v0", **options),
    "mambavision": small_mambavision,
}
NAMES = ["test_vim", "test_vmamba", "test_vmamba_v0", "test_mambavision"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_of_weights_and_images_in_memory_changes_nothing(family):
    model, x = FAMILIES[family](), pictures(2, 32, 32)
    expected = vimlrp.explain(model, x, target=1)
    model = model.to(memory_format=torch.channels_last)
    last = x.to(memory_format=torch.channels_last)
    relevance = vimlrp.explain(model, last, target=1)
    assert relative_error(relevance.pixels, expected.pixels) < 1e-12
    strided = torch.empty(2, 3, 32, 64, dtype=x.dtype)[..., ::2].copy_(x)
    assert torch.equal(vimlrp.explain(model, strided, target=1).pixels, relevance.pixels)


@pytest.mark.parametrize("family", ["vmamba", "vmamba v0", "mambavision"])
@pytest.mark.parametrize("size", [(33, 47), (64, 20), (17, 90)])
def test_odd_sizes_are_explained_whole(family, size):
    x = pictures(2, *size)
    relevance = vimlrp.explain(FAMILIES[family](), x, target=1)
    assert relevance.pixels.shape == (2, *size)
    account = relevance.account
    assert float((account.residue / account.target).abs().max()) < 1e-9
    assert relative_error(relevance.patches.sum((1, 2)), relevance.pixels.sum((1, 2))) < 1e-9


def test_a_vim_takes_its_own_size_alone():
    with pytest.raises(InputError, match="33 x 47 pixels, this model takes 32 x 32"):
        vimlrp.explain(small_vim(), pictures(1, 33, 47))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_on_another_device_than_the_model(family):
    model = FAMILIES[family]().to("meta")
    with pytest.raises(InputError, match="images are on cpu, the model is on meta"):
        vimlrp.explain(model, pictures(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_two_devices(family):
    model = FAMILIES[family]()
    model.get_classifier().to("meta")
    with pytest.raises(InputError, match="lie on cpu, meta; move it to one device"):
        vimlrp.explain(model, pictures(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.4), (torch.float16, 0.05)])
def test_half_precision_is_near_float64(family, dtype, bound):
    x = pictures(2).to(dtype)
    expected = vimlrp.explain(FAMILIES[family]().to(dtype).double(), x.double(), target=1)
    relevance = vimlrp.explain(FAMILIES[family]().to(dtype), x, target=1)
    assert relevance.pixels.dtype == torch.float32
    assert relative_error(relevance.patches, expected.patches) < bound


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("file", NAMES)
def test_files_of_other_families_are_refused_and_named(model, file, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model(file, num_classes=7).state_dict(), path)
    target = timm.create_model(model, num_classes=7)
    if model == file:
        vimlrp.load_checkpoint(target, path)
        return
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"fits timm.create_model.'{file}', num_classes=7"):
        vimlrp.load_checkpoint(target, path)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        ("test_vim", "test_mambavision", r"the model has no \(\d+ tensors\): levels.* x\d+"),
        ("test_mambavision", "test_vmamba", r"the model has no \(\d+ tensors\): layers.* x\d+"),
        ("test_vmamba", "test_vim", "hold patch_embed.0.weight twice.* names of two versions"),
        ("test_vmamba_v0", "test_vmamba", "hold layers.0.downsample.norm.weight twice"),
    ],
)
def test_a_state_of_two_models_is_refused(model, other, message, tmp_path):
    path, target = tmp_path / "weights.pth", timm.create_model(model)
    torch.save({**timm.create_model(other).state_dict(), **target.state_dict()}, path)
    with pytest.raises(CheckpointError, match=message):
        vimlrp.load_checkpoint(target, path)
