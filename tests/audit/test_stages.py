"""From pictures to evidence, also when interrupted at any moment."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from audit_data import contents, photos, read
from helpers import small_vim
from torch import nn

import vimlrp
from vimlrp import files
from vimlrp.audit.gathering.maps import area_sums, shares
from vimlrp.audit.gathering.statistics import measure
from vimlrp.audit.stages import gather, read_evidence, read_gathered
from vimlrp.errors import InputError, TargetError, UnsupportedModelError
from vimlrp.evaluation import parts
from vimlrp.evaluation.data import DataSet, Sample, read_data
from vimlrp.inputs import preprocessing_of
from vimlrp.photos import read_photo

OPTIONS = {"batch_size": 2, "layer": "layers.1"}


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "data")


def test_evidence_is_what_an_explanation_of_each_picture_gives(registered_vim, folder, tmp_path):
    evidence = gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    assert [s.name for s in evidence.samples] == [f"{c}/{i}.png" for c in "07" for i in range(3)]
    assert evidence.labels.tolist() == [0] * 3 + [7] * 3
    assert evidence.layer == "layers.1"
    assert evidence.class_names == tuple(map(str, range(10)))
    explainer = vimlrp.Explainer(registered_vim)
    for i, sample in enumerate(evidence.samples):
        alone = explainer(sample.path, target=int(evidence.labels[i]), record=("layers.1",))
        record = alone.recorded["layers.1"]  # (1, L, C)
        latent = record.relevance[0].sum(0)
        expected = {
            "maps": shares(area_sums(alone.pixels))[0],
            "latent": latent / latent.abs().sum(),
            "activations": record.activation[0].amax(0),
            "probabilities": alone.probabilities()[0, evidence.labels[i]],
        }
        for name, value in expected.items():
            found = torch.from_numpy(np.asarray(getattr(evidence, name)[i], np.float32))
            torch.testing.assert_close(found, value.float(), rtol=2e-3, atol=2e-5)
        assert evidence.predictions[i] == alone.logits[0].argmax()
        np.testing.assert_array_equal(evidence.statistics[i], measure(sample.path))
    dtypes = {
        "labels": "int64", "predictions": "int64", "originals": "int64", "statistics": "float32",
        "probabilities": "float32", "maps": "float16", "latent": "float16",
        "activations": "float16",
    }  # fmt: skip
    assert {name: getattr(evidence, name).dtype.name for name in dtypes} == dtypes
    magnitudes = np.abs(evidence.maps.astype(float)).sum((1, 2))
    np.testing.assert_allclose(magnitudes, 1, atol=2e-3)


def test_evidence_is_read_again_without_model_or_pictures(registered_vim, folder, tmp_path):
    evidence = gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    again = read_evidence(tmp_path / "out")
    assert again.samples == evidence.samples
    for name in ("labels", "maps", "latent", "activations", "statistics", "originals"):
        np.testing.assert_array_equal(getattr(again, name), getattr(evidence, name))


def test_unreadable_pictures_are_problems_and_copies_are_counted_among_the_rest(
    registered_vim, folder, tmp_path
):
    (folder / "0" / "0.png").write_text("no picture")
    (folder / "0" / "2.png").write_bytes((folder / "0" / "1.png").read_bytes())
    gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    gathered = read_gathered(tmp_path / "out")
    evidence = gathered.evidence()
    assert [s.name for s in evidence.samples][:2] == ["0/1.png", "0/2.png"]
    assert evidence.originals.tolist() == [0, 0, 2, 3, 4]
    assert evidence.of_class(0).tolist() == [0]
    assert [(p.sample, p.kind) for p in gathered.problems()] == [
        ("0/0.png", "picture cannot be read")
    ]


def test_pictures_without_labels_are_audited_for_the_predicted_class(registered_vim, tmp_path):
    folder = photos(tmp_path / "data", ("",), count=5)
    evidence = gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    explainer = vimlrp.Explainer(registered_vim)
    expected = [int(explainer(s.path).logits[0].argmax()) for s in evidence.samples]
    assert evidence.labels.tolist() == evidence.predictions.tolist() == expected
    assert not read_gathered(tmp_path / "out").workspace.labelled
    one = expected[0]
    chosen = gather(
        registered_vim, read(folder), tmp_path / "one", classes=[one], per_class=1, **OPTIONS
    )
    assert chosen.labels.tolist() == [one]


def test_classes_and_numbers_are_chosen_before_anything_is_read(registered_vim, folder, tmp_path):
    evidence = gather(
        registered_vim, read(folder), tmp_path / "out", classes=["7"], per_class=2, **OPTIONS
    )
    assert evidence.labels.tolist() == [7, 7]
    index = read_gathered(tmp_path / "out").index
    assert len(index.readable) == 2


def test_a_picture_that_is_refused_alone_costs_no_other(
    registered_vim, folder, tmp_path, monkeypatch
):
    run = vimlrp.Explainer.__call__
    bad, _ = preprocessing_of(registered_vim)(read_photo(folder / "0" / "1.png"))

    def refuse(self, images, **options):
        if any(torch.equal(x, bad) for x in images):
            raise InputError("the logits are not finite")
        return run(self, images, **options)

    monkeypatch.setattr(vimlrp.Explainer, "__call__", refuse)
    evidence = gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    assert len(evidence) == 5
    problems = read_gathered(tmp_path / "out").problems()
    assert [(p.sample, p.kind) for p in problems] == [("0/1.png", "cannot be explained")]


def test_maps_that_are_not_finite_are_problems(registered_vim, folder, tmp_path, monkeypatch):
    run = vimlrp.Explainer.__call__

    def broken(self, images, **options):
        relevance = run(self, images, **options)
        if len(relevance) == 2:
            relevance.pixels[1, 3, 3] = float("nan")
        return relevance

    monkeypatch.setattr(vimlrp.Explainer, "__call__", broken)
    evidence = gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    assert [s.name for s in evidence.samples] == ["0/0.png", "0/2.png", "7/1.png"]
    problems = read_gathered(tmp_path / "out").problems()
    assert {p.kind for p in problems} == {"map not finite"}
    assert len(problems) == 3


def test_interrupted_at_any_write_it_ends_with_the_same_bytes(
    registered_vim, folder, tmp_path, monkeypatch
):
    gather(registered_vim, read(folder), tmp_path / "whole", **OPTIONS)
    whole = contents(tmp_path / "whole")
    write = files.atomic_write
    count = 0

    def counted(path, data):
        nonlocal count
        count += 1
        return write(path, data)

    monkeypatch.setattr(parts, "atomic_write", counted)
    gather(registered_vim, read(folder), tmp_path / "counted", **OPTIONS)
    assert count == len(whole) == 1 + 1 + 1 + 3 + 1  # settings, samples, index, explain, manifest
    for last in range(count):
        out, left = tmp_path / f"out{last}", last

        def interrupted(path, data):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return write(path, data)

        monkeypatch.setattr(parts, "atomic_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gather(registered_vim, read(folder), out, **OPTIONS)
        monkeypatch.setattr(parts, "atomic_write", write)
        gather(registered_vim, read(folder), out, **OPTIONS)
        assert contents(out) == whole


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(registered_vim, tmp_path):
    folder = photos(tmp_path / "data", count=20)
    script = textwrap.dedent(
        """
        import sys
        import timm, torch, vimlrp
        from audit_data import read
        from helpers import enliven, seeded
        from vimlrp.audit.stages import gather
        torch.set_num_threads(1)
        with seeded():
            model = timm.create_model("test_vim", num_classes=10).eval()
        enliven(model)
        gather(model, read(sys.argv[1]), sys.argv[2], batch_size=2, layer="layers.1")
        """
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("parts/explain/*.npz"))) < 3 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    done = len(list(out.glob("parts/explain/*.npz")))
    assert 3 <= done < 20
    (out / "parts" / ".vimlrp-killed.part").write_bytes(b"half")
    for place in (out, tmp_path / "whole"):
        gather(registered_vim, read(folder), place, **OPTIONS)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_full_disk_is_told_and_keeps_what_is_computed(
    registered_vim, folder, tmp_path, monkeypatch
):
    sync = os.fsync
    left = 4

    def full(descriptor):
        nonlocal left
        if left == 0:
            raise OSError(28, "No space left on device")
        left -= 1
        sync(descriptor)

    monkeypatch.setattr("vimlrp.files.os.fsync", full)
    with pytest.raises(
        InputError, match=r"explain/00001\.npz cannot be written.*No space.*goes on"
    ):
        gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    monkeypatch.undo()
    before = contents(tmp_path / "out")
    assert "parts/explain/00000.npz" in before
    with pytest.raises(InputError, match="lacks 2 of 3 chunks"):
        read_evidence(tmp_path / "out")
    gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out").items() >= before.items()


def test_an_audit_of_another_model_is_refused_or_replaced(registered_vim, folder, tmp_path):
    gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    other = small_vim(num_classes=10, dtype=torch.float32)
    with pytest.raises(InputError, match=r"other settings .*model, .*weights_sha256"):
        gather(other, read(folder), tmp_path / "out", **OPTIONS)
    evidence = gather(other, read(folder), tmp_path / "out", overwrite=True, **OPTIONS)
    assert evidence.latent.shape == (6, 16)


def test_settings_tell_what_was_audited(registered_vim, folder, tmp_path):
    gather(registered_vim, read(folder), tmp_path / "out", seed=3, **OPTIONS)
    manifest = read_gathered(tmp_path / "out").workspace
    assert manifest.settings["seed"] == 3
    assert len(manifest.settings["weights_sha256"]) == 64


class Headless(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"per_class": 0}, InputError, "per_class is 0"),
        ({"layer": "layers.77"}, InputError, "no layer 'layers.77'"),
        ({"classes": ["zebra"]}, TargetError, "knows no names"),
        ({"classes": ["5"]}, InputError, "no picture of the classes"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_a_folder_is_made(
    registered_vim, folder, tmp_path, options, error, message
):
    with pytest.raises(error, match=message):
        gather(registered_vim, read(folder), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_that_classify_nothing_or_have_no_rules_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="nothing that it classifies"):
        gather(Headless(), read(folder), tmp_path / "out")
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.num_classes = 10
    with pytest.raises(UnsupportedModelError):
        gather(model, read(folder), tmp_path / "out", layer="0")
    assert not (tmp_path / "out").exists()


def test_nothing_readable_is_an_error(registered_vim, tmp_path):
    folder = photos(tmp_path / "data", ("0",), count=1)
    (folder / "0" / "0.png").write_text("no picture")
    with pytest.raises(
        InputError, match=r"none of the 1 pictures can be audited; the first: .*0\.png"
    ):
        gather(registered_vim, read(folder), tmp_path / "out", layer="layers.1")


def test_pictures_that_have_gone_are_problems(registered_vim, folder, tmp_path):
    data = read(folder)
    gone = Sample(folder / "0" / "gone.png", "0/gone.png", 0)
    evidence = gather(registered_vim, DataSet((*data.samples, gone)), tmp_path / "out", **OPTIONS)
    assert len(evidence) == 6
    assert [p.sample for p in read_gathered(tmp_path / "out").problems()] == ["0/gone.png"]


def test_classes_of_a_csv_file_and_their_boxes_reach_the_evidence(registered_vim, folder, tmp_path):
    table = folder / "boxes.csv"
    table.write_text(
        "path,label,x0,y0,x1,y1\n0/0.png,0,1,2,30,20\n7/1.png,7,,,,\n7/2.png,zebra,,,,\n"
    )
    evidence = gather(registered_vim, read_data(table, None, 10), tmp_path / "out", **OPTIONS)
    assert [s.name for s in evidence.samples] == ["0/0.png", "7/1.png"]
    assert evidence.samples[0].boxes[0].corners == (1, 2, 30, 20)
    problems = read_gathered(tmp_path / "out").problems()
    assert [(p.sample, p.kind) for p in problems] == [("7/2.png", "class missing from the model")]
