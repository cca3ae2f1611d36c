"""Weight files load whole or not at all, safely, and every bad one says what to do."""

import argparse
import collections
import pickle
import struct
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import vimlrp
from vimlrp.errors import CheckpointError
from vimlrp.models.checkpoint import load_checkpoint


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return timm.create_model("test_vim", **{"num_classes": 10, **changes})


def training_checkpoint(model, average=None):
    """The layout that Vim's training script saves."""
    return {
        "model": model.state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "lr_scheduler": {"base_values": [1e-3]},
        "epoch": 299,
        "model_ema": None if average is None else average.state_dict(),
        "scaler": "none",
        "args": argparse.Namespace(lr=1e-3, model="vim", output_dir="", distributed=True),
    }


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def refuses(tmp_path):
    """Expect a refusal that names the file and leaves the model as it was."""

    def refuses(path, message, model=None, **arguments):
        model = model if model is not None else make(seed=1)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(model, path, **arguments)
        assert path.name in str(caught.value)
        after = model.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        return str(caught.value)

    return refuses


@pytest.fixture
def write(tmp_path):
    def write(content, name="weights.pth", **arguments):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path, **arguments)
        return path

    return write


def test_official_layout_of_vim_tiny_loads_415_tensors(write):
    source, model = (timm.create_model("vim_tiny_patch16_224") for _ in range(2))
    report = load_checkpoint(model, write(training_checkpoint(source)))
    assert same(model, source)
    assert (report.tensors, report.entry, report.interpolated) == (415, "model", False)
    assert (report.missing, report.unexpected) == ((), ())


@pytest.mark.parametrize(
    ("weights", "entry"), [("auto", "model"), ("model", "model"), ("model_ema", "model_ema")]
)
def test_trained_weights_or_their_average_by_choice(write, weights, entry):
    trained, average, model = make(1), make(2), make(3)
    path = write(training_checkpoint(trained, average))
    assert load_checkpoint(model, path, weights=weights).entry == entry
    assert same(model, average if entry == "model_ema" else trained)


@pytest.mark.parametrize(
    ("wrap", "entry"),
    [
        (lambda state: state, ""),
        (dict, ""),
        (lambda state: {"state_dict": state, "epoch": 3}, "state_dict"),
        (lambda state: {f"module.{key}": value for key, value in state.items()}, ""),
        (lambda state: {"model": {f"_orig_mod.module.{k}": v for k, v in state.items()}}, "model"),
        (lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()}, ""),
    ],
    ids=["state_dict", "dict", "state_dict entry", "module.", "_orig_mod.module.", "module._orig"],
)
def test_other_layouts(write, wrap, entry):
    source, model = make(1), make(2)
    report = load_checkpoint(model, write(wrap(source.state_dict())))
    assert same(model, source)
    assert report.entry == entry


def test_safetensors_and_string_paths(write):
    source, model = make(1), make(2)
    path = write(source.state_dict(), "weights.safetensors")
    assert load_checkpoint(model, str(path)).path == path
    assert same(model, source)


def test_the_content_decides_not_the_ending(write):
    source, model = make(1), make(2)
    path = write(source.state_dict(), "weights.safetensors")
    load_checkpoint(model, path.rename(path.with_suffix(".pth")))
    assert same(model, source)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_the_models(write, name, dtype):
    source, model = make(1), make(2)
    source.to(dtype)
    load_checkpoint(model, write(source.state_dict(), name))
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert same(model, source.float())


def test_older_pickles_load_too(write):
    source, model = make(1), make(2)
    path = write(training_checkpoint(source), _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:1] == b"\x80"
    load_checkpoint(model, path)
    assert same(model, source)


def test_model_keeps_its_tensors_type_and_mode(write):
    model = make(1).double().train()
    before = dict(model.named_parameters())
    load_checkpoint(model, write(make(2).state_dict()))
    assert all(before[name] is parameter for name, parameter in model.named_parameters())
    assert model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("place", ["middle", "head", "tail", "double", "none"])
