"""MambaVision loads official files in every layout, whole or not at all."""

import argparse
import copy

import pytest
import timm
import torch
from small_mambavision import make
from timm.utils import CheckpointSaver, ModelEmaV3

import vimlrp
from vimlrp.errors import CheckpointError


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "mamba_vision_T"},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=1.0)},
    "module.": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "encoder.": lambda state: (
        {f"encoder.{k}": v for k, v in state.items()} | {"decoder.weight": torch.zeros(2)}
    ),
    "module.encoder.": lambda state: {
        "model": {f"module.encoder.{k}": v for k, v in state.items()}
    },
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_official_layouts_load_strictly(tmp_path, layout):
    source, model, path = make(1), make(2), tmp_path / "mambavision.pth.tar"
    assert not same(source, model)
    torch.save(WRAPPED[layout](source.state_dict()), path)
    report = vimlrp.load_checkpoint(model, path)
    assert same(model, source)
    assert report.tensors == len(source.state_dict())


@pytest.mark.parametrize("layout", WRAPPED)
def test_pretrained_weights_load_from_official_layouts(tmp_path, layout):
    source, path = make(1), tmp_path / "mambavision.pth.tar"
    torch.save(WRAPPED[layout](source.state_dict()), path)
    overlay = {"file": str(path), "num_classes": 10}
    model = timm.create_model(
        "test_mambavision", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10
    )
    assert same(model, source)


def test_grey_pretrained_weights_and_another_classifier(tmp_path):
    source, path = make(1), tmp_path / "mambavision.pth.tar"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 10}
    model = timm.create_model(
        "test_mambavision",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=3,
        in_chans=1,
    )
    weight = source.patch_embed.conv_down[0].weight
    torch.testing.assert_close(model.patch_embed.conv_down[0].weight, weight.sum(1, keepdim=True))
    assert model.head.weight.shape == (3, 64)


def refused(model, state, tmp_path):
    path, before = tmp_path / "mambavision.pth.tar", copy.deepcopy(model)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        vimlrp.load_checkpoint(model, path)
    assert same(model, before)
    return str(caught.value)


def test_a_checkpoint_of_another_size_names_its_model(tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("mambavision_tiny_224").state_dict()
    state = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in shapes.items()}
    message = refused(make(), {"state_dict": state}, tmp_path)
    assert "create_model('mambavision_tiny_224')" in message


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    message = refused(make(), timm.create_model("test_vim").state_dict(), tmp_path)
    assert "another architecture than this MambaVision" in message
    assert "levels.*.blocks" in message
    assert "layers.*.mixer" in message


def test_a_checkpoint_with_other_classes_is_refused(tmp_path):
    message = refused(make(), make(num_classes=7).state_dict(), tmp_path)
    assert "classifies into 7 classes, the model into 10" in message


@pytest.mark.parametrize("lost", ["norm.running_var", "levels.3.blocks.0.mixer.D"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, lost):
    state = make().state_dict()
    del state[lost]
    name = lost.replace(".3.", ".*.").replace(".0.", ".*.")
    assert f"the file lacks (1 tensors): {name}" in refused(make(), state, tmp_path)


@pytest.mark.parametrize(("weights", "average"), [("auto", False), ("model_ema", True)])
def test_files_of_timms_training_saver_load(tmp_path, weights, average):
    """The official training script saves through timm: options, optimizer and average inside."""
    source, model = make(1), make(2)
    ema = ModelEmaV3(make(3))
    options = argparse.Namespace(model="mamba_vision_T", device=torch.device("cpu"), lr=1e-3)
    optimizer = torch.optim.AdamW(source.parameters())
    saver = CheckpointSaver(source, optimizer, options, ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=82.3)
    report = vimlrp.load_checkpoint(model, tmp_path / "last.pth.tar", weights=weights)
    assert same(model, ema.module if average else source)
    assert report.entry == ("state_dict_ema" if average else "state_dict")
