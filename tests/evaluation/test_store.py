import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.store import Part, Store

SETTINGS = {"model": "a", "steps": [1, 2]}
PART = Part(
    {"value x": np.array([1.0, np.nan])},
    [Problem("a.png", "constant map", "é", "m")],
    {"s": 0.5},
    "cpu",
)


def test_a_part_comes_back_as_it_was_also_to_the_next_run(tmp_path):
    Store(tmp_path / "out", SETTINGS)[3, "mamba lrp"] = PART
    store = Store(tmp_path / "out", SETTINGS)
    assert (3, "mamba lrp") in store
    assert (3, "") not in store
    found = store[3, "mamba lrp"]
    assert np.array_equal(found.arrays["value x"], PART.arrays["value x"], equal_nan=True)
    assert list(found.problems) == PART.problems
    assert found.facts == {"s": 0.5}
    assert found.device == "cpu"


def test_other_settings_are_refused_by_name_and_replaced_when_asked(tmp_path):
    Store(tmp_path, SETTINGS)[0, "m"] = PART
    other = {**SETTINGS, "model": "b"}
    with pytest.raises(InputError, match=r"other settings \(model\)"):
        Store(tmp_path, other)
    assert (0, "m") in Store(tmp_path, SETTINGS)
    assert (0, "m") not in Store(tmp_path, other, overwrite=True)
    assert (0, "m") not in Store(tmp_path, other)


def test_a_folder_of_somebody_elses_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="holds files and no evaluation"):
        Store(tmp_path, SETTINGS, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_what_a_killed_write_left_is_no_other_file(tmp_path):
    for place in (tmp_path, tmp_path / "parts"):
        place.mkdir(exist_ok=True)
        (place / ".vimlrp-0123.part").write_bytes(b"half")
    store = Store(tmp_path / "parts", SETTINGS)
    store[0, "m"] = PART
    assert not list((tmp_path / "parts").rglob("*.part"))
    assert (tmp_path / ".vimlrp-0123.part").exists()


def test_a_full_disk_is_named_and_keeps_what_is_measured(tmp_path, monkeypatch):
    store = Store(tmp_path, SETTINGS)
    store[0, "m"] = PART

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vimlrp.files.os.fsync", full)
    with pytest.raises(InputError, match=r"00001-m\.npz cannot be written.*No space.*stays"):
        store[1, "m"] = PART
    monkeypatch.undo()
    assert [(i, "m") in Store(tmp_path, SETTINGS) for i in (0, 1)] == [True, False]
    assert not list(tmp_path.rglob("*.part"))


def test_unreadable_settings_are_other_settings(tmp_path):
    Store(tmp_path, SETTINGS)[0, "m"] = PART
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        Store(tmp_path, SETTINGS)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half", None])
def test_a_damaged_part_is_named(tmp_path, damage):
    store = Store(tmp_path, SETTINGS)
    store[0, "m"] = PART
    (file,) = (tmp_path / "parts").iterdir()
    if damage is None:
        np.savez(file, x=np.zeros(1))
    else:
        file.write_bytes(damage)
    with pytest.raises(InputError, match=r"00000-m\.npz is damaged"):
        store[0, "m"]


def test_a_folder_without_parts_of_methods_gives_way(tmp_path):
    Store(tmp_path, SETTINGS)[0, ""] = PART
    other = Store(tmp_path, {**SETTINGS, "model": "b"})
    assert (0, "") not in other


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("dear")
    for folder in ("file", "file/below"):
        with pytest.raises(InputError, match="cannot hold an evaluation"):
            Store(tmp_path / folder, SETTINGS)


def test_parts_that_cannot_be_removed_are_no_loss_in_silence(tmp_path, monkeypatch):
    Store(tmp_path, SETTINGS)[0, "m"] = PART

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "not allowed")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(InputError, match="not allowed"):
        Store(tmp_path, {**SETTINGS, "model": "b"}, overwrite=True)
    monkeypatch.undo()
    assert (0, "m") in Store(tmp_path, SETTINGS)


OUTPUTS = ("samples.csv", "curves.csv", "problems.csv", "table.md", "cost.md", "manifest.json")


def test_outputs_of_other_settings_go_with_their_parts_and_nothing_else(tmp_path):
    Store(tmp_path, SETTINGS)[0, "m"] = PART
    (tmp_path / "curves").mkdir()
    for name in (*OUTPUTS, "thesis.txt", "curves/note.txt", "parts/note.npz"):
        (tmp_path / name).write_text("old")
    mark = PngInfo()
    mark.add_text("Software", "vimlrp evaluate")
    picture = Image.new("RGB", (4, 4))
    picture.save(tmp_path / "curves" / "ours.png", pnginfo=mark)
    picture.save(tmp_path / "curves" / "mine.png")
    Store(tmp_path, SETTINGS)
    assert all((tmp_path / name).exists() for name in (*OUTPUTS, "curves/ours.png"))
    Store(tmp_path, {**SETTINGS, "model": "b"}, overwrite=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {
        "settings.json", "thesis.txt", "curves", "curves/note.txt", "curves/mine.png", "parts",
        "parts/note.npz",
    }  # fmt: skip


def test_a_refusal_removes_nothing(tmp_path):
    Store(tmp_path, SETTINGS)[0, "m"] = PART
    (tmp_path / "table.md").write_text("old")
    with pytest.raises(InputError, match="other settings"):
        Store(tmp_path, {**SETTINGS, "model": "b"})
    assert (tmp_path / "table.md").read_text() == "old"