def test_position_embedding_of_another_grid_is_interpolated(write, place):
    pool = "avg" if place == "none" else "token"
    source = make(1, class_token=place, global_pool=pool)
    model = make(2, class_token=place, global_pool=pool, img_size=(96, 80))
    report = load_checkpoint(model, write(source.state_dict()))
    assert report.interpolated
    assert report.tensors == len(source.state_dict())
    small, large = source.layout, model.layout
    class_rows = large.special_of(model.pos_embed)
    assert torch.equal(class_rows, small.special_of(source.pos_embed))
    # Interpolation keeps a constant field constant, only where the class tokens stay apart.
    with torch.no_grad():
        source.pos_embed.fill_(100.0)
        source.pos_embed[:, [i for i in range(small.length) if i not in small.special]] = 1.0
    load_checkpoint(model, write(source.state_dict()))
    torch.testing.assert_close(
        large.patches_of(model.pos_embed), torch.ones(1, large.patch_count, 32)
    )


def test_only_what_fits_is_loaded_when_not_strict(write):
    source, model = make(1, num_classes=7), make(2)
    head = model.head.weight.detach().clone()
    state = {**source.state_dict(), "extra": torch.zeros(2)}
    del state["norm_f.weight"]
    report = load_checkpoint(model, write(state), strict=False)
    assert report.missing == ("norm_f.weight", "head.weight", "head.bias")
    assert report.unexpected == ("extra", "head.weight", "head.bias")
    assert report.tensors == len(model.state_dict()) - 3
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_unknown_choice_of_weights(write):
    with pytest.raises(CheckpointError, match="weights='ema'; give one of auto, model, model_ema"):
        load_checkpoint(make(), write(make().state_dict()), weights="ema")


def test_missing_file(refuses, tmp_path):
    refuses(tmp_path / "weights.pth", "there is no file .*check the path")


def test_folder(refuses, tmp_path):
    refuses(tmp_path, "is a folder; give the weight file inside it")


def test_empty_file(refuses, write):
    refuses(write(b""), "is empty; download it again")


@pytest.mark.parametrize("keep", [0.999, 0.7, 0.1])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "old.pth"])
def test_truncated_file(refuses, write, name, keep):
    new = {} if name != "old.pth" else {"_use_new_zipfile_serialization": False}
    path = write(make().state_dict(), name, **new)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refuses(path, "is damaged or cut short .*download it again")


def test_zip_that_is_no_checkpoint(refuses, tmp_path):
    path = tmp_path / "weights.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuses(path, "is damaged")


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 4) + b"{xy}",
        struct.pack("<Q", 2) + b"{}",
    ],
    ids=["header too long", "header no JSON", "no tensors"],
)
def test_safetensors_with_a_bad_header(refuses, write, content):
    refuses(write(content, "weights.pth"), "damaged or cut short|it holds nothing")


def test_git_lfs_pointer(refuses, write):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 28613\n"
    refuses(write(pointer), "Git LFS pointer.*git lfs pull.*download")


@pytest.mark.parametrize("start", [b"<!DOCTYPE html>\n<html>", b"\n <html><head>"])
def test_web_page(refuses, write, start):
    refuses(write(start + b"..."), "is a web page, not weights: .*download the file itself")


def test_some_other_file(refuses, write):
    refuses(write(b"\x1f\x8b\x08 gzip"), "neither a PyTorch file nor safetensors")


def test_text_file(refuses, write):
    refuses(write(b"epoch,loss\n1,2\n"), "neither a PyTorch file nor safetensors")


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return exec, (f"open({str(self.witness)!r}, 'w').close()",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["args", "model", "whole"])
def test_malicious_pickle_is_named_and_does_not_run(refuses, write, tmp_path, zipped, where):
    witness = tmp_path / "ran"
    content = {**training_checkpoint(make()), where: Payload(witness)}
    content = Payload(witness) if where == "whole" else content
    path = write(content, _use_new_zipfile_serialization=zipped)
    refuses(path, r"nothing in it was executed: it wants to use (builtins\.)?exec,")
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the payload is a real one"


def test_plain_pickle_with_a_payload_does_not_run(refuses, write, tmp_path):
    witness = tmp_path / "ran"
    refuses(write(pickle.dumps(Payload(witness))), "weights.pth")
    assert not witness.exists()


