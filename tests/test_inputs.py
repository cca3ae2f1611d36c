"""What may be explained: photos in every form, tensors that fit, and a clear error for the rest."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import images, small_vim
from PIL import Image

import vimlrp
from vimlrp.errors import InputError
from vimlrp.inputs import batches, device_and_dtype, preprocessing_of


def refused(model, given, message):
    with pytest.raises(InputError, match=message):
        vimlrp.explain(model, given)


def with_value(value):
    x = images(2)
    x[1, 2, 3, 4] = value
    return x


BAD_TENSORS = {
    "NaN": (with_value(float("nan")), "NaN or infinite"),
    "infinite": (with_value(float("inf")), "NaN or infinite"),
    "one channel": (torch.zeros(2, 1, 32, 32).double(), r"\(2, 1, 32, 32\).*give \(B, 3, H, W\)"),
    "channels last": (torch.zeros(2, 32, 32, 3).double(), r"\(2, 32, 32, 3\)"),
    "two dimensions": (torch.zeros(32, 32).double(), r"\(32, 32\) is no batch"),
    "five dimensions": (torch.zeros(1, 1, 3, 32, 32).double(), "no batch"),
    "a number": (torch.zeros(()).double(), "no batch"),
    "empty": (torch.zeros(0, 3, 32, 32).double(), "holds no image"),
    "float32": (images(dtype=torch.float32), "torch.float32.*computes in torch.float64"),
    "bytes": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    "integers": (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "torch.int64"),
    "another device": (torch.zeros(1, 3, 32, 32, device="meta").double(), "on meta.*on cpu"),
    "another size": (images(1, 40), "40 x 40 pixels, this model takes 32 x 32"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensor_is_refused(vim, kind):
    refused(vim, *BAD_TENSORS[kind])


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_bad_tensor_is_refused_by_the_check_too(vim, kind):
    given, message = BAD_TENSORS[kind]
    with pytest.raises(InputError, match=message):
        vimlrp.check_conservation(vim, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "no image was given"),
        ((), "no image was given"),
        (7, "cannot explain a int"),
        (None, "cannot explain a NoneType"),
        ({"image": 1}, "cannot explain a dict"),
        ((p for p in "ab"), "cannot explain a generator"),
        ("nowhere.png", "nowhere.png"),
        (Path("nowhere.png"), "nowhere.png"),
        ([None], "NoneType"),
        ([torch.zeros(3, 32, 32)], "[Tt]ensor"),
    ],
    ids=repr,
)
def test_what_is_no_image_is_refused(registered_vim, given, message):
    refused(registered_vim, given, message)


def test_a_folder_is_no_image(registered_vim, tmp_path):
    refused(registered_vim, tmp_path, str(tmp_path.name))


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_file_that_is_no_picture_is_refused_by_name(registered_vim, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    refused(registered_vim, path, "broken.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16", "LA"])
def test_pictures_of_every_mode_are_explained(registered_vim, tmp_path, mode):
    levels = np.arange(80 * 70).reshape(80, 70) % 251
    picture = Image.fromarray(levels.astype(np.uint8))
    picture = (
        Image.fromarray(levels.astype(np.uint16) * 256) if mode == "I;16" else picture.convert(mode)
    )
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture.save(path)
    relevance = vimlrp.explain(registered_vim, path)
    assert relevance.pixels.isfinite().all()
    assert relevance.overlay()[0].shape == (80, 70, 3)


def test_the_smallest_picture_is_explained(registered_vim):
    relevance = vimlrp.explain(registered_vim, np.zeros((1, 1, 3), dtype=np.uint8))
    assert relevance.pixels.shape == (1, 64, 64)


def test_photos_come_in_the_models_type(tmp_path):
    model = small_vim()
    picture = np.zeros((40, 40, 3), dtype=np.uint8)
    assert vimlrp.explain(model, picture).pixels.dtype == torch.float64
    half = copy.deepcopy(model).bfloat16()
    (batch,) = batches(picture, half, None)
    assert batch.x.dtype == torch.bfloat16
    assert vimlrp.explain(half, picture).pixels.dtype == torch.float32


def test_photos_come_at_the_size_that_the_model_has_now():
    model = small_vim()
    model.set_input_size((24, 40))
    assert preprocessing_of(model).size == (24, 40)
    relevance = vimlrp.explain(model, np.zeros((50, 50, 3), dtype=np.uint8))
    assert relevance.pixels.shape == (1, 24, 40)


def test_pictures_come_in_batches_of_16():
    model = small_vim(dtype=torch.float32)
    pictures = [np.zeros((8, 8, 3), dtype=np.uint8)] * 20
    assert [len(batch.x) for batch in batches(pictures, model, None)] == [16, 4]
    assert [len(batch.x) for batch in batches(pictures, model, 9)] == [9, 9, 2]
    assert len(next(batches(images(20, dtype=torch.float32), model, None)).x) == 20


def test_pictures_are_read_when_their_batch_comes(registered_vim, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    parts = batches([tmp_path / "good.png", tmp_path / "missing.png"], registered_vim, 1)
    assert next(parts).sources[0].name == "good.png"
    with pytest.raises(InputError, match=r"missing\.png"):
        next(parts)


def test_a_tensor_of_one_image_is_a_batch_of_one(vim):
    x = images(1)
    assert torch.equal(vimlrp.explain(vim, x[0]).pixels, vimlrp.explain(vim, x).pixels)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.flip(0),
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, ::1, :],
        lambda x: x.expand(2, -1, -1, -1),
    ],
    ids=["flipped", "transposed", "channels last", "sliced", "expanded"],
)
def test_memory_layout_does_not_matter(vim, change):
    x = change(images(1))
    ours, expected = vimlrp.explain(vim, x), vimlrp.explain(vim, x.clone().contiguous())
    assert torch.allclose(ours.pixels, expected.pixels, rtol=1e-10, atol=1e-14)


def test_a_model_on_two_devices_is_refused(vim):
    model = copy.deepcopy(vim)
    model.head.to("meta")
    refused(model, images(), "parameters lie on cpu, meta")


def test_device_and_type_are_the_parameters(vim):
    assert device_and_dtype(vim) == (torch.device("cpu"), torch.float64)
    assert device_and_dtype(torch.nn.Flatten()) == (torch.device("cpu"), torch.float32)


def test_source_of_a_tensor_shows_the_picture(registered_vim):
    x = torch.zeros(1, 3, 64, 64)
    relevance = vimlrp.explain(registered_vim, x)
    picture = relevance.sources[0].picture()
    assert picture.shape == (64, 64, 3)
    # Zero after normalisation is ImageNet's mean colour.
    assert picture[0, 0].tolist() == [124, 116, 104]


def test_later_changes_of_the_users_tensor_do_not_reach_the_result(registered_vim):
    x = torch.zeros(1, 3, 64, 64)
    relevance = vimlrp.explain(registered_vim, x)
    before = relevance.sources[0].picture().copy()
    x.fill_(1.0)
    assert np.array_equal(relevance.sources[0].picture(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_explanations_on_a_gpu_are_those_on_the_cpu(vim):
    x = images()
    ours = vimlrp.explain(copy.deepcopy(vim).cuda(), x.cuda())
    expected = vimlrp.explain(vim, x)
    assert ours.pixels.device.type == "cuda"
    assert torch.allclose(ours.pixels.cpu(), expected.pixels, rtol=1e-8, atol=1e-10)
    refused(copy.deepcopy(vim).cuda(), x, "on cpu, the model is on cuda")
