"""Official VMamba checkpoints load whatever their age, and bad ones say what is wrong."""

import collections
import pickle
import sys
import types

import pytest
import timm
import torch

from vimlrp.errors import CheckpointError
from vimlrp.models.checkpoint import load_checkpoint

TESTS = ["test_vmamba", "test_vmamba_v0"]


def make(name="test_vmamba", seed=0, **changes):
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 10, **changes})


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def options(monkeypatch):
    """A configuration as yacs pickles it: a dictionary with attributes, of a class elsewhere."""
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, entries=()):
            super().__init__(entries)
            self.__dict__["__immutable__"] = True
            self.__dict__["__deprecated_keys__"] = set()
            self.__dict__["__renamed_keys__"] = {}
            self.__dict__["__new_allowed__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode({"MODEL": CfgNode({"DEPTHS": [2, 2, 8, 2], "NAME": "vssm"}), "TAG": (1, 0.2)})


def training_checkpoint(model, config, average=None):
    """The layout that VMamba's training code saves."""
    content = {
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "max_accuracy": 82.6,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "epoch": 264,
        "config": config,
    }
    if average is not None:
        content |= {"model_ema": average.state_dict(), "max_accuray_ema": 82.7}
    return content


def saved(tmp_path, monkeypatch, content, **options):
    """Save a file, and forget the class that its configuration is of."""
    path = tmp_path / "weights.pth"
    torch.save(content, path, **options)
    for name in ("yacs", "yacs.config"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", TESTS)
def test_training_checkpoints_load_without_yacs(name, options, tmp_path, monkeypatch, zipped):
    source, model = make(name, 1), make(name, 2)
    content = training_checkpoint(source, options)
    path = saved(
        tmp_path, monkeypatch, content, _use_new_zipfile_serialization=zipped, pickle_protocol=2
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    report = load_checkpoint(model, path)
    assert same(model, source)
    assert (report.entry, report.tensors) == ("model", len(source.state_dict()))
    assert (report.missing, report.unexpected, report.interpolated) == ((), (), False)


@pytest.mark.parametrize("weights", ["auto", "model", "model_ema"])
def test_trained_weights_or_their_average(options, tmp_path, monkeypatch, weights):
    trained, average, model = make(seed=1), make(seed=2), make(seed=3)
    path = saved(tmp_path, monkeypatch, training_checkpoint(trained, options, average))
    load_checkpoint(model, path, weights=weights)
    assert same(model, average if weights == "model_ema" else trained)


def test_a_class_beside_the_accepted_ones_is_still_refused(options, tmp_path, monkeypatch):
    options["NODES"] = collections.UserDict()
    path = saved(tmp_path, monkeypatch, training_checkpoint(make(), options))
    with pytest.raises(CheckpointError, match=r"wants to use collections.UserDict,") as caught:
        load_checkpoint(make(), path)
    assert "yacs.config.CfgNode," not in str(caught.value)


def standalone(state):
    """The names in the code's standalone file, and its projections of all routes as one matrix."""
    renamed = {}
    for key, value in state.items():
        for ours, theirs in (("op.x_proj_weight", "op.x_proj.weight"),
                             ("op.dt_projs_weight", "op.dt_projs.weight")):  # fmt: skip
            if key.endswith(ours):
                key, value = key.removesuffix(ours) + theirs, value.flatten(0, 1)
        key = key.replace("downsample.norm", "downsample.1")
        renamed[key.replace("downsample.reduction", "downsample.2")] = value
    return renamed


def oldest(state):
    """The names of the first checkpoints."""
    renamed = {}
    for key, value in state.items():
        key = key.replace("patch_embed.0.", "patch_embed.proj.")
        key = key.replace("patch_embed.2.", "patch_embed.norm.")
        key = key.replace(".op.", ".self_attention.").removeprefix("classifier.")
        if ".blocks." in key and ".norm." in key:
            key = key.replace(".norm.", ".ln_1.")
        renamed[key] = value
    return renamed


def pointwise(state):
    """Linear layers as convolutions of 1 x 1."""
    linear = ("_proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    return {k: v[:, :, None, None] if k.endswith(linear) else v for k, v in state.items()}


@pytest.mark.parametrize("rename", [standalone, oldest, pointwise, lambda s: pointwise(oldest(s))])
@pytest.mark.parametrize("name", TESTS)
def test_former_names_and_layouts(tmp_path, name, rename):
    source, model = make(name, 1), make(name, 2)
    state = rename(source.state_dict())
    assert any(
        key not in source.state_dict() or value.shape != source.state_dict()[key].shape
        for key, value in state.items()
    )
    path = tmp_path / "weights.pth"
    torch.save({"model": state}, path)
    assert load_checkpoint(model, path).tensors == len(state)
    assert same(model, source)


def test_each_former_name_gives_the_same_logits(tmp_path):
    source, x = make("test_vmamba_v0", 1).eval(), torch.randn(1, 3, 64, 64)
    for rename in (standalone, oldest, pointwise):
        path = tmp_path / "weights.pth"
        torch.save(rename(source.state_dict()), path)
        model = make("test_vmamba_v0", 2).eval()
        load_checkpoint(model, path)
        assert torch.equal(model(x), source(x))


def refusal(tmp_path, state, model, **options):
    """The message of a refusal that left the model as it was."""
    path, before = tmp_path / "weights.pth", {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path, **options)
    assert path.name in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    return str(caught.value)


def test_one_tensor_under_two_names(tmp_path):
    state = make().state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.0.weight"]
    message = refusal(tmp_path, state, make(seed=1))
    assert "hold patch_embed.0.weight twice" in message
    assert "'patch_embed.proj.weight'" in message


@pytest.mark.parametrize("rename", [lambda state: state, standalone, oldest])
def test_the_other_generation_is_recognised(tmp_path, rename):
    with torch.device("meta"):
        variant = timm.create_model("vanilla_vmamba_tiny_224").state_dict()
    state = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in variant.items()}
    message = refusal(tmp_path, rename(state), make("vmamba_nano_s1l8_224"))
    assert "another architecture than this VMamba" in message
    assert "layers.*.blocks.*.norm2.weight x" in message or "mlp.fc1.weight" in message
    assert "it fits timm.create_model('vanilla_vmamba_tiny_224'): create that model" in message


@pytest.mark.parametrize(
    ("file", "model"),
    [("test_vim", "test_vmamba"), ("test_vmamba", "test_vim"), ("test_vmamba_v0", "test_vim")],
)
def test_another_family_is_recognised(tmp_path, file, model):
    state = make(file).state_dict()
    message = refusal(tmp_path, state, make(model, seed=1))
    assert "another architecture" in message
    assert f"it fits timm.create_model('{file}', num_classes=10): create that model" in message


@pytest.mark.parametrize("rename", [lambda state: state, oldest])
def test_other_number_of_classes(tmp_path, rename):
    state = rename(make(num_classes=7).state_dict())
    message = refusal(tmp_path, state, make(seed=1))
    assert "classifies into 7 classes, the model into 10" in message
    model = make(seed=1)
    report = load_checkpoint(model, tmp_path / "weights.pth", strict=False)
    assert report.missing == ("classifier.head.weight", "classifier.head.bias")
    assert report.tensors == len(state) - 2


def test_other_depth_is_grouped_and_counted(tmp_path):
    message = refusal(tmp_path, make(depths=(1, 1, 1, 1)).state_dict(), make(seed=1))
    assert "the file lacks (18 tensors): layers.*." in message
    assert "and 14 more" in message
    assert "it fits no registered model" in message


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path):
    state = make().state_dict()
    del state["layers.2.blocks.0.op.Ds"]
    state["layers.0.outnorm.weight"] = torch.ones(16)
    message = refusal(tmp_path, state, make(seed=1))
    assert "the file lacks (1 tensors): layers.*.blocks.*.op.Ds" in message
    assert "the model has no (1 tensors): layers.*.outnorm.weight" in message


def test_weights_from_a_web_address(tmp_path, monkeypatch):
    source, path = make(seed=1, num_classes=1000), tmp_path / "vssm.pth"
    torch.save({"model": standalone(source.state_dict())}, path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    config = {"url": path.as_uri()}
    model = make(seed=2, num_classes=1000, pretrained=True, pretrained_cfg_overlay=config)
    assert same(model, source)
    path.unlink()  # what was fetched once is there
    again = make(seed=3, num_classes=1000, pretrained=True, pretrained_cfg_overlay=config)
    assert same(again, source)


def test_a_web_address_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = {"url": (tmp_path / "nowhere.pth").as_uri()}
    with pytest.raises(CheckpointError, match=r"cannot get file://.*load_checkpoint\(model, 'now"):
        make(pretrained=True, pretrained_cfg_overlay=config)


def test_another_number_of_classes_and_colours_adapt_pretrained_weights(tmp_path):
    source, path = make(seed=1, num_classes=1000), tmp_path / "vssm.pth"
    torch.save(source.state_dict(), path)
    config = {"file": str(path)}
    model = make(seed=2, num_classes=4, in_chans=1, pretrained=True, pretrained_cfg_overlay=config)
    ours, theirs = model.state_dict(), source.state_dict()
    assert ours["classifier.head.weight"].shape == (4, 128)
    summed = theirs["patch_embed.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(ours["patch_embed.0.weight"], summed)
    assert torch.equal(ours["layers.3.blocks.0.op.Ds"], theirs["layers.3.blocks.0.op.Ds"])
