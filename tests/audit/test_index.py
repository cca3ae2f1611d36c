import os
import shutil

import numpy as np
import pytest
from audit_data import photos, read
from PIL import Image

from vimlrp.audit.gathering.index import index, read_index
from vimlrp.audit.gathering.statistics import measure
from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError, MissingDependencyError


def begun(folder, data, **settings):
    return Workspace.create(folder, data, settings, class_names=[str(i) for i in range(10)])


@pytest.fixture
def folder(tmp_path):
    """Six pictures, of which 7/1 is a copy of 0/2 and 7/2 one of 7/0, and two that are none."""
    data = photos(tmp_path / "data")
    shutil.copy(data / "0" / "2.png", data / "7" / "1.png")
    Image.open(data / "7" / "0.png").resize((96, 80)).save(data / "7" / "2.png")
    (data / "0" / "text.png").write_text("no picture")
    (data / "7" / "empty.jpg").write_bytes(b"")
    return data


def test_every_file_is_measured_or_named_as_a_problem(folder, tmp_path):
    data = read(folder)
    steps = []
    found = index(begun(tmp_path / "out", data), lambda *step: steps.append(step))
    names = [sample.name for sample in data.samples]
    bad = ["0/text.png", "7/empty.jpg"]
    assert [n for n, ok in zip(names, found.readable, strict=True) if not ok] == bad
    unreadable = [p for p in found.problems if p.kind == "picture cannot be read"]
    assert [p.sample for p in unreadable] == bad
    assert "0 bytes" in unreadable[1].detail
    for sample, values, ok in zip(data.samples, found.statistics, found.readable, strict=True):
        expected = measure(sample.path) if ok else np.full(len(values), np.nan)
        np.testing.assert_array_equal(values, expected)
    assert steps[0] == (0, 8, "index")
    assert steps[-1] == (8, 8, "index")


def test_copies_are_found_and_those_with_another_label_named(folder, tmp_path):
    data = read(folder)
    found = index(begun(tmp_path / "out", data))
    names = [sample.name for sample in data.samples]
    copies = {names[i]: names[j] for i, j in enumerate(found.originals) if i != j}
    assert copies == {"7/1.png": "0/2.png", "7/2.png": "7/0.png"}
    contrary = [p for p in found.problems if p.kind == "copy with another label"]
    assert [p.sample for p in contrary] == ["7/1.png"]
    assert "0/2.png" in contrary[0].detail


def test_unreadable_files_are_no_copies_of_one_another(tmp_path):
    folder = photos(tmp_path / "data", count=1)
    for i in range(2):
        (folder / "0" / f"bad{i}.png").write_text("no picture")
    found = index(begun(tmp_path / "out", read(folder)))
    assert found.originals.tolist() == [0, 1, 2, 3]


def test_a_finished_index_is_read_and_an_unfinished_one_refused(folder, tmp_path, monkeypatch):
    workspace = begun(tmp_path / "out", read(folder))
    with pytest.raises(InputError, match="lacks 1 of 1 chunks of the stage 'index'"):
        read_index(workspace)
    found = index(workspace)
    monkeypatch.setattr("vimlrp.audit.gathering.index.read_photo", None)  # nothing is read again
    for again in (index(begun(tmp_path / "out", read(folder))), read_index(workspace)):
        np.testing.assert_array_equal(again.statistics, found.statistics)
        assert again.problems == found.problems


def test_a_picture_that_was_replaced_meanwhile_is_refused(folder, tmp_path):
    data = read(folder)
    index(begun(tmp_path / "out", data))
    path = folder / "0" / "1.png"
    size = path.stat().st_size
    os.utime(path, (1, 1))  # touched, but the same
    index(begun(tmp_path / "out", data))
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=r"0/1\.png is not the picture that it was"):
        index(begun(tmp_path / "out", data))


def test_data_may_move(folder, tmp_path):
    found = index(begun(tmp_path / "out", read(folder)))
    shutil.move(folder, tmp_path / "moved")
    workspace = begun(tmp_path / "out", read(tmp_path / "moved"))
    assert index(workspace).problems == found.problems
    assert (
        Workspace.existing(tmp_path / "out").samples[0].path == tmp_path / "moved" / "0" / "0.png"
    )


def test_many_chunks_are_the_same_as_one(folder, tmp_path, monkeypatch):
    data = read(folder)
    whole = index(begun(tmp_path / "whole", data))
    monkeypatch.setattr("vimlrp.audit.gathering.index._CHUNK", 3)
    parts = index(begun(tmp_path / "parts", data))
    assert len(list((tmp_path / "parts" / "parts" / "index").iterdir())) == 3
    for name in ("readable", "statistics", "originals"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_missing_packages_are_named_before_anything_is_read(folder, tmp_path, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    workspace = begun(tmp_path / "out", read(folder))
    monkeypatch.setattr("vimlrp.optional.import_module", refuse)
    with pytest.raises(MissingDependencyError, match=r"vimlrp\[audit\]"):
        index(workspace)