def test_every_foreign_class_is_named(refuses, write):
    content = {
        **training_checkpoint(make()),
        "metrics": collections.Counter("ab"),
        "range": slice(3),
    }
    content["args"].lr = collections.UserDict()
    message = refuses(write(content), "was not loaded")
    assert "collections.UserDict" in message
    assert "argparse.Namespace," not in message


def test_namespace_is_not_allowed_beyond_the_call(write):
    path = write(training_checkpoint(make()))
    load_checkpoint(make(), path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("absent", [{}, {"model_ema": None}])
def test_no_moving_average_inside(refuses, write, absent):
    content = {**training_checkpoint(make()), **absent}
    if not absent:
        del content["model_ema"]
    message = refuses(write(content), "has no model_ema", weights="model_ema")
    assert "it holds model, optimizer, lr_scheduler" in message
    assert "weights='model'" in message


def test_moving_average_of_a_bare_state_dict(refuses, write):
    refuses(write(make().state_dict()), "has no model_ema", weights="model_ema")


def test_checkpoint_without_weights(refuses, write):
    refuses(write({"epoch": 3, "lr": 0.1}), "has no model or state_dict .* it holds epoch, lr")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3])
def test_content_that_is_no_dictionary(refuses, write, content):
    refuses(write(content), f"holds a {type(content).__name__}; give a state_dict")


@pytest.mark.parametrize("content", [{"model": {}}, {"state_dict": {}}])
def test_no_tensors_at_all(refuses, write, content):
    refuses(write(content), "holds no weights")


def test_entries_that_are_no_tensors(refuses, write):
    state = {**make().state_dict(), "epoch": 3, "note": "best"}
    refuses(write(state), r"no tensors: epoch \(int\), note \(str\); save")


def test_quantised_weights(refuses, write):
    state = {**make().state_dict(), "norm_f.weight": torch.ones(32, dtype=torch.int8)}
    refuses(write(state), "norm_f.weight is torch.int8, where the model has torch.float32")


def test_other_number_of_classes(refuses, write):
    path = write(make(num_classes=7).state_dict())
    refuses(path, r"classifies into 7 classes, the model into 10: .*num_classes=7 ")


def test_model_without_a_head(refuses, write):
    message = refuses(write(make().state_dict()), "has no", make(num_classes=0))
    assert "head.weight; head.bias" in message


@pytest.mark.parametrize(
    "name", ["vim_nano_patch16_224", "vim_small_patch16_224", "vim_tiny_patch16_stride8_224"]
)
def test_another_variant_is_recognised(refuses, write, name):
    with torch.device("meta"):
        shapes = timm.create_model(name, num_classes=1000).state_dict()
    state = {key: torch.zeros(value.shape, dtype=torch.float16) for key, value in shapes.items()}
    message = refuses(write({"model": state}), f"create_model\\('{name}'\\)")
    assert "another architecture" in message


def test_other_depth_is_grouped_and_counted(refuses, write):
    message = refuses(write(make(depth=2).state_dict()), "another architecture")
    assert "the file lacks (17 tensors): layers.*." in message
    assert "and 13 more" in message
    assert "fits no registered model" in message


def test_foreign_model_is_grouped_and_counted(refuses, write):
    ours, state = make().state_dict(), timm.create_model("test_vit").state_dict()
    message = refuses(write(state), "another architecture")
    assert f"the file lacks ({len(ours.keys() - state.keys())} tensors)" in message
    assert f"the model has no ({len(state.keys() - ours.keys())} tensors)" in message
    assert "blocks.*.norm1.weight x" in message
    assert "of another shape" in message


def test_unknown_grid_says_so(refuses, write):
    state = make(img_size=(64, 48)).state_dict()
    message = refuses(write(state), "another architecture")
    assert "pos_embed: (1, 13, 32) in the file, (1, 17, 32) in the model" in message


def test_any_module_loads(write):
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    assert load_checkpoint(model, write(source.state_dict())).tensors == 2
    assert same(model, source)


def test_it_is_public():
    assert vimlrp.load_checkpoint is load_checkpoint
