import numpy as np
import pytest
from audit_data import photos, read

from vimlrp.audit.workspace import Workspace
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box, DataSet, Problem, Sample
from vimlrp.evaluation.parts import Part

NAMES = [str(i) for i in range(10)]


def begun(folder, data, **settings):
    return Workspace.create(folder, data, settings, class_names=NAMES)


@pytest.fixture
def data(tmp_path):
    return read(photos(tmp_path / "data"))


def test_samples_and_problems_come_back_as_they_were(tmp_path):
    boxes = (Box((0.5, 1.0, 20.25, 30.0)), Box((0, 0, 1, 1), (640.0, 480.0)))
    samples = (
        Sample(tmp_path / "é.png", "é.png", 3, boxes, (tmp_path / "mask.png",)),
        Sample(tmp_path / "b.png", "b.png"),
    )
    problems = (Problem("c.png", "class missing from the model", "zebra"),)
    begun(tmp_path / "out", DataSet(samples, problems), seed=1)
    workspace = Workspace.existing(tmp_path / "out")
    assert workspace.samples == samples
    assert workspace.data_problems == problems
    assert workspace.class_names == tuple(NAMES)
    assert workspace.settings["seed"] == 1
    assert workspace.labelled


def test_other_settings_and_other_data_are_refused_by_name(tmp_path, data):
    begun(tmp_path / "out", data, seed=0)
    begun(tmp_path / "out", data, seed=0)
    with pytest.raises(InputError, match=r"holds an audit with other settings \(seed\)"):
        begun(tmp_path / "out", data, seed=1)
    fewer = DataSet(data.samples[:-1])
    with pytest.raises(InputError, match=r"\(data_sha256, samples\)"):
        begun(tmp_path / "out", fewer, seed=0)
    data.samples[0].path.write_bytes(b"of another size")
    with pytest.raises(InputError, match=r"\(data_sha256\)"):
        begun(tmp_path / "out", data, seed=0)


def test_overwriting_removes_all_that_was_computed(tmp_path, data):
    begun(tmp_path / "out", data, seed=0).parts["findings/a"] = Part({})
    workspace = Workspace.create(
        tmp_path / "out", data, {"seed": 1}, class_names=NAMES, overwrite=True
    )
    assert "findings/a" not in workspace.parts
    assert len(workspace.samples) == 6


def test_a_folder_without_an_audit_is_refused(tmp_path, data):
    for folder in (tmp_path / "none", tmp_path / "data"):
        with pytest.raises(InputError, match="holds no audit"):
            Workspace.existing(folder)
    with pytest.raises(InputError, match="holds files and no audit"):
        begun(tmp_path / "data", data)


def squares(rows):
    return Part({"row": rows, "square": rows**2})


def test_a_stage_computes_what_is_missing_and_joins_all(tmp_path, data):
    workspace = begun(tmp_path / "out", data)
    rows = np.array([1, 2, 3, 5, 8])
    computed, steps = [], []

    def compute(chunk):
        computed.append(chunk.tolist())
        return squares(chunk)

    workspace.parts["s/00001"] = squares(rows[2:4])
    workspace.run("s", rows, 2, lambda chunk: chunk, compute, lambda *step: steps.append(step))
    assert computed == [[1, 2], [8]]
    assert steps == [(2, 5, "s"), (4, 5, "s"), (5, 5, "s")]
    assert workspace.joined("s", 5, 2).arrays["square"].tolist() == [1, 4, 9, 25, 64]
    assert [part.arrays["row"].tolist() for part in workspace.finished("s")] == [
        [1, 2],
        [3, 5],
        [8],
    ]


def test_chunks_of_which_nothing_is_left_join_with_others(tmp_path, data):
    workspace = begun(tmp_path / "out", data)
    nothing = Part({"row": np.zeros(0, np.int64)}, [Problem("a", "b", "c")])
    for i, part in enumerate((nothing, squares(np.array([4])), nothing)):
        workspace.parts[f"s/{i:05d}"] = part
    found = workspace.joined("s", 3, 1)
    assert found.arrays["square"].tolist() == [16]
    assert len(found.problems) == 2


def test_an_unfinished_stage_is_not_joined(tmp_path, data):
    workspace = begun(tmp_path / "out", data)
    workspace.parts["s/00001"] = squares(np.array([4]))
    with pytest.raises(InputError, match="lacks 2 of 3 chunks of the stage 's'"):
        workspace.joined("s", 5, 2)
    with pytest.raises(InputError, match="no sample is left"):
        workspace.joined("s", 0, 2)


def test_a_damaged_chunk_is_named_and_computed_anew_once_it_is_removed(tmp_path, data):
    workspace = begun(tmp_path / "out", data)
    rows = np.arange(4)
    workspace.run("s", rows, 2, lambda chunk: chunk, squares)
    path = tmp_path / "out" / "parts" / "s" / "00000.npz"
    path.write_bytes(b"half")
    with pytest.raises(InputError, match=r"00000\.npz is damaged.*run the audit again"):
        workspace.joined("s", 4, 2)
    path.unlink()
    workspace.run("s", rows, 2, lambda chunk: chunk, squares)
    assert workspace.joined("s", 4, 2).arrays["square"].tolist() == [0, 1, 4, 9]
