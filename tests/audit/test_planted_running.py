"""A run in miniature: plant, train, audit, compare, and go on from its record."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vimlrp.audit.planted.mitigating import outcome
from vimlrp.audit.planted.pictures import DrawnPictures
from vimlrp.audit.planted.plans import Plan, Planting
from vimlrp.audit.planted.planting import pasted, plant
from vimlrp.audit.planted.running import Settings, read_records, run
from vimlrp.audit.planted.summaries import summary
from vimlrp.audit.planted.training import create, logits
from vimlrp.errors import InputError

SMALL = Settings("cnn", 1, classes=11, count=24, extra=0, held_out=6, side=32, epochs=3, controls=0)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return folder, run(SMALL, folder)


def test_the_record_names_every_class_and_what_was_planted(done):
    _, record = done
    assert [one["label"] for one in record["classes"]] == list(range(11))
    kinds = sorted(one["kind"] for one in record["classes"])
    assert kinds == ["clean"] * 2 + ["planted"] * 7 + ["two poses", "unlearnt"]
    assert 0 <= record["accuracy"]["clean"] <= 1
    for one in record["classes"]:
        assert 1 <= one["rank"] <= one["of"]
        assert (one["artifact"] is not None) == (one["kind"] in ("planted", "unlearnt"))


def test_findings_were_compared_or_the_reason_is_told(done):
    _, record = done
    looked_into = {one["label"] for one in record["findings"]}
    planted = {one["label"] for one in record["classes"] if one["artifact"]}
    missing = planted - looked_into
    assert all(any(f"class {label}" in p for p in record["problems"]) for label in missing)
    for one in record["findings"]:
        if one["artifact"]:
            assert 0 <= one["retrieval"]["average_precision"] <= 1


def test_a_run_is_not_done_again(done):
    folder, record = done
    path = folder / "cnn-seed1.json"
    before = path.stat().st_mtime_ns
    assert json.dumps(run(SMALL, folder), indent=1) == path.read_text()  # NaN included
    assert path.stat().st_mtime_ns == before
    (read,) = read_records(folder)
    assert read["settings"] == record["settings"]
    assert "### Classifiers" in summary([read])


def test_a_record_of_other_settings_is_refused(done):
    folder, _ = done
    other = Settings(**{**vars(SMALL), "count": 30})
    with pytest.raises(InputError, match="was made with other settings"):
        run(other, folder)


def test_an_empty_or_damaged_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no record"):
        read_records(tmp_path)
    (tmp_path / "cnn-seed0.json").write_text("{")
    with pytest.raises(InputError, match="is no record of a run"):
        read_records(tmp_path)


@contextmanager
def louder(model, label, by):
    """A stand-in for a mitigation: raises one logit."""
    bias = model.get_classifier().bias
    with torch.no_grad():
        bias[label] += by
    try:
        yield
    finally:
        with torch.no_grad():
            bias[label] -= by


def test_outcome_by_hand():
    plan = Plan(4, 0, (Planting(2, "border", 0.5),))
    held_out = plant(DrawnPictures(classes=4, side=32), plan, 8)
    model = create("cnn", 4, 32).eval()
    found = outcome(model, lambda: louder(model, 1, 100.0), 2, "border", held_out)
    before = logits(model, held_out.twins).argmax(1)
    assert found.clean == pytest.approx(np.mean(before == held_out.labels))
    assert found.clean_after == 0.25  # everything is class 1 now
    assert found.attacked_after == pytest.approx(1 / 3)
    rows = held_out.labels != 2
    attacked, _ = pasted(held_out.twins[rows], "border", seed=0)
    share = np.mean(logits(model, attacked).argmax(1) == held_out.labels[rows])
    assert found.attacked == pytest.approx(share)
    assert found.recovery == pytest.approx(0, abs=1e-4)
    assert found.selectivity == pytest.approx(0, abs=1e-4)


def test_outcome_of_raising_the_class_itself():
    plan = Plan(4, 0, (Planting(2, "border", 0.5),))
    held_out = plant(DrawnPictures(classes=4, side=32), plan, 8)
    model = create("cnn", 4, 32).eval()
    found = outcome(model, lambda: louder(model, 2, 1.5), 2, "border", held_out)
    assert found.selectivity == pytest.approx(1.5, abs=1e-4)
