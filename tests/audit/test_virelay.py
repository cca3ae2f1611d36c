import json
import sys

import numpy as np
import pytest
from PIL import Image
from small_audit import PREPROCESSING, candidate, evidence, finding, score, whole

from vimlrp.audit.records import Channel, Screening
from vimlrp.audit.virelay import write_virelay
from vimlrp.errors import InputError, MissingDependencyError

h5py = pytest.importorskip("h5py")
OPTIONS = {"model": 'a "model": x', "preprocessing": PREPROCESSING, "side": 32}


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def export(audit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "virelay"
    files = write_virelay(folder, *audit, **OPTIONS)
    assert sorted(files) == sorted(folder.iterdir())
    return folder


def test_the_project_names_the_files(export):
    project = json.loads((export / "project.yaml").read_text())["project"]
    assert project["model"] == 'a "model": x'
    assert project["dataset"]["type"] == "hdf5"
    assert project["dataset"]["input_width"] == 32
    assert project["attributions"]["attribution_strategy"] == "true_label"
    named = [project["label_map"], project["dataset"]["path"]]
    named += project["attributions"]["sources"] + project["analyses"][0]["sources"]
    assert all((export / name).is_file() for name in named)
    labels = json.loads((export / "label-map.json").read_text())
    assert labels[1] == {"index": 1, "word_net_id": "00000001", "name": "class 1"}


def test_pictures_come_with_their_labels(export, audit):
    found = audit[0]
    with h5py.File(export / "input.h5") as file:
        assert (file["data"].shape, file["data"].dtype) == ((32, 3, 32, 32), np.uint8)
        np.testing.assert_array_equal(file["label"][:], found.labels)
        assert [name.decode() for name in file["name"][:]] == [s.name for s in found.samples]
        shown = np.moveaxis(file["data"][5], 0, -1).astype(float)
    # 48 pixels to 32: the mean over 1.5 of them, or over 3 of each cut in two.
    fine = np.asarray(Image.open(found.samples[5].path), float).repeat(2, 0).repeat(2, 1)
    expected = fine.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(shown, expected, atol=1)


def test_maps_sum_to_what_was_kept(export, audit):
    found = audit[0]
    with h5py.File(export / "attribution.h5") as file:
        assert (file["attribution"].shape, file["attribution"].dtype) == (
            (32, 3, 16, 16),
            np.float32,
        )
        sums = file["attribution"][:].sum(axis=1)
        np.testing.assert_allclose(sums, found.maps.astype(np.float32), rtol=1e-5)
        np.testing.assert_array_equal(file["index"][:], np.arange(32))
        assert file["prediction"].shape == (32, 2)
        np.testing.assert_array_equal(file["prediction"][:].argmax(axis=1), found.predictions)
        assert file["label"].dtype == np.uint16


def test_every_class_has_embeddings_and_clusterings(export):
    with h5py.File(export / "analysis.h5") as file:
        assert list(file) == ["00000000", "00000001"]
        first, second = file["00000000"], file["00000001"]
        assert second["name"][()].decode() == "class 1"
        np.testing.assert_array_equal(second["index"][:], np.arange(16, 32))
        assert second["index"].dtype == np.uint32
        # The viewer takes the names of the first class for those of all.
        assert set(first["cluster"]) == set(second["cluster"])
        assert set(second["cluster"]) == {
            "relevance", "latent", "statistics", "comparison", "predicted", "cue 1",
        }  # fmt: skip
        assert set(second["embedding"]) == {"relevance", "latent"}
        assert second["embedding/relevance"].shape == (16, 2)
        np.testing.assert_array_equal(second["cluster/relevance"][:], [1] * 3 + [0] * 13)
        np.testing.assert_array_equal(second["cluster/cue 1"][:], [1] * 6 + [0] * 10)
        np.testing.assert_array_equal(first["cluster/cue 1"][:], [0] * 16)
        np.testing.assert_array_equal(first["cluster/predicted"][:], [0, 1, 1, 1] * 4)


def test_classes_can_be_chosen_and_copies_and_lost_files_are_left_out(tmp_path):
    found = evidence(tmp_path / "pictures", counts=(6, 14, 14))
    found.originals[8] = 7
    found.samples[9].path.unlink()
    cue = finding(candidate(found, 1, 5, Channel.LATENT, local=False))
    folder = tmp_path / "virelay"
    write_virelay(folder, found, Screening((score(1, 0.5),), 0.1), (cue,), classes=[1], **OPTIONS)
    with h5py.File(folder / "input.h5") as file:
        names = [name.decode() for name in file["name"][:]]
        assert file["data"].shape[0] == 12
    assert names == [f"1/{i}.png" for i in range(6, 20) if i not in (8, 9)]
    with h5py.File(folder / "analysis.h5") as file:
        assert list(file) == ["00000001"]
        np.testing.assert_array_equal(file["00000001/index"][:], np.arange(12))
        # Of the carriers 6 to 10 two are left out.
        assert file["00000001/cluster/cue 1"][:].tolist() == [1, 1, 1] + [0] * 9


def test_a_folder_is_replaced_only_on_request(audit, tmp_path):
    folder = tmp_path / "virelay"
    write_virelay(folder, *audit, classes=[0], **OPTIONS)
    with pytest.raises(InputError, match="already exists"):
        write_virelay(folder, *audit, classes=[1], **OPTIONS)
    write_virelay(folder, *audit, classes=[1], overwrite=True, **OPTIONS)
    with h5py.File(folder / "analysis.h5") as file:
        assert list(file) == ["00000001"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 8}, "side is 8; give 16 to 1024"),
        ({"classes": [0, 7]}, "there is no class 7; give indices from 0 to 1"),
        ({"classes": []}, "none of the classes has samples"),
    ],
)
def test_what_cannot_be_exported_is_refused(options, message, audit, tmp_path):
    with pytest.raises(InputError, match=message):
        write_virelay(tmp_path / "virelay", *audit, **OPTIONS | options)
    assert list(tmp_path.iterdir()) == []


def test_lost_pictures_leave_nothing_behind(tmp_path):
    found, screening, findings = whole(tmp_path / "pictures")
    for sample in found.samples:
        sample.path.unlink()
    with pytest.raises(InputError, match="none of the samples' files can be read"):
        write_virelay(tmp_path / "out" / "virelay", found, screening, findings, **OPTIONS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_h5py_is_named_with_its_extra(audit, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[audit\]'"):
        write_virelay(tmp_path / "virelay", *audit, **OPTIONS)


def test_virelay_opens_it(export):
    model = pytest.importorskip("virelay.model", reason="virelay is not installed")
    project = model.Project(str(export / "project.yaml"))
    analysis = project.get_analysis("Audit", "00000001", "cue 1", "relevance")
    assert analysis.human_readable_category_name == "class 1"
    assert analysis.clustering.sum() == 6
    attribution = project.get_attribution(20)
    assert attribution.render_heatmap("blue-white-red").shape == (16, 16, 3)
    assert project.get_sample(20).data.shape == (32, 32, 3)
    project.close()
