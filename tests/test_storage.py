"""Relevance on disk: everything comes back, nothing half-written stays, nothing foreign is read."""

import hashlib
import io
import json
from importlib.metadata import version

import numpy as np
import pytest
import torch
from helpers import images, random, small_vim
from PIL import Image
from test_relevance import assert_equal

import vimlrp
from vimlrp import heatmaps
from vimlrp.errors import InputError


@pytest.fixture(scope="module")
def relevance(vim):
    return vimlrp.explain(vim, images(2), target=[1, 3], record=["layers.0", "head", ""])


@pytest.fixture
def saved(relevance, tmp_path):
    return relevance.save(tmp_path / "saved")


def load(folder):
    return vimlrp.Relevance.load(folder)


def test_everything_comes_back(relevance, saved):
    loaded = load(saved)
    assert_equal(loaded, relevance)
    assert loaded.pixels.dtype == torch.float64
    assert loaded.sources == ()
    assert str(loaded.account) == str(relevance.account)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_type_comes_back(tmp_path, dtype):
    model = small_vim(dtype=torch.float32).to(dtype)
    relevance = vimlrp.explain(model, images(1, dtype=dtype), record=["layers.0"])
    loaded = load(relevance.save(tmp_path / "x"))
    assert torch.equal(loaded.pixels, relevance.pixels)
    assert torch.equal(loaded.logits.to(dtype), relevance.logits)
    record = relevance.recorded["layers.0"].activation
    assert torch.equal(loaded.recorded["layers.0"].activation.to(record.dtype), record)


def test_relevance_of_a_direction_comes_back(vim, tmp_path):
    relevance = vimlrp.explain(vim, images(1), start=("layers.0", random(16)))
    loaded = load(relevance.save(tmp_path / "x"))
    assert loaded.target is None
    assert torch.equal(loaded.tokens, relevance.tokens)


def test_what_was_loaded_can_be_saved_again(relevance, saved, tmp_path):
    again = load(load(saved).save(tmp_path / "again"))
    assert_equal(again, relevance)
    assert not list((tmp_path / "again").glob("*.png"))


def test_what_was_loaded_cannot_be_drawn_on_photos(saved):
    loaded = load(saved)
    assert loaded.heatmap()[0].shape == (32, 32, 3)
    with pytest.raises(InputError, match="holds no pictures"):
        loaded.overlay()


def test_manifest_says_what_was_explained(relevance, saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["model"] == "VisionMamba"
    assert manifest["composite"] == relevance.composite
    for name in ("vimlrp", "torch", "timm", "numpy"):
        assert manifest["versions"][name] == version(name)
    arrays = (saved / manifest["arrays"]).read_bytes()
    assert manifest["arrays_sha256"] == hashlib.sha256(arrays).hexdigest()
    assert len(manifest["samples"]) == 2
    for i, sample in enumerate(manifest["samples"]):
        assert sample["target"] == (1, 3)[i]
        assert sample["value"] == pytest.approx(float(relevance.account.target[i]))
        assert sample["top"][0]["class"] == int(relevance.logits[i].argmax())
        assert sum(sample["account"].values()) == pytest.approx(sample["value"])
        assert sample["seen"] == [0, 0, 32, 32]
        for picture in sample["pictures"]:
            assert Image.open(saved / picture).size[0] >= 32


def test_folder_holds_what_the_manifest_lists_and_no_more(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    listed = {"manifest.json", manifest["arrays"]}
    listed |= {picture for sample in manifest["samples"] for picture in sample["pictures"]}
    assert {path.name for path in saved.iterdir()} == listed


def test_photos_of_one_name_get_pictures_of_their_own(registered_vim, tmp_path):
    paths = [tmp_path / folder / "a photo.png" for folder in ("one", "two")]
    paths.append(tmp_path / "000_a_photo.png")
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), "red").save(path)
    folder = vimlrp.explain(registered_vim, paths).save(tmp_path / "out")
    samples = json.loads((folder / "manifest.json").read_text())["samples"]
    pictures = [picture for sample in samples for picture in sample["pictures"]]
    assert len({p.casefold() for p in pictures}) == len(pictures)
    assert [sample["file"] for sample in samples] == [str(path) for path in paths]


def test_photo_with_a_strange_name_is_saved(registered_vim, tmp_path):
    path = tmp_path / "..été -_?*.weird.png"
    Image.new("RGB", (64, 64)).save(path)
    folder = vimlrp.explain(registered_vim, path).save(tmp_path / "out")
    assert all(file.resolve().parent == folder.resolve() for file in folder.iterdir())
    assert list(folder.glob("*.png"))


def test_existing_folder_is_not_replaced_unasked(relevance, saved):
    before = (saved / "relevance.npz").read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        relevance[0].save(saved)
    assert (saved / "relevance.npz").read_bytes() == before
    relevance[0].save(saved, overwrite=True)
    assert len(load(saved)) == 1


def test_foreign_folder_is_never_replaced(relevance, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.txt").write_text("mine")
    with pytest.raises(InputError, match="not written by vimlrp"):
        relevance.save(tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "me.txt").read_text() == "mine"


def test_failure_while_drawing_leaves_nothing(relevance, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no ink")

    monkeypatch.setattr(heatmaps, "write_png", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        relevance.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_failure_while_drawing_keeps_the_former_result(relevance, saved, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no ink")

    monkeypatch.setattr(heatmaps, "write_png", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        relevance[0].save(saved, overwrite=True)
    assert_equal(load(saved), relevance)
    assert list(saved.parent.iterdir()) == [saved]


def rewrite(folder, change):
    """Change the arrays of a saved relevance, and the manifest's fingerprint with them."""
    with np.load(folder / "relevance.npz") as arrays:
        values = change(dict(arrays))
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    data = buffer.getvalue()
    (folder / "relevance.npz").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["arrays_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_changed_arrays_are_refused(saved):
    data = bytearray((saved / "relevance.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (saved / "relevance.npz").write_bytes(bytes(data))
    with pytest.raises(InputError, match="not those that its manifest describes"):
        load(saved)


def test_truncated_arrays_are_refused(saved):
    data = (saved / "relevance.npz").read_bytes()
    (saved / "relevance.npz").write_bytes(data[:-100])
    with pytest.raises(InputError, match="not those"):
        load(saved)


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_loading_never_unpickles(saved):
    def plant(arrays):
        return {**arrays, "pixels": np.array([Bomb()], dtype=object)}

    rewrite(saved, plant)
    with pytest.raises(InputError):
        load(saved)


@pytest.mark.parametrize("missing", ["pixels", "logits", "account/target"])
def test_arrays_that_lack_something_are_refused(saved, missing):
    rewrite(saved, lambda arrays: {k: v for k, v in arrays.items() if k != missing})
    with pytest.raises(InputError, match=missing):
        load(saved)


@pytest.mark.parametrize(
    "manifest", ["", "{", "[]", "3", "null", "{}", '{"format": 99}', '{"format": 1}']
)
def test_foreign_manifests_are_refused(saved, manifest):
    (saved / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="saved"):
        load(saved)


@pytest.mark.parametrize("missing", ["manifest.json", "relevance.npz"])
def test_folder_without_its_files_is_refused(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(InputError, match="holds no relevance that vimlrp saved"):
        load(saved)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(InputError, match="holds no relevance that vimlrp saved"):
            load(path)


def test_manifest_that_lacks_an_entry_is_refused(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["composite"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="composite"):
        load(saved)
